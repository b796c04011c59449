/**
 * Lets web pages of allowed origins read what an endpoint answers, whatever that is.
 *
 * A page reads no status and no header of an answer that does not name its origin: not the 401 that asks for other
 * credentials, nor the 404 after which it has to begin again.
 * https://fetch.spec.whatwg.org/#http-cors-protocol
 */
import * as Effect from "effect/Effect"
import * as HttpEffect from "effect/http/HttpEffect"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"

type Response = HttpServerResponse.HttpServerResponse

// What clients of MCP send. A resolver may read credentials from any other header: whatever a page asks for is allowed,
// because it is the origin that is trusted or not.
const requestHeaders = [
  "Accept",
  "Authorization",
  "Content-Type",
  "Last-Event-ID",
  "MCP-Protocol-Version",
  "Mcp-Method",
  "Mcp-Name",
  "Mcp-Session-Id"
]

const responseHeaders = ["Allow", "MCP-Protocol-Version", "Mcp-Session-Id", "Retry-After", "WWW-Authenticate"].join(
  ", "
)

// As long as browsers remember a preflight, at most: two hours in Chromium.
const maxAge = "7200"

/**
 * Answers preflights, which come without credentials, and names the origin in every other answer. Does neither for
 * requests that are not `isAllowed`.
 */
export const make = (options: {
  readonly isAllowed: (request: HttpServerRequest) => boolean
  readonly methods: ReadonlyArray<string>
}) =>
<R>(
  request: HttpServerRequest,
  answer: Effect.Effect<Response, never, R>
): Effect.Effect<Response, never, R | HttpServerRequest> => {
  const origin = request.headers["origin"]
  const allowed = origin !== undefined && options.isAllowed(request) ? origin : undefined
  if (allowed !== undefined && isPreflight(request)) {
    return Effect.succeed(preflight(allowed, options.methods, request.headers["access-control-request-headers"]))
  }
  return Effect.tap(
    answer,
    // After those that the answer has registered: they may have replaced it
    HttpEffect.appendPreResponseHandler((_, response) => Effect.succeed(readable(response, allowed)))
  )
}

export const isPreflight = ({ headers, method }: HttpServerRequest): boolean =>
  method === "OPTIONS" && headers["access-control-request-method"] !== undefined

export const preflight = (origin: string, methods: ReadonlyArray<string>, asked: string | undefined): Response =>
  HttpServerResponse.empty({
    status: 204,
    headers: {
      "access-control-allow-origin": origin,
      "access-control-allow-methods": methods.join(", "),
      "access-control-allow-headers": [...requestHeaders, ...othersOf(asked ?? "")].join(", "),
      "access-control-max-age": maxAge,
      vary: "Origin, Access-Control-Request-Headers"
    }
  })

const othersOf = (asked: string): ReadonlyArray<string> => {
  const known = new Set(requestHeaders.map((name) => name.toLowerCase()))
  return asked.split(",").map((name) => name.trim()).filter((name) => isName(name) && !known.has(name.toLowerCase()))
}

// A token of RFC 9110 section 5.6.2
const isName = (name: string): boolean => /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name)

const readable = (response: Response, origin: string | undefined): Response => {
  const { vary } = response.headers
  return HttpServerResponse.setHeaders(response, {
    // Also for a cache that has the answer to a request without an origin
    vary: vary === undefined ? "Origin" : /(?:^|[\s,])(?:\*|origin)(?:[\s,]|$)/i.test(vary) ? vary : `${vary}, Origin`,
    ...(origin === undefined ? {} : {
      "access-control-allow-origin": origin,
      "access-control-expose-headers": responseHeaders
    })
  })
}
