/**
 * A heap whose members know their place in it: the first can be seen at once, and whoever leaves or changes costs a
 * step for each doubling of the rest. A member is in one heap at a time.
 */
export interface Node {
  /** Where it is in its heap, by the heap's own count; -1 for in none. */
  index: number
}

export interface Heap<T extends Node> {
  readonly members: Array<T>
  readonly isBefore: (a: T, b: T) => boolean
}

export const make = <T extends Node>(isBefore: (a: T, b: T) => boolean): Heap<T> => ({ members: [], isBefore })

export const size = <T extends Node>({ members }: Heap<T>): number => members.length

/** The first, if there is any. */
export const head = <T extends Node>({ members }: Heap<T>): T | undefined => members[0]

export const has = <T extends Node>(self: Heap<T>, member: T): boolean => self.members[member.index] === member

export const add = <T extends Node>(self: Heap<T>, member: T): void => {
  member.index = self.members.push(member) - 1
  rise(self, member)
}

/** Nothing happens if it is not there. */
export const remove = <T extends Node>(self: Heap<T>, member: T): void => {
  if (!has(self, member)) return
  const last = self.members.pop()!
  if (last !== member) {
    put(self, last, member.index)
    update(self, last)
  }
  member.index = -1
}

/** The member comes earlier or later than before. */
export const update = <T extends Node>(self: Heap<T>, member: T): void => {
  rise(self, member)
  sink(self, member)
}

const put = <T extends Node>(self: Heap<T>, member: T, index: number): void => {
  self.members[index] = member
  member.index = index
}

const rise = <T extends Node>(self: Heap<T>, member: T): void => {
  let index = member.index
  while (index > 0) {
    const above = self.members[(index - 1) >> 1]!
    if (!self.isBefore(member, above)) break
    const next = above.index
    put(self, above, index)
    index = next
  }
  put(self, member, index)
}

const sink = <T extends Node>(self: Heap<T>, member: T): void => {
  const { isBefore, members } = self
  let index = member.index
  for (let child = 2 * index + 1; child < members.length; child = 2 * index + 1) {
    const right = members[child + 1]
    const below = right !== undefined && isBefore(right, members[child]!) ? right : members[child]!
    if (!isBefore(below, member)) break
    const next = below.index
    put(self, below, index)
    index = next
  }
  put(self, member, index)
}
