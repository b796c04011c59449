import { assert, describe, it } from "@effect/vitest"
import type { Identity } from "effect-mcp-sessions"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import * as Early from "../src/internal/lease/early.ts"
import * as Fairness from "../src/internal/lease/fairness.ts"
import * as Leased from "../src/internal/lease/leased.ts"
import { fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { lease, type OpenPool, record, start, visit } from "./support/pool.ts"
import { Refused } from "./support/upstream.ts"

/** Callers of one identity who come every 50 ms and stay for 100: its session is never without a lease. */
const overlapping = (pool: OpenPool, identity: Identity, times = 1_000) =>
  Effect.forEach(
    Array.from({ length: times }),
    () => Effect.andThen(fork(Effect.ignore(pool.withSession(identity, () => Effect.sleep(100)))), Effect.sleep(50)),
    { discard: true }
  )

/** An engine that nobody else looks after. */
const openEngine = Leased.make<string, string, never, never>({
  capacity: 3,
  idleTimeToLive: Infinity,
  maxLifetime: Infinity,
  openTimeout: 1_000,
  closeTimeout: 1_000,
  drainTimeout: 0,
  open: ({ key }) => Effect.succeed(key),
  openTimedOut: () => assert.fail(),
  shutDown: () => assert.fail(),
  labels: () => ({}),
  onOpened: () => {},
  onOpenFailed: () => {},
  onRetired: () => {},
  onClosed: () => {},
  onCloseFailed: () => {}
})

describe("fairness", () => {
  it.effect("callers who overlap do not keep their session from whoever waits", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 1, acquireTimeout: 10_000 })
      yield* fork(overlapping(pool, a))
      yield* TestClock.adjust(500)
      const waiting = yield* fork(visit(pool, b))
      yield* TestClock.adjust(4_999)
      assert.deepStrictEqual(upstream.closed, [], "not before half of its time is over")
      assert.strictEqual(outcome(waiting), "waiting")
      yield* TestClock.adjust(101)
      assert.strictEqual(outcome(waiting), "success")
      assert.deepStrictEqual(upstream.opened.slice(0, 2), ["a1", "b1"])
    }))

  it.effect("the session that has been held for longest gives way, not the least recently leased", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 3, acquireTimeout: 1_000 })
      const { lines } = yield* record(pool)
      const first = yield* lease(pool, a)
      const second = yield* lease(pool, b)
      yield* lease(pool, c)
      // Whoever has the first now came last, and it was never without a lease
      const again = yield* lease(pool, a)
      yield* first.release
      const waiting = yield* fork(visit(pool, d))
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(lines.filter((line) => line.startsWith("Retired")), ["Retired a: evicted"])
      assert.strictEqual((yield* pool.stats).evictions, 1)
      yield* again.release
      yield* settle
      assert.strictEqual(outcome(waiting), "success")
      yield* second.release
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("one session gives way, however long the caller waits for it", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 3, acquireTimeout: 1_000 })
      yield* Effect.forEach([a, b, c], (identity) => lease(pool, identity))
      const waiting = yield* fork(visit(pool, d))
      yield* TestClock.adjust(999)
      assert.deepInclude(yield* pool.stats, { evictions: 1, leased: 2, draining: 1 })
      yield* TestClock.adjust(1)
      assert.strictEqual(outcome(waiting), "PoolExhausted")
      assert.strictEqual((yield* pool.stats).evictions, 1)
    }))

  it.effect("several who wait are made room for one after the other, in their order", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 4, acquireTimeout: 1_000 })
      const held = yield* Effect.forEach(identities(4), (identity) => lease(pool, identity))
      const waiting = yield* Effect.forEach([a, b], (identity) => fork(lease(pool, identity)))
      yield* TestClock.adjust(500)
      assert.deepInclude(yield* pool.stats, { evictions: 1, draining: 1 })
      yield* held[0]!.release
      yield* settle
      assert.deepStrictEqual(waiting.map(outcome), ["success", "waiting"])
      assert.deepInclude(yield* pool.stats, { evictions: 2, draining: 1 })
      yield* held[1]!.release
      yield* settle
      assert.deepStrictEqual(waiting.map(outcome), ["success", "success"])
      assert.deepStrictEqual(upstream.closed, ["k01", "k11"])
      assert.strictEqual((yield* pool.stats).evictions, 2)
    }))

  it.effect("what drains for a caller who leaves is for the next in line, and no other session gives way", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 3, acquireTimeout: 1_000 })
      const held = yield* Effect.forEach(identities(3), (identity) => lease(pool, identity))
      const leaving = yield* Effect.forEach([a, b, c], (identity) => fork(visit(pool, identity)))
      const staying = yield* fork(visit(pool, d))
      yield* TestClock.adjust(500)
      for (const fiber of leaving) yield* Fiber.interrupt(fiber)
      yield* settle
      assert.deepInclude(yield* pool.stats, { evictions: 1, draining: 1, waiting: 1 })
      yield* held[0]!.release
      yield* settle
      assert.strictEqual(outcome(staying), "success")
      assert.strictEqual((yield* pool.stats).evictions, 1)
    }))

  it.effect("what has drained in vain for one caller until it gave up is not relied on by the next", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 2, acquireTimeout: 1_000 })
      yield* lease(pool, a)
      const second = yield* lease(pool, b)
      const first = yield* fork(visit(pool, c))
      yield* TestClock.adjust(400)
      const next = yield* fork(visit(pool, d))
      yield* TestClock.adjust(600)
      assert.strictEqual(outcome(first), "PoolExhausted")
      assert.deepInclude(yield* pool.stats, { evictions: 2, draining: 2 })
      yield* second.release
      yield* settle
      assert.strictEqual(outcome(next), "success")
    }))

  it.effect("a session that becomes idle meanwhile is taken at once, and none gives way later", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 2, acquireTimeout: 1_000 })
      yield* lease(pool, a)
      const other = yield* lease(pool, b)
      const waiting = yield* fork(visit(pool, c))
      yield* TestClock.adjust(499)
      yield* other.release
      yield* settle
      assert.strictEqual(outcome(waiting), "success")
      yield* TestClock.adjust(1_000)
      assert.deepStrictEqual(upstream.closed, ["b1"])
      assert.strictEqual((yield* pool.stats).evictions, 1)
    }))

  it.effect("of a full upstream, a session of that upstream gives way", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 10, capacityPerUpstream: 1, acquireTimeout: 1_000 })
      yield* lease(pool, d)
      const held = yield* lease(pool, a.at("slow"))
      yield* lease(pool, a.at("fast"))
      const waiting = yield* fork(visit(pool, b.at("slow")))
      yield* TestClock.adjust(500)
      assert.deepInclude(yield* pool.stats, { evictions: 1, draining: 1 })
      yield* held.release
      yield* settle
      assert.strictEqual(outcome(waiting), "success")
      assert.deepStrictEqual(upstream.closed, ["~slow/a1"])
    }))

  it.effect("each line has one session that gives way", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 10, capacityPerUpstream: 2, acquireTimeout: 1_000 })
      for (const name of ["x", "y"]) {
        yield* lease(pool, a.at(name))
        yield* lease(pool, b.at(name))
        for (const identity of [c, d]) yield* fork(visit(pool, identity.at(name)))
      }
      yield* TestClock.adjust(500)
      assert.deepInclude(yield* pool.stats, { evictions: 2, draining: 2, leased: 2, waiting: 4 })
    }))

  it.effect("what a caller holds itself does not give way to it", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 2, acquireTimeout: 1_000 })
      const { lines } = yield* record(pool)
      const nested = yield* fork(
        Effect.flip(pool.withSession(a, () => Effect.andThen(pool.withSession(b, () => visit(pool, c)), Effect.void)))
      )
      yield* TestClock.adjust(1_000)
      const error = yield* Fiber.join(nested)
      assert.deepInclude(error, { _tag: "PoolExhausted", held: 2 })
      assert.deepStrictEqual(lines.filter((line) => line.startsWith("Retired")), [])
      // With somebody else's session there, that one does.
      const other = yield* lease(pool, d)
      const again = yield* fork(pool.withSession(a, () => visit(pool, c)))
      yield* TestClock.adjust(500)
      yield* other.release
      yield* settle
      assert.strictEqual(outcome(again), "success")
    }))

  it.effect("a session that opens after half of the time is over can give way, too", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacity: 1,
        acquireTimeout: 1_000,
        upstream: { dial: ({ name }) => name === "a1" ? Effect.sleep(700) : Effect.void }
      })
      yield* fork(overlapping(pool, a, 100))
      const waiting = yield* fork(visit(pool, b))
      yield* TestClock.adjust(699)
      assert.strictEqual((yield* pool.stats).evictions, 0)
      yield* TestClock.adjust(101)
      assert.strictEqual(outcome(waiting), "success")
    }))

  it.effect("an idle session that cannot be closed yet is kept for who waits long", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacity: 1,
        acquireTimeout: 1_000,
        closeTimeout: 800,
        upstream: { hangUp: ({ name }) => name === "a1" ? Effect.never : Effect.void }
      })
      yield* visit(pool, a)
      yield* pool.invalidate(a)
      yield* visit(pool, b)
      const waiting = yield* fork(visit(pool, c))
      yield* TestClock.adjust(500)
      // From here on its own callers would come again and again
      const callers = yield* fork(overlapping(pool, b, 5))
      yield* TestClock.adjust(300)
      assert.strictEqual(outcome(waiting), "success")
      yield* TestClock.adjust(1_000)
      yield* Fiber.join(callers)
    }))

  it.effect("whoever came for a session that fails its check keeps its place before those who came later", () =>
    Effect.gen(function*() {
      const verdict = yield* Deferred.make<void, string>()
      const { pool, upstream } = yield* start({ capacity: 1, checkAfter: 0, check: () => Deferred.await(verdict) })
      yield* visit(pool, a)
      const first = yield* fork(lease(pool, a))
      const second = yield* fork(lease(pool, b))
      yield* Deferred.fail(verdict, "dead")
      yield* settle
      assert.deepStrictEqual([outcome(first), outcome(second)], ["success", "waiting"])
      assert.deepStrictEqual(upstream.opened, ["a1", "a2"])
    }))

  it.effect("and is served at once where those who came before wait for another upstream", () =>
    Effect.gen(function*() {
      const verdict = yield* Deferred.make<void, string>()
      const { pool, upstream } = yield* start({
        capacityPerUpstream: 1,
        checkAfter: 0,
        check: () => Deferred.await(verdict)
      })
      yield* lease(pool, b.at("full"))
      yield* fork(lease(pool, c.at("full")))
      yield* visit(pool, a)
      const first = yield* fork(lease(pool, a))
      yield* Deferred.fail(verdict, "dead")
      yield* settle
      assert.strictEqual(outcome(first), "success")
      assert.deepStrictEqual(upstream.opened, ["~full/b1", "a1", "a2"])
    }))

  it.effect("a herd that gives up is told of its own leases without a look at all of them for each", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacity: 1, acquireTimeout: 0 })
      const count = 3_000
      yield* Effect.forEach(Array.from({ length: count }), () => fork(pool.withSession(a, () => Effect.never)))
      const held = yield* Effect.forEach(
        Array.from({ length: count }),
        () => Effect.flip(pool.withSession(a, () => visit(pool, b)))
      )
      assert.isTrue(held.every((error) => error._tag === "PoolExhausted" && error.held === 1))
    }))

  it.effect("lines without end cost no more than there are sessions that could give way", () =>
    Effect.gen(function*() {
      const engine = yield* openEngine
      for (const key of ["a", "b", "c"]) Leased.admit(engine, key, key, 1)
      let looked = 0
      const heads: Fairness.Heads<string, string, never> = {
        full: () => [],
        *all() {
          while (true) {
            assert.isAtMost(++looked, 4)
            yield { upstream: undefined, own: () => new Set() }
          }
        }
      }
      const fairness = Fairness.make<string, string, never>()
      for (let round = 0; round < 2; round++) {
        looked = 0
        Fairness.reconsider(fairness)
        Fairness.makeWay(fairness, engine, heads)
        assert.strictEqual(fairness.draining.size, 3)
      }
    }))

  it.effect("what gives way to those who wait is found without a look at each of them", () =>
    Effect.gen(function*() {
      const engine = yield* openEngine
      const early: Early.Early<string, Leased.Slot<string, string, never>> = new Map()
      let looked = 0
      const needs = function*() {
        while (true) {
          assert.isAtMost(++looked, 3)
          yield undefined
        }
      }
      // Before they are open
      const openers = Leased.atomically(engine, () => {
        for (const key of ["a", "b"]) early.set(Leased.admit(engine, key, key, 1), key)
        return Early.giveWay(early, needs, () => false)
      })
      assert.deepStrictEqual(openers, ["a", "b"])
    }))

  it.effect.each<readonly [string, (identity: Identity, i: number) => Identity]>([
    ["identity", (identity) => identity],
    ["upstream", (identity, i) => identity.at(`u${i}`)]
  ])("the failure of one %s costs no look at each of the others who wait", ([, at]) =>
    Effect.gen(function*() {
      const count = 300
      let looks = 0
      const watched = identities(count).map(at).map((identity): Identity =>
        Object.create(identity, {
          upstream: {
            get: () => {
              looks++
              return identity.upstream
            }
          }
        })
      )
      const { pool } = yield* start({
        capacity: 1,
        acquireTimeout: "1 minute",
        failureTimeToLive: "1 minute",
        upstream: { dial: ({ name }) => Effect.andThen(Effect.sleep(1), Effect.fail(new Refused({ why: name }))) }
      })
      const callers: Array<Fiber.Fiber<unknown, { readonly _tag: string }>> = []
      for (const identity of watched) callers.push(yield* fork(visit(pool, identity)))
      for (let i = 0; i < count; i++) yield* TestClock.adjust(1)
      assert.isTrue(callers.every((caller) => outcome(caller) === "Refused"))
      assert.isBelow(looks / count, 50)
    }))
})
