import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type { Credentials } from "./Identity.ts"

/**
 * What a connector needs from the pool: a way to say that this very session has died, and the newest credentials.
 *
 * @category models
 */
export interface SessionHandle {
  /**
   * Says that this session can't be used any more: it takes no new lease, the next get opens another, and it is closed
   * when its last lease ends. It can never retire its successor, and saying it twice is saying it once.
   */
  readonly retire: (reason: "died" | "unhealthy") => Effect.Effect<void>
  /**
   * The newest credentials that were presented for this session's key, so that a rotated token reaches a live session.
   */
  readonly credentials: Effect.Effect<Option.Option<Credentials>>
}
