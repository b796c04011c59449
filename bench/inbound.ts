import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import { randomUUID } from "node:crypto"
import { once } from "node:events"
import { createServer } from "node:http"
import { IdentityResolver } from "../src/IdentityResolver.ts"
import * as McpHttp from "../src/McpHttp.ts"
import { bars } from "./bars.ts"
import { makeServer } from "./servers.ts"
import { median, print, table } from "./support.ts"

export const hosted = Effect.gen(function*() {
  const app = McpHttp.layer({ server: () => Effect.sync(makeServer), response: "json" }).pipe(
    Layer.provide(IdentityResolver.layer())
  )
  const served = HttpRouter.serve(app, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { port: 0, host: "127.0.0.1" }))
  )
  const { address } = Context.get(yield* Layer.build(served), HttpServer.HttpServer)
  return `http://127.0.0.1:${"port" in address ? address.port : 0}/mcp`
})

/** What the SDK's documentation shows: a map of transports, and nobody who asks whose they are. */
export const bare = Effect.acquireRelease(
  Effect.promise(async () => {
    const transports = new Map<string, StreamableHTTPServerTransport>()
    const server = createServer((request, response) => {
      const id = request.headers["mcp-session-id"]
      const known = typeof id === "string" ? transports.get(id) : undefined
      if (known !== undefined) return void known.handleRequest(request, response)
      const transport: StreamableHTTPServerTransport = new StreamableHTTPServerTransport({
        sessionIdGenerator: () => randomUUID(),
        enableJsonResponse: true,
        onsessioninitialized: (started) => void transports.set(started, transport)
      })
      void makeServer().connect(transport).then(() => transport.handleRequest(request, response))
    })
    server.listen(0, "127.0.0.1")
    await once(server, "listening")
    return server
  }),
  (server) =>
    Effect.promise(() => {
      server.closeAllConnections()
      return new Promise((resolve) => server.close(resolve))
    })
).pipe(Effect.map((server) => {
  const address = server.address()
  return `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}/mcp`
}))

const post = (url: string, headers: Record<string, string>, body: unknown) =>
  Effect.promise(async () => {
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json", accept: "application/json, text/event-stream", ...headers },
      body: JSON.stringify(body)
    })
    await response.text()
    return response
  })

/** Opens a session; the result calls its tool, where the session began or at another node. */
export const begin = Effect.fnUntraced(function*(url: string, owner = "bench", at = url) {
  const authorization = `Bearer ${owner}`
  const response = yield* post(url, { authorization }, {
    jsonrpc: "2.0",
    id: 0,
    method: "initialize",
    params: { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "bench", version: "1" } }
  })
  const id = response.headers.get("mcp-session-id")
  if (id === null) return yield* Effect.die(`no session: ${response.status}`)
  const headers = { authorization, "mcp-session-id": id, "mcp-protocol-version": "2025-11-25" }
  yield* post(url, headers, { jsonrpc: "2.0", method: "notifications/initialized" })
  return post(at, headers, { jsonrpc: "2.0", id: 1, method: "tools/call", params: { name: "echo", arguments: {} } })
})

export const requests = 300

export const timed = (call: Effect.Effect<Response>) =>
  Effect.suspend(() => {
    const started = process.hrtime.bigint()
    return Effect.map(call, () => Number(process.hrtime.bigint() - started))
  })

/** A tool call over a kept connection, in turns: through `McpHttp`, and to the same server served bare. */
export const main = Effect.gen(function*() {
  const sides = [["SDK served bare", yield* begin(yield* bare)], [
    "McpHttp.layer",
    yield* begin(yield* hosted)
  ]] as const
  const rounds = new Map<string, Array<ReadonlyArray<number>>>(sides.map(([name]) => [name, []]))
  for (let round = 0; round < 24; round++) {
    for (const [name, call] of sides) {
      rounds.get(name)!.push(yield* Effect.forEach(Array.from({ length: requests }), () => timed(call)))
    }
  }
  const warm = Array.from(rounds, ([name, all]) => [name, all.slice(4)] as const)
  table(
    "Inbound request, JSON answers",
    new Map(warm.map(([name, all]) => [name, median(all.map(median))])),
    "SDK served bare",
    { "McpHttp.layer": bars.inbound }
  )
  for (const [name, all] of warm) {
    const times = all.flat().toSorted((a, b) => a - b)
    const perSecond = (1e9 * times.length) / times.reduce((sum, time) => sum + time, 0)
    const p99 = times[Math.floor(times.length * 0.99)]! / 1_000
    print(`  ${name.padEnd(44)} ${perSecond.toFixed(0)} requests a second, p99 ${p99.toFixed(0)} µs`)
  }
}).pipe(Effect.scoped)
