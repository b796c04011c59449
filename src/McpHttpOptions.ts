/**
 * What `McpHttp`'s layers take. `McpHttp` exports all of it.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as HttpRouter from "effect/http/HttpRouter"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Struct from "effect/Struct"
import type { Agent } from "node:http"
import type { ClusterMember } from "./ClusterMembership.ts"
import type { Identity } from "./Identity.ts"
import * as Options from "./internal/options.ts"
import {
  declared as registry,
  type Operator,
  type SessionInfo,
  SessionRegistry,
  type SessionRegistryOptions
} from "./SessionRegistry.ts"
import { audience, isTrusted, listOf, scopes } from "./TokenOptions.ts"

/**
 * What both layers take. Durations are `Duration.Input`; a number is milliseconds.
 *
 * @category models
 */
export interface EndpointOptions extends Omit<SessionRegistryOptions<never, never, never>, "open"> {
  /**
   * The tag under which an operator finds the sessions, as `SessionRegistry.Operator` makes them: by default
   * `SessionRegistry` itself, which only one layer of an application can provide.
   */
  readonly sessions?: Context.Key<unknown, Operator> | undefined
  /**
   * The path of the endpoint, by default `"/mcp"`. For `layer` it is within the router that it is added to; for `guard`
   * it is the whole path of the server's route, with the prefixes of its router.
   */
  readonly path?: HttpRouter.PathInput | undefined
  /**
   * The origins whose web pages may call the server and read its answers, as browsers write them:
   * `"https://app.example.com"`. By default
   * those of this machine (`localhost`, `127.0.0.1`, `[::1]`, any port), which a list replaces; `"*"` is any web page
   * there is. A request without `Origin` comes from no web page.
   */
  readonly allowedOrigins?: ReadonlyArray<string> | "*" | undefined
  /**
   * The names under which the server may be called, with a port or for any port: `"mcp.example.com"`. By default those
   * of this machine (`localhost`, `127.0.0.1`, `[::1]`), which a list replaces. `"*"` leaves the server open to DNS
   * rebinding, unless something in front of it checks the name.
   */
  readonly allowedHosts?: ReadonlyArray<string> | "*" | undefined
  /** The most that a request's body may have, in bytes: by default 4 MiB. */
  readonly maxBodyBytes?: number | undefined
  /** How long a request's body may take to arrive, else 408: by default 30 seconds. */
  readonly bodyTimeout?: Duration.Input | undefined
  /**
   * How long a client may listen on one stream: by default 5 minutes, after which its stream ends and it comes back by
   * itself. What answers a call lives until the call ends. A client that has read nothing of what it is answered for as
   * long is hung up on, with `guard` after twice as long at most. So no client that has vanished holds its session for
   * longer.
   */
  readonly streamTimeToLive?: Duration.Input | undefined
  /** Whether an owner may end a session with DELETE, by default true. If not, that answers 405. */
  readonly allowTermination?: boolean | undefined
  /** Makes the endpoint a protected resource of OAuth, so that a client finds out where to get a token for it. */
  readonly authorization?: AuthorizationOptions | undefined
}

/**
 * An endpoint as a protected resource, by the authorization section of the MCP specification (2025-11-25).
 *
 * Its metadata (RFC 9728) is at `/.well-known/oauth-protected-resource`, and there under its own path, as in
 * `/.well-known/oauth-protected-resource/mcp`: for everybody, without credentials, for web pages of any origin. Every
 * challenge points to it: the 401 that a request without a valid token is answered with, and the 403 of one whose token
 * does not cover what it asks for.
 *
 * All of this is told to clients. Who is let in is for `IdentityResolver` to say: `layerJwt` and `layerIntrospection`
 * verify tokens, and their `scopes` are asked of each.
 *
 * @category models
 */
