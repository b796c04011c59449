import * as Effect from "effect/Effect"
import { measure } from "mitata"
import { type Bar, isReached, limit } from "./bars.ts"

/** One side of a comparison: runs `ops` operations. */
export interface Side {
  readonly name: string
  readonly ops: number
  readonly run: () => unknown
}

/** The median of the rounds, in nanoseconds an operation. */
export type Figures = ReadonlyMap<string, number>

export const median = (values: ReadonlyArray<number>): number => values.toSorted((a, b) => a - b)[values.length >> 1]!

/**
 * Measures the sides in turns, so that whatever slows the machine for a while slows all of them.
 */
export const interleave = Effect.fnUntraced(function*(sides: ReadonlyArray<Side>, rounds = 5) {
  const samples = new Map<string, Array<number>>(sides.map((side) => [side.name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const { name, ops, run } of sides) {
      const { p50 } = yield* Effect.promise(() =>
        measure(run, { min_samples: 3, min_cpu_time: 40_000_000, warmup_samples: 1 })
      )
      samples.get(name)!.push(p50 / ops)
    }
  }
  const figures: Figures = new Map(Array.from(samples, ([name, values]) => [name, median(values)]))
  return figures
})

/** Runs an effect so often in one fiber, so that starting a fiber is not what is measured. */
export const repeat = <E, R>(
  ops: number,
  effect: (i: number) => Effect.Effect<unknown, E, R>
): Effect.Effect<void, E, R> =>
  Effect.suspend(() => {
    let i = 0
    return Effect.whileLoop({ while: () => i < ops, body: () => effect(i++), step: () => undefined })
  })

const show = (nanos: number): string => nanos < 10_000 ? `${nanos.toFixed(0)} ns` : `${(nanos / 1_000).toFixed(1)} µs`

/** What is past its bar, by more than noise. */
export const failures: Array<string> = []

/** What to say of a figure that has a bar. It counts as a failure if it is past it. */
export const against = (name: string, figure: number, bar: Bar): string => {
  if (figure > limit(bar)) failures.push(`${name}: ${figure.toFixed(2)} is past ${limit(bar).toFixed(2)}`)
  return isReached(bar) ? `   bar ${bar.goal}` : `   bar ${bar.today}, goal ${bar.goal}`
}

/** Prints the figures, each as a ratio of the peer's too. */
export const table = (
  title: string,
  figures: Figures,
  peer: string,
  bars: Readonly<Record<string, Bar>> = {}
): void => {
  const base = figures.get(peer)!
  print(`\n${title}`)
  for (const [name, nanos] of figures) {
    const bar = bars[name]
    print(
      `  ${name.padEnd(44)} ${show(nanos).padStart(10)} ${(nanos / base).toFixed(2).padStart(7)} ×` +
        (bar === undefined ? "" : against(`${title}, ${name}`, nanos / base, bar))
    )
  }
}

export const print = (line: string): void => void process.stdout.write(`${line}\n`)
