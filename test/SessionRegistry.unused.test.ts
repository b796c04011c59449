import { assert, describe, it } from "@effect/vitest"
import { Identity, RegistryFull, type SessionOwner } from "effect-mcp-sessions"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as SessionRegistry from "effect-mcp-sessions/SessionRegistry"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { textOf } from "./support/answers.ts"
import { fork, outcome, settle } from "./support/fibers.ts"
import { many, underLoad } from "./support/load.ts"
import { makeLog, makeServer, web } from "./support/mcpHttp.ts"
import { alice, bob, hold, makeBackend, record, type RegistryService, start, touch, used } from "./support/registry.ts"
import { begin, call, initialize, post } from "./support/requests.ts"

const carol = Identity.fromKey("carol")

const exists = (registry: RegistryService, id: string, owner: SessionOwner) =>
  Effect.match(registry.peek(id, owner), { onFailure: () => false, onSuccess: () => true })

describe("a session that was never used", () => {
  it.effect("is kept for unusedTimeToLive, by default 1 minute, however long idleTimeToLive is", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start({ idleTimeToLive: Duration.infinity })
      yield* registry.create(alice)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* registry.size, 1)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* registry.size, 0)
      assert.deepStrictEqual(backend.closed, ["alice1"])
      assert.strictEqual((yield* registry.stats).expirations, 1)
    }))

  it.effect("is kept for as long as unusedTimeToLive says", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start({ unusedTimeToLive: "5 minutes" })
      yield* registry.create(alice)
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(backend.closed, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(backend.closed, ["alice1"])
    }))

  it.effect("is not kept longer than one that was used", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start({ idleTimeToLive: 100 })
      yield* registry.create(alice)
      yield* TestClock.adjust(101)
      assert.deepStrictEqual(backend.closed, ["alice1"])
    }))

  it.effect("is one that was used from its first get on, and not from being looked at", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start()
      const one = yield* registry.create(alice)
      const other = yield* registry.create(alice)
      yield* TestClock.adjust("1 minute")
      yield* registry.peek(one.id, alice)
      yield* touch(registry, other.id, alice)
      yield* TestClock.adjust("30 minutes")
      assert.deepStrictEqual(backend.closed, ["alice1"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(backend.closed, ["alice1", "alice2"])
    }))

  it.effect("expires on time also when it comes after one that is kept for longer", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start()
      yield* used(registry, alice)
      yield* TestClock.adjust("29 minutes")
      yield* registry.create(bob)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(backend.closed, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "bob1"])
    }))

  it.effect("gives way to a newcomer when the registry is full, the oldest first", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start({ capacity: 2 })
      const { lines } = yield* record(registry)
      const first = yield* registry.create(alice)
      const second = yield* registry.create(bob)
      const third = yield* registry.create(carol)
      assert.isFalse(yield* exists(registry, first.id, alice))
      assert.isTrue(yield* exists(registry, second.id, bob))
      assert.isTrue(yield* exists(registry, third.id, carol))
      yield* settle
      assert.deepStrictEqual(backend.closed, ["alice1"])
      assert.deepInclude(yield* registry.stats, { evictions: 1, refusals: 0, expirations: 0, size: 2 })
      assert.includeMembers(lines, ["Ended alice: evicted", "Closed alice: evicted"])
    }))

  it.effect("is the only one that gives way: the registry is full of those that were used", () =>
    Effect.gen(function*() {
      const { registry } = yield* start({ capacity: 2 })
      const old = yield* used(registry, alice)
      yield* TestClock.adjust("20 minutes")
      const unused = yield* registry.create(alice)
      const newcomer = yield* used(registry, bob)
      assert.isFalse(yield* exists(registry, unused.id, alice))
      assert.deepInclude(
        yield* Effect.flip(registry.create(carol)),
        new RegistryFull({ scope: "registry", capacity: 2 })
      )
      assert.isTrue(yield* exists(registry, old, alice))
      assert.isTrue(yield* exists(registry, newcomer, bob))
      assert.deepInclude(yield* registry.stats, { evictions: 1, refusals: 1 })
    }))

  it.effect("of the same owner gives way when the owner's share is full, and nobody else's", () =>
    Effect.gen(function*() {
      const { registry } = yield* start({ capacityPerOwner: 2 })
      const other = yield* registry.create(bob)
      const first = yield* registry.create(alice)
      const second = yield* used(registry, alice)
      const third = yield* used(registry, alice)
      assert.isFalse(yield* exists(registry, first.id, alice))
      const refused = yield* Effect.flip(registry.create(alice))
      assert.deepInclude(refused, new RegistryFull({ scope: "owner", capacity: 2 }))
      assert.isTrue(yield* exists(registry, other.id, bob))
      assert.isTrue(yield* exists(registry, second, alice))
      assert.isTrue(yield* exists(registry, third, alice))
    }))

  it.effect("does not give way while its creator holds it", () =>
    Effect.gen(function*() {
      const backend = makeBackend()
      const registry = yield* SessionRegistry.make({ open: backend.open, capacity: 1 }, "layer")
      const scope = yield* Scope.make()
      const held = yield* Scope.provide(registry.createHeld(alice), scope)
      assert.strictEqual((yield* Effect.flip(registry.create(bob)))._tag, "RegistryFull")
      yield* TestClock.adjust("10 minutes")
      assert.deepInclude(yield* registry.stats, { held: 1, idle: 0 })
      yield* Scope.close(scope, Exit.void)
      // It was not used by that
      assert.isTrue(yield* exists(registry, held.id, alice))
      yield* registry.create(bob)
      assert.isFalse(yield* exists(registry, held.id, alice))
    }))

  it.effect("does not give way while as many are being closed as there may be", () =>
    Effect.gen(function*() {
      const { registry } = yield* start({ capacity: 1, backend: { close: () => Effect.never } })
      yield* registry.create(alice)
      const second = yield* registry.create(bob)
      assert.strictEqual((yield* Effect.flip(registry.create(carol)))._tag, "RegistryFull")
      assert.isTrue(yield* exists(registry, second.id, bob))
      yield* TestClock.adjust("10 seconds")
      yield* registry.create(carol)
      assert.deepInclude(yield* registry.stats, { evictions: 2, closing: 1, size: 1 })
    }))

  it.effect(
    "does not keep room from real users, also when there are thousands of strangers",
    () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacity: 100 })
        const strangers = many(800, 12_000)
        const user = yield* used(registry, alice)
        for (let stranger = 0; stranger < strangers; stranger++) {
          yield* registry.create(Identity.fromKey(`stranger:${stranger}`))
        }
        yield* settle
        const newcomer = yield* used(registry, bob)
        assert.isTrue(yield* exists(registry, user, alice))
        assert.isTrue(yield* exists(registry, newcomer, bob))
        assert.deepInclude(yield* registry.stats, { size: 100, refusals: 0 })
        yield* TestClock.adjust("2 minutes")
        assert.deepInclude(yield* registry.stats, { size: 2, owners: 2 })
      }),
    underLoad
  )
})

