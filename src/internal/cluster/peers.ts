/**
 * Packages that only some clusters need. Each is loaded by the layer that asks for it, so that nobody else has to
 * install it.
 */
import * as Effect from "effect/Effect"

/** Dies when one is not installed: nobody who starts the node could do anything else about it. */
export const load = <A>(what: string, install: string, module: () => Promise<A>): Effect.Effect<A> =>
  Effect.catch(
    Effect.tryPromise(module),
    (error) =>
      Effect.die(
        new Error(`ClusterNode ${what}, which can't be loaded: npm install ${install}`, { cause: error.cause })
      )
  )
