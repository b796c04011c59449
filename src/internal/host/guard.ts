/**
 * Sessions of ours around those of Effect's `McpServer.layerHttp`, which have no owner and no end.
 *
 * A request that names one of our sessions is handed on under the id that the server inside knows. The id that it mints
 * is seen only by a pre-response handler, and only by one that is registered after the server has run. When a session
 * of ours ends the one inside is freed by a DELETE that the handler inside is given, which also interrupts what is in
 * flight.
 *
 * Nothing is handed on but a POST of somebody who is known. What would reach a server inside by a path that is not
 * guarded is refused, and a guard whose path no route has stops the build of the app.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { constVoid } from "effect/Function"
import * as Headers from "effect/http/Headers"
import * as HttpBody from "effect/http/HttpBody"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerError from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Types from "effect/Types"
import type { Identity } from "../../Identity.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import * as Declared from "../../McpHttpOptions.ts"
import { type EndReason, operatorOf } from "../../SessionRegistry.ts"
import * as Apart from "../apart.ts"
import * as Finalizers from "../finalizers.ts"
import { namesAndPlaces } from "../places.ts"
import * as Answers from "./answers.ts"
import * as Endpoint from "./endpoint.ts"
import * as Events from "./events.ts"
import * as Paths from "./paths.ts"
import * as Requests from "./requests.ts"
import * as Socket from "./socket.ts"
import * as Spans from "./spans.ts"
import * as Strays from "./strays.ts"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse
/** The server inside, and whatever stands before it. */
type Handler = Effect.Effect<Response, Answers.Refused>
/** What it answers to one request. */
type Answer = Effect.Effect<Response, Answers.Refused, Scope.Scope>
/** The same as {@link Handler}, whose failures are those of somebody else. */
type Routes = Effect.Effect<Response, Types.unhandled>

/** The session inside, once it has an id. */
interface Inside {
  id: string | undefined
  /** Where it began. */
  url: string
  hasEnded: boolean
}

const header = Requests.sessionHeader

