import { assert, describe, it } from "@effect/vitest"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import {
  ConsentRequired,
  McpSessionError,
  SessionClosed,
  Unauthorized,
  Unreachable
} from "effect-mcp-sessions/McpSession"
import { type SessionPoolOptions, Tag } from "effect-mcp-sessions/SessionPool"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as TestClock from "effect/testing/TestClock"
import { build, fork, outcome, settle } from "./support/fibers.ts"
import { many, underLoad } from "./support/load.ts"
import { Refused } from "./support/upstream.ts"

type Failed = McpSessionError | Refused

class Pool extends Tag<Pool, string, Failed>()("test/Pool") {}

const mcp = (reason: McpSessionError["reason"]) => new McpSessionError({ reason, method: "connect", server: "x" })

const crashed = mcp(new SessionClosed({ requestSent: false, exitCode: 1 }))
const unreachable = mcp(new Unreachable({ code: "ECONNREFUSED", requestSent: false }))
const unauthorized = mcp(new Unauthorized({ requestSent: false }))

const user = (name: string, token?: string) =>
  Identity.fromKey(name, token === undefined ? {} : { credentials: Credentials.bearer(token) })

const users = (n: number) => Array.from({ length: n }, (_, i) => user(`u${i}`))

/** A pool that counts its connects, each of which does what `dial` says. */
const open = Effect.fnUntraced(function*(
  dial: (identity: Identity, n: number) => Effect.Effect<unknown, Failed>,
  options: Partial<SessionPoolOptions<string, Failed, never>>
) {
  const dialled: Array<string> = []
  const { context } = yield* build(Pool.layer({
    ...options,
    connect: (identity) =>
      Effect.suspend(() => {
        dialled.push(identity.key)
        return Effect.as(dial(identity, dialled.length), identity.key)
      })
  }))
  const pool = Context.get(context, Pool)
  const visit = (identity: Identity) => Effect.scoped(pool.get(identity))
  const told = (identity: Identity) => Effect.flip(visit(identity))
  /** One who tries again, 100 ms after it has failed; meanwhile the other is told that. */
  const probe = Effect.fnUntraced(function*(one: Identity, other: Identity) {
    const failure = yield* told(one)
    yield* TestClock.adjust(100)
    const probing = yield* fork(visit(one))
    assert.strictEqual(yield* told(other), failure)
    return probing
  })
  return { pool, dialled, visit, told, probe }
})

const ended = (fiber: Fiber.Fiber<unknown, unknown>) => fiber.pollUnsafe() !== undefined

const doubling = Schedule.exponential(100)

