/**
 * What is kept for clients that do not read what they asked for, over real sockets: it is let go of, by both layers and
 * whatever kind of answer it is.
 */
import { assert, describe, it } from "@effect/vitest"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { once } from "node:events"
import { connect } from "node:net"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { begin, call, post } from "./support/requests.ts"

const roomy = { maxBodyBytes: 64 * 1024 * 1024 }

const held = (endpoint: Endpoint) => Effect.map(endpoint.registry.stats, (stats) => stats.held)

const until = (endpoint: Endpoint, count: number) =>
  Effect.sleep(10).pipe(
    Effect.andThen(held(endpoint)),
    Effect.repeat({ until: (now) => now === count }),
    Effect.timeout("10 seconds")
  )

/** Makes calls on one connection, and reads nothing. */
const demand = Effect.fnUntraced(function*(endpoint: Endpoint, session: string, ...calls: ReadonlyArray<unknown>) {
  const { hostname, port } = new URL(endpoint.url)
  const peer = yield* Effect.acquireRelease(
    Effect.sync(() => connect(Number(port), hostname).pause()),
    (opened) => Effect.sync(() => opened.destroy())
  )
  peer.on("error", () => undefined)
  for (const text of calls.map((message) => JSON.stringify(message))) {
    peer.write(
      "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
        "Accept: application/json, text/event-stream\r\nMcp-Protocol-Version: 2025-11-25\r\n" +
        `Mcp-Session-Id: ${session}\r\nContent-Length: ${text.length}\r\n\r\n${text}`
    )
  }
  return peer
})

/** How many calls have reached a tool, and what ends those that wait. */
type Open = (streamTimeToLive: number | undefined) => Effect.Effect<
  Endpoint & { readonly called: () => number; readonly release: () => void },
  never,
  Effect.Services<ReturnType<typeof socket>>
>

const hosted = (response: "json" | "sse"): Open =>
  Effect.fnUntraced(function*(streamTimeToLive) {
    const log = makeLog()
    const endpoint = yield* socket(McpHttp.layer({ ...roomy, response, streamTimeToLive, server: makeServer(log) }))
    return { ...endpoint, called: () => log.called.length, release: log.release }
  })

const guarded: Open = Effect.fnUntraced(function*(streamTimeToLive) {
  const endpoint = yield* openGuarded(socket, { ...roomy, streamTimeToLive })
  return { ...endpoint, called: () => endpoint.log.called, release: () => undefined }
})

describe.each<readonly [string, Open]>([
  ["McpHttp.layer (json)", hosted("json")],
  ["McpHttp.layer (sse)", hosted("sse")],
  ["McpHttp.guard", guarded]
])("%s: a client that does not read", (_, open) => {
  it.live("holds its session for as long as a stream may last, and its connection too", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(500)
      const session = yield* begin(endpoint)
      // More than the kernels of both sides keep
      const peer = yield* demand(endpoint, session, call("echo", { message: "x".repeat(16 * 1024 * 1024) }))
      yield* until(endpoint, 1)
      yield* until(endpoint, 0)
      peer.resume()
      yield* Effect.promise(() => once(peer, "close"))
    }), 20_000)

  it.live(
    "lets go of its session when it leaves, also where it did not wait for one answer to ask again",
    () =>
      Effect.gen(function*() {
        const endpoint = yield* open(undefined)
        const session = yield* begin(endpoint)
        const big = "x".repeat(2 * 1024 * 1024)
        const peer = yield* demand(
          endpoint,
          session,
          call("wait", {}, 1),
          call("echo", { message: big }, 2)
        )
        yield* Effect.repeat(Effect.sleep(10), { until: () => endpoint.called() === 2 })
        peer.destroy()
        endpoint.release()
        yield* until(endpoint, 0)
        const answer = yield* post(endpoint, call("echo", { message: "hi" }, 5), { session })
        assert.strictEqual(answer.status, 200)
      }),
    20_000
  )

  it.live("does not hold up the end of its server by what it was answered long before", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(undefined)
      const session = yield* begin(endpoint)
      yield* demand(endpoint, session, call("echo", { message: "x".repeat(16 * 1024 * 1024) }))
      yield* Effect.repeat(Effect.sleep(10), { until: () => endpoint.called() === 1 })
      yield* Effect.sleep(500)
      yield* endpoint.close.pipe(Effect.timeout("10 seconds"))
    }), 20_000)
})
