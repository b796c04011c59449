/**
 * From what `mcp.json` says to a connector for each server, for either generation of the SDK.
 */
import type { Implementation } from "@modelcontextprotocol/sdk/types.js"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type { Connector, SessionHandle } from "../../Connector.ts"
import type { Identity } from "../../Identity.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import { McpServersError, type McpServersIssue, UnknownServer } from "../../McpServersError.ts"
import type { McpSessionError } from "../../McpSessionError.ts"
import type { McpSession } from "../../Session.ts"
import * as Options from "../options.ts"
import { KnownSecrets } from "./knownSecrets.ts"
import * as McpJson from "./mcpJson.ts"

/** The servers of one configuration, for clients of the class `C`. */
interface Servers<out C> {
  readonly names: ReadonlyArray<string>
  readonly problems: ReadonlyArray<McpServersIssue>
  readonly connector: (name: string) => Effect.Effect<Connector<never, C>, UnknownServer | McpServersError>
}

interface Source<C> {
  readonly module: string
  readonly method: "layer" | "make"
  /** What errors call the configuration. */
  readonly file: string
  /** Where it is. None if it was in memory. */
  readonly path?: string | undefined
  readonly workspaceFolder: string | undefined
  readonly forwardCredentials: ((name: string) => boolean) | undefined
  readonly connectorOf: (name: string, server: McpJson.ServerConfig, forwardCredentials: boolean) => Connector<never, C>
}

const fromFile = Effect.fnUntraced(function*<C>(
  path: string,
  source: Omit<Source<C>, "file" | "path" | "method">
): Effect.fn.Return<Servers<C>, McpServersError | InvalidOptions, FileSystem.FileSystem> {
  const fileSystem = yield* FileSystem.FileSystem
  const text = yield* Effect.mapError(
    fileSystem.readFileString(path),
    ({ reason }) => {
      const issue = reason._tag === "NotFound" ? "does not exist" : `can't be read (${reason._tag})`
      return new McpServersError({ file: path, issues: [{ path: "", issue }] })
    }
  )
  const json = McpJson.parse(text)
  if (Result.isFailure(json)) return yield* new McpServersError({ file: path, issues: [json.failure] })
  return yield* fromConfig(json.success, { ...source, file: path, path, method: "layer" })
})

const fromConfig = Effect.fnUntraced(function*<C>(
  written: unknown,
  { connectorOf, file, forwardCredentials, method, module, path, workspaceFolder }: Source<C>
): Effect.fn.Return<Servers<C>, McpServersError | InvalidOptions> {
  const decoded = yield* McpJson.decode(written, { file: path, workspaceFolder })
  if (Result.isFailure(decoded)) return yield* new McpServersError({ file, issues: [decoded.failure], method })
  const { disabled, servers } = decoded.success
  const problems: Array<McpServersIssue> = []
  const connectors = new Map<string, Connector<never, C>>()
  const broken = new Map<string, Arr.NonEmptyReadonlyArray<McpServersIssue>>()
  for (const [name, server] of servers) {
    const isForwarded: unknown = forwardCredentials?.(name) ?? false
    if (typeof isForwarded !== "boolean") {
      const issue = `must answer true or false for "${name}"`
      return yield* new InvalidOptions({ module, method, option: "forwardCredentials", issue })
    }
    const { config, issues } = withLogin(server, isForwarded)
    const named = issues.map(({ issue, path: at }): McpServersIssue => ({ server: name, path: at, issue }))
    problems.push(...named)
    if (config !== undefined) {
      const connector = connectorOf(name, config, isForwarded)
      connectors.set(
        name,
        (identity, handle) => Effect.provideService(connector(identity, handle), KnownSecrets, server.secrets)
      )
    } else if (Arr.isReadonlyArrayNonEmpty(named)) {
      broken.set(name, named)
    }
  }
  for (const problem of problems) {
    yield* Effect.logWarning(`${file}: ${problem.path} ${problem.issue}.`)
  }
  const names = Array.from(connectors.keys())
  return {
    names,
    problems,
    connector: (name) => {
      const connector = connectors.get(name)
      if (connector !== undefined) return Effect.succeed(connector)
      const issues = broken.get(name)
      return issues !== undefined
        ? Effect.fail(new McpServersError({ file, issues, method: "connector" }))
        : Effect.fail(new UnknownServer({ name, known: names, disabled: disabled.has(name), method: "connector" }))
    }
  }
})

/** What says where the servers are and which of them are sent credentials; all else is the connectors'. */
interface Shared {
  readonly file?: string | undefined
  readonly workspaceFolder?: string | undefined
  readonly forwardCredentials?: ((name: string) => boolean) | undefined
}

