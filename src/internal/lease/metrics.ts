/**
 * The metrics of a pool or a registry. They follow from what the engine tells, and from a look at its sessions when
 * somebody reads.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Option from "effect/Option"
import * as Meters from "../meters.ts"
import * as Spans from "../spans.ts"
import * as Time from "../time.ts"
import * as Leased from "./leased.ts"

export interface Options<I, A, E> {
  /** Whose they are. */
  readonly labels: Meters.Labels
  readonly instruments: Instruments
  readonly capacity: number
  readonly engine: () => Leased.Leased<I, A, E>
  /** What else there is now. */
  readonly gauges?: ReadonlyArray<readonly [instrument: Meters.Instrument, read: () => number]> | undefined
  /** What is counted anyway. */
  readonly counts: ReadonlyArray<readonly [instrument: Meters.Instrument, count: () => number]>
  /** Whether series are told apart by the upstream of an owner, and what that is. */
  readonly upstreamOf?: ((owner: I) => Option.Option<string>) | undefined
  /** Why it was retired, in the owner's words. */
  readonly reasonOf?: ((slot: Leased.Slot<I, A, E>, reason: Leased.Reason) => string) | undefined
}

/** What those are called that count and measure the same of both. */
export interface Instruments {
  readonly sessions: Meters.Instrument
  readonly capacity: Meters.Instrument
  readonly retirements: Meters.Instrument
  readonly openFailures: Meters.Instrument
  readonly closeFailures: Meters.Instrument
  readonly opens: Meters.Instrument
  readonly uses: Meters.Instrument
  readonly closes: Meters.Instrument
  readonly lives: Meters.Instrument
  /** Only where somebody waits, and hits and misses are told apart. */
  readonly line?: {
    readonly leases: Meters.Instrument
    readonly waits: Meters.Instrument
    readonly waiting: Meters.Instrument
    readonly waitings: Meters.Instrument
  } | undefined
}

export interface Metrics<I, A, E> {
  /** The same hooks, and what they tell is counted. */
  readonly watch: <H extends Leased.Hooks<I, A, E>>(hooks: H) => H
  /** Measures how long somebody waits. */
  readonly wait: <B, E2, R>(owner: I, waiting: Effect.Effect<B, E2, R>) => Effect.Effect<B, E2, R>
}

/** The series of one upstream. */
interface Series {
  /** Who waits now. */
  waiting: number
  /** The leases of sessions that have left, and so will have no more. */
  readonly leases: Meters.Counter | undefined
  readonly waits: Meters.Counter | undefined
  readonly waitings: Meters.Histogram | undefined
  readonly opens: Meters.Histogram
  readonly uses: Meters.Histogram
  readonly closes: Meters.Histogram
  readonly lives: (reason: string) => Meters.Histogram
  readonly retirements: (reason: string) => Meters.Counter
  readonly openFailures: (reason: string) => Meters.Counter
  readonly closeFailures: (reason: string) => Meters.Counter
}

const timeouts: ReadonlySet<string> = new Set(["ConnectTimeout", "OpenTimeout"])

const states = ["opening", "leased", "idle", "draining", "closing"] as const

type State = typeof states[number]

