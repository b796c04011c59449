/**
 * How long operations take, by what they are and how they end: of clients and of servers.
 */
import * as Clock from "effect/Clock"
import type * as Fiber from "effect/Fiber"
import * as Meters from "./meters.ts"

type AnyFiber = Fiber.Fiber<unknown, unknown>

/** A moment of the fiber's monotonic clock, in seconds. */
export const now = (fiber: AnyFiber): number => Number(fiber.getRef(Clock.Clock).monotonicTimeNanosUnsafe()) / 1e9

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
  const method = meter.bound("method")(operation.method)
  const server = operation.server && meter.bound("server")(operation.server)
  const error = operation.error === undefined ? "" : meter.bound("error")(operation.error)
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
