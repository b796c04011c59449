/**
 * MCP sessions over HTTP: {@link layer} hosts an SDK server for each, {@link guard} gives those of Effect's own
 * `McpServer.layerHttp` owners and an end.
 *
 * Both put a `SessionRegistry` behind a path of the `HttpRouter`. Who a request is made for is `IdentityResolver`'s to
 * say, on every request: an id is a name, never a credential.
 *
 * | request | answer |
 * |---|---|
 * | `initialize` without an id | 200 and a new `Mcp-Session-Id`, the caller's own |
 * | `initialize` with an id | 400 if it is a live session of the caller, else 404 |
 * | anything else without an id | 400 |
 * | unknown, expired, terminated, malformed, someone else's, two ids | 404, one and the same |
 * | no identity, or a malformed one | 401 with `WWW-Authenticate` |
 * | DELETE | 204, afterwards 404; whatever was in flight ends at once |
 * | no room | 503 with `Retry-After` |
 * | shutting down | 503 |
 * | a `Host` or `Origin` that is not allowed | 403 |
 * | wrong protocol version, `Accept`, `Content-Type`, JSON, method | 400, 406, 415, 400, 405 with `Allow` |
 * | second GET stream | 409 |
 * | body too large | 413 |
 *
 * What is wrong with the session is told before what is wrong with the body.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { isInitializeRequest, isJSONRPCRequest } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import type * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as HttpRouter from "effect/http/HttpRouter"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import type { Identity, SessionKey } from "./Identity.ts"
import { IdentityResolver } from "./IdentityResolver.ts"
import * as Answers from "./internal/host/answers.ts"
import * as Endpoints from "./internal/host/endpoint.ts"
import * as EventStores from "./internal/host/eventStore.ts"
import * as Guarding from "./internal/host/guard.ts"
import * as Hosting from "./internal/host/server.ts"
import * as Options from "./internal/options.ts"
import * as Requests from "./internal/host/requests.ts"
import * as Scrub from "./internal/scrub.ts"
import type { Configurable, InvalidOptions } from "./InvalidOptions.ts"
import { type RegisteredSession, type SessionInfo, SessionRegistry } from "./SessionRegistry.ts"

/**
 * What both layers take.
 *
 * @category models
 */
export type EndpointOptions = Endpoints.EndpointOptions

/**
 * @category models
 */
export interface LayerOptions<E, R> extends EndpointOptions {
  /**
   * Makes the server of a session, a new one each time: the SDK's `McpServer` or `Server`. It is connected and closed
   * for you; its own finalizers run after that. One that closes itself ends its session. Runs with the services and a
   * scope of the layer.
   *
   * A failure answers `initialize` with its own response if it has one (as `PoolExhausted` has), else with 503.
   */
  readonly server: (info: SessionInfo, caller: SessionCaller) => Effect.Effect<ServerLike, E, R>
  /**
   * How requests are answered: as a stream of events, which can carry progress and questions to the client, or as JSON,
   * which is less to parse. By default `"sse"`.
   */
  readonly response?: "sse" | "json" | undefined
  /**
   * Makes the store that lets the clients of a session resume a stream that broke, as {@link memoryEventStore} does: a
   * new one each time, because an SDK transport replays whatever its store has. By default nothing can be resumed.
   */
  readonly eventStore?: ((info: SessionInfo) => EventStore) | undefined
  /** How long a client is told to wait before it resumes a stream. By default that is its own choice. */
  readonly retryInterval?: Duration.Input | undefined
}

/**
 * Whose session it is.
 *
 * @category models
 */
export interface SessionCaller {
  /** The owner, with the newest credentials that came with a request of the session. */
  readonly identity: Effect.Effect<Identity>
}

/**
 * The SDK's `McpServer` or `Server`.
 *
 * @category models
 */
export type ServerLike = Hosting.ServerLike

