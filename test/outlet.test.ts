import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Outlet from "../src/internal/host/outlet.ts"
import { fork, settle } from "./support/fibers.ts"
import { heap } from "./support/heap.ts"

/** A stream, and what its client has read of it. */
const open = Effect.gen(function*() {
  const heard: Array<string> = []
  const outlet = Outlet.make({
    request: HttpServerRequest.fromWeb(new Request("http://localhost")),
    services: yield* Effect.context<Scope.Scope>(),
    maxAge: Infinity,
    patience: Infinity,
    last: () => [],
    onEnd: () => undefined
  })
  const read = (stream = outlet.stream) =>
    Stream.runForEach(stream, (chunk) => Effect.sync(() => heard.push(new TextDecoder().decode(chunk))))
  return { heard, outlet, read }
})

const turn = Effect.promise(() => new Promise((done) => setImmediate(done)))

describe("a stream of events", () => {
  for (const begins of ["with silence", "with a message before it is read", "with a message as it is read"]) {
    it.effect(`that begins ${begins} is never silent for more than 15 seconds`, () =>
      Effect.gen(function*() {
        const { heard, outlet, read } = yield* open
        if (begins.endsWith("before it is read")) outlet.say(["{}"])
        yield* fork(read())
        if (begins.endsWith("as it is read")) outlet.say(["{}"])
        yield* turn
        yield* settle
        assert.isAbove(heard.length, 0)
        for (let i = 0; i < 4; i++) {
          if (i === 2) outlet.say(["{}"])
          yield* settle
          heard.length = 0
          yield* TestClock.adjust("15 seconds")
          yield* settle
          assert.deepStrictEqual(heard, [":\n\n"])
        }
      }))
  }

  it.effect("is read in the order in which it was said, in whole characters", () =>
    Effect.gen(function*() {
      for (let before = 65_534; before <= 65_538; before++) {
        const { heard, outlet, read } = yield* open
        const whole = "x".repeat(before) + "\u{1F600}".repeat(100_000)
        const events = ["a", whole, "\u{1F600}", "é".repeat(200_000), ...Array.from("many"), "\u{1F600}"]
        outlet.say(["data: ", whole])
        yield* read(Stream.tap(outlet.stream, () =>
          Effect.sync(() => {
            if (heard.length !== 1) return
            for (const event of events) outlet.say([event])
            assert.strictEqual(outlet.buffered(), Buffer.byteLength(events.join("")))
            outlet.close()
          })))
        const said = ["data: ", whole, ...events].join("")
        assert.isTrue(heard.join("") === said, `${heard.join("").length} of ${said.length} characters, or others`)
        assert.strictEqual(outlet.buffered(), 0)
      }
    }))

  it.effect("gives a long event piece by piece, in bigger ones while something waits behind it", () =>
    Effect.gen(function*() {
      const { heard, outlet, read } = yield* open
      outlet.say(["x".repeat(2_000_000)])
      yield* read(Stream.tap(outlet.stream, () =>
        Effect.sync(() => {
          if (heard.length === 2) outlet.say(["next"])
          if (heard.length === 3) outlet.close()
        })))
      assert.deepStrictEqual(heard.map(({ length }) => length), [65_536, 65_536, 65_536, 1_048_576, 754_816, 4])
    }))

  it.effect("counts as unread what was said since its client has begun to take what it takes", () =>
    Effect.gen(function*() {
      const { outlet, read } = yield* open
      const unread: Array<number> = []
      const look = () => unread.push(outlet.buffered())
      outlet.say(["x".repeat(3_000_000)])
      look()
      yield* read(Stream.tap(outlet.stream, () =>
        Effect.sync(() => {
          look()
          if (unread.length !== 3) return
          outlet.say(["é"])
          look()
          outlet.close()
        })))
      assert.deepStrictEqual(unread, [3_000_000, 0, 0, 2, 2, 2, 2, 0])
    }))

  it.effect("keeps nothing of what its client has taken", () =>
    Effect.gen(function*() {
      const { outlet } = yield* open
      const before = yield* heap
      yield* fork(Stream.runDrain(outlet.stream))
      outlet.say([JSON.stringify("x".repeat(32 * 1024 * 1024))])
      yield* turn
      yield* settle
      assert.strictEqual(outlet.buffered(), 0)
      assert.isBelow((yield* heap) - before, 16 * 1024 * 1024)
    }))

  it.effect("that is dropped ends after a whole event", () =>
    Effect.gen(function*() {
      const { heard, outlet, read } = yield* open
      const first = "x".repeat(100_000)
      outlet.say(["data: ", first, "\n\n"])
      yield* read(Stream.tap(outlet.stream, () =>
        Effect.sync(() => {
          outlet.say(["second"])
          outlet.drop()
        })))
      assert.isTrue(heard.join("") === `data: ${first}\n\n`, `${heard.join("").length} characters`)
    }))
})
