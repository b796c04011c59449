/**
 * Room for those who have waited long. Callers of a session that somebody always has come and go, and it is never idle:
 * so nobody else would ever get its place. When whoever is first in a line has waited for half of the time that it may,
 * the session that has been held for longest, of those whose place it could have, takes no new lease. It drains, and
 * makes room.
 *
 * That is one session for each line whose head has waited so long: while it drains, it is for whoever is first there. A
 * session that has drained in vain, because its place went to somebody who came before, is followed by another.
 */
import * as Leased from "./leased.ts"
import * as Upstreams from "./upstreams.ts"

export interface Fairness<I, A, E> {
  /** The sessions that drain for those in line, the first to begin first. */
  readonly draining: Set<Leased.Slot<I, A, E>>
  /** Whether something has changed since it was last looked at who needs room. */
  isStale: boolean
}

export const make = <I, A, E>(): Fairness<I, A, E> => ({ draining: new Set(), isStale: false })

/** Somebody has waited long, or is first in line now; or another session could give way. */
export const reconsider = <I, A, E>(self: Fairness<I, A, E>): void => {
  self.isStale = true
}

/** The session has given up its place. */
export const left = <I, A, E>(self: Fairness<I, A, E>, slot: Leased.Slot<I, A, E>): void => {
  if (self.draining.delete(slot)) self.isStale = true
}

/** Who was first in line has waited in vain: what drains for it may never end, and the next must not rely on it. */
export const giveUp = <I, A, E>(
  self: Fairness<I, A, E>,
  upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
): void => {
  const slot = useful(self.draining, upstream)
  if (slot !== undefined) self.draining.delete(slot)
  self.isStale = true
}

/** Who is first in a line, and has waited long. */
export interface Head<I, A, E> {
  /** That has a limit of its own. */
  readonly upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
  /** What it has leases on itself: that would drain for its own end. */
  readonly own: () => ReadonlySet<Leased.Slot<I, A, E>>
}

/** The heads that have waited long. They may be many more than there are sessions: each is looked at as it comes. */
export interface Heads<I, A, E> {
  readonly all: () => Iterable<Head<I, A, E>>
  /** Those whose upstream is full, found by its sessions. */
  readonly full: () => Iterable<Head<I, A, E>>
}

/**
 * Sees to it that as many sessions drain as there are such heads, if anything has changed.
 */
export const makeWay = <I, A, E>(
  self: Fairness<I, A, E>,
  engine: Leased.Leased<I, A, E>,
  heads: Heads<I, A, E>
): void => {
  if (!self.isStale) return
  self.isStale = false
  const claimable = new Set(self.draining)
  const makeWayFor = (head: Head<I, A, E>): boolean => {
    const coming = useful(claimable, head.upstream)
    if (coming !== undefined) return claimable.delete(coming)
    const slot = victim(engine, head)
    if (slot === undefined) return false
    self.draining.add(slot)
    return Leased.retire(engine, slot, "evicted")
  }
  // First those whose upstream is full: they have less to choose from
  for (const head of heads.full()) makeWayFor(head)
  for (const head of heads.all()) {
    // What is not there for whoever could have any is there for nobody
    if (!Upstreams.isFull(head.upstream) && !makeWayFor(head) && head.own().size === 0) break
  }
}

// One whose place a caller of this upstream could have.
const useful = <I, A, E>(
  slots: ReadonlySet<Leased.Slot<I, A, E>>,
  upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
): Leased.Slot<I, A, E> | undefined => {
  const isOfUse = Upstreams.couldUse(upstream)
  for (const slot of slots) {
    if (isOfUse(slot)) return slot
  }
  return undefined
}

// An idle one is still there only if nothing can be closed now: it must not be leased again before it can.
const victim = <I, A, E>(
  engine: Leased.Leased<I, A, E>,
  { own, upstream }: Head<I, A, E>
): Leased.Slot<I, A, E> | undefined => {
  const idle = Upstreams.isFull(upstream) ? upstream!.idle.head?.session : Leased.oldestIdle(engine)
  if (idle !== undefined) return idle
  const owned = own()
  const isOfUse = Upstreams.couldUse(upstream)
  return Leased.longestHeld(engine, (slot) => isOfUse(slot) && !owned.has(slot))
}
