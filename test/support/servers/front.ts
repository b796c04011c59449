/**
 * The inbound half of a node that is a process of its own: an endpoint whose sessions any node serves, and whose tools
 * tell what has run, and where.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { appendFileSync } from "node:fs"
import { createServer } from "node:http"
import { setTimeout as sleep } from "node:timers/promises"

/** `note` adds a line to a file and answers after `ms`, `say` tells the session's own stream a word. */
const makeServer = () =>
  Effect.sync(() => {
    const server = new Server({ name: "front", version: "1.0.0" }, { capabilities: { tools: {}, logging: {} } })
    server.setRequestHandler(ListToolsRequestSchema, () => ({
      tools: ["note", "say"].map((name) => ({ name, inputSchema: { type: "object" as const } }))
    }))
    server.setRequestHandler(CallToolRequestSchema, async ({ params: { arguments: args = {}, name } }) => {
      if (name === "say") await server.sendLoggingMessage({ level: "info", data: args["word"] })
      else {
        appendFileSync(String(args["file"]), `${String(args["line"])} ${process.pid}\n`)
        await sleep(Number(args["ms"] ?? 0))
      }
      return { content: [{ type: "text", text: `${String(args["line"])} ${process.pid}` }] }
    })
    return server
  })

/** All nodes listen on one port, each at its own address: as pods do. */
export const front = (host: string, port: number) =>
  HttpRouter.serve(
    McpHttp.layer({ server: makeServer, drainTimeout: "5 seconds" }).pipe(
      McpHttp.routed({ port }),
      Layer.provide(IdentityResolver.layer({ keySecret: Redacted.make(process.env.MCP_KEY_SECRET!) }))
    ),
    { disableLogger: true, disableListenLog: true }
  ).pipe(Layer.provide(NodeHttpServer.layer(createServer, { host, port })))
