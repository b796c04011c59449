import * as Effect from "effect/Effect"
import * as RcMap from "effect/RcMap"
import * as ScopedCache from "effect/ScopedCache"
import { SessionPool } from "../src/SessionPool.ts"
import { bars } from "./bars.ts"
import { identities, lruCache, Pool, pool, rcMap, scopedCache } from "./pools.ts"
import { inProcess } from "./servers.ts"
import { type Figures, interleave, print, repeat, table } from "./support.ts"

const ops = 20_000
const peer = "Effect.scoped(RcMap.get)"

/** What a call is that waits for its answer, as far as the pool can see: no exit. */
const suspending = <Session>(session: Session) => Effect.suspend(() => Effect.succeed(session))

/** The same pool, of sessions whose requests are counted. */
const real = Effect.gen(function*() {
  const ids = identities(1_000)
  for (const id of ids) yield* Effect.scoped(SessionPool.get(id))
  const run = Effect.runPromiseWith(yield* Effect.context<SessionPool>())
  return [
    {
      name: "SessionPool.withSession, McpSession",
      ops,
      run: () => run(repeat(ops, (i) => SessionPool.withSession(ids[i % 1_000]!, Effect.succeed)))
    },
    {
      name: "the same, f suspends",
      ops,
      run: () => run(repeat(ops, (i) => SessionPool.withSession(ids[i % 1_000]!, suspending)))
    }
  ]
})

/** A hit, at so many keys, against everything else that could hold a session by its key. */
const hits = (count: number) =>
  Effect.gen(function*() {
    const ids = identities(count)
    const [map, cache, lru] = [yield* rcMap, yield* scopedCache(count), lruCache(count)]
    const plain = new Map(ids.map(({ key }) => [key, { key }]))
    for (const id of ids) {
      yield* Effect.scoped(Pool.get(id))
      yield* Effect.scoped(RcMap.get(map, id.key))
      yield* ScopedCache.get(cache, id.key)
      lru.set(id.key, { key: id.key })
    }
    const id = (i: number) => ids[i % count]!
    const run = Effect.runPromiseWith(yield* Effect.context<Pool>())
    const figures = yield* interleave([
      { name: peer, ops, run: () => run(repeat(ops, (i) => Effect.scoped(RcMap.get(map, id(i).key)))) },
      {
        name: "Effect.scoped(SessionPool.get)",
        ops,
        run: () => run(repeat(ops, (i) => Effect.scoped(Pool.get(id(i)))))
      },
      {
        name: "SessionPool.withSession",
        ops,
        run: () => run(repeat(ops, (i) => Pool.withSession(id(i), Effect.succeed)))
      },
      ...(count === 1_000 ? yield* real : []),
      {
        name: "ScopedCache.get (nothing leased)",
        ops,
        run: () => run(repeat(ops, (i) => ScopedCache.get(cache, id(i).key)))
      },
      {
        name: "lru-cache fetch (nothing leased)",
        ops,
        run: () => Promise.all(Array.from({ length: ops }, (_, i) => lru.fetch(id(i).key)))
      },
      {
        name: "Map.get (nothing leased)",
        ops,
        run: () => {
          for (let i = 0; i < ops; i++) plain.get(id(i).key)
        }
      }
    ])
    table(
      `Hit at ${count.toLocaleString("en")} keys`,
      figures,
      peer,
      count !== 1_000 ? {} : {
        "Effect.scoped(SessionPool.get)": bars.scopedGet,
        "SessionPool.withSession": bars.withSession,
        "the same, f suspends": bars.withSessionSuspending
      }
    )
  }).pipe(
    Effect.scoped,
    Effect.provide(pool(count)),
    Effect.provide(SessionPool.layer({ connect: inProcess, capacity: 1_000 }))
  )

/** One hundred hot identities, alone and among a hundred thousand sessions. */
const crowded = Effect.gen(function*() {
  const ids = identities(100_000)
  const hot = (i: number) => ids[i % 100]!
  const side = (count: number) =>
    Effect.gen(function*() {
      for (const id of ids.slice(0, count)) yield* Effect.scoped(Pool.get(id))
      const run = Effect.runPromiseWith(yield* Effect.context<Pool>())
      return (name: string) => ({
        name,
        ops,
        run: () => run(repeat(ops, (i) => Pool.withSession(hot(i), Effect.succeed)))
      })
    })
  const figures: Figures = yield* Effect.gen(function*() {
    const alone = yield* side(100)
    return yield* Effect.gen(function*() {
      const among = yield* side(100_000)
      return yield* interleave([alone("100 alone"), among("the same among 100,000")])
    }).pipe(Effect.provide(pool(100_000)))
  }).pipe(Effect.provide(pool(100)))
  table("100 hot identities", figures, "100 alone", { "the same among 100,000": bars.crowded })
})

export const main = Effect.gen(function*() {
  print("A hit takes a lease and gives it back.")
  for (const count of [1, 1_000, 100_000]) yield* hits(count)
  yield* crowded
})
