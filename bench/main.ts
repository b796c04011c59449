/**
 * `npm run bench`, or `npm run bench -- hits memory` for a part of it; with `--check` it fails past the bars of
 * bars.ts. Ratios against a named peer, both sides measured in turns in one process: the figures themselves are this
 * machine's.
 */
import * as Effect from "effect/Effect"
import { parseArgs } from "node:util"
import * as Cluster from "./cluster.ts"
import * as Expiry from "./expiry.ts"
import * as Growth from "./growth.ts"
import * as Headers from "./headers.ts"
import * as Hits from "./hits.ts"
import * as Inbound from "./inbound.ts"
import * as Memory from "./memory.ts"
import * as Misses from "./misses.ts"
import * as Opens from "./opens.ts"
import * as Registry from "./registry.ts"
import * as Routed from "./routed.ts"
import * as Sessions from "./sessions.ts"
import { failures, print } from "./support.ts"
import * as Upstreams from "./upstreams.ts"

const parts = {
  hits: Hits.main,
  headers: Headers.main,
  misses: Misses.main,
  expiry: Expiry.main,
  memory: Memory.main,
  sessions: Sessions.main,
  opens: Opens.main,
  upstreams: Upstreams.main,
  registry: Registry.main,
  inbound: Inbound.main,
  cluster: Cluster.main,
  routed: Routed.main,
  growth: Growth.main
}

/** What takes so long that it runs only when it is asked for. */
const long = new Set(["growth"])

const { positionals: wanted, values: { check } } = parseArgs({
  options: { check: { type: "boolean", default: false } },
  allowPositionals: true
})
const unknown = wanted.filter((name) => !Object.hasOwn(parts, name))
if (unknown.length > 0) throw new Error(`no such part: ${unknown}, but ${Object.keys(parts)}`)

print(`Node ${process.version}`)
const chosen = Object.entries(parts).filter(([name]) => wanted.length === 0 ? !long.has(name) : wanted.includes(name))
await Effect.runPromise(Effect.forEach(chosen, ([, part]) => part, { discard: true }))

if (check) {
  print(failures.length === 0 ? "\nNothing is past its bar" : `\nPast its bar:\n  ${failures.join("\n  ")}`)
  if (failures.length > 0) process.exitCode = 1
}
