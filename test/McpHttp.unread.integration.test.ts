/**
 * What is kept for clients that do not read what they asked for, over real sockets: it is let go of, by both layers and
 * whatever kind of answer it is.
 */
import { assert, describe, it } from "@effect/vitest"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { subscribe, unsubscribe } from "node:diagnostics_channel"
import { once } from "node:events"
import { createServer } from "node:https"
import { connect, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import { connect as connectSecurely } from "node:tls"
import { selfSigned } from "./support/certificates.ts"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { begin, call, initialize, post, request } from "./support/requests.ts"

const roomy = { maxBodyBytes: 64 * 1024 * 1024 }

const held = (endpoint: Endpoint) => Effect.map(endpoint.registry.stats, (stats) => stats.held)

const until = (endpoint: Endpoint, count: number) =>
  Effect.sleep(10).pipe(
    Effect.andThen(held(endpoint)),
    Effect.repeat({ until: (now) => now === count }),
    Effect.timeout("10 seconds")
  )

/** Who connects and reads nothing. */
const deaf = (endpoint: Endpoint) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const { hostname, port, protocol } = new URL(endpoint.url)
      const peer = protocol === "https:"
        ? connectSecurely({ host: hostname, port: Number(port), rejectUnauthorized: false }).pause()
        : connect(Number(port), hostname).pause()
      peer.on("error", () => undefined)
      return peer
    }),
    (peer) => Effect.sync(() => peer.destroy())
  )

const head = (method: string, session: string) =>
  `${method} /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: application/json, text/event-stream\r\n` +
  `Mcp-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: ${session}\r\n`

const ask = (peer: Socket, session: string, message: unknown) => {
  const text = JSON.stringify(message)
  peer.write(`${head("POST", session)}Content-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`)
}

/** Makes calls on one connection, and reads nothing. */
const demand = Effect.fnUntraced(function*(endpoint: Endpoint, session: string, ...calls: ReadonlyArray<unknown>) {
  const peer = yield* deaf(endpoint)
  for (const message of calls) ask(peer, session, message)
  return peer
})

/** The server's side of a connection. */
const otherSideOf = Effect.fnUntraced(function*(open: Effect.Effect<Socket, never, Scope.Scope>) {
  const accepted: Array<Socket> = []
  const take = (message: unknown) => void accepted.push((message as { readonly socket: Socket }).socket)
  subscribe("net.server.socket", take)
  const peer = yield* open
  const other = () => accepted.find(({ remotePort }) => remotePort === peer.localPort)
  yield* Effect.repeat(Effect.sleep(10), { until: () => peer.localPort !== undefined && other() !== undefined })
  unsubscribe("net.server.socket", take)
  return { peer, connection: other()! }
})

/** Says more on a connection than the kernels keep of it. */
const fill = ({ connection }: { readonly connection: Socket }, say: () => Promise<unknown>) =>
  Effect.repeat(Effect.promise(say), { until: () => connection.writableLength > 0 })

/** Makes more calls on one connection than the kernels keep answers to, and reads none of these. */
const demandMany = Effect.fnUntraced(function*(endpoint: Endpoint, session: string) {
  const sides = yield* otherSideOf(deaf(endpoint))
  let asked = 0
  yield* fill(sides, async () => {
    for (let i = 0; i < 30; i++) ask(sides.peer, session, call("echo", { message: "x".repeat(15_000) }, asked++))
    await sleep(50)
  })
  return sides
})

