/**
 * What a pool fails with besides the errors of its `connect`.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Schema from "effect/Schema"
import { SessionKey } from "./Identity.ts"
import { respond } from "./internal/problem.ts"

// The operation that failed: of the two that lease a session.
const method = Schema.Literals(["get", "withSession"]).pipe(Schema.withConstructorDefault(Effect.succeed("get")))

/**
 * The pool is shutting down or has shut down. Answers 503.
 *
 * @category errors
 */
export class PoolClosed extends Schema.TaggedError<PoolClosed>("effect-mcp-sessions/PoolClosed")("PoolClosed", {
  method
}) {
  readonly module = "SessionPool"
  readonly reference = "pool-closed"

  override get message(): string {
    return "The session pool has shut down. Use it only while the scope of its layer is open."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 503, title: "The server is shutting down" })
  }
}

/**
 * There was no room for a new session within `acquireTimeout`: as many as there may be, of the pool or of the upstream,
 * are leased, opening or draining; or the session is exclusive, and somebody else had it. `limit` says which. Answers
 * 503 with `Retry-After`.
 *
 * `held` is how many leases the fiber that asked holds itself: more than none, and it may have waited for itself.
 *
 * @category errors
 */
export class PoolExhausted extends Schema.TaggedError<PoolExhausted>("effect-mcp-sessions/PoolExhausted")(
  "PoolExhausted",
  {
    method,
    /** The option whose limit was hit: `leases` where a session is one caller's at a time. */
    limit: Schema.Literals(["capacity", "capacityPerUpstream", "leases"]).pipe(
      Schema.withConstructorDefault(Effect.succeed("capacity"))
    ),
    /** How many there may be: the pool's `capacity`, that of the upstream, or 1 of an exclusive session. */
    capacity: Schema.Number,
    /** How long the caller waited: `acquireTimeout`. */
    waited: Schema.Duration,
    /** How many leases the fiber that asked holds itself. */
    held: Schema.Number.pipe(Schema.withConstructorDefault(Effect.succeed(0)))
  }
) {
  readonly module = "SessionPool"
  readonly reference = "pool-exhausted"

  override get message(): string {
    const { capacity, held, limit, waited } = this
    const inUse = limit === "leases"
      ? "The session is exclusive, and was in use by others"
      : `All ${capacity} sessions of the ${limit === "capacity" ? "pool" : "upstream"} were in use`
    const way = limit === "leases" ? "let callers share sessions (leases)" : `raise ${limit}`
    return `${inUse} for ${Duration.format(waited)}. ` +
      (held === 0
        ? `End leases sooner, ${way} or raise acquireTimeout.`
        : `The caller itself holds ${held === 1 ? "a lease" : `${held} leases`}, and waits for its own end: ` +
          `end that lease first, or ${
            limit === "leases" ? way : `make ${limit} larger than the leases that one caller holds at once`
          }.`)
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
export class ConnectTimeout extends Schema.TaggedError<ConnectTimeout>("effect-mcp-sessions/ConnectTimeout")(
  "ConnectTimeout",
  {
    method,
    /** Whose session did not open. */
    key: SessionKey,
    /** How long it was waited for: `connectTimeout`. */
    after: Schema.Duration
  }
) {
  readonly module = "SessionPool"
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
