import { assert, describe, it } from "@effect/vitest"
import { report, simulate } from "./support/registrySimulation.ts"

describe("simulation of the registry", () => {
  // Ten blocks, so that a failure says so early and the reporter shows that something moves.
  for (let block = 0; block < 10; block++) {
    it(`all invariants hold in random programs ${block * 60} to ${block * 60 + 59}`, () => {
      const violation = simulate(block * 60, 60)
      assert.isUndefined(violation, violation && report(violation))
    })
  }
})
