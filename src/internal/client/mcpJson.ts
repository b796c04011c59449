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

export type ServerConfig =
  | {
    readonly type: "stdio"
    readonly command: string
    readonly args: ReadonlyArray<string>
    readonly env: Readonly<Record<string, string>>
    readonly cwd: string | undefined
  }
  | {
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

/**
 * JSON that may have comments and trailing commas, which VS Code allows. `JSON.parse` quotes what it could not read, so
 * of its message only the position is used.
 */
export const parse = (text: string): Result.Result<unknown, Issue> =>
  Result.try({
    try: (): unknown => JSON.parse(strict(text)),
    catch: (cause) => {
      const position = /at position (\d+)/.exec(String(cause))
      if (position === null) return { path: "", issue: "is not valid JSON" }
      const before = text.slice(0, Number(position[1])).split("\n")
      return { path: "", issue: `is not valid JSON (line ${before.length}, column ${before.at(-1)!.length + 1})` }
    }
  })

// Strings are matched only to be left alone; what is taken out leaves blanks, so that positions stay true.
const strict = (text: string): string =>
  text
    .replace(/^\uFEFF/, " ")
    .replace(/("[^"\\\n]*(?:\\.[^"\\\n]*)*")|\/\/[^\n]*|\/\*[^]*?\*\//g, (match, string) => string ?? blank(match))
    .replace(/("[^"\\\n]*(?:\\.[^"\\\n]*)*")|,(?=\s*[}\]])/g, (_, string) => string ?? " ")

const blank = (text: string): string => text.replace(/[^\n]/g, " ")

/**
 * The servers by name, their variables expanded from the `ConfigProvider`; or every issue, in order.
 */
export const decode = Effect.fnUntraced(function*(config: unknown): Effect.fn.Return<
  Result.Result<ReadonlyMap<string, ServerConfig>, Arr.NonEmptyReadonlyArray<Issue>>
> {
  const provider = yield* ConfigProvider.ConfigProvider
  const issues: Array<Issue> = []
  const refuse = (path: string, issue: string): undefined => {
    issues.push({ path, issue })
    return undefined
  }

  /** A string with its variables expanded, or undefined and an issue for each that can't be. */
  const text = Effect.fnUntraced(function*(value: unknown, path: string): Effect.fn.Return<string | undefined> {
    if (typeof value !== "string") return refuse(path, "must be a string")
    const before = issues.length
    let expanded = ""
    let end = 0
    for (const match of value.matchAll(/\$\{([^}]*)\}/g)) {
      expanded += value.slice(end, match.index)
      end = match.index + match[0].length
      const [, name, fallback] = /^(?:env:)?([A-Za-z_]\w*)(?::-([^]*))?$/.exec(match[1]!) ?? []
      if (name === undefined || fallback?.includes("${")) {
        refuse(path, "has a ${…} in it that is none of ${VAR}, ${VAR:-default} and ${env:VAR}")
        continue
      }
      const node = yield* Effect.result(provider.load([name]))
      if (Result.isFailure(node)) {
        refuse(path, `needs the variable ${name}, which the ConfigProvider could not read`)
        continue
      }
      const variable = node.success?.value
      const replacement = variable || (fallback ?? variable)
      if (replacement === undefined) {
        refuse(path, `needs the variable ${name}, which is not set: set it, or write \${${name}:-default}`)
      }
      expanded += replacement
    }
    expanded += value.slice(end)
    if (issues.length > before) return undefined
    return expanded.includes("\0") ? refuse(path, "must not have a NUL character in it") : expanded
  })

  const record = Effect.fnUntraced(function*(
    value: unknown,
    path: string,
    check: (name: string, text: string) => string | undefined
  ): Effect.fn.Return<Record<string, string>> {
    const entries: Array<[string, string]> = []
    if (value === undefined) return {}
    if (!Predicate.isObject(value)) {
      refuse(path, "must be an object")
      return {}
    }
    for (const [name, raw] of Object.entries(value)) {
      // VS Code allows numbers in `env`
      const expanded = yield* text(typeof raw === "number" ? String(raw) : raw, member(path, name))
      if (expanded === undefined) continue
      const issue = check(name, expanded)
      if (issue === undefined) entries.push([name, expanded])
      else refuse(member(path, name), issue)
    }
    return Object.fromEntries(entries)
  })

  const stdio = Effect.fnUntraced(function*(
    server: Record<string, unknown>,
    path: string
  ): Effect.fn.Return<ServerConfig> {
    const command = yield* text(server["command"], `${path}.command`)
    if (command?.trim() === "") refuse(`${path}.command`, "must not be empty")
    const args: Array<string> = []
    if (Array.isArray(server["args"])) {
      for (const [index, argument] of server["args"].entries()) {
        args.push((yield* text(argument, `${path}.args[${index}]`)) ?? "")
      }
    } else if (server["args"] !== undefined) {
      refuse(`${path}.args`, "must be an array of strings")
    }
    const env = yield* record(
      server["env"],
      `${path}.env`,
      (name) => name === "" || /[=\0]/.test(name) ? "is not a name that a variable can have" : undefined
    )
    const cwd = server["cwd"] === undefined ? undefined : yield* text(server["cwd"], `${path}.cwd`)
    if (server["envFile"] !== undefined) {
      refuse(
        `${path}.envFile`,
        "is not supported: put the variables into `env`, or into this process's own environment"
      )
    }
    return { type: "stdio", command: command ?? "", args, env, cwd }
  })

  const http = Effect.fnUntraced(function*(
    server: Record<string, unknown>,
    path: string,
    type: "http" | "sse"
  ): Effect.fn.Return<ServerConfig> {
    const url = yield* text(server["url"], `${path}.url`)
    const issue = url === undefined ? undefined : urlIssue(url)
    if (issue !== undefined) refuse(`${path}.url`, issue)
    const headers = yield* record(server["headers"], `${path}.headers`, headerIssue)
    if (server["headersHelper"] !== undefined) {
      refuse(`${path}.headersHelper`, "is not supported: put the headers into `headers`")
    }
    return { type, url: url ?? "", headers }
  })

  const one = Effect.fnUntraced(function*(
    server: unknown,
    path: string
  ): Effect.fn.Return<ServerConfig | undefined> {
    if (!Predicate.isObject(server)) return refuse(path, "must be an object")
    const hasCommand = server["command"] !== undefined
    const hasUrl = server["url"] !== undefined
    if (hasCommand && hasUrl) return refuse(path, "has both a `command` and a `url`: keep one of them")
    if (!hasCommand && !hasUrl) return refuse(path, "has neither a `command` nor a `url`")
    const type = transports.get(server["type"] ?? (hasCommand ? "stdio" : "http"))
    if (type === undefined) {
      return refuse(`${path}.type`, "must be one of \"stdio\", \"http\", \"streamable-http\" and \"sse\"")
    }
    if (type === "stdio") {
      if (hasCommand) return yield* stdio(server, path)
      return refuse(`${path}.type`, "must be \"http\" or \"sse\" for a server with a `url`")
    }
    if (hasUrl) return yield* http(server, path, type)
    return refuse(`${path}.type`, "must be \"stdio\" for a server with a `command`")
  })

  const servers = new Map<string, ServerConfig>()
  const root = Predicate.isObject(config) ? config : refuse("", "must be an object")
  if (root !== undefined) {
    const [section, ...others] = sections.filter((name) => root[name] !== undefined)
    if (section === undefined) refuse("", "has neither `mcpServers` nor `servers`")
    else if (others.length > 0) refuse("", "has both `mcpServers` and `servers`: put all servers into one of them")
    else if (!Predicate.isObject(root[section])) refuse(section, "must be an object of servers by name")
    else {
      for (const [name, value] of Object.entries(root[section])) {
        const path = member(section, name)
        if (!serverName.test(name)) {
          refuse(
            path,
            "must be named with 1 to 128 characters of visible ASCII, and no \"/\": `Identity.at` takes no others"
          )
        }
        const server = yield* one(value, path)
        if (server !== undefined) servers.set(name, server)
      }
    }
  }
  return Arr.isReadonlyArrayNonEmpty(issues) ? Result.fail(issues) : Result.succeed(servers)
})

// Claude and Cursor, and VS Code
const sections = ["mcpServers", "servers"] as const

const transports: ReadonlyMap<unknown, ServerConfig["type"]> = new Map([
  ["stdio", "stdio"],
  ["http", "http"],
  ["streamable-http", "http"],
  ["sse", "sse"]
])

const serverName = /^[\x21-\x2e\x30-\x7e]{1,128}$/

const member = (path: string, name: string): string =>
  /^[A-Za-z_$][\w$-]*$/.test(name) ? `${path}.${name}` : `${path}[${JSON.stringify(name)}]`

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
