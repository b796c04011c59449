/**
 * Sessions that are a server of the SDK each, behind a path of the router.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { isInitializeRequest, isJSONRPCRequest } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Identity } from "../../Identity.ts"
import * as Declared from "../../McpHttpOptions.ts"
import { operatorOf, type RegisteredSession, type SessionInfo } from "../../SessionRegistry.ts"
import { namesAndPlaces } from "../places.ts"
import * as Answers from "./answers.ts"
import * as Endpoint from "./endpoint.ts"
import * as Stores from "./eventStore.ts"
import * as Requests from "./requests.ts"
import type * as Resource from "./resource.ts"
import * as Server from "./server.ts"
import * as Spans from "./spans.ts"

export const make = Effect.fnUntraced(function*<E, R>(
  options: Declared.LayerOptions<E, R>,
  method: "layer" | "layerConfig"
) {
  const settings = yield* parse(options, method)
  const router = yield* HttpRouter.HttpRouter
  const services = yield* Effect.context<never>()
  const clock = yield* Clock.Clock
  /** By the id of the session that is made for them, those who have asked for one. */
  const arrivals = new Map<string, Caller>()
  const stores = new WeakSet<EventStore>()

  const report = (message: string, error: unknown): void =>
    void Effect.runForkWith(services)(Effect.logError(message, namesAndPlaces(Cause.die(error))))

  const eventStoreOf = (info: SessionInfo): Effect.Effect<EventStore | undefined, never, Scope.Scope> =>
    Effect.contextWith((context: Context.Context<Scope.Scope>) => {
      const store = options.eventStore?.(info)
      if (store === undefined) return Effect.undefined
      if (stores.has(store)) return Effect.die(new Error("McpHttp: two sessions were given the same event store"))
      stores.add(store)
      let hasFailed = false
      const onFailure = (error: unknown) => {
        if (!hasFailed) report("An event store could not keep an event of its session", error)
        hasFailed = true
      }
      const scope = Context.get(context, Scope.Scope)
      const run = <A, E2>(effect: Effect.Effect<A, E2>) =>
        new Promise<Exit.Exit<A, E2>>((resolve) => {
          Fiber.runIn(Effect.runForkWith(services)(effect), scope).addObserver(resolve)
        })
      return Effect.succeed(Stores.bounded(store, { run, onFailure }))
    })

  const open = (info: SessionInfo): Effect.Effect<Session, Answers.Refused, R | Scope.Scope> => {
    const caller = arrivals.get(info.id)!
    return Effect.flatMap(eventStoreOf(info), (eventStore) =>
      Server.open(
        Effect.suspend(() => options.server(info, { identity: Effect.sync(() => caller.identity) })),
        {
          id: info.id,
          enableJsonResponse: settings.enableJsonResponse,
          eventStore,
          retryInterval: settings.retryInterval,
          streamTimeToLive: settings.streamTimeToLive,
          maxConcurrentRequests: settings.maxConcurrentRequests,
          isShuttingDown: () => endpoint.isClosing(),
          isProtected: settings.protects !== undefined,
          onClosed: () =>
            void Effect.runForkWith(services)(Effect.ignore(endpoint.registry.terminate(info.id, { key: info.owner }))),
          onThrown: (error) => report("A handler of an MCP server has thrown", error)
        }
      )).pipe(
        Effect.map((hosted): Session => ({ hosted, caller })),
        Effect.catchCause((cause) => unopened(cause, caller))
      )
  }

  const endpoint = yield* Endpoint.make(options, { ...settings, method }, open)

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

  const readBody = Effect.fnUntraced(
    function*(request: HttpServerRequest, until: Effect.Effect<never, Answers.Refused>) {
      const issue = Requests.mediaTypeIssue(request)
      if (issue !== undefined) return yield* issue
      return yield* Requests.parse(yield* settings.readText(request, until))
    }
  )

  const initialize = Effect.fnUntraced(function*(request: HttpServerRequest, identity: Identity) {
    if (!Requests.isVersionSupported(request)) return yield* Requests.unsupportedVersion
    const body = yield* readBody(request, endpoint.closing)
    const issue = initializeIssue(body)
    if (issue !== undefined) return yield* issue
    const denied = settings.protects?.scopeIssue(identity, body)
    if (denied !== undefined) return yield* denied
    let announced: string | undefined
    const announce = (id: string) => {
      announced = id
      arrivals.set(id, { identity })
    }
    return yield* Spans.serving(
      request,
      identity,
      body,
      (served) =>
        endpoint.begin(identity, body, announce, (session, lease) => {
          watch(session)
          return Effect.filterOrFail(
            session.resource.hosted.handle({ request, body, identity, lease, served }),
            ({ status }) => status === 200,
            (response) => new Answers.Refused({ response })
          )
        })
    ).pipe(Effect.ensuring(Effect.sync(() => {
      if (announced !== undefined) arrivals.delete(announced)
    })))
  })

  // Nothing that is refused is activity, so the session is held when all that can be checked has been.
  const proceed = Effect.fnUntraced(function*(request: HttpServerRequest, id: string, identity: Identity) {
    const visit = yield* endpoint.registry.visit(id, identity)
    const { caller, hosted } = visit.session.resource
    if (!Requests.isVersionSupported(request)) return yield* Requests.unsupportedVersion
    const body = yield* request.method === "GET" ? acceptStream(request) : readMessages(request, hosted.ended)
    const denied = settings.protects?.scopeIssue(identity, body)
    if (denied !== undefined) return yield* denied
    return yield* Spans.serving(
      request,
      identity,
      body,
      (served) =>
        Effect.flatMap(endpoint.hold(visit), ({ lease }) => {
          caller.identity = Identity.newest(caller.identity, identity, clock)
          return hosted.handle({ request, body, identity, lease, served })
        })
    )
  })

  const readMessages = Effect.fnUntraced(
    function*(request: HttpServerRequest, until: Effect.Effect<never, Answers.Refused>) {
      const body = yield* readBody(request, until)
      if (!Requests.isMessages(body)) return yield* Answers.malformed
      return Requests.beginsSession(body) ? yield* Answers.initialized : body
    }
  )

  const methodNotAllowed = Answers.methodNotAllowed(settings.methods.join(", "))

  const serve = Effect.fnUntraced(function*(request: HttpServerRequest) {
    const refusal = settings.gate(request) ?? (settings.methods.includes(request.method) ? undefined : methodNotAllowed)
    if (refusal !== undefined) return yield* refusal
    const id = Requests.sessionId(request)
    const elsewhere = endpoint.elsewhere(settings, request, id)
    const answered = elsewhere && (yield* elsewhere)
    if (answered !== undefined) return answered
    const identity = yield* endpoint.resolve(request)
    if (id === undefined && request.method !== "POST") return yield* Answers.sessionRequired
    if (id !== undefined && request.method === "DELETE") return yield* endpoint.terminate(request, id, identity)
    yield* endpoint.holding(request)
    return yield* id === undefined ? initialize(request, identity) : proceed(request, id, identity)
  })

  const { protects } = settings
  if (protects !== undefined) yield* protects.publish(router)
  yield* router.add("*", settings.path, (request) => {
    const served = Endpoint.serving(settings, request, serve(request))
    return protects === undefined ? served : Effect.andThen(located(protects), served)
  })

  return Context.make(settings.sessions, operatorOf(endpoint.registry))
})

