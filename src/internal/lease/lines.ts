/**
 * Lines of those who wait for room, one for each upstream that has a limit and one for all others. Each is in the order
 * in which its callers came, and the lines are in the order of their heads. So whoever is next among those who can be
 * served is found without a look at those who cannot: a line whose upstream is full stands aside until something
 * changes there.
 */
import * as Heap from "./heap.ts"
import type { Upstream } from "./upstreams.ts"

export interface Waiter<S> extends Heap.Node {
  /** Who came first has the smallest. */
  readonly order: number
  /** That has a limit of its own. */
  readonly upstream: Upstream<S> | undefined
  /** For half of the time that it may. */
  hasWaitedLong: boolean
}

export interface Line<W extends Waiter<S>, S> extends Heap.Node {
  readonly upstream: Upstream<S> | undefined
  readonly waiters: Heap.Heap<W>
}

export interface Lines<W extends Waiter<S>, S> {
  readonly byUpstream: Map<Upstream<S> | undefined, Line<W, S>>
  /** Those that do not stand aside. */
  readonly open: Heap.Heap<Line<W, S>>
  /** Those that stand aside because nothing can be closed for them. */
  readonly stuck: Set<Line<W, S>>
  /** Those whose head has waited long. There may be a line for every name that somebody has made up. */
  readonly long: Set<Line<W, S>>
  /** How many wait. */
  size: number
}

export const byOrder = (a: { readonly order: number }, b: { readonly order: number }): boolean => a.order < b.order

export const make = <W extends Waiter<S>, S>(): Lines<W, S> => ({
  byUpstream: new Map(),
  open: Heap.make((a, b) => byOrder(head(a), head(b))),
  stuck: new Set(),
  long: new Set(),
  size: 0
})

/** No line is empty. */
export const head = <W extends Waiter<S>, S>({ waiters }: Line<W, S>): W => Heap.head(waiters)!

/** The line whose turn it is. */
export const next = <W extends Waiter<S>, S>({ open }: Lines<W, S>): Line<W, S> | undefined => Heap.head(open)

export const join = <W extends Waiter<S>, S>(self: Lines<W, S>, waiter: W): void => {
  self.size++
  const { upstream } = waiter
  if (upstream !== undefined) upstream.waiting++
  const known = self.byUpstream.get(upstream)
  const line: Line<W, S> = known ?? { upstream, waiters: Heap.make<W>(byOrder), index: -1 }
  Heap.add(line.waiters, waiter)
  if (known === undefined) {
    self.byUpstream.set(upstream, line)
    Heap.add(self.open, line)
  } else if (Heap.has(self.open, line)) {
    Heap.update(self.open, line)
  }
  headHasChanged(self, line)
}

const headHasChanged = <W extends Waiter<S>, S>({ long }: Lines<W, S>, line: Line<W, S>): void => {
  if (head(line).hasWaitedLong) long.add(line)
  else long.delete(line)
}

/** The waiter, who is there, has waited long. Whether it is the head of its line. */
export const waitsLong = <W extends Waiter<S>, S>(self: Lines<W, S>, waiter: W): boolean => {
  const line = self.byUpstream.get(waiter.upstream)!
  headHasChanged(self, line)
  return head(line) === waiter
}

/** The waiter, who is there, leaves from wherever in its line it is. */
export const leave = <W extends Waiter<S>, S>(self: Lines<W, S>, waiter: W): void => {
  self.size--
  const { upstream } = waiter
  if (upstream !== undefined) upstream.waiting--
  const line = self.byUpstream.get(upstream)!
  if (Heap.size(line.waiters) > 1) {
    Heap.remove(line.waiters, waiter)
    if (Heap.has(self.open, line)) Heap.update(self.open, line)
    headHasChanged(self, line)
    return
  }
  // Out of the heap while it still has the head that the heap knows it by.
  Heap.remove(self.open, line)
  Heap.remove(line.waiters, waiter)
  self.stuck.delete(line)
  self.long.delete(line)
  self.byUpstream.delete(upstream)
}

/** The line stands aside: until something changes at its upstream, or until something can be closed again. */
export const standAside = <W extends Waiter<S>, S>(self: Lines<W, S>, line: Line<W, S>, isStuck: boolean): void => {
  Heap.remove(self.open, line)
  if (isStuck) self.stuck.add(line)
}

/** Something has changed at this upstream. */
export const stepUp = <W extends Waiter<S>, S>(self: Lines<W, S>, upstream: Upstream<S>): void => {
  const line = self.byUpstream.get(upstream)
  if (line !== undefined) open(self, line)
}

/** Something can be closed again. */
export const unstick = <W extends Waiter<S>, S>(self: Lines<W, S>): void => {
  for (const line of self.stuck) open(self, line)
}

const open = <W extends Waiter<S>, S>(self: Lines<W, S>, line: Line<W, S>): void => {
  self.stuck.delete(line)
  if (!Heap.has(self.open, line)) Heap.add(self.open, line)
}
