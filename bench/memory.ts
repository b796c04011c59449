import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Identity } from "../src/Identity.ts"
import { type Bar, bars } from "./bars.ts"
import { identities, open, Pool, pool, type Session } from "./pools.ts"
import { against, print } from "./support.ts"

const count = 100_000

const collect = Effect.promise(() => {
  globalThis.gc?.()
  return new Promise((resolve) => setImmediate(resolve))
})

export const heap = Effect.map(Effect.repeat(collect, { times: 3 }), () => process.memoryUsage().heapUsed)

const sharesOf = (ids: ReadonlyArray<Identity>) =>
  Effect.gen(function*() {
    const empty = yield* heap
    return yield* Effect.gen(function*() {
      for (const id of ids) yield* Effect.scoped(Pool.get(id))
      return (yield* heap) - empty
    }).pipe(Effect.provide(pool(count)))
  })

const services = (many: number): Context.Context<never> =>
  Array.from({ length: many }, (_, i) => Context.Service<number>(`bench/Service${i}`)).reduce<Context.Context<never>>(
    (context, service, i) => Context.add(context, service, i) as Context.Context<never>,
    Context.empty()
  )

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

  const pooled = yield* sharesOf(ids)
  // Where the pool is built among an application's other services
  const amongMany = yield* sharesOf(ids).pipe(Effect.provide(services(100)))

  print(`\nMemory of an idle session, of ${count.toLocaleString("en")}`)
  print(`  ${"in a bare Scope".padEnd(44)} ${(scopes / count).toFixed(0).padStart(6)} bytes`)
  print(`  ${"in the pool".padEnd(44)} ${(pooled / count).toFixed(0).padStart(6)} bytes`)
  const show = (name: string, figure: number, bar: Bar) => {
    const share = (figure - scopes) / count
    print(`  ${name.padEnd(44)} ${share.toFixed(0).padStart(6)} bytes${against(name, share, bar)}`)
  }
  show("the pool's share", pooled, bars.idleBytes)
  show("with 100 services in the layer's context", amongMany, bars.idleBytesOfMany)
})
