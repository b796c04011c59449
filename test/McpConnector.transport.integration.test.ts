/**
 * Sessions over a transport of the user's own, with each generation of the SDK.
 */
import { assert, describe, it } from "@effect/vitest"
import { StreamableHTTPClientTransport as TransportV2 } from "@modelcontextprotocol/client"
import { StreamableHTTPClientTransport as TransportV1 } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Identity, InvalidOptions, McpConnector, type McpSessionError, SessionPool } from "effect-mcp-sessions"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import { SessionExpired } from "effect-mcp-sessions/McpSession"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import type { AnyConnector, AnySession } from "./support/generations.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"

class Where extends Context.Service<Where, { readonly url: string }>()("test/Where") {}

const generations: ReadonlyArray<readonly [sdk: string, connector: AnyConnector<Where>, failing: AnyConnector]> = [
  [
    "@modelcontextprotocol/sdk",
    McpConnector.fromTransport(() => Effect.map(Where, ({ url }) => new TransportV1(new URL(url))), { name: "mine" }),
    McpConnector.fromTransport(() => Effect.fail("no tunnel"))
  ],
  [
    "@modelcontextprotocol/client",
    McpConnectorV2.fromTransport(() => Effect.map(Where, ({ url }) => new TransportV2(new URL(url))), { name: "mine" }),
    McpConnectorV2.fromTransport(() => Effect.fail("no tunnel"))
  ]
]

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const alice = Identity.fromKey("alice")

const call = (name: string) => Sessions.withSession(alice, (session) => session.callTool({ name }))

const never = () => Effect.never

for (const [sdk, connector, failing] of generations) {
  describe(`a session over a transport of one's own with ${sdk}`, () => {
    it.live("works, and ends on the server and here with its scope", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        const scope = yield* Scope.fork(yield* Effect.scope)
        const session = yield* connector(alice, makeHandle()).pipe(
          Effect.provideService(Where, server),
          Scope.provide(scope)
        )
        assert.strictEqual(session.protocolVersion, "2025-11-25")
        yield* session.callTool({ name: "tool" })
        yield* Scope.close(scope, Exit.void)
        assert.isFalse((yield* Effect.flip(session.callTool({ name: "tool" }))).reason.requestSent)
        assert.strictEqual(server.open(), 0)
        assert.deepStrictEqual(server.deleted(), 1)
      }))

    it.live("is replaced for the next caller when the server has forgotten it, and nothing is repeated", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        yield* Effect.gen(function*() {
          yield* call("before")
          let refused = 0
          server.on("pay", (response, message, request) =>
            ++refused === 1
              ? Scripted.forgotten(response, message, request)
              : Scripted.reply(response, message, Scripted.resultOf(message)))
          const forgotten = yield* Effect.flip(call("pay"))
          assert(forgotten._tag === "McpSessionError")
          // Whether it was read, or was redirected and ran elsewhere, only a connector's own transport knows
          assert.deepStrictEqual(forgotten.reason, new SessionExpired({ requestSent: true, refused: false }))
          assert.deepStrictEqual(server.received, ["before", "pay"])
          yield* call("pay")
          assert.deepStrictEqual(server.received, ["before", "pay", "pay"])
          server.on("pay", (response) => response.destroy())
          const error = yield* Effect.flip(call("pay"))
          assert(error._tag === "McpSessionError")
          assert.strictEqual(error.reason._tag, "Unreachable")
          assert.deepStrictEqual(server.received, ["before", "pay", "pay", "pay"])
        }).pipe(
          Effect.provide(Sessions.layer({ connect: connector })),
          Effect.provideService(Where, server)
        )
      }))

    it.live("that can't be made says so, and that nothing was sent", () =>
      Effect.gen(function*() {
        const { reason } = yield* Effect.flip(failing(alice, makeHandle()))
        assert(reason._tag === "PreparationFailed")
        assert.deepInclude(reason, { option: "transport", requestSent: false })
        assert.strictEqual(Redacted.value(reason.cause), "no tunnel")
      }))
  })
}

describe("a connector over a transport of one's own", () => {
  it("takes a function, and the options that all connectors have", () => {
    const url = "http://localhost"
    for (
      const make of [
        () => McpConnector.fromTransport(new URL(url) as never),
        () => McpConnectorV2.fromTransport(new URL(url) as never),
        () => McpConnector.fromTransport(never, null as never),
        () => McpConnectorV2.fromTransport(never, null as never),
        () => McpConnector.fromTransport(never, { url } as never),
        () => McpConnectorV2.fromTransport(never, { url } as never)
      ]
    ) {
      assert.throws(make, InvalidOptions)
    }
  })

  const nothing: Readonly<Record<string, () => unknown>> = {
    "no Effect": () => null,
    "nothing": () => Effect.succeed(null),
    "a text": () => Effect.succeed("transport"),
    "something else": () => Effect.succeed({ send: async () => {} })
  }
  for (const [what, make] of Object.entries(nothing)) {
    it.effect(`fails when its function makes ${what}, and so does one in process`, () =>
      Effect.gen(function*() {
        const connectors: ReadonlyArray<readonly [option: "transport" | "server", connector: AnyConnector]> = [
          ["transport", McpConnector.fromTransport(make as never)],
          ["transport", McpConnectorV2.fromTransport(make as never)],
          ["server", McpConnector.inProcess(make as never)],
          ["server", McpConnectorV2.inProcess(make as never)]
        ]
        for (const [option, connector] of connectors) {
          const { reason } = yield* Effect.flip(connector(alice, makeHandle()))
          assert(reason._tag === "PreparationFailed")
          assert.deepInclude(reason, { option, requestSent: false })
          assert.match(String(Redacted.value(reason.cause)), new RegExp(`^TypeError: \`${option}\` must `))
        }
      }))
  }
})