/** A server's own stream, whose client has left a little of it unread. */
const openStream = Effect.fnUntraced(function*(streamTimeToLive: number | undefined) {
  const log = makeLog()
  const endpoint = yield* socket(McpHttp.layer({ streamTimeToLive, server: makeServer(log) }))
  const session = yield* begin(endpoint)
  const sides = yield* otherSideOf(deaf(endpoint))
  sides.peer.write(`${head("GET", session)}\r\n`)
  yield* Effect.sleep(100)
  yield* fill(sides, async () => {
    const params = { level: "info", data: "x".repeat(8_000) }
    await log.servers.get(session)!.notification({ method: "notifications/message", params })
    await sleep(0)
  })
  return { ...endpoint, ...sides, session }
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

/** The same over TLS, where sessions are begun by hand: fetch knows no such authority. */
const secure: typeof socket = (app, resolver) =>
  Effect.map(socket(app, resolver, () => createServer(selfSigned())), (endpoint) => ({
    ...endpoint,
    url: endpoint.url.replace("http:", "https:")
  }))

const beginByHand = Effect.fnUntraced(function*(endpoint: Endpoint) {
  const peer = yield* deaf(endpoint)
  const text = JSON.stringify(initialize)
  const type = "Content-Type: application/json\r\nAccept: application/json, text/event-stream"
  peer.write(`POST /mcp HTTP/1.1\r\nHost: localhost\r\n${type}\r\nContent-Length: ${text.length}\r\n\r\n${text}`)
  const [answer] = yield* Effect.promise(() => once(peer.resume(), "data"))
  return /^mcp-session-id: (\S+)/im.exec(String(answer))![1]!
})

const endpoints: ReadonlyArray<readonly [string, Open]> = [
  ["McpHttp.layer (json)", hosted("json")],
  ["McpHttp.layer (sse)", hosted("sse")],
  ["McpHttp.guard", guarded]
]

describe.each(endpoints)("%s: a client that does not read", (_, open) => {
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

  it.live("holds its connection for as long, if it has asked for many short answers", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(500)
      const session = yield* begin(endpoint)
      const { connection } = yield* demandMany(endpoint, session)
      yield* Effect.promise(() => once(connection, "close"))
      yield* until(endpoint, 0)
    }), 20_000)
})

describe.concurrent.each<readonly [string, Open]>(endpoints)("%s: the end of its server", (_, open) => {
  it.live("is not held up by a client that has not read one long answer", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(undefined)
      const session = yield* begin(endpoint)
      yield* demand(endpoint, session, call("echo", { message: "x".repeat(16 * 1024 * 1024) }))
      yield* Effect.repeat(Effect.sleep(10), { until: () => endpoint.called() === 1 })
      yield* Effect.sleep(500)
      yield* endpoint.close.pipe(Effect.timeout("10 seconds"))
    }), 20_000)

  it.live("nor by one that has not read many short ones", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(undefined)
      const session = yield* begin(endpoint)
      yield* demandMany(endpoint, session)
      yield* endpoint.close.pipe(Effect.timeout("10 seconds"))
    }), 20_000)

  it.live("does not cut off one that is reading a long answer", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(undefined)
      const session = yield* begin(endpoint)
      const message = `${"x".repeat(24 * 1024 * 1024)}the end`
      const peer = yield* demand(endpoint, session, call("echo", { message }))
      yield* Effect.promise(() => once(peer, "readable"))
      const closing = yield* Effect.forkChild(endpoint.close)
      yield* Effect.sleep(500)
      assert.isTrue(yield* readSlowly(peer, 4 * 1024 * 1024, "the end"))
      yield* Effect.timeout(Fiber.join(closing), "10 seconds")
    }), 20_000)
})

/** Reads about so many bytes in a tenth of a second, until there are `text` or no more. */
const readSlowly = (peer: Socket, bytes: number, text: string) =>
  Effect.suspend(() => {
    let read = ""
    let hasRead = false
    let allowed = bytes
    let since = performance.now()
    const onData = (chunk: Buffer) => {
      read = read.slice(-text.length) + String(chunk)
      hasRead ||= read.includes(text)
      allowed -= chunk.length
      if (allowed <= 0) peer.pause()
    }
    peer.on("data", onData).resume()
    return Effect.sleep(100).pipe(
      Effect.andThen(Effect.sync(() => {
        // As many on a machine that is too busy to look so often
        const more = bytes * (performance.now() - since) / 100
        since = performance.now()
        allowed = Math.min(more, allowed + more)
        if (allowed > 0) peer.resume()
        return hasRead
      })),
      Effect.repeat({ until: () => hasRead || peer.closed })
    )
  })

