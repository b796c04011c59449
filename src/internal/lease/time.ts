/**
 * Two clocks: the monotonic one measures how long something takes and cannot be set; what the wall clock says is for
 * people, and jumps whenever somebody corrects it.
 */
import type * as Clock from "effect/Clock"

export interface Time {
  /** Milliseconds of the monotonic clock, since some moment of its own. One read of the clock. */
  readonly now: () => number
  /** The same moment in milliseconds since the epoch, by the wall clock as it is set now. */
  readonly onWall: (moment: number) => number
}

// What the two clocks may seem to drift apart only because they are read one after the other.
const tolerance = 10

export const make = (clock: Clock.Clock): Time => {
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
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
