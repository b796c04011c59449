import { assert, describe, it } from "@effect/vitest"
import { OpenTimeout, RegistryClosed, RegistryFull, SessionNotFound, SessionRegistryError } from "effect-mcp-sessions"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { fork, outcome, settle } from "./support/fibers.ts"
import { alice, bob, makeBackend, refusal, Registry, start, used } from "./support/registry.ts"

const { open } = makeBackend()

/** The stats of the registry that `layerConfig` builds with these variables. */
const configured = (options: object, env: Record<string, string>) =>
  Layer.build(Registry.layerConfig({ open, ...options })).pipe(
    Effect.flatMap((context) => Context.get(context, Registry).stats),
    Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
  )

const fault = (env: Record<string, string>) => Effect.map(Effect.flip(configured({}, env)), (error) => error._tag)

describe("SessionRegistry options", () => {
  it.effect("by default 10,000 sessions, 100 of one owner, are kept for 30 minutes", () =>
    Effect.gen(function*() {
      const { registry } = yield* start()
      const stats = yield* registry.stats
      assert.strictEqual(stats.capacity, 10_000)
      assert.strictEqual(stats.capacityPerOwner, 100)
      assert.strictEqual(Duration.toMinutes(stats.idleTimeToLive), 30)
    }))

  it.effect("an infinite idleTimeToLive keeps a session for ever", () =>
    Effect.gen(function*() {
      const { registry } = yield* start({ idleTimeToLive: Duration.infinity })
      yield* used(registry, alice)
      yield* TestClock.adjust("3650 days")
      assert.strictEqual(yield* registry.size, 1)
    }))

  it.effect("openTimeout is 30 seconds by default, and ends an open that takes longer", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start({ capacity: 1, backend: { after: () => Effect.never } })
      const creating = yield* fork(registry.create(alice))
      yield* TestClock.adjust(29_999)
      assert.strictEqual(outcome(creating), "waiting")
      yield* TestClock.adjust(1)
      const error = yield* Effect.flip(Fiber.join(creating))
      assert.strictEqual(error._tag, "OpenTimeout")
      assert.deepStrictEqual(backend.closed, ["alice1"])
      assert.deepInclude(yield* registry.stats, { opening: 0, owners: 0, failures: 1 })
    }))

  it.effect("closeTimeout is 10 seconds by default", () =>
    Effect.gen(function*() {
      const { registry } = yield* start({ backend: { close: () => Effect.never } })
      const { id } = yield* registry.create(alice)
      yield* registry.terminate(id, alice)
      yield* TestClock.adjust(9_999)
      assert.strictEqual((yield* registry.stats).closing, 1)
      yield* TestClock.adjust(1)
      assert.deepInclude(yield* registry.stats, { closing: 0, closeFailures: 1 })
    }))

  it.effect("a session that hangs when it closes delays nobody", () =>
    Effect.gen(function*() {
      const { backend, registry } = yield* start({
        backend: { close: ({ info }) => info.owner === "alice" ? Effect.never : Effect.void }
      })
      yield* registry.create(alice)
      yield* registry.create(bob)
      yield* registry.clear
      yield* settle
      assert.deepStrictEqual(backend.closed.toSorted(), ["alice1", "bob1"])
      assert.strictEqual((yield* registry.stats).closing, 1)
    }))

  const counts = [0, -1, 1.5, Number.NaN, Infinity, "10", null]
  const endless = [0, -1, Number.NaN, null, "soon", {}]
  const bounded = [...endless, Duration.infinity]
  const nonsense: ReadonlyArray<readonly [option: string, values: ReadonlyArray<unknown>]> = [
    ["open", [undefined, null, "open", {}]],
    ["capacity", counts],
    ["capacityPerOwner", counts],
    ["idleTimeToLive", endless],
    ["unusedTimeToLive", endless],
    ["maxLifetime", endless],
    ["openTimeout", bounded],
    ["closeTimeout", bounded],
    ["drainTimeout", [-1, Number.NaN, null, "soon", Duration.infinity]],
    ["staleTimeout", [1_800_000]]
  ]
  it.effect.each(nonsense)(
    "%s without a meaning is refused when the layer builds",
    ([option, values]) =>
      Effect.gen(function*() {
        for (const value of values) {
          const error = yield* refusal({ open, [option]: value })
          assert.instanceOf(error, InvalidOptions, String(value))
          assert.deepInclude(error, { module: "SessionRegistry", method: "layer", option })
        }
      })
  )

  it.effect("options that are none are refused", () =>
    Effect.gen(function*() {
      for (const options of [undefined, null, 1, "options"]) {
        assert.deepInclude(yield* refusal(options), { module: "SessionRegistry", option: "options" })
      }
    }))

  describe("layerConfig", () => {
    it.effect("reads the variables, which win over the options", () =>
      Effect.gen(function*() {
        const stats = yield* configured({ capacity: 1, idleTimeToLive: 1, capacityPerOwner: 1 }, {
          MCP_REGISTRY_IDLE_TIME_TO_LIVE: "1 minute",
          MCP_REGISTRY_CAPACITY: "7",
          MCP_REGISTRY_CAPACITY_PER_OWNER: "3"
        })
        assert.strictEqual(Duration.toMillis(stats.idleTimeToLive), 60_000)
        assert.deepInclude(stats, { capacity: 7, capacityPerOwner: 3 })
      }))

    it.effect("reads the names of before, in milliseconds", () =>
      Effect.gen(function*() {
        const stats = yield* configured({ capacity: 1, idleTimeToLive: 1, capacityPerOwner: 1 }, {
          MCP_SESSION_IDLE_MS: "60000",
          MCP_SESSION_CAPACITY: "7",
          MCP_SESSION_CAPACITY_PER_OWNER: "3"
        })
        assert.strictEqual(Duration.toMillis(stats.idleTimeToLive), 60_000)
        assert.deepInclude(stats, { capacity: 7, capacityPerOwner: 3 })
      }))

    it.effect("keeps the options where the configuration is silent", () =>
      Effect.gen(function*() {
        const stats = yield* configured({ capacity: 5, capacityPerOwner: 2 }, { MCP_SESSION_IDLE_MS: "1000" })
        assert.deepInclude(stats, { capacity: 5, capacityPerOwner: 2 })
        assert.strictEqual(Duration.toMillis(stats.idleTimeToLive), 1_000)
      }))

    it.effect("refuses what has no meaning: 0, a negative, a word", () =>
      Effect.gen(function*() {
        assert.strictEqual(yield* fault({ MCP_SESSION_IDLE_MS: "0" }), "InvalidOptions")
        assert.strictEqual(yield* fault({ MCP_SESSION_IDLE_MS: "-5" }), "InvalidOptions")
        assert.strictEqual(yield* fault({ MCP_SESSION_IDLE_MS: "NaN" }), "InvalidOptions")
        assert.strictEqual(yield* fault({ MCP_REGISTRY_CAPACITY: "2.5" }), "InvalidOptions")
        assert.strictEqual(yield* fault({ MCP_REGISTRY_CAPACITY_PER_OWNER: "many" }), "ConfigError")
      }))
  })
})

