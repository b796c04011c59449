/**
 * What becomes of a request whose `identify` refuses it, or breaks: its caller hears what it may do, the log where the
 * fault is, and nobody a secret.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  AccessDenied,
  type Identified,
  IdentifyFailed,
  type IdentifyOptions,
  IdentityError,
  type IdentityRequest,
  IdentityResolver,
  IdentityUnavailable,
  InvalidIdentity,
  InvalidOptions,
  McpHttp,
  MissingCredentials
} from "effect-mcp-sessions"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { inspect } from "node:util"
import { textOf } from "./support/answers.ts"
import { makeLog, makeServer, web } from "./support/mcpHttp.ts"
import { initialize, post } from "./support/requests.ts"

/** A token of the caller, as the message of an error may quote it. */
const secret = "sk-SECRET"

/** The error of a request that `identify` is asked about, and all that is logged meanwhile. */
const resolveWith = <E>(
  identify: (request: IdentityRequest) => Effect.Effect<Identified, E>,
  options?: IdentifyOptions
) => {
  const lines: Array<string> = []
  const logger = Logger.make(({ cause, logLevel, message }) => {
    const parts = [message].flat().map((part) => typeof part === "string" ? part : inspect(part))
    lines.push([logLevel, ...parts, Cause.pretty(cause)].join(" "))
  })
  return IdentityResolver.resolve({ headers: {} }).pipe(
    Effect.provide(IdentityResolver.layerIdentify(identify, options)),
    Effect.flip,
    Effect.map((error) => ({ error, log: lines.join("\n") })),
    Effect.provide(Logger.layer([logger]))
  )
}

/** Everything that an error tells, to whoever prints, encodes or answers with it. */
const toldBy = Effect.fnUntraced(function*(error: IdentityError) {
  const response = HttpServerResponse.toWeb(yield* HttpServerRespondable.toResponse(error))
  const body = yield* Effect.promise(() => response.text())
  const encoded = yield* Schema.encodeEffect(Schema.toCodecJson(IdentityError))(error)
  return {
    response,
    body,
    text: [
      body,
      JSON.stringify([...response.headers]),
      JSON.stringify(encoded),
      JSON.stringify(error),
      error.message,
      inspect(error, { depth: 9, showHidden: true }),
      Cause.pretty(Cause.fail(error)),
      Cause.pretty(Cause.die(error))
    ].join("\n")
  }
})

const quoting = (error: Error) => error

/** Whatever is done with it throws. */
const untouchable = new Proxy({}, {
  get() {
    throw new Error(secret)
  },
  has() {
    throw new Error(secret)
  },
  getPrototypeOf() {
    throw new Error(secret)
  }
})

const errorWith = (property: "name" | "message" | "stack" | "_tag", descriptor: PropertyDescriptor) =>
  Object.defineProperty(new Error(secret), property, descriptor)

const throwing: PropertyDescriptor = {
  get() {
    throw new Error(secret)
  }
}

class Suspended extends Schema.TaggedError<Suspended>()("Suspended", { token: Schema.String }) {
  [HttpServerRespondable.symbol]() {
    return Effect.succeed(HttpServerResponse.text("This account is suspended", { status: 402 }))
  }
}

class Unmarked extends Schema.TaggedError<Unmarked>()("Unmarked", { token: Schema.String }) {
  override get message() {
    return `no such token: ${this.token}`
  }
}

