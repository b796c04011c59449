/**
 * The server spans of `McpHttp`, and one trace through a pool, a socket and a server.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { Credentials, Identity, McpConnector, McpHttp, SessionPool } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"
import * as HttpMiddleware from "effect/http/HttpMiddleware"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import { eventually, textOf } from "./support/answers.ts"
import { inside, makeInsideLog } from "./support/guarded.ts"
import { type App, makeLog, makeServer, socket, web } from "./support/mcpHttp.ts"
import { begin, call, post, send } from "./support/requests.ts"
import { attributesOf, isFailed, makeRecorder, parentOf, type Recorder, traceparentOf } from "./support/spans.ts"

const remote = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`
const other = `00-${"c".repeat(32)}-${"d".repeat(16)}-01`

/** Starts the app with the recorder's tracer. */
const traced = (start: typeof web, app: App, { record, tracer }: Recorder) =>
  record(start(Layer.merge(app, Layer.succeed(Tracer.Tracer, tracer))))

const within = (traceparent: string, name: string) => {
  const message = call(name)
  return { ...message, params: { ...message.params, _meta: { traceparent } } }
}

/** Without the span that Effect's own server has of each HTTP request. */
const quiet = HttpMiddleware.layerTracerDisabledForUrls(["/mcp"])

const open = Effect.fnUntraced(function*(start: typeof web, response: "sse" | "json" = "sse") {
  const recorder = makeRecorder()
  const log = makeLog()
  const endpoint = yield* traced(start, McpHttp.layer({ server: makeServer(log), response }), recorder)
  return { ...recorder, log, endpoint }
})

describe.each(["sse", "json"] as const)("McpHttp spans, answered with %s", (response) => {
  it.live("are of each request, from when it is read until it has its response", () =>
    Effect.gen(function*() {
      const { endpoint, log, named } = yield* open(socket, response)
      const session = yield* begin(endpoint, "sk-live-SECRET")
      const waiting = send(endpoint, "POST", { session, as: "sk-live-SECRET" }, call("wait"))
      yield* eventually(() => log.called.includes("wait"))
      const [initialize, wait] = named("McpHttp")
      assert.strictEqual(initialize!.status._tag, "Ended")
      assert.strictEqual(wait!.status._tag, "Started")
      log.release()
      yield* textOf(yield* Effect.promise(() => waiting))
      assert.strictEqual(wait!.status._tag, "Ended")
      assert.isFalse(isFailed(wait!))
      assert.strictEqual(wait!.kind, "server")
      const { owner, ...attributes } = attributesOf(wait!)
      assert.match(String(owner), /^bearer:/)
      assert.deepStrictEqual(attributes, {
        "mcp.method.name": "tools/call",
        "jsonrpc.request.id": "1",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "wait",
        "network.transport": "tcp",
        "network.protocol.name": "http"
      })
      assert.strictEqual(initialize!.attributes.get("mcp.method.name"), "initialize")
    }))

  it.live("belong to the trace that the message names, linked to that of the HTTP request", () =>
    Effect.gen(function*() {
      const { endpoint, named } = yield* open(socket, response)
      const session = yield* begin(endpoint)
      yield* textOf(yield* post(endpoint, within(remote, "echo"), { session, headers: { traceparent: other } }))
      const span = named("McpHttp").at(-1)!
      assert.strictEqual(traceparentOf(parentOf(span)!), remote)
      const [link] = span.links
      assert.strictEqual(link?.span.traceId, "c".repeat(32))
    }))

  it.live("belong to the trace of the HTTP request if the message names none, or nonsense", () =>
    Effect.gen(function*() {
      const { endpoint, named } = yield* open(socket, response)
      const session = yield* begin(endpoint)
      for (
        const message of [call("echo"), within("00-nonsense", "echo"), within(remote.replaceAll("a", "0"), "echo")]
      ) {
        yield* textOf(yield* post(endpoint, message, { session, headers: { traceparent: other } }))
        const span = named("McpHttp").at(-1)!
        assert.strictEqual(span.traceId, "c".repeat(32))
        assert.strictEqual(parentOf(span)?._tag, "Span")
        assert.deepStrictEqual(span.links, [])
      }
    }))

  it.live("fail with the code of the error, the failure of the tool, the status of a refusal", () =>
    Effect.gen(function*() {
      const { endpoint, log, named } = yield* open(socket, response)
      const session = yield* begin(endpoint)
      yield* textOf(
        yield* post(endpoint, { jsonrpc: "2.0", id: 1, method: "prompts/get", params: { name: "p" } }, { session })
      )
      const waiting = send(endpoint, "POST", { session }, call("wait", {}, 2))
      yield* eventually(() => log.called.includes("wait"))
      yield* textOf(yield* post(endpoint, call("echo", {}, 2), { session }))
      yield* endpoint.registry.clear
      yield* textOf(yield* Effect.promise(() => waiting))
      const [, unknown, wait, twice] = named("McpHttp")
      assert.include(attributesOf(unknown!), {
        "gen_ai.prompt.name": "p",
        "error.type": "-32601",
        "rpc.response.status_code": "-32601"
      })
      assert.strictEqual(twice!.attributes.get("error.type"), "400")
      assert.strictEqual(wait!.attributes.get("error.type"), "-32000")
      assert.isTrue([unknown!, wait!, twice!].every(isFailed))
    }))
})

