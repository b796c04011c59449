/**
 * What a pool tells in numbers. Each test has a registry of metrics of its own.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity, McpHttp, Metrics, SessionPool, SessionRegistry } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Scheduler from "effect/Scheduler"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { readFileSync } from "node:fs"
import { textOf } from "./support/answers.ts"
import { fork, settle } from "./support/fibers.ts"
import { makeLog, makeServer, web } from "./support/mcpHttp.ts"
import { begin, post } from "./support/requests.ts"

class Refused extends Error {
  override readonly name = "Refused"
}

class Pool extends SessionPool.Tag<Pool, string, Refused>()("test/Pool") {}

type Options = Parameters<typeof Pool.layer<never, never>>[0]

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const connect: Options["connect"] = ({ key }) => Effect.succeed(key)

/** A session that is a second in opening and two in closing. */
const slow: Options["connect"] = ({ key }) =>
  Effect.acquireRelease(Effect.delay(Effect.succeed(key), "1 second"), () => Effect.sleep("2 seconds"))

const use = (identity: Identity, seconds = 0) =>
  Pool.withSession(identity, (key) => Effect.delay(Effect.succeed(key), seconds * 1_000))

const isolated = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Metric.MetricRegistry, new Map())

const withPool = <A, E>(
  options: Partial<Options>,
  f: Effect.Effect<A, E, Pool | Scope.Scope>,
  settings?: Metrics.Options
) =>
  isolated(Effect.scoped(Effect.provide(
    f,
    Pool.layer({ connect, ...options }).pipe(Layer.provide(Metrics.layer(settings)))
  )))

/** The series of one metric, each by its labels: without the name of pool or registry and the unit. */
const read = (metric: Metrics.Metric) =>
  Effect.map(Metric.snapshot, (snapshot) =>
    Object.fromEntries(
      snapshot.filter(({ id }) => id === metric.name).map(({ attributes = {}, state }) => {
        assert.strictEqual(attributes["unit"], metric.unit)
        const labels = metric.labels.filter((label) => label !== "pool" && label !== "registry").map((label) =>
          attributes[label]
        )
        assert.sameMembers(Object.keys(attributes), [...metric.labels, "unit"])
        return [
          labels.join(" "),
          "count" in state && "sum" in state ? [state.count, state.sum] : Object.values(state)[0]
        ]
      })
    ))

const states = (upstream: string, counts: Readonly<Record<string, number>>) =>
  Object.fromEntries(
    ["opening", "leased", "idle", "draining", "closing"].map((state) => [`${upstream} ${state}`, counts[state] ?? 0])
  )

describe("metrics of a server", () => {
  it.effect("take no names of strangers, nor keep what those have made up", () =>
    Effect.gen(function*() {
      const endpoint = yield* web(McpHttp.layer({
        server: (info) =>
          Effect.tap(makeServer(makeLog())(info), (server) =>
            Effect.sync(() => {
              server.fallbackRequestHandler = ({ method }) =>
                method === "acme/own" ? Promise.resolve({}) : Promise.reject(new Error("Method not found"))
            }))
      }))
      const session = yield* begin(endpoint)
      const ask = (method: string, id?: number) =>
        Effect.flatMap(
          post(endpoint, { jsonrpc: "2.0", method, ...(id === undefined ? {} : { id }) }, { session }),
          textOf
        )
      for (let i = 0; i < 150; i++) {
        yield* ask(`made-up/${i}`, i)
      }
      for (let i = 0; i < 150; i++) {
        yield* ask(`notifications/made-up/${i}`)
      }
      yield* ask(`made-up/${"x".repeat(100_000)}`, 1_000)
      yield* ask("tools/list", 1_001)
      yield* ask("acme/own", 1_002)
      const series = (yield* Metric.snapshot).filter(({ id }) => id === Metrics.all.serverOperationDuration.name)
      const methods = new Set(
        series.map(({ attributes }) => (attributes as Record<string, string>)["mcp.method.name"]!)
      )
      assert.deepStrictEqual(Array.from(methods).filter((method) => method.includes("made-up")), [])
      assert.includeMembers(Array.from(methods), ["tools/list", "acme/own", "other"])
    }))
})