describe.concurrent.each<readonly [string, "json" | "sse", typeof socket]>([
  ["json", "json", socket],
  ["sse over TLS", "sse", secure]
])("McpHttp.layer (%s): a client that reads slowly", (_, response, start) => {
  it.live("has its whole answer, though that takes longer than a stream may last", () =>
    Effect.gen(function*() {
      const server = makeServer(makeLog())
      const endpoint = yield* start(McpHttp.layer({ ...roomy, response, streamTimeToLive: 3_000, server }))
      const session = yield* beginByHand(endpoint)
      const message = `${"x".repeat(24 * 1024 * 1024)}the end`
      const peer = yield* demand(endpoint, session, call("echo", { message }))
      assert.isTrue(yield* readSlowly(peer, 384 * 1024, "the end"))
    }), 30_000)
})

describe("McpHttp.layer over TLS: a client that reads a stream", () => {
  it.live("hears what is said after a long event, however long it takes to read that", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const endpoint = yield* secure(McpHttp.layer({ ...roomy, server: makeServer(log) }))
      const session = yield* beginByHand(endpoint)
      const peer = yield* deaf(endpoint)
      peer.write(`${head("GET", session)}\r\n`)
      yield* Effect.promise(() => once(peer.resume(), "data"))
      const say = (data: string) =>
        Effect.promise(() =>
          log.servers.get(session)!.notification({
            method: "notifications/message",
            params: { level: "info", data }
          })
        )
      const reading = yield* Effect.forkChild(readSlowly(peer, 64 * 1024 * 1024, "the end"))
      yield* say("x".repeat(8_000_000))
      yield* Effect.sleep(2)
      yield* say("the end")
      assert.isTrue(yield* Effect.timeout(Fiber.join(reading), "10 seconds"))
    }), 20_000)
})

describe.concurrent("McpHttp.guard: a client that reads slowly", () => {
  it.live("has the whole of a stream, however big its pieces are", () =>
    Effect.gen(function*() {
      const endpoint = yield* guarded(2_000)
      const session = yield* begin(endpoint)
      const slow = call("slow")
      const progressToken = `${"x".repeat(24 * 1024 * 1024)}the end`
      const peer = yield* demand(endpoint, session, {
        ...slow,
        params: { ...slow.params, _meta: { progressToken } }
      })
      assert.isTrue(yield* readSlowly(peer, 384 * 1024, "the end"))
    }), 30_000)
})

describe.concurrent("McpHttp.layer with an event store: a client that reads slowly", () => {
  it.live("has the whole answer that it has come back for", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const eventStore = McpHttp.memoryEventStore({ maxBytes: 64 * 1024 * 1024 })
      const endpoint = yield* socket(McpHttp.layer({ ...roomy, eventStore, server: makeServer(log) }))
      const session = yield* begin(endpoint)
      const message = `${"x".repeat(24 * 1024 * 1024)}the end`
      const lost = yield* demand(endpoint, session, call("echo", { message }))
      const id = yield* Effect.promise(() => once(lost.resume(), "data")).pipe(
        Effect.map(([chunk]) => /^id: (.+)$/m.exec(String(chunk))![1]!)
      )
      lost.destroy()
      yield* until(endpoint, 0)
      const peer = yield* deaf(endpoint)
      peer.write(`${head("GET", session)}Last-Event-ID: ${id}\r\n\r\n`)
      assert.isTrue(yield* readSlowly(peer, 256 * 1024, "the end"))
    }), 30_000)
})

