/**
 * One node that is cut off from the store of all, in each way in which that happens. Only for `npm run load`.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { freePorts, type NodeProcess, rolesOf, startProcess, until } from "./support/clusterProcesses.ts"
import { type Gate, gateTo, type Shut } from "./support/gate.ts"
import { underLoad } from "./support/load.ts"
import { startPostgres } from "./support/postgres.ts"
import { isAlive } from "./support/processes.ts"
import { temporaryDirectory } from "./support/temporary.ts"

const shards = (nodes: ReadonlyArray<NodeProcess>) =>
  Promise.all(nodes.map(async ({ ask }) => Number((await ask({ ask: "shards" })).value)))

const allHere = (nodes: ReadonlyArray<NodeProcess>) =>
  until("all shards are somebody's", async () => {
    const shares = await shards(nodes)
    return shares.every((share) => share > 0) && shares.reduce((sum, share) => sum + share, 0) === 100
  })

const typed = /^(?:McpSessionError (?:SessionClosed|Unreachable)|ClusterUnavailable \w+|PoolClosed )$/

describe("with the defaults", () => {
  it.live.each<readonly [Shut]>([["cut"], ["hung"], ["half-open"]])(
    "a node whose store is $0 closes what it loses, another one serves it, and it is back when the store is",
    ([how]) =>
      Effect.gen(function*() {
        const { url } = yield* startPostgres
        const file = join(temporaryDirectory("store-"), "notes")
        const gates = new Map<NodeProcess, Gate>()
        const start = Effect.gen(function*() {
          const gate = yield* gateTo(url)
          const [port] = yield* freePorts(1)
          const node = yield* startProcess({ port: port!, storage: gate.url })
          gates.set(node, gate)
          return node
        })
        const nodes = yield* Effect.all([start, start], { concurrency: "unbounded" })
        for (let round = 0; round < 2; round++) {
          yield* allHere(nodes)
          const { other, owner, pid } = yield* rolesOf(nodes, "alice")
          const gate = gates.get(owner)!
          let calls = 0
          const failures: Record<string, number> = {}
          const user = (node: NodeProcess) =>
            Effect.forever(Effect.gen(function*() {
              const answer = yield* Effect.promise(() =>
                node.call("alice", "note", { file, line: `${round}:${node.port}:${++calls}`, ms: 5 })
              )
              const why = answer.error === undefined ? "" : `${answer.error} ${answer.reason ?? ""}`
              if (why !== "") failures[why] = (failures[why] ?? 0) + 1
              yield* Effect.sleep(100)
            }))
          const users = yield* Effect.forEach(nodes, (node) => Effect.forkChild(user(node)))
          const since = performance.now()
          const at = () => Math.round(performance.now() - since)
          gate.shut(how)
          yield* until("the old child is gone", () => Promise.resolve(!isAlive(pid)))
          const gone = at()
          yield* until("it is served elsewhere", async () => {
            const { value } = await other.call("alice")
            return (value as { readonly runner: string } | undefined)?.runner === other.name
          })
          const served = at()
          yield* Effect.sleep("3 seconds")
          gate.open()
          const open = at()
          const back = yield* allHere(nodes)
          yield* Fiber.interruptAll(users)
          console.log(
            `${how}: closed ${gone}, served ${served}, open ${open}, back after ${Math.round(back)}`,
            failures
          )
          assert.isBelow(served, 12_500)
          assert.isBelow(back, 12_500)
          assert.deepStrictEqual(Object.keys(failures).filter((why) => !typed.test(why)), [])
        }
        const runs = new Set<string>()
        const pids: Array<string> = []
        for (const note of readFileSync(file, "utf8").trim().split("\n")) {
          const [line = "", child = ""] = note.split(" ")
          assert.isFalse(runs.has(line), `${line} has run twice`)
          runs.add(line)
          // Whoever was replaced never runs anything again
          if (pids.at(-1) !== child) {
            assert.notInclude(pids, child)
            pids.push(child)
          }
        }
      }),
    underLoad
  )
})
