/**
 * Upstream MCP servers from an `mcp.json`, the file in which Claude, Cursor and VS Code keep theirs.
 *
 * One pool serves all of them: `identity.at(name)` chooses the server.
 *
 * ```ts
 * class Upstreams extends SessionPool.Tag<Upstreams, McpSession, McpSessionError | UnknownServer>()("app/Upstreams") {}
 *
 * const Pool = Upstreams.layer({ connect: McpServers.connect }).pipe(
 *   Layer.provide(McpServers.layer("mcp.json")),
 *   Layer.provide(NodeServices.layer)
 * )
 *
 * Upstreams.withSession(identity.at("weather"), (session) => session.callTool({ name: "forecast" }))
 * ```
 */
import type { Implementation } from "@modelcontextprotocol/sdk/types.js"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { SessionHandle } from "./Connector.ts"
import type { Identity } from "./Identity.ts"
import * as McpJson from "./internal/client/mcpJson.ts"
import * as Options from "./internal/options.ts"
import { respond } from "./internal/problem.ts"
import { InvalidOptions } from "./InvalidOptions.ts"
import * as McpConnector from "./McpConnector.ts"
import type { McpSession } from "./McpSession.ts"
import type { McpSessionError } from "./McpSessionError.ts"

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
  /** The names of the servers, in the order of the file. */
  readonly names: ReadonlyArray<string>
  /** The connector of the server with this name. Fails with `UnknownServer` when there is none. */
  readonly connector: (name: string) => Effect.Effect<McpConnector.Connector, UnknownServer>
}>()("effect-mcp-sessions/McpServers") {
  /**
   * The servers of a configuration that is in memory already: `{ mcpServers: { … } }`, or VS Code's
   * `{ servers: { … } }`.
   *
   * - A server has a `command` (with `args`, `env`, `cwd`), or a `url` (with `headers`); `type` is `stdio`, `http`,
   *   `streamable-http` or `sse`, and may be left out: a `url` without it is `http`.
   * - `${VAR}`, `${env:VAR}` and `${VAR:-default}` in any of these values are read from the `ConfigProvider`, so from
   *   the process's environment by default. The default is for a variable that is not set or empty; without one, a
   *   variable that is not set is an error (that provider takes an empty one for not set, unless it preserves empty
   *   strings). Values are expanded once: what a variable holds is taken as it is.
   * - A relative `cwd` or `command` is relative to the working directory of this process, not to the file.
   * - Other properties are ignored: every client has some of its own. Only `envFile` and `headersHelper` are refused,
   *   because without them the server would be another one.
   *
   * Fails with {@link McpServersError}, which lists everything that is wrong and quotes no value, and with
   * `InvalidOptions` when an option is not what its type says, or unknown.
   */
  static make(
    config: unknown,
    options: McpServersMakeOptions = {}
  ): Effect.Effect<McpServers["Service"], McpServersError | InvalidOptions> {
    return Effect.suspend(() => {
      const parsed = declared.parse(options, "make")
      if (Result.isFailure(parsed)) return Effect.fail(parsed.failure)
      const { file = "the configuration", ...others } = options
      return fromConfig(config, others, { file, method: "make" })
    })
  }

  /**
   * Reads the servers from `file` once, when the layer is built. It may have comments and trailing commas, and is read
   * in time that is linear in its length.
   *
   * Fails with {@link McpServersError} when the file can't be read, is not JSON, or is not as {@link McpServers.make}
   * says, and with `InvalidOptions` when `file` or an option is not what its type says, or unknown.
   */
  static layer(
    file: string,
    options: McpServersOptions = {}
  ): Layer.Layer<McpServers, McpServersError | InvalidOptions, FileSystem.FileSystem> {
    return Layer.effect(
      McpServers,
      Effect.gen(function*() {
        yield* Effect.fromResult(declared.parse(Predicate.isObject(options) ? { ...options, file } : options))
        const fileSystem = yield* FileSystem.FileSystem
        const text = yield* Effect.mapError(
          fileSystem.readFileString(file),
          ({ reason }) => {
            const issue = reason._tag === "NotFound" ? "does not exist" : `can't be read (${reason._tag})`
            return new McpServersError({ file, issues: [{ path: "", issue }] })
          }
        )
        const json = McpJson.parse(text)
        if (Result.isFailure(json)) return yield* new McpServersError({ file, issues: [json.failure] })
        return yield* fromConfig(json.success, options, { file, method: "layer" })
      })
    )
  }

  /**
   * The `connect` of a pool of many servers: opens a session at the server that `identity.at(name)` has chosen.
   *
   * Fails with {@link UnknownServer} when no server has that name, or when none was chosen.
   */
  static connect(
    identity: Identity,
    handle: SessionHandle
  ): Effect.Effect<McpSession, McpSessionError | UnknownServer, Scope.Scope | McpServers> {
    const name = Option.getOrElse(identity.upstream, () => "")
    return McpServers.use((servers) =>
      Effect.flatMap(
        Effect.mapError(servers.connector(name), ({ known }) => new UnknownServer({ name, known, method: "connect" })),
        (connector) => connector(identity, handle)
      )
    )
  }
}

// -----------------------------------------------------------------------------
// Options
// -----------------------------------------------------------------------------

const clientInfo = Options.custom<Implementation, Implementation>({
  rule: "an object with a name and a version",
  read: Option.liftPredicate((value): value is Implementation =>
    Predicate.isObject(value) && typeof value["name"] === "string" && typeof value["version"] === "string"
  )
})

const fileName = Options.custom<string, string>({
  rule: "the path of a file, as a text that is not empty",
  read: Option.liftPredicate((value): value is string => typeof value === "string" && value !== "")
})

