/**
 * What an operator reads of a close that failed. A message may quote a token, also one that the session had long ago:
 * so the log tells the names of errors and where they were thrown, and none of their text.
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { namesAndPlaces } from "../places.ts"

/**
 * @param cause of the failed close; none if it was given up after `closeTimeout` milliseconds
 */
export const write = (
  labels: Readonly<Record<string, string>>,
  cause: Option.Option<Cause.Cause<unknown>>,
  closeTimeout: number
): Effect.Effect<void> =>
  Effect.annotateLogs(
    Option.isSome(cause)
      ? Effect.logWarning("A session's finalizer failed", namesAndPlaces(cause.value))
      : Effect.logWarning(`A session took longer than ${closeTimeout} ms to close and was left to itself`),
    labels
  )