describe("SessionRegistry errors", () => {
  const errors = [
    [new SessionNotFound(), 404, "session-not-found", undefined],
    [new RegistryFull({ scope: "registry", capacity: 3 }), 503, "registry-full", "10"],
    [new RegistryFull({ scope: "owner", capacity: 3 }), 503, "registry-full", "10"],
    [new OpenTimeout({ after: Duration.seconds(30) }), 503, "open-timeout", "10"],
    [new RegistryClosed(), 503, "registry-closed", "10"]
  ] as const

  for (const [error, status, reference, retryAfter] of errors) {
    it.effect(`${error._tag} answers ${status} and names its entry in the README`, () =>
      Effect.gen(function*() {
        assert.strictEqual(error.module, "SessionRegistry")
        assert.strictEqual(error.reference, reference)
        assert.match(error.message, /^(There|The|A) .+\. .+\.$/)
        const web = HttpServerResponse.toWeb(yield* HttpServerRespondable.toResponse(error))
        assert.strictEqual(web.status, status)
        assert.strictEqual(web.headers.get("retry-after"), retryAfter ?? null)
        assert.strictEqual(web.headers.get("cache-control"), "no-store")
        const body: unknown = yield* Effect.promise((): Promise<unknown> => web.json())
        assert.deepInclude(body, { status, error: error._tag, reference })
      }))

    it(`${error._tag} survives the wire`, () => {
      const json = Schema.encodeSync(SessionRegistryError)(error)
      assert.deepStrictEqual(Schema.decodeSync(SessionRegistryError)(json), error)
    })
  }
})
