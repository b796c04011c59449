import { assert, describe, inject, it } from "@effect/vitest"
import * as V2 from "@modelcontextprotocol/client"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import {
  type CallToolResult,
  LoggingMessageNotificationSchema,
  RootsListChangedNotificationSchema
} from "@modelcontextprotocol/sdk/types.js"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { becomes, eventually } from "./support/answers.ts"
import { knowsIdsToTheByte, knowsOneIdOnly } from "./support/endpoints.ts"
import { openGuarded } from "./support/guarded.ts"
import { assertWithin, underLoad } from "./support/load.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { head, write } from "./support/rawHttp.ts"
import { begin, call, post } from "./support/requests.ts"
import { makeHandle } from "./support/sessions.ts"

const open = (options: Partial<McpHttp.LayerOptions<never, never>> = {}) =>
  Effect.gen(function*() {
    const log = makeLog()
    const endpoint = yield* socket(McpHttp.layer({ server: makeServer(log), ...options }))
    return { ...endpoint, log }
  })

const connected = (endpoint: Endpoint, as: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Client({ name: "test", version: "0" }, { capabilities: { roots: { listChanged: true } } })
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

/** What both generations of the SDK's client can do, as each of them does it. */
interface AnyClient {
  readonly tools: () => Promise<ReadonlyArray<string>>
  readonly echo: (message: string) => Promise<string>
  readonly notify: () => Promise<void>
  readonly terminate: () => Promise<void>
  readonly version: () => string | undefined
  readonly sessionId: () => string | undefined
  readonly heard: ReadonlyArray<unknown>
  readonly errors: ReadonlyArray<Error>
}

type Connect = (endpoint: Endpoint, as: string) => Effect.Effect<AnyClient, never, Scope.Scope>

const first: Connect = (endpoint, as) =>
  Effect.map(connected(endpoint, as), ({ client, errors, heard, transport }) => ({
    tools: async () => (await client.listTools()).tools.map(({ name }) => name),
    echo: async (message) => textOf(await client.callTool({ name: "echo", arguments: { message } })),
    notify: () => client.sendRootsListChanged(),
    terminate: () => transport.terminateSession(),
    version: () => transport.protocolVersion,
    sessionId: () => transport.sessionId,
    heard,
    errors
  }))

const second = (mode: "legacy" | "auto"): Connect => (endpoint, as) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new V2.Client({ name: "test", version: "0" }, {
        capabilities: { roots: { listChanged: true } },
        versionNegotiation: { mode }
      })
      const transport = new V2.StreamableHTTPClientTransport(new URL(endpoint.url), {
        requestInit: { headers: { authorization: `Bearer ${as}` } }
      })
      const errors: Array<Error> = []
      const heard: Array<unknown> = []
      Object.assign(client, { onerror: (error: Error) => void errors.push(error) })
      client.setNotificationHandler("notifications/message", ({ params }) => void heard.push(params.data))
      await client.connect(transport)
      return { client, transport, errors, heard }
    }),
    ({ client }) => Effect.promise(() => client.close())
  ).pipe(Effect.map(({ client, errors, heard, transport }) => ({
    tools: async () => (await client.listTools()).tools.map(({ name }) => name),
    echo: async (message) => textOf(await client.callTool({ name: "echo", arguments: { message } })),
    notify: () => client.notification({ method: "notifications/roots/list_changed" }),
    terminate: () => transport.terminateSession(),
    version: () => transport.protocolVersion,
    sessionId: () => transport.sessionId,
    heard,
    errors
  })))

const clients: ReadonlyArray<readonly [string, Connect]> = [
  ["@modelcontextprotocol/sdk", first],
  ["@modelcontextprotocol/client", second("legacy")],
  ["@modelcontextprotocol/client, which asks for the version", second("auto")]
]

const twenty = Array.from({ length: 20 }, (_, i) => String(i))

describe.each(clients)("a client of %s", (_, connect) => {
  it.live.each(["sse", "json"] as const)(
    "initializes, calls, hears and leaves, with layer (%s)",
    (response) =>
      Effect.gen(function*() {
        const endpoint = yield* open({ response })
        const client = yield* connect(endpoint, "alice")
        assert.strictEqual(client.version(), "2025-11-25")
        const entries = yield* endpoint.registry.entries
        assert.deepStrictEqual(entries.map(({ id }) => id), [client.sessionId()])
        assert.deepStrictEqual(yield* Effect.promise(client.tools), ["echo", "whoami", "wait"])
        assert.deepStrictEqual(yield* Effect.promise(() => Promise.all(twenty.map(client.echo))), twenty)
        const server = endpoint.log.servers.get(client.sessionId()!)!
        const roots = yield* Effect.promise(async () => {
          const notified = new Promise<string>((resolve) =>
            server.setNotificationHandler(RootsListChangedNotificationSchema, ({ method }) => resolve(method))
          )
          await client.notify()
          return notified
        })
        assert.strictEqual(roots, "notifications/roots/list_changed")
        yield* Effect.promise(async () => server.sendLoggingMessage({ level: "info", data: "spoken" }))
        yield* eventually(() => client.heard.length === 1)
        assert.deepStrictEqual(client.heard, ["spoken"])
        yield* Effect.promise(client.terminate)
        assert.strictEqual(yield* endpoint.registry.size, 0)
        assert.deepStrictEqual(client.errors, [])
      })
  )
})

