/**
 * A world without real time, real concurrency or real chance: a scheduler that runs the tasks of all fibers in an order
 * drawn from a seed, and a clock that moves when it is told to, and whose wall can be made to jump. A run is
 * synchronous, and the same seed is the same run.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import type * as Scheduler from "effect/Scheduler"

export interface Dice {
  /** From 0 up to, not including, 1. */
  readonly next: () => number
  /** An integer from 0 up to, not including, n. */
  readonly below: (n: number) => number
  readonly chance: (p: number) => boolean
  readonly pick: <A>(options: ReadonlyArray<A>) => A
  readonly reseed: (seed: number) => void
}

/** Mulberry32: the same seed, the same throws. */
export const makeDice = (seed: number): Dice => {
  let state = seed >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  const below = (n: number) => Math.floor(next() * n)
  return {
    next,
    below,
    chance: (p) => next() < p,
    pick: (options) => options[below(options.length)]!,
    reseed: (value) => {
      state = value >>> 0
    }
  }
}

/** Thrown at whoever runs the world, when an invariant is broken. */
export class Broken extends Error {}

export interface World {
  /** Milliseconds of the monotonic clock. */
  readonly now: () => number
  /** Milliseconds of the wall clock. */
  readonly wall: () => number
  /** Sets the wall clock ahead, or back. */
  readonly jump: (millis: number) => void
  readonly fork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Runs at most so many tasks, in an order of the dice. */
  readonly run: (tasks: number) => void
  /** Moves the clock, running what falls due on the way. */
  readonly advance: (millis: number) => void
  readonly timers: () => number
  /** Whether nothing can run before the clock moves. */
  readonly isQuiet: () => boolean
  /** The fibers that have begun and not ended. */
  readonly alive: () => ReadonlyArray<Fiber.Fiber<unknown, unknown>>
}

/** More tasks than any program has without the clock moving: they start one another for ever. */
const tooMany = 200_000

interface Timer {
  readonly at: number
  readonly resume: (effect: Effect.Effect<void>) => void
}

const nanos = (millis: number) => BigInt(Math.floor(millis * 1e6))

/**
 * @param opsBeforeYield how many operations a fiber runs before it lets others: a small number puts a suspension, and
 *   so an interruption, at almost any point
 */
export const makeWorld = (dice: Dice, opsBeforeYield: number): World => {
  const tasks: Array<() => void> = []
  const fibers = new Set<Fiber.Fiber<unknown, unknown>>()
  const timers: Array<Timer> = []
  const drop = (timer: Timer): void => {
    const index = timers.indexOf(timer)
    if (index !== -1) timers.splice(index, 1)
  }
  let now = 1_000
  let ahead = 1_700_000_000_000

  // Asked at each operation of a fiber, of many in a row
  let last: Fiber.Fiber<unknown, unknown> | undefined
  const scheduler: Scheduler.Scheduler = {
    executionMode: "async",
    shouldYield: (fiber) => {
      if (fiber !== last) {
        fibers.add(fiber)
        last = fiber
      }
      return fiber.currentOpCount >= opsBeforeYield
    },
    makeDispatcher: () => ({
      scheduleTask: (task) => void tasks.push(task),
      flush: () => undefined
    })
  }

  const sleep = (duration: Duration.Duration): Effect.Effect<void> =>
    Effect.callback((resume) => {
      const timer: Timer = { at: now + Duration.toMillis(duration), resume }
      timers.push(timer)
      return Effect.sync(() => drop(timer))
    })

  const wall = () => now + ahead
  const clock: Clock.Clock = {
    currentTimeMillisUnsafe: wall,
    currentTimeMillis: Effect.sync(wall),
    currentTimeNanosUnsafe: () => nanos(wall()),
    currentTimeNanos: Effect.sync(() => nanos(wall())),
    monotonicTimeNanosUnsafe: () => nanos(now),
    monotonicTimeNanos: Effect.sync(() => nanos(now)),
    sleep
  }

  // Dice of its own: how often the library asks changes nothing for the program.
  const luck = makeDice(dice.below(2 ** 32))
  const random: (typeof Random.Random)["Service"] = {
    nextIntUnsafe: () => luck.below(Number.MAX_SAFE_INTEGER),
    nextDoubleUnsafe: luck.next
  }

  const provided = Context.make(Clock.Clock, clock).pipe(Context.add(Random.Random, random))

  const run = (limit: number): void => {
    for (let i = 0; i < limit && tasks.length > 0; i++) {
      const [task] = tasks.splice(dice.below(tasks.length), 1)
      task!()
      if (i === tooMany) throw new Broken("6: the world never comes to rest")
    }
  }

  return {
    now: () => now,
    wall,
    jump: (millis) => {
      ahead += millis
    },
    fork: (effect) => Effect.runFork(Effect.provide(effect, provided), { scheduler }),
    run,
    advance: (millis) => {
      // No time passes while something could run: what a fiber waits for is time, not its turn.
      run(Infinity)
      const end = now + millis
      while (true) {
        let due: Timer | undefined
        // They are in the order in which they began
        for (const timer of timers) if (timer.at <= end && (due === undefined || timer.at < due.at)) due = timer
        if (due === undefined) break
        drop(due)
        now = Math.max(now, due.at)
        due.resume(Effect.void)
        run(Infinity)
      }
      now = end
      run(Infinity)
    },
    timers: () => timers.length,
    isQuiet: () => tasks.length === 0,
    alive: () => Array.from(fibers).filter((fiber) => fiber.pollUnsafe() === undefined)
  }
}