export const make = Effect.fnUntraced(function*(options: Declared.EndpointOptions, method: "guard" | "guardConfig") {
  const settings = Endpoint.toSettings(yield* Effect.fromResult(Declared.endpoint.parse(options, method)))
  const router = yield* HttpRouter.HttpRouter
  const services = yield* Effect.context<never>()
  const isGuarded = Paths.matcher(settings.path)
  let inside: Handler | undefined
  /** Whether the server inside has sessions, as far as is known: one of 2026-07-28 alone has none. */
  let isSessionful = true
  /** The ids that the sessions of the server inside have there. */
  const taken = new Set<string>()

  const free = (url: string, id: string): Effect.Effect<void> =>
    inside === undefined ? Effect.void : Effect.flatMap(deleted(inside, url, id), (status) =>
      status === 405
        ? Effect.logWarning(
          "McpHttp.guard: a session can't be freed. Build McpServer with allowSessionTermination: true"
        )
        : Effect.void)

  /** Frees what nobody has heard of: nobody waits for that. */
  const discard = (url: string, id: string) => Effect.forkDetach(free(url, id), { startImmediately: true })

  const { protects } = settings
  const endpoint = yield* Endpoint.make(options, { ...settings, method }, () =>
    Effect.acquireRelease(
      Effect.sync((): Inside => ({ id: undefined, url: settings.path, hasEnded: false })),
      (session) =>
        Effect.suspend(() => {
          session.hasEnded = true
          if (session.id === undefined) return Effect.void
          taken.delete(session.id)
          return free(session.url, session.id)
        })
    ))

  const initialize = (answer: Answer, { url }: Request, message: unknown, identity: Identity) =>
    endpoint.begin(identity, message, constVoid, ({ id, resource }) =>
      Effect.tap(
        answer,
        beforeResponse((minted, response) => {
          if (minted === undefined) {
            return Effect.as(Effect.ignore(endpoint.registry.terminate(id, identity)), response)
          }
          if (taken.has(minted)) {
            return sharedInside.pipe(
              Effect.andThen(Effect.ignore(endpoint.registry.terminate(id, identity))),
              Effect.as(Answers.unavailable.response)
            )
          }
          if (resource.hasEnded) return Effect.as(discard(url, minted), Answers.unavailable.response)
          taken.add(minted)
          resource.id = minted
          resource.url = url
          isSessionful = true
          return Effect.succeed(HttpServerResponse.setHeader(response, header, id))
        })
      ))

  // None may be minted behind the registry's back.
  const withoutSession = (answer: Answer, { url }: Request) =>
    Effect.tap(
      answer,
      beforeResponse((minted, response) =>
        minted === undefined
          ? Effect.succeed(response)
          : Effect.as(discard(url, minted), Answers.initializeMalformed.response)
      )
    )

  const readBody = Effect.fnUntraced(function*(request: Request, until: Effect.Effect<never, Answers.Refused>) {
    const issue = Requests.mediaTypeIssue(request)
    if (issue !== undefined) return yield* issue
    const text = yield* settings.readText(request, until)
    const message = yield* Requests.parse(text)
    return Requests.isMessages(message) ? { text, message } : yield* Answers.malformed
  })

  const proceed = Effect.fnUntraced(function*(handler: Handler, request: Request, id: string, identity: Identity) {
    const visit = yield* endpoint.registry.visit(id, identity)
    const { ended, resource } = visit.session
    // It is being initialized: its client has not heard of it
    if (resource.id === undefined) return yield* Answers.notFound
    const { message, text } = yield* readBody(request, Effect.flatMap(ended, unstarted))
    if (Requests.beginsSession(message)) return yield* Answers.initialized
    const denied = settings.protects?.scopeIssue(identity, message)
    if (denied !== undefined) return yield* denied
    // Nothing that is refused here is activity
    yield* visit.hold
    const named = request.modify({ headers: Headers.set(request.headers, header, resource.id) })
    return yield* Spans.serving(
      request,
      identity,
      message,
      (served) => handOnWithin(served, handler, { id, identity, ended, resource, message }, withText(named, text))
    )
  })

  const handOnWithin = Effect.fnUntraced(function*(
    served: Spans.Served,
    handler: Handler,
    { ended, id, identity, message, resource }: {
      readonly id: string
      readonly identity: Identity
      readonly ended: Effect.Effect<EndReason>
      readonly resource: Inside
      readonly message: unknown
    },
    request: Request
  ) {
    const unanswered = Effect.tap(
      Effect.flatMap(ended, (reason) => abandoned(message, reason)),
      () =>
        Effect.sync(() => {
          for (const one of Requests.requestIds(message)) served.left(one)
        })
    )
    const response = yield* Effect.raceFirst(apart(handOn(handler, request), settings.closeTimeout), unanswered)
    yield* beforeResponse((minted, last) =>
      Effect.succeed(minted === undefined ? last : HttpServerResponse.setHeader(last, header, id))
    )
    if (response.status !== 404) {
      const whole = completed(response, message, ended, () => resource.hasEnded, served)
      yield* Socket.hurryAfter(request, whole, ended)
      return Socket.whileRead(whole, request, settings.streamTimeToLive, ended)
    }
    if (resource.hasEnded) return yield* unanswered
    // The server inside has lost it
    yield* Effect.ignore(endpoint.registry.terminate(id, identity))
    return yield* Answers.notFound
  })

  const withoutId = Effect.fnUntraced(function*(handler: Handler, request: Request, identity: Identity) {
    const anonymous = request.modify({ headers: Headers.remove(request.headers, header) })
    const { message, text } = yield* readBody(anonymous, endpoint.closing)
    const handed = apart(handOn(handler, withText(anonymous, text)), settings.closeTimeout)
    if (Array.isArray(message) && Requests.beginsSession(message)) return yield* Answers.initializeAlone
    if (Requests.isInitialize(message) && !isModern(request) && !Requests.isVersionSupported(request)) {
      return yield* Requests.unsupportedVersion
    }
    const denied = settings.protects?.scopeIssue(identity, message)
    if (denied !== undefined) return yield* denied
    return yield* Spans.serving(request, identity, message, (served) =>
      Effect.map(
        Requests.isInitialize(message)
          ? initialize(handed, request, message, identity)
          : withoutSession(handed, request),
        (response) => Socket.whileRead(watched(response, served), request, settings.streamTimeToLive, endpoint.closing)
      ))
  })

  const methods = (): ReadonlyArray<string> => settings.allowTermination && isSessionful ? ["POST", "DELETE"] : ["POST"]

  const serve = Effect.fnUntraced(function*(handler: Handler, request: Request) {
    const refusal = settings.gate(request)
    if (refusal !== undefined) return yield* refusal
    const id = isModern(request) ? undefined : Requests.sessionId(request)
    // There are no streams to listen to. Where there are sessions, a GET of one that the caller does not have is 404.
    if (!methods().includes(request.method) && (request.method !== "GET" || !isSessionful)) {
      return yield* Answers.methodNotAllowed(methods().join(", "))
    }
    const elsewhere = isModern(request) ? undefined : endpoint.elsewhere(settings, request, id)
    const answered = elsewhere && (yield* elsewhere)
    if (answered !== undefined) return answered
    const identity = yield* endpoint.resolve(request)
    if (request.method === "POST") {
      yield* endpoint.holding(request)
      return yield* id === undefined ? withoutId(handler, request, identity) : proceed(handler, request, id, identity)
    }
    if (request.method === "DELETE" && id !== undefined) return yield* endpoint.terminate(request, id, identity)
    if (request.method === "DELETE" && !isModern(request)) return yield* Answers.sessionRequired
    if (id !== undefined) yield* endpoint.registry.peek(id, identity)
    return yield* Answers.methodNotAllowed(methods().join(", "))
  })

  // Once: whoever finds such a path could fill the log
  let hasAdvised = false
  const advise = Effect.suspend(() => {
    if (hasAdvised) return Effect.void
    hasAdvised = true
    return Effect.logError(
      `McpHttp.guard: a request reached an MCP server by a path other than ${settings.path}, and was refused, as all ` +
        "others will be. Give the guard the whole path of that server's route, prefixes included. A server for " +
        "everybody needs a guard of its own, with an IdentityResolver whose mode is \"disabled\", or another router"
    )
  })

  const passBy = (routes: Routes, request: Request) => {
    const watched = Strays.mayBeMessage(request) ? Strays.watch(request) : undefined
    return Effect.tap(
      watched === undefined ? routes : handOn(routes, watched.request),
      beforeResponse((minted, response) => {
        if (Strays.isTaken(request) || (minted === undefined && watched?.wasRead !== true)) {
          return Effect.succeed(response)
        }
        return advise.pipe(
          Effect.andThen(
            minted === undefined
              ? Effect.void
              : Effect.forkDetach(deleted(routes, request.url, minted), { startImmediately: true })
          ),
          Effect.as(Answers.unavailable.response)
        )
      })
    )
  }

  if (protects !== undefined) yield* protects.publish(router)
  // Called when every route is there: the router is finished
  yield* router.addGlobalMiddleware((routes: Routes) => {
    const found = probe(routes, settings.path, services)
    if (found === "nothing") {
      throw new InvalidOptions({
        module: "McpHttp",
        method,
        option: "path",
        issue:
          "must be the path of McpServer's route, with the prefixes of its router, but the router has none there, " +
          `got ${JSON.stringify(settings.path)}`
      })
    }
    if (found !== undefined) isSessionful = found.methods.includes("DELETE")
    const handler = Effect.catch(
      routes,
      (error) => Effect.flatMap(Answers.toFailure(error), (response) => Effect.fail(new Answers.Refused({ response })))
    )
    inside = handler
    return Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      isGuarded(request.url)
        // What is in front of the routes can't be interrupted, a route can
        ? Effect.interruptible(Endpoint.serving(settings, request, serve(handler, request)))
        : passBy(routes, request))
  })

  return Context.make(settings.sessions, operatorOf(endpoint.registry))
})

