import { assert, describe, it } from "@effect/vitest"
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js"
import { Identity } from "effect-mcp-sessions/Identity"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import { McpSessionError, Unauthorized } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { readFileSync } from "node:fs"
import { inspect } from "node:util"
import { makeHandle } from "./support/sessions.ts"

const manifest: { readonly name: string; readonly version: string } = JSON.parse(
  readFileSync(new URL("../package.json", import.meta.url), "utf8")
)

const greeter = (greeting: string) => {
  const server = new McpServer({ name: "greeter", version: "1.0.0" }, { instructions: "Greet." })
  server.registerTool("greet", { description: "Greets" }, () => ({ content: [{ type: "text", text: greeting }] }))
  return server
}

class Greeting extends Context.Service<Greeting, { readonly word: string }>()("test/Greeting") {}

class Tokens extends Context.Service<Tokens, { readonly current: string }>()("test/Tokens") {}

describe("The options of a connector", () => {
  it("ask the pool's layer for the services of each function among them, and of no other", () => {
    const connect = McpConnector.http({
      url: "http://upstream.test/mcp",
      fetch: () => Promise.resolve(new Response(null)),
      headers: ({ key }) => Effect.map(Tokens, ({ current }) => ({ authorization: `${key} ${current}` })),
      roots: (identity) => Effect.map(Greeting, ({ word }) => [{ uri: `file:///${word}/${identity.key}` }])
    })
    const services: Same<ServicesOf<typeof connect>, Tokens | Greeting> = true
    const none: Same<ServicesOf<ReturnType<typeof plain>>, never> = true
    assert.isTrue(services && none)
  })
})

const plain = () => McpConnector.stdio({ command: "server", env: { MODE: "test" } })

type ServicesOf<C> = C extends McpConnector.Connector<infer R> ? R : never

type Same<A, B> = [A] extends [B] ? [B] extends [A] ? true : false : false

const slow = (options: McpConnector.Options = {}) =>
  McpConnector.inProcess(() => Effect.as(Effect.sleep("45 seconds"), greeter("Hello")), options)

// -----------------------------------------------------------------------------
// Wrong options
// -----------------------------------------------------------------------------

const secret = "s3cret-0123456789"

/** What each option can't be, by constructor. */
const wrong: Readonly<
  Record<"common" | "stdio" | "http" | "negotiation", Readonly<Record<string, ReadonlyArray<unknown>>>>
> = {
  common: {
    name: ["", 5, null],
    clientInfo: [{}, "me", { name: "me" }, null],
    connectTimeout: [0, -1, Number.NaN, Infinity, "soon", {}, null],
    requestTimeout: [0, "-1 seconds", Infinity, "soon", null],
    sampling: [5, {}, null],
    elicitation: [true],
    urlElicitation: [{}],
    roots: [[]],
    timeout: ["1 second"]
  },
  stdio: {
    command: [undefined, "", 5, "a\0b"],
    args: ["-y", [5], [`${secret}\0`], null],
    env: ["A=b", { A: 5 }, { A: undefined }, { "A=B": secret }, { A: `${secret}\0` }, [["A", secret]], null],
    cwd: ["", 5, null],
    url: ["http://upstream.test/mcp"]
  },
  http: {
    url: [undefined, "", "upstream", `ftp://${secret}@host`, `http://${secret}:x:y/`, 5, null],
    headers: ["a: b", { a: 5 }, { "": secret }, { "a b": secret }, { a: `${secret}\nx` }, null],
    forwardCredentials: ["yes", 1, null],
    authorization: [
      secret,
      5,
      null,
      {},
      { clientCredentials: { clientId: "a", clientSecret: Redacted.make(secret) } },
      { clientCredentials: { clientId: "a", clientSecret: secret, issuer: "https://a" } },
      { clientCredentials: { clientId: "a", issuer: "http://elsewhere.test" } },
      {
        clientCredentials: { clientId: "a", issuer: "https://a" },
        tokenExchange: { clientId: "a", issuer: "https://a" }
      },
      { tokenExchange: { clientId: "a", issuer: "https://a", subject: secret } },
      { authorizationCode: {} },
      { authorizationCode: { redirectUrl: "http://localhost/callback", clientId: "a" } },
      { authorizationCode: { redirectUrl: "http://localhost/callback", clientSecret: Redacted.make(secret) } },
      { authorizationCode: { redirectUrl: "http://localhost/callback", timeout: 0 } },
      { token: secret },
      { token: () => Effect.never, refresh: secret }
    ],
    fetch: [{}, "fetch", null],
    command: ["server"]
  },
  negotiation: {
    versionNegotiation: ["newest", {}, { pin: "" }, null],
    probeTimeout: [0, -1, Infinity, null]
  }
}

