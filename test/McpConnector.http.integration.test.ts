import { assert, describe, inject, it } from "@effect/vitest"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import type * as McpConnector from "effect-mcp-sessions/McpConnector"
import { HttpFailure, McpSession, type McpSessionErrorReason, Unreachable } from "effect-mcp-sessions/McpSession"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { spawn } from "node:child_process"
import { once } from "node:events"
import type { ServerResponse } from "node:http"
import { createServer } from "node:net"
import { eventually } from "./support/answers.ts"
import { type AnyConnector, type Generation, generations } from "./support/generations.ts"
import { interruptCalls, interruptedCalls } from "./support/interrupts.ts"
import { underLoad } from "./support/load.ts"
import * as HttpServer from "./support/servers/http.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"
import { call } from "./support/tools.ts"

const { everything } = inject("referenceServers")

const identity = Identity.fromKey("alice", { credentials: Credentials.bearer("first-token") })

const open = <R>(connect: AnyConnector<R>) =>
  Effect.gen(function*() {
    const handle = makeHandle()
    const scope = yield* Scope.fork(yield* Effect.scope)
    const session = yield* Scope.provide(connect(identity, handle), scope)
    return { session, handle, close: Scope.close(scope, Exit.void) }
  })

const connectedBy = (connector: Generation) =>
(
  behaviour: Partial<HttpServer.Behaviour> = {},
  options: Partial<McpConnector.HttpOptions> = {}
) =>
  Effect.gen(function*() {
    const server = yield* HttpServer.start(behaviour)
    return { server, ...yield* open(connector.http({ url: server.url, ...options })) }
  })

/** Waits for what the other side of a socket will see, on a machine that may be busy. */
const freePort = Effect.promise(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  await once(server, "close")
  return typeof address === "object" && address !== null ? address.port : 0
})

/** The reference server, once it listens. */
const reference = (transport: "streamableHttp" | "sse", path: string) =>
  Effect.gen(function*() {
    const port = yield* freePort
    yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const child = spawn(process.execPath, [everything, transport], {
          env: { ...process.env, PORT: String(port) },
          stdio: ["ignore", "pipe", "pipe"]
        })
        child.stdout.resume()
        await new Promise<void>((resolve) => {
          child.stderr.on("data", (chunk) => String(chunk).includes(String(port)) ? resolve() : undefined)
        })
        return child
      }),
      (child) =>
        Effect.promise(async () => {
          const exited = once(child, "exit")
          child.kill("SIGKILL")
          await exited
        })
    )
    return `http://127.0.0.1:${port}${path}`
  })

