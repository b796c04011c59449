/**
 * Who waits, and for what: for room, first come, first served among those who can be; and where a lease is exclusive,
 * for their turn on the one session of their key. The callers of one key are a party: where leases are shared they get
 * one session together, at the place in the line of the first of them who is still there.
 *
 * Here they come and go. What that means for others is for `seating.ts` and `waiting.ts` to say.
 */
import type * as Deferred from "effect/Deferred"
import type * as Exit from "effect/Exit"
import type * as Early from "./early.ts"
import * as Fairness from "./fairness.ts"
import * as Heap from "./heap.ts"
import * as Holders from "./holders.ts"
import * as Leased from "./leased.ts"
import * as Lines from "./lines.ts"
import type * as Linked from "./linked.ts"
import type { Terms } from "./terms.ts"
import * as Upstreams from "./upstreams.ts"

/**
 * Whoever asks for a session, until the end of its lease. It changes in the same step as what it points to, so whenever
 * the caller is interrupted, `end` gives back exactly what it has.
 */
export interface Caller<I, A, E> extends Linked.Node<Caller<I, A, E>> {
  /** The id of the fiber that asks. */
  readonly fiber: number
  slot: Leased.Slot<I, A, E> | undefined
  waiter: Waiter<I, A, E> | undefined
  /** Whether it is in the statistics: a caller that is served in several tries is one hit or one miss. */
  isCounted: boolean
  /** When it came, among those who had to wait for something: 0 for never. */
  order: number
  /** For how long it has waited in the tries before, in milliseconds. */
  waited: number
}

export interface Waiter<I, A, E> extends Lines.Waiter<Leased.Slot<I, A, E>> {
  readonly caller: Caller<I, A, E>
  readonly owner: I
  readonly terms: Terms
  readonly seated: Deferred.Deferred<void, E>
  /** The session that it waits for its turn on; none while it waits for room. */
  turn: Leased.Slot<I, A, E> | undefined
}

interface Party<I, A, E> {
  owner: I
  /** The name of the upstream. */
  readonly upstream: string | undefined
  readonly waiters: Set<Waiter<I, A, E>>
}

export interface Waiting<I extends { readonly key: string }, A, E> extends Options<I, A, E> {
  readonly engine: Leased.Leased<I, A, E>
  /** Those who wait for room, by key. */
  readonly parties: Map<string, Party<I, A, E>>
  /** The keys of the parties at each upstream, by its name, and of those at none. */
  readonly keysAt: Map<string | undefined, Set<string>>
  readonly lines: Lines.Lines<Waiter<I, A, E>, Leased.Slot<I, A, E>>
  readonly fairness: Fairness.Fairness<I, A, E>
  /** Opens that give way to those who wait for room. */
  readonly early: Early.Early<Caller<I, A, E>, Leased.Slot<I, A, E>>
  /** Those who wait for their turn, by the id of each session that somebody has. None where leases are shared. */
  readonly turns: Map<number, Heap.Heap<Waiter<I, A, E>>> | undefined
  /** The callers that have a lease. */
  readonly holders: Holders.Holders<Caller<I, A, E>, Leased.Slot<I, A, E>>
  /** How many wait, for room or for their turn. */
  size: number
  arrivals: number
}

/** Whom somebody waits for, and under which conditions. */
export interface Wanted<I, A, E> {
  readonly owner: I
  readonly terms: Terms
  readonly upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
}

/** What there is no room under: the limit of an upstream or the common one. */
export type Full = "upstream" | "pool"

export interface Options<I, A, E> {
  /** Which of two owners of one key is kept: the one that is known, or the one that comes. */
  readonly newest: (known: I, comes: I) => I
  /** Makes room for one session, unless something is full even so. */
  readonly makeRoom: (upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined) => Full | undefined
  /** The failure, if there is one, that answers a caller in place of a session. */
  readonly refusal: (owner: I) => Exit.Exit<never, E> | undefined
  /** The name of the upstream that the session would be at. */
  readonly upstreamOf: (owner: I) => string | undefined
  /** Of those that have a limit of their own: none where there are no such limits. */
  readonly upstreams: Upstreams.Upstreams<Leased.Slot<I, A, E>> | undefined
  /** Whether a session has one caller at a time. */
  readonly isExclusive: boolean
}

