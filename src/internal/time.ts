/**
 * Two clocks: the monotonic one measures how long something takes and cannot be set; what the wall clock says is for
 * people, and jumps whenever somebody corrects it.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import { hrtime } from "node:process"

export interface Time {
  /** See {@link monotonic}. One read of the clock. */
  readonly now: () => number
  /** The same moment in milliseconds since the epoch, by the wall clock as it is set now. */
  readonly onWall: (moment: number) => number
}

// What the two clocks may seem to drift apart only because they are read one after the other.
const tolerance = 10

// What `Effect` reads where nobody has put another clock in its place. It is the machine's monotonic clock, too, and
// costs half without the `bigint`.
const live = Context.get(Context.empty(), Clock.Clock)

/** Whether it is the machine's own, and nobody has put another one in its place. */
export const isLive = (clock: Clock.Clock): boolean => clock === live

/** Milliseconds of the monotonic clock, since some moment of its own. */
export const monotonic = (clock: Clock.Clock): () => number =>
  isLive(clock) ? uptime : () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

// For less than `performance.now`, whose two calls would be a quarter of a hit
const uptime = (): number => {
  const [seconds, nanos] = hrtime()
  return seconds * 1e3 + nanos / 1e6
}

export const make = (clock: Clock.Clock): Time => {
  const now = monotonic(clock)
  const measure = () => clock.currentTimeMillisUnsafe() - now()
  // Kept while it is right, so that one moment is always shown as the same.
  let offset = measure()
  return {
    now,
    onWall: (moment) => {
      const measured = measure()
      if (Math.abs(measured - offset) > tolerance) offset = measured
      return Math.round(moment + offset)
    }
  }
}
