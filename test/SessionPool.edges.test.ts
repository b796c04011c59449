import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import { Identity, IdentityResolver, InvalidOptions, SessionPool } from "effect-mcp-sessions"
import * as Sent from "../src/internal/sent.ts"

interface Session {
  readonly id: number
  readonly [Sent.TypeId]?: Sent.Sent
}

class Pool extends SessionPool.Tag<Pool, Session, string>()("test/Pool") {}

class ForCheck extends Context.Service<ForCheck, { readonly is: true }>()("test/ForCheck") {}

const alice = Identity.fromKey("alice")

const visit = Pool.withSession(alice, ({ id }) => Effect.succeed(id))

describe("SessionPool, where two things meet", () => {
  it.effect("a session that dies while it is checked is not handed out, although the check passes", () => {
    let opened = 0
    let died: Effect.Effect<void> = Effect.void
    return Effect.gen(function*() {
      yield* visit
      const visiting = yield* Effect.forkChild(visit, { startImmediately: true })
      yield* TestClock.adjust(10)
      yield* died
      yield* TestClock.adjust(50)
      assert.strictEqual(yield* Fiber.join(visiting), 2)
    }).pipe(Effect.provide(Pool.layer({
      connect: (_, handle) =>
        Effect.sync(() => {
          if (++opened === 1) died = handle.retire("died")
          return { id: opened }
        }),
      check: () => Effect.sleep(50),
      checkAfter: 0
    })))
  })

  it.effect("the failure of an open that was invalidated is not remembered", () => {
    const fail = Deferred.makeUnsafe<never, string>()
    let attempts = 0
    return Effect.gen(function*() {
      const visiting = yield* Effect.forkChild(Effect.flip(visit), { startImmediately: true })
      yield* TestClock.adjust(1)
      assert.isTrue(yield* Pool.invalidate(alice))
      yield* Deferred.fail(fail, "the old configuration")
      assert.strictEqual(yield* Fiber.join(visiting), "the old configuration")
      assert.strictEqual(yield* visit, 2)
    }).pipe(Effect.provide(Pool.layer({
      connect: () =>
        Effect.suspend((): Effect.Effect<Session, string> =>
          ++attempts === 1 ? Deferred.await(fail) : Effect.succeed({ id: attempts })
        ),
      failureTimeToLive: Duration.infinity
    })))
  })

  it.effect("a get that finds an unhealthy session, and one that is run again, is counted once", () => {
    let opened = 0
    return Effect.gen(function*() {
      yield* visit
      yield* visit
      const unhealthy = yield* Pool.stats
      assert.deepStrictEqual([unhealthy.hits, unhealthy.misses], [0, 2])
    }).pipe(Effect.provide(Pool.layer({
      connect: () => Effect.sync(() => ({ id: ++opened })),
      check: () => Effect.fail("unwell"),
      checkAfter: 0
    })))
  })

  it.effect("a session that its server has forgotten is a hit, also when its call is run again elsewhere", () => {
    let opened = 0
    const expired = { _tag: "McpSessionError", reason: { _tag: "SessionExpired" } } as const
    const sent = Sent.make()
    sent.expirations.add(expired)
    return Effect.gen(function*() {
      yield* visit
      const answer = yield* Pool.withSession(alice, ({ id }) => id === 1 ? Effect.fail(expired) : Effect.succeed(id))
      assert.strictEqual(answer, 2)
      const { hits, misses, retirements } = yield* Pool.stats
      assert.deepStrictEqual([hits, misses, retirements], [1, 1, 1])
    }).pipe(Effect.provide(Pool.layer({ connect: () => Effect.sync(() => ({ id: ++opened, [Sent.TypeId]: sent })) })))
  })

  it.effect("a connect that returns no Effect is a defect at once, and says so", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(visit)
      assert.isTrue(Exit.hasDies(exit))
      assert.include(String(exit), "connect must return an Effect")
    }).pipe(Effect.provide(Pool.layer({
      connect: (() => Promise.resolve({ id: 1 })) as unknown as () => Effect.Effect<Session, string>
    }))))

  it.effect("connect and check may need different services", () =>
    Effect.gen(function*() {
      yield* visit
      assert.strictEqual(yield* visit, 1)
    }).pipe(
      Effect.provide(
        Pool.layer({
          connect: () => Effect.succeed({ id: 1 }),
          check: () => ForCheck.use(() => Effect.void),
          checkAfter: 0
        }).pipe(Layer.provide(Layer.succeed(ForCheck, { is: true })))
      )
    ))
})

describe("IdentityResolver, where two things meet", () => {
  it.effect("a misspelt option is refused, and does not leave the door open", () =>
    Effect.gen(function*() {
      for (
        const [wrong, option] of [[{ mod: "required" }, "mod"], [{ auth: {} }, "auth"], [null, "options"]] as const
      ) {
        const options = wrong as unknown as Parameters<typeof IdentityResolver.layer>[0]
        const error = yield* Effect.flip(Effect.scoped(Layer.build(IdentityResolver.layer(options))))
        assert.instanceOf(error, InvalidOptions)
        assert.strictEqual(error.option, option)
      }
    }))

  it.effect("an identify that gives a header without its token, or a key made of the token, is refused", () =>
    Effect.gen(function*() {
      const token = "sk-live-SECRET"
      for (
        const identified of [
          { key: "alice", auth: { header: `Bearer ${token}` } },
          { key: Buffer.from(token).toString("base64"), auth: { token } },
          { key: `user-${Buffer.from(token).toString("base64url")}`, auth: { token } }
        ]
      ) {
        const error = yield* IdentityResolver.resolve({ headers: {} }).pipe(
          Effect.provide(IdentityResolver.layerIdentify(() => Effect.succeed(identified))),
          Effect.flip
        )
        assert.strictEqual(error._tag, "InvalidIdentity")
      }
    }))
})
