/**
 * What an MCP endpoint answers when it does not let a request through: JSON-RPC errors, as the clients expect them.
 *
 * There is one answer for a session that the caller does not have, whatever the reason: a caller can't tell one from
 * another, byte for byte.
 */
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import { SessionNotFound } from "../../SessionRegistryError.ts"

type Answer = HttpServerResponse.HttpServerResponse

const refusal = (
  status: number,
  code: number,
  message: string,
  headers?: Readonly<Record<string, string>> | undefined
): Answer =>
  HttpServerResponse.jsonUnsafe({ jsonrpc: "2.0", error: { code, message }, id: null }, {
    status,
    headers: { "cache-control": "no-store", ...headers }
  })

export const notFound = refusal(404, -32001, "Session not found")

export const sessionRequired = refusal(400, -32000, "Bad Request: Mcp-Session-Id header is required")

export const initializeAlone = refusal(400, -32600, "Invalid Request: initialize must be a request of its own")

export const initializeMalformed = refusal(400, -32602, "Invalid params: this is no initialize request")

export const notJson = refusal(400, -32700, "Parse error: Invalid JSON")

export const requestIdInUse = refusal(400, -32600, "Invalid Request: a request with this id is still being answered")

export const notAcceptable = (types: string): Answer =>
  refusal(406, -32000, `Not Acceptable: Client must accept ${types}`)

export const unsupportedMediaType = refusal(
  415,
  -32000,
  "Unsupported Media Type: Content-Type must be application/json"
)

export const tooLarge = (limit: number): Answer =>
  refusal(413, -32000, `Payload Too Large: the body must not exceed ${limit} bytes`)

export const unsupportedVersion = (supported: ReadonlyArray<string>): Answer =>
  refusal(400, -32000, `Bad Request: Unsupported protocol version (supported versions: ${supported.join(", ")})`)

export const hostForbidden = refusal(403, -32000, "Forbidden: this Host is not allowed")

export const originForbidden = refusal(403, -32000, "Forbidden: this Origin is not allowed")

export const methodNotAllowed = (allow: string): Answer => refusal(405, -32000, "Method not allowed.", { allow })

/** What failed is the server's business, and in its log. */
export const unavailable = refusal(503, -32603, "Service Unavailable", { "retry-after": "10" })

export const terminated = HttpServerResponse.empty({ status: 204 })

/**
 * The answer to a failure: its own if it has one.
 */
export const toFailure = (error: unknown): Effect.Effect<Answer> =>
  error instanceof SessionNotFound
    ? Effect.succeed(notFound)
    : HttpServerRespondable.toResponseOrElse(error, unavailable)