// Effect's server has no stream of its own, and says nothing that was not asked for
describe.each(clients.slice(0, 2))("a client of %s", (_, connect) => {
  it.live("initializes, calls and leaves, with guard", () =>
    Effect.gen(function*() {
      const endpoint = yield* openGuarded(socket)
      const client = yield* connect(endpoint, "alice")
      assert.strictEqual(client.version(), "2025-11-25")
      const entries = yield* endpoint.registry.entries
      assert.deepStrictEqual(entries.map(({ id }) => id), [client.sessionId()])
      assert.deepStrictEqual(yield* Effect.promise(client.tools), ["echo", "wait", "slow"])
      assert.deepStrictEqual(yield* Effect.promise(() => Promise.all(twenty.map(client.echo))), twenty)
      const arrived = endpoint.log.inside.length
      // It would fail, were it refused
      yield* Effect.promise(client.notify)
      assert.deepStrictEqual(endpoint.log.inside.slice(arrived), ["POST 200"])
      yield* Effect.promise(client.terminate)
      assert.strictEqual(yield* endpoint.registry.size, 0)
      yield* eventually(() => endpoint.log.inside.includes("DELETE 204"))
      assert.deepStrictEqual(client.errors, [])
    }))
})

// What a toolkit answers a client of 2026-07-28 with is JSON
const quoted = twenty.map((message) => JSON.stringify(message))

describe("a client of 2026-07-28", () => {
  it.live("calls through guard, and never has a session", () =>
    Effect.gen(function*() {
      const endpoint = yield* openGuarded(socket)
      const client = yield* second("auto")(endpoint, "alice")
      assert.strictEqual(client.version(), "2026-07-28")
      assert.deepStrictEqual(yield* Effect.promise(client.tools), ["echo", "wait", "slow"])
      assert.deepStrictEqual(yield* Effect.promise(() => Promise.all(twenty.map(client.echo))), quoted)
      assert.isUndefined(client.sessionId())
      assert.strictEqual(yield* endpoint.registry.size, 0)
      assert.deepStrictEqual(client.errors, [])
    }))

  it.live("is what a connector opens", () =>
    Effect.gen(function*() {
      const endpoint = yield* openGuarded(socket)
      const connector = McpConnectorV2.http({ url: endpoint.url, forwardCredentials: true })
      const alice = Identity.fromKey("alice", { credentials: Credentials.bearer("alice") })
      const session = yield* connector(alice, makeHandle())
      assert.strictEqual(session.protocolVersion, "2026-07-28")
      assert.strictEqual(
        textOf(yield* session.callTool({ name: "echo", arguments: { message: "hi" } })),
        "\"hi\""
      )
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))
})

describe("a client of the SDK", () => {
  for (const response of ["sse", "json"] as const) {
    it.live(`gives up a call, and goes on (${response})`, () =>
      Effect.gen(function*() {
        const endpoint = yield* open({ response })
        const { client, errors } = yield* connected(endpoint, "alice")
        const failed = yield* Effect.promise(() =>
          client.callTool({ name: "wait", arguments: {} }, undefined, { timeout: 1_000 }).catch((error: Error) =>
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
      yield* becomes(endpoint.registry.entries, ([entry]) => entry?.holders === 1)
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
      yield* knowsIdsToTheByte(endpoint, 200)
    }), underLoad)

  it.live("finds none with two ids, nor with one that is too long", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const session = yield* begin(endpoint)
      yield* knowsOneIdOnly(endpoint, session)
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
      const half = (id: string, patience?: number) =>
        write(
          endpoint,
          `POST /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: ${id}\r\nContent-Type: application/json\r\n` +
            "Accept: application/json, text/event-stream\r\nContent-Length: 1000\r\n\r\n{\"jsonrpc\":",
          patience
        )
      assert.strictEqual((yield* half("x")).status, 404)
      assert.strictEqual((yield* half(session, 1_000)).status, 0)
      yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
      assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 200)
    }))
})

/** Runs one to its end, and reads what it said. */
const run = Effect.fnUntraced(function*(name: "serves" | "servesGuarded") {
  const child = spawn(process.execPath, [inject("programs")[name]], { stdio: ["ignore", "pipe", "inherit"] })
  let said = ""
  child.stdout.on("data", (data) => said += String(data))
  const [code] = yield* Effect.promise(() => once(child, "close")).pipe(
    Effect.timeout("28 seconds"),
    Effect.onError(() => Effect.sync(() => child.kill("SIGKILL")))
  )
  assert.strictEqual(code, 0)
  return said
})

describe("a process that serves", () => {
  it.live("exits by itself when the server's scope has closed, whatever was open", () =>
    Effect.gen(function*() {
      const { elapsed, ...rest } = JSON.parse(yield* run("serves")) as { readonly elapsed: number }
      assert.deepStrictEqual(rest, { opened: 3, closed: 3, aborted: 1 } as object)
      assertWithin(elapsed, 3_000)
    }), underLoad)

  it.live("exits by itself with guard, too", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(JSON.parse(yield* run("servesGuarded")), { called: 1, interrupted: 1, freed: 3 })
    }))
})
