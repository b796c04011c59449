import { assert, describe, it } from "@effect/vitest"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import { PoolExhausted } from "effect-mcp-sessions/SessionPoolError"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as TestClock from "effect/testing/TestClock"
import { fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { call, lease, openPool, openWith, Pool, type PoolOptions, refusal, start, visit } from "./support/pool.ts"
import { makeUpstream, Refused, refuseFirst } from "./support/upstream.ts"

class ForCheck extends Context.Service<ForCheck, { readonly is: true }>()("test/ForCheck") {}

/** A pool whose check does what `check` says the nth time it is asked. */
const checked = (options: {
  readonly check: (n: number) => Effect.Effect<unknown, unknown>
  readonly checkAfter?: Duration.Input
  readonly checkTimeout?: Duration.Input
}) =>
  Effect.gen(function*() {
    const upstream = makeUpstream()
    const asked: Array<string> = []
    const { check, ...rest } = options
    const pool = yield* openPool({
      ...rest,
      connect: upstream.connect,
      idleTimeToLive: "1 hour",
      check: (session) =>
        Effect.suspend(() => {
          asked.push(session.name)
          return check(asked.length)
        })
    })
    return { upstream, asked, pool }
  })

/** The pool that `layerConfig` builds with these variables. */
const build = (options: PoolOptions, env: Record<string, string>) =>
  Layer.build(Pool.layerConfig(options)).pipe(
    Effect.map((context) => Context.get(context, Pool)),
    Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
  )

describe("SessionPool options", () => {
  describe("capacity", () => {
    it.effect("is 10 by default", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        assert.strictEqual((yield* pool.stats).capacity, 10)
        yield* Effect.forEach(identities(10), (identity) => visit(pool, identity))
        assert.deepStrictEqual(upstream.closed, [])
        yield* visit(pool, a)
        assert.deepStrictEqual(upstream.closed, ["k01"])
      }))

    it.effect("of 1 keeps one session at a time", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1 })
        for (const identity of [a, b, a]) yield* visit(pool, identity)
        assert.deepStrictEqual(upstream.opened, ["a1", "b1", "a2"])
        assert.deepStrictEqual(upstream.closed, ["a1", "b1"])
        assert.strictEqual(upstream.peak, 1)
      }))

    it.effect("evicts the least recently used idle session, and counts it", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 3 })
        for (const identity of [a, b, c, a]) yield* visit(pool, identity)
        yield* visit(pool, identities(1)[0]!)
        assert.deepStrictEqual(upstream.closed, ["b1"])
        const { evictions, keys } = yield* pool.stats
        assert.strictEqual(evictions, 1)
        assert.deepStrictEqual(keys as ReadonlyArray<string>, ["c", "a", "k0"])
      }))

    it.effect("passes over a leased session that is older than an idle one", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 2 })
        yield* pool.get(a)
        yield* visit(pool, b)
        yield* visit(pool, c)
        assert.deepStrictEqual(upstream.closed, ["b1"])
      }))
  })

  describe("idleTimeToLive", () => {
    it.effect("is 5 minutes by default", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        assert.strictEqual(Duration.toMillis((yield* pool.stats).idleTimeToLive), 300_000)
        yield* visit(pool, a)
        yield* TestClock.adjust("5 minutes")
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("of 50: opened at 1000, the same at 1050 and 1100, another at 1151", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 50 })
        const names: Array<string> = []
        for (const time of [1000, 1050, 1100]) {
          yield* TestClock.setTime(time)
          names.push((yield* visit(pool, a)).name)
        }
        assert.deepStrictEqual(names, ["a1", "a1", "a1"])
        yield* TestClock.setTime(1150)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.setTime(1151)
        assert.deepStrictEqual(upstream.closed, ["a1"], "closed although nobody asks")
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        const stats = yield* pool.stats
        assert.deepStrictEqual(
          [stats.hits, stats.misses, stats.evictions, stats.expirations, stats.retirements],
          [2, 2, 0, 1, 0]
        )
      }))

    it.effect("counts from the end of the last of overlapping leases", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 50 })
        const first = yield* lease(pool, a)
        const second = yield* lease(pool, a)
        yield* TestClock.adjust(40)
        yield* first.release
        yield* TestClock.adjust(100)
        yield* second.release
        yield* TestClock.adjust(50)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("closes each of many sessions at its own time", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 50 })
        for (const identity of [a, b, c]) {
          yield* visit(pool, identity)
          yield* TestClock.adjust(10)
        }
        yield* TestClock.adjust(20)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["a1"])
        yield* TestClock.adjust(10)
        assert.deepStrictEqual(upstream.closed, ["a1", "b1"])
        yield* visit(pool, c)
        yield* TestClock.adjust(50)
        assert.deepStrictEqual(upstream.closed, ["a1", "b1"])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["a1", "b1", "c1"])
      }))

    it.effect("of a fraction of a millisecond, and of a fraction beyond one, ends in time", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 1.5 })
        yield* visit(pool, a)
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("of infinity keeps an idle session for ever", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: Duration.infinity })
        yield* visit(pool, a)
        yield* TestClock.adjust("36500 days")
        assert.deepStrictEqual(upstream.closed, [])
        assert.strictEqual((yield* visit(pool, a)).name, "a1")
      }))

    it.effect("does not end a session in use, however long the call takes", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 100 })
        const first = yield* fork(pool.withSession(a, call))
        yield* TestClock.adjust(500)
        const second = yield* fork(pool.withSession(a, call))
        yield* TestClock.adjust(1_000)
        assert.deepStrictEqual([first, second].map(outcome), ["success", "success"])
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("closes expired sessions on time, not when their key returns", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 100 })
        yield* visit(pool, a)
        yield* visit(pool, b)
        yield* TestClock.adjust(101)
        assert.deepStrictEqual(upstream.closed, ["a1", "b1"])
        assert.strictEqual((yield* pool.stats).size, 0)
      }))

    it.effect("opens one new session for two gets of an expired one, whose close is slow", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 100, upstream: { hangUp: () => Effect.sleep(500) } })
        yield* visit(pool, a)
        yield* TestClock.adjust(101)
        const leases = yield* Effect.forEach([a, a], (identity) => lease(pool, identity))
        assert.deepStrictEqual(leases.map(({ session }) => session.name), ["a2", "a2"])
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(1_000)
        yield* Fiber.join(closing)
        assert.sameMembers(upstream.gone, ["a1", "a2"])
      }))

    it.effect("counts from the end of the call, not from its start", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 500 })
        yield* fork(pool.withSession(a, call))
        yield* TestClock.adjust(1_500)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))
  })

  describe("maxLifetime", () => {
    it.effect("is infinite by default", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        yield* pool.get(a)
        yield* TestClock.adjust("3650 days")
        assert.strictEqual((yield* pool.stats).leased, 1)
      }))

    it.effect("closes an idle session on time, whether or not anyone asks", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ maxLifetime: 1_000, idleTimeToLive: Duration.infinity })
        yield* visit(pool, a)
        yield* TestClock.adjust(974)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(26)
        assert.deepStrictEqual(upstream.closed, ["a1"])
        assert.strictEqual((yield* pool.stats).retirements, 1)
      }))

    it.effect("counts from the open, however often the session is used", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ maxLifetime: 1_000, upstream: { dial: () => Effect.sleep(500) } })
        const first = yield* fork(visit(pool, a))
        yield* TestClock.adjust(500)
        yield* Fiber.join(first)
        for (let i = 0; i < 9; i++) {
          yield* TestClock.adjust(100)
          assert.strictEqual((yield* visit(pool, a)).name, "a1")
        }
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("retires a leased session on time and closes it when it is free", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ maxLifetime: 1_000 })
        const { release, session } = yield* lease(pool, a)
        yield* TestClock.adjust(1_000)
        assert.isTrue(session.isOpen)
        assert.strictEqual((yield* pool.stats).draining, 1)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        yield* release
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("is up to 2.5 % shorter, so that what opened together does not end together", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 100,
          maxLifetime: 100_000,
          idleTimeToLive: Duration.infinity
        })
        yield* Effect.forEach(identities(100), (identity) => visit(pool, identity))
        yield* TestClock.adjust(97_499)
        assert.strictEqual(upstream.closed.length, 0)
        const counts = new Set<number>()
        for (let i = 0; i < 25; i++) {
          yield* TestClock.adjust(100)
          counts.add(upstream.closed.length)
        }
        yield* TestClock.adjust(1)
        assert.strictEqual(upstream.closed.length, 100)
        assert.isAtLeast(counts.size, 10, "they end apart")
      }).pipe(Random.withSeed("lifetimes")))

    it.effect("takes its jitter from Random", () =>
      Effect.gen(function*() {
        const times: Array<number> = []
        for (let run = 0; run < 2; run++) {
          const upstream = makeUpstream()
          const pool = yield* openPool({ connect: upstream.connect, maxLifetime: 1_000_000 }).pipe(
            Random.withSeed("the same")
          )
          const { release } = yield* lease(pool, a)
          let lived = 0
          while ((yield* pool.stats).draining === 0) {
            yield* TestClock.adjust(lived < 975_000 ? 975_000 : 50)
            lived += lived < 975_000 ? 975_000 : 50
          }
          times.push(lived)
          yield* release
        }
        assert.strictEqual(times[0], times[1])
      }))

    it.effect("of a session that is gone does not end its successor's", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ maxLifetime: 1_000, idleTimeToLive: Duration.infinity })
        yield* visit(pool, a)
        yield* TestClock.adjust(900)
        yield* pool.invalidate(a)
        yield* visit(pool, a)
        yield* TestClock.adjust(900)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))
  })

  describe("connectTimeout", () => {
    it.effect("is 30 seconds by default, then the get fails with ConnectTimeout", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: () => Effect.never } })
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust(29_999)
        assert.strictEqual(outcome(caller), "waiting")
        yield* TestClock.adjust(1)
        const error = yield* Effect.flip(Fiber.join(caller))
        assert.strictEqual(error._tag, "ConnectTimeout")
        if (error._tag === "ConnectTimeout") {
          assert.strictEqual(error.key as string, "a")
          assert.strictEqual(Duration.toMillis(error.after), 30_000)
        }
        assert.strictEqual((yield* pool.stats).failures, 1)
      }))

    it.effect("interrupts the connect and frees what it had acquired before the caller hears of it", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          connectTimeout: 100,
          upstream: { handshake: () => Effect.never, hangUp: () => Effect.sleep(50) }
        })
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(upstream.closed, ["a1"])
        assert.strictEqual(outcome(caller), "waiting")
        yield* TestClock.adjust(50)
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual(outcome(caller), "ConnectTimeout")
      }))

    it.effect("does not end an open that makes it in time", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ connectTimeout: 101, upstream: { dial: () => Effect.sleep(100) } })
        const caller = yield* fork(lease(pool, a))
        yield* TestClock.adjust("1 hour")
        assert.isTrue((yield* Fiber.join(caller)).session.isOpen)
      }))

    it.effect("ends an open that hangs for all its callers, and the next get tries again", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: ({ name }) => name === "a1" ? Effect.never : Effect.void } })
        const callers = yield* Effect.forEach(Array.from({ length: 5 }), () => fork(visit(pool, a)))
        assert.deepInclude(yield* pool.stats, { opening: 1, hits: 4, misses: 1 })
        yield* TestClock.adjust("30 seconds")
        assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["ConnectTimeout"]))
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))
  })

  describe("acquireTimeout", () => {
    it.effect("is 30 seconds by default, then the get fails with PoolExhausted", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1 })
        yield* pool.get(a)
        const caller = yield* fork(visit(pool, b))
        yield* TestClock.adjust(29_999)
        assert.strictEqual(outcome(caller), "waiting")
        assert.strictEqual((yield* pool.stats).waiting, 1)
        yield* TestClock.adjust(1)
        const error = yield* Effect.flip(Fiber.join(caller))
        assert.strictEqual(error._tag, "PoolExhausted")
        if (error._tag === "PoolExhausted") {
          assert.strictEqual(error.capacity, 1)
          assert.strictEqual(Duration.toMillis(error.waited), 30_000)
        }
        assert.strictEqual((yield* pool.stats).waiting, 0)
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("of 0 fails at once", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 0 })
        const { release } = yield* lease(pool, a)
        const error = yield* Effect.flip(visit(pool, b))
        assert.strictEqual(error._tag, "PoolExhausted")
        if (error._tag === "PoolExhausted") assert.strictEqual(Duration.toMillis(error.waited), 0)
        yield* release
        assert.strictEqual((yield* visit(pool, b)).name, "b1")
      }))

    it.effect("tells a caller that waits for its own leases how many it holds", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect, capacity: 1, acquireTimeout: 1_000 })
        const nested = pool.withSession(a, () =>
          Effect.andThen(pool.invalidate(a), pool.withSession(a, () => Effect.void)))
        const caller = yield* fork(Effect.flip(nested))
        yield* TestClock.adjust(1_000)
        const error = yield* Fiber.join(caller)
        yield* lease(pool, a)
        const other = yield* fork(Effect.flip(visit(pool, b)))
        yield* TestClock.adjust(1_000)
        const others = yield* Fiber.join(other)
        assert.instanceOf(error, PoolExhausted)
        assert.instanceOf(others, PoolExhausted)
        assert.deepStrictEqual([error.held, error.method], [1, "withSession"])
        assert.include(error.message, "holds a lease")
        assert.deepStrictEqual([others.held, others.method], [0, "get"])
        assert.notInclude(others.message, "holds")
      }))

    it.effect("counts the caller's leases of every kind, and none that has ended", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect, capacity: 2, acquireTimeout: 0 })
        const exhausted = Effect.map(Effect.flip(visit(pool, d)), (error) =>
          error instanceof PoolExhausted ? error.held : error)
        const held = yield* lease(pool, a)
        yield* lease(pool, a)
        yield* pool.withSession(b, () =>
          Effect.map(exhausted, (leases) => assert.strictEqual(leases, 3)))
        const others = yield* fork(pool.withSession(b, () => Effect.never))
        yield* held.release
        assert.strictEqual(yield* exhausted, 1)
        yield* Fiber.interrupt(others)
      }))

    it.effect("does not count the time that the open takes", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          acquireTimeout: 1_000,
          upstream: { dial: ({ name }) => name === "b1" ? Effect.sleep(5_000) : Effect.void }
        })
        const { release } = yield* lease(pool, a)
        const caller = yield* fork(visit(pool, b))
        yield* TestClock.adjust(999)
        yield* release
        yield* TestClock.adjust(5_000)
        assert.strictEqual(outcome(caller), "success")
      }))
  })

  describe("closeTimeout", () => {
    it.effect("is 10 seconds by default, then the close is abandoned and counted", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { hangUp: () => Effect.never } })
        yield* visit(pool, a)
        yield* pool.invalidate(a)
        yield* TestClock.adjust(9_999)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.closing, s.closeFailures]), [1, 0])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.closing, s.closeFailures]), [0, 1])
      }))

    it.effect("does not interrupt a slow close: it may still end by itself", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ closeTimeout: 100, upstream: { hangUp: () => Effect.sleep(500) } })
        yield* visit(pool, a)
        yield* pool.invalidate(a)
        yield* TestClock.adjust(100)
        assert.strictEqual((yield* pool.stats).closing, 0)
        assert.deepStrictEqual(upstream.gone, [])
        yield* TestClock.adjust(400)
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* pool.stats).closeFailures, 1)
      }))

    it.effect("bounds how long the caller of a failed open waits for it to be freed", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          closeTimeout: 100,
          upstream: {
            handshake: () => Effect.fail(new Refused({ why: "no" })),
            hangUp: () => Effect.never
          }
        })
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust(99)
        assert.strictEqual(outcome(caller), "waiting")
        yield* TestClock.adjust(1)
        assert.strictEqual(outcome(caller), "Refused")
        assert.strictEqual((yield* pool.stats).closeFailures, 1)
      }))
  })

  describe("drainTimeout", () => {
    it.effect("is 0 by default: a pool that shuts down closes under its leases at once", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const { session } = yield* lease(pool, a)
        yield* pool.close
        assert.isFalse(session.isOpen)
      }))

    it.effect("is how long a pool that shuts down waits for its leases", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ drainTimeout: 1_000 })
        const { session } = yield* lease(pool, a)
        yield* visit(pool, b)
        const closing = yield* fork(pool.close)
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["b1"], "what is idle is closed at once")
        yield* TestClock.adjust(999)
        assert.isTrue(session.isOpen)
        yield* TestClock.adjust(1)
        assert.isFalse(session.isOpen)
        yield* Fiber.join(closing)
      }))

    it.effect("is not waited out when the leases end earlier", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ drainTimeout: "1 hour" })
        const { release } = yield* lease(pool, a)
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(10)
        assert.strictEqual(closing.pollUnsafe(), undefined)
        yield* release
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
        assert.isDefined(closing.pollUnsafe())
      }))
  })

  describe("check", () => {
    it.effect("is none by default", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ idleTimeToLive: "1 hour", checkAfter: 0 })
        yield* visit(pool, a)
        yield* TestClock.adjust("30 minutes")
        assert.strictEqual((yield* visit(pool, a)).name, "a1")
      }))

    it.effect("is asked of a session that has been idle for checkAfter, by default 1 minute", () =>
      Effect.gen(function*() {
        const { asked, pool } = yield* checked({ check: () => Effect.void })
        yield* visit(pool, a)
        yield* TestClock.adjust(59_999)
        yield* visit(pool, a)
        assert.deepStrictEqual(asked, [])
        yield* TestClock.adjust(60_000)
        assert.strictEqual((yield* visit(pool, a)).name, "a1")
        assert.deepStrictEqual(asked, ["a1"])
      }))

    it.effect("is not asked of a session that is leased already", () =>
      Effect.gen(function*() {
        const { asked, pool } = yield* checked({ check: () => Effect.void, checkAfter: 100 })
        yield* pool.get(a)
        yield* TestClock.adjust(1_000)
        yield* visit(pool, a)
        assert.deepStrictEqual(asked, [])
      }))

    it.effect("with checkAfter 0 is asked before every lease of an idle session", () =>
      Effect.gen(function*() {
        const { asked, pool } = yield* checked({ check: () => Effect.void, checkAfter: 0 })
        for (let i = 0; i < 3; i++) yield* visit(pool, a)
        assert.deepStrictEqual(asked, ["a1", "a1"])
      }))

    const unhealthy: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown>]> = [
      ["fails", Effect.fail("down")],
      ["dies", Effect.die(new Error("bug in check"))],
      ["interrupts itself", Effect.interrupt],
      ["hangs", Effect.never],
      ["hangs and can't be interrupted", Effect.uninterruptible(Effect.never)]
    ]
    for (const [how, check] of unhealthy) {
      it.effect(`that ${how} retires the session as unhealthy and opens another, within checkTimeout`, () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* checked({ check: () => check, checkAfter: 100 })
          yield* visit(pool, a)
          yield* TestClock.adjust(100)
          const caller = yield* fork(lease(pool, a))
          yield* TestClock.adjust(5_000)
          assert.strictEqual((yield* Fiber.join(caller)).session.name, "a2")
          assert.deepStrictEqual(upstream.closed, ["a1"])
          const stats = yield* pool.stats
          assert.deepStrictEqual([stats.hits, stats.misses, stats.retirements], [0, 2, 1])
        }))
    }

    it.effect("that throws instead of returning an effect is a failed one", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          checkAfter: 0,
          check: () => {
            throw new Error("bug in check")
          }
        })
        yield* visit(pool, a)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("is given checkTimeout, by default 5 seconds", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* checked({ check: () => Effect.never, checkAfter: 0 })
        yield* visit(pool, a)
        const caller = yield* fork(lease(pool, a))
        yield* TestClock.adjust(4_999)
        assert.strictEqual(outcome(caller), "waiting")
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.strictEqual(outcome(caller), "success")
      }))

    it.effect("is one for all concurrent gets", () =>
      Effect.gen(function*() {
        const { asked, pool } = yield* checked({ check: () => Effect.sleep(100), checkAfter: 0 })
        yield* visit(pool, a)
        const callers = yield* Effect.forEach(Array.from({ length: 20 }), () => fork(lease(pool, a)))
        yield* TestClock.adjust(50)
        callers.push(yield* fork(lease(pool, a)))
        yield* TestClock.adjust(49)
        assert.isTrue(callers.every((caller) => outcome(caller) === "waiting"))
        yield* TestClock.adjust(1)
        for (const caller of callers) assert.strictEqual((yield* Fiber.join(caller)).session.name, "a1")
        assert.deepStrictEqual(asked, ["a1"])
        assert.strictEqual((yield* pool.entries)[0]?.leases, 21)
      }))

    it.effect("that fails sends all concurrent gets to one new session", () =>
      Effect.gen(function*() {
        const { asked, pool, upstream } = yield* checked({
          check: () => Effect.andThen(Effect.sleep(100), Effect.fail("down")),
          checkAfter: 0
        })
        yield* visit(pool, a)
        const callers = yield* Effect.forEach(Array.from({ length: 20 }), () => fork(lease(pool, a)))
        yield* TestClock.adjust(100)
        for (const caller of callers) assert.strictEqual((yield* Fiber.join(caller)).session.name, "a2")
        assert.deepStrictEqual(asked, ["a1"])
        assert.strictEqual(upstream.connects, 2)
        assert.deepStrictEqual(upstream.closed, ["a1"])
        const stats = yield* pool.stats
        assert.deepStrictEqual([stats.hits, stats.misses], [19, 2])
      }))

    it.effect("runs in a scope of its own, with the services of the pool", () =>
      Effect.gen(function*() {
        class Probe extends Context.Service<Probe, string>()("test/Probe") {}
        const upstream = makeUpstream()
        const seen: Array<string> = []
        const layer = Pool.layer({
          connect: upstream.connect,
          checkAfter: 0,
          check: () =>
            Effect.gen(function*() {
              seen.push(yield* Probe)
              yield* Effect.addFinalizer(() => Effect.sync(() => seen.push("closed")))
            })
        }).pipe(Layer.provide(Layer.succeed(Probe, "pool's")))
        yield* Effect.scoped(Pool.get(a)).pipe(
          Effect.andThen(Effect.scoped(Pool.get(a))),
          Effect.provideService(Probe, "caller's"),
          Effect.andThen(Effect.sync(() => assert.deepStrictEqual(seen, ["pool's", "closed"]))),
          Effect.provide(layer)
        )
      }))

    it.effect("finds out that a session is dead where its connector does not say so", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const dead = new Set<string>()
        const pool = yield* openPool({
          connect: upstream.connect,
          checkAfter: 100,
          check: ({ name }) => dead.has(name) ? Effect.fail("Not connected") : Effect.void
        })
        const first = yield* visit(pool, a)
        yield* first.handle.retire("died")
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        dead.add("a2")
        yield* TestClock.adjust(100)
        assert.strictEqual((yield* visit(pool, a)).name, "a3")
        assert.deepStrictEqual(upstream.closed, ["a1", "a2"])
      }))

    it.effect("has failed whatever it fails or dies with", () =>
      Effect.gen(function*() {
        for (const failure of [Effect.fail("odd"), Effect.die({ odd: true }), Effect.fail(undefined)]) {
          const { pool, upstream } = yield* start({ check: () => failure, checkAfter: 0 })
          yield* visit(pool, a)
          assert.strictEqual((yield* visit(pool, a)).name, "a2")
          assert.deepStrictEqual(upstream.closed, ["a1"])
        }
      }))

    it.effect("may invalidate what it checks: it goes on, and the session ends after it", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* openWith((self) => ({
          check: ({ identity, isOpen }) =>
            Effect.flatMap(
              self,
              (inner) => Effect.andThen(inner.invalidate(identity), isOpen ? Effect.void : Effect.fail("closed"))
            )
        }), { checkAfter: 0 })
        yield* visit(pool, a)
        const held = yield* lease(pool, a)
        assert.isTrue(held.session.isOpen)
        yield* held.release
        yield* settle
        assert.deepStrictEqual(upstream.gone.slice(0, 1), ["a1"])
      }))

    it.effect("that gets the session it checks shares its own lease", () =>
      Effect.gen(function*() {
        const { pool } = yield* openWith((self) => ({
          check: ({ identity }) => Effect.flatMap(self, (inner) => inner.get(identity))
        }), { checkAfter: 0, checkTimeout: 100 })
        yield* visit(pool, a)
        const caller = yield* fork(lease(pool, a))
        yield* TestClock.adjust(100)
        assert.strictEqual(outcome(caller), "success", "it ends with checkTimeout at the latest")
        assert.strictEqual((yield* pool.stats).leased, 1)
      }))

    it.effect("does not hand out a session that dies while it is checked, although the check passes", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({
          connect: makeUpstream().connect,
          check: () => Effect.sleep(50),
          checkAfter: 0
        })
        const { handle } = yield* visit(pool, a)
        const visiting = yield* fork(visit(pool, a))
        yield* TestClock.adjust(10)
        yield* handle.retire("died")
        yield* TestClock.adjust(50)
        assert.strictEqual((yield* Fiber.join(visiting)).name, "a2")
      }))

    it.effect("may need other services than connect", () =>
      Effect.gen(function*() {
        const service = yield* Pool
        yield* visit(service, a)
        assert.strictEqual((yield* visit(service, a)).name, "a1")
      }).pipe(
        Effect.provide(
          Pool.layer({
            connect: makeUpstream().connect,
            check: () => ForCheck.use(() => Effect.void),
            checkAfter: 0
          }).pipe(Layer.provide(Layer.succeed(ForCheck, { is: true })))
        )
      ))
  })

  describe("failureTimeToLive", () => {
    it.effect("is 0 by default: the next get tries again", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: refuseFirst(1) } })
        assert.strictEqual((yield* Effect.flip(visit(pool, a)))._tag, "Refused")
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("is how long a failed connect answers further gets of that identity, and of no other", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ failureTimeToLive: 1_000, upstream: { dial: refuseFirst(1) } })
        const first = yield* Effect.flip(visit(pool, a))
        yield* TestClock.adjust(999)
        assert.strictEqual(yield* Effect.flip(visit(pool, a)), first, "the same error")
        assert.strictEqual(upstream.connects, 1)
        assert.strictEqual((yield* Effect.flip(visit(pool, b)))._tag, "Refused")
        assert.strictEqual(upstream.connects, 2)
        yield* TestClock.adjust(1)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        const stats = yield* pool.stats
        assert.strictEqual(stats.hits + stats.misses, 4)
        assert.strictEqual(stats.failures, 2)
      }))

    it.effect("remembers a ConnectTimeout too", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          failureTimeToLive: "1 minute",
          connectTimeout: 10,
          upstream: { dial: () => Effect.never }
        })
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust(10)
        assert.strictEqual(outcome(caller), "ConnectTimeout")
        assert.strictEqual((yield* Effect.flip(visit(pool, a)))._tag, "ConnectTimeout")
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("remembers no more than capacity failures", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 2,
          failureTimeToLive: "1 hour",
          upstream: { dial: () => Effect.fail(new Refused({ why: "no" })) }
        })
        for (const identity of [a, b, c]) yield* Effect.flip(visit(pool, identity))
        assert.strictEqual(upstream.connects, 3)
        yield* Effect.flip(visit(pool, c))
        yield* Effect.flip(visit(pool, b))
        assert.strictEqual(upstream.connects, 3)
        yield* Effect.flip(visit(pool, a))
        assert.strictEqual(upstream.connects, 4)
      }))

    it.effect("does not remember an open that was left by its last caller", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          failureTimeToLive: "1 hour",
          upstream: { dial: ({ name }) => name === "a1" ? Effect.never : Effect.void }
        })
        yield* Fiber.interrupt(yield* fork(visit(pool, a)))
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("of 0, the default, remembers no failure", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ idleTimeToLive: "1 hour", upstream: { dial: refuseFirst(2) } })
        yield* Effect.flip(visit(pool, a))
        yield* Effect.flip(visit(pool, a))
        assert.strictEqual((yield* visit(pool, a)).name, "a3")
      }))

    it.effect("does not remember the failure of an open that was invalidated", () =>
      Effect.gen(function*() {
        const fail = yield* Deferred.make<never, Refused>()
        const { pool } = yield* start({
          failureTimeToLive: Duration.infinity,
          upstream: { dial: ({ name }) => name === "a1" ? Deferred.await(fail) : Effect.void }
        })
        const visiting = yield* fork(Effect.flip(visit(pool, a)))
        assert.isTrue(yield* pool.invalidate(a))
        yield* Deferred.fail(fail, new Refused({ why: "the old configuration" }))
        assert.strictEqual((yield* Fiber.join(visiting))._tag, "Refused")
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))
  })

  describe("that have no meaning", () => {
    const connect = makeUpstream().connect

    const refuse = (option: string, refused: ReadonlyArray<readonly [value: unknown, show: string]>) =>
      it.effect(`are refused by the layer: ${option}`, () =>
        Effect.forEach(refused, ([value, show]) =>
          Effect.map(refusal({ connect, [option]: value }), (error) => {
            if (error === "accepted") return assert.fail(`${option} ${show} was accepted`)
            assert.instanceOf(error, InvalidOptions)
            assert.strictEqual(error.option, option, show)
            assert.strictEqual(error.module, "SessionPool")
            assert.include(error.message, option)
          })))

    const values: ReadonlyArray<readonly [unknown, string]> = [
      [-1, "-1"],
      [Number.NaN, "NaN"],
      [null, "null"],
      [true, "true"],
      ["5", "\"5\""],
      ["", "\"\""],
      [-Infinity, "-Infinity"],
      [{}, "{}"],
      [[], "[]"],
      [() => 5, "a function"],
      [Symbol("5"), "a symbol"]
    ]
    const moreCounts: ReadonlyArray<readonly [unknown, string]> = [
      [0, "0"],
      [0.5, "0.5"],
      [1.5, "1.5"],
      [Infinity, "Infinity"],
      [10n, "10n"]
    ]
    const moreDurations: ReadonlyArray<readonly [unknown, string]> = [
      ["five minutes", "\"five minutes\""],
      ["-5 seconds", "\"-5 seconds\""],
      [{ seconds: Number.NaN }, "{ seconds: NaN }"],
      [{ seconds: "5" }, "{ seconds: \"5\" }"],
      [{ seconds: -5 }, "{ seconds: -5 }"],
      [{ second: 5 }, "{ second: 5 }, which is no unit"],
      [[Number.NaN, 0], "[NaN, 0]"],
      [-5n, "-5n"],
      [new Date(5), "a Date"],
      [Duration.millis(-5), "a negative Duration"],
      [Duration.negativeInfinity, "minus infinity"]
    ]
    const zeros: ReadonlyArray<readonly [unknown, string]> = [
      [0, "0"],
      [Duration.zero, "zero"],
      ["0 seconds", "\"0 seconds\""]
    ]
    // Whoever waits so long could wait for ever.
    const endless: ReadonlyArray<readonly [unknown, string]> = [
      [Infinity, "Infinity"],
      [Duration.infinity, "infinity"]
    ]
    refuse("capacity", [...values, ...moreCounts])
    for (
      const [option, ...more] of [
        ["idleTimeToLive", zeros],
        ["maxLifetime", zeros],
        ["connectTimeout", zeros, endless],
        ["acquireTimeout", endless],
        ["closeTimeout", zeros, endless],
        ["drainTimeout", endless],
        ["checkAfter"],
        ["checkTimeout", zeros, endless],
        ["failureTimeToLive"]
      ] as const
    ) {
      const refused = [...values, ...moreDurations, ...more.flat()]
      // A function tells some of them of each identity: what it answers is checked when it does.
      const isTold = option === "idleTimeToLive" || option === "maxLifetime" || option === "checkAfter"
      refuse(option, isTold ? refused.filter(([value]) => typeof value !== "function") : refused)
    }
    refuse("connect", [[undefined, "left out"], [null, "null"], ["connect", "a string"], [{}, "{}"]])
    refuse("failureBackoff", [[null, "null"], [100, "a number"], ["1 second", "a duration"], [{}, "{}"]])
    refuse("check", [[null, "null"], [true, "true"], ["ping", "a string"]])
    refuse("idleTimeToLife", [[5, "is an unknown option"]])

    it.effect("are refused by the layer: no options at all", () =>
      Effect.gen(function*() {
        for (const options of [undefined, null, 5, "connect"]) {
          const error = yield* refusal(options)
          assert.isTrue(error !== "accepted" && error._tag === "InvalidOptions", String(options))
        }
      }))

    it.effect("do not show what they are in the error, were it a secret", () =>
      Effect.gen(function*() {
        const error = yield* refusal({ connect, check: { token: "sk-live-SECRET" } })
        assert.notInclude(JSON.stringify(error), "SECRET")
        assert.notInclude(String(error === "accepted" ? "" : error.message), "SECRET")
      }))
  })

  describe("that have one", () => {
    const connect = makeUpstream().connect
    const accept = (options: Record<string, unknown>) =>
      it.effect(`are accepted: ${Object.keys(options).join(", ")}`, () =>
        Effect.gen(function*() {
          assert.strictEqual(yield* refusal({ connect, ...options }), "accepted")
        }))
    accept({ acquireTimeout: 0, drainTimeout: 0, checkAfter: 0, failureTimeToLive: 0 })
    accept({ idleTimeToLive: Infinity, maxLifetime: "Infinity", checkAfter: Duration.infinity })
    accept({
      capacity: 1,
      idleTimeToLive: "1 day",
      maxLifetime: { hours: 1, minutes: 30 },
      connectTimeout: 5n,
      closeTimeout: [1, 500]
    })
    accept({ capacity: undefined, idleTimeToLive: undefined, check: undefined, acquireTimeout: undefined })
  })

  describe("from the configuration", () => {
    it.effect("are capacity and all durations, in milliseconds", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const pool = yield* build({ connect: upstream.connect }, {
          MCP_SESSION_MAX: "2",
          MCP_SESSION_TTL_MS: "50",
          MCP_SESSION_ACQUIRE_TIMEOUT_MS: "0"
        })
        const { capacity, idleTimeToLive } = yield* pool.stats
        assert.strictEqual(capacity, 2)
        assert.strictEqual(Duration.toMillis(idleTimeToLive), 50)
        yield* visit(pool, a)
        yield* TestClock.adjust(51)
        assert.deepStrictEqual(upstream.closed, ["a1"])
        yield* pool.get(a)
        yield* pool.get(b)
        assert.strictEqual((yield* Effect.flip(visit(pool, c)))._tag, "PoolExhausted")
      }))

    it.effect("are the defaults where it is silent", () =>
      Effect.gen(function*() {
        const pool = yield* build({ connect: makeUpstream().connect }, {})
        const { capacity, idleTimeToLive } = yield* pool.stats
        assert.strictEqual(capacity, 10)
        assert.strictEqual(Duration.toMillis(idleTimeToLive), 300_000)
      }))

    for (
      const [variable, option] of [
        ["MCP_SESSION_MAX", "capacity"],
        ["MCP_SESSION_TTL_MS", "idleTimeToLive"],
        ["MCP_SESSION_MAX_LIFETIME_MS", "maxLifetime"],
        ["MCP_SESSION_CONNECT_TIMEOUT_MS", "connectTimeout"],
        ["MCP_SESSION_ACQUIRE_TIMEOUT_MS", "acquireTimeout"],
        ["MCP_SESSION_CLOSE_TIMEOUT_MS", "closeTimeout"],
        ["MCP_SESSION_DRAIN_TIMEOUT_MS", "drainTimeout"],
        ["MCP_SESSION_CHECK_AFTER_MS", "checkAfter"],
        ["MCP_SESSION_CHECK_TIMEOUT_MS", "checkTimeout"],
        ["MCP_SESSION_FAILURE_TTL_MS", "failureTimeToLive"]
      ] as const
    ) {
      it.effect(`are refused as those in code are: ${variable} of -1 is ${option}`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(build({ connect: makeUpstream().connect }, { [variable]: "-1" }))
          assert.strictEqual(error._tag, "InvalidOptions")
          if (error._tag === "InvalidOptions") assert.strictEqual(error.option, option)
        }))

      it.effect(`are a failure where they can't be read: ${variable} of "many"`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(build({ connect: makeUpstream().connect }, { [variable]: "many" }))
          assert.include(["ConfigError", "InvalidOptions"], error._tag)
        }))
    }
  })
})
