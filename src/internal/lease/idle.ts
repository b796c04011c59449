/**
 * Idle sessions, the one that has been idle for longest first. Where all are kept equally long, that is the order in
 * which they expire, too. Where each has a time to live of its own, a heap has that order. Either way whoever asks for
 * the expired looks at these and one more.
 *
 * A session that is used is not moved in the heap: its time can only have become later, which is looked at when the old
 * one has come. So a use costs the same as without.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Time from "../time.ts"
import * as Heap from "./heap.ts"
import * as Linked from "./linked.ts"
import type { Terms } from "./terms.ts"
import type { Member } from "./upstreams.ts"

export interface Node<S> extends Linked.Node<S> {
  /** Since when it is idle: a moment. */
  readonly usedAt: number
  readonly leases: number
  readonly terms: Terms
  /** Of an upstream that has a limit. */
  readonly member: Member<S> | undefined
}

export interface Idle<S extends Node<S>> extends Linked.Linked<S> {
  /** Milliseconds. None where each session has its own. */
  readonly timeToLive: number | undefined
  /** Those of the sessions that expire at all. */
  readonly expiries: Expiries<S> | undefined
  /** Open while there is one whose expiry somebody must await. */
  readonly any: Latch.Latch
}

interface Expiries<S> {
  readonly bySession: Map<S, Expiry<S>>
  readonly heap: Heap.Heap<Expiry<S>>
}

interface Expiry<S> extends Heap.Node {
  readonly session: S
  /** It does not expire before this moment. */
  at: number
}

export const make = <S extends Node<S>>(timeToLive: number | undefined): Idle<S> => ({
  ...Linked.make<S>(),
  timeToLive,
  expiries: timeToLive === undefined
    ? { bySession: new Map(), heap: Heap.make<Expiry<S>>((a, b) => a.at < b.at) }
    : undefined,
  any: Latch.makeUnsafe(false)
})

/** The session has become idle. */
export const append = <S extends Node<S>>(self: Idle<S>, session: S): void => {
  Linked.append(self, session)
  if (session.member !== undefined) Linked.append(session.member.upstream.idle, session.member)
  if (self.expiries === undefined) {
    if (self.size === 1) self.any.openUnsafe()
  } else if (session.terms.idleTimeToLive !== Infinity && !self.expiries.bySession.has(session)) {
    const expiry: Expiry<S> = { session, at: expiresAt(self, session), index: -1 }
    self.expiries.bySession.set(session, expiry)
    Heap.add(self.expiries.heap, expiry)
    if (Heap.head(self.expiries.heap) === expiry) self.any.openUnsafe()
  }
}

/** The idle session is in use again. */
export const remove = <S extends Node<S>>(self: Idle<S>, session: S): void => {
  Linked.remove(self, session)
  if (session.member !== undefined) Linked.remove(session.member.upstream.idle, session.member)
}

/** The session, idle or not, is never to be listed again. */
export const forget = <S extends Node<S>>(self: Idle<S>, session: S): void => {
  if (session.leases === 0) remove(self, session)
  if (self.expiries !== undefined) forgetExpiry(self.expiries, session)
}

const forgetExpiry = <S>({ bySession, heap }: Expiries<S>, session: S): void => {
  const expiry = bySession.get(session)
  if (expiry === undefined) return
  bySession.delete(session)
  Heap.remove(heap, expiry)
}

export const hasExpired = <S extends Node<S>>(self: Idle<S>, session: S, now: number): boolean =>
  now - session.usedAt > (self.timeToLive ?? session.terms.idleTimeToLive)

const expiresAt = <S extends Node<S>>(self: Idle<S>, session: S): number =>
  session.usedAt + (self.timeToLive ?? session.terms.idleTimeToLive)

/** One that has expired. */
export const expired = <S extends Node<S>>(self: Idle<S>, now: number): S | undefined => {
  const first = self.expiries === undefined ? self.head : soonest(self, self.expiries, now)
  return first !== undefined && hasExpired(self, first, now) ? first : undefined
}

// Puts right what has come to its time and was used meanwhile.
const soonest = <S extends Node<S>>(self: Idle<S>, expiries: Expiries<S>, now: number): S | undefined => {
  const { bySession, heap } = expiries
  for (let first = Heap.head(heap); first !== undefined && first.at < now; first = Heap.head(heap)) {
    const { session } = first
    if (session.leases > 0) {
      bySession.delete(session)
      Heap.remove(heap, first)
    } else if (first.at < expiresAt(self, session)) {
      first.at = expiresAt(self, session)
      Heap.update(heap, first)
    } else {
      return session
    }
  }
  return undefined
}

/** The moment after which one may have expired. */
export const dueAt = <S extends Node<S>>(self: Idle<S>): number => {
  if (self.expiries !== undefined) return Heap.head(self.expiries.heap)?.at ?? Infinity
  return self.head === undefined ? Infinity : expiresAt(self, self.head)
}

/** Waits until one may have expired. */
export const due = <S extends Node<S>>(self: Idle<S>, time: Time.Time): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { expiries } = self
    if (expiries === undefined) {
      if (self.head !== undefined) return Effect.sleep(untilAfter(expiresAt(self, self.head), time))
      self.any.closeUnsafe()
      return self.any.await
    }
    // One that comes later may expire sooner.
    const first = Heap.head(expiries.heap)
    self.any.closeUnsafe()
    return first === undefined ? self.any.await : Effect.timeoutOption(self.any.await, untilAfter(first.at, time))
  })

// Expired means older than the time to live, and the clock counts in milliseconds.
const untilAfter = (moment: number, time: Time.Time): number => Math.floor(moment) + 1 - time.now()
