/**
 * What a connect, a check, a finalizer or a call may do with the pool that runs it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import {
  a,
  b,
  c,
  fork,
  identities,
  lease,
  makeUpstream,
  type OpenPool,
  openPool,
  outcome,
  type PoolOptions,
  Refused,
  settle,
  type UpstreamOptions,
  visit
} from "./support/pool.ts"

/** A pool whose upstream knows the pool. */
const openWith = Effect.fnUntraced(function*(
  make: (self: Effect.Effect<OpenPool>) => UpstreamOptions & { readonly check?: PoolOptions["check"] },
  options: Partial<PoolOptions> = {}
) {
  const self = yield* Deferred.make<OpenPool>()
  const { check, ...upstreamOptions } = make(Deferred.await(self))
  const upstream = makeUpstream(upstreamOptions)
  const pool = yield* openPool({ connect: upstream.connect, check, ...options })
  yield* Deferred.succeed(self, pool)
  return { pool, upstream }
})

describe("SessionPool re-entrancy", () => {
  it.effect("a connect may look at the pool: its own session is opening", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const { pool } = yield* openWith((self) => ({
        handshake: () =>
          Effect.flatMap(self, ({ entries, stats }) =>
            Effect.map(Effect.all([stats, entries]), ([{ opening, size }, { length }]) =>
              seen.push([opening, size, length])))
      }))
      yield* visit(pool, a)
      assert.deepStrictEqual(seen, [[1, 0, 0]])
    }))

  it.effect("a connect may invalidate its own identity: who waits gets it, and nobody later", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith((self) => ({
        handshake: ({ identity, name }) =>
          name === "a1" ? Effect.flatMap(self, (inner) => inner.invalidate(identity)) : Effect.void
      }))
      const first = yield* lease(pool, a)
      assert.strictEqual(first.session.name, "a1")
      assert.isTrue(first.session.isOpen)
      assert.strictEqual((yield* visit(pool, a)).name, "a2")
      yield* first.release
      yield* settle
      assert.deepStrictEqual(upstream.gone, ["a1"])
    }))

  it.effect("a connect that gets another identity at capacity 1 fails with PoolExhausted, and leaves nothing", () =>
    Effect.gen(function*() {
      const { pool } = yield* openWith((self) => ({
        dial: ({ identity }) =>
          identity.key === "a"
            ? Effect.mapError(Effect.flatMap(self, (inner) => inner.get(b)), ({ _tag }) => new Refused({ why: _tag }))
            : Effect.void
      }), { capacity: 1, acquireTimeout: 100 })
      const caller = yield* fork(visit(pool, a))
      yield* TestClock.adjust(100)
      const error = yield* Effect.flip(Fiber.join(caller))
      assert.strictEqual(error._tag === "Refused" ? error.why : error._tag, "PoolExhausted")
      assert.deepInclude(yield* pool.stats, { leased: 0, waiting: 0, opening: 0, draining: 0 })
      assert.strictEqual((yield* visit(pool, b)).name, "b1")
    }))

  it.effect("two connects that get each other end with ConnectTimeout", () =>
    Effect.gen(function*() {
      const { pool } = yield* openWith((self) => ({
        dial: ({ identity }) => Effect.orDie(Effect.flatMap(self, (inner) => inner.get(identity.key === "a" ? b : a)))
      }), { connectTimeout: 100 })
      const callers = yield* Effect.forEach([a, b], (identity) => fork(visit(pool, identity)))
      yield* TestClock.adjust(100)
      for (const caller of callers) assert.include(["ConnectTimeout", "Die"], outcome(caller))
      assert.deepInclude(yield* pool.stats, { leased: 0, waiting: 0, opening: 0, draining: 0 })
    }))

  it.effect("a connect may close the pool: it ends within its bounds", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith((self) => ({
        handshake: () => Effect.flatMap(self, ({ close }) => close)
      }), { closeTimeout: 100 })
      const caller = yield* fork(visit(pool, a))
      yield* TestClock.adjust(300)
      assert.strictEqual(outcome(caller), "PoolClosed")
      assert.deepStrictEqual(upstream.gone, ["a1"])
    }))

  it.effect("a call may close the pool: its session is closed under it, and it goes on", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith(() => ({}))
      const open = yield* pool.withSession(
        a,
        (session) => Effect.andThen(pool.close, Effect.sync(() => session.isOpen))
      )
      assert.isFalse(open)
      assert.deepStrictEqual(upstream.gone, ["a1"])
    }))

  it.effect("a call may invalidate its own session, and get another", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith(() => ({}))
      const names = yield* pool.withSession(a, (old) =>
        Effect.andThen(
          pool.invalidate(a),
          pool.withSession(a, (fresh) => Effect.sync(() => [old.name, old.isOpen, fresh.name]))
        ))
      assert.deepStrictEqual(names, ["a1", true, "a2"])
      yield* settle
      assert.deepStrictEqual(upstream.gone, ["a1"])
    }))

  it.effect("a check may invalidate what it checks: the check goes on, the session ends after it", () =>
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

  it.effect("a check that gets the session it checks shares its own lease", () =>
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

  it.effect("a finalizer may get its own identity again: it gets the successor", () =>
    Effect.gen(function*() {
      const names: Array<string> = []
      const { pool, upstream } = yield* openWith((self) => ({
        hangUp: ({ identity, name }) =>
          name === "a1"
            ? Effect.flatMap(
              self,
              (inner) => Effect.map(Effect.orDie(visit(inner, identity)), (session) => names.push(session.name))
            )
            : Effect.void
      }))
      yield* visit(pool, a)
      yield* pool.invalidate(a)
      yield* settle
      assert.deepStrictEqual(names, ["a2"])
      assert.deepStrictEqual(upstream.gone, ["a1"])
    }))

  it.effect("a finalizer that gets a session at shutdown is answered PoolClosed", () =>
    Effect.gen(function*() {
      const tags: Array<string> = []
      const { pool, upstream } = yield* openWith((self) => ({
        hangUp: () =>
          Effect.flatMap(self, (inner) => Effect.map(Effect.flip(visit(inner, b)), ({ _tag }) => tags.push(_tag))).pipe(
            Effect.ignore
          )
      }))
      yield* visit(pool, a)
      yield* pool.close
      assert.deepStrictEqual(tags, ["PoolClosed"])
      assert.deepStrictEqual(upstream.opened, ["a1"])
    }))

  it.effect("a finalizer runs with the services of the pool, whoever ended the last lease", () =>
    Effect.gen(function*() {
      const Lamp = Context.Reference<string>("test/Lamp", { defaultValue: () => "off" })
      const seen: Array<string> = []
      const { pool } = yield* openWith(() => ({
        hangUp: () => Effect.map(Lamp, (lamp) => seen.push(lamp))
      }))
      const held = yield* lease(pool, a)
      yield* pool.invalidate(a)
      yield* Effect.provideService(held.release, Lamp, "on")
      yield* Effect.provideService(pool.withSession(b, () => pool.invalidate(b)), Lamp, "on")
      yield* settle
      assert.deepStrictEqual(seen, ["off", "off"])
    }))

  it.effect("a predicate of invalidateWhere may be slow and odd: it is asked once for each session", () =>
    Effect.gen(function*() {
      const { pool } = yield* openWith(() => ({}))
      for (const identity of [a, b, c]) yield* visit(pool, identity)
      const asked: Array<string> = []
      assert.strictEqual(
        yield* pool.invalidateWhere(({ key }) => {
          asked.push(key)
          return key !== "b"
        }),
        2
      )
      assert.sameMembers(asked, ["a", "b", "c"])
    }))

  it.effect("callers with a clock of their own wait by that of the pool", () =>
    Effect.gen(function*() {
      const { pool } = yield* openWith(() => ({}), { capacity: 1, acquireTimeout: 50 })
      yield* pool.get(a)
      const caller = yield* fork(TestClock.withLive(visit(pool, b)))
      yield* TestClock.adjust(50)
      assert.strictEqual(outcome(caller), "PoolExhausted")
    }))

  it.effect("an opening session that was retired is ended by shutdown like any other", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith(() => ({ handshake: () => Effect.never }))
      const caller = yield* fork(visit(pool, a))
      yield* pool.invalidate(a)
      yield* pool.close
      yield* settle
      assert.strictEqual(outcome(caller), "PoolClosed")
      assert.deepStrictEqual(upstream.gone, ["a1"])
    }))

  it.effect("ten thousand that wait for opens that all fail at once: the stack stays flat", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith(() => ({
        dial: ({ identity }) => identity.key === "a" ? Effect.void : Effect.fail(new Refused({ why: "no" }))
      }), { capacity: 1, acquireTimeout: "1 hour" })
      const held = yield* lease(pool, a)
      const callers = yield* Effect.forEach(identities(10_000), (identity) => fork(visit(pool, identity)))
      yield* held.release
      yield* settle
      assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["Refused"]))
      assert.strictEqual(upstream.connects, 10_001)
    }))

  it.effect("ten thousand that wait for opens that end in their callers' own leases: the stack stays flat", () =>
    Effect.gen(function*() {
      const { pool } = yield* openWith(() => ({}), { capacity: 1, acquireTimeout: "1 hour" })
      const held = yield* lease(pool, a)
      const callers = yield* Effect.forEach(
        identities(10_000),
        (identity) => fork(pool.withSession(identity, ({ handle }) => handle.retire("died")))
      )
      yield* held.release
      yield* settle
      assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["success"]))
    }))

  it.effect("ten thousand that join one open each get it: the stack stays flat", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* openWith(() => ({ dial: () => Effect.sleep(1) }))
      const callers = yield* Effect.forEach(
        Array.from({ length: 10_000 }),
        () => fork(pool.withSession(a, () => Effect.void))
      )
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(new Set(callers.map(outcome)), new Set(["success"]))
      assert.strictEqual(upstream.connects, 1)
    }))
})
