/**
 * The outbound pool: identity → one live session, reused, bounded, closed by finalizers.
 *
 * - A session is never closed under a lease, except by the end of the pool itself, after `drainTimeout`.
 * - At most one session per identity is opening or open; at most `capacity` are opening, open or draining.
 * - Whatever is opened is closed exactly once, whatever fails, hangs or is interrupted.
 * - Every wait has a bound, and a session that hangs hurts only its own identity.
 *
 * This module is the policy: who waits for room, who is evicted for it, who is checked first, and what callers and
 * observers are told. When a session may be closed is `internal/lease/leased.ts`.
 */
import * as Cause from "effect/Cause"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { SessionHandle } from "./Connector.ts"
import { Identity, type SessionKey } from "./Identity.ts"
import * as Ahead from "./internal/ahead.ts"
import { blameOf } from "./internal/lease/blame.ts"
import * as Checks from "./internal/lease/checks.ts"
import * as Connecting from "./internal/lease/connecting.ts"
import * as Events from "./internal/lease/events.ts"
import * as Failures from "./internal/lease/failures.ts"
import * as Holders from "./internal/lease/holders.ts"
import * as Leased from "./internal/lease/leased.ts"
import * as Metrics from "./internal/lease/metrics.ts"
import * as Seating from "./internal/lease/seating.ts"
import * as Terms from "./internal/lease/terms.ts"
import * as Upstreams from "./internal/lease/upstreams.ts"
import * as Waiters from "./internal/lease/waiters.ts"
import * as Waiting from "./internal/lease/waiting.ts"
import * as Options from "./internal/options.ts"
import { namesAndPlaces } from "./internal/places.ts"
import * as Sent from "./internal/sent.ts"
import { type Configurable, InvalidOptions } from "./InvalidOptions.ts"
import type { McpSessionError } from "./McpSessionError.ts"
import { all } from "./Metrics.ts"
import type { McpSession } from "./Session.ts"
import { ConnectTimeout, PoolClosed, PoolExhausted, type SessionPoolError } from "./SessionPoolError.ts"

export type { SessionHandle } from "./Connector.ts"
export * from "./SessionPoolError.ts"

/**
 * How a pool opens sessions and how long it keeps them. Durations are `Duration.Input`; a number is milliseconds.
 *
 * @category models
 */
export interface SessionPoolOptions<Session, E, R, RC = R, RP = RC> {
  /**
   * Opens a session. Its finalizers close it. Runs with the services, the span and a scope of the pool, never those of
   * the caller that happened to come first.
   */
  readonly connect: (identity: Identity, handle: SessionHandle) => Effect.Effect<Session, E, R | Scope.Scope>
  /**
   * How many sessions may be opening, open or draining at once: an integer, by default 10. Too small, and identities
   * evict each other; too large, and processes and sockets pile up.
   */
  readonly capacity?: number | undefined
  /**
   * How many of them may be of one upstream, which `identity.at` chooses: an integer, or a function of the upstream's
   * name, by default no fewer than `capacity`. Whoever waits because its upstream is full holds up nobody else; it is
   * the least recently used idle session of that upstream that gives way, and no other. An identity without an upstream
   * knows the common limit alone.
   *
   * A function is asked when there is no session of the upstream and nobody waits for one. If it throws, or answers
   * with what is no such integer, the get dies of that, with `InvalidOptions` for the latter.
   */
  readonly capacityPerUpstream?: number | ((upstream: string) => number) | undefined
  /**
   * How long a session without a lease is kept, counted from the end of its last lease: by default 5 minutes, and
   * `Duration.infinity` for ever.
   *
   * A function tells it of each identity, as it does for `maxLifetime` and `checkAfter`: it is asked before a session
   * is opened. If it throws, or answers with what is no such duration, the get dies of that, with `InvalidOptions` for
   * the latter, and nothing is opened.
   */
  readonly idleTimeToLive?: Duration.Input | ((identity: Identity) => Duration.Input) | undefined
  /**
   * How long after it was opened a session takes new leases, less up to 2.5 %: by default for ever. Then it is closed
   * as soon as it is free. It may be a function of the identity.
   */
  readonly maxLifetime?: Duration.Input | ((identity: Identity) => Duration.Input) | undefined
  /**
   * Whether callers of one identity share its session, by default `"shared"`: all of them at once. `"exclusive"` gives
   * it to one at a time, for an upstream that cannot take two calls at once; the others wait for it in the order in
   * which they came, for `acquireTimeout`, and it is opened anew for them if it is retired meanwhile.
   */
  readonly leases?: "shared" | "exclusive" | undefined
  /** How long an open may take, else `ConnectTimeout`: by default 30 seconds. */
  readonly connectTimeout?: Duration.Input | undefined
  /** How long a get waits for room, else `PoolExhausted`: by default 30 seconds, and 0 not at all. */
  readonly acquireTimeout?: Duration.Input | undefined
  /** How long a close may take before it is given up, logged and counted: by default 10 seconds. */
  readonly closeTimeout?: Duration.Input | undefined
  /** How long a pool that shuts down waits for leases before it closes under them: by default 0. */
  readonly drainTimeout?: Duration.Input | undefined
  /**
   * Asks a session that has been idle for `checkAfter` whether it still works, before it is leased again. If it fails,
   * dies or takes longer than `checkTimeout`, the session is retired and another opened. By default nothing is asked.
   */
  readonly check?: ((session: Session) => Effect.Effect<unknown, unknown, RC | Scope.Scope>) | undefined
  /**
   * How long a session is idle before it is checked: by default 1 minute, and 0 for on every get. It may be a function
   * of the identity.
   */
  readonly checkAfter?: Duration.Input | ((identity: Identity) => Duration.Input) | undefined
  /** How long a check may take before it counts as failed: by default 5 seconds. */
  readonly checkTimeout?: Duration.Input | undefined
  /**
   * How long a failed connect answers further gets: by default 0, not at all. The simple form of `failureBackoff`, and
   * that says whose.
   */
  readonly failureTimeToLive?: Duration.Input | undefined
  /**
   * How long failed connects answer further gets, by how many there were in a row: each is told the last failure at
   * once, until the schedule's next delay is over. Then one get at a time is let through to try. The first success ends
   * it; when the schedule is over its last delay goes on. By default nothing is remembered, or for `failureTimeToLive`.
   *
   * It belongs to upstream and credentials. `Unauthorized`, `Forbidden` and `PreparationFailed` answer their own
   * identity, and newly presented credentials are a new try. `Unreachable`, `SessionClosed`, `RequestTimeout`,
   * `ConnectTimeout` and a status of 500 or more answer every identity of the upstream: a command that crashes is
   * started as often as the schedule says, and not once for each. After a success it takes two identities in a row, so
   * that one who fails alone holds up nobody. Any other error answers its own identity if that has credentials, else
   * all of the upstream that have none. An identity without an upstream is its own.
   *
   * At most `capacity` failures are remembered. Opens that have begun when the first of them fails run to their end.
   * Whoever comes later is told the failure at once; the callers of that open, when what it had acquired is free.
   */
  readonly failureBackoff?: Schedule.Schedule<unknown> | undefined
  /**
   * Runs beside the pool when that is built, with the pool in its context: `SessionPool.prewarm(identities)`, or a step
   * that installs what `connect` starts. Nobody waits for it, what it fails with is logged, and the end of the pool
   * interrupts it. By default nothing.
   */
  readonly prewarm?: Effect.Effect<unknown, unknown, RP> | undefined
}

