/**
 * A pool of sessions that do nothing but say when they were opened and closed.
 */
import {
  Identity,
  type InvalidOptions,
  type SessionHandle,
  SessionPool,
  type SessionPoolError,
  SessionPoolEvent,
  type SessionPoolOptions
} from "effect-mcp-sessions"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"

/** What a connect of these tests fails with. */
export class Refused extends Data.TaggedError("Refused")<{ readonly why: string }> {}

export interface TestSession {
  /** Its key and which of that key's sessions it is: `a1`, `a2`, `b1`. */
  readonly name: string
  readonly identity: Identity
  readonly handle: SessionHandle
  isOpen: boolean
}

export class Pool extends SessionPool.Tag<Pool, TestSession, Refused>()("test/Pool") {}

export type PoolOptions = SessionPoolOptions<TestSession, Refused, Scope.Scope>

export type GetError = Refused | SessionPoolError

export const a = Identity.fromKey("a")
export const b = Identity.fromKey("b")
export const c = Identity.fromKey("c")
export const d = Identity.fromKey("d")

/** `n` identities: `k0`, `k1`, … */
export const identities = (n: number, prefix = "k"): ReadonlyArray<Identity> =>
  Array.from({ length: n }, (_, i) => Identity.fromKey(`${prefix}${i}`))

// -----------------------------------------------------------------------------
// The other side
// -----------------------------------------------------------------------------

export interface UpstreamOptions {
  /** Runs before anything is acquired. */
  readonly dial?: ((session: TestSession) => Effect.Effect<unknown, Refused, Scope.Scope>) | undefined
  /** Runs when the session is acquired, and before `connect` returns it. */
  readonly handshake?: ((session: TestSession) => Effect.Effect<unknown, Refused, Scope.Scope>) | undefined
  /** Runs in the session's finalizer. */
  readonly hangUp?: ((session: TestSession) => Effect.Effect<unknown>) | undefined
}

export interface Upstream {
  /** How often `connect` was called. */
  connects: number
  /** The names of the acquired, and of the closed (when their finalizer began), in order. */
  readonly opened: Array<string>
  readonly closed: Array<string>
  /** Those whose finalizer ran to its end. */
  readonly gone: Array<string>
  readonly sessions: Array<TestSession>
  /** Calls of `connect` that have not ended, and sessions that are acquired and not in their finalizer. */
  readonly live: () => number
  /** The largest `live` there was. */
  peak: number
  /** The largest number of finalizers that were running at once. */
  peakClosing: number
  readonly connect: PoolOptions["connect"]
}

const nothing = () => Effect.void

export const makeUpstream = (options: UpstreamOptions = {}): Upstream => {
  const incarnations = new Map<string, number>()
  let connecting = 0
  let acquired = 0
  let closing = 0
  const { dial = nothing, handshake = nothing, hangUp = nothing } = options
  const upstream: Upstream = {
    connects: 0,
    opened: [],
    closed: [],
    gone: [],
    sessions: [],
    live: () => connecting + acquired,
    peak: 0,
    peakClosing: 0,
    connect: (identity, handle) =>
      Effect.suspend(() => {
        upstream.connects++
        connecting++
        upstream.peak = Math.max(upstream.peak, upstream.live())
        let isConnecting = true
        const connected = () => {
          if (isConnecting) connecting--
          isConnecting = false
        }
        const n = (incarnations.get(identity.key) ?? 0) + 1
        incarnations.set(identity.key, n)
        const session: TestSession = { name: `${identity.key}${n}`, identity, handle, isOpen: false }
        const open = Effect.sync(() => {
          connected()
          acquired++
          session.isOpen = true
          upstream.sessions.push(session)
          upstream.opened.push(session.name)
        })
        const close = Effect.suspend(() => {
          acquired--
          closing++
          upstream.peakClosing = Math.max(upstream.peakClosing, closing)
          session.isOpen = false
          upstream.closed.push(session.name)
          return Effect.ensuring(
            Effect.andThen(
              Effect.suspend(() => hangUp(session)),
              Effect.sync(() => upstream.gone.push(session.name))
            ),
            Effect.sync(() => {
              closing--
            })
          )
        })
        return Effect.suspend(() => dial(session)).pipe(
          Effect.andThen(Effect.acquireRelease(open, () => close)),
          Effect.andThen(Effect.suspend(() => handshake(session))),
          Effect.as(session),
          Effect.ensuring(Effect.sync(connected))
        )
      })
  }
  return upstream
}

/** An upstream whose first `n` connects of an identity are refused. */
export const refuseFirst = (n: number): NonNullable<UpstreamOptions["dial"]> => (session) =>
  Number(session.name.slice(session.identity.key.length)) <= n
    ? Effect.fail(new Refused({ why: session.name }))
    : Effect.void

