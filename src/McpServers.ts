/**
 * Upstream MCP servers from an `mcp.json`, the file in which Claude, Cursor, VS Code and others keep theirs.
 *
 * One pool serves all of them: `identity.at(name)` chooses the server.
 *
 * ```ts
 * type Failure = McpSessionError | UnknownServer | McpServersError
 *
 * class Upstreams extends SessionPool.Tag<Upstreams, McpSession, Failure>()("app/Upstreams") {}
 *
 * const Pool = Upstreams.layer({ connect: McpServers.connect }).pipe(
 *   Layer.provide(McpServers.layer("mcp.json")),
 *   Layer.provide(NodeServices.layer)
 * )
 *
 * Upstreams.withSession(identity.at("weather"), (session) => session.callTool({ name: "forecast" }))
 * ```
 */
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
import * as McpConnector from "./McpConnector.ts"
import type { McpServersError, McpServersIssue, UnknownServer } from "./McpServersError.ts"
import type { McpSession } from "./McpSession.ts"
import type { McpSessionError } from "./McpSessionError.ts"
import type { SdkClient } from "./Session.ts"

export * from "./McpServersError.ts"

/**
 * What the servers of a configuration have in common, and a file can't say.
 *
 * @category models
 */
export interface McpServersOptions extends Omit<McpConnector.Options, "name"> {
  /**
   * Whether the server called `name` is sent the identity's credentials, as `McpConnector.http` does with its option of
   * this name. Only for servers with a `url`. Default: none of them.
   */
  readonly forwardCredentials?: ((name: string) => boolean) | undefined
  /**
   * What `${workspaceFolder}` stands for. Default: the folder that the file is in, or that its `.vscode`, `.cursor` or
   * other hidden folder is in; without a file the working directory of this process.
   */
  readonly workspaceFolder?: string | undefined
}

/**
 * What {@link McpServers.make} takes: the same, and a name for the configuration.
 *
 * @category models
 */
export interface McpServersMakeOptions extends McpServersOptions {
  /** What errors call the configuration. The default is `"the configuration"`. */
  readonly file?: string | undefined
}

/**
 * The servers of one configuration, by name.
 *
 * @category services
 */
