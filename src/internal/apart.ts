/**
 * What others have written may ignore that it is interrupted, and end late or never. Whoever gives it up does not have
 * to wait for it.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"

/** Runs an effect in a fiber of its own, with {@link join}. */
export const run = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.contextWith((services: Context.Context<R>) => restore(join(Effect.runForkWith(services)(effect))))
  )

/** What a fiber ends with. It is interrupted with whoever waits here, who does not wait for that. */
export const join = <A, E>(fiber: Fiber.Fiber<A, E>): Effect.Effect<A, E> =>
  Effect.onInterrupt(Fiber.join(fiber), () => Effect.sync(() => fiber.interruptUnsafe()))
