/**
 * Metrics that cost nothing until somebody reads them: what happens is counted in plain numbers, and a series of the
 * registry reads these when it is read itself.
 *
 * Whoever has the same labels counts in the same series, and counts and histograms outlive those who count: a pool that
 * is built anew goes on where the last one ended. A gauge is there for as long as somebody has something to show.
 */
import * as Context from "effect/Context"
import * as Metric from "effect/Metric"

export type Labels = Readonly<Record<string, string>>

/** A metric, whatever its labels. */
export interface Instrument {
  readonly name: string
  readonly description: string
  /** By UCUM, as OpenTelemetry has it: `s`, or what is counted, in braces. */
  readonly unit: string
  /** What a histogram's buckets end with. */
  readonly boundaries?: ReadonlyArray<number> | undefined
}

/** How metrics are kept, see `Metrics.layer`. */
export interface Settings {
  readonly isEnabled: boolean
  readonly maxNames: number
}

export const Settings = Context.Reference<Settings>("effect-mcp-sessions/Metrics", {
  defaultValue: () => ({ isEnabled: true, maxNames: 100 })
})

export interface Counter {
  count: number
  /** What is counted elsewhere. */
  readonly others: Set<() => number>
}

export interface Histogram {
  readonly record: (value: number) => void
}

export interface Meter {
  readonly counter: (instrument: Instrument, labels: Labels) => Counter
  readonly histogram: (instrument: Instrument, labels: Labels) => Histogram
  /** Shows a number until the result is called. */
  readonly gauge: (instrument: Instrument, labels: Labels, read: () => number) => () => void
  /** Labels for names of a kind that come from outside: themselves for the first of them, and `other` for the rest. */
  readonly bound: (kind: string) => (name: string) => string
}

/** What is called everything that is beyond the bound of names. */
export const other = "other"

// What is longer is no name, and would be kept for ever
const maxLength = 256

/** The meter of the registry in the context; none if metrics are off. */
export const make = (context: Context.Context<never>): Meter | undefined => {
  const settings = Context.get(context, Settings)
  if (!settings.isEnabled) return undefined
  const registry = Context.get(context, Metric.MetricRegistry)
  let meters = registries.get(registry)
  if (meters === undefined) {
    meters = { series: new Map(), bySettings: new Map() }
    registries.set(registry, meters)
  }
  let meter = meters.bySettings.get(settings.maxNames)
  if (meter === undefined) {
    meter = makeMeter(Context.make(Metric.MetricRegistry, registry), meters.series, settings)
    meters.bySettings.set(settings.maxNames, meter)
  }
  return meter
}

interface Meters {
  readonly series: Map<string, unknown>
  readonly bySettings: Map<number, Meter>
}

const registries = new WeakMap<object, Meters>()

const makeMeter = (context: Context.Context<never>, series: Map<string, unknown>, { maxNames }: Settings): Meter => {
  const find = <A>(kind: string, { name }: Pick<Instrument, "name">, labels: Labels, begin: () => A): A => {
    const key = JSON.stringify([kind, name, Object.entries(labels)])
    let found = series.get(key)
    if (found === undefined) {
      found = begin()
      series.set(key, found)
    }
    return found as A
  }
  const bounds = new Map<string, (name: string) => string>()
  return {
    counter: (instrument, labels) => find("counter", instrument, labels, () => counter(context, instrument, labels)),
    histogram: (instrument, labels) =>
      find("histogram", instrument, labels, () => histogram(context, instrument, labels)),
    gauge: (instrument, labels, read) => {
      const gauge = find("gauge", instrument, labels, () => makeGauge(context, instrument, labels))
      gauge.add(read)
      return () => gauge.delete(read)
    },
    bound: (kind) => {
      let label = bounds.get(kind)
      if (label === undefined) {
        const names = find("names", { name: kind }, {}, () => new Set<string>())
        label = (name) => {
          if (names.size < maxNames && name.length <= maxLength) names.add(name)
          return names.has(name) ? name : other
        }
        bounds.set(kind, label)
      }
      return label
    }
  }
}

const readOnly = <A>(get: () => A) => ({ get, update: () => {}, modify: () => {} })

// The exporters take the unit for an attribute
const options = ({ description, unit }: Instrument, labels: Labels) => ({
  description,
  attributes: { ...labels, unit }
})

const counter = (context: Context.Context<never>, instrument: Instrument, labels: Labels): Counter => {
  const self: Counter = { count: 0, others: new Set() }
  const metric = Metric.counter(instrument.name, { ...options(instrument, labels), incremental: true })
  Metric.registerUnsafe(
    metric,
    context,
    readOnly(() => {
      let count = self.count
      for (const read of self.others) count += read()
      return { count, incremental: true }
    })
  )
  return self
}

const makeGauge = (context: Context.Context<never>, instrument: Instrument, labels: Labels) => {
  const readers = new Set<() => number>()
  const metric = Metric.gauge(instrument.name, options(instrument, labels))
  let registration: Metric.Registration | undefined
  return {
    add: (read: () => number) => {
      readers.add(read)
      registration ??= Metric.registerUnsafe(
        metric,
        context,
        readOnly(() => {
          let value = 0
          for (const one of readers) value += one()
          return { value }
        })
      )
    },
    delete: (read: () => number) => {
      readers.delete(read)
      if (readers.size > 0) return
      registration?.remove()
      registration = undefined
    }
  }
}

const histogram = (context: Context.Context<never>, instrument: Instrument, labels: Labels): Histogram => {
  const boundaries = instrument.boundaries ?? []
  const counts = new Float64Array(boundaries.length + 1)
  let count = 0
  // In an array a number of the loop is written in place; in a variable each would be a new object
  const [sum, min, max] = [0, 1, 2] as const
  const seen = new Float64Array([0, Number.MAX_VALUE, -Number.MAX_VALUE])
  const metric = Metric.histogram(instrument.name, { ...options(instrument, labels), boundaries })
  Metric.registerUnsafe(
    metric,
    context,
    readOnly(() => {
      let below = 0
      const buckets = boundaries.map((boundary, i): [number, number] => [boundary, below += counts[i]!])
      return { buckets, count, min: seen[min]!, max: seen[max]!, sum: seen[sum]! }
    })
  )
  return {
    record: (value) => {
      let i = 0
      while (i < boundaries.length && value > boundaries[i]!) i++
      counts[i]!++
      count++
      seen[sum]! += value
      if (value < seen[min]!) seen[min] = value
      if (value > seen[max]!) seen[max] = value
    }
  }
}
