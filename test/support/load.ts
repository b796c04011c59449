/**
 * Tests whose numbers are the point: `npm test` shows with smaller ones that the rule holds, `npm run load` with great
 * ones that it scales.
 */
import { assert, inject } from "vitest"

declare module "vitest" {
  interface ProvidedContext {
    readonly load: boolean
    readonly seed: number
  }
}

/**
 * What properties draw their cases by. Always the same ones, as the simulations' are, so that a test which was right
 * yesterday is right today; `SEED=4711 npm run load` looks elsewhere.
 */
export const seed = inject("seed")

/** How many: the first in `npm test`, the second in `npm run load`. */
export const many = (test: number, load: number): number => inject("load") ? load : test

/** Which: the first in `npm test`, all in `npm run load`. */
export const some = <A>(first: A, ...others: ReadonlyArray<A>): ReadonlyArray<A> =>
  inject("load") ? [first, ...others] : [first]

/** Which: all in `npm run load`, every other one in `npm test`, so that the next turn has the others. */
export const byTurns = <A>(all: ReadonlyArray<A>, turn: number): ReadonlyArray<A> =>
  inject("load") ? all : all.filter((_, index) => (index + turn) % 2 === 0)

/** The options of such a test. */
export const underLoad = { tags: ["load"], timeout: 600_000 }

/**
 * Asserts that something took less, both in milliseconds, in `npm run load`, where nothing else runs. `npm test` runs
 * files side by side: how long a process waits there for its turn says nothing about the code.
 */
export const assertWithin = (elapsed: number, limit: number): void => {
  if (inject("load")) assert.isBelow(elapsed, limit)
}
