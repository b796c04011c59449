/**
 * Why something that was asked of an MCP session did not happen.
 *
 * One error, eleven reasons. `Effect.catchReason("McpSessionError", "Unauthorized", …)` handles one of them. A tool
 * that answers with `isError` has answered: that is a value, never one of these.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Schema from "effect/Schema"
import { CredentialScheme } from "./Identity.ts"
import { challenge, respond } from "./internal/problem.ts"

/**
 * The session ended before the answer came: its child process died, its connection was closed, or its scope ended. Its
 * pool has retired it: get another one. The request may have run, if `requestSent`.
 *
 * @category errors
 */
export class SessionClosed extends Schema.TaggedClass<SessionClosed>()("SessionClosed", {
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean,
  /** What ended it, where it was no exit: a message longer than `maxMessageBytes`, or a closed stdout. */
  detail: Schema.optionalKey(Schema.String),
  /** What the server's process exited with, if it did. */
  exitCode: Schema.optionalKey(Schema.Int),
  /** The signal that killed it, such as `"SIGKILL"`. */
  signal: Schema.optionalKey(Schema.String),
  /** The last lines that it wrote to stderr, ten at most, with the session's secrets taken out. */
  stderr: Schema.optionalKey(Schema.String)
}) {}

/**
 * The server no longer knows the session (404, or 400 that says so, with a session id). Its pool has retired it.
 *
 * If `refused`, the request was not run: repeating it on a new session is safe, and `SessionPool.withSession` does so
 * where nothing else may have run.
 *
 * @category errors
 */
export class SessionExpired extends Schema.TaggedClass<SessionExpired>()("SessionExpired", {
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean,
  /**
   * Whether the request was refused unread. Not so if the answer has this request's own id, came after a redirect, or
   * came over a transport that is not a connector's own: then it may have been started.
   */
  refused: Schema.Boolean.pipe(Schema.withConstructorDefault(Effect.succeed(true)))
}) {}

/**
 * What a server asks for with `WWW-Authenticate`, as it says it: credentials of this scheme, for what is in the
 * parameters (`realm`, `scope`, `error`, `resource_metadata`, …), whose names are in lower case. Nothing of it is
 * checked: do not send credentials to where it points without looking.
 *
 * @category errors
 */
export const Challenge = Schema.Struct({
  /** Such as `"Bearer"`. */
  scheme: Schema.String,
  /** By their names, in lower case: 16 at most, of 1,000 characters at most. */
  parameters: Schema.Record(Schema.String, Schema.String)
})

/**
 * What a server asks for with `WWW-Authenticate`.
 *
 * @category errors
 */
export type Challenge = typeof Challenge.Type

/**
 * The server answered 401. The session lives on.
 *
 * @category errors
 */
export class Unauthorized extends Schema.TaggedClass<Unauthorized>()("Unauthorized", {
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean,
  /** The scheme of the credentials that were refused, if they were the caller's own, forwarded. */
  forwarded: Schema.optionalKey(CredentialScheme),
  /** How long the server wants to be left alone (`Retry-After`), in its own words: it may be zero, or years. */
  retryAfter: Schema.optionalKey(Schema.Duration),
  /** What it asks for (`WWW-Authenticate`): eight challenges at most, without the session's secrets. */
  challenges: Schema.optionalKey(Schema.Array(Challenge))
}) {}

/**
 * The server answered 403. The session lives on.
 *
 * @category errors
 */
export class Forbidden extends Schema.TaggedClass<Forbidden>()("Forbidden", {
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean,
  /** The scheme of the credentials that were refused, if they were the caller's own, forwarded. */
  forwarded: Schema.optionalKey(CredentialScheme),
  /** How long the server wants to be left alone (`Retry-After`), in its own words: it may be zero, or years. */
  retryAfter: Schema.optionalKey(Schema.Duration),
  /** What it asks for (`WWW-Authenticate`): eight challenges at most, without the session's secrets. */
  challenges: Schema.optionalKey(Schema.Array(Challenge))
}) {}

/**
 * No answer came within the time that the call (60 seconds by default), or the connect, was given. The server was told
 * to cancel it, but the request may have run. After two in a row the session is asked whether it still lives.
 *
 * @category errors
 */
export class RequestTimeout extends Schema.TaggedClass<RequestTimeout>()("RequestTimeout", {
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean
}) {}

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
  code: Schema.Number,
  message: Schema.String,
  /** The JSON-RPC error's own: whatever the server sent, unless it is longer than 65,536 characters of JSON. */
  data: Schema.Unknown,
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean
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
  requestSent: Schema.Boolean,
  /** How long the server wants to be left alone (`Retry-After`), in its own words: it may be zero, or years. */
  retryAfter: Schema.optionalKey(Schema.Duration),
  /** What it asks for (`WWW-Authenticate`): eight challenges at most, without the session's secrets. */
  challenges: Schema.optionalKey(Schema.Array(Challenge))
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
  code: Schema.String,
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean
}) {}

/**
 * The connector's own `headers`, `env`, server or transport could not be made for this identity, or `authorization` got
 * no token for it, so nothing was sent, or what was sent was refused with 401 or 403 and not sent again. The session,
 * if there is one already, lives on.
 *
 * @category errors
 */