export interface AuthorizationOptions {
  /**
   * The authorization servers that issue tokens for this endpoint, at least one: their issuer identifiers (RFC 8414
   * section 2), character for character. `https` URLs without query and fragment, or `http` on loopback.
   */
  readonly servers: ReadonlyArray<string>
  /**
   * The scopes that a client asks for first: `scopes_supported` of the metadata, and `scope` of the challenge to those
   * without a valid token. The least that is of use: what a call needs beyond them is for `required` to say. By default
   * nothing is said of scopes.
   */
  readonly scopes?: ReadonlyArray<string> | undefined
  /**
   * What the endpoint is called: its canonical URI, as clients call it, such as `"https://mcp.example.com/mcp"` (RFC
   * 8707 section 2). An `https` URL without query and fragment, or `http` on loopback. Needed behind a proxy that
   * clients call by another name, scheme or path, and in a router with a prefix: no router says what its prefix is, so
   * that without `resource` the metadata is at the right place only when the first request for the endpoint has come,
   * to this process. Until then it is where it would be without a prefix.
   *
   * By default it is the URL by which the request has come. That is for the caller to choose, among `allowedHosts`: so
   * it is not held against the audience of a token, which then is for `IdentityResolver` alone to look at.
   */
  readonly resource?: string | URL | undefined
  /**
   * For whom tokens must be: one of these has to be among the `aud` of the identity's claims, if they have any, else
   * 401 `invalid_token`. The default is `resource`, if that is given. Say it where the authorization server has another
   * name for the resource (RFC 8707 section 2.2), as a client id, or `api://…`.
   */
  readonly audience?: string | ReadonlyArray<string> | undefined
  /**
   * The scopes that a call needs. A caller whose `Identity.scopes` lack one of them is answered 403
   * `insufficient_scope` before anything of the request has run, also of the others in a batch; the challenge has these
   * scopes and those that the caller has already, so that a client that asks for another token loses none; where they
   * are 4,096 characters or more, these alone, or none. By default no call needs any.
   *
   * **Example** (A tool that needs more than the others)
   *
   * ```ts
   * const required: McpHttp.AuthorizationOptions["required"] = ({ method, params }) =>
   *   method === "tools/call" && params.name === "delete" ? ["files:write"] : []
   * ```
   */
  readonly required?: ((call: Call) => ReadonlyArray<string>) | undefined
}

/**
 * A request or a notification of a client.
 *
 * @category models
 */
export interface Call {
  /** What is asked for, such as `"tools/call"`. */
  readonly method: string
  /** As they came: nobody has looked at them yet. Empty if there are none. */
  readonly params: Readonly<Record<string, unknown>>
}

/**
 * The option of which the type of a layer depends: what it provides.
 *
 * @category models
 */
export interface Provides<Sessions> {
  /** See {@link EndpointOptions}. */
  readonly sessions?: Context.Key<Sessions, Operator> | undefined
}

/**
 * What `McpHttp.layer` takes.
 *
 * @category models
 */
export interface LayerOptions<E, R> extends EndpointOptions {
  /**
   * Makes the server of a session, a new one each time: the SDK's `McpServer` or `Server`. It is connected and closed
   * for you; its own finalizers run after that. One that closes itself ends its session. Runs with the services and a
   * scope of the layer.
   *
   * A failure answers `initialize` with its own response if it has one (as `PoolExhausted` has), else with 503.
   * It is logged by name and place, and none of its text.
   */
  readonly server: (info: SessionInfo, caller: SessionCaller) => Effect.Effect<ServerLike, E, R>
  /**
   * How requests are answered: as a stream of events, which can carry progress and questions to the client, or as JSON,
   * which is less to parse. By default `"sse"`.
   */
  readonly response?: "sse" | "json" | undefined
  /**
   * Makes the store that lets the clients of a session resume a stream that broke, as `McpHttp.memoryEventStore` does:
   * a new one each time, because an SDK transport replays whatever its store has. What a store fails to keep, or does
   * not keep within 10 seconds, is said all the same, can't be had again, and is logged once a session. By default
   * nothing can be resumed.
   */
  readonly eventStore?: ((info: SessionInfo) => EventStore) | undefined
  /** How long a client is told to wait before it resumes a stream. By default that is its own choice. */
  readonly retryInterval?: Duration.Input | undefined
  /** How many requests of one session may be in flight, else 429: by default 100. */
  readonly maxConcurrentRequests?: number | undefined
}

