/**
 * Sessions of clients that somebody else has made and connected, of each generation of the SDK.
 */
import { assert, describe, it } from "@effect/vitest"
import * as V2 from "@modelcontextprotocol/client"
import { Client as ClientV1 } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport as TransportV1 } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Identity, InvalidOptions, McpSession, type McpSessionError, SessionPool } from "effect-mcp-sessions"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { eventually } from "./support/answers.ts"
import type { AnySession } from "./support/generations.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const clientInfo = { name: "theirs", version: "1.0.0" }

const connectV1 = async (url: string) => {
  const client = new ClientV1(clientInfo)
  await client.connect(new TransportV1(new URL(url)))
  return client
}

const connectV2 = async (url: string) => {
  const client = new V2.Client(clientInfo)
  await client.connect(new V2.StreamableHTTPClientTransport(new URL(url)))
  return client
}

const generations: ReadonlyArray<readonly [sdk: string, connect: (url: string) => Promise<ClientV1 | V2.Client>]> = [
  ["@modelcontextprotocol/sdk", connectV1],
  ["@modelcontextprotocol/client", connectV2]
]

const alice = Identity.fromKey("alice")

const tool = (name: string) => (session: AnySession) => session.callTool({ name })

const opened = Effect.fnUntraced(function*(connect: (url: string) => Promise<ClientV1 | V2.Client>) {
  const server = yield* Scripted.start()
  const client = yield* Effect.promise(() => connect(server.url))
  const handle = makeHandle()
  const scope = yield* Scope.fork(yield* Effect.scope)
  const session: AnySession = yield* Scope.provide(McpSession.fromClient(client, { identity: alice, handle }), scope)
  return { server, client, handle, session, close: Scope.close(scope, Exit.void) }
})

for (const [sdk, connect] of generations) {
  describe(`a session of a client of ${sdk}`, () => {
    it.live("calls, lists, times out and is cancelled as any other", () =>
      Effect.gen(function*() {
        const { client, handle, server, session } = yield* opened(connect)
        assert.strictEqual(session.client, client)
        assert.strictEqual(session.protocolVersion, "2025-11-25")
        assert.strictEqual(session.serverInfo.name, "scripted")
        yield* session.callTool({ name: "tool" })
        yield* Effect.all([session.listTools(), session.listTools()], { concurrency: 2 })
        yield* session.listTools()
        server.on("slow", () => {})
        const error = yield* Effect.flip(session.callTool({ name: "slow" }, { timeout: "100 millis" }))
        assert.strictEqual(error.reason._tag, "RequestTimeout")
        yield* eventually(() => server.received.includes("notifications/cancelled"))
        assert.deepStrictEqual(server.received.filter((name) => name !== "notifications/cancelled"), [
          "tool",
          "tools/list",
          "slow"
        ])
        assert.deepStrictEqual(handle.retired, [])
      }))

    it.live("is closed with its scope, on the server too, and its calls fail at once", () =>
      Effect.gen(function*() {
        const { close, server, session } = yield* opened(connect)
        server.on("slow", () => {})
        const fiber = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
        yield* eventually(() => server.received.includes("slow"))
        yield* close
        assert.strictEqual((yield* Fiber.join(fiber)).reason._tag, "SessionClosed")
        assert.strictEqual(server.deleted(), 1)
        yield* eventually(() => server.open() === 0)
      }))

    it.live("is retired when somebody closes the client", () =>
      Effect.gen(function*() {
        const { client, handle, session } = yield* opened(connect)
        yield* Effect.promise(() => client.close())
        assert.deepStrictEqual(handle.retired, ["died"])
        assert.isFalse((yield* Effect.flip(tool("tool")(session))).reason.requestSent)
      }))

    it.live("is replaced for the next caller when the server has forgotten it, and nothing is repeated", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        yield* Effect.gen(function*() {
          yield* Sessions.withSession(alice, tool("before"))
          server.on(
            "confirm",
            (response, message, request) =>
              server.received.filter((name) => name === "confirm").length % 2 === 1
                ? Scripted.forgotten(response, message, request)
                : Scripted.reply(response, message, Scripted.resultOf(message))
          )
          const forgotten = yield* Effect.flip(Sessions.withSession(alice, tool("confirm")))
          assert.isFalse(McpSession.isSessionExpired(forgotten))
          assert.deepStrictEqual(server.received, ["before", "confirm"])
          yield* Sessions.withSession(alice, tool("confirm"))
          assert.deepStrictEqual(server.received, ["before", "confirm", "confirm"])
          const exit = yield* Effect.exit(Sessions.withSession(alice, (session) =>
            Effect.andThen(
              Effect.promise(() => (session.client as ClientV1).callTool({ name: "pay" })),
              tool("confirm")(session)
            )))
          assert.isTrue(Exit.isFailure(exit))
          assert.deepStrictEqual(server.received.slice(3), ["pay", "confirm"])
        }).pipe(Effect.provide(Sessions.layer({
          connect: (identity, handle) =>
            Effect.flatMap(
              Effect.promise(() => connect(server.url)),
              (client) => McpSession.fromClient<ClientV1 | V2.Client>(client, { identity, handle })
            )
        })))
      }))
  })
}

describe("McpSession.fromClient", () => {
  it.effect("fails for a client that is not connected, and for options that are none", () =>
    Effect.gen(function*() {
      for (const client of [new ClientV1(clientInfo), new V2.Client(clientInfo)]) {
        const error = yield* Effect.flip(McpSession.fromClient<ClientV1 | V2.Client>(client))
        assert.deepInclude(error.reason, { _tag: "SessionClosed", requestSent: false })
        assert.include(error.message, "not connected")
        for (const options of [{ requestTimeout: -1 }, { identity: "alice" }, { handle: {} }, { url: "" }]) {
          const exit = yield* Effect.exit(McpSession.fromClient<ClientV1 | V2.Client>(client, options as never))
          assert(Exit.isFailure(exit))
          assert.instanceOf(Cause.squash(exit.cause), InvalidOptions)
        }
      }
    }))
})
