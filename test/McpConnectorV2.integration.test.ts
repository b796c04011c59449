/**
 * What is the second generation's own. What it shares with the first is tested with both, in the tests of
 * `McpConnector`.
 */
import { assert, describe, it } from "@effect/vitest"
import type { Client } from "@modelcontextprotocol/client"
import { createMcpHandler, McpServer } from "@modelcontextprotocol/server"
import { Identity } from "effect-mcp-sessions/Identity"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import { type McpSession, McpSessionError, ProtocolFailure } from "effect-mcp-sessions/McpSession"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { eventually } from "./support/answers.ts"
import { isAlive } from "./support/processes.ts"
import * as HttpServer from "./support/servers/http.ts"
import * as Modern from "./support/servers/modern.mjs"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"
import { temporaryDirectory } from "./support/temporary.ts"
import { call } from "./support/tools.ts"

const script = (name: string) => fileURLToPath(new URL(`./support/servers/${name}`, import.meta.url))

const identity = Identity.fromKey("alice")

const open = <R>(connect: McpConnectorV2.Connector<R>) =>
  Effect.gen(function*() {
    const handle = makeHandle()
    const scope = yield* Scope.fork(yield* Effect.scope)
    const session = yield* Scope.provide(connect(identity, handle), scope)
    return { session, handle, close: Scope.close(scope, Exit.void) }
  })

/** A child process, and how many of it have been started. */
const child = (...args: ReadonlyArray<string>) => {
  const pidFile = join(temporaryDirectory("mcp-v2-"), "pids")
  return {
    options: { command: process.execPath, args, env: { PID_FILE: pidFile } },
    pids: () => existsSync(pidFile) ? readFileSync(pidFile, "utf8").trim().split("\n").map(Number) : []
  }
}

/** A sessionless server of 2026-07-28 behind a `fetch` that keeps a log: no sockets. */
const sessionless = Effect.gen(function*() {
  const requests: Array<string> = []
  const handler = createMcpHandler(Modern.makeServer)
  yield* Effect.addFinalizer(() => Effect.promise(() => handler.close()))
  const connect = McpConnectorV2.http({
    url: "http://modern.test/mcp",
    fetch: (url, init) => {
      const request = new Request(url, init)
      requests.push(request.method === "POST" ? String(request.headers.get("mcp-method")) : request.method)
      return handler.fetch(request)
    }
  })
  return { requests, connect }
})