/**
 * What `McpHttp.memoryEventStore` takes.
 *
 * @category models
 */
export interface MemoryEventStoreOptions {
  /** How many events are kept of a session: by default 256. */
  readonly capacity?: number | undefined
  /** How many bytes they may take, as JSON: by default 4 MiB. */
  readonly maxBytes?: number | undefined
}

/**
 * What `McpHttp.routed` takes: where the nodes of the cluster answer HTTP. Either `port` or `address` is needed.
 *
 * @category models
 */
export interface RoutedOptions {
  /** The port of each node's HTTP server, at the host by which `ClusterMembership` knows the node. */
  readonly port?: number | undefined
  /**
   * Where the HTTP server of a node is: `"https://10.0.0.7:8443"`. A path that it has goes before that of each request.
   * It has to lead to that very node, and not to a load balancer: credentials are sent there.
   */
  readonly address?: ((member: ClusterMember) => string | URL) | undefined
  /**
   * Makes the connections to other nodes: one of `node:https` with certificates of your own, say. By default one that
   * keeps connections for 4 seconds, less than Node's servers do.
   */
  readonly agent?: Agent | undefined
  /** How long another node may take to accept a connection, else 503: by default 2 seconds. */
  readonly connectTimeout?: Duration.Input | undefined
}

/**
 * Whose session it is.
 *
 * @category models
 */
export interface SessionCaller {
  /** The owner, with the newest credentials that came with a request of the session. */
  readonly identity: Effect.Effect<Identity>
}

/**
 * The SDK's `McpServer` or `Server`.
 *
 * @category models
 */
export interface ServerLike {
  /** Begins to serve what comes over the transport. */
  connect(transport: Transport): Promise<void>
  /** Ends the connection. */
  close(): Promise<void>
}

// -----------------------------------------------------------------------------
// Declarations
// -----------------------------------------------------------------------------

const allowList = Options.custom<ReadonlyArray<string> | "*", ReadonlyArray<string> | "*">({
  rule: "a list of strings, or \"*\"",
  read: Option.liftPredicate((value): value is ReadonlyArray<string> | "*" =>
    value === "*" || (Array.isArray(value) && value.every((entry) => typeof entry === "string"))
  ),
  // With commas between them
  config: (variable) =>
    Config.map(
      Config.String(variable),
      (list) => list.trim() === "*" ? "*" : list.split(",").map((entry) => entry.trim())
    )
})

const path = Options.custom<HttpRouter.PathInput, HttpRouter.PathInput>({
  rule: "a path that begins with a slash",
  read: Option.liftPredicate((value): value is HttpRouter.PathInput =>
    typeof value === "string" && value.startsWith("/")
  ),
  config: Config.String
})

const operator = Options.custom<Context.Key<unknown, Operator>, Context.Key<unknown, Operator>>({
  rule: "the tag of an operator's view",
  read: Option.liftPredicate(Context.isKey)
})