/**
 * How {@link Service.prewarm} opens sessions.
 *
 * @category models
 */
export interface PrewarmOptions {
  /** How many opens there may be at once: an integer, by default 2. */
  readonly concurrency?: number | undefined
  /** How long each of them may take, in place of `connectTimeout`: by default 5 minutes. */
  readonly timeout?: Duration.Input | undefined
}

const schedule = Options.custom<Schedule.Schedule<unknown>, Schedule.Schedule<unknown>>({
  rule: "a Schedule",
  read: Option.liftPredicate((value): value is Schedule.Schedule<unknown> => Schedule.isSchedule(value))
})

const ofIdentity = Options.orTold<Identity>()

const anEffect = Options.custom<Effect.Effect<unknown, unknown, never>, Effect.Effect<unknown, unknown>>({
  rule: "an Effect",
  read: Option.liftPredicate((value): value is Effect.Effect<unknown, unknown> => Effect.isEffect(value))
})

/**
 * @internal
 */
export const declared = Options.declare<SessionPoolOptions<never, never, never>>()(
  { module: "SessionPool", variables: "MCP_POOL" },
  {
    connect: Options.required(Options.fn),
    capacity: Options.withDefault(Options.count, 10, { aliases: ["MCP_SESSION_MAX"] }),
    capacityPerUpstream: Options.optional(Options.orTold<string>()(Options.count)),
    idleTimeToLive: Options.withDefault(ofIdentity(Options.timeToLive), "5 minutes", {
      aliases: ["MCP_SESSION_TTL_MS"]
    }),
    maxLifetime: Options.withDefault(ofIdentity(Options.timeToLive), "Infinity", {
      aliases: ["MCP_SESSION_MAX_LIFETIME_MS"]
    }),
    leases: Options.withDefault(
      Options.schema(Schema.Literals(["shared", "exclusive"]), "\"shared\" or \"exclusive\""),
      "shared"
    ),
    connectTimeout: Options.withDefault(Options.timeout, "30 seconds", { aliases: ["MCP_SESSION_CONNECT_TIMEOUT_MS"] }),
    acquireTimeout: Options.withDefault(Options.patience, "30 seconds", {
      aliases: ["MCP_SESSION_ACQUIRE_TIMEOUT_MS"]
    }),
    closeTimeout: Options.withDefault(Options.timeout, "10 seconds", { aliases: ["MCP_SESSION_CLOSE_TIMEOUT_MS"] }),
    drainTimeout: Options.withDefault(Options.patience, 0, { aliases: ["MCP_SESSION_DRAIN_TIMEOUT_MS"] }),
    check: Options.optional(Options.fn),
    checkAfter: Options.withDefault(ofIdentity(Options.span), "1 minute", { aliases: ["MCP_SESSION_CHECK_AFTER_MS"] }),
    checkTimeout: Options.withDefault(Options.timeout, "5 seconds", { aliases: ["MCP_SESSION_CHECK_TIMEOUT_MS"] }),
    failureTimeToLive: Options.withDefault(Options.span, 0, { aliases: ["MCP_SESSION_FAILURE_TTL_MS"] }),
    failureBackoff: Options.optional(schedule),
    prewarm: Options.optional(anEffect)
  }
)

const declaredPrewarm = Options.declare<PrewarmOptions>()({ module: "SessionPool" }, {
  concurrency: Options.withDefault(Options.count, 2),
  timeout: Options.withDefault(Options.timeout, "5 minutes")
})

/**
 * Why a session was retired: `evicted` for another identity, `expired` in idleness, past its `lifetime`, `invalidated`
 * by the application, `died` or `unhealthy` by its connector or check, or `shutdown` of the pool.
 *
 * @category models
 */
export type RetireReason = "evicted" | "expired" | "lifetime" | "invalidated" | "died" | "unhealthy" | "shutdown"

/**
 * A snapshot of the pool's numbers. Counts of what happened only grow; the others are of this moment.
 *
 * @category models
 */
export interface SessionPoolStats {
  /** Sessions that can be had at once: leased and idle. */
  readonly size: number
  /** The option. */
  readonly capacity: number
  /** The option. Where that is a function, the longest of the leased and the idle, 0 if there are none. */
  readonly idleTimeToLive: Duration.Duration
  /** Sessions that somebody has a lease on. */
  readonly leased: number
  /** Sessions that nobody has a lease on, kept until `idleTimeToLive` has passed. */
  readonly idle: number
  /** Sessions that `connect` has been called for and not returned. */
  readonly opening: number
  /** Retired, and still leased, opening, or waiting for a place among the closing. */
  readonly draining: number
  /** Sessions whose finalizers run, until they end or `closeTimeout` has passed. */
  readonly closing: number
  /** Callers that wait, for room or for an exclusive session. */
  readonly waiting: number
  /** Sessions that connectors keep ready for identities to come, beyond `capacity`: see `McpConnector.stdio`. */
  readonly standby: number
  /** Gets that found a session, one being opened, or a failure that is remembered. */
  readonly hits: number
  /** Gets that found none of these. */
  readonly misses: number
  /** Sessions retired to make room for another identity. */
  readonly evictions: number
  /** Sessions retired because they were idle for too long. */
  readonly expirations: number
  /** Sessions retired for any other reason. */
  readonly retirements: number
  /** Opens that failed or took too long. */
  readonly failures: number
  /** Closes that failed or were given up. */
  readonly closeFailures: number
  /** Events that readers of `events` have lost because they were slow. */
  readonly eventsLost: number
  /** The keys of the leased and the idle, the least recently used first. */
  readonly keys: ReadonlyArray<SessionKey>
  /** The upstreams of which there is a session or a caller that waits: none without `capacityPerUpstream`. */
  readonly upstreams: ReadonlyArray<SessionPoolUpstream>
}

/**
 * What one upstream has of the pool, where there is a `capacityPerUpstream`.
 *
 * @category models
 */
export interface SessionPoolUpstream {
  /** Its name. */
  readonly upstream: string
  /** How many of its sessions there may be. */
  readonly capacity: number
  /** How many there are: opening, leased, idle or draining. */
  readonly sessions: number
  /** How many of them are idle. */
  readonly idle: number
  /** Callers that wait for room there. */
  readonly waiting: number
}

/**
 * A leased or idle session. Times are milliseconds since the epoch, by the wall clock as it is set when it is asked.
 *
 * @category models
 */
export interface SessionPoolEntry {
  /** Of its identity. */
  readonly key: SessionKey
  /** Whether its identity is the shared one. */
  readonly shared: boolean
  /** Whether somebody has a lease on it. */
  readonly state: "leased" | "idle"
  /** How many leases there are on it. */
  readonly leases: number
  /** How many leases it has had. */
  readonly uses: number
  /** When `connect` had returned it. */
  readonly openedAt: number
  /** When its last lease ended, or it was opened. */
  readonly lastUsedAt: number
  /** How long it is kept after that. */
  readonly idleTimeToLive: Duration.Duration
}

/**
 * What happened in the pool. An open that nobody waited for any more is no event. Each session is `Opened` once,
 * `Retired` once (before that if it was retired while opening), and at last `Closed` or `CloseFailed` once. A
 * `CloseFailed` after an `OpenFailed` is of an open that could not free what it had acquired.
 *
 * `took` is how long `connect` had, `lived` how long the session was open, `waited` how long its caller was in line.
 *
 * @category models
 */
