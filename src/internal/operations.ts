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
  { error, method, server }: {
    readonly method: string
    readonly error: string | undefined
    readonly server?: string | undefined
  }
): void => {
  const meter = Meters.make(fiber.context)
  if (meter === undefined) return
  const labels = {
    ...(server === undefined ? {} : { server: meter.bound("server")(server) }),
    "mcp.method.name": meter.bound("method")(method),
    "error.type": error === undefined ? "" : meter.bound("error")(error)
  }
  meter.histogram(instrument, labels).record(now(fiber) - began)
}
