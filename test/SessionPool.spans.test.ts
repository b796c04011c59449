/**
 * The span of each open, and what its logs are annotated with.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity, SessionPool } from "effect-mcp-sessions"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as TestClock from "effect/testing/TestClock"
import { fork, settle } from "./support/fibers.ts"
import { attributesOf, exitOf, isFailed, makeRecorder, parentOf } from "./support/spans.ts"

class Pool extends SessionPool.Tag<Pool, string, Error>()("test/Pool") {}

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const visit = (identity: Identity) => Pool.withSession(identity, Effect.succeed)

/** Runs with a pool whose span is `pool`, and records the spans. */
const withPool = <A, E>(
  options: Parameters<typeof Pool.layer<never, never>>[0],
  f: (recorder: ReturnType<typeof makeRecorder>) => Effect.Effect<A, E, Pool>
) => {
  const recorder = makeRecorder()
  return Effect.withTracer(
    Effect.provide(f(recorder), Layer.withSpan(Pool.layer(options), "pool")),
    recorder.tracer
  )
}

const linksOf = ({ links }: ReturnType<ReturnType<typeof makeRecorder>["only"]>) =>
  links.map(({ span }) => span._tag === "Span" ? span.name : "external")

describe("SessionPool.connect", () => {
  it.effect("is a span of the pool for each open, linked to the request that asked; a hit has none", () =>
    withPool({ connect: (identity) => Effect.succeed(identity.key) }, ({ only, spans }) =>
      Effect.gen(function*() {
        yield* Effect.withSpan(visit(alice.at("weather")), "first request")
        yield* Effect.withSpan(visit(alice.at("weather")), "second request")
        const connect = only("SessionPool.connect")
        assert.strictEqual(parentOf(connect), only("pool"))
        assert.deepStrictEqual(linksOf(connect), ["first request"])
        assert.deepStrictEqual(attributesOf(connect), {
          pool: "test/Pool",
          upstream: "weather",
          key: alice.at("weather").key
        })
        assert.isFalse(isFailed(connect))
        assert.deepStrictEqual(spans.map(({ name }) => name).toSorted(), [
          "SessionPool.connect",
          "first request",
          "pool",
          "second request"
        ])
      })))

  it.effect("is linked to all who wait for it, up to 16, whether they joined or stood in line", () =>
    Effect.gen(function*() {
      const latch = yield* Deferred.make<void>()
      yield* withPool(
        {
          connect: ({ key }) => key === "alice" ? Effect.as(Deferred.await(latch), key) : Effect.succeed(key),
          capacity: 1
        },
        ({ named }) =>
          Effect.gen(function*() {
            for (let i = 0; i < 20; i++) yield* fork(Effect.withSpan(visit(alice), `request ${i}`))
            yield* fork(Effect.withSpan(visit(bob), "in line"))
            yield* settle
            const [connect] = named("SessionPool.connect")
            assert.deepStrictEqual(linksOf(connect!), Array.from({ length: 16 }, (_, i) => `request ${i}`))
            yield* Deferred.succeed(latch, undefined)
            yield* settle
            assert.deepStrictEqual(linksOf(named("SessionPool.connect")[1]!), ["in line"])
          })
      )
    }))

  it.effect("says what has failed by its name and place, and nothing of its text", () =>
    withPool(
      { connect: () => Effect.fail(new TypeError("token sk-live-SECRET refused")) },
      ({ only }) =>
        Effect.gen(function*() {
          yield* Effect.flip(visit(alice))
          const connect = only("SessionPool.connect")
          assert.strictEqual(connect.attributes.get("error.type"), "TypeError")
          const exit = exitOf(connect)
          assert.isTrue(exit !== undefined && Exit.isFailure(exit))
          if (exit === undefined || Exit.isSuccess(exit)) return
          assert.include(Cause.pretty(exit.cause), "TypeError")
          assert.notInclude(Cause.pretty(exit.cause), "SECRET")
        })
    ))

  it.effect("says that it took too long, and not that of an open which did not", () =>
    withPool({
      connect: ({ key }) => key === "alice" ? Effect.never : Effect.delay(Effect.succeed(key), "1 second"),
      connectTimeout: "5 seconds"
    }, ({ named }) =>
      Effect.gen(function*() {
        yield* fork(Effect.exit(visit(alice)))
        yield* fork(visit(bob))
        yield* TestClock.adjust("5 seconds")
        yield* settle
        const [first, second] = named("SessionPool.connect")
        assert.strictEqual(first!.attributes.get("error.type"), "timeout")
        assert.isTrue(isFailed(first!))
        assert.isFalse(second!.attributes.has("error.type"))
        assert.isFalse(isFailed(second!))
      })))

  it.effect("annotates the logs of connect and of what it leaves running", () =>
    Effect.gen(function*() {
      const logged: Array<unknown> = []
      const logger = Logger.make<unknown, void>(({ fiber, message }) => {
        logged.push([message, fiber.getRef(References.CurrentLogAnnotations)])
      })
      yield* withPool({
        connect: () =>
          Effect.gen(function*() {
            yield* Effect.log("dials")
            yield* Effect.forkScoped(Effect.delay(Effect.log("beats"), "1 minute"))
            yield* Effect.addFinalizer(() => Effect.die(new Error("does not close")))
            return "session"
          })
      }, () =>
        Effect.gen(function*() {
          yield* visit(alice.at("weather"))
          yield* TestClock.adjust("1 minute")
          yield* Pool.invalidate(alice.at("weather"))
          yield* settle
        })).pipe(Effect.provide(Logger.layer([logger])))
      const annotations = { pool: "test/Pool", upstream: "weather", key: alice.at("weather").key }
      assert.deepStrictEqual(logged.slice(0, 2), [[["dials"], annotations], [["beats"], annotations]])
      assert.deepInclude(logged[2] as ReadonlyArray<unknown>, annotations)
    }))
})
