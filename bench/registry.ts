import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { Identity } from "../src/Identity.ts"
import { SessionRegistry } from "../src/SessionRegistry.ts"
import { heap } from "./memory.ts"
import { type Figures, median, print, table } from "./support.ts"

class Registry extends SessionRegistry.Tag<Registry, { readonly id: string }>()("bench/Registry") {}

const count = 100_000
const owners = Array.from({ length: 100 }, (_, i) => Identity.fromKey(`owner-${i}`))
const ownerOf = (i: number) => owners[i % owners.length]!

const timed = <A, E, R>(ops: number, effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const started = process.hrtime.bigint()
    return Effect.map(effect, () => Number(process.hrtime.bigint() - started) / ops)
  })

/** Each operation, with so many sessions already there. */
const operations = Effect.fnUntraced(
  function*(there: number) {
    const ids = yield* Effect.forEach(
      Array.from({ length: there }),
      (_, i) => Effect.map(Registry.create(ownerOf(i)), ({ id }) => id)
    )
    const ops = 1_000
    const batch = Array.from({ length: ops }, (_, i) => i)
    const samples = { create: [] as Array<number>, get: [] as Array<number>, terminate: [] as Array<number> }
    for (let round = 0; round < 9; round++) {
      const made: Array<string> = []
      samples.create.push(
        yield* timed(
          ops,
          Effect.forEach(batch, (i) => Effect.map(Registry.create(ownerOf(i)), ({ id }) => made.push(id)), {
            discard: true
          })
        )
      )
      samples.get.push(
        yield* timed(
          ops,
          Effect.forEach(
            batch,
            (i) => Effect.scoped(Registry.get(ids[i * (there / ops)]!, ownerOf(i * (there / ops)))),
            {
              discard: true
            }
          )
        )
      )
      samples.terminate.push(
        yield* timed(ops, Effect.forEach(batch, (i) => Registry.terminate(made[i]!, ownerOf(i)), { discard: true }))
      )
    }
    return samples
  },
  Effect.provide(
    Registry.layer({ open: ({ id }) => Effect.succeed({ id }), capacity: 2 * count, unusedTimeToLive: "1 hour" })
  )
)

const memory = Effect.gen(function*() {
  const before = yield* heap
  const bare: Array<Scope.Closeable> = []
  for (let i = 0; i < count; i++) bare.push(Scope.makeUnsafe())
  const scopes = (yield* heap) - before
  bare.length = 0
  const empty = yield* heap
  for (let i = 0; i < count; i++) yield* Registry.create(ownerOf(i))
  return ((yield* heap) - empty - scopes) / count
}).pipe(
  Effect.provide(Registry.layer({
    open: ({ id }) => Effect.succeed({ id }),
    capacity: count,
    unusedTimeToLive: "1 hour"
  }))
)

export const main = Effect.gen(function*() {
  const few = yield* operations(1_000)
  const many = yield* operations(count)
  for (const operation of ["create", "get", "terminate"] as const) {
    const figures: Figures = new Map([
      ["at 1,000 sessions", median(few[operation])],
      ["at 100,000 sessions", median(many[operation])]
    ])
    table(`SessionRegistry.${operation}`, figures, "at 1,000 sessions")
  }
  print(`\nMemory of an idle inbound session beyond a bare Scope: ${(yield* memory).toFixed(0)} bytes`)
})
