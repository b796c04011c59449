/**
 * What the manager that this pool replaces gets wrong (M1–M26: those that concern a pool), and bugs that other pools
 * shipped. Each test is a hazard that ours has not.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { Credentials, Identity, SessionPoolError } from "effect-mcp-sessions"
import { Buffer } from "node:buffer"
import {
  a,
  b,
  c,
  fork,
  identities,
  lease,
  makeUpstream,
  openPool,
  outcome,
  record,
  refusal,
  Refused,
  refuseFirst,
  settle,
  type TestSession,
  visit
} from "./support/pool.ts"

/** A call that takes a while, and fails as a real one would when its session is closed under it. */
const call = (session: TestSession) =>
  Effect.flatMap(
    Effect.sleep(1_000),
    () => session.isOpen ? Effect.succeed("ok") : Effect.fail(new Refused({ why: "Connection closed" }))
  )

describe("SessionPool hazards", () => {
  it.effect("M1: an eviction does not kill a session in use: the other identity waits its turn", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect, capacity: 1 })
      const calls = yield* Effect.forEach([a, b], (identity) => fork(pool.withSession(identity, call)))
      yield* TestClock.adjust(2_000)
      assert.deepStrictEqual(calls.map(outcome), ["success", "success"])
      assert.strictEqual(upstream.peak, 1)
    }))

  it.effect("M2: the idle time does not kill a session in use: it counts from the end of the call", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: 100 })
      const first = yield* fork(pool.withSession(a, call))
      yield* TestClock.adjust(500)
      const second = yield* fork(pool.withSession(a, call))
      yield* TestClock.adjust(1_000)
      assert.deepStrictEqual([first, second].map(outcome), ["success", "success"])
      assert.strictEqual(upstream.connects, 1)
    }))

  it.effect("M3: a herd over capacity gets no doomed sessions: 100 identities at capacity 10, 100 successful calls", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect, capacity: 10 })
      const calls = yield* Effect.forEach(identities(100), (identity) => fork(pool.withSession(identity, call)))
      yield* TestClock.adjust(10_000)
      assert.deepStrictEqual(new Set(calls.map(outcome)), new Set(["success"]))
      assert.strictEqual(upstream.peak, 10)
    }))

  it.effect("M4: capacity bounds the opens too, and what is slow to close", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: () => Effect.sleep(5), hangUp: () => Effect.sleep(20) })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 10 })
      const calls = yield* Effect.forEach(identities(1_000), (identity) => fork(visit(pool, identity)))
      yield* TestClock.adjust("29 seconds")
      assert.deepStrictEqual(new Set(calls.map(outcome)), new Set(["success"]))
      assert.isAtMost(upstream.peak, 10)
      assert.isAtMost(upstream.peakClosing, 10)
    }))

  it.effect("M5: shutdown during an open leaks nothing into the closed pool", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: () => Effect.sleep(1_000) })
      const pool = yield* openPool({ connect: upstream.connect })
      const caller = yield* fork(visit(pool, a))
      yield* pool.close
      yield* TestClock.adjust(2_000)
      assert.strictEqual(outcome(caller), "PoolClosed")
      assert.deepStrictEqual(upstream.closed, upstream.opened)
      assert.strictEqual((yield* pool.stats).size, 0)
    }))

  it.effect("M6: the end of a pool is its end: a get does not open a session that nobody closes", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: () => Effect.sleep(1_000) })
      const pool = yield* openPool({ connect: upstream.connect })
      const caller = yield* fork(visit(pool, a))
      yield* pool.close
      const late = yield* Effect.flip(visit(pool, a))
      assert.strictEqual(late._tag, "PoolClosed")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(outcome(caller), "PoolClosed")
      assert.deepStrictEqual([upstream.connects, upstream.opened.length], [1, 0])
    }))

  it.effect("M7: one failing close does not keep the others from being closed", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: ({ name }) => name === "a1" ? Effect.die("close failed") : Effect.void })
      const pool = yield* openPool({ connect: upstream.connect })
      for (const identity of [a, b, c]) yield* visit(pool, identity)
      yield* pool.close
      assert.sameMembers(upstream.closed, ["a1", "b1", "c1"])
      assert.sameMembers(upstream.gone, ["b1", "c1"])
    }))

  it.effect("M8: shutdown closes in parallel: ten closes of 50 ms are 50 ms", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.sleep(50) })
      const pool = yield* openPool({ connect: upstream.connect })
      for (const identity of identities(10)) yield* visit(pool, identity)
      const closing = yield* fork(pool.close)
      yield* TestClock.adjust(49)
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.isDefined(closing.pollUnsafe())
      assert.strictEqual(upstream.gone.length, 10)
    }))

  it.effect("M9: closing twice closes once", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.sleep(50) })
      const pool = yield* openPool({ connect: upstream.connect })
      yield* visit(pool, a)
      yield* fork(pool.close)
      yield* fork(pool.close)
      yield* TestClock.adjust(50)
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("M10: expired sessions are closed on time, not when their key returns", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: 100 })
      yield* visit(pool, a)
      yield* visit(pool, b)
      yield* TestClock.adjust(101)
      assert.deepStrictEqual(upstream.closed, ["a1", "b1"])
      assert.strictEqual((yield* pool.stats).size, 0)
    }))

  it.effect("M11: two gets of an expired session with a slow close and a fast open get one new session", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.sleep(500) })
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: 100 })
      yield* visit(pool, a)
      yield* TestClock.adjust(101)
      const leases = yield* Effect.forEach([a, a], (identity) => lease(pool, identity))
      assert.deepStrictEqual(leases.map(({ session }) => session.name), ["a2", "a2"])
      const closing = yield* fork(pool.close)
      yield* TestClock.adjust(1_000)
      yield* Fiber.join(closing)
      assert.sameMembers(upstream.gone, ["a1", "a2"])
    }))

  it.effect("M12: a failing close of an expired session does not fail the caller", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.die("close failed") })
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: 100 })
      yield* visit(pool, a)
      yield* TestClock.adjust(101)
      assert.strictEqual((yield* visit(pool, a)).name, "a2")
      assert.strictEqual((yield* pool.stats).closeFailures, 1)
    }))

  it.effect("M13: a failing close of a victim does not fail the caller that it made room for", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.die("close failed") })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 1 })
      yield* visit(pool, a)
      assert.strictEqual((yield* visit(pool, b)).name, "b1")
    }))

  it.effect("M14: a slow or hung close of a victim does not stall the caller that it made room for", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.never })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 1 })
      yield* visit(pool, a)
      assert.strictEqual(outcome(yield* fork(visit(pool, b))), "success", "without a single step of time")
    }))

  it.effect("M15: a hung connect ends, is counted, and is tried again by the next get", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: ({ name }) => name === "a1" ? Effect.never : Effect.void })
      const pool = yield* openPool({ connect: upstream.connect })
      const callers = yield* Effect.forEach(Array.from({ length: 5 }), () => fork(visit(pool, a)))
      assert.deepInclude(yield* pool.stats, { opening: 1, hits: 4, misses: 1 })
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["ConnectTimeout"]))
      assert.strictEqual((yield* visit(pool, a)).name, "a2")
    }))

  it.effect("M15: thousands of hung connects stay within capacity and are seen", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: () => Effect.never })
      const pool = yield* openPool({ connect: upstream.connect, acquireTimeout: 1_000 })
      const callers = yield* Effect.forEach(identities(2_000), (identity) => fork(visit(pool, identity)))
      assert.deepInclude(yield* pool.stats, { opening: 10, waiting: 1_990 })
      yield* TestClock.adjust(1_000)
      assert.strictEqual(callers.filter((caller) => outcome(caller) === "PoolExhausted").length, 1_990)
      assert.strictEqual(upstream.connects, 10)
    }))

  it.effect("M16: a dead session is not served again: its connector says so, or a check finds out", () =>
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

  it.effect("M17: stats, entries and their keys have no credentials", () =>
    Effect.gen(function*() {
      const pool = yield* openPool({ connect: makeUpstream().connect })
      yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer("sk-live-SECRET") }))
      const seen = JSON.stringify([yield* pool.stats, yield* pool.entries])
      assert.notInclude(seen, "SECRET")
      assert.notInclude(seen, Buffer.from("sk-live-SECRET").toString("base64").slice(0, 16))
    }))

  it.effect("M20: a capacity of 0.5 is refused instead of giving out closed sessions", () =>
    Effect.gen(function*() {
      const error = yield* refusal({ connect: makeUpstream().connect, capacity: 0.5 })
      assert.isTrue(error !== "accepted" && error.option === "capacity")
    }))

  it.effect("M21: one session object for two identities is closed for one, and stays the other's", () =>
    Effect.gen(function*() {
      const closed: Array<string> = []
      const one = { name: "one", identity: a, isOpen: true }
      const pool = yield* openPool({
        connect: (identity, handle) =>
          Effect.acquireRelease(
            Effect.succeed({ ...one, handle }),
            () => Effect.sync(() => void closed.push(identity.key))
          )
      })
      const held = yield* lease(pool, b)
      yield* visit(pool, a)
      yield* pool.invalidate(a)
      yield* settle
      assert.deepStrictEqual(closed, ["a"])
      assert.strictEqual(yield* visit(pool, b), held.session)
      assert.strictEqual((yield* pool.stats).size, 1)
    }))

  it.effect("M21: the very same object, opened by one connect for two identities, counts as two sessions", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const shared = yield* Deferred.make<TestSession>()
      const pool = yield* openPool({
        connect: (identity, handle) =>
          Effect.gen(function*() {
            const own = yield* upstream.connect(identity, handle)
            yield* Deferred.succeed(shared, own)
            return yield* Deferred.await(shared)
          })
      })
      const first = yield* lease(pool, a)
      const second = yield* lease(pool, b)
      assert.strictEqual(first.session, second.session)
      yield* pool.invalidate(b)
      yield* second.release
      yield* settle
      assert.isTrue(first.session.isOpen)
      assert.deepStrictEqual(upstream.closed, ["b1"])
    }))

  it.effect("M25: a session is whatever connect returns: no instanceof refuses a valid one", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({
        connect: (identity, handle) =>
          Effect.map(upstream.connect(identity, handle), (session) => Object.assign(Object.create(null), session))
      })
      assert.strictEqual((yield* visit(pool, a)).name, "a1")
    }))

  it.effect("M26: errors are told apart by their tag, and those of connect come unwrapped", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: refuseFirst(1) })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 1, acquireTimeout: 0 })
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

  it.effect("M26: errors survive a wire: they encode and decode by their schema", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: () => Effect.never })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 1, acquireTimeout: 0 })
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

