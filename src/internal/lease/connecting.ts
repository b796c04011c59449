/**
 * What can be seen of an open while it runs: a span, linked to those of the callers that wait for it, and what its logs
 * are annotated with.
 *
 * An open belongs to its pool, so its span is a child of the pool's own; which request has asked for it is what the
 * links say.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import type * as Tracer from "effect/Tracer"
import * as Spans from "../spans.ts"

export interface Connecting {
  /** Runs the open of a session in its span. What it leaves running is annotated, too. */
  readonly run: <A, E, R>(
    session: Session,
    labels: Labels,
    open: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>>
  /** The current fiber waits for the open of this session. */
  readonly join: (session: object) => void
  /** The current fiber waits for a session of this owner to be opened, which may be open as soon as it is begun. */
  readonly ask: (owner: object) => void
  /** Says why the open was ended that now ends. */
  readonly fails: (session: object, error: string) => void
}

interface Session {
  /** Its owner. */
  readonly info: object
}

export type Labels = Readonly<Record<string, string>>

interface Opening {
  readonly links: Array<Tracer.SpanLink>
  span: Tracer.Span | undefined
  error: string | undefined
}

// A herd may wait for one open: the first of it say enough
const maxLinks = 16

export const make = (name: string): Connecting => {
  const openings = new WeakMap<object, Opening>()
  const askers = new WeakMap<object, Tracer.AnySpan>()

  const openingOf = (session: object): Opening => {
    let opening = openings.get(session)
    if (opening === undefined) {
      opening = { links: [], span: undefined, error: undefined }
      openings.set(session, opening)
    }
    return opening
  }

  const link = ({ links, span }: Opening, asker: Tracer.AnySpan | undefined): void => {
    if (asker === undefined || links.length >= maxLinks || links.some((known) => known.span === asker)) return
    const added = { span: asker, attributes: {} }
    links.push(added)
    span?.addLinks([added])
  }

  return {
    run: (session, labels, open) =>
      Effect.withFiber((fiber) => {
        // The finalizers of the open keep its context for as long as the session lives, and the span with it. Where
        // there is no tracer, and no span that the pool is part of, nobody would ever see that.
        if (!Spans.hasTracer(fiber) && Spans.current(fiber) === undefined) {
          openings.delete(session)
          askers.delete(session.info)
          // The fiber is the open's own, and has its own context back when that is over
          const annotations = { ...fiber.getRef(References.CurrentLogAnnotations), ...labels }
          fiber.setContext(Context.add(fiber.context, References.CurrentLogAnnotations, annotations))
          return open as Effect.Effect<never>
        }
        const opening = openingOf(session)
        link(opening, askers.get(session.info))
        askers.delete(session.info)
        return Spans.within(
          name,
          { attributes: labels, links: opening.links },
          (span) => {
            opening.span = span
            return Effect.annotateLogs(open, labels)
          },
          (exit, span) => {
            openings.delete(session)
            const error = opening.error ?? Spans.errorOf(exit)
            if (error !== undefined) span.attribute("error.type", error)
            return Spans.plain(exit)
          }
        )
      }),
    join: (session) => {
      const asker = currentSpan()
      if (asker !== undefined) link(openingOf(session), asker)
    },
    ask: (owner) => {
      const asker = currentSpan()
      if (asker !== undefined) askers.set(owner, asker)
    },
    fails: (session, error) => {
      const opening = openings.get(session)
      if (opening !== undefined) opening.error = error
    }
  }
}

const currentSpan = (): Tracer.AnySpan | undefined => {
  const fiber = Fiber.getCurrent()
  return fiber === undefined ? undefined : Spans.current(fiber)
}
