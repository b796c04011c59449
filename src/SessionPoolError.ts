/**
 * What a pool fails with besides the errors of its `connect`.
 */
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import { SessionKey } from "./Identity.ts"
import { respond } from "./internal/problem.ts"

/**
 * The pool is shutting down or has shut down. Answers 503.
 *
 * @category errors
 */
export class PoolClosed extends Schema.TaggedError<PoolClosed>()("PoolClosed", {}) {
  readonly module = "SessionPool"
  readonly method = "get"
  readonly reference = "pool-closed"

  override get message(): string {
    return "The session pool has shut down. Use it only while the scope of its layer is open."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 503, title: "The server is shutting down" })
  }
}

/**
 * There was no room for a new session within `acquireTimeout`: `capacity` sessions are leased, opening or draining.
 * Answers 503 with `Retry-After`.
 *
 * @category errors
 */
export class PoolExhausted extends Schema.TaggedError<PoolExhausted>()("PoolExhausted", {
  capacity: Schema.Number,
  waited: Schema.Duration
}) {
  readonly module = "SessionPool"
  readonly method = "get"
  readonly reference = "pool-exhausted"

  override get message(): string {
    return `All ${this.capacity} sessions of the pool were in use for ${Duration.format(this.waited)}. ` +
      "End leases sooner, or raise capacity or acquireTimeout."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 503, title: "Too many sessions are in use", headers: { "retry-after": "1" } })
  }
}

/**
 * A `connect` took longer than `connectTimeout` and was interrupted. Answers 504.
 *
 * @category errors
 */
export class ConnectTimeout extends Schema.TaggedError<ConnectTimeout>()("ConnectTimeout", {
  key: SessionKey,
  after: Schema.Duration
}) {
  readonly module = "SessionPool"
  readonly method = "get"
  readonly reference = "connect-timeout"

  override get message(): string {
    return `No session for "${this.key}" was open after ${Duration.format(this.after)}. ` +
      "Check that the server answers, or raise connectTimeout."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 504, title: "The upstream server did not answer in time" })
  }
}

/**
 * What a get can fail with besides the errors of `connect`.
 *
 * @category errors
 */
export type SessionPoolError = PoolClosed | PoolExhausted | ConnectTimeout

/**
 * @category errors
 */
export const SessionPoolError = Schema.Union([PoolClosed, PoolExhausted, ConnectTimeout])
