/**
 * What a node that runs has to say to whoever operates it, because nothing else does: it goes on, and some of its
 * sessions can't be reached.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { X509Certificate } from "node:crypto"
import type { Node } from "./node.ts"

const hour = 3_600_000

/**
 * Links that are up stay so when a certificate expires. No other is made: a node that had one would be refused, but
 * this one runs already.
 */
export const certificate = Effect.fnUntraced(function*(pem: string) {
  const clock = yield* Clock.Clock
  const { validFrom, validTo } = new X509Certificate(pem)
  const until = Date.parse(validTo)
  // Not at once, because a clock may be set
  const waitFor = (moment: number): Effect.Effect<void> =>
    Effect.suspend(() => {
      const left = moment - clock.currentTimeMillisUnsafe()
      return left <= 0 ? Effect.void : Effect.flatMap(Effect.sleep(Math.min(left, hour)), () => waitFor(moment))
    })
  yield* waitFor(until - (until - Date.parse(validFrom)) / 10)
  yield* Effect.logWarning(`The certificate of this node expires ${validTo}: start it again with another one before`)
  yield* waitFor(until + 1_000)
  yield* Effect.logError(
    `The certificate of this node has expired (${validTo}): no link is made to it or from it any more. ` +
      "Start it again with another one"
  )
})

/**
 * Nodes that start at the same moment don't see each other in time to refuse. They have nothing in common, and harm
 * nobody: but none of either kind could be started again.
 */
export const strangers = ({ fence, settings }: Node) =>
  Effect.suspend(() => fence.seen()?.strangers.length ? Effect.void : Effect.fail("none")).pipe(
    Effect.retry({ schedule: Schedule.spaced(settings.assignmentsInterval) }),
    Effect.andThen(Effect.logError(
      "Nodes that differ in what all nodes must have in common are in the same store: give those of another cluster " +
        "another one. None of either can be started again meanwhile"
    ))
  )
