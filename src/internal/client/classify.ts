/**
 * What a rejection of either SDK means, by name, code and status: v1 has no class names to rely on, and two copies of a
 * package make `instanceof` a lie. Imports neither.
 */

/**
 * What a rejection of either SDK means. `requestSent` is false only if the request certainly never left this process.
 */
export type Failure =
  | { readonly _tag: "SessionClosed"; readonly requestSent: boolean }
  | { readonly _tag: "SessionExpired"; readonly requestSent: boolean }
  | { readonly _tag: "Unauthorized"; readonly requestSent: boolean }
  | { readonly _tag: "Forbidden"; readonly requestSent: boolean }
  | { readonly _tag: "RequestTimeout"; readonly requestSent: boolean }
  | { readonly _tag: "HttpFailure"; readonly status: number; readonly requestSent: boolean }
  | { readonly _tag: "Unreachable"; readonly code: string; readonly requestSent: boolean }
  | { readonly _tag: "TooManyPages"; readonly limit: number; readonly requestSent: boolean }
  | {
    readonly _tag: "ProtocolFailure"
    readonly code: number
    readonly message: string
    readonly data: unknown
    readonly requestSent: boolean
  }

/**
 * The code of a call whose reply stream ended without the reply, as `internal/client/wire.ts` reports it.
 */
export const streamEnded = "STREAM_ENDED"

/**
 * 2026-07-28, basic/transports: the headers of a request do not match its body. What a server says of a tool's call is
 * the cause of another error on its way through the SDK: see `internal/client/wire.ts`.
 */
export const headerMismatch = -32020

/**
 * Classifies a rejection of either SDK.
 *
 * `sessionful` says that the request named a session (an `Mcp-Session-Id`, or the endpoint of an SSE stream): without
 * one, 404 means that there is no such endpoint, or no such method. `refused` is the status that the server is known to
 * have refused it with.
 */
export const classify = (error: unknown, sessionful: boolean, refused?: number): Failure => {
  // v2 makes an error of OAuth out of a 403, and says nothing of the status
  if (refused === 401 || refused === 403) return httpFailure(refused, "", sessionful)
  const { code, data, message, name, status } = fields(error)
  const isProtocolError = name === "McpError" || name === "ProtocolError"

  // Nobody but `close()` aborts a transport: a call's own signal is aborted only when nobody listens any more
  if (name === "AbortError") return { _tag: "SessionClosed", requestSent: true }
  if (message === "Not connected") return { _tag: "SessionClosed", requestSent: false }
  if (code === "REQUEST_TIMEOUT" || (isProtocolError && code === -32001 && isLocalTimeout(message, data))) {
    return { _tag: "RequestTimeout", requestSent: true }
  }
  const hidden = code === -32000 ? fields(property(data, "cause")) : undefined
  if (hidden?.code === streamEnded) return { _tag: "Unreachable", code: streamEnded, requestSent: true }
  if (hidden?.code === headerMismatch) return protocolFailure(hidden.code, hidden.message, hidden.data)
  // -32000 is also what servers send for errors of their own: only the SDK's own words mean a closed connection
  if (code === "CONNECTION_CLOSED" || (code === -32000 && /\bConnection closed$/.test(message))) {
    return { _tag: "SessionClosed", requestSent: true }
  }
  if (isProtocolError) return protocolFailure(code, message, data)
  if (code === "LIST_PAGINATION_EXCEEDED") {
    return { _tag: "TooManyPages", limit: Number(property(data, "listMaxPages")), requestSent: true }
  }

  const unreachable = networkCode(error, name, message)
  if (unreachable !== undefined) {
    return { _tag: "Unreachable", code: unreachable, requestSent: !beforeSending.test(unreachable) }
  }
  if (name === "UnauthorizedError") return { _tag: "Unauthorized", requestSent: true }
  const http = typeof status === "number" ? status : httpStatus(code, message)
  if (http !== undefined) return httpFailure(http, `${message} ${String(property(data, "text") ?? "")}`, sessionful)
  return protocolFailure(code, name === "ZodError" ? "The reply does not match the protocol" : message, data)
}

const httpFailure = (status: number, body: string, sessionful: boolean): Failure => {
  if (status === 401) return { _tag: "Unauthorized", requestSent: true }
  if (status === 403) return { _tag: "Forbidden", requestSent: true }
  // 2025-11-25, basic/transports#session-management: 404 with a session id means that the session is gone. Servers of
  // the reference implementation's family answer 400 "No valid session ID provided" instead.
  if (sessionful && (status === 404 || (status === 400 && lostSession.test(body)))) {
    return { _tag: "SessionExpired", requestSent: true }
  }
  // 2026-07-28: an unknown method is 404 with the JSON-RPC error in its body
  if (status === 404 && /"code":\s*-32601\b/.test(body)) return protocolFailure(-32601, "Method not found", undefined)
  return { _tag: "HttpFailure", status, requestSent: true }
}

const lostSession = new RegExp(
  [
    "(no valid|invalid|unknown|expired|missing|no) session",
    "session[\\w -]*(not found|expired|invalid|unknown|terminated|does not exist)",
    "no transport"
  ].join("|"),
  "i"
)

