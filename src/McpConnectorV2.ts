/**
 * Opens sessions with `@modelcontextprotocol/client`, the second generation of the SDK: the same connectors as in
 * `McpConnector`, for servers of protocol version 2026-07-28 as well as older ones. An optional peer dependency:
 * import this module by its own path, `effect-mcp-sessions/McpConnectorV2`.
 *
 * 2026-07-28 has no sessions on the wire. What a session is then: a connection, what the client knows of the server,
 * and an identity. Nothing is terminated on the server, `ping` is `server/discover`, lists are kept by the SDK's own
 * cache for as long as the server's `ttlMs` says, and `notifications` has what comes with the answers of requests; for
 * more, `session.request((client, options) => client.listen({ … }, options))`.
 *
 * A pool of these sessions needs a tag of its own:
 *
 * ```ts
 * class Sessions extends SessionPool.Tag<Sessions, McpSession<Client>, McpSessionError>()("app/Sessions") {}
 * ```
 */
import {
  auth,
  Client,
  createPrivateKeyJwtAuth,
  type DiscoverResult,
  type Implementation,
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
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Connectors from "./Connector.ts"
import type { Identity } from "./Identity.ts"
import * as Connecting from "./internal/client/connector.ts"
import * as ConnectorOptions from "./internal/client/options.ts"
import { noTimeout } from "./internal/client/sdk.ts"
import * as OpenSession from "./internal/client/session.ts"
import * as Authorized from "./internal/oauth/fetch.ts"
import * as Declare from "./internal/options.ts"

/**
 * Opens a session for an identity; its scope closes it.
 *
 * @category models
 */
export type Connector<R = never> = Connectors.Connector<R, Client>

/**
 * The SDK's `McpServer` or `Server`.
 *
 * @category models
 */
export type ServerLike = Connectors.ServerLike<Transport>

/**
 * How the protocol version is agreed on.
 *
 * @category models
 */
export interface Negotiation {
  /**
   * `"auto"` (default) asks the server (`server/discover`) and falls back to `initialize`. The answer is kept, so that
   * later opens cost nothing extra: that a server is of the older kind for an hour, for everybody; what a newer one
   * says of itself for its `ttlMs`, but 5 minutes at least (a live session uses it for as long as it lives) and an hour
   * at most, for the identity that it said it to.
   * `"legacy"` never asks, `{ pin }` accepts that very version alone.
   */
  readonly versionNegotiation?: VersionNegotiationMode | undefined
  /**
   * How long a child process may be silent on `server/discover` before it is taken for one of the older kind, 10
   * seconds of real time by default. Over HTTP silence is an outage, and `connectTimeout` its bound.
   */
  readonly probeTimeout?: Duration.Input | undefined
}

/**
 * The options of {@link stdio}.
 *
 * @category models
 */
export interface StdioOptions<out R = never> extends Connectors.StdioOptions<R>, Negotiation {}

/**
 * The options of {@link http}.
 *
 * @category models
 */
export interface HttpOptions<out R = never> extends Connectors.HttpOptions<R>, Negotiation {}

const module = "McpConnectorV2"

const versionNegotiation = Declare.custom<VersionNegotiationMode, VersionNegotiationMode>({
  rule: "\"auto\", \"legacy\" or { pin: \"a version\" }",
  read: Option.liftPredicate((value): value is VersionNegotiationMode =>
    value === "auto" || value === "legacy" ||
    (Predicate.hasProperty(value, "pin") && typeof value.pin === "string" && value.pin !== "")
  )
})

/**
 * @internal
 */
export const negotiation = {
  versionNegotiation: Declare.withDefault(versionNegotiation, "auto"),
  probeTimeout: Declare.withDefault(Declare.timeout, "10 seconds")
} satisfies Declare.DeclarationOf<Negotiation>

const connectors = Connecting.make<Client, Transport, Negotiation>({
  module,
  options: {
    stdio: Declare.declare<StdioOptions<unknown>>()({ module }, { ...ConnectorOptions.stdio, ...negotiation }),
    http: Declare.declare<HttpOptions<unknown>>()({ module }, { ...ConnectorOptions.http, ...negotiation }),
    sse: Declare.declare<Connectors.HttpOptions<unknown>>()({ module }, ConnectorOptions.http),
    inProcess: Declare.declare<Connectors.Options<unknown>>()({ module }, ConnectorOptions.inProcess),
    fromTransport: Declare.declare<Connectors.Options<unknown> & Negotiation>()(
      { module },
      { ...ConnectorOptions.inProcess, ...negotiation }
    )
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
  mayBeOlder: (own) => own.versionNegotiation === undefined || typeof own.versionNegotiation === "string",
  // The SDK's SSE and in-memory transports are of the older kind
  opener: (transport, options, own = { versionNegotiation: "legacy" }) =>
    opener(
      options.clientInfo ?? Connecting.clientInfo,
      own.versionNegotiation ?? (transport === "fromTransport" ? "legacy" : "auto"),
      transport === "stdio" ? Duration.toMillis(own.probeTimeout ?? "10 seconds") : undefined
    )
})

/**
 * Starts a server as a child process and talks to it over its pipes. See `McpConnector.stdio`.
 *
 * The SDK's own transport would start a second process to find out the server's version; here the one that is to serve
 * is asked. Only a server that exits when asked is started again.
 *
 * @category constructors
 */
export const stdio = connectors.stdio

/**
 * Talks to a server over Streamable HTTP. See `McpConnector.http`.
 *
 * @category constructors
 */
export const http = connectors.http

/**
 * Talks to a server over HTTP with server-sent events. See `McpConnector.sse`. Such a server is of the older kind.
 *
 * @category constructors
 */
export const sse = connectors.sse

/**
 * An SDK server in this process, one for each session. See `McpConnector.inProcess`. The SDK's in-memory transport is
 * of the older kind.
 *
 * @category constructors
 */
export const inProcess = connectors.inProcess

/**
 * Talks over a transport of one's own. See `McpConnector.fromTransport`. Its server is taken for one of the older kind,
 * unless `versionNegotiation` says otherwise.
 *
 * @category constructors
 */
export const fromTransport = connectors.fromTransport

// -----------------------------------------------------------------------------
// Version negotiation
// -----------------------------------------------------------------------------

/**
 * `probeTimeout` is given for a child process, which may exit on the probe or be silent.
 */
const opener = (
  clientInfo: Implementation,
  mode: VersionNegotiationMode,
  probeTimeout: number | undefined
): Connecting.Opener<Client> => {
  const verdicts = makeVerdicts()

  return Effect.fnUntraced(function*(plan, { capabilities, elicitation, roots, sampling }) {
    let exitedOnProbe = false

    const open = (prior: PriorDiscovery | undefined) =>
      OpenSession.open({
        ...plan,
        client: () => {
          const client = new Client(clientInfo, {
            capabilities,
            versionNegotiation: { mode, probe: { timeoutMs: probeTimeout ?? noTimeout } },
            // Lists are cut off at 64 pages by whoever of us comes first
            listMaxPages: 64,
            cachePartition: plan.identity.key
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
              exitedOnProbe = probeTimeout !== undefined && prior === undefined && wire.closed &&
                isFailedNegotiation(error)
              throw error
            }
          )
      })

    const session = yield* open(mode === "auto" ? yield* verdicts.recall(plan.identity) : undefined).pipe(
      Effect.catchIf(() => mode === "auto" && exitedOnProbe, () => open({ kind: "legacy" }))
    )
    if (mode === "auto") yield* verdicts.learn(plan.identity, session.client)
    return session
  })
}

const isFailedNegotiation = (error: unknown): boolean =>
  error instanceof Error && "code" in error && error.code === "ERA_NEGOTIATION_FAILED"

/**
 * 2026-07-28, server/discover: the era is a property of the server, and clients SHOULD cache it; what the server says
 * of itself may depend on who asks. A verdict that a server is of the older kind never fails, so it must end by itself.
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
