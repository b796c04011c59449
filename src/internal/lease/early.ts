/**
 * Opens that begin before anybody asks for their sessions. They have the room that nobody needs: when callers wait, as
 * many of them are given up as there are sessions to open, the first to begin first, because that is the one which most
 * likely hangs. One that a caller has joined is that caller's, until it leaves.
 */
import type * as Leased from "./leased.ts"
import * as Upstreams from "./upstreams.ts"

/** Each of them by its session, with whoever has begun it, until it is open or has given up its place. */
export type Early<C, S> = Map<S, C>

/**
 * Who has to give up the open that they have begun, for the upstreams at which somebody needs a place. What is being
 * freed will be one.
 */
export const giveWay = <C, I, A, E>(
  self: Early<C, Leased.Slot<I, A, E>>,
  needs: () => Iterable<Upstreams.Upstream<Leased.Slot<I, A, E>> | undefined>,
  isJoined: (slot: Leased.Slot<I, A, E>, opener: C) => boolean
): ReadonlyArray<C> => {
  const there = Array.from(self).filter(([slot, opener]) => slot.phase === "opening" && !isJoined(slot, opener))
  if (there.length === 0) return []
  const openers: Array<C> = []
  const coming = Array.from(self.keys()).filter(({ phase }) => phase === "freeing")
  // There may be many more who wait than there are opens to give up
  for (const upstream of needs()) {
    if (there.length === 0) break
    const isOfUse = Upstreams.couldUse(upstream)
    if (takeOut(coming, isOfUse) !== undefined) continue
    const found = takeOut(there, ([slot]) => isOfUse(slot))
    if (found !== undefined) openers.push(found[1])
  }
  return openers
}

const takeOut = <T>(items: Array<T>, isFit: (item: T) => boolean): T | undefined => {
  const index = items.findIndex(isFit)
  return index < 0 ? undefined : items.splice(index, 1)[0]
}
