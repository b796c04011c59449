/**
 * Which messages a server may have acted on, counted where they leave: a pool asks this before it runs anything a
 * second time.
 *
 *   leaves -> in flight -> refused unrun              may be sent again
 *                 '------> answered, given up, lost   may have run
 *
 * A message is counted for the lease within which it was sent, and for those around that. The fiber's context tells
 * which one that is, and the options of a call carry it to the wire, past whatever the SDK awaits in between. What
 * comes to the wire without, because somebody used the SDK's client by itself, may be anybody's: it counts for each
 * lease that the session has meanwhile, and for each within which the session was leased.
 */
import * as Context from "effect/Context"

/**
 * The property by which a session of this library is known. It holds the session's {@link Sent}.
 */
export const TypeId = "~effect-mcp-sessions/McpSession"

/** What was sent on somebody's behalf. */
export interface Account {
  inFlight: number
  /** Whether anything of it may have run. */
  hasRun: boolean
}

/** What was sent on a session on nobody's behalf in particular. */
export interface Sent {
  /** The number of the message that left last: they are counted from 1. */
  last: number
  /** The newest of those that are in flight no more and may have run. */
  lastRun: number
  readonly inFlight: Set<number>
  /**
   * The errors that say of this very session that its server has forgotten it. None where no server can: only sessions
   * over Streamable HTTP are more than their connection.
   */
  readonly expirations: WeakSet<object> | undefined
  /** Whether it was ever leased within another's lease. */
  isWithin: boolean
}

export const make = (canExpire: boolean): Sent => ({
  last: 0,
  lastRun: 0,
  inFlight: new Set(),
  expirations: canExpire ? new WeakSet() : undefined,
  isWithin: false
})

/** Whether somebody may ask what was sent within a lease on this session, which is no part of another. */
export const isAccounted = ({ expirations, isWithin }: Sent): boolean => expirations !== undefined || isWithin

/**
 * The `Sent` of a session of this library. Anything else is not looked into.
 */
export const of = (session: unknown): Sent | undefined =>
  typeof session === "object" && session !== null && TypeId in session ? session[TypeId] as Sent : undefined

// -----------------------------------------------------------------------------
// Leases
// -----------------------------------------------------------------------------

/** What was sent within a lease, as far as that is known. */
export interface Lease extends Account {
  /** The lease within which it was taken: what is sent within this one is sent within that, too. */
  readonly outer: Lease | undefined
  /** The session that it is of. */
  readonly sent: Sent
  /** The message of nobody's that had left last when it began. */
  readonly before: number
  /** The same of each session that was leased within this one. */
  within: Map<Sent, number> | undefined
  /** What it shares with others: the list that they wait for together. */
  shared: Set<Account> | undefined
}

/** The lease that a fiber works within: the innermost. */
export const CurrentLease = Context.Reference<Lease | undefined>("effect-mcp-sessions/CurrentLease", {
  defaultValue: () => undefined
})

export const makeLease = (sent: Sent, outer: Lease | undefined): Lease => {
  if (outer !== undefined) leasedWithin(outer, sent)
  return { inFlight: 0, hasRun: false, outer, sent, before: sent.last, within: undefined, shared: undefined }
}

/** A session is leased within `lease`: what is sent on it on nobody's behalf may be sent within that, too. */
export const leasedWithin = (lease: Lease, sent: Sent): void => {
  sent.isWithin = true
  for (let each: Lease | undefined = lease; each !== undefined; each = each.outer) {
    const within = each.within ??= new Map()
    if (!within.has(sent)) within.set(sent, sent.last)
  }
}

/**
 * Whoever works within `lease` waits for what others may wait for, too, until the result is called: what is sent on the
 * account is sent on behalf of each of them, and may be anybody's if one of them is not known.
 */
export const share = (sent: Sent, lease: Lease | undefined, account: Account): () => void => {
  for (let each = lease; each !== undefined; each = each.outer) (each.shared ??= new Set()).add(account)
  if (senderWithin(lease).sessions.includes(sent)) return () => undefined
  const message = leave(sent, undefined)
  return () => isPending(account) ? settled(sent, message) : refused(sent, message)
}

/**
 * Whether anything may have run that was sent within the lease, or may have been. What is in flight may.
 */
export const mayHaveRun = (lease: Lease): boolean => {
  if (isPending(lease) || mayHaveRunSince(lease.sent, lease.before)) return true
  for (const account of lease.shared ?? []) if (isPending(account)) return true
  for (const [sent, before] of lease.within ?? []) if (mayHaveRunSince(sent, before)) return true
  return false
}

const mayHaveRunSince = ({ inFlight, lastRun }: Sent, before: number): boolean => {
  if (lastRun > before) return true
  for (const message of inFlight) if (message > before) return true
  return false
}

const isPending = ({ hasRun, inFlight }: Account): boolean => hasRun || inFlight > 0

// -----------------------------------------------------------------------------
// Messages
// -----------------------------------------------------------------------------

/** A message that has left. */
export interface Message {
  /** On whose behalf. */
  readonly accounts: ReadonlyArray<Account>
  /** Its number, if it may be anybody's. */
  readonly number: number | undefined
  isInFlight: boolean
}

/** On whose behalf a call is made. */
export interface Sender {
  readonly accounts: ReadonlyArray<Account>
  /** The sessions that one of the accounts is of: there nobody else has sent it. */
  readonly sessions: ReadonlyArray<Sent>
}

/** Nobody that is known of works within `lease`, if that is undefined. */
export const senderWithin = (lease: Lease | undefined): Sender => {
  const chain: Array<Lease> = []
  for (let each = lease; each !== undefined; each = each.outer) chain.push(each)
  return { accounts: chain, sessions: chain.map(({ sent }) => sent) }
}

/** Those who share the account, on this session. */
export const senderOf = (account: Account, sent: Sent): Sender => ({ accounts: [account], sessions: [sent] })

/** A message leaves. */
export const leave = (sent: Sent, sender: Sender | undefined): Message => {
  const accounts = sender?.accounts ?? []
  for (const account of accounts) account.inFlight++
  if (sender?.sessions.includes(sent) === true) return { accounts, number: undefined, isInFlight: true }
  sent.inFlight.add(++sent.last)
  return { accounts, number: sent.last, isInFlight: true }
}

/** It was refused unrun, or never went anywhere. */
export const refused = (sent: Sent, message: Message): void => {
  if (!message.isInFlight) return
  message.isInFlight = false
  for (const account of message.accounts) account.inFlight--
  if (message.number !== undefined) sent.inFlight.delete(message.number)
}

/** It was answered, or nobody will ever know. */
export const settled = (sent: Sent, message: Message): void => {
  if (!message.isInFlight) return
  refused(sent, message)
  for (const account of message.accounts) account.hasRun = true
  if (message.number !== undefined) sent.lastRun = Math.max(sent.lastRun, message.number)
}

// -----------------------------------------------------------------------------
// From a call to the wire
// -----------------------------------------------------------------------------

// Both generations hand this one option of a call through to their transport, and call it for a stream alone that can
// be resumed.
type Carried = (token: string) => void

const senders = new WeakMap<Carried, Sender>()

/** Makes an option of a call say on whose behalf it is made. */
export const carry = <F extends Carried>(carried: F, sender: Sender): F => {
  senders.set(carried, sender)
  return carried
}

/** On whose behalf a message is sent, if the option has come with it. */
export const carriedBy = (carried: Carried | undefined): Sender | undefined =>
  carried === undefined ? undefined : senders.get(carried)
