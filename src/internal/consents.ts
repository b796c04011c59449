/**
 * The consents that callers have been asked for and have not given yet, by the `state` that the authorization server
 * will send back (RFC 6749 section 4.1.1), which is a secret, and by an id that is none.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type { Identity } from "../Identity.ts"

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
  /** When it is too late, in milliseconds since the epoch. */
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
  /** There are tokens, or there are none. Whoever was asked for it just before still hears which. */
  readonly settle: (pending: Pending) => void
}

const maxPending = 10_000

const make = (): Consents => {
  const byId = new Map<string, Pending>()
  const byState = new Map<string, Pending>()
  const byStore = new WeakMap<object, Map<string, Pending>>()

  const within = (store: object): Map<string, Pending> => {
    let kept = byStore.get(store)
    if (kept === undefined) byStore.set(store, kept = new Map())
    return kept
  }

  const claim = ({ state }: Pending) => byState.delete(state)

  const settle = (pending: Pending) => {
    const known = within(pending.store)
    if (known.get(pending.key) === pending) known.delete(pending.key)
  }

  const remove = (pending: Pending) => {
    byId.delete(pending.id)
    claim(pending)
    settle(pending)
  }

  const inTime = (map: ReadonlyMap<string, Pending>, key: string) =>
    Effect.map(Clock.currentTimeMillis, (now) => {
      const pending = map.get(key)
      if (pending === undefined || now < pending.until) return pending
      remove(pending)
      return undefined
    })

  return {
    add: (pending) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        // The oldest first
        for (const other of byId.values()) {
          if (other.until > now && byId.size < maxPending) break
          remove(other)
        }
        byId.set(pending.id, pending)
        byState.set(pending.state, pending)
        within(pending.store).set(pending.key, pending)
      }),
    ofKey: (store, key) => inTime(within(store), key),
    ofId: (id) => inTime(byId, id),
    ofState: (state) => inTime(byState, state),
    claim,
    settle
  }
}

/** Those of this process. */
export const Consents = Context.Reference<Consents>("effect-mcp-sessions/Consents", { defaultValue: make })
