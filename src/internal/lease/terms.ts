/**
 * How long one session is kept: agreed on before it is opened, and not changed. One object for all of them where they
 * do not differ.
 */
import * as Result from "effect/Result"

/** Milliseconds. */
export interface Terms {
  readonly idleTimeToLive: number
  readonly maxLifetime: number
  readonly checkAfter: number
  /** How long this open may take, where that is not what the engine's options say. */
  readonly openTimeout?: number | undefined
}

type Told = "idleTimeToLive" | "maxLifetime" | "checkAfter"

/** The same for all, or a function that tells it of each: what it answers, or why that has no meaning. */
export type PerOwner<I> = number | ((owner: I) => Result.Result<number, string>)

/**
 * Tells the terms of an owner's session. Throws what `invalid` makes of an answer that has no meaning: whoever asks
 * does so before anything is changed.
 */
export const make = <I>(
  options: { readonly [K in Told]: PerOwner<I> },
  invalid: (option: Told, issue: string) => unknown
): (owner: I) => Terms => {
  const { checkAfter, idleTimeToLive, maxLifetime } = options
  if (typeof checkAfter === "number" && typeof idleTimeToLive === "number" && typeof maxLifetime === "number") {
    const terms: Terms = { idleTimeToLive, maxLifetime, checkAfter }
    return () => terms
  }
  const ask = (option: Told, owner: I): number => {
    const value = options[option]
    return typeof value === "number" ? value : Result.getOrThrowWith(value(owner), (issue) => invalid(option, issue))
  }
  return (owner) => ({
    idleTimeToLive: ask("idleTimeToLive", owner),
    maxLifetime: ask("maxLifetime", owner),
    checkAfter: ask("checkAfter", owner)
  })
}
