/**
 * Requests of an endpoint.
 */
import * as Effect from "effect/Effect"
import { textOf } from "./answers.ts"
import type * as McpHttp from "./mcpHttp.ts"

/** Where it is, and how it is reached. */
export type Endpoint = Pick<McpHttp.Endpoint, "url" | "fetch">

export const protocolVersion = "2025-11-25"

export const initialize = {
  jsonrpc: "2.0",
  id: 0,
  method: "initialize",
  params: { protocolVersion, capabilities: {}, clientInfo: { name: "test", version: "0" } }
}

export const call = (name: string, args: Record<string, unknown> = {}, id: string | number = 1) => ({
  jsonrpc: "2.0",
  id,
  method: "tools/call",
  params: { name, arguments: args }
})

export interface RequestOptions {
  readonly as?: string | undefined
  readonly session?: string | undefined
  readonly headers?: Record<string, string> | undefined
  readonly signal?: AbortSignal | undefined
}

export const headersOf = ({ as, headers, session }: RequestOptions): Record<string, string> => ({
  accept: "application/json, text/event-stream",
  ...(as === undefined ? {} : { authorization: `Bearer ${as}` }),
  ...(session === undefined ? {} : { "mcp-session-id": session }),
  ...headers
})

export const request = (endpoint: Endpoint, method: string, options: RequestOptions = {}, body?: unknown) =>
  Effect.promise(() => send(endpoint, method, options, body))

/** The same, for those who don't wait for it. */
export const send = (endpoint: Endpoint, method: string, options: RequestOptions = {}, body?: unknown) =>
  endpoint.fetch(endpoint.url, {
    method,
    headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headersOf(options) },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    ...(options.signal === undefined ? {} : { signal: options.signal })
  })

/** One request of each method in turn, the POST a call of `echo`. */
export const byEachMethod = (endpoint: Endpoint, options: RequestOptions) =>
  Effect.forEach(
    ["GET", "POST", "DELETE"],
    (method) => request(endpoint, method, options, method === "POST" ? call("echo") : undefined)
  )

export const post = (endpoint: Endpoint, body: unknown, options?: RequestOptions) =>
  request(endpoint, "POST", options, body)

/** The id of a new session. */
export const begin = (endpoint: Endpoint, as?: string) =>
  Effect.gen(function*() {
    const response = yield* post(endpoint, initialize, { as })
    yield* textOf(response)
    const id = response.headers.get("mcp-session-id")
    if (response.status !== 200 || id === null) return yield* Effect.die(new Error(`initialize: ${response.status}`))
    return id
  })

/** The id of a session that has made a request: it gives way to nobody. */
export const beginAndUse = (endpoint: Endpoint, as?: string) =>
  Effect.gen(function*() {
    const session = yield* begin(endpoint, as)
    yield* Effect.flatMap(post(endpoint, call("echo", { message: "hello" }), { as, session }), textOf)
    return session
  })
