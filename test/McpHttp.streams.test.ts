import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, InitializeRequestSchema, type JSONRPCMessage } from "@modelcontextprotocol/sdk/types.js"
import { Identity } from "effect-mcp-sessions/Identity"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { PoolExhausted } from "effect-mcp-sessions/SessionPool"
import type { SessionInfo } from "effect-mcp-sessions/SessionRegistry"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { becomes, eventually, messagesOf, pause, readUntil, textOf } from "./support/answers.ts"
import { refusesWhenClosed } from "./support/endpoints.ts"
import { many, underLoad } from "./support/load.ts"
import { logging } from "./support/logging.ts"
import { type Endpoint, makeLog, makeServer, socket, web } from "./support/mcpHttp.ts"
import { begin, call, initialize, post, request, send } from "./support/requests.ts"
import { abandoned, cancel, open, respondTwice, say, saying, unhandledRejections } from "./support/streams.ts"
import { makeDice } from "./support/world.ts"

const throwing = () => {
  throw new TypeError("sk-live-SECRET")
}

/** A server that never answers `initialize`. */
const silent = (info: SessionInfo) =>
  Effect.tap(
    makeServer(makeLog())(info),
    (made) => Effect.sync(() => made.setRequestHandler(InitializeRequestSchema, () => new Promise<never>(() => {})))
  )

