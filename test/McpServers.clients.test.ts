/**
 * Files as the clients of MCP write them, each made up after their documentation: what is read of each, and what is
 * said of the rest.
 */
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as PlatformError from "effect/PlatformError"
import * as References from "effect/References"
import * as Result from "effect/Result"
import { homedir } from "node:os"
import { Identity } from "../src/Identity.ts"
import * as McpJson from "../src/internal/client/mcpJson.ts"
import { McpServers, type McpServersOptions } from "../src/McpServers.ts"

const variables = { API_KEY: "k-1", TOKEN: "t-1", HOST: "example.com", GITHUB_TOKEN: "g-1", "port-number": "80" }

const files: Readonly<Record<string, string>> = {
  "/home/me/app/.env": "\uFEFF# comment\nFROM_FILE=one two\nexport BOTH=file # comment\nQUOTED=\"a#b\"\n",
  [`${homedir()}/key.txt`]: "k-file\n",
  "/home/me/app/secrets/token": "t-file\n"
}

const fileSystem = (contents: Readonly<Record<string, string>>) =>
  FileSystem.layerNoop({
    readFileString: (path) =>
      Object.hasOwn(contents, path)
        ? Effect.succeed(contents[path]!)
        : Effect.fail(PlatformError.systemError({ _tag: "NotFound", module: "FileSystem", method: "readFileString" }))
  })

const provider = ConfigProvider.layer(ConfigProvider.fromEnvRecord(variables))

interface Expected {
  readonly [name: string]: Partial<McpJson.StdioConfig> | Partial<McpJson.HttpConfig>
}

interface Sample {
  readonly client: string
  readonly title: string
  readonly path: string
  /** A text is taken as it is. */
  readonly file: unknown
  readonly servers: Expected
  readonly problems?: ReadonlyArray<string>
}

const of =
  (client: string, path: string) =>
  (title: string, file: unknown, servers: Expected, problems?: ReadonlyArray<string>): Sample => ({
    client,
    title,
    path,
    file,
    servers,
    ...(problems === undefined ? {} : { problems })
  })

const inDesktop = of("Claude Desktop", "/home/me/.config/Claude/claude_desktop_config.json")
const desktop = (title: string, mcpServers: unknown, servers: Expected, problems?: ReadonlyArray<string>): Sample =>
  inDesktop(title, { mcpServers }, servers, problems)

const code = of("Claude Code", "/home/me/app/.mcp.json")
const cursor = of("Cursor", "/home/me/app/.cursor/mcp.json")
const vscode = of("VS Code", "/home/me/app/.vscode/mcp.json")
const settings = of("VS Code settings", "/home/me/.config/Code/User/settings.json")
const windsurf = of("Windsurf", "/home/me/.codeium/windsurf/mcp_config.json")
const zed = of("Zed", "/home/me/app/.zed/settings.json")
const cline = of("Cline", "/home/me/.cline/data/settings/cline_mcp_settings.json")
const roo = of("Roo", "/home/me/app/.roo/mcp.json")
const gemini = of("Gemini", "/home/me/app/.gemini/settings.json")
const copilot = of("Copilot CLI", "/home/me/.copilot/mcp-config.json")
const opencode = of("opencode", "/home/me/app/opencode.jsonc")
const others = of("others", "/home/me/app/mcp.json")

const url = "https://example.com/mcp"

const noLogin = "is not supported, because nobody logs in here: put an Authorization into `headers`, or send the " +
  "credentials of its callers with `forwardCredentials`"

