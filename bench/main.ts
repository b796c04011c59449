/**
 * `npm run bench`, or `npm run bench -- hits memory` for a part of it. Ratios against a named peer, both sides measured in
 * turns in one process: the figures themselves are this machine's.
 */
import * as Effect from "effect/Effect"
import * as Expiry from "./expiry.ts"
import * as Hits from "./hits.ts"
import * as Inbound from "./inbound.ts"
import * as Memory from "./memory.ts"
import * as Misses from "./misses.ts"
import * as Opens from "./opens.ts"
import * as Registry from "./registry.ts"
import { print } from "./support.ts"

const parts = {
  hits: Hits.main,
  misses: Misses.main,
  expiry: Expiry.main,
  memory: Memory.main,
  opens: Opens.main,
  registry: Registry.main,
  inbound: Inbound.main
}

const wanted = process.argv.slice(2)
print(`Node ${process.version}`)
const chosen = Object.entries(parts).filter(([name]) => wanted.length === 0 || wanted.includes(name))
await Effect.runPromise(Effect.forEach(chosen, ([, part]) => part, { discard: true }))
