/**
 * Room for those who have waited long. Callers of a session that somebody always has come and go, and it is never idle:
 * so nobody else would ever get its place. When whoever is first in a line has waited for half of the time that it may,
 * the session that has been held for longest, of those whose place it could have, takes no new lease. It drains, and
 * makes room.
 *
 * That is one session for each line whose head has waited so long: while it drains, it is for whoever is first there. A
 * session that has drained in vain, because its place went to somebody who came before, is followed by another.
 */
import * as Holders from "./holders.ts"
import * as Leased from "./leased.ts"
import * as Lines from "./lines.ts"
import * as Upstreams from "./upstreams.ts"
import type { Waiter, Waiting } from "./waiting.ts"

export interface Fairness<I, A, E> {
  /** The sessions that drain for those in line, the first to begin first. */
  readonly draining: Set<Leased.Slot<I, A, E>>
  /** Whether something has changed since it was last looked at who needs room. */
  isStale: boolean
}

export const make = <I, A, E>(): Fairness<I, A, E> => ({ draining: new Set(), isStale: false })

/** Somebody has waited long, or is first in line now, or there is another session that could give way. */
export const reconsider = <I, A, E>(self: Fairness<I, A, E>): void => {
  self.isStale = true
}

/** The session has given up its place. */
export const left = <I, A, E>(self: Fairness<I, A, E>, slot: Leased.Slot<I, A, E>): void => {
  if (self.draining.delete(slot)) self.isStale = true
}

/** Who was first in line has waited in vain: what drains for it may never end, and the next one is not to rely on it. */
export const giveUp = <I, A, E>(
  self: Fairness<I, A, E>,
  upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
): void => {
  const slot = useful(self.draining, upstream)
  if (slot !== undefined) self.draining.delete(slot)
  self.isStale = true
}

/**
 * Sees to it that as many sessions drain as there are lines whose head has waited long.
 */
export const makeWay = <I extends { readonly key: string }, A, E>(waiting: Waiting<I, A, E>): void => {
  const { engine, fairness, lines } = waiting
  if (!fairness.isStale) return
  fairness.isStale = false
  const heads = Array.from(lines.byUpstream.values(), (line) => Lines.head(line)).filter((head) => head.hasWaitedLong)
  if (heads.length === 0) return
  // First those whose upstream is full: they have less to choose from
  const isFull = ({ upstream }: Waiter<I, A, E>) => Upstreams.isFull(upstream)
  const claimable = new Set(fairness.draining)
  for (const head of [...heads.filter(isFull), ...heads.filter((other) => !isFull(other))]) {
    const coming = useful(claimable, head.upstream)
    if (coming !== undefined) {
      claimable.delete(coming)
      continue
    }
    const slot = victim(waiting, head)
    if (slot === undefined) continue
    fairness.draining.add(slot)
    Leased.retire(engine, slot, "evicted")
  }
}

// One whose place a caller of this upstream could have.
const useful = <I, A, E>(
  slots: ReadonlySet<Leased.Slot<I, A, E>>,
  upstream: Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined
): Leased.Slot<I, A, E> | undefined => {
  const isFull = Upstreams.isFull(upstream)
  for (const slot of slots) {
    if (!isFull || slot.member?.upstream === upstream) return slot
  }
  return undefined
}

// An idle one is still there only if nothing can be closed now: it must not be leased again before it can. What a caller
// holds itself would drain for its own end.
const victim = <I extends { readonly key: string }, A, E>(
  { engine, holders }: Waiting<I, A, E>,
  { caller, upstream }: Waiter<I, A, E>
): Leased.Slot<I, A, E> | undefined => {
  const isFull = Upstreams.isFull(upstream)
  const idle = isFull ? upstream!.idle.head?.session : Leased.oldestIdle(engine)
  if (idle !== undefined) return idle
  const own = Holders.slotsOf(holders, caller.fiber)
  return Leased.longestHeld(engine, (slot) => (!isFull || slot.member?.upstream === upstream) && !own.has(slot))
}