const protocolFailure = (code: unknown, message: string, data: unknown): Failure => ({
  _tag: "ProtocolFailure",
  code: typeof code === "number" ? code : -32603,
  // Each SDK that it went through has put its own in front
  message: message.replace(/^(MCP error -?\d+: )+/, ""),
  data,
  requestSent: true
})

// v1 has one class and one code for its own timeout and for a -32001 that the server sent
const isLocalTimeout = (message: string, data: unknown): boolean =>
  typeof property(data, "timeout") === "number" || typeof property(data, "maxTotalTimeout") === "number" ||
  /Request timed out$|total timeout exceeded$/.test(message)

// v1 has its status as a numeric code; the SSE transport's POST has it in its message alone
const httpStatus = (code: unknown, message: string): number | undefined => {
  if (typeof code === "number") return code >= 100 && code <= 599 ? code : undefined
  const match = /^Error POSTing to endpoint \(HTTP (\d{3})\)/.exec(message)
  return match === null ? undefined : Number(match[1])
}

const codes = (...patterns: ReadonlyArray<string>) => new RegExp(`^(${patterns.join("|")})$`)

// The system's, Node's streams', undici's, and of TLS: Node's, OpenSSL's, and why a certificate is not taken
const networkCodes = codes(
  "ECONN[A-Z]+|ENOTFOUND|EAI_[A-Z]+|EPIPE|EPROTO|ENOENT|EACCES|EPERM|ENOTDIR|E2BIG|EHOSTUNREACH|ENETUNREACH|ETIMEDOUT",
  "ERR_STREAM_[A-Z_]+",
  "UND_ERR_[A-Z_]+",
  "ERR_TLS_[A-Z_]+",
  "ERR_SSL_[A-Z0-9_]+",
  "CERT_[A-Z_]+|[A-Z_]*SELF_SIGNED_CERT[A-Z_]*|UNABLE_TO_[A-Z_]+|HOSTNAME_MISMATCH"
)

// Of OpenSSL's errors only those of a handshake that never was
const beforeSending = codes(
  "ECONNREFUSED|ENOTFOUND|EAI_[A-Z]+|UND_ERR_CONNECT_TIMEOUT|ENOENT|EACCES|EPERM|ENOTDIR|E2BIG",
  "ERR_STREAM_DESTROYED|ERR_STREAM_WRITE_AFTER_END",
  "ERR_TLS_.*",
  "ERR_SSL_(WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS_AVAILABLE)",
  "ERR_SSL_\\w+_(ALERT_HANDSHAKE_FAILURE|ALERT_PROTOCOL_VERSION|UNRECOGNIZED_NAME)",
  "CERT_.*|.*SELF_SIGNED_CERT.*|UNABLE_TO_.*|HOSTNAME_MISMATCH"
)

/**
 * The error and what caused it, as far as that is known. The v2 SDK keeps the cause of some in `data.cause`; of a
 * JSON-RPC error, whose code is a number, `data` is the server's.
 */
export function* causesOf(error: unknown): Generator<object> {
  let cause = error
  for (let depth = 0; typeof cause === "object" && cause !== null && depth < 6; depth++) {
    yield cause
    const isLocal = typeof property(cause, "code") !== "number"
    cause = property(cause, "cause") ?? (isLocal ? property(property(cause, "data"), "cause") : undefined)
  }
}

// undici says what happened in the chain of causes; an EventSource has only its message
const networkCode = (error: unknown, name: string, message: string): string | undefined => {
  let isFetch = false
  for (const cause of causesOf(error)) {
    const { code, ...found } = fields(cause)
    if (typeof code === "string" && (networkCodes.test(code) || isFetch)) return code
    isFetch ||= found.name === "TypeError" && /fetch failed|terminated/.test(found.message)
  }
  if (isFetch) return "FETCH_FAILED"
  if (name === "SseError" && httpStatus(fields(error).code, "") === undefined) {
    return /\b(ECONN[A-Z]+|ENOTFOUND|EAI_[A-Z]+|UND_ERR_[A-Z_]+|EPIPE|EHOSTUNREACH|ENETUNREACH|ETIMEDOUT)\b/.exec(
      message
    )?.[1] ?? "SSE_FAILED"
  }
  return undefined
}

interface Fields {
  readonly name: string
  readonly message: string
  readonly code: unknown
  readonly status: unknown
  readonly data: unknown
}

const fields = (error: unknown): Fields => {
  const own = property(error, "name")
  // v1's StreamableHTTPError, SseError and UnauthorizedError are all named "Error"
  const constructed = property(property(error, "constructor"), "name")
  const name = own === "Error" && typeof constructed === "string" ? constructed : own
  const message = property(error, "message")
  return {
    name: typeof name === "string" ? name : "",
    message: typeof message === "string" ? message : typeof error === "string" ? error : "",
    code: property(error, "code"),
    status: property(error, "status"),
    data: property(error, "data")
  }
}

const property = (value: unknown, key: string): unknown =>
  (typeof value === "object" && value !== null) || typeof value === "function"
    ? (value as Record<string, unknown>)[key]
    : undefined
