/**
 * Opens sessions with `@modelcontextprotocol/sdk`: over stdio, Streamable HTTP, SSE, and in process.
 *
 * A connector is what `SessionPool.layer({ connect })` takes: a function of an identity that opens one session for it
 * and closes it with the scope. What it runs (handlers, headers) runs with the services of the pool.
 */
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js"
import { getDefaultEnvironment } from "@modelcontextprotocol/sdk/client/stdio.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js"
import { ReadBuffer, serializeMessage } from "@modelcontextprotocol/sdk/shared/stdio.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import {
  CreateMessageRequestSchema,
  type ElicitRequestFormParams,
  ElicitRequestSchema,
  ListRootsRequestSchema
} from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Connector, HttpOptions, Options, StdioOptions } from "./Connector.ts"
import type { Identity } from "./Identity.ts"
import * as Connecting from "./internal/client/connector.ts"
import * as OpenSession from "./internal/client/session.ts"
import type { McpSession } from "./McpSession.ts"
import type { McpSessionError } from "./McpSessionError.ts"

export type { Connector, HttpOptions, Options, PerIdentity, StdioOptions } from "./Connector.ts"

/**
 * Starts a server as a child process and talks to it over its pipes.
 *
 * When the session's scope has closed the child is gone, with everything that it has started: its stdin is closed, after
 * 1.5 seconds its process group gets SIGTERM, after another 1.5 seconds SIGKILL. It is also killed when this process
 * exits, unless a signal kills this process outright: then a server ends that ends with its stdin, as it should. When it dies on its own its session ends at that moment, with the calls in flight. Its stderr goes to the log,
 * at debug level, without the identity's credentials and the values of `env`.
 *
 * @category constructors
 */
export const stdio = <RV = never, RS = never, RE = never, RR = never>(
  options: StdioOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> => {
  const plan = Connecting.stdio(options, {
    readBuffer: () => new ReadBuffer(),
    serialize: serializeMessage,
    environment: getDefaultEnvironment
  })
  return (identity, handle) => open(options, plan(identity, handle))
}

/**
 * Talks to a server over Streamable HTTP.
 *
 * When the session's scope closes the server is told so (DELETE, for two seconds at most).
 *
 * @category constructors
 */
export const http = <RV = never, RS = never, RE = never, RR = never>(
  options: HttpOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> => {
  const plan = Connecting.http(options, false, (url, init) => new StreamableHTTPClientTransport(url, init))
  return (identity, handle) => open(options, plan(identity, handle))
}

/**
 * Talks to a server over HTTP with server-sent events, the transport that Streamable HTTP has replaced.
 *
 * Its session is its stream: when that breaks the session ends, where the SDK would go on with a new and uninitialized
 * one.
 *
 * @category constructors
 */
export const sse = <RV = never, RS = never, RE = never, RR = never>(
  options: HttpOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> => {
  const plan = Connecting.http(options, true, (url, init) => new SSEClientTransport(url, init))
  return (identity, handle) => open(options, plan(identity, handle))
}

/**
 * An SDK server in this process, one for each session. It is closed with the session.
 *
 * @category constructors
 */
export const inProcess = <RV = never, RS = never, RE = never, RR = never>(
  server: (identity: Identity) => Effect.Effect<ServerLike, McpSessionError, RV | Scope.Scope>,
  options: Options<RS, RE, RR> = {}
): Connector<RV | RS | RE | RR> => {
  const plan = Connecting.inProcess(options, server, () => {
    const [ours, theirs] = InMemoryTransport.createLinkedPair()
    return [ours as Transport, theirs]
  })
  return (identity, handle) => open(options, plan(identity, handle))
}

/**
 * The SDK's `McpServer` or `Server`.
 *
 * @category models
 */
export interface ServerLike {
  connect(transport: Transport): Promise<void>
}

// -----------------------------------------------------------------------------
// Internals
// -----------------------------------------------------------------------------

const open = <RT, RS, RE, RR>(
  options: Options<RS, RE, RR>,
  plan: Connecting.Plan<RT>
): Effect.Effect<McpSession, McpSessionError, Scope.Scope | RT | RS | RE | RR> =>
  Effect.flatMap(
    Connecting.handlers(options, plan),
    ({ capabilities, elicitation, roots, sampling }) =>
      OpenSession.open({
        ...plan,
        client: () => {
          const client = new Client(options.clientInfo ?? Connecting.clientInfo, { capabilities })
          if (sampling !== undefined) {
            client.setRequestHandler(CreateMessageRequestSchema, ({ params }, { signal }) => sampling(params, signal))
          }
          if (elicitation !== undefined) {
            client.setRequestHandler(
              ElicitRequestSchema,
              // The SDK refuses any other mode before it comes here: this client declares none
              ({ params }, { signal }) => elicitation(params as ElicitRequestFormParams, signal)
            )
          }
          if (roots !== undefined) {
            client.setRequestHandler(ListRootsRequestSchema, ({ params }, { signal }) => roots(params, signal))
          }
          return client
        },
        connect: (client, wire, callOptions) => client.connect(wire as Transport, callOptions)
      })
  )
