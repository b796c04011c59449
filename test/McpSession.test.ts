import { assert, describe, it } from "@effect/vitest"
import { UnauthorizedError } from "@modelcontextprotocol/sdk/client/auth.js"
import { SseError } from "@modelcontextprotocol/sdk/client/sse.js"
import { StreamableHTTPError } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import {
  CallToolRequestSchema,
  CallToolResultSchema,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListToolsRequestSchema,
  McpError,
  PingRequestSchema
} from "@modelcontextprotocol/sdk/types.js"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import {
  McpSession,
  McpSessionError,
  type McpSessionErrorReason,
  type ProgressOptions,
  ProtocolFailure,
  RequestTimeout,
  SessionClosed,
  SessionExpired
} from "effect-mcp-sessions/McpSession"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { readFileSync } from "node:fs"
import { classify } from "../src/internal/client/classify.ts"
import { makeHandle } from "./support/sessions.ts"

// -----------------------------------------------------------------------------
// A server whose every answer the test decides
// -----------------------------------------------------------------------------

interface Asked {
  readonly name: string
  readonly signal: AbortSignal
  readonly answer: (text: string) => void
  /** Tells how far it is. Settles when it has been sent. */
  readonly progress: (progress: number) => Promise<void>
}

const makeServer = () => {
  const server = new Server({ name: "told", version: "1.0.0" }, {
    capabilities: { tools: { listChanged: true }, logging: {} }
  })
  const asked: Array<Asked> = []
  const waiting: Array<() => void> = []
  const counts = { lists: 0, pings: 0 }
  const state = { pageCount: 1, listing: Promise.resolve(), ping: Promise.resolve() }
  const wake = () => waiting.splice(0).forEach((resume) => resume())
  server.setRequestHandler(
    CallToolRequestSchema,
    ({ params }, { _meta, sendNotification, signal }) =>
      new Promise((resolve, reject) => {
        if (params.name === "echo") return resolve({ content: [{ type: "text", text: "echo" }] })
        if (params.name === "refuse") {
          return reject(new McpError(-32099, "no to Bearer s3cret-token", { t: "s3cret-token" }))
        }
        signal.addEventListener("abort", wake)
        asked.push({
          name: params.name,
          signal,
          answer: (text) => resolve({ content: [{ type: "text", text }] }),
          progress: (progress) =>
            sendNotification({
              method: "notifications/progress",
              params: { progressToken: _meta?.progressToken ?? 0, progress }
            })
        })
        wake()
      })
  )
  server.setRequestHandler(ListToolsRequestSchema, async ({ params }) => {
    counts.lists++
    await state.listing
    const page = Number(params?.cursor ?? 0)
    return {
      tools: [{ name: `tool-${page}`, inputSchema: { type: "object" } }],
      ...(page + 1 < state.pageCount ? { nextCursor: String(page + 1) } : {})
    }
  })
  server.setRequestHandler(PingRequestSchema, async () => {
    counts.pings++
    await state.ping
    return {}
  })
  /** Waits, in real time, for something that the server will see. */
  const until = (condition: () => boolean) =>
    Effect.gen(function*() {
      while (!condition()) yield* Effect.callback<void>((resume) => void waiting.push(() => resume(Effect.void)))
    })
  return { server, asked, counts, state, until }
}

/** A server that has every list, and remembers which it was asked for. */
const makeLister = () => {
  const listChanged = { listChanged: true }
  const server = new Server({ name: "lister", version: "1.0.0" }, {
    capabilities: { tools: listChanged, resources: listChanged, prompts: listChanged }
  })
  const asked: Array<string> = []
  server.setRequestHandler(ListToolsRequestSchema, ({ method }) => {
    asked.push(method)
    return { tools: [] }
  })
  server.setRequestHandler(ListResourcesRequestSchema, ({ method }) => {
    asked.push(method)
    return { resources: [] }
  })
  server.setRequestHandler(ListResourceTemplatesRequestSchema, ({ method }) => {
    asked.push(method)
    return { resourceTemplates: [] }
  })
  server.setRequestHandler(ListPromptsRequestSchema, ({ method }) => {
    asked.push(method)
    return { prompts: [] }
  })
  return { server, asked }
}

