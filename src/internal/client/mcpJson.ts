/**
 * The format of `mcp.json`, as it is found: text to servers, and to everything that is wrong with some of them. What is
 * wrong with one costs that one.
 *
 * Clients differ in where the servers are, in what things are called, and in what stands for a variable, for which see
 * `mcpVariables.ts`. They are told apart by what is there, never by the name of the file.
 *
 * Values are secrets: nothing that was read, and nothing that a variable holds, is ever quoted in an issue.
 */
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import { basename, dirname, resolve } from "node:path"
import { parseEnv } from "node:util"
import * as Keys from "../keys.ts"
import * as Jsonc from "./jsonc.ts"
import * as Variables from "./mcpVariables.ts"

export type ServerConfig = StdioConfig | HttpConfig

export interface StdioConfig {
  readonly type: "stdio"
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
}

export interface HttpConfig {
  readonly type: "http" | "sse"
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
}

/**
 * One thing that is wrong. `path` is where, such as `mcpServers.weather.args[1]`, empty for the whole file; `issue` is
 * worded to follow it.
 */
export interface Issue {
  readonly path: string
  readonly issue: string
}

/** What a configuration says of one server. */
export interface Server {
  /** Nothing, if it can't be used. Then there are issues. */
  readonly config: ServerConfig | undefined
  readonly issues: ReadonlyArray<Issue>
  /** What asks for somebody to log in, which nobody here can: of no account where credentials come another way. */
  readonly login: string | undefined
  /** What is a secret by where it comes from, whatever it is called and looks like. */
  readonly secrets: ReadonlyArray<string>
}

export interface Servers {
  /** Those that are not disabled, in the order of the file. */
  readonly servers: ReadonlyMap<string, Server>
  readonly disabled: ReadonlySet<string>
}

/** What is not in the configuration. */
export interface Surroundings {
  /** The file that it was read from. None if it was in memory. */
  readonly file?: string | undefined
  readonly workspaceFolder?: string | undefined
}

/** The value in a file, which may have comments and trailing commas. */
export const parse = (text: string): Result.Result<unknown, Issue> =>
  Result.mapError(Jsonc.parse(text), (position) => ({
    path: "",
    issue: position === undefined
      ? "is not valid JSON"
      : `is not valid JSON (line ${position.line}, column ${position.column})`
  }))

/**
 * The servers by name, their variables expanded from the `ConfigProvider`; or why it has none at all.
 */
export const decode = Effect.fnUntraced(function*(
  config: unknown,
  { file, workspaceFolder }: Surroundings = {}
): Effect.fn.Return<Result.Result<Servers, Issue>> {
  const section = sectionOf(config)
  if (Result.isFailure(section)) return Result.fail(section.failure)
  const { entries, hasBraces, inputs, isListed, path } = section.success
  const folder = file === undefined ? resolve() : dirname(resolve(file))
  const variables: Variables.Variables = {
    provider: yield* ConfigProvider.ConfigProvider,
    fileSystem: yield* Effect.serviceOption(FileSystem.FileSystem),
    folder,
    workspaceFolder: workspaceFolder ?? (basename(folder).startsWith(".") ? dirname(folder) : folder),
    inputs: Variables.inputsOf(inputs),
    hasBraces
  }
  const servers = new Map<string, Server>()
  const disabled = new Set<string>()
  for (const [name, entry] of Object.entries(entries)) {
    const self: Decoding = { variables, path: member(path, name), issues: [], secrets: new Set(), login: undefined }
    if (!isListed(name) || isDisabled(self, entry)) {
      disabled.add(name)
      continue
    }
    if (!Keys.isUpstreamName(name)) refuse(self, self.path, nameIssue)
    const read = yield* readServer(self, entry)
    servers.set(name, {
      config: self.issues.length === 0 ? read : undefined,
      issues: self.issues,
      login: self.login,
      secrets: Array.from(self.secrets)
    })
  }
  return Result.succeed({ servers, disabled })
})

type Json = Readonly<Record<string, unknown>>

/** One server, while it is read. */
interface Decoding {
  readonly variables: Variables.Variables
  readonly path: string
  readonly issues: Array<Issue>
  readonly secrets: Set<string>
  login: string | undefined
}

const refuse = (self: Decoding, path: string, issue: string): undefined => {
  self.issues.push({ path, issue })
  return undefined
}

const nameIssue = "must be named with 1 to 128 characters, none of them a control character: " +
  "`Identity.at` takes no others"

// -----------------------------------------------------------------------------
// Where the servers are
// -----------------------------------------------------------------------------

