/**
 * `npm run simulate -- --seeds 10000 --from 0`
 */
import { parseArgs } from "node:util"
import { report, simulate } from "./simulation.ts"

const { values } = parseArgs({
  options: { seeds: { type: "string", default: "1000" }, from: { type: "string", default: "0" } }
})
const [seeds, from] = [Number(values.seeds), Number(values.from)]
const violation = simulate(from, seeds)
if (violation === undefined) {
  process.stdout.write(`${seeds} seeds from ${from}: no invariant was broken\n`)
} else {
  process.stdout.write(`${report(violation)}\n`)
  process.exitCode = 1
}
