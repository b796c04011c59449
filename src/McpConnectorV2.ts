/**
 * Opens sessions with `@modelcontextprotocol/client`, the second generation of the SDK: the same connectors as in
 * `McpConnector`, for servers of protocol version 2026-07-28 as well as older ones. An optional peer dependency:
 * import this module by its own path, `effect-mcp-sessions/McpConnectorV2`.
 *
 * 2026-07-28 has no sessions on the wire. What a session is then: a connection, what the client knows of the server, and
 * an identity. Nothing is terminated on the server, `ping` is `server/discover`, lists are kept by the SDK's own cache
 * for as long as the server's `ttlMs` says, and `notifications` has what comes with the answers of requests; for more,
 * `session.request((client, options) => client.listen({ … }, options))`.
 *
 * A pool of these sessions needs a tag of its own:
 *
 * ```ts
 * class Sessions extends SessionPool.Tag<Sessions, McpSession<Client>, McpSessionError>()("app/Sessions") {}
 * ```
 */
import {
  Client,
  type DiscoverResult,
  InMemoryTransport,
  type PriorDiscovery,
  ReadBuffer,
  serializeMessage,
  SSEClientTransport,
  StreamableHTTPClientTransport,
  type Transport,
  type VersionNegotiationMode
} from "@modelcontextprotocol/client"
import { getDefaultEnvironment } from "@modelcontextprotocol/client/stdio"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Connectors from "./Connector.ts"
import type { Identity } from "./Identity.ts"
import { noTimeout } from "./internal/client/sdk.ts"
import * as Connecting from "./internal/client/connector.ts"
import * as OpenSession from "./internal/client/session.ts"
import type { McpSession } from "./McpSession.ts"
import type { McpSessionError } from "./McpSessionError.ts"

/**
 * Opens a session for an identity; its scope closes it.
 *
 * @category models
 */
export type Connector<R = never> = (
  identity: Identity,
  handle: Connectors.SessionHandle
) => Effect.Effect<McpSession<Client>, McpSessionError, Scope.Scope | R>

/**
 * How the protocol version is agreed on.
 *
 * @category models
 */
export interface Negotiation {
  /**
   * `"auto"` (default) asks the server (`server/discover`) and falls back to `initialize`. The answer is kept, so that
   * later opens cost nothing extra: that a server is of the older kind for an hour, for everybody; what a newer one says
   * of itself for its `ttlMs`, but 5 minutes at least (a live session uses it for as long as it lives) and an hour at
   * most, for the identity that it said it to.
   * `"legacy"` never asks, `{ pin }` accepts that very version alone.
   */
  readonly versionNegotiation?: VersionNegotiationMode | undefined
  /**
   * How long a child process may be silent on `server/discover` before it is taken for one of the older kind, 10 seconds
   * of real time by default. Over HTTP silence is an outage, and `connectTimeout` its bound.
   */
  readonly probeTimeout?: Duration.Input | undefined
}

/**
 * @category models
 */
export type StdioOptions<RV = never, RS = never, RE = never, RR = never> =
  & Connectors.StdioOptions<RV, RS, RE, RR>
  & Negotiation

/**
 * @category models
 */
export type HttpOptions<RV = never, RS = never, RE = never, RR = never> =
  & Connectors.HttpOptions<RV, RS, RE, RR>
  & Negotiation

/**
 * Starts a server as a child process and talks to it over its pipes. See `McpConnector.stdio`.
 *
 * The SDK's own transport would start a second process to find out the server's version; here the one that is to serve
 * is asked. Only a server that exits when asked is started again.
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
  return connector(options, plan, {
    probeTimeout: Duration.toMillis(options.probeTimeout ?? "10 seconds"),
    isChild: true
  })
}

/**
 * Talks to a server over Streamable HTTP. See `McpConnector.http`.
 *
 * @category constructors
 */
