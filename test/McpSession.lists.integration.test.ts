/**
 * How long a list is kept, and by whom it is shared, with each generation of the SDK. The server is real, the time is
 * not.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity } from "effect-mcp-sessions/Identity"
import type { HttpOptions } from "effect-mcp-sessions/McpConnector"
import { McpSessionError, TooManyPages } from "effect-mcp-sessions/McpSession"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import { type AnySession, type Generation, generations } from "./support/generations.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"

const handshake = (listChanged: boolean): Scripted.Answer => (response, message) => {
  response.setHeader("mcp-session-id", "scripted")
  Scripted.reply(response, message, {
    protocolVersion: "2025-11-25",
    capabilities: { tools: { listChanged }, prompts: { listChanged } },
    serverInfo: { name: "lister", version: "1.0.0" }
  })
}

/** Waits, in real time, for something that the server will see. */
const until = (condition: () => boolean) =>
  Effect.gen(function*() {
    while (!condition()) yield* pause(1)
  })

const pause = (millis: number) => Effect.promise(() => new Promise<void>((resolve) => setTimeout(resolve, millis)))

/** A session of a server whose list of tools is called by how often it was asked for. */
const connected = Effect.fnUntraced(function*(
  connector: Generation,
  { announces, hasStream = false, ...options }: Partial<HttpOptions> & {
    readonly announces: boolean
    readonly hasStream?: boolean
  }
) {
  const server = yield* Scripted.start()
  const streams: Array<() => void> = []
  server.on("initialize", handshake(announces))
  if (hasStream) {
    server.onGet((response) => {
      const stream = Scripted.stream(response)
      streams.push(() => void stream.destroy())
    })
  }
  const asked = () => server.received.filter((name) => name === "tools/list").length
  server.on(
    "tools/list",
    (response, message) =>
      Scripted.reply(response, message, { tools: [{ name: String(asked()), inputSchema: { type: "object" } }] })
  )
  let opened = 0
  const session = yield* connector.http({
    url: server.url,
    fetch: async (url, init) => {
      const response = await fetch(url, init)
      if (init?.method !== "POST" && response.ok) opened++
      return response
    },
    ...options
  })(Identity.fromKey("alice"), makeHandle())
  if (hasStream) yield* until(() => opened > 0)
  return { server, session, asked, lose: () => streams.splice(0).forEach((lose) => lose()) }
})

const names = (session: AnySession, options?: { readonly fresh?: boolean }) =>
  Effect.map(session.listTools(options), ({ tools }) => tools.map(({ name }) => name).join())