for (const [sdk, connector] of generations) {
  const connected = connectedBy(connector)

  describe(`HTTP with ${sdk}`, { concurrent: true }, () => {
    it.live("works with the reference server, and cancels what is interrupted", () =>
      Effect.gen(function*() {
        const url = yield* reference("streamableHttp", "/mcp")
        const { close, session } = yield* open(connector.http({ url }))
        assert.strictEqual(session.serverInfo.name, "mcp-servers/everything")
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "Echo: hi")
        const progress: Array<number> = []
        yield* session.callTool({ name: "trigger-long-running-operation", arguments: { duration: 0.2, steps: 4 } }, {
          onProgress: (event) => Effect.sync(() => void progress.push(event.progress))
        })
        assert.deepStrictEqual(progress, [1, 2, 3, 4])
        const slow = yield* Effect.forkChild(
          call(session, "trigger-long-running-operation", { duration: 60, steps: 1 })
        )
        yield* Effect.sleep(50)
        yield* Fiber.interrupt(slow)
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "Echo: hi")
        yield* close
      }))

    it.live("ends its session on the server when its scope closes", () =>
      Effect.gen(function*() {
        const { close, handle, server, session } = yield* connected()
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
        assert.strictEqual(server.sessions.length, 1)
        yield* close
        assert.deepStrictEqual(server.sessions, [])
        assert.strictEqual(server.requests.filter((request) => request.method === "DELETE").length, 1)
        yield* eventually(() => server.open.length === 0)
        assert.deepStrictEqual(handle.retired, [])
      }))

    it.live("waits two seconds for a server that is mute on DELETE, while calls in flight fail at once", () =>
      Effect.gen(function*() {
        const { close, server, session } = yield* connected({ delete: "hang" })
        const fiber = yield* Effect.forkChild(Effect.flip(call(session, "slow", { ms: 60_000 })))
        yield* eventually(() => server.calls.started === 1)
        const closing = yield* Effect.forkChild(close)
        const error = yield* Fiber.join(fiber)
        assert.strictEqual(error.reason._tag, "SessionClosed")
        assert.isUndefined(closing.pollUnsafe(), "the close goes on when the call has failed")
        yield* Fiber.join(closing)
        assert.include(server.open, "DELETE", "the server has still not answered")
      }))

    describe("connecting", () => {
      const cases: ReadonlyArray<readonly [string, Partial<HttpServer.Behaviour>, string]> = [
        ["a server that hangs in initialize", { initialize: "hang" }, "RequestTimeout"],
        ["a server that never takes notifications/initialized", { initialized: "hang" }, "RequestTimeout"],
        ["a web page", { initialize: "html" }, "ProtocolFailure"],
        ["a server of a version nobody speaks", { initialize: "bad-version" }, "ProtocolFailure"],
        ["a server that wants other credentials", { authorization: "Bearer other" }, "Unauthorized"],
        ["a server that allows nobody", { status: 403 }, "Forbidden"],
        ["a server that is down for maintenance", { status: 503 }, "HttpFailure"],
        ["an endpoint that is not there", { status: 404 }, "HttpFailure"]
      ]
      for (const [name, behaviour, reason] of cases) {
        // Long enough for the session of a busy server to be known, and so to be ended
        const connectTimeout = reason === "RequestTimeout" ? "2 seconds" : undefined
        it.live(`to ${name} fails with ${reason} and leaves nothing open`, () =>
          Effect.gen(function*() {
            const server = yield* HttpServer.start(behaviour)
            const connect = connector.http({ url: server.url, connectTimeout })
            const error = yield* Effect.flip(open(connect))
            assert.strictEqual(error.reason._tag, reason)
            assert.strictEqual(error.method, "connect")
            yield* eventually(() => server.open.length === 0)
            assert.deepStrictEqual(server.sessions, [])
          }))
      }

      it.live("to nothing fails with Unreachable, and nothing was sent", () =>
        Effect.gen(function*() {
          const connect = connector.http({ url: `http://127.0.0.1:${yield* freePort}/mcp` })
          const error = yield* Effect.flip(open(connect))
          assert.deepStrictEqual(error.reason, new Unreachable({ code: "ECONNREFUSED", requestSent: false }))
        }))

      it.live("can be interrupted, and leaves nothing open", () =>
        Effect.gen(function*() {
          const server = yield* HttpServer.start({ initialize: "hang" })
          const fiber = yield* Effect.forkChild(open(connector.http({ url: server.url })))
          yield* eventually(() => server.open.includes("initialize"))
          yield* Fiber.interrupt(fiber)
          yield* eventually(() => server.open.length === 0)
          assert.deepStrictEqual(server.sessions, [])
        }))

      it.live("works with the same connector after it has failed", () =>
        Effect.gen(function*() {
          const server = yield* HttpServer.start()
          const connect = connector.http({ url: server.url })
          for (const behaviour of [{ status: 503 }, { initialize: "html" }] as const) {
            Object.assign(server.behaviour, behaviour)
            yield* Effect.flip(open(connect))
            Object.assign(server.behaviour, { status: undefined, initialize: "answer" })
            const { close, session } = yield* open(connect)
            assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
            yield* close
          }
          yield* server.close
          assert.strictEqual((yield* Effect.flip(open(connect))).reason._tag, "Unreachable")
          yield* server.listen
          const { session } = yield* open(connect)
          assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
        }))

      it.live("works without a stream of the server's own", () =>
        Effect.gen(function*() {
          for (const get of [404, 405] as const) {
            const { handle, session } = yield* connected({ get })
            assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
            assert.deepStrictEqual(handle.retired, [])
          }
        }))
    })

    describe("a call", () => {
      const lost: ReadonlyArray<readonly [string, HttpServer.Behaviour["call"], McpSessionErrorReason]> = [
        [
          "whose reply stream ends without the reply",
          "end-stream",
          new Unreachable({ code: "STREAM_ENDED", requestSent: true })
        ],
        [
          "whose reply stream breaks",
          "destroy-after-headers",
          new Unreachable({ code: "STREAM_ENDED", requestSent: true })
        ],
        [
          "whose connection breaks before there is a reply stream",
          "destroy-before-headers",
          new Unreachable({ code: "ECONNRESET", requestSent: true })
        ]
      ]
      for (const [name, behaviour, reason] of lost) {
        it.live(`${name} fails at once and retires the session`, () =>
          Effect.gen(function*() {
            const { handle, server, session } = yield* connected()
            server.behaviour.call = behaviour
            const error = yield* Effect.flip(call(session, "echo", { message: "hi" }))
            assert.deepStrictEqual(error.reason, reason)
            assert.deepStrictEqual(handle.retired, ["died"])
          }))
      }

      it.live("whose reply stream can be resumed waits for that, and fails once it is refused", () =>
        Effect.gen(function*() {
          const { server, session } = yield* connected()
          server.behaviour.call = "end-resumable-stream"
          server.behaviour.get = 404
          const error = yield* Effect.flip(call(session, "echo", { message: "hi" }))
          assert.deepStrictEqual(error.reason, new Unreachable({ code: "STREAM_ENDED", requestSent: true }))
          assert.isTrue(server.requests.some((request) => request.headers["last-event-id"] === "1"))
        }))

      for (const lostSession of [404, 400] as const) {
        it.live(`after the server has forgotten the session (${lostSession}) fails with SessionExpired`, () =>
          Effect.gen(function*() {
            const { close, handle, server, session } = yield* connected({ lostSession })
            yield* server.forget
            const error = yield* Effect.flip(call(session, "echo", { message: "hi" }))
            assert.strictEqual(error.reason._tag, "SessionExpired")
            assert.isTrue(McpSession.isSessionExpired(error))
            assert.deepStrictEqual(handle.retired, ["died"])
            yield* close
            assert.isFalse(server.requests.some((request) => request.method === "DELETE"))
          }))
      }

      it.live("fails with Unreachable when the server is gone", () =>
        Effect.gen(function*() {
          const { handle, server, session } = yield* connected()
          yield* server.close
          const error = yield* Effect.flip(call(session, "echo", { message: "hi" }))
          assert.strictEqual(error.reason._tag, "Unreachable")
          assert.deepStrictEqual(handle.retired, ["died"])
        }))

      it.live("that is refused keeps the session: 401, 403, 429 and 503", () =>
        Effect.gen(function*() {
          const { handle, server, session } = yield* connected()
          const refused = (status: number) =>
            Effect.gen(function*() {
              server.behaviour.status = status
              const error = yield* Effect.flip(call(session, "echo", { message: "hi" }))
              server.behaviour.status = undefined
              return error.reason
            })
          assert.strictEqual((yield* refused(401))._tag, "Unauthorized")
          assert.strictEqual((yield* refused(403))._tag, "Forbidden")
          assert.deepStrictEqual(yield* refused(429), new HttpFailure({ status: 429, requestSent: true }))
          assert.deepStrictEqual(yield* refused(503), new HttpFailure({ status: 503, requestSent: true }))
          assert.deepStrictEqual(handle.retired, [])
          assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
          assert.strictEqual(server.requestsOf("initialize").length, 1)
        }))
    })

    it.live("answers the server's requests", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { session } = yield* open(connector.http({
          url: server.url,
          elicitation: ({ message }) => Effect.succeed({ action: "accept", content: { name: message } }),
          roots: ({ key }) => Effect.succeed([{ uri: `file:///home/${key}` }])
        }))
        // The fixture asks on its own stream
        yield* eventually(() => server.open.includes("GET"))
        assert.strictEqual(yield* call(session, "roots"), "file:///home/alice")
        assert.include(yield* call(session, "elicit", { message: "who?" }), "who?")
      }))

    it.live("has the caller open what the server asks for, and hears when that is done", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const opened: Array<string> = []
        const { session } = yield* open(connector.http({
          url: server.url,
          urlElicitation: ({ elicitationId, url }, { key }) =>
            Effect.sync(() => {
              opened.push(`${key} ${elicitationId} ${url}`)
              return { action: "accept" }
            })
        }))
        yield* eventually(() => server.open.includes("GET"))
        const completed = yield* Effect.forkChild(
          Stream.runHead(
            Stream.filter(session.notifications, ({ method }) => method === "notifications/elicitation/complete")
          ),
          { startImmediately: true }
        )
        assert.strictEqual(
          yield* call(session, "consent", { url: "https://upstream.test/pay?for=this" }),
          "{\"action\":\"accept\"}"
        )
        for (
          const url of ["javascript:alert(1)", "file:///etc/passwd", "data:text/html,x", "https://a:b@upstream.test/"]
        ) {
          assert.notInclude(JSON.stringify(yield* Effect.exit(call(session, "consent", { url }))), "accept")
        }
        assert.deepStrictEqual(opened, ["alice 1 https://upstream.test/pay?for=this"])
        assert.deepInclude(Option.getOrThrow(yield* Fiber.join(completed)).params, { elicitationId: "1" })

        // It was not said that there is a form
        const { reason } = yield* Effect.flip(call(session, "elicit", { message: "who?" }))
        assert.strictEqual(reason._tag, "ProtocolFailure")
      }))

    describe("credentials", () => {
      it.live("are not forwarded unless asked for", () =>
        Effect.gen(function*() {
          const { server } = yield* connected()
          assert.isTrue(server.requests.every((request) => request.authorization === undefined))
        }))

      it.live("are forwarded as they came, and a rotated token reaches the same session", () =>
        Effect.gen(function*() {
          const { handle, server, session } = yield* connected({}, { forwardCredentials: true })
          assert.strictEqual(yield* call(session, "whoami"), "Bearer first-token")
          handle.rotate(Credentials.bearer("second-token"))
          assert.strictEqual(yield* call(session, "whoami"), "Bearer second-token")
          const ids = server.requestsOf("tools/call").map((request) => request.sessionId)
          assert.strictEqual(new Set(ids).size, 1)
          assert.strictEqual(server.requestsOf("initialize").length, 1)
        }))

      it.live("are forwarded in the header that they came in", () =>
        Effect.gen(function*() {
          const credentials = new Credentials({
            scheme: "raw",
            token: Redacted.make("key-1"),
            header: Redacted.make("key-1"),
            name: "x-api-key"
          })
          const server = yield* HttpServer.start()
          const connect = connector.http({ url: server.url, forwardCredentials: true })
          yield* connect(Identity.fromKey("bob", { credentials }), makeHandle())
          assert.isTrue(server.requests.every((request) => request.headers["x-api-key"] === "key-1"))
        }))

      it.live("that the server refuses can be replaced without losing the session", () =>
        Effect.gen(function*() {
          const { handle, server, session } = yield* connected(
            { authorization: "Bearer first-token" },
            { forwardCredentials: true }
          )
          server.behaviour.authorization = "Bearer second-token"
          assert.strictEqual((yield* Effect.flip(call(session, "whoami"))).reason._tag, "Unauthorized")
          handle.rotate(Credentials.bearer("second-token"))
          assert.strictEqual(yield* call(session, "whoami"), "Bearer second-token")
          assert.strictEqual(server.requestsOf("initialize").length, 1)
        }))

      it.live("may be made into headers by an Effect with services, for each request", () =>
        Effect.gen(function*() {
          class Vault extends Context.Service<Vault, { readonly prefix: string }>()("test/Vault") {}
          const server = yield* HttpServer.start()
          const connect = connector.http({
            url: server.url,
            headers: ({ credentials, key }) =>
              Effect.map(Vault, ({ prefix }) => ({
                authorization: `${prefix} ${key} ${Redacted.value(Option.getOrThrow(credentials).token)}`,
                "mcp-session-id": "not to be overruled"
              }))
          })
          const { handle, session } = yield* open(connect).pipe(Effect.provideService(Vault, { prefix: "Vault" }))
          assert.strictEqual(yield* call(session, "whoami"), "Vault alice first-token")
          handle.rotate(Credentials.bearer("second-token"))
          assert.strictEqual(yield* call(session, "whoami"), "Vault alice second-token")
        }))
    })

    // By the clock of the test, that stands still while a busy machine takes the calls to the server
    it.effect("calls that time out leave no stream, and are cancelled", () =>
      Effect.gen(function*() {
        const { handle, server, session } = yield* TestClock.withLive(connected({}, { requestTimeout: "500 millis" }))
        const calls = yield* Effect.forkChild(Effect.forEach(
          Array.from({ length: 20 }),
          () => Effect.flip(call(session, "slow", { ms: 60_000 })),
          { concurrency: "unbounded" }
        ))
        yield* TestClock.withLive(eventually(() => server.calls.started === 20))
        yield* TestClock.adjust("500 millis")
        const errors = yield* Fiber.join(calls)
        assert.deepStrictEqual(new Set(errors.map((error) => error.reason._tag)), new Set(["RequestTimeout"]))
        yield* TestClock.withLive(eventually(() => server.calls.cancelled === 20))
        yield* TestClock.withLive(eventually(() => server.open.every((what) => what === "GET")))
        assert.deepStrictEqual(handle.retired, [])
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
      }))

    it.live(
      `survives ${
        interruptedCalls.toLocaleString("en")
      } calls that are interrupted at random, and leaves no stream and no listener`,
      () =>
        Effect.gen(function*() {
          const { server, session } = yield* connected()
          yield* interruptCalls(connector, session, 20)
          yield* eventually(() => server.calls.answered + server.calls.cancelled === server.calls.started)
          // On a busy machine few of them get as far as the server, or later than this. This one says that it runs.
          const runs = yield* Deferred.make<void>()
          const fiber = yield* Effect.forkChild(session.callTool(
            { name: "slow", arguments: { ms: 5_000 } },
            { onProgress: () => Deferred.succeed(runs, undefined) }
          ))
          yield* Deferred.await(runs)
          const { cancelled } = server.calls
          yield* Fiber.interrupt(fiber)
          yield* eventually(() => server.calls.cancelled > cancelled)
          yield* eventually(() => server.open.every((what) => what === "GET"))
          assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
        }),
      // Alone: it keeps the one thread busy that the others' servers run on, too
      { ...underLoad, concurrent: false }
    )
  })

  describe(`SSE with ${sdk}`, { concurrent: true }, () => {
    it.live("works with the reference server", () =>
      Effect.gen(function*() {
        const url = yield* reference("sse", "/sse")
        const { session } = yield* open(connector.sse({ url }))
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "Echo: hi")
        assert.strictEqual(session.protocolVersion, "2025-11-25")
      }))

    it.live("is what a server speaks that answers 404 to initialize, and streams its endpoint", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { close, session } = yield* open(connector.http({ url: server.sseUrl, forwardCredentials: true }))
        assert.strictEqual(yield* call(session, "whoami"), "Bearer first-token")
        yield* close
        yield* eventually(() => server.open.length === 0 && server.sessions.length === 0)
      }))

    it.live("is what the reference server speaks, whose URL was taken for one of Streamable HTTP", () =>
      Effect.gen(function*() {
        const { session } = yield* open(connector.http({ url: yield* reference("sse", "/sse") }))
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "Echo: hi")
      }))

    it.live("leaves the loop to others while it reads a flood that came at once", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        const noise = Scripted.event({ method: "notifications/noise" })
        const { session } = yield* open(connector.http({
          url: server.url,
          fetch: async (url, init) => {
            if (typeof init?.body !== "string" || !init.body.includes("tools/call")) return fetch(url, init)
            const { id } = JSON.parse(init.body) as { id: number }
            const body = noise.repeat(3_200) + Scripted.event({ id, result: { content: [] } })
            return new Response(body, { headers: { "content-type": "text/event-stream" } })
          }
        }))
        let turn = 0
        let isOver = false
        const count = () => {
          turn++
          if (!isOver) setImmediate(count)
        }
        count()
        const heard: Array<number> = []
        session.client.fallbackNotificationHandler = async () => void heard.push(turn)
        yield* call(session, "tool").pipe(Effect.ensuring(Effect.sync(() => isOver = true)))
        assert.strictEqual(heard.length, 3_200)
        // Two lines each, 64 in a turn
        assert.isAtLeast(new Set(heard).size, 100)
      }))

    it.live("is what later sessions begin with, until the server is replaced by one that does not speak it", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const replaced = yield* Scripted.start()
        let url = server.sseUrl
        const requests: Array<string> = []
        const connect = connector.http({
          url,
          fetch: (requested, init) => {
            if (String(requested) !== server.sseUrl) return fetch(requested, init)
            requests.push(init?.method ?? "GET")
            return fetch(url, init)
          }
        })
        yield* Effect.scoped(open(connect))
        assert.strictEqual(requests.shift(), "POST")
        assert.strictEqual(requests.pop(), "GET")
        requests.length = 0
        yield* Effect.scoped(open(connect))
        assert.deepStrictEqual(requests, ["GET"])
        url = replaced.url
        const { session } = yield* open(connect)
        yield* call(session, "tool")
        assert.deepStrictEqual(replaced.received, ["tool"])
      }))

    for (const status of [400, 404, 405]) {
      it.live(`is not spoken by a server that answers ${status} to everything, which is what is told of it`, () =>
        Effect.gen(function*() {
          const server = yield* Scripted.start()
          const requests: Array<string> = []
          const refuse = (response: ServerResponse, method: string) => {
            requests.push(method)
            response.writeHead(status).end()
          }
          server.on("initialize", (response) => refuse(response, "POST"))
          server.on("server/discover", (response) => void response.writeHead(status).end())
          server.onGet((response) => refuse(response, "GET"))
          const error = yield* Effect.flip(open(connector.http({ url: server.url })))
          assert.deepStrictEqual(error.reason, new HttpFailure({ status, requestSent: true }))
          assert.deepStrictEqual(requests, ["POST", "GET"])
          yield* eventually(() => server.open() === 0)
        }))
    }

    it.effect("is asked for no longer than ten seconds of a server that never names its endpoint", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        server.on("initialize", (response) => void response.writeHead(404).end())
        server.on("server/discover", (response) => void response.writeHead(404).end())
        const streamed = yield* Deferred.make<void>()
        server.onGet((response) => {
          Scripted.stream(response)
          Effect.runFork(Deferred.succeed(streamed, undefined))
        })
        const fiber = yield* Effect.forkChild(Effect.flip(open(connector.http({ url: server.url }))))
        yield* Deferred.await(streamed)
        yield* TestClock.adjust("10 seconds")
        const error = yield* Fiber.join(fiber)
        assert.deepStrictEqual(error.reason, new HttpFailure({ status: 404, requestSent: true }))
        yield* TestClock.withLive(eventually(() => server.open() === 0))
      }))

    it.live("asks for the credentials that a server of the older kind asks for", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        server.on("initialize", (response) => void response.writeHead(405).end())
        server.on("server/discover", (response) => void response.writeHead(405).end())
        server.onGet((response) => void response.writeHead(401).end())
        const error = yield* Effect.flip(open(connector.http({ url: server.url })))
        assert.strictEqual(error.reason._tag, "Unauthorized")
      }))

    it.live("forwards credentials, rotated ones too, and closes its stream", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { close, handle, session } = yield* open(
          connector.sse({ url: server.sseUrl, forwardCredentials: true })
        )
        assert.strictEqual(yield* call(session, "whoami"), "Bearer first-token")
        handle.rotate(Credentials.bearer("second-token"))
        assert.strictEqual(yield* call(session, "whoami"), "Bearer second-token")
        yield* close
        yield* eventually(() => server.open.length === 0 && server.sessions.length === 0)
      }))

    it.live("ends its session with its stream, and never comes back to another one", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const { handle, session } = yield* open(connector.sse({ url: server.sseUrl }))
        const slow = yield* Effect.forkChild(Effect.flip(call(session, "slow", { ms: 60_000 })))
        yield* eventually(() => server.calls.started === 1)
        yield* server.close
        assert.strictEqual((yield* Fiber.join(slow)).reason._tag, "SessionClosed")
        assert.include(handle.retired, "died")
        const before = server.requests.length
        yield* server.listen
        // The EventSource would come back after three seconds
        yield* Effect.sleep("3500 millis")
        assert.strictEqual(server.requests.length, before)
      }))

    const cases: ReadonlyArray<readonly [string, Partial<HttpServer.Behaviour>, string]> = [
      ["a server that never names its endpoint", { sse: "no-endpoint" }, "RequestTimeout"],
      ["a server that wants other credentials", { authorization: "Bearer other" }, "Unauthorized"],
      ["a server that is down for maintenance", { status: 503 }, "HttpFailure"]
    ]
    for (const [name, behaviour, reason] of cases) {
      const connectTimeout = reason === "RequestTimeout" ? "300 millis" : undefined
      it.live(`fails to connect to ${name} with ${reason}, and leaves nothing open`, () =>
        Effect.gen(function*() {
          const server = yield* HttpServer.start(behaviour)
          const error = yield* Effect.flip(
            open(connector.sse({ url: server.sseUrl, connectTimeout }))
          )
          assert.strictEqual(error.reason._tag, reason)
          yield* eventually(() => server.open.length === 0)
        }))
    }

    it.live("fails to connect to nothing with Unreachable", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(open(connector.sse({ url: `http://127.0.0.1:${yield* freePort}/sse` })))
        assert.deepStrictEqual(error.reason, new Unreachable({ code: "ECONNREFUSED", requestSent: false }))
      }))
  })
}
