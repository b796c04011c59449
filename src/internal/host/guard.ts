/**
 * Sessions of ours around those of Effect's `McpServer.layerHttp`, which have no owner and no end.
 *
 * A request that names one of our sessions is handed on under the id that the server inside knows. The id that it mints is
 * seen only by a pre-response handler, and only by one that is registered after the server has run. When a session of ours
 * ends the one inside is freed by a DELETE that the handler inside is given, which also interrupts what is in flight.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as FindMyWay from "effect/http/FindMyWay"
import * as Headers from "effect/http/Headers"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type { Identity } from "../../Identity.ts"
import type { EndpointOptions } from "../../McpHttpOptions.ts"
import * as Options from "../options.ts"
import * as Answers from "./answers.ts"
import * as Endpoint from "./endpoint.ts"
import * as Requests from "./requests.ts"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse
/** The server inside, and whatever stands before it. */
type Handler = Effect.Effect<Response, Answers.Refused>

/** The session inside, once it has an id. */
interface Inside {
  id: string | undefined
  hasEnded: boolean
}

const header = "mcp-session-id"

export const make = Effect.fnUntraced(function*(options: EndpointOptions) {
  const read = yield* Options.reader("McpHttp", options, Endpoint.endpointOptions)
  const settings = yield* Endpoint.parse(read, options)
  const router = yield* HttpRouter.HttpRouter
  const isGuarded = matcher(settings.path)
  let inside: Handler | undefined

  const free = (id: string): Effect.Effect<void> =>
    inside === undefined ? Effect.void : Effect.flatMap(deleted(inside, settings.path, id), (status) =>
      status === 405
        ? Effect.logWarning(
          "McpHttp.guard: a session can't be freed. Build McpServer with allowSessionTermination: true"
        )
        : Effect.void)

  const endpoint = yield* Endpoint.make(options, () =>
    Effect.acquireRelease(
      Effect.sync((): Inside => ({ id: undefined, hasEnded: false })),
      (session) =>
        Effect.suspend(() => {
          session.hasEnded = true
          return session.id === undefined ? Effect.void : free(session.id)
        })
    ))

  const initialize = (handler: Handler, identity: Identity) =>
    endpoint.begin(identity, ({ id, resource }) =>
      Effect.tap(
        handler,
        beforeResponse((minted, response) => {
          if (minted === undefined) {
            return Effect.as(Effect.ignore(endpoint.registry.terminate(id, identity)), response)
          }
          if (resource.hasEnded) return Effect.as(free(minted), Answers.unavailable.response)
          resource.id = minted
          return Effect.succeed(HttpServerResponse.setHeader(response, header, id))
        })
      ))

  // None may be minted behind the registry's back.
  const withoutSession = (handler: Handler) =>
    Effect.tap(
      handler,
      beforeResponse((minted, response) =>
        minted === undefined ? Effect.succeed(response) : Effect.as(free(minted), Answers.initializeMalformed.response)
      )
    )

  const proceed = Effect.fnUntraced(function*(handler: Handler, request: Request, id: string, identity: Identity) {
    const { ended, resource } = yield* endpoint.registry.get(id, identity)
    // It is being initialized: its client has not heard of it
    if (resource.id === undefined) return yield* Answers.notFound
    const named = request.modify({ headers: Headers.set(request.headers, header, resource.id) })
    const handed = request.method === "POST"
      ? withText(named, yield* settings.readText(named, Effect.andThen(ended, Answers.notFound)))
      : named
    const response = yield* Effect.raceFirst(
      Effect.provideService(handler, HttpServerRequest.HttpServerRequest, handed),
      Effect.andThen(ended, Answers.notFound)
    )
    yield* beforeResponse((minted, last) =>
      Effect.succeed(minted === undefined ? last : HttpServerResponse.setHeader(last, header, id))
    )
    return response.status === 404 ? yield* Answers.notFound : response
  })

  const serve = Effect.fnUntraced(function*(handler: Handler, request: Request) {
    const refusal = settings.gate(request)
    if (refusal !== undefined) return yield* refusal
    // Nothing can be done with any other, and a preflight comes without credentials
    if (!["POST", "GET", "DELETE"].includes(request.method)) return yield* handler
    if (request.method === "DELETE" && !settings.allowTermination) return yield* methodNotAllowed
    const identity = yield* endpoint.resolve(request)
    const id = isModern(request) ? undefined : Requests.sessionId(request)
    if (id !== undefined) {
      if (request.method === "DELETE") return yield* endpoint.terminate(request, id, identity)
      yield* endpoint.holding(request)
      return yield* proceed(handler, request, id, identity)
    }
    const anonymous = request.modify({ headers: Headers.remove(request.headers, header) })
    if (request.method !== "POST") {
      if (request.method === "DELETE" && !isModern(request)) return yield* Answers.sessionRequired
      return yield* Effect.provideService(handler, HttpServerRequest.HttpServerRequest, anonymous)
    }
    yield* endpoint.holding(request)
    const text = yield* settings.readText(anonymous, endpoint.closing)
    const handed = Effect.provideService(handler, HttpServerRequest.HttpServerRequest, withText(anonymous, text))
    return yield* beginsSession(text) ? initialize(handed, identity) : withoutSession(handed)
  })

  yield* router.addGlobalMiddleware((routes) => {
    const handler = Effect.catch(
      routes,
      (error) => Effect.flatMap(Answers.toFailure(error), (response) => Effect.fail(new Answers.Refused({ response })))
    )
    inside = handler
    return Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
      isGuarded(request.url)
        // What is in front of the routes can't be interrupted, a route can
        ? Effect.interruptible(Endpoint.answering(serve(handler, request)))
        : routes)
  })

  return Endpoint.provided(endpoint.registry)
})

