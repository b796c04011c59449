/**
 * A wall clock that can be set, beside a test clock that knows how much time has passed.
 */
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"

export interface Wall {
  /** Runs with this clock on the wall. */
  readonly on: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Sets it ahead, or back. No time passes. */
  readonly jump: (millis: number) => Effect.Effect<void>
  /** Lets time pass, also for what runs with this clock. */
  readonly adjust: (duration: Duration.Input) => Effect.Effect<void>
}

export const makeWall: Effect.Effect<Wall> = Effect.gen(function*() {
  const time = yield* Clock.Clock
  let ahead = 0
  const millis = () => time.currentTimeMillisUnsafe() + ahead
  const nanos = () => BigInt(millis()) * 1_000_000n
  const clock: Clock.Clock = {
    currentTimeMillisUnsafe: millis,
    currentTimeMillis: Effect.sync(millis),
    currentTimeNanosUnsafe: nanos,
    currentTimeNanos: Effect.sync(nanos),
    monotonicTimeNanosUnsafe: () => time.monotonicTimeNanosUnsafe(),
    monotonicTimeNanos: time.monotonicTimeNanos,
    sleep: (duration) => time.sleep(duration)
  }
  return {
    on: Effect.provideService(Clock.Clock, clock),
    jump: (by) => Effect.sync(() => void (ahead += by)),
    adjust: (duration) => Effect.provideService(TestClock.adjust(duration), Clock.Clock, time)
  }
})
