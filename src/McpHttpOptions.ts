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
import type { Identity } from "./Identity.ts"
import * as Options from "./internal/options.ts"
import {
  declared as registry,
  type Operator,
  type SessionInfo,
  SessionRegistry,
  type SessionRegistryOptions
} from "./SessionRegistry.ts"

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
   * itself. What answers a call lives until the call ends. A client that does not read what it is answered is hung up
   * on after as long, with `guard` after twice as long at most. So no client that has vanished holds its session for
   * longer.
   */
  readonly streamTimeToLive?: Duration.Input | undefined
  /** Whether an owner may end a session with DELETE, by default true. If not, that answers 405. */
  readonly allowTermination?: boolean | undefined
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
   */
  readonly server: (info: SessionInfo, caller: SessionCaller) => Effect.Effect<ServerLike, E, R>
  /**
   * How requests are answered: as a stream of events, which can carry progress and questions to the client, or as JSON,
   * which is less to parse. By default `"sse"`.
   */
  readonly response?: "sse" | "json" | undefined
  /**
   * Makes the store that lets the clients of a session resume a stream that broke, as `McpHttp.memoryEventStore` does:
   * a new one each time, because an SDK transport replays whatever its store has. By default nothing can be resumed.
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

/**
 * @internal
 */
export const memoryEventStore = Options.declare<MemoryEventStoreOptions>()({ module: "McpHttp" }, {
  capacity: Options.withDefault(Options.count, 256),
  maxBytes: Options.withDefault(Options.count, 4 * 1024 * 1024, { shown: "4 MiB" })
})
