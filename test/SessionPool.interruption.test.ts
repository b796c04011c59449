import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { many, some, underLoad } from "./support/load.ts"
import { call, lease, openPool, record, start, visit } from "./support/pool.ts"
import { makeUpstream } from "./support/upstream.ts"

const unused = { leased: 0, waiting: 0, opening: 0, draining: 0, closing: 0 }

describe("SessionPool interruption", () => {
  describe("of a caller that joins an open", () => {
    it.effect("leaves the open to those who still wait, were it the caller that started it", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { handshake: () => Effect.sleep(100) } })
        const callers = yield* Effect.forEach([a, a, a], (identity) => fork(lease(pool, identity)))
        yield* Fiber.interrupt(callers[0]!)
        yield* Fiber.interrupt(callers[2]!)
        yield* TestClock.adjust(100)
        assert.strictEqual((yield* Fiber.join(callers[1]!)).session.name, "a1")
        assert.strictEqual((yield* pool.entries)[0]?.leases, 1)
      }))

    it.effect("interrupts the open when it is the last one, and frees what that had acquired", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { handshake: () => Effect.never } })
        const { lines } = yield* record(pool)
        const callers = yield* Effect.forEach([a, a, a], (identity) => fork(lease(pool, identity)))
        for (const caller of callers) {
          assert.deepStrictEqual(upstream.closed, [])
          yield* Fiber.interrupt(caller)
        }
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.deepInclude(yield* pool.stats, { ...unused, failures: 0 })
        assert.deepStrictEqual(lines, [], "nobody is told of what nobody waited for")
      }))

    it.effect("makes room for those who wait for it", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          upstream: { handshake: ({ name }) => name === "a1" ? Effect.never : Effect.void }
        })
        const opener = yield* fork(visit(pool, a))
        const waiter = yield* fork(visit(pool, b))
        yield* Fiber.interrupt(opener)
        assert.strictEqual((yield* Fiber.join(waiter)).name, "b1")
      }))

    it.effect("takes no longer than closeTimeout if connect can't be interrupted, and what opens late is closed", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          closeTimeout: 100,
          connectTimeout: "2 hours",
          upstream: { dial: () => Effect.uninterruptible(Effect.sleep("1 hour")) }
        })
        const caller = yield* fork(visit(pool, a))
        const interruption = yield* fork(Fiber.interrupt(caller))
        yield* TestClock.adjust(100)
        assert.isDefined(interruption.pollUnsafe())
        assert.deepInclude(yield* pool.stats, { ...unused, closeFailures: 1 })
        yield* TestClock.adjust("1 hour")
        assert.deepStrictEqual(upstream.gone, upstream.opened)
      }))

    it.effect("does not end when the connect ignores interruption and then fails: the failure is nobody's", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: {
            handshake: ({ name }) =>
              name === "a1" ? Effect.onInterrupt(Effect.never, () => Effect.die("bug in cleanup")) : Effect.void
          }
        })
        const caller = yield* fork(visit(pool, a))
        yield* Fiber.interrupt(caller)
        assert.strictEqual(outcome(caller), "Interrupt")
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))
  })

  describe("of a caller that waits for room", () => {
    it.effect("gives up its place", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, a)
        const [first, second] = yield* Effect.forEach([b, c], (identity) => fork(visit(pool, identity)))
        yield* Fiber.interrupt(first!)
        assert.strictEqual((yield* pool.stats).waiting, 1)
        yield* held.release
        assert.strictEqual((yield* Fiber.join(second!)).name, "c1")
        assert.deepStrictEqual(upstream.opened, ["a1", "c1"])
      }))

    it.effect("leaves another caller of the same identity the place of its own", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, a)
        const order: Array<string> = []
        const wait = (key: typeof a) => fork(pool.withSession(key, ({ name }) => Effect.sync(() => order.push(name))))
        const first = yield* wait(b)
        yield* wait(c)
        const second = yield* wait(b)
        yield* Fiber.interrupt(first)
        yield* held.release
        yield* Fiber.join(second)
        assert.deepStrictEqual(order, ["c1", "b1"])
      }))

    it.effect("at the moment room is found gives the room to the next", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          upstream: { dial: ({ name }) => name === "b1" ? Effect.never : Effect.void }
        })
        const held = yield* lease(pool, a)
        const first = yield* fork(visit(pool, b))
        const second = yield* fork(visit(pool, c))
        yield* held.release
        yield* Fiber.interrupt(first)
        yield* settle
        assert.strictEqual(outcome(second), "success")
      }))
  })

  describe("of a caller whose session is being checked", () => {
    it.effect("gives back its lease, and the check goes on: it is the pool's", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const checked: Array<string> = []
        const pool = yield* openPool({
          connect: upstream.connect,
          checkAfter: 0,
          check: ({ name }) => Effect.andThen(Effect.sleep(100), Effect.sync(() => void checked.push(name)))
        })
        yield* visit(pool, a)
        const callers = yield* Effect.forEach([a, a], (identity) => fork(visit(pool, identity)))
        yield* Fiber.interruptAll(callers)
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(checked, ["a1"])
        assert.deepInclude(yield* pool.stats, { ...unused, idle: 1 })
        assert.deepStrictEqual(upstream.closed, [])
      }))

    it.effect("does not keep a session that fails the check", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          checkAfter: 0,
          check: () => Effect.andThen(Effect.sleep(100), Effect.fail("down"))
        })
        yield* visit(pool, a)
        yield* Fiber.interrupt(yield* fork(visit(pool, a)))
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.deepInclude(yield* pool.stats, { ...unused, size: 0 })
      }))
  })

  describe("of a caller that holds a lease", () => {
    it.effect("ends the lease, by get as by withSession", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const callers = [
          yield* fork(Effect.scoped(Effect.andThen(pool.get(a), Effect.never))),
          yield* fork(pool.withSession(a, () => Effect.never))
        ]
        assert.strictEqual((yield* pool.entries)[0]?.leases, 2)
        for (const caller of callers) yield* Fiber.interrupt(caller)
        assert.deepInclude(yield* pool.stats, { ...unused, idle: 1 })
      }))

    it.effect("ends the lease only after the finalizers that still use the session", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const seen: Array<boolean> = []
        // The first sleep of a test clock that nobody has moved can be interrupted, wherever it is.
        yield* settle
        const caller = yield* fork(pool.withSession(a, (session) =>
          Effect.onInterrupt(Effect.never, () =>
            Effect.andThen(
              Effect.sleep(100),
              Effect.sync(() => void seen.push(session.isOpen))
            ))))
        const interruption = yield* fork(Fiber.interrupt(caller))
        yield* pool.invalidate(a)
        yield* TestClock.adjust(100)
        yield* Fiber.join(interruption)
        yield* settle
        assert.deepStrictEqual(seen, [true])
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("does not touch the calls of others on its session", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const calls = yield* Effect.forEach([a, a], (identity) => fork(pool.withSession(identity, call)))
        yield* Fiber.interrupt(calls[0]!)
        yield* TestClock.adjust(1_000)
        assert.deepStrictEqual(calls.map(outcome), ["Interrupt", "success"])
      }))
  })

  describe("of a caller whose open has failed and is being freed", () => {
    it.effect("does not close anything twice, nor leave anything open", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: { handshake: () => Effect.die("bug"), hangUp: () => Effect.sleep(100) }
        })
        const caller = yield* fork(visit(pool, a))
        assert.deepStrictEqual(upstream.closed, ["a1"])
        const interruption = yield* fork(Fiber.interrupt(caller))
        yield* TestClock.adjust(100)
        yield* Fiber.join(interruption)
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.deepInclude(yield* pool.stats, unused)
      }))
  })

  for (const ops of some(3, 4, 5)) {
    it.effect(
      `at any moment of a check, with a suspension after any ${ops} operations, loses no lease`,
      () =>
        Effect.gen(function*() {
          for (let moment = 0; moment < 40; moment++) {
            const { pool, upstream } = yield* start({
              checkAfter: 0,
              check: () => moment % 2 === 0 ? Effect.yieldNow : Effect.andThen(Effect.yieldNow, Effect.fail("down"))
            })
            yield* visit(pool, a)
            const callers = yield* Effect.forEach(
              [a, a],
              (identity) => fork(pool.withSession(identity, () => Effect.never))
            )
            for (let i = 0; i < moment; i++) yield* Effect.yieldNow
            yield* Fiber.interruptAll(callers)
            for (let i = 0; i < 5; i++) yield* settle
            assert.deepInclude(yield* pool.stats, unused, `moment ${moment}`)
            yield* pool.close
            assert.sameMembers(upstream.gone, upstream.opened)
          }
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)),
      underLoad
    )

    it.effect(
      `at any moment of a wait for room, with a suspension after any ${ops} operations, strands nobody`,
      () =>
        Effect.gen(function*() {
          for (let moment = 0; moment < 40; moment++) {
            const { pool, upstream } = yield* start({ capacity: 1, upstream: { dial: () => Effect.yieldNow } })
            const held = yield* lease(pool, a)
            const first = yield* fork(visit(pool, b))
            const others = yield* Effect.forEach([c, d], (identity) => fork(visit(pool, identity)))
            const releasing = yield* fork(held.release)
            for (let i = 0; i < moment; i++) yield* Effect.yieldNow
            yield* Fiber.interrupt(first)
            yield* Fiber.join(releasing)
            for (let i = 0; i < 10; i++) yield* settle
            assert.deepStrictEqual(others.map(outcome), ["success", "success"], `moment ${moment}`)
            assert.deepInclude(yield* pool.stats, unused)
            assert.strictEqual(upstream.peak, 1)
          }
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)),
      underLoad
    )
  }

  for (const ops of some(3, 4, 5)) {
    for (const end of ["its interruption", "its interruption in a closed scope", "the end of its scope"]) {
      for (const leases of ["shared", "exclusive"] as const) {
        it.effect(
          `${end} at any moment of a waiting get (${leases}), suspended after any ${ops} operations, leaves no lease`,
          () =>
            Effect.gen(function*() {
              for (let moment = 0; moment < 40; moment++) {
                const { pool } = yield* start({
                  leases,
                  checkAfter: 0,
                  check: () => Effect.yieldNow,
                  acquireTimeout: 100
                })
                yield* visit(pool, a)
                const held = leases === "exclusive" ? yield* lease(pool, a) : undefined
                const scope = yield* Scope.make()
                if (end.endsWith("closed scope")) yield* Scope.close(scope, Exit.void)
                const caller = yield* fork(Scope.provide(pool.get(a), scope))
                for (let i = 0; i < moment; i++) yield* Effect.yieldNow
                if (end.startsWith("its interruption")) {
                  yield* Fiber.interrupt(caller)
                  assert.strictEqual((yield* pool.stats).waiting, 0, `moment ${moment}`)
                }
                yield* Scope.close(scope, Exit.void)
                yield* held?.release ?? Effect.void
                for (let i = 0; i < 10; i++) yield* settle
                assert.isDefined(caller.pollUnsafe(), `moment ${moment}`)
                assert.deepInclude(yield* pool.stats, { ...unused, idle: 1 }, `moment ${moment}`)
              }
            }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)),
          underLoad
        )
      }
    }
  }

  for (const ops of some(3, 4, 5)) {
    it.effect(
      `at any moment of an open, with a suspension after any ${ops} operations, is no failure of anybody`,
      () =>
        Effect.gen(function*() {
          for (let moment = 0; moment < 40; moment++) {
            const { pool, upstream } = yield* start({
              upstream: { dial: () => Effect.yieldNow, handshake: () => Effect.yieldNow }
            })
            const { lines } = yield* record(pool)
            const caller = yield* fork(visit(pool, a))
            for (let i = 0; i < moment; i++) yield* Effect.yieldNow
            yield* Fiber.interrupt(caller)
            for (let i = 0; i < 5; i++) yield* settle
            assert.deepInclude(yield* pool.stats, { ...unused, failures: 0, closeFailures: 0 }, `moment ${moment}`)
            assert.deepStrictEqual(lines.filter((line) => line.includes("Failed")), [], `moment ${moment}`)
            yield* pool.close
            assert.sameMembers(upstream.gone, upstream.opened)
          }
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)),
      underLoad
    )

    it.effect(
      `by shutdown at any moment of an open, with a suspension after ${ops} operations, is no failure`,
      () =>
        Effect.gen(function*() {
          for (let moment = 0; moment < 40; moment++) {
            const { pool, upstream } = yield* start({
              upstream: { dial: () => Effect.yieldNow, handshake: () => Effect.yieldNow }
            })
            const callers = yield* Effect.forEach([a, a, b], (identity) => fork(visit(pool, identity)))
            for (let i = 0; i < moment; i++) yield* Effect.yieldNow
            const closing = yield* fork(pool.close)
            for (let i = 0; i < 10; i++) yield* settle
            assert.isDefined(closing.pollUnsafe(), `moment ${moment}`)
            for (const caller of callers) assert.include(["success", "PoolClosed"], outcome(caller), `moment ${moment}`)
            assert.deepInclude(yield* pool.stats, { ...unused, failures: 0, closeFailures: 0 }, `moment ${moment}`)
            assert.sameMembers(upstream.gone, upstream.opened)
          }
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)),
      underLoad
    )
  }

  it.effect("of thousands that wait is cheap enough to do: the others get their room", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 1 })
      const held = yield* lease(pool, a)
      const callers = yield* Effect.forEach(identities(many(800, 10_000)), (identity) => fork(visit(pool, identity)))
      yield* Fiber.interruptAll(callers.slice(0, -1))
      assert.strictEqual((yield* pool.stats).waiting, 1)
      yield* held.release
      assert.strictEqual((yield* Fiber.join(callers.at(-1)!)).name, `k${callers.length - 1}1`)
      assert.strictEqual(upstream.connects, 2)
    }), underLoad)

  it.effect("a caller whose time is over is told what it was answered in that moment", () =>
    Effect.gen(function*() {
      // Between two steps of the caller there may be any of those of others
      for (let ops = 5; ops <= 12; ops++) {
        for (let steps = 0; steps <= 12; steps++) {
          const { pool } = yield* start({ capacity: 1, acquireTimeout: 100 })
          yield* lease(pool, a)
          const caller = yield* fork(Effect.provideService(visit(pool, b), Scheduler.MaxOpsBeforeYield, ops))
          yield* settle
          const end = (yield* Clock.currentTimeMillis) + 100
          const closing = yield* fork(Effect.gen(function*() {
            while ((yield* Clock.currentTimeMillis) < end) yield* Effect.yieldNow
            for (let step = 0; step < steps; step++) yield* Effect.yieldNow
            yield* pool.close
          }))
          yield* TestClock.adjust(50)
          yield* settle
          yield* TestClock.adjust(50)
          yield* settle
          yield* Fiber.join(closing)
          assert.include(["PoolExhausted", "PoolClosed"], outcome(caller), `${ops} ${steps}`)
        }
      }
    }))

  it.effect("does not reach a caller in an uninterruptible region before it has its session", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
      const got = yield* Deferred.make<string>()
      const caller = yield* fork(Effect.uninterruptible(
        Effect.flatMap(visit(pool, a), ({ name }) => Deferred.succeed(got, name))
      ))
      const interruption = yield* fork(Fiber.interrupt(caller))
      yield* TestClock.adjust(100)
      assert.strictEqual(yield* Deferred.await(got), "a1")
      yield* Fiber.join(interruption)
      assert.deepInclude(yield* pool.stats, { ...unused, idle: 1 })
    }))
})