interface Section {
  readonly path: string
  readonly entries: Json
  readonly inputs: unknown
  /** Whether the file as a whole lets a server of this name be used. */
  readonly isListed: (name: string) => boolean
  /** Whether it may be opencode's, which has variables of its own. */
  readonly hasBraces: boolean
}

const sectionOf = (config: unknown): Result.Result<Section, Issue> => {
  if (!Predicate.isObject(config)) return Result.fail({ path: "", issue: "must be an object" })
  const { mcp } = config
  const nested = Predicate.isObject(mcp) && isSection(mcp["servers"]) ? mcp["servers"] : undefined
  const [first, ...others] = [
    // Claude, Cursor, Windsurf, Cline, Roo, Gemini, Copilot CLI; VS Code; Zed
    ...["mcpServers", "servers", "context_servers"].map((name) => ({ path: name, found: config[name] })),
    // The settings of VS Code, and opencode 2
    { path: "mcp.servers", found: nested },
    { path: "[\"mcp.servers\"]", found: config["mcp.servers"] }
  ].filter(({ found }) => found !== undefined)
  // Beside others, this is Gemini's, and has what is true of all servers
  const { found, path } = first ?? { path: "mcp", found: mcp }
  if (found === undefined) return Result.fail({ path: "", issue: "has neither `mcpServers` nor `servers`" })
  if (others.length > 0) {
    const issue = `has both \`${path}\` and \`${others[0]!.path}\`: put all servers into one of them`
    return Result.fail({ path: "", issue })
  }
  if (!Predicate.isObject(found)) return Result.fail({ path, issue: "must be an object of servers by name" })
  return Result.succeed({
    path,
    entries: found,
    inputs: config["inputs"] ?? (Predicate.isObject(mcp) ? mcp["inputs"] : undefined),
    isListed: first !== undefined && Predicate.isObject(mcp) ? listOf(mcp) : () => true,
    hasBraces: found === mcp || found === nested
  })
}

// An opencode server may be called "servers"
const isSection = (found: unknown): boolean =>
  found !== undefined && !(Predicate.isObject(found) && ["type", "command", "url"].some((name) => isText(found[name])))

/** Gemini's `mcp.allowed` and `mcp.excluded`. */
const listOf = (mcp: Json): (name: string) => boolean => {
  const allowed = Array.isArray(mcp["allowed"]) ? new Set<unknown>(mcp["allowed"]) : undefined
  const excluded = new Set<unknown>(Array.isArray(mcp["excluded"]) ? mcp["excluded"] : [])
  return (name) => (allowed?.has(name) ?? true) && !excluded.has(name)
}

// -----------------------------------------------------------------------------
// Servers
// -----------------------------------------------------------------------------

/** Whether somebody has switched it off. What is neither on nor off is an issue, so the server is not used then. */
const isDisabled = (self: Decoding, server: unknown): boolean => {
  if (!Predicate.isObject(server)) return false
  const switches = [["disabled", true], ["enabled", false], ["isActive", false]] as const
  let isOff = false
  for (const [name, off] of switches) {
    const value = server[name]
    if (value === off) isOff = true
    else if (!isAbsent(value) && value !== !off) refuse(self, `${self.path}.${name}`, "must be true or false")
  }
  return isOff
}

/** `remote` is either of `http` and `sse`. */
const transports: ReadonlyMap<string, ServerConfig["type"] | "remote"> = new Map([
  ["stdio", "stdio"],
  ["local", "stdio"],
  ["http", "http"],
  ["streamable", "http"],
  ["streamablehttp", "http"],
  ["sse", "sse"],
  ["remote", "remote"]
])

const webSockets: ReadonlySet<string> = new Set(["ws", "wss", "websocket", "tcp"])

const urlNames = ["url", "serverUrl", "httpUrl", "baseUrl"] as const

