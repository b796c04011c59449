/**
 * What a node asks of others, each in a fiber of its own: whoever waits for it may leave at once, where to tell a node
 * that is dead takes longer, and a node that stops finishes what it has asked.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"

export interface Errands {
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<A, E>
  /** From the first time that this is said what runs has `patience` milliseconds. */
  readonly hurry: () => void
}

/** When the scope closes what runs is waited for, for the rest of its `patience`. What runs then is interrupted. */
export const make = Effect.fnUntraced(function*(
  patience: number,
  now: () => number
): Effect.fn.Return<Errands, never, Scope.Scope> {
  const scope = yield* Scope.make()
  const running = new Set<Fiber.Fiber<unknown, unknown>>()
  let until: number | undefined
  const hurry = () => {
    until ??= now() + patience
    return until
  }
  yield* Effect.addFinalizer((exit) =>
    Effect.suspend(() => Effect.timeoutOption(Fiber.awaitAll(running), Math.max(0, hurry() - now()))).pipe(
      Effect.andThen(Scope.close(scope, exit))
    )
  )
  return {
    run: (effect) =>
      Effect.withFiber((caller) =>
        Effect.callback((resume) => {
          const fiber = Fiber.runIn(Effect.runForkWith(caller.context)(effect), scope)
          running.add(fiber)
          fiber.addObserver((exit) => {
            running.delete(fiber)
            resume(exit)
          })
          return Effect.sync(() => {
            running.delete(fiber)
            fiber.interruptUnsafe()
          })
        })
      ),
    hurry
  }
})
