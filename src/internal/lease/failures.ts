/**
 * Failed opens that answer further callers for a while: they are told the last failure at once. After a delay one of
 * them is let through to try again, and the others are told the failure for as long as that takes.
 *
 * What a failure says decides whom it answers:
 *
 *   of the caller     its key, until it presents other credentials. So is every failure without an upstream
 *   of the upstream   all of its callers: a command that crashes does so for each of them
 *   of nobody         nobody: somebody was asked for something, and may have given it by now
 *   unknown           the key that has presented credentials, as they may be why; else all who present none
 *
 * An upstream that has opened a session for somebody is not judged by one caller who fails there, however often: two
 * must fail in a row. So whoever is wrong in a way of his own holds up nobody else.
 */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type { Identity } from "../../Identity.ts"
import type * as Time from "../time.ts"

export type Blame = "caller" | "upstream" | "unknown" | "nobody"

export interface Failures<E> {
  /** The failure that answers this caller now. */
  readonly recall: (caller: Identity) => Exit.Exit<never, E> | undefined
  /** A try begins. Its name may be any object, and comes back once with `ended`. */
  readonly began: (attempt: object, caller: Identity) => void
  readonly succeeded: (attempt: object) => void
  readonly failed: (attempt: object, cause: Cause.Cause<E>) => void
  /** The try is over, or was given up by its callers. */
  readonly ended: (attempt: object) => void
  readonly forget: (caller: Identity) => void
  readonly forgetWhere: (f: (caller: Identity) => boolean) => void
}

export interface Options {
  readonly time: Time.Time
  readonly clock: Clock.Clock
  /** Starts a fiber. */
  readonly start: (effect: Effect.Effect<void>) => void
  /** How long one failure answers, in milliseconds. */
  readonly timeToLive: number
  /** The same by how many there were in a row. One that is over goes on with its last delay. */
  readonly backoff: Schedule.Schedule<unknown> | undefined
  readonly blame: (error: unknown) => Blame
  /** How many failures are kept: the newest. */
  readonly capacity: number
  /** A failure has come that may answer callers who wait for room: of this key, or all at this upstream. */
  readonly onFailure: (whom: "keys" | "upstreams", name: string) => void
}

interface Failure<E> {
  /** Whose open it was, with the credentials that this began with. */
  owner: Identity
  exit: Exit.Exit<never, E>
  /** Until then it answers: a moment. */
  until: number
  /** The schedule was asked when so many tries had begun: what had begun by then is part of the same failure. */
  askedAt: number
  /** Of the schedule: the delay after one more failure. */
  delay: ((cause: Cause.Cause<E>) => Effect.Effect<number>) | undefined
  /** The try that was let through. */
  probe: object | undefined
}

interface Attempt<E> {
  readonly caller: Identity
  readonly number: number
  readonly probed: ReadonlyArray<Failure<E>>
}

export const make = <E>(options: Options): Failures<E> =>
  options.timeToLive > 0 || options.backoff !== undefined ? remembering<E>(options) : forgetful()

const forgetful = <E>(): Failures<E> => ({
  recall: () => undefined,
  began: () => {},
  succeeded: () => {},
  failed: () => {},
  ended: () => {},
  forget: () => {},
  forgetWhere: () => {}
})

