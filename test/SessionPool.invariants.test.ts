/**
 * The ten invariants of the pool, each by tests named after it. `simulation.test.ts` looks for their breach at random;
 * here they are one by one.
 */
import { assert, describe, it } from "@effect/vitest"
import { SessionPoolError } from "effect-mcp-sessions"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scheduler from "effect/Scheduler"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { many, some, underLoad } from "./support/load.ts"
import { call, lease, openPool, openWith, type Pool, type PoolOptions, record, start, visit } from "./support/pool.ts"
import { makeUpstream, Refused, refuseFirst, type TestSession } from "./support/upstream.ts"
import { makeWall } from "./support/wall.ts"

const refuse = Effect.fail(new Refused({ why: "not yet" }))

/** What may happen to a session while a call runs on it. */
const ends: ReadonlyArray<{
  readonly how: string
  readonly options: Partial<PoolOptions>
  readonly end: (pool: Pool["Service"], session: TestSession) => Effect.Effect<unknown, unknown>
}> = [
  {
    how: "evicted",
    options: { capacity: 2 },
    end: (pool) => Effect.forEach([b, c, d], (identity) => visit(pool, identity))
  },
  { how: "expired", options: { idleTimeToLive: 50 }, end: () => TestClock.adjust(1_000) },
  { how: "out of lifetime", options: { maxLifetime: 50 }, end: () => TestClock.adjust(1_000) },
  { how: "invalidated", options: {}, end: (pool) => pool.invalidate(a) },
  { how: "invalidated with all others", options: {}, end: (pool) => pool.invalidateWhere(() => true) },
  { how: "said to have died", options: {}, end: (_, { handle }) => handle.retire("died") }
]

const hundreds = many(200, 2_000)

