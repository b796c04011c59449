import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as McpConnector from "../src/McpConnector.ts"

/** The smallest server that has a tool. */
export const makeServer = (): Server => {
  const server = new Server({ name: "bench", version: "1" }, { capabilities: { tools: {} } })
  server.setRequestHandler(ListToolsRequestSchema, () => ({ tools: [] }))
  server.setRequestHandler(CallToolRequestSchema, () => ({ content: [{ type: "text", text: "hi" }] }))
  return server
}

export const inProcess = McpConnector.inProcess(() => Effect.sync(makeServer))