describe("McpHttp spans", () => {
  it.live("are none without a tracer, and the trace goes on by what the message says", () =>
    Effect.gen(function*() {
      const seen: Array<Tracer.AnySpan | undefined> = []
      const server = Effect.sync(() => {
        const sdk = new Server({ name: "spans", version: "1" }, { capabilities: { tools: {} } })
        sdk.setRequestHandler(CallToolRequestSchema, (_, extra) => {
          seen.push(Option.getOrUndefined(McpHttp.spanOf(extra)))
          return { content: [] }
        })
        return sdk
      })
      const endpoint = yield* web(Layer.merge(McpHttp.layer({ server: () => server }), quiet))
      const session = yield* begin(endpoint)
      yield* textOf(yield* post(endpoint, within(remote, "echo"), { session, headers: { traceparent: other } }))
      yield* textOf(yield* post(endpoint, call("echo"), { session, headers: { traceparent: other } }))
      yield* textOf(yield* post(endpoint, call("echo"), { session }))
      assert.deepStrictEqual(seen.map((span) => span && traceparentOf(span)), [remote, other, undefined])
      assert.deepStrictEqual(seen.map((span) => span?._tag), ["ExternalSpan", "ExternalSpan", undefined])
    }))

  it.live("belong to the trace of the HTTP header where the HTTP server has no span", () =>
    Effect.gen(function*() {
      const recorder = makeRecorder()
      const app = Layer.provideMerge(McpHttp.layer({ server: makeServer(makeLog()) }), quiet)
      const endpoint = yield* traced(web, app, recorder)
      const session = yield* begin(endpoint)
      yield* textOf(yield* post(endpoint, call("echo"), { session, headers: { traceparent: other } }))
      const span = recorder.named("McpHttp").at(-1)!
      assert.strictEqual(traceparentOf(parentOf(span)!), other)
    }))

  it.live("redact a token that its sender puts where it does not belong", () =>
    Effect.gen(function*() {
      const { endpoint, spans } = yield* open(web)
      const as = "sk-live-SECRET"
      const session = yield* begin(endpoint, as)
      yield* textOf(yield* post(endpoint, call(`echo ${as}`, {}, `id ${as}`), { as, session }))
      yield* textOf(
        yield* post(
          endpoint,
          { jsonrpc: "2.0", id: 3, method: "resources/read", params: { uri: `x://${as}/?${as}` } },
          { as, session }
        )
      )
      assert.lengthOf(spans.filter(({ name }) => name === "McpHttp"), 3)
      for (const span of spans) {
        if (span.name === "McpHttp") assert.notInclude(JSON.stringify(attributesOf(span)), "SECRET")
      }
    }))

  it.live("are there behind a guard, around those of the server inside", () =>
    Effect.gen(function*() {
      const recorder = makeRecorder()
      const app = Layer.merge(inside(makeInsideLog()), McpHttp.guard({ path: "/mcp" }))
      const endpoint = yield* traced(socket, app, recorder)
      const session = yield* begin(endpoint)
      yield* textOf(
        yield* post(endpoint, {
          ...call("echo", { message: "hi" }),
          params: { name: "echo", arguments: { message: "hi" }, _meta: { traceparent: remote } }
        }, { session })
      )
      const [initialize, echo] = recorder.named("McpHttp")
      assert.strictEqual(initialize!.attributes.get("mcp.method.name"), "initialize")
      assert.strictEqual(echo!.attributes.get("gen_ai.tool.name"), "echo")
      assert.strictEqual(traceparentOf(parentOf(echo!)!), remote)
      assert.strictEqual(echo!.status._tag, "Ended")
      assert.isFalse(isFailed(echo!))
    }))

  it.live("are one trace: from the caller through a pool and a gateway to the server behind it", () =>
    Effect.gen(function*() {
      const recorder = makeRecorder()
      const { record, spans } = recorder
      const identity = Identity.fromKey("alice", { credentials: Credentials.bearer("alices-token") })
      const behind = yield* traced(socket, McpHttp.layer({ server: makeServer(makeLog()) }), recorder)
      const gateway = McpHttp.layer({
        server: () =>
          Effect.map(Effect.context<SessionPool>(), (context) => {
            const server = new Server({ name: "gateway", version: "1" }, { capabilities: { tools: {} } })
            server.setRequestHandler(CallToolRequestSchema, ({ params }, extra) =>
              SessionPool.withSession(identity, (session) =>
                session.callTool(params)).pipe(
                  Effect.withParentSpan(Option.getOrThrow(McpHttp.spanOf(extra))),
                  Effect.runPromiseWith(context)
                ))
            return server
          })
      }).pipe(Layer.provide(Layer.orDie(SessionPool.layer({ connect: McpConnector.http({ url: behind.url }) }))))
      const front = yield* traced(socket, gateway, recorder)
      yield* SessionPool.withSession(
        identity,
        (session) => session.callTool({ name: "echo", arguments: { message: "hi" } })
      ).pipe(
        Effect.provide(Layer.orDie(SessionPool.layer({ connect: McpConnector.http({ url: front.url }) }))),
        Effect.withSpan("user"),
        record
      )
      const user = recorder.only("user")
      const calls = spans.filter((span) =>
        span.traceId === user.traceId && span.attributes.get("mcp.method.name") === "tools/call"
      )
      assert.deepStrictEqual(calls.map(({ name }) => name), [
        "McpSession.callTool",
        "McpHttp",
        "McpSession.callTool",
        "McpHttp"
      ])
      for (const [i, span] of calls.entries()) {
        assert.strictEqual(parentOf(span)?.spanId, (i === 0 ? user : calls[i - 1]!).spanId)
      }
    }))
})
