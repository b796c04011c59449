/**
 * MCP sessions over HTTP: {@link layer} hosts an SDK server for each, {@link guard} gives those of Effect's own
 * `McpServer.layerHttp` owners and an end.
 *
 * Both put a `SessionRegistry` behind a path of the `HttpRouter`. Who a request is made for is `IdentityResolver`'s to
 * say, on every request: an id is a name, never a credential.
 *
 * | request | answer |
 * |---|---|
 * | `initialize` without an id | 200 and a new `Mcp-Session-Id`, the caller's own |
 * | `initialize` with an id | 400 if it is a live session of the caller, else 404 |
 * | anything else without an id | 400 |
 * | unknown, expired, terminated, malformed, someone else's, two ids | 404, one and the same |
 * | no identity, or a malformed one; a token for another | 401 with `WWW-Authenticate` |
 * | a token that does not cover what is called | 403 with `WWW-Authenticate` |
 * | DELETE | 204, afterwards 404 |
 * | in flight when its session ends | a JSON-RPC error for each request, at once; 404 only for what was not started |
 * | no room | 503 with `Retry-After` |
 * | more requests of one session than may be in flight | 429 with `Retry-After` |
 * | shutting down | 503 |
 * | a `Host` or `Origin` that is not allowed | 403 |
 * | wrong protocol version, `Accept`, `Content-Type`, JSON, method | 400, 406, 415, 400, 405 with `Allow` |
 * | second GET stream | 200, and the first ends |
 * | body too large, too slow | 413, 408 |
 * | an empty batch, one of more than 100 | 400 |
 * | `Upgrade` | 400 |
 *
 * What is wrong with the session is told before what is wrong with the body.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type * as Config from "effect/Config"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as Tracer from "effect/Tracer"
import type { ClusterMembership } from "./ClusterMembership.ts"
import type { AccessDenied, Identity } from "./Identity.ts"
import type { IdentityResolver } from "./IdentityResolver.ts"
import * as Callers from "./internal/host/callers.ts"
import * as MemoryEventStore from "./internal/host/eventStore.ts"
import * as HostGuard from "./internal/host/guard.ts"
import * as HostLayer from "./internal/host/layer.ts"
import * as Routing from "./internal/host/routing.ts"
import { type Configurable, InvalidOptions } from "./InvalidOptions.ts"
import * as Declared from "./McpHttpOptions.ts"
import type {
  EndpointOptions,
  LayerOptions,
  MemoryEventStoreOptions,
  Provides,
  RoutedOptions
} from "./McpHttpOptions.ts"
import type { SessionRegistry } from "./SessionRegistry.ts"

export type * from "./McpHttpOptions.ts"

/**
 * Hosts an SDK server for each session, over Streamable HTTP: POST, GET for the server's own stream, DELETE.
 *
 * A request that runs, whether or not somebody still waits for its answer, and a stream that is open hold their
 * session. The session ends them when it ends, and all of them end with the layer, or with the Node server that they
 * came to as soon as that stops listening.
 *
 * It provides the `SessionRegistry` of its sessions, so that an operator can list, count and terminate them. Where
 * there are several such layers, each is given a tag of its own for that, with the option `sessions`.
 *
 * Fails with `InvalidOptions` when an option has no meaning.
 *
 * **Example** (A server of its own for everybody)
 *
 * ```ts
 * import { createServer } from "node:http"
 * import { NodeHttpServer } from "@effect/platform-node"
 * import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js"
 * import { Effect, Layer } from "effect"
 * import { HttpRouter } from "effect/http"
 * import { IdentityResolver, McpHttp } from "effect-mcp-sessions"
 *
 * const Mcp = McpHttp.layer({
 *   server: () => Effect.sync(() => new McpServer({ name: "example", version: "1.0.0" })),
 *   capacityPerOwner: 10
 * }).pipe(Layer.provide(IdentityResolver.layer({ mode: "required" })))
 *
 * export const main = HttpRouter.serve(Mcp).pipe(Layer.provide(NodeHttpServer.layer(createServer, { port: 3000 })))
 * ```
 *
 * @category layers
 */
export const layer = <E = never, R = never, Sessions = SessionRegistry>(
  options: LayerOptions<E, R> & Provides<Sessions>
): Layer.Layer<
  Sessions,
  InvalidOptions,
  HttpRouter.HttpRouter | IdentityResolver | Exclude<R, Scope.Scope>
> =>
  provide(
    HostLayer.make(options, "layer")
  )

/**
 * {@link layer} with options from the configuration, and from `options` where that is silent. The variables are named
 * after the options: `MCP_REGISTRY_PATH`, `MCP_REGISTRY_CAPACITY`, …; README has the table. Lists have commas.
 *
 * An option may be a `Config` of your own, which is read in place of its variable; and so may all of them at once, and
 * then no variable of the library is read.
 *
 * Fails with `ConfigError` when a variable can't be read, and with `InvalidOptions` when what it says has no meaning.
 *
 * @category layers
 */