const suite = (start: typeof web) => {
  describe.each(["sse", "json"] as const)("answered with %s", (response) => {
    it.live("a call is answered", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const answer = yield* post(endpoint, call("echo", { message: "hi" }, 7), { session })
        assert.strictEqual(answer.status, 200)
        assert.strictEqual(answer.headers.get("mcp-session-id"), session)
        assert.strictEqual(
          answer.headers.get("content-type"),
          response === "sse" ? "text/event-stream" : "application/json"
        )
        assert.deepStrictEqual(yield* messagesOf(answer), [
          { jsonrpc: "2.0", id: 7, result: { content: [{ type: "text", text: "hi" }] } } as object
        ])
        const accepted = yield* post(endpoint, { jsonrpc: "2.0", method: "notifications/initialized" }, { session })
        assert.strictEqual(accepted.status, 202)
        assert.strictEqual(yield* textOf(accepted), "")
      }))

    it.live.each([undefined, McpHttp.memoryEventStore()])(
      "an initialize that is never answered has no session after openTimeout, and its client is told",
      (eventStore) =>
        Effect.gen(function*() {
          const endpoint = yield* open(start, { response, eventStore, server: silent, openTimeout: 100 })
          const answer = yield* post(endpoint, initialize).pipe(Effect.timeout("2 seconds"))
          assert.strictEqual(answer.status, 503)
          assert.strictEqual(yield* endpoint.registry.size, 0)
        })
    )

    it.live.each([undefined, McpHttp.memoryEventStore()])(
      "an initialize that a shutdown interrupts is answered 503",
      (eventStore) =>
        Effect.gen(function*() {
          const endpoint = yield* open(start, { response, eventStore, server: silent, drainTimeout: 100 })
          const asked = yield* Effect.forkChild(post(endpoint, initialize), { startImmediately: true })
          yield* becomes(endpoint.registry.stats, ({ size }) => size === 1)
          yield* Effect.sleep(50)
          yield* endpoint.close
          assert.strictEqual((yield* Fiber.join(asked).pipe(Effect.timeout("4 seconds"))).status, 503)
        })
    )

    it.live("a call in flight ends with its session, at once, with an error of its own", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const call1 = send(endpoint, "POST", { session }, call("wait")).then(async (answer) => ({
          status: answer.status,
          text: await answer.text()
        }))
        yield* eventually(() => endpoint.log.called.length === 1)
        assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
        const answer = yield* Effect.promise(() => call1).pipe(Effect.timeout("4 seconds"))
        // 404 would say that it was not started
        assert.strictEqual(answer.status, 200)
        assert.include(answer.text, abandoned(1))
        assert.notInclude(answer.text, "waited")
        yield* eventually(() => endpoint.log.aborted.length === 1 && endpoint.log.closed.length === 1)
      }))

    it.live("a call that its client has cancelled ends, and the session goes on", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        for (const id of [1, "one", 1]) {
          endpoint.log.called.length = 0
          const answered = send(endpoint, "POST", { session }, call("wait", {}, id)).then((answer) => answer.text())
          yield* eventually(() => endpoint.log.called.length === 1)
          assert.strictEqual((yield* post(endpoint, cancel(id), { session })).status, 202)
          assert.notInclude(yield* Effect.promise(() => answered).pipe(Effect.timeout("4 seconds")), "jsonrpc")
        }
        yield* eventually(() => endpoint.log.aborted.length === 3)
        const answer = yield* post(endpoint, call("echo", { message: "on" }, 1), { session })
        assert.include(yield* textOf(answer), "on")
        // Of what is not in flight nothing can be cancelled
        for (const id of [99, "x", undefined]) yield* post(endpoint, cancel(id as number), { session })
      }))

    it.live("two calls at once with one id: the second is refused, the first answered", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const first = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
        yield* eventually(() => endpoint.log.called.length === 1)
        assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 400)
        assert.strictEqual((yield* post(endpoint, [call("echo", {}, 2), call("echo", {}, 2)], { session })).status, 400)
        endpoint.log.release()
        assert.include(yield* Effect.promise(() => first), "waited")
        assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 200)
      }))

    it.live("each call of a batch in flight ends with an error of its own, those that are done with their result", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const batch = [call("wait", {}, 1), call("echo", { message: "done" }, 2), call("wait", {}, 3)]
        const answered = send(endpoint, "POST", { session }, batch).then((answer) => answer.text())
        yield* eventually(() => endpoint.log.called.length === 3)
        yield* Effect.sleep(20)
        assert.strictEqual(yield* endpoint.registry.clear, 1)
        const text = yield* Effect.promise(() => answered).pipe(Effect.timeout("4 seconds"))
        for (const id of [1, 3]) assert.include(text, abandoned(id))
        assert.include(text, "\"done\"")
      }))

    it.live("a batch is answered whole", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const answer = yield* post(endpoint, [call("echo", { message: "a" }, 1), call("echo", { message: "b" }, 2)], {
          session
        })
        assert.strictEqual(answer.status, 200)
        const text = yield* textOf(answer)
        assert.include(text, "\"a\"")
        assert.include(text, "\"b\"")
      }))

    it.live("a batch has each response once, whichever of its calls is done first", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const batch = [call("wait", {}, 1), call("echo", { message: "first" }, "1"), call("none", {}, 3)]
        const waiting = yield* Effect.forkChild(post(endpoint, batch, { session }))
        yield* eventually(() => endpoint.log.called.length === 3)
        endpoint.log.release()
        const messages = (yield* messagesOf(yield* Fiber.join(waiting))).flat()
        const ids = messages.map(({ id }) => id)
        assert.sameDeepMembers(ids, [1, "1", 3])
        if (response === "json") assert.deepStrictEqual(ids, [1, "1", 3])
        assert.include(JSON.stringify(messages.find(({ id }) => id === "1")), "first")
      }))

    it.live.each([[1, 2], [1]])(
      "a response that is given as its session ends is heard, and once",
      (ids) =>
        Effect.gen(function*() {
          const endpoint = yield* open(start, { response })
          const session = yield* begin(endpoint)
          const calls = ids.map((id) => call("wait", {}, id))
          const waiting = yield* Effect.forkChild(post(endpoint, ids.length > 1 ? calls : calls[0], { session }))
          yield* eventually(() => endpoint.log.called.length === ids.length)
          const { transport } = endpoint.log.servers.get(session)!
          void transport!.send({ jsonrpc: "2.0", id: 1, result: {} })
          void transport!.close()
          const messages = (yield* messagesOf(yield* Fiber.join(waiting).pipe(Effect.timeout("4 seconds")))).flat()
          assert.deepStrictEqual(
            messages.map(({ id, result }) => [id, result !== undefined]),
            ids.map((id) => [id, id === 1])
          )
        })
    )

    it.live.each<readonly [string, object]>([
      ["no JSON", { result: { n: 1n } }],
      ["no result", { result: 5 }],
      ["no error", { error: { code: -1, message: 5 } }],
      ["no result as JSON", { result: { toJSON: () => 5 } }],
      ["a list", { result: [] }],
      ["nothing as JSON", { result: { toJSON: () => undefined } }],
      ["a result by a part of it alone", { result: { _meta: 5 } }],
      ["more than a result", { result: {}, method: undefined, more: 1 }],
      ["one to another request as JSON", { result: {}, toJSON: () => ({ jsonrpc: "2.0", id: 2, result: {} }) }]
    ])("a response that is %s is an error to the client, and to the server", ([, wrong]) =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        for (const ids of [[1], [1, 2]]) {
          const calls = ids.map((id) => call("wait", {}, id))
          const waiting = yield* Effect.forkChild(post(endpoint, ids.length > 1 ? calls : calls[0], { session }))
          yield* eventually(() => endpoint.log.called.length === ids.length)
          const { onerror, transport } = endpoint.log.servers.get(session)!
          const complaints: Array<unknown> = []
          Object.assign(endpoint.log.servers.get(session)!, { onerror: (error: Error) => complaints.push(error) })
          const sent = transport!.send({ jsonrpc: "2.0", id: 1, ...wrong } as JSONRPCMessage)
          yield* Effect.promise(() => sent.catch((error) => complaints.push(error)))
          assert.lengthOf(complaints, 1)
          if (ids.length > 1) void transport!.send({ jsonrpc: "2.0", id: 2, result: {} })
          const messages = (yield* messagesOf(yield* Fiber.join(waiting).pipe(Effect.timeout("4 seconds")))).flat()
          const said = messages.map(({ error, id }) => [id, error?.code]).toSorted()
          assert.deepStrictEqual(said, [[1, -32603], [2, undefined]].slice(0, ids.length))
          assert.strictEqual((yield* endpoint.registry.stats).held, 0)
          Object.assign(endpoint.log.servers.get(session)!, { onerror })
          endpoint.log.called.length = 0
        }
      }))

    it.live("a response that is none when it is read again ends the wait for it", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        for (let most = 0; most < 6; most++) {
          const waiting = yield* Effect.forkChild(post(endpoint, call("wait"), { session }))
          yield* eventually(() => endpoint.log.called.length === most + 1)
          let reads = 0
          const result = {
            get n() {
              return reads++ < most ? 1 : throwing()
            }
          }
          const { transport } = endpoint.log.servers.get(session)!
          yield* Effect.promise(() => transport!.send({ jsonrpc: "2.0", id: 1, result }).catch(() => undefined))
          const messages = yield* messagesOf(yield* Fiber.join(waiting).pipe(Effect.timeout("4 seconds")))
          assert.deepStrictEqual(messages.map(({ id }) => id), [1])
        }
      }))

    it.live("a request with an id that is none is refused, and nobody hears of it", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const stream = yield* request(endpoint, "GET", { session })
        assert.strictEqual((yield* post(endpoint, call("echo", {}, 1.5), { session })).status, 400)
        yield* say(endpoint, session, "the end")
        assert.notInclude(yield* readUntil(stream, "the end"), "1.5")
      }))

    it.live("a request has its first response, as it was when it was given", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const waiting = yield* Effect.forkChild(post(endpoint, call("wait"), { session }))
        yield* eventually(() => endpoint.log.called.length === 1)
        yield* respondTwice(endpoint, session)
        const messages = yield* messagesOf(yield* Fiber.join(waiting))
        assert.deepStrictEqual(messages.map((message) => message.result), [{ said: "first" }])
      }))

    it.live("an id is in use until its whole batch is answered", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const batch = [call("echo", { message: "first" }, 1), call("wait", {}, 2)]
        const waiting = yield* Effect.forkChild(post(endpoint, batch, { session }))
        yield* eventually(() => endpoint.log.called.length === 2)
        yield* Effect.sleep(20)
        const again = yield* post(endpoint, [call("echo", { message: "second" }, 1), call("echo", {}, 3)], { session })
        assert.strictEqual(again.status, 400)
        endpoint.log.release()
        const messages = (yield* messagesOf(yield* Fiber.join(waiting))).flat()
        assert.sameMembers(messages.map(({ id }) => id), [1, 2])
        const later = yield* post(endpoint, call("echo", { message: "third" }, 1), { session })
        assert.include(yield* textOf(later), "third")
      }))

    it.live("a response that is no JSON does not keep the end of its session from other calls", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response })
        const session = yield* begin(endpoint)
        const waiting = yield* Effect.forkChild(Effect.all([
          post(endpoint, [call("wait", {}, 1), call("wait", {}, 2)], { session }),
          post(endpoint, call("wait", {}, 3), { session })
        ], { concurrency: "unbounded" }))
        yield* eventually(() => endpoint.log.called.length === 3)
        const { transport } = endpoint.log.servers.get(session)!
        const wrong = { jsonrpc: "2.0", id: 1, result: { n: 1n } } as const
        yield* Effect.promise(() => transport!.send(wrong).catch(() => undefined))
        assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
        const [batch, alone] = yield* Fiber.join(waiting).pipe(Effect.timeout("4 seconds"))
        const codes = (yield* messagesOf(batch)).flat().map(({ error, id }) => [id, error?.code]).toSorted()
        assert.deepStrictEqual(codes, [[1, -32603], [2, -32000]])
        assert.include(yield* textOf(alone), abandoned(3))
        assert.strictEqual(yield* endpoint.registry.size, 0)
      }))

    it.live("a call longer than the idle time keeps its session, whose idle time counts from its end", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response, idleTimeToLive: 1_000 })
        const session = yield* begin(endpoint)
        const answered = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
        yield* Effect.sleep(1_500)
        endpoint.log.release()
        assert.include(yield* Effect.promise(() => answered), "waited")
        yield* Effect.sleep(50)
        const alive = yield* post(endpoint, call("echo"), { session })
        assert.strictEqual(alive.status, 200)
        yield* textOf(alive)
        yield* eventually(() => endpoint.log.closed.length === 1)
        assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 404)
      }))

    it.live("a call whose client has left is no longer waited for, and keeps its session until it ends", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { response, idleTimeToLive: 1_000 })
        const session = yield* begin(endpoint)
        const controller = new AbortController()
        const left = send(endpoint, "POST", { session, signal: controller.signal }, call("wait"))
          .then((answer) => answer.text()).catch(() => "left")
        yield* eventually(() => endpoint.log.called.length === 1)
        assert.strictEqual((yield* endpoint.registry.stats).held, 1)
        controller.abort()
        yield* Effect.promise(() => left)
        yield* Effect.sleep(1_500)
        assert.strictEqual((yield* endpoint.registry.stats).held, 1)
        // To leave is no cancellation
        assert.deepStrictEqual(endpoint.log.aborted, [])
        endpoint.log.release()
        yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
        yield* eventually(() => endpoint.log.closed.length === 1)
      }))
  })

  it.live("an open GET stream keeps its session, which ends it when it is terminated", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { idleTimeToLive: 1_000 })
      const session = yield* begin(endpoint)
      const stream = yield* request(endpoint, "GET", { session })
      const ended = textOf(stream)
      const fiber = yield* Effect.forkChild(ended)
      yield* Effect.sleep(1_500)
      assert.strictEqual(yield* endpoint.registry.size, 1)
      const [entry] = yield* endpoint.registry.entries
      assert.strictEqual(yield* endpoint.registry.terminateAll({ key: entry!.owner }), 1)
      yield* Fiber.join(fiber).pipe(Effect.timeout("4 seconds"))
      yield* eventually(() => endpoint.log.closed.length === 1)
    }))

  it.live("a server that closes itself ends its session", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { response: "json" })
      const session = yield* begin(endpoint)
      const called = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
      yield* eventually(() => endpoint.log.called.length === 1)
      yield* Effect.promise(() => endpoint.log.servers.get(session)!.close())
      assert.include(yield* Effect.promise(() => called).pipe(Effect.timeout("4 seconds")), abandoned(1))
      yield* eventually(() => endpoint.log.closed.length === 1)
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))

  it.live("a server whose own handlers throw ends like any other, and what they say is in no log", () =>
    Effect.gen(function*() {
      const logged: Array<string> = []
      const endpoint = yield* open((app) =>
        start(
          Layer.provideMerge(app, Logger.layer([Logger.map(Logger.formatLogFmt, (line) => void logged.push(line))]))
        )
      )
      const session = yield* begin(endpoint)
      Object.assign(endpoint.log.servers.get(session)!, { onclose: throwing })
      const called = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
      yield* eventually(() => endpoint.log.called.length === 1)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      assert.include(yield* Effect.promise(() => called).pipe(Effect.timeout("4 seconds")), abandoned(1))
      yield* eventually(() => endpoint.log.closed.length === 1 && logged.length > 0)
      assert.include(logged.join("\n"), "TypeError")
      assert.notInclude(logged.join("\n"), "SECRET")
    }))

  it.live("a session past its lifetime ends its GET stream, and lets its calls finish", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { maxLifetime: 1_500 })
      const session = yield* begin(endpoint)
      const stream = yield* Effect.forkChild(Effect.flatMap(request(endpoint, "GET", { session }), textOf))
      const answered = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
      yield* Fiber.join(stream).pipe(Effect.timeout("4 seconds"))
      assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 404)
      endpoint.log.release()
      assert.include(yield* Effect.promise(() => answered), "waited")
      yield* eventually(() => endpoint.log.closed.length === 1)
    }))

  describe("what a call says before it is answered", () => {
    it.live.each<readonly [string, ReadonlyArray<string>, string?]>([
      ["a call that is done at once, in one piece", ["a", "b"]],
      ["a call that takes longer, as it is said", ["a", "b"], "c"],
      ["a call that says much at once", ["a".repeat(100_000), "b"]]
    ])("is heard in order: %s", ([, data, last]) =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { server: saying(data, last) })
        const session = yield* begin(endpoint)
        const answer = yield* post(endpoint, call("say"), { session })
        assert.strictEqual(answer.headers.has("content-length"), last === undefined && data[0] === "a")
        assert.strictEqual(answer.headers.get("cache-control"), "no-cache, no-transform")
        const messages = yield* messagesOf(answer)
        assert.deepStrictEqual(
          messages.map(({ params, result }) => params?.data ?? result),
          [...data, ...last === undefined ? [] : [last], { content: [{ type: "text", text: "0 refused" }] }]
        )
      }))

    it.live.each<readonly [string, Partial<McpHttp.LayerOptions<unknown, Scope.Scope>>]>([
      ["", {}],
      [" (of a protected server with an event store)", {
        authorization: { servers: ["https://a.example.com"] },
        eventStore: McpHttp.memoryEventStore()
      }]
    ])(
      "is not kept beyond a bound, had its client no chance to read any of it%s",
      ([, options]) =>
        Effect.gen(function*() {
          const much = Array.from({ length: 1_024 }, () => "漢".repeat(64 * 1024))
          const endpoint = yield* open(start, { ...options, server: saying(much) })
          const as = { as: "alice", session: yield* begin(endpoint, "alice") }
          // 192 MiB, while nobody else gets a turn
          const text = yield* textOf(yield* post(endpoint, call("flood"), as))
          assert.isBelow(Buffer.byteLength(text), 2 * 1024 * 1024)
          assert.include(text, "\"result\"")
        })
    )

    it.live("is told to the server's onerror if it is no JSON, and the call is answered", () =>
      Effect.gen(function*() {
        const errors: Array<string> = []
        const onerror = ({ name }: Error) => void errors.push(name)
        const server = Effect.map(saying([1n, "b"])(), (made) => Object.assign(made, { onerror }))
        const endpoint = yield* open(start, { server: () => server })
        const session = yield* begin(endpoint)
        const text = yield* textOf(yield* post(endpoint, call("say"), { session }))
        assert.include(text, "0 refused")
        assert.include(text, `"data":"b"`)
        assert.deepStrictEqual(errors, ["TypeError"])
      }))
  })

  describe("a notification that nobody waits for", () => {
    it.live("ends no process: one that is no JSON, though nobody listens", () =>
      Effect.gen(function*() {
        const unhandled = yield* unhandledRejections
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        const server = endpoint.log.servers.get(session)!
        void server.notification({ method: "notifications/message", params: { level: "info", data: 1n } })
        yield* Effect.sleep(20)
        assert.deepStrictEqual(unhandled, [])
      }))

    it.live.each(["sse", "json"] as const)(
      "ends no process: one of a call that was cancelled (%s)",
      (response) =>
        Effect.gen(function*() {
          const unhandled = yield* unhandledRejections
          const endpoint = yield* open(start, { response })
          const session = yield* begin(endpoint)
          const waiting = yield* Effect.forkChild(post(endpoint, call("wait"), { session }))
          yield* eventually(() => endpoint.log.called.length === 1)
          yield* post(endpoint, cancel(1), { session })
          const server = endpoint.log.servers.get(session)!
          void server.notification({ method: "notifications/message", params: { level: "info", data: "late" } }, {
            relatedRequestId: 1
          })
          yield* Effect.sleep(20)
          assert.deepStrictEqual(unhandled, [])
          yield* Fiber.join(waiting)
        })
    )
  })

  describe("a stream to listen on", () => {
    it.live("ends when it is old enough, and what is said until the client is back is heard then", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { streamTimeToLive: 700 })
        const session = yield* begin(endpoint)
        const first = yield* request(endpoint, "GET", { session })
        yield* say(endpoint, session, "one")
        assert.include(yield* textOf(first).pipe(Effect.timeout("4 seconds")), "one")
        yield* say(endpoint, session, "two")
        yield* say(endpoint, session, "three")
        const text = yield* readUntil(yield* request(endpoint, "GET", { session }), "three")
        assert.deepStrictEqual(text.match(/one|two|three/g), ["two", "three"])
      }))

    it.live("lets go of its session then", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { streamTimeToLive: 150, idleTimeToLive: 1_000 })
        const session = yield* begin(endpoint)
        yield* textOf(yield* request(endpoint, "GET", { session })).pipe(Effect.timeout("4 seconds"))
        yield* eventually(() => endpoint.log.closed.length === 1)
        assert.strictEqual(yield* endpoint.registry.size, 0)
      }))

    it.live("a call that is older is answered", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { streamTimeToLive: 50, idleTimeToLive: 1_000 })
        const session = yield* begin(endpoint)
        const answered = send(endpoint, "POST", { session }, call("wait")).then((answer) => answer.text())
        yield* Effect.sleep(1_500)
        endpoint.log.release()
        assert.include(yield* Effect.promise(() => answered), "waited")
      }))

    it.live("that nobody reads ends, and does not keep what it was to say", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        const unread = yield* request(endpoint, "GET", { session })
        const text = "x".repeat(64 * 1024)
        // 64 MiB
        for (let i = 0; i < 1_024; i++) yield* say(endpoint, session, text)
        const next = yield* request(endpoint, "GET", { session })
        assert.strictEqual(next.status, 200)
        yield* say(endpoint, session, "last")
        assert.isBelow((yield* readUntil(next, "last")).length, 1024 * 1024)
        // A socket that is not read does not see that it was closed
        yield* Effect.promise(() => unread.body!.cancel().catch(() => undefined))
      }))
  })

  describe("a server that can't be made", () => {
    class Refused extends Schema.TaggedError<Refused>()("Refused", {}) {}

    it.live("is 503, leaves nothing behind, and what it says is in no log", () =>
      Effect.gen(function*() {
        const closed: Array<string> = []
        const { logged, logger } = logging()
        const fails = (failure: Effect.Effect<never, unknown>) => (info: SessionInfo) =>
          Effect.andThen(Effect.addFinalizer(() => Effect.sync(() => closed.push(info.id))), failure)
        for (
          const failure of [
            Effect.fail(new Refused()),
            Effect.die(new Error("token=hunter2")),
            Effect.fail(new PoolExhausted({ capacity: 1, waited: Duration.zero }))
          ]
        ) {
          const endpoint = yield* open((app) => start(Layer.provideMerge(app, logger)), { server: fails(failure) })
          const response = yield* post(endpoint, initialize)
          assert.strictEqual(response.status, 503)
          assert.isNotNull(response.headers.get("retry-after"))
          assert.notInclude(yield* textOf(response), "hunter2")
          assert.strictEqual(yield* endpoint.registry.size, 0)
        }
        assert.strictEqual(closed.length, 3)
        assert.deepStrictEqual(
          logged.map((line) => line.split("\n")[0]),
          ["Refused", "Error", "PoolExhausted"].map((name) => `Warn An MCP session could not be opened,${name}`)
        )
        assert.notInclude(logged.join("\n"), "hunter2")
      }))

    it.live("because it serves another session is 503, and that session goes on", () =>
      Effect.gen(function*() {
        const log = makeLog()
        const server = yield* makeServer(log)({ id: "one", owner: "all" })
        const endpoint = yield* open(start, { server: () => Effect.succeed(server) })
        const session = yield* begin(endpoint)
        assert.strictEqual((yield* post(endpoint, initialize)).status, 503)
        assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 200)
      }))
  })

  it.live("a handler knows where a request was sent, below the prefix of a router, too", () =>
    Effect.gen(function*() {
      const server = Effect.sync(() => {
        const made = new Server({ name: "located", version: "1.0.0" }, { capabilities: { tools: {} } })
        made.setRequestHandler(CallToolRequestSchema, (_, { requestInfo }) => ({
          content: [{ type: "text", text: String(requestInfo?.url) }]
        }))
        return made
      })
      const app = Layer.unwrap(Effect.map(HttpRouter.HttpRouter, (router) =>
        Layer.provide(
          McpHttp.layer({ server: () => server }),
          Layer.succeed(HttpRouter.HttpRouter, router.prefixed("/api"))
        )))
      const endpoint = yield* start(app)
      const below = { ...endpoint, url: endpoint.url.replace("/mcp", "/api/mcp?of=1") }
      const answer = yield* post(below, call("where"), { session: yield* begin(below) })
      assert.include(yield* textOf(answer), JSON.stringify(below.url))
    }))

  it.live("a server knows whose it is, with their newest credentials", () =>
    Effect.gen(function*() {
      const callers: Array<McpHttp.SessionCaller> = []
      const log = makeLog()
      const endpoint = yield* open(start, {
        server: (info, caller) => {
          callers.push(caller)
          return makeServer(log)(info)
        }
      })
      const session = yield* begin(endpoint, "alice")
      yield* begin(endpoint, "bob")
      const answer = yield* post(endpoint, call("whoami"), { as: "alice", session })
      const [alice, bob] = [yield* callers[0]!.identity, yield* callers[1]!.identity]
      assert.include(yield* textOf(answer), alice.key)
      assert.notStrictEqual(alice.key, bob.key)
      assert.instanceOf(alice, Identity)
    }))

  it.live("what is open when the endpoint closes ends with it", () =>
    Effect.gen(function*() {
      const endpoint: Endpoint & { readonly log: ReturnType<typeof makeLog> } = yield* open(start)
      const sessions = [yield* begin(endpoint), yield* begin(endpoint), yield* begin(endpoint)]
      const stream = yield* request(endpoint, "GET", { session: sessions[0] })
      const streamed = stream.text()
      const called = send(endpoint, "POST", { session: sessions[1] }, call("wait"))
        .then((answer) => answer.text(), () => "")
      yield* eventually(() => endpoint.log.called.length === 1)
      yield* endpoint.close.pipe(Effect.timeout("3 seconds"))
      yield* Effect.promise(() => streamed.catch(() => ""))
      assert.notInclude(yield* Effect.promise(() => called), "waited")
      assert.strictEqual(endpoint.log.closed.length, 3)
      assert.deepStrictEqual(endpoint.log.aborted, ["wait"])
    }))
}

