/**
 * Nodes that are stopped, killed and started under load, and a store that goes away. Only for `npm run load`: it takes
 * three minutes.
 */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import {
  call,
  freePorts,
  type NodeProcess,
  quick,
  rolesOf,
  settled,
  startProcess,
  until
} from "./support/clusterProcesses.ts"
import { underLoad } from "./support/load.ts"
import { startPostgres } from "./support/postgres.ts"
import { PostgresCluster } from "./support/postgresCluster.ts"
import { isAlive } from "./support/processes.ts"
import { temporaryDirectory } from "./support/temporary.ts"

layer(PostgresCluster.layer, { excludeTestServices: true })("ClusterNode.layer whose Postgres goes away", (test) => {
  test.effect(
    "ends its sessions while the store is silent, fails typed, and goes on when it is back",
    () =>
      Effect.gen(function*() {
        const { nodes, postgres } = yield* PostgresCluster
        const { other, pid } = yield* rolesOf(nodes, "alice")
        yield* postgres.stop
        yield* until("the child is gone", () => Promise.resolve(!isAlive(pid)))
        const failed = yield* Effect.promise(() => other.call("alice"))
        assert.deepInclude(failed, { error: "ClusterUnavailable" })
        yield* postgres.start
        yield* settled(nodes)
        const [one, two] = yield* Effect.forEach(nodes, (node) => call(node, "alice"))
        assert.deepStrictEqual(one, two)
        assert.notStrictEqual(one!.text, String(pid))
      }),
    underLoad
  )

  test.effect(
    "has what a node had that was killed, within the time of a lock",
    () =>
      Effect.gen(function*() {
        const { nodes } = yield* PostgresCluster
        const { other, owner } = yield* rolesOf(nodes, "alice")
        process.kill(owner.pid, "SIGKILL")
        const since = performance.now()
        yield* Effect.promise(() => other.call("alice"))
        assert.strictEqual((yield* call(other, "alice")).runner, other.name)
        assert.isBelow(performance.now() - since, 6_000)
      }),
    underLoad
  )
})

interface Churned {
  readonly calls: number
  readonly failures: Readonly<Record<string, number>>
  /** Calls that have run more than once. */
  readonly twice: number
  /** Calls that were answered, and have not run. */
  readonly invented: number
  /** How often a session was used after its successor. */
  readonly overlaps: number
  /** With what those have ended that were stopped. */
  readonly ends: ReadonlyArray<number | null>
}

/** Three nodes, twelve users who call without a pause, and every five seconds one leaves and another one joins. */
const churn = (storage: string, seconds: number): Effect.Effect<Churned, string, Scope.Scope> =>
  Effect.gen(function*() {
    const file = join(temporaryDirectory("churn-"), "notes")
    const start = Effect.gen(function*() {
      const [port] = yield* freePorts(1)
      return yield* startProcess({ port: port!, storage, env: quick })
    })
    let nodes: Array<NodeProcess> = yield* Effect.all([start, start, start], { concurrency: "unbounded" })
    yield* settled(nodes)
    const end = performance.now() + seconds * 1_000
    const failures: Record<string, number> = {}
    const answered = new Set<string>()
    const stopped: Array<Promise<number | null>> = []
    let calls = 0

    const user = Effect.fnUntraced(function*(i: number) {
      const key = `user${i}`
      while (performance.now() < end) {
        const line = `${key}:${++calls}`
        const node = nodes[calls % nodes.length]!
        const ms = calls % 40
        // Who asked a node that was killed is never answered
        const answer = yield* Effect.promise(() =>
          Promise.race([node.call(key, "note", { file, line, ms }), node.exited])
        )
        if (typeof answer !== "object" || answer === null) continue
        if (answer.error === undefined) {
          answered.add(line)
        } else {
          const why = `${answer.error} ${answer.reason ?? ""}`
          failures[why] = (failures[why] ?? 0) + 1
          yield* Effect.sleep(50)
        }
      }
    })

    const events = Effect.gen(function*() {
      for (let i = 0; performance.now() < end - 5_000; i++) {
        yield* Effect.sleep("5 seconds")
        const leaving = nodes[i % nodes.length]!
        nodes = nodes.filter((node) => node !== leaving)
        process.kill(leaving.pid, i % 2 === 0 ? "SIGKILL" : "SIGTERM")
        if (i % 2 === 1) stopped.push(leaving.exited)
        nodes = [...nodes, yield* start]
      }
    })

    yield* Effect.all([events, ...Array.from({ length: 12 }, (_, i) => user(i))], { concurrency: "unbounded" })

    const runs = new Map<string, number>()
    const pids = new Map<string, Array<string>>()
    let overlaps = 0
    for (const note of readFileSync(file, "utf8").trim().split("\n")) {
      const [line = "", pid = ""] = note.split(" ")
      const [key = ""] = line.split(":")
      runs.set(line, (runs.get(line) ?? 0) + 1)
      const seen = pids.get(key) ?? []
      if (seen.includes(pid) && seen.at(-1) !== pid) overlaps++
      if (!seen.includes(pid)) seen.push(pid)
      pids.set(key, seen)
    }
    const churned = {
      calls,
      failures,
      twice: Array.from(runs.values()).filter((n) => n > 1).length,
      invented: Array.from(answered).filter((line) => !runs.has(line)).length,
      overlaps,
      ends: yield* Effect.orDie(Effect.timeout(Effect.promise(() => Promise.all(stopped)), "20 seconds"))
    }
    yield* Effect.logInfo("churned", churned)
    return churned
  })

const holds = ({ calls, ends, failures, invented, overlaps, twice }: Churned) => {
  assert.deepStrictEqual({ twice, invented, overlaps }, { twice: 0, invented: 0, overlaps: 0 })
  assert.deepStrictEqual(ends.filter((code) => code !== 0), [])
  assert.isAbove(calls, 1_000)
  const typed = /^(?:McpSessionError (?:SessionClosed|Unreachable)|ClusterUnavailable \w+|PoolClosed )$/
  assert.deepStrictEqual(Object.keys(failures).filter((why) => !typed.test(why)), [])
}

describe("nodes that come and go under load for 60 seconds", () => {
  it.live(
    "run nothing twice, have one session for each identity, and fail typed, on SQLite",
    () =>
      Effect.gen(function*() {
        holds(yield* churn(`sqlite:${join(temporaryDirectory("cluster-"), "cluster.db")}`, 60))
      }),
    underLoad
  )

  it.live(
    "run nothing twice, have one session for each identity, and fail typed, on Postgres",
    () =>
      Effect.gen(function*() {
        const { url } = yield* startPostgres
        holds(yield* churn(url, 60))
      }),
    underLoad
  )
})
