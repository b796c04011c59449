/**
 * What an endpoint answers, and what comes of a request a while later.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"

export const textOf = (response: Response) => Effect.promise(() => response.text())

/** Everything of a response but its date. */
export const bytesOf = (response: Response) =>
  Effect.map(textOf(response), (body) => ({
    status: response.status,
    headers: Array.from(response.headers).filter(([name]) => name !== "date").toSorted(),
    body
  }))

interface Message {
  readonly id?: unknown
  readonly params?: { readonly data?: unknown }
  readonly result?: unknown
  readonly error?: { readonly code: number; readonly message: string }
}

/** The messages in the body of a response, whichever way they were sent. */
export const messagesOf = (response: Response) =>
  Effect.map(
    textOf(response),
    (body): ReadonlyArray<Message> =>
      response.headers.get("content-type")?.startsWith("text/event-stream") === true
        ? body.split("\n").flatMap((line) => /^data: \S/.test(line) ? [JSON.parse(line.slice(6))] : [])
        : [JSON.parse(body)]
  )

/** Waits for what another fiber or the other side of a socket will bring about. */
export const eventually = (condition: () => boolean) =>
  Effect.gen(function*() {
    while (!condition()) yield* Effect.sleep(5)
  }).pipe(Effect.timeout("20 seconds"))

/** The same where the clock stands still, as in a test that has its hand on it: goes by turns of the loop. */
export const eventuallyStanding = (condition: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() =>
    condition()
      ? Effect.void
      : Effect.andThen(
        Effect.promise(() => new Promise((resolve) => setImmediate(resolve))),
        eventuallyStanding(condition)
      )
  )

/** Asks now and then, which costs little, until the answer is so. */
export const becomes = <A, E, R>(ask: Effect.Effect<A, E, R>, isSo: (answer: A) => boolean) =>
  Effect.repeat(ask, { until: isSo, schedule: Schedule.spaced(5) }).pipe(Effect.timeout("20 seconds"))

/** Waits for as many turns of the microtask queue. */
export const pause = (steps: number) =>
  Effect.gen(function*() {
    for (let i = 0; i < steps; i++) yield* Effect.promise(() => Promise.resolve())
  })

/** What a stream says until it says `text`; then nobody reads it any more. */
export const readUntil = (response: Response, text: string) =>
  Effect.gen(function*() {
    const reader = response.body!.getReader()
    const decoder = new TextDecoder()
    let read = ""
    while (!read.includes(text)) {
      const { done, value } = yield* Effect.promise(() => reader.read())
      if (done) return yield* Effect.die(new Error(`The stream ended after ${JSON.stringify(read)}`))
      read += decoder.decode(value)
    }
    yield* Effect.promise(() => reader.cancel())
    return read
  }).pipe(Effect.timeout("20 seconds"))
