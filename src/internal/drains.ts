/**
 * What is still to be done when a node drains, as far as those know who do it.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Finalizers from "./finalizers.ts"

export interface Drains {
  /** Adds what may be busy, until the current scope closes. */
  readonly add: (isBusy: () => boolean) => Effect.Effect<void, never, Scope.Scope>
  /** Waits until nothing of it is, for so many milliseconds at most. */
  readonly wait: (millis: number) => Effect.Effect<void>
}

export const make = (): Drains => {
  const all = new Set<() => boolean>()
  const look = Effect.suspend(() => Array.from(all).some((isBusy) => isBusy()) ? Effect.fail("busy") : Effect.void)
  return {
    add: (isBusy) => Finalizers.hold(() => all.add(isBusy), () => all.delete(isBusy)),
    wait: (millis) =>
      look.pipe(Effect.retry({ schedule: Schedule.spaced(100) }), Effect.timeoutOption(millis), Effect.ignore)
  }
}