type Constructor = (options: unknown) => unknown

const generations = [
  ["McpConnector", McpConnector, {}],
  ["McpConnectorV2", McpConnectorV2, wrong.negotiation]
] as const

const makeGreeter = () => Effect.succeed(greeter("Hello"))

const constructors = generations.flatMap(([module, connectors, negotiation]) => {
  const stdio = { ...wrong.common, ...wrong.stdio, ...negotiation }
  const http = { ...wrong.common, ...wrong.http }
  return [
    [module, "stdio", connectors.stdio as Constructor, { command: "server" }, stdio],
    [module, "http", connectors.http as Constructor, { url: "http://upstream.test" }, { ...http, ...negotiation }],
    [module, "sse", connectors.sse as Constructor, { url: "http://upstream.test" }, http],
    [
      module,
      "inProcess",
      (options: unknown) =>
        (connectors.inProcess as (server: unknown, options: unknown) => unknown)(makeGreeter, options),
      {},
      wrong.common
    ]
  ] as const
})

const thrownBy = (f: () => unknown): unknown => {
  try {
    f()
  } catch (error) {
    return error
  }
  return undefined
}

describe("A connector", () => {
  for (const [module, method, make, right, options] of constructors) {
    it(`of ${module}.${method} is not made with an option that is wrong, which its error names`, () => {
      assert.isUndefined(thrownBy(() => make(right)))
      for (const [option, values] of Object.entries(options)) {
        for (const value of values) {
          const error = thrownBy(() => make({ ...right, [option]: value }))
          assert.instanceOf(error, InvalidOptions, `${option}: ${String(value)}`)
          assert.deepInclude(error, { module, method, option })
          assert.notInclude(`${error.message} ${JSON.stringify(error)}`, secret)
        }
      }
      for (const nothing of [null, "http://upstream.test", 5]) {
        assert.instanceOf(thrownBy(() => make(nothing)), InvalidOptions)
      }
    })
  }

  it("in process is not made of what is no function", () => {
    for (const [module, connectors] of generations) {
      const error = thrownBy(() => (connectors.inProcess as Constructor)(greeter("Hello")))
      assert.instanceOf(error, InvalidOptions)
      assert.deepInclude(error, { module, method: "inProcess", option: "server" })
    }
  })
})

// -----------------------------------------------------------------------------
// Headers that fail
// -----------------------------------------------------------------------------

class NoVault extends Data.TaggedError("NoVault")<{ readonly quoted: string }> {}

const failures: Readonly<Record<string, () => McpConnector.PerIdentity>> = {
  "fail with an error of their own": () => () => Effect.fail(new NoVault({ quoted: secret })),
  "die": () => () => Effect.die(new Error(secret)),
  "throw": () => () => {
    throw new Error(secret)
  },
  "can't be sent": () => () => ({ authorization: `${secret}\nx` }),
  "are none": () => () => undefined as unknown as Record<string, string>
}

const https: ReadonlyArray<
  readonly [string, (options: McpConnector.HttpOptions) => McpConnector.Connector<never, unknown>]
> = [
  ["McpConnector", McpConnector.http],
  ["McpConnectorV2", McpConnectorV2.http]
]