const isIssuer = (value: unknown): value is string =>
  typeof value === "string" && URL.canParse(value) && isTrusted(new URL(value)) && !/[?#]/.test(value)

const resource = Options.custom<string | URL, URL>({
  rule: "an https URL, or http on loopback, without user, query and fragment",
  read: (value) => {
    const text = value instanceof URL ? value.href : value
    return isIssuer(text) ? Option.some(new URL(text)) : Option.none()
  },
  config: Config.String
})

/**
 * @internal
 */
export const authorization = Options.declare<AuthorizationOptions>()(
  { module: "McpHttp", variables: "MCP_REGISTRY_AUTHORIZATION" },
  {
    servers: Options.required(
      listOf("a list of https URLs without query and fragment, or http on loopback", isIssuer)
    ),
    scopes: Options.optional(scopes),
    resource: Options.optional(resource, { shown: "as it is called" }),
    audience: Options.optional(audience, { shown: "the resource" }),
    required: Options.optional(
      Options.custom<(call: Call) => ReadonlyArray<string>, (call: Call) => ReadonlyArray<string>>({
        rule: "a function",
        read: Option.liftPredicate((value): value is (call: Call) => ReadonlyArray<string> =>
          typeof value === "function"
        )
      })
    )
  }
)

/**
 * @internal
 */
export type Authorization = Options.Parsed<typeof authorization.declaration>

const { open: _, ...ofRegistry } = registry.declaration

/**
 * Those that are the registry's.
 *
 * @internal
 */
export const registryOptions = (options: EndpointOptions): Omit<SessionRegistryOptions<never, never, never>, "open"> =>
  Struct.pick(options, Object.keys(ofRegistry) as Array<keyof typeof ofRegistry>)

/**
 * @internal
 */
export const endpoint = Options.declare<EndpointOptions>()({ module: "McpHttp", variables: "MCP_REGISTRY" }, {
  sessions: Options.withDefault(operator, SessionRegistry, { shown: "SessionRegistry" }),
  path: Options.withDefault(path, "/mcp"),
  allowedOrigins: Options.optional(allowList, { shown: "this machine" }),
  allowedHosts: Options.optional(allowList, { shown: "this machine" }),
  maxBodyBytes: Options.withDefault(Options.count, 4 * 1024 * 1024, { shown: "4 MiB" }),
  bodyTimeout: Options.withDefault(Options.timeout, "30 seconds"),
  streamTimeToLive: Options.withDefault(Options.timeToLive, "5 minutes"),
  allowTermination: Options.withDefault(Options.boolean, true),
  authorization: Options.group<AuthorizationOptions, typeof authorization.declaration>(authorization),
  ...ofRegistry
})

/**
 * @internal
 */
export const layer = Options.declare<LayerOptions<never, never>>()({ module: "McpHttp", variables: "MCP_REGISTRY" }, {
  server: Options.required(Options.fn),
  response: Options.withDefault(Options.schema(Schema.Literals(["sse", "json"]), "\"sse\" or \"json\""), "sse"),
  eventStore: Options.optional(Options.fn),
  retryInterval: Options.optional(Options.patience, { shown: "the client's" }),
  maxConcurrentRequests: Options.withDefault(Options.count, 100),
  ...endpoint.declaration
})

const isAgent = (value: unknown): value is Agent =>
  typeof value === "object" && value !== null && "addRequest" in value && typeof value.addRequest === "function"

/**
 * @internal
 */
export const routed = Options.declare<RoutedOptions>()({ module: "McpHttp" }, {
  port: Options.optional(
    Options.custom<number, number>({
      rule: "a port",
      read: Option.liftPredicate((value): value is number =>
        typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= 65_535
      )
    })
  ),
  address: Options.optional(
    Options.custom<(member: ClusterMember) => string | URL, (member: ClusterMember) => unknown>({
      rule: "a function",
      read: Option.liftPredicate((value): value is (member: ClusterMember) => unknown => typeof value === "function")
    })
  ),
  agent: Options.optional(
    Options.custom<Agent, Agent>({ rule: "an Agent of node:http or node:https", read: Option.liftPredicate(isAgent) }),
    { shown: "of its own" }
  ),
  connectTimeout: Options.withDefault(Options.timeout, "2 seconds")
})

/**
 * @internal
 */
export const memoryEventStore = Options.declare<MemoryEventStoreOptions>()({ module: "McpHttp" }, {
  capacity: Options.withDefault(Options.count, 256),
  maxBytes: Options.withDefault(Options.count, 4 * 1024 * 1024, { shown: "4 MiB" })
})
