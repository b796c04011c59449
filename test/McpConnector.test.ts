import { assert, describe, it } from "@effect/vitest"
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import { McpSessionError, Unauthorized } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import { makeHandle } from "./support/sessions.ts"

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
