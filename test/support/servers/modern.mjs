/**
 * An MCP server of protocol version 2026-07-28, over stdio when it is run, for `createMcpHandler` when it is imported.
 * Appends its pid to PID_FILE, so that a test knows how many were started.
 */
import { appendFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { McpServer } from "@modelcontextprotocol/server"
import { serveStdio } from "@modelcontextprotocol/server/stdio"

const text = (value) => ({ content: [{ type: "text", text: String(value) }] })

/** Calls to `slow`: how many began, and were cancelled while they ran. */
export const calls = { started: 0, cancelled: 0 }

export const makeServer = () => {
  const server = new McpServer({ name: "modern", version: "1.0.0" }, { instructions: "Be modern." })
  server.registerTool("pid", {}, () => text(process.pid))
  server.registerTool("slow", {}, async ({ mcpReq }) => {
    calls.started++
    try {
      await sleep(60_000, undefined, { signal: mcpReq.signal })
    } finally {
      calls.cancelled++
    }
    return text("done")
  })
  return server
}

if (process.argv[1]?.endsWith("modern.mjs")) {
  if (process.env.PID_FILE !== undefined) appendFileSync(process.env.PID_FILE, `${process.pid}\n`)
  serveStdio(makeServer)
}
