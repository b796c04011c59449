/**
 * An MCP server over Streamable HTTP, in this process, whose manners can be changed while it runs. It keeps a log of
 * every request, so that a test can assert what was on the wire. The deprecated SSE transport is served beside it.
 */
import { SSEServerTransport } from "@modelcontextprotocol/sdk/server/sse.js"
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import { type AddressInfo } from "node:net"
import { type Calls, makeCalls, makeServer, text } from "./tools.mjs"

/**
 * What the server does with the requests that it gets from now on.
 */
export interface Behaviour {
  /** `initialize`: `html` is a 200 that is a web page, `bad-version` an answer in a protocol version nobody speaks. */
  initialize: "answer" | "hang" | "html" | "bad-version"
  /** `notifications/initialized`. */
  initialized: "answer" | "hang"
  /**
   * `tools/call`. `end-stream` sends the headers of an SSE stream and ends it in peace with no answer in it,
   * `end-resumable-stream` the same after an event with an id; both `destroy`s reset the socket.
   */
  call: "answer" | "hang" | "end-stream" | "end-resumable-stream" | "destroy-before-headers" | "destroy-after-headers"
  /** What a session id that is unknown is answered: 404 as specified, or 400 as server-everything does. */
  lostSession: 404 | 400
  /** Every request whose `authorization` header is not this one is answered 401. */
  authorization: string | undefined
  /** What a request is answered in place of all else: a status, with which challenge, and in which words. */
  refuse:
    | ((request: RecordedRequest) => readonly [status: number, challenge: string, said?: string] | undefined)
    | undefined
  /** JSON documents that anybody may read, by their path. */
  documents: Readonly<Record<string, unknown>>
  /** Every request is answered this status: 403, 429, 503. */
  status: number | undefined
  /** GET, the server's own stream. */
  get: "answer" | 404 | 405
  /** DELETE, the end of a session. */
  delete: "answer" | "hang" | 405
  /** GET of the SSE transport: with `no-endpoint` the stream opens and the first event never comes. */
  sse: "answer" | "no-endpoint"
}

export interface RecordedRequest {
  readonly method: string
  readonly path: string
  readonly sessionId: string | undefined
  readonly authorization: string | undefined
  readonly headers: IncomingMessage["headers"]
  /** The JSON-RPC method in the body. */
  readonly rpc: string | undefined
  /** The status of the answer, once its headers were sent. */
  status: number | undefined
}

export interface HttpFixture {
  readonly url: string
  readonly sseUrl: string
  readonly behaviour: Behaviour
  /** In order of arrival. */
  readonly requests: ReadonlyArray<RecordedRequest>
  /** The requests of one JSON-RPC method. */
  readonly requestsOf: (rpc: string) => ReadonlyArray<RecordedRequest>
  /** The ids of the sessions that the server holds now; those of the SSE transport too. */
  readonly sessions: ReadonlyArray<string>
  readonly calls: Calls
  /** Requests that have not been answered to the end, by what they are: `GET`, `DELETE`, or the JSON-RPC method. */
  readonly open: ReadonlyArray<string>
  readonly connections: Effect.Effect<number>
  /** Forgets every session, as a restarted server would, and closes their streams. */
  readonly forget: Effect.Effect<void>
  /** Stops listening and resets every connection; `listen` brings it back at the same port, with no sessions. */
  readonly close: Effect.Effect<void>
  readonly listen: Effect.Effect<void>
}

interface Session {
  readonly transport: StreamableHTTPServerTransport | SSEServerTransport
  readonly close: () => Promise<void>
}

/**
 * Starts a server on a free port of 127.0.0.1, that is closed with its scope, whatever is still connected to it.
 */