export const make = Effect.fnUntraced(
  function*<I, A, E>(
    { capacity, counts, engine, gauges = [], instruments, labels, reasonOf, upstreamOf }: Options<I, A, E>
  ) {
    const meter = Meters.make(yield* Effect.context<never>())
    if (meter === undefined) return off<I, A, E>()
    const time = Time.make(yield* Clock.Clock)
    const upstreams = meter.bound(`upstream of ${Object.values(labels).join()}`)
    const errors = meter.bound("error")
    const series = new Map<string, Series>()
    const ends: Array<() => void> = []
    yield* Effect.addFinalizer(() => Effect.sync(() => ends.forEach((end) => end())))

    const nameOf = (owner: I): string => {
      const upstream = upstreamOf?.(owner)
      return upstream === undefined || upstream._tag === "None" ? "" : upstreams(upstream.value)
    }

    const seriesOf = (owner: I): Series => {
      const upstream = nameOf(owner)
      let found = series.get(upstream)
      if (found === undefined) {
        found = begin(upstream)
        series.set(upstream, found)
      }
      return found
    }

    const begin = (upstream: string): Series => {
      const own = upstreamOf === undefined ? labels : { ...labels, upstream }
      const { closeFailures, closes, line, lives, openFailures, opens, retirements, sessions, uses } = instruments
      const begun: Series = {
        waiting: 0,
        leases: line && meter.counter(line.leases, own),
        waits: line && meter.counter(line.waits, own),
        waitings: line && meter.histogram(line.waitings, own),
        opens: meter.histogram(opens, own),
        uses: meter.histogram(uses, own),
        closes: meter.histogram(closes, own),
        lives: byReason((reason) => meter.histogram(lives, { ...own, reason })),
        retirements: byReason((reason) => meter.counter(retirements, { ...own, reason })),
        openFailures: byReason((reason) => meter.counter(openFailures, { ...own, reason })),
        closeFailures: byReason((reason) => meter.counter(closeFailures, { ...own, reason }))
      }
      if (begun.leases !== undefined) counted(begun.leases, () => look(upstream, "leases"))
      for (const state of states) {
        ends.push(meter.gauge(sessions, { ...own, state }, () => look(upstream, state)))
      }
      if (line !== undefined) ends.push(meter.gauge(line.waiting, own, () => begun.waiting))
      return begun
    }

    /** Adds what is counted elsewhere, for as long as the pool lives, and at its end for good. */
    const counted = (counter: Meters.Counter, count: () => number): void => {
      counter.others.add(count)
      ends.push(() => {
        counter.others.delete(count)
        counter.count += count()
      })
    }

    // Whoever reads the series reads each of them once: they are all of one look, and a second read is a second look.
    let seen = new Map<string, number>()
    const read = new Set<string>()
    const look = (upstream: string, what: State | "leases"): number => {
      const key = `${what} ${upstream}`
      if (read.size === 0 || read.has(key)) {
        read.clear()
        seen = survey()
      }
      read.add(key)
      return seen.get(key) ?? 0
    }

    const survey = (): Map<string, number> => {
      const found = new Map<string, number>()
      const add = (what: State | "leases", owner: I, count: number) => {
        const key = `${what} ${nameOf(owner)}`
        found.set(key, (found.get(key) ?? 0) + count)
      }
      const sessions = engine()
      Leased.expire(sessions)
      for (const slot of Leased.all(sessions)) {
        add(stateOf(sessions, slot), slot.info, 1)
        // Those of one that is closing have been counted when it left its place
        if (slot.phase !== "closing") add("leases", slot.info, slot.uses)
      }
      return found
    }

    ends.push(meter.gauge(instruments.capacity, labels, () => capacity))
    for (const [instrument, value] of gauges) ends.push(meter.gauge(instrument, labels, value))
    for (const [instrument, count] of counts) counted(meter.counter(instrument, labels), count)
    if (upstreamOf === undefined) series.set("", begin(""))

    const metrics: Metrics<I, A, E> = {
      watch: (hooks) => ({
        ...hooks,
        onAdmitted: (slot) => {
          slot.used = seriesOf(slot.info).uses
          hooks.onAdmitted?.(slot)
        },
        onOpened: (slot) => {
          seriesOf(slot.info).opens.record((slot.openedAt - slot.since) / 1_000)
          hooks.onOpened(slot)
        },
        onOpenFailed: (slot, cause) => {
          const reason = Spans.errorOf(Exit.failCause(cause))
          if (reason !== undefined && !Leased.isShutDown(engine())) {
            seriesOf(slot.info).openFailures(timeouts.has(reason) ? "timeout" : errors(reason)).count++
          }
          hooks.onOpenFailed(slot, cause)
        },
        onRetired: (slot, reason) => {
          seriesOf(slot.info).retirements(reasonOf?.(slot, reason) ?? reason).count++
          hooks.onRetired(slot, reason)
        },
        onLeft: (slot) => {
          const { leases } = seriesOf(slot.info)
          if (leases !== undefined) leases.count += slot.uses
          hooks.onLeft?.(slot)
        },
        onClosed: (slot, lived) => {
          const { closes, lives } = seriesOf(slot.info)
          closes.record((time.now() - slot.since) / 1_000)
          lives(reasonOf?.(slot, slot.retired!) ?? slot.retired!).record(Duration.toSeconds(lived))
          hooks.onClosed(slot, lived)
        },
        onCloseFailed: (slot, reason) => {
          seriesOf(slot.info).closeFailures(reason).count++
          hooks.onCloseFailed(slot, reason)
        }
      }),
      wait: (owner, waiting) => {
        let ended: (() => void) | undefined
        const begun = Effect.suspend(() => {
          const found = seriesOf(owner)
          const moment = time.now()
          if (found.waits !== undefined) found.waits.count++
          found.waiting++
          ended = () => {
            found.waiting--
            found.waitings?.record((time.now() - moment) / 1_000)
          }
          return waiting
        })
        // The guard comes first
        return Effect.onExitPrimitive(begun, () => {
          ended?.()
          return undefined
        })
      }
    }
    return metrics
  }
)

const off = <I, A, E>(): Metrics<I, A, E> => ({ watch: (hooks) => hooks, wait: (_, waiting) => waiting })

const byReason = <S>(begin: (reason: string) => S): (reason: string) => S => {
  const made = new Map<string, S>()
  return (reason) => {
    let found = made.get(reason)
    if (found === undefined) {
      found = begin(reason)
      made.set(reason, found)
    }
    return found
  }
}

const stateOf = <I, A, E>(engine: Leased.Leased<I, A, E>, slot: Leased.Slot<I, A, E>): State => {
  if (slot.phase === "closing") return "closing"
  if (Leased.isDraining(engine, slot)) return "draining"
  return slot.phase !== "open" ? "opening" : slot.leases > 0 ? "leased" : "idle"
}