describe("capacityPerOwner", () => {
  it.effect("is a hundredth of capacity by default, and at least 10", () =>
    Effect.gen(function*() {
      for (const [capacity, share] of [[10_000, 100], [1_000, 10], [950, 10], [5, 10], [12_345, 124]] as const) {
        const { registry } = yield* start({ capacity })
        assert.strictEqual((yield* registry.stats).capacityPerOwner, share)
      }
      const { registry } = yield* start({ capacity: 100 })
      for (let i = 0; i < 10; i++) yield* used(registry, alice)
      assert.deepInclude(yield* Effect.flip(registry.create(alice)), { scope: "owner", capacity: 10 })
      yield* registry.create(bob)
    }))

  it.effect("is no limit for the shared identity, which is everybody", () =>
    Effect.gen(function*() {
      const { registry } = yield* start({ capacity: 30, capacityPerOwner: 2 })
      for (let i = 0; i < 30; i++) yield* used(registry, Identity.shared())
      assert.deepInclude(yield* Effect.flip(registry.create(Identity.shared())), { scope: "registry", capacity: 30 })
    }))
})

describe("createHeld", () => {
  const make = Effect.fnUntraced(function*(close: Effect.Effect<void> = Effect.void) {
    const backend = makeBackend({ close: () => close })
    const registry = yield* SessionRegistry.make({ open: backend.open }, "layer")
    return { backend, registry }
  })

  it.effect("holds the session for its scope, and its unused time counts from then", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* make()
      yield* Effect.scoped(Effect.gen(function*() {
        const { id } = yield* registry.createHeld(alice)
        yield* TestClock.adjust("1 hour")
        assert.strictEqual((yield* registry.entries)[0]?.holders, 1)
        assert.strictEqual((yield* registry.peek(id, alice)).id, id)
      }))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(backend.closed, [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(backend.closed, ["alice1"])
    }))

  it.effect("leaves a session that was used meanwhile to idleTimeToLive", () =>
    Effect.gen(function*() {
      const { registry } = yield* make()
      yield* Effect.scoped(Effect.gen(function*() {
        const { id } = yield* registry.createHeld(alice)
        yield* touch(registry, id, alice)
      }))
      yield* TestClock.adjust("30 minutes")
      assert.strictEqual(yield* registry.size, 1)
    }))

  it.effect("interrupted while it opens, leaves nothing behind", () =>
    Effect.gen(function*() {
      const backend = makeBackend({ after: () => Effect.never })
      const registry = yield* SessionRegistry.make({ open: backend.open }, "layer")
      const creating = yield* fork(Effect.scoped(registry.createHeld(alice)))
      yield* settle
      assert.strictEqual(outcome(creating), "waiting")
      creating.interruptUnsafe()
      yield* settle
      assert.deepStrictEqual(backend.closed, ["alice1"])
      assert.deepInclude(yield* registry.stats, { opening: 0, owners: 0 })
    }))

  it.effect("of a session that is terminated meanwhile is told of it", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* make()
      yield* Effect.scoped(Effect.gen(function*() {
        const session = yield* registry.createHeld(alice)
        const ended = yield* fork(session.ended)
        yield* registry.terminate(session.id, alice)
        yield* settle
        assert.strictEqual(outcome(ended), "success")
      }))
      assert.deepStrictEqual(backend.closed, ["alice1"])
    }))
})

