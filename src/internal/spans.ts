/**
 * Spans that tell nothing they should not, and the `traceparent` that connects those of two machines.
 *
 * A failure in code of others may quote a token in its text, so a span tells the names of such errors and where they
 * were thrown; what this library has made itself comes whole.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import { nameOf, namesAndPlaces } from "./places.ts"

/** The values that a span's attributes have here. */
export type Attributes = Readonly<Record<string, string | number>>

/**
 * Runs an effect in a span. `end` says with what that ends, and may add attributes to it before: by default a failure
 * is told by names and places alone.
 */
export const within = <A, E, R>(
  name: string,
  options: Tracer.SpanOptionsNoTrace,
  run: (span: Tracer.Span) => Effect.Effect<A, E, R>,
  end: (exit: Exit.Exit<A, E>, span: Tracer.Span) => Exit.Exit<unknown, unknown> = plain
): Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>> =>
  Effect.useSpan(name, options, (span) =>
    Effect.withFiber((fiber) =>
      // Before the span is ended with the exit as it is: the first end counts
      Effect.onExitPrimitive(Effect.provideService(run(span), Tracer.ParentSpan, span), (exit) => {
        finish(fiber, span, end(exit, span))
        return undefined
      })
    ))

/** Ends a span by the fiber's clock. */
export const finish = (
  fiber: Fiber.Fiber<unknown, unknown>,
  span: Tracer.Span,
  exit: Exit.Exit<unknown, unknown>
): void => {
  if (span.status._tag === "Ended") return
  const hasTime = fiber.getRef(References.TracerTimingEnabled)
  // What was answered is nobody's business who reads spans
  const told = Exit.isSuccess(exit) ? Exit.void : exit
  span.end(hasTime ? fiber.getRef(Clock.Clock).currentTimeNanosUnsafe() : 0n, told)
}

/** The same exit, with nothing of a failure's text. */
export const plain = (exit: Exit.Exit<unknown, unknown>): Exit.Exit<unknown, unknown> =>
  Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause) ? exit : failed(namesAndPlaces(exit.cause))

/** An exit that says what has failed: the first line is its name, the others are places. */
export const failed = (text: string): Exit.Exit<never, Error> => {
  // Where it is made says nothing, and to find that out takes time
  const error: Error = Object.create(Error.prototype, {
    name: { value: "Error" },
    message: { value: text.split("\n", 1)[0] },
    stack: { value: text }
  })
  return Exit.fail(error)
}

/** The name of what has failed: of a few, as far as it is up to those who have named it. None of an interruption. */
export const errorOf = (exit: Exit.Exit<unknown, unknown>): string | undefined => {
  if (Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)) return undefined
  const error = Cause.squash(exit.cause)
  const reason = Predicate.hasProperty(error, "reason") ? nameOf(error.reason) : undefined
  return reason ?? nameOf(error) ?? "Error"
}

/** Whether a result of MCP says that its tool has failed. */
export const isToolError = (value: unknown): boolean =>
  typeof value === "object" && value !== null && "isError" in value && value.isError === true

/** A URI without what is secret in some: who asks, what for, and now and then a password. */
export const withoutSecrets = (uri: string): string =>
  uri.replace(/^([^:/?#]+:\/\/)[^/?#]*@/, "$1").replace(/[?#].*$/s, "")

/** Whether anybody provides a tracer: what spans tell is told to nobody else. */
export const hasTracer = ({ context }: Fiber.Fiber<unknown, unknown>): boolean =>
  Option.isSome(Context.getOption(context, ProvidedTracer))

// Not the reference, which has a tracer that tells nobody
const ProvidedTracer = Context.Service<Tracer.Tracer>(Tracer.TracerKey)

/** The span that the fiber is in. */
export const current = (fiber: Fiber.Fiber<unknown, unknown>): Tracer.AnySpan | undefined =>
  Option.getOrUndefined(Context.getOption(fiber.context, Tracer.ParentSpan))

/**
 * What a span is to whoever goes on with its trace, https://www.w3.org/TR/trace-context/#traceparent-header. None if
 * its ids are of another kind, or if nothing is to be told.
 */
export const traceparentOf = (
  fiber: Fiber.Fiber<unknown, unknown>,
  span: Tracer.AnySpan | undefined
): string | undefined => {
  if (span === undefined || !fiber.getRef(PropagationEnabled)) return undefined
  const traceparent = `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`
  return isTraceparent.test(traceparent) ? traceparent : undefined
}

/** The span that a `traceparent` names, if it is one. */
export const ofTraceparent = (traceparent: unknown): Tracer.ExternalSpan | undefined => {
  const found = typeof traceparent === "string" ? isTraceparent.exec(traceparent) : null
  if (found === null) return undefined
  const [, traceId, spanId, flags] = found as unknown as readonly [string, string, string, string]
  return Tracer.externalSpan({ traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 })
}

// Ids of nothing but zeroes are none
const isTraceparent = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})$/

// Effect's own `HttpClient.TracerPropagationEnabled`, by its key: that module would load all of the HTTP client
const PropagationEnabled = Context.Reference<boolean>("effect/http/HttpClient/TracerPropagationEnabled", {
  defaultValue: () => true
})
