import { spawn } from "node:child_process"
import { once } from "node:events"
import { connect } from "node:net"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { type CallToolResult, LoggingMessageNotificationSchema } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import {
  begin,
  bytesOf,
  call,
  type Endpoint,
  eventually,
  makeLog,
  makeServer,
  post,
  request,
  socket
} from "./support/mcpHttp.ts"

const open = (options: Partial<McpHttp.LayerOptions<never, never>> = {}) =>
  Effect.gen(function*() {
    const log = makeLog()
    const endpoint = yield* socket(McpHttp.layer({ server: makeServer(log), ...options }))
    return { ...endpoint, log }
  })

const connected = (endpoint: Endpoint, as: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Client({ name: "test", version: "0" })
      let stream = new AbortController()
      const transport = new StreamableHTTPClientTransport(new URL(endpoint.url), {
        fetch: (url, init) => {
          if (init?.method !== "GET") return fetch(url, init)
          stream = new AbortController()
          return fetch(url, { ...init, signal: AbortSignal.any([init.signal!, stream.signal]) })
        },
        requestInit: { headers: { authorization: `Bearer ${as}` } },
        reconnectionOptions: {
          initialReconnectionDelay: 10,
          maxReconnectionDelay: 100,
          reconnectionDelayGrowFactor: 1.5,
          maxRetries: 20
        }
      })
      const errors: Array<Error> = []
      const heard: Array<unknown> = []
      Object.assign(client, { onerror: (error: Error) => void errors.push(error) })
      client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => void heard.push(params.data))
      await client.connect(transport as Parameters<typeof client.connect>[0])
      return { client, transport, errors, heard, breakStream: () => stream.abort() }
    }),
    ({ client }) => Effect.promise(() => client.close())
  )

const textOf = (result: unknown) => {
  const [block] = (result as CallToolResult).content
  return block?.type === "text" ? block.text : ""
}

/** What a server says to a request of any bytes, before it hangs up or for as long as it takes to be clear. */
const write = (endpoint: Endpoint, bytes: string | Buffer) =>
  Effect.promise(async () => {
    const { hostname, port } = new URL(endpoint.url)
    const peer = connect(Number(port), hostname)
    let said = ""
    peer.on("data", (data) => said += data.toString("latin1"))
    peer.on("error", () => undefined)
    peer.write(bytes)
    await Promise.race([once(peer, "close"), new Promise((resolve) => setTimeout(resolve, 1_000))])
    peer.destroy()
    return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(said)?.[1] ?? 0), body: said.split("\r\n\r\n")[1] ?? "" }
  })

const head = (lines: ReadonlyArray<string>) =>
  Buffer.from(
    ["GET /mcp HTTP/1.1", "Host: localhost", "Connection: close", "Accept: text/event-stream", ...lines, "", ""].join(
      "\r\n"
    ),
    "latin1"
  )

describe("a client of the SDK", () => {
  for (const response of ["sse", "json"] as const) {
    it.live(`initializes, calls, hears and leaves (${response})`, () =>
      Effect.gen(function*() {
        const endpoint = yield* open({ response })
        const { client, errors, heard, transport } = yield* connected(endpoint, "alice")
        const tools = yield* Effect.promise(() => client.listTools())
        assert.deepStrictEqual(tools.tools.map(({ name }) => name), ["echo", "whoami", "wait"])
        const echoed = yield* Effect.promise(() => client.callTool({ name: "echo", arguments: { message: "hi" } }))
        assert.strictEqual(textOf(echoed), "hi")
        const many = yield* Effect.promise(() =>
          Promise.all(
            Array.from({ length: 20 }, (_, i) => client.callTool({ name: "echo", arguments: { message: String(i) } }))
          )
        )
        assert.deepStrictEqual(many.map(textOf), Array.from({ length: 20 }, (_, i) => String(i)))
        const server = endpoint.log.servers.get(transport.sessionId!)!
        yield* Effect.promise(async () => server.sendLoggingMessage({ level: "info", data: "spoken" }))
        yield* eventually(() => heard.length === 1)
        assert.deepStrictEqual(heard, ["spoken"])
        yield* Effect.promise(() => transport.terminateSession())
        assert.strictEqual(yield* endpoint.registry.size, 0)
        assert.deepStrictEqual(errors, [])
      }))

    it.live(`gives up a call, and goes on (${response})`, () =>
      Effect.gen(function*() {
        const endpoint = yield* open({ response })
        const { client, errors } = yield* connected(endpoint, "alice")
        const failed = yield* Effect.promise(() =>
          client.callTool({ name: "wait", arguments: {} }, undefined, { timeout: 50 }).catch((error: Error) =>
            error.message
          )
        )
        assert.include(failed, "timed out")
        yield* eventually(() => endpoint.log.aborted.length === 1)
        const echoed = yield* Effect.promise(() => client.callTool({ name: "echo", arguments: { message: "on" } }))
        assert.strictEqual(textOf(echoed), "on")
        assert.deepStrictEqual(errors, [])
      }))
  }

  it.live("resumes what it missed, when its stream breaks", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ eventStore: McpHttp.memoryEventStore(), retryInterval: 10 })
      const { breakStream, client, heard, transport } = yield* connected(endpoint, "alice")
      const server = endpoint.log.servers.get(transport.sessionId!)!
      const say = (data: string) => Effect.promise(() => server.sendLoggingMessage({ level: "info", data }))
      yield* Effect.repeat(endpoint.registry.entries, { until: ([entry]) => entry?.holders === 1 })
      yield* say("first")
      yield* eventually(() => heard.length === 1)
      breakStream()
      yield* say("second")
      yield* say("third")
      yield* eventually(() => heard.length === 3)
      assert.deepStrictEqual(heard, ["first", "second", "third"])
      const echoed = yield* Effect.promise(() => client.callTool({ name: "echo", arguments: { message: "hi" } }))
      assert.strictEqual(textOf(echoed), "hi")
    }))

  it.live("has a session of its own, and hears nothing of the others'", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const [a, b] = [yield* connected(endpoint, "alice"), yield* connected(endpoint, "bob")]
      const [ofA, ofB] = yield* Effect.promise(() =>
        Promise.all([a.client.callTool({ name: "whoami" }), b.client.callTool({ name: "whoami" })])
      )
      assert.notStrictEqual(textOf(ofA), textOf(ofB))
      const server = endpoint.log.servers.get(a.transport.sessionId!)!
      yield* Effect.promise(async () => server.sendLoggingMessage({ level: "info", data: "for alice" }))
      yield* eventually(() => a.heard.length === 1)
      assert.deepStrictEqual(b.heard, [])
    }))
})

