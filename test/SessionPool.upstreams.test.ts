import { assert, describe, it } from "@effect/vitest"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import { PoolExhausted } from "effect-mcp-sessions/SessionPoolError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import * as Scheduler from "effect/Scheduler"
import * as TestClock from "effect/testing/TestClock"
import { fork, outcome, settle } from "./support/fibers.ts"
import { assertLeaves } from "./support/heap.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { many, underLoad } from "./support/load.ts"
import { lease, openPool, refusal, start, visit } from "./support/pool.ts"
import { makeUpstream, Refused } from "./support/upstream.ts"

/** Two upstreams, by short names, of which the one is full before the other. */
const [slowA, slowB, slowC] = [a.at("slow"), b.at("slow"), c.at("slow")]
const [fastA, fastB, fastC] = [a.at("fast"), b.at("fast"), c.at("fast")]

describe("capacityPerUpstream", () => {
  it.effect("a full upstream evicts its own least recently used session, and no other", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 10, capacityPerUpstream: 2 })
      for (const identity of [fastA, slowA, slowB, slowA, slowC]) yield* visit(pool, identity)
      assert.deepStrictEqual(upstream.closed, ["~slow/b1"])
      assert.strictEqual((yield* pool.stats).evictions, 1)
    }))

  it.effect("a full pool evicts the least recently used session of all", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 3, capacityPerUpstream: 2 })
      for (const identity of [fastA, slowA, slowB, fastB]) yield* visit(pool, identity)
      assert.deepStrictEqual(upstream.closed, ["~fast/a1"])
    }))

  it.effect("whoever waits for a full upstream holds up nobody of another", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 10, capacityPerUpstream: 1 })
      const held = yield* lease(pool, slowA)
      const waiting = yield* fork(visit(pool, slowB))
      assert.strictEqual((yield* visit(pool, fastA)).name, "~fast/a1")
      assert.strictEqual((yield* visit(pool, d)).name, "d1")
      assert.strictEqual(outcome(waiting), "waiting")
      yield* held.release
      yield* settle
      assert.strictEqual(outcome(waiting), "success")
      assert.deepStrictEqual(upstream.opened, ["~slow/a1", "~fast/a1", "d1", "~slow/b1"])
    }))

  it.effect("first come, first served among those who can be", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 2, capacityPerUpstream: 1 })
      const slow = yield* lease(pool, slowA)
      const other = yield* lease(pool, d)
      // In this order: one who can't be served while the slow upstream is full, one who can, and another of the first
      const waiting = yield* Effect.forEach([slowB, fastA, slowC], (identity) => fork(visit(pool, identity)))
      yield* other.release
      yield* settle
      assert.deepStrictEqual(waiting.map(outcome), ["waiting", "success", "waiting"])
      yield* slow.release
      yield* settle
      assert.deepStrictEqual(waiting.map(outcome), ["success", "success", "success"])
      assert.deepStrictEqual(upstream.opened, ["~slow/a1", "d1", "~fast/a1", "~slow/b1", "~slow/c1"])
    }))

  it.effect("room goes to who came first, also when the upstream was full when it came", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 2, capacityPerUpstream: 1 })
      const slow = yield* lease(pool, slowA)
      yield* lease(pool, d)
      const first = yield* fork(lease(pool, slowB))
      const second = yield* fork(lease(pool, fastA))
      yield* slow.release
      yield* settle
      assert.deepStrictEqual([first, second].map(outcome), ["success", "waiting"])
      assert.deepStrictEqual(upstream.opened, ["~slow/a1", "d1", "~slow/b1"])
    }))

  it.effect("one who waits for room everywhere waits in one line with all others", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 1, capacityPerUpstream: 1 })
      const held = yield* lease(pool, d)
      const order = [slowA, a, fastA, slowB, b]
      yield* Effect.forEach(order, (identity) => fork(visit(pool, identity)))
      yield* held.release
      yield* settle
      assert.deepStrictEqual(upstream.opened.slice(1), order.map(({ key }) => `${key}1`))
    }))

  it.effect("counts what is opening and what drains", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacity: 10,
        capacityPerUpstream: 2,
        upstream: { dial: ({ identity }) => identity === slowA ? Effect.never : Effect.void }
      })
      const opening = yield* fork(visit(pool, slowA))
      const held = yield* lease(pool, slowB)
      yield* pool.invalidate(slowB)
      const waiting = yield* fork(visit(pool, slowC))
      assert.deepStrictEqual((yield* pool.stats).upstreams, [
        { upstream: "slow", capacity: 2, sessions: 2, idle: 0, waiting: 1 }
      ])
      yield* held.release
      yield* settle
      assert.strictEqual(outcome(waiting), "success")
      yield* Fiber.interrupt(opening)
      assert.deepStrictEqual((yield* pool.stats).upstreams, [
        { upstream: "slow", capacity: 2, sessions: 1, idle: 1, waiting: 0 }
      ])
    }))

  it.effect("one that only waits and leaves is forgotten, and so is one whose sessions have gone", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 1, capacityPerUpstream: 1 })
      const held = yield* lease(pool, fastA)
      const waiting = yield* fork(visit(pool, slowA))
      assert.deepStrictEqual((yield* pool.stats).upstreams.map(({ upstream }) => upstream), ["fast", "slow"])
      yield* Fiber.interrupt(waiting)
      yield* held.release
      yield* pool.invalidate(fastA)
      yield* settle
      assert.deepStrictEqual((yield* pool.stats).upstreams, [])
    }))

  it.effect("one whose opens fail at once is forgotten, and its limit asked for again", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const { pool } = yield* start({
        capacityPerUpstream: (name) => asked.push(name),
        upstream: { dial: () => Effect.fail(new Refused({ why: "down" })) }
      })
      for (const identity of [slowA, fastA, slowB]) yield* Effect.flip(visit(pool, identity))
      assert.deepStrictEqual((yield* pool.stats).upstreams, [])
      assert.deepStrictEqual(asked, ["slow", "fast", "slow"])
    }))

  it.effect("one whose session fails to open ahead at once is forgotten, too", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacityPerUpstream: 1,
        upstream: { dial: () => Effect.fail(new Refused({ why: "down" })) }
      })
      assert.strictEqual(yield* pool.prewarm([slowA, fastA]), 0)
      assert.deepStrictEqual((yield* pool.stats).upstreams, [])
    }).pipe(Effect.provide(Logger.layer([]))))

  it.effect("holds when somebody comes while another, who was the last to wait there, is being told", () =>
    Effect.gen(function*() {
      // Between two steps of the one there may be any of the other's
      for (let ops = 5; ops <= 12; ops++) {
        const { pool } = yield* start({ capacity: 2, capacityPerUpstream: 1, acquireTimeout: 100 })
        const held = yield* Effect.forEach([a, b], (identity) => lease(pool, identity))
        const told = yield* fork(
          Effect.provideService(Effect.exit(visit(pool, slowA)), Scheduler.MaxOpsBeforeYield, ops)
        )
        yield* settle
        assert.strictEqual((yield* pool.stats).waiting, 1)
        const comes = yield* fork(Effect.gen(function*() {
          while ((yield* pool.stats).waiting > 0) yield* Effect.yieldNow
          for (const { release } of held) yield* release
          return yield* lease(pool, slowB)
        }))
        yield* TestClock.adjust(100)
        yield* Effect.repeat(settle, { times: 2 })
        assert.deepStrictEqual([outcome(told), outcome(comes)], ["success", "success"], `a yield after each ${ops}`)
        const waiting = yield* fork(visit(pool, slowC))
        yield* settle
        assert.strictEqual(outcome(waiting), "waiting", `a yield after each ${ops}`)
        yield* Fiber.interrupt(waiting)
        yield* pool.close
      }
    }))

  it.effect("holds when the only session of an upstream is evicted for the next of the same", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 10, capacityPerUpstream: 1 })
      for (const identity of [slowA, slowB]) yield* visit(pool, identity)
      yield* lease(pool, slowC)
      const waiting = yield* fork(visit(pool, slowA))
      yield* settle
      assert.strictEqual(outcome(waiting), "waiting")
      assert.strictEqual(upstream.live(), 1)
    }))

  it.effect("PoolExhausted says which limit it was", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 3, capacityPerUpstream: 2, acquireTimeout: 100 })
      yield* lease(pool, slowA)
      yield* lease(pool, slowB)
      const upstreamsOwn = yield* fork(Effect.flip(visit(pool, slowC)))
      yield* TestClock.adjust(100)
      const first = yield* Fiber.join(upstreamsOwn)
      assert.instanceOf(first, PoolExhausted)
      assert.deepInclude(first, { limit: "capacityPerUpstream", capacity: 2, held: 0 })
      assert.match(first.message, /^All 2 sessions of the upstream were in use for 100ms\. .*raise capacityPerUpstream/)
      yield* lease(pool, d)
      const common = yield* fork(Effect.flip(visit(pool, fastA)))
      yield* TestClock.adjust(100)
      assert.deepInclude(yield* Fiber.join(common), { limit: "capacity", capacity: 3 })
    }))

  it.effect("an acquireTimeout of 0 fails at once, and says which limit it was", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 2, capacityPerUpstream: 1, acquireTimeout: 0 })
      yield* lease(pool, slowA)
      assert.deepInclude(yield* Effect.flip(visit(pool, slowB)), { limit: "capacityPerUpstream", capacity: 1 })
      yield* lease(pool, d)
      assert.deepInclude(yield* Effect.flip(visit(pool, fastA)), { limit: "capacity", capacity: 2 })
      assert.deepStrictEqual((yield* pool.stats).upstreams.map(({ upstream }) => upstream), ["slow"])
    }))

  it.effect("may be a function, which is asked once for each upstream that there is something of", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const { pool, upstream } = yield* start({
        capacity: 10,
        capacityPerUpstream: (name) => {
          asked.push(name)
          return name === "slow" ? 1 : 2
        }
      })
      for (const identity of [slowA, fastA, slowB, fastB, fastC, d]) yield* visit(pool, identity)
      assert.deepStrictEqual(upstream.closed, ["~slow/a1", "~fast/a1"])
      assert.deepStrictEqual(asked, ["slow", "fast"])
    }))

  it.effect.each([0, 1.5, Number.NaN, -1, Infinity, "2"])(
    "its caller dies of InvalidOptions when the function answers %s, and nobody else does",
    (answer) =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacityPerUpstream: (name) => name === "slow" ? answer as number : 1
        })
        const exit = yield* Effect.exit(visit(pool, slowA))
        const defect = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
        assert.instanceOf(defect, InvalidOptions)
        assert.strictEqual(defect.option, "capacityPerUpstream")
        assert.match(defect.issue, /^must answer with an integer of at least 1, got /)
        yield* visit(pool, fastA)
        assert.deepStrictEqual(upstream.opened, ["~fast/a1"])
        assert.strictEqual((yield* pool.stats).opening, 0)
      })
  )

  it.effect("is refused by the layer when it has no meaning", () =>
    Effect.gen(function*() {
      for (const value of [0, 1.5, Number.NaN, "2", null, true]) {
        const error = yield* refusal({ connect: makeUpstream().connect, capacityPerUpstream: value })
        assert.instanceOf(error, InvalidOptions)
        assert.strictEqual(error.option, "capacityPerUpstream")
      }
    }))

  it.effect("a hung upstream and its herd cost the others nothing", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacity: 4,
        capacityPerUpstream: 2,
        upstream: { dial: ({ identity }) => identity.key.startsWith("~hung/") ? Effect.never : Effect.void }
      })
      const herd = yield* Effect.forEach(identities(50), (identity) => fork(visit(pool, identity.at("hung"))))
      for (const identity of identities(50)) yield* visit(pool, identity.at("well"))
      assert.isTrue(herd.every((fiber) => outcome(fiber) === "waiting"))
      assert.deepInclude(yield* pool.stats, { opening: 2, idle: 2, waiting: 48 })
    }))

  it.effect("what waits for a place among the closing holds up nobody who can have room", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({
        capacity: 2,
        capacityPerUpstream: 1,
        closeTimeout: "1 minute",
        acquireTimeout: "10 minutes",
        upstream: { hangUp: ({ name }) => name.startsWith("~") ? Effect.never : Effect.void }
      })
      // Two closes hang, so nothing can be evicted
      for (const identity of [slowA, slowB]) yield* visit(pool, identity)
      yield* pool.invalidate(slowB)
      yield* visit(pool, fastA)
      const waiting = yield* fork(visit(pool, fastB))
      assert.strictEqual(outcome(waiting), "waiting")
      assert.strictEqual((yield* visit(pool, slowC)).name, "~slow/c1")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(outcome(waiting), "success")
      assert.include(upstream.closed, "~fast/a1")
    }))
})