/**
 * Hosts an SDK server for each session, over Streamable HTTP: POST, GET for the server's own stream, DELETE.
 *
 * A request that is being answered and a stream that is open hold their session. The session ends them when it ends, and
 * all of them end with the layer, or with the Node server that they came to as soon as that stops listening.
 *
 * It provides the `SessionRegistry` of its sessions, so that an operator can list, count and terminate them.
 *
 * Fails with `InvalidOptions` when an option has no meaning.
 *
 * **Example** (A server of its own for everybody)
 *
 * ```ts
 * const Mcp = McpHttp.layer({
 *   server: () => Effect.sync(() => new McpServer({ name: "example", version: "1.0.0" })),
 *   capacityPerOwner: 10
 * }).pipe(Layer.provide(IdentityResolver.layer({ mode: "required" })))
 *
 * HttpRouter.serve(Mcp).pipe(Layer.provide(NodeHttpServer.layer(createServer, { port: 3000 })))
 * ```
 *
 * @category layers
 */
export const layer = <E = never, R = never>(
  options: LayerOptions<E, R>
): Layer.Layer<
  SessionRegistry,
  InvalidOptions,
  HttpRouter.HttpRouter | IdentityResolver | Exclude<R, Scope.Scope>
> => Layer.effect(SessionRegistry, makeLayer(options, "layer"))

/**
 * {@link layer} with options from the configuration, and from `options` where that is silent. The variables are named
 * after the options: `MCP_REGISTRY_PATH`, `MCP_REGISTRY_CAPACITY`, …; README has the table. Lists have commas.
 *
 * An option may be a `Config` of your own, which is read in place of its variable; and so may all of them at once, and
 * then no variable of the library is read.
 *
 * Fails with `ConfigError` when a variable can't be read, and with `InvalidOptions` when what it says has no meaning.
 *
 * @category layers
 */
export const layerConfig = <E = never, R = never>(
  options: Configurable<LayerOptions<E, R>>
): Layer.Layer<
  SessionRegistry,
  InvalidOptions | Config.ConfigError,
  HttpRouter.HttpRouter | IdentityResolver | Exclude<R, Scope.Scope>
> =>
  Layer.effect(
    SessionRegistry,
    Effect.flatMap(declared.configured(options), (configured) => makeLayer(configured, "layerConfig"))
  )

/**
 * Gives the sessions of Effect's own `McpServer.layerHttp` owners, an end, and a cap: as middleware of the router in
 * front of its endpoint. Build that with `allowSessionTermination: true`, or its sessions can't be freed when they end
 * here; nothing else of it changes.
 *
 * The ids that clients see are the registry's. Requests of the protocol version 2026-07-28, which has no sessions, are
 * made for somebody too, and otherwise let through; their session header is dropped. Origins are checked here and inside:
 * list them in both.
 *
 * It provides the `SessionRegistry` of these sessions.
 *
 * Fails with `InvalidOptions` when an option has no meaning.
 *
 * **Example** (Effect's server, with owners)
 *
 * ```ts
 * const Mcp = Layer.merge(
 *   McpServer.layerHttp({ name: "example", version: "1.0.0", path: "/mcp", protocols, allowSessionTermination: true }),
 *   McpHttp.guard({ path: "/mcp", idleTimeToLive: "1 hour" })
 * ).pipe(Layer.provide(IdentityResolver.layer({ mode: "required" })))
 * ```
 *
 * @category layers
 */
export const guard = (
  options: EndpointOptions = {}
): Layer.Layer<SessionRegistry, InvalidOptions, HttpRouter.HttpRouter | IdentityResolver> =>
  Layer.effect(SessionRegistry, Guarding.make(options, "guard"))

/**
 * {@link guard} with options from the configuration, as {@link layerConfig} reads them.
 *
 * @category layers
 */
export const guardConfig = (
  options: Configurable<EndpointOptions> = {}
): Layer.Layer<
  SessionRegistry,
  InvalidOptions | Config.ConfigError,
  HttpRouter.HttpRouter | IdentityResolver
> =>
  Layer.effect(
    SessionRegistry,
    Effect.flatMap(
      Endpoints.declared.configured(options),
      (configured) => Guarding.make(configured, "guardConfig")
    )
  )

