/**
 * Between Effect's requests and responses, and those of the SDK's transport.
 */
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Answers from "./answers.ts"

type Answer = HttpServerResponse.HttpServerResponse

export const toRequest = (request: HttpServerRequest.HttpServerRequest): Request =>
  new Request(Option.getOrElse(HttpServerRequest.toURL(request), () => new URL("http://localhost")), {
    method: request.method,
    headers: request.headers
  })

export const emptyStream = HttpServerResponse.text("", {
  contentType: "text/event-stream",
  headers: { "cache-control": "no-cache, no-transform" }
})

export const accepted = HttpServerResponse.empty({ status: 202 })

export const toPlainAnswer = (response: Response): Effect.Effect<Answer, Answers.Refused> => {
  const { body, status } = response
  if (body === null) return Effect.succeed(HttpServerResponse.empty({ status, headers: headersOf(response) }))
  return Effect.flatMap(Effect.promise(() => response.text()), (text) => {
    if (status === 404) return Answers.notFound
    if (status >= 500 || (status === 400 && hasData(text))) {
      return Effect.andThen(
        Effect.logWarning("The transport of an MCP session could not answer", { status, text }),
        Answers.unavailable
      )
    }
    return Effect.succeed(
      HttpServerResponse.text(text, { status, headers: headersOf(response), contentType: "application/json" })
    )
  })
}

export const headersOf = (response: Response): Record<string, string> => {
  const headers: Record<string, string> = {}
  for (const [name, value] of response.headers) {
    // A connection's own header is not the transport's to set, and HTTP/2 has none.
    if (name !== "connection" && name !== "content-type") headers[name] = value
  }
  return headers
}

// What the transport adds to a "Parse error" that is none: the JSON was parsed before.
const hasData = (text: string): boolean => text.includes("\"code\":-32700") && text.includes("\"data\":")
