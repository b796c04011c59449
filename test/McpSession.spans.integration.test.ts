/**
 * The client spans of sessions and their `traceparent`, by OpenTelemetry's conventions for MCP.
 */
import { assert, describe, inject, it } from "@effect/vitest"
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import { type AnyConnector, generations } from "./support/generations.ts"
import * as HttpServer from "./support/servers/http.ts"
import { makeHandle } from "./support/sessions.ts"
import { attributesOf, isFailed, makeRecorder, parentOf, traceparentOf } from "./support/spans.ts"
import { textOf } from "./support/tools.ts"

const identity = Identity.fromKey("alice", { credentials: Credentials.bearer("sk-live-SECRET") })

const open = (connect: AnyConnector) => connect(identity, makeHandle())

/** What the tool `trace` has seen of the trace of its request. */
const seen = (result: CallToolResult): { readonly meta?: string; readonly header?: string } =>
  JSON.parse(textOf(result) || "{}")

const child = { command: process.execPath, args: inject("stdioServer") }

for (const [sdk, connector] of generations) {
  describe(`spans of a session with ${sdk}`, { concurrent: true }, () => {
    it.live("are named after the operation, with the conventions' attributes", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { named, only, record } = makeRecorder()
        yield* Effect.gen(function*() {
          const session = yield* open(connector.http({ url: server.url, name: "weather" }))
          yield* session.callTool({ name: "echo", arguments: { message: "hi" } })
          yield* Effect.flip(session.readResource({ uri: "db://bob:sk-live-SECRET@host/rows?key=sk-live-SECRET#1" }))
          yield* session.listTools()
          yield* session.ping()
        }).pipe(Effect.scoped, record)
        const network = {
          "mcp.protocol.version": "2025-11-25",
          "network.transport": "tcp",
          "network.protocol.name": "http",
          "server.address": "127.0.0.1",
          "server.port": Number(new URL(server.url).port),
          server: "weather"
        }
        const { "jsonrpc.request.id": id, ...call } = attributesOf(only("McpSession.callTool"))
        assert.match(String(id), /^\d+$/)
        assert.deepStrictEqual(call, {
          "mcp.method.name": "tools/call",
          "gen_ai.operation.name": "execute_tool",
          "gen_ai.tool.name": "echo",
          ...network
        })
        const read = only("McpSession.readResource")
        assert.include(attributesOf(read), {
          "mcp.method.name": "resources/read",
          "mcp.resource.uri": "db://host/rows",
          "error.type": "-32601",
          "rpc.response.status_code": "-32601"
        })
        assert.strictEqual(only("McpSession.listTools").attributes.get("mcp.method.name"), "tools/list")
        assert.strictEqual(only("McpSession.ping").attributes.get("mcp.method.name"), "ping")
        assert.strictEqual(named("McpSession.initialize").at(-1)!.attributes.get("mcp.method.name"), "initialize")
        for (const name of ["callTool", "readResource", "listTools", "ping", "initialize"]) {
          const span = named(`McpSession.${name}`).at(-1)!
          assert.strictEqual(span.kind, "client")
          assert.strictEqual(span.status._tag, "Ended")
          assert.strictEqual(isFailed(span), name === "readResource")
          assert.isFalse(span.attributes.has("mcp.session.id"))
        }
      }))

    it.live("go on at the server: traceparent is in the message, and in the headers over HTTP", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { named, only, record } = makeRecorder()
        const found = yield* Effect.gen(function*() {
          const http = yield* open(connector.http({ url: server.url }))
          const sse = yield* open(connector.sse({ url: server.sseUrl }))
          const stdio = yield* open(connector.stdio(child))
          const trace = { name: "trace" }
          return [
            seen(yield* http.callTool(trace)),
            seen(yield* http.callTool(trace, { onProgress: () => Effect.void })),
            seen(yield* sse.callTool(trace)),
            seen(yield* stdio.callTool(trace))
          ]
        }).pipe(Effect.scoped, Effect.withSpan("caller"), record)
        const calls = named("McpSession.callTool")
        assert.lengthOf(calls, 4)
        for (const [i, span] of calls.entries()) {
          assert.strictEqual(parentOf(span), only("caller"))
          const traceparent = traceparentOf(span)
          assert.deepStrictEqual(found[i], { meta: traceparent, ...(i === 3 ? {} : { header: traceparent }) })
        }
        const [initialize] = server.requestsOf("initialize")
        const opened = named("McpSession.initialize").map(traceparentOf)
        assert.include(opened, String(initialize!.headers["traceparent"]))
        assert.include(opened, String(server.requestsOf("notifications/initialized")[0]!.headers["traceparent"]))
      }))

    it.live("leave a traceparent alone that the caller has put there, unless they are part of a trace", () =>
      Effect.gen(function*() {
        const { only, record } = makeRecorder()
        const session = yield* open(connector.stdio(child))
        const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`
        const call = session.callTool({ name: "trace", _meta: { traceparent } })
        assert.strictEqual(seen(yield* call).meta, traceparent)
        const handedOn = yield* call.pipe(Effect.withSpan("gateway"), record)
        assert.strictEqual(seen(handedOn).meta, traceparentOf(only("McpSession.callTool")))
      }))

    it.live("tell no other machine where tracing or its propagation is off", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const session = yield* open(connector.http({ url: server.url }))
        const call = Effect.map(session.callTool({ name: "trace" }), seen)
        assert.deepStrictEqual(yield* Effect.provideService(call, HttpClient.TracerPropagationEnabled, false), {})
        assert.deepStrictEqual(yield* Effect.withTracerEnabled(call, false), {})
        assert.property(yield* call, "meta")
      }))

    it.live("of `request` are told by what it sends, however late", () =>
      Effect.gen(function*() {
        const { only, record } = makeRecorder()
        const session = yield* open(connector.stdio(child))
        yield* record(
          session.request(async (client, options) => {
            await Promise.resolve()
            return client.listTools({}, options)
          })
        )
        assert.include(attributesOf(only("McpSession.request")), {
          "mcp.method.name": "tools/list",
          "network.transport": "pipe"
        })
      }))

    it.live("fail with what has failed: the tool, the time, the session", () =>
      Effect.gen(function*() {
        const { named, record } = makeRecorder()
        const session = yield* open(connector.stdio(child))
        yield* Effect.gen(function*() {
          yield* session.callTool({ name: "fail" })
          yield* Effect.flip(session.callTool({ name: "slow", arguments: { ms: 60_000 } }, { timeout: 50 }))
          yield* Effect.flip(session.callTool({ name: "nothing" }))
          const slow = yield* Effect.forkChild(session.callTool({ name: "slow", arguments: { ms: 60_000 } }), {
            startImmediately: true
          })
          yield* Fiber.interrupt(slow)
          const dying = yield* Effect.forkChild(
            Effect.flip(session.callTool({ name: "slow", arguments: { ms: 60_000 } })),
            { startImmediately: true }
          )
          process.kill(session.pid!, "SIGKILL")
          yield* Fiber.join(dying)
        }).pipe(record)
        const calls = named("McpSession.callTool")
        assert.deepStrictEqual(
          calls.map((span) => span.attributes.get("error.type")),
          ["tool_error", "timeout", "-32602", undefined, "SessionClosed"]
        )
        assert.isTrue(calls.every(isFailed))
      }))

    it.live("of a list are told by whoever asks; it is asked for within the first", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { named, record } = makeRecorder()
        const session = yield* open(connector.http({ url: server.url }))
        yield* record(Effect.all([session.listTools(), session.listTools()], { concurrency: 2 }))
        yield* record(session.listTools())
        const spans = named("McpSession.listTools")
        assert.lengthOf(spans, 3)
        assert.deepStrictEqual(
          server.requestsOf("tools/list").map(({ headers }) => headers["traceparent"]),
          [traceparentOf(spans[0]!)]
        )
      }))
  })
}
