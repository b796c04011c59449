/**
 * Failed opens that answer further callers for a while.
 */
import type * as Exit from "effect/Exit"
import type * as Time from "./time.ts"

export interface Failures<I extends { readonly key: string }, E> {
  readonly remember: (owner: I, exit: Exit.Exit<never, E>) => void
  readonly recall: (owner: I) => Exit.Exit<never, E> | undefined
  readonly forget: (owner: I) => void
  readonly forgetWhere: (f: (owner: I) => boolean) => void
}

/**
 * Keeps at most `capacity` failures, the newest, each for `timeToLive` milliseconds.
 */
export const make = <I extends { readonly key: string }, E>(options: {
  readonly time: Time.Time
  readonly timeToLive: number
  readonly capacity: number
}): Failures<I, E> => {
  const { capacity, time, timeToLive } = options
  const failures = new Map<string, { readonly owner: I; readonly exit: Exit.Exit<never, E>; readonly until: number }>()
  return {
    remember: (owner, exit) => {
      if (timeToLive <= 0) return
      failures.delete(owner.key)
      failures.set(owner.key, { owner, exit, until: time.now() + timeToLive })
      if (failures.size > capacity) failures.delete(failures.keys().next().value!)
    },
    recall: (owner) => {
      const failure = failures.get(owner.key)
      if (failure === undefined || time.now() < failure.until) return failure?.exit
      failures.delete(owner.key)
      return undefined
    },
    forget: ({ key }) => void failures.delete(key),
    forgetWhere: (f) => {
      for (const { owner } of Array.from(failures.values())) {
        if (f(owner)) failures.delete(owner.key)
      }
    }
  }
}