export type SessionPoolEvent = Data.TaggedEnum<{
  readonly Opened: { readonly key: SessionKey; readonly took: Duration.Duration }
  readonly OpenFailed: { readonly key: SessionKey; readonly reason: "failed" | "timeout" }
  readonly Retired: { readonly key: SessionKey; readonly reason: RetireReason }
  readonly Closed: {
    readonly key: SessionKey
    readonly reason: RetireReason
    readonly lived: Duration.Duration
    readonly uses: number
  }
  readonly CloseFailed: { readonly key: SessionKey; readonly reason: "failed" | "timeout" }
  readonly Exhausted: { readonly key: SessionKey; readonly waited: Duration.Duration }
}>

/**
 * @category models
 */
export const SessionPoolEvent = Data.taggedEnum<SessionPoolEvent>()

// -----------------------------------------------------------------------------
// Service
// -----------------------------------------------------------------------------

/**
 * The operations of a pool, of sessions that `connect` may fail to open with `E`.
 *
 * @category models
 */
export interface Service<in out Session, in out E> {
  /**
   * The session of the identity, opened if there is none, leased until the current scope closes.
   *
   * Fails as `connect` fails; with `PoolExhausted` when there was no room for `acquireTimeout` (30 seconds by default),
   * `ConnectTimeout` when the open took longer than `connectTimeout` (30 seconds), `PoolClosed` when the pool is shut
   * down.
   */
  readonly get: (identity: Identity) => Effect.Effect<Session, E | SessionPoolError, Scope.Scope>
  /**
   * Runs `f` with the session of the identity, leased for as long as `f` runs. The fast path. Fails as `get` and `f`
   * do.
   *
   * If an MCP session that was in use before turns out to be forgotten by its server, and `f` fails with its
   * `SessionExpired`, `f` is run once more, from its start, with a fresh one: provided that nothing may have run of
   * what was sent within this lease, on whatever session, whatever other callers have sent meanwhile. A call is within
   * the lease if its fiber is that of `f` or was forked within. What is sent through `client`, from a runtime of its
   * own, or in a `request` that does not pass its options on, may be any caller's: it counts for each lease that the
   * session has at that time.
   */
  readonly withSession: <A, E2, R2>(
    identity: Identity,
    f: (session: Session) => Effect.Effect<A, E2, R2>
  ) => Effect.Effect<A, E | SessionPoolError | E2, R2>
  /**
   * Opens sessions ahead of their first callers, and counts the identities that have one then, or had one that was
   * being opened. Each open may take 5 minutes (`timeout`), whatever `connectTimeout` says; a caller who comes
   * meanwhile waits for it no longer than for any other. It takes free room alone: nobody is evicted for it, and nobody
   * waits. An open that no caller has joined is given up, and left out, when another would have to wait for its place.
   * What can't be opened is logged and left out. Dies with `InvalidOptions` for options that have no meaning.
   */
  readonly prewarm: (
    identities: Iterable<Identity>,
    options?: PrewarmOptions
  ) => Effect.Effect<number>
  /**
   * Retires the session of the identity, and forgets its failed connect. False if it had no session.
   */
  readonly invalidate: (identity: Identity) => Effect.Effect<boolean>
  /**
   * Retires the sessions whose identity `f` is true of, those being opened too, and counts them. Forgets such failed
   * connects. For a changed configuration or a user who was revoked.
   */
  readonly invalidateWhere: (f: (identity: Identity) => boolean) => Effect.Effect<number>
  /**
   * The pool's numbers, as they are now.
   */
  readonly stats: Effect.Effect<SessionPoolStats>
  /**
   * The leased and the idle sessions, the least recently used first. Of one moment, so nothing else runs meanwhile:
   * with 50,000 sessions that is a tenth of a second. For a look every few seconds there are `stats`.
   */
  readonly entries: Effect.Effect<ReadonlyArray<SessionPoolEntry>>
  /**
   * What happens from now on. A reader may be 1,024 events behind; then it loses the oldest, which `eventsLost` in the
   * stats counts, and slows nobody. Ends with the pool.
   */
  readonly events: Stream.Stream<SessionPoolEvent>
}

/**
 * A pool's tag: the operations of {@link Service} on the pool in context, and the layers that make one.
 *
 * @category models
 */
export interface TagClass<in out Self, in out Id extends string, in out Session, in out E>
  extends Context.ServiceClass<Self, Id, Service<Session, E>>
{
  /**
   * The session of the identity, opened if there is none, leased until the current scope closes.
   *
   * Fails as `connect` fails; with `PoolExhausted` when there was no room for `acquireTimeout` (30 seconds by default),
   * `ConnectTimeout` when the open took longer than `connectTimeout` (30 seconds), `PoolClosed` when the pool is shut
   * down.
   */
  readonly get: (identity: Identity) => Effect.Effect<Session, E | SessionPoolError, Scope.Scope | Self>
  /**
   * Runs `f` with the session of the identity, leased for as long as `f` runs. The fast path. Fails as `get` and `f`
   * do.
   *
   * If an MCP session that was in use before turns out to be forgotten by its server, and `f` fails with its
   * `SessionExpired`, `f` is run once more, from its start, with a fresh one: provided that nothing may have run of
   * what was sent within this lease, on whatever session, whatever other callers have sent meanwhile. A call is within
   * the lease if its fiber is that of `f` or was forked within. What is sent through `client`, from a runtime of its
   * own, or in a `request` that does not pass its options on, may be any caller's: it counts for each lease that the
   * session has at that time.
   */
  readonly withSession: <A, E2, R2>(
    identity: Identity,
    f: (session: Session) => Effect.Effect<A, E2, R2>
  ) => Effect.Effect<A, E | SessionPoolError | E2, R2 | Self>
  /**
   * Opens sessions ahead of their first callers, and counts the identities that have one then, or had one that was
   * being opened. Each open may take 5 minutes (`timeout`), whatever `connectTimeout` says; a caller who comes
   * meanwhile waits for it no longer than for any other. It takes free room alone: nobody is evicted for it, and nobody
   * waits. An open that no caller has joined is given up, and left out, when another would have to wait for its place.
   * What can't be opened is logged and left out. Dies with `InvalidOptions` for options that have no meaning.
   */
  readonly prewarm: (
    identities: Iterable<Identity>,
    options?: PrewarmOptions
  ) => Effect.Effect<number, never, Self>
  /**
   * Retires the session of the identity, and forgets its failed connect. False if it had no session.
   */
  readonly invalidate: (identity: Identity) => Effect.Effect<boolean, never, Self>
  /**
   * Retires the sessions whose identity `f` is true of, those being opened too, and counts them. Forgets such failed
   * connects. For a changed configuration or a user who was revoked.
   */
  readonly invalidateWhere: (f: (identity: Identity) => boolean) => Effect.Effect<number, never, Self>
  /**
   * The pool's numbers, as they are now.
   */
  readonly stats: Effect.Effect<SessionPoolStats, never, Self>
  /**
   * The leased and the idle sessions, the least recently used first.
   */
  readonly entries: Effect.Effect<ReadonlyArray<SessionPoolEntry>, never, Self>
  /**
   * What happens from now on. A reader may be 1,024 events behind; then it loses the oldest, which `eventsLost` in the
   * stats counts, and slows nobody. Ends with the pool.
   */
  readonly events: Stream.Stream<SessionPoolEvent, never, Self>
  /**
   * A pool that lives as long as the layer's scope. Building it fails with `InvalidOptions`, which names the option.
   * The end of the scope takes at most `drainTimeout` and twice `closeTimeout`, and never fails, whatever the sessions
   * do.
   */
  readonly layer: <R = never, RC = never, RP = never>(
    options: SessionPoolOptions<Session, E, R, RC, RP>
  ) => Layer.Layer<Self, InvalidOptions, Exclude<R | RC, Scope.Scope> | Exclude<Exclude<RP, Self>, Scope.Scope>>
  /**
   * A pool whose options come from the configuration, and from `options` where that is silent. The variables are named
   * after the options: `MCP_POOL_CAPACITY`, `MCP_POOL_IDLE_TIME_TO_LIVE`, …; README has the table. Durations are
   * written as `"5 minutes"`, and a plain number is milliseconds.
   *
   * An option may be a `Config` of your own, which is read in place of its variable; and so may all of them at once,
   * and then no variable of the library is read.
   *
   * Fails with `ConfigError` when a variable can't be read, and with `InvalidOptions` when what it says has no meaning.
   */
  readonly layerConfig: <R = never, RC = never, RP = never>(
    options: Configurable<SessionPoolOptions<Session, E, R, RC, RP>>
  ) => Layer.Layer<
    Self,
    InvalidOptions | Config.ConfigError,
    Exclude<R | RC, Scope.Scope> | Exclude<Exclude<RP, Self>, Scope.Scope>
  >
}

