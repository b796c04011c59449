/**
 * A stream of events that never slows down, or runs any code of its readers in, whoever emits them.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as PubSub from "effect/PubSub"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import type * as Cause from "effect/Cause"

export interface Events<A> {
  readonly emit: (event: A) => void
  /** From now on. Ends after the last event, when the emitter's scope closes. A slow reader loses the oldest. */
  readonly stream: Stream.Stream<A>
}

// In batches: as many as were emitted in one go.
const capacity = 1024

/**
 * The queue is what an emitter without a fiber can offer to: published at once, an event would run the code of its
 * readers, and `PubSub.publishUnsafe` on a full sliding one drops the newest.
 *
 * The emitter lives as long as the current scope, and every event emitted before that closes is delivered.
 */
export const make = Effect.fnUntraced(function*<A>() {
  const pubsub = yield* PubSub.sliding<Take.Take<A>>(capacity)
  const queue = yield* Queue.unbounded<A, Cause.Done>()
  const forwarder = yield* Queue.takeAll(queue).pipe(
    Effect.flatMap((batch) => PubSub.publish(pubsub, batch)),
    Effect.forever,
    Effect.ignoreCause,
    Effect.andThen(Effect.sync(() => PubSub.endUnsafe(pubsub, Exit.void))),
    Effect.forkDetach
  )
  yield* Effect.addFinalizer(() => Effect.andThen(Queue.end(queue), Fiber.await(forwarder)))
  return {
    emit: (event) => {
      Queue.offerUnsafe(queue, event)
    },
    stream: Stream.fromPubSubTake(pubsub)
  } satisfies Events<A> as Events<A>
})
