/**
 * What an MCP endpoint answers when it does not let a request through: JSON-RPC errors, as the clients expect them.
 *
 * There is one answer for a session that the caller does not have, whatever the reason: a caller can't tell one from
 * another, byte for byte.
 */
import type { JSONRPCErrorResponse, JSONRPCMessage, RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import { SessionNotFound } from "../../SessionRegistryError.ts"

type Answer = HttpServerResponse.HttpServerResponse

/**
 * A request that is not let through, with its answer.
 */
export class Refused extends Data.TaggedError("Refused")<{ readonly response: Answer }> {
  [HttpServerRespondable.symbol](): Effect.Effect<Answer> {
    return Effect.succeed(this.response)
  }
}

const refused = (
  status: number,
  code: number,
  message: string,
  headers?: Readonly<Record<string, string>> | undefined
): Refused =>
  new Refused({
    response: HttpServerResponse.jsonUnsafe({ jsonrpc: "2.0", error: { code, message }, id: null }, {
      status,
      headers: { "cache-control": "no-store", ...headers }
    })
  })

// The rest of a body that was not read is nobody's
const hangUp = { connection: "close" }

export const notFound = refused(404, -32001, "Session not found")

export const sessionRequired = refused(400, -32000, "Bad Request: Mcp-Session-Id header is required")

export const initializeAlone = refused(400, -32600, "Invalid Request: initialize must be a request of its own")

export const initializeMalformed = refused(400, -32602, "Invalid params: not a valid initialize request")

export const notJson = refused(400, -32700, "Parse error: Invalid JSON")

export const requestIdInUse = refused(400, -32600, "Invalid Request: a request with this id is still being answered")

export const batchEmpty = refused(400, -32600, "Invalid Request: a batch must have a message in it")

export const batchTooLarge = (limit: number): Refused =>
  refused(400, -32600, `Invalid Request: a batch must not have more than ${limit} messages`)

export const malformed = refused(400, -32600, "Invalid Request: this is no JSON-RPC message")

export const unknownEvent = refused(400, -32000, "Bad Request: no stream has an event with this id")

export const initialized = refused(400, -32600, "Invalid Request: Server already initialized")

export const upgradeRefused = refused(400, -32000, "Bad Request: this endpoint upgrades to no other protocol", hangUp)

export const tooSlow = refused(408, -32000, "Request Timeout: the body did not arrive in time", hangUp)

export const tooManyRequests = (limit: number): Refused =>
  refused(429, -32000, `Too Many Requests: the session has ${limit} in flight, as many as it may`, {
    "retry-after": "1"
  })
export const tooDeep = (limit: number): Refused =>
  refused(400, -32600, `Invalid Request: nested more than ${limit} deep`)

export const notAcceptable = (types: string): Refused =>
  refused(406, -32000, `Not Acceptable: Client must accept ${types}`)

export const unsupportedMediaType = refused(
  415,
  -32000,
  "Unsupported Media Type: Content-Type must be application/json"
)

export const tooLarge = (limit: number): Refused =>
  refused(413, -32000, `Payload Too Large: the body must not exceed ${limit} bytes`, hangUp)

export const unsupportedVersion = (supported: ReadonlyArray<string>): Refused =>
  refused(400, -32000, `Bad Request: Unsupported protocol version (supported versions: ${supported.join(", ")})`)

export const hostMalformed = refused(400, -32000, "Bad Request: the Host header is not a host")

export const hostForbidden = refused(403, -32000, "Forbidden: this Host is not allowed")

export const originForbidden = refused(403, -32000, "Forbidden: this Origin is not allowed")

export const methodNotAllowed = (allow: string): Refused => refused(405, -32000, "Method not allowed.", { allow })

/** What failed is the server's business, and in its log. */
export const unavailable = refused(503, -32603, "Service Unavailable", { "retry-after": "10" })

export const connectionMalformed = refused(
  400,
  -32000,
  "Bad Request: Connection must not name a header that is meant for the server"
)

/** Of a request to another node nobody knows whether it has run. */
export const lost = refused(
  502,
  -32000,
  "Bad Gateway: the node that has the session was lost before the request was answered. It may have run."
)

export const terminated = HttpServerResponse.empty({ status: 204 })

/**
 * The response to a request that was started, and that nobody will answer: its session has ended, or the server shuts
 * down. Never 404, which says that it was not started and may be sent again.
 */
export const abandoned = (id: RequestId, isShuttingDown: boolean) =>
  ({
    jsonrpc: "2.0",
    id,
    error: {
      code: -32000,
      message: isShuttingDown
        ? "The server shut down before the request was answered. It may have run."
        : "The session ended before the request was answered. It may have run."
    }
  }) satisfies JSONRPCErrorResponse

/**
 * The response to a request whose server gave one that is no JSON, or neither a result nor an error.
 */
export const unwritten = (id: RequestId) =>
  ({
    jsonrpc: "2.0",
    id,
    error: { code: -32603, message: "Internal error: the server's response could not be written" }
  }) satisfies JSONRPCErrorResponse

/**
 * The same of a request that another node was asked for, which nobody can reach any more.
 */
export const lostAt = (id: RequestId): JSONRPCErrorResponse => ({
  jsonrpc: "2.0",
  id,
  error: {
    code: -32000,
    message: "The node that has the session was lost before the request was answered. It may have run."
  }
})

/**
 * The answer to what has such responses.
 */
export const responses = (messages: ReadonlyArray<JSONRPCMessage>): Answer =>
  HttpServerResponse.jsonUnsafe(messages.length === 1 ? messages[0] : messages, {
    headers: { "cache-control": "no-store" }
  })

/**
 * The same answer, after which the connection is closed.
 */
export const last = (response: Answer): Answer => HttpServerResponse.setHeaders(response, hangUp)

/**
 * The same for a refusal: there may be more of the request to come.
 */
export const closing = ({ response }: Refused): Refused => new Refused({ response: last(response) })

/**
 * The answer to a failure: its own if it has one.
 */
export const toFailure = (error: unknown): Effect.Effect<Answer> =>
  error instanceof SessionNotFound
    ? Effect.succeed(notFound.response)
    : HttpServerRespondable.toResponseOrElse(error, unavailable.response)
