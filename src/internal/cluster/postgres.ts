/**
 * A store in Postgres, as Effect has it.
 *
 * A lock is a row that says when it was last asked for, by the clock of the server. It is not one of the server's
 * advisory locks: those end with their connection, whoever has cut it, while the node still believes that it has them.
 */
import { PersistenceError } from "effect/cluster/ClusterError"
import type * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as SqlRunnerStorage from "effect/cluster/SqlRunnerStorage"
import * as Effect from "effect/Effect"
import * as Reactivity from "effect/reactivity/Reactivity"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import { load } from "./peers.ts"

const loadPostgres = load(
  "keeps its Postgres store with @effect/sql-pg",
  "@effect/sql-pg",
  () => import("@effect/sql-pg/PgClient")
)

/** Fails when the server can't be reached, or refuses. The tables are made where they are missing. */
export const make = Effect.fnUntraced(function*(
  url: Redacted.Redacted,
  config: ShardingConfig.ShardingConfig["Service"]
): Effect.fn.Return<RunnerStorage.RunnerStorage["Service"], PersistenceError, Scope.Scope> {
  // Whatever is asked of it runs in fibers of its scope: in the node's, which is closed already when a node that stops
  // frees its locks, nothing would
  const scope = yield* Scope.fork(yield* Effect.scope)
  const PgClient = yield* loadPostgres
  const client = yield* PgClient.make({
    url,
    applicationName: "effect-mcp-sessions",
    connectTimeout: "5 seconds",
    // One for the locks, one for whoever reads
    maxConnections: 3
  }).pipe(
    Effect.provide(Reactivity.layer),
    Scope.provide(scope),
    Effect.mapError((cause) => new PersistenceError({ cause }))
  )
  // The first that is asked of it, which connects
  const [known] = yield* Effect.mapError(
    client<{ readonly isLost: boolean }>`SELECT to_regclass('mcp_cluster_runner_migrations') IS NOT NULL AND (
      to_regclass('mcp_cluster_runners') IS NULL OR to_regclass('mcp_cluster_locks') IS NULL
    ) AS "isLost"`,
    (cause) => new PersistenceError({ cause })
  )
  // That they were made is written into a table of its own, which may be all that somebody has left of them
  if (known?.isLost === true) {
    yield* Effect.mapError(
      client`DELETE FROM mcp_cluster_runner_migrations`,
      (cause) => new PersistenceError({ cause })
    )
  }
  return yield* SqlRunnerStorage.make({ prefix: "mcp_cluster" }).pipe(
    Effect.provideService(SqlClient.SqlClient, client),
    Scope.provide(scope),
    Effect.provideService(ShardingConfig.ShardingConfig, { ...config, shardLockDisableAdvisory: true }),
    Effect.mapError((cause) => new PersistenceError({ cause })),
    // What is wrong with the tables is a defect there: who starts the node can mend it, say with a permission
    Effect.catchDefect((cause) => Effect.fail(new PersistenceError({ cause })))
  )
})