describe("whoever writes to the socket", () => {
  it.live("finds no session with an id of any bytes", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const session = yield* begin(endpoint)
      const { body: unknown } = yield* bytesOf(yield* request(endpoint, "GET", { session: "x" }))
      const ids = [
        ...Array.from({ length: 256 }, (_, byte) => `${session}${String.fromCharCode(byte)}`),
        ...Array.from({ length: 256 }, (_, byte) => `a${String.fromCharCode(byte)}b`)
      ]
      const said = yield* Effect.forEach(ids, (id) => write(endpoint, head([`Mcp-Session-Id: ${id}`])), {
        concurrency: 64
      })
      for (const [i, { body, status }] of said.entries()) {
        // 400 is Node's own, to what is no header. Whitespace around a value is no part of it, and it is the same id then:
        // two at once are one too many.
        const isSame = i === 9 || i === 32
        assert.include(isSame ? [200, 409] : [400, 404], status, `byte ${i % 256}`)
        if (status === 404) assert.strictEqual(body, unknown)
      }
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))

  it.live("finds none with two ids, nor with one that is too long", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const session = yield* begin(endpoint)
      for (
        const lines of [
          [`Mcp-Session-Id: ${session}`, `Mcp-Session-Id: ${session}`],
          [`Mcp-Session-Id: ${session}`, "mcp-session-id: x"],
          ["Mcp-Session-Id: x", `MCP-SESSION-ID: ${session}`],
          [`Mcp-Session-Id: ${session}`, "Mcp-Session-Id:"],
          ["Mcp-Session-Id:", `Mcp-Session-Id: ${session}`],
          [`Mcp-Session-Id: ${"x".repeat(15 * 1024)}`],
          ["Mcp-Session-Id: __proto__"]
        ]
      ) {
        assert.strictEqual((yield* write(endpoint, head(lines))).status, 404, lines.join().slice(0, 80))
      }
      assert.strictEqual((yield* write(endpoint, head(["__proto__: x", "constructor: y"]))).status, 400)
      assert.strictEqual((yield* write(endpoint, head(["Mcp-Session-Id:"]))).status, 400)
      assert.strictEqual(
        (yield* write(endpoint, head([`Origin: http://localhost`, "Origin: http://evil.example"]))).status,
        403
      )
      const otherHost = "GET /mcp HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
      assert.strictEqual((yield* write(endpoint, otherHost)).status, 403)
      assert.strictEqual(
        (yield* write(endpoint, "GET http://evil.example/mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")).status,
        403
      )
    }))

  it.live("does not wait, nor make the server, with half a body", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const session = yield* begin(endpoint)
      const half = (id: string) =>
        write(
          endpoint,
          `POST /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: ${id}\r\nContent-Type: application/json\r\n` +
            "Accept: application/json, text/event-stream\r\nContent-Length: 1000\r\n\r\n{\"jsonrpc\":"
        )
      assert.strictEqual((yield* half("x")).status, 404)
      assert.strictEqual((yield* half(session)).status, 0)
      yield* Effect.repeat(endpoint.registry.stats, { until: ({ held }) => held === 0 }).pipe(
        Effect.timeout("5 seconds")
      )
      assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 200)
    }))
})

describe("a process that serves", () => {
  it.live("exits by itself when the server's scope has closed, whatever was open", () =>
    Effect.gen(function*() {
      const script = fileURLToPath(new URL("./support/serves.ts", import.meta.url))
      const child = spawn(process.execPath, ["--import", "tsx", script], { stdio: ["ignore", "pipe", "inherit"] })
      let said = ""
      child.stdout.on("data", (data) => said += String(data))
      const [code] = yield* Effect.promise(() => once(child, "exit")).pipe(
        Effect.timeout("15 seconds"),
        Effect.onError(() => Effect.sync(() => child.kill("SIGKILL")))
      )
      assert.strictEqual(code, 0)
      const { elapsed, ...rest } = JSON.parse(said) as { readonly elapsed: number }
      assert.deepStrictEqual(rest, { opened: 3, closed: 3, aborted: 1 } as object)
      assert.isBelow(elapsed, 3_000)
    }))
})
