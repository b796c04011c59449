/**
 * What an operator reads of a close that failed. A message may quote a token, also one that the session had long ago: so
 * the log tells the names of errors and where they were thrown, and none of their text.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

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
      ? Effect.logWarning("A session's finalizer failed", cause.value.reasons.map(withoutMessage).join("\n"))
      : Effect.logWarning(`A session took longer than ${closeTimeout} ms to close and was left to itself`),
    labels
  )

const withoutMessage = (reason: Cause.Reason<unknown>): string => {
  const error = Cause.isDieReason(reason) ? reason.defect : Cause.isFailReason(reason) ? reason.error : undefined
  if (!(error instanceof Error)) return reason._tag
  const { message, name, stack = "" } = error
  const places = stack.slice(stack.lastIndexOf(message) + message.length).split("\n").filter((line) => place.test(line))
  return [isName.test(name) ? name : "Error", ...places].join("\n")
}

// A message that was changed after the stack was taken is still in it: only what looks like a place is kept.
const place = /^ +at [^\n]*(?::\d+:\d+|<anonymous>|native)\)?$/

const isName = /^[\w$.]{1,64}$/