describe("upstreams that somebody has made up", () => {
  it.effect(
    "leave nothing behind, whether they open, fail or wait, and slow down nobody",
    () =>
      Effect.gen(function*() {
        const count = many(600, 100_000)
        const pool = yield* openPool({
          capacity: 20,
          capacityPerUpstream: 2,
          acquireTimeout: "1 second",
          idleTimeToLive: "1 minute",
          failureBackoff: Schedule.exponential("1 second"),
          connect: (identity, handle) =>
            identity.key.startsWith("~bad")
              ? Effect.fail(new Refused({ why: identity.key }))
              : Effect.succeed({ name: identity.key, identity, handle, isOpen: true })
        })
        const use = (name: string) => Effect.exit(visit(pool, a.at(name)))
        // A third of them each
        const round = Effect.fnUntraced(function*(n: number) {
          for (let i = 0; i < n; i += 3) {
            yield* use(`good-${i}`)
            yield* use(`bad-${i}`)
          }
          const held = yield* Effect.forEach(identities(20), (identity) => lease(pool, identity))
          for (let i = 0; i < n; i += 600) {
            const waiting: Array<Fiber.Fiber<unknown>> = []
            for (let j = i; j < Math.min(n, i + 600); j += 3) waiting.push(yield* fork(use(`wait-${j}`)))
            assert.strictEqual((yield* pool.stats).waiting, waiting.length)
            yield* TestClock.adjust("1 second")
            yield* Fiber.awaitAll(waiting)
          }
          for (const { release } of held) yield* release
          yield* TestClock.adjust("2 minutes")
          const { draining, size, upstreams, waiting } = yield* pool.stats
          assert.deepStrictEqual({ draining, size, upstreams, waiting }, {
            draining: 0,
            size: 0,
            upstreams: [],
            waiting: 0
          })
        })
        // What is left of one would be some kilobytes
        yield* assertLeaves(round(300), round(count), () => 100 * count)
        const snapshot = yield* Metric.snapshot
        const names = new Set(
          snapshot.map(({ attributes }) => attributes?.["upstream"]).filter((name) => name !== undefined)
        )
        assert.isAtMost(names.size, 102)
        assert.isTrue(names.has("other"))
      }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())),
    underLoad
  )
})
