/**
 * `McpServers` for `@modelcontextprotocol/client`, the second generation of the SDK: the same files, the same options
 * and those of `McpConnectorV2`. An optional peer dependency: import this module by its own path,
 * `effect-mcp-sessions/McpServersV2`.
 *
 * ```ts
 * type Failure = McpSessionError | UnknownServer | McpServersError
 *
 * class Upstreams extends SessionPool.Tag<Upstreams, McpSession<Client>, Failure>()("app/Upstreams") {}
 *
 * const Pool = Upstreams.layer({ connect: McpServersV2.connect }).pipe(
 *   Layer.provide(McpServersV2.layer("mcp.json")),
 *   Layer.provide(NodeServices.layer)
 * )
 * ```
 */
import type { Client } from "@modelcontextprotocol/client"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { SessionHandle } from "./Connector.ts"
import type { Identity } from "./Identity.ts"
import * as Servers from "./internal/client/servers.ts"
import * as Options from "./internal/options.ts"
import type { InvalidOptions } from "./InvalidOptions.ts"
import * as McpConnectorV2 from "./McpConnectorV2.ts"
import type * as McpServers from "./McpServers.ts"
import type { McpServersError, McpServersIssue, UnknownServer } from "./McpServersError.ts"
import type { McpSession } from "./McpSession.ts"
import type { McpSessionError } from "./McpSessionError.ts"

export * from "./McpServersError.ts"

/**
 * What the servers of a configuration have in common, and a file can't say.
 *
 * @category models
 */
export interface McpServersV2Options extends McpServers.McpServersOptions, McpConnectorV2.Negotiation {}

/**
 * What {@link McpServersV2.make} takes: the same, and a name for the configuration.
 *
 * @category models
 */
export interface McpServersV2MakeOptions extends McpServers.McpServersMakeOptions, McpConnectorV2.Negotiation {}

/**
 * The servers of one configuration, by name, for the second generation of the SDK. See `McpServers`.
 *
 * @category services
 */
export class McpServersV2 extends Context.Service<McpServersV2, {
  /** The names of the servers that can be had, in the order of the file: those that are disabled or broken are none. */
  readonly names: ReadonlyArray<string>
  /** What is wrong with servers of the file, and what of them can't be honoured. */
  readonly problems: ReadonlyArray<McpServersIssue>
  /** The connector of the server with this name. Fails as that of `McpServers`. */
  readonly connector: (name: string) => Effect.Effect<McpConnectorV2.Connector, UnknownServer | McpServersError>
}>()("effect-mcp-sessions/McpServersV2") {
  /**
   * The servers of a configuration that is in memory already. What it may say is in `McpServers.make`.
   *
   * Fails with {@link McpServersError} when there are no servers to be found in it, and with `InvalidOptions` when an
   * option is not what its type says, or unknown.
   */
  static make(
    config: unknown,
    options: McpServersV2MakeOptions = {}
  ): Effect.Effect<McpServersV2["Service"], McpServersError | InvalidOptions> {
    return readers.make(config, options)
  }

  /**
   * Reads the servers from `file` once, when the layer is built. See `McpServers.layer`.
   *
   * Fails with {@link McpServersError} when the file can't be read, is not JSON, or has no servers to be found in it,
   * and with `InvalidOptions` when `file` or an option is not what its type says, or unknown.
   */
  static layer(
    file: string,
    options: McpServersV2Options = {}
  ): Layer.Layer<McpServersV2, McpServersError | InvalidOptions, FileSystem.FileSystem> {
    return Layer.effect(McpServersV2, readers.read(file, options))
  }

  /**
   * The `connect` of a pool of many servers: opens a session at the server that `identity.at(name)` has chosen. Fails
   * as `McpServers.connect` does.
   */
  static connect(
    identity: Identity,
    handle: SessionHandle
  ): Effect.Effect<McpSession<Client>, McpSessionError | UnknownServer | McpServersError, Scope.Scope | McpServersV2> {
    return McpServersV2.use((servers) => Servers.connect(servers, identity, handle))
  }

  /**
   * What is wrong with servers of the configuration, and what of them can't be honoured, in the order of the file.
   */
  static readonly problems: Effect.Effect<ReadonlyArray<McpServersIssue>, never, McpServersV2> = Effect.map(
    Effect.suspend(() => McpServersV2),
    ({ problems }) => problems
  )
}

const declared = Options.declare<McpServersV2MakeOptions>()({ module: "McpServersV2" }, {
  ...Servers.options,
  ...McpConnectorV2.negotiation
})

const readers = Servers.makeReaders<McpServersV2MakeOptions, Client>(
  "McpServersV2",
  declared,
  ({ probeTimeout, versionNegotiation, ...common }) => ({
    stdio: (config) => McpConnectorV2.stdio({ ...common, probeTimeout, versionNegotiation, ...config }),
    http: (config) => McpConnectorV2.http({ ...common, probeTimeout, versionNegotiation, ...config }),
    sse: (config) => McpConnectorV2.sse({ ...common, ...config })
  })
)
