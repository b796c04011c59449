import { assert, describe, it } from "@effect/vitest"
import { createRequire } from "node:module"
import { inject } from "vitest"
import { many, underLoad } from "./support/load.ts"
import type * as Simulations from "./support/simulations.ts"

// As Node runs it, not as Vitest does, which looks up each name in the module that it comes from: a third of the time
const { cluster, pool, registry, report }: typeof Simulations = createRequire(import.meta.url)(
  inject("programs").simulations
)

// In ten blocks each, so that a failure says so early and the reporter shows that something moves. `npm test` has two
// hundred seeds, `npm run load` some thousands, and `npm run simulate` as many as it is told: all begin with 0.
describe.each([
  { simulator: pool, block: many(7, 300) },
  { simulator: registry, block: many(4, 120) },
  { simulator: cluster, block: many(5, 200) }
])("simulation of the $simulator.name", ({ block, simulator }) => {
  for (let from = 0; from < 10 * block; from += block) {
    it(`all invariants hold in random programs ${from} to ${from + block - 1}`, underLoad, () => {
      const violation = simulator.simulate(from, block)
      assert.isUndefined(violation, violation && report(violation))
    })
  }
})
