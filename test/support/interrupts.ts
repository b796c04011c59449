/**
 * Calls that are interrupted at random, and what they leave behind in this process.
 */
import { assert } from "@effect/vitest"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import { getEventListeners } from "node:events"
import { callTool } from "../../src/internal/client/sdk.ts"
import type { AnySession, Generation } from "./generations.ts"
import { many } from "./load.ts"

export const interruptedCalls = many(15, 1_000)

/**
 * Makes the calls, and asserts that none of them has left a listener on a signal, nor so many on any that Node warned.
 */
export const interruptCalls = Effect.fnUntraced(function*(
  connector: Generation,
  session: AnySession,
  concurrency: number
) {
  const warnings: Array<string> = []
  const onWarning = ({ name }: Error) => void warnings.push(name)
  yield* Effect.acquireRelease(
    Effect.sync(() => process.on("warning", onWarning)),
    () => Effect.sync(() => process.off("warning", onWarning))
  )
  const signals: Array<AbortSignal> = []
  const slow = (ms: number) => {
    const params = { name: "slow", arguments: { ms } }
    return session.request((client, options) => {
      signals.push(options.signal)
      return callTool(client, params, options)
    })
  }
  yield* Effect.forEach(
    Array.from({ length: interruptedCalls }),
    () =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(slow(yield* Random.nextIntBetween(0, 20)))
        yield* Effect.sleep(yield* Random.nextIntBetween(0, 20))
        yield* Fiber.interrupt(fiber)
      }),
    { concurrency, discard: true }
  )
  // Warnings are emitted in a later tick
  yield* Effect.sleep(0)
  assert.notInclude(warnings, "MaxListenersExceededWarning")
  // Each call has a signal of its own. The first generation never takes its listener off it, so it must go with the
  // call.
  const left = connector === McpConnector ? 1 : 0
  assert.isAbove(signals.length, 0)
  assert.strictEqual(new Set(signals).size, signals.length)
  assert.isAtMost(Math.max(...signals.map((signal) => getEventListeners(signal, "abort").length)), left)
})