export const start = (options: Partial<Behaviour> = {}): Effect.Effect<HttpFixture, never, Scope.Scope> =>
  Effect.gen(function*() {
    const behaviour: Behaviour = {
      initialize: "answer",
      initialized: "answer",
      call: "answer",
      lostSession: 404,
      authorization: undefined,
      refuse: undefined,
      documents: {},
      status: undefined,
      get: "answer",
      delete: "answer",
      sse: "answer",
      ...options
    }
    const calls = makeCalls()
    const requests: Array<RecordedRequest> = []
    const sessions = new Map<string, Session>()
    const open = new Map<ServerResponse, string>()

    const newServer = () =>
      makeServer(calls, {
        whoami: { run: (_, extra) => text(extra.requestInfo?.headers["authorization"] ?? "") }
      })

    const newTransport = async () => {
      const { server, watch } = newServer()
      const transport = watch(
        new StreamableHTTPServerTransport({
          sessionIdGenerator: () => randomUUID(),
          onsessioninitialized: (id) => void sessions.set(id, { transport, close: () => server.close() }),
          onsessionclosed: (id) => void sessions.delete(id)
        })
      )
      // Its optional callbacks are written in the SDK without `| undefined`, unlike those of the SDK's own interface.
      await server.connect(transport as Parameters<typeof server.connect>[0])
      return transport
    }

    const handleSse = async (request: IncomingMessage, response: ServerResponse, body: unknown) => {
      if (request.method === "POST") {
        const id = new URL(request.url ?? "", "http://localhost").searchParams.get("sessionId") ?? ""
        const session = sessions.get(id)
        return session?.transport instanceof SSEServerTransport
          ? session.transport.handlePostMessage(request, response, body)
          : answer(response, 404, "Session not found")
      }
      if (behaviour.sse === "no-endpoint") return startStream(response)
      const { server, watch } = newServer()
      const transport = watch(new SSEServerTransport("/sse", response))
      sessions.set(transport.sessionId, { transport, close: () => server.close() })
      response.on("close", () => sessions.delete(transport.sessionId))
      return server.connect(transport)
    }

    const handleStreamable = async (request: IncomingMessage, response: ServerResponse, body: unknown, rpc = "") => {
      const id = request.headers["mcp-session-id"]
      if (request.method === "GET" && behaviour.get !== "answer") return answer(response, behaviour.get, "No stream")
      if (request.method === "DELETE") {
        if (behaviour.delete === "hang") return
        if (behaviour.delete !== "answer") return answer(response, behaviour.delete, "Sessions can't be ended")
      }
      if (rpc === "initialize") {
        switch (behaviour.initialize) {
          case "hang":
            return
          case "html":
            return void response.writeHead(200, { "content-type": "text/html" }).end("<h1>It works!</h1>")
          case "bad-version":
            return answerJson(response, 200, {
              id: (body as { readonly id: number }).id,
              result: { protocolVersion: "1999-12-31", capabilities: {}, serverInfo: { name: "old", version: "0" } }
            })
          case "answer":
            return (await newTransport()).handleRequest(request, response, body)
        }
      }
      if (rpc === "notifications/initialized" && behaviour.initialized === "hang") return
      const session = typeof id === "string" ? sessions.get(id) : undefined
      if (!(session?.transport instanceof StreamableHTTPServerTransport)) {
        return behaviour.lostSession === 404
          ? answer(response, 404, "Session not found", -32001)
          : answer(response, 400, "Bad Request: No valid session ID provided")
      }
      if (rpc === "tools/call") {
        switch (behaviour.call) {
          case "hang":
            return
          case "end-stream":
            return void startStream(response).end()
          case "end-resumable-stream":
            return void startStream(response).end("id: 1\ndata: \n\n")
          case "destroy-before-headers":
            return void request.socket.resetAndDestroy()
          case "destroy-after-headers":
            startStream(response)
            return void setTimeout(() => request.socket.resetAndDestroy(), 20)
        }
      }
      return session.transport.handleRequest(request, response, body)
    }

    const handle = async (request: IncomingMessage, response: ServerResponse) => {
      const body = await readJson(request)
      const rpc = rpcMethod(body)
      const { pathname } = new URL(request.url ?? "", "http://localhost")
      const id = request.headers["mcp-session-id"]
      const record: RecordedRequest = {
        method: request.method ?? "",
        path: pathname,
        sessionId: typeof id === "string" ? id : undefined,
        authorization: request.headers.authorization,
        headers: request.headers,
        rpc,
        status: undefined
      }
      requests.push(record)
      open.set(response, rpc ?? record.method)
      response.on("close", () => {
        open.delete(response)
        if (response.headersSent) record.status = response.statusCode
      })
      if (behaviour.status !== undefined) return answer(response, behaviour.status, "Not now")
      const document = behaviour.documents[pathname]
      if (document !== undefined) {
        return void response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(document))
      }
      const refusal = behaviour.refuse?.(record)
      if (refusal !== undefined) {
        response.setHeader("www-authenticate", refusal[1])
        return answer(response, refusal[0], refusal[2] ?? "Refused")
      }
      if (behaviour.authorization !== undefined && record.authorization !== behaviour.authorization) {
        response.setHeader("www-authenticate", "Bearer error=\"invalid_token\"")
        return answer(response, 401, "Unauthorized")
      }
      return pathname === "/sse"
        ? handleSse(request, response, body)
        : handleStreamable(request, response, body, rpc)
    }
    // A client that goes away while it sends is no failure of a test.
    const server = createServer((request, response) => void handle(request, response).catch(() => response.destroy()))

    const forget = Effect.promise(async () => {
      const forgotten = Array.from(sessions.values())
      sessions.clear()
      await Promise.all(forgotten.map((session) => session.close()))
    })
    const close = Effect.promise(async () => {
      if (!server.listening) return
      await new Promise((resolve) => {
        server.close(resolve)
        server.closeAllConnections()
      })
    }).pipe(Effect.andThen(forget))
    let port = 0
    const listen = Effect.promise(() =>
      new Promise<void>((resolve, reject) => {
        server.once("error", reject)
        server.listen(port, "127.0.0.1", () => {
          server.off("error", reject)
          port = (server.address() as AddressInfo).port
          resolve()
        })
      })
    )

    yield* Effect.acquireRelease(listen, () => close)
    return {
      url: `http://127.0.0.1:${port}/mcp`,
      sseUrl: `http://127.0.0.1:${port}/sse`,
      behaviour,
      requests,
      requestsOf: (rpc) => requests.filter((request) => request.rpc === rpc),
      get sessions() {
        return Array.from(sessions.keys())
      },
      calls,
      get open() {
        return Array.from(open.values())
      },
      connections: Effect.callback<number>((resume) => {
        server.getConnections((_, count) => resume(Effect.succeed(count)))
      }),
      forget,
      close,
      listen
    }
  })

const answerJson = (response: ServerResponse, status: number, body: object) => {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify({ jsonrpc: "2.0", ...body }))
}

const answer = (response: ServerResponse, status: number, message: string, code = -32000) =>
  answerJson(response, status, { error: { code, message }, id: null })

const startStream = (response: ServerResponse): ServerResponse => {
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" }).flushHeaders()
  return response
}

const readJson = async (request: IncomingMessage): Promise<unknown> => {
  const chunks: Array<Uint8Array> = []
  for await (const chunk of request) chunks.push(chunk)
  const body = Buffer.concat(chunks).toString("utf8")
  return body === "" ? undefined : JSON.parse(body)
}

const rpcMethod = (body: unknown): string | undefined =>
  typeof body === "object" && body !== null && "method" in body && typeof body.method === "string"
    ? body.method
    : undefined
