/**
 * What an operator reads of a failure in code of others. A message may quote a token: so the log tells the names of
 * errors and where they were thrown, and none of their text.
 */
import * as Cause from "effect/Cause"
import * as Predicate from "effect/Predicate"

/** Of each reason the error's name, and its places below. */
export const namesAndPlaces = (cause: Cause.Cause<unknown>): string =>
  cause.reasons.map((reason) => {
    const error = Cause.isDieReason(reason) ? reason.defect : Cause.isFailReason(reason) ? reason.error : undefined
    return [nameOf(error) ?? reason._tag, ...placesOf(error)].join("\n")
  }).join("\n")

/** The tag or the name of an error, if it has one that looks like it. */
export const nameOf = (error: unknown): string | undefined => {
  const name = Predicate.hasProperty(error, "_tag") ? error._tag : error instanceof Error ? error.name : undefined
  if (typeof name === "string" && isName.test(name)) return name
  return error instanceof Error ? "Error" : undefined
}

// A message that was changed after the stack was taken is still in it: only what looks like a place is kept.
const placesOf = (error: unknown): ReadonlyArray<string> => {
  if (!(error instanceof Error)) return []
  const { message, stack = "" } = error
  return stack.slice(stack.lastIndexOf(message) + message.length).split("\n").filter((line) => place.test(line))
}

const place = /^ +at [^\n]*(?::\d+:\d+|<anonymous>|native)\)?$/

const isName = /^[\w$./@]{1,64}$/
