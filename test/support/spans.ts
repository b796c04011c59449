/**
 * A tracer that keeps its spans.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Tracer from "effect/Tracer"

export interface Recorder {
  readonly tracer: Tracer.Tracer
  readonly spans: ReadonlyArray<Tracer.NativeSpan>
  /** Those of a name, in the order in which they began. */
  readonly named: (name: string) => ReadonlyArray<Tracer.NativeSpan>
  /** The only one of a name. */
  readonly only: (name: string) => Tracer.NativeSpan
  readonly record: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

export const makeRecorder = (): Recorder => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  const named = (name: string) => spans.filter((span) => span.name === name)
  return {
    tracer,
    spans,
    named,
    only: (name) => {
      const [span, ...others] = named(name)
      if (span === undefined || others.length > 0) throw new Error(`${others.length + (span ? 1 : 0)} spans "${name}"`)
      return span
    },
    record: (effect) => Effect.withTracer(effect, tracer)
  }
}

/** What whoever goes on with the trace of the span is told. */
export const traceparentOf = ({ sampled, spanId, traceId }: Tracer.AnySpan): string =>
  `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`

export const attributesOf = ({ attributes }: Tracer.Span): Record<string, unknown> => Object.fromEntries(attributes)

/** The span within which it began. */
export const parentOf = ({ parent }: Tracer.Span): Tracer.AnySpan | undefined =>
  parent._tag === "Some" ? parent.value : undefined

/** With what the span has ended: undefined if it has not. */
export const exitOf = ({ status }: Tracer.Span): Exit.Exit<unknown, unknown> | undefined =>
  status._tag === "Ended" ? status.exit : undefined

export const isFailed = (span: Tracer.Span): boolean => {
  const exit = exitOf(span)
  return exit !== undefined && Exit.isFailure(exit)
}
