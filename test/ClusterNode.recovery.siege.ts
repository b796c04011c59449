/**
 * How long it takes, with the defaults, until an identity is served again whose node is stopped, killed or frozen, or
 * whose store is away: the table of the README. Only for `npm run load`; by itself
 *
 *     npx vitest run --config vitest.load.config.ts test/ClusterNode.recovery.siege.ts
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { join } from "node:path"
import { call, freePorts, type NodeProcess, rolesOf, said, startProcess, until } from "./support/clusterProcesses.ts"
import { underLoad } from "./support/load.ts"
import { startPostgres } from "./support/postgres.ts"
import { temporaryDirectory } from "./support/temporary.ts"

const table: Array<string> = []

const seconds = (times: ReadonlyArray<number>) => {
  const sorted = times.toSorted((a, b) => a - b).map((time) => (time / 1_000).toFixed(1))
  return sorted[0] === sorted.at(-1) ? `${sorted[0]} s` : `${sorted[0]}–${sorted.at(-1)} s`
}

const row = (what: string, failed: ReadonlyArray<number>, served: ReadonlyArray<number>) => {
  table.push(`| ${what} | ${failed.length === 0 ? "none failed" : seconds(failed)} | ${seconds(served)} |`)
  console.log(table.join("\n"))
}

const start = (storage: string) => Effect.flatMap(freePorts(1), ([port]) => startProcess({ port: port!, storage }))

const allHere = (nodes: ReadonlyArray<NodeProcess>) =>
  until("all shards are somebody's", async () => {
    const shares = await Promise.all(nodes.map(async ({ ask }) => Number((await ask({ ask: "shards" })).value)))
    return shares.every((share) => share > 0) && shares.reduce((sum, share) => sum + share, 0) === 100
  })

/**
 * Calls from a node until one is served, elsewhere than where it was: a node that was told to stop may serve some
 * before it hears so. Gives when the first call had failed, if it did, and when one had not.
 */
const outage = Effect.fnUntraced(function*(node: NodeProcess, since: number, was?: string) {
  let failed: number | undefined
  while (true) {
    const answer = yield* Effect.promise(() => node.call("alice"))
    const at = performance.now() - since
    if (answer.error !== undefined) failed ??= at
    else if (said(answer).runner !== was) return { failed, served: at }
    yield* Effect.sleep(20)
  }
})

const rounds = 3

const measure = (what: string, signal: "SIGTERM" | "SIGKILL" | "SIGSTOP") =>
  Effect.gen(function*() {
    const storage = `sqlite:${join(temporaryDirectory("recovery-"), "cluster.db")}`
    const three = [start(storage), start(storage), start(storage)]
    let nodes: ReadonlyArray<NodeProcess> = yield* Effect.all(three, { concurrency: "unbounded" })
    const failed: Array<number> = []
    const served: Array<number> = []
    for (let i = 0; i < rounds; i++) {
      yield* allHere(nodes)
      const { other, owner } = yield* rolesOf(nodes, "alice")
      // So that what it calls next is sent to the owner at once
      yield* call(other, "alice")
      const since = performance.now()
      process.kill(owner.pid, signal)
      const times = yield* outage(other, since, owner.name)
      if (times.failed !== undefined) failed.push(times.failed)
      served.push(times.served)
      if (signal === "SIGTERM") {
        assert.strictEqual(yield* Effect.timeout(Effect.promise(() => owner.exited), "20 seconds"), 0)
      }
      owner.child.kill("SIGKILL")
      nodes = [...nodes.filter((node) => node !== owner), yield* start(storage)]
    }
    row(what, failed, served)
    return { failed, served }
  })

describe("with the defaults", () => {
  it.live(
    "an identity is served again at once when its node stops, no call fails, and the node ends",
    () =>
      Effect.gen(function*() {
        const { failed, served } = yield* measure("stopped (SIGTERM)", "SIGTERM")
        assert.deepStrictEqual(failed, [])
        assert.isBelow(Math.max(...served), 6_000)
      }),
    underLoad
  )

  it.live(
    "an identity is served again within 12 seconds when its node was killed",
    () =>
      Effect.gen(function*() {
        const { served } = yield* measure("killed (SIGKILL)", "SIGKILL")
        assert.isBelow(Math.max(...served), 12_500)
      }),
    underLoad
  )

  it.live(
    "an identity is served again when its node was frozen, at the latest when that was asked in vain",
    () =>
      Effect.gen(function*() {
        const { served } = yield* measure("frozen (SIGSTOP)", "SIGSTOP")
        assert.isBelow(Math.max(...served), 20_000)
      }),
    underLoad
  )

  it.live(
    "an identity is served again when the store is back",
    () =>
      Effect.gen(function*() {
        const failed: Array<number> = []
        const served: Array<number> = []
        const postgres = yield* startPostgres
        const nodes = yield* Effect.all([start(postgres.url), start(postgres.url)], { concurrency: "unbounded" })
        for (let i = 0; i < 2; i++) {
          yield* allHere(nodes)
          const { other } = yield* rolesOf(nodes, "alice")
          yield* postgres.stop
          yield* Effect.sleep("15 seconds")
          yield* postgres.start
          const times = yield* outage(other, performance.now())
          if (times.failed !== undefined) failed.push(times.failed)
          served.push(times.served)
        }
        row("its Postgres away for 15 s, from when it is back", failed, served)
        assert.isBelow(Math.max(...served), 30_000)
      }),
    underLoad
  )
})
