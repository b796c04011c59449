/**
 * Who has a lease. How many of them one fiber has is asked by those who are out of luck, and in a herd that is
 * everybody: so whoever looks at all leases leaves a count behind, which is kept for as many changes as there were
 * leases.
 */
import * as Linked from "./linked.ts"

export interface Holder<H, S> extends Linked.Node<H> {
  /** The id of the fiber that has it. */
  readonly fiber: number
  readonly slot: S | undefined
}

export interface Holders<H extends Holder<H, S>, S> {
  readonly all: Linked.Linked<H>
  /** By fiber. */
  counts: Map<number, number> | undefined
  /** How many more changes the counts are worth. */
  changes: number
}

export const make = <H extends Holder<H, S>, S>(): Holders<H, S> => ({
  all: Linked.make(),
  counts: undefined,
  changes: 0
})

export const add = <H extends Holder<H, S>, S>(self: Holders<H, S>, holder: H): void => {
  Linked.append(self.all, holder)
  if (self.counts !== undefined) count(self, holder.fiber, 1)
}

export const remove = <H extends Holder<H, S>, S>(self: Holders<H, S>, holder: H): void => {
  Linked.remove(self.all, holder)
  if (self.counts !== undefined) count(self, holder.fiber, -1)
}

/** How many leases a fiber has. */
export const heldBy = <H extends Holder<H, S>, S>(self: Holders<H, S>, fiber: number): number => {
  if (self.counts === undefined) {
    self.counts = new Map()
    self.changes = self.all.size
    for (let holder = self.all.head; holder !== undefined; holder = holder.next) {
      self.counts.set(holder.fiber, (self.counts.get(holder.fiber) ?? 0) + 1)
    }
  }
  return self.counts.get(fiber) ?? 0
}

const count = <H extends Holder<H, S>, S>(self: Holders<H, S>, fiber: number, change: 1 | -1): void => {
  if (--self.changes < 0) {
    self.counts = undefined
    return
  }
  const counts = self.counts!
  const held = (counts.get(fiber) ?? 0) + change
  if (held === 0) counts.delete(fiber)
  else counts.set(fiber, held)
}

/** What a fiber has leases on. */
export const slotsOf = <H extends Holder<H, S>, S>(self: Holders<H, S>, fiber: number): ReadonlySet<S> => {
  const slots = new Set<S>()
  if (heldBy(self, fiber) === 0) return slots
  for (let holder = self.all.head; holder !== undefined; holder = holder.next) {
    if (holder.fiber === fiber && holder.slot !== undefined) slots.add(holder.slot)
  }
  return slots
}
