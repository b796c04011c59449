/**
 * An Express server that calls MCP tools, each caller on a session of their own.
 *
 * `npx tsx examples/express.ts` starts it, asks it twice, and stops it.
 */
import { Effect, Layer, ManagedRuntime, Schema } from "effect"
import { type IdentityRequest, IdentityResolver, McpConnector, SessionPool } from "effect-mcp-sessions"
import { HttpServerRespondable, HttpServerResponse } from "effect/http"
import express from "express"
import { once } from "node:events"
import { createRequire } from "node:module"
import type { AddressInfo } from "node:net"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

// One pool for as long as the server runs
const runtime = ManagedRuntime.make(Layer.mergeAll(
  IdentityResolver.layer({ mode: "optional" }),
  SessionPool.layer({
    connect: McpConnector.stdio({ command: process.execPath, args: [everything, "stdio"] }),
    capacity: 100
  })
))

const Arguments = Schema.Record(Schema.String, Schema.Unknown)
const internalError = HttpServerResponse.empty({ status: 500 })

// Whatever fails knows its own response: 400 for wrong arguments, 401 for wrong credentials, 503 when the pool is full,
// 502 for the MCP server
const callTool = (request: IdentityRequest, name: string, body: unknown) =>
  Effect.gen(function*() {
    const identity = yield* IdentityResolver.resolve(request)
    const args = yield* Schema.decodeUnknownEffect(Arguments)(body)
    const result = yield* SessionPool.withSession(identity, (session) => session.callTool({ name, arguments: args }))
    return HttpServerResponse.jsonUnsafe(result)
  }).pipe(
    Effect.catch((error) => HttpServerRespondable.toResponseOrElse(error, internalError)),
    Effect.map((response) => HttpServerResponse.toWeb(response))
  )

const app = express()

// oxlint-disable-next-line oxc/no-async-endpoint-handlers -- Express 5 waits for them
app.post("/tools/:name", express.json(), async (request, response) => {
  // A caller who hangs up cancels the call
  const hungUp = new AbortController()
  response.once("close", () => hungUp.abort())
  const answer = await runtime.runPromise(callTool(request, request.params.name, request.body), {
    signal: hungUp.signal
  })
  response.status(answer.status).set(Object.fromEntries(answer.headers)).send(await answer.text())
})

// Builds the pool now: wrong options stop the start, and do not fail each request
await runtime.context()

// --- Try it ---

const server = app.listen(0, "127.0.0.1")
await once(server, "listening")
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`

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

server.close()
// Closes the sessions, and waits until their child processes are gone
await runtime.dispose()