type ConfigOf<Type extends McpJson.ServerConfig["type"]> =
  & Omit<Extract<McpJson.ServerConfig, { readonly type: Type }>, "type">
  & { readonly name: string }

type HttpConfig = ConfigOf<"http" | "sse"> & { readonly forwardCredentials: boolean }

/** The connectors of a generation, with the options that all servers of a configuration have in common. */
interface Connectors<C> {
  readonly stdio: (config: ConfigOf<"stdio">) => Connector<never, C>
  readonly http: (config: HttpConfig) => Connector<never, C>
  readonly sse: (config: HttpConfig) => Connector<never, C>
}

/**
 * Both ways to the servers of one generation of the SDK, with options `O` and clients `C`.
 */
export const makeReaders = <O extends Shared, C>(
  module: string,
  { parse }: Pick<Options.Options<unknown>, "parse">,
  connectorsOf: (options: Omit<O, keyof Shared>) => Connectors<C>
) => {
  const sourceOf = ({ file = "the configuration", forwardCredentials, workspaceFolder, ...others }: O) => {
    const connectors = connectorsOf(others)
    return {
      module,
      file,
      workspaceFolder,
      forwardCredentials,
      connectorOf: (name: string, server: McpJson.ServerConfig, isForwarded: boolean) => {
        if (server.type === "stdio") {
          const { type: _, ...config } = server
          return connectors.stdio({ ...config, name })
        }
        const { type, ...config } = server
        return connectors[type]({ ...config, name, forwardCredentials: isForwarded })
      }
    }
  }

  return {
    /** What is in memory already. */
    make: Effect.fnUntraced(function*(config: unknown, options: O) {
      yield* Effect.fromResult(parse(options, "make"))
      return yield* fromConfig(config, { ...sourceOf(options), method: "make" })
    }),
    /** A file, for a layer. */
    read: Effect.fnUntraced(function*(file: string, options: O) {
      yield* Effect.fromResult(parse(Options.isRecord(options) ? { ...options, file } : options))
      return yield* fromFile(file, sourceOf(options))
    })
  }
}

/** Nobody is here who could log in, so such a server is of use only if credentials come another way. */
const withLogin = (
  { config, issues, login }: McpJson.Server,
  isForwarded: boolean
): Pick<McpJson.Server, "config" | "issues"> => {
  if (login === undefined || config === undefined || config.type === "stdio") return { config, issues }
  const hasHeader = Object.keys(config.headers).some((name) => name.toLowerCase() === "authorization")
  const source = hasHeader ? "its `headers` have an Authorization" : "it is sent the credentials of its callers"
  return hasHeader || isForwarded
    ? { config, issues: [...issues, { path: login, issue: `is not used, because nobody logs in here: ${source}` }] }
    : {
      config: undefined,
      issues: [...issues, {
        path: login,
        issue: "is not supported, because nobody logs in here: put an Authorization into `headers`, " +
          "or send the credentials of its callers with `forwardCredentials`"
      }]
    }
}

/** Opens a session at the server that the identity has chosen. */
export const connect = <C>(
  servers: Servers<C>,
  identity: Identity,
  handle: SessionHandle
): Effect.Effect<McpSession<C>, McpSessionError | UnknownServer | McpServersError, Scope.Scope> => {
  const name = Option.getOrElse(identity.upstream, () => "")
  return Effect.flatMap(
    Effect.mapError(servers.connector(name), (error) =>
      error._tag === "UnknownServer"
        ? new UnknownServer({ name, known: error.known, disabled: error.disabled, method: "connect" })
        : new McpServersError({ file: error.file, issues: error.issues, method: "connect" })),
    (connector) => connector(identity, handle)
  )
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

const path = (what: string) =>
  Options.custom<string, string>({
    rule: `the path of a ${what}, as a text that is not empty`,
    read: Option.liftPredicate((value): value is string => typeof value === "string" && value !== "")
  })

/** What both generations take. */
export const options = {
  file: Options.optional(path("file"), { shown: "the configuration" }),
  workspaceFolder: Options.optional(path("folder"), { shown: "that of the file" }),
  forwardCredentials: Options.optional(Options.fn),
  clientInfo: Options.optional(clientInfo, { shown: "this library" }),
  connectTimeout: Options.optional(Options.timeout),
  requestTimeout: Options.withDefault(Options.timeout, "60 seconds"),
  listTimeToLive: Options.withDefault(Options.span, "1 minute"),
  sampling: Options.optional(Options.fn),
  elicitation: Options.optional(Options.fn),
  urlElicitation: Options.optional(Options.fn),
  roots: Options.optional(Options.fn)
}
