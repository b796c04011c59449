/**
 * What a pool would give to a connector, and remembers what became of it.
 */
import type { Credentials } from "effect-mcp-sessions/Identity"
import type { SessionHandle } from "effect-mcp-sessions/SessionPool"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

export interface RecordingHandle extends SessionHandle {
  readonly retired: ReadonlyArray<"died" | "unhealthy">
  /** Settles when the session is retired for the first time. */
  readonly whenRetired: Promise<"died" | "unhealthy">
  /** What the next request may find as the newest credentials. */
  rotate(credentials: Credentials | undefined): void
}

export const makeHandle = (): RecordingHandle => {
  const retired: Array<"died" | "unhealthy"> = []
  let newest: Credentials | undefined
  let settle: (reason: "died" | "unhealthy") => void
  return {
    retired,
    whenRetired: new Promise((resolve) => {
      settle = resolve
    }),
    rotate: (credentials) => {
      newest = credentials
    },
    retire: (reason) =>
      Effect.sync(() => {
        retired.push(reason)
        settle(reason)
      }),
    credentials: Effect.sync(() => Option.fromUndefinedOr(newest))
  }
}