// -----------------------------------------------------------------------------
// Sessions
// -----------------------------------------------------------------------------

interface Session {
  readonly hosted: Server.Hosted
  readonly caller: Caller
}

interface Caller {
  identity: Identity
}

const acceptStream = (request: HttpServerRequest): Effect.Effect<undefined, Answers.Refused> =>
  Requests.streamIssue(request) ?? Effect.undefined

/** Tells the resource what is in front of the path: the route knows. */
const located = (protects: Resource.Resource): Effect.Effect<void> =>
  Effect.map(Effect.serviceOption(HttpRouter.RouteContext), (found) => {
    if (Option.isSome(found) && Option.isSome(found.value.route.prefix)) protects.below(found.value.route.prefix.value)
  })

const initializeIssue = (body: unknown): Answers.Refused | undefined => {
  if (isJSONRPCRequest(body) && isInitializeRequest(body)) return undefined
  if (Array.isArray(body) && body.some(Requests.isInitialize)) return Answers.initializeAlone
  return Requests.isInitialize(body) ? Answers.initializeMalformed : Answers.sessionRequired
}

// What keeps a session from being opened is told to the operator by name and place, and to the caller only if it has an
// answer of its own.
const unopened = (cause: Cause.Cause<unknown>, { identity }: Caller): Effect.Effect<never, Answers.Refused> => {
  if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
  return Effect.logWarning("An MCP session could not be opened", namesAndPlaces(cause)).pipe(
    Effect.annotateLogs("owner", identity.key),
    Effect.andThen(Answers.toFailure(Option.getOrUndefined(Cause.findErrorOption(cause)))),
    Effect.flatMap((response) => Effect.fail(new Answers.Refused({ response })))
  )
}

// -----------------------------------------------------------------------------
// Options
// -----------------------------------------------------------------------------

const parse = Effect.fnUntraced(function*<E, R>(options: Declared.LayerOptions<E, R>, method: string) {
  const parsed = yield* Effect.fromResult(Declared.layer.parse(options, method))
  const settings = Endpoint.toSettings(parsed)
  return {
    ...settings,
    enableJsonResponse: parsed.response === "json",
    retryInterval: parsed.retryInterval,
    maxConcurrentRequests: parsed.maxConcurrentRequests
  }
})