const identity = Identity.fromKey("alice", { credentials: Credentials.bearer("s3cret-token") })

const connected = (options: McpConnector.Options = {}) =>
  Effect.gen(function*() {
    const upstream = makeServer()
    const handle = makeHandle()
    const scope = yield* Scope.fork(yield* Effect.scope)
    const connect = McpConnector.inProcess(() => Effect.succeed(upstream.server), { name: "told", ...options })
    const session = yield* Scope.provide(connect(identity, handle), scope)
    return { ...upstream, handle, session, close: Scope.close(scope, Exit.void) }
  })

const turn = Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve)))

const failure = (error: McpSessionError) => error.reason._tag

/** A call that is handled by `onProgress`, has told of `count` steps, and is answered. */
const answered = (count: number, onProgress: (progress: number) => Effect.Effect<void>) =>
  Effect.gen(function*() {
    const { asked, close, handle, session, until } = yield* connected()
    const fiber = yield* Effect.forkChild(
      session.callTool({ name: "slow" }, {
        timeout: "10 seconds",
        onProgress: ({ progress }) => onProgress(progress)
      })
    )
    yield* until(() => asked.length === 1)
    for (let i = 1; i <= count; i++) yield* Effect.promise(() => asked[0]!.progress(i))
    yield* turn
    asked[0]!.answer("done")
    yield* turn
    return { fiber, close, handle, session }
  })

/** A call that the server reports on. */
const reported = (options: ProgressOptions) =>
  Effect.gen(function*() {
    const { asked, session, until } = yield* connected()
    const fiber = yield* Effect.forkChild(Effect.result(session.callTool({ name: "slow" }, options)))
    yield* until(() => asked.length === 1)
    const tell = Effect.andThen(Effect.promise(() => asked[0]!.progress(1)), turn)
    return { fiber, call: asked[0]!, tell, until }
  })

const stubborn = () => Effect.uninterruptible(Effect.sleep("1 hour"))