const samples: ReadonlyArray<Sample> = [
  desktop("a command", { files: { command: "npx", args: ["-y", "server-files", "/home/me"] } }, {
    files: { type: "stdio", command: "npx", args: ["-y", "server-files", "/home/me"], env: {} }
  }),
  desktop("a name with spaces, and one of a registry", {
    "My Server": { command: "uvx", args: ["mine"] },
    "github.com/acme/weather": { command: "node", args: ["weather.js"] },
    "天气": { command: "weather" }
  }, {
    "My Server": { command: "uvx" },
    "github.com/acme/weather": { command: "node" },
    "天气": { command: "weather" }
  }),
  desktop("mcp-remote, which expands what its own env has", {
    remote: {
      command: "npx",
      args: ["mcp-remote", url, "--header", "Authorization:${AUTH}"],
      env: { AUTH: "Bearer x" }
    }
  }, {
    remote: { args: ["mcp-remote", url, "--header", "Authorization:${AUTH}"], env: { AUTH: "Bearer x" } }
  }),
  desktop("other settings beside, and nothing to start", {}, {}),

  code("http with a variable and a default", {
    mcpServers: {
      api: { type: "http", url: "${BASE_URL:-https://example.com}/mcp", headers: { Authorization: "Bearer ${TOKEN}" } }
    }
  }, { api: { type: "http", url, headers: { Authorization: "Bearer t-1" } } }),
  code("sse", { mcpServers: { old: { type: "sse", url: "https://example.com/events" } } }, {
    old: { type: "sse", url: "https://example.com/events" }
  }),
  code("an argument that repeats its env", {
    mcpServers: {
      db: { type: "stdio", command: "db", args: ["--key", "${API_KEY}"], env: { API_KEY: "${API_KEY}" }, timeout: 5000 }
    }
  }, { db: { args: ["--key", "k-1"], env: { API_KEY: "k-1" } } }),
  code(
    "oauth, with nobody to log in",
    {
      mcpServers: { api: { type: "http", url, oauth: { clientId: "c", callbackPort: 8080 } }, db: { command: "db" } }
    },
    { db: { command: "db" } },
    [
      `mcpServers.api.oauth ${noLogin}`
    ]
  ),
  code(
    "oauth, where a header has the credential",
    {
      mcpServers: {
        api: { type: "http", url, oauth: { clientId: "c" }, headers: { authorization: "Bearer ${TOKEN}" } }
      }
    },
    { api: { type: "http", headers: { authorization: "Bearer t-1" } } },
    [
      "mcpServers.api.oauth is not used, because nobody logs in here: its `headers` have an Authorization"
    ]
  ),
  code(
    "a headersHelper and a WebSocket",
    {
      mcpServers: {
        api: { type: "http", url, headersHelper: "./token.sh" },
        live: { type: "ws", url: "wss://example.com/mcp" },
        db: { command: "db" }
      }
    },
    { db: { command: "db" } },
    [
      "mcpServers.api.headersHelper is not supported: put the headers into `headers`",
      "mcpServers.live.type is WebSocket, which is not supported: connect to the server over HTTP"
    ]
  ),
  code(
    "a variable that is not set, which costs that server",
    {
      mcpServers: { a: { command: "a", env: { KEY: "${NOT_SET}" } }, b: { command: "b" } }
    },
    { b: { command: "b" } },
    [
      "mcpServers.a.env.KEY needs the variable NOT_SET, which is not set: set it, or write ${NOT_SET:-default}"
    ]
  ),

  cursor("variables of an editor", {
    mcpServers: {
      local: {
        command: "${workspaceFolder}${pathSeparator}bin${/}server",
        args: ["--home", "${userHome}", "--name=${workspaceFolderBasename}"],
        env: { KEY: "${env:API_KEY}" }
      }
    }
  }, {
    local: {
      command: "/home/me/app/bin/server",
      args: ["--home", homedir(), "--name=app"],
      env: { KEY: "k-1" }
    }
  }),
  cursor("an envFile, over which env wins", {
    mcpServers: { local: { type: "stdio", command: "s", envFile: "${workspaceFolder}/.env", env: { BOTH: "env" } } }
  }, { local: { env: { FROM_FILE: "one two", BOTH: "env", QUOTED: "a#b" } } }),
  cursor(
    "an envFile that is not there",
    {
      mcpServers: { local: { command: "s", envFile: "nowhere.env" } }
    },
    {},
    ["mcpServers.local.envFile names a file that does not exist"]
  ),
  cursor("a url without a type, and one of SSE", {
    mcpServers: {
      remote: { url, headers: { "X-Key": "${env:API_KEY}" } },
      old: { url: "http://localhost:3000/sse" },
      older: { url: "http://localhost:3000/v1/sse/?key=1" },
      other: { url: "http://localhost:3000/ssessions" }
    }
  }, {
    remote: { type: "http", url, headers: { "X-Key": "k-1" } },
    old: { type: "sse" },
    older: { type: "sse" },
    other: { type: "http" }
  }),
  cursor(
    "auth, with nobody to log in",
    {
      mcpServers: { remote: { url, auth: { CLIENT_ID: "c", scopes: ["read"] } } }
    },
    {},
    [
      `mcpServers.remote.auth ${noLogin}`
    ]
  ),

  vscode("inputs from the configuration, and their defaults", {
    inputs: [
      { type: "promptString", id: "github-token", description: "Token", password: true },
      { type: "promptString", id: "port-number", description: "Port" },
      {
        type: "pickString",
        id: "region",
        description: "Region",
        options: ["eu", { label: "US", value: "us" }],
        default: "eu"
      }
    ],
    servers: {
      github: { type: "http", url, headers: { Authorization: "Bearer ${input:github-token}" } },
      local: { type: "stdio", command: "s", args: ["${input:port-number}", "${input:region}"] }
    }
  }, {
    github: { headers: { Authorization: "Bearer g-1" } },
    local: { args: ["80", "eu"] }
  }),
  vscode(
    "an input that nobody has answered, and one that there is not",
    {
      inputs: [{ type: "promptString", id: "db-password", password: true }],
      servers: {
        a: { command: "a", env: { P: "${input:db-password}" } },
        b: { command: "b", env: { P: "${input:other}" } },
        c: { command: "c" }
      }
    },
    { c: { command: "c" } },
    [
      "servers.a.env.P needs the input db-password, which is not set: set a variable db-password or DB_PASSWORD, " +
      "since nobody is asked",
      "servers.b.env.P needs an input that `inputs` does not have"
    ]
  ),
  vscode(
    "comments, trailing commas, numbers in env, dev and gallery",
    `{
    // the team's servers
    "servers": {
      "local": {
        "type": "stdio", "command": "node", "args": ["\${workspaceFolder}/server.js",], /* built */
        "env": { "PORT": 8080, }, "dev": { "watch": "src/**/*.ts" }, "gallery": true,
      },
    },
  }`,
    { local: { args: ["/home/me/app/server.js"], env: { PORT: "8080" } } }
  ),
  vscode(
    "a variable of an editor that is not there",
    {
      servers: { a: { command: "a", args: ["${command:pick}", "${file}"] }, b: { command: "b" } }
    },
    { b: { command: "b" } },
    [
      "servers.a.args[0] has a ${…} in it that is none of ${VAR}, ${VAR:-default}, ${env:VAR}, ${input:id}, " +
      "${file:path}, ${workspaceFolder}, ${workspaceFolderBasename}, ${userHome} and ${pathSeparator}",
      "servers.a.args[1] needs the variable file, which is not set: set it, or write ${file:-default}"
    ]
  ),

  settings("mcp with servers and inputs", {
    "editor.tabSize": 2,
    mcp: {
      inputs: [{ id: "key", type: "promptString", default: "none" }],
      servers: { a: { command: "a", args: ["${input:key}", "{env:API_KEY}"] } }
    }
  }, { a: { args: ["none", "k-1"] } }),
  settings("mcp.servers in one word", { "mcp.servers": { a: { command: "a" } } }, { a: { command: "a" } }),

  windsurf("serverUrl", {
    mcpServers: { remote: { serverUrl: url, headers: { Authorization: "Bearer ${env:TOKEN}" } } }
  }, {
    remote: { type: "http", url, headers: { Authorization: "Bearer t-1" } }
  }),
  windsurf("serverUrl of SSE, and a file", {
    mcpServers: { remote: { serverUrl: "https://${HOST}/sse", headers: { "X-Key": "${file:~/key.txt}" } } }
  }, { remote: { type: "sse", url: "https://example.com/sse", headers: { "X-Key": "k-file" } } }),
  windsurf("disabled, and tools that are", {
    mcpServers: {
      off: { command: "off", disabled: true, args: 5 },
      on: { command: "on", disabled: false, disabledTools: ["delete"] }
    }
  }, { on: { command: "on" } }),

  zed("a command with its source", {
    theme: "One Dark",
    context_servers: {
      local: { source: "custom", enabled: true, command: "s", args: ["--stdio"], env: {} },
      off: { source: "custom", enabled: false, command: "off" }
    }
  }, { local: { command: "s", args: ["--stdio"] } }),
  zed("a nested command", {
    context_servers: { local: { command: { path: "/bin/s", args: ["run"], env: { A: "${HOST}" } }, settings: {} } }
  }, { local: { command: "/bin/s", args: ["run"], env: { A: "example.com" } } }),
  zed("a url", { context_servers: { remote: { source: "custom", url, headers: { Authorization: "Bearer x" } } } }, {
    remote: { type: "http", headers: { Authorization: "Bearer x" } }
  }),
  zed(
    "an extension's",
    {
      context_servers: {
        postgres: { settings: { database_url: "postgresql://me:sk-live-SECRET@db" } },
        a: { command: "a" }
      }
    },
    { a: { command: "a" } },
    [
      "context_servers.postgres is started by an extension of Zed: give it a `command` or a `url`"
    ]
  ),

  cline("streamableHttp, and what it approves", {
    mcpServers: { remote: { type: "streamableHttp", url, disabled: false, autoApprove: ["read"], timeout: 60 } }
  }, { remote: { type: "http" } }),
  cline("transportType, as it was", {
    mcpServers: {
      local: { transportType: "stdio", command: "s" },
      remote: { transportType: "http", url },
      old: { transportType: "sse", url }
    }
  }, { local: { type: "stdio" }, remote: { type: "http" }, old: { type: "sse" } }),
  cline("a disabled one that is broken, too", {
    mcpServers: { off: { disabled: true, url: "not a url" }, on: { command: "on" } }
  }, { on: { command: "on" } }),

  roo("streamable-http, and what it allows", {
    mcpServers: { remote: { type: "streamable-http", url, alwaysAllow: [], disabled: false, timeout: 60 } }
  }, { remote: { type: "http" } }),
  roo("a folder, and files that are watched", {
    mcpServers: { local: { command: "node", args: ["s.js"], cwd: "${workspaceFolder}", watchPaths: ["s.js"] } }
  }, { local: { cwd: "/home/me/app" } }),

  gemini("httpUrl, and variables without braces", {
    theme: "GitHub",
    mcpServers: { api: { httpUrl: "https://$HOST/sse", headers: { Authorization: "Bearer $TOKEN" }, trust: true } }
  }, { api: { type: "http", url: "https://example.com/sse", headers: { Authorization: "Bearer t-1" } } }),
  gemini("a command, and a variable that is not set", {
    mcpServers: {
      local: {
        command: "s",
        args: ["--key", "$API_KEY"],
        env: { A: "$API_KEY", B: "$NOT_SET", C: "pa$$w" },
        cwd: "./s"
      }
    }
  }, { local: { args: ["--key", "k-1"], env: { A: "k-1", B: "$NOT_SET", C: "pa$$w" }, cwd: "./s" } }),
  gemini("mcp.allowed and mcp.excluded", {
    mcp: { allowed: ["a", "b"], excluded: ["b"] },
    mcpServers: { a: { command: "a" }, b: { command: "b" }, c: { command: "c" } }
  }, { a: { command: "a" } }),
  gemini(
    "tcp and a provider of credentials",
    {
      mcpServers: { live: { tcp: "localhost:99" }, cloud: { httpUrl: url, authProviderType: "google_credentials" } }
    },
    {},
    [
      "mcpServers.live.tcp is WebSocket, which is not supported: connect to the server over HTTP",
      `mcpServers.cloud.authProviderType ${noLogin}`
    ]
  ),

  copilot("local, with tools", {
    mcpServers: { local: { type: "local", command: "npx", args: ["s"], env: { KEY: "$API_KEY" }, tools: ["*"] } }
  }, { local: { type: "stdio", command: "npx", env: { KEY: "k-1" } } }),
  copilot("http and sse, with tools", {
    mcpServers: { a: { type: "http", url, headers: {}, tools: ["get"] }, b: { type: "sse", url, tools: ["*"] } }
  }, { a: { type: "http" }, b: { type: "sse" } }),

  opencode(
    "local, with an array and an environment",
    `{
    "$schema": "https://opencode.ai/config.json",
    "mcp": {
      "local": {
        "type": "local", "command": ["npx", "-y", "s", "--key={env:API_KEY}"],
        "environment": { "KEY": "{env:API_KEY}", "FILE": "{file:./secrets/token}" }, "enabled": true, "timeout": 5000,
      },
      "off": { "type": "local", "command": ["off"], "enabled": false }, // later
    },
  }`,
    {
      local: { command: "npx", args: ["-y", "s", "--key=k-1"], env: { KEY: "k-1", FILE: "t-file" } }
    }
  ),
  opencode("remote, without oauth", {
    mcp: { api: { type: "remote", url, oauth: false, headers: { Authorization: "Bearer {env:TOKEN}" } } }
  }, { api: { type: "http", headers: { Authorization: "Bearer t-1" } } }),
  opencode("remote, of SSE", { mcp: { api: { type: "remote", url: "https://example.com/sse" } } }, {
    api: { type: "sse" }
  }),
  opencode("a server that is called servers", { mcp: { servers: { type: "local", command: ["s"] } } }, {
    servers: { command: "s" }
  }),
  opencode("its second version", {
    mcp: { servers: { local: { type: "local", command: ["s", "{env:HOST}"], cwd: ".", disabled: false } } }
  }, { local: { command: "s", args: ["example.com"], cwd: "." } }),

  others("baseUrl, isActive, and an empty command", {
    mcpServers: {
      a: { type: "streamableHttp", baseUrl: url, command: "", args: [], isActive: true },
      b: { baseUrl: url, isActive: false }
    }
  }, { a: { type: "http", url } }),
  others("transport, in any spelling", {
    mcpServers: {
      a: { transport: "streamable_http", url },
      b: { transport: "STDIO", command: "b" },
      c: { type: "Streamable-HTTP", url },
      d: { type: null, url, headers: null }
    }
  }, { a: { type: "http" }, b: { type: "stdio" }, c: { type: "http" }, d: { type: "http" } })
]