export const make = <I extends { readonly key: string }, A, E>(
  engine: Leased.Leased<I, A, E>,
  options: Options<I, A, E>
): Waiting<I, A, E> => ({
  ...options,
  engine,
  parties: new Map(),
  keysAt: new Map(),
  lines: Lines.make(),
  fairness: Fairness.make(),
  early: new Map(),
  turns: options.isExclusive ? new Map() : undefined,
  holders: Holders.make(),
  size: 0,
  arrivals: 0
})

export const caller = <I, A, E>(fiber: number): Caller<I, A, E> => ({
  fiber,
  slot: undefined,
  waiter: undefined,
  isCounted: false,
  order: 0,
  waited: 0,
  previous: undefined,
  next: undefined
})

/** From now on nobody who comes later goes before this caller. */
export const arrive = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  comer: Caller<I, A, E>
): number => comer.order === 0 ? comer.order = ++self.arrivals : comer.order

/** What somebody would have to wait for. */
export const fullNow = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  { owner, upstream }: Wanted<I, A, E>
): Full | "turn" => taken(self, owner.key) !== undefined ? "turn" : fullFor(upstream)

export const fullFor = <S>(upstream: Upstreams.Upstream<S> | undefined): Full =>
  Upstreams.isFull(upstream) ? "upstream" : "pool"

export const isEmpty = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>): boolean =>
  self.lines.size === 0

/** The session of this key, if it is exclusive and somebody has it. */
export const taken = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  key: string
): Leased.Slot<I, A, E> | undefined => {
  const slot = self.turns === undefined ? undefined : Leased.find(self.engine, key)
  return slot !== undefined && self.turns!.has(slot.id) ? slot : undefined
}

// -----------------------------------------------------------------------------
// Coming and going
// -----------------------------------------------------------------------------

/** The caller has this lease now. */
export const hold = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  holder: Caller<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  holder.slot = slot
  Holders.add(self.holders, holder)
  if (self.turns !== undefined && !self.turns.has(slot.id)) {
    self.turns.set(slot.id, Heap.make<Waiter<I, A, E>>(Lines.byOrder))
  }
}

/** The caller has its lease no more, which is for `giveBack` then. */
export const letGo = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  leaver: Caller<I, A, E>
): Leased.Slot<I, A, E> => {
  const slot = leaver.slot!
  leaver.slot = undefined
  Holders.remove(self.holders, leaver)
  return slot
}

/** Whether it has not been answered, and has not left. */
export const isWaiting = <I, A, E>(waiter: Waiter<I, A, E>): boolean => waiter.caller.waiter === waiter

/** It joins the line for room. */
export const queue = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  waiter: Waiter<I, A, E>
): void => {
  const { key } = waiter.owner
  const party = self.parties.get(key)
  if (party === undefined) {
    const upstream = self.upstreamOf(waiter.owner)
    self.parties.set(key, { owner: waiter.owner, upstream, waiters: new Set([waiter]) })
    const keys = self.keysAt.get(upstream)
    if (keys === undefined) self.keysAt.set(upstream, new Set([key]))
    else keys.add(key)
  } else {
    party.owner = self.newest(party.owner, waiter.owner)
    party.waiters.add(waiter)
  }
  Lines.join(self.lines, waiter)
}

/** It leaves the line for room. */
export const leaveLine = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  waiter: Waiter<I, A, E>
): void => {
  const { key } = waiter.owner
  const party = self.parties.get(key)!
  party.waiters.delete(waiter)
  if (party.waiters.size === 0) forgetParty(self, key, party)
  Lines.leave(self.lines, waiter)
  if (waiter.upstream !== undefined) Upstreams.forgetUnused(self.upstreams!, waiter.upstream)
  Fairness.reconsider(self.fairness)
}

const forgetParty = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  key: string,
  { upstream }: Party<I, A, E>
): void => {
  self.parties.delete(key)
  const keys = self.keysAt.get(upstream)!
  if (keys.size === 1) self.keysAt.delete(upstream)
  else keys.delete(key)
}

/** It waits no more. */
export const dismiss = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  waiter: Waiter<I, A, E>
): void => {
  self.size--
  waiter.caller.waiter = undefined
  if (waiter.turn === undefined) {
    leaveLine(self, waiter)
  } else {
    Heap.remove(self.turns!.get(waiter.turn.id)!, waiter)
  }
}

/** Those who wait for a turn on the session. */
export const turnsOn = <I extends { readonly key: string }, A, E>(
  { turns }: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): ReadonlyArray<Waiter<I, A, E>> => turns?.get(slot.id)?.members.slice() ?? []
