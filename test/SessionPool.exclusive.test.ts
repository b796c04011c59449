import { assert, describe, it } from "@effect/vitest"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c } from "./support/identities.ts"
import { many, underLoad } from "./support/load.ts"
import { lease, openPool, type PoolOptions, type PoolService, refusal, start, visit } from "./support/pool.ts"
import { makeUpstream, Refused, refuseFirst, type TestSession, type UpstreamOptions } from "./support/upstream.ts"

const startExclusive = (options: Omit<PoolOptions, "connect"> & { readonly upstream?: UpstreamOptions } = {}) =>
  start({ leases: "exclusive", ...options })

/** Callers who note when they have begun and ended, each after so many milliseconds. */
const callers = Effect.fnUntraced(function*(pool: PoolService, count: number, millis: number) {
  const lines: Array<string> = []
  const work = (n: number) => (session: TestSession) =>
    Effect.acquireUseRelease(
      Effect.sync(() => lines.push(`${n} begins ${session.name}`)),
      () => Effect.sleep(millis),
      () => Effect.sync(() => lines.push(`${n} ends`))
    )
  const fibers = yield* Effect.forEach(
    Array.from({ length: count }, (_, n) => n),
    (n) => fork(pool.withSession(a, work(n)))
  )
  return { lines, fibers }
})

const inTurns = (count: number, name: string) =>
  Array.from({ length: count }, (_, n) => [`${n} begins ${name}`, `${n} ends`]).flat()

describe("leases", () => {
  it.effect("are shared by default", () =>
    Effect.gen(function*() {
      const { pool } = yield* start()
      const { lines } = yield* callers(pool, 3, 10)
      assert.deepStrictEqual(lines, ["0 begins a1", "1 begins a1", "2 begins a1"])
      yield* TestClock.adjust(10)
    }))

  it.effect("are refused by the layer unless shared or exclusive", () =>
    Effect.gen(function*() {
      for (const leases of ["Exclusive", "", null, true, 1]) {
        const error = yield* refusal({ connect: makeUpstream().connect, leases })
        assert.instanceOf(error, InvalidOptions)
        assert.strictEqual(error.option, "leases")
        assert.include(error.message, "must be \"shared\" or \"exclusive\"")
      }
    }))
})

