/**
 * Streams that an event store keeps, for clients that come back.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { CallToolRequestSchema, type JSONRPCMessage } from "@modelcontextprotocol/sdk/types.js"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { EventEmitter, once } from "node:events"
import { setTimeout as sleep } from "node:timers/promises"
import { becomes, eventually, messagesOf, readUntil, textOf } from "./support/answers.ts"
import { logging } from "./support/logging.ts"
import { socket, web } from "./support/mcpHttp.ts"
import { begin, call, initialize, post, protocolVersion, request } from "./support/requests.ts"
import {
  abandoned,
  cancel,
  idIn,
  open,
  type Opened,
  respondTwice,
  say,
  saying,
  unhandledRejections
} from "./support/streams.ts"

const failing = (): EventStore => ({
  storeEvent: () => Promise.reject(new Error("password=hunter2")),
  replayEventsAfter: () => Promise.reject(new Error("password=hunter2"))
})

const lessLookup = ({ replayEventsAfter, storeEvent }: EventStore): EventStore => ({ replayEventsAfter, storeEvent })

type Delay = () => Promise<void> | undefined

/** Keeps everything, and knows the stream of an event after `delay`. */
const looking = (delay: Delay) => (): EventStore => {
  const store = McpHttp.memoryEventStore()()
  return {
    ...store,
    getStreamIdForEventId: async (id) => {
      await delay()
      return store.getStreamIdForEventId!(id)
    }
  }
}

/** Keeps everything, and says it again after `delay`. */
const replaying = (delay: Delay) => (): EventStore => {
  const store = McpHttp.memoryEventStore()()
  return {
    ...store,
    replayEventsAfter: async (id, replay) => {
      await delay()
      return store.replayEventsAfter(id, replay)
    }
  }
}

/** Keeps everything, and takes until `delay` is over to end a replay. */
const lingering = (delay: Delay) => (): EventStore => {
  const store = McpHttp.memoryEventStore()()
  return {
    ...store,
    replayEventsAfter: async (id, replay) => {
      const streamId = await store.replayEventsAfter(id, replay)
      await delay()
      return streamId
    }
  }
}

/** So many turns of the promises later. */
const turnsLater = (turns: number): Promise<unknown> =>
  turns === 0 ? Promise.resolve() : Promise.resolve().then(() => turnsLater(turns - 1))

/** Has everything at once, and says so later of what `isSlow`. */
const acknowledging = (isSlow: (message: JSONRPCMessage) => boolean, millis: number) => (): EventStore => {
  const store = McpHttp.memoryEventStore()()
  return {
    ...store,
    storeEvent: async (id, message) => {
      const kept = await store.storeEvent(id, message)
      if (isSlow(message)) await sleep(millis)
      return kept
    }
  }
}

/** Has a response before it says so. */
const slowToRespond = acknowledging((message) => "result" in message, 300)

/** Takes longer for the first message of a call than for the others. */
const uneven = acknowledging((message) => JSON.stringify(message).includes("first"), 50)

/** Says where each stream begins, and fails with all that comes after. */
const forgetful = (): EventStore => ({
  ...failing(),
  storeEvent: (_, message) =>
    "jsonrpc" in message ? Promise.reject(new Error("password=hunter2")) : Promise.resolve("first")
})

/** Has what is said, and says so later. */
const slowToKeep = acknowledging((message) => "method" in message, 100)

/** Has the beginning of a stream, and says so later. */
const slowToBegin = acknowledging((message) => !("jsonrpc" in message), 100)

/** Never says that it has anything. */
const hanging = (): EventStore => ({ ...McpHttp.memoryEventStore()(), storeEvent: () => new Promise(() => {}) })

/** Gives ids that say something else in an event. */
const injecting = (): EventStore => ({
  ...McpHttp.memoryEventStore()(),
  storeEvent: async () => "1\ndata: {\"injected\":true}\n\n"
})

