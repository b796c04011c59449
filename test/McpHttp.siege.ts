/**
 * Users of both layers among hundreds of clients that mean no good, over real connections: what they are answered, how
 * long they wait for it, and what is left of the siege when it is over. Three minutes: `npm run load` runs it, `npm test` not.
 */
import { execFile, spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { underLoad } from "./support/load.ts"
import type { SiegeOptions, SiegeReport } from "./support/siege.ts"

const script = fileURLToPath(new URL("./support/siege.ts", import.meta.url))

// A network of one's own, with nothing in it but loopback
const inNamespace = ["unshare", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]
const hasNamespace = spawnSync(inNamespace[0]!, [...inNamespace.slice(1), "true"]).status === 0

const besiege = (options: Omit<SiegeOptions, "namespace">) =>
  Effect.promise(async (signal): Promise<SiegeReport> => {
    const command = [
      ...hasNamespace ? inNamespace : [],
      process.execPath,
      "--import",
      "tsx",
      script,
      JSON.stringify({ ...options, namespace: hasNamespace } satisfies SiegeOptions)
    ]
    const { stdout } = await promisify(execFile)(command[0]!, command.slice(1), { signal })
    return JSON.parse(stdout)
  })

const clients = 500

describe("McpHttp under siege", () => {
  it.live(
    `serves ${clients} users among strangers who vanish, never read, stop half-way and come in floods; nothing is left`,
    () =>
      Effect.gen(function*() {
        const report = yield* besiege({
          clients,
          duration: 60_000,
          thinking: 2_500,
          timeToLive: 10_000,
          rate: 1,
          turns: 2
        })
        const { after, before, besieged, calls, quiet, settled, strangers, wrong } = report
        yield* Effect.logInfo("The siege is over", { ...report, wrong: wrong.length })
        assert.deepStrictEqual(wrong, [])
        assert.deepStrictEqual(after.unhandled, [])
        assert.deepStrictEqual([after.sessions, after.sockets, after.closeFailures, after.told], [0, 0, 0, 0])
        assert.isAbove(calls, clients)
        assert.includeMembers(Object.keys(strangers), ["vanish", "never read", "upgrade: 400", "half: 408", "guess"])
        assert.isBelow(settled, 60_000)
        // What a machine does besides is not in it: both were measured in turns
        assert.isAtMost(besieged, 2 * quiet)
        assert.isBelow(after.heap, before.heap * 1.1)
      }),
    underLoad
  )
})