describe("exclusive leases", () => {
  it.effect("callers of one identity have its session one after the other, in the order in which they came", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* startExclusive()
      const { fibers, lines } = yield* callers(pool, 5, 10)
      assert.strictEqual((yield* pool.stats).waiting, 4)
      yield* TestClock.adjust(50)
      assert.deepStrictEqual(lines, inTurns(5, "a1"))
      assert.isTrue(fibers.every((fiber) => outcome(fiber) === "success"))
      assert.deepInclude(yield* pool.stats, { misses: 1, hits: 4, waiting: 0, idle: 1 })
      assert.strictEqual(upstream.connects, 1)
    }))

  it.effect("callers of one identity wait for its open one after the other, too", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({ upstream: { dial: () => Effect.sleep(100) } })
      const { lines } = yield* callers(pool, 3, 10)
      yield* TestClock.adjust(130)
      assert.deepStrictEqual(lines, inTurns(3, "a1"))
    }))

  it.effect("callers of another identity are not held up", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive()
      yield* lease(pool, a)
      yield* fork(visit(pool, a))
      assert.strictEqual((yield* visit(pool, b)).name, "b1")
    }))

  it.effect("one who waits for longer than acquireTimeout gets PoolExhausted, which says so", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({ acquireTimeout: 100 })
      const held = yield* lease(pool, a)
      const waiting = yield* fork(pool.withSession(a, () => Effect.void))
      yield* TestClock.adjust(99)
      assert.strictEqual(outcome(waiting), "waiting")
      yield* TestClock.adjust(1)
      const error = yield* Effect.flip(Fiber.join(waiting))
      assert.deepInclude(error, { _tag: "PoolExhausted", method: "withSession", limit: "leases", capacity: 1, held: 0 })
      assert.match(error.message, /^The session is exclusive, and was in use by others for 100ms\./)
      yield* held.release
      assert.strictEqual((yield* visit(pool, a)).name, "a1")
    }))

  it.effect("with an acquireTimeout of 0 nobody waits", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({ acquireTimeout: 0 })
      yield* lease(pool, a)
      assert.deepInclude(yield* Effect.flip(visit(pool, a)), { _tag: "PoolExhausted", limit: "leases" })
    }))

  it.effect("a get within a get of the same identity is told that it waits for itself", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({ acquireTimeout: 100 })
      const nested = yield* fork(Effect.flip(pool.withSession(a, () => visit(pool, a))))
      yield* TestClock.adjust(100)
      assert.deepInclude(yield* Fiber.join(nested), { _tag: "PoolExhausted", limit: "leases", held: 1 })
    }))

  it.effect("one who is interrupted while it waits leaves the line, and the others move up", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive()
      const { fibers, lines } = yield* callers(pool, 4, 10)
      yield* Fiber.interrupt(fibers[1]!)
      yield* TestClock.adjust(30)
      assert.deepStrictEqual(lines.filter((line) => line.includes("begins")), [
        "0 begins a1",
        "2 begins a1",
        "3 begins a1"
      ])
      assert.deepInclude(yield* pool.stats, { leased: 0, idle: 1, waiting: 0 })
    }))

  it.effect("one who is interrupted while it has the session gives it to the next", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive()
      const { fibers, lines } = yield* callers(pool, 2, 1_000)
      yield* Fiber.interrupt(fibers[0]!)
      yield* settle
      assert.deepStrictEqual(lines, ["0 begins a1", "0 ends", "1 begins a1"])
    }))

  it.effect("the open goes on for the next when whoever asked for it first is interrupted", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* startExclusive({ upstream: { dial: () => Effect.sleep(100) } })
      const { fibers, lines } = yield* callers(pool, 2, 10)
      yield* Fiber.interrupt(fibers[0]!)
      yield* TestClock.adjust(110)
      assert.deepStrictEqual(lines, ["1 begins a1", "1 ends"])
      assert.strictEqual(upstream.connects, 1)
    }))

  it.effect("an open that fails has failed for all who wait for it", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* startExclusive({
        upstream: { dial: (session) => Effect.andThen(Effect.sleep(100), refuseFirst(1)(session)) }
      })
      const waiting = yield* Effect.forEach([a, a, a], (identity) => fork(visit(pool, identity)))
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(waiting.map(outcome), ["Refused", "Refused", "Refused"])
      assert.strictEqual(upstream.connects, 1)
      const again = yield* fork(visit(pool, a))
      yield* TestClock.adjust(100)
      assert.strictEqual((yield* Fiber.join(again)).name, "a2")
    }))

  it.effect("an open that fails has failed for all who wait for it, also while it is freed past acquireTimeout", () =>
    Effect.gen(function*() {
      const pool = yield* openPool({
        leases: "exclusive",
        acquireTimeout: 60,
        connect: () =>
          Effect.addFinalizer(() => Effect.sleep(100)).pipe(
            Effect.andThen(Effect.sleep(10)),
            Effect.andThen(Effect.fail(new Refused({ why: "no" })))
          )
      })
      const first = yield* fork(visit(pool, a))
      const second = yield* fork(visit(pool, a))
      yield* TestClock.adjust(109)
      assert.deepStrictEqual([outcome(first), outcome(second)], ["waiting", "waiting"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual([outcome(first), outcome(second)], ["Refused", "Refused"])
    }))

  it.effect("when the session is invalidated, those who wait get another, in their order", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* startExclusive()
      const { lines } = yield* callers(pool, 3, 10)
      yield* pool.invalidate(a)
      yield* settle
      assert.deepStrictEqual(lines, ["0 begins a1", "1 begins a2"], "whoever has the first keeps it")
      yield* TestClock.adjust(20)
      assert.deepStrictEqual(lines.filter((line) => line.includes("begins")), [
        "0 begins a1",
        "1 begins a2",
        "2 begins a2"
      ])
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("and wait for room for it, in the line of all, at the time when they came", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* startExclusive({ capacity: 1 })
      const held = yield* lease(pool, a)
      const own = yield* fork(visit(pool, a))
      const other = yield* fork(visit(pool, b))
      yield* pool.invalidate(a)
      yield* settle
      assert.deepStrictEqual([own, other].map(outcome), ["waiting", "waiting"])
      yield* held.release
      yield* settle
      assert.deepStrictEqual([own, other].map(outcome), ["success", "success"])
      assert.deepStrictEqual(upstream.opened, ["a1", "a2", "b1"])
    }))

  it.effect("waiting for the session and then for room takes no longer than acquireTimeout", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({ capacity: 1, acquireTimeout: 100 })
      yield* lease(pool, a)
      const waiting = yield* fork(Effect.flip(visit(pool, a)))
      yield* TestClock.adjust(90)
      yield* pool.invalidate(a)
      yield* TestClock.adjust(10)
      assert.deepInclude(yield* Fiber.join(waiting), { _tag: "PoolExhausted", limit: "capacity" })
    }))

  it.effect("nor does waiting for one that fails its check then, and for room for another", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({
        capacity: 2,
        acquireTimeout: 100,
        checkAfter: 0,
        check: () => Effect.fail("dead")
      })
      yield* lease(pool, c)
      const held = yield* lease(pool, a)
      // Came first, so the room is its own
      const first = yield* fork(lease(pool, b))
      const waiting = yield* fork(visit(pool, a))
      yield* TestClock.adjust(80)
      yield* held.release
      yield* settle
      assert.strictEqual(outcome(first), "success")
      yield* TestClock.adjust(19)
      assert.strictEqual(outcome(waiting), "waiting")
      yield* TestClock.adjust(1)
      assert.strictEqual(outcome(waiting), "PoolExhausted")
    }))

  it.effect("those who wait for room for one identity get its session one after the other", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive({ capacity: 1 })
      const held = yield* lease(pool, b)
      const { lines } = yield* callers(pool, 3, 10)
      assert.deepStrictEqual(lines, [])
      yield* held.release
      yield* TestClock.adjust(30)
      assert.deepStrictEqual(lines, inTurns(3, "a1"))
    }))

  it.effect("a session is checked for one caller while the others wait, and another opened if it fails", () =>
    Effect.gen(function*() {
      const verdict = yield* Deferred.make<void, Refused>()
      const upstream = makeUpstream()
      const pool = yield* openPool({
        leases: "exclusive",
        connect: upstream.connect,
        checkAfter: 10,
        check: () => Deferred.await(verdict)
      })
      yield* visit(pool, a)
      yield* TestClock.adjust(10)
      const { lines } = yield* callers(pool, 3, 10)
      assert.deepStrictEqual(lines, [])
      yield* Deferred.fail(verdict, new Refused({ why: "dead" }))
      yield* TestClock.adjust(30)
      assert.deepStrictEqual(lines, inTurns(3, "a2"))
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("one who is interrupted during the check leaves it to the next", () =>
    Effect.gen(function*() {
      const verdict = yield* Deferred.make<void>()
      const { pool } = yield* startExclusive({ checkAfter: 10, check: () => Deferred.await(verdict) })
      yield* visit(pool, a)
      yield* TestClock.adjust(10)
      const { fibers, lines } = yield* callers(pool, 2, 10)
      yield* Fiber.interrupt(fibers[0]!)
      yield* settle
      assert.deepStrictEqual(lines, [])
      yield* Deferred.succeed(verdict, undefined)
      yield* TestClock.adjust(10)
      assert.deepStrictEqual(lines, ["1 begins a1", "1 ends"])
    }))

  it.effect("the end of the pool sends those away who wait", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive()
      yield* lease(pool, a)
      const waiting = yield* fork(visit(pool, a))
      yield* pool.close
      assert.strictEqual(outcome(waiting), "PoolClosed")
    }))

  it.effect("are fair: a session that its callers hand on gives way to whoever has waited long", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* startExclusive({ capacity: 1, acquireTimeout: 1_000 })
      const callersOfA = yield* fork(
        Effect.forEach(
          Array.from({ length: 100 }),
          () =>
            Effect.andThen(
              fork(Effect.ignore(pool.withSession(a, () => Effect.sleep(100)))),
              Effect.sleep(60)
            ),
          { discard: true }
        )
      )
      yield* TestClock.adjust(60)
      const waiting = yield* fork(visit(pool, b))
      yield* TestClock.adjust(700)
      assert.strictEqual(outcome(waiting), "success")
      assert.include(upstream.closed, "a1")
      yield* Fiber.interrupt(callersOfA)
    }))

  it.effect("thousands in turns need no stack", () =>
    Effect.gen(function*() {
      const { pool } = yield* startExclusive()
      const held = yield* lease(pool, a)
      const fibers = yield* Effect.forEach(Array.from({ length: many(1_000, 10_000) }), () => fork(visit(pool, a)))
      yield* held.release
      yield* settle
      assert.isTrue(fibers.every((fiber) => outcome(fiber) === "success"))
      assert.strictEqual((yield* visit(pool, c)).name, "c1")
    }), underLoad)
})