describe("McpSession", () => {
  it.effect("tells who the server is and what it can do", () =>
    Effect.gen(function*() {
      const { session } = yield* connected()
      assert.deepStrictEqual(session.serverInfo, { name: "told", version: "1.0.0" })
      assert.deepStrictEqual(session.capabilities, { tools: { listChanged: true }, logging: {} })
      assert.strictEqual(session.protocolVersion, "2025-11-25")
      assert.strictEqual(session.instructions, undefined)
      assert.strictEqual(session.identity, identity)
      assert.strictEqual(session.pid, undefined)
    }))

  describe("calls", () => {
    it.effect("fail with RequestTimeout after 60 seconds of the Clock, and are cancelled on the server", () =>
      Effect.gen(function*() {
        const { asked, handle, session, until } = yield* connected()
        const fiber = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
        yield* until(() => asked.length === 1)
        yield* TestClock.adjust("59999 millis")
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        const error = yield* Fiber.join(fiber)
        assert.deepStrictEqual(error.reason, new RequestTimeout({ requestSent: true }))
        assert.strictEqual(error.method, "callTool")
        assert.strictEqual(error.server, "told")
        yield* until(() => asked[0]!.signal.aborted)
        assert.deepStrictEqual(handle.retired, [])
      }))

    it.effect("take a timeout of their own, or the connector's", () =>
      Effect.gen(function*() {
        const { session } = yield* connected({ requestTimeout: "2 seconds" })
        const own = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" }, { timeout: "1 second" })))
        const other = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
        yield* TestClock.adjust("1 second")
        assert.strictEqual(failure(yield* Fiber.join(own)), "RequestTimeout")
        assert.isUndefined(other.pollUnsafe())
        yield* TestClock.adjust("1 second")
        assert.strictEqual(failure(yield* Fiber.join(other)), "RequestTimeout")
      }))

    it.effect("that are interrupted are cancelled on the server, and their siblings are not", () =>
      Effect.gen(function*() {
        const { asked, session, until } = yield* connected()
        const first = yield* Effect.forkChild(session.callTool({ name: "first" }))
        const second = yield* Effect.forkChild(session.callTool({ name: "second" }))
        yield* until(() => asked.length === 2)
        yield* Fiber.interrupt(first)
        yield* until(() => asked[0]!.signal.aborted)
        assert.isFalse(asked[1]!.signal.aborted)
        asked[1]!.answer("second")
        assert.deepStrictEqual((yield* Fiber.join(second)).content, [{ type: "text", text: "second" }])
      }))

    it.effect("in flight fail with SessionClosed when the scope closes, and later ones say they were not sent", () =>
      Effect.gen(function*() {
        const { asked, close, session, until } = yield* connected()
        const fiber = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
        yield* until(() => asked.length === 1)
        yield* close
        assert.deepStrictEqual((yield* Fiber.join(fiber)).reason, new SessionClosed({ requestSent: true }))
        const late = yield* Effect.flip(session.callTool({ name: "slow" }))
        assert.deepStrictEqual(late.reason, new SessionClosed({ requestSent: false }))
      }))

    it.effect("in flight fail at once when the server goes, and the session is retired", () =>
      Effect.gen(function*() {
        const { asked, handle, server, session, until } = yield* connected()
        const fiber = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
        yield* until(() => asked.length === 1)
        yield* Effect.promise(() => server.close())
        assert.deepStrictEqual((yield* Fiber.join(fiber)).reason, new SessionClosed({ requestSent: true }))
        assert.include(handle.retired, "died")
      }))

    it.effect("fail with the server's own error, without the caller's credentials, and keep the session", () =>
      Effect.gen(function*() {
        const { handle, session } = yield* connected()
        const error = yield* Effect.flip(session.callTool({ name: "refuse" }))
        assert.deepStrictEqual(
          error.reason,
          new ProtocolFailure({
            code: -32099,
            message: "no to <redacted>",
            data: { t: "<redacted>" },
            requestSent: true
          })
        )
        assert.notInclude(Cause.pretty(Cause.fail(error)), "s3cret-token")
        assert.deepStrictEqual(handle.retired, [])
        yield* session.callTool({ name: "echo" })
      }))

    it.effect("of anything else the SDK can do go through request, with the same errors", () =>
      Effect.gen(function*() {
        const { session } = yield* connected()
        const result = yield* session.request((client, options) =>
          client.request({ method: "tools/call", params: { name: "echo" } }, CallToolResultSchema, options)
        )
        assert.deepStrictEqual(result.content, [{ type: "text", text: "echo" }])
        const error = yield* Effect.flip(session.request(() => {
          throw new Error("before there is a promise")
        }))
        assert.strictEqual(failure(error), "ProtocolFailure")
        const slow = yield* Effect.forkChild(Effect.flip(session.request((client, options) =>
          client.callTool({ name: "slow" }, undefined, options), { timeout: "1 second" })))
        yield* TestClock.adjust("1 second")
        assert.strictEqual(failure(yield* Fiber.join(slow)), "RequestTimeout")
      }))
  })

  describe("progress", () => {
    it.effect("is handled in order, and the call waits for the last of it", () =>
      Effect.gen(function*() {
        const handled: Array<number> = []
        const { fiber } = yield* answered(3, (progress) =>
          Effect.andThen(Effect.sleep("1 second"), Effect.sync(() => void handled.push(progress))))
        yield* TestClock.adjust("2999 millis")
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual((yield* Fiber.join(fiber)).content, [{ type: "text", text: "done" }])
        assert.deepStrictEqual(handled, [1, 2, 3])
      }))

    it.effect("that is never handled holds the answer until the call's timeout, and is interrupted", () =>
      Effect.gen(function*() {
        let interrupted = false
        const { fiber, handle } = yield* answered(
          2,
          () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => void (interrupted = true)))
        )
        yield* TestClock.adjust("9999 millis")
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual((yield* Fiber.join(fiber)).content, [{ type: "text", text: "done" }])
        yield* turn
        assert.isTrue(interrupted)
        assert.deepStrictEqual(handle.retired, [])
      }))

    it.effect("whose handler ignores interruption holds neither an answer nor an interruption", () =>
      Effect.gen(function*() {
        const first = yield* answered(1, stubborn)
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual((yield* Fiber.join(first.fiber)).content, [{ type: "text", text: "done" }])
        const second = yield* answered(1, stubborn)
        const interrupting = yield* Effect.forkChild(Fiber.interrupt(second.fiber))
        yield* turn
        assert.isDefined(interrupting.pollUnsafe())
      }))

    it.effect("whose handler dies makes the call die once it is answered", () =>
      Effect.gen(function*() {
        for (
          const dying of [
            () => Effect.die("a bug"),
            (): Effect.Effect<void> => {
              throw new Error("a bug")
            }
          ]
        ) {
          const { fiber } = yield* answered(2, dying)
          assert.isTrue(Exit.hasDies(yield* Fiber.await(fiber)))
        }
      }))

    const nine = TestClock.adjust("9 seconds")

    it.effect("prolongs a call that asks for it, until no more comes", () =>
      Effect.gen(function*() {
        const { call, fiber, tell, until } = yield* reported({ timeout: "10 seconds", resetTimeoutOnProgress: true })
        for (let i = 0; i < 5; i++) yield* Effect.andThen(nine, tell)
        yield* TestClock.adjust("9999 millis")
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        const result = yield* Fiber.join(fiber)
        assert(Result.isFailure(result))
        assert.deepStrictEqual(result.failure.reason, new RequestTimeout({ requestSent: true }))
        yield* until(() => call.signal.aborted)
      }))

    it.effect("prolongs a call to ten times its timeout at most, or as long as the caller says, and is handled", () =>
      Effect.gen(function*() {
        const bounds: ReadonlyArray<readonly [ProgressOptions, number]> = [
          [{}, 100],
          [{ maxTotalTimeout: "30 seconds" }, 30],
          [{ maxTotalTimeout: Infinity }, 100]
        ]
        for (const [options, seconds] of bounds) {
          let handled = 0
          const { fiber, tell } = yield* reported({
            timeout: "10 seconds",
            resetTimeoutOnProgress: true,
            onProgress: () => Effect.sync(() => void handled++),
            ...options
          })
          for (let i = 0; i < seconds - 1; i++) yield* Effect.andThen(TestClock.adjust("1 second"), tell)
          assert.isUndefined(fiber.pollUnsafe())
          yield* TestClock.adjust("1 second")
          assert.isTrue(Result.isFailure(yield* Fiber.join(fiber)))
          assert.strictEqual(handled, seconds - 1)
        }
      }))

    it.effect("does not prolong a call that does not ask for it", () =>
      Effect.gen(function*() {
        const { fiber, tell } = yield* reported({ timeout: "10 seconds", onProgress: () => Effect.void })
        yield* Effect.andThen(nine, tell)
        yield* TestClock.adjust("1 second")
        assert.isTrue(Result.isFailure(yield* Fiber.join(fiber)))
      }))

    it.effect("leaves nothing behind of a call that was prolonged and answered", () =>
      Effect.gen(function*() {
        const { call, fiber, tell } = yield* reported({ timeout: "10 seconds", resetTimeoutOnProgress: true })
        for (let i = 0; i < 3; i++) yield* Effect.andThen(nine, tell)
        call.answer("done")
        assert.isTrue(Result.isSuccess(yield* Fiber.join(fiber)))
        yield* TestClock.adjust("1 hour")
        assert.isFalse(call.signal.aborted)
      }))

    it.effect("is forgotten, the oldest first, when it comes faster than it is handled", () =>
      Effect.gen(function*() {
        const handled: Array<number> = []
        const { fiber } = yield* answered(1_000, (progress) =>
          Effect.andThen(Effect.sleep("1 millis"), Effect.sync(() => void handled.push(progress))))
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(fiber)
        assert.strictEqual(handled.at(-1), 1_000)
        assert.isAtMost(handled.length, 260)
        assert.deepStrictEqual(
          handled,
          handled.toSorted((a, b) =>
            a - b
          )
        )
      }))

    it.effect("ends with its session", () =>
      Effect.gen(function*() {
        const { asked, close, session, until } = yield* connected()
        const fiber = yield* Effect.forkChild(Effect.flip(
          session.callTool({ name: "slow" }, { onProgress: () => Effect.never })
        ))
        yield* until(() => asked.length === 1)
        yield* Effect.promise(() => asked[0]!.progress(1))
        yield* close
        assert.strictEqual(failure(yield* Fiber.join(fiber)), "SessionClosed")
      }))
  })

  describe("liveness", () => {
    it.effect("after two timeouts in a row a session that does not answer a ping is unhealthy", () =>
      Effect.gen(function*() {
        const { asked, counts, handle, session, state, until } = yield* connected({ requestTimeout: "1 second" })
        state.ping = new Promise(() => {})
        for (const count of [1, 2]) {
          const fiber = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
          yield* until(() => asked.length === count)
          yield* TestClock.adjust("1 second")
          yield* Fiber.join(fiber)
        }
        yield* turn
        assert.strictEqual(counts.pings, 1)
        yield* TestClock.adjust("4999 millis")
        assert.deepStrictEqual(handle.retired, [])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(handle.retired, ["unhealthy"])
      }))

    it.effect("a session that answers the ping stays, and an answer in between is a sign of life", () =>
      Effect.gen(function*() {
        const { asked, counts, handle, session, until } = yield* connected({ requestTimeout: "1 second" })
        const timeout = Effect.gen(function*() {
          const before = asked.length
          const fiber = yield* Effect.forkChild(Effect.flip(session.callTool({ name: "slow" })))
          yield* until(() => asked.length === before + 1)
          yield* TestClock.adjust("1 second")
          assert.strictEqual(failure(yield* Fiber.join(fiber)), "RequestTimeout")
          yield* turn
        })
        yield* timeout
        yield* session.callTool({ name: "echo" })
        yield* timeout
        assert.strictEqual(counts.pings, 0)
        yield* timeout
        assert.strictEqual(counts.pings, 1)
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(handle.retired, [])
        yield* session.ping()
      }))
  })

  describe("lists", () => {
    it.effect("have all pages, are asked for once, and again after list_changed", () =>
      Effect.gen(function*() {
        const { counts, server, session, state } = yield* connected()
        state.pageCount = 3
        const [first, second] = yield* Effect.all([session.listTools(), session.listTools()], {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(first.tools.map((tool) => tool.name), ["tool-0", "tool-1", "tool-2"])
        assert.strictEqual(first, second)
        assert.strictEqual(yield* session.listTools(), first)
        assert.strictEqual(counts.lists, 3)
        state.pageCount = 1
        yield* Effect.promise(() => server.sendToolListChanged())
        assert.strictEqual((yield* session.listTools()).tools.length, 1)
        assert.strictEqual(counts.lists, 4)
      }))

    const kinds = [
      ["tools", "tools/list", "listTools", "sendToolListChanged"],
      ["resources", "resources/list", "listResources", "sendResourceListChanged"],
      ["resource templates", "resources/templates/list", "listResourceTemplates", "sendResourceListChanged"],
      ["prompts", "prompts/list", "listPrompts", "sendPromptListChanged"]
    ] as const
    for (const [name, method, list, changed] of kinds) {
      it.effect(`of ${name} are kept until their own list_changed`, () =>
        Effect.gen(function*() {
          const { asked, server } = makeLister()
          const session = yield* McpConnector.inProcess(() => Effect.succeed(server))(identity, makeHandle())
          const first = yield* session[list]()
          for (const [, , , other] of kinds) {
            if (other === changed) continue
            yield* Effect.promise(() => server[other]())
            assert.strictEqual(yield* session[list](), first)
          }
          assert.deepStrictEqual(asked, [method])
          yield* Effect.promise(() => server[changed]())
          const second = yield* session[list]()
          assert.notStrictEqual(second, first)
          assert.strictEqual(yield* session[list](), second)
          assert.deepStrictEqual(asked, [method, method])
        }))
    }

    it.effect("go on for those who still wait, and are cancelled when the last one leaves", () =>
      Effect.gen(function*() {
        const { counts, session, state } = yield* connected()
        const listing = yield* Deferred.make<void>()
        state.listing = Effect.runPromise(Deferred.await(listing))
        const first = yield* Effect.forkChild(session.listTools())
        const second = yield* Effect.forkChild(session.listTools({ timeout: "1 hour" }))
        yield* turn
        yield* Fiber.interrupt(first)
        yield* Deferred.succeed(listing, undefined)
        assert.strictEqual((yield* Fiber.join(second)).tools.length, 1)
        assert.strictEqual(counts.lists, 1)

        const other = yield* connected()
        other.state.listing = new Promise(() => {})
        const alone = yield* Effect.forkChild(Effect.flip(other.session.listTools({ timeout: "1 second" })))
        yield* turn
        yield* TestClock.adjust("1 second")
        assert.strictEqual(failure(yield* Fiber.join(alone)), "RequestTimeout")
        other.state.listing = Promise.resolve()
        assert.strictEqual((yield* other.session.listTools()).tools.length, 1)
        assert.strictEqual(other.counts.lists, 2)
      }))
  })

  describe("notifications", () => {
    it.effect("carry what the server says unasked, until the session ends", () =>
      Effect.gen(function*() {
        const { close, server, session } = yield* connected()
        const received = yield* Effect.forkChild(Stream.runCollect(session.notifications))
        yield* turn
        yield* Effect.promise(() => server.sendLoggingMessage({ level: "info", data: "hello" }))
        yield* Effect.promise(() => server.sendToolListChanged())
        yield* turn
        yield* close
        const exit = yield* Fiber.await(received)
        assert.isTrue(Exit.isSuccess(exit))
        const methods = Exit.isSuccess(exit) ? exit.value.map((notification) => notification.method) : []
        assert.deepStrictEqual(methods, ["notifications/message", "notifications/tools/list_changed"])
        assert.deepStrictEqual(yield* Stream.runCollect(session.notifications), [])
      }))
  })
})

