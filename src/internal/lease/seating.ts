/**
 * Room for those who wait: who is next, what gives way, and who is told a failure in its place.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Early from "./early.ts"
import * as Fairness from "./fairness.ts"
import * as Heap from "./heap.ts"
import * as Holders from "./holders.ts"
import * as Leased from "./leased.ts"
import * as Lines from "./lines.ts"
import * as Upstreams from "./upstreams.ts"
import {
  type Caller,
  dismiss,
  hold,
  leaveLine,
  letGo,
  turnsOn,
  type Waiter,
  type Waiting,
  type Wanted
} from "./waiters.ts"

/** Whether nobody who came before could use the room that a newcomer asks for. */
export const isNext = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
): boolean => {
  if (self.lines.size === 0) return true
  seat(self)
  return Lines.next(self.lines) === undefined && !self.lines.byUpstream.has(upstream)
}

/**
 * Opens sessions for those who wait, for as long as there is room for any of them. Whom a failure answers needs none.
 */
export const seat = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>): void => {
  if (self.lines.size === 0) return
  Leased.atomically(self.engine, () => {
    if (Leased.canClose(self.engine)) Lines.unstick(self.lines)
    for (let line = Lines.next(self.lines); line !== undefined; line = Lines.next(self.lines)) {
      if (answer(self, Lines.head(line).owner.key)) continue
      const full = self.makeRoom(line.upstream)
      if (full === "pool") break
      if (full === "upstream") Lines.standAside(self.lines, line, !Leased.canClose(self.engine))
      else serve(self, Lines.head(line))
    }
    makeWay(self)
    Fairness.makeWay(self.fairness, self.engine, longWaiting(self))
  })
}

/**
 * What is opened ahead of its callers gives way to those who wait, and to a newcomer, who may be too late to wait.
 */
export const makeWay = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  comer?: Wanted<I, A, E>
): void => {
  if (self.early.size === 0) return
  // First those whose upstream is full: they have less to choose from
  const needs = function*() {
    for (const line of fullLines(self)) yield* needsOf(self, line)
    for (const line of self.lines.byUpstream.values()) {
      if (!Upstreams.isFull(line.upstream)) yield* needsOf(self, line)
    }
    if (comer !== undefined && !self.parties.has(comer.owner.key)) yield comer.upstream
  }
  const isJoined = (slot: Leased.Slot<I, A, E>, opener: Caller<I, A, E>) =>
    opener.slot !== slot || slot.leases > 1 || turnsOn(self, slot).length > 0
  for (const opener of Early.giveWay(self.early, needs, isJoined)) {
    // By then it may have ended by itself
    const end = () => opener.slot === undefined ? Effect.void : giveBack(self, letGo(self, opener)) ?? Effect.void
    Leased.start(self.engine, Effect.suspend(end))
  }
}

// Once for each session that is to be opened, and no more often than there are opens to give up.
const needsOf = function*<I extends { readonly key: string }, A, E>(
  { early, keysAt, parties, upstreams }: Waiting<I, A, E>,
  { upstream }: Line<I, A, E>
) {
  const sessions = upstreams === undefined ? parties.size : keysAt.get(upstream?.name)?.size ?? 1
  for (let i = 0; i < Math.min(sessions, early.size); i++) yield upstream
}

// Found by the sessions, of which there are fewer than there may be lines.
const fullLines = <I extends { readonly key: string }, A, E>(
  { engine, lines, upstreams }: Waiting<I, A, E>
): ReadonlyArray<Line<I, A, E>> => {
  if (upstreams === undefined) return []
  const found = new Set(Leased.all(engine).map(({ member }) => member?.upstream))
  return Array.from(found).flatMap((upstream) => Upstreams.isFull(upstream) ? lines.byUpstream.get(upstream) ?? [] : [])
}

type Line<I, A, E> = Lines.Line<Waiter<I, A, E>, Leased.Slot<I, A, E>>

