import { assert, describe, it } from "@effect/vitest"
import type { Identity } from "effect-mcp-sessions"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as TestClock from "effect/testing/TestClock"
import { a, b, c, identities } from "./support/identities.ts"
import { lease, start, visit } from "./support/pool.ts"

/** So many milliseconds for each name. */
const by = (millis: Readonly<Record<string, Duration.Input>>) => ({ key }: Identity): Duration.Input => millis[key]!

/** From 1 to 100, another for each of a hundred keys. */
const shuffled = (key: string) => (Number(key.slice(1)) * 37) % 100 + 1

describe("durations of each identity", () => {
  it.effect("idleTimeToLive: each session is closed at its own time, whichever became idle first", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ idleTimeToLive: by({ a: 300, b: 100, c: "200 millis" }) })
      for (const identity of [a, b, c]) yield* visit(pool, identity)
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(upstream.closed, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(upstream.closed, ["b1"])
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(upstream.closed, ["b1", "c1"])
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(upstream.closed, ["b1", "c1", "a1"])
      assert.strictEqual((yield* pool.stats).expirations, 3)
    }))

  it.effect("idleTimeToLive: a shorter one that comes later does not wait for the longer one", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ idleTimeToLive: by({ a: 1_000, b: 10 }) })
      yield* visit(pool, a)
      yield* TestClock.adjust(500)
      yield* visit(pool, b)
      yield* TestClock.adjust(11)
      assert.deepStrictEqual(upstream.closed, ["b1"])
    }))

  it.effect("idleTimeToLive: counts from the last use, and not while the session is in use", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ idleTimeToLive: by({ a: 100, b: 1_000 }) })
      yield* visit(pool, a)
      yield* visit(pool, b)
      yield* TestClock.adjust(90)
      yield* visit(pool, a)
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(upstream.closed, [], "it was used at 90")
      const held = yield* lease(pool, a)
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(upstream.closed, [])
      yield* held.release
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(upstream.closed, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("idleTimeToLive: infinity for one is none for the others", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ idleTimeToLive: by({ a: Duration.infinity, b: 100 }) })
      yield* visit(pool, a)
      yield* visit(pool, b)
      yield* TestClock.adjust("365 days")
      assert.deepStrictEqual(upstream.closed, ["b1"])
      assert.strictEqual(Duration.toMillis((yield* pool.stats).idleTimeToLive), Infinity)
    }))

  it.effect("idleTimeToLive: the least recently used session is still the one that is evicted", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 2, idleTimeToLive: by({ a: 900, b: 100, c: 100 }) })
      for (const identity of [a, b, c]) yield* visit(pool, identity)
      assert.deepStrictEqual(upstream.closed, ["a1"])
      assert.deepStrictEqual(
        (yield* pool.entries).map((entry) => [entry.key, Duration.toMillis(entry.idleTimeToLive)]),
        [
          ["b", 100],
          ["c", 100]
        ]
      )
      yield* TestClock.adjust(901)
      assert.sameMembers(upstream.closed, ["a1", "b1", "c1"])
      assert.strictEqual(Duration.toMillis((yield* pool.stats).idleTimeToLive), 0)
    }))

  it.effect("idleTimeToLive: a hundred different ones end in their order", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 100, idleTimeToLive: ({ key }) => shuffled(key) })
      for (const identity of identities(100)) yield* visit(pool, identity)
      for (let now = 1; now <= 101; now++) {
        yield* TestClock.adjust(1)
        const expected = identities(100).map(({ key }) => key).filter((key) => shuffled(key) < now)
        assert.sameMembers(upstream.closed.map((name) => name.slice(0, -1)), expected)
      }
    }))

  it.effect("maxLifetime: each session ends at its own time", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ maxLifetime: by({ a: 1_000, b: 100, c: Duration.infinity }) })
      for (const identity of [a, b, c]) yield* visit(pool, identity)
      yield* TestClock.adjust(101)
      assert.deepStrictEqual(upstream.closed, ["b1"])
      yield* TestClock.adjust(1_000)
      assert.deepStrictEqual(upstream.closed, ["b1", "a1"])
    }))

  it.effect("checkAfter: each session is checked after its own time", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const { pool } = yield* start({
        checkAfter: by({ a: 0, b: 100 }),
        check: ({ name }) => Effect.sync(() => asked.push(name))
      })
      yield* visit(pool, a)
      yield* visit(pool, b)
      yield* TestClock.adjust(99)
      yield* visit(pool, a)
      yield* visit(pool, b)
      assert.deepStrictEqual(asked, ["a1"])
      yield* TestClock.adjust(100)
      yield* visit(pool, b)
      assert.deepStrictEqual(asked, ["a1", "b1"])
    }))

  it.effect("is asked of a new session only, with the identity that it is for", () =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const { pool } = yield* start({
        capacity: 1,
        idleTimeToLive: ({ key }) => {
          asked.push(key)
          return 100
        }
      })
      for (const identity of [a, a, b, b, a]) yield* visit(pool, identity)
      assert.deepStrictEqual(asked, ["a", "b", "a"])
    }))

  for (const option of ["idleTimeToLive", "maxLifetime", "checkAfter"] as const) {
    it.effect.each([Number.NaN, -1, "soon", undefined, null])(
      `${option}: its caller dies of InvalidOptions when the answer is %s, and nobody else does`,
      (answer) =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({
            capacity: 1,
            check: () => Effect.void,
            [option]: ({ key }: Identity) => key === "a" ? answer as number : 1_000
          })
          const exit = yield* Effect.exit(visit(pool, a))
          const defect = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
          assert.instanceOf(defect, InvalidOptions)
          assert.strictEqual(defect.option, option)
          assert.match(defect.issue, /^must answer with a duration of /)
          yield* visit(pool, b)
          const { draining, failures, leased, opening, waiting } = yield* pool.stats
          assert.deepStrictEqual(upstream.opened, ["b1"])
          assert.deepStrictEqual([opening, leased, draining, waiting, failures], [0, 0, 0, 0, 0])
        })
    )
  }

  it.effect("a function that throws is its caller's defect, and changes nothing", () =>
    Effect.gen(function*() {
      const thrown = new Error("no such tenant")
      const { pool, upstream } = yield* start({
        idleTimeToLive: ({ key }) => {
          if (key === "a") throw thrown
          return 100
        }
      })
      for (const got of [visit(pool, a), pool.withSession(a, Effect.succeed)]) {
        const exit = yield* Effect.exit(got)
        assert.strictEqual(Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined, thrown)
      }
      yield* visit(pool, b)
      assert.deepStrictEqual(upstream.opened, ["b1"])
    }))
})