const makeLayer = Effect.fnUntraced(function*<E, R>(options: LayerOptions<E, R>, method: "layer" | "layerConfig") {
  const { allow, ...settings } = yield* parseLayer(options, method)
  const resolver = yield* IdentityResolver
  const router = yield* HttpRouter.HttpRouter
  const services = yield* Effect.context<never>()
  const arrivals = makeArrivals()
  const stores = new WeakSet<EventStore>()

  const open = (info: SessionInfo): Effect.Effect<Session, unknown, R | Scope.Scope> => {
    const caller = arrivals.callerOf(info.owner)
    return Effect.gen(function*() {
      const eventStore = options.eventStore?.(info)
      if (eventStore !== undefined && stores.has(eventStore)) {
        return yield* Effect.die(new Error("McpHttp: two sessions were given the same event store"))
      }
      if (eventStore !== undefined) stores.add(eventStore)
      const { enableJsonResponse, retryInterval } = settings
      const hosted = yield* Hosting.open(
        Effect.suspend(() => options.server(info, { identity: Effect.sync(() => caller.identity) })),
        {
          id: info.id,
          enableJsonResponse,
          eventStore,
          retryInterval,
          onClosed: () =>
            void Effect.runForkWith(services)(Effect.ignore(registry.terminate(info.id, { key: info.owner })))
        }
      )
      return { hosted, caller } satisfies Session as Session
    }).pipe(Effect.catchCause((cause) => unopened(cause, caller)))
  }

  const { holding, registry } = yield* Endpoints.openRegistry(options, open)

  // Closing the session ends all of this too, but may have to wait for a place among those that are being closed. Not a
  // child of the request: it would keep all that belongs to that for as long as there is the session.
  const watch = ({ ended, resource: { hosted }, retired }: RegisteredSession<Session>): void => {
    const watched = retired.pipe(
      Effect.andThen(Effect.sync(hosted.endStreams)),
      Effect.andThen(ended),
      Effect.andThen(Effect.sync(hosted.end))
    )
    Fiber.runIn(Effect.runForkWith(services)(watched), hosted.scope)
  }

  const readBody = (request: HttpServerRequest.HttpServerRequest) =>
    Effect.flatMap(settings.readText(request), Requests.parse)

  const initialize = Effect.fnUntraced(function*(request: HttpServerRequest.HttpServerRequest, identity: Identity) {
    const issue = Requests.mediaTypeIssue(request)
    if (issue !== undefined) return issue
    const body = yield* readBody(request)
    const refusal = initializeIssue(body)
    if (refusal !== undefined) return refusal
    return yield* Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        restore(arrivals.during(identity, registry.create(identity))),
        (session) =>
          restore(Effect.andThen(registry.get(session.id, identity), handle(session, request, body))).pipe(
            // What the client has not heard of, it will never use
            Effect.onExit((exit) =>
              Exit.isSuccess(exit) && exit.value.status === 200
                ? Effect.sync(() => watch(session))
                : Effect.ignore(registry.terminate(session.id, identity))
            )
          )
      )
    )
  })

  const proceed = Effect.fnUntraced(function*(
    request: HttpServerRequest.HttpServerRequest,
    id: string,
    identity: Identity
  ) {
    const session = yield* registry.get(id, identity)
    if (Option.isSome(identity.credentials)) session.resource.caller.identity = identity
    if (request.method === "GET") return yield* handle(session, request, undefined)
    const issue = Requests.mediaTypeIssue(request)
    if (issue !== undefined) return issue
    return yield* handle(session, request, yield* readBody(request))
  })

  const terminate = Effect.fnUntraced(function*(
    request: HttpServerRequest.HttpServerRequest,
    id: string,
    identity: Identity
  ) {
    yield* registry.peek(id, identity)
    if (!Requests.isVersionSupported(request)) return Requests.unsupportedVersion
    yield* registry.terminate(id, identity)
    return Answers.terminated
  })

  const methodNotAllowed = Answers.methodNotAllowed(allow.join(", "))

  yield* router.add(
    "*",
    settings.path,
    (request) =>
      Endpoints.answering(Effect.suspend((): Effect.Effect<HttpServerResponse, unknown, Scope.Scope> => {
        const refusal = settings.gate(request) ?? (allow.includes(request.method) ? undefined : methodNotAllowed)
        if (refusal !== undefined) return Effect.succeed(refusal)
        return Effect.flatMap(
          resolver.resolve(request),
          (identity): Effect.Effect<HttpServerResponse, unknown, Scope.Scope> => {
            const id = Requests.sessionId(request)
            if (id === undefined && request.method !== "POST") return Effect.succeed(Answers.sessionRequired)
            if (id !== undefined && request.method === "DELETE") return terminate(request, id, identity)
            return Effect.andThen(
              holding(request),
              id === undefined ? initialize(request, identity) : proceed(request, id, identity)
            )
          }
        )
      }))
  )

  return Endpoints.provided(registry)
})