/**
 * Makes the tag of a pool of any type of session.
 *
 * **Example** (A pool of database connections)
 *
 * ```ts
 * class Connections extends SessionPool.Tag<Connections, Connection, SqlError>()("app/Connections") {}
 *
 * const layer = Connections.layer({ connect: (identity) => openConnection(identity.key) })
 * ```
 *
 * @category constructors
 */
export const Tag =
  <Self, Session, E = never>() => <const Id extends string>(id: Id): TagClass<Self, Id, Session, E> => {
    class Pool extends Context.Service<Self, Service<Session, E>>()(id) {
      static readonly get = (identity: Identity) =>
        Effect.withFiber<Session, E | SessionPoolError, Scope.Scope | Self>((fiber) => {
          const pool = Context.getUnsafe(fiber.context, Pool)
          const self = partsOf<Session, E>(pool.get)
          return self === undefined ? pool.get(identity) : getIn(self, fiber, identity)
        })
      static readonly withSession = <A, E2, R2>(
        identity: Identity,
        f: (session: Session) => Effect.Effect<A, E2, R2>
      ) =>
        Effect.withFiber<A, E | SessionPoolError | E2, R2 | Self>((fiber) => {
          const pool = Context.getUnsafe(fiber.context, Pool)
          const self = partsOf<Session, E>(pool.withSession)
          return self === undefined ? pool.withSession(identity, f) : withSessionIn(self, fiber, identity, f)
        })
      static readonly prewarm = (identities: Iterable<Identity>, options?: PrewarmOptions) =>
        Pool.use((pool) => pool.prewarm(identities, options))
      static readonly invalidate = (identity: Identity) => Pool.use((pool) => pool.invalidate(identity))
      static readonly invalidateWhere = (f: (identity: Identity) => boolean) =>
        Pool.use((pool) => pool.invalidateWhere(f))
      static readonly stats = Pool.use((pool) => pool.stats)
      static readonly entries = Pool.use((pool) => pool.entries)
      static readonly events = Stream.unwrap(Pool.useSync((pool) => pool.events))
      static readonly layer = <R = never, RC = never, RP = never>(
        options: SessionPoolOptions<Session, E, R, RC, RP>
      ) => Layer.effect(Pool, made(options, "layer"))
      static readonly layerConfig = <R = never, RC = never, RP = never>(
        options: Configurable<SessionPoolOptions<Session, E, R, RC, RP>>
      ) =>
        Layer.effect(
          Pool,
          Effect.flatMap(declared.configured(options), (configured) => made(configured, "layerConfig"))
        )
    }
    const made = <R, RC, RP>(options: SessionPoolOptions<Session, E, R, RC, RP>, method: "layer" | "layerConfig") =>
      make(id, options, method, (prewarm, service) => Effect.provideService(prewarm, Pool, service))
    return Pool
  }

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

// A pool's parts. The engine's state is its own, as is that of whoever waits, is checked or has failed.
interface Pool<Session, E> {
  readonly name: string
  readonly connecting: Connecting.Connecting
  readonly metrics: Metrics.Metrics<Identity, Session, E | SessionPoolError>
  readonly options: Effect.Success<ReturnType<typeof read>>
  readonly engine: Leased.Leased<Identity, Session, E | SessionPoolError>
  readonly waiting: Waiters.Waiting<Identity, Session, E | SessionPoolError>
  readonly checks: Checks.Checks<Identity, Session, E | SessionPoolError>
  readonly failures: Failures.Failures<E | SessionPoolError>
  /** Of whom something has failed that those who wait for room have not been asked about yet. */
  readonly failed: { readonly keys: Set<string>; readonly upstreams: Set<string> }
  /** What connectors keep ready. */
  readonly ahead: Ahead.Host
  /** Throws when a function among the options does, or answers with what has no meaning. */
  readonly terms: (identity: Identity) => Terms.Terms
  readonly observed: Observed
}

type Slot<Session, E> = Leased.Slot<Identity, Session, E | SessionPoolError>

type Upstream<Session, E> = Upstreams.Upstream<Slot<Session, E>>

type Caller<Session, E> = Waiters.Caller<Identity, Session, E | SessionPoolError>

type AnyFiber = Fiber.Fiber<unknown, unknown>

type Leasing<Session, E> = Effect.Effect<Session, E | SessionPoolError>

const make = Effect.fnUntraced(function*<Session, E, R, RC, RP, RO>(
  name: string,
  input: SessionPoolOptions<Session, E, R, RC, RP>,
  method: "layer" | "layerConfig",
  withPool: (
    prewarm: Effect.Effect<unknown, unknown, RP>,
    service: Service<Session, E>
  ) => Effect.Effect<unknown, unknown, RO>
) {
  const options = yield* read(input, method)
  const context = yield* Effect.context<RC>()
  const observed = yield* makeObserved
  const ahead = Ahead.makeHost()
  // Runs after the engine's own shutdown, which it goes along with.
  yield* Effect.addFinalizer(() => Ahead.awaitClosed(ahead))
  const metrics = yield* Metrics.make<Identity, Session, E | SessionPoolError>({
    labels: { pool: name },
    instruments,
    capacity: options.capacity,
    engine: () => engine,
    gauges: [[all.poolStandby, () => Ahead.ready(ahead)]],
    counts: [[all.poolHits, () => observed.counts.hits], [all.poolMisses, () => observed.counts.misses]],
    upstreamOf: ({ upstream }) => upstream
  })
  const engine: Pool<Session, E>["engine"] = yield* Leased.make<Identity, Session, E | SessionPoolError, R>({
    ...options,
    idleTimeToLive: constant(options.idleTimeToLive),
    maxLifetime: constant(options.maxLifetime),
    ...metrics.watch(hooks(() => self)),
    open: (slot) => self.connecting.run(slot, labels(self, slot), open(self, slot, input.connect))
  })
  const { check } = input
  const invalid = (option: string, issue: string) =>
    new InvalidOptions({ module: "SessionPool", method, option, issue })
  const self: Pool<Session, E> = {
    name,
    connecting: Connecting.make("SessionPool.connect"),
    metrics,
    options,
    engine,
    waiting: Waiters.make(engine, {
      newest: (known, comes) => Identity.newest(known, comes, engine.clock),
      makeRoom: (upstream) => makeRoom(self, upstream),
      refusal: (identity) => self.failures.recall(identity),
      upstreamOf: ({ upstream }) => Option.getOrUndefined(upstream),
      upstreams: limits(options.capacityPerUpstream, (issue) => invalid("capacityPerUpstream", issue)),
      isExclusive: options.leases === "exclusive"
    }),
    checks: Checks.make(engine, {
      ...options,
      check: check && ((session) => Effect.provideContext(Effect.scoped(check(session)), context))
    }),
    failures: Failures.make({
      time: engine.time,
      clock: engine.clock,
      start: (effect) => Leased.start(engine, effect),
      timeToLive: options.failureTimeToLive,
      backoff: options.failureBackoff,
      blame: blameOf,
      capacity: options.capacity,
      onFailure: (whom, which) => self.failed[whom].add(which)
    }),
    failed: { keys: new Set(), upstreams: new Set() },
    ahead,
    terms: Terms.make(options, invalid),
    observed
  }
  // Runs before the engine's own shutdown.
  yield* Effect.addFinalizer(() => Effect.sync(() => beginShutdown(self)))
  yield* Ahead.beginOf<R>(input.connect)?.(ahead) ?? Effect.void
  const service: Service<Session, E> = {
    get: withParts(self, (identity) => Effect.withFiber((fiber) => getIn(self, fiber, identity))),
    withSession: withParts(self, (identity, f) => Effect.withFiber((fiber) => withSessionIn(self, fiber, identity, f))),
    prewarm: (identities, given = {}) => prewarm(self, identities, given),
    invalidate: (identity) => Effect.sync(() => invalidate(self, identity)),
    invalidateWhere: (f) => Effect.sync(() => invalidateWhere(self, f)),
    entries: Effect.sync(() => entries(self)),
    stats: Effect.sync(() => stats(self)),
    events: observed.events.stream
  }
  if (input.prewarm !== undefined) {
    const prewarmed = Effect.scoped(withPool(input.prewarm, service)).pipe(
      Effect.catchCause((cause) => logUnlessInterrupted("The prewarm failed", cause)),
      Effect.annotateLogs({ pool: name })
    )
    yield* Effect.forkIn(prewarmed, ahead.scope)
  }
  return service
})

