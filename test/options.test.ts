import { assert, describe, it } from "@effect/vitest"
import { type Configurable, type InvalidOptions, SessionPool } from "effect-mcp-sessions"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Options from "../src/internal/options.ts"

interface DoorOptions {
  readonly open: (who: string) => Effect.Effect<void>
  readonly width?: number | undefined
  readonly openFor?: Duration.Input | undefined
  readonly secret?: Redacted.Redacted | undefined
  readonly isLocked?: boolean | undefined
}

const declared = Options.declare<DoorOptions>()({ module: "Door", variables: "DOOR" }, {
  open: Options.required(Options.fn),
  width: Options.withDefault(Options.count, 1_000, { aliases: ["DOOR_CM", "DOOR_SIZE"] }),
  openFor: Options.withDefault(Options.timeout, "5 seconds"),
  secret: Options.optional(Options.schema(Schema.Redacted(Schema.NonEmptyString), "a secret", { isSecret: true })),
  isLocked: Options.withDefault(Options.boolean, false)
})

const open = () => Effect.void

const parse = (options: object) => Result.getOrThrow(declared.parse({ open, ...options }))

const refusal = (given: unknown): InvalidOptions =>
  Result.match(declared.parse(given), {
    onFailure: (error) => error,
    onSuccess: () => assert.fail("it was accepted")
  })

const configured = <A, E>(effect: Effect.Effect<A, E>, env: Record<string, string>) =>
  Effect.provideService(effect, ConfigProvider.ConfigProvider, ConfigProvider.fromEnv({ env }))

describe("a declaration of options", () => {
  it("reads what is given, durations as milliseconds, and puts the defaults where nothing is", () => {
    assert.deepStrictEqual(parse({}), { open, width: 1_000, openFor: 5_000, secret: undefined, isLocked: false })
    assert.deepInclude(parse({ width: 3, openFor: "1 minute", isLocked: true }), {
      width: 3,
      openFor: 60_000,
      isLocked: true
    })
  })

  it.effect("refuses what has options only by its looks, because all of them would be their defaults", () =>
    Effect.gen(function*() {
      const lenient = Options.declare<{ readonly width?: number | undefined }>()({ module: "Door" }, {
        width: Options.withDefault(Options.count, 1_000)
      })
      const cases: ReadonlyArray<readonly [given: object, shown: string]> = [
        [[], "an Array"],
        [new Map([["width", 5]]), "a Map"],
        [new Set(), "a Set"],
        [Promise.resolve({ width: 5 }), "a Promise"],
        [new Date(), "a Date"],
        [/width/, "a RegExp"],
        [new Error("width"), "an Error"],
        [new URLSearchParams("width=5"), "an URLSearchParams"],
        [new WeakMap(), "a WeakMap"]
      ]
      for (const [given, shown] of cases) {
        for (const read of [given, yield* lenient.configured(given)]) {
          const error = Result.match(lenient.parse(read), {
            onFailure: ({ message }) => message,
            onSuccess: () => assert.fail(`${shown} was accepted`)
          })
          assert.strictEqual(error, `Door.layer: option "options" must be an object, got ${shown}`)
        }
      }
      class Settings {
        width = 5
      }
      for (const given of [new Settings(), Object.assign(Object.create(null), { width: 5 }), { width: 5 }]) {
        assert.deepStrictEqual(Result.getOrThrow(lenient.parse(given)), { width: 5 })
        assert.deepStrictEqual(Result.getOrThrow(lenient.parse(yield* lenient.configured(given as object))), {
          width: 5
        })
      }
    }))

  it("refuses what has no meaning, and says where it was given, what it must be and what it was", () => {
    const error = refusal({ open, width: Number.NaN })
    assert.deepInclude(error, { module: "Door", method: "layer", option: "width" })
    assert.strictEqual(error.message, "Door.layer: option \"width\" must be an integer of at least 1, got NaN")
    assert.deepInclude(refusal({}), { option: "open" })
    assert.deepInclude(refusal({ open, isLocked: null }), { option: "isLocked" })
    assert.deepInclude(refusal({ open, openFor: Duration.infinity }), { option: "openFor" })
    assert.deepInclude(refusal({ open, openFor: "soon" }), { option: "openFor" })
  })

  it("refuses an option that it does not have, and names those it has", () => {
    const { issue, option } = refusal({ open, widht: 3 })
    assert.deepStrictEqual(
      [option, issue],
      ["widht", "is not an option: there are open, width, openFor, secret, isLocked"]
    )
  })

  it("refuses what is no object", () => {
    for (const given of [undefined, null, 5, "options"]) assert.strictEqual(refusal(given).option, "options")
  })

  it("never quotes a secret", () => {
    const { message } = refusal({ open, secret: "hunter2" })
    assert.notInclude(message, "hunter2")
  })

  it("names the method that was called", () => {
    assert.throws(
      () => Result.getOrThrow(declared.parse({}, "knock")),
      "Door.knock: option \"open\" must be a function, got undefined"
    )
  })

  it("knows each option's default, variable and older names", () => {
    assert.deepStrictEqual(declared.rows.map(({ option, ...row }) => [option, ...Object.values(row)]), [
      ["open", "required", undefined, []],
      ["width", "1,000", "DOOR_WIDTH", ["DOOR_CM", "DOOR_SIZE"]],
      ["openFor", "5 seconds", "DOOR_OPEN_FOR", []],
      ["secret", "none", "DOOR_SECRET", []],
      ["isLocked", "false", "DOOR_IS_LOCKED", []]
    ])
  })

  it("does not type-check when an option is missing, there is no such option, or its kind is another", () => {
    const naming = { module: "Gate" }
    interface GateOptions {
      readonly width?: number | undefined
    }
    const width = Options.optional(Options.count)
    // @ts-expect-error An option is missing
    Options.declare<GateOptions>()(naming, {})
    // @ts-expect-error There is no such option
    Options.declare<GateOptions>()(naming, { width, height: width })
    // @ts-expect-error It is a number
    Options.declare<GateOptions>()(naming, { width: Options.optional(Options.boolean) })
  })
})

