import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { bars } from "./bars.ts"
import { identities, open, Pool, pool, type Session } from "./pools.ts"
import { against, print } from "./support.ts"

const count = 100_000

const collect = Effect.promise(() => {
  globalThis.gc?.()
  return new Promise((resolve) => setImmediate(resolve))
})

export const heap = Effect.map(Effect.repeat(collect, { times: 3 }), () => process.memoryUsage().heapUsed)

/** What the pool keeps of an idle session, beyond the session and a bare `Scope` that holds it. */
export const main = Effect.gen(function*() {
  const ids = identities(count)
  const before = yield* heap
  const bare: Array<readonly [Session, Scope.Closeable]> = []
  for (const id of ids) {
    const scope = Scope.makeUnsafe()
    bare.push([yield* Scope.provide(open(id.key), scope), scope])
  }
  const scopes = (yield* heap) - before
  bare.length = 0

  const empty = yield* heap
  const pooled = yield* Effect.gen(function*() {
    for (const id of ids) yield* Effect.scoped(Pool.get(id))
    return (yield* heap) - empty
  }).pipe(Effect.provide(pool(count)))

  print(`\nMemory of an idle session, of ${count.toLocaleString("en")}`)
  print(`  ${"in a bare Scope".padEnd(44)} ${(scopes / count).toFixed(0).padStart(6)} bytes`)
  print(`  ${"in the pool".padEnd(44)} ${(pooled / count).toFixed(0).padStart(6)} bytes`)
  const share = (pooled - scopes) / count
  print(
    `  ${"the pool's share".padEnd(44)} ${share.toFixed(0).padStart(6)} bytes` +
      against("Memory of an idle session", share, bars.idleBytes)
  )
})