interface Session {
  readonly hosted: Hosting.Hosted
  readonly caller: Caller
}

interface Caller {
  identity: Identity
}

const handle = (session: RegisteredSession<Session>, request: HttpServerRequest.HttpServerRequest, body: unknown) =>
  session.resource.hosted.handle(request, body)

const initializeIssue = (body: unknown): HttpServerResponse | undefined => {
  if (isJSONRPCRequest(body) && isInitializeRequest(body)) return undefined
  if (Array.isArray(body) && body.some(isInitialize)) return Answers.initializeAlone
  return isInitialize(body) ? Answers.initializeMalformed : Answers.sessionRequired
}

const isInitialize = (message: unknown): boolean =>
  Predicate.hasProperty(message, "method") && message.method === "initialize"

/**
 * The registry knows its sessions' owners by their keys. What opens a session may need their credentials: these are
 * those who are waiting for one to be opened.
 */
const makeArrivals = () => {
  const arrivals = new Map<SessionKey, { identity: Identity; count: number }>()
  return {
    during: <A, E, R>(identity: Identity, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
      Effect.acquireUseRelease(
        Effect.sync(() => {
          const arrival = arrivals.get(identity.key)
          if (arrival === undefined) {
            arrivals.set(identity.key, { identity, count: 1 })
          } else {
            arrival.identity = identity
            arrival.count++
          }
        }),
        () => effect,
        () =>
          Effect.sync(() => {
            const arrival = arrivals.get(identity.key)
            if (arrival !== undefined && --arrival.count === 0) arrivals.delete(identity.key)
          })
      ),
    callerOf: (owner: SessionKey): Caller => ({ identity: arrivals.get(owner)!.identity })
  }
}

// What keeps a session from being opened is told to the operator, and to the caller only if it has an answer of its own.
const unopened = (cause: Cause.Cause<unknown>, { identity }: Caller): Effect.Effect<never, unknown> => {
  if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause)
  const scrub = Scrub.make()
  if (Option.isSome(identity.credentials)) {
    scrub.add(Redacted.value(identity.credentials.value.header))
    scrub.add(Redacted.value(identity.credentials.value.token))
  }
  return Effect.logWarning("An MCP session could not be opened", scrub(Cause.pretty(cause))).pipe(
    Effect.annotateLogs("owner", identity.key),
    Effect.andThen(Effect.fail(Option.getOrElse(Cause.findErrorOption(cause), () => Answers.unavailable)))
  )
}

/**
 * @internal
 */
export const declared = Options.declare<LayerOptions<never, never>>()(
  { module: "McpHttp", variables: "MCP_REGISTRY" },
  {
    server: Options.required(Options.fn),
    response: Options.withDefault(
      Options.schema(Schema.Literals(["sse", "json"]), "\"sse\" or \"json\""),
      "sse"
    ),
    eventStore: Options.optional(Options.fn),
    retryInterval: Options.optional(Options.patience, { shown: "the client's" }),
    ...Endpoints.declared.declaration
  }
)

const parseLayer = Effect.fnUntraced(function*<E, R>(options: LayerOptions<E, R>, method: string) {
  const parsed = yield* Effect.fromResult(declared.parse(options, method))
  const endpoint = Endpoints.toSettings(parsed)
  return {
    ...endpoint,
    allow: ["GET", "POST", ...(endpoint.allowTermination ? ["DELETE"] : [])],
    enableJsonResponse: parsed.response === "json",
    retryInterval: parsed.retryInterval
  }
})

// -----------------------------------------------------------------------------
// Event stores
// -----------------------------------------------------------------------------

/**
 * Makes event stores in memory, one for each session, which is where they end.
 *
 * Each keeps the latest `capacity` events of its session, by default 256: a client that was away for longer misses those
 * before.
 *
 * @category constructors
 */
export const memoryEventStore = (options: { readonly capacity?: number | undefined } = {}): () => EventStore => {
  const { capacity = 256 } = options
  return () => EventStores.make(capacity)
}