const textOf = ({ file }: Sample) => typeof file === "string" ? file : JSON.stringify(file, undefined, 2)

const surroundings = (sample: Sample) =>
  Layer.mergeAll(fileSystem({ ...files, [sample.path]: textOf(sample) }), provider)

const shown = (error: Error) => error.message + JSON.stringify(error) + String(error.stack)

const load = (sample: Sample, options?: McpServersOptions) =>
  McpServers.pipe(
    Effect.provide(Layer.provide(McpServers.layer(sample.path, options), surroundings(sample))),
    Effect.provideService(References.MinimumLogLevel, "None")
  )

describe("McpServers of", () => {
  const byClient = new Map<string, ReadonlyArray<Sample>>()
  for (const sample of samples) byClient.set(sample.client, [...byClient.get(sample.client) ?? [], sample])

  for (const [client, its] of byClient) {
    describe(client, () => {
      it.effect.each(its.map((sample) => [sample.title, sample] as const))(
        "%s",
        ([, sample]) =>
          Effect.gen(function*() {
            const { connector, names, problems } = yield* load(sample)
            assert.deepStrictEqual(names, Object.keys(sample.servers))
            assert.deepStrictEqual(problems.map(({ issue, path }) => `${path} ${issue}`), sample.problems ?? [])
            // Each has a connector, under a name that an identity can choose
            for (const name of names) {
              yield* connector(name)
              assert.strictEqual(Identity.fromKey("user:1").at(name).principal, "user:1")
            }
            const json = Result.getOrThrow(McpJson.parse(textOf(sample)))
            const decoded = Result.getOrThrow(
              yield* Effect.provide(McpJson.decode(json, { file: sample.path }), surroundings(sample))
            )
            for (const [name, expected] of Object.entries(sample.servers)) {
              assert.deepInclude(decoded.servers.get(name)!.config, expected)
            }
          })
      )
    })
  }

  it("eleven clients and others, in as many ways as they are found", () => {
    assert.isAtLeast(samples.length, 39)
    assert.strictEqual(byClient.size, 13)
  })
})

