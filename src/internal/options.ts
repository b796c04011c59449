/**
 * The options of a module, each declared once. How it is read, its default, its environment variable and its row in the
 * README follow from that declaration, and the compiler holds it against the interface that users see:
 *
 *     const options = Options.declare<PoolOptions>()({ module: "Pool", variables: "MCP_POOL" }, {
 *       connect: Options.required(Options.fn),
 *       capacity: Options.withDefault(Options.count, 10, { aliases: ["MCP_SESSION_MAX"] }),
 *       idleTimeToLive: Options.withDefault(Options.timeToLive, "5 minutes")
 *     })
 *
 * Options are read once, when a layer builds or a connector is made. Nothing unreadable becomes a default: only an
 * option that is left out does.
 */
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Record from "effect/Record"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Strings from "effect/String"
import { type Configurable, InvalidOptions } from "../InvalidOptions.ts"

// -----------------------------------------------------------------------------
// Kinds of options
// -----------------------------------------------------------------------------

/**
 * What an option may be (`In`), and what it is read as.
 */
export interface Kind<in In, out Out> {
  /** What it must be, worded to follow "must be". */
  readonly rule: string
  /** None for what has no meaning. */
  readonly read: (value: unknown) => Option.Option<Out>
  /** Reads it from a variable. Left out for what a variable can't express. */
  readonly config?: ((variable: string) => Config.Config<unknown>) | undefined
  /** No error quotes it. */
  readonly isSecret?: boolean | undefined
  readonly "~accepts"?: (value: In) => void
}

/** A kind for one module only. */
export const custom = <In, Out>(kind: Kind<In, Out>): Kind<In, Out> => kind

/** An integer of at least 1. */
export const count = custom<number, number>({
  rule: "an integer of at least 1",
  read: Option.liftPredicate((value): value is number =>
    typeof value === "number" && Number.isInteger(value) && value >= 1
  ),
  config: Config.Number
})

// A variable has milliseconds as a number, or any text that `Duration.Input` may be.
const duration = (rule: string, isMeant: (millis: number) => boolean): Kind<Duration.Input, number> => ({
  rule,
  read: (value) => Option.filter(toMillis(value), isMeant),
  config: (variable) => Config.schema(Schema.Union([Schema.Number, Schema.DurationFromString]), variable)
})

// Durations are read as milliseconds. What a caller waits for must end, so it may not be infinite.

/** How long something may take. */
export const timeout = duration("a finite duration of more than 0", (millis) => millis > 0 && millis < Infinity)

/** How long something may take, where 0 means that it is not waited for. */
export const patience = duration("a finite duration of at least 0", (millis) => millis >= 0 && millis < Infinity)

/** How long something is kept. */
export const timeToLive = duration("a duration of more than 0", (millis) => millis > 0)

/** How long something is kept or left alone, where 0 means not at all. */
export const span = duration("a duration of at least 0", (millis) => millis >= 0)

export const fn = custom<(...args: never) => unknown, (...args: never) => unknown>({
  rule: "a function",
  read: Option.liftPredicate((value): value is (...args: never) => unknown => typeof value === "function")
})

/** What a function among the options answers of its subject, read as if it had been given: or what is wrong with it. */
export type Answer<Subject, Out> = (subject: Subject) => Result.Result<Out, string>

/** The same for all, or a function that tells it of each. A variable has it for all. */
export const orTold =
  <Subject>() => <In, Out>(kind: Kind<In, Out>): Kind<In | ((subject: Subject) => In), Out | Answer<Subject, Out>> => ({
    rule: `${kind.rule}, or a function that answers with it`,
    read: (value) =>
      typeof value === "function"
        ? Option.some((subject: Subject) =>
          readAs(kind, (value as (subject: Subject) => unknown)(subject), "answer with")
        )
        : kind.read(value),
    config: kind.config
  })

export const boolean = custom<boolean, boolean>({
  rule: "true or false",
  read: Option.liftPredicate((value): value is boolean => typeof value === "boolean"),
  config: Config.Boolean
})

/** Whatever the schema says; `rule` says it in words. */
export const schema = <S extends Schema.ConstraintCodec<unknown, unknown>>(
  codec: S,
  rule: string,
  { isSecret }: { readonly isSecret?: boolean } = {}
): Kind<S["Encoded"], S["Type"]> => ({
  rule,
  read: Option.liftPredicate(Schema.is(codec)) as (value: unknown) => Option.Option<S["Type"]>,
  config: (variable) => Config.schema(codec, variable),
  isSecret
})

// -----------------------------------------------------------------------------
// Declarations
// -----------------------------------------------------------------------------

/**
 * An option of some kind, and what becomes of one that is left out.
 */
