/**
 * Callers that wait: for room, first come, first served among those who can be; and where a lease is exclusive, for
 * their turn on the one session of their key. The callers of one key are a party: where leases are shared they get one
 * session together, at the place in the line of the first of them who is still there. Whoever came later never keeps a
 * place that another has left.
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Early from "./early.ts"
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
  readonly waiters: Set<Waiter<I, A, E>>
}

export interface Waiting<I extends { readonly key: string }, A, E> extends Options<I, A, E> {
  readonly engine: Leased.Leased<I, A, E>
  /** Those who wait for room, by key. */
  readonly parties: Map<string, Party<I, A, E>>
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

/** What there is no room under: the limit of an upstream or the common one. */
export type Full = "upstream" | "pool"

export interface Options<I, A, E> {
  /** Which of two owners of one key is kept: the one that is known, or the one that comes. */
  readonly newest: (known: I, comes: I) => I
  /** Makes room for one session, unless something is full even so. */
  readonly makeRoom: (upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined) => Full | undefined
  /** The failure, if there is one, that answers a caller in place of a session. */
  readonly refusal: (owner: I) => Exit.Exit<never, E> | undefined
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

/** The session of this key, if it is exclusive and somebody has it. */
export const taken = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  key: string
): Leased.Slot<I, A, E> | undefined => {
  const slot = self.turns === undefined ? undefined : Leased.find(self.engine, key)
  return slot !== undefined && self.turns!.has(slot.id) ? slot : undefined
}

/** Whether nobody who came before could use the room that a newcomer asks for. */
export const isNext = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
): boolean => {
  if (self.lines.size === 0) return true
  seat(self)
  return Lines.next(self.lines) === undefined && !self.lines.byUpstream.has(upstream)
}

/** What somebody would have to wait for. */
export const fullNow = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  { owner, upstream }: Wanted<I, A, E>
): Full | "turn" => taken(self, owner.key) !== undefined ? "turn" : fullFor(upstream)

const fullFor = <S>(upstream: Upstreams.Upstream<S> | undefined): Full =>
  Upstreams.isFull(upstream) ? "upstream" : "pool"

export const isEmpty = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>): boolean =>
  self.lines.size === 0

// -----------------------------------------------------------------------------
// Coming and going
// -----------------------------------------------------------------------------

/** Whom somebody waits for, and under which conditions. */
export interface Wanted<I, A, E> {
  readonly owner: I
  readonly terms: Terms
  readonly upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
}

/**
 * Waits for so many milliseconds, in all tries together. None if the caller has a lease then. If it has given up its
 * place: what it has waited for last.
 */
export const wait = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  comer: Caller<I, A, E>,
  { owner, terms, upstream }: Wanted<I, A, E>,
  millis: number
): Effect.Effect<Full | "turn" | undefined, E> => {
  const waiter: Waiter<I, A, E> = {
    caller: comer,
    owner,
    terms,
    upstream,
    order: arrive(self, comer),
    seated: Deferred.makeUnsafe(),
    turn: taken(self, owner.key),
    hasWaitedLong: false,
    index: -1
  }
  comer.waiter = waiter
  self.size++
  if (waiter.turn === undefined) queue(self, waiter)
  else Heap.add(self.turns!.get(waiter.turn.id)!, waiter)
  const seated = Deferred.await(waiter.seated)
  const since = self.engine.time.now()
  const half = Effect.sleep((millis - comer.waited) / 2)
  const tooLong = half.pipe(
    Effect.andThen(Effect.sync(() => hasWaitedLong(self, waiter))),
    Effect.andThen(half)
  )
  return Effect.raceFirst(seated, tooLong).pipe(
    Effect.andThen(Effect.suspend(() => {
      comer.waited += self.engine.time.now() - since
      // It was answered in that very moment. Or what it waits its turn for has failed, which it hears when that is free:
      // another open is not its own any more
      return !isWaiting(waiter) || waiter.turn?.phase === "freeing"
        ? Effect.as(seated, undefined)
        : Effect.succeed(giveUp(self, waiter))
    })),
    Effect.provideService(Clock.Clock, self.engine.clock)
  )
}

const isWaiting = <I, A, E>(waiter: Waiter<I, A, E>): boolean => waiter.caller.waiter === waiter

// It joins the line for room.
const queue = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, waiter: Waiter<I, A, E>): void => {
  const { key } = waiter.owner
  const party = self.parties.get(key)
  if (party === undefined) {
    self.parties.set(key, { owner: waiter.owner, waiters: new Set([waiter]) })
  } else {
    party.owner = self.newest(party.owner, waiter.owner)
    party.waiters.add(waiter)
  }
  Lines.join(self.lines, waiter)
}

const hasWaitedLong = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  waiter: Waiter<I, A, E>
): void => {
  if (!isWaiting(waiter)) return
  waiter.hasWaitedLong = true
  if (waiter.turn !== undefined || !Lines.waitsLong(self.lines, waiter)) return
  Fairness.reconsider(self.fairness)
  seat(self)
}

const giveUp = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  waiter: Waiter<I, A, E>
): Full | "turn" => {
  const full = waiter.turn !== undefined ? "turn" : fullFor(waiter.upstream)
  if (full !== "turn" && Lines.head(self.lines.byUpstream.get(waiter.upstream)!) === waiter) {
    Fairness.giveUp(self.fairness, waiter.upstream)
  }
  leave(self, waiter.caller)
  return full
}

