/**
 * Idle sessions that are kept equally long, the one that has been idle for longest first: so whoever asks for the
 * expired looks at these and one more.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Linked from "./linked.ts"
import type * as Time from "./time.ts"

export interface Node<S> extends Linked.Node<S> {
  /** Since when it is idle: a moment. */
  readonly usedAt: number
}

export interface Idle<S extends Node<S>> extends Linked.Linked<S> {
  /** Milliseconds. */
  readonly timeToLive: number
  /** Open while there is one whose expiry somebody must await. */
  readonly any: Latch.Latch
}

export const make = <S extends Node<S>>(timeToLive: number): Idle<S> => ({
  ...Linked.make<S>(),
  timeToLive,
  any: Latch.makeUnsafe(false)
})

export const append = <S extends Node<S>>(self: Idle<S>, session: S): void => {
  Linked.append(self, session)
  if (self.size === 1) self.any.openUnsafe()
}

export const hasExpired = <S extends Node<S>>(self: Idle<S>, session: S, now: number): boolean =>
  now - session.usedAt > self.timeToLive

/** The first, if it has expired. */
export const expired = <S extends Node<S>>(self: Idle<S>, now: number): S | undefined =>
  self.head !== undefined && hasExpired(self, self.head, now) ? self.head : undefined

/** Waits until the first may have expired. */
export const due = <S extends Node<S>>(self: Idle<S>, time: Time.Time): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (self.head === undefined) {
      self.any.closeUnsafe()
      return self.any.await
    }
    // Expired means older than the time to live, and the clock counts in milliseconds.
    return Effect.sleep(Math.floor(self.head.usedAt + self.timeToLive) + 1 - time.now())
  })
