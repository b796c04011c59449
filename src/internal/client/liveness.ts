/**
 * Whether a session can still be used, told from what becomes of its calls: an error that says that it is lost retires
 * it, and after two timeouts in a row it is asked.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import type { McpSessionError, McpSessionErrorReason } from "../../McpSessionError.ts"

export interface Options {
  /** The cheapest call there is, within its time. */
  readonly probe: Effect.Effect<unknown, McpSessionError>
  readonly retire: (reason: "died" | "unhealthy") => Effect.Effect<void>
  readonly isOwn: (error: McpSessionError) => boolean
  /** The session's. */
  readonly scope: Scope.Scope
}

/**
 * The same call, watched.
 */
export type Watch = <A>(call: Effect.Effect<A, McpSessionError>) => Effect.Effect<A, McpSessionError>

export const make = ({ isOwn, probe: ask, retire, scope }: Options): Watch => {
  let timeouts = 0
  let isProbing = false

  const probe: Effect.Effect<void> = Effect.matchEffect(ask, {
    onSuccess: () => Effect.void,
    onFailure: ({ reason }) =>
      reason._tag === "RequestTimeout" ? retire("unhealthy") : isLost(reason) ? retire("died") : Effect.void
  }).pipe(
    Effect.ensuring(Effect.sync(() => {
      timeouts = 0
      isProbing = false
    }))
  )

  return Effect.onExit((exit) => {
    if (Exit.isSuccess(exit)) {
      timeouts = 0
      return Effect.void
    }
    const error = Exit.findErrorOption(exit)
    if (error._tag === "None" || !isOwn(error.value)) return Effect.void
    const { reason } = error.value
    if (isLost(reason)) return retire("died")
    timeouts = reason._tag === "RequestTimeout" ? timeouts + 1 : 0
    if (timeouts < 2 || isProbing) return Effect.void
    isProbing = true
    return Effect.asVoid(Effect.forkIn(probe, scope))
  })
}

/**
 * Whether no call of this session can succeed any more.
 */
export const isLost = ({ _tag }: McpSessionErrorReason): boolean =>
  _tag === "SessionClosed" || _tag === "SessionExpired" || _tag === "Unreachable"
