/**
 * Sessions that have a limit of their own under the common one: those of one upstream. One without sessions and without
 * anybody who waits takes no memory.
 */
import type * as Result from "effect/Result"
import * as Linked from "./linked.ts"

export interface Upstream<S> {
  readonly name: string
  /** How many of its sessions may take a place. */
  readonly limit: number
  /** How many do: they are opening, open or draining. */
  places: number
  /** How many callers wait for one. */
  waiting: number
  /** Its idle sessions, the least recently used first. */
  readonly idle: Linked.Linked<Member<S>>
}

/** A session, as its upstream knows it. */
export interface Member<S> extends Linked.Node<Member<S>> {
  readonly session: S
  readonly upstream: Upstream<S>
}

export interface Upstreams<S> {
  readonly byName: Map<string, Upstream<S>>
  readonly limitOf: (name: string) => number
}

/** How many sessions one upstream may have: the same for all, or a function that tells it of each by its name. */
export type Limit = number | ((name: string) => Result.Result<number, string>)

export const make = <S>(limitOf: (name: string) => number): Upstreams<S> => ({ byName: new Map(), limitOf })

/** The upstream of this name. Asks for its limit when there is nothing of it yet, and throws what that throws. */
export const get = <S>(self: Upstreams<S>, name: string): Upstream<S> => {
  const known = self.byName.get(name)
  if (known !== undefined) return known
  const upstream = { name, limit: self.limitOf(name), places: 0, waiting: 0, idle: Linked.make<Member<S>>() }
  self.byName.set(name, upstream)
  return upstream
}

/** Of this name there is no other: it may have been forgotten while room was made for it. */
export const keep = <S>(self: Upstreams<S>, upstream: Upstream<S>): void => {
  self.byName.set(upstream.name, upstream)
}

/** Unless there is another of its name by now, which whoever comes has to find. */
export const forgetUnused = <S>(self: Upstreams<S>, upstream: Upstream<S>): void => {
  const isUnused = upstream.places + upstream.waiting === 0
  if (isUnused && self.byName.get(upstream.name) === upstream) self.byName.delete(upstream.name)
}

export const isFull = <S>(upstream: Upstream<S> | undefined): boolean =>
  upstream !== undefined && upstream.places >= upstream.limit

/** Whether a place would be of use to this upstream: while it is full, only that of a session of its own. */
export const couldUse = <S extends { readonly member: Member<S> | undefined }>(
  upstream: Upstream<S> | undefined
): (session: S) => boolean => {
  const isOwnAlone = isFull(upstream)
  return ({ member }) => !isOwnAlone || member?.upstream === upstream
}

export const member = <S>(upstream: Upstream<S>, session: S): Member<S> => ({
  session,
  upstream,
  previous: undefined,
  next: undefined
})
