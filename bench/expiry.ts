import * as Effect from "effect/Effect"
import * as ScopedCache from "effect/ScopedCache"
import * as TestClock from "effect/testing/TestClock"
import type { Identity } from "../src/Identity.ts"
import { bars } from "./bars.ts"
import { identities, open, Pool } from "./pools.ts"
import { type Figures, median, table } from "./support.ts"

const expiring = 100

const minutes = 60_000

/** A thousand of them, up to a second longer than five minutes. */
const different = ({ key }: Identity): number => 5 * minutes + Number(key.slice("key-".length)) % 1_000

/** How long it takes until 100 of so many idle sessions have expired, in nanoseconds each. */
const pooled = (count: number, idleTimeToLive: typeof different | number = 5 * minutes) =>
  Effect.gen(function*() {
    for (const id of identities(count)) {
      yield* Effect.scoped(Pool.get(id))
      if (id.key === `key-${expiring - 1}`) yield* TestClock.adjust("1 minute")
    }
    // The first hundred are a minute older than the rest.
    const started = process.hrtime.bigint()
    yield* TestClock.adjust(5 * minutes)
    const nanos = Number(process.hrtime.bigint() - started) / expiring
    const { expirations } = yield* Pool.stats
    return expirations === expiring ? nanos : yield* Effect.die(`${expirations} sessions have expired`)
  }).pipe(
    Effect.provide(
      Pool.layer({ capacity: count, idleTimeToLive, connect: (identity) => open(identity.key) })
    ),
    Effect.provide(TestClock.layer())
  )

/** The same with the only sweep that a bare `ScopedCache` has. */
const cached = (count: number) =>
  Effect.gen(function*() {
    const cache = yield* ScopedCache.make({ lookup: open, capacity: count, timeToLive: "5 minutes" })
    for (const id of identities(count)) {
      yield* ScopedCache.get(cache, id.key)
      if (id.key === `key-${expiring - 1}`) yield* TestClock.adjust("1 minute")
    }
    const started = process.hrtime.bigint()
    yield* TestClock.adjust("5 minutes")
    yield* ScopedCache.keys(cache)
    return Number(process.hrtime.bigint() - started) / expiring
  }).pipe(Effect.scoped, Effect.provide(TestClock.layer()))

/** The sides in turns. */
const measured = Effect.fnUntraced(function*<E>(
  sides: ReadonlyArray<readonly [name: string, nanos: Effect.Effect<number, E>]>,
  rounds: number
) {
  const samples = new Map<string, Array<number>>(sides.map(([name]) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const [name, side] of sides) samples.get(name)!.push(yield* side)
  }
  const figures: Figures = new Map(Array.from(samples, ([name, values]) => [name, median(values)]))
  return figures
})

export const main = Effect.gen(function*() {
  const figures = yield* measured([
    ["SessionPool, 100 of 1,000", pooled(1_000)],
    ["SessionPool, 100 of 100,000", pooled(100_000)],
    ["ScopedCache.keys, 100 of 1,000", cached(1_000)],
    ["ScopedCache.keys, 100 of 100,000", cached(100_000)]
  ], 5)
  table("Expiry, for each session that expires", figures, "SessionPool, 100 of 1,000", {
    "SessionPool, 100 of 100,000": bars.expiry
  })
  // At a hundred moments rather than one, and the test clock stops at each of them.
  const ofEach = yield* measured([
    ["SessionPool, 100 of 1,000", pooled(1_000, different)],
    ["SessionPool, 100 of 100,000", pooled(100_000, different)]
  ], 3)
  table("The same, with 1,000 different times to live", ofEach, "SessionPool, 100 of 1,000", {
    "SessionPool, 100 of 100,000": bars.expiry
  })
})
