import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { bundleNode, call, rolesOf } from "./support/clusterProcesses.ts"
import { PostgresCluster } from "./support/postgresCluster.ts"

bundleNode()

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

  it.effect("keeps its sessions and its locks when its connections are lost", () =>
    Effect.gen(function*() {
      const { nodes, postgres } = yield* PostgresCluster
      const { other, owner, pid } = yield* rolesOf(nodes, "alice")
      const lost = yield* postgres.query(`SELECT pg_terminate_backend(pid) ${connections}`)
      assert.isAtLeast(lost.length, 2)
      // For longer than a lock lives
      for (let i = 0; i < 8; i++) {
        yield* Effect.sleep("500 millis")
        assert.deepStrictEqual(yield* call(other, "alice"), { text: String(pid), runner: owner.name })
      }
    }))
})