export const http = <RV = never, RS = never, RE = never, RR = never>(
  options: HttpOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> =>
  connector(
    options,
    Connecting.http(options, false, (url, init) => new StreamableHTTPClientTransport(url, init)),
    { probeTimeout: noTimeout, isChild: false }
  )

/**
 * Talks to a server over HTTP with server-sent events. See `McpConnector.sse`. Such a server is of the older kind.
 *
 * @category constructors
 */
export const sse = <RV = never, RS = never, RE = never, RR = never>(
  options: Connectors.HttpOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> =>
  connector(
    { ...options, versionNegotiation: "legacy" },
    Connecting.http(options, true, (url, init) => new SSEClientTransport(url, init)),
    { probeTimeout: noTimeout, isChild: false }
  )

/**
 * An SDK server in this process, one for each session. See `McpConnector.inProcess`. The SDK's in-memory transport is of
 * the older kind.
 *
 * @category constructors
 */
export const inProcess = <RV = never, RS = never, RE = never, RR = never>(
  server: (identity: Identity) => Effect.Effect<ServerLike, McpSessionError, RV | Scope.Scope>,
  options: Connectors.Options<RS, RE, RR> = {}
): Connector<RV | RS | RE | RR> =>
  connector(
    { ...options, versionNegotiation: "legacy" },
    Connecting.inProcess(options, server, () => {
      const [ours, theirs] = InMemoryTransport.createLinkedPair()
      return [ours as Transport, theirs]
    }),
    { probeTimeout: noTimeout, isChild: false }
  )

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

const connector = <RT, RS, RE, RR>(
  options: Connectors.Options<RS, RE, RR> & Negotiation,
  makePlan: (identity: Identity, handle: Connectors.SessionHandle) => Connecting.Plan<RT>,
  { isChild, probeTimeout }: { readonly probeTimeout: number; readonly isChild: boolean }
): Connector<RT | RS | RE | RR> => {
  const mode = options.versionNegotiation ?? "auto"
  const verdicts = makeVerdicts()

  return Effect.fnUntraced(function*(identity, handle) {
    const plan = makePlan(identity, handle)
    const { capabilities, elicitation, roots, sampling } = yield* Connecting.handlers(options, plan)
    let exitedOnProbe = false

    const open = (prior: PriorDiscovery | undefined) =>
      OpenSession.open({
        ...plan,
        client: () => {
          const client = new Client(options.clientInfo ?? Connecting.clientInfo, {
            capabilities,
            versionNegotiation: { mode, probe: { timeoutMs: probeTimeout } },
            // Lists are cut off at 64 pages by whoever of us comes first
            listMaxPages: 64,
            cachePartition: identity.key
          })
          if (sampling !== undefined) {
            client.setRequestHandler("sampling/createMessage", ({ params }, { mcpReq }) =>
              sampling(params as Parameters<typeof sampling>[0], mcpReq.signal))
          }
          if (elicitation !== undefined) {
            client.setRequestHandler("elicitation/create", ({ params }, { mcpReq }) =>
              elicitation(params as Parameters<typeof elicitation>[0], mcpReq.signal))
          }
          if (roots !== undefined) {
            client.setRequestHandler("roots/list", ({ params }, { mcpReq }) =>
              roots(params, mcpReq.signal))
          }
          return client
        },
        connect: (client, wire, callOptions) =>
          client.connect(wire as Transport, prior === undefined ? callOptions : { ...callOptions, prior }).catch(
            (error: unknown) => {
              exitedOnProbe = isChild && prior === undefined && wire.closed && isFailedNegotiation(error)
              throw error
            }
          )
      })

    const session = yield* open(mode === "auto" ? yield* verdicts.recall(identity) : undefined).pipe(
      Effect.catchIf(() => mode === "auto" && exitedOnProbe, () => open({ kind: "legacy" }))
    )
    if (mode === "auto") yield* verdicts.learn(identity, session.client)
    return session
  })
}

const isFailedNegotiation = (error: unknown): boolean =>
  error instanceof Error && "code" in error && error.code === "ERA_NEGOTIATION_FAILED"

// -----------------------------------------------------------------------------
// What is known of a server
// -----------------------------------------------------------------------------

/**
 * 2026-07-28, server/discover: the era is a property of the server, and clients SHOULD cache it; what the server says of
 * itself may depend on who asks. A verdict that a server is of the older kind never fails, so it must end by itself.
 */
const makeVerdicts = () => {
  const modern = new Map<string, { readonly prior: PriorDiscovery; readonly until: number }>()
  let legacyUntil = 0

  return {
    recall: (identity: Identity): Effect.Effect<PriorDiscovery | undefined> =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        if (now < legacyUntil) return { kind: "legacy" }
        const known = modern.get(identity.key)
        return known !== undefined && now < known.until ? known.prior : undefined
      }),
    learn: (identity: Identity, client: Client): Effect.Effect<void> =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        const discover = client.getDiscoverResult()
        if (client.getProtocolEra() !== "modern" || discover === undefined) {
          if (now >= legacyUntil) legacyUntil = now + hour
          return
        }
        const known = modern.get(identity.key)
        if (known !== undefined && now < known.until) return
        modern.delete(identity.key)
        modern.set(identity.key, { prior: { kind: "modern", discover }, until: now + timeToLive(discover) })
        if (modern.size > maxVerdicts) modern.delete(modern.keys().next().value!)
      })
  }
}

const maxVerdicts = 1_000

const hour = 60 * 60_000

const timeToLive = ({ ttlMs }: DiscoverResult): number =>
  Math.min(Math.max(typeof ttlMs === "number" ? ttlMs : 0, hour / 12), hour)
