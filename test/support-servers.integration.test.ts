/**
 * The fixtures do what they say: everything that is tested with them rests on that.
 */
import { assert, describe, inject, it } from "@effect/vitest"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js"
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { type Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import {
  type CallToolResult,
  CallToolResultSchema,
  type JSONRPCMessage,
  ToolListChangedNotificationSchema
} from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { eventually } from "./support/answers.ts"
import { descendants, inGroup, isAlive, survivors } from "./support/processes.ts"
import * as HttpServer from "./support/servers/http.ts"
import { temporaryDirectory } from "./support/temporary.ts"
import { textOf } from "./support/tools.ts"

const stdioServer = inject("stdioServer")

const call = (client: Client, name: string, args: Record<string, unknown> = {}, options = {}) =>
  Effect.promise(async () =>
    textOf(await client.callTool({ name, arguments: args }, CallToolResultSchema, options) as CallToolResult)
  )

const rejection = (promise: Promise<unknown>) =>
  Effect.promise(() => promise.then(() => "it did not reject", (cause: unknown) => String(cause)))

/** A child that is killed when the test ends, however stubborn. */
const stdio = (...behaviours: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const pidFile = join(temporaryDirectory("mcp-fixture-"), "pids")
    const transport = new StdioClientTransport({
      command: process.execPath,
      args: [...stdioServer, ...behaviours],
      env: { PID_FILE: pidFile },
      stderr: "pipe"
    })
    const client = new Client({ name: "test", version: "1.0.0" })
    const pids = () => readFileSync(pidFile, "utf8").trim().split("\n").map(Number)
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        const alive = pids().filter(isAlive)
        for (const pid of alive) process.kill(pid, "SIGKILL")
        assert.deepStrictEqual(yield* survivors(alive), [])
      })
    )
    return { transport, client, pids, connect: (options = {}) => client.connect(transport, options) }
  })

const connected = (...behaviours: ReadonlyArray<string>) =>
  Effect.tap(stdio(...behaviours), ({ connect }) => Effect.promise(() => connect()))

