/**
 * Users of both layers among clients that mean no good, over real connections: what they are answered, how long they
 * wait for it, and what is left of the siege when it is over. Only for `npm run load`: it takes two minutes.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile, spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { underLoad } from "./support/load.ts"
import type { SiegeOptions, SiegeReport } from "./support/siege/siege.ts"

const script = fileURLToPath(new URL("./support/siege/siege.ts", import.meta.url))

// A network of one's own, with nothing in it but loopback
const inNamespace = ["unshare", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]
const namespace = spawnSync(inNamespace[0]!, [...inNamespace.slice(1), "ip", "route"]).status === 0

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

const vanishing = namespace ? "vanish (their packets are dropped)" : "vanish (unread only: no network namespace here)"

describe("McpHttp under siege", () => {
  it.live(
    `serves 500 users among strangers who ${vanishing}, stop half-way and come in floods; nothing is left`,
    () =>
      Effect.gen(function*() {
        const { after, before, besieged, came, quiet, settled, wrong } = yield* besiege({
          users: 500,
          warmUp: 20_000,
          quiet: 30_000,
          siege: 60_000,
          every: 5_000,
          timeToLive: 3_000,
          idleTimeToLive: 30_000,
          // Half of it is of users: those who come and do no more give way
          capacity: 500,
          patience: 300_000
        })
        yield* Effect.sync(() =>
          console.log(JSON.stringify({ quiet, besieged, came, before, after, settled }, null, 1))
        )
        assert.deepStrictEqual(wrong, [])
        assert.deepStrictEqual(after.unhandled, [])
        assert.deepStrictEqual([after.sessions, after.sockets, after.closeFailures, after.told], [0, 0, 0, 0])
        assert.includeMembers(Object.keys(came), ["vanish", "never read", "upgrade: 400", "half: 408", "guess"])
        // The code that only strangers reach has been compiled since, which is 4 MB, and once: sessions would be 100
        assert.isBelow(after.heap, before.heap * 1.2)
      }),
    underLoad
  )
})
