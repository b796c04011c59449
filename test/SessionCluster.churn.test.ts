/**
 * Nodes that stop, join and are cut off while all of them are used, on the clock of the test.
 */
import { assert, describe, it } from "@effect/vitest"
import { McpSessionError } from "effect-mcp-sessions"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as TestClock from "effect/testing/TestClock"
import {
  answer,
  identities,
  inside,
  makeUpstream,
  nodeLayer,
  passing,
  type Started,
  startNode
} from "./support/cluster.ts"
import { fork } from "./support/fibers.ts"
import { many, underLoad } from "./support/load.ts"
import { makeDice } from "./support/world.ts"

/** In seconds. */
const lasts = many(10, 60)

const typed: ReadonlySet<string> = new Set([
  "McpSessionError",
  "PoolExhausted",
  "ConnectTimeout",
  "PoolClosed",
  "ClusterUnavailable"
])

describe("SessionCluster under churn", () => {
  it.effect.each(Array.from({ length: many(1, 5) }, (_, i) => [i + 1] as const))(
    "runs nothing twice, has no two sessions of an identity, and fails with what is typed alone: dice $0",
    ([seed]) =>
      Effect.gen(function*() {
        const dice = makeDice(seed)
        const memory = ClusterNode.memory()
        const upstream = makeUpstream()
        const join = (name: string) => startNode(name, nodeLayer(memory, upstream, name))
        let nodes: ReadonlyArray<Started> = yield* Effect.forEach(["n0", "n1", "n2"], join)
        yield* TestClock.adjust("12 seconds")
        const users = identities(8)
        let calls = 0
        const told = new Map<number, "success" | "unsent" | "sent" | "refused">()
        const errors = new Set<string>()

        const caller = Effect.forever(Effect.gen(function*() {
          const { cluster } = dice.pick(nodes)
          const id = ++calls
          const exit = yield* Effect.exit(
            cluster.withSession(dice.pick(users), (session) => answer(session, "once", { id }))
          )
          const error = Option.getOrUndefined(Exit.findErrorOption(exit))
          if (Exit.isSuccess(exit)) told.set(id, "success")
          else if (error instanceof McpSessionError) told.set(id, error.reason.requestSent ? "sent" : "unsent")
          else told.set(id, "refused")
          if (Exit.isFailure(exit)) errors.add(error?._tag ?? String(exit))
          yield* Effect.sleep(dice.pick([20, 200, 700]))
        }))
        const callers = yield* Effect.forEach(Array.from({ length: 6 }), () => fork(caller))

        for (let second = 0, names = 3; second < lasts; second += 2) {
          yield* passing(Effect.sleep("2 seconds"), 50)
          const roll = dice.next()
          const [first, ...others] = dice.chance(0.5) ? nodes : nodes.toReversed()
          if (roll < 0.3 && others.length > 1) {
            nodes = others
            yield* fork(first!.close)
          } else if (roll < 0.5 && others.length > 1) {
            nodes = others
            yield* inside(memory).cutOff(`${first!.name}:1`)
          } else if (roll < 0.85 && nodes.length < 4) {
            nodes = [...nodes, yield* passing(join(`n${names++}`))]
          }
        }
        yield* Fiber.interruptAll(callers)

        assert.deepStrictEqual(Array.from(errors).filter((tag) => !typed.has(tag)), [])
        assert.deepStrictEqual(Array.from(upstream.runs).filter(([, times]) => times !== 1), [])
        for (const [id, what] of told) {
          const hasRun = upstream.runs.has(String(id))
          if (what === "success") assert.isTrue(hasRun, `${id} was answered and has not run`)
          if (what === "unsent" || what === "refused") assert.isFalse(hasRun, `${id} has run and was said not to have`)
        }
        assert.strictEqual(upstream.overlaps(), 1)
        const answered = Array.from(told.values()).filter((what) => what === "success").length
        assert.isAbove(answered, lasts * 4)
        assert.isAbove(answered, told.size * 0.7)
      }),
    underLoad
  )
})
