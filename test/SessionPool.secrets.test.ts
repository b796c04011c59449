/**
 * 5. No secret escapes: whatever a pool writes, says or fails with has no credential in it, nor what could be turned
 *    back into one.
 */
import { assert, describe, it } from "@effect/vitest"
import { Credentials, Identity, IdentityResolver } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Buffer } from "node:buffer"
import { fork, settle } from "./support/fibers.ts"
import { lease, openPool, type PoolOptions, visit } from "./support/pool.ts"
import { makeUpstream, Refused } from "./support/upstream.ts"
import * as Witness from "./support/witness.ts"

const token = "sk-live-SECRET"

const forms = (secret: string): ReadonlyArray<string> => [
  secret,
  Buffer.from(secret).toString("base64").replace(/=+$/, ""),
  Buffer.from(secret).toString("base64url"),
  Buffer.from(secret).toString("hex")
]

const assertClean = (text: string, ...secrets: ReadonlyArray<string>): void => {
  for (const secret of ["SECRET", ...secrets]) {
    for (const form of forms(secret)) assert.notInclude(text, form)
  }
}

const resolved = (value: string) =>
  Effect.provide(
    IdentityResolver.resolve({ headers: { authorization: value } }),
    IdentityResolver.layer({ scheme: value.startsWith("Basic") ? "basic" : "bearer" })
  )

/** A pool and what is said and logged of it. The token is in none of it, so it is all written down. */
const watch = Effect.fnUntraced(function*(options: PoolOptions) {
  const witness = Witness.make()
  const scope = yield* Effect.scope
  const context = yield* Layer.buildWithScope(witness.layer, scope)
  const pool = yield* Effect.provideContext(openPool(options), context)
  yield* Effect.forkScoped(
    Stream.runForEach(pool.events, (event) =>
      Effect.sync(() => {
        witness.write(event)
        witness.write(JSON.stringify(event))
      })),
    { startImmediately: true }
  )
  yield* settle
  return { pool, witness }
})

const hostile = {
  "its text": token,
  "its header": `Bearer ${token}`,
  "its base64": Buffer.from(token).toString("base64"),
  "its base64url": Buffer.from(`Bearer ${token}`).toString("base64url"),
  "its percent-encoding": encodeURIComponent(`Bearer ${token}`)
}