describe("McpHttp.layer", () => {
  describe("over the web handler", () => {
    suite(web)

    it.live("answers 503 when it has shut down", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(web)
        yield* refusesWhenClosed(endpoint)
      }))
  })

  describe("over a socket", () => suite(socket))
})

const interleavings = many(30, 1_000)

describe("McpHttp.layer, whatever comes first", () => {
  it.live.each(["sse", "json"] as const)(
    "a call and a DELETE both end, and the session with them (%s)",
    (response) =>
      Effect.gen(function*() {
        const endpoint = yield* open(web, { response, capacity: 20 })
        const seen = new Set<number>()
        for (let seed = 0; seed < interleavings; seed++) {
          const dice = makeDice(seed)
          const session = yield* begin(endpoint)
          const [called, deleted] = yield* Effect.all([
            Effect.andThen(
              pause(dice.below(24)),
              post(endpoint, call("echo", { message: "hi" }), { session }).pipe(
                Effect.flatMap((answer) => Effect.map(textOf(answer), (text) => ({ status: answer.status, text })))
              )
            ),
            Effect.andThen(pause(dice.below(24)), request(endpoint, "DELETE", { session }))
          ], { concurrency: "unbounded" }).pipe(Effect.timeout("4 seconds"))
          const hasRun = endpoint.log.called.splice(0).length === 1
          seen.add(called.status)
          assert.strictEqual(deleted.status, 204)
          // What was started is not "not found"
          assert.strictEqual(called.status, hasRun ? 200 : 404)
          assert.include(called.text, hasRun ? "\"id\":1" : "Session not found")
          assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 404)
        }
        assert.deepStrictEqual(Array.from(seen).toSorted(), [200, 404])
        yield* eventually(() => endpoint.log.closed.length === interleavings)
        assert.strictEqual(endpoint.log.servers.size, 0)
      }),
    underLoad
  )
})