describe("the stdio fixture", () => {
  it.live("serves tools, and tells its pid and its environment", () =>
    Effect.gen(function*() {
      const { client, pids, transport } = yield* connected()
      assert.strictEqual(yield* call(client, "echo", { message: "hi" }), "hi")
      assert.strictEqual(yield* call(client, "pid"), String(transport.pid))
      assert.strictEqual(yield* call(client, "env", { name: "PATH" }), process.env["PATH"])
      assert.deepStrictEqual(pids(), [transport.pid])
      assert.include(descendants(), transport.pid)
      yield* Effect.promise(() => client.close())
      assert.deepStrictEqual(yield* survivors(pids(), 500), [])
    }))

  it.live("counts the cancels that it gets, reports progress and announces new tools", () =>
    Effect.gen(function*() {
      const { client, transport } = yield* connected()
      const progress: Array<unknown> = []
      // On the wire: of what it reads together with the answer the SDK's client hands on nothing
      const deliver = transport.onmessage!
      const onmessage = (message: JSONRPCMessage) => {
        if ("method" in message && message.method === "notifications/progress") {
          progress.push(message.params?.["progress"])
        }
        deliver(message)
      }
      Object.assign(transport, { onmessage })
      yield* call(client, "slow", { ms: 100 }, { onprogress: () => undefined })
      assert.deepStrictEqual(progress, [1, 2, 3, 4, 5, 6, 7, 8, 9])
      yield* rejection(
        client.callTool({ name: "slow", arguments: { ms: 5_000 } }, CallToolResultSchema, { timeout: 50 })
      )
      assert.strictEqual(yield* call(client, "cancelled"), "1")
      assert.deepStrictEqual(JSON.parse(yield* call(client, "calls")), {
        started: 2,
        answered: 1,
        cancelled: 1,
        strayCancels: 0
      })
      yield* call(client, "grow", { name: "brand-new" })
      const { tools } = yield* Effect.promise(() => client.listTools())
      assert.include(tools.map((tool) => tool.name), "brand-new")
    }))

  it.live("counts each call and each cancel once, however close they come", () =>
    Effect.gen(function*() {
      const { client } = yield* connected()
      yield* Effect.forEach(
        Array.from({ length: 60 }, (_, index) => index),
        (index) =>
          Effect.callback<void>((resume) => {
            const controller = new AbortController()
            void client.callTool({ name: "slow", arguments: { ms: 10 } }, CallToolResultSchema, {
              signal: controller.signal
            }).catch(() => {}).then(() => resume(Effect.void))
            setTimeout(() => controller.abort(), index % 20)
            if (index % 6 === 0) controller.abort()
          }),
        { concurrency: "unbounded" }
      )
      const calls = JSON.parse(yield* call(client, "calls"))
      assert.strictEqual(calls.started, 60)
      assert.strictEqual(calls.answered + calls.cancelled, 60)
      assert.isAbove(calls.cancelled, 9)
    }))

  it.live("can exit at start, and hang in initialize", () =>
    Effect.gen(function*() {
      const dead = yield* stdio("exit-at-start")
      assert.include(yield* rejection(dead.connect()), "Connection closed")
      const mute = yield* stdio("hang-initialize")
      assert.include(yield* rejection(mute.connect({ timeout: 3_000 })), "timed out")
      assert.deepStrictEqual(yield* survivors(mute.pids(), 1_000), [])
    }))

  it.live("can die in the middle of a call, by exit and by signal", () =>
    Effect.gen(function*() {
      for (const tool of ["die", "kill"]) {
        const { client, pids } = yield* connected()
        assert.include(yield* rejection(client.callTool({ name: tool })), "Connection closed")
        assert.deepStrictEqual(yield* survivors(pids(), 500), [])
      }
    }))

  it.live("can ignore SIGTERM and the end of its stdin", () =>
    Effect.gen(function*() {
      const { client, pids } = yield* connected("stubborn")
      const closing = client.close()
      process.kill(pids()[0]!, "SIGTERM")
      assert.lengthOf(yield* survivors(pids(), 500), 1)
      process.kill(pids()[0]!, "SIGKILL")
      yield* Effect.promise(() => closing)
    }))

  it.live("can leave a grandchild behind that holds its pipes, in its group or out of it", () =>
    Effect.gen(function*() {
      for (const [behaviour, sameGroup] of [["grandchild", true], ["detached-grandchild", false]] as const) {
        const { client, pids } = yield* connected(behaviour)
        const grandchild = Number(yield* call(client, "grandchild"))
        const [child] = pids()
        assert.deepStrictEqual(pids(), [child, grandchild])
        assert.deepStrictEqual(descendants(child), [grandchild])
        assert.strictEqual(inGroup(grandchild).includes(grandchild), !sameGroup)
        let closed = false
        Object.assign(client, { onclose: () => void (closed = true) })
        process.kill(child!, "SIGKILL")
        assert.deepStrictEqual(yield* survivors([child!], 1_000), [])
        yield* Effect.sleep(100)
        assert.isTrue(isAlive(grandchild))
        assert.isFalse(closed)
      }
    }))

  it.live("can print garbage on stdout, and deadlock on a stderr that nobody reads", () =>
    Effect.gen(function*() {
      const noisy = yield* connected("garbage")
      yield* call(noisy.client, "garbage")
      assert.strictEqual(yield* call(noisy.client, "echo", { message: "still here" }), "still here")
      const flooding = yield* stdio("flood-stderr")
      const connecting = flooding.connect()
      assert.include(
        yield* Effect.promise(() =>
          Promise.race([connecting, Effect.runPromise(Effect.as(Effect.sleep(700), "deadlock"))])
        ),
        "deadlock"
      )
      flooding.transport.stderr?.on("data", () => {})
      yield* Effect.promise(() => connecting)
    }))

  it.live("can close its stdout and live", () =>
    Effect.gen(function*() {
      const { client, pids } = yield* connected()
      assert.include(
        yield* rejection(client.callTool({ name: "close-stdout" }, CallToolResultSchema, { timeout: 200 })),
        "timed out"
      )
      assert.isTrue(isAlive(pids()[0]!))
    }))
})