describe("IdentityResolver.layerIdentify, when identify", () => {
  const breaks: Readonly<Record<string, () => Effect.Effect<Identified, unknown>>> = {
    throws: () => {
      throw new TypeError(`no such token: ${secret}`)
    },
    "throws what is not an error": () => {
      // oxlint-disable-next-line no-throw-literal
      throw `no such token: ${secret}`
    },
    dies: () => Effect.die(quoting(new RangeError(`no such token:\n    at ${secret}`))),
    "dies of an error with a cause": () => Effect.die(new Error("no", { cause: new Error(secret) })),
    "dies of an error whose name is a secret": () => Effect.die(Object.assign(new Error("no"), { name: secret })),
    "dies beside others": () =>
      Effect.all([Effect.die(new Error(secret)), Effect.die(new Error(secret))], { concurrency: 2 }).pipe(
        Effect.as("user:1")
      ),
    "rejects a promise": () => Effect.promise(() => Promise.reject(new Error(secret))),
    "interrupts itself": () => Effect.interrupt,
    "awaits a fiber that is interrupted": () =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(Effect.never)
        yield* Fiber.interrupt(fiber)
        return yield* Fiber.join(fiber)
      }),
    "fails with an error that has no answer": () => Effect.fail(new Unmarked({ token: secret })),
    "fails with text": () => Effect.fail(`no such token: ${secret}`),
    "fails with an error that is not tagged": () => Effect.fail(new SyntaxError(secret)),
    "fails with an object that is called by a secret": () => Effect.fail({ _tag: secret }),
    "fails with nothing": () => Effect.fail(undefined),
    "fails with what can't be touched": () => Effect.fail(untouchable),
    "dies of what can't be touched": () => Effect.die(untouchable),
    "throws what can't be touched": () => {
      throw untouchable
    },
    ...Object.fromEntries((["name", "message", "stack", "_tag"] as const).flatMap((property) => [
      [`fails with an error whose ${property} throws`, () => Effect.fail(errorWith(property, throwing))],
      [`dies of an error whose ${property} throws`, () => Effect.die(errorWith(property, throwing))],
      [`dies of an error whose ${property} is null`, () => Effect.die(errorWith(property, { value: null }))],
      [`dies of an error whose ${property} is no text`, () => Effect.die(errorWith(property, { value: [secret] }))]
    ]))
  }

  it.effect.each(Object.keys(breaks))(
    "%s, is answered with 500, and names and places are logged",
    (how) =>
      Effect.gen(function*() {
        const { error, log } = yield* resolveWith(breaks[how]!)
        assert.instanceOf(error, IdentifyFailed)
        const { body, response, text } = yield* toldBy(error)
        assert.strictEqual(response.status, 500)
        assert.include(body, "identify-failed")
        assert.match(log, /^Error .*identify/)
        assert.notInclude(text + log, "SECRET")
        // Not its own name in place of one that the other does not have
        assert.notInclude(error.message, "effect-mcp-sessions")
      })
  )

  it.effect("answers with junk whose properties throw, is answered with 500", () =>
    Effect.gen(function*() {
      const junk = {
        get key(): string {
          throw new Error(`no such token: ${secret}`)
        }
      }
      const { error, log } = yield* resolveWith(() => Effect.succeed(junk))
      assert.instanceOf(error, IdentifyFailed)
      assert.notInclude((yield* toldBy(error)).text + log, "SECRET")
    }))

  it.effect("returns a promise, or answers with one, is told so", () =>
    Effect.gen(function*() {
      const promise = Promise.resolve("user:1")
      for (const identify of [() => promise as unknown as Effect.Effect<string>, () => Effect.succeed(promise)]) {
        const { error } = yield* resolveWith(identify as () => Effect.Effect<Identified>)
        assert.instanceOf(error, InvalidIdentity)
      }
    }))

  it.effect("dies, is logged with the name of the error and the place where it was thrown", () =>
    Effect.gen(function*() {
      const { error, log } = yield* resolveWith(breaks["throws"]!)
      assert.include(log, "identify died")
      assert.match(log, /TypeError\n +at .*IdentityResolver\.identify\.test\.ts:\d+:\d+/)
      assert.strictEqual(
        error.message,
        "identify died (TypeError). " +
          "Let it fail with an IdentityError, or with an error that is HttpServerRespondable."
      )
      if (!(error instanceof IdentifyFailed)) return assert.fail("it is another")
      assert.instanceOf(Redacted.value(error.error), TypeError)
      assert.deepStrictEqual([error.module, error.method, error.reason], ["IdentityResolver", "identify", "died"])
    }))

  it.effect("fails with an IdentityError, is that error and is not logged", () =>
    Effect.gen(function*() {
      for (
        const expected of [
          new MissingCredentials({ header: "x-session" }),
          new AccessDenied({}),
          new IdentityUnavailable({})
        ]
      ) {
        const { error, log } = yield* resolveWith(() => Effect.fail(expected))
        assert.strictEqual(error, expected)
        assert.strictEqual(log, "")
      }
    }))

  it.effect("fails with an error that has an answer, is answered with that and is not logged", () =>
    Effect.gen(function*() {
      const { error, log } = yield* resolveWith(() => Effect.fail(new Suspended({ token: secret })))
      const { body, response } = yield* toldBy(error)
      assert.strictEqual(response.status, 402)
      assert.strictEqual(body, "This account is suspended")
      assert.notInclude(error.message, "SECRET")
      assert.include(error.message, "Suspended")
      assert.strictEqual(log, "")
    }))

  it.effect("fails with an error whose answer fails, is answered with 500", () =>
    Effect.gen(function*() {
      for (const answer of [Effect.fail(secret), Effect.die(secret)]) {
        const { error } = yield* resolveWith(() => Effect.fail({ [HttpServerRespondable.symbol]: () => answer }))
        const { response, text } = yield* toldBy(error)
        assert.strictEqual(response.status, 500)
        assert.notInclude(text, "SECRET")
      }
    }))

  for (
    const [how, identify] of [["hangs", Effect.never], ["ignores it", Effect.uninterruptible(Effect.never)]] as const
  ) {
    it.effect(`gives no answer in time and ${how}, is interrupted and answered with 503`, () =>
      Effect.gen(function*() {
        for (
          const [options, timeout] of [[undefined, "30 seconds"], [{ timeout: "2 seconds" }, "2 seconds"]] as const
        ) {
          const asked = yield* Effect.forkChild(resolveWith(() => identify, options), { startImmediately: true })
          yield* TestClock.adjust(Duration.subtract(Duration.fromInputUnsafe(timeout), Duration.millis(1)))
          assert.isUndefined(asked.pollUnsafe())
          yield* TestClock.adjust(1)
          const { error, log } = yield* Fiber.join(asked)
          assert.instanceOf(error, IdentityUnavailable)
          assert.strictEqual((yield* toldBy(error)).response.status, 503)
          assert.include(log, "identify took longer than")
        }
      }))
  }

  it("is given a time that is none, is refused when the layer is made", () => {
    assert.throws(() => IdentityResolver.layerIdentify(() => Effect.never, { timeout: 0 }), InvalidOptions)
    assert.throws(() => IdentityResolver.layerIdentify(() => Effect.never, { timeOut: 1 } as never), InvalidOptions)
  })

  it.effect("is interrupted with its request, ends as that does", () =>
    Effect.gen(function*() {
      const resolver = yield* Effect.provide(IdentityResolver, IdentityResolver.layerIdentify(() => Effect.never))
      const fiber = yield* Effect.forkChild(resolver.resolve({ headers: {} }), { startImmediately: true })
      yield* Fiber.interrupt(fiber)
      const exit = yield* Fiber.await(fiber)
      assert.isTrue(exit._tag === "Failure" && Cause.hasInterruptsOnly(exit.cause))
    }))
})

