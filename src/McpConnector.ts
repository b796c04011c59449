/**
 * Opens sessions with `@modelcontextprotocol/sdk`: over stdio, Streamable HTTP, SSE, and in process.
 *
 * A connector is what `SessionPool.layer({ connect })` takes: a function of an identity that opens one session for it
 * and closes it with the scope. What it runs (handlers, headers) runs with the services of the pool.
 */
import { createPrivateKeyJwtAuth } from "@modelcontextprotocol/sdk/client/auth-extensions.js"
import { auth } from "@modelcontextprotocol/sdk/client/auth.js"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js"
import { getDefaultEnvironment } from "@modelcontextprotocol/sdk/client/stdio.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js"
import { ReadBuffer, serializeMessage } from "@modelcontextprotocol/sdk/shared/stdio.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema
} from "@modelcontextprotocol/sdk/types.js"
import { AjvJsonSchemaValidator } from "@modelcontextprotocol/sdk/validation/ajv"
import type { jsonSchemaValidator } from "@modelcontextprotocol/sdk/validation/types.js"
import type * as Connectors from "./Connector.ts"
import * as Connecting from "./internal/client/connector.ts"
import * as ConnectorOptions from "./internal/client/options.ts"
import * as OpenSession from "./internal/client/session.ts"
import * as Authorized from "./internal/oauth/fetch.ts"
import * as Declare from "./internal/options.ts"
import type { SdkClient } from "./Session.ts"

export type { Connector, HttpOptions, Options, PerIdentity, StdioOptions } from "./Connector.ts"

/**
 * The SDK's `McpServer` or `Server`.
 *
 * @category models
 */
export type ServerLike = Connectors.ServerLike<Transport>

const module = "McpConnector"

const connectors = Connecting.make<SdkClient, Transport>({
  module,
  options: {
    stdio: Declare.declare<Connectors.StdioOptions<unknown>>()({ module }, ConnectorOptions.stdio),
    http: Declare.declare<Connectors.HttpOptions<unknown>>()({ module }, ConnectorOptions.http),
    sse: Declare.declare<Connectors.HttpOptions<unknown>>()({ module }, ConnectorOptions.http),
    inProcess: Declare.declare<Connectors.Options<unknown>>()({ module }, ConnectorOptions.inProcess),
    fromTransport: Declare.declare<Connectors.Options<unknown>>()({ module }, ConnectorOptions.inProcess)
  },
  stdio: {
    readBuffer: () => new ReadBuffer({ maxBufferSize: Infinity }),
    serialize: serializeMessage,
    environment: getDefaultEnvironment
  },
  authorized: Authorized.make({ auth, privateKeyJwt: createPrivateKeyJwtAuth }),
  http: (url, init) => new StreamableHTTPClientTransport(url, init),
  sse: (url, init) => new SSEClientTransport(url, init),
  pair: () => {
    const [ours, theirs] = InMemoryTransport.createLinkedPair()
    return [ours as Transport, theirs]
  },
  mayBeOlder: () => true,
  opener: (_, options) => (plan, { capabilities, elicitation, roots, sampling }) =>
    OpenSession.open({
      ...plan,
      client: () => {
        const client = new Client(options.clientInfo ?? Connecting.clientInfo, {
          capabilities,
          jsonSchemaValidator: makeValidator()
        })
        if (sampling !== undefined) {
          client.setRequestHandler(CreateMessageRequestSchema, ({ params }, { signal }) => sampling(params, signal))
        }
        if (elicitation !== undefined) {
          client.setRequestHandler(
            ElicitRequestSchema,
            ({ params }, { signal }) => elicitation(params as Parameters<typeof elicitation>[0], signal)
          )
        }
        if (roots !== undefined) {
          client.setRequestHandler(ListRootsRequestSchema, ({ params }, { signal }) => roots(params, signal))
        }
        return client
      },
      connect: (client, wire, callOptions) => client.connect(wire as Transport, callOptions)
    })
})

// The SDK's own takes 19 KB and 90 µs a client, whether any tool has a schema for its output or not. One each, for it
// keeps what it has compiled, and two schemas of one `$id` would clash.
const makeValidator = (): jsonSchemaValidator => {
  let validator: AjvJsonSchemaValidator | undefined
  return { getValidator: (schema) => (validator ??= new AjvJsonSchemaValidator()).getValidator(schema) }
}

/**
 * Starts a server as a child process and talks to it over its pipes.
 *
 * When the scope of the session has closed, the child is gone and so is everything that it had started. It is asked
 * first, by the end of its stdin; after 1.5 seconds its process group gets SIGTERM, and after another 1.5 seconds
 * SIGKILL. When this process exits its children are killed. A signal that kills this process at once leaves no time for
 * that: then only servers that end with their stdin end, as every server should.
 *
 * A child that dies ends its session at that moment: calls in flight fail with `SessionClosed`, and the pool opens
 * another. What it writes to stderr goes to the log at debug level, without the identity's credentials and the secrets
 * of `env`.
 *
 * @category constructors
 */
export const stdio = connectors.stdio

/**
 * Talks to a server over Streamable HTTP. One that answers 400, 404 or 405 to `initialize` is tried as a server of the
 * older transport at the same URL, as `sse` does, for ten seconds at most: so the specification has it. Where that is
 * what it speaks, the later sessions of an hour begin with it.
 *
 * When the session's scope closes the server is told so (DELETE, for two seconds at most).
 *
 * @category constructors
 */
export const http = connectors.http

/**
 * Talks to a server over HTTP with server-sent events, the transport that Streamable HTTP has replaced.
 *
 * Its session is its stream: when that breaks the session ends, where the SDK would go on with a new and uninitialized
 * one.
 *
 * @category constructors
 */
export const sse = connectors.sse

/**
 * An SDK server in this process, one for each session. It is closed with the session.
 *
 * @category constructors
 */
export const inProcess = connectors.inProcess

/**
 * Talks over a transport of one's own: WebSockets, a tunnel, one of the SDK with OAuth. It is made for each session,
 * within the session's scope, and must not have been started. It is closed with the session, and told to end the
 * session on the server (`terminateSession`, two seconds at most) if it can be.
 *
 * All that a session promises holds, but for what only a connector's own transport can know: a reply stream that has
 * ended without the reply is waited for until the call's timeout, a refusal tells no `Retry-After`, and a request that
 * the server has refused because it has forgotten the session may have run for all that is known: `withSession` repeats
 * nothing, the next caller gets a new session.
 *
 * @category constructors
 */
export const fromTransport = connectors.fromTransport