describe("a failed connect", () => {
  for (const options of [{ failureTimeToLive: "1 hour" }, { failureBackoff: Schedule.spaced("1 hour") }] as const) {
    describe(`with ${Object.keys(options)[0]!}`, () => {
      it.effect("for want of consent answers nobody: it may have been given by now", () =>
        Effect.gen(function*() {
          const wanted = mcp(
            new ConsentRequired({ id: "1", url: Redacted.make("https://as.test"), requestSent: false })
          )
          const { dialled, told, visit } = yield* open(
            (_, n) => n === 1 ? Effect.fail(wanted) : Effect.void,
            options
          )
          assert.strictEqual(yield* told(user("alice")), wanted)
          yield* visit(user("alice"))
          assert.deepStrictEqual(dialled, ["alice", "alice"])
        }))

      it.effect("of an expired token does not answer the fresh one", () =>
        Effect.gen(function*() {
          for (const error of [unauthorized, new Refused({ why: "expired" }), unreachable]) {
            const { dialled, told, visit } = yield* open(
              (_, n) => n === 1 ? Effect.fail(error) : Effect.void,
              options
            )
            assert.strictEqual(yield* told(user("a", "old")), error)
            assert.strictEqual(yield* told(user("a", "old")), error)
            assert.strictEqual(yield* told(user("a")), error, "who presents nothing presents nothing new")
            assert.strictEqual(dialled.length, 1)
            assert.strictEqual(yield* visit(user("a", "new")), "a")
          }
        }))

      it.effect("of an expired token is no failure of the upstream for anybody else", () =>
        Effect.gen(function*() {
          const bad = user("a", "bad").at("x")
          const { told, visit } = yield* open(
            ({ key }) => key === bad.key ? Effect.fail(unauthorized) : Effect.void,
            options
          )
          yield* told(bad)
          assert.strictEqual(yield* visit(user("b", "good").at("x")), "~x/b")
          assert.strictEqual(yield* told(bad), unauthorized)
        }))

      it.effect("is charged to the credentials that the open began with", () =>
        Effect.gen(function*() {
          const answer = yield* Deferred.make<never, Failed>()
          const { told, visit } = yield* open((_, n) => n === 1 ? Deferred.await(answer) : Effect.void, options)
          const first = yield* fork(told(user("a", "old")))
          const second = yield* fork(told(user("a", "new")))
          yield* Deferred.fail(answer, unauthorized)
          yield* Fiber.join(first)
          yield* Fiber.join(second)
          assert.strictEqual(yield* visit(user("a", "new")), "a")
        }))

      it.effect("of a crashing command answers each identity of its upstream, and of no other", () =>
        Effect.gen(function*() {
          const { dialled, told, visit } = yield* open(
            ({ upstream }) => upstream._tag === "Some" && upstream.value === "x" ? Effect.fail(crashed) : Effect.void,
            options
          )
          for (const { key } of users(20)) {
            assert.strictEqual(yield* told(user(key, `token of ${key}`).at("x")), crashed)
          }
          assert.deepStrictEqual(dialled, ["~x/u0"])
          assert.strictEqual(yield* visit(user("u1").at("y")), "~y/u1")
          assert.strictEqual(yield* visit(user("u1")), "u1")
        }))
    })
  }

  it.effect("without an upstream is its identity's own", () =>
    Effect.gen(function*() {
      const { dialled, told } = yield* open(() => Effect.fail(crashed), { failureBackoff: doubling })
      yield* Effect.forEach(users(5), told)
      yield* Effect.forEach(users(5), told)
      assert.strictEqual(dialled.length, 5)
    }))

  it.effect("with an error of an unknown type answers those who present no credentials either", () =>
    Effect.gen(function*() {
      const { dialled, told } = yield* open(() => Effect.fail(new Refused({ why: "?" })), { failureBackoff: doubling })
      yield* Effect.forEach(users(5), (identity) => told(identity.at("x")))
      assert.deepStrictEqual(dialled, ["~x/u0"])
      yield* told(user("a", "1").at("x"))
      yield* told(user("a", "1").at("x"))
      yield* told(user("b", "2").at("x"))
      assert.deepStrictEqual(dialled, ["~x/u0", "~x/a", "~x/b"])
    }))
})