describe("metrics of a pool", () => {
  it.effect("count nobody who has left the line, whenever that was", () =>
    withPool(
      { capacity: 1 },
      Effect.gen(function*() {
        yield* Pool.get(alice)
        for (let ops = 3; ops <= 10; ops++) {
          for (let turns = 0; turns < 10; turns++) {
            const caller = yield* fork(Effect.provideService(use(bob), Scheduler.MaxOpsBeforeYield, ops))
            for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow
            yield* Fiber.interrupt(caller)
            const waiting = Object.values(yield* read(Metrics.all.poolWaiting))
            assert.deepStrictEqual(waiting.filter((count) => count !== 0), [], `${ops} ${turns}`)
          }
        }
      })
    ))

  it.effect("show its sessions by upstream and state, as they are when they are read", () =>
    withPool(
      { connect: slow, capacity: 7 },
      Effect.gen(function*() {
        const sessions = read(Metrics.all.poolSessions)
        assert.deepStrictEqual(yield* read(Metrics.all.poolCapacity), { "": 7 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolStandby), { "": 0 })
        yield* fork(use(alice, 10))
        yield* fork(use(bob.at("weather"), 1))
        yield* settle
        assert.deepStrictEqual(yield* sessions, { ...states("", { opening: 1 }), ...states("weather", { opening: 1 }) })
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(yield* sessions, { ...states("", { leased: 1 }), ...states("weather", { leased: 1 }) })
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(yield* sessions, { ...states("", { leased: 1 }), ...states("weather", { idle: 1 }) })
        yield* Pool.invalidateWhere(() => true)
        assert.deepStrictEqual(yield* sessions, {
          ...states("", { draining: 1 }),
          ...states("weather", { closing: 1 })
        })
        yield* TestClock.adjust("20 seconds")
        assert.deepStrictEqual(yield* sessions, { ...states("", {}), ...states("weather", {}) })
      })
    ))

  it.effect("count hits, misses and leases without an update of any metric", () =>
    withPool(
      {},
      Effect.gen(function*() {
        for (let i = 0; i < 5; i++) yield* use(alice)
        yield* use(bob.at("weather"))
        assert.deepStrictEqual(yield* read(Metrics.all.poolHits), { "": 4 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolMisses), { "": 2 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "": 5, weather: 1 })
        yield* Pool.invalidate(alice)
        yield* settle
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "": 5, weather: 1 })
        yield* use(alice)
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "": 6, weather: 1 })
      })
    ))

  it.effect("count waits, and say how long they were and how many wait now", () =>
    withPool(
      { capacity: 1, acquireTimeout: "3 seconds" },
      Effect.gen(function*() {
        yield* fork(use(alice, 2))
        yield* fork(use(bob, 9))
        yield* fork(Effect.exit(use(Identity.fromKey("carol"))))
        yield* settle
        assert.deepStrictEqual(yield* read(Metrics.all.poolWaiting), { "": 2 })
        yield* TestClock.adjust("2 seconds")
        assert.deepStrictEqual(yield* read(Metrics.all.poolWaiting), { "": 1 })
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(yield* read(Metrics.all.poolWaiting), { "": 0 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolWaits), { "": 2 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolWaitDuration), { "": [2, 5] })
      })
    ))

  it.effect("tell how long sessions open, are used, close and live, in seconds", () =>
    withPool(
      { connect: slow, capacity: 1 },
      Effect.gen(function*() {
        yield* fork(Effect.andThen(use(alice, 3), use(alice, 4)))
        yield* TestClock.adjust("10 seconds")
        yield* fork(use(bob, 1))
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(yield* read(Metrics.all.poolOpenDuration), { "": [2, 2] })
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeaseDuration), { "": [3, 8] })
        assert.deepStrictEqual(yield* read(Metrics.all.poolCloseDuration), { "": [1, 2] })
        // From the end of its open at 1 to the end of its close at 12
        assert.deepStrictEqual(yield* read(Metrics.all.clientSessionDuration), { " evicted": [1, 11] })
        const snapshot = yield* Metric.snapshot
        const open = snapshot.find(({ id }) => id === Metrics.all.poolOpenDuration.name)!
        assert.deepInclude("buckets" in open.state ? open.state.buckets : [], [1, 2])
        assert.deepInclude("buckets" in open.state ? open.state.buckets : [], [0.5, 0])
        yield* Pool.invalidate(bob)
        yield* TestClock.adjust("2 seconds")
      })
    ))

  it.effect("count leases that overlap as one use of the session", () =>
    withPool(
      {},
      Effect.gen(function*() {
        yield* fork(use(alice, 2))
        yield* TestClock.adjust("1 second")
        yield* fork(use(alice, 2))
        yield* TestClock.adjust("5 seconds")
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeaseDuration), { "": [1, 3] })
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "": 2 })
      })
    ))

  it.effect("measure each of exclusive leases, also where one hands the session to the next", () =>
    withPool(
      { leases: "exclusive" },
      Effect.gen(function*() {
        yield* fork(use(alice, 2))
        yield* fork(use(alice, 3))
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeaseDuration), { "": [2, 5] })
        assert.deepStrictEqual(yield* read(Metrics.all.poolWaitDuration), { "": [1, 2] })
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "": 2 })
      })
    ))

  it.effect("count retirements and failures by their reasons", () =>
    withPool(
      {
        capacity: 1,
        idleTimeToLive: "1 minute",
        connectTimeout: "5 seconds",
        closeTimeout: "1 second",
        connect: ({ key }) =>
          key === "refused" ?
            Effect.fail(new Refused("sk-live-SECRET")) :
            key === "hangs" ?
            Effect.never :
            Effect.acquireRelease(
              Effect.succeed(key),
              () => key === "bob" ? Effect.die(new Error("no")) : key === "carol" ? Effect.never : Effect.void
            )
      },
      Effect.gen(function*() {
        yield* use(alice)
        yield* use(bob)
        yield* use(Identity.fromKey("carol"))
        yield* TestClock.adjust("2 minutes")
        yield* Effect.exit(use(Identity.fromKey("refused")))
        yield* fork(Effect.exit(use(Identity.fromKey("hangs"))))
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(yield* read(Metrics.all.poolRetirements), { " evicted": 2, " expired": 1 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolOpenFailures), { " Refused": 1, " timeout": 1 })
        assert.deepStrictEqual(yield* read(Metrics.all.poolCloseFailures), { " failed": 1, " timeout": 1 })
      })
    ))

  it.effect("tell the first upstreams apart, and bound the number of series", () =>
    withPool(
      { capacity: 1_000 },
      Effect.gen(function*() {
        for (let i = 0; i < 50; i++) yield* use(alice.at(`made-up-${i}`))
        assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "made-up-0": 1, "made-up-1": 1, other: 48 })
        assert.strictEqual((yield* read(Metrics.all.poolSessions))["other idle"], 48)
      }),
      { maxNames: 2 }
    ))

  it.effect("outlive the pool as far as they count, and pools of one name count together", () =>
    isolated(Effect.gen(function*() {
      const layer = Pool.layer({ connect })
      yield* Effect.provide(Effect.andThen(use(alice), use(alice)), layer)
      assert.deepStrictEqual(yield* read(Metrics.all.poolSessions), {})
      assert.deepStrictEqual(yield* read(Metrics.all.poolHits), { "": 1 })
      assert.deepStrictEqual(yield* read(Metrics.all.poolLeases), { "": 2 })
      assert.deepStrictEqual(yield* read(Metrics.all.poolRetirements), { " shutdown": 1 })
      const pools = Effect.gen(function*() {
        yield* use(alice)
        yield* Effect.provide(use(alice), Layer.fresh(layer))
        const both = Effect.andThen(use(alice), read(Metrics.all.poolSessions))
        assert.strictEqual((yield* Effect.provide(both, Layer.fresh(layer)))[" idle"], 2)
        assert.strictEqual((yield* read(Metrics.all.poolSessions))[" idle"], 1)
      })
      yield* Effect.provide(pools, layer)
      assert.deepStrictEqual(yield* read(Metrics.all.poolMisses), { "": 4 })
    })))

  it.effect("are none if they are turned off", () =>
    withPool(
      {},
      Effect.gen(function*() {
        yield* use(alice)
        assert.deepStrictEqual(yield* Metric.snapshot, [])
      }),
      { enabled: false }
    ))

  it.effect("have names as Prometheus wants them", () =>
    withPool(
      {},
      Effect.gen(function*() {
        yield* use(alice)
        const text = yield* PrometheusMetrics.format({ metricNameMapper: Metrics.prometheusName })
        assert.include(text, "# TYPE mcp_pool_hits_total counter")
        assert.include(text, "# TYPE mcp_pool_open_duration_seconds histogram")
        assert.include(text, "mcp_pool_sessions{pool=\"test/Pool\",upstream=\"\",state=\"idle\"} 1")
        assert.strictEqual(Metrics.prometheusName("my.own"), "my.own")
      })
    ))
})