describe("McpConnectorV2", { concurrent: true }, () => {
  describe("with a server of 2026-07-28 over HTTP", () => {
    it.live("needs no session: no initialize, no DELETE, and discover for a ping", () =>
      Effect.gen(function*() {
        const { connect, requests } = yield* sessionless
        const { close, handle, session } = yield* open(connect)
        assert.strictEqual(session.protocolVersion, "2026-07-28")
        assert.strictEqual(session.serverInfo.name, "modern")
        assert.strictEqual(session.instructions, "Be modern.")
        assert.strictEqual(yield* call(session, "pid"), String(process.pid))
        yield* session.ping()
        assert.deepStrictEqual((yield* session.listTools()).tools.map((tool) => tool.name), ["pid", "slow"])
        yield* close
        assert.deepStrictEqual(requests, ["server/discover", "tools/call", "server/discover", "tools/list"])
        assert.deepStrictEqual(handle.retired, [])
      }))

    it.live("opens later sessions of the identity without asking again, and asks for another one", () =>
      Effect.gen(function*() {
        const { connect, requests } = yield* sessionless
        yield* open(connect)
        const { session } = yield* open(connect)
        assert.deepStrictEqual(requests, ["server/discover"])
        assert.strictEqual(yield* call(session, "pid"), String(process.pid))
        yield* connect(Identity.fromKey("bob"), makeHandle())
        assert.deepStrictEqual(requests, ["server/discover", "tools/call", "server/discover"])
      }))

    it.live("cancels an interrupted call by closing its stream", () =>
      Effect.gen(function*() {
        const { connect } = yield* sessionless
        const { session } = yield* open(connect)
        const before = Modern.calls.started
        const fiber = yield* Effect.forkChild(call(session, "slow"))
        yield* eventually(() => Modern.calls.started > before)
        yield* Fiber.interrupt(fiber)
        yield* eventually(() => Modern.calls.cancelled === Modern.calls.started)
        assert.strictEqual(yield* call(session, "pid"), String(process.pid))
      }))
  })

  describe("with a server that says that the headers of a call are wrong", { concurrent: true }, () => {
    const ways: ReadonlyArray<readonly [string, (session: McpSession<Client>) => Effect.Effect<unknown, unknown>]> = [
      ["a session", (session) => session.callTool({ name: "pay" })],
      ["request", (session) => session.request((client, options) => client.callTool({ name: "pay" }, options))],
      ["the client itself", (session) => Effect.tryPromise(() => session.client.callTool({ name: "pay" }))]
    ]
    for (const [who, pay] of ways) {
      it.live.each([200, 400])(
        `never sends it a second time when ${who} had called (HTTP %i)`,
        (status) =>
          Effect.gen(function*() {
            const server = yield* Scripted.start({ era: "2026-07-28" })
            server.on(
              "pay",
              (response, { id }) =>
                Scripted.json(response, status, { jsonrpc: "2.0", id, error: { code: -32020, message: "no", data: 1 } })
            )
            const { session } = yield* open(McpConnectorV2.http({ url: server.url }))
            const error = yield* Effect.flip(pay(session))
            assert.strictEqual(server.received.filter((name) => name === "pay").length, 1)
            if (!(error instanceof McpSessionError)) return
            const { reason } = error
            assert.deepStrictEqual(
              reason,
              new ProtocolFailure({ code: -32020, message: "no", data: 1, requestSent: true })
            )
          })
      )
    }

    it.live("has the right ones in the next call", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start({ era: "2026-07-28" })
        const headers: Array<unknown> = []
        server.on("pay", (response, message, request) => {
          headers.push(request.headers["mcp-param-account"])
          if (headers.length === 1) Scripted.refuse(response, message, -32020)
          else Scripted.reply(response, message, Scripted.resultOf(message))
        })
        const account = { type: "string", "x-mcp-header": "Account" }
        const pay = { name: "pay", inputSchema: { type: "object", properties: { account } } }
        server.on("tools/list", (response, message) =>
          Scripted.reply(response, message, { ...Scripted.resultOf(message), tools: [pay] }))
        const { session } = yield* open(McpConnectorV2.http({ url: server.url }))
        yield* Effect.flip(call(session, "pay", { account: "mine" }))
        yield* call(session, "pay", { account: "mine" })
        assert.deepStrictEqual(headers, [undefined, "mine"])
      }))
  })

  describe("with an older server over HTTP", () => {
    it.live("falls back, and does not ask a second time", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const connect = McpConnectorV2.http({ url: server.url })
        const { close, session } = yield* open(connect)
        assert.strictEqual(session.protocolVersion, "2025-11-25")
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
        assert.strictEqual(server.requestsOf("server/discover").length, 1)
        yield* open(connect)
        assert.strictEqual(server.requestsOf("server/discover").length, 1)
        assert.strictEqual(server.requestsOf("initialize").length, 2)
        yield* close
        assert.strictEqual(server.sessions.length, 1)
      }))
  })

  describe("over stdio", () => {
    it.live.each([
      ["2026-07-28", "modern.mjs"],
      ["2025-11-25", "stdio.mjs"]
    ])("starts one process for a server of %s", ([version, server]) =>
      Effect.gen(function*() {
        const { options, pids } = child(script(server!))
        const { close, session } = yield* open(McpConnectorV2.stdio(options))
        assert.strictEqual(session.protocolVersion, version)
        assert.strictEqual(yield* call(session, "pid"), String(session.pid))
        assert.deepStrictEqual(pids(), [session.pid])
        yield* close
        assert.isFalse(isAlive(session.pid!))
      }))

    it.live("starts a server that exits when it is asked its version again, once", () =>
      Effect.gen(function*() {
        const { options, pids } = child(script("touchy.mjs"), "exit")
        const connect = McpConnectorV2.stdio(options)
        const { session } = yield* open(connect)
        assert.strictEqual(session.serverInfo.name, "touchy")
        assert.strictEqual(pids().length, 2)
        yield* open(connect)
        assert.strictEqual(pids().length, 3)
      }))

    it.live("takes a server that is silent about its version for an older one", () =>
      Effect.gen(function*() {
        const { options, pids } = child(script("touchy.mjs"), "mute")
        const { session } = yield* open(McpConnectorV2.stdio({ ...options, probeTimeout: "200 millis" }))
        yield* session.ping()
        assert.strictEqual(session.protocolVersion, "2025-11-25")
        assert.deepStrictEqual(pids(), [session.pid])
      }))
  })

  it.live("works in process", () =>
    Effect.gen(function*() {
      const connect = McpConnectorV2.inProcess(({ key }) =>
        Effect.sync(() => {
          const server = new McpServer({ name: "greeter", version: "1.0.0" })
          server.registerTool("greet", {}, () => ({ content: [{ type: "text", text: `Hello, ${key}` }] }))
          return server
        })
      )
      const { session } = yield* open(connect)
      assert.strictEqual(yield* call(session, "greet"), "Hello, alice")
    }))
})
