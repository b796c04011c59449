import * as Effect from "effect/Effect"
import * as ScopedCache from "effect/ScopedCache"
import { bars } from "./bars.ts"
import { identities, lruCache, Pool, pool, scopedCache } from "./pools.ts"
import { interleave, repeat, table } from "./support.ts"

const capacity = 1_000
const ops = 2_000
const peer = "ScopedCache.get"

/** Every get is a miss at capacity: the oldest session is closed and another opened. */
export const main = Effect.gen(function*() {
  const ids = identities(2 * capacity)
  const cache = yield* scopedCache(capacity)
  const lru = lruCache(capacity)
  const run = Effect.runPromiseWith(yield* Effect.context<Pool>())
  const figures = yield* interleave([
    { name: peer, ops, run: () => run(repeat(ops, (i) => ScopedCache.get(cache, ids[i]!.key))) },
    {
      name: "SessionPool.withSession",
      ops,
      run: () => run(repeat(ops, (i) => Pool.withSession(ids[i]!, Effect.succeed)))
    },
    {
      name: "lru-cache fetch",
      ops,
      // One after the other: it rejects the fetches that it evicts
      run: () => ids.reduce<Promise<unknown>>((before, { key }) => before.then(() => lru.fetch(key)), Promise.resolve())
    }
  ])
  table(`Miss with eviction at capacity ${capacity.toLocaleString("en")}`, figures, peer, {
    "SessionPool.withSession": bars.miss
  })
}).pipe(Effect.scoped, Effect.provide(pool(capacity)))
