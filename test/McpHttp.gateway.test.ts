import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { Identity } from "effect-mcp-sessions/Identity"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import type { McpSession } from "effect-mcp-sessions/McpSession"
import type { McpSessionError } from "effect-mcp-sessions/McpSessionError"
import { SessionPool, type SessionPoolOptions } from "effect-mcp-sessions/SessionPool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Headers from "effect/http/Headers"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Scope from "effect/Scope"
import * as Gateway from "../examples/gateway.ts"
import { becomes, messagesOf, textOf } from "./support/answers.ts"
import { type Endpoint, socket, web } from "./support/mcpHttp.ts"
import { begin, call, initialize, post, request } from "./support/requests.ts"
import * as HttpServers from "./support/servers/http.ts"

/** An upstream that remembers: `count` counts the calls of its session, `token` says what the call was made with. */
const upstream = (log: { opened: number; closed: number }) => () =>
  Effect.acquireRelease(
    Effect.sync(() => {
      log.opened++
      let count = 0
      const server = new Server({ name: "upstream", version: "1.0.0" }, { capabilities: { tools: {} } })
      server.setRequestHandler(ListToolsRequestSchema, () => ({
        tools: ["count", "token"].map((name) => ({ name, inputSchema: { type: "object" as const } }))
      }))
      server.setRequestHandler(CallToolRequestSchema, ({ params }, { requestInfo }) => {
        if (params.name === "gone") {
          throw Object.assign(new Error("No such resource"), { code: -32002, data: { uri: "a://b" } })
        }
        const text = params.name === "count" ? String(++count) : String(requestInfo?.headers["authorization"])
        return { content: [{ type: "text", text }] }
      })
      return server
    }),
    () => Effect.sync(() => void log.closed++)
  )

/** Everybody is who they say before the dash of their token, which may change behind it. */
const identities = IdentityResolver.layerIdentify(({ headers }) =>
  Effect.sync(() => {
    const token = (Headers.fromInput(headers)["authorization"] ?? "").replace(/^Bearer /, "")
    return { key: `user:${token.split("-")[0]}`, auth: { scheme: "bearer", token } } as const
  })
)

const open = <E>(
  server: McpHttp.LayerOptions<E, SessionPool | Scope.Scope>["server"],
  options: SessionPoolOptions<McpSession, McpSessionError, Scope.Scope>,
  logger: Layer.Layer<never> = Layer.empty
) =>
  Effect.gen(function*() {
    const pool = Context.get(yield* Layer.build(SessionPool.layer(options)), SessionPool)
    const gateway = McpHttp.layer({ server }).pipe(Layer.provide([Layer.succeed(SessionPool, pool), logger]))
    return { ...yield* web(gateway, identities), pool }
  })

const say = (endpoint: Endpoint, as: string, session: string, tool: string) =>
  post(endpoint, call(tool), { as, session }).pipe(
    Effect.flatMap(textOf),
    Effect.map((body) => /"text":"([^"]*)"/.exec(body)?.[1])
  )