describe("stats", () => {
  it.effect("count the ids that were asked for in vain, whatever the reason", () =>
    Effect.gen(function*() {
      const { registry } = yield* start()
      const { id } = yield* registry.create(alice)
      yield* hold(registry, id, alice)
      assert.strictEqual((yield* registry.stats).notFound, 0)
      yield* Effect.flip(touch(registry, id, bob))
      yield* Effect.flip(registry.peek(id, bob))
      yield* Effect.flip(registry.terminate("nonsense", bob))
      yield* registry.terminate(id, alice)
      yield* Effect.flip(touch(registry, id, alice))
      assert.strictEqual((yield* registry.stats).notFound, 4)
    }))
})

describe("McpHttp", () => {
  it.effect("does not count initialize as a use: strangers who never come back give way", () =>
    Effect.gen(function*() {
      const endpoint = yield* web(McpHttp.layer({ server: makeServer(makeLog()), capacity: 2 }))
      const echo = call("echo", { message: "hello" })
      const session = yield* begin(endpoint, "user")
      yield* Effect.flatMap(post(endpoint, echo, { as: "user", session }), textOf)
      for (let i = 0; i < 5; i++) yield* begin(endpoint, `stranger-${i}`)
      assert.deepInclude(yield* endpoint.registry.stats, { size: 2, evictions: 4, refusals: 0 })
      assert.strictEqual((yield* post(endpoint, echo, { as: "user", session })).status, 200)
    }))

  it.effect("limits an owner, and not everybody who has no identity", () =>
    Effect.gen(function*() {
      const endpoint = yield* web(McpHttp.layer({ server: makeServer(makeLog()), capacityPerOwner: 1 }))
      const open = Effect.fnUntraced(function*(as?: string) {
        const response = yield* post(endpoint, initialize, { as })
        yield* textOf(response)
        const session = response.headers.get("mcp-session-id") ?? undefined
        if (session !== undefined) {
          yield* Effect.flatMap(post(endpoint, call("whoami"), { as, session }), textOf)
        }
        return response.status
      })
      assert.deepStrictEqual([yield* open("user"), yield* open("user")], [200, 503])
      assert.deepStrictEqual([yield* open(), yield* open(), yield* open()], [200, 200, 200])
    }))
})
