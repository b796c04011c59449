import { assert, describe, it } from "@effect/vitest"
import { Credentials, Identity, SessionPool, SessionPoolEvent } from "effect-mcp-sessions"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import * as Sent from "../src/internal/sent.ts"
import { fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { call, lease, openPool, openWith, Pool, type PoolOptions, record, start, visit } from "./support/pool.ts"
import { makeUpstream, Refused, refuseFirst, type TestSession } from "./support/upstream.ts"

const withToken = (key: string, token: string) => Identity.fromKey(key, { credentials: Credentials.bearer(token) })

const until = (token: string, expiresAt: number) =>
  Identity.fromKey("a", { credentials: Credentials.bearer(token, { expiresAt }) })

const tokenOf = (credentials: Option.Option<Credentials>) =>
  Option.getOrUndefined(Option.map(credentials, ({ token }) => Redacted.value(token)))

const isAtX = (identity: Identity) => Option.contains(identity.upstream, "x")

describe("SessionPool", () => {
  describe("get", () => {
    it.effect("opens a session for an identity that has none, and answers the next get with it", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const first = yield* visit(pool, a)
        const second = yield* visit(pool, a)
        assert.strictEqual(first, second)
        assert.strictEqual(upstream.connects, 1)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.hits, s.misses]), [1, 1])
      }))

    it.effect("knows identities by their keys alone", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const first = yield* visit(pool, withToken("a", "one"))
        assert.strictEqual(yield* visit(pool, withToken("a", "two")), first)
        assert.strictEqual(yield* visit(pool, Identity.shared("a")), first)
        assert.notStrictEqual(yield* visit(pool, a.at("weather")), first)
      }))

    it.effect("leases the session until the scope closes", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 50 })
        const { release } = yield* lease(pool, a)
        yield* TestClock.adjust("1 hour")
        assert.deepStrictEqual(upstream.closed, [])
        yield* release
        yield* TestClock.adjust(51)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("that fails leaves nothing in its scope", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          leases: "exclusive",
          acquireTimeout: 0,
          checkAfter: 0,
          check: () => Effect.fail("down"),
          upstream: { dial: ({ name }) => name === "b2" ? Effect.die("down") : Effect.void }
        })
        yield* lease(pool, a)
        yield* visit(pool, b)
        const scope = yield* Scope.make()
        for (const identity of [a, b]) {
          assert.isTrue(Exit.isFailure(yield* Effect.exit(Scope.provide(pool.get(identity), scope))))
        }
        assert.deepStrictEqual(scope.state, (yield* Scope.make()).state)
      }))

    it.effect("in a scope that is closed already holds no lease", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const scope = yield* Scope.make()
        yield* Scope.close(scope, Exit.void)
        yield* Effect.exit(Scope.provide(pool.get(a), scope))
        yield* Effect.exit(Scope.provide(pool.get(a), scope))
        assert.strictEqual((yield* pool.stats).leased, 0)
        yield* TestClock.adjust("1 hour")
        assert.deepStrictEqual(upstream.closed, upstream.opened)
      }))

    it.effect("in a scope that is closed already holds no lease on a session that has to be checked first", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ check: () => Effect.sleep(10), checkAfter: 0 })
        yield* visit(pool, a)
        const scope = yield* Scope.make()
        yield* Scope.close(scope, Exit.void)
        const caller = yield* fork(Scope.provide(pool.get(a), scope))
        yield* TestClock.adjust(10)
        yield* Fiber.await(caller)
        assert.deepInclude(yield* pool.stats, { leased: 0, idle: 1 })
      }))

    it.effect("in a scope that closes while the session is being checked holds no lease", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ check: () => Effect.sleep(10), checkAfter: 0 })
        yield* visit(pool, a)
        const scope = yield* Scope.make()
        const caller = yield* fork(Scope.provide(pool.get(a), scope))
        yield* Scope.close(scope, Exit.void)
        yield* TestClock.adjust(10)
        yield* Fiber.await(caller)
        assert.deepInclude(yield* pool.stats, { leased: 0, idle: 1 })
      }))

    for (const closes of ["is closed already", "closes meanwhile"]) {
      it.effect(`that waits for its turn in a scope that ${closes} ends, and holds no lease`, () =>
        Effect.gen(function*() {
          const { pool } = yield* start({ leases: "exclusive", acquireTimeout: 100 })
          const held = yield* Scope.make()
          yield* Scope.provide(pool.get(a), held)
          const scope = yield* Scope.make()
          if (closes === "is closed already") yield* Scope.close(scope, Exit.void)
          const caller = yield* fork(Scope.provide(pool.get(a), scope))
          yield* Scope.close(scope, Exit.void)
          yield* Scope.close(held, Exit.void)
          yield* TestClock.adjust(100)
          assert.isDefined(caller.pollUnsafe(), "it waits no more")
          assert.deepInclude(yield* pool.stats, { leased: 0, idle: 1, waiting: 0 })
        }))
    }

    it.effect("in a scope that closes while the session is being opened holds no lease", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const scope = yield* Scope.make()
        const caller = yield* fork(Scope.provide(pool.get(a), scope))
        yield* Scope.close(scope, Exit.void)
        yield* TestClock.adjust(100)
        yield* Fiber.await(caller)
        assert.strictEqual((yield* pool.stats).leased, 0)
      }))

    it.effect("joins an open in progress, as a hit", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const callers = yield* Effect.forEach(Array.from({ length: 5 }), () => fork(visit(pool, a)))
        assert.deepStrictEqual(
          yield* Effect.map(pool.stats, (s) => [s.opening, s.size, s.hits, s.misses]),
          [1, 0, 4, 1]
        )
        yield* TestClock.adjust(100)
        for (const caller of callers) assert.strictEqual((yield* Fiber.join(caller)).name, "a1")
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("passes the connect's error unchanged to every joined caller, and leaves no entry", () =>
      Effect.gen(function*() {
        const error = new Refused({ why: "maintenance" })
        const { pool } = yield* start({
          upstream: {
            dial: ({ name }) => name === "a1" ? Effect.andThen(Effect.sleep(10), Effect.fail(error)) : Effect.void
          }
        })
        const callers = yield* Effect.forEach(Array.from({ length: 3 }), () => fork(visit(pool, a)))
        yield* TestClock.adjust(10)
        for (const caller of callers) assert.strictEqual(yield* Effect.flip(Fiber.join(caller)), error)
        const stats = yield* pool.stats
        assert.deepStrictEqual([stats.size, stats.opening, stats.draining, stats.failures], [0, 0, 0, 1])
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("dies with the defect of a connect that dies, and the next get opens another", () =>
      Effect.gen(function*() {
        const bug = new Error("bug in connect")
        const { pool, upstream } = yield* start({
          upstream: { handshake: ({ name }) => name === "a1" ? Effect.die(bug) : Effect.void }
        })
        const exit = yield* Effect.exit(visit(pool, a))
        assert.deepStrictEqual(exit, Exit.die(bug))
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("dies with what a connect throws instead of returning an effect", () =>
      Effect.gen(function*() {
        const bug = new Error("bug in connect")
        const pool = yield* openPool({
          connect: () => {
            throw bug
          }
        })
        assert.deepStrictEqual(yield* Effect.exit(visit(pool, a)), Exit.die(bug))
        assert.strictEqual((yield* pool.stats).failures, 1)
      }))

    it.effect("dies when a connect interrupts itself: nobody asked for that", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: { handshake: ({ name }) => name === "a1" ? Effect.interrupt : Effect.void }
        })
        const caller = yield* fork(visit(pool, a))
        yield* settle
        assert.strictEqual(outcome(caller), "Die")
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("waits for room first come, first served", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1 })
        const { release } = yield* lease(pool, a)
        const order: Array<string> = []
        const callers = yield* Effect.forEach(
          [c, b, d],
          (identity) => fork(pool.withSession(identity, ({ name }) => Effect.sync(() => void order.push(name))))
        )
        assert.strictEqual((yield* pool.stats).waiting, 3)
        yield* release
        yield* settle
        for (const caller of callers) yield* Fiber.join(caller)
        assert.deepStrictEqual(order, ["c1", "b1", "d1"])
      }))

    it.effect("does not let a newcomer pass those who wait", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, a)
        const waiter = yield* fork(lease(pool, b))
        yield* held.release
        const newcomer = yield* fork(lease(pool, c))
        yield* settle
        assert.strictEqual(outcome(waiter), "success")
        assert.strictEqual(outcome(newcomer), "waiting")
        yield* (yield* Fiber.join(waiter)).release
        yield* settle
        assert.strictEqual(outcome(newcomer), "success")
      }))

    it.effect("gives no caller the place of one who came before and has given up", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 100 })
        const held = yield* lease(pool, a)
        const gaveUp = yield* fork(visit(pool, b))
        yield* TestClock.adjust(10)
        const next = yield* fork(lease(pool, c))
        yield* TestClock.adjust(80)
        const late = yield* fork(lease(pool, b))
        yield* TestClock.adjust(10)
        assert.strictEqual(outcome(gaveUp), "PoolExhausted")
        yield* held.release
        yield* settle
        assert.strictEqual(outcome(next), "success")
        assert.strictEqual(outcome(late), "waiting")
        yield* (yield* Fiber.join(next)).release
        assert.strictEqual((yield* Fiber.join(late)).session.name, "b1")
      }))

    it.effect("opens one session for all callers of one identity that wait for room", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, a)
        const waiters = yield* Effect.forEach(Array.from({ length: 5 }), () => fork(visit(pool, b)))
        assert.strictEqual((yield* pool.stats).waiting, 5)
        yield* held.release
        for (const waiter of waiters) assert.strictEqual((yield* Fiber.join(waiter)).name, "b1")
        assert.deepStrictEqual(upstream.opened, ["a1", "b1"])
      }))

    it.effect("ends each wait of one identity at its own time", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 100 })
        const held = yield* lease(pool, a)
        const early = yield* fork(visit(pool, b))
        yield* TestClock.adjust(60)
        const late = yield* fork(visit(pool, b))
        yield* TestClock.adjust(40)
        assert.strictEqual(outcome(early), "PoolExhausted")
        assert.strictEqual(outcome(late), "waiting")
        yield* held.release
        assert.strictEqual((yield* Fiber.join(late)).name, "b1")
      }))

    it.effect("waits no longer than acquireTimeout in an uninterruptible region", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 100 })
        yield* pool.get(a)
        const caller = yield* fork(Effect.uninterruptible(visit(pool, b)))
        yield* TestClock.adjust(100)
        assert.strictEqual(outcome(caller), "PoolExhausted")
      }))

    it.effect("waits no longer than connectTimeout in an uninterruptible region", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ connectTimeout: 100, upstream: { dial: () => Effect.never } })
        const caller = yield* fork(Effect.uninterruptible(visit(pool, a)))
        yield* TestClock.adjust(100)
        assert.strictEqual(outcome(caller), "ConnectTimeout")
      }))

    it.effect("of the same key inside a lease shares the session", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, acquireTimeout: 0 })
        const inner = yield* pool.withSession(a, (outer) =>
          pool.withSession(a, (session) =>
            Effect.sync(() => {
              assert.strictEqual(session, outer)
              return session.name
            })))
        assert.strictEqual(inner, "a1")
        assert.strictEqual((yield* pool.stats).leased, 0)
      }))

    it.effect("of another key inside a connect leases that session for as long as this one lives", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const self = yield* Deferred.make<Pool["Service"]>()
        const pool = yield* openPool({
          idleTimeToLive: 100,
          connect: (identity, handle) =>
            identity.key === "b"
              ? Effect.flatMap(Deferred.await(self), (inner) =>
                Effect.andThen(Effect.orDie(inner.get(a)), upstream.connect(identity, handle)))
              : upstream.connect(identity, handle)
        })
        yield* Deferred.succeed(self, pool)
        yield* visit(pool, b)
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(upstream.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(upstream.closed, ["b1"])
        yield* TestClock.adjust(101)
        assert.deepStrictEqual(upstream.closed, ["b1", "a1"])
      }))

    it.effect("of its own key inside a connect waits for itself, and ends with ConnectTimeout", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const self = yield* Deferred.make<Pool["Service"]>()
        const pool = yield* openPool({
          connectTimeout: 100,
          connect: (identity, handle) =>
            Effect.flatMap(
              Deferred.await(self),
              (inner) => Effect.andThen(Effect.ignore(inner.get(identity)), upstream.connect(identity, handle))
            )
        })
        yield* Deferred.succeed(self, pool)
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust(99)
        assert.strictEqual(outcome(caller), "waiting")
        yield* TestClock.adjust(1)
        assert.strictEqual(outcome(caller), "ConnectTimeout")
        const stats = yield* pool.stats
        assert.deepStrictEqual([stats.opening, stats.draining, stats.size], [0, 0, 0])
      }))

    it.effect("opens a session for each of two identities with the same credentials", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const credentials = Credentials.bearer("the company's")
        const [alice, bob] = [Identity.fromKey("alice", { credentials }), Identity.fromKey("bob", { credentials })]
        const calls = yield* Effect.forEach([alice, bob], (identity) => fork(pool.withSession(identity, call)))
        yield* Fiber.interrupt(calls[0]!)
        yield* pool.invalidate(alice)
        yield* TestClock.adjust(1_000)
        assert.deepStrictEqual(calls.map(outcome), ["Interrupt", "success"])
        assert.deepStrictEqual(upstream.opened, ["alice1", "bob1"])
      }))
  })

  describe("withSession", () => {
    it.effect("runs the effect with the session, and answers what it answers", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        assert.strictEqual(yield* pool.withSession(a, ({ name }) => Effect.succeed(`${name}!`)), "a1!")
        assert.strictEqual(yield* pool.withSession(a, ({ name }) => Effect.succeed(`${name}?`)), "a1?")
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("leases the session for as long as the effect runs", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ idleTimeToLive: 50 })
        const caller = yield* fork(pool.withSession(a, () => Effect.sleep(1_000)))
        yield* TestClock.adjust(500)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.leased, s.idle]), [1, 0])
        yield* TestClock.adjust(500)
        yield* Fiber.join(caller)
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.leased, s.idle]), [0, 1])
        assert.deepStrictEqual(upstream.closed, [])
      }))

    for (
      const [how, effect] of [
        ["fails", Effect.fail("no")],
        ["dies", Effect.die("bug")],
        ["is interrupted", Effect.interrupt],
        ["succeeds", Effect.succeed("yes")]
      ] as const
    ) {
      it.effect(`ends the lease when the effect ${how}, and passes that on`, () =>
        Effect.gen(function*() {
          const { pool, upstream } = yield* start()
          const expected = yield* Effect.exit(effect)
          for (let i = 0; i < 2; i++) {
            const exit = yield* Effect.exit(pool.withSession(a, () => effect))
            assert.strictEqual(exit._tag, expected._tag)
            assert.deepStrictEqual(
              Exit.isFailure(exit) ? exit.cause.reasons.map(({ _tag }) => _tag) : [],
              Exit.isFailure(expected) ? expected.cause.reasons.map(({ _tag }) => _tag) : []
            )
            assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.leased, s.idle]), [0, 1])
          }
          assert.strictEqual(upstream.connects, 1, "a failing call is no dead session")
        }))
    }

    it.effect("ends the lease when the function throws", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const bug = new Error("bug")
        for (let i = 0; i < 2; i++) {
          const exit = yield* Effect.exit(pool.withSession(a, (): Effect.Effect<void> => {
            throw bug
          }))
          assert.deepStrictEqual(exit, Exit.die(bug))
          assert.strictEqual((yield* pool.stats).leased, 0)
        }
      }))

    it.effect("runs the effect with the services and in the scope of its caller", () =>
      Effect.gen(function*() {
        class Name extends Context.Service<Name, string>()("test/Name") {}
        const { pool } = yield* start()
        const closed: Array<string> = []
        yield* Effect.scoped(Effect.gen(function*() {
          const name = yield* pool.withSession(a, () =>
            Effect.andThen(Effect.addFinalizer(() => Effect.sync(() => void closed.push("scope"))), Name))
          assert.strictEqual(name, "caller's")
          assert.deepStrictEqual(closed, [])
        })).pipe(Effect.provideService(Name, "caller's"))
        assert.deepStrictEqual(closed, ["scope"])
      }))

    it.effect("can be interrupted while the effect runs", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        yield* visit(pool, a)
        const caller = yield* fork(pool.withSession(a, () => Effect.never))
        yield* Fiber.interrupt(caller)
        assert.strictEqual(outcome(caller), "Interrupt")
        assert.strictEqual((yield* pool.stats).leased, 0)
      }))
  })

  describe("invalidate", () => {
    it.effect("closes an idle session and says true; says false where there is none", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        assert.isFalse(yield* pool.invalidate(a))
        yield* visit(pool, a)
        assert.isTrue(yield* pool.invalidate(a))
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
        assert.isFalse(yield* pool.invalidate(a))
        assert.strictEqual((yield* pool.stats).retirements, 1)
      }))

    it.effect("retires a leased session: its calls end in peace, the next get opens another", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const old = yield* lease(pool, a)
        assert.isTrue(yield* pool.invalidate(a))
        assert.isFalse(yield* pool.invalidate(a))
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        assert.isTrue(old.session.isOpen)
        yield* old.release
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("retires an opening session: those who wait get it, later gets open another, it counts as draining", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const first = yield* fork(lease(pool, a))
        yield* TestClock.adjust(50)
        assert.isTrue(yield* pool.invalidate(a))
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.opening, s.draining]), [0, 1])
        const second = yield* fork(lease(pool, a))
        assert.deepStrictEqual(yield* Effect.map(pool.stats, (s) => [s.opening, s.draining]), [1, 1])
        yield* TestClock.adjust(50)
        const old = yield* Fiber.join(first)
        assert.strictEqual(old.session.name, "a1")
        assert.isTrue(old.session.isOpen)
        yield* TestClock.adjust(50)
        assert.strictEqual((yield* Fiber.join(second)).session.name, "a2")
        yield* old.release
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("of an opening session does not keep its open alive when its last caller leaves", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { handshake: () => Effect.never } })
        const caller = yield* fork(visit(pool, a))
        yield* pool.invalidate(a)
        yield* Fiber.interrupt(caller)
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* pool.stats).draining, 0)
      }))

    it.effect("during a check sends those who wait for the check to the next session, even if it passes", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ checkAfter: 10, check: () => Effect.sleep(100) })
        yield* visit(pool, a)
        yield* TestClock.adjust(10)
        const caller = yield* fork(lease(pool, a))
        yield* TestClock.adjust(50)
        assert.isTrue(yield* pool.invalidate(a))
        const other = yield* lease(pool, a)
        assert.strictEqual(other.session.name, "a2")
        yield* TestClock.adjust(50)
        const served = yield* Fiber.join(caller)
        assert.strictEqual(served.session.name, "a2")
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("forgets the identity's failed connect", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ failureTimeToLive: "1 hour", upstream: { dial: refuseFirst(1) } })
        yield* Effect.flip(visit(pool, a))
        assert.isFalse(yield* pool.invalidate(a))
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
      }))

    it.effect("makes room for those who wait", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, a)
        const waiter = yield* fork(visit(pool, b))
        yield* pool.invalidate(a)
        assert.strictEqual(outcome(waiter), "waiting")
        yield* held.release
        assert.strictEqual((yield* Fiber.join(waiter)).name, "b1")
      }))

    it.effect("knows an identity at an upstream by that key alone", () =>
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

    it.effect("by a call of its own session lets it get another", () =>
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
  })

  describe("invalidateWhere", () => {
    it.effect("retires what the predicate is true of, idle, leased and opening, and counts it", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: { dial: ({ name }) => name === "~x/c1" ? Effect.sleep(100) : Effect.void }
        })
        yield* visit(pool, a.at("x"))
        const held = yield* lease(pool, b.at("x"))
        const opening = yield* fork(lease(pool, c.at("x")))
        yield* visit(pool, a.at("y"))
        assert.strictEqual(yield* pool.invalidateWhere(isAtX), 3)
        assert.strictEqual(yield* pool.invalidateWhere(isAtX), 0)
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["~x/a1"])
        yield* TestClock.adjust(100)
        const opened = yield* Fiber.join(opening)
        assert.isTrue(opened.session.isOpen && held.session.isOpen)
        yield* opened.release
        yield* held.release
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["~x/a1", "~x/c1", "~x/b1"])
        assert.deepStrictEqual((yield* pool.stats).keys as ReadonlyArray<string>, ["~y/a"])
      }))

    it.effect("sees the identities with their newest credentials", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        yield* visit(pool, withToken("a", "old"))
        yield* visit(pool, withToken("a", "new"))
        const tokens: Array<string | undefined> = []
        yield* pool.invalidateWhere(({ credentials }) => {
          tokens.push(tokenOf(credentials))
          return false
        })
        assert.deepStrictEqual(tokens, ["new"])
      }))

    it.effect("dies with a predicate that throws, and retires nothing", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        yield* visit(pool, a)
        yield* visit(pool, b)
        const bug = new Error("bug")
        const exit = yield* Effect.exit(pool.invalidateWhere(({ key }) => {
          if (key === "b") throw bug
          return true
        }))
        assert.deepStrictEqual(exit, Exit.die(bug))
        assert.strictEqual((yield* pool.stats).size, 2)
      }))

    it.effect("asks its predicate once for each session, however odd its answers", () =>
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
  })

  describe("stats", () => {
    it.effect("of a new pool are zeros", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        assert.deepStrictEqual(yield* pool.stats, {
          size: 0,
          capacity: 10,
          idleTimeToLive: Duration.millis(300_000),
          leased: 0,
          idle: 0,
          opening: 0,
          draining: 0,
          closing: 0,
          waiting: 0,
          standby: 0,
          hits: 0,
          misses: 0,
          evictions: 0,
          expirations: 0,
          retirements: 0,
          failures: 0,
          closeFailures: 0,
          eventsLost: 0,
          keys: [],
          upstreams: []
        })
      }))

    it.effect("count what is leased, idle, opening, draining, closing and waiting", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 5,
          upstream: {
            dial: ({ name }) => name === "c1" ? Effect.sleep(100) : Effect.void,
            hangUp: () => Effect.sleep(100)
          }
        })
        yield* visit(pool, a)
        yield* pool.get(b)
        yield* fork(pool.get(c))
        yield* pool.get(d)
        yield* pool.invalidate(d)
        yield* visit(pool, identities(1)[0]!)
        yield* pool.invalidate(identities(1)[0]!)
        assert.deepInclude(yield* pool.stats, {
          size: 2,
          leased: 1,
          idle: 1,
          opening: 1,
          draining: 1,
          closing: 1,
          waiting: 0,
          hits: 0,
          misses: 5,
          retirements: 2
        })
        assert.deepStrictEqual((yield* pool.stats).keys as ReadonlyArray<string>, ["a", "b"])
      }))

    it.effect("count each get as one hit or one miss, whatever becomes of it", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          acquireTimeout: 10,
          check: () => Effect.fail("down"),
          checkAfter: 0,
          upstream: { dial: refuseFirst(1) }
        })
        let gets = 0
        const get = (identity: Identity) => {
          gets++
          return visit(pool, identity)
        }
        yield* Effect.flip(get(a))
        yield* get(a)
        yield* get(a)
        const held = yield* lease(pool, a)
        gets++
        const exhausted = yield* fork(get(b))
        const interrupted = yield* fork(get(b))
        yield* Fiber.interrupt(interrupted)
        yield* TestClock.adjust(10)
        assert.strictEqual(outcome(exhausted), "PoolExhausted")
        yield* held.release
        const { hits, misses } = yield* pool.stats
        assert.strictEqual(hits + misses, gets)
      }))

    it.effect("are a snapshot", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        const before = yield* pool.stats
        yield* visit(pool, a)
        assert.deepStrictEqual([before.size, before.misses, before.keys.length], [0, 0, 0])
      }))

    it.effect("count a get that finds an unhealthy session once", () =>
      Effect.gen(function*() {
        const { connect } = makeUpstream()
        const pool = yield* openPool({ connect, check: () => Effect.fail("unwell"), checkAfter: 0 })
        yield* visit(pool, a)
        yield* visit(pool, a)
        const { hits, misses } = yield* pool.stats
        assert.deepStrictEqual([hits, misses], [0, 2])
      }))

    it.effect("count a session that its server has forgotten as a hit, also when its call is run again elsewhere", () =>
      Effect.gen(function*() {
        const expired = { _tag: "McpSessionError", reason: { _tag: "SessionExpired" } } as const
        const sent = Sent.make(true)
        sent.expirations?.add(expired)
        const { connect } = makeUpstream()
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.map(connect(identity, handle), (session) => ({ ...session, [Sent.TypeId]: sent }))
        })
        yield* visit(pool, a)
        const answer = yield* pool.withSession(
          a,
          ({ name }) => name === "a1" ? Effect.fail(expired) : Effect.succeed(name)
        )
        assert.strictEqual(answer, "a2")
        const { hits, misses, retirements } = yield* pool.stats
        assert.deepStrictEqual([hits, misses, retirements], [1, 1, 1])
      }))
  })

  describe("entries", () => {
    it.effect("are the leased and the idle sessions, the least recently used first", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: ({ name }) => name === "d1" ? Effect.never : Effect.void } })
        yield* TestClock.setTime(1_000)
        yield* visit(pool, a)
        yield* TestClock.setTime(2_000)
        yield* visit(pool, Identity.shared())
        yield* TestClock.setTime(3_000)
        yield* visit(pool, c)
        yield* pool.get(a)
        yield* pool.get(a)
        yield* fork(pool.get(d))
        const idleTimeToLive = Duration.minutes(5)
        assert.deepStrictEqual(
          (yield* pool.entries) as ReadonlyArray<unknown>,
          [
            {
              key: "shared",
              shared: true,
              state: "idle",
              leases: 0,
              uses: 1,
              openedAt: 2_000,
              lastUsedAt: 2_000,
              idleTimeToLive
            },
            {
              key: "c",
              shared: false,
              state: "idle",
              leases: 0,
              uses: 1,
              openedAt: 3_000,
              lastUsedAt: 3_000,
              idleTimeToLive
            },
            {
              key: "a",
              shared: false,
              state: "leased",
              leases: 2,
              uses: 3,
              openedAt: 1_000,
              lastUsedAt: 1_000,
              idleTimeToLive
            }
          ]
        )
      }))

    it.effect("of a, b, c, a and d at capacity 3 are c, a, d", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect, capacity: 3 })
        for (const identity of [a, b, c, a, d]) yield* visit(pool, identity)
        const keys = (yield* pool.entries).map(({ key }) => key as string)
        assert.deepStrictEqual(keys, ["c", "a", "d"])
        assert.deepStrictEqual((yield* pool.stats).keys as ReadonlyArray<string>, keys)
      }))

    it.effect("count a leased session as in use now: it comes after the idle ones", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        yield* pool.get(a)
        yield* TestClock.adjust(10)
        yield* visit(pool, b)
        assert.deepStrictEqual((yield* pool.entries).map(({ key }) => key as string), ["b", "a"])
      }))
  })

  describe("events", () => {
    it.effect("tell what happens, in its order", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          capacity: 1,
          idleTimeToLive: 50,
          acquireTimeout: 0,
          upstream: {
            dial: ({ name }) => name === "b1" ? Effect.fail(new Refused({ why: "" })) : Effect.void
          }
        })
        const { lines } = yield* record(pool)
        yield* visit(pool, a)
        yield* Effect.flip(visit(pool, b))
        yield* visit(pool, c)
        yield* TestClock.adjust(51)
        const held = yield* lease(pool, c)
        yield* Effect.flip(visit(pool, d))
        yield* pool.invalidate(c)
        yield* held.release
        yield* settle
        assert.deepStrictEqual(lines, [
          "Opened a",
          "Retired a: evicted",
          "Closed a: evicted",
          "OpenFailed b: failed",
          "Opened c",
          "Retired c: expired",
          "Closed c: expired",
          "Opened c",
          "Exhausted d",
          "Retired c: invalidated",
          "Closed c: invalidated"
        ])
      }))

    it.effect("name each reason for which a session is retired", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          maxLifetime: 1_000,
          idleTimeToLive: Duration.infinity,
          check: ({ identity }) => identity.key === "b" ? Effect.fail("down") : Effect.void,
          checkAfter: 0
        })
        const { lines } = yield* record(pool)
        yield* Effect.flatMap(visit(pool, a), ({ handle }) => handle.retire("died"))
        yield* Effect.flatMap(visit(pool, a), ({ handle }) => handle.retire("unhealthy"))
        yield* visit(pool, b)
        yield* visit(pool, b)
        yield* TestClock.adjust(1_000)
        yield* visit(pool, c)
        yield* pool.close
        yield* settle
        assert.deepStrictEqual(lines.filter((line) => line.startsWith("Retired")), [
          "Retired a: died",
          "Retired a: unhealthy",
          "Retired b: unhealthy",
          "Retired b: lifetime",
          "Retired c: shutdown"
        ])
      }))

    it.effect("say how long a session lived and how often it was used", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        const events: Array<SessionPoolEvent> = []
        yield* Effect.forkScoped(
          Stream.runForEach(pool.events, (event) => Effect.sync(() => void events.push(event))),
          { startImmediately: true }
        )
        for (let i = 0; i < 3; i++) {
          yield* visit(pool, a)
          yield* TestClock.adjust(100)
        }
        yield* pool.invalidate(a)
        yield* settle
        const closed = events.find((event) => event._tag === "Closed")
        assert.isDefined(closed)
        if (closed?._tag === "Closed") {
          assert.strictEqual(Duration.toMillis(closed.lived), 300)
          assert.strictEqual(closed.uses, 3)
        }
      }))

    it.effect("say it in whole milliseconds, as the log of a program shows it", () =>
      Effect.gen(function*() {
        const clock = yield* Clock.Clock
        const pool = yield* Effect.provideService(openPool({ connect: makeUpstream().connect }), Clock.Clock, {
          ...clock,
          currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe(),
          sleep: (duration) => clock.sleep(duration),
          // As a real one: each reading is some nanoseconds later
          monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe() * 1_000_222n / 1_000_000n + 660_222n
        })
        const events: Array<SessionPoolEvent> = []
        yield* Effect.forkScoped(
          Stream.runForEach(pool.events, (event) => Effect.sync(() => void events.push(event))),
          { startImmediately: true }
        )
        yield* visit(pool, a)
        yield* TestClock.adjust(365)
        yield* pool.invalidate(a)
        yield* settle
        const closed = events.find((event) => event._tag === "Closed")
        assert.strictEqual(closed?._tag === "Closed" ? Duration.format(closed.lived) : "", "365ms")
      }))

    it.effect("tell of opens that take too long and closes that fail or take too long", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({
          upstream: {
            dial: ({ name }) => name === "a1" ? Effect.never : Effect.void,
            hangUp: ({ name }) => name === "b1" ? Effect.die("bug") : Effect.never
          }
        })
        const { lines } = yield* record(pool)
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust("30 seconds")
        yield* Fiber.await(caller)
        yield* visit(pool, b)
        yield* pool.invalidate(b)
        yield* visit(pool, c)
        yield* pool.invalidate(c)
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(lines, [
          "OpenFailed a: timeout",
          "Opened b",
          "Retired b: invalidated",
          "CloseFailed b: failed",
          "Opened c",
          "Retired c: invalidated",
          "CloseFailed c: timeout"
        ])
      }))

    it.effect("say how long an open took, from when it had its place", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1, upstream: { dial: () => Effect.sleep(250) } })
        const opened = yield* fork(
          pool.events.pipe(Stream.filter(SessionPoolEvent.$is("Opened")), Stream.take(2), Stream.runCollect)
        )
        yield* settle
        const held = yield* fork(pool.withSession(a, () => Effect.sleep(1_000)))
        const waiting = yield* fork(visit(pool, b))
        yield* TestClock.adjust(1_500)
        yield* Fiber.join(held)
        yield* Fiber.join(waiting)
        const events = yield* Fiber.join(opened)
        assert.deepStrictEqual(events.map(({ key, took }) => [key, Duration.toMillis(took)]), [[a.key, 250], [
          b.key,
          250
        ]])
      }))

    it.effect("tell nobody of what was before", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        yield* visit(pool, a)
        yield* settle
        const { lines } = yield* record(pool)
        yield* visit(pool, b)
        yield* settle
        assert.deepStrictEqual(lines, ["Opened b"])
      }))

    it.effect("reach every reader", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        const first = yield* record(pool)
        const second = yield* record(pool)
        yield* visit(pool, a)
        yield* settle
        assert.deepStrictEqual([first.lines, second.lines], [["Opened a"], ["Opened a"]])
      }))

    it.effect("are lost, the oldest first, to a reader that is slow, and slow nobody", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const gate = yield* Deferred.make<void>()
        const read: Array<string> = []
        yield* Effect.forkScoped(
          Stream.runForEach(pool.events, ({ key }) =>
            Effect.andThen(Effect.sync(() => void read.push(key)), Deferred.await(gate))),
          { startImmediately: true }
        )
        const all = identities(600)
        for (const identity of all) {
          yield* visit(pool, identity)
          yield* pool.invalidate(identity)
          yield* Effect.yieldNow
          yield* Effect.yieldNow
        }
        yield* settle
        assert.strictEqual(upstream.closed.length, 600, "the pool went on")
        yield* Deferred.succeed(gate, undefined)
        yield* settle
        assert.strictEqual(read.at(-1), "k599", "the newest is there")
        assert.isAtMost(read.length, 1_024 + 3, "what waits, and what the reader had taken before")
        assert.isTrue(new Set(read).size < 600, "the oldest are lost")
        assert.strictEqual((yield* pool.stats).eventsLost, 1_800 - read.length)
      }))

    it.effect("are counted one by one, also those of one step", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect, capacity: 1_500 })
        for (const identity of identities(1_500)) yield* visit(pool, identity)
        const gate = yield* Deferred.make<void>()
        const read: Array<string> = []
        yield* Effect.forkScoped(
          Stream.runForEach(pool.events, (event) =>
            Effect.andThen(Effect.sync(() => void read.push(event._tag)), Deferred.await(gate))),
          { startImmediately: true }
        )
        yield* pool.invalidateWhere(() =>
          true
        )
        yield* settle
        yield* Deferred.succeed(gate, undefined)
        yield* settle
        assert.strictEqual(read.length, 1_024)
        assert.strictEqual(read.at(-1), "Closed")
        assert.strictEqual((yield* pool.stats).eventsLost, 3_000 - 1_024)
      }))

    it.effect("are not kept for anybody when nobody reads, and lost to nobody", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect, capacity: 1_500 })
        const { reader } = yield* record(pool)
        yield* Fiber.interrupt(reader)
        for (const identity of identities(1_500)) yield* visit(pool, identity)
        assert.strictEqual((yield* pool.stats).eventsLost, 0)
      }))

    it.effect("of a reader that dies slow nobody", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        yield* Effect.forkScoped(
          Effect.exit(Stream.runForEach(pool.events, () => Effect.die("bug"))),
          { startImmediately: true }
        )
        const { lines } = yield* record(pool)
        yield* visit(pool, a)
        yield* visit(pool, b)
        yield* settle
        assert.deepStrictEqual(lines, ["Opened a", "Opened b"])
      }))

    it.effect("end with the pool, after the last one", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        const { lines, reader } = yield* record(pool)
        yield* visit(pool, a)
        yield* pool.close
        yield* settle
        assert.deepStrictEqual(reader.pollUnsafe(), Exit.void)
        assert.deepStrictEqual(lines, ["Opened a", "Retired a: shutdown", "Closed a: shutdown"])
      }))

    it.effect("of a pool that has shut down end at once", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        yield* pool.close
        const reader = yield* fork(Stream.runCollect(pool.events))
        yield* settle
        assert.strictEqual(outcome(reader), "success")
      }))

    it.effect("are Opened, Retired, Closed for a session that is retired while it is opening, too", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const { lines } = yield* record(pool)
        yield* fork(visit(pool, a))
        yield* pool.invalidate(a)
        yield* TestClock.adjust(100)
        yield* settle
        assert.sameMembers(lines, ["Opened a", "Retired a: invalidated", "Closed a: invalidated"])
        assert.strictEqual(lines.at(-1), "Closed a: invalidated")
      }))
  })

  describe("handle.retire", () => {
    it.effect("retires this session: the next get opens another", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const { release, session } = yield* lease(pool, a)
        yield* session.handle.retire("died")
        assert.isTrue(session.isOpen)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        yield* release
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("closes an idle session at once", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const { handle } = yield* visit(pool, a)
        yield* handle.retire("died")
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("never retires the successor", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const first = yield* visit(pool, a)
        yield* pool.invalidate(a)
        const second = yield* visit(pool, a)
        yield* first.handle.retire("died")
        yield* first.handle.retire("unhealthy")
        assert.isTrue(second.isOpen)
        assert.strictEqual(yield* visit(pool, a), second)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("said twice is said once", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const { lines } = yield* record(pool)
        const held = yield* lease(pool, a)
        yield* held.session.handle.retire("died")
        yield* held.session.handle.retire("unhealthy")
        yield* held.release
        yield* held.session.handle.retire("died")
        yield* settle
        assert.deepStrictEqual(lines, ["Opened a", "Retired a: died", "Closed a: died"])
        assert.strictEqual((yield* pool.stats).retirements, 1)
      }))

    it.effect("from within connect gives the session to those who wait, and to nobody later", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: {
            handshake: ({ handle, name }) => name === "a1" ? handle.retire("died") : Effect.void
          }
        })
        const first = yield* lease(pool, a)
        assert.strictEqual(first.session.name, "a1")
        assert.isTrue(first.session.isOpen)
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        yield* first.release
        yield* settle
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("from within a connect that then fails retires nothing else", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: {
            handshake: ({ handle, name }) =>
              name === "a1"
                ? Effect.andThen(handle.retire("died"), Effect.fail(new Refused({ why: "dead" })))
                : Effect.void
          }
        })
        assert.strictEqual((yield* Effect.flip(visit(pool, a)))._tag, "Refused")
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* visit(pool, a)).name, "a2")
        assert.strictEqual((yield* pool.stats).draining, 0)
      }))

    it.effect("from within the session's own finalizer does nothing", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { hangUp: ({ handle }) => handle.retire("died") } })
        yield* visit(pool, a)
        yield* pool.invalidate(a)
        yield* settle
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual((yield* pool.stats).retirements, 1)
      }))

    it.effect("after the end of the pool does nothing", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const { handle } = yield* visit(pool, a)
        yield* pool.close
        yield* handle.retire("died")
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("of a session that has expired and is closing does not touch its successor", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          idleTimeToLive: 100,
          upstream: { hangUp: ({ name }) => name === "a1" ? Effect.sleep(500) : Effect.void }
        })
        const first = yield* visit(pool, a)
        yield* TestClock.adjust(101)
        const second = yield* lease(pool, a)
        yield* TestClock.adjust(500)
        yield* first.handle.retire("died")
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.isTrue(second.session.isOpen)
        assert.strictEqual(yield* visit(pool, a), second.session)
      }))

    it.effect("within a call that then fails gives the next call another session", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const request = pool.withSession(a, ({ handle, name }) =>
          name === "a1"
            ? Effect.andThen(handle.retire("died"), Effect.fail(new Refused({ why: "404" })))
            : Effect.succeed(name))
        assert.strictEqual((yield* Effect.flip(request))._tag, "Refused")
        assert.strictEqual(yield* request, "a2")
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))
  })

  describe("handle.credentials", () => {
    it.effect("are the newest that were presented for the session's key", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const { handle } = yield* visit(pool, withToken("a", "one"))
        assert.strictEqual(tokenOf(yield* handle.credentials), "one")
        yield* visit(pool, withToken("a", "two"))
        assert.strictEqual(tokenOf(yield* handle.credentials), "two")
        yield* visit(pool, a)
        assert.strictEqual(tokenOf(yield* handle.credentials), "two", "none are no newer ones")
        yield* visit(pool, withToken("b", "other"))
        assert.strictEqual(tokenOf(yield* handle.credentials), "two")
      }))

    it.effect("are not replaced by some that expire sooner, which came late", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect, capacity: 1 })
        const held = yield* lease(pool, b)
        const callers = yield* Effect.forEach(
          [until("an hour", 3_600_000), until("a minute", 60_000)],
          (identity) => fork(visit(pool, identity))
        )
        yield* held.release
        const { handle } = yield* Fiber.join(callers[0]!)
        assert.strictEqual(tokenOf(yield* handle.credentials), "an hour", "of those who waited for room")
        yield* visit(pool, until("a minute", 60_000))
        assert.strictEqual(tokenOf(yield* handle.credentials), "an hour")
        yield* visit(pool, until("two hours", 7_200_000))
        assert.strictEqual(tokenOf(yield* handle.credentials), "two hours")
        yield* visit(pool, withToken("a", "silent"))
        assert.strictEqual(tokenOf(yield* handle.credentials), "silent")
        yield* TestClock.adjust("3 minutes")
        yield* visit(pool, until("a minute", 60_000))
        assert.strictEqual(tokenOf(yield* handle.credentials), "silent", "what has expired is no news")
      }))

    it.effect("are none where none were presented", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: makeUpstream().connect })
        const { handle } = yield* visit(pool, a)
        assert.isTrue(Option.isNone(yield* handle.credentials))
      }))

    it.effect("are the newest for a session that is being opened, too", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const first = yield* fork(visit(pool, withToken("a", "one")))
        yield* fork(visit(pool, withToken("a", "two")))
        yield* TestClock.adjust(100)
        const { handle } = yield* Fiber.join(first)
        assert.strictEqual(tokenOf(yield* handle.credentials), "two")
      }))

    it.effect("are the newest for a session whose callers waited for room, too", () =>
      Effect.gen(function*() {
        const { pool } = yield* start({ capacity: 1 })
        const held = yield* lease(pool, b)
        const first = yield* fork(visit(pool, withToken("a", "one")))
        const second = yield* fork(visit(pool, withToken("a", "two")))
        yield* held.release
        const { handle, identity } = yield* Fiber.join(first)
        yield* Fiber.join(second)
        assert.strictEqual(tokenOf(yield* handle.credentials), "two")
        assert.strictEqual(tokenOf(identity.credentials), "two", "and connect was given them")
      }))
  })

  describe("connect", () => {
    class Name extends Context.Service<Name, string>()("test/Name") {}
    const Lamp = Context.Reference<string>("test/Lamp", { defaultValue: () => "off" })

    it.effect("runs with the services of the pool, not of the caller that came first", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const seen: Array<string> = []
        const layer = Pool.layer({
          connect: (identity, handle) =>
            Effect.gen(function*() {
              seen.push(yield* Name, yield* Lamp)
              return yield* upstream.connect(identity, handle)
            })
        }).pipe(Layer.provide([Layer.succeed(Name, "pool's"), Layer.succeed(Lamp, "pool's")]))
        yield* Effect.scoped(Pool.get(a)).pipe(
          Effect.andThen(Pool.withSession(b, () => Effect.void)),
          Effect.provideService(Name, "caller's"),
          Effect.provideService(Lamp, "caller's"),
          Effect.provide(layer)
        )
        assert.deepStrictEqual(seen, ["pool's", "pool's", "pool's", "pool's"])
      }))

    it.effect("runs with the services of the pool also for callers that waited for room", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const seen: Array<string> = []
        const pool = yield* openPool({
          capacity: 1,
          connect: (identity, handle) =>
            Effect.gen(function*() {
              seen.push(yield* Lamp)
              return yield* upstream.connect(identity, handle)
            })
        })
        const held = yield* lease(pool, a)
        yield* fork(Effect.provideService(visit(pool, b), Lamp, "waiter's"))
        yield* Effect.provideService(held.release, Lamp, "releaser's")
        yield* settle
        assert.deepStrictEqual(seen, ["off", "off"])
      }))

    it.effect("runs in a span of the pool, not of the caller that came first", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const parents: Array<ReadonlyArray<string>> = []
        const layer = Pool.layer({
          connect: (identity, handle) =>
            Effect.gen(function*() {
              const spans: Array<string> = []
              for (
                let span = yield* Effect.option(Effect.currentParentSpan);
                span._tag === "Some" && span.value._tag === "Span";
                span = span.value.parent
              ) spans.push(span.value.name)
              parents.push(spans)
              return yield* upstream.connect(identity, handle)
            })
        }).pipe(Layer.withSpan("pool"))
        yield* Effect.scoped(Pool.get(a)).pipe(
          Effect.withSpan("caller"),
          Effect.provide(layer)
        )
        assert.deepStrictEqual(parents, [["SessionPool.connect", "pool"]])
      }))

    it.effect("runs in a scope of the session, not of its caller", () =>
      Effect.gen(function*() {
        const log: Array<string> = []
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.gen(function*() {
              yield* Effect.addFinalizer(() => Effect.sync(() => void log.push(`closed ${identity.key}`)))
              yield* Effect.forkScoped(
                Effect.onInterrupt(Effect.never, () => Effect.sync(() => void log.push("fiber interrupted"))),
                { startImmediately: true }
              )
              return { name: identity.key, identity, handle, isOpen: true }
            })
        })
        yield* visit(pool, a)
        assert.deepStrictEqual(log, [])
        yield* pool.invalidate(a)
        yield* settle
        assert.sameMembers(log, ["fiber interrupted", "closed a"])
      }))

    it.effect("closes what it acquired in the reverse order", () =>
      Effect.gen(function*() {
        const log: Array<number> = []
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.as(
              Effect.forEach([1, 2, 3], (n) => Effect.addFinalizer(() => Effect.sync(() => void log.push(n)))),
              { name: identity.key, identity, handle, isOpen: true }
            )
        })
        yield* visit(pool, a)
        yield* pool.invalidate(a)
        yield* settle
        assert.deepStrictEqual(log, [3, 2, 1])
      }))

    it.effect("is not interrupted by the end of the caller that came first, if another waits", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(100) } })
        const first = yield* fork(visit(pool, a))
        const second = yield* fork(visit(pool, a))
        yield* Fiber.interrupt(first)
        yield* TestClock.adjust(100)
        assert.strictEqual((yield* Fiber.join(second)).name, "a1")
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("may return equal sessions for two identities: each is closed for its own", () =>
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

    it.effect("may return the very same object for two identities: it counts as two sessions", () =>
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

    it.effect("may return any object: no class refuses it", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.map(upstream.connect(identity, handle), (session) => Object.assign(Object.create(null), session))
        })
        assert.strictEqual((yield* visit(pool, a)).name, "a1")
      }))

    it.effect("may look at the pool: its own session is opening", () =>
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

    it.effect("may invalidate its own identity: who waits gets it, and nobody later", () =>
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

    it.effect("that gets another identity at capacity 1 fails with PoolExhausted, and leaves nothing", () =>
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

    it.effect("of two identities that get each other end with ConnectTimeout", () =>
      Effect.gen(function*() {
        const { pool } = yield* openWith((self) => ({
          dial: ({ identity }) => Effect.orDie(Effect.flatMap(self, (inner) => inner.get(identity.key === "a" ? b : a)))
        }), { connectTimeout: 100 })
        const callers = yield* Effect.forEach([a, b], (identity) => fork(visit(pool, identity)))
        yield* TestClock.adjust(100)
        for (const caller of callers) assert.include(["ConnectTimeout", "Die"], outcome(caller))
        assert.deepInclude(yield* pool.stats, { leased: 0, waiting: 0, opening: 0, draining: 0 })
      }))

    it.effect("that returns no Effect is a defect at once, and says so", () =>
      Effect.gen(function*() {
        const pool = yield* openPool({ connect: (() => Promise.resolve({})) as unknown as PoolOptions["connect"] })
        const exit = yield* Effect.exit(visit(pool, a))
        assert.isTrue(Exit.hasDies(exit))
        assert.include(String(exit), "connect must return an Effect")
      }))
  })

  describe("a finalizer", () => {
    it.effect("may get its own identity again: it gets the successor", () =>
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

    it.effect("that gets a session at shutdown is answered PoolClosed", () =>
      Effect.gen(function*() {
        const tags: Array<string> = []
        const { pool, upstream } = yield* openWith((self) => ({
          hangUp: () =>
            Effect.flatMap(self, (inner) => Effect.map(Effect.flip(visit(inner, b)), ({ _tag }) => tags.push(_tag)))
              .pipe(
                Effect.ignore
              )
        }))
        yield* visit(pool, a)
        yield* pool.close
        assert.deepStrictEqual(tags, ["PoolClosed"])
        assert.deepStrictEqual(upstream.opened, ["a1"])
      }))

    it.effect("runs with the services of the pool, whoever ended the last lease", () =>
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
  })

  describe("Tag", () => {
    it.effect("makes a pool of any type of session, undefined too", () =>
      Effect.gen(function*() {
        class Nothing extends SessionPool.Tag<Nothing, undefined>()("test/Nothing") {}
        yield* Effect.gen(function*() {
          assert.isUndefined(yield* Effect.scoped(Nothing.get(a)))
          assert.isUndefined(yield* Effect.scoped(Nothing.get(a)))
          assert.isUndefined(yield* Nothing.withSession(a, (session) => Effect.succeed(session)))
          assert.deepStrictEqual(yield* Effect.map(Nothing.stats, (s) => [s.hits, s.misses]), [2, 1])
        }).pipe(Effect.provide(Nothing.layer({ connect: () => Effect.undefined })))
      }))

    it.effect("has every operation as a static", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        yield* Effect.gen(function*() {
          const reader = yield* fork(Stream.runCollect(Stream.take(Pool.events, 2)))
          yield* settle
          assert.strictEqual((yield* Effect.scoped(Pool.get(a))).name, "a1")
          assert.strictEqual(yield* Pool.withSession(a, ({ name }) => Effect.succeed(name)), "a1")
          assert.strictEqual((yield* Pool.stats).size, 1)
          assert.strictEqual((yield* Pool.entries).length, 1)
          assert.isTrue(yield* Pool.invalidate(a))
          assert.strictEqual(yield* Pool.invalidateWhere(() => true), 0)
          assert.deepStrictEqual((yield* Fiber.join(reader)).map(({ _tag }) => _tag), ["Opened", "Retired"])
        }).pipe(Effect.provide(Pool.layer({ connect: upstream.connect })))
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("asks whatever service is in its place, also one that was made of a pool", () =>
      Effect.gen(function*() {
        const asked: Array<string> = []
        const pool = yield* openPool({ connect: makeUpstream().connect })
        const watched: typeof pool = {
          ...pool,
          get: (identity) => {
            asked.push(`get ${identity.key}`)
            return pool.get(identity)
          },
          withSession: (identity, f) => {
            asked.push(`withSession ${identity.key}`)
            return pool.withSession(identity, f)
          }
        }
        yield* Effect.gen(function*() {
          assert.strictEqual((yield* Effect.scoped(Pool.get(a))).name, "a1")
          assert.strictEqual(yield* Pool.withSession(a, ({ name }) => Effect.succeed(name)), "a1")
        }).pipe(Effect.provideService(Pool, watched))
        assert.deepStrictEqual(asked, ["get a", "withSession a"])
      }))

    it.effect("runs again after what others sent on a session that its own f had leased within", () =>
      Effect.gen(function*() {
        const expired = { _tag: "McpSessionError", reason: { _tag: "SessionExpired" } } as const
        const sents = { a: Sent.make(true), b: Sent.make(false) }
        sents.a.expirations?.add(expired)
        const { connect } = makeUpstream()
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.map(connect(identity, handle), (session) => ({
              ...session,
              [Sent.TypeId]: session.name.startsWith("a") ? sents.a : sents.b
            }))
        })
        yield* visit(pool, a)
        yield* visit(pool, b)
        const send = Effect.map(
          Sent.CurrentLease,
          (current) => Sent.settled(sents.b, Sent.leave(sents.b, Sent.senderWithin(current)))
        )
        const others = Effect.provideService(pool.withSession(b, () => send), Sent.CurrentLease, undefined)
        const healed = (within: Effect.Effect<void>) =>
          pool.withSession(a, ({ name }) =>
            name === "a1"
              ? Effect.andThen(pool.withSession(b, () => within), Effect.andThen(others, Effect.fail(expired)))
              : Effect.succeed(name))
        assert.strictEqual(yield* Effect.flip(healed(send)), expired)
        assert.strictEqual(yield* healed(Effect.void), "a2")
      }))

    it.effect("leaves no trace of a lease in the context of its caller", () =>
      Effect.gen(function*() {
        const { connect } = makeUpstream()
        const pool = yield* openPool({
          connect: (identity, handle) =>
            Effect.map(connect(identity, handle), (session) => ({ ...session, [Sent.TypeId]: Sent.make(true) }))
        })
        const within = pool.withSession(a, () => Effect.map(Sent.CurrentLease, (current) => current !== undefined))
        assert.isTrue(yield* within)
        assert.isTrue(yield* within)
        assert.isUndefined(yield* Sent.CurrentLease)
        yield* Effect.flip(pool.withSession(a, () => Effect.fail("no")))
        yield* Effect.exit(pool.withSession(a, () => Effect.die("no")))
        yield* Effect.exit(pool.withSession(a, () => Effect.interrupt))
        assert.isUndefined(yield* Sent.CurrentLease)
      }))

    it.effect("keeps two pools side by side apart", () =>
      Effect.gen(function*() {
        class Down extends Data.TaggedError("Down")<{}> {}
        class Numbers extends SessionPool.Tag<Numbers, number, Down>()("test/Numbers") {}
        const upstream = makeUpstream()
        yield* Effect.gen(function*() {
          assert.strictEqual((yield* Effect.scoped(Pool.get(a))).name, "a1")
          assert.strictEqual(yield* Effect.scoped(Numbers.get(a)), 42)
          assert.isTrue(yield* Numbers.invalidate(a))
          assert.strictEqual((yield* Pool.stats).size, 1)
          assert.strictEqual((yield* Numbers.stats).size, 0)
          assert.strictEqual((yield* Effect.flip(Effect.scoped(Numbers.get(b))))._tag, "Down")
        }).pipe(
          Effect.provide([
            Pool.layer({ connect: upstream.connect }),
            Numbers.layer({ connect: ({ key }) => key === "a" ? Effect.succeed(42) : Effect.fail(new Down()) })
          ])
        )
      }))

    it.effect("keeps two pools of one tag apart", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        const first = yield* openPool({ connect: upstream.connect })
        const second = yield* openPool({ connect: upstream.connect })
        yield* visit(first, a)
        yield* visit(second, a)
        yield* first.close
        assert.deepStrictEqual(upstream.closed, ["a1"])
        assert.strictEqual((yield* visit(second, a)).name, "a2")
      }))
  })

  describe("shutdown", () => {
    it.effect("closes what is idle and fails new gets with PoolClosed", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        yield* visit(pool, a)
        yield* visit(pool, b)
        yield* pool.close
        assert.sameMembers(upstream.gone, ["a1", "b1"])
        for (const identity of [a, c]) {
          assert.strictEqual((yield* Effect.flip(visit(pool, identity)))._tag, "PoolClosed")
        }
        const error = yield* Effect.flip(pool.withSession(a, () => Effect.void))
        assert.strictEqual(error._tag, "PoolClosed")
        assert.strictEqual(upstream.connects, 2)
      }))

    it.effect("leaves operations that answer", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        yield* visit(pool, a)
        yield* pool.close
        assert.isFalse(yield* pool.invalidate(a))
        assert.strictEqual(yield* pool.invalidateWhere(() => true), 0)
        assert.deepStrictEqual(yield* pool.entries, [])
        assert.deepInclude(yield* pool.stats, { size: 0, idle: 0, leased: 0, closing: 0, draining: 0, retirements: 1 })
      }))

    it.effect("fails waiting gets with PoolClosed", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ capacity: 1, drainTimeout: "1 hour" })
        const held = yield* lease(pool, a)
        const waiters = yield* Effect.forEach([b, b, c], (identity) => fork(visit(pool, identity)))
        yield* fork(pool.close)
        yield* settle
        assert.deepStrictEqual(waiters.map(outcome), ["PoolClosed", "PoolClosed", "PoolClosed"])
        assert.strictEqual((yield* pool.stats).waiting, 0)
        assert.isTrue(held.session.isOpen)
        yield* held.release
        assert.strictEqual(upstream.connects, 1)
      }))

    it.effect("interrupts opens in progress, frees them, and fails their callers with PoolClosed", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          upstream: { handshake: () => Effect.never, hangUp: () => Effect.sleep(10) }
        })
        const callers = yield* Effect.forEach([a, a, b], (identity) => fork(visit(pool, identity)))
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(10)
        assert.deepStrictEqual(callers.map(outcome), ["PoolClosed", "PoolClosed", "PoolClosed"])
        assert.sameMembers(upstream.gone, ["a1", "b1"])
        yield* Fiber.join(closing)
      }))

    it.effect("closes everything in parallel", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { hangUp: () => Effect.sleep(50) } })
        yield* Effect.forEach(identities(10), (identity) => visit(pool, identity))
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(50)
        assert.isDefined(closing.pollUnsafe())
        assert.strictEqual(upstream.gone.length, 10)
      }))

    it.effect("during a check ends the check: its callers fail with PoolClosed", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ checkAfter: 0, check: () => Effect.never })
        yield* visit(pool, a)
        const caller = yield* fork(visit(pool, a))
        const closing = yield* fork(pool.close)
        yield* settle
        assert.strictEqual(outcome(caller), "PoolClosed")
        assert.isDefined(closing.pollUnsafe())
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("during a check that can't be interrupted keeps within its bounds", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          checkAfter: 0,
          check: () => Effect.uninterruptible(Effect.never),
          checkTimeout: "1 hour"
        })
        yield* visit(pool, a)
        const caller = yield* fork(visit(pool, a))
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust("20 seconds")
        assert.isDefined(closing.pollUnsafe())
        assert.deepStrictEqual(upstream.gone, ["a1"])
        assert.strictEqual(outcome(caller), "PoolClosed")
      }))

    it.effect("is the end of a lease: what ends later is no error", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start()
        const held = yield* lease(pool, a)
        yield* pool.close
        assert.deepStrictEqual(upstream.gone, ["a1"])
        yield* held.release
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("tells its callers of a call that ran on: withSession's effect is not interrupted", () =>
      Effect.gen(function*() {
        const { pool } = yield* start()
        const caller = yield* fork(pool.withSession(a, ({ name }) => Effect.as(Effect.sleep(100), name)))
        yield* pool.close
        yield* TestClock.adjust(100)
        assert.strictEqual(yield* Fiber.join(caller), "a1")
      }))

    it.effect("during an open leaves nothing open", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(1_000) } })
        const caller = yield* fork(visit(pool, a))
        yield* pool.close
        yield* TestClock.adjust(2_000)
        assert.strictEqual(outcome(caller), "PoolClosed")
        assert.deepStrictEqual(upstream.closed, upstream.opened)
        assert.strictEqual((yield* pool.stats).size, 0)
      }))

    it.effect("is the end: no get opens a session that nobody would close", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { dial: () => Effect.sleep(1_000) } })
        const caller = yield* fork(visit(pool, a))
        yield* pool.close
        const late = yield* Effect.flip(visit(pool, a))
        assert.strictEqual(late._tag, "PoolClosed")
        yield* TestClock.adjust("1 hour")
        assert.strictEqual(outcome(caller), "PoolClosed")
        assert.deepStrictEqual([upstream.connects, upstream.opened.length], [1, 0])
      }))

    it.effect("takes as long as the slowest close, not as all of them", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { hangUp: () => Effect.sleep(50) } })
        for (const identity of identities(10)) yield* visit(pool, identity)
        const closing = yield* fork(pool.close)
        yield* TestClock.adjust(49)
        assert.isUndefined(closing.pollUnsafe())
        yield* TestClock.adjust(1)
        assert.isDefined(closing.pollUnsafe())
        assert.strictEqual(upstream.gone.length, 10)
      }))

    it.effect("asked for twice closes once", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({ upstream: { hangUp: () => Effect.sleep(50) } })
        yield* visit(pool, a)
        yield* fork(pool.close)
        yield* fork(pool.close)
        yield* TestClock.adjust(50)
        assert.deepStrictEqual(upstream.closed, ["a1"])
      }))

    it.effect("at the end of a scope closes what was opened in it", () =>
      Effect.gen(function*() {
        const upstream = makeUpstream()
        yield* Effect.scoped(Effect.gen(function*() {
          const pool = yield* openPool({ connect: upstream.connect })
          yield* pool.get(a)
          yield* visit(pool, b)
        }))
        assert.sameMembers(upstream.gone, ["a1", "b1"])
      }))

    it.effect("by a connect ends within its bounds", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* openWith((self) => ({
          handshake: () => Effect.flatMap(self, ({ close }) => close)
        }), { closeTimeout: 100 })
        const caller = yield* fork(visit(pool, a))
        yield* TestClock.adjust(300)
        assert.strictEqual(outcome(caller), "PoolClosed")
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("by a call closes its session under it, and the call goes on", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* openWith(() => ({}))
        const open = yield* pool.withSession(
          a,
          (session) => Effect.andThen(pool.close, Effect.sync(() => session.isOpen))
        )
        assert.isFalse(open)
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))

    it.effect("ends an opening session that was retired like any other", () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* openWith(() => ({ handshake: () => Effect.never }))
        const caller = yield* fork(visit(pool, a))
        yield* pool.invalidate(a)
        yield* pool.close
        yield* settle
        assert.strictEqual(outcome(caller), "PoolClosed")
        assert.deepStrictEqual(upstream.gone, ["a1"])
      }))
  })

  it.effect("gives spans of connect to the tracer of the pool", () =>
    Effect.gen(function*() {
      const spans: Array<string> = []
      const tracer = (name: string) =>
        Tracer.make({
          span: (options) => {
            spans.push(`${name}: ${options.name}`)
            return new Tracer.NativeSpan(options)
          }
        })
      const upstream = makeUpstream({ dial: () => Effect.withSpan(Effect.void, "dial") })
      const pool = yield* Effect.withTracer(openPool({ connect: upstream.connect }), tracer("pool"))
      yield* Effect.withTracer(visit(pool, a), tracer("caller"))
      assert.deepStrictEqual(spans, ["pool: SessionPool.connect", "pool: dial"])
    }))

  it.effect("takes a session's type as it comes: a session is never inspected", () =>
    Effect.gen(function*() {
      const hostile = new Proxy({} as TestSession, {
        get: (_, property) => {
          throw new Error(`read ${String(property)}`)
        }
      })
      const pool = yield* openPool({ connect: () => Effect.succeed(hostile) })
      const scope = yield* Scope.make()
      const session = yield* Effect.exit(Scope.provide(pool.get(a), scope))
      assert.isTrue(Exit.isSuccess(session) && session.value === hostile)
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(yield* pool.withSession(a, (same) => Effect.sync(() => same === hostile)))
    }))
})
