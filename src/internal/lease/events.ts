/**
 * A stream of events that never slows down, or runs any code of its readers in, whoever emits them.
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"

export interface Events<A> {
  readonly emit: (event: A) => void
  /** From now on. Ends after the last event, when the emitter's scope closes. A slow reader loses the oldest. */
  readonly stream: Stream.Stream<A>
  /** How many events readers have lost. */
  readonly lost: () => number
}

/** How many events wait for a reader that is slow. */
const capacity = 1024

/**
 * Every reader has a queue of its own: what one of them leaves lying is lost to that one alone, and nothing is kept
 * when nobody reads. It is offered to, and never published to: `PubSub.publishUnsafe` on a full sliding one drops the
 * newest, and a waiting reader's code would run at once. `Queue.offerUnsafe` leaves that to the reader's own turn.
 *
 * The emitter lives as long as the current scope, and every event emitted before that closes is delivered.
 */
export const make = Effect.fnUntraced(function*<A>() {
  const readers = new Set<Queue.Queue<A, Cause.Done>>()
  let lost = 0
  let isOver = false
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      isOver = true
      for (const reader of readers) Queue.endUnsafe(reader)
    })
  )
  const read = Effect.acquireRelease(
    Effect.tap(Queue.sliding<A, Cause.Done>(capacity), (reader) =>
      Effect.sync(() => {
        if (isOver) Queue.endUnsafe(reader)
        else readers.add(reader)
      })),
    (reader) => Effect.andThen(Effect.sync(() => readers.delete(reader)), Queue.shutdown(reader))
  )
  return {
    emit: (event) => {
      for (const reader of readers) {
        if (Queue.sizeUnsafe(reader) >= capacity) lost++
        Queue.offerUnsafe(reader, event)
      }
    },
    stream: Stream.unwrap(Effect.map(read, Stream.fromQueue)),
    lost: () => lost
  } satisfies Events<A> as Events<A>
})
