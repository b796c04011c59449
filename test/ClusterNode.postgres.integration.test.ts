import { assert, layer } from "@effect/vitest"
import * as Runner from "effect/cluster/Runner"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as ShardId from "effect/cluster/ShardId"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Postgres from "../src/internal/cluster/postgres.ts"
import { call, noting, rolesOf, said, settled, until } from "./support/clusterProcesses.ts"
import { assertWithin, underLoad } from "./support/load.ts"
import { PostgresCluster } from "./support/postgresCluster.ts"
import { isAlive } from "./support/processes.ts"
import { temporaryDirectory } from "./support/temporary.ts"

/** Within how many milliseconds somebody else has what a node had that is lost: with the defaults it is twice that. */
const recovery = 6_000

const connections = "FROM pg_stat_activity WHERE application_name = 'effect-mcp-sessions'"

layer(PostgresCluster.layer, { excludeTestServices: true })("ClusterNode.layer, two processes with Postgres", (it) => {
  it.effect("has one child for each identity, of which the store knows nothing", () =>
    Effect.gen(function*() {
      const { nodes, postgres } = yield* PostgresCluster
      for (let i = 0; i < 4; i++) {
        const [one, other] = yield* Effect.forEach(nodes, (node) => call(node, `user${i}`), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(one, other)
      }
      const tables = yield* postgres.query("SELECT * FROM mcp_cluster_runners, mcp_cluster_locks")
      assert.isAbove(tables.length, 0)
      assert.notInclude(JSON.stringify(tables), "user")
    }))

  it.effect("keeps its sessions and its locks when its connections are lost, again and again", () =>
    Effect.gen(function*() {
      const { nodes, postgres } = yield* PostgresCluster
      const { other, owner, pid } = yield* rolesOf(nodes, "alice")
      // For longer than a lock lives, and each is lost at least once
      for (let i = 0; i < 8; i++) {
        if (i % 3 === 0) {
          const lost = yield* postgres.query(`SELECT pg_terminate_backend(pid) ${connections}`)
          assert.isAtLeast(lost.length, 2)
        }
        yield* Effect.sleep("500 millis")
        assert.deepStrictEqual(yield* call(other, "alice"), { text: String(pid), runner: owner.name })
      }
    }))

  it.effect(
    "closes what it has when it alone is cut off from the store, and another one serves it",
    () =>
      Effect.gen(function*() {
        const { gateOf, nodes } = yield* PostgresCluster
        const { other, owner, pid } = yield* rolesOf(nodes, "alice")
        const { notes, begin } = noting(temporaryDirectory("cut-"), "cut")
        const running = yield* begin(other, "alice", 10_000)
        const since = performance.now()
        gateOf(owner).shut("hung")
        assert.deepInclude(yield* Effect.promise(() => running), { reason: "SessionClosed", requestSent: true })
        const next = yield* call(other, "alice")
        assertWithin(performance.now() - since, recovery)
        assert.strictEqual(next.runner, other.name)
        // Its server is told to end, and has time for that
        yield* until("the old child is gone", () => Promise.resolve(!isAlive(pid)))
        const late = owner.call("alice")
        gateOf(owner).open()
        assertWithin(yield* settled(nodes), 12_000)
        assert.notStrictEqual(said(yield* Effect.promise(() => late)).text, String(pid))
        const [one, two] = yield* Effect.forEach(nodes, (node) => call(node, "alice"))
        assert.deepStrictEqual(one, two)
        assert.strictEqual(notes(), 1)
      }),
    underLoad
  )

  it.effect(
    "serves nothing that it has lost while it was frozen, and closes it when it thaws",
    () =>
      Effect.gen(function*() {
        const { nodes } = yield* PostgresCluster
        const { other, owner, pid } = yield* rolesOf(nodes, "alice")
        const since = performance.now()
        process.kill(owner.pid, "SIGSTOP")
        // What was sent to it may have run
        yield* Effect.promise(() => other.call("alice"))
        const next = yield* call(other, "alice")
        assert.strictEqual(next.runner, other.name)
        assertWithin(performance.now() - since, recovery)
        const late = owner.call("alice")
        process.kill(owner.pid, "SIGCONT")
        assert.notStrictEqual(said(yield* Effect.promise(() => late)).text, String(pid))
        yield* until("the old child is gone", () => Promise.resolve(!isAlive(pid)))
        yield* settled(nodes)
      }),
    underLoad
  )

  it.effect("frees its locks when it stops", () =>
    Effect.gen(function*() {
      const { nodes: [node], postgres } = yield* PostgresCluster
      node!.child.kill("SIGTERM")
      yield* Effect.promise(() => node!.exited)
      assert.deepStrictEqual(
        yield* postgres.query(`SELECT shard_id FROM mcp_cluster_locks WHERE address = '${node!.name}'`),
        []
      )
    }))

  it.effect("makes its tables again when a node starts, whichever of them somebody has dropped", () =>
    Effect.gen(function*() {
      const { nodes: [, node], postgres } = yield* PostgresCluster
      node!.child.kill("SIGTERM")
      yield* Effect.promise(() => node!.exited)
      const runner = Runner.make({ address: RunnerAddress.make("127.0.0.1", 1), groups: ["mcp"], weight: 1 })
      for (const tables of ["mcp_cluster_runners, mcp_cluster_locks", "mcp_cluster_locks", "mcp_cluster_runners"]) {
        yield* postgres.query(`DROP TABLE ${tables}`)
        const store = yield* Postgres.make(Redacted.make(postgres.url), ShardingConfig.defaults)
        yield* store.register(runner, true)
        assert.lengthOf(yield* store.acquire(runner.address, [ShardId.make("mcp", 1)]), 1)
      }
    }).pipe(Effect.scoped))
})