describe("AccessDenied", () => {
  it.effect("answers 403 with a challenge that names what is missing", () =>
    Effect.gen(function*() {
      const cases: ReadonlyArray<readonly [ConstructorParameters<typeof AccessDenied>[0], challenge: string]> = [
        [{}, "Bearer realm=\"mcp\", error=\"insufficient_scope\""],
        [{ scope: "read write" }, "Bearer realm=\"mcp\", error=\"insufficient_scope\", scope=\"read write\""],
        [{ realm: "a \"b\" \\" }, "Bearer realm=\"a \\\"b\\\" \\\\\", error=\"insufficient_scope\""],
        [{ scheme: "basic" }, "Basic realm=\"mcp\", error=\"insufficient_scope\""]
      ]
      for (const [fields, challenge] of cases) {
        const { body, response } = yield* toldBy(new AccessDenied(fields))
        assert.strictEqual(response.status, 403)
        assert.strictEqual(response.headers.get("www-authenticate"), challenge)
        assert.strictEqual(response.headers.get("cache-control"), "no-store")
        assert.include(body, "access-denied")
      }
      assert.include(new AccessDenied({ scope: "read" }).message, "\"read\"")
    }))

  it("takes nothing that would break out of the challenge", () => {
    for (const scope of ["", " ", "a  b", "a\"b", "a\\b", "a\r\nx: y", "é"]) {
      assert.throws(() => new AccessDenied({ scope }))
    }
    for (const realm of ["a\nb", "é", "\u007f"]) assert.throws(() => new AccessDenied({ realm }))
  })
})