/** A client of the fixture that is closed with the test. */
const http = (server: HttpServer.HttpFixture, headers: Record<string, string> = {}) =>
  Effect.gen(function*() {
    const transport = new StreamableHTTPClientTransport(new URL(server.url), {
      requestInit: { headers },
      reconnectionOptions: {
        initialReconnectionDelay: 10,
        maxReconnectionDelay: 10,
        reconnectionDelayGrowFactor: 1,
        maxRetries: 1
      }
    })
    const client = new Client({ name: "test", version: "1.0.0" })
    yield* Effect.addFinalizer(() => Effect.promise(() => client.close()))
    return { client, transport, connect: (options = {}) => client.connect(transport as Transport, options) }
  })

const connectedTo = (server: HttpServer.HttpFixture, headers?: Record<string, string>) =>
  Effect.tap(http(server, headers), ({ connect }) => Effect.promise(() => connect()))

describe("the HTTP fixture", () => {
  it.live("serves tools in sessions, and records what was on the wire", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      const { client, transport } = yield* connectedTo(server, { authorization: "Bearer one" })
      assert.strictEqual(yield* call(client, "whoami"), "Bearer one")
      assert.deepStrictEqual(server.sessions, [transport.sessionId ?? "none"])
      yield* eventually(() => server.open.includes("GET"))
      let changed = false
      client.setNotificationHandler(ToolListChangedNotificationSchema, () => void (changed = true))
      yield* call(client, "grow", { name: "brand-new" })
      yield* eventually(() => changed)
      yield* Effect.promise(() => transport.terminateSession())
      assert.deepStrictEqual(server.sessions, [])
      assert.deepStrictEqual(
        server.requests.map(({ authorization, method, rpc, sessionId, status }) => [
          rpc ?? method,
          sessionId === undefined,
          authorization,
          status
        ]).filter(([what]) => what !== "GET"),
        [
          ["initialize", true, "Bearer one", 200],
          ["notifications/initialized", false, "Bearer one", 202],
          ["tools/call", false, "Bearer one", 200],
          ["tools/call", false, "Bearer one", 200],
          ["DELETE", false, "Bearer one", 200]
        ]
      )
    }))

  it.live("counts the cancels that it gets", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      const { client } = yield* connectedTo(server)
      const cancel = new AbortController()
      const options = { signal: cancel.signal }
      const slow = client.callTool({ name: "slow", arguments: { ms: 60_000 } }, CallToolResultSchema, options)
      yield* eventually(() => server.calls.started === 1)
      cancel.abort()
      yield* rejection(slow)
      yield* eventually(() => server.calls.cancelled === 1)
      assert.strictEqual(server.calls.started, 1)
    }))

  it.live("can forget its sessions, and answer them 404 or 400", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      const { client } = yield* connectedTo(server)
      yield* server.forget
      assert.match(yield* rejection(client.ping()), /-32001.*Session not found/)
      server.behaviour.lostSession = 400
      assert.include(yield* rejection(client.ping()), "No valid session ID provided")
      assert.deepStrictEqual(server.requestsOf("ping").map((request) => request.status), [404, 400])
    }))

  it.live("can be restarted at its port", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      const { client } = yield* connectedTo(server)
      yield* server.close
      assert.strictEqual(yield* server.connections, 0)
      assert.include(yield* rejection(client.ping()), "fetch failed")
      yield* server.listen
      assert.include(yield* rejection(client.ping()), "Session not found")
      assert.strictEqual(yield* call((yield* connectedTo(server)).client, "echo", { message: "hi" }), "hi")
    }))

  it.live("can hang in initialize and after it, and answer it with nonsense", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start({ initialize: "hang" })
      assert.include(yield* rejection((yield* http(server)).connect({ timeout: 100 })), "timed out")
      server.behaviour.initialize = "html"
      assert.include(yield* rejection((yield* http(server)).connect()), "Unexpected content type")
      server.behaviour.initialize = "bad-version"
      assert.include(yield* rejection((yield* http(server)).connect()), "protocol version is not supported")
      server.behaviour.initialize = "answer"
      server.behaviour.initialized = "hang"
      const stuck = yield* http(server)
      const connecting = rejection(stuck.connect({ timeout: 1_500 }))
      assert.strictEqual(
        yield* Effect.timeoutOrElse(connecting, { duration: 2_500, orElse: () => Effect.succeed("never") }),
        "never"
      )
    }))

  it.live("can end a call's stream with no answer, and reset the socket before and after its headers", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start({ get: 405 })
      const { client } = yield* connectedTo(server)
      const failure = (manner: HttpServer.Behaviour["call"], timeout = 150) => {
        server.behaviour.call = manner
        return rejection(client.callTool({ name: "echo" }, CallToolResultSchema, { timeout }))
      }
      assert.include(yield* failure("destroy-before-headers", 10_000), "fetch failed")
      assert.include(yield* failure("destroy-after-headers"), "timed out")
      assert.include(yield* failure("end-stream"), "timed out")
      assert.include(yield* failure("end-resumable-stream"), "timed out")
      assert.include(yield* failure("hang"), "timed out")
      assert.deepStrictEqual(server.requestsOf("tools/call").map((request) => request.status), [
        undefined,
        200,
        200,
        200,
        undefined
      ])
    }))

  it.live("can refuse a token, or everything", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start({ authorization: "Bearer good" })
      assert.include(yield* rejection((yield* http(server, { authorization: "Bearer bad" })).connect()), "Unauthorized")
      const { client } = yield* connectedTo(server, { authorization: "Bearer good" })
      for (const status of [403, 429, 503]) {
        server.behaviour.status = status
        assert.include(yield* rejection(client.ping()), "Not now")
        assert.strictEqual(server.requests.at(-1)?.status, status)
      }
      server.behaviour.status = undefined
      assert.deepStrictEqual(yield* Effect.promise(() => client.ping()), {})
    }))

  it.live("can be mute on DELETE, and have no stream of its own", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start({ delete: "hang", get: 404 })
      const { client, transport } = yield* connectedTo(server)
      yield* eventually(() => server.requests.some((request) => request.method === "GET" && request.status === 404))
      void transport.terminateSession().catch(() => {})
      yield* eventually(() => server.open.includes("DELETE"))
      assert.lengthOf(server.sessions, 1)
      yield* Effect.promise(() => client.close())
      yield* eventually(() => server.open.length === 0)
    }))

  it.live("serves the SSE transport, or opens its stream and sends no endpoint", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      const sse = () => {
        const transport = new SSEClientTransport(new URL(server.sseUrl), {
          requestInit: { headers: { authorization: "Bearer one" } }
        })
        const client = new Client({ name: "test", version: "1.0.0" })
        return Effect.acquireRelease(
          Effect.succeed({ client, transport }),
          () => Effect.promise(() => transport.close())
        )
      }
      const { client, transport } = yield* sse()
      yield* Effect.promise(() => client.connect(transport))
      assert.strictEqual(yield* call(client, "whoami"), "Bearer one")
      assert.lengthOf(server.sessions, 1)
      server.behaviour.sse = "no-endpoint"
      const mute = yield* sse()
      void mute.client.connect(mute.transport).catch(() => {})
      yield* eventually(() => server.open.length === 2)
    }))

  it.live("is gone when its scope closes, whatever is connected to it", () =>
    Effect.gen(function*() {
      const url = yield* Effect.scoped(
        Effect.gen(function*() {
          const server = yield* HttpServer.start({ call: "hang" })
          const { client } = yield* connectedTo(server)
          void client.callTool({ name: "echo" }).catch(() => {})
          yield* eventually(() => server.open.includes("tools/call"))
          return server.url
        })
      )
      assert.include(yield* rejection(fetch(url)), "fetch failed")
    }))
})