describe("SessionPool secrets", () => {
  it.effect("do not escape in keys, stats, entries, events, logs, spans, metrics or errors", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({
        dial: ({ name }) =>
          name.endsWith("1") && name.startsWith("hang") ? Effect.never : Effect.withSpan(Effect.void, "dial"),
        handshake: ({ identity }) =>
          identity.key === "refused" ? Effect.fail(new Refused({ why: "401" })) : Effect.void,
        hangUp: ({ identity }) =>
          Effect.die(new Error(`DELETE failed: ${Redacted.value(Option.getOrThrow(identity.credentials).header)}`))
      })
      const { pool, witness } = yield* watch({
        connect: upstream.connect,
        capacity: 3,
        acquireTimeout: 0,
        idleTimeToLive: 1_000,
        checkAfter: 0,
        check: ({ identity }) => identity.key === "sick" ? Effect.fail(new Error(`ping ${token} failed`)) : Effect.void
      })
      const credentials = Credentials.bearer(token)
      const bearer = yield* resolved(`Bearer ${token}`)
      const basic = yield* resolved(`Basic ${Buffer.from(`alice:${token}`).toString("base64")}`)
      const named = (key: string) => Identity.fromKey(key, { credentials })

      const held = yield* lease(pool, bearer)
      yield* visit(pool, basic)
      yield* visit(pool, named("sick"))
      yield* visit(pool, named("sick"))
      witness.write([yield* pool.stats, yield* pool.entries])
      witness.write(JSON.stringify([yield* pool.stats, yield* pool.entries, held.session.identity, basic]))
      witness.write(held.session.identity)

      const refused = yield* Effect.flip(visit(pool, named("refused")))
      const hanging = yield* fork(visit(pool, named("hang")))
      yield* TestClock.adjust("30 seconds")
      const timeout = yield* Effect.flip(Fiber.join(hanging))
      yield* lease(pool, basic)
      yield* lease(pool, named("sick"))
      const exhausted = yield* Effect.flip(visit(pool, named("more")))
      yield* pool.close
      const closed = yield* Effect.flip(visit(pool, bearer))
      assert.deepStrictEqual(
        [refused, timeout, exhausted, closed].map(({ _tag }) => _tag),
        ["Refused", "ConnectTimeout", "PoolExhausted", "PoolClosed"]
      )
      for (const error of [refused, timeout, exhausted, closed]) {
        witness.writeError(error)
      }
      yield* settle
      const text = yield* witness.everything
      assert.include(text, "finalizer failed", "what a close fails with is logged")
      assert.include(text, "CloseFailed")
      assert.include(text, "dial")
      assertClean(text, token, `Bearer ${token}`, `alice:${token}`)
    }))

  for (const [how, text] of Object.entries(hostile)) {
    it.effect(`do not escape in the log of a finalizer whose defect has ${how}`, () =>
      Effect.gen(function*() {
        const upstream = makeUpstream({ hangUp: () => Effect.die(new Error(`close: ${text}!`)) })
        const { pool, witness } = yield* watch({ connect: upstream.connect })
        yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer(token) }))
        yield* pool.invalidateWhere(() => true)
        yield* settle
        const everything = yield* witness.everything
        assert.include(everything, "finalizer failed")
        assert.notInclude(everything, text)
        assertClean(everything)
      }))
  }

  for (const text of ["alice:hunter2-SECRET", "hunter2-SECRET"]) {
    it.effect(`do not escape when they are a basic credential, and a finalizer's defect has it decoded: ${text}`, () =>
      Effect.gen(function*() {
        const upstream = makeUpstream({ hangUp: () => Effect.die(new Error(`close: ${text}!`)) })
        const { pool, witness } = yield* watch({ connect: upstream.connect })
        yield* visit(pool, yield* resolved(`Basic ${Buffer.from("alice:hunter2-SECRET").toString("base64")}`))
        yield* pool.invalidateWhere(() => true)
        yield* settle
        assertClean(yield* witness.everything)
      }))
  }

  it.effect("do not escape when a finalizer dies with an object that has the token somewhere inside", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({
        hangUp: () =>
          Effect.die({ request: { headers: { authorization: `Bearer ${token}` } }, cause: new Error(token) })
      })
      const { pool, witness } = yield* watch({ connect: upstream.connect })
      yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer(token) }))
      yield* pool.invalidateWhere(() => true)
      yield* settle
      assertClean(yield* witness.everything)
    }))

  it.effect("do not escape when the token has been rotated since: the finalizer knows the old one", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({
        hangUp: ({ identity }) => Effect.die(new Error(Redacted.value(Option.getOrThrow(identity.credentials).token)))
      })
      const { pool, witness } = yield* watch({ connect: upstream.connect })
      yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer(token) }))
      yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer("another") }))
      yield* pool.invalidateWhere(() => true)
      yield* settle
      assertClean(yield* witness.everything)
    }))

  it.effect("do not escape when the token has been rotated twice", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({ hangUp: () => Effect.die(new Error(token)) })
      const { pool, witness } = yield* watch({ connect: upstream.connect })
      for (const each of ["first", token, "third"]) {
        yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer(each) }))
      }
      yield* pool.invalidateWhere(() => true)
      yield* settle
      assertClean(yield* witness.everything)
    }))

  it.effect("do not escape when what fails has been abandoned long ago", () =>
    Effect.gen(function*() {
      const late = Effect.andThen(Effect.sleep("1 hour"), Effect.die(new Error(token)))
      const upstream = makeUpstream({
        dial: ({ name }) => name === "open1" ? Effect.uninterruptible(late) : Effect.void,
        hangUp: () => late
      })
      const { pool, witness } = yield* watch({
        connect: upstream.connect,
        checkAfter: 0,
        check: () => Effect.uninterruptible(late)
      })
      const named = (key: string) => Identity.fromKey(key, { credentials: Credentials.bearer(token) })
      yield* visit(pool, named("close"))
      yield* pool.invalidateWhere(() => true)
      const opening = yield* fork(Effect.exit(visit(pool, named("open"))))
      yield* visit(pool, named("check"))
      const checking = yield* fork(Effect.exit(visit(pool, named("check"))))
      yield* TestClock.adjust("1 minute")
      for (const caller of [opening, checking]) witness.write(yield* Fiber.join(caller))
      yield* TestClock.adjust("3 hours")
      assertClean(yield* witness.everything)
    }))

  it.effect("do not escape in the log when a connect fails or dies with one: that is its callers' to see", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream({
        handshake: ({ name }) => name === "a1" ? Effect.fail(new Refused({ why: token })) : Effect.die(new Error(token))
      })
      const { pool, witness } = yield* watch({ connect: upstream.connect })
      const identity = Identity.fromKey("a", { credentials: Credentials.bearer(token) })
      for (let i = 0; i < 2; i++) assert.isTrue(Exit.isFailure(yield* Effect.exit(visit(pool, identity))))
      yield* settle
      witness.write([yield* pool.stats, yield* pool.entries])
      assertClean(yield* witness.everything)
    }))

  it.effect("do not escape into what a session's own key says: it is no digest that could be guessed back", () =>
    Effect.gen(function*() {
      const { pool, witness } = yield* watch({ connect: makeUpstream().connect })
      const first = yield* resolved(`Bearer ${token}`)
      yield* visit(pool, first)
      witness.write((yield* pool.stats).keys.join())
      assertClean(yield* witness.everything, token)
      assert.notStrictEqual(first.key, (yield* resolved(`Bearer ${token}x`)).key)
    }))

  it.effect("do not escape in stats and entries", () =>
    Effect.gen(function*() {
      const pool = yield* openPool({ connect: makeUpstream().connect })
      yield* visit(pool, Identity.fromKey("a", { credentials: Credentials.bearer("sk-live-SECRET") }))
      const seen = JSON.stringify([yield* pool.stats, yield* pool.entries])
      assert.notInclude(seen, "SECRET")
      assert.notInclude(seen, Buffer.from("sk-live-SECRET").toString("base64").slice(0, 16))
    }))
})
