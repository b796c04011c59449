/**
 * Callers that wait for room: first come, first served. The callers of one key are a party: they get one session, at
 * the place in the line of the first of them who is still there. Whoever came later never keeps a place that another
 * has left.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Leased from "./leased.ts"
import * as Linked from "./linked.ts"
import type { Terms } from "./terms.ts"

/**
 * Whoever asks for a session, until the end of its lease. It changes in the same step as what it points to, so whenever
 * the caller is interrupted, `end` gives back exactly what it has.
 */
export interface Caller<I, A, E> extends Linked.Node<Caller<I, A, E>> {
  /** The id of the fiber that asks. */
  readonly fiber: number
  slot: Leased.Slot<I, A, E> | undefined
  party: Party<I, A, E> | undefined
  /** Whether it is in the statistics: a caller that is served in several tries is one hit or one miss. */
  isCounted: boolean
}

interface Party<I, A, E> {
  owner: I
  readonly terms: Terms
  readonly callers: Set<Caller<I, A, E>>
  readonly seated: Deferred.Deferred<void, E>
}

export interface Waiting<I extends { readonly key: string }, A, E> {
  readonly engine: Leased.Leased<I, A, E>
  readonly parties: Map<string, Party<I, A, E>>
  /** Who waits, the first to come first. A caller is here or among the holders. */
  readonly line: Linked.Linked<Caller<I, A, E>>
  /** The callers that have a lease. */
  readonly holders: Linked.Linked<Caller<I, A, E>>
  /** Which of two owners of one key is kept: the one that is known, or the one that comes. */
  readonly newest: (known: I, comes: I) => I
}

export const make = <I extends { readonly key: string }, A, E>(
  engine: Leased.Leased<I, A, E>,
  newest: (known: I, comes: I) => I
): Waiting<I, A, E> => ({ engine, parties: new Map(), line: Linked.make(), holders: Linked.make(), newest })

export const caller = <I, A, E>(fiber: number): Caller<I, A, E> => ({
  fiber,
  slot: undefined,
  party: undefined,
  isCounted: false,
  previous: undefined,
  next: undefined
})

/** The caller has this lease now. */
export const hold = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  holder: Caller<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  holder.slot = slot
  Linked.append(self.holders, holder)
}

/** How many leases a fiber has. Looks at all of them: for those who are out of luck. */
export const heldBy = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, fiber: number): number => {
  let held = 0
  for (let holder = self.holders.head; holder !== undefined; holder = holder.next) {
    if (holder.fiber === fiber) held++
  }
  return held
}

export const isEmpty = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>): boolean =>
  self.line.size === 0

/** How many callers wait. */
export const size = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>): number => self.line.size

/**
 * Waits for so many milliseconds. True if the caller has a lease then, false if it has given up its place.
 */
export const wait = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  waiter: Caller<I, A, E>,
  owner: I,
  terms: Terms,
  millis: number
): Effect.Effect<boolean, E> => {
  const known = self.parties.get(owner.key)
  const party = known ?? { owner, terms, callers: new Set(), seated: Deferred.makeUnsafe() }
  if (known === undefined) self.parties.set(owner.key, party)
  else party.owner = self.newest(known.owner, owner)
  party.callers.add(waiter)
  waiter.party = party
  Linked.append(self.line, waiter)
  return Deferred.await(party.seated).pipe(
    Effect.timeoutOption(millis),
    Effect.provideService(Clock.Clock, self.engine.clock),
    Effect.map(() => {
      leave(self, waiter)
      return waiter.slot !== undefined
    })
  )
}

/**
 * Gives up the caller's place, or its lease: then there may be an effect to run, as in `Leased.release`.
 */
export const end = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  leaver: Caller<I, A, E>
): Effect.Effect<void> | undefined => {
  const { slot } = leaver
  if (slot === undefined) {
    leave(self, leaver)
    return undefined
  }
  leaver.slot = undefined
  Linked.remove(self.holders, leaver)
  return Leased.release(self.engine, slot)
}

const leave = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, leaver: Caller<I, A, E>): void => {
  const { party } = leaver
  if (party === undefined) return
  leaver.party = undefined
  Linked.remove(self.line, leaver)
  party.callers.delete(leaver)
  if (party.callers.size === 0) self.parties.delete(party.owner.key)
}

/** The failure, if there is one, that answers a caller in place of a session. */
export type Refusal<I, E> = (owner: I) => Exit.Exit<never, E> | undefined

/**
 * Opens sessions for those who wait, for as long as `makeRoom` makes room. Whom `refusal` answers needs none.
 */
export const seat = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  makeRoom: () => boolean,
  refusal: Refusal<I, E>
): void =>
  Leased.atomically(self.engine, () => {
    while (self.line.head !== undefined) {
      const party = self.line.head.party!
      if (answer(self, party, refusal)) continue
      if (!makeRoom()) return
      const slot = Leased.admit(self.engine, party.owner.key, party.owner, party.callers.size, party.terms)
      for (const seated of dismiss(self, party)) hold(self, seated, slot)
      Deferred.doneUnsafe(party.seated, Exit.void)
    }
  })

/**
 * Sends those away whom `refusal` answers, wherever they are in the line.
 */
export const refuse = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  refusal: Refusal<I, E>
): void =>
  Leased.atomically(self.engine, () => {
    for (const party of Array.from(self.parties.values())) answer(self, party, refusal)
  })

const answer = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  party: Party<I, A, E>,
  refusal: Refusal<I, E>
): boolean => {
  if (self.parties.get(party.owner.key) !== party) return false
  const failure = refusal(party.owner)
  if (failure === undefined) return false
  dismiss(self, party)
  Deferred.doneUnsafe(party.seated, failure)
  return true
}

/**
 * Sends everybody away.
 */
export const close = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, error: () => E): void => {
  const parties = Array.from(self.parties.values())
  for (const party of parties) dismiss(self, party)
  for (const party of parties) Deferred.doneUnsafe(party.seated, Exit.fail(error()))
}

// The party waits no more, and neither do its callers.
const dismiss = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  party: Party<I, A, E>
): ReadonlySet<Caller<I, A, E>> => {
  self.parties.delete(party.owner.key)
  for (const member of party.callers) {
    member.party = undefined
    Linked.remove(self.line, member)
  }
  return party.callers
}
