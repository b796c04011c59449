/**
 * An MCP endpoint to make requests of, over the router's web handler or over a socket on loopback, and the server that
 * it hosts.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import type { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import { SessionRegistry } from "effect-mcp-sessions/SessionRegistry"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { createServer } from "node:http"
import type { Socket } from "node:net"

export interface Endpoint {
  /** Where the endpoint is, for clients of their own. */
  readonly url: string
  readonly fetch: (url: string | URL, init?: RequestInit) => Promise<Response>
  readonly registry: SessionRegistry["Service"]
  /** Ends the endpoint before its scope does. */
  readonly close: Effect.Effect<void>
}

export type App<R = never> = Layer.Layer<
  SessionRegistry,
  InvalidOptions,
  HttpRouter.HttpRouter | IdentityResolver | R
>

/** The identity of a request is its bearer token, and everybody without one is the same anonymous caller. */
const identities = IdentityResolver.layer()

export const web = (
  app: App,
  resolver: Layer.Layer<IdentityResolver, InvalidOptions> = identities
): Effect.Effect<Endpoint, never, Scope.Scope> =>
  Effect.gen(function*() {
    let registry: SessionRegistry["Service"] | undefined
    const { dispose, handler } = HttpRouter.toWebHandler(
      Layer.tap(Layer.orDie(Layer.provide(app, resolver)), (context) =>
        Effect.sync(() => {
          registry = Context.get(context, SessionRegistry)
        })),
      { disableLogger: true }
    )
    const close = Effect.promise(dispose)
    yield* Effect.addFinalizer(() => close)
    const fetch = (url: string | URL, init?: RequestInit) => handler(new Request(url, init))
    // It is there when the layer has been built
    yield* Effect.promise(() => fetch("http://localhost/"))
    return { url: "http://localhost/mcp", fetch, registry: registry!, close }
  })

/**
 * A server whose end waits for no connection that nobody has used: to Node these are not idle. Undici has one to spare
 * when a request was aborted, and keeps it for 3 seconds.
 */
const makeHttpServer = () => {
  const server = createServer()
  const unused = new Set<Socket>()
  server.on("connection", (connection) => {
    unused.add(connection)
    connection.once("data", () => unused.delete(connection)).once("close", () => unused.delete(connection))
  })
  const close = server.close.bind(server)
  server.close = (whenClosed) => {
    for (const connection of unused) connection.destroy()
    return close(whenClosed)
  }
  return server
}

export const socket = (
  app: App,
  resolver: Layer.Layer<IdentityResolver, InvalidOptions> = identities,
  server: Parameters<typeof NodeHttpServer.layer>[0] = makeHttpServer
): Effect.Effect<Endpoint, never, Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Scope.fork(yield* Effect.scope)
    const served = HttpRouter.serve(Layer.provide(app, resolver), { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(NodeHttpServer.layer(server, { port: 0, host: "127.0.0.1" }))
    )
    const context = yield* Effect.orDie(Layer.buildWithScope(served, scope))
    const { address } = Context.get(context, HttpServer.HttpServer)
    const port = "port" in address ? address.port : 0
    return {
      url: `http://127.0.0.1:${port}/mcp`,
      fetch: (url, init) => fetch(url, init),
      registry: Context.get(context, SessionRegistry),
      close: Scope.close(scope, Exit.void)
    }
  })

// -----------------------------------------------------------------------------
// The server
// -----------------------------------------------------------------------------

export interface Log {
  /** Names of the tools that were called. */
  readonly called: Array<string>
  /** And of those whose call was aborted. */
  readonly aborted: Array<string>
  /** Ids of the sessions whose server was made, and closed. */
  readonly opened: Array<string>
  readonly closed: Array<string>
  /** Servers that are connected, by session id. */
  readonly servers: Map<string, Server>
  /** Ends the calls of `wait`. */
  readonly release: () => void
  readonly released: Promise<void>
}

export const makeLog = (): Log => {
  let release: (() => void) | undefined
  const released = new Promise<void>((resolve) => {
    release = resolve
  })
  return {
    called: [],
    aborted: [],
    opened: [],
    closed: [],
    servers: new Map(),
    released,
    release: () => release?.()
  }
}

const content = (text: string) => ({ content: [{ type: "text", text }] })

/**
 * Its tools: `echo`, `whoami`, the session's owner, and `wait`, which waits for the log's `release`.
 */
export const makeServer = (log: Log) => (info: { readonly id: string; readonly owner: string }) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      log.opened.push(info.id)
      const server = new Server({ name: "test", version: "1.0.0" }, { capabilities: { tools: {}, logging: {} } })
      server.setRequestHandler(ListToolsRequestSchema, () => ({
        tools: ["echo", "whoami", "wait"].map((name) => ({ name, inputSchema: { type: "object" as const } }))
      }))
      server.setRequestHandler(CallToolRequestSchema, async ({ params }, { signal }) => {
        log.called.push(params.name)
        switch (params.name) {
          case "whoami":
            return content(info.owner)
          case "wait":
            signal.addEventListener("abort", () => log.aborted.push(params.name))
            await Promise.race([log.released, new Promise((resolve) => signal.addEventListener("abort", resolve))])
            return content("waited")
          default:
            return content(String(params.arguments?.["message"]))
        }
      })
      log.servers.set(info.id, server)
      return server
    }),
    () =>
      Effect.sync(() => {
        log.servers.delete(info.id)
        log.closed.push(info.id)
      })
  )