const sharedInside = Effect.logError(
  "McpHttp.guard: the server inside began the same session for two callers, and the second was refused. Each needs a " +
    "session of its own there"
)

// The id is in the response when everything else has had its say.
const beforeResponse = (
  f: (id: string | undefined, response: Response) => Effect.Effect<Response>
): Effect.Effect<void, never, HttpServerRequest.HttpServerRequest> =>
  HttpEffect.appendPreResponseHandler((_, response) => f(response.headers[header], response))

const handOn = <E>(handler: Effect.Effect<Response, E>, request: Request): Effect.Effect<Response, E> =>
  Effect.provideService(handler, HttpServerRequest.HttpServerRequest, request)

/**
 * The same in a fiber and a scope of its own. Whoever gives up the answer does not wait for that fiber, which may
 * ignore it; and the end of the request waits for what the scope has to close for so many milliseconds at most.
 */
const apart = <E>(answer: Effect.Effect<Response, E>, patience: number): Effect.Effect<Response, E, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.contextWith((services: Context.Context<Scope.Scope>) => {
      const scope = Scope.makeUnsafe()
      const running = Effect.runForkWith(Context.add(services, Scope.Scope, scope))(answer)
      const close = Effect.flatMap(Fiber.await(running), (exit) => Scope.close(scope, exit)).pipe(
        Effect.catchCause((cause) => Effect.logWarning("A request could not be closed", namesAndPlaces(cause)))
      )
      const closed = Effect.flatMap(
        Effect.forkDetach(close, { startImmediately: true }),
        (closing) =>
          closing.pollUnsafe() === undefined ? Effect.timeoutOption(Fiber.await(closing), patience) : Effect.void
      )
      return Effect.andThen(Finalizers.add(closed), restore(Apart.join(running)))
    })
  )

/** What a request is told that was not handed on before its session ended. */
const unstarted = (reason: EndReason) => reason === "shutdown" ? Answers.unavailable : Answers.notFound

