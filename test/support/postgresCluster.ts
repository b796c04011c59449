/**
 * Two nodes of a cluster with a Postgres of their own, each behind a gate.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { freePorts, type NodeProcess, quick, settled, startProcess } from "./clusterProcesses.ts"
import { type Gate, gateTo } from "./gate.ts"
import { type Postgres, startPostgres } from "./postgres.ts"

export class PostgresCluster extends Context.Service<PostgresCluster, {
  readonly postgres: Postgres
  readonly nodes: ReadonlyArray<NodeProcess>
  /** What is between a node and its store. */
  readonly gateOf: (node: NodeProcess) => Gate
}>()("test/PostgresCluster") {
  static readonly layer = Layer.effect(
    PostgresCluster,
    Effect.gen(function*() {
      const postgres = yield* startPostgres
      const ports = yield* freePorts(2)
      const gates = new Map<number, Gate>()
      const nodes = yield* Effect.forEach(ports, (port) =>
        Effect.flatMap(gateTo(postgres.url), (gate) => {
          gates.set(port, gate)
          return startProcess({ port, storage: gate.url, env: quick })
        }), { concurrency: "unbounded" })
      yield* settled(nodes)
      return { postgres, nodes, gateOf: ({ port }) => gates.get(port)! }
    })
  )
}