// -----------------------------------------------------------------------------
// Pools
// -----------------------------------------------------------------------------

export type PoolService = Context.Service.Shape<typeof Pool>

export interface OpenPool extends PoolService {
  /** Closes the scope of the pool's layer. */
  readonly close: Effect.Effect<void>
}

/** A pool with a scope of its own, closed at the end of the test if the test did not. */
export const openPool = Effect.fnUntraced(function*(options: PoolOptions) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(Pool.layer(options), scope)
  const close = Scope.close(scope, Exit.void)
  // What hangs is given up in time, but time must pass for that. In a fiber of its own, which can be interrupted: where
  // nothing can, the test clock waits a real second for whoever it wakes.
  const end = Effect.gen(function*() {
    const closing = yield* Effect.forkDetach(close, { startImmediately: true })
    while (closing.pollUnsafe() === undefined) yield* TestClock.adjust("1 minute")
    yield* Fiber.join(closing)
  })
  yield* Effect.addFinalizer(() => Effect.flatMap(Effect.forkDetach(Effect.interruptible(end)), Fiber.join))
  return { ...Context.get(context, Pool), close } satisfies OpenPool as OpenPool
})

/** A pool whose sessions know the pool. */
export const openWith = Effect.fnUntraced(function*(
  make: (self: Effect.Effect<OpenPool>) => UpstreamOptions & { readonly check?: PoolOptions["check"] },
  options: Partial<PoolOptions> = {}
) {
  const self = yield* Deferred.make<OpenPool>()
  const { check, ...upstreamOptions } = make(Deferred.await(self))
  const upstream = makeUpstream(upstreamOptions)
  const pool = yield* openPool({ connect: upstream.connect, check, ...options })
  yield* Deferred.succeed(self, pool)
  return { pool, upstream }
})

/** Builds the layer for nothing but its error. */
export const refusal = (options: unknown): Effect.Effect<InvalidOptions | "accepted"> =>
  Effect.scoped(Layer.build(Pool.layer(options as PoolOptions))).pipe(
    Effect.match({ onFailure: (error) => error, onSuccess: () => "accepted" as const })
  )

export interface Lease {
  readonly session: TestSession
  readonly release: Effect.Effect<void>
}

/** A lease until it is released. */
export const lease = Effect.fnUntraced(function*(pool: PoolService, identity: Identity) {
  const scope = yield* Scope.make()
  const session = yield* Scope.provide(pool.get(identity), scope)
  return { session, release: Scope.close(scope, Exit.void) } satisfies Lease as Lease
})

/** A call that takes a while, and fails as a real one would when its session is closed under it. */
export const call = (session: TestSession): Effect.Effect<string, Refused> =>
  Effect.flatMap(
    Effect.sleep(1_000),
    () => session.isOpen ? Effect.succeed("ok") : Effect.fail(new Refused({ why: "Connection closed" }))
  )

/** The session, with the lease ended already. */
export const visit = (pool: PoolService, identity: Identity): Effect.Effect<TestSession, GetError> =>
  Effect.scoped(pool.get(identity))

/** A caller in a fiber of its own, which runs until it has to wait for something. */
export const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** Time stands still, and whoever can run does. */
export const settle = Effect.andThen(
  Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow),
  TestClock.adjust(0)
)

/** The error tag of a caller that has failed, `waiting` of one that waits. */
export const outcome = <A, E extends { readonly _tag: string }>(fiber: Fiber.Fiber<A, E>): string => {
  const exit = fiber.pollUnsafe()
  if (exit === undefined) return "waiting"
  return Exit.match(exit, {
    onSuccess: () => "success",
    onFailure: (cause) => {
      const reason = cause.reasons[0]
      return reason?._tag === "Fail" ? reason.error._tag : reason?._tag ?? "Empty"
    }
  })
}

/** What the pool says from now on, a line an event. */
export const record = Effect.fnUntraced(function*(pool: PoolService) {
  const lines: Array<string> = []
  const reader = yield* Effect.forkScoped(
    Stream.runForEach(pool.events, (event) => Effect.sync(() => lines.push(line(event)))),
    { startImmediately: true }
  )
  yield* settle
  return { lines, reader }
})

export const line = SessionPoolEvent.$match({
  Opened: ({ key }) => `Opened ${key}`,
  OpenFailed: ({ key, reason }) => `OpenFailed ${key}: ${reason}`,
  Retired: ({ key, reason }) => `Retired ${key}: ${reason}`,
  Closed: ({ key, reason }) => `Closed ${key}: ${reason}`,
  CloseFailed: ({ key, reason }) => `CloseFailed ${key}: ${reason}`,
  Exhausted: ({ key }) => `Exhausted ${key}`
})
