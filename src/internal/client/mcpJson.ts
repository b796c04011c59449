/**
 * The format of `mcp.json`, as Claude, Cursor and VS Code write it: text to validated servers, or everything that is
 * wrong with it.
 *
 * Values are secrets: nothing that was read, and nothing that a variable holds, is ever quoted in an issue.
 */
import * as Arr from "effect/Array"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Keys from "../keys.ts"
import * as Jsonc from "./jsonc.ts"

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

/** The value in a file, which may have comments and trailing commas. */
export const parse = (text: string): Result.Result<unknown, Issue> =>
  Result.mapError(Jsonc.parse(text), (position) => ({
    path: "",
    issue: position === undefined
      ? "is not valid JSON"
      : `is not valid JSON (line ${position.line}, column ${position.column})`
  }))

/**
 * The servers by name, their variables expanded from the `ConfigProvider`; or every issue, in order.
 */
export const decode = Effect.fnUntraced(function*(config: unknown): Effect.fn.Return<
  Result.Result<ReadonlyMap<string, ServerConfig>, Arr.NonEmptyReadonlyArray<Issue>>
> {
  const self: Decoding = { provider: yield* ConfigProvider.ConfigProvider, issues: [] }
  const servers = yield* readServers(self, config)
  return Arr.isReadonlyArrayNonEmpty(self.issues) ? Result.fail(self.issues) : Result.succeed(servers)
})

interface Decoding {
  readonly provider: ConfigProvider.ConfigProvider
  readonly issues: Array<Issue>
}

type Json = Readonly<Record<string, unknown>>

const refuse = (self: Decoding, path: string, issue: string): undefined => {
  self.issues.push({ path, issue })
  return undefined
}

// -----------------------------------------------------------------------------
// Servers
// -----------------------------------------------------------------------------

// Claude and Cursor, and VS Code
const sections = ["mcpServers", "servers"] as const

const readServers = Effect.fnUntraced(function*(
  self: Decoding,
  config: unknown
): Effect.fn.Return<ReadonlyMap<string, ServerConfig>> {
  const servers = new Map<string, ServerConfig>()
  const [section, found] = sectionOf(self, config) ?? []
  if (section === undefined || found === undefined) return servers
  for (const [name, value] of Object.entries(found)) {
    const path = member(section, name)
    if (!Keys.upstreamName.test(name)) refuse(self, path, nameIssue)
    const server = yield* readServer(self, value, path)
    if (server !== undefined) servers.set(name, server)
  }
  return servers
})

const nameIssue = "must be named with 1 to 128 characters of visible ASCII, and no \"/\": `Identity.at` takes no others"

const sectionOf = (self: Decoding, config: unknown): readonly [name: string, servers: Json] | undefined => {
  if (!Predicate.isObject(config)) return refuse(self, "", "must be an object")
  const [section, ...others] = sections.filter((name) => config[name] !== undefined)
  if (section === undefined) return refuse(self, "", "has neither `mcpServers` nor `servers`")
  if (others.length > 0) {
    return refuse(self, "", "has both `mcpServers` and `servers`: put all servers into one of them")
  }
  const servers = config[section]
  return Predicate.isObject(servers)
    ? [section, servers]
    : refuse(self, section, "must be an object of servers by name")
}

const transports: ReadonlyMap<unknown, ServerConfig["type"]> = new Map([
  ["stdio", "stdio"],
  ["http", "http"],
  ["streamable-http", "http"],
  ["sse", "sse"]
])

const readServer = Effect.fnUntraced(function*(
  self: Decoding,
  server: unknown,
  path: string
): Effect.fn.Return<ServerConfig | undefined> {
  if (!Predicate.isObject(server)) return refuse(self, path, "must be an object")
  const hasCommand = server["command"] !== undefined
  const hasUrl = server["url"] !== undefined
  if (hasCommand && hasUrl) return refuse(self, path, "has both a `command` and a `url`: keep one of them")
  if (!hasCommand && !hasUrl) return refuse(self, path, "has neither a `command` nor a `url`")
  const type = transports.get(server["type"] ?? (hasCommand ? "stdio" : "http"))
  if (type === undefined) {
    return refuse(self, `${path}.type`, "must be one of \"stdio\", \"http\", \"streamable-http\" and \"sse\"")
  }
  if (type === "stdio") {
    if (hasCommand) return yield* readStdio(self, server, path)
    return refuse(self, `${path}.type`, "must be \"http\" or \"sse\" for a server with a `url`")
  }
  if (hasUrl) return yield* readHttp(self, server, path, type)
  return refuse(self, `${path}.type`, "must be \"stdio\" for a server with a `command`")
})

