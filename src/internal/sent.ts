/**
 * Which of a session's messages its server may have acted on, counted where they leave: a pool asks this before it runs
 * anything a second time.
 *
 *   leaves -> in flight -> refused unrun              may be sent again
 *                 '------> answered, given up, lost   may have run
 */

/**
 * The property by which a session of this library is known. It holds the session's {@link Sent}.
 */
export const TypeId = "~effect-mcp-sessions/McpSession"

export interface Sent {
  /** The number of the message that left last: they are counted from 1. */
  last: number
  /** The newest of those that are in flight no more and may have run. */
  lastRun: number
  readonly inFlight: Set<number>
  /** The errors that say of this very session that its server has forgotten it. */
  readonly expirations: WeakSet<object>
}

export const make = (): Sent => ({ last: 0, lastRun: 0, inFlight: new Set(), expirations: new WeakSet() })

/**
 * The `Sent` of a session of this library. Anything else is not looked into.
 */
export const of = (session: unknown): Sent | undefined =>
  typeof session === "object" && session !== null && TypeId in session ? session[TypeId] as Sent : undefined

/** A message leaves. */
export const leave = (sent: Sent): number => {
  sent.inFlight.add(++sent.last)
  return sent.last
}

/** It was refused unrun, or never went anywhere. */
export const refused = (sent: Sent, message: number): void => void sent.inFlight.delete(message)

/** It was answered, or nobody will ever know. */
export const settled = (sent: Sent, message: number): void => {
  if (sent.inFlight.delete(message)) sent.lastRun = Math.max(sent.lastRun, message)
}

/**
 * Whether anything that left after the message number `last` may have run. What is in flight may.
 */
export const mayHaveRunSince = (sent: Sent, last: number): boolean => {
  if (sent.lastRun > last) return true
  for (const message of sent.inFlight) if (message > last) return true
  return false
}
