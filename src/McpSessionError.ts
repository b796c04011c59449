/**
 * Why something that was asked of an MCP session did not happen.
 *
 * One error, eight reasons. `Effect.catchReason("McpSessionError", "Unauthorized", …)` handles one of them. A tool that
 * answers with `isError` has answered: that is a value, never one of these.
 */
import * as Schema from "effect/Schema"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import { respond } from "./internal/problem.ts"

const sent = {
  /** Whether the request may have reached the server: `false` only if it certainly did not, so that repeating is safe. */
  requestSent: Schema.Boolean
}

/**
 * The session ended before the answer came: its child process died, its connection was closed, or its scope ended. Its
 * pool has retired it: get another one. The request may have run, if `requestSent`.
 *
 * @category errors
 */
export class SessionClosed extends Schema.TaggedClass<SessionClosed>()("SessionClosed", sent) {}

/**
 * The server no longer knows the session (404, or 400 that says so, with a session id). The request was refused, not
 * run: repeating it on a new session is safe, and `SessionPool.withSession` does so where nothing else may have run.
 * Its pool has retired it.
 *
 * @category errors
 */
export class SessionExpired extends Schema.TaggedClass<SessionExpired>()("SessionExpired", sent) {}

/**
 * The server answered 401. The session lives on.
 *
 * @category errors
 */
export class Unauthorized extends Schema.TaggedClass<Unauthorized>()("Unauthorized", sent) {}

/**
 * The server answered 403. The session lives on.
 *
 * @category errors
 */
export class Forbidden extends Schema.TaggedClass<Forbidden>()("Forbidden", sent) {}

/**
 * No answer came within the time that the call (60 seconds by default), or the connect, was given. The server was told
 * to cancel it, but the request may have run. After two in a row the session is asked whether it still lives.
 *
 * @category errors
 */
export class RequestTimeout extends Schema.TaggedClass<RequestTimeout>()("RequestTimeout", sent) {}

/**
 * The server answered with a JSON-RPC error, or with something that is not the protocol, such as a body without the
 * reply: then `code` is the SDK's, or -32603. The session lives on.
 *
 * `message` (500 characters at most) and `data` are the server's, with the caller's credentials taken out.
 *
 * @category errors
 */
export class ProtocolFailure extends Schema.TaggedClass<ProtocolFailure>()("ProtocolFailure", {
  /** The JSON-RPC error's own. */
  /** The JSON-RPC error's own. */
  code: Schema.Number,
  message: Schema.String,
  /** The JSON-RPC error's own: whatever the server sent. */
  data: Schema.Unknown,
  /** Whether the request may have reached the server. */
  ...sent
}) {}

/**
 * The server answered with an HTTP status that none of the other reasons stands for, such as 429 or 503. The session
 * lives on.
 *
 * @category errors
 */
export class HttpFailure extends Schema.TaggedClass<HttpFailure>()("HttpFailure", {
  /** The HTTP status. */
  status: Schema.Int,
  /** Whether the request may have reached the server. */
  ...sent
}) {}

/**
 * The server can't be reached: `code` is the system's (`ECONNREFUSED`, `ENOENT` for a command that does not exist, …),
 * undici's (`UND_ERR_…`), that of TLS (`CERT_HAS_EXPIRED`, `ERR_SSL_WRONG_VERSION_NUMBER` where the other side speaks
 * no TLS, …), or `STREAM_ENDED` when the server ended a reply stream without the reply. The pool has retired the
 * session.
 *
 * @category errors
 */
export class Unreachable extends Schema.TaggedClass<Unreachable>()("Unreachable", {
  /** What the system, undici or TLS call it. */
  /** The system's, such as `ECONNREFUSED` or `ENOENT`. */
  code: Schema.String,
  /** Whether the request may have reached the server. */
  ...sent
}) {}

/**
 * The schema of the eight reasons.
 *
 * @category errors
 */
export const McpSessionErrorReason = Schema.Union([
  SessionClosed,
  SessionExpired,
  Unauthorized,
  Forbidden,
  RequestTimeout,
  ProtocolFailure,
  HttpFailure,
  Unreachable
])

/**
 * One of the eight reasons, told apart by its `_tag`.
 *
 * @category errors
 */
export type McpSessionErrorReason = typeof McpSessionErrorReason.Type

/**
 * The error of every operation of a session, and of opening one.
 *
 * Answers 504 for a timeout, 503 when the server can't be reached or says that it is busy, 502 for everything else:
 * what goes wrong upstream is not the caller's to repair, and is not told in detail.
 *
 * @category errors
 */
export class McpSessionError extends Schema.TaggedError<McpSessionError>()("McpSessionError", {
  /** Why: `_tag` names it, `requestSent` says whether the request may have run. */
  reason: McpSessionErrorReason,
  /** The operation that failed: `"callTool"`, `"connect"`, … */
  method: Schema.String,
  /** The name of the server, as its connector knows it. Never a full URL or command line: those may hold secrets. */
  server: Schema.String
}) {
  readonly module = "McpSession"

  get reference(): string {
    return references[this.reason._tag]
  }

  override get message(): string {
    // A connect has no effects: it may always be repeated
    const repeat = this.method === "connect" || !this.reason.requestSent
      ? "repeating this is safe"
      : "the request may have run, so repeat it only if that is safe"
    return `${this.method} on "${this.server}": ${describe(this.reason, repeat)}`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, statusOf(this.reason))
  }
}

const references = {
  SessionClosed: "session-closed",
  SessionExpired: "session-expired",
  Unauthorized: "unauthorized",
  Forbidden: "forbidden",
  RequestTimeout: "request-timeout",
  ProtocolFailure: "protocol-failure",
  HttpFailure: "http-failure",
  Unreachable: "unreachable"
} as const

const describe = (reason: McpSessionErrorReason, repeat: string): string => {
  switch (reason._tag) {
    case "SessionClosed":
      return `the session has ended. Get another one; ${repeat}.`
    case "SessionExpired":
      return "the server no longer knows this session and refused the request. Get another session and repeat it."
    case "Unauthorized":
      return "the server refused the credentials (401). Present valid ones; the session is kept."
    case "Forbidden":
      return "the server does not allow this (403). Ask for access, or for something else; the session is kept."
    case "RequestTimeout":
      return "no answer came in time and the request was cancelled. Raise `timeout` (`connectTimeout` for a connect)" +
        `, or look at the server; ${repeat}.`
    case "ProtocolFailure":
      return `error ${reason.code}: ${reason.message} (look at the request, or at the server's log)`
    case "HttpFailure":
      return `the server answered with HTTP status ${reason.status}. ${
        reason.status === 429 || reason.status === 503 ? "Try again later." : "Look at the server, or at its URL."
      }`
    case "Unreachable":
      return `the server can't be reached (${reason.code}). ${
        notFound.has(reason.code)
          ? "Look at the command and its working directory."
          : `See whether it runs and what its log says; ${repeat}.`
      }`
  }
}

const notFound: ReadonlySet<string> = new Set(["ENOENT", "EACCES", "EPERM", "ENOTDIR"])

const statusOf = (reason: McpSessionErrorReason): { readonly status: number; readonly title: string } => {
  switch (reason._tag) {
    case "RequestTimeout":
      return { status: 504, title: "The MCP server did not answer in time" }
    case "Unreachable":
      return { status: 503, title: "The MCP server can't be reached" }
    case "HttpFailure":
      return reason.status === 429 || reason.status === 503
        ? { status: 503, title: "The MCP server is busy" }
        : { status: 502, title: "The MCP server failed" }
    default:
      return { status: 502, title: "The MCP server failed" }
  }
}
