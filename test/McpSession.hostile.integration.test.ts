/**
 * Servers that break the protocol, at each generation of the SDK and each era of the protocol. Whatever they do, a call
 * ends with an error that says what happened, at once where it is certain that no answer comes, and lets go of its
 * connection.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity } from "effect-mcp-sessions/Identity"
import { ProtocolFailure, Unreachable } from "effect-mcp-sessions/McpSession"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { eventually } from "./support/answers.ts"
import { type AnySession, type Generation, generations } from "./support/generations.ts"
import { many, underLoad } from "./support/load.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"

const connected = (connector: Generation, era: NonNullable<Scripted.Options["era"]>) =>
  Effect.gen(function*() {
    const server = yield* Scripted.start({ era })
    const handle = makeHandle()
    const session = yield* connector.http({ url: server.url })(Identity.fromKey("alice"), handle)
    assert.strictEqual(session.protocolVersion, era)
    return { server, handle, session }
  })

const call = (session: AnySession, timeout: "60 seconds" | "300 millis" = "60 seconds") =>
  session.callTool({ name: "tool" }, { timeout })

const noReply = (status: number) =>
  new ProtocolFailure({
    code: -32603,
    message: `The server answered (HTTP ${status}) without a reply to this request`,
    data: undefined,
    requestSent: true
  })

const streamEnded = new Unreachable({ code: "STREAM_ENDED", requestSent: true })

const other = { id: "of another request", result: {} }

/** What is sent instead of a reply, and what the call fails with: a reason, or its name where the text is the SDK's. */
const instead: ReadonlyArray<readonly [string, Scripted.Answer, object | string]> = [
  ["a body that answers another id", (to) => Scripted.json(to, 200, { jsonrpc: "2.0", ...other }), noReply(200)],
  ["a body that answers other ids", (to) => Scripted.json(to, 200, [{ jsonrpc: "2.0", ...other }]), noReply(200)],
  ["an empty list of answers", (to) => Scripted.json(to, 200, []), noReply(200)],
  [
    "a body that only notifies",
    (to) => Scripted.json(to, 200, { jsonrpc: "2.0", method: "notifications/tools/list_changed" }),
    noReply(200)
  ],
  ["202", (to) => void to.writeHead(202).end(), noReply(202)],
  [
    "202 and an event stream",
    (to) => void to.writeHead(202, { "content-type": "text/event-stream" }).end("data: \n\n"),
    noReply(202)
  ],
  ["an empty body", (to) => void to.writeHead(200, { "content-type": "application/json" }).end(), "ProtocolFailure"],
  ["half a body", (to, { id }) => {
    to.writeHead(200, { "content-type": "application/json" }).end(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"resu`)
  }, "ProtocolFailure"],
  ["an error that names no request", (to) => {
    Scripted.json(to, 200, { jsonrpc: "2.0", id: null, error: { code: -32600, message: "what?" } })
  }, "ProtocolFailure"],
  ["204", (to) => void to.writeHead(204).end(), "ProtocolFailure"],
  ["a web page", (to) => void to.writeHead(200, { "content-type": "text/html" }).end("<h1>"), "ProtocolFailure"],
  ["half a body and a broken connection", (to) => {
    to.writeHead(200, { "content-type": "application/json", "content-length": "1000" }).write("{\"jsonrpc\":")
    setTimeout(() => to.destroy(), 20)
  }, "Unreachable"],
  ["an empty event stream", (to) => void Scripted.stream(to).end(), streamEnded],
  ["an event stream that answers another id", (to) => void Scripted.stream(to).end(Scripted.event(other)), streamEnded],
  [
    "an event stream that answers another id and could be resumed",
    (to) => void Scripted.stream(to).end(Scripted.event(other, "1")),
    streamEnded
  ],
  [
    "an event stream of noise",
    (to) => void Scripted.stream(to).end("data: {\n\n: hm\n\ndata: 1\n\nnonsense\n\n"),
    streamEnded
  ],
  [
    "more headers than there may be",
    (to) => void to.writeHead(200, { "x-long": "x".repeat(40_000) }).end(),
    new Unreachable({ code: "UND_ERR_HEADERS_OVERFLOW", requestSent: true })
  ]
]

/** What never ends. */
const forever: ReadonlyArray<readonly [string, Scripted.Answer]> = [
  ["never answers", () => {}],
  ["sends a body byte by byte", (to) => drip(to.writeHead(200, { "content-type": "application/json" }), " ")],
  ["sends an error byte by byte", (to) => drip(to.writeHead(500, { "content-type": "text/plain" }), "no ")],
  ["sends comments only", (to) => drip(Scripted.stream(to), ": hm\n\n")],
  ["sends one line only", (to) => drip(Scripted.stream(to), "data: hm")]
]

const drip = (to: { write(text: string): boolean; on(event: "close", f: () => void): unknown }, text: string) => {
  to.write(text)
  const timer = setInterval(() => to.write(text), 10)
  to.on("close", () => clearInterval(timer))
}

const speakers = generations.flatMap(([sdk, connector]) =>
  sdk === "@modelcontextprotocol/sdk"
    ? [[sdk, connector, "2025-11-25"] as const]
    : [[sdk, connector, "2025-11-25"] as const, [sdk, connector, "2026-07-28"] as const]
)

for (const [sdk, connector, era] of speakers) {
  describe(`a call to a server of ${era} with ${sdk}`, { concurrent: true }, () => {
    for (const [what, answer, expected] of instead) {
      it.live(`that is answered with ${what} fails at once, and leaves nothing open`, () =>
        Effect.gen(function*() {
          const { handle, server, session } = yield* connected(connector, era)
          server.on("tool", answer)
          const { reason } = yield* Effect.flip(call(session)).pipe(Effect.timeout("10 seconds"))
          if (typeof expected === "string") assert.strictEqual(reason._tag, expected)
          else assert.deepStrictEqual(reason as object, expected)
          assert.isTrue(reason.requestSent)
          assert.strictEqual(handle.retired.length, reason._tag === "Unreachable" ? 1 : 0)
          yield* eventually(() => server.open() === 0)
        }))
    }

    for (const [what, answer] of forever) {
      it.live(`to one that ${what} times out, and leaves nothing open`, () =>
        Effect.gen(function*() {
          const { handle, server, session } = yield* connected(connector, era)
          server.on("tool", answer)
          const { reason } = yield* Effect.flip(call(session, "300 millis"))
          assert.strictEqual(reason._tag, "RequestTimeout")
          yield* eventually(() => server.open() === 0)
          assert.deepStrictEqual(handle.retired, [])
          yield* session.callTool({ name: "another" })
        }))
    }

    it.live("that is answered twice, and among other answers, succeeds", () =>
      Effect.gen(function*() {
        const { server, session } = yield* connected(connector, era)
        server.on("tool", (to, message) => {
          const mine = { id: message.id!, result: Scripted.resultOf(message) }
          Scripted.stream(to).end([other, mine, mine, other].map((reply) => Scripted.event(reply)).join(""))
        })
        yield* call(session)
        server.on("tool", (to, message) => {
          const mine = { jsonrpc: "2.0", id: message.id, result: Scripted.resultOf(message) }
          Scripted.json(to, 200, [{ jsonrpc: "2.0", ...other }, mine, mine])
        })
        yield* call(session)
      }))

    it.live("is not disturbed by a sibling's that goes wrong", () =>
      Effect.gen(function*() {
        const { server, session } = yield* connected(connector, era)
        const waiting: Array<() => void> = []
        server.on("slow", (to, message) => {
          waiting.push(() => Scripted.reply(to, message, Scripted.resultOf(message)))
        })
        const slow = yield* Effect.forkChild(session.callTool({ name: "slow" }))
        yield* eventually(() => server.received.includes("slow"))
        for (const [, answer] of instead.slice(0, 6)) {
          server.on("tool", answer)
          yield* Effect.flip(call(session))
        }
        waiting.forEach((finish) => finish())
        yield* Fiber.join(slow)
      }))

    it.live.each([200, 500])(
      "leaves nothing open when the server never ends its answer to the cancel (%i)",
      (status) =>
        Effect.gen(function*() {
          const { server, session } = yield* connected(connector, era)
          server.on("tool", () => {})
          server.on(
            "notifications/cancelled",
            (to) => drip(to.writeHead(status, { "content-type": "text/plain" }), "no ")
          )
          yield* Effect.flip(call(session, "300 millis"))
          yield* eventually(() => server.open() === 0)
        })
    )

    it.live("is sent once, also when its connection breaks under it", () =>
      Effect.gen(function*() {
        const { server, session } = yield* connected(connector, era)
        // So that there is a connection to be used again
        yield* session.callTool({ name: "before" })
        server.on("tool", (to) => void to.socket!.resetAndDestroy())
        assert.strictEqual((yield* Effect.flip(call(session))).reason._tag, "Unreachable")
        yield* Effect.sleep("50 millis")
        assert.deepStrictEqual(server.received, ["before", "tool"])
      }))

    it.live("is not sent again when its reply stream is resumed, however often", () =>
      Effect.gen(function*() {
        const { server, session } = yield* connected(connector, era)
        let resumed = 0
        server.on("tool", (to, { id }) => {
          server.onGet((stream) => {
            const end = ++resumed === 3 ? Scripted.event({ id: id!, result: { content: [] } }) : ""
            Scripted.stream(stream).end(`id: ${resumed + 1}\nretry: 1\ndata: \n\n${end}`)
          })
          Scripted.stream(to).end("id: 1\nretry: 1\ndata: \n\n")
        })
        if (era === "2025-11-25") yield* call(session)
        else yield* Effect.exit(call(session))
        assert.deepStrictEqual(server.received, ["tool"])
      }))
  })

  describe(`a session of a server of ${era} with ${sdk}`, { concurrent: true }, () => {
    it.live("does not hammer a server that ends each stream and wants it back at once", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start({ era })
        let gets = 0
        const before = yield* Clock.currentTimeMillis
        server.onGet((to) => {
          gets++
          Scripted.stream(to).end(`retry: 0\nid: ${gets}\ndata: \n\n`)
        })
        const session = yield* connector.http({ url: server.url })(Identity.fromKey("alice"), makeHandle())
        server.on("tool", (to) => void Scripted.stream(to).end("retry: 0\nid: p\ndata: \n\n"))
        const { reason } = yield* Effect.flip(session.callTool({ name: "tool" }, { timeout: "1 second" }))
        assert.include(["RequestTimeout", "Unreachable"], reason._tag)
        // Ten in a second for the call's stream, and for the server's own
        assert.isAtMost(gets, 2 * (1 + ((yield* Clock.currentTimeMillis) - before) / 100))
        yield* session.callTool({ name: "another" })
        assert.deepStrictEqual(server.received.filter((name) => !name.startsWith("notifications/")), [
          "tool",
          "another"
        ])
      }))

    it.live("survives a storm of list_changed, and keeps no list that it contradicts", () =>
      Effect.gen(function*() {
        const { handle, server, session } = yield* connected(connector, era)
        const changed = Scripted.event({ method: "notifications/tools/list_changed" })
        server.on("tool", (to, message) => {
          const stream = Scripted.stream(to)
          stream.write(changed.repeat(many(1_000, 20_000)))
          stream.end(Scripted.event({ id: message.id!, result: Scripted.resultOf(message) }))
        })
        yield* session.listTools()
        yield* call(session)
        yield* session.listTools()
        assert.strictEqual(server.received.filter((name) => name === "tools/list").length, 2)
        assert.deepStrictEqual(handle.retired, [])
      }), underLoad)
  })
}
