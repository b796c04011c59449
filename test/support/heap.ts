/**
 * What the process keeps.
 */
import { assert, inject } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

setFlagsFromString("--expose-gc")
const collect: () => void = runInNewContext("gc")

/** The bytes of the heap that somebody still refers to. */
export const heap = Effect.gen(function*() {
  for (let i = 0; i < 3; i++) {
    collect()
    yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
  }
  return process.memoryUsage().heapUsed
})

/**
 * Does it twice, and asserts in `npm run load` that the second time leaves no more than `limit` bytes behind. In `npm
 * test` a worker has what many files have loaded: to collect it takes a second, and it moves by more than that.
 */
export const assertLeaves = Effect.fnUntraced(function*<E1, R1, E2, R2>(
  first: Effect.Effect<void, E1, R1>,
  second: Effect.Effect<void, E2, R2>,
  limit: (before: number) => number
) {
  yield* first
  if (!inject("load")) return yield* second
  const before = yield* heap
  yield* second
  assert.isBelow((yield* heap) - before, limit(before))
})