const declared = Options.declare<McpServersMakeOptions>()({ module: "McpServers" }, {
  file: Options.optional(fileName, { shown: "the configuration" }),
  forwardCredentials: Options.optional(Options.fn),
  clientInfo: Options.optional(clientInfo, { shown: "this library" }),
  connectTimeout: Options.optional(Options.timeout),
  requestTimeout: Options.withDefault(Options.timeout, "60 seconds"),
  listTimeToLive: Options.withDefault(Options.span, "1 minute"),
  sampling: Options.optional(Options.fn),
  elicitation: Options.optional(Options.fn),
  roots: Options.optional(Options.fn)
})

// -----------------------------------------------------------------------------
// Servers
// -----------------------------------------------------------------------------

interface Source {
  readonly file: string
  readonly method: "layer" | "make"
}

const fromConfig = Effect.fnUntraced(function*(
  config: unknown,
  options: McpServersOptions,
  { file, method }: Source
): Effect.fn.Return<McpServers["Service"], McpServersError | InvalidOptions> {
  const configs = yield* McpJson.decode(config)
  if (Result.isFailure(configs)) return yield* new McpServersError({ file, issues: configs.failure, method })
  const connectors = new Map<string, McpConnector.Connector>()
  for (const [name, server] of configs.success) {
    const forwardCredentials: unknown = options.forwardCredentials?.(name) ?? false
    if (typeof forwardCredentials !== "boolean") {
      const issue = `must answer true or false for "${name}"`
      return yield* new InvalidOptions({ module: "McpServers", method, option: "forwardCredentials", issue })
    }
    connectors.set(name, toConnector(name, server, { ...options, forwardCredentials }))
  }
  const names = Array.from(connectors.keys())
  return {
    names,
    connector: (name) => {
      const connector = connectors.get(name)
      return connector === undefined
        ? Effect.fail(new UnknownServer({ name, known: names, method: "connector" }))
        : Effect.succeed(connector)
    }
  }
})

const toConnector = (
  name: string,
  server: McpJson.ServerConfig,
  { forwardCredentials, ...options }: Omit<McpConnector.Options, "name"> & { readonly forwardCredentials: boolean }
): McpConnector.Connector => {
  if (server.type === "stdio") {
    const { type: _, ...config } = server
    return McpConnector.stdio({ ...options, ...config, name })
  }
  const { type, ...config } = server
  const http = { ...options, ...config, name, forwardCredentials }
  return type === "sse" ? McpConnector.sse(http) : McpConnector.http(http)
}

// -----------------------------------------------------------------------------
// Errors
// -----------------------------------------------------------------------------

/**
 * One thing that is wrong with a configuration.
 *
 * @category errors
 */
export const McpServersIssue = Schema.Struct({
  /** Where, such as `mcpServers.weather.args[1]`; empty for the file as a whole. */
  path: Schema.String,
  /** What, worded to follow `path`. It may name a variable, and never quotes a value. */
  issue: Schema.String
})

/**
 * One thing that is wrong with a configuration: where, and what.
 *
 * @category errors
 */
export type McpServersIssue = typeof McpServersIssue.Type

/**
 * A configuration that can't be used, with everything that is wrong with it. It is found when the layer builds.
 * Should it reach a client all the same, it answers 500 and names nothing.
 *
 * @category errors
 */
export class McpServersError extends Schema.TaggedError<McpServersError>("effect-mcp-sessions/McpServersError")(
  "McpServersError",
  {
    /** The file as it was given. */
    file: Schema.String,
    /** Everything that is wrong, in the order of the file: at least one. */
    issues: Schema.NonEmptyArray(McpServersIssue),
    /** The function that it was given to: `layer` (the default) or `make`. */
    method: Schema.Literals(["layer", "make"]).pipe(Schema.withConstructorDefault(Effect.succeed("layer" as const)))
  }
) {
  readonly module = "McpServers"
  readonly reference = "invalid-servers"

  /** Where the first issue is. */
  get path(): string {
    return this.issues[0].path
  }

  /** What the first issue is. */
  get issue(): string {
    return this.issues[0].issue
  }

  override get message(): string {
    const lines = this.issues.map(({ issue, path }) => path === "" ? `the file ${issue}` : `${path} ${issue}`)
    return lines.length === 1
      ? `${this.file}: ${lines[0]}.`
      : `${this.file} has ${lines.length} problems:${lines.map((line) => `\n- ${line}.`).join("")}`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The server is misconfigured" })
  }
}

/**
 * The identity chose a server that the configuration does not have, or chose none. Answers 404.
 *
 * @category errors
 */
export class UnknownServer
  extends Schema.TaggedError<UnknownServer>("effect-mcp-sessions/UnknownServer")("UnknownServer", {
    /** The name that was given to `identity.at(name)`; empty if it was not called. */
    name: Schema.String,
    /** The names that there are, in the order of the file. */
    known: Schema.Array(Schema.String),
    /** The function that was asked for it: `connect` (the default), or the service's `connector`. */
    method: Schema.Literals(["connect", "connector"]).pipe(
      Schema.withConstructorDefault(Effect.succeed("connect" as const))
    )
  })
{
  readonly module = "McpServers"
  readonly reference = "unknown-server"

  override get message(): string {
    const what = this.name === ""
      ? "The identity names no server; choose one with identity.at(name)"
      : `There is no server "${this.name}"`
    const known = this.known.length === 0 ? "none" : this.known.map((name) => `"${name}"`).join(", ")
    return `${what}. Known servers: ${known}.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 404, title: "There is no such MCP server" })
  }
}
