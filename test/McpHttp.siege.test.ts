/**
 * Users of both layers among clients that mean no good, over real connections: what they are answered, how long they
 * wait for it, and what is left of the siege when it is over.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile, spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { many, underLoad } from "./support/load.ts"
import type { SiegeOptions, SiegeReport } from "./support/siege/siege.ts"

const script = fileURLToPath(new URL("./support/siege/siege.ts", import.meta.url))

// A network of one's own, with nothing in it but loopback
const inNamespace = ["unshare", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]
const namespace = spawnSync(inNamespace[0]!, [...inNamespace.slice(1), "true"]).status === 0

const besiege = (options: Omit<SiegeOptions, "namespace">) =>
  Effect.promise(async (signal): Promise<SiegeReport> => {
    const [command, ...args] = [
      ...namespace ? inNamespace : [],
      process.execPath,
      "--import",
      "tsx",
      script,
      JSON.stringify({ ...options, namespace } satisfies SiegeOptions)
    ]
    const { stdout } = await promisify(execFile)(command!, args, { signal })
    return JSON.parse(stdout)
  })

const users = many(24, 500)

describe("McpHttp under siege", () => {
  it.live(
    `serves ${users} users among strangers who vanish, never read, stop half-way and come in floods; nothing is left`,
    () =>
      Effect.gen(function*() {
        const { after, before, calls, came, p99, wrong } = yield* besiege({
          users,
          duration: many(3_000, 60_000),
          thinking: many(250, 2_500),
          timeToLive: many(1_000, 5_000),
          rate: many(3, 1),
          flood: 20,
          turns: 1,
          patience: many(100_000, 300_000)
        })
        assert.deepStrictEqual(wrong, [])
        assert.deepStrictEqual(after.unhandled, [])
        assert.deepStrictEqual([after.sessions, after.sockets, after.closeFailures, after.told], [0, 0, 0, 0])
        assert.includeMembers(Object.keys(came), ["vanish", "never read", "upgrade: 400", "half: 408", "guess"])
        assert.isAbove(calls.besieged, users)
        // The small siege is too short to measure, on a machine that has other things to do
        assert.isAtMost(p99.besieged, many(Infinity, 2 * p99.quiet))
        assert.isBelow(after.heap, before.heap * many(1.3, 1.1))
      }),
    underLoad
  )
})