describe("failureBackoff", () => {
  it.effect("lets one try through at each delay of the schedule, whoever asks how often", () =>
    Effect.gen(function*() {
      const starts: Array<number> = []
      let now = 0
      const { told } = yield* open(() => {
        starts.push(now)
        return Effect.fail(crashed)
      }, { failureBackoff: doubling })
      for (; now <= 2_000; now += 10) {
        yield* Effect.forEach(users(10), (identity) => told(identity.at("x")))
        yield* TestClock.adjust(10)
      }
      assert.deepStrictEqual(starts, [0, 100, 300, 700, 1_500])
    }))

  it.effect("tells the others the last failure at once while one tries", () =>
    Effect.gen(function*() {
      const { dialled, pool, probe, told, visit } = yield* open(
        (_, n) => n === 1 ? Effect.fail(crashed) : Effect.sleep(1_000),
        { failureBackoff: doubling }
      )
      const [a, b] = [user("a").at("x"), user("b").at("x")]
      const probing = yield* probe(a, b)
      yield* TestClock.adjust(999)
      assert.strictEqual(yield* told(b), crashed)
      yield* TestClock.adjust(1)
      assert.strictEqual(outcome(probing), "success")
      const other = yield* fork(visit(b))
      yield* TestClock.adjust(1_000)
      assert.strictEqual(outcome(other), "success")
      assert.strictEqual(dialled.length, 3)
      const stats = yield* pool.stats
      assert.strictEqual(stats.hits + stats.misses, 5)
      assert.strictEqual(stats.failures, 1)
    }))

  it.effect("answers as soon as it is there, also while what it had acquired is freed", () =>
    Effect.gen(function*() {
      const [first, ...others] = users(5).map((identity) => identity.at("crashing"))
      const dialled: Array<string> = []
      const { context } = yield* build(Pool.layer({
        failureBackoff: Schedule.spaced("1 hour"),
        connect: ({ key }) =>
          Effect.andThen(
            Effect.addFinalizer(() =>
              Effect.sync(() => dialled.push(key)).pipe(Effect.andThen(Effect.sleep("5 seconds")))
            ),
            Effect.fail(crashed)
          )
      }))
      const visit = (identity: Identity) => Effect.scoped(Context.get(context, Pool).get(identity))
      const waiting = yield* fork(visit(first!))
      for (const other of others) assert.strictEqual((yield* Effect.flip(visit(other)))._tag, crashed._tag)
      assert.strictEqual((yield* Effect.flip(visit(first!)))._tag, crashed._tag)
      assert.deepStrictEqual(dialled, [first!.key])
      assert.strictEqual(outcome(waiting), "waiting", "its own callers are told when all of it is freed")
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(outcome(waiting), crashed._tag)
    }))

  it.effect("lets another try when the one that did was interrupted", () =>
    Effect.gen(function*() {
      const { probe, visit } = yield* open(
        (_, n) => n === 1 ? Effect.fail(crashed) : n === 2 ? Effect.never : Effect.void,
        { failureBackoff: doubling }
      )
      const [a, b] = [user("a").at("x"), user("b").at("x")]
      yield* Fiber.interrupt(yield* probe(a, b))
      assert.strictEqual(yield* visit(b), "~x/b")
    }))

  it.effect("begins anew after a success", () =>
    Effect.gen(function*() {
      let isBroken = true
      const { dialled, pool, told, visit } = yield* open(
        () => Effect.suspend(() => isBroken ? Effect.fail(crashed) : Effect.void),
        { failureBackoff: doubling }
      )
      const a = user("a").at("x")
      yield* told(a)
      yield* TestClock.adjust(100)
      yield* told(a)
      yield* TestClock.adjust(200)
      isBroken = false
      yield* visit(a)
      yield* pool.invalidate(a)
      isBroken = true
      yield* told(a)
      yield* TestClock.adjust(99)
      yield* told(a)
      assert.strictEqual(dialled.length, 4)
      yield* TestClock.adjust(1)
      yield* told(a)
      assert.strictEqual(dialled.length, 5)
    }))

  it.effect("counts what had begun together as one failure", () =>
    Effect.gen(function*() {
      const { dialled, told } = yield* open(() => Effect.andThen(Effect.sleep(10), Effect.fail(crashed)), {
        failureBackoff: doubling
      })
      const all = yield* fork(Effect.forEach(users(10), (identity) => told(identity.at("x")), {
        concurrency: "unbounded"
      }))
      yield* TestClock.adjust(10)
      yield* Fiber.join(all)
      assert.strictEqual(dialled.length, 10)
      yield* TestClock.adjust(99)
      yield* told(user("a").at("x"))
      assert.strictEqual(dialled.length, 10)
      yield* TestClock.adjust(1)
      const probe = yield* fork(told(user("a").at("x")))
      assert.strictEqual(dialled.length, 11)
      yield* TestClock.adjust(10)
      yield* Fiber.join(probe)
    }))

  it.effect("answers those who wait for room, wherever they are in the line", () =>
    Effect.gen(function*() {
      const { dialled, pool, told, visit } = yield* open(
        ({ upstream }) =>
          upstream._tag === "None"
            ? Effect.void
            : Effect.andThen(Effect.sleep(10), Effect.fail(crashed)),
        { capacity: 2, failureBackoff: doubling, acquireTimeout: "1 hour" }
      )
      yield* Effect.scoped(Effect.gen(function*() {
        yield* pool.get(user("held"))
        const first = yield* fork(told(user("a").at("x")))
        const waiting = yield* fork(visit(user("patient")))
        const others = yield* Effect.forEach(users(5), (identity) => fork(told(identity.at("x"))))
        assert.strictEqual((yield* pool.stats).waiting, 6)
        yield* TestClock.adjust(10)
        assert.deepStrictEqual([first, ...others].map(ended), Array.from({ length: 6 }, () => true))
        assert.strictEqual(outcome(waiting), "success")
        assert.deepStrictEqual(dialled, ["held", "~x/a", "patient"])
      }))
    }))

  it.effect("after a success is not set off by one identity that fails alone", () =>
    Effect.gen(function*() {
      const bad = user("bad").at("x")
      const { dialled, told, visit } = yield* open(
        ({ key }) => key === bad.key ? Effect.fail(crashed) : Effect.void,
        { failureBackoff: doubling, capacity: 50 }
      )
      const good = users(20).map((identity) => identity.at("x"))
      yield* visit(good[0]!)
      for (const identity of good.slice(1)) {
        assert.strictEqual(yield* told(bad), crashed)
        yield* visit(identity)
        yield* TestClock.adjust(60)
      }
      const tries = dialled.filter((key) => key === bad.key).length
      assert.isAtMost(tries, 5, "its own schedule holds for it")
      assert.isAtLeast(tries, 3)
    }))

  it.effect("after a success is set off by two identities in a row", () =>
    Effect.gen(function*() {
      let isBroken = false
      const { dialled, told, visit } = yield* open(
        () => Effect.suspend(() => isBroken ? Effect.fail(crashed) : Effect.void),
        { failureBackoff: doubling }
      )
      yield* visit(user("a").at("x"))
      isBroken = true
      yield* Effect.forEach(users(20), (identity) => told(identity.at("x")))
      assert.strictEqual(dialled.length, 3)
    }))

  it.effect("goes on with its last delay when it is over, and never gives an upstream up", () =>
    Effect.gen(function*() {
      const { dialled, told } = yield* open(() => Effect.fail(crashed), {
        failureBackoff: Schedule.upTo(doubling, { times: 2 })
      })
      const a = user("a").at("x")
      for (const [after, dials] of [[0, 1], [100, 2], [200, 3], [199, 3], [1, 4], [200, 5]] as const) {
        yield* TestClock.adjust(after)
        yield* told(a)
        assert.strictEqual(dialled.length, dials)
      }
    }))

  it.effect("remembers no more than capacity failures, those of upstreams for longest", () =>
    Effect.gen(function*() {
      const { dialled, told } = yield* open(
        ({ upstream }) => Effect.fail(upstream._tag === "None" ? unauthorized : crashed),
        { capacity: 3, failureBackoff: Schedule.spaced("1 hour") }
      )
      yield* told(user("a").at("x"))
      yield* Effect.forEach(users(10), told)
      assert.strictEqual(dialled.length, 11)
      yield* told(user("b").at("x"))
      yield* told(user("u9"))
      yield* told(user("u8"))
      assert.strictEqual(dialled.length, 11)
      yield* told(user("u7"))
      assert.strictEqual(dialled.length, 12)
    }))

  it.effect("is forgotten when whoever failed last is invalidated", () =>
    Effect.gen(function*() {
      const { dialled, pool, told } = yield* open(() => Effect.fail(crashed), {
        failureBackoff: Schedule.spaced("1 hour")
      })
      yield* told(user("a").at("x"))
      yield* pool.invalidate(user("b").at("x"))
      yield* told(user("b").at("x"))
      assert.strictEqual(dialled.length, 1)
      yield* pool.invalidate(user("a").at("x"))
      yield* told(user("b").at("x"))
      assert.strictEqual(dialled.length, 2)
      yield* pool.invalidateWhere(({ upstream }) => upstream._tag === "Some" && upstream.value === "x")
      yield* told(user("c").at("x"))
      assert.strictEqual(dialled.length, 3)
    }))

  it.effect("counts a connect that takes too long", () =>
    Effect.gen(function*() {
      const { dialled, told } = yield* open(() => Effect.never, { connectTimeout: 10, failureBackoff: doubling })
      const first = yield* fork(told(user("a", "1").at("x")))
      yield* TestClock.adjust(10)
      assert.strictEqual((yield* Fiber.join(first))._tag, "ConnectTimeout")
      assert.strictEqual((yield* told(user("b", "2").at("x")))._tag, "ConnectTimeout")
      assert.strictEqual(dialled.length, 1)
      yield* settle
    }))

  it.effect("never has more than one try of a failing upstream, in a herd of 300", () =>
    Effect.gen(function*() {
      let trying = 0
      let most = 0
      const { pool, told } = yield* open(() =>
        Effect.gen(function*() {
          trying++
          most = Math.max(most, trying)
          yield* Effect.sleep(5)
          trying--
          return yield* Effect.fail(crashed)
        }), { capacity: 30, failureBackoff: Schedule.spaced(20), acquireTimeout: "1 hour" })
      const herd = users(300).map((identity) => identity.at("x"))
      const first = yield* fork(told(herd[0]!))
      yield* TestClock.adjust(5)
      yield* Fiber.join(first)
      most = 0
      for (let i = 0; i < 20; i++) {
        const callers = yield* Effect.forEach(herd, (identity) => fork(told(identity)))
        yield* TestClock.adjust(7)
        assert.deepStrictEqual(new Set(callers.map(ended)), new Set([true]))
      }
      assert.strictEqual(most, 1)
      assert.strictEqual((yield* pool.stats).failures, 6)
    }))

  it.effect(
    "keeps the many identities of three upstreams apart, of which one hangs and one crashes at start",
    () =>
      Effect.gen(function*() {
        const starts: Array<number> = []
        let now = 0
        const { pool, visit } = yield* open(({ upstream }) => {
          const name = Option.getOrThrow(upstream)
          if (name === "hung") return Effect.never
          if (name === "good") return Effect.sleep(5)
          starts.push(now)
          return Effect.andThen(Effect.sleep(5), Effect.fail(crashed))
        }, {
          capacity: 30,
          capacityPerUpstream: 10,
          failureBackoff: Schedule.exponential("1 second")
        })
        const everybody = users(many(15, 100))
        for (; now < 20_000; now += 1_000) {
          yield* Effect.forEach(
            ["hung", "crashing"],
            (name) => Effect.forEach(everybody, (identity) => fork(Effect.exit(visit(identity.at(name)))))
          )
          // Many of ten places: each has its session when its turn has come, as if there were no others
          const good = yield* Effect.forEach(everybody, (identity) => fork(visit(identity.at("good"))))
          yield* TestClock.adjust(50)
          assert.deepStrictEqual(new Set(good.map(outcome)), new Set(["success"]))
          yield* TestClock.adjust(950)
        }
        const { upstreams } = yield* pool.stats
        assert.deepStrictEqual(
          upstreams.map(({ sessions, upstream }) => [upstream, sessions]).toSorted(),
          [["good", 10], ["hung", 10]]
        )
        // Ten had begun when the first of them failed, and then it is 1, 2, 4 and 8 seconds
        assert.deepStrictEqual(starts.map((start) => start / 1_000), [
          ...Array.from({ length: 10 }, () => 0),
          2,
          5,
          10,
          19
        ])
      }),
    underLoad
  )
})