/** A server that closes the streams of a call's client, as one may that takes long, and then answers. */
const polling = () =>
  Effect.sync(() => {
    const server = new Server({ name: "polling", version: "1.0.0" }, { capabilities: { logging: {}, tools: {} } })
    server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => {
      const { closeSSEStream, closeStandaloneSSEStream } = extra
      if (params.name === "later") await sleep(20)
      closeSSEStream?.()
      closeStandaloneSSEStream?.()
      await extra.sendNotification({ method: "notifications/message", params: { level: "info", data: "meanwhile" } })
      return { content: [{ type: "text", text: "polled" }] }
    })
    return server
  })

const suite = (start: typeof web) => {
  const version = { "mcp-protocol-version": protocolVersion }

  it.live("a stream that broke is resumed, in order, without what the client has", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const stream = yield* request(endpoint, "GET", { session, headers: version })
      yield* say(endpoint, session, 1)
      const heard = yield* readUntil(stream, "\"data\":1")
      const id = idIn(heard)
      yield* say(endpoint, session, 2)
      yield* say(endpoint, session, 3)
      const resumed = yield* request(endpoint, "GET", { session, headers: { ...version, "last-event-id": id } })
      assert.strictEqual(resumed.status, 200)
      const rest = yield* readUntil(resumed, "\"data\":3")
      assert.deepStrictEqual(rest.match(/"data":\d/g), ["\"data\":2", "\"data\":3"])
    }))

  it.live.each(["at once", "later"])(
    "a server may have its client come back for an answer: %s",
    (when) =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, {
          eventStore: McpHttp.memoryEventStore(),
          server: polling,
          retryInterval: 5
        })
        const session = yield* begin(endpoint)
        const listening = yield* request(endpoint, "GET", { session, headers: version })
        const told = yield* textOf(yield* post(endpoint, call(when), { session, headers: version }))
        assert.match(told, /^id: \S+\nretry: 5\ndata: \n\n(?::\n\n)?$/)
        assert.notInclude(yield* textOf(listening).pipe(Effect.timeout("4 seconds")), "data")
        const headers = { ...version, "last-event-id": idIn(told) }
        const resumed = yield* request(endpoint, "GET", { session, headers })
        const messages = yield* messagesOf(resumed).pipe(Effect.timeout("4 seconds"))
        assert.deepStrictEqual(messages.map(({ params, result }) => params?.data ?? result), [
          "meanwhile",
          { content: [{ type: "text", text: "polled" }] }
        ])
      })
  )

  it.live("an id that can't be one is none", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: injecting })
      const session = yield* begin(endpoint)
      const text = yield* textOf(
        yield* post(endpoint, call("echo", { message: "hi" }), { session, headers: version })
      )
      assert.notInclude(text, "injected")
      assert.notInclude(text, "id: ")
      assert.include(text, "\"text\":\"hi\"")
    }))

  it.live.each(["leaves", "comes back again", "ends its session"])(
    "a store need not wait for what it replays, though the client %s meanwhile",
    (what) =>
      Effect.gen(function*() {
        const unhandled = yield* unhandledRejections
        const replays: Array<string> = []
        const eventStore = (): EventStore => {
          const store = McpHttp.memoryEventStore()()
          return {
            ...store,
            replayEventsAfter: async (id, { send: show }) => {
              const kept: Array<Parameters<typeof show>> = []
              const streamId = await store.replayEventsAfter(id, { send: async (...event) => void kept.push(event) })
              await sleep(100)
              for (const event of kept) void show(...event)
              replays.push(streamId)
              return streamId
            }
          }
        }
        const endpoint = yield* open(start, { eventStore })
        const session = yield* begin(endpoint)
        const lost = yield* lose(endpoint, session)
        endpoint.log.release()
        yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
        const leaving = new AbortController()
        const coming = request(endpoint, "GET", { ...lost, signal: leaving.signal })
        yield* Effect.forkChild(Effect.exit(coming), { startImmediately: true })
        yield* Effect.sleep(30)
        if (what === "leaves") leaving.abort()
        else yield* request(endpoint, what === "comes back again" ? "GET" : "DELETE", lost)
        yield* eventually(() => replays.length > 0)
        yield* Effect.sleep(20)
        assert.deepStrictEqual(unhandled, [])
      })
  )

  it.live("what is said to a client that can't come back, and too much for it, is kept at least", () =>
    Effect.gen(function*() {
      const kept: Array<JSONRPCMessage> = []
      const memory = McpHttp.memoryEventStore({ maxBytes: 16 * 1024 * 1024 })()
      const eventStore = (): EventStore => ({
        ...memory,
        storeEvent: (id, message) => {
          kept.push(message)
          return memory.storeEvent(id, message)
        }
      })
      const much = Array.from({ length: 32 }, () => "x".repeat(64 * 1024))
      const endpoint = yield* open(start, { eventStore, server: saying(much) })
      const headers = { "mcp-protocol-version": "2025-06-18" }
      const session = yield* begin(endpoint)
      kept.length = 0
      const text = yield* textOf(yield* post(endpoint, call("say"), { session, headers }))
      assert.include(text, "\"result\"")
      assert.isBelow(text.length, 2 * 1024 * 1024)
      assert.strictEqual(kept.length, much.length + 1)
    }))

  it.live("what nobody reads is not kept, however late a store says that it has it", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: slowToKeep })
      const session = yield* begin(endpoint)
      const listening = yield* request(endpoint, "GET", { session, headers: version })
      const server = endpoint.log.servers.get(session)!
      const params = { level: "info", data: "x".repeat(64 * 1024) } as const
      // 64 MiB, while nobody else gets a turn
      const said = Array.from({ length: 1_024 }, () => server.notification({ method: "notifications/message", params }))
      yield* Effect.promise(() => Promise.all(said))
      yield* request(endpoint, "DELETE", { session })
      assert.isBelow((yield* textOf(listening).pipe(Effect.timeout("4 seconds"))).length, 5 * 1024 * 1024)
    }))

  it.live("a call of a batch that is cancelled before it has begun does not run", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: slowToBegin })
      const session = yield* begin(endpoint)
      const batch = [call("echo", { message: "a" }, 1), call("echo", { message: "b" }, 2)]
      const answer = yield* Effect.forkChild(post(endpoint, batch, { session, headers: version }), {
        startImmediately: true
      })
      yield* Effect.sleep(30)
      yield* post(endpoint, cancel(1), { session, headers: version })
      const messages = yield* messagesOf(yield* Fiber.join(answer))
      assert.deepStrictEqual(messages.map(({ error, id }) => [id, error?.code]), [[1, -32800], [2, undefined]])
      assert.deepStrictEqual(endpoint.log.called, ["echo"])
    }))

  it.live("nobody waits for a store when its session has ended", () =>
    Effect.gen(function*() {
      const { logged, logger } = logging()
      const endpoint = yield* open((app) => start(Layer.provideMerge(app, logger)), { eventStore: hanging })
      const initializing = yield* Effect.forkChild(post(endpoint, initialize))
      yield* eventually(() => endpoint.log.servers.size === 1)
      const [server] = endpoint.log.servers.values()
      const said = server!.transport!.send({ jsonrpc: "2.0", method: "notifications/message" })
      yield* endpoint.close
      yield* Effect.promise(() => said).pipe(Effect.timeout("4 seconds"))
      assert.strictEqual((yield* Fiber.join(initializing)).status, 503)
      assert.deepStrictEqual(logged, [])
    }))

  it.live("what a store replays is said as it is, but for what is no message", () =>
    Effect.gen(function*() {
      const memory = McpHttp.memoryEventStore()()
      const nothing = {} as JSONRPCMessage
      const eventStore = (): EventStore => ({
        ...memory,
        replayEventsAfter: async (id, { send: show }) => {
          await show("0", nothing)
          return memory.replayEventsAfter(id, { send: show })
        }
      })
      const endpoint = yield* open(start, { eventStore })
      const session = yield* begin(endpoint)
      const lost = yield* lose(endpoint, session)
      endpoint.log.release()
      const text = yield* textOf(yield* request(endpoint, "GET", lost)).pipe(Effect.timeout("4 seconds"))
      assert.deepStrictEqual(text.match(/^data: /gm)?.length, 1)
      assert.include(text, "waited")
    }))

  it.live("an answer that can't be kept is given all the same, and the log says once that it was not kept", () =>
    Effect.gen(function*() {
      const logged: Array<string> = []
      const logger = Logger.layer([Logger.map(Logger.formatLogFmt, (line) => void logged.push(line))])
      const endpoint = yield* open((app) => start(Layer.provideMerge(app, logger)), { eventStore: forgetful })
      const session = yield* begin(endpoint)
      for (const headers of [version, { "mcp-protocol-version": "2025-06-18" }]) {
        const answer = yield* post(endpoint, call("echo", { message: "hi" }), { session, headers })
        assert.include(yield* textOf(answer).pipe(Effect.timeout("5 seconds")), "\"text\":\"hi\"")
      }
      assert.strictEqual((yield* endpoint.registry.stats).held, 0)
      assert.deepStrictEqual(logged.map((line) => /could not keep/.test(line)), [true])
      assert.notInclude(logged.join("\n"), "hunter2")
    }))

  it.live("a request has its first response, as it was when it was given, and no other while that is kept", () =>
    Effect.gen(function*() {
      const memory = McpHttp.memoryEventStore()
      const slow = (): EventStore => {
        const store = memory()
        return { ...store, storeEvent: (id, message) => sleep(50).then(() => store.storeEvent(id, message)) }
      }
      const endpoint = yield* open(start, { eventStore: slow })
      const session = yield* begin(endpoint)
      for (let round = 0; round < 2; round++) {
        const batch = [call("wait", {}, 1), call("wait", {}, 2)]
        const waiting = yield* Effect.forkChild(post(endpoint, batch, { session }))
        yield* eventually(() => endpoint.log.called.length === 2 * (round + 1))
        yield* respondTwice(endpoint, session)
        yield* post(endpoint, cancel(1), { session })
        void endpoint.log.servers.get(session)!.transport!.send({ jsonrpc: "2.0", id: 2, result: {} })
        const messages = yield* messagesOf(yield* Fiber.join(waiting).pipe(Effect.timeout("4 seconds")))
        const said = messages.map((message) => [message.id, message.result])
        assert.deepStrictEqual(said, [[1, { said: "first" }], [2, {}]])
      }
    }))

  it.live("a response that is given as its session ends is heard once, or an error instead", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const seen = new Set<boolean>()
      for (let turns = 0; turns < 16; turns++) {
        const session = yield* begin(endpoint)
        endpoint.log.called.length = 0
        const batch = [call("wait", {}, 1), call("wait", {}, 2)]
        const waiting = yield* Effect.forkChild(post(endpoint, turns % 2 === 0 ? batch : batch[0], { session }))
        yield* eventually(() => endpoint.log.called.length === 2 - turns % 2)
        const { transport } = endpoint.log.servers.get(session)!
        transport!.send({ jsonrpc: "2.0", id: 1, result: {} }).catch(() => undefined)
        for (let turn = 0; turn < turns / 2 - 1; turn++) yield* Effect.promise(() => Promise.resolve())
        void transport!.close()
        const messages = yield* messagesOf(yield* Fiber.join(waiting).pipe(Effect.timeout("4 seconds")))
        seen.add(messages.some(({ result }) => result !== undefined))
        assert.deepStrictEqual(messages.map(({ id }) => id).toSorted(), [1, 2].slice(0, 2 - turns % 2))
      }
      assert.deepStrictEqual(seen, new Set([false, true]))
    }))

  it.live("an answer that its client did not get is there when it comes back", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const answer = yield* post(endpoint, call("wait"), { session, headers: version })
      const priming = yield* readUntil(answer, "data: ")
      const id = idIn(priming)
      endpoint.log.release()
      yield* Effect.sleep(20)
      const resumed = yield* request(endpoint, "GET", { session, headers: { ...version, "last-event-id": id } })
      assert.include(yield* readUntil(resumed, "waited"), "waited")
    }))

  it.live("the stream of a call is resumed as often as its client likes, also while it is open", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const answer = yield* post(endpoint, call("wait"), { session, headers: version })
      const reader = answer.body!.getReader()
      const { value } = yield* Effect.promise(() => reader.read())
      const id = idIn(new TextDecoder().decode(value))
      const headers = { ...version, "last-event-id": id }
      const ghosts = [yield* request(endpoint, "GET", { session, headers })]
      ghosts.push(yield* request(endpoint, "GET", { session, headers }))
      const resumed = yield* request(endpoint, "GET", { session, headers })
      assert.deepStrictEqual([...ghosts, resumed].map(({ status }) => status), [200, 200, 200])
      for (const ghost of ghosts) assert.notInclude(yield* textOf(ghost), "waited")
      endpoint.log.release()
      assert.include(yield* readUntil(resumed, "waited"), "waited")
      yield* Effect.promise(() => reader.cancel())
    }))

  it.live("a client that drops in a call finds its answer, however long it was idle", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore(), idleTimeToLive: 1_000 })
      const session = yield* begin(endpoint)
      const answer = yield* post(endpoint, call("wait"), { session, headers: version })
      const id = idIn(yield* readUntil(answer, "data: "))
      yield* Effect.sleep(1_500)
      assert.deepStrictEqual(endpoint.log.aborted, [])
      endpoint.log.release()
      const resumed = yield* request(endpoint, "GET", { session, headers: { ...version, "last-event-id": id } })
      assert.include(yield* readUntil(resumed, "waited"), "waited")
    }))

  /** Makes a call, loses the stream, and gives what it takes to come back for it. */
  const lose = (endpoint: Opened, session: string) =>
    Effect.gen(function*() {
      const dropped = yield* post(endpoint, call("wait"), { session, headers: version })
      const headers = { ...version, "last-event-id": idIn(yield* readUntil(dropped, "data: ")) }
      return { session, headers }
    })

  it.live.each<readonly [string, () => EventStore]>([
    ["one that knows the stream of an event", McpHttp.memoryEventStore()],
    ["one that does not", () => lessLookup(McpHttp.memoryEventStore()())]
  ])(
    "a client that has come back for its call hears that its session has ended: %s",
    ([, eventStore]) =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { eventStore })
        const session = yield* begin(endpoint)
        const lost = yield* lose(endpoint, session)
        const kept = yield* post(endpoint, call("wait", {}, 2), { session, headers: version })
        const resumed = yield* request(endpoint, "GET", lost)
        assert.strictEqual((yield* request(endpoint, "GET", { session, headers: version })).status, 200)
        assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
        const texts = yield* Effect.all([textOf(resumed), textOf(kept)]).pipe(Effect.timeout("4 seconds"))
        assert.deepStrictEqual(texts.map((text) => [text.includes(abandoned(1)), text.includes(abandoned(2))]), [
          [true, false],
          [false, true]
        ])
      })
  )

  it.live("a client that is coming back for its call hears that its session has ended", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: replaying(() => sleep(300)) })
      const session = yield* begin(endpoint)
      const lost = yield* lose(endpoint, session)
      const resuming = yield* Effect.forkChild(request(endpoint, "GET", lost), { startImmediately: true })
      yield* Effect.sleep(50)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      const resumed = yield* Fiber.join(resuming)
      assert.strictEqual(resumed.status, 200)
      assert.include(yield* textOf(resumed), abandoned(1))
    }))

  /** Its client is gone, and the store has the answer of its call without having said so. */
  const loseAnswered = Effect.gen(function*() {
    const endpoint = yield* open(start, { eventStore: slowToRespond })
    const session = yield* begin(endpoint)
    const lost = yield* lose(endpoint, session)
    yield* eventually(() => endpoint.log.called.length === 1)
    endpoint.log.release()
    yield* Effect.sleep(30)
    return { endpoint, lost, session }
  })

  it.live("a client that has come back for its call has its answer once, were it kept before the store says so", () =>
    Effect.gen(function*() {
      const { endpoint, lost, session } = yield* loseAnswered
      const resumed = yield* request(endpoint, "GET", lost)
      yield* Effect.sleep(30)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      const messages = yield* messagesOf(resumed)
      assert.deepStrictEqual(messages.map(({ id, result }) => [id, result !== undefined]), [[1, true]])
    }))

  it.live.each<readonly [string, (store: EventStore) => EventStore]>([
    ["one that knows the stream of an event", identity],
    ["one that does not", lessLookup]
  ])(
    "a client that comes back has what is said meanwhile, whatever the store takes its time for: %s",
    ([, kind]) =>
      Effect.gen(function*() {
        let replays = 0
        const eventStore = () => kind(lingering(() => (replays++, sleep(200)))())
        const endpoint = yield* open(start, { eventStore })
        const session = yield* begin(endpoint)
        const stream = yield* request(endpoint, "GET", { session, headers: version })
        yield* say(endpoint, session, "zero")
        const last = idIn(yield* readUntil(stream, "zero"))
        const listening = yield* Effect.forkChild(
          request(endpoint, "GET", { session, headers: { ...version, "last-event-id": last } }),
          { startImmediately: true }
        )
        const resuming = yield* Effect.forkChild(request(endpoint, "GET", yield* lose(endpoint, session)), {
          startImmediately: true
        })
        yield* eventually(() => replays === 2)
        endpoint.log.release()
        for (const data of ["one", "two"]) yield* say(endpoint, session, data)
        const said = yield* readUntil(yield* Fiber.join(listening), "two")
        assert.deepStrictEqual(said.match(/"data":"\w+"/g), ["\"data\":\"one\"", "\"data\":\"two\""])
        const messages = yield* messagesOf(yield* Fiber.join(resuming)).pipe(Effect.timeout("4 seconds"))
        assert.deepStrictEqual(messages.map(({ id }) => id), [1])
      })
  )

  it.live("a client that has come back twice has its answer once, were it kept before the store says so", () =>
    Effect.gen(function*() {
      const { endpoint, lost, session } = yield* loseAnswered
      const first = yield* readUntil(yield* request(endpoint, "GET", lost), "waited")
      const again = { session, headers: { ...version, "last-event-id": idIn(first) } }
      const messages = yield* messagesOf(yield* request(endpoint, "GET", again)).pipe(Effect.timeout("4 seconds"))
      assert.deepStrictEqual(messages, [])
    }))

  it.live("a call is answered after what it said before, whatever the store has kept first", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: uneven, server: saying(["first", "second"]) })
      const answer = yield* post(endpoint, call("tell"), { session: yield* begin(endpoint), headers: version })
      const said = (yield* messagesOf(answer)).map((message) => JSON.stringify(message))
      assert.deepStrictEqual(said.map((text) => /first|second|result/.exec(text)?.[0]), ["first", "second", "result"])
    }))

  it.live("a client that can't come back has its answer, however much was said before it", () =>
    Effect.gen(function*() {
      const much = Array.from({ length: 1_200 }, () => "x".repeat(1_024))
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore(), server: saying(much) })
      const headers = { "mcp-protocol-version": "2025-06-18" }
      const answer = yield* post(endpoint, call("tell"), { session: yield* begin(endpoint), headers })
      const text = yield* textOf(answer)
      assert.include(text, "\"result\"")
      assert.isBelow(text.length, 2 * 1024 * 1024)
    }))

  it.live.each([0, 1, 2, 3, 4])(
    "who comes back as another one has just got the stream has it: %s turns later",
    (turns) =>
      Effect.gen(function*() {
        let asked = 0
        const gate = new EventEmitter()
        const memory = McpHttp.memoryEventStore()()
        const eventStore = (): EventStore => ({
          ...memory,
          getStreamIdForEventId: async (id) => {
            if (++asked === 3) await once(gate, "open")
            if (asked === 3) await turnsLater(turns)
            return memory.getStreamIdForEventId!(id)
          },
          replayEventsAfter: async (id, replay) => {
            if (++asked === 2) await once(gate, "open")
            return memory.replayEventsAfter(id, replay)
          }
        })
        const endpoint = yield* open(start, { eventStore })
        const session = yield* begin(endpoint)
        const lost = yield* lose(endpoint, session)
        yield* Effect.forkChild(request(endpoint, "GET", lost), { startImmediately: true })
        yield* eventually(() => asked === 2)
        const resuming = yield* Effect.forkChild(request(endpoint, "GET", lost), { startImmediately: true })
        yield* eventually(() => asked === 3)
        gate.emit("open")
        const resumed = yield* Fiber.join(resuming)
        assert.strictEqual(resumed.status, 200)
        endpoint.log.release()
        assert.include(yield* readUntil(resumed, "waited"), "waited")
      })
  )

  it.live("who listens last hears the server, though it is known in one moment who they all are", () =>
    Effect.gen(function*() {
      let isHolding = false
      const held: Array<() => void> = []
      const known = Effect.suspend(() =>
        isHolding ? Effect.promise(() => new Promise<void>((resolve) => void held.push(resolve))) : Effect.void
      )
      const resolver = IdentityResolver.layerIdentify(() => Effect.as(known, "alice"))
      const endpoint = yield* open((app) => start(app, resolver), { eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const stream = yield* request(endpoint, "GET", { session, headers: version })
      yield* say(endpoint, session, "one")
      const headers = { ...version, "last-event-id": idIn(yield* readUntil(stream, "one")) }
      isHolding = true
      yield* Effect.forkChild(request(endpoint, "GET", { session, headers }), { startImmediately: true })
      yield* eventually(() => held.length === 1)
      const newer = yield* Effect.forkChild(request(endpoint, "GET", { session, headers: version }), {
        startImmediately: true
      })
      yield* eventually(() => held.length === 2)
      for (const release of held) release()
      const listening = yield* Fiber.join(newer)
      yield* Effect.sleep(50)
      yield* say(endpoint, session, "two")
      assert.include(yield* readUntil(listening, "two"), "two")
    }))

  it.live.each<readonly [string, (delay: Delay) => () => EventStore]>([
    ["as it replays", replaying],
    ["as it looks for the stream", looking],
    ["as it replays, and knows no stream of an event", (delay) => () => lessLookup(replaying(delay)())]
  ])(
    "who comes back last has the stream, though the store was quicker for them: %s",
    ([, slow]) =>
      Effect.gen(function*() {
        let asked = 0
        const endpoint = yield* open(start, { eventStore: slow(() => asked++ === 0 ? sleep(300) : undefined) })
        const session = yield* begin(endpoint)
        const lost = yield* lose(endpoint, session)
        const older = yield* Effect.forkChild(request(endpoint, "GET", lost), { startImmediately: true })
        yield* eventually(() => asked === 1)
        const newer = yield* request(endpoint, "GET", lost)
        assert.notInclude(yield* textOf(yield* Fiber.join(older)), "jsonrpc")
        yield* Effect.sleep(300)
        endpoint.log.release()
        assert.include(yield* readUntil(newer, "waited"), "waited")
      })
  )

  it.live("who listens last hears the server, though another one is still coming back to listen", () =>
    Effect.gen(function*() {
      let asked = 0
      const endpoint = yield* open(start, { eventStore: replaying(() => asked++ === 0 ? sleep(300) : undefined) })
      const session = yield* begin(endpoint)
      const stream = yield* request(endpoint, "GET", { session, headers: version })
      yield* say(endpoint, session, "one")
      const headers = { ...version, "last-event-id": idIn(yield* readUntil(stream, "one")) }
      const older = yield* Effect.forkChild(request(endpoint, "GET", { session, headers }), {
        startImmediately: true
      })
      yield* eventually(() => asked === 1)
      const newer = yield* request(endpoint, "GET", { session, headers: version })
      assert.notInclude(yield* textOf(yield* Fiber.join(older)), "jsonrpc")
      yield* Effect.sleep(300)
      yield* say(endpoint, session, "two")
      assert.include(yield* readUntil(newer, "two"), "two")
    }))

  it.live("a stream that is come back for lives as long as its call", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore(), streamTimeToLive: 100 })
      const session = yield* begin(endpoint)
      const resumed = yield* request(endpoint, "GET", yield* lose(endpoint, session))
      yield* Effect.sleep(300)
      endpoint.log.release()
      assert.include(yield* textOf(resumed), "waited")
    }))

  it.live("a stream that is come back for when its call is over ends with what was missed", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const lost = yield* lose(endpoint, session)
      endpoint.log.release()
      yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
      const messages = yield* messagesOf(yield* request(endpoint, "GET", lost)).pipe(Effect.timeout("4 seconds"))
      assert.deepStrictEqual(messages.map(({ id }) => id), [1])
    }))

  it.live("a stream that is come back for as its session gets too old ends with what was missed", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, {
        eventStore: replaying(() => sleep(600)),
        maxLifetime: 500,
        drainTimeout: "10 seconds"
      })
      const session = yield* begin(endpoint)
      const lost = yield* lose(endpoint, session)
      endpoint.log.release()
      yield* eventually(() => endpoint.log.called.length === 1)
      const resumed = yield* request(endpoint, "GET", lost)
      assert.include(yield* textOf(resumed).pipe(Effect.timeout("4 seconds")), "waited")
      yield* becomes(endpoint.registry.stats, ({ size }) => size === 0)
    }))

  it.live("a stream that was come back for and that nobody reads ends, and is not kept", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const session = yield* begin(endpoint)
      const resumed = yield* request(endpoint, "GET", yield* lose(endpoint, session))
      const { transport } = endpoint.log.servers.get(session)!
      const params = { level: "info", data: "x".repeat(64 * 1024) }
      const message: JSONRPCMessage = { jsonrpc: "2.0", method: "notifications/message", params }
      // 64 MiB
      for (let i = 0; i < 1_024; i++) {
        yield* Effect.promise(() => transport!.send(message, { relatedRequestId: 1 }))
      }
      assert.isBelow((yield* textOf(resumed)).length, 16 * 1024 * 1024)
    }))

  it.live("nobody replays the events of another session, nor of another stream", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: McpHttp.memoryEventStore() })
      const [a, b] = [yield* begin(endpoint, "alice"), yield* begin(endpoint, "bob")]
      const stream = yield* request(endpoint, "GET", { as: "alice", session: a, headers: version })
      yield* Effect.promise(() =>
        endpoint.log.servers.get(a)!.notification({
          method: "notifications/message",
          params: { level: "info", data: "secret" }
        })
      )
      const id = idIn(yield* readUntil(stream, "secret"))
      for (const lastEventId of [id, "0._GET_stream", "x", "__proto__", "-1._GET_stream"]) {
        const response = yield* request(endpoint, "GET", {
          as: "bob",
          session: b,
          headers: { ...version, "last-event-id": lastEventId }
        })
        assert.strictEqual(response.status, 400, lastEventId)
        assert.notInclude(yield* textOf(response), "secret")
      }
    }))

  it.live("a store that fails is no parse error, and what it says stays here", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { eventStore: failing })
      const response = yield* post(endpoint, initialize)
      assert.strictEqual(response.status, 503)
      assert.notInclude(yield* textOf(response), "hunter2")
      yield* eventually(() => endpoint.log.closed.length === 1)
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))

  it.live("two sessions never share one", () =>
    Effect.gen(function*() {
      const shared = McpHttp.memoryEventStore()()
      const endpoint = yield* open(start, { eventStore: () => shared })
      yield* begin(endpoint)
      assert.strictEqual((yield* post(endpoint, initialize)).status, 503)
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))
}

describe("McpHttp.layer with an event store", () => {
  describe("over the web handler", () => suite(web))

  describe("over a socket", () => suite(socket))
})
