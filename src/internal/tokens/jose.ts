/**
 * `jose`, which verifies signatures and claims. It is loaded by the layer that asks for it, so that nobody else has to
 * install it.
 */
import * as Effect from "effect/Effect"
import type * as Module from "jose"

/** What this library uses of it. */
export type Jose = Pick<
  typeof Module,
  "createLocalJWKSet" | "decodeJwt" | "decodeProtectedHeader" | "errors" | "jwtVerify"
>

/** Dies when it is not installed: nobody who starts the server could do anything else about it. */
export const load = (jose: () => Promise<Jose>): Effect.Effect<Jose> =>
  Effect.catch(
    Effect.tryPromise(jose),
    (error) =>
      Effect.die(
        new Error("IdentityResolver.layerJwt verifies with jose, which can't be loaded: npm install jose@6", {
          cause: error.cause
        })
      )
  )