describe("SessionPool invariants", () => {
  describe("1. Never closed in use", () => {
    for (const { end, how, options } of ends) {
      it.effect(`a call completes on a session that is ${how} meanwhile`, () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({ ...options })
          const gate = yield* Deferred.make<void>()
          const caller = yield* fork(pool.withSession(a, (session) => Effect.as(Deferred.await(gate), session)))
          yield* end(pool, upstream.sessions[0]!)
          yield* settle
          assert.isTrue(upstream.sessions[0]!.isOpen)
          assert.notInclude(upstream.closed, "a1")
          yield* Deferred.succeed(gate, undefined)
          assert.strictEqual((yield* Fiber.join(caller)).name, "a1")
        }))

      it.effect(`a session that is ${how} closes when the last of several leases ends, not before`, () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({ ...options })
          const leases = yield* Effect.forEach([a, a, a], (identity) => lease(pool, identity))
          yield* end(pool, upstream.sessions[0]!)
          for (const { release } of leases) {
            yield* settle
            assert.isTrue(upstream.sessions[0]!.isOpen)
            yield* release
          }
          yield* pool.invalidate(a)
          yield* settle
          assert.strictEqual(upstream.closed.filter((name) => name === "a1").length, 1)
        }))
    }

    it.effect("not under a check", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const seen: Array<boolean> = []
        const pool = yield* openPool({
          connect: upstream.connect,
          checkAfter: 0,
          checkTimeout: 1_000,
          check: (session) => Effect.andThen(Effect.sleep(500), Effect.sync(() => void seen.push(session.isOpen)))
        })
        yield* visit(pool, a)
        const caller = yield* fork(visit(pool, a))
        yield* Fiber.interrupt(caller)
        yield* pool.invalidate(a)
        yield* TestClock.adjust(500)
        assert.deepStrictEqual(seen, [true])
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("not between the end of an open and the caller that waited for it", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, idleTimeToLive: 1, upstream: { dial: () => Effect.sleep(10) } })
        const callers = yield* Effect.forEach(
          [a, b, c, a, b, c],
          (identity) => fork(pool.withSession(identity, (session) => Effect.sync(() => session.isOpen)))
        )
        yield* TestClock.adjust("10 seconds")
        for (const caller of callers) assert.isTrue(yield* Fiber.join(caller))
      }))

    it.effect("not by an eviction: the other identity waits its turn", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1 })
        const calls = yield* Effect.forEach([a, b], (identity) => fork(pool.withSession(identity, call)))
        yield* TestClock.adjust(2_000)
        assert.deepStrictEqual(calls.map(outcome), ["success", "success"])
        assert.strictEqual(upstream.peak, 1)
      }))

    it.effect("not by the idle sweep, an eviction or another identity's failed open", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 2,
          idleTimeToLive: 10,
          upstream: {
            dial: ({ identity }) => identity.key === "c" ? Effect.fail(new Refused({ why: "down" })) : Effect.void
          }
        })
        const running = yield* fork(pool.withSession(a, call))
        yield* visit(pool, b)
        yield* Effect.flip(visit(pool, c))
        yield* TestClock.adjust(1_000)
        assert.strictEqual(outcome(running), "success")
      }))
  })

  describe("2. One per identity", () => {
    it.effect("a thousand concurrent gets of one identity are one connect", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const callers = yield* Effect.forEach(Array.from({ length: 1_000 }), () => fork(visit(pool, a)))
        yield* TestClock.adjust(100)
        for (const caller of callers) assert.strictEqual((yield* Fiber.join(caller)).name, "a1")
        assert.strictEqual(upstream.connects, 1)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.hits, s.misses]), [999, 1])
      }))

    it.effect("hundreds that wait for room are one connect", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, b)
        const callers = yield* Effect.forEach(Array.from({ length: hundreds }), () => fork(visit(pool, a)))
        yield* held.release
        yield* settle
        for (const caller of callers) assert.strictEqual((yield* Fiber.join(caller)).name, "a1")
        assert.strictEqual(upstream.connects, 2)
      }), underLoad)

    it.effect("only a retired session is beside its successor", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const old = yield* lease(pool, a)
        yield* pool.invalidate(a)
        const leases = yield* Effect.forEach([a, a, a], (identity) => lease(pool, identity))
        assert.deepStrictEqual(leases.map(({ session }) => session.name), ["a2", "a2", "a2"])
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.size, s.draining]), [1, 1])
        yield* old.release
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.size, s.draining]), [1, 0])
      }))

    for (
      const [how, handshake] of [["is left", Effect.never], ["fails", Effect.fail(new Refused({ why: "no" }))]] as const
    ) {
      it.effect(`a retired session that ${how} while it is still opening leaves its successor alone`, () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({
            upstream: {
              handshake: ({ name }) => name === "a1" ? Effect.andThen(Effect.sleep(100), handshake) : Effect.void
            }
          })
          const caller = yield* fork(visit(pool, a))
          yield* pool.invalidate(a)
          const successor = yield* lease(pool, a)
          yield* TestClock.adjust(100)
          yield* Fiber.interrupt(caller)
          assert.deepStrictEqual(upstream.gone, ["a1"])
          assert.strictEqual(yield* visit(pool, a), successor.session)
          assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.size, s.leased, s.draining]), [1, 1, 0])
          assert.strictEqual(upstream.connects, 2)
        }))
    }

    it.effect("also when the last caller of an open leaves as another comes", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { handshake: () => Effect.sleep(100) } })
        const first = yield* fork(visit(pool, a))
        yield* TestClock.adjust(50)
        yield* Fiber.interrupt(first)
        const second = yield* fork(visit(pool, a))
        yield* TestClock.adjust(100)
        assert.strictEqual((yield* Fiber.join(second)).name, "a2")
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))
  })

  describe("3. Bounded", () => {
    it.effect("a herd of 100 identities at capacity 10 has 100 successes and never more than 10 sessions", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 10,
          upstream: { dial: () => Effect.sleep(10), hangUp: () => Effect.sleep(5) }
        })
        const callers = yield* Effect.forEach(
          identities(100),
          (identity) =>
            fork(pool.withSession(identity, (session) =>
              Effect.andThen(
                Effect.sleep(10),
                Effect.sync(() => session.isOpen ? session.identity.key as string : "closed")
              )))
        )
        yield* TestClock.adjust("29 seconds")
        const keys = yield* Effect.forEach(callers, (caller) => Fiber.join(caller))
        assert.deepStrictEqual(keys, identities(100).map(({ key }) => key as string))
        assert.isAtMost(upstream.peak, 10)
        assert.isAtMost(upstream.peakClosing, 10)
        assert.strictEqual(upstream.connects, 100)
        assert.deepInclude(yield* pool.stats, { size: 10, evictions: 90, misses: 100 })
      }))

    it.effect("hundreds of new identities open no more than capacity at once", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(1) } })
        const callers = yield* Effect.forEach(identities(hundreds), (identity) => fork(visit(pool, identity)))
        assert.strictEqual(upstream.live(), 10)
        assert.strictEqual((yield* pool.stats).waiting, hundreds - 10)
        yield* TestClock.adjust("1 second")
        for (const caller of callers) assert.strictEqual(outcome(caller), "success")
        assert.strictEqual(upstream.peak, 10)
      }), underLoad)

    it.effect("draining sessions count", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 2, acquireTimeout: 0 })
        yield* pool.get(a)
        yield* pool.invalidate(a)
        yield* pool.get(a)
        assert.strictEqual((yield* Effect.flip(visit(pool, b)))._tag, "PoolExhausted")
        assert.strictEqual(upstream.peak, 2)
      }))

    it.effect("no more than capacity are closing: what is retired then waits, and nothing is evicted", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 2, upstream: { hangUp: () => Effect.sleep(1_000) } })
        for (const identity of [a, b]) {
          yield* visit(pool, identity)
          yield* pool.invalidate(identity)
        }
        assert.strictEqual((yield* pool.stats).closing, 2)
        yield* visit(pool, c)
        yield* visit(pool, d)
        yield* pool.invalidate(c)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.closing, s.draining, s.idle]), [2, 1, 1])
        const waiter = yield* fork(visit(pool, identities(1)[0]!))
        yield* settle
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.waiting, s.idle, s.evictions]), [1, 1, 0])
        yield* TestClock.adjust(1_000)
        assert.strictEqual(outcome(waiter), "success")
        assert.strictEqual(upstream.peakClosing, 2)
        assert.strictEqual(upstream.peak, 2)
      }))

    it.effect("failed opens that are being freed count", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 2,
          acquireTimeout: 0,
          upstream: {
            handshake: () => Effect.fail(new Refused({ why: "no" })),
            hangUp: () => Effect.sleep(100)
          }
        })
        const callers = yield* Effect.forEach([a, b, c], (identity) => fork(visit(pool, identity)))
        assert.strictEqual(outcome(callers[2]!), "PoolExhausted")
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(callers.slice(0, 2).map(outcome), ["Refused", "Refused"])
      }))

    it.effect("100 concurrent calls at capacity 10 are 100 successes: none has a session that is doomed", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 10 })
        const calls = yield* Effect.forEach(identities(100), (identity) => fork(pool.withSession(identity, call)))
        yield* TestClock.adjust(10_000)
        assert.deepStrictEqual(new Set(calls.map(outcome)), new Set(["success"]))
        assert.strictEqual(upstream.peak, 10)
      }))

    it.effect(
      "hundreds of identities open and close no more than capacity at once, also when both are slow",
      () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({
            capacity: 10,
            upstream: { dial: () => Effect.sleep(5), hangUp: () => Effect.sleep(20) }
          })
          const calls = yield* Effect.forEach(identities(hundreds), (identity) => fork(visit(pool, identity)))
          yield* TestClock.adjust("29 seconds")
          assert.deepStrictEqual(new Set(calls.map(outcome)), new Set(["success"]))
          assert.isAtMost(upstream.peak, 10)
          assert.isAtMost(upstream.peakClosing, 10)
        }),
      underLoad
    )

    it.effect("hundreds of hung opens stay within capacity, and are seen", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ acquireTimeout: 1_000, upstream: { dial: () => Effect.never } })
        const callers = yield* Effect.forEach(identities(hundreds), (identity) => fork(visit(pool, identity)))
        assert.deepInclude(yield* pool.stats, { opening: 10, waiting: hundreds - 10 })
        yield* TestClock.adjust(1_000)
        assert.strictEqual(callers.filter((caller) => outcome(caller) === "PoolExhausted").length, hundreds - 10)
        assert.strictEqual(upstream.connects, 10)
      }), underLoad)
  })

  describe("4. Closed once", () => {
    const cases: ReadonlyArray<readonly [string, Parameters<typeof makeUpstream>[0], Partial<PoolOptions>]> = [
      ["its close succeeds", {}, {}],
      ["its close throws", { hangUp: () => Effect.die("bug") }, {}],
      ["its close hangs", { hangUp: () => Effect.never }, {}],
      ["its close is slow", { hangUp: () => Effect.sleep("1 minute") }, { closeTimeout: 1_000 }],
      ["its close interrupts itself", { hangUp: () => Effect.interrupt }, {}],
      ["its handshake fails", { handshake: () => Effect.fail(new Refused({ why: "no" })) }, {}],
      ["its handshake dies", { handshake: () => Effect.die("bug") }, {}],
      ["its handshake hangs", { handshake: () => Effect.never }, { connectTimeout: 10 }],
      ["its handshake fails and its close hangs", {
        handshake: () => Effect.fail(new Refused({ why: "no" })),
        hangUp: () => Effect.never
      }, {}],
      ["its handshake hangs and its close dies", { handshake: () => Effect.never, hangUp: () => Effect.die("bug") }, {
        connectTimeout: 10
      }],
      ["its handshake ends late", { handshake: () => Effect.uninterruptible(Effect.sleep("1 minute")) }, {
        connectTimeout: 10
      }],
      ["its handshake fails late", {
        handshake: () => Effect.uninterruptible(Effect.delay(Effect.fail(new Refused({ why: "no" })), "1 minute"))
      }, { connectTimeout: 10 }]
    ]
    for (const [how, upstreamOptions, options] of cases) {
      it.effect(`each session, when ${how}`, () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({
            capacity: 2,
            idleTimeToLive: 50,
            ...options,
            upstream: upstreamOptions
          })
          const callers = yield* Effect.forEach([a, b, c, a], (identity) => fork(visit(pool, identity)))
          yield* TestClock.adjust(20)
          yield* pool.invalidateWhere(() => true)
          yield* TestClock.adjust("1 hour")
          for (const caller of callers) assert.notStrictEqual(outcome(caller), "waiting")
          const closing = yield* fork(pool.close)
          yield* TestClock.adjust("1 hour")
          yield* Fiber.join(closing)
          assert.isAbove(upstream.opened.length, 0)
          assert.sameMembers(upstream.closed, upstream.opened)
          assert.strictEqual(new Set(upstream.closed).size, upstream.closed.length)
        }))
    }

    it.effect("what a failed connect had acquired, before its callers hear of it", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: { handshake: () => Effect.fail(new Refused({ why: "no" })) }
        })
        const gone = yield* Effect.flip(visit(pool, a)).pipe(Effect.map(() => Array.from(upstream.gone)))
        assert.deepStrictEqual(gone, ["a1"])
      }))

    it.effect("what an abandoned connect had acquired, before its last caller's interruption ends", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: { handshake: () => Effect.never, hangUp: () => Effect.sleep(100) }
        })
        const caller = yield* fork(visit(pool, a))
        const interruption = yield* fork(Fiber.interrupt(caller))
        yield* TestClock.adjust(99)
        assert.isUndefined(interruption.pollUnsafe())
        yield* TestClock.adjust(1)
        assert.isDefined(interruption.pollUnsafe())
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("what a connect had acquired that never ends nor can be interrupted, before its callers hear of it", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream({
          handshake: () => Effect.uninterruptible(Effect.never),
          hangUp: () => Effect.sleep(40)
        })
        const pool = yield* openPool({ connect: upstream.connect, connectTimeout: 100, closeTimeout: 100 })
        const late = yield* fork(visit(pool, a))
        yield* TestClock.adjust(199)
        assert.strictEqual(outcome(late), "waiting", "its place is taken until then")
        yield* TestClock.adjust(1)
        assert.strictEqual(outcome(late), "ConnectTimeout")
        assert.deepStrictEqual(upstream.gone, ["a1"])
        yield* fork(visit(pool, b))
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(100)
        assert.isDefined(closing.pollUnsafe())
        assert.deepStrictEqual(upstream.gone, ["a1", "b1"], "nothing outlives its pool")
      }))

    it.effect("what a connect that never ends acquires after it was given up, at once", () =>
      Effect.gen(function*() {
        const freed: Array<number> = []
        const connect = () =>
          Effect.uninterruptible(Effect.gen(function*() {
            yield* Effect.sleep("1 hour")
            yield* Effect.acquireRelease(Clock.currentTimeMillis, (at) => Effect.sync(() => freed.push(at)))
            return yield* Effect.never
          }))
        const pool = yield* openPool({ connect, connectTimeout: 100, closeTimeout: 100 })
        yield* fork(visit(pool, a))
        yield* TestClock.adjust("2 hours")
        assert.deepStrictEqual(freed, [3_600_000])
      }))

    it.effect("all finalizers of a session, also after one that throws", () =>
      Effect.gen(function*() {
        const log: Array<string> = []
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.gen(function*() {
              yield* Effect.addFinalizer(() => Effect.sync(() => void log.push("socket")))
              yield* Effect.addFinalizer(() => Effect.die("bug"))
              yield* Effect.addFinalizer((): Effect.Effect<void> => {
                throw new Error("bug")
              })
              return { name: identity.key, identity, handle, isOpen: true }
            })
        })
        yield* visit(pool, a)
        yield* pool.invalidate(a)
        yield* settle
        assert.deepStrictEqual(log, ["socket"])
        assert.strictEqual((yield* pool.stats).closeFailures, 1)
      }))

    it.effect("all sessions at shutdown, though the close of one fails", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: {
            hangUp: ({ name }) => name === "a1" ? Effect.die("close failed") : Effect.void
          }
        })
        for (const identity of [a, b, c]) yield* visit(pool, identity)
        yield* pool.close
        assert.sameMembers(upstream.closed, ["a1", "b1", "c1"])
        assert.sameMembers(upstream.gone, ["b1", "c1"])
      }))

    it.effect("whatever a busy pool of expiring, dying and evicted sessions has opened", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 3,
          idleTimeToLive: 10,
          maxLifetime: 40,
          upstream: { dial: ({ name }) => name.length % 2 === 0 ? Effect.sleep(7) : Effect.void }
        })
        const callers = yield* Effect.forEach(
          identities(30),
          (identity, i) =>
            fork(Effect.delay(
              pool.withSession(identity, ({ handle }) => i % 3 === 0 ? handle.retire("died") : Effect.sleep(i)),
              i * 3
            ))
        )
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["success"]))
        assert.strictEqual(upstream.opened.length, 30)
        assert.sameMembers(upstream.gone, upstream.opened)
        assert.deepInclude(yield* pool.stats, { size: 0, opening: 0, draining: 0, closing: 0 })
      }))
  })

  // 5. No secret escapes: SessionPool.secrets.test.ts

  describe("6. Every wait ends", () => {
    it.effect("a connect that never settles hurts only its own identity", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 2,
          upstream: { dial: ({ name }) => name.startsWith("a") ? Effect.never : Effect.void }
        })
        const hung = yield* fork(visit(pool, a))
        for (const identity of [b, c, d]) assert.isDefined((yield* visit(pool, identity)).name)
        yield* TestClock.adjust("30 seconds")
        assert.strictEqual(outcome(hung), "ConnectTimeout")
      }))

    it.effect("a connect that never settles and can't be interrupted is abandoned after closeTimeout", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          connectTimeout: 100,
          closeTimeout: 50,
          upstream: {
            dial: ({ name }) => name === "a1" ? Effect.uninterruptible(Effect.never) : Effect.void
          }
        })
        const hung = yield* fork(visit(pool, a))
        const waiter = yield* fork(visit(pool, b))
        yield* TestClock.adjust(149)
        assert.deepStrictEqual([outcome(hung), outcome(waiter)], ["waiting", "waiting"])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual([outcome(hung), outcome(waiter)], ["ConnectTimeout", "success"])
        assert.strictEqual((yield* pool.stats).closeFailures, 1)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("a close that never settles hurts nobody, not even its own identity", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { hangUp: () => Effect.never } })
        yield* visit(pool, a)
        yield* pool.invalidate(a)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        assert.strictEqual((yield* visit(pool, b)).name, "b1")
      }))

    it.effect("a close that never settles, of a leased session that was retired, leaves its place to who waits", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, upstream: { hangUp: () => Effect.never } })
        const held = yield* lease(pool, a)
        const waiter = yield* fork(visit(pool, b))
        yield* pool.invalidate(a)
        yield* held.release
        yield* settle
        assert.strictEqual((yield* pool.stats).closing, 1)
        assert.strictEqual(outcome(waiter), "success", "there is room: nothing is opening, open or draining")
      }))

    it.effect("a check that hangs hurts only its own identity", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          checkAfter: 0,
          check: ({ identity }) => identity.key === "a" ? Effect.uninterruptible(Effect.never) : Effect.void
        })
        for (const identity of [a, b]) yield* visit(pool, identity)
        const hung = yield* fork(visit(pool, a))
        assert.strictEqual((yield* visit(pool, b)).name, "b1")
        assert.strictEqual((yield* visit(pool, c)).name, "c1")
        yield* TestClock.adjust("5 seconds")
        assert.strictEqual((yield* Fiber.join(hung)).name, "a2")
      }))

    it.effect("a wait can be interrupted: joining, waiting for room, being checked", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 2,
          checkAfter: 0,
          check: () => Effect.never,
          checkTimeout: "1 hour",
          connectTimeout: "1 hour",
          acquireTimeout: "1 hour",
          upstream: { dial: ({ name }) => name === "b1" ? Effect.never : Effect.void }
        })
        yield* visit(pool, a)
        const callers = yield* Effect.forEach([a, b, b, c], (identity) => fork(visit(pool, identity)))
        assert.deepStrictEqual(callers.map(outcome), ["waiting", "waiting", "waiting", "waiting"])
        // The last first: an open that is interrupted makes room.
        for (const caller of callers.toReversed()) {
          yield* Fiber.interrupt(caller)
          assert.strictEqual(outcome(caller), "Interrupt")
        }
        assert.deepInclude(yield* pool.stats, { waiting: 0, opening: 0, draining: 0 })
      }))

    it.effect("shutdown ends within drainTimeout and twice closeTimeout, whatever hangs", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 4,
          drainTimeout: 1_000,
          closeTimeout: 100,
          upstream: {
            dial: ({ name }) => name === "a1" ? Effect.uninterruptible(Effect.never) : Effect.void,
            handshake: ({ name }) => name === "b1" ? Effect.never : Effect.void,
            hangUp: () => Effect.never
          }
        })
        const callers = yield* Effect.forEach([a, b], (identity) => fork(visit(pool, identity)))
        const held = yield* Effect.forEach([c, d], (identity) => lease(pool, identity))
        const waiter = yield* fork(visit(pool, identities(1)[0]!))
        yield* pool.invalidate(c)
        const closing = yield* fork(pool.close)
        yield* settle
        assert.strictEqual(outcome(waiter), "PoolClosed")
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(callers.map(outcome), ["PoolClosed", "PoolClosed"])
        yield* TestClock.adjust(899)
        assert.isTrue(held.every(({ session }) => session.isOpen))
        assert.isUndefined(closing.pollUnsafe())
        yield* TestClock.adjust(201)
        assert.isDefined(closing.pollUnsafe())
        assert.sameMembers(upstream.closed, ["b1", "c1", "d1"])
      }))

    it.effect("shutdown ends within its bounds while capacity sessions are closing and as many are drained", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 2,
          closeTimeout: 100,
          upstream: { hangUp: () => Effect.never }
        })
        for (const identity of [a, b, c, d]) {
          yield* visit(pool, identity)
          yield* pool.invalidate(identity)
        }
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.closing, s.draining]), [2, 2])
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(200)
        assert.isDefined(closing.pollUnsafe())
        assert.sameMembers(upstream.closed, ["a1", "b1", "c1", "d1"])
      }))

    it.effect("shutdown ends within its bounds under opens that ignore it, whatever they go on to acquire", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          connectTimeout: 100,
          closeTimeout: 100,
          upstream: {
            handshake: () =>
              Effect.forEach(
                [1, 2, 3],
                () => Effect.acquireRelease(Effect.sleep("1 minute"), () => Effect.sleep("1 minute"))
              ),
            hangUp: () => Effect.sleep("1 minute")
          }
        })
        const early = yield* fork(visit(pool, a))
        yield* TestClock.adjust(200)
        assert.strictEqual(outcome(early), "ConnectTimeout", "a is given up when the pool ends, b is not yet")
        yield* fork(visit(pool, b))
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(200)
        assert.isTrue(closing.pollUnsafe() !== undefined && Exit.isSuccess(closing.pollUnsafe()!))
        assert.sameMembers(upstream.closed, ["a1", "b1"], "what they had is being freed under them")
        assert.deepStrictEqual(upstream.gone, [])
        yield* TestClock.adjust("10 minutes")
        assert.sameMembers(upstream.gone, ["a1", "b1"])
      }))

    it.effect("shutdown is a success, whatever a session throws after it was given up", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          closeTimeout: 100,
          upstream: {
            handshake: ({ name }) => name === "a1" ? Effect.uninterruptible(Effect.never) : Effect.void,
            hangUp: () => Effect.die(new Error("the finalizer quotes sk-live-SECRET"))
          }
        })
        yield* visit(pool, b)
        yield* fork(visit(pool, a))
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(200)
        assert.isTrue(closing.pollUnsafe() !== undefined && Exit.isSuccess(closing.pollUnsafe()!))
      }))
  })

  describe("7. Sessions belong to the pool", () => {
    it.effect("the fibers of a session outlive the caller that came first", () =>
      Effect.gen(function*() {
        const beats: Array<number> = []
        const { pool } = yield* start({
          idleTimeToLive: "1 hour",
          upstream: {
            handshake: () =>
              Effect.forkScoped(
                Effect.forever(Effect.andThen(Effect.sync(() => void beats.push(1)), Effect.sleep(10)))
              )
          }
        })
        const caller = yield* fork(visit(pool, a))
        yield* Fiber.join(caller)
        yield* TestClock.adjust(100)
        const { length } = beats
        yield* TestClock.adjust(100)
        assert.isAbove(beats.length, length)
        yield* pool.invalidate(a)
        yield* settle
        const last = beats.length
        yield* TestClock.adjust(100)
        assert.strictEqual(beats.length, last, "and end with the session")
      }))

    it.effect("the interruption of the caller that opened it does not touch a session", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const caller = yield* fork(pool.withSession(a, () => Effect.never))
        yield* Fiber.interrupt(caller)
        assert.deepStrictEqual(upstream.closed, [])
        assert.strictEqual((yield* visit(pool, a)).name, "a1")
      }))
  })

  describe("8. Time is Clock", () => {
    it.effect("nothing happens while the test clock stands still", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 2,
          idleTimeToLive: 1,
          maxLifetime: 1,
          connectTimeout: 1,
          acquireTimeout: 1,
          upstream: { dial: ({ name }) => name === "b1" ? Effect.never : Effect.void }
        })
        yield* pool.get(a)
        const callers = yield* Effect.forEach([b, c], (identity) => fork(visit(pool, identity)))
        yield* TestClock.withLive(Effect.sleep(20))
        assert.deepStrictEqual(callers.map(outcome), ["waiting", "waiting"])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(callers.map(outcome), ["ConnectTimeout", "success"])
      }))

    it.effect("a wall clock that is set back an hour keeps nothing longer", () =>
      Effect.gen(function*() {
        const wall = yield* makeWall
        const upstream = makeUpstream({ dial: ({ name }) => name === "b1" ? refuse : Effect.void })
        const pool = yield* wall.on(openPool({
          connect: upstream.connect,
          idleTimeToLive: 50,
          failureTimeToLive: 50
        }))
        yield* visit(pool, a)
        yield* Effect.flip(visit(pool, b))
        yield* wall.jump(-3_600_000)
        yield* TestClock.adjust(51)
        assert.deepStrictEqual(upstream.closed, ["a1"])
        assert.strictEqual((yield* visit(pool, b)).name, "b2")
      }))

    it.effect("a wall clock that is set ahead an hour ends nothing sooner, and calls for no check", () =>
      Effect.gen(function*() {
        const wall = yield* makeWall
        const upstream = makeUpstream({ dial: ({ name }) => name === "b1" ? refuse : Effect.void })
        const pool = yield* wall.on(openPool({
          connect: upstream.connect,
          idleTimeToLive: 50,
          failureTimeToLive: 50,
          check: () => Effect.fail("unwell"),
          checkAfter: 40
        }))
        yield* visit(pool, a)
        yield* Effect.flip(visit(pool, b))
        yield* wall.jump(3_600_000)
        yield* TestClock.adjust(30)
        assert.strictEqual((yield* visit(pool, a)).name, "a1")
        assert.strictEqual((yield* Effect.flip(visit(pool, b)))._tag, "Refused")
        assert.strictEqual(upstream.connects, 2)
      }))

    it.effect("what is shown to users is the time of the wall clock, as it is set now", () =>
      Effect.gen(function*() {
        const wall = yield* makeWall
        const { connect } = makeUpstream()
        const pool = yield* wall.on(openPool({ connect }))
        const { lines } = yield* record(pool)
        const times = Effect.map(pool.entries, ([entry]) => [entry?.openedAt, entry?.lastUsedAt])
        yield* TestClock.adjust(1_000)
        const held = yield* lease(pool, a)
        yield* TestClock.adjust(2_000)
        yield* held.release
        assert.deepStrictEqual(yield* times, [1_000, 3_000])
        yield* wall.jump(3_600_000)
        assert.deepStrictEqual(yield* times, [3_601_000, 3_603_000])
        yield* wall.jump(-7_200_000)
        assert.deepStrictEqual(yield* times, [-3_599_000, -3_597_000])
        yield* pool.invalidate(a)
        yield* settle
        assert.strictEqual(lines.at(-1), "Closed a: invalidated")
      }))

    it.effect("callers with a clock of their own wait by that of the pool", () =>
      Effect.gen(function*() {
        const { pool } = yield* openWith(() => ({}), { capacity: 1, acquireTimeout: 50 })
        yield* pool.get(a)
        const caller = yield* fork(TestClock.withLive(visit(pool, b)))
        yield* TestClock.adjust(50)
        assert.strictEqual(outcome(caller), "PoolExhausted")
      }))
  })

  describe("9. Errors are typed", () => {
    it.effect("each error of the pool says what happened and where, and is found in the error reference", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 2,
          acquireTimeout: 0,
          upstream: { dial: ({ name }) => name === "b1" ? Effect.never : Effect.void }
        })
        yield* pool.get(a)
        const hung = yield* fork(visit(pool, b))
        const exhausted = yield* Effect.flip(visit(pool, c))
        yield* TestClock.adjust("30 seconds")
        const timeout = yield* Effect.flip(Fiber.join(hung))
        yield* pool.close
        const closed = yield* Effect.flip(visit(pool, a))
        assert.deepStrictEqual(
          [exhausted, timeout, closed].map(({ _tag }) => _tag),
          ["PoolExhausted", "ConnectTimeout", "PoolClosed"]
        )
        for (const error of [exhausted, timeout, closed]) {
          if (error._tag === "Refused") return assert.fail("not an error of the pool")
          assert.instanceOf(error, Error)
          assert.strictEqual(error.module, "SessionPool")
          assert.strictEqual(error.method, "get")
          assert.match(error.reference, /^[a-z]+(-[a-z]+)*$/)
          assert.isAbove(error.message.length, 20)
          assert.strictEqual(JSON.parse(JSON.stringify(error))._tag, error._tag)
        }
      }))

    it.effect("each error names the operation that failed, also where one open was joined by both", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 0, upstream: { dial: () => Effect.never } })
        const get = (identity: typeof a) => Effect.flip(visit(pool, identity))
        const use = (identity: typeof a) => Effect.flip(pool.withSession(identity, () => Effect.void))
        const [getting, using] = [yield* fork(get(a)), yield* fork(use(a))]
        const exhausted = [yield* get(b), yield* use(b)]
        yield* TestClock.adjust("30 seconds")
        const late = [yield* Fiber.join(getting), yield* Fiber.join(using)]
        yield* pool.close
        const closed = [yield* get(a), yield* use(a)]
        for (const errors of [exhausted, late, closed]) {
          const methods = errors.map((error) => error._tag === "Refused" ? undefined : error.method)
          assert.deepStrictEqual(methods, ["get", "withSession"])
        }
      }))

    it.effect("what a get is interrupted by is never the pool's doing", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, upstream: { dial: () => Effect.sleep(10) } })
        const callers = yield* Effect.forEach(
          [a, b, c, a, b, c],
          (identity) => fork(Effect.exit(visit(pool, identity)))
        )
        yield* TestClock.adjust(15)
        yield* fork(pool.close)
        yield* TestClock.adjust("1 minute")
        for (const caller of callers) {
          const exit = yield* Fiber.join(caller)
          if (Exit.isFailure(exit)) assert.isFalse(Cause.hasInterrupts(exit.cause) || Cause.hasDies(exit.cause))
        }
      }))

    it.effect("errors are told apart by their tag, and those of connect come unwrapped", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 0, upstream: { dial: refuseFirst(1) } })
        const why = yield* visit(pool, a).pipe(
          Effect.catchTag("Refused", (error) => Effect.succeed(error.why))
        )
        assert.strictEqual(why, "a1")
        yield* pool.get(a)
        const capacity = yield* visit(pool, b).pipe(
          Effect.catchTag("PoolExhausted", (error) => Effect.succeed(error.capacity))
        )
        assert.strictEqual(capacity, 1)
      }))

    it.effect("errors survive a wire: they encode and decode by their schema", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 0, upstream: { dial: () => Effect.never } })
        const hanging = yield* fork(visit(pool, a))
        const exhausted = yield* Effect.flip(visit(pool, b))
        yield* TestClock.adjust("30 seconds")
        const timeout = yield* Effect.flip(Fiber.join(hanging))
        yield* pool.close
        const closed = yield* Effect.flip(visit(pool, a))
        const codec = Schema.toCodecJson(SessionPoolError)
        for (const error of [exhausted, timeout, closed]) {
          if (error._tag === "Refused") return assert.fail("not an error of the pool")
          const json = JSON.parse(JSON.stringify(yield* Schema.encodeEffect(codec)(error)))
          const decoded = yield* Schema.decodeUnknownEffect(codec)(json)
          assert.strictEqual(decoded._tag, error._tag)
          assert.strictEqual(decoded.message, error.message)
        }
      }))
  })

  describe("10. Callers do not pay for others", () => {
    it.effect("a get does not fail because another identity's open failed", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          upstream: {
            handshake: ({ identity }) => identity.key === "a" ? Effect.fail(new Refused({ why: "no" })) : Effect.void,
            hangUp: () => Effect.die("bug")
          }
        })
        const callers = yield* Effect.forEach([a, b, a, c], (identity) => fork(visit(pool, identity)))
        yield* settle
        assert.deepStrictEqual(callers.map(outcome), ["Refused", "success", "Refused", "success"])
      }))

    it.effect("a get does not fail, and does not wait, because its evicted victim fails to close or hangs", () =>
      Effect.gen(function*() {
        for (const hangUp of [() => Effect.die("bug"), () => Effect.never]) {
          const { pool } = yield* start({ capacity: 1, upstream: { hangUp } })
          yield* visit(pool, a)
          assert.strictEqual((yield* visit(pool, b)).name, "b1")
        }
      }))

    it.effect("a get waits for another's close when capacity sessions are closing, for at most closeTimeout", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, closeTimeout: 100, upstream: { hangUp: () => Effect.never } })
        yield* visit(pool, a)
        yield* visit(pool, b)
        const caller = yield* fork(visit(pool, c))
        yield* TestClock.adjust(99)
        assert.strictEqual(outcome(caller), "waiting")
        yield* TestClock.adjust(1)
        assert.strictEqual(outcome(caller), "success")
      }))

    it.effect("those who wait for room get what a retired session leaves at once, though its close is slow", () =>
      Effect.gen(function*() {
        for (const how of ["invalidated", "died", "lifetime"] as const) {
          const { pool } = yield* start({
            capacity: 1,
            maxLifetime: 1_000,
            upstream: { hangUp: () => Effect.sleep("5 seconds") }
          })
          const held = yield* lease(pool, a)
          const waiter = yield* fork(visit(pool, b))
          if (how === "invalidated") yield* pool.invalidate(a)
          if (how === "died") yield* held.session.handle.retire("died")
          if (how === "lifetime") yield* TestClock.adjust(1_000)
          yield* held.release
          yield* settle
          assert.strictEqual(outcome(waiter), "success", how)
        }
      }))

    it.effect("a slow reader, a slow close and a slow open do not slow a hit", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 3,
          upstream: {
            dial: ({ name }) => name === "b1" ? Effect.never : Effect.void,
            hangUp: () => Effect.never
          }
        })
        yield* visit(pool, a)
        yield* fork(visit(pool, b))
        yield* visit(pool, c)
        yield* pool.invalidate(c)
        const caller = yield* fork(visit(pool, a))
        assert.strictEqual(outcome(caller), "success", "without a single step of time")
      }))

    it.effect("a get does not fail because its expired session fails to close", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ idleTimeToLive: 100, upstream: { hangUp: () => Effect.die("close failed") } })
        yield* visit(pool, a)
        yield* TestClock.adjust(101)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        assert.strictEqual((yield* pool.stats).closeFailures, 1)
      }))

    it.effect("a get does not fail because the session that made room for it fails to close", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, upstream: { hangUp: () => Effect.die("close failed") } })
        yield* visit(pool, a)
        assert.strictEqual((yield* visit(pool, b)).name, "b1")
      }))

    it.effect("a get does not wait for the close of the session that made room for it", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, upstream: { hangUp: () => Effect.never } })
        yield* visit(pool, a)
        assert.strictEqual(outcome(yield* fork(visit(pool, b))), "success", "without a single step of time")
      }))

    it.effect("a get does not wait for closes that never settle", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 2, upstream: { hangUp: () => Effect.never } })
        for (let i = 0; i < 2; i++) {
          yield* visit(pool, a)
          yield* pool.invalidate(a)
        }
        const caller = yield* fork(lease(pool, a))
        assert.strictEqual(outcome(caller), "success")
      }))
  })

  for (const ops of some(3, 4, 5)) {
    describe(`hold when a fiber may be suspended after any ${ops} operations:`, underLoad, () => {
      it.effect("a herd", () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start({
            capacity: 3,
            upstream: { dial: () => Effect.sleep(3), hangUp: () => Effect.sleep(2) }
          })
          const callers = yield* Effect.forEach(
            [...identities(20), ...identities(20)],
            (identity) =>
              fork(pool.withSession(identity, (session) =>
                Effect.andThen(
                  Effect.yieldNow,
                  Effect.sync(() => session.isOpen)
                )))
          )
          for (let i = 0; i < 100; i++) {
            yield* TestClock.adjust(1)
            yield* settle
          }
          for (const caller of callers) assert.isTrue(yield* Fiber.join(caller))
          assert.isAtMost(upstream.peak, 3)
          assert.isAtMost(upstream.peakClosing, 3)
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)))

      it.effect("shutdown at any moment of an open closes what it opened", () =>
        Effect.gen(function*() {
          for (let moment = 0; moment < 60; moment++) {
            const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.yieldNow } })
            const caller = yield* fork(Effect.scoped(Effect.andThen(pool.get(a), Effect.never)))
            for (let i = 0; i < moment; i++) yield* Effect.yieldNow
            const closing = yield* fork(pool.close)
            for (let i = 0; i < 10; i++) yield* settle
            assert.isDefined(closing.pollUnsafe(), `moment ${moment}: shutdown ends`)
            assert.deepStrictEqual(upstream.gone, upstream.opened, `moment ${moment}`)
            assert.include(["waiting", "PoolClosed"], outcome(caller))
            yield* Fiber.interrupt(caller)
          }
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)))

      it.effect("a caller's interruption at any moment gives back what it had", () =>
        Effect.gen(function*() {
          for (let moment = 0; moment < 60; moment++) {
            const { pool, upstream } = yield* start({ capacity: 1, upstream: { handshake: () => Effect.yieldNow } })
            const holder = yield* lease(pool, b)
            const callers = yield* Effect.forEach([a, a, c], (identity) =>
              fork(Effect.scoped(Effect.andThen(pool.get(identity), Effect.never))))
            const releasing = yield* fork(holder.release)
            for (let i = 0; i < moment; i++) {
              yield* Effect.yieldNow
            }
            yield* Fiber.interruptAll(callers)
            yield* Fiber.join(releasing)
            for (let i = 0; i < 5; i++) {
              yield* settle
            }
            assert.deepInclude(
              yield* pool.stats,
              { leased: 0, waiting: 0, opening: 0, draining: 0, closing: 0 },
              `moment ${moment}`
            )
            assert.isDefined((yield* visit(pool, d)).name)
            yield* pool.close
            assert.sameMembers(upstream.gone, upstream.opened)
          }
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, ops)))
    })
  }

  // One that wakes the next from its own stack has none left after some 1,200
  const thousands = many(1_000, 10_000)

  it.effect(
    "hold for thousands that wait, though every open is synchronous: the stack stays flat",
    () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1, acquireTimeout: "1 hour" })
        const held = yield* lease(pool, a)
        const callers = yield* Effect.forEach(
          identities(thousands),
          (identity) => fork(pool.withSession(identity, ({ name }) => Effect.succeed(name)))
        )
        assert.strictEqual((yield* pool.stats).waiting, thousands)
        yield* held.release
        for (const caller of callers) assert.isTrue(Exit.isSuccess(yield* Fiber.await(caller)))
        assert.strictEqual(upstream.peak, 1)
        assert.strictEqual(upstream.opened.length, thousands + 1)
      }),
    underLoad
  )

  it.effect("hold for thousands sessions that are retired in one step", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: thousands, idleTimeToLive: Duration.infinity })
      for (const identity of identities(thousands)) yield* visit(pool, identity)
      assert.strictEqual(yield* pool.invalidateWhere(() => true), thousands)
      yield* settle
      assert.strictEqual(upstream.gone.length, thousands)
      assert.deepInclude(yield* pool.stats, { size: 0, closing: 0, draining: 0 })
    }), underLoad)

  it.effect(
    "hold for thousands that wait for opens that all fail at once: the stack stays flat",
    () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* openWith(() => ({
          dial: ({ identity }) => identity.key === "a" ? Effect.void : Effect.fail(new Refused({ why: "no" }))
        }), { capacity: 1, acquireTimeout: "1 hour" })
        const held = yield* lease(pool, a)
        const callers = yield* Effect.forEach(identities(thousands), (identity) => fork(visit(pool, identity)))
        yield* held.release
        yield* settle
        assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["Refused"]))
        assert.strictEqual(upstream.connects, thousands + 1)
      }),
    underLoad
  )

  it.effect(
    "hold for thousands waiting for opens that end in their callers' own leases: the stack stays flat",
    () =>
      Effect.gen(function*() {
        const { pool } = yield* openWith(() => ({}), { capacity: 1, acquireTimeout: "1 hour" })
        const held = yield* lease(pool, a)
        const callers = yield* Effect.forEach(
          identities(thousands),
          (identity) => fork(pool.withSession(identity, ({ handle }) => handle.retire("died")))
        )
        yield* held.release
        yield* settle
        assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["success"]))
      }),
    underLoad
  )

  it.effect("hold for thousands that join one open: the stack stays flat", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith(() => ({ dial: () => Effect.sleep(1) }))
      const callers = yield* Effect.forEach(
        Array.from({ length: thousands }),
        () => fork(pool.withSession(a, () => Effect.void))
      )
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["success"]))
      assert.strictEqual(upstream.connects, 1)
    }), underLoad)
})