const limits = <S>(
  limit: Upstreams.Limit | undefined,
  invalid: (issue: string) => InvalidOptions
): Upstreams.Upstreams<S> | undefined =>
  limit === undefined ?
    undefined :
    Upstreams.make((name) => typeof limit === "number" ? limit : Result.getOrThrowWith(limit(name), invalid))

const upstreamOf = <Session, E>(
  { waiting: { upstreams } }: Pool<Session, E>,
  { upstream }: Identity
): Upstream<Session, E> | undefined =>
  upstreams === undefined || Option.isNone(upstream) ? undefined : Upstreams.get(upstreams, upstream.value)

// The two operations of a hit carry the parts of their pool, so that the tag's need no turn of the run loop to get at
// the service first. Whoever puts others in their place, a test or a tracer, is asked instead.
const Parts = Symbol("effect-mcp-sessions/SessionPool/parts")

const withParts = <F extends object, Session, E>(self: Pool<Session, E>, operation: F): F =>
  Object.assign(operation, { [Parts]: self })

const partsOf = <Session, E>(operation: object): Pool<Session, E> | undefined =>
  (operation as { readonly [Parts]?: Pool<Session, E> })[Parts]

const constant = <A>(value: number | A): number | undefined => typeof value === "number" ? value : undefined

// What the engine calls an open is a connect here.
const read = (input: unknown, method: "layer" | "layerConfig") =>
  Effect.map(
    Effect.fromResult(declared.parse(input, method)),
    ({ connectTimeout: openTimeout, ...options }) => ({ ...options, openTimeout })
  )

const open = <Session, E, R>(
  self: Pool<Session, E>,
  slot: Slot<Session, E>,
  connect: SessionPoolOptions<Session, E, R>["connect"]
): Effect.Effect<Session, E, R | Scope.Scope> => {
  const handle: SessionHandle & { readonly [Ahead.TypeId]: Ahead.Host } = {
    // Told by events: no text of others.
    retire: (reason) =>
      Effect.sync(() => void Leased.retire(self.engine, slot, reason === "unhealthy" ? "unhealthy" : "died")),
    credentials: Effect.sync(() => slot.info.credentials),
    [Ahead.TypeId]: self.ahead
  }
  const opened = connect(slot.info, handle)
  // Without types, an async function is an easy mistake: it would never resume the fiber.
  return Effect.isEffect(opened) ? opened : Effect.die(new TypeError("connect must return an Effect"))
}

const beginShutdown = <Session, E>(
  { ahead, checks, engine, options, waiting }: Pool<Session, E>
): void => {
  Leased.beginShutdown(engine)
  const { closeTimeout } = options
  Ahead.beginClose(ahead, { closeTimeout, start: (effect) => Leased.start(engine, effect) })
  checks.abandon()
  Waiting.close(waiting, () => new PoolClosed({}))
}

// -----------------------------------------------------------------------------
// Observing
// -----------------------------------------------------------------------------

interface Observed {
  readonly counts: Record<
    "hits" | "misses" | "evictions" | "expirations" | "retirements" | "failures" | "closeFailures",
    number
  >
  readonly events: Events.Events<SessionPoolEvent>
}

const instruments: Metrics.Instruments = {
  sessions: all.poolSessions,
  capacity: all.poolCapacity,
  retirements: all.poolRetirements,
  openFailures: all.poolOpenFailures,
  closeFailures: all.poolCloseFailures,
  opens: all.poolOpenDuration,
  uses: all.poolLeaseDuration,
  closes: all.poolCloseDuration,
  lives: all.clientSessionDuration,
  line: {
    leases: all.poolLeases,
    waits: all.poolWaits,
    waiting: all.poolWaiting,
    waitings: all.poolWaitDuration
  }
}

const makeObserved = Effect.map(Events.make<SessionPoolEvent>(), (events): Observed => ({
  counts: { hits: 0, misses: 0, evictions: 0, expirations: 0, retirements: 0, failures: 0, closeFailures: 0 },
  events
}))

// What becomes of a session, for those who look on, for the next get of its identity and for those who wait for room.
const hooks = <Session, E>(
  pool: () => Pool<Session, E>
): Omit<
  Leased.Options<Identity, Session, E | SessionPoolError, never>,
  keyof Pool<Session, E>["options"] | "open"