const readServer = Effect.fnUntraced(function*(
  self: Decoding,
  server: unknown
): Effect.fn.Return<ServerConfig | undefined> {
  const { path } = self
  if (!Predicate.isObject(server)) return refuse(self, path, "must be an object")
  const typeName = ["type", "transport", "transportType"].find((name) => isGiven(server[name]))
  const given = typeName === undefined ? "" : server[typeName]
  const written = typeof given === "string" ? given.toLowerCase().replace(/[-_ ]/g, "") : "?"
  if (webSockets.has(written) || isText(server["tcp"])) {
    const where = webSockets.has(written) ? `${path}.${typeName}` : `${path}.tcp`
    return refuse(self, where, "is WebSocket, which is not supported: connect to the server over HTTP")
  }
  const type = transports.get(written)
  if (type === undefined && typeName !== undefined) {
    return refuse(
      self,
      `${path}.${typeName}`,
      "must be one of \"stdio\", \"http\", \"streamable-http\" and \"sse\""
    )
  }
  const urls = urlNames.filter((name) => isGiven(server[name]))
  const [urlName, ...otherUrls] = urls
  // Programs that write such files leave what is not used empty
  const hasCommand = isGiven(server["command"]) || (server["command"] === "" && urlName === undefined)
  if (hasCommand && urlName !== undefined && type === undefined) {
    return refuse(self, path, `has both a \`command\` and a \`${urlName}\`: keep one of them`)
  }
  if (!hasCommand && urlName === undefined) {
    return server["source"] === "extension" || isGiven(server["settings"])
      ? refuse(self, path, "is started by an extension of Zed: give it a `command` or a `url`")
      : refuse(self, path, "has neither a `command` nor a `url`")
  }
  if (type === "stdio" || (type === undefined && hasCommand)) {
    if (hasCommand) return yield* readStdio(self, server)
    return refuse(self, `${path}.${typeName}`, "must be \"http\" or \"sse\" for a server with a `url`")
  }
  if (urlName === undefined) {
    return refuse(self, `${path}.${typeName}`, "must be \"stdio\" for a server with a `command`")
  }
  const other = otherUrls.find((name) => server[name] !== server[urlName])
  if (other !== undefined) {
    return refuse(self, path, `has both a \`${urlName}\` and a \`${other}\`: keep one of them`)
  }
  const isHttp = type === "http" || (type === undefined && urls.includes("httpUrl"))
  return yield* readHttp(self, server, urlName, isHttp ? "http" : type === "sse" ? "sse" : undefined)
})

const readStdio = Effect.fnUntraced(function*(
  self: Decoding,
  server: Json
): Effect.fn.Return<StdioConfig> {
  const { path } = self
  // Zed had `command: { path, args, env }`, opencode has `command: [command, ...args]`
  const isNested = Predicate.isObject(server["command"])
  const outer: Json = isNested ? server["command"] as Json : server
  const outerPath = isNested ? `${path}.command` : path
  const commandName = isNested && isAbsent(outer["command"]) ? "path" : "command"
  const words: ReadonlyArray<unknown> = Array.isArray(outer[commandName])
    ? outer[commandName]
    : [outer[commandName]]
  const isLine = Array.isArray(outer[commandName])

  const wordPath = (index: number) => `${outerPath}.${commandName}${isLine ? `[${index}]` : ""}`
  const [first, ...rest] = words
  const command = words.length === 0 ? "" : yield* readText(self, first, wordPath(0))
  if (command?.trim() === "") refuse(self, words.length === 0 ? `${path}.command` : wordPath(0), "must not be empty")

  const env = Object.fromEntries([
    ...Object.entries(yield* readEnvFile(self, server["envFile"])),
    ...Object.entries(yield* readRecord(self, server["env"], `${path}.env`, variableIssue)),
    ...Object.entries(yield* readRecord(self, server["environment"], `${path}.environment`, variableIssue)),
    ...isNested ? Object.entries(yield* readRecord(self, outer["env"], `${outerPath}.env`, variableIssue)) : []
  ])

  const args: Array<string> = []
  for (const [index, word] of rest.entries()) {
    args.push((yield* readText(self, word, wordPath(index + 1), env)) ?? "")
  }
  args.push(...yield* readArgs(self, server["args"], `${path}.args`, env))
  if (isNested) args.push(...yield* readArgs(self, outer["args"], `${outerPath}.args`, env))

  const cwd = isGiven(server["cwd"]) ? yield* readText(self, server["cwd"], `${path}.cwd`) : undefined
  if (cwd === "") refuse(self, `${path}.cwd`, "must not be empty")
  return { type: "stdio", command: command ?? "", args, env, cwd }
})

const readHttp = Effect.fnUntraced(function*(
  self: Decoding,
  server: Json,
  urlName: string,
  type: "http" | "sse" | undefined
): Effect.fn.Return<HttpConfig> {
  const { path } = self
  const url = yield* readText(self, server[urlName], `${path}.${urlName}`)
  const issue = url === undefined ? undefined : urlIssue(url)
  if (issue !== undefined) refuse(self, `${path}.${urlName}`, issue)
  const headers = yield* readRecord(self, server["headers"], `${path}.headers`, headerIssue)
  if (!isAbsent(server["headersHelper"])) {
    refuse(self, `${path}.headersHelper`, "is not supported: put the headers into `headers`")
  }
  const login = logins.find((name) => isLogin(server[name]))
  if (login !== undefined) self.login = `${path}.${login}`
  return { type: type ?? (issue === undefined && isSse(url) ? "sse" : "http"), url: url ?? "", headers }
})

// What says how somebody is to log in
const logins = ["oauth", "auth", "authProviderType", "oauthClientId"]

