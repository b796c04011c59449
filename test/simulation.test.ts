import { assert, describe, it } from "@effect/vitest"
import { cluster } from "./support/clusterSimulation.ts"
import { many, underLoad } from "./support/load.ts"
import { pool } from "./support/poolSimulation.ts"
import { registry } from "./support/registrySimulation.ts"
import { report } from "./support/simulator.ts"

// In ten blocks each, so that a failure says so early and the reporter shows that something moves. `npm test` has some
// hundred seeds, `npm run load` some thousands, and `npm run simulate` as many as it is told: all begin with 0.
describe.each([
  { simulator: pool, block: many(20, 300) },
  { simulator: registry, block: many(8, 120) },
  { simulator: cluster, block: many(3, 40) }
])("simulation of the $simulator.name", ({ block, simulator }) => {
  for (let from = 0; from < 10 * block; from += block) {
    it(`all invariants hold in random programs ${from} to ${from + block - 1}`, underLoad, () => {
      const violation = simulator.simulate(from, block)
      assert.isUndefined(violation, violation && report(violation))
    })
  }
})
