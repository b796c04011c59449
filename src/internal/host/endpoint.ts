/**
 * What an endpoint with sessions does, whoever serves it: it reads its options, keeps the registry of its sessions,
 * lets requests in, begins and terminates sessions, and has an answer to every failure.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { Respondable } from "effect/http/HttpServerRespondable"
import type * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { Identity, IdentityError } from "../../Identity.ts"
import { IdentityResolver } from "../../IdentityResolver.ts"
import { type endpoint, type EndpointOptions, registryOptions } from "../../McpHttpOptions.ts"
import {
  make as makeRegistry,
  type RegisteredSession,
  type SessionRegistryOptions,
  type Visit
} from "../../SessionRegistry.ts"
import { OpenTimeout, type RegistryClosed, type RegistryFull } from "../../SessionRegistryError.ts"
import * as Apart from "../apart.ts"
import * as Finalizers from "../finalizers.ts"
import type * as Options from "../options.ts"
import { namesAndPlaces } from "../places.ts"
import * as Problem from "../problem.ts"
import * as Answers from "./answers.ts"
import * as Cors from "./cors.ts"
import * as Exposure from "./exposure.ts"
import * as Listener from "./listener.ts"
import * as Requests from "./requests.ts"
import * as Resource from "./resource.ts"
import * as Routing from "./routing.ts"
import * as Socket from "./socket.ts"
import * as Strays from "./strays.ts"

type Response = HttpServerResponse.HttpServerResponse

/**
 * A hold on a session that several share: it is given up when all of them have released it.
 */
export interface Lease {
  readonly retain: () => void
  readonly release: () => void
}

/**
 * Opens the registry of an endpoint's sessions. It shuts down with the current scope, or as soon as the HTTP server
 * does whose requests it has.
 */
