/**
 * Sessions of three nodes, asked for at each of them.
 */
import { assert, describe, it } from "@effect/vitest"
import { type ClusterMember, ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import { once } from "node:events"
import { Agent } from "node:https"
import { type AddressInfo, connect, createServer } from "node:net"
import { bytesOf, eventually, messagesOf, readUntil, textOf } from "./support/answers.ts"
import { selfSigned } from "./support/certificates.ts"
import { refused } from "./support/fibers.ts"
import { inside, makeInsideLog } from "./support/guarded.ts"
import { makeLog, makeServer } from "./support/mcpHttp.ts"
import { begin, byEachMethod, call, initialize, post, request, send } from "./support/requests.ts"
import { cluster, type Node, type StartOptions, three } from "./support/routed.ts"
import { attributesOf, exitOf, makeRecorder, parentOf } from "./support/spans.ts"

const guarded: StartOptions = {
  app: (log) => {
    const tools = makeInsideLog()
    Object.defineProperty(log, "called", { get: () => Array.from({ length: tools.called }) })
    Object.defineProperty(log, "aborted", { get: () => Array.from({ length: tools.interrupted }) })
    tools.release = Effect.promise(() => log.released)
    return Layer.merge(McpHttp.guard(), inside(tools))
  }
}

const layered: StartOptions = {}
const asJson: StartOptions = { app: (log) => McpHttp.layer({ server: makeServer(log), response: "json" }) }

const resumable: StartOptions = {
  app: (log) => McpHttp.layer({ server: makeServer(log), eventStore: McpHttp.memoryEventStore() })
}

const kinds = [["layer", layered], ["layer (json)", asJson], ["guard", guarded]] as const

/** A request whose client may do anything. */
const ask = (node: Node, method: string, headers: Readonly<Record<string, string>>, body = "") => {
  const peer = connect(node.port, "127.0.0.1")
  peer.on("error", () => undefined)
  const all = {
    Host: "localhost",
    Connection: "close",
    ...headers,
    ...(body === "" ? {} : { "Content-Length": String(body.length) })
  }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`)
  peer.write([`${method} /mcp HTTP/1.1`, ...lines, "", body].join("\r\n"))
  return peer
}

/** Everything that a node says to it, but for the date. */
const raw = (...args: Parameters<typeof ask>) =>
  Effect.promise(async () => {
    const peer = ask(...args)
    let said = ""
    peer.on("data", (data) => said += data.toString("latin1"))
    await new Promise((resolve) => peer.once("close", resolve))
    return said.replace(/\r\ndate: [^\r]*/i, "")
  })

/** Without the body, which comes in other pieces on the way. */
const headOf = (said: string) => said.split("\r\n\r\n")[0]!

const common = { accept: "application/json, text/event-stream", "content-type": "application/json" }

/** The tag of a node that never was. */
const nobodys = `${"A".repeat(32)}.${"B".repeat(12)}`
const tagOf = (session: string) => session.slice(-12)

describe.each(kinds)("McpHttp.routed around %s", (_, options) => {
  it.live("serves any session at any node", () =>
    Effect.gen(function*() {
      const { a, b, c, nodes } = yield* three(options)
      const sessions = [yield* begin(a, "alice"), yield* begin(b, "alice"), yield* begin(c, "bob")] as const
      for (const node of nodes) {
        for (const [i, session] of sessions.entries()) {
          assert.match(session, /^[\w-]{32}\.[\w-]{12}$/)
          const answer = yield* post(node, call("echo", { message: node.name }), {
            as: i === 2 ? "bob" : "alice",
            session
          })
          assert.strictEqual(answer.status, 200)
          assert.include(JSON.stringify(yield* messagesOf(answer)), node.name)
        }
      }
      assert.deepStrictEqual(nodes.map(({ log }) => log.called.length), [3, 3, 3])
      const last = { as: "bob", session: sessions[2] }
      assert.strictEqual((yield* request(a, "DELETE", last)).status, 204)
      for (const node of nodes) assert.strictEqual((yield* request(node, "DELETE", last)).status, 404)
      assert.deepStrictEqual(yield* Effect.forEach(nodes, ({ registry }) => registry.size), [1, 1, 0])
    }))

  it.live("answers B with A's id as any id that never was, byte for byte, at every node", () =>
    Effect.gen(function*() {
      const { a, nodes } = yield* three(options)
      const session = yield* begin(a, "alice")
      const ids = [session, nobodys, "0123", `${"A".repeat(32)}.${tagOf(session)}`, `${session}, ${session}`, "."]
      for (const method of ["GET", "POST", "DELETE"]) {
        const body = method === "POST" ? JSON.stringify(call("echo")) : ""
        const said = new Set<string>()
        for (const node of nodes) {
          for (const id of ids) {
            said.add(yield* raw(node, method, { ...common, authorization: "Bearer bob", "mcp-session-id": id }, body))
          }
        }
        assert.strictEqual(said.size, 1, [...said].join("\n\n"))
        assert.match([...said][0]!, /^HTTP\/1\.1 404 /)
      }
      assert.strictEqual(yield* a.registry.size, 1)
    }))

  it.live("answers whatever is sent of a session as its node does", () =>
    Effect.gen(function*() {
      const { a, b } = yield* three(options)
      const session = yield* begin(a, "alice")
      const headers = { ...common, authorization: "Bearer alice", "mcp-session-id": session }
      const bodies = [
        { jsonrpc: "2.0", method: "notifications/initialized" },
        [call("echo", {}, 1), call("echo", {}, 2)],
        call("echo", { message: "x".repeat(100_000) }),
        initialize,
        {}
      ]
      for (const body of bodies) {
        const [direct, routed] = yield* Effect.forEach(
          [a, b],
          (node) => raw(node, "POST", headers, JSON.stringify(body))
        )
        assert.strictEqual(headOf(routed!), headOf(direct!))
      }
      for (
        const headed of [{ ...headers, accept: "text/html" }, { ...headers, "mcp-protocol-version": "1999-01-01" }]
      ) {
        const [direct, routed] = yield* Effect.forEach([a, b], (node) => raw(node, "POST", headed, "{}"))
        assert.strictEqual(routed, direct)
      }
    }))

  it.live("goes on with a call that waits beside one whose caller leaves", () =>
    Effect.gen(function*() {
      const { a, b } = yield* three(options)
      const session = yield* begin(a)
      const leaves = ask(b, "POST", { ...common, "mcp-session-id": session }, JSON.stringify(call("wait")))
      yield* eventually(() => a.log.called.length === 1)
      const stays = send(b, "POST", { session }, call("wait", {}, 2)).then((answer) => answer.text())
      yield* eventually(() => a.log.called.length === 2)
      leaves.destroy()
      yield* Effect.sleep(100)
      a.log.release()
      assert.include(yield* Effect.promise(() => stays), "waited")
    }))

  it.live("answers each call in flight when the session's node is lost, and then 404", () =>
    Effect.gen(function*() {
      const { a, b } = yield* three(options)
      const session = yield* begin(a, "alice")
      const calls = [["seven", 0], ["eight", 300_000]] as const
      const waiting = calls.map(([id, padding]) =>
        send(b, "POST", { as: "alice", session }, JSON.stringify(call("wait", {}, id)) + " ".repeat(padding))
      )
      yield* eventually(() => a.log.called.length === calls.length)
      yield* a.kill
      for (const [i, answer] of (yield* Effect.promise(() => Promise.all(waiting))).entries()) {
        const messages = yield* messagesOf(answer)
        assert.deepStrictEqual(messages.map(({ id }) => id), [calls[i]![0]])
        assert.include(JSON.stringify(messages), "It may have run")
      }
      const next = yield* post(b, call("echo"), { as: "alice", session })
      assert.deepStrictEqual([next.status, next.headers.get("retry-after")], [503, "10"])
      while ((yield* Effect.orDie(b.membership.nodesNow)).length > 2) yield* Effect.sleep(20)
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 404)
      assert.strictEqual(a.log.called.length, calls.length)
    }))
})

describe("McpHttp.routed", () => {
  it.live("hands on the server's own stream, and its end", () =>
    Effect.gen(function*() {
      const { a, b, c } = yield* three(resumable)
      const session = yield* begin(a, "alice")
      const alice = { as: "alice", session, headers: { accept: "text/event-stream" } }
      const stream = yield* request(b, "GET", alice)
      const say = (text: string) =>
        Effect.promise(() => a.log.servers.get(session)!.sendLoggingMessage({ level: "info", data: text }))
      yield* say("one")
      const read = yield* readUntil(stream, "\"one\"")
      const last = Array.from(read.matchAll(/^id: (.+)$/gm)).at(-1)![1]!
      yield* say("two")
      const resumed = yield* request(c, "GET", { ...alice, headers: { ...alice.headers, "last-event-id": last } })
      const reader = resumed.body!.getReader()
      const replayed = yield* Effect.promise(() => reader.read())
      assert.include(new TextDecoder().decode(replayed.value), "\"two\"")
      assert.strictEqual((yield* a.registry.stats).held, 1)
      const deleted = yield* request(b, "DELETE", { as: "alice", session })
      assert.strictEqual(deleted.status, 204)
      const ended = Effect.gen(function*() {
        while (!(yield* Effect.promise(() => reader.read())).done) continue
      })
      yield* Effect.timeout(ended, "1 second")
    }))

  it.live("goes on with sessions of nodes that it knows while the store is silent, and tells of others nothing", () =>
    Effect.gen(function*() {
      const { a, b, memory } = yield* three()
      const session = yield* begin(a, "alice")
      yield* textOf(yield* post(b, call("echo"), { as: "alice", session }))
      memory["~effect-mcp-sessions/MemoryCluster"].isStoreDown = true
      yield* Effect.sleep(400)
      assert.deepStrictEqual(
        (yield* byEachMethod(b, { as: "alice", session: nobodys })).map(({ headers, status }) => [
          status,
          headers.get("retry-after")
        ]),
        [[503, "10"], [503, "10"], [503, "10"]]
      )
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 200)
      assert.strictEqual((yield* post(b, initialize, { as: "alice" })).status, 200)
      memory["~effect-mcp-sessions/MemoryCluster"].isStoreDown = false
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session: nobodys })).status, 404)
    }))

  it.live("asks the store once for all who ask for nodes that nobody knows, and then ten times a second", () =>
    Effect.gen(function*() {
      let asked = 0
      const { b } = yield* three({ onAsk: () => asked++ })
      asked = 0
      const began = performance.now()
      const guess = (i: number) =>
        request(b, "DELETE", { as: "alice", session: `${"A".repeat(32)}.${String(i).padStart(12, "0")}` })
      const answers = yield* Effect.forEach(Array.from({ length: 300 }, (_, i) => i), guess, { concurrency: 50 })
      assert.deepStrictEqual(answers.filter(({ status }) => status !== 404), [])
      assert.isAtLeast(asked, 1)
      assert.isAtMost(asked, 2 + (performance.now() - began) / 100)
    }))

  it.live("tells the session's node when a listener leaves", () =>
    Effect.gen(function*() {
      const { a, b } = yield* three()
      const session = yield* begin(a, "alice")
      const headers = { authorization: "Bearer alice", accept: "text/event-stream", "mcp-session-id": session }
      const listener = ask(b, "GET", headers)
      let held = 0
      const look = () => void Effect.runPromise(Effect.map(a.registry.stats, (stats) => held = stats.held))
      yield* eventually(() => (look(), held === 1))
      listener.destroy()
      yield* eventually(() => (look(), held === 0))
    }))

  it.live("finds a node that has joined a moment ago", () =>
    Effect.gen(function*() {
      const { b, start } = yield* three()
      const late = yield* start("d")
      const session = yield* begin(late, "alice")
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 200)
    }))

  it.live("begins sessions elsewhere when it drains, and finishes what it has", () =>
    Effect.gen(function*() {
      const { a, b, c, nodes } = yield* three()
      const session = yield* begin(a, "alice")
      yield* a.membership.drain
      const begun = [yield* begin(a, "alice"), yield* begin(a, "alice")]
      assert.deepStrictEqual(yield* Effect.forEach(nodes, ({ registry }) => registry.size), [1, 1, 1])
      assert.notInclude(begun.map(tagOf), tagOf(session))
      for (const node of nodes) {
        assert.strictEqual((yield* post(node, call("echo"), { as: "alice", session })).status, 200)
        for (const other of begun) {
          assert.strictEqual((yield* post(node, call("echo"), { as: "alice", session: other })).status, 200)
        }
      }
      yield* a.close
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 404)
      yield* Effect.all([b.membership.drain, c.membership.drain], { concurrency: "unbounded" })
      // Nobody is left who is ready
      assert.strictEqual((yield* post(c, initialize, { as: "alice" })).status, 200)
    }))

  it.live("finishes the calls that run before drain ends", () =>
    Effect.gen(function*() {
      const { a } = yield* three()
      const session = yield* begin(a, "alice")
      const listener = yield* request(a, "GET", { as: "alice", session, headers: { accept: "text/event-stream" } })
      const waiting = send(a, "POST", { as: "alice", session }, call("wait")).then((answer) => answer.text())
      yield* eventually(() => a.log.called.length === 1)
      const draining = yield* Effect.forkChild(a.membership.drain)
      yield* Effect.sleep(700)
      assert.isUndefined(draining.pollUnsafe())
      a.log.release()
      assert.include(yield* Effect.promise(() => waiting), "waited")
      yield* Effect.timeout(Fiber.join(draining), "5 seconds")
      yield* Effect.promise(() => listener.body!.cancel())
    }))

  it.live("gives up on a node that is a member no more, though its connection holds", () =>
    Effect.gen(function*() {
      const { a, b, memory } = yield* three(resumable)
      const session = yield* begin(a, "alice")
      const waiting = send(b, "POST", { as: "alice", session }, call("wait"))
      yield* eventually(() => a.log.called.length === 1)
      yield* memory["~effect-mcp-sessions/MemoryCluster"].cutOff("a:1")
      const messages = yield* Effect.flatMap(Effect.promise(() => waiting), messagesOf)
      assert.include(JSON.stringify(messages), "It may have run")
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 404)
    }))

  it.live("goes on with one trace at the session's node, and tells spans no credentials", () =>
    Effect.gen(function*() {
      const { record: _, ...recorder } = makeRecorder()
      const { a, b } = yield* three({ tracer: recorder.tracer })
      const session = yield* begin(a, "sk-live-SECRET")
      const alice = { as: "sk-live-SECRET", session }
      yield* textOf(yield* post(b, call("echo"), alice))
      yield* eventually(() => recorder.named("McpHttp").length === 2)
      const hop = recorder.only("McpHttp.handOn")
      assert.strictEqual(hop.kind, "client")
      assert.deepStrictEqual(attributesOf(hop), {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": a.port
      })
      const served = recorder.named("McpHttp")[1]!
      assert.strictEqual(served.traceId, hop.traceId)
      assert.isTrue(recorder.spans.some((span) => parentOf(span)?.spanId === hop.spanId))
      yield* a.kill
      assert.strictEqual((yield* post(b, call("echo"), alice)).status, 503)
      const seen = recorder.spans.filter(({ name }) => name === "McpHttp.handOn").map((span) =>
        String([...span.attributes]) + String(exitOf(span))
      )
      assert.strictEqual(seen.length, 2)
      assert.notInclude(seen.join(""), "SECRET")
      assert.notInclude(seen.join(""), session.slice(0, 20))
    }))

  it.live("answers 503 when the session's node lives and can't be reached, and runs nothing", () =>
    Effect.gen(function*() {
      const { a, b, ports } = yield* three()
      const session = yield* begin(a, "alice")
      ports.set("a", 1)
      const answer = yield* post(b, call("echo"), { as: "alice", session })
      assert.deepStrictEqual([answer.status, answer.headers.get("retry-after")], [503, "10"])
      ports.set("a", a.port)
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 200)
      // An address that leads to another node is no reason to begin again
      ports.set("a", b.port)
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 503)
      assert.strictEqual(a.log.called.length, 1)
    }))

  it.live("connects with nodes by TLS, and sends nothing to one that it can't trust", () =>
    Effect.gen(function*() {
      const certificate = selfSigned()
      const { ports, start } = cluster()
      const a = yield* start("a", { certificate })
      const address = ({ host }: ClusterMember) => `${host === "a" ? "https" : "http"}://127.0.0.1:${ports.get(host)}`
      const agent = yield* Effect.acquireRelease(
        Effect.sync(() => new Agent({ ca: certificate.cert, keepAlive: true })),
        (opened) => Effect.sync(() => opened.destroy())
      )
      const b = yield* start("b", { routed: { address, agent } })
      const c = yield* start("c", { routed: { address } })
      yield* Effect.all([b.membership.drain, c.membership.drain], { concurrency: "unbounded" })
      const session = yield* begin(b, "alice")
      assert.strictEqual(yield* a.registry.size, 1)
      assert.strictEqual((yield* post(b, call("echo"), { as: "alice", session })).status, 200)
      assert.strictEqual((yield* post(c, call("echo"), { as: "alice", session })).status, 503)
      assert.strictEqual((yield* post(c, initialize, { as: "alice" })).status, 503)
      assert.strictEqual(a.log.called.length, 1)
    }))

  it.live("waits for a connection no longer than it may, and has sent nothing then", () =>
    Effect.gen(function*() {
      const silent = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const server = createServer((peer) => void peer.on("error", () => undefined).resume())
          server.listen(0, "127.0.0.1")
          await once(server, "listening")
          return server
        }),
        (server) => Effect.sync(() => server.close())
      )
      const { port } = silent.address() as AddressInfo
      const { a, b } = yield* three({
        routed: { address: () => `https://127.0.0.1:${port}`, connectTimeout: "100 millis" }
      })
      const session = yield* begin(a, "alice")
      const answer = yield* post(b, call("echo"), { as: "alice", session }).pipe(Effect.timeout("10 seconds"))
      assert.strictEqual(answer.status, 503)
    }))

  it.live("hands nothing on that says it was handed on already", () =>
    Effect.gen(function*() {
      const { a, b, c } = yield* three()
      const session = yield* begin(a, "alice")
      const other = yield* begin(b, "alice")
      for (const tag of [tagOf(session), tagOf(other), "", "x"]) {
        const headers = { "mcp-routed-to": tag }
        const answer = yield* post(c, call("echo"), { as: "alice", session, headers })
        assert.strictEqual(answer.status, 503)
      }
      const here = yield* post(b, call("echo"), {
        as: "alice",
        session,
        headers: { "mcp-routed-to": tagOf(other) }
      })
      assert.strictEqual(here.status, 404)
      assert.strictEqual(a.log.called.length, 0)
    }))

  it.live("hands on every header as it came but those of the connection", () =>
    Effect.gen(function*() {
      const seen: Array<Readonly<Record<string, string>>> = []
      const resolver = IdentityResolver.layerIdentify(({ headers }) => {
        seen.push(Object.fromEntries(Object.entries(headers as Record<string, string>)))
        return Effect.succeed("alice")
      })
      const { a, b } = yield* three({ resolver: Layer.orDie(resolver) })
      const session = yield* begin(a)
      seen.length = 0
      const headers = {
        ...common,
        authorization: "Bearer secret",
        "x-twice": "1",
        "X-Twice": "2",
        cookie: "a=b",
        te: "trailers",
        "keep-alive": "timeout=5",
        "proxy-authorization": "Basic YTpi",
        "mcp-session-id": session
      }
      const body = JSON.stringify(call("echo"))
      const direct = yield* raw(a, "POST", headers, body)
      const routed = yield* raw(b, "POST", headers, body)
      assert.strictEqual(routed, direct)
      assert.strictEqual(seen.length, 2)
      const { via, "mcp-routed-to": tag, connection: _, ...handedOn } = seen[1]!
      const { connection: __, "keep-alive": ___, te: ____, ...sent } = seen[0]!
      assert.deepStrictEqual(handedOn, sent)
      assert.deepStrictEqual([via, tag], ["1.1 effect-mcp-sessions", tagOf(session)])
    }))

  it.live("takes no request whose Connection would take a header from it", () =>
    Effect.gen(function*() {
      const { a, b } = yield* three()
      const session = yield* begin(a, "alice")
      const said = yield* raw(
        b,
        "POST",
        { ...common, Connection: "close, authorization", authorization: "Bearer alice", "mcp-session-id": session },
        JSON.stringify(call("echo"))
      )
      assert.match(said, /^HTTP\/1\.1 400 /)
      assert.strictEqual(a.log.called.length, 0)
    }))

  it.live("hands on a large body as it comes, and leaves its limit to the session's node", () =>
    Effect.gen(function*() {
      const { a, b } = yield* three({
        app: (log) => McpHttp.layer({ server: makeServer(log), maxBodyBytes: 1024 * 1024 })
      })
      const session = yield* begin(a, "alice")
      const alice = { as: "alice", session }
      const large = yield* post(b, call("echo", { message: "x".repeat(900_000) }), alice)
      assert.strictEqual(large.status, 200)
      assert.include(yield* textOf(large), "x".repeat(900_000))
      const body = JSON.stringify(call("echo", { message: "x".repeat(2_000_000) }))
      const headers = { ...common, authorization: "Bearer alice", "mcp-session-id": session }
      const direct = yield* raw(a, "POST", headers, body)
      assert.match(direct, /^HTTP\/1\.1 413 /)
      assert.strictEqual(yield* raw(b, "POST", headers, body), direct)
      // Who it is comes first
      const bobs = { ...headers, authorization: "Bearer bob" }
      const unknown = yield* raw(a, "POST", bobs, body)
      assert.match(unknown, /^HTTP\/1\.1 404 /)
      assert.strictEqual(yield* raw(b, "POST", bobs, body), unknown)
    }))

  it.live("answers web pages and those without a token as the session's node does", () =>
    Effect.gen(function*() {
      const { a, b, nodes } = yield* three({
        app: (log) =>
          McpHttp.layer({
            server: makeServer(log),
            allowedOrigins: ["https://app.example"],
            authorization: { servers: ["https://login.example"] }
          }),
        resolver: Layer.orDie(IdentityResolver.layer({ mode: "required" }))
      })
      const session = yield* begin(a, "alice")
      for (const origin of ["https://app.example", "https://other.example"]) {
        const said = yield* Effect.forEach(nodes, (node) =>
          raw(node, "GET", { ...common, origin, "mcp-session-id": session }))
        assert.strictEqual(new Set(said).size, 1, said.join("\n\n"))
        assert.match(said[0]!, origin.includes("app") ? /^HTTP\/1\.1 401 [^]*resource_metadata=/ : /^HTTP\/1\.1 403 /)
      }
      const allowed = yield* post(b, call("echo"), { as: "alice", session, headers: { origin: "https://app.example" } })
      assert.strictEqual(allowed.headers.get("access-control-allow-origin"), "https://app.example")
      assert.deepStrictEqual(
        (yield* bytesOf(yield* post(b, call("echo"), { as: "bob", session }))).status,
        404
      )
    }))

  it.effect.each(
    [
      ["no address", {}, "address"],
      ["two", { port: 3000, address: () => "http://localhost" }, "address"],
      ["a port that is none", { port: 0 }, "port"],
      ["an agent that is none", { port: 3000, agent: {} }, "agent"],
      ["no time to connect", { port: 3000, connectTimeout: 0 }, "connectTimeout"]
    ] as const
  )("refuses %s", ([, options, option]) =>
    Effect.gen(function*() {
      const app = McpHttp.layer({ server: makeServer(makeLog()) }).pipe(
        McpHttp.routed(options as McpHttp.RoutedOptions),
        Layer.provide([IdentityResolver.layer(), ClusterMembership.layerAlone, HttpRouter.layer])
      )
      const error = yield* refused(app)
      assert.instanceOf(error, InvalidOptions)
      assert.strictEqual((error as InvalidOptions).option, option)
    }))

  it.effect("refuses a layer without an endpoint", () =>
    Effect.gen(function*() {
      const app = Layer.empty.pipe(McpHttp.routed({ port: 3000 }), Layer.provide(ClusterMembership.layerAlone))
      assert.include(String(yield* refused(app)), "must be a layer with an endpoint of McpHttp")
    }))

  it.live("is no hindrance to a process that is alone", () =>
    Effect.gen(function*() {
      const { start } = cluster()
      const a = yield* start("a")
      const session = yield* begin(a, "alice")
      assert.strictEqual((yield* post(a, call("echo"), { as: "alice", session })).status, 200)
      assert.strictEqual((yield* post(a, call("echo"), { as: "alice", session: nobodys })).status, 404)
    }))
})
