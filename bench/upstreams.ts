import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { Identity } from "../src/Identity.ts"
import * as McpConnector from "../src/McpConnector.ts"
import { SessionPool } from "../src/SessionPool.ts"
import { bars } from "./bars.ts"
import { inProcess } from "./servers.ts"
import { median, table } from "./support.ts"

// A command that ends as soon as it has started, and costs the machine next to nothing.
const crashing = McpConnector.stdio({ command: "false" })

let crashes = 0

const pool = SessionPool.layer({
  capacity: 30,
  capacityPerUpstream: 10,
  acquireTimeout: "1 second",
  failureBackoff: Schedule.exponential("500 millis"),
  connect: (identity, handle) => {
    switch (Option.getOrThrow(identity.upstream)) {
      case "hung":
        return Effect.never
      case "crashing":
        crashes++
        return crashing(identity, handle)
      default:
        return inProcess(identity, handle)
    }
  }
}).pipe(Layer.provide(Logger.layer([])))

const users = (upstream: string) => Array.from({ length: 100 }, (_, i) => Identity.fromKey(`user-${i}`).at(upstream))

/** Calls until it is interrupted, each some time after the one before. */
const callForEver = (identity: Identity, onCall: (millis: number) => void) =>
  Effect.suspend(() => {
    const started = performance.now()
    return SessionPool.withSession(identity, (session) => session.callTool({ name: "echo" })).pipe(
      Effect.andThen(Effect.sync(() => onCall(performance.now() - started))),
      Effect.exit,
      Effect.andThen(Effect.sleep("100 millis"))
    )
  }).pipe(Effect.forever)

/** p99 in nanoseconds of the calls on the healthy upstream in two seconds, with callers of the others or without. */
const round = Effect.fnUntraced(function*(others: ReadonlyArray<string>) {
  const calls: Array<number> = []
  const fibers = yield* Effect.forEach(
    ["healthy", ...others].flatMap(users),
    (identity) =>
      Effect.forkChild(callForEver(
        identity,
        (millis) => void calls.push(millis)
      ))
  )
  yield* Effect.sleep("2 seconds")
  yield* Fiber.interruptAll(fibers)
  return calls.toSorted((a, b) => a - b)[Math.floor(calls.length * 0.99)]! * 1e6
})

/** 300 identities, ten places for each of three upstreams. The others never answer a call, so theirs do not count. */
export const main = Effect.gen(function*() {
  const alone: Array<number> = []
  const beside: Array<number> = []
  yield* round([])
  for (let i = 0; i < 5; i++) {
    alone.push(yield* Effect.provide(round([]), pool))
    beside.push(yield* Effect.provide(round(["hung", "crashing"]), pool))
  }
  table(
    `p99 of 100 callers, ${crashes / 5} starts of the crashing upstream in two seconds`,
    new Map([["alone", median(alone)], ["beside a hung and a crashing upstream", median(beside)]]),
    "alone",
    { "beside a hung and a crashing upstream": bars.besideBroken }
  )
}).pipe(Effect.provide(pool))
