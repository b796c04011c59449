/**
 * A request that another node answers: it is handed on as it came, and so is the answer.
 *
 * What is between two connections alone stays between them (RFC 9110 section 7.6.1): how a body is framed, what becomes
 * of the connection, the date. The rest is the client's and the other node's, whatever it says.
 */
import type { RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as Cookies from "effect/http/Cookies"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { IncomingMessage } from "node:http"
import * as Answers from "./answers.ts"
import * as Events from "./events.ts"
import type * as Link from "./link.ts"
import * as Requests from "./requests.ts"

type Response = HttpServerResponse.HttpServerResponse

/** What is read before it is handed on: less than that of most bodies is worth no stream. */
const small = 64 * 1024

/** How long the rest of an answer may take that is small: a node says all of it at once. */
const patience = "10 seconds"

// RFC 9110 section 7.6.1, and what Node has answered already
const ofConnection = [
  "connection",
  "expect",
  "http2-settings",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade"
]
const notHandedOn = new Set([...ofConnection, "content-length"])
const notHandedBack = new Set([...ofConnection, "date"])

// -----------------------------------------------------------------------------
// The request
// -----------------------------------------------------------------------------

/** A request's body as it is handed on. */
export interface Body {
  readonly content: Link.Outgoing["body"]
  /**
   * What it asks for, and what has to be answered if nobody else does. Undefined if it is no JSON, or if not all of it
   * was handed on. It is asked for once: then nothing is kept of the body.
   */
  readonly ids: () => ReadonlyArray<RequestId> | undefined
}

/**
 * If it is small it is read first. All else is handed on as it comes: the other node knows who may send so much, and
 * refuses whoever may not before it reads on.
 */
export const readBody = (
  request: HttpServerRequest,
  maxBodyBytes: number,
  readText: Effect.Effect<string, Answers.Refused>
): Effect.Effect<Body, Answers.Refused> => {
  if (request.method !== "POST") return Effect.succeed(nothing)
  const length = request.headers["content-length"]
  const isSmall = length === undefined
    ? request.headers["transfer-encoding"] === undefined && isOfNode(request)
    : Number(length) <= Math.min(small, maxBodyBytes)
  return isSmall
    ? Effect.map(readText, (text) => ({ content: text, ids: () => idsOf(text) }))
    : Effect.succeed(remembered(request.stream, maxBodyBytes))
}

const nothing: Body = { content: undefined, ids: () => undefined }

/** What passes is kept, so far as a node takes it. */
const remembered = (stream: Stream.Stream<Uint8Array, unknown>, limit: number): Body => {
  let kept: Array<Uint8Array> = []
  let room = limit
  return {
    content: Stream.map(stream, (chunk) => {
      room -= chunk.length
      if (room < 0) kept = []
      else kept.push(chunk)
      return chunk
    }),
    ids: () => {
      const text = Buffer.concat(kept).toString()
      room = -1
      kept = []
      return idsOf(text)
    }
  }
}

/** Whether it is one of Node's, whose body has a length or is chunked, if there is one. */
const isOfNode = ({ source }: HttpServerRequest): boolean => Predicate.hasProperty(source, "rawHeaders")

/** What a client says only to whoever it is connected with, but that the server would read. */
export const connectionIssue = ({ headers }: HttpServerRequest): Answers.Refused | undefined =>
  headers["connection"]?.split(",").some((option) => {
      const name = option.trim().toLowerCase()
      return name !== "close" && !notHandedOn.has(name) && Object.hasOwn(headers, name)
    }) === true
    ? Answers.connectionMalformed
    : undefined

/** The headers that are handed on: as they came, each as often. `set` replaces what the client says. */
export const headersOf = (
  request: HttpServerRequest,
  content: Link.Outgoing["body"],
  set: Readonly<Record<string, string | undefined>>
): ReadonlyArray<string> => {
  const headers: Array<string> = []
  const add = (name: string, value: string): void => {
    const key = name.toLowerCase()
    // Those of HTTP/2 that are no headers begin with a colon
    if (!notHandedOn.has(key) && set[key] === undefined && !key.startsWith(":")) headers.push(name, value)
  }
  const raw = Predicate.hasProperty(request.source, "rawHeaders") ? request.source.rawHeaders : undefined
  if (Array.isArray(raw)) {
    for (let i = 0; i + 1 < raw.length; i += 2) add(String(raw[i]), String(raw[i + 1]))
    const authority = request.headers["host"]
    if (authority !== undefined && !headers.some((name, i) => i % 2 === 0 && name.toLowerCase() === "host")) {
      headers.push("host", authority)
    }
  } else {
    for (const [name, value] of Object.entries(request.headers)) add(name, value)
  }
  for (const [name, value] of Object.entries(set)) if (value !== undefined) headers.push(name, value)
  // "A gateway … MUST send an appropriate Via header field in each inbound request message", section 7.6.3
  headers.push("via", "1.1 effect-mcp-sessions")
  if (typeof content === "string") headers.push("content-length", String(Buffer.byteLength(content)))
  else if (content !== undefined) {
    const length = request.headers["content-length"]
    headers.push(...(length === undefined ? ["transfer-encoding", "chunked"] : ["content-length", length]))
    headers.push("expect", "100-continue")
  }
  return headers
}

/** Path and query, as they came. */
export const pathOf = ({ originalUrl }: HttpServerRequest): string => {
  const path = originalUrl.replace(/^https?:\/\/[^/?#]*/i, "").replace(/#.*$/s, "")
  return path.startsWith("/") ? path : `/${path}`
}

// -----------------------------------------------------------------------------
// The answer
// -----------------------------------------------------------------------------

/** The answer to what was sent, and to which no other will come. */
export const unanswered = (method: string, body: Body): Effect.Effect<Response, Answers.Refused> => {
  // To listen, and to end what is there, may be said again
  if (method !== "POST") return Effect.fail(Answers.unavailable)
  const ids = body.ids()
  return ids === undefined || ids.length === 0
    ? Effect.fail(Answers.lost)
    : Effect.succeed(Answers.responses(ids.map(Answers.lostAt)))
}

/** The answer of the other node, or `unanswered` if there is none while nothing of it has been handed back. */
export const answer = (
  incoming: IncomingMessage,
  request: HttpServerRequest,
  body: Body,
  until: Effect.Effect<unknown>
): Effect.Effect<Response, Answers.Refused, Scope.Scope> => {
  const status = incoming.statusCode ?? 0
  const given = status < 200 || status > 599 ? Effect.fail("broken") : read(incoming, status, request, body, until)
  return Effect.catch(given, () => {
    incoming.destroy()
    return unanswered(request.method, body)
  })
}

const read = (
  incoming: IncomingMessage,
  status: number,
  request: HttpServerRequest,
  body: Body,
  until: Effect.Effect<unknown>
): Effect.Effect<Response, "broken"> => {
  const { cookies, headers } = readHeaders(incoming)
  const options = { status, headers, cookies }
  const length = incoming.headers["content-length"]
  if (status === 204 || status === 304 || length === "0") {
    incoming.resume()
    return Effect.succeed(HttpServerResponse.empty(options))
  }
  // What has no type is empty, whatever frames it, and would be given one as a stream
  if (Number(length) <= small || incoming.headers["content-type"] === undefined) {
    return Effect.map(
      collect(incoming),
      (bytes) => bytes.length === 0 ? HttpServerResponse.empty(options) : HttpServerResponse.uint8Array(bytes, options)
    )
  }
  const bytes = Stream.fromAsyncIterable<Uint8Array, unknown>(incoming, () => new Error("the node was lost"))
  if (incoming.headers["content-type"]?.startsWith("text/event-stream") !== true) {
    const contentLength = length === undefined ? undefined : Number(length)
    return Effect.as(begun(incoming), HttpServerResponse.stream(bytes, { ...options, contentLength }))
  }
  const events = request.method === "POST" ? completed(bytes, body) : ending(bytes, until)
  return Effect.succeed(HttpServerResponse.stream(events, options))
}

// Of these the rest of the body is nobody's: see `Answers.tooLarge`
const isHangingUp = ({ statusCode }: IncomingMessage): boolean => statusCode === 413 || statusCode === 408

const readHeaders = (incoming: IncomingMessage) => {
  const { rawHeaders } = incoming
  const headers: Record<string, string> = {}
  const cookies: Array<string> = []
  const named = new Set((incoming.headers.connection ?? "").toLowerCase().split(",").map((name) => name.trim()))
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!.toLowerCase()
    const value = rawHeaders[i + 1]!
    if (name === "set-cookie") cookies.push(value)
    else if (name === "connection" && named.has("close") && isHangingUp(incoming)) headers[name] = "close"
    else if (!notHandedBack.has(name) && !named.has(name)) {
      headers[name] = Object.hasOwn(headers, name) ? `${headers[name]}, ${value}` : value
    }
  }
  return { headers, cookies: Cookies.fromSetCookie(cookies) }
}

/** All of a small body. Fails if it breaks off, is longer, or does not come: no node has said that. */
const collect = (incoming: IncomingMessage): Effect.Effect<Uint8Array, "broken"> =>
  Effect.callback<Uint8Array, "broken">((resume) => {
    const chunks: Array<Uint8Array> = []
    let room = small
    incoming.on("data", (chunk: Uint8Array) => {
      room -= chunk.length
      if (room < 0) resume(Effect.fail("broken"))
      else chunks.push(chunk)
    })
    incoming.once("end", () => resume(Effect.succeed(Buffer.concat(chunks))))
    incoming.once("close", () => resume(Effect.fail("broken")))
  }).pipe(Effect.timeoutOrElse({ duration: patience, orElse: () => Effect.fail("broken" as const) }))

/** Until something of a body is there, or its end. Fails if it breaks off before. */
const begun = (incoming: IncomingMessage): Effect.Effect<void, "broken"> =>
  Effect.callback((resume) => {
    incoming.once("readable", () => resume(Effect.void))
    incoming.once("close", () => resume(Effect.fail("broken")))
  })

/** A stream that a node has ended or was lost with: whoever listened comes back. */
const ending = (
  bytes: Stream.Stream<Uint8Array, unknown>,
  until: Effect.Effect<unknown>
): Stream.Stream<Uint8Array> => Stream.interruptWhen(Stream.catchCause(bytes, () => Stream.empty), until)

/** One that answers calls. When it breaks off there is an error for each that has no response yet. */
const completed = (
  bytes: Stream.Stream<Uint8Array, unknown>,
  body: Body
): Stream.Stream<Uint8Array, unknown> => {
  const ids = body.ids()
  // Nobody knows what it was: so it does not end as if all were said
  if (ids === undefined) return bytes
  const pending = new Set(ids)
  let isWithin = false
  let isUnread = false
  const watching = Events.watching(({ id }) => void pending.delete(id), () => void (isUnread = true))
  return bytes.pipe(
    Stream.map((chunk) => {
      isWithin = chunk[chunk.length - 1] !== newline || chunk[chunk.length - 2] !== newline
      return watching(chunk)
    }),
    Stream.catchCause((cause) => {
      if (isUnread) return Stream.failCause(cause)
      const errors = Array.from(pending, (id) => Events.encode(Answers.lostAt(id)))
      return Stream.fromIterable(isWithin ? [Uint8Array.of(newline, newline), ...errors] : errors)
    })
  )
}

const newline = 0x0a

const idsOf = (text: string): ReadonlyArray<RequestId> | undefined =>
  Option.getOrUndefined(Option.map(parseJson(text), Requests.requestIds))

const parseJson = Option.liftThrowable((text: string): unknown => JSON.parse(text))
