import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js"
import type { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { WebStandardStreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import { randomUUID } from "node:crypto"
import { IdentityResolver } from "../src/IdentityResolver.ts"
import * as McpHttp from "../src/McpHttp.ts"
import { SessionPool } from "../src/SessionPool.ts"
import { bars } from "./bars.ts"
import { heap } from "./memory.ts"
import { identities } from "./pools.ts"
import { inProcess, makeServer } from "./servers.ts"
import { against, median, print } from "./support.ts"

const count = 1_000

type Handle = (request: Request) => Promise<Response>

const message = (headers: Record<string, string>, body: unknown) =>
  new Request("http://localhost/mcp", {
    method: "POST",
    headers: {
      host: "localhost",
      "content-type": "application/json",
      accept: "application/json, text/event-stream",
      ...headers
    },
    body: JSON.stringify(body)
  })

/** A session that was initialized and has answered a call. */
const begin = async (handle: Handle, owner: string): Promise<void> => {
  const authorization = `Bearer ${owner}`
  const response = await handle(message({ authorization }, {
    jsonrpc: "2.0",
    id: 0,
    method: "initialize",
    params: { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "bench", version: "1" } }
  }))
  await response.text()
  const id = response.headers.get("mcp-session-id")
  if (id === null) throw new Error(`no session: ${response.status}`)
  const headers = { authorization, "mcp-session-id": id, "mcp-protocol-version": "2025-11-25" }
  await (await handle(message(headers, { jsonrpc: "2.0", method: "notifications/initialized" }))).text()
  const call = { jsonrpc: "2.0", id: 1, method: "tools/call", params: { name: "echo", arguments: {} } }
  await (await handle(message(headers, call))).text()
}

const beginAll = (handle: Handle) =>
  Effect.forEach(identities(count), ({ key }) => Effect.promise(() => begin(handle, key)), { discard: true })

/** What so many sessions take, each, while `open` keeps them. */
const bytes = <E, R>(open: Effect.Effect<() => unknown, E, R>) =>
  Effect.gen(function*() {
    const before = yield* heap
    const kept = yield* open
    const after = yield* heap
    kept()
    return (after - before) / count
  })

const bareServers = Effect.promise(async () => {
  const servers = await Promise.all(Array.from({ length: count }, async (): Promise<Server> => {
    const [, theirs] = InMemoryTransport.createLinkedPair()
    const server = makeServer()
    await server.connect(theirs)
    return server
  }))
  return () => servers
})

const pooled = Effect.gen(function*() {
  const pool = yield* SessionPool
  for (const id of identities(count)) {
    yield* pool.withSession(id, (session) => session.callTool({ name: "echo" }))
  }
  return () => pool
})

const bareHttp = Effect.gen(function*() {
  const transports = new Map<string, WebStandardStreamableHTTPServerTransport>()
  yield* beginAll(async (request) => {
    const id = request.headers.get("mcp-session-id")
    const known = id === null ? undefined : transports.get(id)
    if (known !== undefined) return known.handleRequest(request)
    const transport: WebStandardStreamableHTTPServerTransport = new WebStandardStreamableHTTPServerTransport({
      sessionIdGenerator: () => randomUUID(),
      enableJsonResponse: true,
      onsessioninitialized: (started) => void transports.set(started, transport)
    })
    await makeServer().connect(transport)
    return transport.handleRequest(request)
  })
  return () => transports
})

const hosted = Effect.gen(function*() {
  const app = McpHttp.layer({ server: () => Effect.sync(makeServer), response: "json" }).pipe(
    Layer.provide(IdentityResolver.layer()),
    Layer.provide(HttpServer.layerServices)
  )
  const { dispose, handler } = HttpRouter.toWebHandler(app, { disableLogger: true })
  yield* Effect.addFinalizer(() => Effect.promise(dispose))
  yield* beginAll((request) => handler(request))
  return () => handler
})

const show = (name: string, figure: number, note = "") =>
  print(`  ${name.padEnd(44)} ${figure.toFixed(0).padStart(6)} bytes${note}`)

/** The server of the SDK is the user's own: what a session takes beyond it is ours, and that of the SDK's client. */
export const main = Effect.gen(function*() {
  const sides = {
    server: Effect.scoped(bytes(bareServers)),
    pooled: bytes(pooled).pipe(Effect.provide(SessionPool.layer({ connect: inProcess, capacity: count }))),
    bare: Effect.scoped(bytes(bareHttp)),
    hosted: Effect.scoped(bytes(hosted))
  }
  const samples: Record<keyof typeof sides, Array<number>> = { server: [], pooled: [], bare: [], hosted: [] }
  for (let round = 0; round < 3; round++) {
    for (const name of Object.keys(sides) as Array<keyof typeof sides>) samples[name].push(yield* sides[name])
  }
  print(`\nMemory of a session that was used, of ${count.toLocaleString("en")}`)
  const [server, inPool, bare, inHost] = [samples.server, samples.pooled, samples.bare, samples.hosted].map(median)
  show("the SDK's server, in process", server!)
  show("pooled in process", inPool!)
  show("beyond the server", inPool! - server!, against("A pooled session", inPool! - server!, bars.pooledBytes))
  show("the SDK's server behind its HTTP transport", bare!)
  show("McpHttp.layer", inHost!)
  show("beyond the server", inHost! - bare!, against("An McpHttp session", inHost! - bare!, bars.hostedBytes))
})