export class PreparationFailed extends Schema.TaggedClass<PreparationFailed>()("PreparationFailed", {
  /** The option whose Effect failed. */
  option: Schema.Literals(["headers", "env", "server", "transport", "authorization"]),
  /**
   * What it failed, died or threw with, or that it has interrupted itself; of `authorization` an
   * `AuthorizationFailed`, unless it is a function of your own that has failed. Redacted, because it may quote what it
   * was about: `Redacted.value(cause)`.
   */
  cause: Schema.Redacted(Schema.Unknown),
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean
}) {}

/**
 * The server's list has more pages than `limit`: its cursor may never end. Nothing of it is returned, because what is
 * left out can't be told from what does not exist. The session lives on.
 *
 * @category errors
 */
export class TooManyPages extends Schema.TaggedClass<TooManyPages>()("TooManyPages", {
  /** How many pages there may be. */
  limit: Schema.Int,
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean
}) {}

/**
 * The server wants a token that only the caller's consent can give: somebody has to open `url` in a browser. The
 * request was refused, and not sent again; the session, if there is one already, lives on. `Consent.withConsent` asks
 * the caller and goes on when the callback has come.
 *
 * @category errors
 */
export class ConsentRequired extends Schema.TaggedClass<ConsentRequired>()("ConsentRequired", {
  /** What the consent is known by, here and in an elicitation: of no use to anybody else. */
  id: Schema.String,
  /**
   * Where to go. Redacted, because whoever has it can answer in the caller's place: show it to nobody but the caller.
   */
  url: Schema.Redacted(Schema.String),
  /** Whether the request may have reached the server. */
  requestSent: Schema.Boolean
}) {}

/**
 * The schema of the eleven reasons.
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
  Unreachable,
  PreparationFailed,
  TooManyPages,
  ConsentRequired
])

/**
 * One of the eleven reasons, told apart by its `_tag`.
 *
 * @category errors
 */
export type McpSessionErrorReason = typeof McpSessionErrorReason.Type

/**
 * The error of every operation of a session, and of opening one.
 *
 * Answers 401 or 403 with a challenge if the server refused credentials of the caller's own, which were forwarded; 403
 * if the caller's consent is missing; 504 for a timeout, 503 when the server can't be reached or says that it is busy,
 * 502 for everything else: what goes wrong upstream is not the caller's to repair, and is not told in detail.
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
  Unreachable: "unreachable",
  PreparationFailed: "preparation-failed",
  TooManyPages: "too-many-pages",
  ConsentRequired: "consent-required"
} as const

const describe = (reason: McpSessionErrorReason, repeat: string): string => {
  switch (reason._tag) {
    case "SessionClosed":
      return `the session has ended${endOf(reason)}. Get another one; ${repeat}.${
        reason.stderr === undefined ? "" : ` The last of its stderr:\n${reason.stderr}`
      }`
    case "SessionExpired":
      return reason.refused
        ? "the server no longer knows this session and refused the request. Get another session and repeat it."
        : "the server no longer knows this session. Get another one; the request may have run, so repeat it only if " +
          "that is safe."
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
        reason.status === 429 || reason.status === 503
          ? `Try again ${reason.retryAfter === undefined ? "later" : `in ${Duration.format(reason.retryAfter)}`}.`
          : "Look at the server, or at its URL."
      }`
    case "Unreachable":
      return `the server can't be reached (${reason.code}). ${
        notFound.has(reason.code)
          ? "Look at the command and its working directory."
          : `See whether it runs and what its log says; ${repeat}.`
      }`
    case "TooManyPages":
      return `the list has more than ${reason.limit} pages. Look at the server, or read them yourself with \`request\`.`
    case "ConsentRequired":
      return "the server wants the caller's consent. Have the caller open `reason.url`, or wrap the call in " +
        `\`Consent.withConsent\`; ${repeat}.`
    case "PreparationFailed":
      return `the connector's \`${reason.option}\` failed, so nothing was sent. See \`reason.cause\`; ${repeat}.`
  }
}

const endOf = ({ detail, exitCode, signal }: SessionClosed): string => {
  if (detail !== undefined) return `: ${detail}`
  if (signal !== undefined) return `: ${signal} killed the server's process`
  return exitCode === undefined ? "" : `: the server's process exited with code ${exitCode}`
}

const notFound: ReadonlySet<string> = new Set(["ENOENT", "EACCES", "EPERM", "ENOTDIR"])

const statusOf = (reason: McpSessionErrorReason): Parameters<typeof respond>[1] => {
  switch (reason._tag) {
    case "Unauthorized":
      return reason.forwarded === undefined ? failed : {
        status: 401,
        title: "The MCP server refused the credentials",
        headers: { "www-authenticate": `${challenge(reason.forwarded)}, error="invalid_token"` }
      }
    case "Forbidden":
      return reason.forwarded === undefined ? failed : {
        status: 403,
        title: "The MCP server does not allow this",
        headers: { "www-authenticate": `${challenge(reason.forwarded)}, error="insufficient_scope"` }
      }
    case "ConsentRequired":
      return { status: 403, title: "The MCP server wants your consent" }
    case "RequestTimeout":
      return { status: 504, title: "The MCP server did not answer in time" }
    case "Unreachable":
      return { status: 503, title: "The MCP server can't be reached" }
    case "HttpFailure":
      return reason.status === 429 || reason.status === 503
        ? {
          status: 503,
          title: "The MCP server is busy",
          headers: reason.retryAfter === undefined
            ? undefined
            : { "retry-after": String(Math.ceil(Duration.toSeconds(reason.retryAfter))) }
        }
        : failed
    default:
      return failed
  }
}

const failed = { status: 502, title: "The MCP server failed" }
