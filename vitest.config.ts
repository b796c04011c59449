import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

// Vitest can't say what has failed without it, and Node 20 has none.
if (!("groupBy" in Map)) {
  Object.assign(Map, {
    groupBy: <A, K>(items: Iterable<A>, keyOf: (item: A) => K) => {
      const groups = new Map<K, Array<A>>()
      for (const item of items) {
        const key = keyOf(item)
        groups.set(key, [...groups.get(key) ?? [], item])
      }
      return groups
    }
  })
}

const src = (path: string) => fileURLToPath(new URL(`./src/${path}`, import.meta.url))

/** The package by its own name, as users write it. */
export const resolve = {
  alias: [
    { find: /^effect-mcp-sessions$/, replacement: src("index.ts") },
    { find: /^effect-mcp-sessions\/(.+)$/, replacement: src("$1.ts") }
  ]
}

/** What takes longer than some seconds, by the beginning of its name: what computes and what waits by turns. */
const longest = [
  "package.",
  "McpHttp.streams.",
  "McpHttp.endings.",
  "McpHttp.eventStore.",
  "examples.",
  "McpHttp.unread.",
  "McpConnector.stdio.",
  "ClusterNode.integration.",
  "simulation.",
  "McpHttp.routed.",
  "SessionPool.invariants.",
  "support-servers.",
  "McpConnector.http.",
  "McpHttp.integration.",
  "ClusterNode.postgres.",
  "McpHttp.guard.test.",
  "SessionCluster.test.",
  "Authorization.secrets.",
  "McpPool.",
  "McpConnector.standby.",
  "McpHttp.arrivals."
]

const rank = ({ moduleId }: TestSpecification) => {
  const index = longest.findIndex((name) => moduleId.includes(`/test/${name}`))
  return index === -1 ? longest.length : index
}

/**
 * So that at the end nobody waits for one of them alone. Vitest goes by the times of an earlier run, which a fresh
 * clone has not, or by the size of files.
 */
class LongestFirst extends BaseSequencer {
  override sort(files: Array<TestSpecification>) {
    return Promise.resolve(files.toSorted((a, b) => rank(a) - rank(b)))
  }
}

// What tests run they seldom run for so long that it is worth to optimize it: another tenth. Newer ones have a compiler
// between the two
const lateToOptimize = process.versions.node.startsWith("20.") ? ["--interrupt-budget=1000000"] : []

export default defineConfig({
  resolve,
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/setup.ts"],
    setupFiles: ["test/support/leaks.ts"],
    testTimeout: 30_000,
    // Some start several processes, and a database
    hookTimeout: 30_000,
    // To load Effect and the SDKs takes a second, and most files take less: a worker runs one after the other.
    isolate: false,
    sequence: { sequencer: LongestFirst },
    // Three more than there are cores: many tests wait, for a child, a socket or a clock. Each takes 4 s of CPU
    maxWorkers: availableParallelism() + 3,
    // Workers make much garbage, and there are as many of them as can run: each collects its own in a tenth less time
    execArgv: ["--max-semi-space-size=64", "--single-threaded-gc", ...lateToOptimize],
    tags: [{ name: "load", description: "Runs with great numbers in `npm run load`, with smaller ones in `npm test`" }],
    provide: { load: false, seed: Number(process.env["SEED"] ?? 0) }
  }
})