for (const [module, http] of https) {
  describe(`Headers of ${module}.http that`, () => {
    for (const [title, headers] of Object.entries(failures)) {
      it.effect(`${title} fail the open, say that nothing was sent, and quote nothing`, () => {
        const lines: Array<string> = []
        const logger = Logger.make(({ cause, message }) => void lines.push(`${String(message)} ${Cause.pretty(cause)}`))
        let requests = 0
        const connect = http({
          url: "http://upstream.test/mcp",
          headers: headers(),
          fetch: () => {
            requests++
            return Promise.resolve(new Response(null, { status: 500 }))
          }
        })
        return Effect.gen(function*() {
          const error = yield* Effect.flip(connect(Identity.fromKey("alice"), makeHandle()))
          assert(error.reason._tag === "PreparationFailed")
          assert.strictEqual(error.reason.option, "headers")
          assert.isFalse(error.reason.requestSent)
          assert.strictEqual(requests, 0)
          assert.strictEqual(lines.length, 1)
          assert.notInclude(
            [...lines, error.message, inspect(error, { depth: 9 }), JSON.stringify(error), error.stack].join(),
            secret
          )
          const cause = Redacted.value(error.reason.cause)
          if (title.startsWith("fail")) assert.instanceOf(cause, NoVault)
          else assert.instanceOf(cause, Error)
        }).pipe(Effect.provide(Logger.layer([logger])))
      })
    }
  })
}

describe("The time to connect", () => {
  const alice = Identity.fromKey("alice")

  it.effect("is the pool's, however long, where a connector has none of its own", () =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(SessionPool.withSession(alice, (session) => session.ping()))
      yield* TestClock.adjust("45 seconds")
      yield* Fiber.join(fiber)
    }).pipe(Effect.provide(SessionPool.layer({ connect: slow(), connectTimeout: "1 minute" }))))

  it.effect("is the connector's own where it is shorter", () =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(Effect.flip(SessionPool.withSession(alice, (session) => session.ping())))
      yield* TestClock.adjust("10 seconds")
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error._tag, "McpSessionError")
      assert.strictEqual((error as McpSessionError).reason._tag, "RequestTimeout")
    }).pipe(Effect.provide(
      SessionPool.layer({ connect: slow({ connectTimeout: "10 seconds" }), connectTimeout: "1 minute" })
    )))
})

describe("McpConnector.inProcess", () => {
  it.effect("tells the server the name and the version of this package", () =>
    Effect.gen(function*() {
      const server = greeter("Hello")
      const connect = McpConnector.inProcess(() => Effect.succeed(server))
      yield* connect(Identity.fromKey("alice"), makeHandle())
      const { name, version } = server.server.getClientVersion()!
      assert.deepStrictEqual({ name, version }, { name: manifest.name, version: manifest.version })
    }))

  it.effect("gives each session a server of its own, made with the connector's services", () =>
    Effect.gen(function*() {
      const connect = McpConnector.inProcess(({ key }) =>
        Effect.map(Greeting, ({ word }) => greeter(`${word}, ${key}`))
      )
      const greet = (key: string) =>
        Effect.gen(function*() {
          const session = yield* connect(Identity.fromKey(key), makeHandle())
          assert.strictEqual(session.instructions, "Greet.")
          return (yield* session.callTool({ name: "greet" })).content
        })
      assert.deepStrictEqual(yield* greet("alice"), [{ type: "text", text: "Hello, alice" }])
      assert.deepStrictEqual(yield* greet("bob"), [{ type: "text", text: "Hello, bob" }])
    }).pipe(Effect.provideService(Greeting, { word: "Hello" })))

  it.effect("closes the server, and what it was made with, when the session's scope closes", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const server = greeter("Hello")
      const connect = McpConnector.inProcess(() =>
        Effect.acquireRelease(Effect.succeed(server), () => Effect.sync(() => void log.push("released")))
      )
      const scope = yield* Scope.make()
      yield* Scope.provide(connect(Identity.fromKey("alice"), makeHandle()), scope)
      assert.isTrue(server.isConnected())
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(server.isConnected())
      assert.deepStrictEqual(log, ["released"])
    }))

  it.effect("fails with the error of a server that can't be made, having released what it had", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const refusal = new McpSessionError({
        reason: new Unauthorized({ requestSent: false }),
        method: "connect",
        server: "greeter"
      })
      const connect = McpConnector.inProcess(() =>
        Effect.andThen(
          Effect.addFinalizer(() => Effect.sync(() => void log.push("released"))),
          Effect.fail(refusal)
        )
      )
      assert.strictEqual(yield* Effect.flip(connect(Identity.fromKey("alice"), makeHandle())), refusal)
      assert.deepStrictEqual(log, ["released"])
    }))
})