describe("IdentityUnavailable", () => {
  it.effect("answers 503 and says when to try again, in whole seconds", () =>
    Effect.gen(function*() {
      const cases: ReadonlyArray<readonly [after: Duration.Duration | undefined, header: string | null]> = [
        [undefined, "10"],
        [Duration.seconds(5), "5"],
        [Duration.millis(1), "1"],
        [Duration.zero, "1"],
        [Duration.millis(1001), "2"],
        [Duration.infinity, null]
      ]
      for (const [after, header] of cases) {
        const error = new IdentityUnavailable(after === undefined ? {} : { retryAfter: after })
        const { body, response } = yield* toldBy(error)
        assert.strictEqual(response.status, 503)
        assert.strictEqual(response.headers.get("retry-after"), header)
        assert.include(body, "identity-unavailable")
      }
    }))

  it.effect("keeps its cause for whoever asks, and tells it to nobody else", () =>
    Effect.gen(function*() {
      const error = new IdentityUnavailable({ cause: Redacted.make(new Error(secret)) })
      assert.notInclude((yield* toldBy(error)).text, "SECRET")
      assert.include(String(Redacted.value(error.cause!)), secret)
    }))
})

describe("an endpoint whose identify refuses a request", () => {
  it.effect("answers with what the error says, challenge included, and logs no message", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ cause, message }) => void lines.push(inspect(message) + Cause.pretty(cause)))
      const ask = (identify: () => Effect.Effect<Identified, unknown>) =>
        Effect.gen(function*() {
          const app = McpHttp.layer({ server: makeServer(makeLog()) })
          const endpoint = yield* web(
            Layer.provide(app, Logger.layer([logger])),
            IdentityResolver.layerIdentify(identify)
          )
          return yield* post(endpoint, initialize)
        })
      const denied = yield* ask(() => Effect.fail(new AccessDenied({ scope: "mcp:use" })))
      assert.strictEqual(denied.status, 403)
      assert.include(denied.headers.get("www-authenticate"), "error=\"insufficient_scope\", scope=\"mcp:use\"")
      const unavailable = yield* ask(() => Effect.fail(new IdentityUnavailable({})))
      assert.strictEqual(unavailable.status, 503)
      assert.strictEqual(unavailable.headers.get("retry-after"), "10")
      const suspended = yield* ask(() => Effect.fail(new Suspended({ token: secret })))
      assert.strictEqual(suspended.status, 402)
      const died = yield* ask(() => Effect.die(new Error(secret)))
      assert.strictEqual(died.status, 500)
      assert.notInclude(lines.join("\n") + (yield* textOf(died)), "SECRET")
    }))
})
