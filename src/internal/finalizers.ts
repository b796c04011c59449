/**
 * Finalizers that need no services.
 *
 * `Effect.addFinalizer` and `Effect.acquireRelease` keep the services of their caller, and merge them with those that
 * are there when the scope closes: a copy of all of them, each time. What is done for each request must not cost that.
 */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"

/** Runs `finalizer` when the current scope closes. */
export const add = (finalizer: Effect.Effect<unknown>): Effect.Effect<void, never, Scope.Scope> =>
  Effect.flatMap(Effect.scope, (scope) => Scope.addFinalizer(scope, finalizer))

/** Calls `take`, and `giveBack` when the current scope closes. */
export const hold = (take: () => void, giveBack: () => void): Effect.Effect<void, never, Scope.Scope> =>
  Effect.uninterruptible(Effect.flatMap(Effect.scope, (scope) => {
    take()
    return Scope.addFinalizer(scope, Effect.sync(giveBack))
  }))
