/**
 * A pool of the sessions of `upstream.ts`.
 */
import {
  type Identity,
  type InvalidOptions,
  SessionPool,
  type SessionPoolError,
  SessionPoolEvent,
  type SessionPoolOptions
} from "effect-mcp-sessions"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { build, refused, settle } from "./fibers.ts"
import { makeUpstream, Refused, type TestSession, type UpstreamOptions } from "./upstream.ts"

export class Pool extends SessionPool.Tag<Pool, TestSession, Refused>()("test/Pool") {}

export type PoolOptions = SessionPoolOptions<TestSession, Refused, Scope.Scope>

export type GetError = Refused | SessionPoolError

export type PoolService = Context.Service.Shape<typeof Pool>

export interface OpenPool extends PoolService {
  /** Closes the scope of the pool's layer. */
  readonly close: Effect.Effect<void>
}

/** A pool with a scope of its own, closed at the end of the test if the test did not. */
export const openPool = Effect.fnUntraced(function*(options: PoolOptions) {
  const { close, context } = yield* build(Pool.layer(options))
  return { ...Context.get(context, Pool), close } satisfies OpenPool as OpenPool
})

/** A pool and its other side: the usual start of a test. */
export const start = Effect.fnUntraced(function*(
  options: Omit<PoolOptions, "connect"> & { readonly upstream?: UpstreamOptions | undefined } = {}
) {
  const { upstream: behaviour, ...rest } = options
  const upstream = makeUpstream(behaviour)
  return { pool: yield* openPool({ ...rest, connect: upstream.connect }), upstream }
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
  refused(Pool.layer(options as PoolOptions))

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