// `"oauth": false` is how opencode says that nobody needs to
const isLogin = (value: unknown): boolean =>
  !isAbsent(value) && value !== false && !(Predicate.isObject(value) && value["enabled"] === false)

// Where servers of the older kind have their stream
const isSse = (url: string | undefined): boolean => url !== undefined && /\/sse\/?$/.test(new URL(url).pathname)

// -----------------------------------------------------------------------------
// Their values
// -----------------------------------------------------------------------------

const isAbsent = (value: unknown): value is null | undefined => value === undefined || value === null

const isGiven = (value: unknown): boolean => !isAbsent(value) && value !== ""

const isText = (value: unknown): value is string => typeof value === "string" && value !== ""

/** A string with its variables expanded, or undefined and an issue for each that can't be. */
const readText = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown,
  path: string,
  own?: Readonly<Record<string, unknown>>
): Effect.fn.Return<string | undefined> {
  if (typeof value !== "string") return refuse(self, path, "must be a string")
  const expanded = yield* Variables.expand(self.variables, value, own)
  if (Result.isFailure(expanded)) {
    for (const issue of expanded.failure) refuse(self, path, issue)
    return undefined
  }
  for (const secret of expanded.success.secrets) self.secrets.add(secret)
  const { text } = expanded.success
  return text.includes("\0") ? refuse(self, path, "must not have a NUL character in it") : text
})

const readArgs = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown,
  path: string,
  own: Readonly<Record<string, unknown>>
): Effect.fn.Return<ReadonlyArray<string>> {
  const args: Array<string> = []
  if (isAbsent(value)) return args
  if (!Array.isArray(value)) {
    refuse(self, path, "must be an array of strings")
    return args
  }
  for (const [index, argument] of value.entries()) {
    args.push((yield* readText(self, argument, `${path}[${index}]`, own)) ?? "")
  }
  return args
})

const readRecord = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown,
  path: string,
  issueOf: (name: string, text: string) => string | undefined
): Effect.fn.Return<Record<string, string>> {
  if (isAbsent(value)) return {}
  if (!Predicate.isObject(value)) {
    refuse(self, path, "must be an object")
    return {}
  }
  const entries: Array<[string, string]> = []
  for (const [name, raw] of Object.entries(value)) {
    // VS Code allows numbers in `env`
    const text = yield* readText(self, typeof raw === "number" ? String(raw) : raw, member(path, name))
    if (text === undefined) continue
    const issue = issueOf(name, text)
    if (issue === undefined) entries.push([name, text])
    else refuse(self, member(path, name), issue)
  }
  return Object.fromEntries(entries)
})

/** What a file of the form of `.env` sets, taken as it is. `env` wins over it. */
const readEnvFile = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown
): Effect.fn.Return<Record<string, string>> {
  if (!isGiven(value)) return {}
  const path = `${self.path}.envFile`
  const file = yield* readText(self, value, path)
  if (file === undefined) return {}
  const contents = yield* Variables.read(
    self.variables,
    resolve(self.variables.workspaceFolder, Variables.atHome(file))
  )
  if (Result.isFailure(contents)) {
    refuse(self, path, `names a file that ${contents.failure}`)
    return {}
  }
  if (contents.success.includes("\0")) {
    refuse(self, path, "names a file with a NUL character in it")
    return {}
  }
  return parseEnv(contents.success) as Record<string, string>
})

const variableIssue = (name: string): string | undefined =>
  name === "" || /[=\0]/.test(name) ? "is not a name that a variable can have" : undefined

const urlIssue = (url: string): string | undefined => {
  if (!URL.canParse(url)) return "is not a URL"
  const { password, protocol, username } = new URL(url)
  if (protocol === "ws:" || protocol === "wss:") {
    return "is WebSocket, which is not supported: connect to the server over HTTP"
  }
  if (protocol !== "http:" && protocol !== "https:") return "must be an http or https URL"
  if (username !== "" || password !== "") return "must not hold a user or password: use an Authorization header"
  return undefined
}

// RFC 9110 sections 5.1 and 5.5, with the Latin-1 that fetch accepts
const headerIssue = (name: string, value: string): string | undefined => {
  if (!/^[\w!#$%&'*+.^`|~-]+$/.test(name)) return "is not a name that a header can have"
  if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(value)) return "has a character in it that a header can't have"
  return undefined
}

// -----------------------------------------------------------------------------
// Paths
// -----------------------------------------------------------------------------

const member = (path: string, name: string): string =>
  /^[A-Za-z_$][\w$-]*$/.test(name)
    ? `${path}.${Variables.shortened(name)}`
    : `${path}[${JSON.stringify(Variables.shortened(name))}]`
