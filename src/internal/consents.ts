/**
 * The consents that callers have been asked for and have not given yet, by the `state` that the authorization server
 * will send back (RFC 6749 section 4.1.1), which is a secret, and by an id that is none.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Redacted from "effect/Redacted"
import type { Identity } from "../Identity.ts"
import * as Time from "./time.ts"

/** What the authorization server sends back with somebody who has consented. */
export interface Answer {
  readonly code: string
  /** RFC 9207: who sends it. */
  readonly iss: string | undefined
}

export interface Pending {
  readonly id: string
  readonly state: string
  /** Where its tokens will be. */
  readonly store: object
  /** Whose it is, at which upstream. */
  readonly key: string
  readonly identity: Identity
  readonly url: Redacted.Redacted
  /** The scopes that are asked for. */
  readonly scope: string | undefined
  /** When it is too late, by the monotonic clock. */
  readonly until: number
  /** Fails for what somebody else sends: it says nothing of this consent, not even that there is none. */
  readonly check: (iss: Answer["iss"]) => Effect.Effect<void, unknown>
  readonly redeem: (answer: Answer) => Effect.Effect<void, unknown>
  /** Whether there are tokens now. */
  readonly done: Deferred.Deferred<boolean>
}

export interface Consents {
  readonly add: (pending: Pending) => Effect.Effect<void>
  /** The one that is being waited for already. */
  readonly ofKey: (store: object, key: string) => Effect.Effect<Pending | undefined>
  readonly ofId: (id: string) => Effect.Effect<Pending | undefined>
  readonly ofState: (state: string) => Effect.Effect<Pending | undefined>
  /**
   * Its answer has come: there is no other, and false if there was one. Whoever asks for the same meanwhile still finds
   * it.
   */
  readonly claim: (pending: Pending) => boolean
}

/** Of the monotonic clock: see {@link Pending}. */
export const moment: Effect.Effect<number> = Clock.clockWith((clock) => Effect.sync(Time.monotonic(clock)))

const maxPending = 10_000

/** Also those that are over: whoever asks again and again, or declines so, takes nobody else's place. */
const maxPerKey = 4

const make = (): Consents => {
  const byId = new Map<string, Pending>()
  const byState = new Map<string, Pending>()
  const byStore = new WeakMap<object, Map<string, ReadonlyArray<Pending>>>()

  /** The newest last. */
  const ofKey = (store: object, key: string) => byStore.get(store)?.get(key) ?? []

  const claim = ({ state }: Pending) => byState.delete(state)

  const remove = (pending: Pending) => {
    byId.delete(pending.id)
    // Nobody can bring it any more
    if (claim(pending)) Deferred.doneUnsafe(pending.done, Exit.succeed(false))
    keep(pending, ofKey(pending.store, pending.key).filter((other) => other !== pending))
  }

  const keep = ({ key, store }: Pending, all: ReadonlyArray<Pending>) => {
    const byKey = byStore.get(store) ?? new Map<string, ReadonlyArray<Pending>>()
    byStore.set(store, byKey)
    if (all.length > 0) byKey.set(key, all)
    else byKey.delete(key)
  }

  const inTime = (pending: Pending | undefined) =>
    Effect.map(moment, (now) => {
      if (pending === undefined || now < pending.until) return pending
      remove(pending)
      return undefined
    })

  return {
    add: (pending) =>
      Effect.map(moment, (now) => {
        // The oldest first
        for (const other of byId.values()) {
          if (other.until > now && byId.size < maxPending) break
          remove(other)
        }
        const all = [...ofKey(pending.store, pending.key), pending]
        for (const other of all.slice(0, -maxPerKey)) remove(other)
        byId.set(pending.id, pending)
        byState.set(pending.state, pending)
        keep(pending, all.slice(-maxPerKey))
      }),
    ofKey: (store, key) => Effect.suspend(() => inTime(ofKey(store, key).findLast(isAwaited))),
    ofId: (id) => Effect.suspend(() => inTime(byId.get(id))),
    ofState: (state) => Effect.suspend(() => inTime(byState.get(state))),
    claim
  }
}

/** Whoever was asked for one just before it was over still hears how. */
const isAwaited = ({ done }: Pending): boolean => !Deferred.isDoneUnsafe(done)

/** Those of this process. */
export const Consents = Context.Reference<Consents>("effect-mcp-sessions/Consents", { defaultValue: make })