for (const [sdk, connector] of generations) {
  describe(`a list with ${sdk}`, () => {
    const mute: ReadonlyArray<readonly [string, Parameters<typeof connected>[1]]> = [
      ["has no listChanged", { announces: false, hasStream: true }],
      ["has no stream of its own", { announces: true }]
    ]
    for (const [what, options] of mute) {
      it.effect(`of a server that ${what} is read again after a minute`, () =>
        Effect.gen(function*() {
          const { session } = yield* connected(connector, options)
          assert.strictEqual(yield* names(session), "1")
          yield* TestClock.adjust("59999 millis")
          assert.strictEqual(yield* names(session), "1")
          yield* TestClock.adjust("1 millis")
          assert.strictEqual(yield* names(session), "2")
          assert.strictEqual(yield* names(session), "2")
        }))
    }

    it.effect("of a server that can say that it changes is kept, and from the loss of its stream on for a minute", () =>
      Effect.gen(function*() {
        const { lose, server, session } = yield* connected(connector, { announces: true, hasStream: true })
        // What was read before the stream was there may have changed before it was
        yield* names(session, { fresh: true })
        const known = yield* names(session)
        yield* TestClock.adjust("1 day")
        assert.strictEqual(yield* names(session), known)
        server.onGet((response) => void response.writeHead(405).end())
        lose()
        yield* until(() => server.open() === 0)
        yield* pause(50)
        yield* TestClock.adjust("59 seconds")
        assert.strictEqual(yield* names(session), known)
        yield* TestClock.adjust("1 second")
        assert.notStrictEqual(yield* names(session), known)
      }))

    it.effect("is kept for as long as the connector says, or not at all", () =>
      Effect.gen(function*() {
        const long = yield* connected(connector, { announces: false, listTimeToLive: "1 hour" })
        assert.strictEqual(yield* names(long.session), "1")
        yield* TestClock.adjust("59 minutes")
        assert.strictEqual(yield* names(long.session), "1")
        const none = yield* connected(connector, { announces: false, listTimeToLive: 0 })
        assert.strictEqual(yield* names(none.session), "1")
        assert.strictEqual(yield* names(none.session), "2")
      }))

    it.effect("is read at once when it is to be fresh, and is then everybody's", () =>
      Effect.gen(function*() {
        const { session } = yield* connected(connector, { announces: false })
        assert.strictEqual(yield* names(session), "1")
        assert.strictEqual(yield* names(session, { fresh: true }), "2")
        assert.strictEqual(yield* names(session), "2")
        yield* TestClock.adjust("59 seconds")
        assert.strictEqual(yield* names(session), "2")
      }))

    it.effect("that is to be fresh is none that was being read before, whose readers get that", () =>
      Effect.gen(function*() {
        const { asked, server, session } = yield* connected(connector, { announces: false })
        const held: Array<() => void> = []
        server.on("tools/list", (response, message) => {
          const name = String(asked())
          held.push(() => Scripted.reply(response, message, { tools: [{ name, inputSchema: { type: "object" } }] }))
        })
        const before = yield* Effect.forkChild(names(session))
        yield* until(() => held.length === 1)
        const fresh = yield* Effect.forkChild(names(session, { fresh: true }))
        yield* until(() => held.length === 2)
        const after = yield* Effect.forkChild(names(session), { startImmediately: true })
        held.forEach((answer) => answer())
        assert.deepStrictEqual(yield* Fiber.joinAll([before, fresh, after]), ["1", "2", "2"])
        assert.strictEqual(asked(), 2)
      }))

    it.effect("is read once for two callers, and the interruption of one does not fail the other", () =>
      Effect.gen(function*() {
        const { asked, server, session } = yield* connected(connector, { announces: false })
        const held: Array<() => void> = []
        server.on("tools/list", (response, message) => {
          held.push(() => Scripted.reply(response, message, { tools: [] }))
        })
        const one = yield* Effect.forkChild(session.listTools(), { startImmediately: true })
        const other = yield* Effect.forkChild(session.listTools(), { startImmediately: true })
        yield* until(() => held.length === 1)
        yield* Fiber.interrupt(one)
        held[0]!()
        assert.deepStrictEqual((yield* Fiber.join(other)).tools, [])
        assert.strictEqual(asked(), 1)
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(one)))
      }))

    for (
      const era of sdk === "@modelcontextprotocol/sdk"
        ? ["2025-11-25"] as const
        : ["2025-11-25", "2026-07-28"] as const
    ) {
      it.effect(`of more than 64 pages of a server of ${era} is an error that says so`, () =>
        Effect.gen(function*() {
          const server = yield* Scripted.start({ era })
          server.on("tools/list", (response, message) =>
            Scripted.reply(response, message, {
              ...Scripted.resultOf(message),
              nextCursor: String(server.received.length)
            }))
          const handle = makeHandle()
          const session = yield* connector.http({ url: server.url })(Identity.fromKey("alice"), handle)
          const error = yield* Effect.flip(session.listTools())
          assert.instanceOf(error, McpSessionError)
          assert.deepStrictEqual(error.reason, new TooManyPages({ limit: 64, requestSent: true }))
          assert.include(error.message, "more than 64 pages")
          assert.strictEqual(server.received.length, 64)
          assert.deepStrictEqual(handle.retired, [])
        }))
    }

    it.effect("ends with a page that is followed by itself", () =>
      Effect.gen(function*() {
        const { asked, server, session } = yield* connected(connector, { announces: false })
        server.on("tools/list", (response, message) =>
          Scripted.reply(response, message, {
            tools: [{ name: String(Math.min(asked(), 2)), inputSchema: { type: "object" } }],
            nextCursor: "again"
          }))
        assert.strictEqual(yield* names(session), "1,2")
        assert.strictEqual(asked(), 3)
      }))

    it.effect("may have more items than a function takes arguments", () =>
      Effect.gen(function*() {
        const { server, session } = yield* connected(connector, { announces: false })
        const prompts = Array.from({ length: 150_000 }, () => ({ name: "p" }))
        server.on("prompts/list", (response, message) => Scripted.reply(response, message, { prompts }))
        assert.strictEqual((yield* session.listPrompts()).prompts.length, 150_000)
      }))
  })
}