describe("McpHttp.guard: a client that reads a stream", () => {
  it.live("is not left behind, however long that waits for the answer before it", () =>
    Effect.gen(function*() {
      const endpoint = yield* openGuarded(socket, { ...roomy, streamTimeToLive: 500 })
      endpoint.log.release = Effect.sleep(1_500)
      const session = yield* begin(endpoint)
      const slow = call("slow", {}, 2)
      const progressToken = "x".repeat(256 * 1024)
      const peer = yield* demand(endpoint, session, call("wait", {}, 1), {
        ...slow,
        params: { ...slow.params, _meta: { progressToken } }
      })
      let read = ""
      peer.on("data", (chunk) => read += String(chunk)).resume()
      yield* Effect.repeat(Effect.sleep(10), {
        until: () => peer.closed || (read.match(/waited/g)?.length ?? 0) >= 2
      })
      assert.isFalse(peer.closed)
    }), 20_000)
})

describe.concurrent.each(["json", "sse"] as const)(
  "McpHttp.layer (%s): a client that reads",
  (response) => {
    it.live("is not left behind, however long an answer waits for the one before it", () =>
      Effect.gen(function*() {
        const endpoint = yield* hosted(response)(500)
        const session = yield* begin(endpoint)
        const peer = yield* demand(
          endpoint,
          session,
          call("wait", {}, 1),
          call("echo", { message: "second" }, 2),
          call("echo", { message: "x".repeat(64 * 1024) }, 3)
        )
        let read = ""
        peer.on("data", (chunk) => read += String(chunk)).resume()
        yield* Effect.sleep(1_500)
        endpoint.release()
        yield* Effect.repeat(Effect.sleep(10), {
          until: () => peer.closed || ["waited", "second", "xxx"].every((text) => read.includes(text))
        })
        assert.isFalse(peer.closed)
      }), 20_000)
  }
)

describe("McpHttp.guard: a client that does not read a stream", () => {
  it.live("holds its session for as long as a stream may last, and its connection too", () =>
    Effect.gen(function*() {
      const endpoint = yield* guarded(500)
      const session = yield* begin(endpoint)
      const slow = call("slow")
      const progressToken = "x".repeat(16 * 1024 * 1024)
      const { connection } = yield* otherSideOf(
        demand(endpoint, session, { ...slow, params: { ...slow.params, _meta: { progressToken } } })
      )
      yield* Effect.promise(() => once(connection, "close"))
      yield* until(endpoint, 0)
    }), 20_000)
})

describe.concurrent.each<readonly [string, Open]>([
  ["McpHttp.layer", hosted("json")],
  ["McpHttp.guard", guarded]
])("%s: an answer in JSON whose client does not read it", (_, open) => {
  it.live("closes its connection 5 seconds after the session", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(undefined)
      const session = yield* begin(endpoint)
      const { connection } = yield* otherSideOf(
        demand(endpoint, session, call("echo", { message: "x".repeat(16 * 1024 * 1024) }))
      )
      yield* Effect.repeat(Effect.sleep(10), { until: () => connection.writableLength > 0 })
      yield* request(endpoint, "DELETE", { session })
      yield* Effect.promise(() => once(connection, "close"))
    }), 20_000)
})

describe.concurrent("McpHttp.layer: a stream whose client has stopped reading", () => {
  it.live(
    "closes its connection 5 seconds after the session, however little of it is left",
    () =>
      Effect.gen(function*() {
        const { connection, session, ...endpoint } = yield* openStream(undefined)
        yield* request(endpoint, "DELETE", { session })
        yield* Effect.promise(() => once(connection, "close"))
      }),
    20_000
  )

  it.live(
    "closes its connection when it has been over for long enough, however little of it is left",
    () =>
      Effect.gen(function*() {
        const { connection } = yield* openStream(4_000)
        yield* Effect.promise(() => once(connection, "close"))
      }),
    20_000
  )

  it.live("does not hold up the end of its server, however little of it is left", () =>
    Effect.gen(function*() {
      const endpoint = yield* openStream(undefined)
      yield* endpoint.close.pipe(Effect.timeout("10 seconds"))
    }), 20_000)
})