export const make = Effect.fnUntraced(function*<A, R>(
  options: EndpointOptions,
  { method, openTimeout, protects }: Pick<Settings, "openTimeout" | "protects"> & { readonly method: string },
  open: SessionRegistryOptions<A, Answers.Refused, R>["open"]
) {
  const resolver = yield* IdentityResolver
  const exposure = yield* Exposure.make(resolver, { method, isProtected: protects !== undefined })
  const scope = yield* Scope.fork(yield* Effect.scope)
  const router = Option.getOrUndefined(yield* Effect.serviceOption(Routing.Routing))
  router?.join()
  const registry = yield* Scope.provide(
    makeRegistry({ ...registryOptions(options), open }, "layer", undefined, router?.suffix),
    scope
  )
  const listening = yield* Listener.make(Scope.close(scope, Exit.void))
  const closing = Deferred.makeUnsafe<never, Answers.Refused>()
  // Runs before the registry shuts down
  yield* Scope.addFinalizer(scope, Deferred.fail(closing, Answers.unavailable))
  const services = yield* Effect.context<never>()

  /** Counts a request until the current scope closes, and finds out if its client vanishes. */
  const holding = (request: HttpServerRequest): Effect.Effect<void, never, Scope.Scope> => {
    Socket.keepAlive(request)
    // Whoever listens would do so for ever
    return router === undefined || request.method !== "POST"
      ? listening(request)
      : Effect.andThen(router.working, listening(request))
  }

  /** The session, held until the current scope has closed and nobody retains the lease. */
  const holdThat = <E>(session: Effect.Effect<RegisteredSession<A>, E, Scope.Scope>) =>
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
        Finalizers.add(Effect.suspend(() => --holders === 0 ? Scope.close(held, Exit.void) : Effect.void)),
        Effect.map(Effect.provideService(session, Scope.Scope, held), (found) => ({ session: found, lease }))
      )
    })

  /** The session that is visited, held: this is a use of it. */
  const hold = (visit: Visit<A>) => holdThat(visit.hold)

  const late = {
    duration: openTimeout,
    orElse: () => Effect.fail(new OpenTimeout({ after: Duration.millis(openTimeout) }))
  }

  /**
   * A new session of the caller, as its `message` asks for, held for as long as `initialize` and the current scope need
   * it. That is no use of it. If it fails, or takes longer than an open may, the session ends: what the client has not
   * heard of, it will never use.
   */
  const begin = <E, R2>(
    identity: Identity,
    message: unknown,
    announce: (id: string) => void,
    initialize: (session: RegisteredSession<A>, lease: Lease) => Effect.Effect<Response, E, R2>
  ): Effect.Effect<
    Response,
    E | Answers.Refused | RegistryFull | OpenTimeout | RegistryClosed,
    R2 | Scope.Scope
  > =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        holdThat(registry.createHeld(identity, { clientId: Requests.clientOf(message) }, announce)),
        ({ lease, session }) =>
          restore(Effect.timeoutOrElse(Effect.suspend(() => initialize(session, lease)), late)).pipe(
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

  /** The answer of another node, if there are others and the request is for one of them. */
  const elsewhere = (
    { maxBodyBytes, readText, streamTimeToLive }: Settings,
    request: HttpServerRequest,
    id: string | undefined
  ): Effect.Effect<Response | undefined, Answers.Refused, Scope.Scope> | undefined => {
    const answer = router?.elsewhere({ maxBodyBytes, readText, closing: Deferred.await(closing) }, request, id)
    if (answer === undefined) return undefined
    return Effect.map(
      Effect.andThen(holding(request), answer),
      (response) => response && Socket.whileRead(response, request, streamTimeToLive, Deferred.await(closing))
    )
  }

  /**
   * Who is asked may hang, and ignore that nobody waits any more: the wait ends with the request's connection, and when
   * the server stops listening. Most know at once.
   */
  const identified = (
    request: HttpServerRequest
  ): Effect.Effect<Identity, IdentityError | Answers.Refused, Scope.Scope> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Effect.forkDetach(restore(resolver.resolve(request)), { startImmediately: true }), (asking) => {
        const known = asking.pollUnsafe()
        if (known !== undefined) return known
        return Effect.andThen(
          listening(request),
          restore(Effect.raceFirst(Apart.join(asking), Deferred.await(closing)))
        )
      })
    )

  /** Whose request it is, if their credentials are for this endpoint. */
  const resolve = exposure === undefined && protects === undefined
    ? identified
    : (request: HttpServerRequest) =>
      Effect.flatMap(identified(request), (identity): Effect.Effect<Identity, IdentityError> => {
        const issue = protects?.audienceIssue(identity)
        if (issue !== undefined) return Effect.fail(issue)
        const warning = exposure?.(request, identity)
        return warning === undefined ? Effect.succeed(identity) : Effect.as(warning, identity)
      })

  return {
    elsewhere,
    resolve,
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

/**
 * Every failure has an answer. A defect's is 503: clients of MCP take a 500 for the server's last word.
 */
export const answering = <E extends Respondable, R>(
  answer: Effect.Effect<Response, E, R>,
  resource?: () => Problem.Resource
): Effect.Effect<Response, never, R> =>
  Effect.catchCause(answer, (cause) => {
    const error = Cause.findErrorOption(cause)
    if (Option.isSome(error)) {
      const response = Answers.toFailure(error.value)
      return resource === undefined ? response : Effect.map(response, (said) => Problem.pointing(said, resource))
    }
    if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
    return Effect.as(
      Effect.logError("An MCP request could not be answered", namesAndPlaces(cause)),
      Answers.unavailable.response
    )
  })

/**
 * Takes a request upon an endpoint: whatever the answer, web pages of allowed origins can read it, and a client that
 * does not, or that still has more to say, is not waited for. An answer that is a stream is bounded where it is made.
 * Once the server has stopped listening, each answer is the last of its connection.
 */
export const serving = <E extends Respondable, R>(
  { cors, protects, streamTimeToLive }: Settings,
  request: HttpServerRequest,
  answer: Effect.Effect<Response, E, R>
): Effect.Effect<Response, never, R | HttpServerRequest | Scope.Scope> =>
  Effect.suspend(() => {
    Strays.take(request)
    Socket.watch(request)
    Listener.watch(request)
    const answered = answering(answer, protects === undefined ? undefined : () => protects.of(request))
    const readOrHangUp = Listener.hangUpUnread(request, streamTimeToLive)
    const bounded = Effect.tap(cors(request, answered), (response) =>
      Effect.andThen(Socket.hangUpUnfinished(request), Socket.isLong(response) ? readOrHangUp : Effect.void))
    return Effect.andThen(
      // When it has been written, if not before: what a connection keeps unread may be of answers that came earlier
      Finalizers.add(readOrHangUp),
      Effect.map(bounded, (response) => {
        const given = Socket.inPieces(response)
        return Listener.isLast(request) ? Answers.last(given) : given
      })
    )
  })

type Settings = ReturnType<typeof toSettings>

/** What serves an endpoint with these options. */
export const toSettings = (
  options: Options.Parsed<typeof endpoint.declaration>
) => {
  const {
    allowTermination,
    allowedHosts,
    allowedOrigins,
    authorization,
    bodyTimeout,
    closeTimeout,
    maxBodyBytes,
    openTimeout,
    path,
    sessions,
    streamTimeToLive
  } = options
  const methods = allowTermination ? ["GET", "POST", "DELETE"] : ["GET", "POST"]
  const hostIssue = Requests.hostGate(allowedHosts)
  const originIssue = Requests.gate({ hostIssue, allowedOrigins })
  return {
    path,
    sessions,
    allowTermination,
    openTimeout,
    closeTimeout,
    protects: authorization === undefined ? undefined : Resource.make(authorization, path, hostIssue),
    /** Milliseconds, or `Infinity`. */
    streamTimeToLive,
    /** What clients may use, whichever of it the server has. */
    methods,
    gate: (request: HttpServerRequest) => Requests.upgradeIssue(request) ?? originIssue(request),
    cors: Cors.make({ isAllowed: (request) => originIssue(request) === undefined, methods }),
    maxBodyBytes,
    readText: Requests.textReader(maxBodyBytes, bodyTimeout)
  }
}
