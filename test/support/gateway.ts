/**
 * Two ways to put a pool of upstream sessions behind the sessions of `McpHttp.layer`: one upstream session for each
 * caller, or one for each conversation.
 */
import { createHash } from "node:crypto"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import { Identity } from "effect-mcp-sessions/Identity"
import type * as McpHttp from "effect-mcp-sessions/McpHttp"
import type { McpSession } from "effect-mcp-sessions/McpSession"
import type { McpSessionError } from "effect-mcp-sessions/McpSessionError"
import { SessionPool, type SessionPoolError } from "effect-mcp-sessions/SessionPool"
import type { SessionInfo } from "effect-mcp-sessions/SessionRegistry"

/** Runs `f` with an upstream session. */
type Upstream = <A>(
  f: (session: McpSession) => Effect.Effect<A, McpSessionError>
) => Effect.Effect<A, McpSessionError | SessionPoolError>

/** A server that has the tools of the upstream. */
const forward = (upstream: Upstream) =>
  Effect.map(Effect.context<never>(), (context) => {
    const run = Effect.runPromiseWith(context)
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
 * One upstream session for each caller, however many conversations they have. It is leased for each call, so that it can
 * expire or be evicted between two, and a call carries the newest credentials. What the upstream remembers of one
 * conversation it remembers in the other.
 */
export const byIdentity = Effect.fnUntraced(function*(_: SessionInfo, { identity }: McpHttp.SessionCaller) {
  const pool = yield* SessionPool
  return yield* forward((f) => Effect.flatMap(identity, (caller) => pool.withSession(caller, f)))
})

/**
 * One upstream session for each conversation, for as long as it lasts: for upstreams that remember. It is leased with the
 * session's scope, so that `initialize` answers 503 when the pool has no room, and retired with it, so that nobody ever
 * gets what it remembers.
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
