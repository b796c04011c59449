/**
 * What a registry fails with besides the errors of its `open`.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Schema from "effect/Schema"
import { respond } from "./internal/problem.ts"

// The operation that failed.
const asking = Schema.Literals(["get", "peek", "terminate"]).pipe(Schema.withConstructorDefault(Effect.succeed("get")))
const operation = Schema.Literals(["create", "get", "peek", "terminate"]).pipe(
  Schema.withConstructorDefault(Effect.succeed("create"))
)

/**
 * The caller has no session of this id. Whether there never was one, it has expired or been terminated, or it is
 * someone else's, nothing tells. Answers 404, which makes a client initialize anew.
 *
 * @category errors
 */
export class SessionNotFound
  extends Schema.TaggedError<SessionNotFound>("effect-mcp-sessions/SessionNotFound")("SessionNotFound", {
    method: asking
  })
{
  readonly module = "SessionRegistry"
  readonly reference = "session-not-found"

  override get message(): string {
    return "There is no such session. Initialize a new one."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 404, title: "There is no such session" })
  }
}

/**
 * There is no room for a new session, in the registry or in what one owner may have of it, and no session there that
 * was never used. Answers 503 with `Retry-After`.
 *
 * @category errors
 */
export class RegistryFull extends Schema.TaggedError<RegistryFull>("effect-mcp-sessions/RegistryFull")("RegistryFull", {
  /** What is full: the registry, or the owner's share of it. */
  scope: Schema.Literals(["registry", "owner"]),
  /** How many sessions fit there. */
  capacity: Schema.Number
}) {
  readonly module = "SessionRegistry"
  readonly method = "create"
  readonly reference = "registry-full"

  override get message(): string {
    return this.scope === "owner"
      ? `The owner has ${this.capacity} sessions, all that one may have. Terminate some, or raise capacityPerOwner.`
      : `The registry has ${this.capacity} sessions, all that fit. ` +
        "Terminate some, lower idleTimeToLive, or raise capacity."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 503, title: "There are too many sessions", headers: { "retry-after": "10" } })
  }
}

/**
 * What `open` opens for a session was not there within `openTimeout`, and was interrupted. Answers 503 with
 * `Retry-After`.
 *
 * @category errors
 */
export class OpenTimeout extends Schema.TaggedError<OpenTimeout>("effect-mcp-sessions/OpenTimeout")("OpenTimeout", {
  /** The `openTimeout` that has passed. */
  after: Schema.Duration
}) {
  readonly module = "SessionRegistry"
  readonly method = "create"
  readonly reference = "open-timeout"

  override get message(): string {
    return `The session was not open after ${Duration.format(this.after)}. ` +
      "Check what its open waits for, or raise openTimeout."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, {
      status: 503,
      title: "The session could not be opened in time",
      headers: { "retry-after": "10" }
    })
  }
}

/**
 * The registry is shutting down or has shut down. Answers 503: a 404 would make the client initialize anew, here.
 *
 * @category errors
 */
export class RegistryClosed
  extends Schema.TaggedError<RegistryClosed>("effect-mcp-sessions/RegistryClosed")("RegistryClosed", {
    method: operation
  })
{
  readonly module = "SessionRegistry"
  readonly reference = "registry-closed"

  override get message(): string {
    return "The session registry has shut down. Use it only while the scope of its layer is open."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 503, title: "The server is shutting down", headers: { "retry-after": "10" } })
  }
}

/**
 * What the registry's operations can fail with, besides the errors of `open`.
 *
 * @category errors
 */
export type SessionRegistryError = SessionNotFound | RegistryFull | OpenTimeout | RegistryClosed

/**
 * @category errors
 */
export const SessionRegistryError = Schema.Union([SessionNotFound, RegistryFull, OpenTimeout, RegistryClosed])
