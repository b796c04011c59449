/**
 * Asks sessions that were idle for a while whether they still work, before they are leased again: once for all callers
 * that come meanwhile, and in a fiber of the engine's owner, so that it may outlast those callers.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Leased from "./leased.ts"

export interface Checks<I, A, E> {
  /** Whether whoever has one of so many leases on this session, or is about to, must await its check. */
  readonly isDue: (slot: Leased.Slot<I, A, E>, leases: number) => boolean
  /** Whether the session works. If not, it is retired by then. */
  readonly passed: (slot: Leased.Slot<I, A, E>) => Effect.Effect<boolean>
  /** Interrupts all of them, and awaits none: they may not be interruptible. */
  readonly abandon: () => void
}

interface Check {
  readonly passed: Deferred.Deferred<boolean>
  fiber: Fiber.Fiber<unknown, unknown> | undefined
}

/**
 * Times are milliseconds.
 */
export const make = <I, A, E>(
  engine: Leased.Leased<I, A, E>,
  options: {
    readonly check: ((session: A) => Effect.Effect<unknown, unknown>) | undefined
    readonly checkTimeout: number
  }
): Checks<I, A, E> => {
  const { check, checkTimeout } = options
  const running = new Map<number, Check>()
  if (check === undefined) return { isDue: () => false, passed: () => Effect.succeed(true), abandon: () => undefined }

  // The check has a lease of its own: nothing closes the session under it.
  const start = (slot: Leased.Slot<I, A, E>): Check => {
    const started: Check = { passed: Deferred.makeUnsafe(), fiber: undefined }
    running.set(slot.id, started)
    Leased.retain(slot)
    Leased.start(
      engine,
      Effect.gen(function*() {
        const session = slot.session!.value
        started.fiber = yield* Effect.forkDetach(Effect.suspend(() => check(session)), { startImmediately: true })
        const exit = yield* Effect.timeoutOption(Fiber.await(started.fiber), checkTimeout)
        started.fiber.interruptUnsafe()
        // Retired meanwhile, it is not for those who have yet to get it.
        const passed = Option.exists(exit, Exit.isSuccess) && slot.retired === undefined
        running.delete(slot.id)
        // In one step: those who have come for it are told before its end makes room for others
        Leased.atomically(engine, () => {
          if (!passed && !Leased.isShutDown(engine)) Leased.retire(engine, slot, "unhealthy")
          Leased.release(engine, slot)
          Deferred.doneUnsafe(started.passed, Exit.succeed(passed))
        })
      })
    )
    return started
  }

  return {
    isDue: (slot, leases) =>
      running.has(slot.id) ||
      (slot.phase === "open" && leases === 1 &&
        engine.time.now() - slot.usedAt >= slot.terms.checkAfter),
    passed: (slot) => Deferred.await((running.get(slot.id) ?? start(slot)).passed),
    abandon: () => {
      for (const { fiber, passed } of running.values()) {
        fiber?.interruptUnsafe()
        Deferred.doneUnsafe(passed, Exit.succeed(false))
      }
    }
  }
}
