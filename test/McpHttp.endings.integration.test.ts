/**
 * How requests and connections end over real sockets: under clients of both generations of the SDK, and under peers who
 * vanish, dawdle or ask for something else.
 */
import { assert, describe, it } from "@effect/vitest"
import * as V2 from "@modelcontextprotocol/client"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { Identity } from "effect-mcp-sessions/Identity"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import type { McpSessionError } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { once } from "node:events"
import { Agent, type IncomingMessage, request as httpRequest } from "node:http"
import { connect, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import { becomes, eventually, readUntil, textOf } from "./support/answers.ts"
import { type AnySession, type Generation, generations } from "./support/generations.ts"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { begin, call, headersOf, initialize, post, protocolVersion, request, send } from "./support/requests.ts"

const open = (
  options: Partial<McpHttp.LayerOptions<never, Scope.Scope>> = {},
  resolver?: Layer.Layer<IdentityResolver>
) =>
  Effect.gen(function*() {
    const log = makeLog()
    const endpoint = yield* socket(McpHttp.layer({ server: makeServer(log), ...options }), resolver)
    return { ...endpoint, log }
  })

type Opened = Effect.Success<ReturnType<typeof open>>

/** Makes a call that waits, and says what became of it. */
type Wait = (endpoint: Endpoint) => Effect.Effect<{ readonly ended: Promise<string> }, never, Scope.Scope>

const firstClient: Wait = (endpoint) =>
  Effect.gen(function*() {
    const client = new Client({ name: "test", version: "0" })
    const transport = new StreamableHTTPClientTransport(new URL(endpoint.url))
    yield* Effect.acquireRelease(
      Effect.promise(() => client.connect(transport as Parameters<typeof client.connect>[0])),
      () => Effect.promise(() => client.close())
    )
    return { ended: client.callTool({ name: "wait", arguments: {} }).then(() => "answered", String) }
  })

const secondClient: Wait = (endpoint) =>
  Effect.gen(function*() {
    const client = new V2.Client({ name: "test", version: "0" }, { versionNegotiation: { mode: "legacy" } })
    const transport = new V2.StreamableHTTPClientTransport(new URL(endpoint.url))
    yield* Effect.acquireRelease(
      Effect.promise(() => client.connect(transport)),
      () => Effect.promise(() => client.close())
    )
    return { ended: client.callTool({ name: "wait", arguments: {} }).then(() => "answered", String) }
  })

const alice = Identity.fromKey("alice")

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const openPool = (sdk: Generation, { url }: Endpoint) =>
  Effect.map(
    Effect.orDie(Layer.build(Sessions.layer({ connect: sdk.http({ url }) }))),
    (context) => Context.get(context, Sessions)
  )

const pooled = (sdk: Generation): Wait => (endpoint) =>
  Effect.gen(function*() {
    const pool = yield* openPool(sdk, endpoint)
    // It has been used before: then a refused request is sent again, on a session of its own
    yield* Effect.orDie(pool.withSession(alice, (session) => session.listTools()))
    const called = pool.withSession(alice, (session) => session.callTool({ name: "wait", arguments: {} }))
    return { ended: Effect.runPromise(called).then(() => "answered", String) }
  })

const clients: ReadonlyArray<readonly [string, Wait]> = [
  ["a client of @modelcontextprotocol/sdk", firstClient],
  ["a client of @modelcontextprotocol/client", secondClient],
  ...generations.map(([name, sdk]) => [`a pool over ${name}`, pooled(sdk)] as const)
]

const endings: ReadonlyArray<readonly [string, (endpoint: Opened) => Effect.Effect<unknown>]> = [
  ["its session is terminated", (endpoint) => endpoint.registry.clear],
  [
    "its session is deleted",
    (endpoint) =>
      Effect.flatMap(
        endpoint.registry.entries,
        (entries) => Effect.forEach(entries, ({ id }) => request(endpoint, "DELETE", { session: id }))
      )
  ],
  ["the server shuts down", (endpoint) => endpoint.close]
]

describe.each(clients)("the call of %s", (_, wait) => {
  for (const response of ["sse", "json"] as const) {
    it.live.each(endings)(`runs once, and fails at once, when %s (${response})`, ([, end]) =>
      Effect.gen(function*() {
        const endpoint = yield* open({ response })
        const { ended } = yield* wait(endpoint)
        yield* eventually(() => endpoint.log.called.length === 1)
        yield* Effect.forkChild(end(endpoint))
        const said = yield* Effect.promise(() => ended).pipe(Effect.timeout("4 seconds"))
        assert.notStrictEqual(said, "answered")
        // Long enough for whoever repeats it
        yield* Effect.sleep(100)
        assert.deepStrictEqual(endpoint.log.called, ["wait"])
      }))
  }
})

describe("a request in flight", () => {
  it.live("is answered 503 when the server shuts down, with an error for each of its calls", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ response: "json" })
      const session = yield* begin(endpoint)
      const batch = [call("wait", {}, 1), call("wait", {}, 2)]
      const answered = send(endpoint, "POST", { session }, batch).then(async (answer) => ({
        status: answer.status,
        errors: (JSON.parse(await answer.text()) as ReadonlyArray<{ id: number; error: unknown }>).map(({ id }) => id)
      }))
      yield* eventually(() => endpoint.log.called.length === 2)
      yield* endpoint.close.pipe(Effect.timeout("4 seconds"))
      assert.deepStrictEqual(yield* Effect.promise(() => answered), { status: 503, errors: [1, 2] })
    }))
})

