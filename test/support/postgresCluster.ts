/**
 * Two nodes of a cluster with a Postgres of their own.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { freePorts, type NodeProcess, quick, settled, startProcess } from "./clusterProcesses.ts"
import { type Postgres, startPostgres } from "./postgres.ts"

export class PostgresCluster extends Context.Service<PostgresCluster, {
  readonly postgres: Postgres
  readonly nodes: ReadonlyArray<NodeProcess>
}>()("test/PostgresCluster") {
  static readonly layer = Layer.effect(
    PostgresCluster,
    Effect.gen(function*() {
      const postgres = yield* startPostgres
      const ports = yield* freePorts(2)
      const nodes = yield* Effect.forEach(ports, (port) => startProcess({ port, storage: postgres.url, env: quick }), {
        concurrency: "unbounded"
      })
      yield* settled(nodes)
      return { postgres, nodes }
    })
  )
}
