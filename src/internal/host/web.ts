/**
 * Between Effect's requests and responses, and those of the SDK's transport.
 */
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import type * as Stream from "effect/Stream"
import * as Answers from "./answers.ts"

type Answer = HttpServerResponse.HttpServerResponse

/**
 * A request without its body, which was read before. The transport asks for its method, its URL and its headers; a
 * whole `Request` has a signal and copies of all that, too, and takes a twentieth of a call's time.
 */
export const toRequest = (
  request: HttpServerRequest.HttpServerRequest,
  headers: Readonly<Record<string, string>> = request.headers
): Request => {
  const { method } = request
  const url = () => Option.getOrElse(HttpServerRequest.toURL(request), () => new URL("http://localhost")).href
  const known: Partial<Request> = {
    method,
    get url() {
      return url()
    },
    headers: toHeaders(headers)
  }
  return standIn(known, Request, () => new Request(url(), { method, headers }))
}

const toHeaders = (headers: Readonly<Record<string, string>>): Headers => {
  const known: Partial<Headers> = {
    get: (name) => {
      const key = name.toLowerCase()
      return Object.hasOwn(headers, key) ? headers[key]! : null
    },
    entries: () => Object.entries(headers).values()
  }
  return standIn(known, Headers, () => new Headers(headers))
}

/** Has what is known of a `type`. The rest is that of a whole one, which is made when that is first asked for. */
const standIn = <A extends object>(known: Partial<A>, type: { readonly prototype: A }, make: () => A): A => {
  let whole: A | undefined
  return new Proxy(known as A, {
    get: (own, name) => {
      if (Object.hasOwn(own, name)) return Reflect.get(own, name)
      whole ??= make()
      const value: unknown = Reflect.get(whole, name)
      return typeof value === "function" ? value.bind(whole) : value
    },
    has: (_, name) => name in type.prototype,
    getPrototypeOf: () => type.prototype
  })
}

const events = "text/event-stream"

const notCached = { "cache-control": "no-cache, no-transform" }

// Effect's server hands its answer to the tracer, which may show it to anybody: this one does not show what is in it
const untold = { toJSON: () => ({ _id: "effect/HttpBody", _tag: "Uint8Array" }) }

const whole = (
  text: string,
  status: number,
  headers: Readonly<Record<string, string>>,
  contentType: string
): Answer => {
  const answer = HttpServerResponse.text(text, { status, headers, contentType })
  Object.assign(answer.body, untold)
  return answer
}

/** All that a stream says. */
export const wholeStream = (text: string, status: number, headers: Readonly<Record<string, string>>): Answer =>
  whole(text, status, headers, events)

export const emptyStream = wholeStream("", 200, notCached)

/** As the transport has them, for streams that are not its own. */
export const streamHeaders = { ...notCached, "x-accel-buffering": "no" }

export const isStream = ({ body, headers }: Response): boolean =>
  body !== null && headers.get("content-type") === events

export const stream = (
  body: Stream.Stream<Uint8Array>,
  status: number,
  headers: Readonly<Record<string, string>>
): Answer => HttpServerResponse.stream(body, { status, headers, contentType: events })

export const accepted = HttpServerResponse.empty({ status: 202 })

/** The same answer, but for those that say too much or the wrong thing. */
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
    return Effect.succeed(json(text, status, headersOf(response)))
  })
}

export const json = (text: string, status: number, headers: Readonly<Record<string, string>>): Answer =>
  whole(text, status, headers, "application/json")

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