// The id is in the response when everything else has had its say.
const beforeResponse = (
  f: (id: string | undefined, response: Response) => Effect.Effect<Response>
): Effect.Effect<void, never, HttpServerRequest.HttpServerRequest> =>
  HttpEffect.appendPreResponseHandler((_, response) => f(response.headers[header], response))

const methodNotAllowed = Answers.methodNotAllowed("POST")

/**
 * Whether a router may take a URL for the path, however it is configured: what is guarded too much is refused, what is
 * guarded too little is open to everybody.
 */
const matcher = (path: HttpRouter.PathInput): (url: string) => boolean => {
  const paths = FindMyWay.make<true>({ ignoreTrailingSlash: true, ignoreDuplicateSlashes: true, caseSensitive: false })
  paths.all(path, true)
  return (url) => paths.find("POST", url) !== undefined
}

// The versions since the one that has no sessions. Their names are dates.
const isModern = ({ headers }: Request): boolean => {
  const version = headers["mcp-protocol-version"]
  return version !== undefined && /^\d{4}-\d{2}-\d{2}$/.test(version) && version >= "2026-07-28"
}

// What a request has to be for the server inside to begin a session, and a little more.
const beginsSession = (text: string): boolean => {
  try {
    return Requests.isInitialize(JSON.parse(text))
  } catch {
    return false
  }
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
const deleted = (handler: Handler, path: string, id: string): Effect.Effect<number | undefined> =>
  Effect.scoped(handler as Effect.Effect<Response, Answers.Refused, Scope.Scope>).pipe(
    Effect.provideService(
      HttpServerRequest.HttpServerRequest,
      HttpServerRequest.fromWeb(
        new globalThis.Request(`http://localhost${path}`, { method: "DELETE", headers: { [header]: id } })
      )
    ),
    Effect.forkDetach({ startImmediately: true }),
    Effect.flatMap(Fiber.await),
    Effect.map((exit) => Exit.isSuccess(exit) ? exit.value.status : undefined)
  )