export const layerConfig = <E = never, R = never, Sessions = SessionRegistry>(
  options: Configurable<LayerOptions<E, R>> & Provides<Sessions>
): Layer.Layer<
  Sessions,
  InvalidOptions | Config.ConfigError,
  HttpRouter.HttpRouter | IdentityResolver | Exclude<R, Scope.Scope>
> =>
  provide(
    Effect.flatMap(Declared.layer.configured(options), (configured) => HostLayer.make(configured, "layerConfig"))
  )

/**
 * Gives the sessions of Effect's own `McpServer.layerHttp` owners, an end, and a cap: as middleware of the router in
 * front of its endpoint. Build that with `allowSessionTermination: true`, or its sessions can't be freed when they end
 * here; nothing else of it changes.
 *
 * The ids that clients see are the registry's. Requests of the protocol version 2026-07-28, which has no sessions, are
 * made for somebody too, and otherwise let through; their session header is dropped. Origins are checked here and
 * inside: list them in both.
 *
 * Nothing reaches that server but POSTs of callers who are known. A `path` that no route of the router has stops the
 * build of the app with `InvalidOptions`, as a defect; and what reaches an MCP server by any other path is answered
 * with 503 and, once, logged: in a router with a guard, every MCP server has one, or is an endpoint of {@link layer}.
 *
 * It provides the `SessionRegistry` of these sessions.
 *
 * Fails with `InvalidOptions` when an option has no meaning.
 *
 * **Example** (Effect's server, with owners)
 *
 * ```ts
 * const Mcp = Layer.merge(
 *   McpServer.layerHttp({ name: "example", version: "1.0.0", path: "/mcp", protocols, allowSessionTermination: true }),
 *   McpHttp.guard({ path: "/mcp", idleTimeToLive: "1 hour" })
 * ).pipe(Layer.provide(IdentityResolver.layer({ mode: "required" })))
 * ```
 *
 * @category layers
 */
export const guard = <Sessions = SessionRegistry>(
  options: EndpointOptions & Provides<Sessions> = {}
): Layer.Layer<Sessions, InvalidOptions, HttpRouter.HttpRouter | IdentityResolver> =>
  provide(HostGuard.make(options, "guard"))

/**
 * {@link guard} with options from the configuration, as {@link layerConfig} reads them.
 *
 * @category layers
 */
export const guardConfig = <Sessions = SessionRegistry>(
  options: Configurable<EndpointOptions> & Provides<Sessions> = {}
): Layer.Layer<
  Sessions,
  InvalidOptions | Config.ConfigError,
  HttpRouter.HttpRouter | IdentityResolver
> =>
  provide(
    Effect.flatMap(Declared.endpoint.configured(options), (configured) => HostGuard.make(configured, "guardConfig"))
  )

/**
 * Lets each node of a cluster serve the sessions of all: an endpoint that `ClusterMembership` knows peers of answers a
 * request of any session, whichever node has it. Wrap the endpoint of every node in it.
 *
 * The ids of its sessions end with a tag of the node that has minted them. A request with another's tag is handed on to
 * that node over HTTP, at most once, with its headers and its credentials, and so is the answer, streams included. The
 * node that has the session says who is calling and what they may have: to this one nothing of it is known. Nothing is
 * stored for a session, and none moves.
 *
 * | the session's node | answer |
 * |---|---|
 * | lives | its own, byte for byte but for the date |
 * | is no member any more | 404: the client begins again |
 * | is not known, and the store is silent | 503 with `Retry-After` |
 * | can't be connected with | 503 with `Retry-After` |
 * | is lost before it has answered | a JSON-RPC error for each request, else 502: they may have run |
 *
 * After `ClusterMembership.drain` new sessions begin at the other nodes, and those that are here go on until this node
 * stops; then they are 404.
 *
 * Fails with `InvalidOptions` when an option has no meaning, and when there is no endpoint in the layer.
 *
 * **Example** (One of several replicas)
 *
 * ```ts
 * const Mcp = McpHttp.layer({ server: makeServer, allowedHosts: ["mcp.example.com"] }).pipe(
 *   McpHttp.routed({ port: 3000 }),
 *   Layer.provide(ClusterNode.layerMemory({ memory: ClusterNode.memory(), name: "a", keySecret }))
 * )
 * ```
 *
 * @category combinators
 */
