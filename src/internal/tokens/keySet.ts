/**
 * The keys of an issuer: fetched when they are first needed, kept, and fetched again before they are old, or when a
 * token names one that is not there.
 *
 *   age  0 ────── refreshAfter ─────────── maxAge ─────────────── trustFor
 *        as they are  │ fetched behind callers │ callers wait for it │ nobody's
 *
 * One fetch is under way at most, for everybody who waits for it, and the next begins `cooldown` after its end at the
 * earliest: whoever makes up names of keys makes no flood of fetches. When a fetch has failed, nobody waits for the
 * next one who has the key: known keys go on while their server is down, for as long as `trustFor`.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { IdentityUnavailable } from "../../Identity.ts"
import type { ServerFailed } from "./server.ts"
import * as Server from "./server.ts"

const refreshAfter = Duration.toMillis("5 minutes")
const maxAge = Duration.toMillis("10 minutes")
const trustFor = Duration.toMillis("1 day")
const cooldown = Duration.toMillis("10 seconds")

export interface KeySet<in out Keys> {
  /** The keys to verify with. */
  readonly current: Effect.Effect<Keys, IdentityUnavailable>
  /** The keys after these, in which one was not found; none if it is too early to ask for others. */
  readonly after: (keys: Keys) => Effect.Effect<Option.Option<Keys>, IdentityUnavailable>
}

/** Those that are given, and never fetched. */
export const fixed = <Keys>(keys: Keys): KeySet<Keys> => ({
  current: Effect.succeed(keys),
  after: () => Effect.succeedNone
})

// A clock that is set back must not keep anything for longer
const since = (at: number, now: number) => Math.abs(now - at)

/** Those that `fetch` gets, from within the scope. */
export const make = Effect.fnUntraced(function*<Keys>(fetch: Effect.Effect<Keys, ServerFailed>) {
  const scope = yield* Scope.Scope
  let known: { readonly keys: Keys; readonly at: number } | undefined
  let pending: Deferred.Deferred<void> | undefined
  /** When the last fetch ended, and how. */
  let triedAt = -Infinity
  let failure: ServerFailed | undefined

  const settle = (exit: Exit.Exit<Keys, ServerFailed>, at: number) => {
    const waiting = pending!
    pending = undefined
    triedAt = at
    if (Exit.isSuccess(exit)) {
      known = { keys: exit.value, at }
      failure = undefined
    } else {
      failure = Option.getOrElse(
        Exit.findErrorOption(exit),
        () => new Server.ServerFailed({ issue: "the resolver has ended" })
      )
    }
    Deferred.doneUnsafe(waiting, Exit.void)
  }

  /** The fetch that is under way, or one that begins. It goes on when whoever began it does not. */
  const start = Clock.clockWith((clock) => {
    if (pending !== undefined) return Effect.succeed(pending)
    const begun = pending = Deferred.makeUnsafe<void>()
    return fetch.pipe(
      Effect.tapError(({ issue }) =>
        Effect.logWarning(`IdentityResolver: the keys of the issuer could not be fetched: ${issue}`)
      ),
      Effect.forkIn(scope, { startImmediately: true }),
      Effect.map((fiber) => {
        // Not by an effect of the fiber: one that is begun in a scope that has ended runs none of them
        fiber.addObserver((exit) => settle(exit, clock.currentTimeMillisUnsafe()))
        return begun
      })
    )
  }).pipe(Effect.uninterruptible)

  const refreshed = Effect.flatMap(start, Deferred.await)

  const failed = (now: number) =>
    Effect.fail(Server.unavailable(failure, cooldown - Math.min(since(triedAt, now), cooldown)))

  const isCooling = (now: number) => pending === undefined && since(triedAt, now) < cooldown

  const current = Clock.clockWith((clock): Effect.Effect<Keys, IdentityUnavailable> => {
    const now = clock.currentTimeMillisUnsafe()
    if (known === undefined || since(known.at, now) >= trustFor) {
      if (isCooling(now)) return failed(now)
      return Effect.flatMap(refreshed, () => failure === undefined ? Effect.succeed(known!.keys) : failed(triedAt))
    }
    if (since(known.at, now) < refreshAfter || isCooling(now)) return Effect.succeed(known.keys)
    return since(known.at, now) < maxAge || failure !== undefined
      ? Effect.map(start, () => known!.keys)
      : Effect.map(refreshed, () => known!.keys)
  })

  const after = (keys: Keys) =>
    Clock.clockWith((clock): Effect.Effect<Option.Option<Keys>, IdentityUnavailable> => {
      const now = clock.currentTimeMillisUnsafe()
      if (known !== undefined && known.keys !== keys) return Effect.succeedSome(known.keys)
      if (isCooling(now)) return failure === undefined ? Effect.succeedNone : failed(now)
      return Effect.flatMap(refreshed, () => failure === undefined ? Effect.succeedSome(known!.keys) : failed(triedAt))
    })

  return { current, after } satisfies KeySet<Keys>
})
