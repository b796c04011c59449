import { assert, describe, it } from "@effect/vitest"
import { Credentials, Identity, type SessionInfo, SessionRegistry } from "effect-mcp-sessions"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { operatorOf } from "effect-mcp-sessions/SessionRegistry"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import { inspect } from "node:util"
import { fork, outcome, settle } from "./support/fibers.ts"
import { many, underLoad } from "./support/load.ts"
import { makeLog, makeServer, web } from "./support/mcpHttp.ts"
import {
  alice,
  bob,
  hold,
  makeBackend,
  openRegistry,
  record,
  Refused,
  type RegistryService,
  start,
  touch,
  used
} from "./support/registry.ts"
import { makeWall } from "./support/wall.ts"

/** Whether the caller can still use the session. */
const has = (registry: RegistryService, id: string, owner = alice) =>
  Effect.match(registry.peek(id, owner), { onFailure: () => false, onSuccess: () => true })

describe("SessionRegistry", () => {
  it.effect("the default tag's statics work on the registry in context", () =>
    Effect.gen(function*() {
      const events = yield* fork(Stream.runCollect(Stream.take(SessionRegistry.events, 2)))
      yield* settle
      const { id } = yield* SessionRegistry.create(alice, { clientId: "ide" })
      const session = yield* Effect.scoped(SessionRegistry.get(id, alice))
      assert.strictEqual(session.resource, "resource of alice")
      assert.strictEqual((yield* SessionRegistry.peek(id, alice)).clientId, "ide")
      assert.strictEqual(yield* SessionRegistry.size, 1)
      assert.strictEqual((yield* SessionRegistry.entries)[0]?.id, id)
      yield* SessionRegistry.terminate(id, alice)
      assert.strictEqual((yield* SessionRegistry.stats).terminations, 1)
      assert.deepStrictEqual((yield* Fiber.join(events)).map(({ _tag }) => _tag), ["Created", "Ended"])
      yield* SessionRegistry.create(alice)
      yield* SessionRegistry.create(bob)
      assert.strictEqual(yield* SessionRegistry.terminateAll(alice), 1)
      assert.strictEqual(yield* SessionRegistry.clear, 1)
    }).pipe(Effect.provide(SessionRegistry.layer({ open: (info) => Effect.succeed(`resource of ${info.owner}`) }))))

  describe("an operator's view", () => {
    it.effect("lists, counts and ends sessions, and has neither create nor get", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const view = operatorOf(registry)
        const { id } = yield* registry.create(alice)
        yield* registry.create(bob)
        assert.strictEqual(yield* view.size, 2)
        assert.deepStrictEqual(yield* view.stats, yield* registry.stats)
        assert.deepStrictEqual(yield* view.entries, yield* registry.entries)
        assert.strictEqual((yield* view.peek(id, alice)).id, id)
        yield* view.terminate(id, alice)
        assert.strictEqual(yield* view.terminateAll(bob), 1)
        assert.strictEqual(yield* view.clear, 0)
        assert.strictEqual(yield* registry.size, 0)
        assert.doesNotHaveAnyKeys(view, ["create", "get"])
      }))

    it.effect("is what McpHttp provides under the default tag", () =>
      Effect.gen(function*() {
        const { registry } = yield* web(McpHttp.layer({ server: makeServer(makeLog()) }))
        assert.strictEqual(yield* Effect.provideService(SessionRegistry.size, SessionRegistry, registry), 0)
        assert.doesNotHaveAnyKeys(registry, ["create", "get"])
      }))

    it.effect("has a tag of its own where an application has several", () =>
      Effect.gen(function*() {
        class Public extends SessionRegistry.Operator<Public>()("test/Public") {}
        class Internal extends SessionRegistry.Operator<Internal>()("test/Internal") {}
        const { registry: one } = yield* start()
        const { registry: other } = yield* start()
        yield* one.create(alice)
        yield* settle
        const events = yield* fork(
          Stream.runCollect(Stream.take(Public.events, 1)).pipe(
            Effect.provideService(Public, operatorOf(one))
          )
        )
        yield* settle
        const counted = Effect.gen(function*() {
          assert.strictEqual(yield* Public.clear, 1)
          return [yield* Public.size, (yield* Public.stats).terminations, yield* Internal.size]
        })
        const views = Context.make(Public, operatorOf(one)).pipe(Context.add(Internal, operatorOf(other)))
        assert.deepStrictEqual(yield* Effect.provideContext(counted, views), [0, 1, 0])
        assert.deepStrictEqual((yield* Fiber.join(events)).map(({ _tag }) => _tag), ["Ended"])
      }))

    it("does not type-check with create or get", () => {
      const hosted = Layer.succeed(SessionRegistry, {} as SessionRegistry["Service"])
      const provide = <A, E>(effect: Effect.Effect<A, E, SessionRegistry | Scope.Scope>) =>
        Effect.provide(effect, hosted)
      provide(SessionRegistry.size)
      // @ts-expect-error Sessions of McpHttp begin with a request
      provide(SessionRegistry.create(alice))
      // @ts-expect-error What belongs to them is its own affair
      provide(SessionRegistry.get("id", alice))
      // @ts-expect-error Nor has the service one
      void Effect.map(SessionRegistry, (registry) => registry.create(alice))
    })
  })

  describe("create", () => {
    it.effect("opens the resource and answers with a session that is usable at once", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        yield* TestClock.adjust(1_000)
        const session = yield* registry.create(alice, { clientId: "ide", tenantId: "acme" })
        assert.strictEqual(session.resource, backend.resources[0])
        assert.isTrue(session.resource.isOpen)
        assert.strictEqual(session.owner, "alice")
        assert.strictEqual(session.clientId, "ide")
        assert.strictEqual(session.tenantId, "acme")
        assert.strictEqual(session.createdAt, 1_000)
        assert.strictEqual(session.lastActivityAt, 1_000)
        assert.isTrue(yield* has(registry, session.id))
      }))

    it.effect("gives `open` the info of the session, and nobody else before it is open", () =>
      Effect.gen(function*() {
        const ready = yield* Deferred.make<void>()
        const seen: Array<SessionInfo> = []
        const { registry } = yield* start({
          backend: { before: ({ info }) => Effect.andThen(Effect.sync(() => seen.push(info)), Deferred.await(ready)) }
        })
        const creating = yield* fork(registry.create(alice))
        yield* settle
        assert.isFalse(yield* has(registry, seen[0]!.id))
        assert.strictEqual((yield* Effect.flip(touch(registry, seen[0]!.id, alice)))._tag, "SessionNotFound")
        assert.strictEqual((yield* Effect.flip(registry.terminate(seen[0]!.id, alice)))._tag, "SessionNotFound")
        assert.strictEqual(yield* registry.size, 0)
        assert.deepStrictEqual(yield* registry.entries, [])
        assert.strictEqual((yield* registry.stats).opening, 1)
        yield* Deferred.succeed(ready, undefined)
        assert.strictEqual((yield* Fiber.join(creating)).id, seen[0]!.id)
      }))

    it.effect(
      "mints ids of visible ASCII that are never the same and have nothing of a counter",
      () =>
        Effect.gen(function*() {
          const minted = many(500, 2_000)
          const { registry } = yield* start()
          const ids = yield* Effect.forEach(
            Array.from({ length: minted }),
            () => Effect.map(registry.create(alice), (s) => s.id)
          )
          for (const id of ids) assert.match(id, /^[A-Za-z0-9_-]{32}$/)
          assert.strictEqual(new Set(ids).size, minted)
          // Of so few random ids no two agree in the first ten characters, or the last
          assert.strictEqual(new Set(ids.map((id) => id.slice(0, 10))).size, minted)
          assert.strictEqual(new Set(ids.map((id) => id.slice(-10))).size, minted)
        }),
      underLoad
    )

    it.effect("opens with the services and the scope of the registry, not of the request", () =>
      Effect.gen(function*() {
        class Who extends Context.Service<Who, string>()("test/Who") {}
        class Mine extends SessionRegistry.Tag<Mine, string>()("test/Mine") {}
        const closed: Array<string> = []
        const layer = Mine.layer({
          open: () => Effect.tap(Who, (who) => Effect.addFinalizer(() => Effect.sync(() => void closed.push(who))))
        })
        yield* Effect.gen(function*() {
          const session = yield* Effect.scoped(Effect.provideService(Mine.create(alice), Who, "request"))
          assert.strictEqual(session.resource, "registry")
          assert.deepStrictEqual(closed, [])
        }).pipe(Effect.provide(layer), Effect.provideService(Who, "registry"))
        assert.deepStrictEqual(closed, ["registry"])
      }))

    it.effect("passes the error of `open` on and leaves nothing behind", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({
          backend: { after: ({ name }) => Effect.fail(new Refused({ why: name })) }
        })
        assert.deepStrictEqual(yield* Effect.flip(registry.create(alice)), new Refused({ why: "alice1" }))
        assert.deepStrictEqual(backend.closed, ["alice1"])
        const stats = yield* registry.stats
        assert.deepInclude(stats, { size: 0, opening: 0, draining: 0, closing: 0, owners: 0, created: 0, failures: 1 })
      }))

    it.effect("dies with what `open` throws", () =>
      Effect.gen(function*() {
        const bug = new Error("a bug")
        const registry = yield* openRegistry({
          open: () => {
            throw bug
          }
        })
        assert.deepStrictEqual(yield* Effect.exit(registry.create(alice)), Exit.die(bug))
        assert.strictEqual((yield* registry.stats).owners, 0)
      }))

    it.effect("interrupted while it opens, frees what it had acquired and takes no place", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ capacity: 1, backend: { after: () => Effect.never } })
        const creating = yield* fork(registry.create(alice))
        yield* settle
        assert.deepStrictEqual(backend.opened, ["alice1"])
        yield* Fiber.interrupt(creating)
        assert.deepStrictEqual(backend.closed, ["alice1"])
        assert.deepInclude(yield* registry.stats, { opening: 0, draining: 0, owners: 0, failures: 0 })
      }))

    it.effect("counts the idle time from its end", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({
          idleTimeToLive: 1_000,
          openTimeout: 60_000,
          backend: { before: () => Effect.sleep(5_000) }
        })
        const creating = yield* fork(registry.create(alice))
        yield* TestClock.adjust(5_000)
        const { createdAt, id, lastActivityAt } = yield* Fiber.join(creating)
        assert.strictEqual(createdAt, 0)
        assert.strictEqual(lastActivityAt, 5_000)
        yield* TestClock.adjust(1_000)
        assert.isTrue(yield* has(registry, id))
        yield* TestClock.adjust(1)
        assert.isFalse(yield* has(registry, id))
      }))

    it.effect("does not take the clientId or tenantId for anything but a name", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(alice, { clientId: "bob", tenantId: "bob" })
        assert.isFalse(yield* has(registry, id, bob))
        assert.notProperty(yield* registry.create(alice), "clientId")
      }))
  })

  describe("get", () => {
    it.effect("holds the session until the scope closes: idle time counts from then", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ idleTimeToLive: "1 minute" })
        const { id } = yield* registry.create(alice)
        const request = yield* hold(registry, id, alice)
        assert.strictEqual(request.session.resource, backend.resources[0])
        yield* TestClock.adjust("1 hour")
        assert.isTrue(request.session.resource.isOpen)
        assert.isTrue(yield* has(registry, id))
        yield* request.release
        yield* TestClock.adjust("1 minute")
        assert.isTrue(yield* has(registry, id))
        yield* TestClock.adjust(1)
        assert.isFalse(yield* has(registry, id))
        assert.deepStrictEqual(backend.closed, ["alice1"])
      }))

    it.effect("of two holders, the last to let go starts the idle time", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ idleTimeToLive: 100 })
        const { id } = yield* registry.create(alice)
        const call = yield* hold(registry, id, alice)
        const stream = yield* hold(registry, id, alice)
        assert.strictEqual((yield* registry.entries)[0]?.holders, 2)
        yield* stream.release
        yield* TestClock.adjust(1_000)
        assert.isTrue(yield* has(registry, id))
        yield* call.release
        yield* TestClock.adjust(101)
        assert.isFalse(yield* has(registry, id))
      }))

    it.effect("moves lastActivityAt, when it begins and when it ends", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(alice)
        yield* TestClock.adjust(10)
        const { release, session } = yield* hold(registry, id, alice)
        assert.strictEqual(session.lastActivityAt, 10)
        yield* TestClock.adjust(10)
        assert.strictEqual((yield* registry.peek(id, alice)).lastActivityAt, 10)
        yield* release
        assert.strictEqual((yield* registry.peek(id, alice)).lastActivityAt, 20)
        assert.strictEqual(session.lastActivityAt, 10)
      }))

    it.effect("compares keys and nothing else", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(Identity.fromKey("alice", { credentials: Credentials.bearer("one") }))
        for (const owner of [alice, Identity.shared("alice"), { key: alice.key }]) {
          assert.strictEqual((yield* touch(registry, id, owner)).id, id)
        }
        assert.isFalse(yield* has(registry, id, alice.at("weather")))
      }))

    it.effect("in a scope that is closed already holds nothing", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(alice)
        const scope = yield* Scope.make()
        yield* Scope.close(scope, Exit.void)
        yield* Effect.exit(Scope.provide(registry.get(id, alice), scope))
        assert.deepInclude(yield* registry.stats, { held: 0, idle: 1 })
      }))

    it.effect("interrupted, lets go", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(alice)
        const call = yield* fork(Effect.scoped(Effect.andThen(registry.get(id, alice), Effect.never)))
        assert.strictEqual((yield* registry.stats).held, 1)
        yield* Fiber.interrupt(call)
        assert.strictEqual((yield* registry.stats).held, 0)
      }))
  })

  describe("peek", () => {
    it.effect("is no activity", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ idleTimeToLive: 100 })
        const { id } = yield* registry.create(alice)
        yield* TestClock.adjust(100)
        assert.strictEqual((yield* registry.peek(id, alice)).lastActivityAt, 0)
        yield* TestClock.adjust(1)
        assert.isFalse(yield* has(registry, id))
      }))

    it.effect("answers with a snapshot that nobody can change and that does not change", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(alice, { tenantId: "acme" })
        const before = yield* registry.peek(id, alice)
        yield* TestClock.adjust(10)
        yield* touch(registry, id, alice)
        assert.deepStrictEqual(before, {
          id,
          owner: alice.key,
          createdAt: 0,
          lastActivityAt: 0,
          tenantId: "acme"
        })
        assert.isTrue(Object.isFrozen(before))
        assert.isTrue(Object.isFrozen((yield* registry.entries)[0]))
        assert.isTrue(Object.isFrozen(yield* touch(registry, id, alice)))
      }))
  })

  describe("terminate", () => {
    it.effect("ends an idle session for ever", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        const { id } = yield* registry.create(alice)
        yield* registry.terminate(id, alice)
        assert.isFalse(yield* has(registry, id))
        assert.strictEqual((yield* Effect.flip(touch(registry, id, alice)))._tag, "SessionNotFound")
        assert.strictEqual((yield* Effect.flip(registry.terminate(id, alice)))._tag, "SessionNotFound")
        yield* settle
        assert.deepStrictEqual(backend.closed, ["alice1"])
      }))

    it.effect("ends a held session at once, and tells its holders", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        const { id } = yield* registry.create(alice)
        const { release, session } = yield* hold(registry, id, alice)
        const call = yield* fork(Effect.race(Effect.never, session.ended))
        const stream = yield* fork(session.retired)
        yield* settle
        assert.strictEqual(outcome(call), "waiting")
        yield* registry.terminate(id, alice)
        yield* settle
        assert.strictEqual(yield* Fiber.join(call), "terminated")
        assert.strictEqual(yield* Fiber.join(stream), "terminated")
        assert.deepStrictEqual(backend.closed, ["alice1"])
        // And whoever asks later
        assert.strictEqual(yield* session.ended, "terminated")
        assert.strictEqual(yield* session.retired, "terminated")
        yield* release
        assert.deepStrictEqual(backend.closed, ["alice1"])
        assert.deepInclude(yield* registry.stats, { size: 0, held: 0, idle: 0, draining: 0, closing: 0, owners: 0 })
      }))

    it.effect("makes room for a newcomer at once, in the registry and in the owner's share", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({
          capacity: 1,
          capacityPerOwner: 1,
          backend: { close: () => Effect.sleep("5 seconds") }
        })
        const first = yield* registry.create(alice)
        yield* hold(registry, first.id, alice)
        yield* registry.terminate(first.id, alice)
        yield* registry.create(alice)
        assert.deepInclude(yield* registry.stats, { size: 1, closing: 1 })
      }))

    it.effect("does not wait for the close, and one that hangs is given up", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacity: 2, closeTimeout: 1_000, backend: { close: () => Effect.never } })
        const log = yield* record(registry)
        const { id } = yield* registry.create(alice)
        yield* registry.terminate(id, alice)
        yield* settle
        assert.strictEqual((yield* registry.stats).closing, 1)
        yield* TestClock.adjust(1_000)
        assert.deepInclude(yield* registry.stats, { closing: 0, closeFailures: 1 })
        assert.deepStrictEqual(log.lines, ["Created alice", "Ended alice: terminated", "CloseFailed alice: timeout"])
      }))

    it.effect("tells the holders at once also when all places to close in are taken", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({
          capacity: 1,
          closeTimeout: 1_000,
          backend: { close: ({ name }) => name === "alice1" ? Effect.never : Effect.void }
        })
        const first = yield* registry.create(alice)
        yield* registry.terminate(first.id, alice)
        const second = yield* registry.create(alice)
        const { session } = yield* hold(registry, second.id, alice)
        yield* registry.terminate(second.id, alice)
        assert.strictEqual(yield* session.ended, "terminated")
        assert.deepInclude(yield* registry.stats, { draining: 1, closing: 1 })
        assert.deepStrictEqual(backend.closed, ["alice1"])
        yield* TestClock.adjust(1_000)
        assert.deepStrictEqual(backend.closed, ["alice1", "alice2"])
        assert.deepInclude(yield* registry.stats, { draining: 0, closing: 0, owners: 0 })
      }))

    it.effect("fifty at once: one succeeds, and the resource is closed once", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        const { id } = yield* registry.create(alice)
        const exits = yield* Effect.forEach(
          Array.from({ length: 50 }),
          () => Effect.exit(Effect.andThen(Effect.yieldNow, registry.terminate(id, alice))),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
        yield* settle
        assert.deepStrictEqual(backend.closed, ["alice1"])
        assert.strictEqual((yield* registry.stats).terminations, 1)
      }))
  })

  describe("terminateAll", () => {
    it.effect("ends what the owner has, held or idle, and nobody else's", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        const first = yield* registry.create(alice)
        yield* registry.create(alice)
        const other = yield* registry.create(bob)
        const { session } = yield* hold(registry, first.id, alice)
        assert.strictEqual(yield* registry.terminateAll(alice), 2)
        assert.strictEqual(yield* session.ended, "terminated")
        yield* settle
        assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "alice2"])
        assert.isTrue(yield* has(registry, other.id, bob))
        assert.strictEqual(yield* registry.terminateAll(alice), 0)
      }))

    it.effect("ends those that are being opened: their creator gets a session that has ended", () =>
      Effect.gen(function*() {
        const ready = yield* Deferred.make<void>()
        const { backend, registry } = yield* start({ backend: { after: () => Deferred.await(ready) } })
        const creating = yield* fork(registry.create(alice))
        yield* settle
        assert.strictEqual(yield* registry.terminateAll(alice), 1)
        yield* Deferred.succeed(ready, undefined)
        const session = yield* Fiber.join(creating)
        yield* settle
        assert.strictEqual(yield* session.retired, "terminated")
        assert.strictEqual(yield* session.ended, "terminated")
        assert.isFalse(yield* has(registry, session.id))
        assert.deepStrictEqual(backend.closed, ["alice1"])
        assert.deepInclude(yield* registry.stats, { size: 0, owners: 0 })
      }))

    it.effect("ends those that are past their lifetime and still held, without counting them again", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ maxLifetime: "1 minute" })
        const { id } = yield* registry.create(alice)
        const { session } = yield* hold(registry, id, alice)
        yield* TestClock.adjust("1 minute")
        const call = yield* fork(session.ended)
        yield* settle
        assert.strictEqual(outcome(call), "waiting")
        assert.strictEqual(yield* registry.terminateAll(alice), 0)
        assert.strictEqual(yield* Fiber.join(call), "lifetime")
        yield* settle
        assert.deepStrictEqual(backend.closed, ["alice1"])
      }))
  })

  describe("clear", () => {
    it.effect("ends all sessions, closes what was opened for them, and the registry goes on", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        yield* registry.create(alice)
        const { id } = yield* registry.create(bob)
        yield* hold(registry, id, bob)
        assert.strictEqual(yield* registry.clear, 2)
        yield* settle
        assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "bob1"])
        assert.strictEqual(yield* registry.size, 0)
        const session = yield* registry.create(alice)
        assert.isTrue(yield* has(registry, session.id))
      }))
  })

  describe("what others' requests do", () => {
    it.effect("someone else's session, an expired, a terminated and one that never was are the very same error", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ idleTimeToLive: 100 })
        const expired = yield* registry.create(bob)
        yield* TestClock.adjust(101)
        const terminated = yield* registry.create(bob)
        yield* registry.terminate(terminated.id, bob)
        const others = yield* registry.create(alice)
        const never = "x".repeat(32)
        const requests = {
          get: (id: string) => touch(registry, id, bob),
          peek: (id: string) => registry.peek(id, bob),
          terminate: (id: string) => registry.terminate(id, bob)
        }
        for (const [method, request] of Object.entries(requests)) {
          const said = new Set<string>()
          for (const id of [expired.id, terminated.id, others.id, never, "", "short"]) {
            const error = yield* Effect.flip(request(id))
            assert.strictEqual(error.method, method)
            said.add(inspect({ ...error, message: error.message, name: error.name, json: JSON.stringify(error) }))
          }
          assert.strictEqual(said.size, 1, [...said].join("\n"))
        }
      }))

    it.effect("a refused request touches nothing", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ idleTimeToLive: 100 })
        const first = yield* registry.create(alice)
        const second = yield* registry.create(alice)
        const stream = yield* hold(registry, second.id, alice)
        yield* TestClock.adjust(50)
        const shown = Effect.gen(function*() {
          const { notFound: _, ...rest } = yield* registry.stats
          return [rest, yield* registry.entries]
        })
        const before = yield* shown
        for (const { id } of [first, second]) {
          yield* Effect.flip(touch(registry, id, bob))
          yield* Effect.flip(registry.peek(id, bob))
          yield* Effect.flip(registry.terminate(id, bob))
        }
        assert.strictEqual(yield* registry.terminateAll(bob), 0)
        assert.deepStrictEqual(yield* shown, before)
        assert.isTrue(stream.session.resource.isOpen)
        // Nor did it prolong the first one's life
        yield* TestClock.adjust(51)
        assert.deepStrictEqual(backend.closed, ["alice1"])
      }))

    it.effect("ids of any content and length find nothing and do no harm", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const { id } = yield* registry.create(alice)
        const hostile = [
          "",
          "__proto__",
          "constructor",
          "toString",
          "hasOwnProperty",
          `${id} `,
          ` ${id}`,
          `${id}\n`,
          `${id}\0`,
          id.toUpperCase() === id ? id.toLowerCase() : id.toUpperCase(),
          id.slice(0, -1),
          `${id},${id}`,
          "é".repeat(32),
          "\ud800".repeat(32),
          "x".repeat(15 * 1024),
          "x".repeat(10_000_000),
          ...Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte)),
          ...Array.from({ length: 256 }, (_, byte) => id.slice(0, -1) + String.fromCharCode(byte))
        ].filter((text) => text !== id)
        // What plain JavaScript may hand over
        const untyped = [undefined, null, 0, {}, [id], { toString: () => id }] as ReadonlyArray<unknown>
        for (const text of [...hostile, ...untyped] as ReadonlyArray<string>) {
          assert.strictEqual((yield* Effect.flip(touch(registry, text, alice)))._tag, "SessionNotFound")
          assert.strictEqual((yield* Effect.flip(registry.peek(text, alice)))._tag, "SessionNotFound")
          assert.strictEqual((yield* Effect.flip(registry.terminate(text, alice)))._tag, "SessionNotFound")
        }
        assert.isTrue(yield* has(registry, id))
      }))

    it.effect("owners may be called anything a key may be", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacityPerOwner: 1 })
        for (const key of ["__proto__", "constructor", "toString", "x".repeat(256)]) {
          const owner = Identity.fromKey(key)
          const id = yield* used(registry, owner)
          assert.isTrue(yield* has(registry, id, owner))
          assert.strictEqual((yield* Effect.flip(registry.create(owner)))._tag, "RegistryFull")
        }
      }))
  })

  describe("expiry", () => {
    it.effect("is at more than idleTimeToLive, not at it", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ idleTimeToLive: 100 })
        const { id } = yield* registry.create(alice)
        yield* TestClock.adjust(100)
        assert.isTrue(yield* has(registry, id))
        assert.strictEqual(yield* registry.size, 1)
        yield* TestClock.adjust(1)
        assert.isFalse(yield* has(registry, id))
        assert.deepStrictEqual(backend.closed, ["alice1"])
        assert.strictEqual((yield* registry.stats).expirations, 1)
      }))

    it.effect("against a touch at the last moment: the touch wins, one millisecond later it has lost", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ idleTimeToLive: 100 })
        const { id } = yield* registry.create(alice)
        yield* TestClock.adjust(100)
        yield* touch(registry, id, alice)
        yield* TestClock.adjust(100)
        assert.isTrue(yield* has(registry, id))
        yield* TestClock.adjust(1)
        assert.strictEqual((yield* Effect.flip(touch(registry, id, alice)))._tag, "SessionNotFound")
      }))

    it.effect("nothing brings an expired session back, also before the sweep has come by", () =>
      Effect.gen(function*() {
        // A clock that jumps without waking who sleeps: the sweep never comes
        let now = 0
        const clock = yield* Clock.Clock
        const jumping: Clock.Clock = { ...clock, monotonicTimeNanosUnsafe: () => BigInt(now) * 1_000_000n }
        const { backend, registry } = yield* start({ idleTimeToLive: 100 }).pipe(
          Effect.provideService(Clock.Clock, jumping)
        )
        const { id } = yield* registry.create(alice)
        const other = yield* registry.create(alice)
        now = 101
        assert.isFalse(yield* has(registry, id))
        assert.strictEqual((yield* Effect.flip(registry.terminate(id, alice)))._tag, "SessionNotFound")
        assert.strictEqual((yield* Effect.flip(touch(registry, other.id, alice)))._tag, "SessionNotFound")
        assert.deepStrictEqual(yield* registry.entries, [])
        assert.strictEqual((yield* Effect.flip(touch(registry, id, alice)))._tag, "SessionNotFound")
        now = 50
        assert.strictEqual((yield* Effect.flip(touch(registry, id, alice)))._tag, "SessionNotFound")
        yield* settle
        assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "alice2"])
      }))

    it.effect("a finalizer that throws stops neither the sweep nor anybody else", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({
          idleTimeToLive: 100,
          backend: { close: () => Effect.die(new Error("the finalizer throws")) }
        })
        const log = yield* record(registry)
        for (const owner of [alice, bob, alice]) yield* registry.create(owner)
        yield* TestClock.adjust(101)
        assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "alice2", "bob1"])
        assert.strictEqual((yield* registry.stats).closeFailures, 3)
        assert.strictEqual(log.lines.filter((said) => said.startsWith("CloseFailed")).length, 3)
      }))

    it.effect("thousands of abandoned sessions are all closed, on time", () =>
      Effect.gen(function*() {
        const abandoned = many(800, 10_000)
        const { backend, registry } = yield* start({ idleTimeToLive: "30 minutes" })
        for (let i = 0; i < abandoned; i++) yield* used(registry, Identity.fromKey(`owner-${i}`))
        assert.strictEqual(yield* registry.size, abandoned)
        yield* TestClock.adjust("30 minutes")
        assert.strictEqual(backend.closed.length, 0)
        yield* TestClock.adjust(1)
        assert.strictEqual(backend.closed.length, abandoned)
        assert.deepInclude(yield* registry.stats, { size: 0, closing: 0, owners: 0, expirations: abandoned })
      }), underLoad)
  })

  describe("lifetime", () => {
    it.effect("takes no request past maxLifetime, however busy the session is", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ idleTimeToLive: "1 minute", maxLifetime: "10 minutes" })
        const { id } = yield* registry.create(alice)
        for (let i = 0; i < 19; i++) {
          yield* TestClock.adjust("30 seconds")
          yield* touch(registry, id, alice)
        }
        yield* TestClock.adjust("30 seconds")
        assert.isFalse(yield* has(registry, id))
        assert.deepStrictEqual(backend.closed, ["alice1"])
        assert.strictEqual((yield* registry.stats).retirements, 1)
      }))

    it.effect("lets calls in flight end in peace, and tells streams to end", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ maxLifetime: "10 minutes", capacityPerOwner: 1 })
        const { id } = yield* registry.create(alice)
        const { release, session } = yield* hold(registry, id, alice)
        const call = yield* fork(session.ended)
        const stream = yield* fork(session.retired)
        yield* TestClock.adjust("10 minutes")
        assert.strictEqual(yield* Fiber.join(stream), "lifetime")
        assert.strictEqual(outcome(call), "waiting")
        assert.isTrue(session.resource.isOpen)
        // It still takes its place
        assert.strictEqual((yield* registry.stats).draining, 1)
        assert.strictEqual((yield* Effect.flip(registry.create(alice)))._tag, "RegistryFull")
        yield* release
        assert.strictEqual(yield* Fiber.join(call), "lifetime")
        assert.deepStrictEqual(backend.closed, ["alice1"])
        yield* registry.create(alice)
      }))
  })

  describe("capacity", () => {
    it.effect("of N+1 creates at once, N succeed and none of the residents is evicted", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ capacity: 5, backend: { before: () => Effect.yieldNow } })
        const exits = yield* Effect.forEach(
          Array.from({ length: 6 }, (_, i) => Identity.fromKey(`owner-${i}`)),
          (owner) => Effect.exit(used(registry, owner)),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(exits.filter(Exit.isSuccess).length, 5)
        const error = yield* Effect.flip(registry.create(alice))
        assert.deepInclude(error, { _tag: "RegistryFull", scope: "registry", capacity: 5 })
        assert.strictEqual(backend.opened.length, 5)
        assert.deepStrictEqual(backend.closed, [])
        assert.deepInclude(yield* registry.stats, { size: 5, refusals: 2 })
      }))

    it.effect("of one owner leaves the others their room", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacity: 3, capacityPerOwner: 2 })
        yield* used(registry, alice)
        yield* used(registry, alice)
        assert.deepInclude(yield* Effect.flip(registry.create(alice)), { scope: "owner", capacity: 2 })
        yield* used(registry, bob)
        // Both are full now. What helps Alice is that she leaves herself.
        assert.deepInclude(yield* Effect.flip(registry.create(alice)), { scope: "owner" })
        assert.deepInclude(yield* Effect.flip(registry.create(bob)), { scope: "registry" })
      }))

    it.effect("does not count the expired", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacity: 1, capacityPerOwner: 1, idleTimeToLive: 100 })
        yield* registry.create(alice)
        yield* TestClock.adjust(101)
        yield* registry.create(alice)
        assert.strictEqual(yield* registry.size, 1)
      }))

    it.effect("counts what is being opened, and gives the place back when that fails", () =>
      Effect.gen(function*() {
        const go = yield* Deferred.make<void>()
        const { registry } = yield* start({
          capacity: 1,
          backend: {
            before: ({ name }) => Effect.andThen(Deferred.await(go), Effect.fail(new Refused({ why: name })))
          }
        })
        const creating = yield* fork(registry.create(alice))
        yield* settle
        assert.strictEqual((yield* Effect.flip(registry.create(bob)))._tag, "RegistryFull")
        yield* Deferred.succeed(go, undefined)
        assert.strictEqual((yield* Effect.flip(Fiber.join(creating)))._tag, "Refused")
        assert.strictEqual((yield* Effect.flip(registry.create(bob)))._tag, "Refused")
      }))

    it.effect("thousands of newcomers of one owner cost nobody else their room", () =>
      Effect.gen(function*() {
        const newcomers = many(800, 20_000)
        const { registry } = yield* start({ capacity: 100, capacityPerOwner: 50 })
        let refused = 0
        for (let i = 0; i < newcomers; i++) {
          if (Exit.isFailure(yield* Effect.exit(used(registry, alice)))) refused++
        }
        assert.strictEqual(refused, newcomers - 50)
        const { id } = yield* registry.create(bob)
        assert.isTrue(yield* has(registry, id, bob))
        assert.deepInclude(yield* registry.stats, { size: 51, owners: 2 })
      }), underLoad)
  })

  describe("shutdown", () => {
    it.effect("closes everything, also under its holders, and tells them", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start()
        const { id } = yield* registry.create(alice)
        yield* registry.create(bob)
        const { session } = yield* hold(registry, id, alice)
        yield* registry.close
        assert.strictEqual(yield* session.retired, "shutdown")
        assert.strictEqual(yield* session.ended, "shutdown")
        assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "bob1"])
      }))

    it.effect("waits drainTimeout for the holders, and says from its start that it is closed", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ drainTimeout: 1_000 })
        const { id } = yield* registry.create(alice)
        const { session } = yield* hold(registry, id, alice)
        const closing = yield* fork(registry.close)
        yield* settle
        assert.strictEqual(yield* session.retired, "shutdown")
        // 503, never 404: that would make the client initialize anew
        const requests: ReadonlyArray<Effect.Effect<unknown, { readonly _tag: string }>> = [
          registry.create(bob),
          touch(registry, id, alice),
          registry.peek(id, alice),
          registry.terminate(id, alice),
          touch(registry, "unknown", bob)
        ]
        for (const request of requests) assert.strictEqual((yield* Effect.flip(request))._tag, "RegistryClosed")
        yield* TestClock.adjust(999)
        assert.deepStrictEqual(backend.closed, [])
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* session.ended, "shutdown")
        assert.deepStrictEqual(backend.closed, ["alice1"])
        yield* Fiber.join(closing)
        assert.strictEqual(yield* registry.clear, 0)
        assert.strictEqual(yield* registry.size, 0)
      }))

    it.effect("is over within its bounds and a success, whatever an open ignores and a finalizer throws", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({
          closeTimeout: 100,
          backend: {
            after: ({ info }) => info.owner === "alice" ? Effect.uninterruptible(Effect.sleep("1 hour")) : Effect.void,
            close: () => Effect.die(new Error("sk-live-SECRET"))
          }
        })
        yield* registry.create(bob)
        yield* fork(Effect.exit(registry.create(alice)))
        const closing = yield* fork(registry.close)
        yield* TestClock.adjust(200)
        assert.deepStrictEqual(closing.pollUnsafe(), Exit.void)
        yield* TestClock.adjust("1 hour")
        assert.sameMembers(backend.closed, ["alice1", "bob1"])
      }))

    it.effect("ends a create in progress with RegistryClosed", () =>
      Effect.gen(function*() {
        const { backend, registry } = yield* start({ backend: { after: () => Effect.never } })
        const creating = yield* fork(Effect.flip(registry.create(alice)))
        yield* settle
        yield* registry.close
        assert.strictEqual((yield* Fiber.join(creating))._tag, "RegistryClosed")
        assert.deepStrictEqual(backend.closed, ["alice1"])
      }))
  })

  describe("observing", () => {
    it.effect("stats count what there is and what there was", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacity: 4, idleTimeToLive: 100, maxLifetime: 1_000 })
        const first = yield* registry.create(alice)
        yield* registry.create(alice)
        yield* registry.create(bob)
        yield* hold(registry, first.id, alice)
        const { idleTimeToLive, ...rest } = yield* registry.stats
        assert.strictEqual(Duration.toMillis(idleTimeToLive), 100)
        assert.deepStrictEqual(rest, {
          size: 3,
          capacity: 4,
          capacityPerOwner: 10,
          held: 1,
          idle: 2,
          opening: 0,
          draining: 0,
          closing: 0,
          owners: 2,
          created: 3,
          refusals: 0,
          notFound: 0,
          evictions: 0,
          expirations: 0,
          terminations: 0,
          retirements: 0,
          failures: 0,
          closeFailures: 0,
          eventsLost: 0
        })
        yield* TestClock.adjust(101)
        assert.deepInclude(yield* registry.stats, { size: 1, held: 1, idle: 0, owners: 1, expirations: 2 })
      }))

    it.effect("entries are the sessions that take requests, the least recently used first", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        const first = yield* registry.create(alice, { clientId: "ide" })
        const second = yield* registry.create(bob)
        yield* TestClock.adjust(5)
        yield* touch(registry, first.id, alice)
        yield* hold(registry, second.id, bob)
        assert.deepStrictEqual(yield* registry.entries, [
          {
            id: first.id,
            owner: alice.key,
            createdAt: 0,
            lastActivityAt: 5,
            clientId: "ide",
            state: "idle",
            holders: 0
          },
          { id: second.id, owner: bob.key, createdAt: 0, lastActivityAt: 5, state: "held", holders: 1 }
        ])
      }))

    it.effect("an operator terminates what is listed", () =>
      Effect.gen(function*() {
        const { registry } = yield* start()
        yield* registry.create(alice)
        yield* registry.create(bob)
        for (const { id, owner } of yield* registry.entries) yield* registry.terminate(id, { key: owner })
        assert.strictEqual(yield* registry.size, 0)
      }))

    it.effect("events tell of each session once, and end with the registry", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({
          capacity: 2,
          idleTimeToLive: 100,
          openTimeout: 1_000,
          backend: { before: ({ info }) => info.clientId === "slow" ? Effect.never : Effect.void }
        })
        const log = yield* record(registry)
        const id = yield* used(registry, alice)
        yield* used(registry, bob)
        yield* Effect.flip(registry.create(bob))
        yield* registry.terminate(id, alice)
        yield* TestClock.adjust(101)
        const slow = yield* fork(Effect.flip(registry.create(bob, { clientId: "slow" })))
        yield* TestClock.adjust(1_000)
        assert.strictEqual((yield* Fiber.join(slow))._tag, "OpenTimeout")
        yield* registry.create(alice)
        yield* registry.close
        yield* Fiber.join(log.reader)
        assert.deepStrictEqual(log.lines, [
          "Created alice",
          "Created bob",
          "Refused bob: registry",
          "Ended alice: terminated",
          "Closed alice: terminated",
          "Ended bob: expired",
          "Closed bob: expired",
          "CreateFailed bob: timeout",
          "Created alice",
          "Ended alice: shutdown",
          "Closed alice: shutdown"
        ])
      }))

    it.effect("a close that fails is logged without what its finalizer says", () =>
      Effect.gen(function*() {
        const written: Array<string> = []
        const logger = Logger.make<unknown, void>(({ cause, fiber, message }) => {
          written.push(inspect([message, Cause.pretty(cause), fiber.getRef(References.CurrentLogAnnotations)]))
        })
        const token = "sk-live-SECRET"
        const rethrown = new TypeError(`Bearer ${token}\nis not accepted`)
        rethrown.message = "the text of another error"
        const backend = makeBackend({
          close: ({ info }) => Effect.die(info.clientId === "throws" ? new Error(`Bearer ${token}`) : rethrown)
        })
        yield* Effect.gen(function*() {
          const registry = yield* openRegistry({ open: backend.open })
          for (const clientId of ["throws", "rethrows"]) yield* registry.create(alice, { clientId })
          yield* registry.clear
          yield* settle
        }).pipe(Effect.provide(Logger.layer([logger])))
        const text = written.join("\n")
        assert.strictEqual(text.match(/finalizer failed/g)?.length, 2)
        assert.match(text, /at .*SessionRegistry\.test\.ts:\d+/, "where it was thrown")
        assert.include(text, "TypeError")
        assert.notInclude(text, token)
      }))

    it.effect("events that a slow reader loses are counted", () =>
      Effect.gen(function*() {
        const { registry } = yield* start({ capacityPerOwner: 1_000 })
        const gate = yield* Deferred.make<void>()
        let read = 0
        yield* Effect.forkScoped(
          Stream.runForEach(registry.events, () => Effect.andThen(Effect.sync(() => read++), Deferred.await(gate))),
          { startImmediately: true }
        )
        for (let i = 0; i < 700; i++) yield* registry.create(alice)
        yield* registry.clear
        yield* settle
        yield* Deferred.succeed(gate, undefined)
        yield* settle
        assert.isAbove((yield* registry.stats).eventsLost, 0)
        assert.strictEqual((yield* registry.stats).eventsLost, 2_100 - read)
      }))

    it.effect("times are those of the wall clock as it is set now, and durations are not", () =>
      Effect.gen(function*() {
        const wall = yield* makeWall
        const { backend, registry } = yield* wall.on(start({ idleTimeToLive: 100 }))
        yield* TestClock.adjust(1_000)
        const { createdAt, id } = yield* registry.create(alice)
        assert.strictEqual(createdAt, 1_000)
        yield* TestClock.adjust(50)
        yield* wall.jump(3_600_000)
        yield* touch(registry, id, alice)
        const info = yield* registry.peek(id, alice)
        assert.deepStrictEqual([info.createdAt, info.lastActivityAt], [1_000, 3_601_050])
        yield* wall.jump(-7_200_000)
        assert.strictEqual((yield* registry.peek(id, alice)).lastActivityAt, -3_598_950)
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(backend.closed, [])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(backend.closed, ["alice1"])
      }))

    it.effect("no id is whole in what is logged, traced or said, and what is said of it can't be used", () =>
      Effect.gen(function*() {
        const written: Array<string> = []
        const write = (value: unknown) => void written.push(inspect(value, { depth: 8 }))
        const logger = Logger.make<unknown, void>(({ cause, fiber, message }) => {
          write([message, Cause.pretty(cause), fiber.getRef(References.CurrentLogAnnotations)])
        })
        const tracer = Tracer.make({
          span: (options) => {
            const span = new Tracer.NativeSpan(options)
            write([span.name, span.attributes])
            return span
          }
        })
        const backend = makeBackend({
          close: ({ info }) =>
            info.clientId === "hangs" ? Effect.never : Effect.die(new Error(`${info.id} can't be closed`))
        })
        const ids: Array<string> = []
        yield* Effect.gen(function*() {
          const registry = yield* openRegistry({ open: backend.open, closeTimeout: 1_000, idleTimeToLive: 100 })
          const log = yield* record(registry)
          for (const clientId of ["dies", "hangs"]) {
            const { id } = yield* registry.create(alice, { clientId })
            ids.push(id)
            write(yield* Effect.flip(touch(registry, id, bob)))
          }
          yield* TestClock.adjust(101)
          yield* TestClock.adjust(1_000)
          write(yield* registry.stats)
          write(log.events)
          assert.strictEqual(log.lines.filter((said) => said.startsWith("CloseFailed")).length, 2)
          for (const event of log.events) {
            if (event._tag === "Refused") continue
            assert.strictEqual(event.session.length, 8)
            assert.isTrue(ids.some((id) => id.startsWith(event.session)))
            assert.isFalse(yield* has(registry, event.session))
          }
        }).pipe(
          Effect.withSpan("test"),
          Effect.provide(Layer.mergeAll(
            Logger.layer([logger]),
            Layer.succeed(References.MinimumLogLevel, "All"),
            Layer.succeed(Tracer.Tracer, tracer)
          ))
        )
        const text = written.join("\n")
        assert.include(text, "finalizer failed")
        assert.include(text, "left to itself")
        for (const id of ids) {
          assert.include(text, id.slice(0, 8))
          assert.notInclude(text, id.slice(0, 9))
        }
      }))
  })
})
