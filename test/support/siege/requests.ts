/**
 * Requests of the besieged server, by those who use it and those who do not.
 */
import { type Agent, type IncomingHttpHeaders, request } from "node:http"

export const paths = ["/layer", "/guard"] as const

export type Path = (typeof paths)[number]

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

export const headersOf = (token: string, session?: string): Record<string, string> => ({
  accept: "application/json, text/event-stream",
  authorization: `Bearer ${token}`,
  "mcp-protocol-version": "2025-11-25",
  ...(session === undefined ? {} : { "mcp-session-id": session })
})

/** Longer than anything may take: milliseconds. */
const patience = 40_000

export const makeAsk = (port: number) => {
  const ask = (
    agent: Agent | undefined,
    method: string,
    path: Path,
    headers: Record<string, string>,
    body?: unknown
  ): Promise<Answer> =>
    new Promise((resolve, reject) => {
      const sent = request({
        host: "127.0.0.1",
        port,
        method,
        path,
        agent: agent ?? false,
        signal: AbortSignal.timeout(patience),
        headers: { ...headers, ...(body === undefined ? {} : { "content-type": "application/json" }) }
      }, (response) => {
        let read = ""
        response.setEncoding("utf8")
        response.on("data", (chunk) => void (read += chunk))
        response.on("end", () => resolve({ status: response.statusCode!, headers: response.headers, body: read }))
        response.on("error", reject)
      })
      sent.on("error", (error: NodeJS.ErrnoException) =>
        // The server has closed a connection that was idle, as it may
        sent.reusedSocket && (error.code === "ECONNRESET" || error.code === "EPIPE")
          ? resolve(ask(agent, method, path, headers, body))
          : reject(error))
      sent.end(body === undefined ? undefined : JSON.stringify(body))
    })
  return ask
}

export const initialize = {
  jsonrpc: "2.0",
  id: 0,
  method: "initialize",
  params: { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "siege", version: "0" } }
}

export const call = (name: string, id: number, message = "") => ({
  jsonrpc: "2.0",
  id,
  method: "tools/call",
  params: { name, arguments: { message } }
})

/** Again and again, while the condition holds. */
export const whilst = async (condition: () => boolean, body: () => Promise<unknown>): Promise<void> => {
  if (!condition()) return
  await body()
  return whilst(condition, body)
}