describe("metrics of a registry", () => {
  class Registry extends SessionRegistry.Tag<Registry, string, Refused>()("test/Registry") {}

  it.effect("show its sessions, and count what becomes of them", () =>
    isolated(Effect.gen(function*() {
      yield* Effect.gen(function*() {
        const visit = (id: string) => Effect.scoped(Registry.get(id, alice))
        const first = yield* Registry.create(alice)
        yield* Effect.flatMap(Registry.create(alice), ({ id }) => visit(id))
        yield* visit(first.id)
        yield* Effect.flip(Registry.create(alice))
        yield* TestClock.adjust("2 seconds")
        yield* Effect.flip(Registry.peek(first.id, bob))
        assert.deepStrictEqual(yield* read(Metrics.all.registrySessions), {
          opening: 0,
          leased: 0,
          idle: 2,
          draining: 0,
          closing: 0
        })
        assert.deepStrictEqual(yield* read(Metrics.all.registryCapacity), { "": 5 })
        yield* Registry.terminate(first.id, alice)
        yield* settle
      }).pipe(Effect.provide(
        Registry.layer({ open: () => Effect.succeed("session"), capacity: 5, capacityPerOwner: 2 })
      ))
      const ends = yield* read(Metrics.all.registryEnds)
      assert.deepStrictEqual(ends, { shutdown: 1, terminated: 1 })
      assert.deepStrictEqual(yield* read(Metrics.all.registryCreated), { "": 2 })
      assert.deepStrictEqual(yield* read(Metrics.all.registryRefusals), { "": 1 })
      assert.deepStrictEqual(yield* read(Metrics.all.registryNotFound), { "": 1 })
      const lives = yield* read(Metrics.all.serverSessionDuration)
      assert.deepStrictEqual(lives["terminated"], [1, 2])
    })))
})

describe("README", () => {
  it("has every metric, with its type and its labels", () => {
    const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8")
    const rows = Array.from(readme.matchAll(/^\| `(mcp\.[\w.]+)` *\| (\w+) *\| ([\w., ]+?) *\| ([^|]+?) *\|$/gm))
    assert.deepStrictEqual(
      rows.map(([, name, type, labels, what]) => [name, type, labels, what]),
      Object.values(Metrics.all).map(({ description, labels, name, type, unit }) => [
        name,
        type,
        labels.join(", "),
        unit === "s" ? `${description} (seconds)` : description
      ])
    )
  })
})
