/**
 * What an authorization server answers: JSON, in bounded time and size, and from nowhere else than where it was asked.
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import type * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { IdentityUnavailable } from "../../Identity.ts"

/** Why it did not say what it was asked, in words that have nothing of it but numbers. */
export class ServerFailed extends Data.TaggedError("ServerFailed")<{
  readonly issue: string
  readonly status?: number
}> {
  override get message(): string {
    return this.issue
  }
}

const maxBytes = 256 * 1024

/** How long a caller waits for all that is asked for it. */
export const patience = Duration.seconds(5)

/**
 * The JSON of the answer with status 200. The time of it is whoever's who asks: see {@link inTime}.
 *
 * A redirect is not followed: it would let the server send us anywhere within our own network. What is asked has a
 * token or a secret in it, and is in no span.
 */
export const ask = (request: HttpClientRequest.HttpClientRequest): Effect.Effect<unknown, ServerFailed> =>
  Effect.gen(function*() {
    const client = HttpClient.withScope(yield* HttpClient.HttpClient)
    const response = yield* client.execute(request)
    // Read whatever the status is, so that the connection can be used again
    const chunks: Array<Uint8Array> = []
    let size = 0
    yield* Stream.runForEach(response.stream, (chunk) => {
      size += chunk.length
      chunks.push(chunk)
      return size > maxBytes
        ? Effect.fail(new ServerFailed({ issue: `its answer is longer than ${maxBytes} bytes` }))
        : Effect.void
    })
    if (response.status !== 200) {
      return yield* new ServerFailed({ issue: `it answered ${response.status}`, status: response.status })
    }
    return yield* Effect.try({
      try: (): unknown => JSON.parse(Buffer.concat(chunks).toString()),
      catch: () => new ServerFailed({ issue: "its answer is not JSON" })
    })
  }).pipe(
    Effect.scoped,
    Effect.provideService(HttpClient.TracerDisabledWhen, () => true),
    Effect.provideService(FetchHttpClient.RequestInit, { redirect: "manual" }),
    Effect.provide(FetchHttpClient.layer),
    // Its own has the request, with all that is secret in it
    Effect.catchTag("HttpClientError", () => Effect.fail(new ServerFailed({ issue: "it can't be reached" })))
  )

export const inTime = <A, R>(effect: Effect.Effect<A, ServerFailed, R>): Effect.Effect<A, ServerFailed, R> =>
  Effect.timeoutOrElse(effect, {
    duration: patience,
    orElse: () => Effect.fail(new ServerFailed({ issue: `it took longer than ${Duration.format(patience)}` }))
  })

/** What a caller is told who can't be identified without it. */
export const unavailable = (cause: unknown, retryAfterMillis?: number): IdentityUnavailable =>
  new IdentityUnavailable({
    cause: Redacted.make(cause),
    ...(retryAfterMillis === undefined ? {} : { retryAfter: Duration.millis(retryAfterMillis) })
  })