// -----------------------------------------------------------------------------
// Peers
// -----------------------------------------------------------------------------

interface Peer {
  readonly socket: Socket
  readonly said: () => string
  readonly closed: Promise<unknown>
}

/** Writes to the socket, and listens. */
const peer = (
  endpoint: Endpoint,
  head: ReadonlyArray<string>,
  { allowHalfOpen = false, body = "", isWhole = true } = {}
) =>
  Effect.acquireRelease(
    Effect.promise(async (): Promise<Peer> => {
      const { hostname, port } = new URL(endpoint.url)
      const self = connect({ port: Number(port), host: hostname, allowHalfOpen })
      let said = ""
      self.on("data", (data) => said += data.toString("latin1"))
      self.on("error", () => undefined)
      const closed = new Promise((resolve) => self.once("close", resolve))
      await once(self, "connect")
      self.write([...head, ...(isWhole ? ["Host: localhost", ""] : []), body].join("\r\n"))
      return { socket: self, said: () => said, closed }
    }),
    ({ socket: self }) => Effect.sync(() => self.destroy())
  )

const held = (endpoint: Endpoint) => Effect.map(endpoint.registry.stats, (stats) => stats.held)

const becomesFree = (endpoint: Endpoint) =>
  Effect.repeat(Effect.andThen(Effect.sleep(10), held(endpoint)), { until: (count) => count === 0 }).pipe(
    Effect.timeout("5 seconds")
  )

const upgrade = ["Connection: Upgrade", "Upgrade: websocket"]

describe.each(["json", "sse"] as const)(
  "an answer by %s that ends after the server has stopped listening",
  (response) => {
    it.live("is complete, and does not hold up the server's end", () =>
      Effect.gen(function*() {
        const endpoint = yield* open({ response })
        const session = yield* begin(endpoint)
        const answered = send(endpoint, "POST", { session }, call("wait"))
        yield* eventually(() => endpoint.log.called.length === 1)
        const closing = yield* Effect.forkChild(endpoint.close, { startImmediately: true })
        endpoint.log.release()
        const answer = yield* Effect.promise(() => answered)
        // The headers of a stream were sent before
        if (response === "json") assert.strictEqual(answer.headers.get("connection"), "close")
        assert.include(yield* textOf(answer), "waited")
        // Its connection would be kept for 3 seconds, for a request that can't come
        yield* Fiber.join(closing).pipe(Effect.timeout("2 seconds"))
      }))
  }
)