> => ({
  labels: (slot) => labels(pool(), slot),
  openTimedOut: (slot) => {
    const { connecting, options } = pool()
    connecting.fails(slot, "timeout")
    return new ConnectTimeout({ key: keyOf(slot), after: Duration.millis(options.openTimeout) })
  },
  shutDown: () => new PoolClosed({}),
  onAdmitted: (slot) => pool().failures.began(slot, slot.info),
  onOpened: (slot) => {
    const { failures, observed, waiting } = pool()
    failures.succeeded(slot)
    Seating.opened(waiting, slot)
    const took = Duration.millis(Math.floor(slot.openedAt - slot.since))
    observed.events.emit({ _tag: "Opened", key: keyOf(slot), took })
  },
  // Whoever comes while it is freed is told, and does not try as well. What was invalidated while it opened says
  // nothing of what a new open would meet.
  onFreeing: (slot, cause) => {
    const { engine, failures } = pool()
    if (slot.retired === undefined && !Leased.isShutDown(engine)) failures.failed(slot, cause)
  },
  onOpenFailed: (slot, cause) => {
    const { engine, observed, waiting } = pool()
    Waiting.failed(waiting, slot, cause)
    if (Leased.isShutDown(engine)) return
    observed.counts.failures++
    const timeout = Option.exists(Cause.findErrorOption(cause), (error) => error instanceof ConnectTimeout)
    observed.events.emit({ _tag: "OpenFailed", key: keyOf(slot), reason: timeout ? "timeout" : "failed" })
  },
  onRetired: (slot, reason) => {
    const { observed: { counts, events }, waiting } = pool()
    Waiting.retired(waiting, slot)
    if (reason === "evicted") counts.evictions++
    else if (reason === "expired") counts.expirations++
    else counts.retirements++
    events.emit({ _tag: "Retired", key: keyOf(slot), reason })
  },
  onClosed: (slot, lived) =>
    pool().observed.events.emit(
      { _tag: "Closed", key: keyOf(slot), reason: slot.retired!, lived, uses: slot.uses }
    ),
  onCloseFailed: (slot, reason) => {
    const { counts, events } = pool().observed
    counts.closeFailures++
    events.emit({ _tag: "CloseFailed", key: keyOf(slot), reason })
  },
  onLeft: (slot) => {
    const { failures, waiting } = pool()
    failures.ended(slot)
    if (slot.member !== undefined) Upstreams.forgetUnused(waiting.upstreams!, slot.member.upstream)
    Seating.left(waiting, slot)
  },
  onIdle: (slot) => Seating.changed(pool().waiting, slot),
  onRoom: () => {
    const { failed, waiting } = pool()
    if (failed.keys.size + failed.upstreams.size > 0) {
      Seating.refuse(waiting, failed)
      failed.keys.clear()
      failed.upstreams.clear()
    }
    Seating.seat(waiting)
  }
})

// What logs and spans of a session are annotated with.
const labels = <Session, E>({ name }: Pool<Session, E>, { info, key }: Slot<Session, E>): Connecting.Labels => ({
  pool: name,
  ...(Option.isSome(info.upstream) ? { upstream: info.upstream.value } : {}),
  key
})

const countHit = <Session, E>({ observed }: Pool<Session, E>, caller: Caller<Session, E>): void => {
  if (!caller.isCounted) observed.counts.hits++
  caller.isCounted = true
}

const countMiss = <Session, E>({ observed }: Pool<Session, E>, caller: Caller<Session, E>): void => {
  if (!caller.isCounted) observed.counts.misses++
  caller.isCounted = true
}

const stats = <Session, E>({ ahead, engine, observed, options, waiting }: Pool<Session, E>): SessionPoolStats => {
  Leased.expire(engine)
  const slots = Leased.inOrder(engine)
  return {
    ...observed.counts,
    ...Leased.census(engine),
    size: Leased.size(engine),
    capacity: options.capacity,
    idleTimeToLive: Duration.millis(
      constant(options.idleTimeToLive) ??
        slots.reduce((longest, { terms }) => Math.max(longest, terms.idleTimeToLive), 0)
    ),
    waiting: waiting.size,
    standby: Ahead.ready(ahead),
    eventsLost: observed.events.lost(),
    keys: slots.map(keyOf),
    upstreams: Array.from(waiting.upstreams?.byName.values() ?? [], (upstream) => ({
      upstream: upstream.name,
      capacity: upstream.limit,
      sessions: upstream.places,
      idle: upstream.idle.size,
      waiting: upstream.waiting
    }))
  }
}

const entries = <Session, E>({ engine }: Pool<Session, E>): ReadonlyArray<SessionPoolEntry> => {
  Leased.expire(engine)
  return Leased.inOrder(engine).map((slot) => ({
    key: keyOf(slot),
    shared: slot.info.shared,
    state: slot.leases > 0 ? "leased" : "idle",
    leases: slot.leases,
    uses: slot.uses,
    openedAt: engine.time.onWall(slot.openedAt),
    lastUsedAt: engine.time.onWall(slot.usedAt),
    idleTimeToLive: Duration.millis(slot.terms.idleTimeToLive)
  }))
}

// -----------------------------------------------------------------------------
// Leases
// -----------------------------------------------------------------------------

const acquire = <Session, E>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  identity: Identity
): Leasing<Session, E> => {
  const { connecting, engine, failures, waiting } = self
  if (Leased.isShutDown(engine)) return Effect.fail(new PoolClosed({}))
  const taken = Waiters.taken(waiting, identity.key)
  if (taken !== undefined) {
    taken.info = waiting.newest(taken.info, identity)
    const wanted = want(self, identity)
    countHit(self, caller)
    return wait(self, caller, wanted)
  }
  const slot = Leased.lease(engine, identity.key)
  if (slot !== undefined) {
    Waiters.hold(waiting, caller, slot)
    slot.info = waiting.newest(slot.info, identity)
    return leased(self, caller, slot, identity)
  }
  const failure = failures.recall(identity)
  if (failure !== undefined) {
    countHit(self, caller)
    return failure
  }
  countMiss(self, caller)
  const wanted = want(self, identity)
  const { upstream } = wanted
  const admitted = Leased.atomically(engine, () => {
    const hasRoom = Seating.isNext(waiting, upstream) && makeRoom(self, upstream) === undefined
    // Before the open, which may be over at once, and the upstream unused again
    if (upstream !== undefined) Upstreams.keep(waiting.upstreams!, upstream)
    if (!hasRoom) return undefined
    const opening = Leased.admit(engine, identity.key, identity, 1, wanted)
    Waiters.hold(waiting, caller, opening)
    connecting.join(opening)
    return opening
  })
  if (admitted !== undefined) return Leased.join(admitted)
  const seated = wait(self, caller, wanted)
  Seating.makeWay(waiting, wanted)
  return seated
}

// Asks the functions among the options, before anything is changed.
const want = <Session, E>(
  self: Pool<Session, E>,
  identity: Identity
): Waiters.Wanted<Identity, Session, E | SessionPoolError> => ({
  owner: identity,
  terms: self.terms(identity),
  upstream: upstreamOf(self, identity)
})

const joined = <Session, E>(self: Pool<Session, E>, slot: Slot<Session, E>): Leasing<Session, E> => {
  self.connecting.join(slot)
  const { openTimeout } = self.options
  if (slot.terms.openTimeout === undefined) return Leased.join(slot)
  // It is opened ahead, and takes its time: not that of a caller
  return Effect.timeoutOrElse(Leased.join(slot), {
    duration: openTimeout,
    orElse: () => Effect.fail(new ConnectTimeout({ key: keyOf(slot), after: Duration.millis(openTimeout) }))
  })
}

// The least recently used idle session gives up its place, unless as many are closing as there may be: any for the
// pool, one of its own for an upstream.
const makeRoom = <Session, E>(
  { engine }: Pool<Session, E>,
  upstream: Upstream<Session, E> | undefined
): Waiters.Full | undefined => {
  if (Leased.hasRoom(engine) && !Upstreams.isFull(upstream)) return undefined
  Leased.expire(engine)
  if (Upstreams.isFull(upstream)) return giveWay(engine, upstream!.idle.head?.session) ? undefined : "upstream"
  return Leased.hasRoom(engine) || giveWay(engine, Leased.oldestIdle(engine)) ? undefined : "pool"
}

const giveWay = <Session, E>(
  engine: Pool<Session, E>["engine"],
  slot: Slot<Session, E> | undefined
): boolean => slot !== undefined && Leased.canClose(engine) && Leased.retire(engine, slot, "evicted")

