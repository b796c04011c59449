/**
 * Why a session was not opened where no server had a part in it: its key is, or is soon to be, another node's. Whoever
 * waits looks for the owner again, and nothing is remembered of it.
 */
import { McpSessionError, SessionClosed } from "../McpSessionError.ts"

const errors = new WeakSet<object>()

export const make = (): McpSessionError => {
  const error = new McpSessionError({
    reason: new SessionClosed({ requestSent: false }),
    method: "connect",
    server: "cluster"
  })
  errors.add(error)
  return error
}

export const is = (error: unknown): boolean => typeof error === "object" && error !== null && errors.has(error)
