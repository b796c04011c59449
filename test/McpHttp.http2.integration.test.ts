/**
 * Many exchanges on one connection, over HTTP/2: if an answer is not read its stream is closed, and no other.
 */
import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { once } from "node:events"
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants, createServer } from "node:http2"
import { becomes } from "./support/answers.ts"
import { openGuarded } from "./support/guarded.ts"
import { type App, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { call, initialize, protocolVersion } from "./support/requests.ts"

const big = "x".repeat(4 * 1024 * 1024)

const open = (app: App) => socket(app, IdentityResolver.layer(), () => createServer())

const endpoints = [
  [
    "McpHttp.layer",
    (streamTimeToLive: number | undefined) =>
      open(McpHttp.layer({ streamTimeToLive, maxBodyBytes: 8 * 1024 * 1024, server: makeServer(makeLog()) }))
  ],
  [
    "McpHttp.guard",
    (streamTimeToLive: number | undefined) => openGuarded(open, { streamTimeToLive, maxBodyBytes: 8 * 1024 * 1024 })
  ]
] as const

const session = (url: string) =>
  Effect.acquireRelease(
    Effect.sync(() => connect(url)),
    (client) => Effect.sync(() => client.destroy())
  )

const ask = (client: ClientHttp2Session, method: string, id?: string, body?: unknown): ClientHttp2Stream => {
  const stream = client.request({
    ":method": method,
    ":path": "/mcp",
    accept: "application/json, text/event-stream",
    "content-type": "application/json",
    "mcp-protocol-version": protocolVersion,
    ...id === undefined ? {} : { "mcp-session-id": id }
  })
  stream.on("error", () => undefined)
  stream.end(body === undefined ? undefined : JSON.stringify(body))
  return stream
}

const read = (stream: ClientHttp2Stream) =>
  Effect.promise(async () => {
    let text = ""
    for await (const chunk of stream) text += String(chunk)
    return text
  })

const begin = (client: ClientHttp2Session) =>
  Effect.gen(function*() {
    const stream = ask(client, "POST", undefined, initialize)
    const [headers] = yield* Effect.promise(() => once(stream, "response"))
    yield* read(stream)
    return String(headers["mcp-session-id"])
  })

describe.concurrent.each(endpoints)("%s over HTTP/2: a client that does not read its answer", (_, start) => {
  it.live("has its stream closed, which others of its connection do not notice", () =>
    Effect.gen(function*() {
      const { registry, url } = yield* start(1_000)
      const client = yield* session(url)
      const id = yield* begin(client)
      const unread = ask(client, "POST", id, call("echo", { message: big }))
      yield* Effect.promise(() => once(unread, "close"))
      assert.strictEqual(unread.rstCode, constants.NGHTTP2_CANCEL)
      assert.include(yield* read(ask(client, "POST", id, call("echo", { message: "hi" }, 2))), "hi")
      yield* becomes(registry.stats, ({ held }) => held === 0)
    }), 20_000)

  it.live("has it closed 5 seconds after its session", () =>
    Effect.gen(function*() {
      const { registry, url } = yield* start(undefined)
      const client = yield* session(url)
      const id = yield* begin(client)
      const unread = ask(client, "POST", id, call("echo", { message: big }))
      yield* Effect.promise(() => once(unread, "response"))
      yield* read(ask(client, "DELETE", id))
      yield* Effect.promise(() => once(unread, "close"))
      assert.strictEqual(unread.rstCode, constants.NGHTTP2_CANCEL)
      yield* becomes(registry.stats, ({ size }) => size === 0)
      assert.isFalse(client.destroyed)
    }), 20_000)
})