const readStdio = Effect.fnUntraced(function*(
  self: Decoding,
  server: Json,
  path: string
): Effect.fn.Return<StdioConfig> {
  const command = yield* readText(self, server["command"], `${path}.command`)
  if (command?.trim() === "") refuse(self, `${path}.command`, "must not be empty")
  const args = yield* readArgs(self, server["args"], `${path}.args`)
  const env = yield* readRecord(self, server["env"], `${path}.env`, variableIssue)
  const cwd = server["cwd"] === undefined ? undefined : yield* readText(self, server["cwd"], `${path}.cwd`)
  if (server["envFile"] !== undefined) {
    refuse(
      self,
      `${path}.envFile`,
      "is not supported: put the variables into `env`, or into this process's own environment"
    )
  }
  return { type: "stdio", command: command ?? "", args, env, cwd }
})

const readHttp = Effect.fnUntraced(function*(
  self: Decoding,
  server: Json,
  path: string,
  type: "http" | "sse"
): Effect.fn.Return<HttpConfig> {
  const url = yield* readText(self, server["url"], `${path}.url`)
  const issue = url === undefined ? undefined : urlIssue(url)
  if (issue !== undefined) refuse(self, `${path}.url`, issue)
  const headers = yield* readRecord(self, server["headers"], `${path}.headers`, headerIssue)
  if (server["headersHelper"] !== undefined) {
    refuse(self, `${path}.headersHelper`, "is not supported: put the headers into `headers`")
  }
  return { type, url: url ?? "", headers }
})

// -----------------------------------------------------------------------------
// Their values
// -----------------------------------------------------------------------------

/** A string with its variables expanded, or undefined and an issue for each that can't be. */
const readText = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown,
  path: string
): Effect.fn.Return<string | undefined> {
  if (typeof value !== "string") return refuse(self, path, "must be a string")
  // A variable may be in it a thousand times
  const issues = new Set<string>()
  let expanded = ""
  let end = 0
  for (let start = value.indexOf("${"); start !== -1; start = value.indexOf("${", end)) {
    const close = value.indexOf("}", start)
    if (close === -1) break
    const variable = yield* expand(self, value.slice(start + 2, close))
    if (Result.isFailure(variable)) issues.add(variable.failure)
    else expanded += value.slice(end, start) + variable.success
    end = close + 1
  }
  for (const issue of issues) refuse(self, path, issue)
  if (issues.size > 0) return undefined
  expanded += value.slice(end)
  return expanded.includes("\0") ? refuse(self, path, "must not have a NUL character in it") : expanded
})

/** What stands for a variable, `reference` being what is between the braces; or the issue. */
const expand = Effect.fnUntraced(function*(
  self: Decoding,
  reference: string
): Effect.fn.Return<Result.Result<string, string>> {
  const [, name, fallback] = /^(?:env:)?([A-Za-z_]\w*)(?::-([^]*))?$/.exec(reference) ?? []
  if (name === undefined || fallback?.includes("${")) {
    return Result.fail("has a ${…} in it that is none of ${VAR}, ${VAR:-default} and ${env:VAR}")
  }
  const node = yield* Effect.result(self.provider.load([name]))
  if (Result.isFailure(node)) {
    return Result.fail(`needs the variable ${shown(name)}, which the ConfigProvider could not read`)
  }
  const variable = node.success?.value
  const replacement = variable || (fallback ?? variable)
  return replacement === undefined
    ? Result.fail(
      `needs the variable ${shown(name)}, which is not set: set it, or write \${${shown(name)}:-default}`
    )
    : Result.succeed(replacement)
})

const readArgs = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown,
  path: string
): Effect.fn.Return<ReadonlyArray<string>> {
  const args: Array<string> = []
  if (value === undefined) return args
  if (!Array.isArray(value)) {
    refuse(self, path, "must be an array of strings")
    return args
  }
  for (const [index, argument] of value.entries()) {
    args.push((yield* readText(self, argument, `${path}[${index}]`)) ?? "")
  }
  return args
})

const readRecord = Effect.fnUntraced(function*(
  self: Decoding,
  value: unknown,
  path: string,
  issueOf: (name: string, text: string) => string | undefined
): Effect.fn.Return<Record<string, string>> {
  if (value === undefined) return {}
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

const variableIssue = (name: string): string | undefined =>
  name === "" || /[=\0]/.test(name) ? "is not a name that a variable can have" : undefined

const urlIssue = (url: string): string | undefined => {
  if (!URL.canParse(url)) return "is not a URL"
  const { password, protocol, username } = new URL(url)
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
  /^[A-Za-z_$][\w$-]*$/.test(name) ? `${path}.${shown(name)}` : `${path}[${JSON.stringify(shown(name))}]`

// A name is told as often as there are issues below it
const shown = (name: string): string => name.length > 128 ? `${name.slice(0, 128)}…` : name