describe("options from the configuration", () => {
  const given: DoorOptions = { open, width: 7 }

  const width = (env: Record<string, string>) =>
    Effect.map(configured(declared.configured(given), env), (options) => options.width)

  it.effect("are those that a variable sets, which wins over a value", () =>
    Effect.gen(function*() {
      const env = { DOOR_WIDTH: "3", DOOR_OPEN_FOR: "2 minutes", DOOR_IS_LOCKED: "true", DOOR_SECRET: "hunter2" }
      const parsed = Result.getOrThrow(declared.parse(yield* configured(declared.configured(given), env)))
      assert.deepInclude(parsed, { open, width: 3, openFor: 120_000, isLocked: true })
      assert.strictEqual(Redacted.value(parsed.secret!), "hunter2")
    }))

  it.effect("are those given where it is silent, and an empty variable says nothing", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* configured(declared.configured(given), { DOOR_WIDTH: "" }), given)
    }))

  it.effect("take a plain number for milliseconds", () =>
    Effect.gen(function*() {
      const options = yield* configured(declared.configured(given), { DOOR_OPEN_FOR: "1500" })
      assert.strictEqual(Result.getOrThrow(declared.parse(options)).openFor, 1_500)
    }))

  it.effect("have older names too, and the newest that is set counts", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* width({ DOOR_SIZE: "1" }), 1)
      assert.strictEqual(yield* width({ DOOR_SIZE: "1", DOOR_CM: "2" }), 2)
      assert.strictEqual(yield* width({ DOOR_SIZE: "1", DOOR_CM: "2", DOOR_WIDTH: "3" }), 3)
    }))

  it.effect("fail with the variable's name where it can't be read", () =>
    Effect.gen(function*() {
      for (const [name, value] of Object.entries({ DOOR_WIDTH: "wide", DOOR_OPEN_FOR: "soon", DOOR_IS_LOCKED: "?" })) {
        const error = yield* Effect.flip(configured(declared.configured(given), { [name]: value }))
        assert.strictEqual(error._tag, "ConfigError")
        assert.include(error.message, name)
      }
    }))

  it.effect("may have a Config of the caller's own each, in place of the variable", () =>
    Effect.gen(function*() {
      const env = { DOOR_WIDTH: "3", MY_WIDTH: "9" }
      const own: Configurable<DoorOptions> = { open, width: Config.Int("MY_WIDTH") }
      assert.deepStrictEqual(yield* configured(declared.configured(own), env), { open, width: 9 })
    }))

  it.effect("may be one Config of the caller's own, and then no variable is read", () =>
    Effect.gen(function*() {
      const own: Configurable<DoorOptions> = Config.all({ open: Config.succeed(open), width: Config.Int("MY_WIDTH") })
      const options = yield* configured(declared.configured(own), { DOOR_WIDTH: "3", MY_WIDTH: "9" })
      assert.deepStrictEqual(options, { open, width: 9 })
    }))

  it.effect("type-check with what connect needs", () =>
    Effect.gen(function*() {
      class Pool extends SessionPool.Tag<Pool, string>()("test/Configured") {}
      const layer: Layer.Layer<Pool, InvalidOptions | Config.ConfigError> = Pool.layerConfig({
        connect: ({ key }) => Effect.succeed(key),
        capacity: Config.Int("POOL_SIZE")
      })
      const stats = yield* configured(Effect.provide(Pool.stats, layer), { POOL_SIZE: "4", MCP_POOL_CAPACITY: "5" })
      assert.strictEqual(stats.capacity, 4)
    }))
})
