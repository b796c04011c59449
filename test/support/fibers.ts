/**
 * What the tests of the pool and of the registry have in common: callers in fibers of their own, and layers that end
 * with their test.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"

/** A caller in a fiber of its own, which runs until it has to wait for something. */
export const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** Time stands still, and whoever can run does. */
export const settle = Effect.andThen(
  Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow),
  TestClock.adjust(0)
)

/** `success`, the tag of the error that a caller has failed with, `waiting` of one that waits. */
export const outcome = <A, E extends { readonly _tag: string }>(fiber: Fiber.Fiber<A, E>): string => {
  const exit = fiber.pollUnsafe()
  if (exit === undefined) return "waiting"
  return Exit.match(exit, {
    onSuccess: () => "success",
    onFailure: (cause) => {
      const reason = cause.reasons[0]
      return reason?._tag === "Fail" ? reason.error._tag : reason?._tag ?? "Empty"
    }
  })
}

/** A layer with a scope of its own, closed by `close`, or at the end of the test. */
export const build = Effect.fnUntraced(function*<A, E>(layer: Layer.Layer<A, E>) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(layer, scope)
  const close = Scope.close(scope, Exit.void)
  // What hangs is given up in time, but time must pass for that. In a fiber of its own, which can be interrupted: where
  // nothing can, the test clock waits a real second for whoever it wakes.
  const end = Effect.gen(function*() {
    const closing = yield* Effect.forkDetach(close, { startImmediately: true })
    while (closing.pollUnsafe() === undefined) yield* TestClock.adjust("1 minute")
    yield* Fiber.join(closing)
  })
  yield* Effect.addFinalizer(() => Effect.flatMap(Effect.forkDetach(Effect.interruptible(end)), Fiber.join))
  return { context, close }
})

/** Builds the layer for nothing but its error. */
export const refused = <A, E>(layer: Layer.Layer<A, E>): Effect.Effect<E | "accepted"> =>
  Effect.scoped(Layer.build(layer)).pipe(
    Effect.match({ onFailure: (error) => error, onSuccess: () => "accepted" as const })
  )