describe("Bugs that other pools shipped, and SessionPool does not", () => {
  it.effect("a connection in use is closed by the idle sweep, by LRU or by a sibling's failure", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({
        dial: ({ identity }) => identity.key === "c" ? Effect.fail(new Refused({ why: "down" })) : Effect.void
      })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 2, idleTimeToLive: 10 })
      const running = yield* fork(pool.withSession(a, call))
      yield* visit(pool, b)
      yield* Effect.flip(visit(pool, c))
      yield* TestClock.adjust(1_000)
      assert.strictEqual(outcome(running), "success")
    }))

  it.effect("a stale eviction closes the replacement stored under the same key", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: ({ name }) => name === "a1" ? Effect.sleep(500) : Effect.void })
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: 100 })
      const first = yield* visit(pool, a)
      yield* TestClock.adjust(101)
      const second = yield* lease(pool, a)
      yield* TestClock.adjust(500)
      yield* first.handle.retire("died")
      assert.deepStrictEqual(upstream.gone, ["a1"])
      assert.isTrue(second.session.isOpen)
      assert.strictEqual(yield* visit(pool, a), second.session)
    }))

  it.effect("the lifetime of a session that is gone ends its successor's", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect, maxLifetime: 1_000, idleTimeToLive: Duration.infinity })
      yield* visit(pool, a)
      yield* TestClock.adjust(900)
      yield* pool.invalidate(a)
      yield* visit(pool, a)
      yield* TestClock.adjust(900)
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("the idle clock starts when the call starts, not when it ends", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: 500 })
      yield* fork(pool.withSession(a, call))
      yield* TestClock.adjust(1_500)
      assert.deepStrictEqual(upstream.closed, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("a forgotten session's 404 is never healed", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect })
      const request = pool.withSession(a, ({ handle, name }) =>
        name === "a1"
          ? Effect.andThen(handle.retire("died"), Effect.fail(new Refused({ why: "404" })))
          : Effect.succeed(name))
      assert.strictEqual((yield* Effect.flip(request))._tag, "Refused")
      assert.strictEqual(yield* request, "a2")
      assert.deepStrictEqual(upstream.closed, ["a1"])
    }))

  it.effect("nothing closes the pool at exit", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      yield* Effect.scoped(Effect.gen(function*() {
        const pool = yield* openPool({ connect: upstream.connect })
        yield* pool.get(a)
        yield* visit(pool, b)
      }))
      assert.sameMembers(upstream.gone, ["a1", "b1"])
    }))

  it.effect("a broken entry stays pooled because its error class is not in a list", () =>
    Effect.gen(function*() {
      for (const failure of [Effect.fail("odd"), Effect.die({ odd: true }), Effect.fail(undefined)]) {
        const upstream = makeUpstream()
        const pool = yield* openPool({ connect: upstream.connect, check: () => failure, checkAfter: 0 })
        yield* visit(pool, a)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }
    }))

  it.effect("a permanent connect failure is cached for the whole time to live", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: refuseFirst(2) })
      const pool = yield* openPool({ connect: upstream.connect, idleTimeToLive: "1 hour" })
      yield* Effect.flip(visit(pool, a))
      yield* Effect.flip(visit(pool, a))
      assert.strictEqual((yield* visit(pool, a)).name, "a3")
    }))

  it.effect("a teardown that never settles blocks re-acquisition", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.never })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 2 })
      for (let i = 0; i < 2; i++) {
        yield* visit(pool, a)
        yield* pool.invalidate(a)
      }
      const caller = yield* fork(lease(pool, a))
      assert.strictEqual(outcome(caller), "success")
    }))

  it.effect("two users share a session because they share a credential, and one cancels the other's call", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect })
      const credentials = Credentials.bearer("the company's")
      const [alice, bob] = [Identity.fromKey("alice", { credentials }), Identity.fromKey("bob", { credentials })]
      const calls = yield* Effect.forEach([alice, bob], (identity) => fork(pool.withSession(identity, call)))
      yield* Fiber.interrupt(calls[0]!)
      yield* pool.invalidate(alice)
      yield* TestClock.adjust(1_000)
      assert.deepStrictEqual(calls.map(outcome), ["Interrupt", "success"])
      assert.deepStrictEqual(upstream.opened, ["alice1", "bob1"])
    }))

  it.effect("two callers of one identity share a session, and the interruption of one ends the other's call", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const pool = yield* openPool({ connect: upstream.connect })
      const calls = yield* Effect.forEach([a, a], (identity) => fork(pool.withSession(identity, call)))
      yield* Fiber.interrupt(calls[0]!)
      yield* TestClock.adjust(1_000)
      assert.deepStrictEqual(calls.map(outcome), ["Interrupt", "success"])
    }))

  it.effect("sessions are dropped from the map and never closed", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ dial: ({ name }) => name.length % 2 === 0 ? Effect.sleep(7) : Effect.void })
      const pool = yield* openPool({ connect: upstream.connect, capacity: 3, idleTimeToLive: 10, maxLifetime: 40 })
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

  it.effect("what is cleaned up has another key than what was created", () =>
    Effect.gen(function*() {
      const pool = yield* openPool({ connect: makeUpstream().connect })
      const { lines } = yield* record(pool)
      yield* visit(pool, a.at("weather"))
      assert.isFalse(yield* pool.invalidate(a))
      assert.isFalse(yield* pool.invalidate(Identity.fromKey("weather/a")))
      assert.isTrue(yield* pool.invalidate(Identity.fromKey("a").at("weather")))
      yield* settle
      assert.deepStrictEqual(lines, [
        "Opened ~weather/a",
        "Retired ~weather/a: invalidated",
        "Closed ~weather/a: invalidated"
      ])
    }))
})
