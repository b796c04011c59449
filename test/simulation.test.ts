import { assert, describe, it } from "@effect/vitest"
import { report, simulate } from "./support/simulation.ts"

describe("simulation", () => {
  // Ten blocks, so that a failure says so early and the reporter shows that something moves.
  for (let block = 0; block < 10; block++) {
    it(`all ten invariants hold in random programs ${block * 150} to ${block * 150 + 149}`, () => {
      const violation = simulate(block * 150, 150)
      assert.isUndefined(violation, violation && report(violation))
    })
  }
})
