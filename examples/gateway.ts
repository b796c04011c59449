/**
 * A gateway: MCP servers that speak over pipes, for callers who speak HTTP. `McpHttp.layer` hosts a session for each
 * conversation, and a `SessionPool` has the upstream sessions behind them: one for each caller, or one for each
 * conversation.
 *
 * `npx tsx examples/gateway.ts` starts it, has three conversations of two callers, and stops it.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { Console, Effect, Layer } from "effect"
import {
  Identity,
  IdentityResolver,
  McpConnector,
  McpHttp,
  type McpSession,
  type McpSessionError,
  type SessionInfo,
  SessionPool,
  type SessionPoolError,
  SessionRegistry
} from "effect-mcp-sessions"
import { HttpRouter, HttpServer } from "effect/http"
import { createHash } from "node:crypto"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { fileURLToPath } from "node:url"

/**
 * What a caller is told. The upstream's own error is handed on as it is: `code` and `data` are what clients act on. The
 * text of all others is for whoever runs the gateway: it goes into the log, and the caller gets another.
 */
const toCaller = (error: McpSessionError | SessionPoolError): Effect.Effect<never, Error> => {
  if (error._tag === "McpSessionError" && error.reason._tag === "ProtocolFailure") {
    const { code, data, message } = error.reason
    return Effect.fail(rpcError(code, message, data))
  }
  return Effect.andThen(
    Effect.logWarning("A call was not answered by its upstream", error.message),
    Effect.fail(rpcError(-32603, told(error)))
  )
}

const told = (error: McpSessionError | SessionPoolError): string => {
  switch (error._tag === "McpSessionError" ? error.reason._tag : error._tag) {
    case "Unauthorized":
      return "The upstream server refused your credentials"
    case "Forbidden":
      return "The upstream server does not allow you this"
    case "RequestTimeout":
    case "ConnectTimeout":
      return "The upstream server did not answer in time"
    case "PoolExhausted":
      return "The gateway is busy: try again later"
    default:
      return "The upstream server is not available"
  }
}

/** The SDK's server answers with the `code`, `message` and `data` of what a handler throws. */
const rpcError = (code: number, message: string, data?: unknown) => Object.assign(new Error(message), { code, data })

/** Runs `f` with an upstream session. */
type Upstream = <A>(
  f: (session: McpSession) => Effect.Effect<A, McpSessionError>
) => Effect.Effect<A, McpSessionError | SessionPoolError>

/** A server that has the tools of the upstream. */
const forward = (upstream: Upstream) =>
  Effect.map(Effect.context<never>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    const run = <A>(call: ReturnType<typeof upstream<A>>, options: { readonly signal: AbortSignal }) =>
      runPromise(Effect.catch(call, toCaller), options)
    const server = new Server({ name: "gateway", version: "1.0.0" }, { capabilities: { tools: {} } })
    server.setRequestHandler(
      ListToolsRequestSchema,
      (_, { signal }) => run(upstream((session) => session.listTools()), { signal })
    )
    server.setRequestHandler(
      CallToolRequestSchema,
      ({ params }, { signal }) => run(upstream((session) => session.callTool(params)), { signal })
    )
    return server
  })

/**
 * One upstream session for each caller, however many conversations they have. It is leased for each call, so that it
 * can expire or be evicted between two, and a call carries the newest credentials. What the upstream remembers of one
 * conversation it remembers in the other.
 */
export const byIdentity = Effect.fnUntraced(function*(_: SessionInfo, { identity }: McpHttp.SessionCaller) {
  const pool = yield* SessionPool
  return yield* forward((f) => Effect.flatMap(identity, (caller) => pool.withSession(caller, f)))
})

/**
 * One upstream session for each conversation, for as long as it lasts: for upstreams that remember. It is leased with
 * the session's scope, so that `initialize` answers 503 when the pool has no room, and retired with it, so that nobody
 * ever gets what it remembers.
 *
 * Its key is a digest of the session's id: keys are logged.
 */
export const bySession = Effect.fnUntraced(function*(info: SessionInfo, { identity }: McpHttp.SessionCaller) {
  const pool = yield* SessionPool
  const { credentials } = yield* identity
  const conversation = new Identity({
    key: Identity.fromKey(`session:${createHash("sha256").update(info.id).digest("base64url")}`).key,
    credentials,
    shared: false
  })
  yield* Effect.addFinalizer(() => pool.invalidate(conversation))
  const session = yield* pool.get(conversation)
  return yield* forward((f) => f(session))
})

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

const Upstreams = SessionPool.layer({
  connect: McpConnector.stdio({ command: process.execPath, args: [everything, "stdio"] }),
  capacity: 10
})

const Gateway = HttpRouter.serve(
  // The default for allowedHosts is this machine: a deployment lists its own names
  McpHttp.layer({ server: byIdentity, capacityPerOwner: 20 }),
  { disableLogger: true, disableListenLog: true }
).pipe(
  Layer.provide(IdentityResolver.layer({ mode: "required" })),
  Layer.provideMerge(Upstreams),
  Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { port: 0, host: "127.0.0.1" }))
)

// --- Try it ---

/** A conversation, which its scope ends. */
const converse = (url: URL, token: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Client({ name: "example", version: "1.0.0" })
      const transport = new StreamableHTTPClientTransport(url, {
        requestInit: { headers: { authorization: `Bearer ${token}` } }
      })
      await client.connect(transport as Parameters<typeof client.connect>[0])
      return { client, transport }
    }),
    ({ client, transport }) => Effect.promise(() => transport.terminateSession().then(() => client.close()))
  )

const main = Effect.gen(function*() {
  const { address } = yield* HttpServer.HttpServer
  const url = new URL(`http://127.0.0.1:${"port" in address ? address.port : 0}/mcp`)
  yield* Effect.scoped(Effect.gen(function*() {
    for (const [name, message] of [["alice", "one"], ["alice", "two"], ["bob", "three"]] as const) {
      const { client } = yield* converse(url, `${name}-token`)
      const { content } = yield* Effect.promise(() => client.callTool({ name: "echo", arguments: { message } }))
      yield* Console.log(`${name.padEnd(5)} ${JSON.stringify(content)}`)
    }
    const { size } = yield* SessionPool.stats
    yield* Console.log(`${yield* SessionRegistry.size} conversations, ${size} upstream servers`)
  }))
  yield* Console.log(`${yield* SessionRegistry.size} conversations when their clients have left`)
  const { status } = yield* Effect.promise(() => fetch(url, { method: "DELETE" }))
  yield* Console.log(`${status} for nobody`)
})

// When it is run, and not imported
if (process.argv[1] === fileURLToPath(import.meta.url)) await Effect.runPromise(Effect.provide(main, Gateway))
