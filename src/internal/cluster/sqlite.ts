/**
 * A store for several processes of one machine, in a file that they share.
 *
 * Whatever is written says until when it holds, by the clock of the machine, which is the same for all of them. It is
 * SQLite that reads it: what a process makes of its own `Date` is nothing to the others.
 */
import * as Clock from "effect/Clock"
import { PersistenceError } from "effect/cluster/ClusterError"
import * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { closeSync, openSync, statSync } from "node:fs"
import * as Time from "../time.ts"
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

/** The file as it was opened, and what is asked of it. */
const open = (Sqlite: Effect.Success<typeof loadSqlite>["default"], file: string) => {
  create(file)
  // Nobody waits in SQLite itself, which would stop the process: see `patience`
  const db = new Sqlite(file, { timeout: 0 })
  try {
    // What a crash of the machine can lose is who held which lock, and then nobody does
    db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
    db.exec(schema)
    const version = db.prepare("PRAGMA schema_version")
    // Another number whenever a table is made or dropped
    const tables = () => (version.get() as { readonly schema_version: number }).schema_version
    return {
      db,
      inode: inodeOf(file),
      made: tables(),
      tables,
      clock: db.prepare("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now"),
      beat: db.prepare("UPDATE mcp_cluster_runners SET lives_until = ? WHERE address = ?"),
      insert: db.prepare(`
        INSERT INTO mcp_cluster_runners (address, runner, healthy, lives_until) VALUES (?, ?, ?, ?)
        ON CONFLICT (address) DO UPDATE SET
          runner = excluded.runner, healthy = excluded.healthy, lives_until = excluded.lives_until
        RETURNING id`),
      remove: db.prepare("DELETE FROM mcp_cluster_runners WHERE address = ? OR lives_until <= ?"),
      judge: db.prepare("UPDATE mcp_cluster_runners SET healthy = ? WHERE address = ?"),
      living: db.prepare("SELECT runner, healthy FROM mcp_cluster_runners WHERE lives_until > ?"),
      take: db.prepare(`
        INSERT INTO mcp_cluster_locks (shard, address, held_until) VALUES (?, ?, ?)
        ON CONFLICT (shard) DO UPDATE SET address = excluded.address, held_until = excluded.held_until
          WHERE address = excluded.address OR held_until <= ?`),
      keep: db.prepare("UPDATE mcp_cluster_locks SET held_until = ? WHERE shard = ? AND address = ?"),
      free: db.prepare("DELETE FROM mcp_cluster_locks WHERE shard = ? AND address = ?"),
      freeAll: db.prepare("DELETE FROM mcp_cluster_locks WHERE address = ?"),
      shortenLives: db.prepare("UPDATE mcp_cluster_runners SET lives_until = ?1 WHERE lives_until > ?1"),
      shortenLocks: db.prepare("UPDATE mcp_cluster_locks SET held_until = ?1 WHERE held_until > ?1")
    }
  } catch (error) {
    db.close()
    throw error
  }
}

// Who may write to it may take every session, so it is nobody else's. One that is there is left alone: to close it is
// to lose every lock that this process has on it, those of SQLite too (fcntl), and then whoever closes the database
// next takes its log away as if nobody else had it.
const create = (file: string): void => {
  try {
    closeSync(openSync(file, "wx", 0o600))
  } catch (error) {
    if ((error as { readonly code?: unknown }).code !== "EEXIST") throw error
  }
}

type Store = ReturnType<typeof open>

// None when there is no file
const inodeOf = (file: string): string | undefined => {
  const stats = statSync(file, { bigint: true, throwIfNoEntry: false })
  return stats && `${stats.dev}:${stats.ino}`
}

/**
 * Locks and heartbeats hold for `expiry` milliseconds. Fails when the file can't be opened, or is none of SQLite's.
 *
 * A file that was deleted or replaced, or whose tables were dropped, is opened anew: who kept to the old one would
 * share its locks with nobody, beside those who come later. It has none of the node's locks, so that the node loses
 * what it had with its next heartbeat. It has those of the others as little, which hold until they notice: nothing is
 * taken from it until they must have.
 */
export const make = Effect.fnUntraced(function*(
  file: string,
  expiry: number
): Effect.fn.Return<RunnerStorage.RunnerStorage["Service"], PersistenceError, Scope.Scope> {
  const { default: Sqlite } = yield* loadSqlite
  const clock = yield* Clock.Clock
  const now = Time.isLive(clock)
    ? (store: Store) => (store.clock.get() as { readonly now: number }).now
    : () => clock.currentTimeMillisUnsafe()

  let current: Store | undefined
  const close = () => {
    current?.db.close()
    current = undefined
  }
  let last: Pick<Store, "inode" | "made"> | undefined
  let heldBefore = -Infinity
  const opened = (): Store => {
    if (current !== undefined && (current.inode !== inodeOf(file) || current.made !== current.tables())) close()
    if (current === undefined) {
      current = open(Sqlite, file)
      const { inode, made } = current
      if (last !== undefined && (last.inode !== inode || last.made !== made)) heldBefore = now(current) + expiry
      last = { inode, made }
    }
    return current
  }
  yield* Effect.acquireRelease(attempt(opened), () => Effect.sync(close))

  // The others see all of it or nothing. What was written before the clock was set back holds no longer than the rest:
  // counted from now on, because whoever wrote it lives by a clock that was not.
  const write = <A>(f: (store: Store, at: number) => A): Effect.Effect<A, PersistenceError> =>
    attempt(() => {
      const store = opened()
      return store.db.transaction(() => {
        const at = now(store)
        store.shortenLives.run(at + expiry)
        store.shortenLocks.run(at + expiry)
        return f(store, at)
      }).immediate()
    })

  return RunnerStorage.makeEncoded({
    register: (address, runner, healthy) =>
      write(({ insert }, at) =>
        (insert.get(address, runner, Number(healthy), at + expiry) as { readonly id: number }).id
      ),
    unregister: (address) => write(({ remove }, at) => void remove.run(address, at)),
    setRunnerHealth: (address, healthy) => write(({ judge }) => void judge.run(Number(healthy), address)),
    getRunners: attempt(() => {
      const store = opened()
      return (store.living.all(now(store)) as ReadonlyArray<RunnerRow>)
        .map(({ healthy, runner }) => [runner, healthy === 1] as const)
    }),
    acquire: (address, shards) =>
      write(({ take }, at) =>
        at < heldBefore ? [] : shards.filter((shard) => take.run(shard, address, at + expiry, at).changes === 1)
      ),
    refresh: (address, shards) =>
      write(({ beat, keep }, at) => {
        beat.run(at + expiry, address)
        return shards.filter((shard) => keep.run(at + expiry, shard, address).changes === 1)
      }),
    release: (address, shard) => write(({ free }) => void free.run(shard, address)),
    releaseAll: (address) => write(({ freeAll }) => void freeAll.run(address))
  })
})

// Another process writes for a millisecond, or was frozen while it did
const patience = { times: 200, schedule: Schedule.spaced(5) }

const isBusy = (error: unknown): boolean => /BUSY|LOCKED/i.test(String((error as { readonly code?: unknown }).code))

const attempt = <A>(f: () => A): Effect.Effect<A, PersistenceError> =>
  Effect.try({ try: f, catch: (cause) => new PersistenceError({ cause }) }).pipe(
    Effect.retry({ ...patience, while: ({ cause }) => isBusy(cause) })
  )