describe("a gateway", () => {
  it.live("with an upstream session for each caller", () =>
    Effect.gen(function*() {
      const log = { opened: 0, closed: 0 }
      const endpoint = yield* open(Gateway.byIdentity, { connect: McpConnector.inProcess(upstream(log)) })
      const [first, second] = [yield* begin(endpoint, "alice-1"), yield* begin(endpoint, "alice-2")]
      const other = yield* begin(endpoint, "bob-1")
      assert.strictEqual(log.opened, 0)
      assert.strictEqual(yield* say(endpoint, "alice-1", first, "count"), "1")
      assert.strictEqual(yield* say(endpoint, "alice-2", second, "count"), "2")
      assert.strictEqual(yield* say(endpoint, "bob-1", other, "count"), "1")
      assert.strictEqual(log.opened, 2)
      assert.deepStrictEqual(
        (yield* endpoint.pool.stats).keys.toSorted(),
        ["user:alice", "user:bob"] as ReadonlyArray<string>
      )
      // It outlives the conversation
      yield* request(endpoint, "DELETE", { as: "alice-1", session: first })
      assert.strictEqual(yield* say(endpoint, "alice-1", second, "count"), "3")
    }))

  it.live("with an upstream session for each conversation", () =>
    Effect.gen(function*() {
      const log = { opened: 0, closed: 0 }
      const endpoint = yield* open(Gateway.bySession, {
        connect: McpConnector.inProcess(upstream(log)),
        capacity: 2,
        acquireTimeout: 0
      })
      const [first, second] = [yield* begin(endpoint, "alice-1"), yield* begin(endpoint, "alice-1")]
      assert.strictEqual(yield* say(endpoint, "alice-1", first, "count"), "1")
      assert.strictEqual(yield* say(endpoint, "alice-1", first, "count"), "2")
      assert.strictEqual(yield* say(endpoint, "alice-1", second, "count"), "1")
      for (const key of (yield* endpoint.pool.stats).keys) assert.notInclude(key, first)
      // No room upstream: no session
      const full = yield* post(endpoint, initialize, { as: "bob-1" })
      assert.strictEqual(full.status, 503)
      assert.isNotNull(full.headers.get("retry-after"))
      assert.strictEqual(yield* endpoint.registry.size, 2)
      // Room again, once a conversation is over; and nobody gets what was remembered of it
      yield* request(endpoint, "DELETE", { as: "alice-1", session: first })
      yield* becomes(endpoint.pool.stats, ({ size }) => size === 1)
      const third = yield* begin(endpoint, "alice-1")
      assert.strictEqual(yield* say(endpoint, "alice-1", third, "count"), "1")
      assert.deepStrictEqual(log, { opened: 3, closed: 1 })
    }))

  it.live("hands an error of the upstream on as it is, and keeps its own texts for the log", () =>
    Effect.gen(function*() {
      const logged: Array<unknown> = []
      const logger = Logger.layer([Logger.make(({ message }) => void logged.push(message))])
      const endpoint = yield* open(Gateway.byIdentity, {
        connect: McpConnector.inProcess(upstream({ opened: 0, closed: 0 })),
        capacity: 1,
        acquireTimeout: 0
      }, logger)
      const session = yield* begin(endpoint, "alice-1")
      const answer = (tool: string): Effect.Effect<unknown> =>
        Effect.flatMap(post(endpoint, call(tool), { as: "alice-1", session }), messagesOf)
      const gone = { code: -32002, message: "No such resource", data: { uri: "a://b" } }
      assert.deepStrictEqual(yield* answer("gone"), [{ jsonrpc: "2.0", id: 1, error: gone }])
      assert.deepStrictEqual(logged, [])
      // The pool has one place, and it is taken
      yield* endpoint.pool.get(Identity.fromKey("user:carol"))
      const busy = { code: -32603, message: "The gateway is busy: try again later" }
      assert.deepStrictEqual(yield* answer("count"), [{ jsonrpc: "2.0", id: 1, error: busy }])
      assert.include(JSON.stringify(logged), "capacity")
    }))

  it.live("hands the newest credentials on, over one and the same upstream session", () =>
    Effect.gen(function*() {
      const log = { opened: 0, closed: 0 }
      const above = yield* socket(
        McpHttp.layer({ server: upstream(log) }),
        IdentityResolver.layer({ mode: "disabled" })
      )
      const endpoint = yield* open(Gateway.byIdentity, {
        connect: McpConnector.http({ url: above.url, forwardCredentials: true })
      })
      const session = yield* begin(endpoint, "alice-1")
      assert.strictEqual(yield* say(endpoint, "alice-1", session, "token"), "Bearer alice-1")
      assert.strictEqual(yield* say(endpoint, "alice-2", session, "token"), "Bearer alice-2")
      assert.strictEqual(log.opened, 1)
      assert.strictEqual(yield* above.registry.size, 1)
    }))

  it.live("answers 401 and 403 where the upstream refuses what is forwarded, 502 where it refuses the gateway", () =>
    Effect.gen(function*() {
      for (const [status, behaviour] of [[401, { authorization: "Bearer other" }], [403, { status: 403 }]] as const) {
        const above = yield* HttpServers.start(behaviour)
        const answerOf = (forwardCredentials: boolean) =>
          Effect.flatMap(
            open(Gateway.bySession, { connect: McpConnector.http({ url: above.url, forwardCredentials }) }),
            (endpoint) => post(endpoint, initialize, { as: "alice-1" })
          )
        const forwarded = yield* answerOf(true)
        assert.strictEqual(forwarded.status, status)
        assert.strictEqual(
          forwarded.headers.get("www-authenticate"),
          `Bearer realm="mcp", error="${status === 401 ? "invalid_token" : "insufficient_scope"}"`
        )
        assert.notInclude(yield* textOf(forwarded), "alice-1")
        const own = yield* answerOf(false)
        assert.strictEqual(own.status, 502)
        assert.isNull(own.headers.get("www-authenticate"))
      }
    }))
})
