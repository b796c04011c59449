/**
 * Between a request's first byte and its last: what has arrived in time has its session, and what is refused is no
 * activity.
 */
import { assert, describe, it } from "@effect/vitest"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { connect } from "node:net"
import { eventually, textOf } from "./support/answers.ts"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { begin, beginAndUse, call, post } from "./support/requests.ts"

type Open = (options: McpHttp.EndpointOptions) => Effect.Effect<Endpoint, never, Scope.Scope>

/** A connection that is open, and what is heard on it. */
const dial = Effect.fnUntraced(function*(endpoint: Endpoint) {
  const { hostname, port } = new URL(endpoint.url)
  let heard = ""
  const peer = yield* Effect.acquireRelease(
    Effect.callback<ReturnType<typeof connect>>((resume) => {
      const opened = connect(Number(port), hostname, () => resume(Effect.succeed(opened)))
      opened.on("data", (data) => void (heard += data.toString("latin1")))
      opened.on("error", () => undefined)
    }),
    (opened) => Effect.sync(() => opened.destroy())
  )
  const status = Effect.gen(function*() {
    yield* eventually(() => heard.includes("\r\n\r\n"))
    const said = Number(/^HTTP\/1\.1 (\d+)/.exec(heard)![1])
    heard = ""
    return said
  })
  return { write: (text: string) => void peer.write(text), status }
})

const body = JSON.stringify(call("echo", { message: "hi" }))

const head = (session: string, contentType = "application/json") =>
  `POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${contentType}\r\n` +
  "Accept: application/json, text/event-stream\r\nMcp-Protocol-Version: 2025-11-25\r\n" +
  `Mcp-Session-Id: ${session}\r\nContent-Length: ${body.length}\r\n\r\n`

/** Whatever the server has to do, it waits for this first. */
const block = (millis: number) =>
  Effect.sync(() => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, millis))

describe.each<readonly [string, Open]>([
  ["McpHttp.layer", (options) => socket(McpHttp.layer({ ...options, server: makeServer(makeLog()) }))],
  ["McpHttp.guard", (options) => openGuarded(socket, options)]
])("%s: a request", (_, open) => {
  it.live("that has come in time has its session, however long its body takes", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ idleTimeToLive: 1_000 })
      const session = yield* beginAndUse(endpoint)
      const peer = yield* dial(endpoint)
      peer.write(head(session) + body.slice(0, 5))
      yield* Effect.sleep(1_500)
      peer.write(body.slice(5))
      assert.strictEqual(yield* peer.status, 200)
      yield* Effect.sleep(1_500)
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))

  it.live("that has come in time has its session, however long the server takes to look", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ idleTimeToLive: 1_000 })
      const session = yield* beginAndUse(endpoint)
      const peer = yield* dial(endpoint)
      peer.write(head(session) + body)
      assert.strictEqual(yield* peer.status, 200)
      // Some turns of the loop, for what the answer has left to do
      yield* Effect.sleep(20)
      peer.write(head(session) + body)
      yield* block(1_500)
      assert.strictEqual(yield* peer.status, 200)
      yield* Effect.sleep(1_500)
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))

  it.live("that is refused is no activity of its session, and no use of it", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ bodyTimeout: 200, maxBodyBytes: 1_000 })
      const session = yield* begin(endpoint)
      const before = yield* endpoint.registry.entries
      yield* Effect.sleep(20)
      const slow = yield* dial(endpoint)
      slow.write(head(session) + body.slice(0, 5))
      assert.strictEqual(yield* slow.status, 408)
      const statuses = yield* Effect.forEach(
        ["{", "[]", "x".repeat(1_001), JSON.stringify(call("x")).slice(1)],
        (text) =>
          Effect.gen(function*() {
            const answer = yield* post(endpoint, text, { session })
            yield* textOf(answer)
            return answer.status
          })
      )
      assert.deepStrictEqual(statuses, [400, 400, 413, 400])
      const text = yield* post(endpoint, call("echo"), { session, headers: { "content-type": "text/plain" } })
      assert.strictEqual(text.status, 415)
      assert.deepStrictEqual(yield* endpoint.registry.entries, before)
    }))

  it.live("that never comes in full does not keep its session, however many of them there are", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ idleTimeToLive: 1_000, bodyTimeout: 200 })
      const session = yield* beginAndUse(endpoint)
      for (let i = 0; i < 12; i++) {
        const peer = yield* dial(endpoint)
        peer.write(head(session) + body.slice(0, 5))
        yield* Effect.sleep(120)
      }
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))
})
