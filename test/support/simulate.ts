/**
 * `npm run simulate -- --seeds 10000 --from 0 --only pool`
 */
import { parseArgs } from "node:util"
import { cluster, pool, registry, report } from "./simulations.ts"

const { values } = parseArgs({
  options: {
    seeds: { type: "string", default: "1000" },
    from: { type: "string", default: "0" },
    only: { type: "string" }
  }
})
const [seeds, from] = [Number(values.seeds), Number(values.from)]
for (const { name, simulate } of [pool, registry, cluster]) {
  if (values.only !== undefined && values.only !== name) continue
  const violation = simulate(from, seeds)
  process.stdout.write(
    violation === undefined
      ? `${name}: ${seeds} seeds from ${from}: no invariant was broken\n`
      : `${name}: ${report(violation)}\n`
  )
  if (violation !== undefined) process.exitCode = 1
}