export class McpServers extends Context.Service<McpServers, {
  /** The names of the servers that can be had, in the order of the file: those that are disabled or broken are none. */
  readonly names: ReadonlyArray<string>
  /**
   * What is wrong with servers of the file, and what of them can't be honoured. A server that is still in `names` works
   * in spite of it.
   */
  readonly problems: ReadonlyArray<McpServersIssue>
  /**
   * The connector of the server with this name. Fails with `UnknownServer` when there is none or it is disabled, and
   * with `McpServersError` when what the file says of it can't be used.
   */
  readonly connector: (name: string) => Effect.Effect<McpConnector.Connector, UnknownServer | McpServersError>
}>()("effect-mcp-sessions/McpServers") {
  /**
   * The servers of a configuration that is in memory already, as any of these clients writes it:
   *
   * | where                                   | who                                                                |
   * |-----------------------------------------|--------------------------------------------------------------------|
   * | `mcpServers`                            | Claude, Cursor, Windsurf, Cline, Roo, Gemini, Copilot CLI          |
   * | `servers` with `inputs`, `mcp.servers`  | VS Code, in `mcp.json` and in its settings                         |
   * | `context_servers`                       | Zed                                                                |
   * | `mcp`, `mcp.servers`                    | opencode                                                           |
   *
   * - A server has a `command`, with `args`, `env` (or `environment`), `envFile` and `cwd`; it may be an array, or
   *   Zed's `{ path, args, env }`. Or it has a `url`, with `headers`; `serverUrl`, `httpUrl` and `baseUrl` are others
   *   of its names. `type` (or `transport`, `transportType`) may be left out, and is one of `stdio` and `local`,
   *   `http`, `streamable-http` and `remote`, `sse`, in any case and with any hyphens. A `url` without a type is SSE if
   *   its path ends in `/sse`, else Streamable HTTP.
   * - `disabled: true` and `enabled: false` make a server none of the `names`, and so do Gemini's `mcp.allowed` and
   *   `mcp.excluded`.
   * - `${VAR}`, `${env:VAR}`, `${VAR:-default}` and `$VAR` in any of these values are read from the `ConfigProvider`,
   *   so from the process's environment by default. The default is for a variable that is not set or empty; without
   *   one, a variable that is not set is a problem (that provider takes an empty one for not set, unless it preserves
   *   empty strings). A `$VAR` that is not set is left as it is, and so is a `${VAR}` in `args` that only the server's
   *   own `env` sets. Values are expanded once: what a variable holds is taken as it is.
   * - `${input:id}` is read from the `ConfigProvider` too, as `id` or, since variables have no hyphens, in constant
   *   case: `api-key` is `API_KEY`. Else it is the `default` of the input. One with `password: true` is a secret
   *   wherever it is used.
   * - `${workspaceFolder}`, `${workspaceFolderBasename}`, `${userHome}` and `${pathSeparator}` are what they are in an
   *   editor, see the option `workspaceFolder`. `${file:path}`, and `{file:path}` and `{env:VAR}` of opencode, are what
   *   is in the file or variable. Files are read with the `FileSystem`, if there is one, and a relative path is one
   *   from the folder of the configuration; that of an `envFile` is one from the workspace folder.
   * - A relative `cwd` or `command` is relative to the working directory of this process, not to the file.
   * - Other properties are ignored, for every client has some of its own: `timeout` too, which is in seconds here and
   *   in milliseconds there, and lists of tools.
   *
   * What is wrong with one server, or asks for what is not there (WebSocket, `headersHelper`, `oauth` where no
   * credentials come another way), costs that server: it is none of the `names`, whoever asks for it is told what to
   * mend, `problems` has it, and it is logged as a warning. Nothing that is told quotes a value.
   *
   * Fails with {@link McpServersError} when there are no servers to be found in it, and with `InvalidOptions` when an
   * option is not what its type says, or unknown.
   */
  static make(
    config: unknown,
    options: McpServersMakeOptions = {}
  ): Effect.Effect<McpServers["Service"], McpServersError | InvalidOptions> {
    return readers.make(config, options)
  }

  /**
   * Reads the servers from `file` once, when the layer is built, as {@link McpServers.make} says. It may have comments
   * and trailing commas, and is read in time that is linear in its length.
   *
   * Fails with {@link McpServersError} when the file can't be read, is not JSON, or has no servers to be found in it,
   * and with `InvalidOptions` when `file` or an option is not what its type says, or unknown.
   */
  static layer(
    file: string,
    options: McpServersOptions = {}
  ): Layer.Layer<McpServers, McpServersError | InvalidOptions, FileSystem.FileSystem> {
    return Layer.effect(McpServers, readers.read(file, options))
  }

  /**
   * The `connect` of a pool of many servers: opens a session at the server that `identity.at(name)` has chosen.
   *
   * Fails with {@link UnknownServer} when no server has that name, it is disabled, or none was chosen, and with
   * {@link McpServersError} when what the file says of it can't be used.
   */
  static connect(
    identity: Identity,
    handle: SessionHandle
  ): Effect.Effect<McpSession, McpSessionError | UnknownServer | McpServersError, Scope.Scope | McpServers> {
    return McpServers.use((servers) => Servers.connect(servers, identity, handle))
  }

  /**
   * What is wrong with servers of the configuration, and what of them can't be honoured, in the order of the file.
   */
  static readonly problems: Effect.Effect<ReadonlyArray<McpServersIssue>, never, McpServers> = Effect.map(
    Effect.suspend(() => McpServers),
    ({ problems }) => problems
  )
}

// -----------------------------------------------------------------------------
// Options
// -----------------------------------------------------------------------------

const declared = Options.declare<McpServersMakeOptions>()({ module: "McpServers" }, Servers.options)

const readers = Servers.makeReaders<McpServersMakeOptions, SdkClient>("McpServers", declared, (common) => ({
  stdio: (config) => McpConnector.stdio({ ...common, ...config }),
  http: (config) => McpConnector.http({ ...common, ...config }),
  sse: (config) => McpConnector.sse({ ...common, ...config })
}))
