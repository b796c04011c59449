import { assert, describe, it } from "@effect/vitest"
import { Identity } from "effect-mcp-sessions/Identity"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as TestClock from "effect/testing/TestClock"
import { build, fork, outcome, settle } from "./support/fibers.ts"
import { a, b, c, d, identities } from "./support/identities.ts"
import { lease, openPool, Pool, refusal, start, visit } from "./support/pool.ts"
import { makeUpstream, Refused } from "./support/upstream.ts"

class Installed extends Context.Service<Installed, { readonly packages: Array<string> }>()("test/Installed") {}

describe("SessionPool.prewarm", () => {
  it.effect("opens sessions that are hits from then on, and counts them", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start()
      assert.strictEqual(yield* pool.prewarm([a, b]), 2)
      assert.deepStrictEqual(upstream.opened, ["a1", "b1"])
      assert.strictEqual((yield* visit(pool, a)).name, "a1")
      const { hits, idle, misses } = yield* pool.stats
      assert.deepStrictEqual({ hits, misses, idle }, { hits: 1, misses: 2, idle: 2 })
      assert.strictEqual(yield* pool.prewarm([a, b]), 2)
      assert.strictEqual(upstream.connects, 2)
    }))

  it.effect("takes room that is free alone: nobody is evicted, and nobody waits", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ capacity: 2, acquireTimeout: "1 hour" })
      yield* visit(pool, a)
      assert.strictEqual(yield* pool.prewarm([a, b, c]), 2)
      assert.deepStrictEqual(upstream.closed, [])
      const held = [yield* lease(pool, a), yield* lease(pool, b)]
      const waiting = yield* fork(visit(pool, c))
      assert.strictEqual(yield* pool.prewarm([d]), 0)
      yield* held[0]!.release
      assert.strictEqual((yield* Fiber.join(waiting)).name, "c1")
    }))

  it.effect("gives its place to a caller who would have to wait, as many as are needed and those begun first", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({
        capacity: 3,
        upstream: { handshake: ({ identity }) => identity.key === d.key ? Effect.void : Effect.never }
      })
      const warming = yield* fork(pool.prewarm([a, b, c], { concurrency: 3 }))
      const held = yield* lease(pool, d)
      assert.deepStrictEqual(upstream.gone, ["a1"])
      assert.strictEqual((yield* pool.stats).opening, 2)
      yield* held.release
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual(yield* Fiber.join(warming), 0)
      assert.strictEqual((yield* pool.stats).failures, 2)
    }).pipe(Effect.provide(Logger.layer([]))))

  it.effect("that ignores its interruption holds up callers for no longer than closeTimeout, however many", () =>
    Effect.gen(function*() {
      const hung = [a, b, c]
      const e = Identity.fromKey("e")
      const { pool } = yield* start({
        capacity: 3,
        closeTimeout: "1 second",
        upstream: {
          dial: ({ identity }) => hung.includes(identity) ? Effect.uninterruptible(Effect.sleep("1 hour")) : Effect.void
        }
      })
      yield* fork(pool.prewarm(hung, { concurrency: 3 }))
      const callers = [yield* fork(lease(pool, d)), yield* fork(lease(pool, d)), yield* fork(lease(pool, e))]
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(callers.map(outcome), ["success", "success", "success"])
      assert.strictEqual((yield* pool.stats).opening, 1)
    }).pipe(Effect.provide(Logger.layer([]))))

  it.effect("gives its place to the next who comes where nobody waits", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacity: 1,
        acquireTimeout: 0,
        upstream: { dial: ({ identity }) => identity.key === b.key ? Effect.void : Effect.never }
      })
      const warming = yield* fork(pool.prewarm([a]))
      const first = yield* fork(visit(pool, b))
      yield* settle
      assert.strictEqual(outcome(first), "PoolExhausted")
      assert.strictEqual(yield* Fiber.join(warming), 0)
      assert.strictEqual((yield* visit(pool, b)).name, "b1")
    }))

  for (const leases of ["shared", "exclusive"] as const) {
    it.effect(`that a caller has joined is the caller's, until it has left (${leases})`, () =>
      Effect.gen(function*() {
        const { pool, upstream } = yield* start({
          capacity: 1,
          leases,
          acquireTimeout: "1 hour",
          connectTimeout: "1 hour",
          upstream: { dial: ({ identity }) => identity.key === b.key ? Effect.void : Effect.never }
        })
        yield* fork(pool.prewarm([a], { timeout: "1 hour" }))
        const joined = yield* fork(visit(pool, a))
        const waiting = yield* fork(visit(pool, b))
        yield* TestClock.adjust("10 minutes")
        assert.deepStrictEqual([joined, waiting].map(outcome), ["waiting", "waiting"])
        assert.strictEqual(upstream.connects, 1)
        yield* Fiber.interrupt(joined)
        assert.strictEqual((yield* Fiber.join(waiting)).name, "b1")
      }))
  }

  it.effect("gives no place to a caller who could not use it", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({
        capacity: 3,
        capacityPerUpstream: 1,
        upstream: { dial: ({ identity }) => /a$|c$/.test(identity.key) ? Effect.never : Effect.void }
      })
      yield* fork(pool.prewarm([a.at("x"), c.at("y")]))
      yield* visit(pool, b.at("z"))
      const held = yield* lease(pool, b.at("z"))
      assert.strictEqual((yield* visit(pool, b.at("y"))).name, "~y/b1")
      assert.strictEqual((yield* pool.stats).opening, 1)
      yield* held.release
    }))

  it.effect("takes no more of an upstream than it may have, and leaves nothing of it behind", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ capacityPerUpstream: (name) => name === "x" ? 1 : 5 })
      assert.strictEqual(yield* pool.prewarm([a, b, c].map((identity) => identity.at("x"))), 1)
      assert.strictEqual(yield* pool.prewarm([a, b].map((identity) => identity.at("y"))), 2)
      yield* pool.invalidateWhere(() => true)
      yield* settle
      assert.deepStrictEqual((yield* pool.stats).upstreams, [])
    }))

  it.effect("opens two at a time, or as many as concurrency says", () =>
    Effect.gen(function*() {
      for (const [concurrency, expected] of [[undefined, 2], [4, 4]] as const) {
        let opening = 0
        let most = 0
        const { pool } = yield* start({
          upstream: {
            dial: () =>
              Effect.andThen(
                Effect.sync(() => void (most = Math.max(most, ++opening))),
                Effect.ensuring(Effect.sleep(10), Effect.sync(() => opening--))
              )
          }
        })
        const warming = yield* fork(pool.prewarm(identities(8), { concurrency }))
        yield* TestClock.adjust(100)
        assert.strictEqual(yield* Fiber.join(warming), 8)
        assert.strictEqual(most, expected)
      }
    }))

  it.effect("takes its time, and a caller who joins it does not", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({
        connectTimeout: "1 second",
        upstream: { dial: () => Effect.sleep("2 minutes") }
      })
      const warming = yield* fork(pool.prewarm([a]))
      yield* TestClock.adjust("1 minute")
      const caller = yield* fork(visit(pool, a))
      yield* TestClock.adjust("999 millis")
      assert.strictEqual(outcome(caller), "waiting")
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(outcome(caller), "ConnectTimeout")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* Fiber.join(warming), 1)
      assert.strictEqual(upstream.connects, 1)
      assert.strictEqual((yield* visit(pool, a)).name, "a1")
    }))

  it.effect("gives an open up after its timeout, 5 minutes by default", () =>
    Effect.gen(function*() {
      const { pool } = yield* start({ upstream: { dial: ({ name }) => name === "a1" ? Effect.never : Effect.void } })
      const warming = yield* fork(pool.prewarm([a, b]))
      yield* TestClock.adjust("299 seconds")
      assert.strictEqual((yield* pool.stats).opening, 1)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(warming), 1)
      assert.strictEqual((yield* pool.stats).failures, 1)
    }).pipe(Effect.provide(Logger.layer([]))))

  it.effect("logs what fails, without its text, and goes on", () => {
    const lines: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel} ${String(message)}`))
    return Effect.gen(function*() {
      const { pool } = yield* start({
        upstream: {
          dial: ({ name }) => name === "a1" ? Effect.fail(new Refused({ why: "sk-live-SECRET" })) : Effect.void
        }
      })
      assert.strictEqual(yield* pool.prewarm([a, b]), 1)
      assert.strictEqual(lines.length, 1)
      assert.match(lines[0]!, /^Warn A session could not be opened ahead,Refused/)
      assert.notInclude(lines[0]!, "SECRET")
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.effect("leaves nothing when it is interrupted", () =>
    Effect.gen(function*() {
      const { pool, upstream } = yield* start({ upstream: { handshake: () => Effect.never } })
      const warming = yield* fork(pool.prewarm([a, b]))
      yield* Fiber.interrupt(warming)
      assert.sameMembers(upstream.gone, ["a1", "b1"])
      assert.strictEqual((yield* pool.stats).opening, 0)
    }))

  it.effect("dies of options that have no meaning", () =>
    Effect.gen(function*() {
      const { pool } = yield* start()
      for (const [option, value] of [["concurrency", 0], ["timeout", 0], ["timeout", Infinity], ["at", 1]] as const) {
        const exit = yield* Effect.exit(pool.prewarm([a], { [option]: value }))
        const defect = Exit.isFailure(exit) && exit.cause.reasons[0]?._tag === "Die" && exit.cause.reasons[0].defect
        assert.instanceOf(defect, InvalidOptions)
        assert.strictEqual((defect as InvalidOptions).option, option)
      }
    }))
})

describe("the option prewarm", () => {
  it.effect("runs beside the pool, which does not wait for it", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const install = yield* Deferred.make<void>()
      const packages: Array<string> = []
      const { context } = yield* build(
        Pool.layer({
          connect: upstream.connect,
          prewarm: Effect.gen(function*() {
            yield* Deferred.await(install)
            ;(yield* Installed).packages.push("server")
            return yield* Pool.prewarm([a, b])
          })
        }).pipe(Layer.provide(Layer.succeed(Installed, { packages })))
      )
      const pool = Context.get(context, Pool)
      assert.strictEqual((yield* visit(pool, c)).name, "c1")
      yield* Deferred.succeed(install, undefined)
      yield* settle
      assert.deepStrictEqual(packages, ["server"])
      assert.deepStrictEqual(upstream.opened, ["c1", "a1", "b1"])
    }))

  it.effect("that fails is logged without its text, and the pool works", () => {
    const lines: Array<string> = []
    const logger = Logger.make(({ message }) => void lines.push(String(message)))
    return Effect.gen(function*() {
      const pool = yield* openPool({
        connect: makeUpstream().connect,
        prewarm: Effect.die(new TypeError("no network for sk-live-SECRET"))
      })
      yield* settle
      assert.strictEqual(lines.length, 1)
      assert.match(lines[0]!, /^The prewarm failed,TypeError/)
      assert.notInclude(lines[0]!, "SECRET")
      assert.strictEqual((yield* visit(pool, a)).name, "a1")
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.effect("is interrupted by the end of the pool", () =>
    Effect.gen(function*() {
      let isOver = false
      const pool = yield* openPool({
        connect: makeUpstream().connect,
        prewarm: Effect.ensuring(Effect.never, Effect.sync(() => void (isOver = true)))
      })
      yield* settle
      yield* pool.close
      assert.isTrue(isOver)
    }))

  it.effect("that has no meaning is refused by the layer", () =>
    Effect.gen(function*() {
      const { connect } = makeUpstream()
      for (const prewarm of [null, [a], () => Effect.void, "npx"]) {
        const error = yield* refusal({ connect, prewarm })
        assert(error !== "accepted")
        assert.strictEqual(error.option, "prewarm")
      }
    }))
})
