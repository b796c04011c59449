/**
 * Requests that come by a guard and reach an MCP server all the same: by a path that the guard does not know of.
 *
 * In front of the routes nobody knows which of them will take a request. What an MCP server runs it has to read first,
 * though: the body of such a request can be read only by an endpoint that has taken the request upon itself.
 */
import * as Effect from "effect/Effect"
import * as HttpServerError from "effect/http/HttpServerError"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Stream from "effect/Stream"

const taken = new WeakSet<object>()

/** An endpoint of this library answers the request: it knows whose it is. */
export const take = (request: HttpServerRequest): void => void taken.add(request.source)

export const isTaken = (request: HttpServerRequest): boolean => taken.has(request.source)

/**
 * Whether an MCP server may take the request for a message: it demands both of these headers, and so looks at nothing
 * else.
 */
export const mayBeMessage = ({ headers, method }: HttpServerRequest): boolean => {
  if (method !== "POST") return false
  const accept = headers["accept"]?.toLowerCase()
  return accept !== undefined && accept.includes("application/json") && accept.includes("text/event-stream") &&
    headers["content-type"]?.toLowerCase().includes("application/json") === true
}

export interface Watched {
  readonly request: HttpServerRequest
  /** Whether somebody wanted its body who has not taken it. */
  wasRead: boolean
}

/**
 * The same request, for handlers of which one may be an MCP server that nobody guards.
 */
export const watch = (request: HttpServerRequest): Watched => {
  const watched: Watched = { request: wrap(request, () => void (watched.wasRead = true)), wasRead: false }
  return watched
}

const wrap = (request: HttpServerRequest, onRead: () => void): HttpServerRequest => {
  const refused = Effect.suspend(() => {
    onRead()
    return Effect.fail(
      new HttpServerError.HttpServerError({
        reason: new HttpServerError.RequestParseError({ request, description: "the request is not guarded" })
      })
    )
  })
  const unlessTaken = <A, E, R>(body: () => Effect.Effect<A, E, R>) => ({
    get: () =>
      Effect.suspend((): Effect.Effect<A, E | HttpServerError.HttpServerError, R> =>
        isTaken(request) ? body() : refused
      )
  })
  const streamUnlessTaken = <A, E, R>(body: () => Stream.Stream<A, E, R>) => ({
    get: () => Stream.unwrap(Effect.suspend(() => isTaken(request) ? Effect.succeed(body()) : refused))
  })
  return Object.create(request, {
    text: unlessTaken(() => request.text),
    json: unlessTaken(() => request.json),
    arrayBuffer: unlessTaken(() => request.arrayBuffer),
    urlParamsBody: unlessTaken(() => request.urlParamsBody),
    multipart: unlessTaken(() => request.multipart),
    multipartStream: streamUnlessTaken(() => request.multipartStream),
    stream: streamUnlessTaken(() => request.stream),
    modify: {
      value: (change: Parameters<HttpServerRequest["modify"]>[0]) => wrap(request.modify(change), onRead)
    }
  })
}