export const routed =
  (options: RoutedOptions) =>
  <A, E, R>(endpoint: Layer.Layer<A, E, R>): Layer.Layer<A, E | InvalidOptions, R | ClusterMembership> =>
    Layer.unwrap(
      Effect.map(Routing.make(options), ({ isJoined, router }) =>
        Layer.tap(Layer.provide(endpoint, Layer.succeed(Routing.Routing, router)), () =>
          isJoined() ? Effect.void : new InvalidOptions({
            module: "McpHttp",
            method: "routed",
            option: "endpoint",
            issue: "must be a layer with an endpoint of McpHttp that is built in no other place"
          })))
    )

// Under the tag that was asked for. That is one of `Sessions`, and the default if there was none.
const provide = <Sessions, E, R>(
  made: Effect.Effect<Context.Context<unknown>, E, R>
): Layer.Layer<Sessions, E, Exclude<R, Scope.Scope>> =>
  Layer.effectContext(made as Effect.Effect<Context.Context<Sessions>, E, R>)

// -----------------------------------------------------------------------------
// Event stores
// -----------------------------------------------------------------------------

/**
 * Makes event stores in memory, one for each session, which is where they end.
 *
 * Each keeps the latest events of its session: `capacity` of them at most, by default 256, and `maxBytes` at most, by
 * default 4 MiB of JSON. A client that was away for longer misses those before; an event that is larger than that is
 * not kept at all.
 *
 * Throws `InvalidOptions` when an option has no meaning.
 *
 * @category constructors
 */
export const memoryEventStore = (options: MemoryEventStoreOptions = {}): () => EventStore => {
  const limits = Result.getOrThrow(Declared.memoryEventStore.parse(options, "memoryEventStore"))
  return () => MemoryEventStore.make(limits)
}

// -----------------------------------------------------------------------------
// Requests
// -----------------------------------------------------------------------------

/**
 * The identity of the request that a handler of the SDK's server is answering, with the credentials that came with it:
 * `SessionCaller.identity` is the session's, and may have newer ones by now. `extra` is what the SDK hands to the
 * handler. None if the request did not come by way of {@link layer}.
 *
 * The SDK has its own way to say it, `extra.authInfo`: there when the request has credentials, its `token` what they
 * are, its `clientId` the identity's key, its `extra.identity` the identity. Nobody has verified it but
 * `IdentityResolver`.
 *
 * **Example** (A handler that knows whom it serves)
 *
 * ```ts
 * server.registerTool("whoami", {}, (extra) => ({
 *   content: [{ type: "text", text: Option.match(McpHttp.identityOf(extra), {
 *     onNone: () => "nobody",
 *     onSome: ({ key }) => key
 *   }) }]
 * }))
 * ```
 *
 * @category accessors
 */
export const identityOf = (extra: { readonly requestInfo?: object | undefined }): Option.Option<Identity> =>
  Callers.identityOf(extra)

/**
 * The server span of the request that a handler of the SDK's server is answering, for what the handler runs to be part
 * of the same trace. Without a tracer there are no spans: then it is the caller's, as `_meta` or a header named it.
 * None if nothing has named one, if the request did not come by way of {@link layer}, or came with others in a batch.
 *
 * **Example** (A tool whose work is part of its caller's trace)
 *
 * ```ts
 * server.registerTool("weather", {}, (extra) =>
 *   Effect.runPromise(Option.match(McpHttp.spanOf(extra), {
 *     onNone: () => forecast,
 *     onSome: (span) => Effect.withParentSpan(forecast, span)
 *   })))
 * ```
 *
 * @category accessors
 */
export const spanOf = (extra: { readonly requestInfo?: object | undefined }): Option.Option<Tracer.AnySpan> =>
  Callers.spanOf(extra)

/**
 * Lets the handler of an SDK server go on if the caller whose request it is answering has been granted these scopes
 * (`Identity.scopes`), and else fails with `AccessDenied`. Needs {@link layer} with the option `authorization`.
 *
 * Asked before the handler has waited for anything, it has the request answered with 403 `insufficient_scope`, as the
 * option `required` does, so that a client can get a token that covers it. Later, or in a batch, the stream of its
 * answer has begun, and what the SDK makes of the error is the answer. Where `method` and `params` say which scopes are
 * needed, `required` is better: it holds in every case, and for `guard` too. A handler that could do with less looks at
 * `Identity.scopes` instead.
 *
 * **Example** (A tool that needs more than others)
 *
 * ```ts
 * server.registerTool("weather", {}, (extra) =>
 *   Effect.runPromise(Effect.andThen(McpHttp.requireScopes(extra, ["weather:read"]), forecast)))
 * ```
 *
 * @category combinators
 */
export const requireScopes = (
  extra: { readonly requestInfo?: object | undefined },
  scopes: ReadonlyArray<string>
): Effect.Effect<void, AccessDenied> => Callers.requireScopes(extra, scopes)