// -----------------------------------------------------------------------------
// Errors
// -----------------------------------------------------------------------------

const error = (reason: McpSessionErrorReason) => new McpSessionError({ reason, method: "callTool", server: "weather" })

const status = (reason: McpSessionErrorReason) =>
  Effect.map(HttpServerRespondable.toResponse(error(reason)), (response) => response.status)

const fetchFailed = (cause: object) => Object.assign(new TypeError("fetch failed"), { cause })
const sdkError = (name: string, fields: object, message = "") => Object.assign(new Error(message), { name, ...fields })

describe("McpSessionError", () => {
  it.effect("says what happened, where, and whether to repeat it", () =>
    Effect.sync(() => {
      const sent = error(new SessionClosed({ requestSent: true }))
      assert.match(sent.message, /^callTool on "weather": the session has ended.*only if that is safe\.$/)
      assert.match(error(new SessionClosed({ requestSent: false })).message, /repeating this is safe\.$/)
      assert.strictEqual(sent.module, "McpSession")
      assert.strictEqual(sent.reference, "session-closed")
    }))

  it.effect("is told apart from an expired session by its tags alone", () =>
    Effect.sync(() => {
      assert.isTrue(McpSession.isSessionExpired(error(new SessionExpired({ requestSent: true }))))
      assert.isTrue(McpSession.isSessionExpired({ _tag: "McpSessionError", reason: { _tag: "SessionExpired" } }))
      assert.isFalse(McpSession.isSessionExpired(error(new SessionClosed({ requestSent: true }))))
      for (const other of [undefined, null, "SessionExpired", { _tag: "SessionExpired" }, { reason: {} }]) {
        assert.isFalse(McpSession.isSessionExpired(other))
      }
    }))

  it.effect("can be handled by its reason", () =>
    Effect.gen(function*() {
      const handled = yield* Effect.fail(error(new RequestTimeout({ requestSent: true }))).pipe(
        Effect.catchReason("McpSessionError", "RequestTimeout", (reason) => Effect.succeed(reason.requestSent)),
        Effect.orDie
      )
      assert.isTrue(handled)
    }))

  it.effect("answers a route with 504 for a timeout and 502 for what is broken upstream", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* status(new RequestTimeout({ requestSent: true })), 504)
      assert.strictEqual(yield* status(new SessionClosed({ requestSent: true })), 502)
    }))
})