const longWaiting = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>
): Fairness.Heads<I, A, E> => {
  const headOf = (line: Line<I, A, E>): Fairness.Head<I, A, E> => {
    const { caller: { fiber }, upstream } = Lines.head(line)
    return { upstream, own: () => Holders.slotsOf(self.holders, fiber) }
  }
  const { long } = self.lines
  return {
    *all() {
      for (const line of long) yield headOf(line)
    },
    *full() {
      for (const line of fullLines(self)) {
        if (long.has(line)) yield headOf(line)
      }
    }
  }
}

const serve = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, first: Waiter<I, A, E>): void => {
  const { owner, waiters } = self.parties.get(first.owner.key)!
  const party = Array.from(waiters)
  const seated = self.isExclusive ? [first] : party
  const slot = Leased.admit(self.engine, owner.key, owner, seated.length, first)
  for (const waiter of seated) {
    dismiss(self, waiter)
    hold(self, waiter.caller, slot)
  }
  for (const waiter of party) {
    if (waiter.caller.slot !== undefined) continue
    leaveLine(self, waiter)
    waiter.turn = slot
    Heap.add(self.turns!.get(slot.id)!, waiter)
  }
  for (const waiter of seated) Deferred.doneUnsafe(waiter.seated, Exit.void)
}

/** Callers of these keys, and all of these upstreams. */
export interface Group {
  readonly keys: Iterable<string>
  readonly upstreams: Iterable<string>
}

/**
 * Sends those away whom a failure answers, wherever they are in the line: no others than these are asked.
 */
export const refuse = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  { keys, upstreams }: Group
): void =>
  Leased.atomically(self.engine, () => {
    for (const key of Array.from(keys)) answer(self, key)
    for (const upstream of Array.from(upstreams)) {
      for (const key of Array.from(self.keysAt.get(upstream) ?? [])) answer(self, key)
    }
  })

const answer = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, key: string): boolean => {
  const party = self.parties.get(key)
  const failure = party && self.refusal(party.owner)
  if (failure === undefined) return false
  const waiters = Array.from(party!.waiters)
  for (const waiter of waiters) dismiss(self, waiter)
  for (const { seated } of waiters) Deferred.doneUnsafe(seated, failure)
  return true
}

/** Ends a lease that nobody has any more, or gives it to whoever comes next. */
export const giveBack = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): Effect.Effect<void> | undefined => {
  if (self.turns !== undefined && passOn(self, self.turns, slot)) return undefined
  const freed = Leased.release(self.engine, slot)
  if (slot.phase === "opening") makeWay(self)
  return freed
}

// Whoever comes next has the lease now, which does not end. It runs after this step: each of them may pass it on.
const passOn = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  turns: Map<number, Heap.Heap<Waiter<I, A, E>>>,
  slot: Leased.Slot<I, A, E>
): boolean => {
  const next = Heap.head(turns.get(slot.id)!)
  if (next === undefined) {
    turns.delete(slot.id)
    return false
  }
  dismiss(self, next)
  Leased.passOn(self.engine, slot)
  hold(self, next.caller, slot)
  Leased.start(self.engine, Effect.sync(() => void Deferred.doneUnsafe(next.seated, Exit.void)))
  return true
}

/** A session has become idle, or has given up its place. Whoever tells so calls `seat` when that is all. */
export const changed = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  if (slot.member !== undefined) Lines.stepUp(self.lines, slot.member.upstream)
}

/** The session has given up its place. */
export const left = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  changed(self, slot)
  self.early.delete(slot)
  Fairness.left(self.fairness, slot)
}

/** The caller, whom nobody waits for, has this open, and will give it up for others. */
export const openEarly = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  opener: Caller<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  hold(self, opener, slot)
  self.early.set(slot, opener)
}

/** The session is open now, and could give way. */
export const opened = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  self.early.delete(slot)
  if (self.lines.size === 0) return
  Fairness.reconsider(self.fairness)
  Leased.start(self.engine, Effect.sync(() => seat(self)))
}
