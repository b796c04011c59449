/**
 * Visits, which keep a session from expiring under a request that has not come in full.
 */
import { assert, describe, it } from "@effect/vitest"
import * as SessionRegistry from "effect-mcp-sessions/SessionRegistry"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import * as TestClock from "effect/testing/TestClock"
import { fork, settle } from "./support/fibers.ts"
import { alice, makeBackend } from "./support/registry.ts"

const start = Effect.fnUntraced(function*() {
  const backend = makeBackend()
  const registry = yield* SessionRegistry.make({ open: backend.open, idleTimeToLive: "1 minute" }, "layer")
  return { backend, registry }
})

describe("a visit", () => {
  it.effect("keeps a session for its visitor alone when its time is over: nobody else sees or gets it", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start()
      const { id } = yield* registry.create(alice)
      const visitor = yield* fork(Effect.scoped(Effect.gen(function*() {
        const { hold } = yield* registry.visit(id, alice)
        yield* Effect.sleep("2 minutes")
        yield* hold
        yield* Effect.sleep("1 minute")
      })))
      yield* TestClock.adjust("61 seconds")
      assert.deepStrictEqual(yield* registry.entries, [])
      assert.strictEqual(yield* registry.size, 0)
      const { draining, idle, size } = yield* registry.stats
      assert.deepStrictEqual({ draining, idle, size }, { draining: 1, idle: 0, size: 0 })
      assert.strictEqual((yield* Effect.flip(registry.peek(id, alice)))._tag, "SessionNotFound")
      assert.strictEqual((yield* Effect.flip(Effect.scoped(registry.get(id, alice))))._tag, "SessionNotFound")
      assert.deepStrictEqual(backend.closed, [])
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* registry.stats).held, 1)
      assert.strictEqual((yield* registry.peek(id, alice)).id, id)
      yield* Fiber.interrupt(visitor)
      assert.strictEqual((yield* registry.stats).idle, 1)
    }))

  it.effect("that is interrupted keeps nothing, whenever that was", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start()
      let sessions = 0
      for (let ops = 3; ops <= 6; ops++) {
        for (let turns = 0; turns <= 12; turns++) {
          sessions++
          const { id } = yield* registry.create(alice)
          const visitor = yield* Effect.forkChild(Effect.scoped(
            Effect.andThen(registry.visit(id, alice), Effect.never)
          )).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops))
          for (let i = 0; i < turns; i++) yield* Effect.yieldNow
          yield* Fiber.interrupt(visitor)
          yield* TestClock.adjust("61 seconds")
          yield* settle
          assert.strictEqual(backend.closed.length, sessions, `after ${turns} turns of ${ops} operations`)
        }
      }
    }))
})
