/**
 * Options are read once, when the layer builds. Nothing unreadable becomes a default: only an option that is left out does.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { InvalidOptions } from "../InvalidOptions.ts"

type Parsed<A> = Effect.Effect<A, InvalidOptions>

export interface Reader {
  readonly count: (option: string, fallback: number) => Parsed<number>
  readonly millis: (option: string, fallback: Duration.Input, rule: DurationRule) => Parsed<number>
  readonly fn: (option: string) => Parsed<void>
  readonly optionalFn: (option: string) => Parsed<void>
}

export interface DurationRule {
  /** The least value: more than zero, or zero itself. */
  readonly least: "positive" | "zero"
  /** Whether the option may be infinite. What a caller waits for may not. */
  readonly infinite?: boolean
}

/**
 * Reads the options of `module`'s layer. Fails at once when they are no object, or have an option that is not in `known`.
 */
export const reader = (module: string, options: unknown, known: ReadonlyArray<string>): Parsed<Reader> => {
  const invalid = (option: string, issue: string) => new InvalidOptions({ module, option, issue })
  if (typeof options !== "object" || options === null) {
    return Effect.fail(invalid("options", `must be an object, got ${show(options)}`))
  }
  const unknown = Object.keys(options).find((option) => !known.includes(option))
  if (unknown !== undefined) return Effect.fail(invalid(unknown, `is not an option: there are ${known.join(", ")}`))
  const read = (option: string): unknown => (options as Record<string, unknown>)[option]
  return Effect.succeed({
    count: (option, fallback) => {
      const value = read(option)
      if (value === undefined) return Effect.succeed(fallback)
      return typeof value === "number" && Number.isInteger(value) && value >= 1
        ? Effect.succeed(value)
        : Effect.fail(invalid(option, `must be an integer of at least 1, got ${show(value)}`))
    },
    millis: (option, fallback, rule) => {
      const value = read(option) === undefined ? fallback : read(option)
      const millis = toMillis(value)
      if (millis === undefined) return Effect.fail(invalid(option, `must be a duration, got ${show(value)}`))
      if (rule.least === "positive" ? millis <= 0 : millis < 0) {
        return Effect.fail(
          invalid(option, `must be ${rule.least === "positive" ? "more than" : "at least"} 0, got ${show(value)}`)
        )
      }
      return millis === Infinity && rule.infinite !== true
        ? Effect.fail(invalid(option, "must be finite: whoever waits for it could wait for ever"))
        : Effect.succeed(millis)
    },
    fn: (option) =>
      typeof read(option) === "function"
        ? Effect.void
        : Effect.fail(invalid(option, `must be a function, got ${show(read(option))}`)),
    optionalFn: (option) =>
      read(option) === undefined || typeof read(option) === "function"
        ? Effect.void
        : Effect.fail(invalid(option, `must be a function, got ${show(read(option))}`))
  })
}

// `Duration.fromInput` reads as zero what it does not know: NaN, an empty object, a misspelt unit.
const toMillis = (input: unknown): number | undefined => {
  if (typeof input === "number") return Number.isNaN(input) ? undefined : input
  if (typeof input === "object" && input !== null && !Duration.isDuration(input)) {
    const parts = Object.entries(input)
    const isKnown = Array.isArray(input)
      ? parts.length === 2
      : parts.length > 0 && parts.every(([unit]) => units.has(unit))
    if (!isKnown || parts.some(([, value]) => typeof value !== "number" || Number.isNaN(value))) return undefined
  }
  return Option.getOrUndefined(Option.map(Duration.fromInput(input as Duration.Input), Duration.toMillis))
}

const units: ReadonlySet<string> = new Set([
  "weeks",
  "days",
  "hours",
  "minutes",
  "seconds",
  "milliseconds",
  "microseconds",
  "nanoseconds"
])

const show = (value: unknown): string => {
  switch (typeof value) {
    case "number":
    case "boolean":
    case "undefined":
      return String(value)
    case "string":
      return JSON.stringify(value.slice(0, 40))
    default:
      return Duration.isDuration(value) ? Duration.format(value) : value === null ? "null" : `a ${typeof value}`
  }
}
