/**
 * What connectors keep ahead of the sessions that a pool will ask them for. It belongs to the pool, is counted by it,
 * and ends with it.
 *
 *   pool ── when it is built ──▶ connect[TypeId](host)      begins at once
 *        ── with each open ────▶ handle[TypeId] is the host  begins at the latest then: `connect` may be a function of
 *                                                            the user's own, that calls a connector
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"

/** The property by which a connector is known that keeps something ahead, and a pool's handle that has room for it. */
export const TypeId = "~effect-mcp-sessions/ahead"

export interface Host {
  /** Closed when the pool begins to shut down. */
  readonly scope: Scope.Closeable
  /** Since that has begun: completed when all is closed, or given up. */
  closed: Deferred.Deferred<void> | undefined
  /** How many sessions each of those who keep some has ready. */
  readonly counts: Set<() => number>
}

export const makeHost = (): Host => ({ scope: Scope.makeUnsafe("parallel"), closed: undefined, counts: new Set() })

/** How many sessions are ready for an identity to come. */
export const ready = ({ counts }: Host): number => Array.from(counts).reduce((sum, count) => sum + count(), 0)

/** Begins to end what is kept ahead, which takes at most so many milliseconds. */
export const beginClose = (
  host: Host,
  { closeTimeout, start }: { readonly closeTimeout: number; readonly start: (effect: Effect.Effect<void>) => void }
): void => {
  const closed = host.closed = Deferred.makeUnsafe<void>()
  start(
    Effect.forkDetach(Scope.close(host.scope, Exit.void), { startImmediately: true }).pipe(
      Effect.flatMap((closing) => Effect.timeoutOption(Fiber.await(closing), closeTimeout)),
      Effect.ensuring(Deferred.done(closed, Exit.void)),
      Effect.asVoid
    )
  )
}

/** Waits for the end of what has begun to close. */
export const awaitClosed = (host: Host): Effect.Effect<void> =>
  Effect.suspend(() => host.closed === undefined ? Effect.void : Deferred.await(host.closed))

/** Begins to keep sessions ahead in a pool. */
export type Begin<R> = (host: Host) => Effect.Effect<void, never, R>

export const beginOf = <R>(connect: unknown): Begin<R> | undefined =>
  Predicate.hasProperty(connect, TypeId) ? connect[TypeId] as Begin<R> : undefined

export const hostOf = (handle: unknown): Host | undefined =>
  Predicate.hasProperty(handle, TypeId) ? handle[TypeId] as Host : undefined
