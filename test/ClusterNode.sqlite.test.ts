import { assert, describe, it } from "@effect/vitest"
import * as Runner from "effect/cluster/Runner"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as ShardId from "effect/cluster/ShardId"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import Database from "libsql"
import { execFileSync } from "node:child_process"
import { mkdirSync, renameSync, rmSync } from "node:fs"
import { join } from "node:path"
import { vi } from "vitest"
import * as Sqlite from "../src/internal/cluster/sqlite.ts"
import { temporaryDirectory } from "./support/temporary.ts"

const expiry = 10_000

const shards = [ShardId.make("mcp", 1), ShardId.make("mcp", 2)]

const runners = [1, 2].map((port) =>
  Runner.make({ address: RunnerAddress.make("127.0.0.1", port), groups: ["mcp"], weight: 1 })
)
const [a, b] = runners as [Runner.Runner, Runner.Runner]

const newFile = () => join(temporaryDirectory("sqlite-"), "cluster.db")

const remove = (file: string) => {
  for (const end of ["", "-wal", "-shm"]) rmSync(file + end, { force: true })
}

/** How many runners another process reads, which opens the file and closes it. */
const elsewhere = (file: string) =>
  Number(execFileSync(process.execPath, [
    "-e",
    `const db = new (require("libsql"))(process.argv[1])
    console.log(db.prepare("SELECT COUNT(*) AS n FROM mcp_cluster_runners").get().n)
    db.close()`,
    file
  ]))

describe("the store of SQLite", () => {
  for (
    const [what, lose] of [
      ["deleted", remove],
      ["replaced", (file: string) => {
        renameSync(file, `${file}.old`)
        remove(file)
      }],
      ["emptied of its tables", (file: string) => {
        const db = new Database(file)
        db.exec("DROP TABLE mcp_cluster_runners; DROP TABLE mcp_cluster_locks")
        db.close()
      }]
    ] as const
  ) {
    it.effect(`gives no lock to two nodes when its file was ${what}`, () =>
      Effect.gen(function*() {
        const file = newFile()
        const first = yield* Sqlite.make(file, expiry)
        yield* first.register(a, true)
        assert.lengthOf(yield* first.acquire(a.address, shards), 2)
        lose(file)
        const second = yield* Sqlite.make(file, expiry)
        yield* second.register(b, true)
        assert.lengthOf(yield* second.acquire(b.address, shards), 2)
        assert.lengthOf(yield* first.refresh(a.address, shards), 0)
        // And they see each other again
        yield* first.register(a, true)
        assert.lengthOf(yield* first.getRunners, 2)
        assert.lengthOf(yield* second.getRunners, 2)
        assert.lengthOf(yield* first.acquire(a.address, shards), 0)
      }))

    it.effect(`gives no lock again of a file that was ${what}, before whoever had it must have noticed`, () =>
      Effect.gen(function*() {
        const file = newFile()
        const first = yield* Sqlite.make(file, expiry)
        const second = yield* Sqlite.make(file, expiry)
        assert.lengthOf(yield* first.acquire(a.address, shards), 2)
        lose(file)
        assert.lengthOf(yield* second.acquire(b.address, shards), 0)
        yield* TestClock.adjust(expiry - 1)
        assert.lengthOf(yield* second.acquire(b.address, shards), 0)
        assert.lengthOf(yield* first.refresh(a.address, shards), 0)
        yield* TestClock.adjust(1)
        assert.lengthOf(yield* second.acquire(b.address, shards), 2)
      }))
  }

  it.effect("is shared with other processes as before when its file was away for a while", () =>
    Effect.gen(function*() {
      const directory = join(temporaryDirectory("sqlite-"), "store")
      mkdirSync(directory)
      const file = join(directory, "cluster.db")
      const store = yield* Sqlite.make(file, expiry)
      yield* store.register(a, true)
      renameSync(directory, `${directory}.away`)
      yield* Effect.flip(store.getRunners)
      renameSync(`${directory}.away`, directory)
      yield* store.getRunners
      // Whoever is the last to close such a file takes what the others write into with it
      assert.strictEqual(elsewhere(file), 1)
      yield* store.register(b, true)
      assert.strictEqual(elsewhere(file), 2)
    }).pipe(TestClock.withLive))

  it.effect("knows what the others have by the machine's clock, whatever a process makes of its own", () =>
    Effect.gen(function*() {
      const file = newFile()
      const store = yield* Sqlite.make(file, expiry)
      yield* store.register(a, true)
      assert.lengthOf(yield* store.acquire(a.address, shards), 2)
      const { now } = Date
      for (const hours of [1, -1]) {
        const jumped = vi.spyOn(Date, "now").mockImplementation(() => now() + hours * 3_600_000)
        yield* Effect.addFinalizer(() => Effect.sync(() => jumped.mockRestore()))
        assert.lengthOf(yield* store.getRunners, 1)
        assert.lengthOf(yield* store.acquire(b.address, shards), 0)
        assert.lengthOf(yield* store.refresh(a.address, shards), 2)
      }
    }).pipe(TestClock.withLive))

  it.effect("lets go of what a lost node had within its time, also when the clock was set back", () =>
    Effect.gen(function*() {
      const file = newFile()
      yield* TestClock.setTime(3_600_000)
      const store = yield* Sqlite.make(file, expiry)
      yield* store.register(a, true)
      yield* store.register(b, true)
      assert.lengthOf(yield* store.acquire(a.address, shards), 2)
      yield* TestClock.setTime(0)
      // It may live, by a clock that nobody has set
      assert.lengthOf(yield* store.acquire(b.address, shards), 0)
      yield* TestClock.setTime(expiry)
      assert.lengthOf(yield* store.getRunners, 0)
      assert.lengthOf(yield* store.acquire(b.address, shards), 2)
      assert.lengthOf(yield* store.refresh(a.address, shards), 0)
    }))
})
