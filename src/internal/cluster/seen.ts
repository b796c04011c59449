/**
 * Which numbers were seen: each is accepted once, in whatever order they come.
 */
export interface Seen {
  /** Every number up to this one was seen, or came too late. */
  floor: number
  readonly above: Set<number>
}

/** More than are ever in flight on one lease: of what is further behind nobody knows whether it was seen. */
const window = 4_096

export const make = (): Seen => ({ floor: 0, above: new Set() })

/** Whether the number is new. What may not be so is not. */
export const accept = (self: Seen, number: number): boolean => {
  if (number <= self.floor || self.above.has(number)) return false
  self.above.add(number)
  if (self.above.size > window) {
    self.floor = Math.min(...self.above)
    self.above.delete(self.floor)
  }
  while (self.above.delete(self.floor + 1)) self.floor++
  return true
}