/** And one that was: an error for each of its requests, which may have run. */
const abandoned = (message: unknown, reason: EndReason): Effect.Effect<Response, Answers.Refused> => {
  const errors = Requests.requestIds(message).map((id) => Answers.abandoned(id, false))
  if (reason === "shutdown" || errors.length === 0) return Answers.unavailable
  return Effect.succeed(HttpServerResponse.jsonUnsafe(Array.isArray(message) ? errors : errors[0]))
}

/**
 * A stream that ends with its session, and has an error for each request then that has no response yet. Clients would
 * wait for one until their own time is up.
 */
const completed = (
  response: Response,
  message: unknown,
  ended: Effect.Effect<EndReason>,
  hasEnded: () => boolean,
  served: Spans.Served
): Response => {
  const { body } = response
  if (body._tag !== "Stream") return watched(response, served)
  const pending = new Set(Requests.requestIds(message))
  let isOver = false
  const errors = Effect.map(
    ended,
    (reason) =>
      Stream.fromIterable(Array.from(pending, (id) => Events.encode(Answers.abandoned(id, reason === "shutdown"))))
  )
  const stream = body.stream.pipe(
    Stream.map(Events.watching((answer) => {
      pending.delete(answer.id)
      served.answered(answer)
    })),
    Stream.interruptWhen(Effect.tap(ended, () => Effect.sync(() => void (isOver = true)))),
    // The server inside may have ended it first
    Stream.concat(Stream.suspend(() => isOver || hasEnded() ? Stream.unwrap(errors) : Stream.empty)),
    Stream.ensuring(Effect.sync(() => {
      for (const id of pending) served.left(id)
    }))
  )
  return HttpServerResponse.setBody(response, HttpBody.stream(stream, body.contentType))
}

/** The same response. The spans of what it answers end with it: the server inside has spans of its own for the rest. */
const watched = (response: Response, served: Spans.Served): Response => {
  const { body } = response
  if (body._tag !== "Stream") {
    served.end(response.status)
    return response
  }
  const stream = body.stream.pipe(
    Stream.map(Events.watching(served.answered)),
    Stream.ensuring(Effect.sync(() => served.end(response.status)))
  )
  return HttpServerResponse.setBody(response, HttpBody.stream(stream, body.contentType))
}

/**
 * Asks for the path by a method that MCP has no use for. Knows nothing if something before the routes answers, or
 * waits.
 */
const probe = (
  routes: Routes,
  path: HttpRouter.PathInput,
  services: Context.Context<never>
): "nothing" | { readonly methods: string } | undefined => {
  // What a parameter with a pattern takes is not to be guessed
  if (path.includes("(")) return undefined
  const url = path.replace(/:[^/:*.-]+|\*/g, "x").replaceAll("?", "")
  const fiber = Effect.runForkWith(services)(ask(routes, "PATCH", url))
  const exit = fiber.pollUnsafe()
  if (exit === undefined) return void fiber.interruptUnsafe()
  if (Exit.isSuccess(exit)) {
    const { headers, status } = exit.value
    return status === 405 && headers["allow"] !== undefined ? { methods: headers["allow"] } : undefined
  }
  const error = Option.getOrUndefined(Cause.findErrorOption(exit.cause))
  return HttpServerError.isHttpServerError(error) && error.reason._tag === "RouteNotFound" ? "nothing" : undefined
}

/** Makes a request of our own. */
const ask = <E>(
  handler: Effect.Effect<Response, E>,
  method: string,
  url: string,
  headers: Record<string, string> = {}
): Effect.Effect<Response, E> =>
  handOn(
    Effect.scoped(handler as Effect.Effect<Response, E, Scope.Scope>),
    // The URL as it was, with nothing resolved in it
    HttpServerRequest.fromWeb(new globalThis.Request("http://localhost", { method, headers })).modify({ url })
  )

// The versions since the one that has no sessions. Their names are dates.
const isModern = ({ headers }: Request): boolean => {
  const version = headers["mcp-protocol-version"]
  return version !== undefined && /^\d{4}-\d{2}-\d{2}$/.test(version) && version >= "2026-07-28"
}

/**
 * The same request, whose body has been read, for whoever reads it again; however it is modified on the way.
 */
const withText = (request: Request, text: string): Request =>
  Object.create(request, {
    text: { value: Effect.succeed(text) },
    arrayBuffer: { get: () => Effect.sync(() => new TextEncoder().encode(text).buffer) },
    modify: { value: (change: Parameters<Request["modify"]>[0]) => withText(request.modify(change), text) }
  })

// In a fiber of its own: the router leaves its marks on the one that it runs in.
const deleted = (handler: Effect.Effect<Response, unknown>, url: string, id: string) =>
  ask(handler, "DELETE", url, { [header]: id }).pipe(
    Effect.forkDetach({ startImmediately: true }),
    Effect.flatMap(Fiber.await),
    Effect.map((exit) => Exit.isSuccess(exit) ? exit.value.status : undefined)
  )