/** What becomes of a call over the agent's connection: all of an answer is heard, a part of it, or none. */
const heard = (agent: Agent, endpoint: Endpoint, session: string) =>
  Effect.callback<string>((resume) => {
    const headers = { "content-type": "application/json", ...headersOf({ session }) }
    const says = (what: string) => resume(Effect.succeed(what))
    const asked = httpRequest(endpoint.url, { agent, method: "POST", headers }, (answer) => {
      let text = ""
      answer.on("data", (data) => text += String(data))
      answer.on("error", () => says(`in part: ${text}`))
      answer.on("end", () => says(/"(?:result|error)":/.test(text) ? "whole" : `without an answer: ${text}`))
    })
    asked.on("error", () => says("none"))
    asked.end(JSON.stringify(call("slow")))
  })

describe("a connection that is always busy, as that of a proxy is", () => {
  const slow = Effect.sync(() => {
    const server = new Server({ name: "test", version: "1.0.0" }, { capabilities: { tools: {} } })
    server.setRequestHandler(CallToolRequestSchema, async () => {
      await sleep(10)
      return { content: [] }
    })
    return server
  })

  it.live("carries its last answer when the server stops listening, and that whole", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ server: () => slow })
      const session = yield* begin(endpoint)
      const agent = yield* Effect.acquireRelease(
        Effect.sync(() => new Agent({ keepAlive: true, maxSockets: 1 })),
        (opened) => Effect.sync(() => opened.destroy())
      )
      const said: Array<string> = []
      const caller = Effect.tap(heard(agent, endpoint, session), (what) => Effect.sync(() => said.push(what))).pipe(
        Effect.repeat({ until: (what) => what === "none" })
      )
      const callers = yield* Effect.forkChild(Effect.all([caller, caller, caller], { concurrency: "unbounded" }))
      yield* eventually(() => said.length > 10)
      yield* endpoint.close.pipe(Effect.timeout("4 seconds"))
      yield* Fiber.join(callers)
      assert.deepStrictEqual(said.filter((one) => one !== "whole" && one !== "none"), [])
    }))
})

describe("the first request to a server that has stopped listening", () => {
  it.live("is answered, and its connection does not hold up the server's end", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ response: "json" })
      const { closed, said, socket: self } = yield* peer(endpoint, ["POST /mcp HTTP/1.1"], { isWhole: false })
      yield* Effect.sleep(50)
      const closing = yield* Effect.forkChild(endpoint.close, { startImmediately: true })
      yield* Effect.sleep(20)
      const body = JSON.stringify(initialize)
      const head = { host: "localhost", "content-type": "application/json", ...headersOf({}) }
      const lines = Object.entries(head).map((header) => header.join(": "))
      self.write([...lines, `content-length: ${body.length}`, "", body].join("\r\n"))
      yield* Effect.promise(() => closed).pipe(Effect.timeout("4 seconds"))
      assert.match(said(), /^HTTP\/1\.1 200 [^]*connection: close/i)
      yield* Fiber.join(closing).pipe(Effect.timeout("4 seconds"))
    }))
})

describe("a refusal of a server that has stopped listening", () => {
  it.live("is heard by a client that is still sending its body", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ drainTimeout: "3 seconds" })
      const session = yield* begin(endpoint)
      const called = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
      yield* eventually(() => endpoint.log.called.length === 1)
      const { closed, said, socket: self } = yield* peer(endpoint, half("unknown", 3_000_000), { isWhole: false })
      yield* Effect.sleep(50)
      const closing = yield* Effect.forkChild(endpoint.close, { startImmediately: true })
      yield* Effect.sleep(50)
      self.pause()
      self.write("Host: localhost\r\n\r\n")
      for (let i = 0; i < 180; i++) {
        self.write("x".repeat(16 * 1024))
        yield* Effect.sleep(1)
      }
      self.resume()
      yield* Effect.promise(() => closed).pipe(Effect.timeout("8 seconds"))
      assert.match(said(), /^HTTP\/1\.1 (?:404|503) /)
      yield* Effect.promise(() => called)
      yield* Fiber.join(closing).pipe(Effect.timeout("5 seconds"))
    }))
})