/**
 * Gives up the caller's place, or its lease: then there may be an effect to run, as in `Leased.release`.
 */
export const end = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  leaver: Caller<I, A, E>
): Effect.Effect<void> | undefined => {
  if (leaver.slot !== undefined) return giveBack(self, letGo(self, leaver))
  leave(self, leaver)
  return undefined
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

const leave = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, leaver: Caller<I, A, E>): void => {
  const { waiter } = leaver
  if (waiter === undefined) return
  const waitedForRoom = waiter.turn === undefined
  dismiss(self, waiter)
  if (waitedForRoom) seat(self)
  else makeWay(self)
}

// It waits no more.
const dismiss = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, waiter: Waiter<I, A, E>): void => {
  self.size--
  waiter.caller.waiter = undefined
  if (waiter.turn === undefined) {
    leaveLine(self, waiter)
  } else {
    Heap.remove(self.turns!.get(waiter.turn.id)!, waiter)
  }
}

const leaveLine = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, waiter: Waiter<I, A, E>): void => {
  const { key } = waiter.owner
  const party = self.parties.get(key)!
  party.waiters.delete(waiter)
  if (party.waiters.size === 0) self.parties.delete(key)
  Lines.leave(self.lines, waiter)
  if (waiter.upstream !== undefined) Upstreams.forgetUnused(self.upstreams!, waiter.upstream)
  Fairness.reconsider(self.fairness)
}

// -----------------------------------------------------------------------------
// Room
// -----------------------------------------------------------------------------

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
  const needs = () => {
    const upstreams = Array.from(self.parties.values(), ({ waiters: [first] }) => first!.upstream)
    return comer === undefined || self.parties.has(comer.owner.key) ? upstreams : [...upstreams, comer.upstream]
  }
  const isJoined = (slot: Leased.Slot<I, A, E>, opener: Caller<I, A, E>) =>
    opener.slot !== slot || slot.leases > 1 || turnsOn(self, slot).length > 0
  for (const opener of Early.giveWay(self.early, needs, isJoined)) {
    Leased.start(self.engine, Effect.suspend(() => end(self, opener) ?? Effect.void))
  }
}

const longWaiting = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>
): Fairness.Heads<I, A, E> => {
  const headOf = (line: Lines.Line<Waiter<I, A, E>, Leased.Slot<I, A, E>>): Fairness.Head<I, A, E> => {
    const { caller: { fiber }, upstream } = Lines.head(line)
    return { upstream, own: () => Holders.slotsOf(self.holders, fiber) }
  }
  const { byUpstream, long } = self.lines
  return {
    *all() {
      for (const line of long) yield headOf(line)
    },
    *full() {
      if (self.upstreams === undefined) return
      const upstreams = new Set(Leased.all(self.engine).map(({ member }) => member?.upstream))
      for (const upstream of upstreams) {
        const line = Upstreams.isFull(upstream) ? byUpstream.get(upstream) : undefined
        if (line !== undefined && long.has(line)) yield headOf(line)
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

/**
 * Sends those away whom a failure answers, wherever they are in the line: those of these keys, or of all.
 */
export const refuse = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  keys: Iterable<string> = self.parties.keys()
): void =>
  Leased.atomically(self.engine, () => {
    for (const key of Array.from(keys)) answer(self, key)
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

// -----------------------------------------------------------------------------
// Turns
// -----------------------------------------------------------------------------

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

/** The session takes no new lease: whoever waits for a turn on it waits for room to open another. */
export const retired = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  const waiters = turnsOn(self, slot)
  if (waiters.length === 0) return
  for (const waiter of waiters) {
    Heap.remove(self.turns!.get(slot.id)!, waiter)
    waiter.turn = undefined
    queue(self, waiter)
  }
  Fairness.reconsider(self.fairness)
  Leased.start(self.engine, Effect.sync(() => seat(self)))
}

/** The open has failed, and so it has for those who wait for a turn on what it would have opened. */
export const failed = <I extends { readonly key: string }, A, E>(
  self: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>,
  cause: Cause.Cause<E>
): void => {
  const waiters = turnsOn(self, slot)
  for (const waiter of waiters) dismiss(self, waiter)
  for (const { seated } of waiters) Leased.start(self.engine, Effect.asVoid(Deferred.failCause(seated, cause)))
}

const turnsOn = <I extends { readonly key: string }, A, E>(
  { turns }: Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): ReadonlyArray<Waiter<I, A, E>> => turns?.get(slot.id)?.members.slice() ?? []

// -----------------------------------------------------------------------------
// The end
// -----------------------------------------------------------------------------

/**
 * Sends everybody away.
 */
export const close = <I extends { readonly key: string }, A, E>(self: Waiting<I, A, E>, error: () => E): void => {
  const waiters = Array.from(self.parties.values()).flatMap((party) => Array.from(party.waiters))
  for (const queued of self.turns?.values() ?? []) waiters.push(...queued.members)
  for (const waiter of waiters) dismiss(self, waiter)
  for (const { seated } of waiters) Deferred.doneUnsafe(seated, Exit.fail(error()))
}
