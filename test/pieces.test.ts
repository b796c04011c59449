import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Pieces from "../src/internal/host/pieces.ts"

describe("a long answer", () => {
  it.effect("is the same in pieces, each of whole characters", () =>
    Effect.gen(function*() {
      for (let before = 65_534; before <= 65_538; before++) {
        const text = `${"x".repeat(before)}${"\u{1F600}".repeat(100_000)}${"é".repeat(before)}`
        const pieces = yield* Stream.runCollect(Pieces.ofText(text))
        const read = pieces.map((piece) => new TextDecoder("utf-8", { fatal: true }).decode(piece))
        assert.isTrue(read.join("") === text, `${read.join("").length} of ${text.length} characters, or others`)
        assert.isAtMost(Math.max(...read.map(({ length }) => length)), 65_536)
        const bytes = new TextEncoder().encode(text)
        const parts = yield* Stream.runCollect(Pieces.ofBytes(bytes))
        assert.isTrue(Buffer.concat(parts).equals(bytes))
        assert.isAtMost(Math.max(...parts.map(({ length }) => length)), 65_536)
      }
    }))

  it.effect("is made bytes one piece at a time", () =>
    Effect.gen(function*() {
      const taken = yield* Stream.runCollect(Stream.chunks(Pieces.ofText("x".repeat(200_000))))
      assert.deepStrictEqual(taken.map((pieces) => pieces.map(({ length }) => length)), [
        [65_536],
        [65_536],
        [65_536],
        [3_392]
      ])
    }))
})