describe("a request that was sent before the answer to another was there", () => {
  it.live.each(
    [
      ["json", "GET /plain", "the plain one"],
      ["sse", "GET /plain", "the plain one"],
      ["json", "PUT /mcp", "405 Method Not Allowed"],
      ["sse", "PUT /mcp", "405 Method Not Allowed"]
    ] as const
  )(
    "is answered, too, when the server stops listening (%s, %s)",
    ([response, target, answer]) =>
      Effect.gen(function*() {
        const log = makeLog()
        const route = HttpRouter.add("GET", "/plain", Effect.succeed(HttpServerResponse.text("the plain one")))
        const layer = McpHttp.layer({ server: makeServer(log), response, drainTimeout: "2 seconds" })
        const endpoint = yield* socket(Layer.provideMerge(layer, route))
        const session = yield* begin(endpoint)
        const body = JSON.stringify(call("wait"))
        const { closed, said, socket: self } = yield* peer(endpoint, half(session, body.length), { body })
        yield* eventually(() => log.called.length === 1)
        self.write(`${target} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
        const closing = yield* Effect.forkChild(endpoint.close, { startImmediately: true })
        yield* Effect.sleep(50)
        log.release()
        yield* Fiber.join(closing).pipe(Effect.timeout("8 seconds"))
        yield* Effect.promise(() => closed)
        assert.include(said(), "waited")
        assert.include(said(), answer)
      })
  )
})

describe("an answer of another route that is still being read", () => {
  it.live("is not cut off by the end of the sessions", () =>
    Effect.gen(function*() {
      const log = makeLog()
      const much = new Uint8Array(12_000_000)
      const route = HttpRouter.add(
        "GET",
        "/much",
        Effect.delay(Effect.succeed(HttpServerResponse.uint8Array(much)), 300)
      )
      const endpoint = yield* socket(Layer.provideMerge(McpHttp.layer({ server: makeServer(log) }), route))
      const session = yield* begin(endpoint)
      const called = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
      yield* eventually(() => log.called.length === 1)
      const asked = httpRequest(new URL("/much", endpoint.url))
      const answered = once(asked, "response")
      asked.end()
      yield* Effect.sleep(50)
      const closing = yield* Effect.forkChild(endpoint.close, { startImmediately: true })
      const [answer] = (yield* Effect.promise(() => answered)) as [IncomingMessage]
      assert.include(yield* Effect.promise(() => called), "shut down")
      // Longer than it takes to find out that there is nothing left to wait for
      yield* Effect.sleep(500)
      let length = 0
      answer.on("data", (data: Buffer) => length += data.length)
      yield* Effect.promise(() => once(answer, "end"))
      assert.strictEqual(length, much.length)
      yield* Fiber.join(closing).pipe(Effect.timeout("8 seconds"))
    }))
})

describe("a peer that asks for another protocol", () => {
  it.live.each(["GET", "POST", "DELETE"])(
    "is refused, and its connection closed (%s)",
    (method) =>
      Effect.gen(function*() {
        const endpoint = yield* open()
        const session = yield* begin(endpoint)
        const head = [`${method} /mcp HTTP/1.1`, ...upgrade, "Accept: text/event-stream", `Mcp-Session-Id: ${session}`]
        const { closed, said, socket: self } = yield* peer(endpoint, head, { allowHalfOpen: true })
        yield* eventually(() => said().includes("\r\n\r\n"))
        assert.match(said(), /^HTTP\/1\.1 400 /)
        assert.strictEqual(yield* held(endpoint), 0)
        // It does not hang up by itself, and learns only by writing that nobody is there
        yield* Effect.sleep("2500 millis")
        yield* Effect.forkChild(Effect.forever(Effect.andThen(Effect.sync(() => self.write("x")), Effect.sleep(100))))
        yield* Effect.promise(() => closed).pipe(Effect.timeout("2 seconds"))
        assert.strictEqual(yield* endpoint.registry.size, 1)
      })
  )
})

const half = (session: string | undefined, length = 1_000) => [
  "POST /mcp HTTP/1.1",
  "Content-Type: application/json",
  "Accept: application/json, text/event-stream",
  `Content-Length: ${length}`,
  ...(session === undefined ? [] : [`Mcp-Session-Id: ${session}`])
]

describe("a body that does not arrive", () => {
  it.live("is waited for as long as bodyTimeout says, and holds nothing", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ bodyTimeout: 300 })
      const session = yield* begin(endpoint)
      for (const id of [session, undefined]) {
        const { closed, said } = yield* peer(endpoint, half(id), { body: "{\"jsonrpc\":" })
        yield* Effect.promise(() => closed).pipe(Effect.timeout("5 seconds"))
        assert.match(said(), /^HTTP\/1\.1 408 /)
        assert.strictEqual(yield* held(endpoint), 0)
      }
      assert.deepStrictEqual(endpoint.log.opened, [session])
    }))

  it.live("is not waited for when its session ends", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const session = yield* begin(endpoint)
      const { closed, said } = yield* peer(endpoint, half(session), { body: "{\"jsonrpc\":" })
      yield* Effect.sleep(100)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      yield* Effect.promise(() => closed).pipe(Effect.timeout("5 seconds"))
      assert.match(said(), /^HTTP\/1\.1 404 /)
    }))

  it.live("does not delay the shutdown of the server, which it is told of", () =>
    Effect.gen(function*() {
      let arrived = 0
      const endpoint = yield* open(
        {},
        IdentityResolver.layerIdentify(() =>
          Effect.sync(() => {
            arrived++
            return "anybody"
          })
        )
      )
      const session = yield* begin(endpoint)
      const before = arrived
      const peers = [
        yield* peer(endpoint, half(session), { body: "{" }),
        yield* peer(endpoint, half(undefined), { body: "{" })
      ]
      yield* eventually(() => arrived === before + peers.length)
      yield* endpoint.close.pipe(Effect.timeout("5 seconds"))
      for (const { closed, said } of peers) {
        yield* Effect.promise(() => closed).pipe(Effect.timeout("5 seconds"))
        assert.match(said(), /^HTTP\/1\.1 503 /)
      }
    }))

  it.live("is not listened to for ever when its request has been refused", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ maxBodyBytes: 1_000 })
      const session = yield* begin(endpoint)
      for (const [head, refusal] of [[half("unknown"), 404], [half(session, 1_001), 413]] as const) {
        const { closed, said, socket: self } = yield* peer(endpoint, head, { body: "{" })
        yield* Effect.forkChild(Effect.forever(Effect.andThen(Effect.sync(() => self.write(" ")), Effect.sleep(100))))
        yield* eventually(() => said().includes("\r\n\r\n"))
        assert.match(said(), new RegExp(`^HTTP/1\\.1 ${refusal} `))
        yield* Effect.promise(() => closed).pipe(Effect.timeout("4 seconds"))
      }
    }))

  it.live("is refused before it comes when it is too large", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ maxBodyBytes: 1_000 })
      const session = yield* begin(endpoint)
      const { closed, said } = yield* peer(endpoint, half(session, 1_001))
      yield* Effect.promise(() => closed).pipe(Effect.timeout("5 seconds"))
      assert.match(said(), /^HTTP\/1\.1 413 /)
    }))
})

describe("a caller of whom nobody says who it is", () => {
  let asked = 0
  const hangs = Effect.andThen(Effect.sync(() => asked++), Effect.uninterruptible(Effect.never))
  const resolvers = [
    ["identify", IdentityResolver.layerIdentify(() => hangs)],
    ["a resolver of one's own", Layer.succeed(IdentityResolver, IdentityResolver.of({ resolve: () => hangs }))]
  ] as const
  const hosts = [
    [
      "layer",
      (resolver: Layer.Layer<IdentityResolver>) => socket(McpHttp.layer({ server: makeServer(makeLog()) }), resolver)
    ],
    ["guard", (resolver: Layer.Layer<IdentityResolver>) => openGuarded(socket, {}, resolver)]
  ] as const

  for (const [host, serve] of hosts) {
    for (const [whose, resolver] of resolvers) {
      it.live(`does not delay the shutdown of ${host}, and is answered 503, when ${whose} hangs`, () =>
        Effect.gen(function*() {
          const endpoint = yield* serve(resolver)
          const before = asked
          const answers = ["POST", "DELETE"].map((method) =>
            send(endpoint, method, { session: "unknown" }, method === "POST" ? initialize : undefined)
          )
          yield* eventually(() => asked === before + 2)
          yield* endpoint.close.pipe(Effect.timeout("5 seconds"))
          for (const answer of yield* Effect.promise(() => Promise.all(answers))) assert.strictEqual(answer.status, 503)
        }))
    }
  }
})

describe("a client that does not read", () => {
  it.live(
    "is left behind when its stream is old enough, and then its connection is closed",
    () =>
      Effect.gen(function*() {
        const endpoint = yield* open({ streamTimeToLive: 500 })
        const session = yield* begin(endpoint)
        const { socket: self } = yield* peer(endpoint, [
          "GET /mcp HTTP/1.1",
          "Accept: text/event-stream",
          `Mcp-Session-Id: ${session}`
        ])
        yield* becomes(held(endpoint), (count) => count === 1)
        self.pause()
        const server = endpoint.log.servers.get(session)!
        const data = "x".repeat(512 * 1024)
        // More than the kernel keeps of it
        for (let i = 0; i < 24; i++) {
          yield* Effect.promise(async () => server.sendLoggingMessage({ level: "info", data }))
          yield* Effect.sleep(5)
        }
        yield* becomesFree(endpoint).pipe(Effect.timeout("10 seconds"))
      }),
    20_000
  )

  it.live("gets the place of its ghost when it comes back", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const { socket: self } = yield* peer(endpoint, [
        "GET /mcp HTTP/1.1",
        "Accept: text/event-stream",
        `Mcp-Protocol-Version: ${protocolVersion}`,
        `Mcp-Session-Id: ${session}`
      ])
      yield* becomes(held(endpoint), (count) => count === 1)
      self.pause()
      const stream = yield* request(endpoint, "GET", { session })
      assert.strictEqual(stream.status, 200)
      yield* Effect.promise(() => endpoint.log.servers.get(session)!.sendToolListChanged())
      yield* readUntil(stream, "list_changed")
    }))

  it.live("gets it also if it asks for events that nobody has kept", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const session = yield* begin(endpoint)
      const ghost = yield* request(endpoint, "GET", { session })
      const headers = { "last-event-id": "of another server" }
      const stream = yield* request(endpoint, "GET", { session, headers })
      assert.strictEqual(stream.status, 200)
      yield* textOf(ghost)
      yield* Effect.promise(() => endpoint.log.servers.get(session)!.sendToolListChanged())
      yield* readUntil(stream, "list_changed")
    }))
})

describe("what is kept for a client that comes back", () => {
  it.live("is no more than maxBytes of events", () =>
    Effect.gen(function*() {
      const endpoint = yield* open({ eventStore: McpHttp.memoryEventStore({ maxBytes: 10_000 }) })
      const session = yield* begin(endpoint)
      const headers = { "mcp-protocol-version": protocolVersion }
      const stream = yield* request(endpoint, "GET", { session, headers })
      const server = endpoint.log.servers.get(session)!
      const say = (data: string) => Effect.promise(async () => server.sendLoggingMessage({ level: "info", data }))
      yield* say("first")
      const id = /^id: (.+)$/m.exec(yield* readUntil(stream, "first"))![1]!
      for (let i = 0; i < 20; i++) yield* say(`<${i}>${"x".repeat(900)}`)
      const resumed = yield* request(endpoint, "GET", { session, headers: { ...headers, "last-event-id": id } })
      const replayed = (yield* readUntil(resumed, "<19>")).match(/<\d+>/g)!
      assert.isBelow(replayed.length, 11)
      assert.isAbove(replayed.length, 7)
      const rest = yield* post(endpoint, call("echo", { message: "on" }), { session })
      assert.include(yield* textOf(rest), "on")
    }))

  it("has limits that mean something", () => {
    for (const options of [{ capacity: 0 }, { maxBytes: -1 }, { maxByte: 1 }]) {
      assert.throws(() => McpHttp.memoryEventStore(options), /McpHttp\.memoryEventStore/)
    }
  })
})
