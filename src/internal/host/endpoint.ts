/**
 * What an endpoint with sessions does, whoever serves it: it reads its options, keeps the registry of its sessions, lets
 * requests in, begins and terminates sessions, and has an answer to every failure.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { Respondable } from "effect/http/HttpServerRespondable"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import type { Identity } from "../../Identity.ts"
import { IdentityResolver } from "../../IdentityResolver.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import type { EndpointOptions } from "../../McpHttpOptions.ts"
import {
  type RegisteredSession,
  type Service,
  SessionRegistry,
  type SessionRegistryOptions
} from "../../SessionRegistry.ts"
import type { OpenTimeout, RegistryClosed, RegistryFull, SessionNotFound } from "../../SessionRegistryError.ts"
import type * as Options from "../options.ts"
import * as Answers from "./answers.ts"
import * as Listener from "./listener.ts"
import * as Requests from "./requests.ts"
import * as Socket from "./socket.ts"

/**
 * A hold on a session that several share: it is given up when all of them have released it.
 */
export interface Lease {
  readonly retain: () => void
  readonly release: () => void
}

/**
 * Opens the registry of an endpoint's sessions. It shuts down with the current scope, or as soon as the HTTP server does
 * whose requests it has.
 */
export const make = Effect.fnUntraced(function*<Resource, R>(
  options: EndpointOptions,
  open: SessionRegistryOptions<Resource, Answers.Refused, R>["open"]
) {
  const resolver = yield* IdentityResolver
  const scope = yield* Scope.fork(yield* Effect.scope)
  const registry = yield* openRegistry(options, open, scope)
  const listening = yield* Listener.make(Scope.close(scope, Exit.void))
  const closing = Deferred.makeUnsafe<never, Answers.Refused>()
  // Runs before the registry shuts down
  yield* Scope.addFinalizer(scope, Deferred.fail(closing, Answers.unavailable))
  const services = yield* Effect.context<never>()

  /** Counts a request until the current scope closes, and finds out if its client vanishes. */
  const holding = (request: HttpServerRequest): Effect.Effect<void, never, Scope.Scope> => {
    Socket.keepAlive(request)
    return listening(request)
  }

  /** The caller's session, held until the current scope has closed and nobody retains the lease. */
  const hold = (id: string, identity: Identity) =>
    Effect.suspend(() => {
      const held = Scope.makeUnsafe()
      let holders = 1
      const lease: Lease = {
        retain: () => void holders++,
        release: () => {
          if (--holders === 0) Effect.runForkWith(services)(Scope.close(held, Exit.void))
        }
      }
      return Effect.andThen(
        Effect.addFinalizer(() => --holders === 0 ? Scope.close(held, Exit.void) : Effect.void),
        Effect.map(
          Effect.provideService(registry.get(id, identity), Scope.Scope, held),
          (session) => ({ session, lease })
        )
      )
    })

  /**
   * A new session of the caller, held for as long as `initialize` and the current scope need it. If that fails the
   * session ends: what the client has not heard of, it will never use.
   */
  const begin = <E, R2>(
    identity: Identity,
    initialize: (session: RegisteredSession<Resource>, lease: Lease) => Effect.Effect<HttpServerResponse, E, R2>
  ): Effect.Effect<
    HttpServerResponse,
    E | Answers.Refused | RegistryFull | OpenTimeout | RegistryClosed | SessionNotFound,
    R2 | Scope.Scope
  > =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        restore(registry.create(identity)),
        (session) =>
          restore(Effect.flatMap(hold(session.id, identity), ({ lease }) => initialize(session, lease))).pipe(
            Effect.onError(() => Effect.ignore(registry.terminate(session.id, identity)))
          )
      )
    )

  /** Answers DELETE. */
  const terminate = Effect.fnUntraced(function*(request: HttpServerRequest, id: string, identity: Identity) {
    yield* registry.peek(id, identity)
    if (!Requests.isVersionSupported(request)) return yield* Requests.unsupportedVersion
    yield* registry.terminate(id, identity)
    return Answers.terminated
  })

  return {
    resolve: resolver.resolve,
    registry,
    holding,
    hold,
    begin,
    terminate,
    isClosing: () => Deferred.isDoneUnsafe(closing),
    /** Fails with the answer to a request that came too late. */
    closing: Deferred.await(closing)
  }
})