const remembering = <E>(options: Options): Failures<E> => {
  const { backoff, blame, capacity, clock, onFailure, start, time, timeToLive } = options
  /** Of one key. */
  const own = new Map<string, Failure<E>>()
  /** Of an upstream, for all of its callers or for those without credentials. */
  const shared = new Map<string, Failure<E>>()
  /** Upstreams that have opened a session, and the key of the only one who has failed there since. */
  const proven = new Map<string, string | undefined>()
  const attempts = new Map<object, Attempt<E>>()
  let begun = 0

  // What may answer this caller.
  const about = (caller: Identity): ReadonlyArray<Failure<E>> => {
    if (own.size + shared.size === 0) return []
    const found: Array<Failure<E>> = []
    const add = (failure: Failure<E> | undefined) => failure !== undefined && found.push(failure)
    if (Option.isSome(caller.upstream)) {
      add(shared.get(ofAll(caller.upstream.value)))
      if (Option.isNone(caller.credentials)) add(shared.get(ofAnonymous(caller.upstream.value)))
    }
    const failure = own.get(caller.key)
    if (failure !== undefined && !presentsOthers(caller, failure.owner)) add(failure)
    return found
  }

  // Where a failure of this caller is kept.
  const place = (caller: Identity, blamed: Blame): [kept: Map<string, Failure<E>>, key: string] => {
    if (blamed === "caller" || Option.isNone(caller.upstream)) return [own, caller.key]
    const upstream = caller.upstream.value
    if (blamed === "unknown") {
      return Option.isSome(caller.credentials) ? [own, caller.key] : [shared, ofAnonymous(upstream)]
    }
    if (proven.has(upstream)) {
      const suspect = proven.get(upstream)
      if (suspect === undefined || suspect === caller.key) {
        proven.set(upstream, caller.key)
        return [own, caller.key]
      }
      proven.delete(upstream)
    }
    return [shared, ofAll(upstream)]
  }

  const remember = (
    kept: Map<string, Failure<E>>,
    key: string,
    { caller, number }: Attempt<E>,
    cause: Cause.Cause<E>
  ): void => {
    const exit = Exit.failCause(cause)
    const known = kept.get(key)
    const goesOn = known !== undefined && !(kept === own && presentsOthers(caller, known.owner))
    const failure: Failure<E> = goesOn
      ? Object.assign(known, { owner: caller, exit })
      : { owner: caller, exit, until: 0, askedAt: 0, delay: undefined, probe: undefined }
    kept.delete(key)
    kept.set(key, failure)
    if (own.size + shared.size > capacity) dropOldest(kept)
    // Several that had begun together are one failure
    if (number <= failure.askedAt) return
    failure.askedAt = begun
    if (backoff === undefined) {
      failure.until = time.now() + timeToLive
      return
    }
    failure.until = Infinity
    start(Effect.gen(function*() {
      failure.delay ??= yield* delays<E>(backoff, clock)
      failure.until = time.now() + (yield* failure.delay(cause))
    }))
  }

  // One of the callers', rather than of an upstream, which answers many.
  const dropOldest = (newest: Map<string, Failure<E>>): void => {
    const from = own.size > (newest === own ? 1 : 0) ? own : shared
    from.delete(from.keys().next().value!)
  }

  const prove = (upstream: string): void => {
    proven.delete(upstream)
    proven.set(upstream, undefined)
    if (proven.size > capacity) proven.delete(proven.keys().next().value!)
  }

  const ended = (name: object): void => {
    const attempt = attempts.get(name)
    if (attempt === undefined) return
    attempts.delete(name)
    for (const failure of attempt.probed) failure.probe = undefined
  }

  return {
    recall: (caller) => {
      const now = time.now()
      return about(caller).find(({ probe, until }) => probe !== undefined || now < until)?.exit
    },
    began: (name, caller) => {
      const probed = about(caller)
      for (const failure of probed) failure.probe = name
      attempts.set(name, { caller, number: ++begun, probed })
    },
    succeeded: (name) => {
      const attempt = attempts.get(name)
      if (attempt === undefined) return
      const { caller } = attempt
      own.delete(caller.key)
      if (Option.isSome(caller.upstream)) {
        const upstream = caller.upstream.value
        shared.delete(ofAll(upstream))
        shared.delete(ofAnonymous(upstream))
        prove(upstream)
      }
      ended(name)
    },
    failed: (name, cause) => {
      const attempt = attempts.get(name)
      if (attempt === undefined) return
      const blamed = blame(Cause.squash(cause))
      if (blamed === "nobody") return
      const [kept, key] = place(attempt.caller, blamed)
      remember(kept, key, attempt, cause)
      const { upstream } = attempt.caller
      if (kept === own || Option.isNone(upstream)) onFailure("keys", key)
      else onFailure("upstreams", upstream.value)
    },
    ended,
    forget: ({ key }) => forgetWhere((caller) => caller.key === key),
    forgetWhere
  }

  function forgetWhere(f: (caller: Identity) => boolean): void {
    for (const kept of [own, shared]) {
      for (const [key, { owner }] of Array.from(kept)) {
        if (f(owner)) kept.delete(key)
      }
    }
  }
}

const ofAll = (upstream: string): string => `all ${upstream}`

const ofAnonymous = (upstream: string): string => `anonymous ${upstream}`

// What has failed with some credentials, or with none, says nothing of others. Who presents none presents no others.
const presentsOthers = (caller: Identity, failed: Identity): boolean =>
  Option.isSome(caller.credentials) && (
    Option.isNone(failed.credentials) ||
    Redacted.value(caller.credentials.value.header) !== Redacted.value(failed.credentials.value.header)
  )

/**
 * The delays of a schedule in milliseconds, one a failure. When the schedule is over, or fails, its last one goes on:
 * an upstream is never given up.
 */
const delays = <E>(
  schedule: Schedule.Schedule<unknown>,
  clock: Clock.Clock
): Effect.Effect<(cause: Cause.Cause<E>) => Effect.Effect<number>> =>
  Effect.map(Schedule.toStep(schedule), (step) => {
    let last = 0
    return (cause) =>
      Effect.suspend(() => step(clock.currentTimeMillisUnsafe(), Cause.squash(cause))).pipe(
        Effect.exit,
        Effect.map((exit) => {
          if (Exit.isSuccess(exit)) last = Math.max(0, Duration.toMillis(exit.value[1]))
          return last
        })
      )
  })