export interface Declared<in In, out Out> {
  readonly kind: Kind<In, unknown>
  readonly read: (value: unknown) => Result.Result<Out, string>
  /** As the README words it. */
  readonly default: string
  /** Older names of its variable. */
  readonly aliases: ReadonlyArray<string>
  /** If it has options of its own: they have the variables. */
  readonly options?: Options<unknown> | undefined
}

export interface Naming {
  readonly aliases?: ReadonlyArray<string>
  /** How the README words the default, where that is not the value itself. */
  readonly shown?: string
}

export const required = <In, Out>(kind: Kind<In, Out>, { aliases = [] }: Naming = {}): Declared<In, Out> => ({
  kind,
  aliases,
  default: "required",
  read: (value) => readAs(kind, value)
})

export const optional = <In, Out>(
  kind: Kind<In, Out>,
  { aliases = [], shown = "none" }: Naming = {}
): Declared<In, Out | undefined> => ({
  kind,
  aliases,
  default: shown,
  read: (value) => value === undefined ? Result.succeed(undefined) : readAs(kind, value)
})

export const withDefault = <In, Out>(
  kind: Kind<In, Out>,
  fallback: NoInfer<In>,
  { aliases = [], shown }: Naming = {}
): Declared<In, Out> => ({
  kind,
  aliases,
  default: shown ?? (typeof fallback === "number" ? fallback.toLocaleString("en-US") : String(fallback)),
  read: (value) => readAs(kind, value === undefined ? fallback : value)
})

/** An option that has options of its own, all of them or none. */
export const group = <In extends object, Declaration>(
  options: Options<Declaration>,
  { shown = "none" }: Naming = {}
): Declared<In, Parsed<Declaration> | undefined> => ({
  kind: custom<In, Parsed<Declaration>>({ rule: "options", read: (value) => Result.getSuccess(options.parse(value)) }),
  aliases: [],
  default: shown,
  options,
  read: (value) =>
    value === undefined
      ? Result.succeed(undefined)
      : Result.mapError(
        options.parse(value),
        ({ issue, option }) => option === wholly ? issue : `is wrong: its "${option}" ${issue}`
      )
})

/** What an error names that is about all options together. */
const wholly = "options"

const readAs = <In, Out>(kind: Kind<In, Out>, value: unknown, must = "be"): Result.Result<Out, string> =>
  Result.fromOption(
    kind.read(value),
    () => `must ${must} ${kind.rule}${kind.isSecret === true ? "" : `, got ${show(value)}`}`
  )

/** Each option of the interface, of a kind that takes whatever its type admits. */
export type DeclarationOf<Interface> = {
  readonly [K in keyof Interface]-?: Declared<Exclude<Interface[K], undefined>, unknown>
}

export type Parsed<Declaration> = {
  readonly [K in keyof Declaration]: Declaration[K] extends Declared<never, infer Out> ? Out : never
}

/** An option as a reader of the README meets it. */
export interface Row {
  readonly option: string
  readonly default: string
  readonly variable: string | undefined
  readonly aliases: ReadonlyArray<string>
}

export interface Options<Declaration> {
  readonly declaration: Declaration
  readonly rows: ReadonlyArray<Row>
  /**
   * Reads what was given to `method`, by default `layer`. Fails with `InvalidOptions` when it is no object, when an
   * option is not as declared, and when one is unknown: misspelt, it would leave the door open. Whoever is no effect
   * asks for
   * `Result.getOrThrow`.
   */
  readonly parse: (given: unknown, method?: string) => Result.Result<Parsed<Declaration>, InvalidOptions>
  /**
   * What was given, and the configuration: it wins over a value, and is not asked for an option that comes with a
   * `Config` of its own. Nothing of it is checked yet.
   */
  readonly configured: <Given>(given: Configurable<Given>) => Effect.Effect<Given, Config.ConfigError>
  /** The configuration's alone: each option that one of its variables sets. */
  readonly config: Config.Config<{ readonly [option: string]: unknown }>
}

/**
 * Declares the options of an interface, all of them and no others. Their variables are named after them, in constant
 * case and behind the prefix `variables`; without that there are none.
 */
