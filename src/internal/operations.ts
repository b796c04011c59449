/**
 * How long operations take, by what they are and how they end: of clients and of servers.
 */
import * as Clock from "effect/Clock"
import type * as Fiber from "effect/Fiber"
import * as Meters from "./meters.ts"
import * as Time from "./time.ts"

type AnyFiber = Fiber.Fiber<unknown, unknown>

const methods: ReadonlySet<string> = new Set([
  "completion/complete",
  "elicitation/create",
  "initialize",
  "logging/setLevel",
  "notifications/cancelled",
  "notifications/initialized",
  "notifications/progress",
  "notifications/roots/list_changed",
  "ping",
  "prompts/get",
  "prompts/list",
  "resources/list",
  "resources/read",
  "resources/subscribe",
  "resources/templates/list",
  "resources/unsubscribe",
  "roots/list",
  "sampling/createMessage",
  "server/discover",
  "subscriptions/listen",
  "tasks/cancel",
  "tasks/get",
  "tasks/list",
  "tasks/result",
  "tools/call",
  "tools/list"
])

/** Whether the protocol has a method of this name: it takes no place among names that somebody may have made up. */
export const isMethod = (name: string): boolean => methods.has(name)

/** A moment of the fiber's monotonic clock, in seconds. */
export const now = (fiber: AnyFiber): number => Time.monotonic(fiber.getRef(Clock.Clock))() / 1_000

/** Records an operation that began then and has ended now. What names it comes from outside, and is bounded. */
export const record = (
  fiber: AnyFiber,
  instrument: Meters.Instrument,
  began: number,
  operation: {
    readonly method: string
    readonly error: string | undefined
    readonly server?: string | undefined
  }
): void => {
  const meter = Meters.make(fiber.context)
  if (meter === undefined) return
  let known = histograms.get(meter)
  if (known === undefined) {
    known = new Map()
    histograms.set(meter, known)
  }
  const method = isMethod(operation.method) ? operation.method : meter.bound("method")(operation.method)
  const server = operation.server && meter.bound("server")(operation.server)
  // A code is chosen by the other side, and takes no name from what is called by a word
  const kind = /^-?\d+$/.test(operation.error ?? "") ? "code" : "error"
  const error = operation.error === undefined ? "" : meter.bound(kind)(operation.error)
  const key = `${instrument.name} ${method} ${error} ${server}`
  let histogram = known.get(key)
  if (histogram === undefined) {
    const labels = { ...(server === undefined ? {} : { server }), "mcp.method.name": method, "error.type": error }
    histogram = meter.histogram(instrument, labels)
    known.set(key, histogram)
  }
  histogram.record(now(fiber) - began)
}

// Found without a look at each label
const histograms = new WeakMap<Meters.Meter, Map<string, Meters.Histogram>>()