describe("classify", () => {
  // reference/mcp-sdk.md, "Failure modes": [what happened, the rejection, what it means, whether it was sent]
  const rows: ReadonlyArray<readonly [string, unknown, string, boolean]> = [
    ["v1 and v2: a call after the end", new Error("Not connected"), "SessionClosed", false],
    ["v1: the child dies", new McpError(-32000, "Connection closed"), "SessionClosed", true],
    ["v2: the child dies", sdkError("SdkError", { code: "CONNECTION_CLOSED" }), "SessionClosed", true],
    [
      "a fetch is aborted by close()",
      new DOMException("This operation was aborted", "AbortError"),
      "SessionClosed",
      true
    ],
    [
      "the command does not exist",
      sdkError("Error", { code: "ENOENT" }, "spawn nope ENOENT"),
      "Unreachable ENOENT",
      false
    ],
    [
      "the child no longer reads its stdin",
      sdkError("Error", { code: "ERR_STREAM_DESTROYED" }),
      "Unreachable ERR_STREAM_DESTROYED",
      false
    ],
    ["v1: its own timeout", new McpError(-32001, "Request timed out", { timeout: 300 }), "RequestTimeout", true],
    ["v2: its own timeout", sdkError("SdkError", { code: "REQUEST_TIMEOUT" }), "RequestTimeout", true],
    ["v1: -32001 that the server sent", new McpError(-32001, "Session not found"), "ProtocolFailure -32001", true],
    ["v2: -32001 that the server sent", sdkError("ProtocolError", { code: -32001 }), "ProtocolFailure -32001", true],
    ["-32000 that the server sent", new McpError(-32000, "Rate limited"), "ProtocolFailure -32000", true],
    ["v1: the tool is unknown", new McpError(-32602, "Tool nope not found"), "ProtocolFailure -32602", true],
    ["connection refused", fetchFailed({ code: "ECONNREFUSED" }), "Unreachable ECONNREFUSED", false],
    ["the socket is closed mid-call", fetchFailed({ code: "UND_ERR_SOCKET" }), "Unreachable UND_ERR_SOCKET", true],
    ["a certificate nobody trusts", fetchFailed({ code: "CERT_HAS_EXPIRED" }), "Unreachable CERT_HAS_EXPIRED", false],
    [
      "v2: the era probe meets a certificate nobody trusts",
      sdkError("SdkError", {
        code: "ERA_NEGOTIATION_FAILED",
        data: { cause: fetchFailed({ code: "DEPTH_ZERO_SELF_SIGNED_CERT" }) }
      }),
      "Unreachable DEPTH_ZERO_SELF_SIGNED_CERT",
      false
    ],
    [
      "v2: the era probe fails for a reason of another kind",
      sdkError("SdkError", { code: "ERA_NEGOTIATION_FAILED", data: { cause: fetchFailed({ code: "ERR_NEW" }) } }),
      "Unreachable ERR_NEW",
      true
    ],
    [
      "v2: the era probe fails without a code",
      sdkError("SdkError", { code: "ERA_NEGOTIATION_FAILED", data: { cause: new TypeError("fetch failed") } }),
      "Unreachable FETCH_FAILED",
      true
    ],
    [
      "a certificate of another host",
      fetchFailed({ code: "ERR_TLS_CERT_ALTNAME_INVALID" }),
      "Unreachable ERR_TLS_CERT_ALTNAME_INVALID",
      false
    ],
    [
      "no TLS on the other side",
      fetchFailed({ code: "ERR_SSL_WRONG_VERSION_NUMBER" }),
      "Unreachable ERR_SSL_WRONG_VERSION_NUMBER",
      false
    ],
    [
      "no cipher in common",
      fetchFailed({ code: "ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE" }),
      "Unreachable ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE",
      false
    ],
    [
      // TLS 1.3: the client has finished its handshake, and may have sent its request, when it hears of this
      "the server wants a certificate of the client's",
      fetchFailed({ code: "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED" }),
      "Unreachable ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED",
      true
    ],
    [
      "TLS breaks in the middle",
      fetchFailed({ code: "ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC" }),
      "Unreachable ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
      true
    ],
    [
      "TLS fails under a fetch that is not undici's",
      sdkError("Error", { code: "UNABLE_TO_VERIFY_LEAF_SIGNATURE" }, "unable to verify the first certificate"),
      "Unreachable UNABLE_TO_VERIFY_LEAF_SIGNATURE",
      false
    ],
    ["a fetch that fails without a code", new TypeError("fetch failed"), "Unreachable FETCH_FAILED", true],
    [
      "v2: the era probe is refused",
      sdkError("SdkError", { code: "ERA_NEGOTIATION_FAILED", data: { cause: fetchFailed({ code: "ECONNREFUSED" }) } }),
      "Unreachable ECONNREFUSED",
      false
    ],
    [
      "SSE: refused",
      new SseError(undefined, "fetch failed: connect ECONNREFUSED 127.0.0.1:1", {} as never),
      "Unreachable ECONNREFUSED",
      false
    ],
    ["SSE: 401", new SseError(401, "Non-200 status code (401)", {} as never), "Unauthorized", true],
    ["SSE: 404 on POST", new Error("Error POSTing to endpoint (HTTP 404): gone"), "SessionExpired", true],
    ["v1: 404 with a session", new StreamableHTTPError(404, "Error POSTing to endpoint: …"), "SessionExpired", true],
    [
      "v1: 400 without a valid session",
      new StreamableHTTPError(400, "Bad Request: No valid session ID provided"),
      "SessionExpired",
      true
    ],
    ["v1: 400 for another reason", new StreamableHTTPError(400, "Parse error"), "HttpFailure 400", true],
    [
      "v2: 404 with a session",
      sdkError("SdkHttpError", { code: "CLIENT_HTTP_NOT_IMPLEMENTED", status: 404 }),
      "SessionExpired",
      true
    ],
    [
      "v2: 400 without a valid session",
      sdkError("SdkHttpError", { status: 400, data: { text: "No valid session ID" } }),
      "SessionExpired",
      true
    ],
    ["v1: 401", new StreamableHTTPError(401, "Unauthorized"), "Unauthorized", true],
    ["v2: 401", sdkError("SdkHttpError", { status: 401 }), "Unauthorized", true],
    ["401 with an auth provider", new UnauthorizedError("Unauthorized"), "Unauthorized", true],
    ["403", new StreamableHTTPError(403, "Forbidden"), "Forbidden", true],
    ["429", new StreamableHTTPError(429, "Too many"), "HttpFailure 429", true],
    ["503", sdkError("SdkHttpError", { status: 503 }), "HttpFailure 503", true],
    ["v1: a web page", new StreamableHTTPError(-1, "Unexpected content type: text/html"), "ProtocolFailure -1", true],
    [
      "a version nobody speaks",
      new Error("Server's protocol version is not supported: 1"),
      "ProtocolFailure -32603",
      true
    ],
    ["a reply of another shape", sdkError("ZodError", {}, "[{\"code\":…}]"), "ProtocolFailure -32603", true],
    [
      "an error of the server's about its own upstream",
      new McpError(-32603, "failed", { cause: { code: "ECONNREFUSED" } }),
      "ProtocolFailure -32603",
      true
    ]
  ]

  for (const [what, rejection, expected, requestSent] of rows) {
    it.effect(`${what}: ${expected}`, () =>
      Effect.sync(() => {
        const found = classify(rejection, true)
        const detail = "status" in found ? ` ${found.status}` : "code" in found ? ` ${found.code}` : ""
        assert.strictEqual(`${found._tag}${detail}`, expected)
        assert.strictEqual(found.requestSent, requestSent)
      }))
  }

  it.effect("without a session 404 is no lost session, and may be an unknown method", () =>
    Effect.sync(() => {
      assert.strictEqual(classify(new StreamableHTTPError(404, "nothing here"), false)._tag, "HttpFailure")
      const modern = sdkError("SdkHttpError", { status: 404, data: { text: "{\"error\":{\"code\":-32601}}" } })
      assert.deepInclude(classify(modern, false), { _tag: "ProtocolFailure", code: -32601 })
    }))
  it.effect("has a module that imports nothing but types", () =>
    Effect.sync(() => {
      const source = readFileSync(new URL("../src/internal/client/classify.ts", import.meta.url), "utf8")
      const code = source.replace(/\/\*.*?\*\/|^\s*\/\/.*?$/gms, "")
      const imports = code.match(/^import\b(?!\s+type\b).*|^export\b[^;"]*?\bfrom\s*".*|\b(?:import|require)\s*\(.*/gm)
      assert.deepStrictEqual([...imports ?? []], [])
    }))
})