export const declare = <Interface>() =>
<Declaration extends DeclarationOf<Interface>>(
  { module, variables }: { readonly module: string; readonly variables?: string },
  declaration: Declaration & { readonly [K in Exclude<keyof Declaration, keyof Interface>]: never }
): Options<Declaration> => {
  const entries = Object.entries<Declared<never, unknown>>(declaration)
  const invalid = (method: string, option: string, issue: string) =>
    Result.fail(new InvalidOptions({ module, method, option, issue }))

  const kinds = new Map(entries.map(([option, { kind }]) => [option, kind]))
  const grouped = new Map(entries.flatMap(([option, { options }]) => options === undefined ? [] : [[option, options]]))
  const rows = entries.map(([option, { aliases, default: shown, kind }]): Row => ({
    option,
    default: shown,
    variable: variables === undefined || kind.config === undefined
      ? undefined
      : `${variables}_${Strings.camelToSnake(option).toUpperCase()}`,
    aliases
  }))

  const parse = (given: unknown, method = "layer"): Result.Result<Parsed<Declaration>, InvalidOptions> => {
    if (!isRecord(given)) {
      return invalid(method, wholly, `must be an object, got ${show(given)}`)
    }
    const unknown = Object.keys(given).find((option) => !Object.hasOwn(declaration, option))
    if (unknown !== undefined) {
      return invalid(method, unknown, `is not an option: there are ${Object.keys(declaration).join(", ")}`)
    }
    const parsed: { [option: string]: unknown } = {}
    for (const [option, { read }] of entries) {
      const result = read(given[option])
      if (Result.isFailure(result)) return invalid(method, option, result.failure)
      parsed[option] = result.success
    }
    return Result.succeed(parsed as Parsed<Declaration>)
  }

  // Of the names of an option's variable, the first that is set says what it is.
  const configOf = (isAsked: (option: string) => boolean): Config.Config<{ readonly [option: string]: unknown }> => {
    const configs: { [option: string]: Config.Config<ReadonlyArray<Option.Option<unknown>>> } = {}
    for (const { aliases, option, variable } of rows) {
      const read = kinds.get(option)!.config
      if (variable === undefined || read === undefined || !isAsked(option)) continue
      configs[option] = Config.all([variable, ...aliases].map((name) => Config.option(read(name))))
    }
    for (const [option, { config }] of grouped) {
      if (!isAsked(option)) continue
      configs[option] = Config.map(config, (values) => [Option.liftPredicate(values, isNotEmpty)])
    }
    return Config.map(Config.all(configs), (values) => Record.getSomes(Record.map(values, Option.firstSomeOf)))
  }

  const configured = Effect.fnUntraced(function*<Given>(given: Configurable<Given>) {
    if (Config.isConfig(given)) return yield* given
    if (!isRecord(given)) return given as Given
    const own = Record.filter(given, Config.isConfig)
    const ours = yield* configOf((option) => !Object.hasOwn(own, option))
    // Of a group the variables that are set win over its options one by one, too
    const whole = Record.map(ours, (value, option) => {
      const beside: unknown = Object.hasOwn(given, option) ? given[option as keyof typeof given] : undefined
      return grouped.has(option) && isRecord(value) && isRecord(beside) ? { ...beside, ...value } : value
    })
    return { ...given, ...whole, ...yield* Config.all(own) } as Given
  })

  return { declaration, rows, parse, configured, config: configOf(() => true) }
}

// -----------------------------------------------------------------------------
// Internals
// -----------------------------------------------------------------------------

/**
 * Whether it may have options: a record, or an instance of a class of the user's own. A list, a `Map`, a promise that
 * nobody waited for have none, so that each would be its default, and that of a door is not to be locked.
 */
export const isRecord = (given: unknown): given is { readonly [option: string]: unknown } =>
  typeof given === "object" && given !== null && (tagOf(given) === "Object" || tagOf(given) === "Module")

const isNotEmpty = (values: object): boolean => Object.keys(values).length > 0

const tagOf = (given: object): string => Object.prototype.toString.call(given).slice("[object ".length, -1)

// `Duration.fromInput` reads as zero what it does not know: NaN, an empty object, a misspelt unit.
const toMillis = (input: unknown): Option.Option<number> => {
  if (typeof input === "number") return Number.isNaN(input) ? Option.none() : Option.some(input)
  if (typeof input === "object" && input !== null && !Duration.isDuration(input)) {
    const parts = Object.entries(input)
    const isKnown = Array.isArray(input)
      ? parts.length === 2
      : parts.length > 0 && parts.every(([unit]) => units.has(unit))
    if (!isKnown || parts.some(([, value]) => typeof value !== "number" || Number.isNaN(value))) return Option.none()
  }
  return Option.map(Duration.fromInput(input as Duration.Input), Duration.toMillis)
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
    case "object": {
      if (value === null) return "null"
      if (Duration.isDuration(value)) return Duration.format(value)
      const noun = tagOf(value) === "Object" ? "object" : tagOf(value)
      return `${/^[aeiou]/i.test(noun) ? "an" : "a"} ${noun}`
    }
    default:
      return `a ${typeof value}`
  }
}