const wait = <Session, E>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  wanted: Waiters.Wanted<Identity, Session, E | SessionPoolError>
): Leasing<Session, E> => {
  const { acquireTimeout } = self.options
  const { owner, upstream } = wanted
  if (caller.waited >= acquireTimeout) {
    return exhausted(self, caller, owner, upstream, Waiters.fullNow(self.waiting, wanted))
  }
  self.connecting.ask(owner)
  return Effect.flatMap(
    self.metrics.wait(owner, Waiting.wait(self.waiting, caller, wanted, acquireTimeout)),
    (full) =>
      full === undefined ? leased(self, caller, caller.slot!, owner) : exhausted(self, caller, owner, upstream, full)
  )
}

const exhausted = <Session, E>(
  { observed, options, waiting }: Pool<Session, E>,
  { fiber }: Caller<Session, E>,
  { key }: Identity,
  upstream: Upstream<Session, E> | undefined,
  full: Waiters.Full | "turn"
): Effect.Effect<never, PoolExhausted> => {
  const waited = Duration.millis(options.acquireTimeout)
  if (upstream !== undefined) Upstreams.forgetUnused(waiting.upstreams!, upstream)
  observed.events.emit({ _tag: "Exhausted", key, waited })
  return Effect.fail(
    new PoolExhausted({
      limit: full === "turn" ? "leases" : full === "upstream" ? "capacityPerUpstream" : "capacity",
      capacity: full === "turn" ? 1 : full === "upstream" ? upstream!.limit : options.capacity,
      waited,
      held: Holders.heldBy(waiting.holders, fiber)
    })
  )
}

// A session that somebody else had must be checked all the same, if that is what it was had for.
const leased = <Session, E>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  slot: Slot<Session, E>,
  identity: Identity
): Leasing<Session, E> => {
  if (self.checks.isDue(slot, slot.leases)) {
    Waiters.arrive(self.waiting, caller)
    return checked(self, caller, slot, identity)
  }
  countHit(self, caller)
  return slot.session ?? joined(self, slot)
}

const checked = <Session, E>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  slot: Slot<Session, E>,
  identity: Identity
): Leasing<Session, E> =>
  Effect.flatMap(self.checks.passed(slot), (passed) => {
    if (passed) {
      countHit(self, caller)
      return Leased.join(slot)
    }
    return acquireAgain(self, caller, identity)
  })

// It is in line, at the time when it came, before its lease ends: the room that this makes may be its own.
const acquireAgain = <Session, E>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  identity: Identity
): Leasing<Session, E> =>
  Effect.suspend(() => {
    const { engine, waiting } = self
    const isFree = Waiters.isEmpty(waiting) || Leased.isShutDown(engine) ||
      Leased.find(engine, identity.key) !== undefined
    const wanted = isFree ? undefined : want(self, identity)
    const slot = Waiters.letGo(waiting, caller)
    if (wanted === undefined) {
      return Effect.andThen(
        Seating.giveBack(waiting, slot) ?? Effect.void,
        Effect.suspend(() => acquire(self, caller, identity))
      )
    }
    countMiss(self, caller)
    const seated = wait(self, caller, wanted)
    const freed = Seating.giveBack(waiting, slot)
    Seating.seat(waiting)
    return Effect.andThen(freed ?? Effect.void, seated)
  })

// Whether nothing has to be waited for, unless the session's idle time is over.
const isAtOnce = <Session, E>({ checks, engine, waiting }: Pool<Session, E>, { key }: Identity): boolean => {
  const slot = Leased.find(engine, key)
  return slot?.session !== undefined && !Leased.isShutDown(engine) && Waiters.taken(waiting, key) === undefined &&
    !checks.isDue(slot, slot.leases + 1)
}

// What `acquire` gives then. Otherwise nobody has a lease, or is in any line.
const acquireAtOnce = <Session, E>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  identity: Identity
): Exit.Success<Session, E | SessionPoolError> | undefined => {
  const slot = isAtOnce(self, identity) ? Leased.lease(self.engine, identity.key) : undefined
  if (slot === undefined) return undefined
  Waiters.hold(self.waiting, caller, slot)
  slot.info = self.waiting.newest(slot.info, identity)
  countHit(self, caller)
  return slot.session
}

// `withSession` takes the short way when the session is there: then what `acquire` answers is an exit, and nothing is
// awaited.
const isReady = <Session, E>(
  session: Leasing<Session, E>,
  caller: Caller<Session, E>
): session is Exit.Success<Session, E | SessionPoolError> => session === caller.slot?.session

const getIn = <Session, E>(
  self: Pool<Session, E>,
  fiber: AnyFiber,
  identity: Identity
): Effect.Effect<Session, E | SessionPoolError, Scope.Scope> => {
  const caller: Caller<Session, E> = Waiters.caller(fiber.id)
  const scope = Context.getUnsafe(fiber.context, Scope.Scope)
  // The scope may close while its caller waits: then whoever ends the wait ends the lease
  let isWaiting = false
  const endLease = () => isWaiting ? Effect.void : Waiting.end(self.waiting, caller) ?? Effect.void
  if (!isAtOnce(self, identity)) {
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        Effect.onError(restore(acquire(self, caller, identity)), endLease),
        (opened) => Effect.as(Scope.addFinalizerExit(scope, endLease), leasedIn(fiber, opened))
      )
    )
  }
  // The lease begins when nothing can come between it and its end.
  return Effect.flatMap(Scope.addFinalizerExit(scope, endLease), () => {
    const session = acquireAtOnce(self, caller, identity)
    if (session !== undefined) {
      leasedIn(fiber, session.value)
      // That of a closed scope has run already.
      return scope.state._tag === "Closed" ? Effect.as(endLease(), session.value) : session
    }
    // Somebody came between, or its idle time is over. From here on it waits within a guard: before this turn the scope
    // may have ended
    isWaiting = true
    const waited = Effect.onExit(Effect.suspend(() => acquire(self, caller, identity)), (exit) => {
      isWaiting = false
      return Exit.isFailure(exit) || scope.state._tag === "Closed" ? endLease() : Effect.void
    })
    return Effect.map(waited, (opened) => leasedIn(fiber, opened))
  })
}

const leasedIn = <Session>(fiber: AnyFiber, session: Session): Session => {
  const sent = Sent.of(session)
  const outer = sent && Context.get(fiber.context, Sent.CurrentLease)
  if (outer !== undefined) Sent.leasedWithin(outer, sent!)
  return session
}

// The guard comes first: between any two turns of the run loop the fiber may be interrupted.
const withSessionIn = <Session, E, A, E2, R2>(
  self: Pool<Session, E>,
  fiber: AnyFiber,
  identity: Identity,
  f: (session: Session) => Effect.Effect<A, E2, R2>
): Effect.Effect<A, E | SessionPoolError | E2, R2> => {
  const caller: Caller<Session, E> = Waiters.caller(fiber.id)
  const { context } = fiber
  return Effect.onExitPrimitive(
    Effect.suspend((): Effect.Effect<A, E | SessionPoolError | E2, R2> => {
      const session = acquire(self, caller, identity)
      return isReady(session, caller)
        ? use(self, caller, fiber, identity, session.value, f)
        : Effect.flatMap(inWithSession(session), (opened) => use(self, caller, fiber, identity, opened, f))
    }),
    () => {
      if (fiber.context !== context) fiber.setContext(context)
      return Waiting.end(self.waiting, caller)
    }
  )
}

