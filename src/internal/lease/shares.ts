/**
 * What each owner has of the room: how many of its sessions take a place, and which of them were never used, the oldest
 * first. An owner without a session takes no memory.
 */
export interface Shares<in out Owner, in out Session> {
  readonly byOwner: Map<Owner, Share<Session>>
}

interface Share<Session> {
  places: number
  /** Made for the first of them. Sets are in the order of insertion. */
  unused: Set<Session> | undefined
}

export const make = <Owner, Session>(): Shares<Owner, Session> => ({ byOwner: new Map() })

/** How many owners there are. */
export const size = <Owner, Session>(self: Shares<Owner, Session>): number => self.byOwner.size

/** How many places an owner's sessions take. */
export const places = <Owner, Session>(self: Shares<Owner, Session>, owner: Owner): number =>
  self.byOwner.get(owner)?.places ?? 0

export const take = <Owner, Session>(self: Shares<Owner, Session>, owner: Owner): void => {
  const share = self.byOwner.get(owner)
  if (share === undefined) self.byOwner.set(owner, { places: 1, unused: undefined })
  else share.places++
}

export const giveBack = <Owner, Session>(self: Shares<Owner, Session>, owner: Owner): void => {
  const share = self.byOwner.get(owner)!
  if (--share.places === 0) self.byOwner.delete(owner)
}

/** The session has begun to wait for its first use. */
export const addUnused = <Owner, Session>(self: Shares<Owner, Session>, owner: Owner, session: Session): void => {
  const share = self.byOwner.get(owner)!
  share.unused ??= new Set()
  share.unused.add(session)
}

/** It waits no more: it is used, or it is over. */
export const removeUnused = <Owner, Session>(self: Shares<Owner, Session>, owner: Owner, session: Session): void => {
  const share = self.byOwner.get(owner)
  if (share?.unused?.delete(session) === true && share.unused.size === 0) share.unused = undefined
}

export const oldestUnused = <Owner, Session>(self: Shares<Owner, Session>, owner: Owner): Session | undefined =>
  self.byOwner.get(owner)?.unused?.values().next().value
