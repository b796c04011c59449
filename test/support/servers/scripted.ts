/**
 * An HTTP server that speaks as much MCP as a test makes it, byte for byte, and counts what reaches it: what no server
 * of an SDK would ever do. It takes the handshake of either protocol era by itself, and has no stream of its own.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from "node:http"
import type { AddressInfo, Socket } from "node:net"

/** One JSON-RPC message, as it came. */
export interface Received {
  readonly id?: string | number
  readonly method: string
  readonly params?: { readonly name?: string; readonly uri?: string; readonly requestId?: unknown }
}

/** Answers one POST, however it likes. */
export type Answer = (response: ServerResponse, message: Received, request: IncomingMessage) => void

export interface Scripted {
  readonly url: string
  /** What came after the handshake, in order: the tool or resource that was asked for, or else the method. */
  readonly received: ReadonlyArray<string>
  /** Requests whose answer has not ended. */
  readonly open: () => number
  /** How often a session was ended. */
  readonly deleted: () => number
  /**
   * How what is received under this name is answered from now on, the handshake too. Anything else is answered at once.
   */
  readonly on: (name: string, answer: Answer) => void
  /** The answer to GET: 405 unless it is set. */
  readonly onGet: (answer: (response: ServerResponse, request: IncomingMessage) => void) => void
}

export interface Options {
  /** The protocol era that it says it is of. */
  readonly era?: "2025-11-25" | "2026-07-28"
  /** Makes the server, by default a plain one. */
  readonly create?: (listener: RequestListener) => Server
}

export const start = ({ create = createServer, era = "2025-11-25" }: Options = {}): Effect.Effect<
  Scripted,
  never,
  Scope.Scope
> =>
  Effect.gen(function*() {
    const received: Array<string> = []
    const answers = new Map<string, Answer>()
    const open = new Set<ServerResponse>()
    let get = noStream
    let deleted = 0

    const listener: RequestListener = (request, response) =>
      void handle(request, response).catch(() => response.destroy())

    const handle = async (request: IncomingMessage, response: ServerResponse) => {
      open.add(response)
      response.on("close", () => open.delete(response))
      response.on("error", () => {})
      if (request.method === "GET") return get(response, request)
      if (request.method !== "POST") {
        deleted++
        return void response.writeHead(200).end()
      }
      const chunks: Array<Uint8Array> = []
      for await (const chunk of request) chunks.push(chunk)
      const body = JSON.parse(Buffer.concat(chunks).toString()) as Received | ReadonlyArray<Received>
      const messages = Array.isArray(body) ? body as ReadonlyArray<Received> : [body as Received]
      const message = messages[0]!
      const handshake = answers.get(message.method)
      if (handshake !== undefined && isHandshake.has(message.method)) return handshake(response, message, request)
      switch (message.method) {
        case "initialize":
          response.setHeader("mcp-session-id", "scripted")
          return reply(response, message, {
            protocolVersion: "2025-11-25",
            capabilities: { tools: {}, resources: {}, prompts: {} },
            serverInfo: { name: "scripted", version: "1.0.0" }
          })
        case "notifications/initialized":
          return void response.writeHead(202).end()
        case "server/discover":
          if (received.length > 0) break
          return era === "2025-11-25" ? refuse(response, message, -32601) : reply(response, message, {
            resultType: "complete",
            supportedVersions: [era],
            capabilities: { tools: {}, resources: {}, prompts: {} },
            ttlMs: 0,
            cacheScope: "private"
          })
      }
      for (const { method, params } of messages) received.push(params?.name ?? params?.uri ?? method)
      const answer = answers.get(received.at(-messages.length)!)
      if (answer !== undefined) return answer(response, message, request)
      if (message.id === undefined) return void response.writeHead(202).end()
      return reply(response, message, resultOf(message))
    }

    const server = create(listener)
    const sockets = new Set<Socket>()
    server.on("connection", (socket: Socket) => {
      sockets.add(socket)
      socket.on("close", () => sockets.delete(socket))
    })
    yield* Effect.acquireRelease(
      Effect.promise(() => new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))),
      () =>
        Effect.promise(() =>
          new Promise<unknown>((resolve) => {
            server.close(resolve)
            for (const socket of sockets) socket.destroy()
          })
        )
    )
    return {
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp`,
      received,
      open: () => open.size,
      deleted: () => deleted,
      on: (name, answer) => void answers.set(name, answer),
      onGet: (answer) => {
        get = answer
      }
    }
  })

const isHandshake: ReadonlySet<string> = new Set([
  "initialize",
  "notifications/initialized",
  "server/discover"
])

const noStream: (response: ServerResponse, request: IncomingMessage) => void = (response) =>
  void response.writeHead(405).end()

/** What a well-behaved server would answer. */
export const resultOf = ({ method }: Received): object => {
  switch (method) {
    case "tools/call":
      return { resultType: "complete", content: [{ type: "text", text: "done" }] }
    case "tools/list":
      return { resultType: "complete", tools: [], ttlMs: 0, cacheScope: "private" }
    case "resources/read":
      return { resultType: "complete", contents: [], ttlMs: 0, cacheScope: "private" }
    default:
      return { resultType: "complete" }
  }
}

export const json = (response: ServerResponse, status: number, body: unknown): void =>
  void response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body))

export const reply = (response: ServerResponse, { id }: Received, result: object): void =>
  json(response, 200, { jsonrpc: "2.0", id, result })

export const refuse = (response: ServerResponse, { id }: Received, code: number, message = "no"): void =>
  json(response, 200, { jsonrpc: "2.0", id, error: { code, message } })

/** 404: the session is not known any more. */
export const forgotten: Answer = (response) =>
  json(response, 404, { jsonrpc: "2.0", id: null, error: { code: -32001, message: "Session not found" } })

/** Opens an event stream. */
export const stream = (response: ServerResponse): ServerResponse => {
  response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders()
  return response
}

export const event = (message: object, id?: string): string =>
  `${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify({ jsonrpc: "2.0", ...message })}\n\n`
