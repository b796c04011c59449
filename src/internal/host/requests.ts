/**
 * What an MCP endpoint reads of a request before it looks for a session.
 */
import { type RequestId, SUPPORTED_PROTOCOL_VERSIONS } from "@modelcontextprotocol/sdk/types.js"
import * as ByteSize from "effect/ByteSize"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { HttpServerError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as Answers from "./answers.ts"
import * as Socket from "./socket.ts"

type Request = HttpServerRequest.HttpServerRequest

/** `"*"` is any. */
export type AllowList = ReadonlyArray<string> | "*"

/**
 * Refuses what asks for another protocol: nobody would read that connection again. It is given up.
 */
export const upgradeIssue = (request: Request): Answers.Refused | undefined => {
  if (!Socket.isUpgrade(request)) return undefined
  Socket.abandon(request)
  return Answers.upgradeRefused
}

/**
 * Refuses a request by its `Host`, which is the attacker's when a name of theirs was rebound to this machine.
 */
export const hostGate = (allowedHosts: AllowList | undefined): (request: Request) => Answers.Refused | undefined => {
  const isAllowed = allows(allowedHosts, (host) => loopback.test(withoutPort(host)), withoutPort)
  return (request) => {
    const authority = authorityOf(request)
    // A WHATWG request has no Host header: its URL says where it was sent.
    const host = request.headers["host"] ?? authority
    if ([host, authority].some((value) => value !== undefined && !isHost(value))) return Answers.hostMalformed
    return host === undefined || !isAllowed(host.toLowerCase()) ? Answers.hostForbidden : undefined
  }
}

/**
 * Refuses a request that a web page of somebody else's may have sent: by its `Host`, and by its `Origin`, which
 * browsers add and other clients leave out.
 *
 * Servers MUST validate the Origin header, and answer 403 to an invalid one.
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#security-warning
 */
export const gate = (options: {
  readonly hostIssue: (request: Request) => Answers.Refused | undefined
  readonly allowedOrigins: AllowList | undefined
}): (request: Request) => Answers.Refused | undefined => {
  const isOriginAllowed = allows(options.allowedOrigins, (origin) => {
    const host = /^https?:\/\/([^/]+)$/.exec(origin)?.[1]
    return host !== undefined && loopback.test(withoutPort(host))
  })
  return (request) => {
    const issue = options.hostIssue(request)
    if (issue !== undefined) return issue
    const origin = request.headers["origin"]
    return origin === undefined || isOriginAllowed(origin.toLowerCase()) ? undefined : Answers.originForbidden
  }
}

const allows = (
  list: AllowList | undefined,
  fallback: (value: string) => boolean,
  shorten?: (value: string) => string
): (value: string) => boolean => {
  if (list === undefined) return fallback
  if (list === "*") return () => true
  const listed = new Set(list.map((value) => value.toLowerCase()))
  return (value) => listed.has(value) || (shorten !== undefined && listed.has(shorten(value)))
}

// A name or an address, and a port. Some put credentials before it, and what is percent-encoded may be a quote: URLs
// have it decoded, and so would a challenge that says where this is.
const isHost = (host: string): boolean => /^(?:\[[\da-f:.]+\]|[\w.~!$&'()*+,;=-]+)(?::\d*)?$/i.test(host)

const loopback = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/

const withoutPort = (host: string): string => host.replace(/:\d*$/, "")

const authorityOf = (request: Request): string | undefined => /^https?:\/\/([^/?#]*)/i.exec(request.originalUrl)?.[1]

export const sessionHeader = "mcp-session-id"

/**
 * The session that the request names. An empty header names none. Several arrive joined by a comma and a
 * space, and no session has such an id.
 */
export const sessionId = (request: Request): string | undefined => request.headers[sessionHeader] || undefined

/**
 * Whether the request is made in a protocol version that has sessions, as far as its header says.
 */
export const isVersionSupported = (request: Request): boolean => {
  const version = request.headers["mcp-protocol-version"]
  return version === undefined || SUPPORTED_PROTOCOL_VERSIONS.includes(version)
}

export const unsupportedVersion = Answers.unsupportedVersion(SUPPORTED_PROTOCOL_VERSIONS)

/**
 * What is wrong with a POST's `Accept` or `Content-Type`.
 */
export const mediaTypeIssue = ({ headers }: Request): Answers.Refused | undefined => {
  const accept = headers["accept"]?.toLowerCase()
  if (!accept?.includes("application/json") || !accept.includes("text/event-stream")) return notAcceptable
  const contentType = headers["content-type"]
  return contentType !== undefined && /^\s*application\/json\s*(?:;|$)/i.test(contentType)
    ? undefined
    : Answers.unsupportedMediaType
}

const notAcceptable = Answers.notAcceptable("both application/json and text/event-stream")

/**
 * What is wrong with a GET's `Accept`.
 */
export const streamIssue = ({ headers }: Request): Answers.Refused | undefined =>
  headers["accept"]?.toLowerCase().includes("text/event-stream") === true ? undefined : notAStream

const notAStream = Answers.notAcceptable("text/event-stream")

/**
 * Reads the body of a POST. Fails with the answer to one that is too large, takes longer than `timeout` milliseconds,
 * or is not there when `until` fails.
 */
export const textReader = (
  limit: number,
  timeout: number
): (request: Request, until: Effect.Effect<never, Answers.Refused>) => Effect.Effect<string, Answers.Refused> => {
  const tooLarge = Answers.tooLarge(limit)
  const size = ByteSize.bytes(limit)
  const tooSlow = Effect.andThen(Effect.sleep(timeout), Answers.tooSlow)
  return (request, until) => {
    if (Number(request.headers["content-length"]) > limit) return tooLarge
    const text = request.text.pipe(
      Effect.provideService(HttpServerRequest.MaxBodySize, size),
      Effect.mapError(({ reason }: HttpServerError) =>
        reason._tag === "RequestParseError" && reason.reason === "BodyTooLarge" ? tooLarge : Answers.notJson
      )
    )
    return unless(text, Effect.raceFirst(tooSlow, Effect.mapError(until, Answers.closing)))
  }
}

/**
 * Waits for `reading`, unless `late` fails first. To interrupt it destroys the connection, and then nobody would hear
 * why: so that comes a little later. And nearly every body is there in a moment, before it is worth to wait for
 * anything else.
 */
const unless = <A, E>(reading: Effect.Effect<A, E>, late: Effect.Effect<never, E>): Effect.Effect<A, E> =>
  Effect.contextWith((services: Context.Context<never>) =>
    Effect.callback<A, E>((resume) => {
      const runFork = Effect.runForkWith(services)
      const reader = runFork(reading)
      let watch: Fiber.Fiber<never, E> | undefined
      const tick = setImmediate(() => {
        watch = runFork(late)
        watch.addObserver((exit) => {
          if (Exit.hasInterrupts(exit)) return
          resume(exit)
          const end = runFork(Effect.delay(Fiber.interrupt(reader), "5 seconds"))
          reader.addObserver(() => end.interruptUnsafe())
        })
      })
      reader.addObserver((exit) => {
        clearImmediate(tick)
        watch?.interruptUnsafe()
        resume(exit)
      })
      return Effect.suspend(() => {
        clearImmediate(tick)
        watch?.interruptUnsafe()
        return Fiber.interrupt(reader)
      })
    })
  )

/**
 * What the body of a POST says: a message, or a batch of 1 to 100, as many as the SDK's servers take.
 */
export const parse = (text: string): Effect.Effect<unknown, Answers.Refused> =>
  Effect.suspend((): Effect.Effect<unknown, Answers.Refused> => {
    if (isNestedDeeper(text, maxDepth)) return tooDeep
    return Effect.flatMap(
      Effect.try({ try: (): unknown => JSON.parse(text), catch: () => Answers.notJson }),
      (body) => {
        if (!Array.isArray(body) || (body.length > 0 && body.length <= maxBatch)) return Effect.succeed(body)
        return body.length === 0 ? Answers.batchEmpty : batchTooLarge
      }
    )
  })

/**
 * Whether a body is made of messages, as far as a look at it tells.
 */
export const isMessages = (body: unknown): boolean => Array.isArray(body) ? body.every(isMessage) : isMessage(body)

const isMessage = (message: unknown): boolean =>
  Predicate.hasProperty(message, "jsonrpc") && message.jsonrpc === "2.0" &&
  (Predicate.hasProperty(message, "method")
    ? typeof message.method === "string"
    : Predicate.hasProperty(message, "id"))

const maxBatch = 100

const batchTooLarge = Answers.batchTooLarge(maxBatch)

// JSON.parse does not mind, but what looks at the result does so by recursion: validation, a tool, JSON.stringify.
const maxDepth = 256

const tooDeep = Answers.tooDeep(maxDepth)

/**
 * Whether there are arrays and objects within one another to more than a depth in a JSON text. Looks at each character
 * once.
 */
const isNestedDeeper = (text: string, limit: number): boolean => {
  let depth = 0
  let isString = false
  for (let i = 0; i < text.length; i++) {
    switch (text.charCodeAt(i)) {
      case 0x5c: // \
        i++
        break
      case 0x22: // "
        isString = !isString
        break
      case 0x5b: // [
      case 0x7b: // {
        if (!isString && ++depth > limit) return true
        break
      case 0x5d: // ]
      case 0x7d: // }
        if (!isString) depth--
        break
    }
  }
  return false
}

/**
 * The ids of the requests in a body.
 */
export const requestIds = (body: unknown): ReadonlyArray<RequestId> =>
  (Array.isArray(body) ? body : [body]).flatMap((message: unknown) =>
    hasId(message) && Predicate.hasProperty(message, "method") ? [message.id] : []
  )

export const isResponse = (message: unknown): message is { readonly id: RequestId } =>
  hasId(message) && !Predicate.hasProperty(message, "method")

const hasId = (message: unknown): message is { readonly id: RequestId } =>
  Predicate.hasProperty(message, "id") && (typeof message.id === "string" || typeof message.id === "number")

export const isInitialize = (message: unknown): boolean =>
  Predicate.hasProperty(message, "method") && message.method === "initialize"

/** Whether there is one in the body, alone or among others. */
export const beginsSession = (body: unknown): boolean =>
  Array.isArray(body) ? body.some(isInitialize) : isInitialize(body)

/**
 * What the client of an initialize request calls itself, for an operator to read: 128 characters of it, and none that a
 * terminal or a log would obey.
 */
export const clientOf = (message: unknown): string | undefined => {
  const { name } = Option.getOrElse(decodeClient(message), () => nameless).params.clientInfo
  return name.replaceAll(/\p{C}/gu, "").slice(0, 128) || undefined
}

const decodeClient = Schema.decodeUnknownOption(
  Schema.Struct({ params: Schema.Struct({ clientInfo: Schema.Struct({ name: Schema.String }) }) })
)

const nameless = { params: { clientInfo: { name: "" } } }
