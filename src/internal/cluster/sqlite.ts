/**
 * A store for several processes of one machine, in a file that they share.
 *
 * Whatever is written says until when it holds, by the clock of the machine, which is the same for all of them.
 */
import * as Clock from "effect/Clock"
import { PersistenceError } from "effect/cluster/ClusterError"
import * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { closeSync, openSync } from "node:fs"
import { load } from "./peers.ts"

const loadSqlite = load("keeps its SQLite store with libsql", "libsql", () => import("libsql"))

const schema = `
  CREATE TABLE IF NOT EXISTS mcp_cluster_runners (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    address TEXT NOT NULL UNIQUE,
    runner TEXT NOT NULL,
    healthy INTEGER NOT NULL,
    lives_until INTEGER NOT NULL
  );
  CREATE TABLE IF NOT EXISTS mcp_cluster_locks (
    shard TEXT PRIMARY KEY,
    address TEXT NOT NULL,
    held_until INTEGER NOT NULL
  ) WITHOUT ROWID`

interface RunnerRow {
  readonly runner: string
  readonly healthy: number
}

/** Locks and heartbeats hold for `expiry` milliseconds. Fails when the file can't be opened, or is none of SQLite's. */
export const make = Effect.fnUntraced(function*(
  file: string,
  expiry: number
): Effect.fn.Return<RunnerStorage.RunnerStorage["Service"], PersistenceError, Scope.Scope> {
  const { default: Sqlite } = yield* loadSqlite
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()

  // Who may write to it may take every session, so it is nobody else's
  const open = attempt(() => {
    closeSync(openSync(file, "a", 0o600))
    // Nobody waits in SQLite itself, which would stop the process: see `patience`
    const database = new Sqlite(file, { timeout: 0 })
    try {
      // What a crash of the machine can lose is who held which lock, and then nobody does
      database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
      database.exec(schema)
      return database
    } catch (error) {
      database.close()
      throw error
    }
  })
  const db = yield* Effect.acquireRelease(open, (database) => Effect.sync(() => database.close()))

  const beat = db.prepare("UPDATE mcp_cluster_runners SET lives_until = ? WHERE address = ?")
  const insert = db.prepare(`
    INSERT INTO mcp_cluster_runners (address, runner, healthy, lives_until) VALUES (?, ?, ?, ?)
    ON CONFLICT (address) DO UPDATE SET
      runner = excluded.runner, healthy = excluded.healthy, lives_until = excluded.lives_until
    RETURNING id`)
  const remove = db.prepare("DELETE FROM mcp_cluster_runners WHERE address = ? OR lives_until <= ?")
  const judge = db.prepare("UPDATE mcp_cluster_runners SET healthy = ? WHERE address = ?")
  const living = db.prepare("SELECT runner, healthy FROM mcp_cluster_runners WHERE lives_until > ?")
  const take = db.prepare(`
    INSERT INTO mcp_cluster_locks (shard, address, held_until) VALUES (?, ?, ?)
    ON CONFLICT (shard) DO UPDATE SET address = excluded.address, held_until = excluded.held_until
      WHERE address = excluded.address OR held_until <= ?`)
  const keep = db.prepare("UPDATE mcp_cluster_locks SET held_until = ? WHERE shard = ? AND address = ?")
  const free = db.prepare("DELETE FROM mcp_cluster_locks WHERE shard = ? AND address = ?")
  const freeAll = db.prepare("DELETE FROM mcp_cluster_locks WHERE address = ?")

  // The others see all of it or nothing
  const write = <A>(f: () => A): Effect.Effect<A, PersistenceError> => attempt(() => db.transaction(f).immediate())

  return RunnerStorage.makeEncoded({
    register: (address, runner, healthy) =>
      write(() => (insert.get(address, runner, Number(healthy), now() + expiry) as { readonly id: number }).id),
    unregister: (address) => write(() => void remove.run(address, now())),
    setRunnerHealth: (address, healthy) => write(() => void judge.run(Number(healthy), address)),
    getRunners: attempt(() =>
      (living.all(now()) as ReadonlyArray<RunnerRow>).map(({ healthy, runner }) => [runner, healthy === 1] as const)
    ),
    acquire: (address, shards) =>
      write(() => {
        const at = now()
        return shards.filter((shard) => take.run(shard, address, at + expiry, at).changes === 1)
      }),
    refresh: (address, shards) =>
      write(() => {
        const until = now() + expiry
        beat.run(until, address)
        return shards.filter((shard) => keep.run(until, shard, address).changes === 1)
      }),
    release: (address, shard) => write(() => void free.run(shard, address)),
    releaseAll: (address) => write(() => void freeAll.run(address))
  })
})

// Another process writes for a millisecond, or was frozen while it did
const patience = { times: 200, schedule: Schedule.spaced(5) }

const isBusy = (error: unknown): boolean => /BUSY|LOCKED/i.test(String((error as { readonly code?: unknown }).code))

const attempt = <A>(f: () => A): Effect.Effect<A, PersistenceError> =>
  Effect.try({ try: f, catch: (cause) => new PersistenceError({ cause }) }).pipe(
    Effect.retry({ ...patience, while: ({ cause }) => isBusy(cause) })
  )