describe("McpServers", () => {
  const sample = others("", {
    mcpServers: {
      good: { url, oauth: { clientId: "c" } },
      off: { command: "off", disabled: true },
      bad: { command: ["node", 5] }
    }
  }, {})

  it.effect("tells a caller whether a server is unknown, disabled or broken", () =>
    Effect.gen(function*() {
      const { connector } = yield* load(sample)
      const messageOf = (name: string) => Effect.map(Effect.flip(connector(name)), ({ message }) => message)
      assert.strictEqual(yield* messageOf("nobody"), "There is no server \"nobody\". Known servers: none.")
      assert.strictEqual(yield* messageOf("off"), "The server \"off\" is disabled. Known servers: none.")
      assert.strictEqual(
        yield* messageOf("bad"),
        "/home/me/app/mcp.json: mcpServers.bad.command[1] must be a string."
      )
    }))

  it.effect("needs nobody to log in where callers bring credentials, and says so", () =>
    Effect.gen(function*() {
      const { names, problems } = yield* load(sample, { forwardCredentials: (name) => name === "good" })
      assert.deepStrictEqual(names, ["good"])
      assert.strictEqual(
        problems[0]?.issue,
        "is not used, because nobody logs in here: it is sent the credentials of its callers"
      )
    }))

  it.effect("has its problems under its name, and logs each of them", () =>
    Effect.gen(function*() {
      const logged: Array<unknown> = []
      const logger = Logger.make(({ message }) => void logged.push(message))
      const layer = Layer.provide(McpServers.layer(sample.path), surroundings(sample))
      const problems = yield* McpServers.problems.pipe(
        Effect.provide(layer),
        Effect.provide(Logger.layer([logger]))
      )
      assert.deepStrictEqual(problems.map(({ server }) => server), ["good", "bad"])
      assert.deepStrictEqual(logged.flat(), problems.map(({ issue, path }) => `${sample.path}: ${path} ${issue}.`))
    }))

  it.effect("takes its workspace from the option, else from the file, else from the process", () =>
    Effect.gen(function*() {
      const file = { mcpServers: { a: { command: "${workspaceFolder}", envFile: ".env" } } }
      const commandOf = (at: McpJson.Surroundings) =>
        Effect.map(McpJson.decode(file, at), (decoded) => {
          const { config, issues } = Result.getOrThrow(decoded).servers.get("a")!
          return config === undefined ? issues : config.type === "stdio" && config.command
        }).pipe(Effect.provide(fileSystem({ "/w/.env": "", "/w/a/.env": "", [`${process.cwd()}/.env`]: "" })))
      assert.strictEqual(yield* commandOf({ file: "/w/a/mcp.json" }), "/w/a")
      assert.strictEqual(yield* commandOf({ file: "/w/a/.cursor/mcp.json" }), "/w/a")
      assert.strictEqual(yield* commandOf({ file: "/w/a/.cursor/mcp.json", workspaceFolder: "/w" }), "/w")
      assert.strictEqual(yield* commandOf({ file: "mcp.json" }), process.cwd())
      assert.strictEqual(yield* commandOf({}), process.cwd())
    }))

  it.effect("quotes no value, wherever it is, in problems, errors and the log", () =>
    Effect.gen(function*() {
      const secret = "sk-live-SECRET"
      const held = { ...variables, HELD: `${secret}\n`, NUL: `${secret}\0` }
      const wrong: ReadonlyArray<unknown> = [
        secret,
        [secret],
        { type: secret, url },
        { transport: [secret], url },
        { command: secret, url: secret },
        { command: secret, type: "http" },
        { command: [secret, 1] },
        { command: { path: 1, args: [secret, 2], env: { A: [secret] } } },
        { command: `${secret}\0` },
        { command: "x", args: [secret, 1], cwd: `\${NUL}` },
        { command: "x", args: secret, env: secret, environment: [secret], disabled: secret },
        { command: "x", env: { A: `${secret}\${${secret}}`, B: `\${env:${secret}}`, C: `\${input:${secret}}` } },
        { command: "x", env: { A: `\${file:${secret}}`, B: `\${file:/${secret}\0}`, C: `\${NUL}` } },
        { command: "x", env: { A: `\${NOT_SET:-\${${secret}}` }, envFile: secret },
        { command: "x", envFile: "/env-with-nul", enabled: secret },
        { url: secret, headers: { A: `${secret}\n`, B: "${HELD}" } },
        { url: `https://me:${secret}@example.com` },
        { url: `ftp://${secret}` },
        { url: `wss://${secret}`, headersHelper: secret },
        { url, oauth: secret, auth: { secret } },
        { url, serverUrl: `${url}?${secret}` },
        { tcp: secret },
        { settings: { secret } }
      ]
      const wrongFiles: ReadonlyArray<string> = [
        `{ "mcpServers": { "a": { "env": { "A": "${secret}" oops } } } }`,
        `{ "mcpServers": { "a": { "env": { "A": ${secret} } } } }`,
        `{ "mcpServers": "${secret}" }`,
        `{ "mcpServers": {}, "servers": { "a": "${secret}" } }`,
        `"${secret}"`,
        `{ "mcp": "${secret}" }`
      ]
      const texts: Array<string> = []
      const logger = Logger.make(({ message }) => void texts.push(JSON.stringify(message)))
      const heard = Effect.provide(Logger.layer([logger]))
      const config = {
        inputs: [{ id: "pick", type: "pickString", options: [secret], default: `${secret}-other` }, secret],
        servers: Object.fromEntries(
          [...wrong, { command: "x", args: ["${input:pick}"] }].map((one, i) => [`s${i}`, one])
        )
      }
      const all = Layer.mergeAll(
        fileSystem({ "/env-with-nul": `A="${secret}\0"` }),
        ConfigProvider.layer(ConfigProvider.fromEnvRecord(held))
      )
      const { connector, names, problems } = yield* heard(Effect.provide(McpServers.make(config), all))
      assert.deepStrictEqual(names, [])
      assert.isAtLeast(problems.length, wrong.length)
      for (const name of Object.keys(config.servers)) texts.push(shown(yield* Effect.flip(connector(name))))
      for (const contents of wrongFiles) {
        const layer = Layer.provide(McpServers.layer("/f"), Layer.mergeAll(fileSystem({ "/f": contents }), provider))
        texts.push(shown(yield* heard(Effect.flip(Effect.provide(McpServers, layer)))))
      }
      assert.isAtLeast(texts.length, 2 * wrong.length)
      for (const text of [...texts, JSON.stringify(problems)]) assert.notInclude(text, secret)
    }))
})