const openRegistry = Effect.fnUntraced(function*<Resource, R>(
  options: EndpointOptions,
  open: SessionRegistryOptions<Resource, Answers.Refused, R>["open"],
  scope: Scope.Scope
) {
  class Sessions
    extends SessionRegistry.Tag<Sessions, Resource, Answers.Refused>()("effect-mcp-sessions/McpHttp/Sessions")
  {}
  const { capacity, capacityPerOwner, closeTimeout, drainTimeout, idleTimeToLive, maxLifetime, openTimeout } = options
  const context = yield* Layer.buildWithScope(
    Sessions.layer({
      open,
      capacity,
      capacityPerOwner,
      closeTimeout,
      drainTimeout,
      idleTimeToLive,
      maxLifetime,
      openTimeout
    }),
    scope
  )
  return Context.get(context, Sessions)
})

/**
 * The same for everybody else: whose sessions begin with a request, and not otherwise.
 */
export const provided = <Resource>(registry: Service<Resource, Answers.Refused>): SessionRegistry["Service"] => ({
  ...registry,
  create: () => Effect.die(new Error("McpHttp: a session begins with an initialize request, not with create"))
})

/**
 * Every failure has an answer. A defect's is 503: clients of MCP take a 500 for the server's last word.
 */
export const answering = <E extends Respondable, R>(
  answer: Effect.Effect<HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse, never, R> =>
  Effect.catchCause(answer, (cause) => {
    const error = Cause.findErrorOption(cause)
    if (Option.isSome(error)) return Answers.toFailure(error.value)
    if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
    return Effect.as(Effect.logError("An MCP request could not be answered", cause), Answers.unavailable.response)
  })

// -----------------------------------------------------------------------------
// Options
// -----------------------------------------------------------------------------

export const endpointOptions = [
  "path",
  "allowedOrigins",
  "allowedHosts",
  "maxBodyBytes",
  "bodyTimeout",
  "allowTermination",
  "capacity",
  "capacityPerOwner",
  "idleTimeToLive",
  "maxLifetime",
  "openTimeout",
  "closeTimeout",
  "drainTimeout"
] as const satisfies ReadonlyArray<keyof EndpointOptions>

/**
 * Reads those of the options that are not the registry's.
 */
export const parse = Effect.fnUntraced(function*(read: Options.Reader, options: EndpointOptions) {
  const { allowedHosts, allowedOrigins, allowTermination = true, path = "/mcp" } = options
  if (typeof path !== "string" || !path.startsWith("/")) return yield* invalid("path", "must begin with a slash")
  for (const [option, list] of Object.entries({ allowedHosts, allowedOrigins })) {
    if (!isAllowList(list)) return yield* invalid(option, "must be a list of strings, or \"*\"")
  }
  if (typeof allowTermination !== "boolean") return yield* invalid("allowTermination", "must be a boolean")
  return {
    path,
    allowTermination,
    gate: Requests.gate({ allowedHosts, allowedOrigins }),
    readText: Requests.textReader(
      yield* read.count("maxBodyBytes", 4 * 1024 * 1024),
      yield* read.millis("bodyTimeout", "30 seconds", { least: "positive" })
    )
  }
})

const isAllowList = (list: unknown): boolean =>
  list === undefined || list === "*" || (Array.isArray(list) && list.every((entry) => typeof entry === "string"))

export const invalid = (option: string, issue: string) =>
  Effect.fail(new InvalidOptions({ module: "McpHttp", option, issue }))
