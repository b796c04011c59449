import { assert, describe, it } from "@effect/vitest"
import { many, underLoad } from "./support/load.ts"
import { pool } from "./support/poolSimulation.ts"
import { registry } from "./support/registrySimulation.ts"
import { report } from "./support/simulator.ts"

// In ten blocks each, so that a failure says so early and the reporter shows that something moves.
describe.each([
  { simulator: pool, block: many(50, 300) },
  { simulator: registry, block: many(20, 120) }
])("simulation of the $simulator.name", ({ block, simulator }) => {
  for (let from = 0; from < 10 * block; from += block) {
    it(`all invariants hold in random programs ${from} to ${from + block - 1}`, underLoad, () => {
      const violation = simulator.simulate(from, block)
      assert.isUndefined(violation, violation && report(violation))
    })
  }
})
