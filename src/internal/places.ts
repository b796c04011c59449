/**
 * What an operator reads of a failure in code of others. A message may quote a token: so the log tells the names of
 * errors and where they were thrown, and none of their text.
 */
import * as Cause from "effect/Cause"

/** Of each reason the error's name, and its places below. */
export const namesAndPlaces = (cause: Cause.Cause<unknown>): string =>
  cause.reasons.map((reason) => {
    const error = Cause.isDieReason(reason) ? reason.defect : Cause.isFailReason(reason) ? reason.error : undefined
    return [nameOf(error) ?? reason._tag, ...placesOf(error)].join("\n")
  }).join("\n")

/** The tag or the name of an error, if it has one that looks like it. */
export const nameOf = (error: unknown): string | undefined => {
  if (typeof error !== "object" || error === null) return undefined
  const name = read(error, "_tag") ?? (isError(error) ? read(error, "name") : undefined)
  if (typeof name === "string" && isName.test(name)) return name
  return isError(error) ? "Error" : undefined
}

// A message that was changed after the stack was taken is still in it: only what looks like a place is kept.
const placesOf = (error: unknown): ReadonlyArray<string> => {
  if (typeof error !== "object" || error === null || !isError(error)) return []
  const message = read(error, "message")
  const stack = read(error, "stack")
  if (typeof stack !== "string") return []
  const start = typeof message === "string" ? stack.lastIndexOf(message) + message.length : 0
  return stack.slice(start).split("\n").filter((line) => place.test(line))
}

const place = /^ +at [^\n]*(?::\d+:\d+|<anonymous>|native)\)?$/

const isName = /^[\w$./@]{1,64}$/

// -----------------------------------------------------------------------------
// Anything may be thrown, a proxy and an error with getters of its own, too. Whoever tells of it must not fail of it.
// -----------------------------------------------------------------------------

/** Whether it holds; what throws when it is asked does not. */
export const holds = <A, B extends A>(is: (a: A) => a is B, value: A): value is B => {
  try {
    return is(value)
  } catch {
    return false
  }
}

const isError = (value: unknown): boolean => holds((u): u is Error => u instanceof Error, value)

const read = (value: object, property: string): unknown => {
  try {
    return (value as { readonly [property: string]: unknown })[property]
  } catch {
    return undefined
  }
}