// The callers of one open are told the same, whatever each of them has called.
const inWithSession = <Session, E>(session: Leasing<Session, E>): Leasing<Session, E> =>
  Effect.mapError(session, (error) => {
    const method = "withSession"
    if (error instanceof PoolClosed) return new PoolClosed({ method })
    if (error instanceof PoolExhausted) {
      const { capacity, held, limit, waited } = error
      return new PoolExhausted({ method, limit, capacity, waited, held })
    }
    return error instanceof ConnectTimeout ? new ConnectTimeout({ method, key: error.key, after: error.after }) : error
  })

// What is sent by `f` is counted for its lease: the fiber, and those that it forks, work within that.
const use = <Session, E, A, E2, R2>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  fiber: AnyFiber,
  identity: Identity,
  session: Session,
  f: (session: Session) => Effect.Effect<A, E2, R2>
): Effect.Effect<A, E | SessionPoolError | E2, R2> => {
  const sent = Sent.of(session)
  if (sent === undefined) return f(session)
  const outer = Context.get(fiber.context, Sent.CurrentLease)
  if (outer === undefined && !Sent.isAccounted(sent)) return f(session)
  const lease = enter(fiber, sent, outer)
  const isFresh = caller.slot!.uses === 1
  const used = f(session)
  if (isFresh || (Exit.isExit(used) && Exit.isSuccess(used))) return used
  return Effect.catchCause(used, (cause) => healed(self, caller, fiber, identity, cause, lease, f))
}

// In place of the lease that the fiber works within already if that is of the same caller.
const enter = (fiber: AnyFiber, sent: Sent.Sent, outer: Sent.Lease | undefined): Sent.Lease => {
  const lease = Sent.makeLease(sent, outer)
  fiber.setContext(Context.add(fiber.context, Sent.CurrentLease, lease))
  return lease
}

// A server that has forgotten a session refuses its requests unrun, and the client MUST open another one (2025-11-25,
// basic/transports#session-management). So `f` is run once more there, unless anything may have run that was sent
// within this lease. A fresh session that is forgotten at once would be forgotten again.
const healed = <Session, E, A, E2, R2>(
  self: Pool<Session, E>,
  caller: Caller<Session, E>,
  fiber: AnyFiber,
  identity: Identity,
  cause: Cause.Cause<E2>,
  lease: Sent.Lease,
  f: (session: Session) => Effect.Effect<A, E2, R2>
): Effect.Effect<A, E | SessionPoolError | E2, R2> =>
  Effect.catchIf(
    Effect.failCause(cause),
    (error) =>
      typeof error === "object" && error !== null && lease.sent.expirations?.has(error) === true &&
      !Sent.mayHaveRun(lease),
    () => {
      Leased.retire(self.engine, caller.slot!, "died")
      // As another get, with all of its time
      caller.waited = 0
      return Effect.flatMap(inWithSession(acquireAgain(self, caller, identity)), (session) => {
        const sent = Sent.of(session)
        if (sent !== undefined) enter(fiber, sent, lease.outer)
        return f(session)
      })
    }
  )

// -----------------------------------------------------------------------------
// Ahead of the callers
// -----------------------------------------------------------------------------

const prewarm = <Session, E>(
  self: Pool<Session, E>,
  identities: Iterable<Identity>,
  options: PrewarmOptions
): Effect.Effect<number> =>
  Effect.suspend(() => {
    const { concurrency, timeout } = Result.getOrThrow(declaredPrewarm.parse(options, "prewarm"))
    return Effect.map(
      Effect.forEach(identities, (identity) => warm(self, identity, timeout), { concurrency }),
      (found) => found.filter((isThere) => isThere).length
    )
  })

// An error may quote a secret: of its text nothing is told.
const logUnlessInterrupted = (message: string, cause: Cause.Cause<unknown>): Effect.Effect<void> =>
  Cause.hasInterrupts(cause) ? Effect.interrupt : Effect.logWarning(message, namesAndPlaces(cause))

// Whether the identity has a session then. Takes a place that is free, and no other, and gives it up to whoever waits.
const warm = <Session, E>(
  self: Pool<Session, E>,
  identity: Identity,
  openTimeout: number
): Effect.Effect<boolean> =>
  Effect.withFiber((fiber) => {
    const { connecting, engine, failures, waiting } = self
    const caller: Caller<Session, E> = Waiters.caller(fiber.id)
    const opened = Effect.suspend((): Effect.Effect<boolean, E | SessionPoolError> => {
      if (Leased.isShutDown(engine)) return Effect.succeed(false)
      Leased.expire(engine)
      if (Leased.find(engine, identity.key) !== undefined) return Effect.succeed(true)
      if (failures.recall(identity) !== undefined) return Effect.succeed(false)
      const wanted = want(self, identity)
      const { terms, upstream } = wanted
      const admitted = Leased.atomically(engine, () => {
        // Those who wait come first, and may take the room
        const hasRoom = Seating.isNext(waiting, upstream) && Leased.hasRoom(engine) && !Upstreams.isFull(upstream)
        if (upstream !== undefined) {
          // Before the open, which may be over at once, and the upstream unused again
          const settle = hasRoom ? Upstreams.keep : Upstreams.forgetUnused
          settle(waiting.upstreams!, upstream)
        }
        if (!hasRoom) return undefined
        const opening = Leased.admit(engine, identity.key, identity, 1, {
          ...wanted,
          terms: { ...terms, openTimeout }
        })
        Seating.openEarly(waiting, caller, opening)
        connecting.join(opening)
        return opening
      })
      if (admitted === undefined) return Effect.succeed(false)
      countMiss(self, caller)
      return Effect.catchCause(
        Effect.as(Leased.join(admitted), true),
        (cause) => caller.slot === undefined ? Effect.succeed(false) : Effect.failCause(cause)
      )
    })
    return Effect.onExit(opened, () => Waiting.end(waiting, caller) ?? Effect.void).pipe(
      Effect.catchCause((cause) =>
        Leased.isShutDown(engine)
          ? Effect.succeed(false)
          : Effect.as(logUnlessInterrupted("A session could not be opened ahead", cause), false)
      ),
      Effect.annotateLogs({ pool: self.name, key: identity.key })
    )
  })

// -----------------------------------------------------------------------------
// Retiring
// -----------------------------------------------------------------------------

const invalidate = <Session, E>({ engine, failures }: Pool<Session, E>, identity: Identity): boolean => {
  failures.forget(identity)
  const slot = Leased.find(engine, identity.key)
  return slot !== undefined && Leased.retire(engine, slot, "invalidated")
}

const invalidateWhere = <Session, E>(
  { engine, failures }: Pool<Session, E>,
  f: (identity: Identity) => boolean
): number => {
  const slots = Leased.taking(engine).filter((slot) => f(slot.info))
  failures.forgetWhere(f)
  return slots.filter((slot) => Leased.retire(engine, slot, "invalidated")).length
}

// -----------------------------------------------------------------------------
// Internals
// -----------------------------------------------------------------------------

// The engine knows keys as strings; here they all came from identities.
const keyOf = (slot: { readonly key: string }): SessionKey => slot.key as SessionKey

/**
 * The pool of MCP client sessions. For any other type of session make a tag with {@link Tag}.
 *
 * **Example** (A tool call on the caller's own session)
 *
 * ```ts
 * const program = Effect.gen(function*() {
 *   const identity = yield* IdentityResolver.resolve(request)
 *   return yield* SessionPool.withSession(identity, (session) => session.callTool({ name: "echo" }))
 * })
 * ```
 *
 * @category services
 */
export class SessionPool extends Tag<SessionPool, McpSession, McpSessionError>()("effect-mcp-sessions/SessionPool") {
  /** Makes the tag of a pool of any other type of session, or with other errors: see {@link Tag}. */
  static readonly Tag = Tag
}
