/**
 * A Fastify server that calls MCP tools, each caller on a session of their own.
 *
 * `npx tsx examples/fastify.ts` starts it, asks it twice, and stops it.
 */
import { Effect, Layer, ManagedRuntime } from "effect"
import { type IdentityRequest, IdentityResolver, McpConnector, SessionPool } from "effect-mcp-sessions"
import { HttpServerRespondable, HttpServerResponse } from "effect/http"
import Fastify from "fastify"
import { createRequire } from "node:module"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

// One pool for as long as the server runs
const runtime = ManagedRuntime.make(Layer.mergeAll(
  IdentityResolver.layer({ mode: "optional" }),
  SessionPool.layer({
    connect: McpConnector.stdio({ command: process.execPath, args: [everything, "stdio"] }),
    capacity: 100
  })
))

// Whatever fails knows its own response: 401 for wrong credentials, 503 when the pool is full, 502 for the MCP server
const callTool = (request: IdentityRequest, name: string, args: Record<string, unknown>) =>
  IdentityResolver.resolve(request).pipe(
    Effect.flatMap((identity) =>
      SessionPool.withSession(identity, (session) => session.callTool({ name, arguments: args }))
    ),
    Effect.map((result) => HttpServerResponse.jsonUnsafe(result)),
    Effect.catch(HttpServerRespondable.toResponse),
    Effect.map((response) => HttpServerResponse.toWeb(response))
  )

const app = Fastify()

app.post<{ Params: { name: string }; Body: Record<string, unknown> }>(
  "/tools/:name",
  { schema: { body: { type: "object" } } },
  (request, reply) => {
    // A caller who hangs up cancels the call. (Fastify's `request.signal` aborts as soon as a body has been read.)
    const hungUp = new AbortController()
    reply.raw.once("close", () => hungUp.abort())
    return runtime.runPromise(callTool(request, request.params.name, request.body), { signal: hungUp.signal })
  }
)

// Closes the sessions, and waits until their child processes are gone
app.addHook("onClose", () => runtime.dispose())

// Builds the pool now: wrong options stop the start, and do not fail each request
await runtime.context()

// --- Try it ---

const url = await app.listen({ host: "127.0.0.1", port: 0 })

const echo = async (authorization: string) => {
  const response = await fetch(`${url}/tools/echo`, {
    method: "POST",
    headers: { authorization, "content-type": "application/json" },
    body: JSON.stringify({ message: "hello" })
  })
  console.log(response.status, await response.text())
}

await echo("Bearer alice-token")
await echo("Bearer two tokens")

await app.close()
