import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Identity } from "../src/Identity.ts"
import * as McpJson from "../src/internal/client/mcpJson.ts"
import { InvalidOptions } from "../src/InvalidOptions.ts"
import {
  McpServers,
  type McpServersError,
  type McpServersMakeOptions,
  type McpServersOptions
} from "../src/McpServers.ts"
import { seed } from "./support/load.ts"

const env = (variables: Record<string, string>) =>
  Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord(variables)))

const decode = (config: unknown, variables: Record<string, string> = {}) => env(variables)(McpJson.decode(config))

/** What a server reads as, or the issues. */
const readAs = ({ config, issues }: McpJson.Server): unknown =>
  config ?? issues.map(({ issue, path }) => `${path} ${issue}`)

/** The server `s`, or the issues. */
const decodeOne = (server: unknown, variables?: Record<string, string>) =>
  Effect.map(
    decode({ mcpServers: { s: server } }, variables),
    (decoded): unknown => readAs(Result.getOrThrow(decoded).servers.get("s")!)
  )

const unknownVariable = "has a ${…} in it that is none of ${VAR}, ${VAR:-default}, ${env:VAR}, ${input:id}, " +
  "${file:path}, ${workspaceFolder}, ${workspaceFolderBasename}, ${userHome} and ${pathSeparator}"

/** The options are in order, so an error is the configuration's. */
const dieOfOptions = <A, R>(effect: Effect.Effect<A, McpServersError | InvalidOptions, R>) =>
  Effect.catchTag(effect, "InvalidOptions", (error) => Effect.die(error))

const fromFileSystem = (layer: Layer.Layer<FileSystem.FileSystem>) =>
  dieOfOptions(McpServers.pipe(Effect.provide(McpServers.layer("mcp.json").pipe(Layer.provide(layer)))))

const fromFile = (contents: string, variables: Record<string, string> = {}) =>
  env(variables)(fromFileSystem(FileSystem.layerNoop({ readFileString: () => Effect.succeed(contents) })))

describe("McpServers", () => {
  describe("what a file may say", () => {
    it.effect("a command with everything that goes with it", () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(
          yield* decodeOne({
            type: "stdio",
            command: "npx",
            args: ["-y", "weather"],
            env: { PORT: 80, A: "b" },
            cwd: "/srv"
          }),
          { type: "stdio", command: "npx", args: ["-y", "weather"], env: { PORT: "80", A: "b" }, cwd: "/srv" }
        )
        assert.deepStrictEqual(yield* decodeOne({ command: "weather" }), {
          type: "stdio",
          command: "weather",
          args: [],
          env: {},
          cwd: undefined
        })
      }))

    it.effect("a url, whose transport is Streamable HTTP unless it says SSE", () =>
      Effect.gen(function*() {
        const url = "https://example.com/mcp"
        const http = { type: "http", url, headers: {} }
        assert.deepStrictEqual(yield* decodeOne({ url }), http)
        assert.deepStrictEqual(yield* decodeOne({ url, type: "http" }), http)
        assert.deepStrictEqual(yield* decodeOne({ url, type: "streamable-http" }), http)
        assert.deepStrictEqual(yield* decodeOne({ url, type: "sse", headers: { "X-Key": "k" } }), {
          type: "sse",
          url,
          headers: { "X-Key": "k" }
        })
      }))

    it.effect("VS Code's `servers`, properties of other clients, and no servers at all", () =>
      Effect.gen(function*() {
        const servers = yield* McpServers.make({
          inputs: [],
          servers: { a: { command: "a", gallery: true }, b: { command: "b" } }
        })
        assert.deepStrictEqual(servers.names, ["a", "b"])
        assert.deepStrictEqual((yield* McpServers.make({ mcpServers: {} })).names, [])
      }))

    it.effect("comments, trailing commas and a byte order mark, but not within strings", () =>
      Effect.gen(function*() {
        const { names } = yield* fromFile(
          "\uFEFF{ // one\n \"mcpServers\": { /* two \n lines */ \"a\": { \"url\": \"http://a/,}//\",\n" +
            "\"headers\": { \"x\": \"\\\" /* ,] */ //\", }, // three\n }, },\n}"
        )
        assert.deepStrictEqual(names, ["a"])
      }))
  })

  describe("variables", () => {
    it.effect("are expanded in every value, from the ConfigProvider", () =>
      Effect.gen(function*() {
        const variables = { BIN: "node", DIR: "/srv", TOKEN: "t0", HOST: "example.com" }
        assert.deepStrictEqual(
          yield* decodeOne({
            command: "${BIN}",
            args: ["${DIR}/main.js", "--token=${TOKEN}", "${BIN}${BIN}"],
            env: { TOKEN: "${env:TOKEN}" },
            cwd: "${DIR}"
          }, variables),
          {
            type: "stdio",
            command: "node",
            args: ["/srv/main.js", "--token=t0", "nodenode"],
            env: { TOKEN: "t0" },
            cwd: "/srv"
          }
        )
        assert.deepStrictEqual(
          yield* decodeOne({ url: "https://${HOST}/mcp", headers: { Authorization: "Bearer ${TOKEN}" } }, variables),
          { type: "http", url: "https://example.com/mcp", headers: { Authorization: "Bearer t0" } }
        )
      }))

    it.effect("have a default for when they are not set, or empty", () =>
      Effect.gen(function*() {
        const server = { command: "x", args: ["${A:-one}", "${A:-}", "${env:A:-b:-c}"] }
        const args = (variables: Record<string, string>) =>
          Effect.map(decodeOne(server, variables), (decoded) => (decoded as { readonly args: unknown }).args)
        assert.deepStrictEqual(yield* args({}), ["one", "", "b:-c"])
        assert.deepStrictEqual(yield* args({ A: "" }), ["one", "", "b:-c"])
        assert.deepStrictEqual(yield* args({ A: "set" }), ["set", "set", "set"])
      }))

    it.effect("are found though a longer one begins with their name, and in a provider of objects", () =>
      Effect.gen(function*() {
        const args = ["${API}", "${API_KEY}"]
        const expected = { type: "stdio", command: "x", args: ["a", "k"], env: {}, cwd: undefined }
        assert.deepStrictEqual(yield* decodeOne({ command: "x", args }, { API: "a", API_KEY: "k" }), expected)
        const provider = ConfigProvider.fromUnknown({ API: "a", API_KEY: "k" })
        const decoded = yield* Effect.provide(
          McpJson.decode({ mcpServers: { s: { command: "x", args } } }),
          ConfigProvider.layer(provider)
        )
        assert.deepStrictEqual(readAs(Result.getOrThrow(decoded).servers.get("s")!), expected)
      }))

    it.effect("may be empty, if the provider preserves that", () =>
      Effect.gen(function*() {
        const provider = ConfigProvider.fromEnvRecord({ A: "" }, { preserveEmptyStrings: true })
        const decoded = yield* Effect.provide(
          McpJson.decode({ mcpServers: { s: { command: "x", env: { one: "${A}", two: "${A:-two}" } } } }),
          ConfigProvider.layer(provider)
        )
        assert.deepInclude(Result.getOrThrow(decoded).servers.get("s")!.config, { env: { one: "", two: "two" } })
      }))

    it.effect("are expanded once, and what is not quite one is left alone", () =>
      Effect.gen(function*() {
        const args = ["${A}", "$A", "$B", "pa$$word$1", "${A", "a}b", "{env:A}", "{file:/etc/hostname}"]
        assert.deepStrictEqual(yield* decodeOne({ command: "x", args }, { A: "${B}" }), {
          type: "stdio",
          command: "x",
          args: ["${B}", "${B}", "$B", "pa$$word$1", "${A", "a}b", "{env:A}", "{file:/etc/hostname}"],
          env: {},
          cwd: undefined
        })
      }))
  })

  describe("what is wrong", () => {
    const wrongServers: ReadonlyArray<readonly [server: unknown, ...issues: ReadonlyArray<string>]> = [
      ["node server.js", "mcpServers.s must be an object"],
      [{}, "mcpServers.s has neither a `command` nor a `url`"],
      [{ command: "a", url: "http://b" }, "mcpServers.s has both a `command` and a `url`: keep one of them"],
      [{ command: "a", type: "http" }, "mcpServers.s.type must be \"stdio\" for a server with a `command`"],
      [{ url: "http://b", type: "stdio" }, "mcpServers.s.type must be \"http\" or \"sse\" for a server with a `url`"],
      [
        { url: "http://b", type: "websocket" },
        "mcpServers.s.type is WebSocket, which is not supported: connect to the server over HTTP"
      ],
      ...["carrier pigeon", 1, {}].map((type): readonly [unknown, string] => [
        { url: "http://b", type },
        "mcpServers.s.type must be one of \"stdio\", \"http\", \"streamable-http\" and \"sse\""
      ]),
      [{ command: 5 }, "mcpServers.s.command must be a string"],
      [{ command: ["node", 5] }, "mcpServers.s.command[1] must be a string"],
      [{ command: [] }, "mcpServers.s.command must not be empty"],
      [{ command: {} }, "mcpServers.s.command.path must be a string"],
      [{ command: "a", cwd: "${EMPTY:-}" }, "mcpServers.s.cwd must not be empty"],
      [{ command: "a", disabled: "yes" }, "mcpServers.s.disabled must be true or false"],
      [{ url: "http://a", serverUrl: "http://b" }, "mcpServers.s has both a `url` and a `serverUrl`: keep one of them"],
      [{ source: "extension" }, "mcpServers.s is started by an extension of Zed: give it a `command` or a `url`"],
      [
        { url: "wss://b" },
        "mcpServers.s.url is WebSocket, which is not supported: connect to the server over HTTP"
      ],
      [{ command: " " }, "mcpServers.s.command must not be empty"],
      [{ command: "a\0b" }, "mcpServers.s.command must not have a NUL character in it"],
      [{ command: "a", args: "-y" }, "mcpServers.s.args must be an array of strings"],
      [
        { command: "a", args: ["b", 1, "${NO}"] },
        "mcpServers.s.args[1] must be a string",
        "mcpServers.s.args[2] needs the variable NO, which is not set: set it, or write ${NO:-default}"
      ],
      [{ command: "a", env: ["A=b"] }, "mcpServers.s.env must be an object"],
      [
        { command: "a", env: { A: null, "B=": "", "C D": true } },
        "mcpServers.s.env.A must be a string",
        "mcpServers.s.env[\"B=\"] is not a name that a variable can have",
        "mcpServers.s.env[\"C D\"] must be a string"
      ],
      [{ command: "a", cwd: 1 }, "mcpServers.s.cwd must be a string"],
      [
        { command: "a", envFile: ".env" },
        "mcpServers.s.envFile names a file that can't be read, because there is no FileSystem"
      ],
      [{ command: "a", envFile: [".env"] }, "mcpServers.s.envFile must be a string"],
      [{ url: 1 }, "mcpServers.s.url must be a string"],
      [{ url: "example.com/mcp" }, "mcpServers.s.url is not a URL"],
      [{ url: "ftp://example.com" }, "mcpServers.s.url must be an http or https URL"],
      [
        { url: "https://me:secret@example.com" },
        "mcpServers.s.url must not hold a user or password: use an Authorization header"
      ],
      [
        { url: "http://b", headers: { "X Key": "k", "X-Key": "a\nb", "X-Long": "\u2026", "X-Input": "${input:key}" } },
        "mcpServers.s.headers[\"X Key\"] is not a name that a header can have",
        "mcpServers.s.headers.X-Key has a character in it that a header can't have",
        "mcpServers.s.headers.X-Long has a character in it that a header can't have",
        "mcpServers.s.headers.X-Input needs an input that `inputs` does not have"
      ],
      [
        { url: "http://b", headers: { A: "${B:-${C}}" } },
        `mcpServers.s.headers.A ${unknownVariable}`
      ],
      [
        { url: "http://b", headersHelper: "./token.sh" },
        "mcpServers.s.headersHelper is not supported: put the headers into `headers`"
      ]
    ]
    it.effect.each(wrongServers)("with the server %j", ([server, ...issues]) =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* decodeOne(server), issues)
      }))

    const wrongFiles: ReadonlyArray<readonly [contents: string, message: string]> = [
      ["", "the file is not valid JSON"],
      ["{\n  \"mcpServers\": {\n    \"a\": {} \"b\": {}\n}}", "the file is not valid JSON (line 3, column 13)"],
      ["// a comment\n{ 'mcpServers': {} }", "the file is not valid JSON (line 2, column 3)"],
      ["[]", "the file must be an object"],
      ["{}", "the file has neither `mcpServers` nor `servers`"],
      [
        "{ \"mcpServers\": {}, \"servers\": {} }",
        "the file has both `mcpServers` and `servers`: put all servers into one of them"
      ],
      ["{ \"servers\": [] }", "servers must be an object of servers by name"],
      ["{ \"mcp\": true }", "mcp must be an object of servers by name"],
      ["{ \"mcp\": { \"servers\": [] } }", "mcp.servers must be an object of servers by name"]
    ]
    it.effect.each(wrongFiles)("in the file %j", ([contents, message]) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(fromFile(contents))
        assert.strictEqual(error.message, `mcp.json: ${message}.`)
      }))

    it.effect("is told all at once, in the order of the file, and costs the server that it is about", () =>
      Effect.gen(function*() {
        const servers = yield* fromFile(
          "{ \"mcpServers\": { \"a\": { \"command\": \"\", \"args\": [1] }, \"b\": { \"url\": \"${B}\" }," +
            " \"c\": { \"command\": \"c\" }, \"d\\n\": { \"command\": \"d\" } } }"
        )
        assert.deepStrictEqual(servers.names, ["c"])
        assert.deepStrictEqual(servers.problems, [
          { server: "a", path: "mcpServers.a.command", issue: "must not be empty" },
          { server: "a", path: "mcpServers.a.args[0]", issue: "must be a string" },
          {
            server: "b",
            path: "mcpServers.b.url",
            issue: "needs the variable B, which is not set: set it, or write ${B:-default}"
          },
          {
            server: "d\n",
            path: "mcpServers[\"d\\n\"]",
            issue: "must be named with 1 to 128 characters, none of them a control character: " +
              "`Identity.at` takes no others"
          }
        ])
        const error = yield* Effect.flip(servers.connector("a"))
        assert.strictEqual(error._tag, "McpServersError")
        if (error._tag !== "McpServersError") return
        assert.strictEqual(error.file, "mcp.json")
        assert.strictEqual(error.method, "connector")
        assert.strictEqual(error.path, "mcpServers.a.command")
        assert.strictEqual(error.issue, "must not be empty")
        assert.strictEqual(
          error.message,
          "mcp.json has 2 problems:\n" +
            "- mcpServers.a.command must not be empty.\n" +
            "- mcpServers.a.args[0] must be a string."
        )
        assert.strictEqual(
          (yield* Effect.flip(servers.connector("b"))).message.split("needs")[0],
          "mcp.json: mcpServers.b.url "
        )
        yield* servers.connector("c")
      }))

    it.effect("is also a file that is not there, or that can't be read", () =>
      Effect.gen(function*() {
        const cases = [
          ["NotFound", "the file does not exist"],
          ["PermissionDenied", "the file can't be read (PermissionDenied)"]
        ] as const
        for (const [tag, message] of cases) {
          const readFileString = () =>
            Effect.fail(PlatformError.systemError({ _tag: tag, module: "FileSystem", method: "readFileString" }))
          const error = yield* Effect.flip(fromFileSystem(FileSystem.layerNoop({ readFileString })))
          assert.strictEqual(error.message, `mcp.json: ${message}.`)
        }
      }))

    it.effect("is also a variable that its provider can't read", () =>
      Effect.gen(function*() {
        const provider = ConfigProvider.make(() =>
          Effect.fail(new ConfigProvider.SourceError({ message: "s3cret store is down" }))
        )
        const config = { servers: { a: { url: "${URL:-http://a}" }, b: { url: "${input:url}" }, c: { url: "$URL" } } }
        const { problems } = yield* Effect.provide(McpServers.make(config), ConfigProvider.layer(provider))
        assert.deepStrictEqual(problems.map(({ issue, path }) => `${path} ${issue}`), [
          "servers.a.url needs the variable URL, which the ConfigProvider could not read",
          "servers.b.url needs an input, which the ConfigProvider could not read",
          "servers.c.url is not a URL"
        ])
      }))

    it.effect("answers 500 and names nothing, should it reach a client", () =>
      Effect.gen(function*() {
        const error: McpServersError = yield* Effect.flip(dieOfOptions(McpServers.make({})))
        const response = yield* error[HttpServerRespondable.symbol]()
        assert.strictEqual(response.status, 500)
        assert.strictEqual(error.message, "the configuration: the file has neither `mcpServers` nor `servers`.")
        assert.deepStrictEqual([error.module, error.method, error.reference], [
          "McpServers",
          "make",
          "invalid-servers"
        ])
        assert.strictEqual((yield* Effect.flip(fromFile("{}"))).method, "layer")
      }))
  })

  describe("whatever the JSON", () => {
    it.effect.prop("it is read or refused", [Schema.Json], ([json]) =>
      Effect.gen(function*() {
        const text = JSON.stringify(json)
        assert.deepStrictEqual(Result.getOrThrow(McpJson.parse(text)), JSON.parse(text))
        yield* decode(json)
      }), { arbitrary: { seed } })

    const server = Schema.Struct({
      type: Schema.optionalKey(Schema.Union([Schema.Literals(["stdio", "http", "sse"]), Schema.Json])),
      command: Schema.optionalKey(Schema.Union([Schema.String, Schema.Json])),
      args: Schema.optionalKey(Schema.Union([Schema.Array(Schema.Union([Schema.String, Schema.Json])), Schema.Json])),
      env: Schema.optionalKey(Schema.Union([Schema.Record(Schema.String, Schema.String), Schema.Json])),
      url: Schema.optionalKey(Schema.Union([Schema.Literals(["http://a"]), Schema.Json])),
      headers: Schema.optionalKey(Schema.Union([Schema.Record(Schema.String, Schema.String), Schema.Json]))
    })
    it.effect.prop(
      "a server is read or refused, and what is read opens",
      [Schema.Record(Schema.String, server)],
      ([servers]) =>
        Effect.gen(function*() {
          const result = yield* Effect.result(McpServers.make({ mcpServers: servers }))
          if (Result.isFailure(result)) return assert.isNotEmpty(result.failure.message)
          const { names, problems } = result.success
          const broken = problems.map((problem) => problem.server)
          assert.deepStrictEqual(new Set([...names, ...broken]), new Set(Object.keys(servers)))
          assert.deepStrictEqual(names.filter((name) => broken.includes(name)), [])
          for (const name of names) Identity.fromKey("someone").at(name)
        }),
      { arbitrary: { seed } }
    )

    it("nothing in it is quoted when it is not JSON, however deep it goes", () => {
      assert.isTrue(Result.isSuccess(McpJson.parse("[".repeat(10_000) + "]".repeat(10_000))))
      assert.isTrue(Result.isFailure(McpJson.parse("[".repeat(10_000))))
    })
  })

  describe("however hostile the file is", () => {
    const texts: Readonly<Record<string, (length: number) => string>> = {
      "comments that do not end": (length) => "/* ".repeat(length / 3),
      "strings that do not end, with escapes": (length) => "\"\\".repeat(length / 2),
      "one string of escapes": (length) => `"${"\\".repeat(length)}`,
      "one string of escaped quotes": (length) => `"${"\\\"".repeat(length / 2)}`,
      "slashes": (length) => "/".repeat(length),
      "comments, one after the other": (length) => "/**/".repeat(length / 4),
      "commas with spaces": (length) => `[${",  ".repeat(length / 3)}`,
      "a comma and spaces": (length) => `[1,${" ".repeat(length)}x`,
      "commas with comments": (length) => `[1,${",/**/".repeat(length / 5)}]`,
      "lines": (length) => "\n".repeat(length)
    }
    // What is quadratic takes minutes for as much, and what is linear no time worth measuring
    it.each(Object.keys(texts))("its parsing is linear in %s", (name) => {
      const text = texts[name]!(1024 * 1024)
      assert.isTrue(Result.isResult(McpJson.parse(text)))
    })

    const configs: Readonly<Record<string, (length: number) => unknown>> = {
      "variables that do not end": (length) => ({ command: "x", args: ["${".repeat(length / 2)] }),
      "variables that nobody can have": (length) => ({ command: "x", args: ["${}".repeat(length / 3)] }),
      "bare variables": (length) => ({ command: "x", args: ["$A".repeat(length / 2)] }),
      "inputs": (length) => ({ command: "x", args: ["${input:a-b}".repeat(length / 12)] }),
      "an id of an input": (length) => ({ command: "x", args: [`\${input:${"aB-".repeat(length / 3)}}`] }),
      "files": (length) => ({ command: "x", args: ["${file:/a}".repeat(length / 10)] }),
      "defaults": (length) => ({ command: "x", args: ["${A:-b}".repeat(length / 7)] }),
      "long defaults": (length) => ({ command: "x", args: [`\${A:-${"{".repeat(length)}}`] }),
      "bad variables of a long name": (length) => ({
        command: "x",
        env: Object.fromEntries(Array.from({ length: length / 64 }, (_, i) => [`${i}=`, 1]))
      })
    }
    it.effect.each(Object.keys(configs))(
      "its decoding is linear in %s, and so are its issues",
      (name) =>
        Effect.gen(function*() {
          const length = 256 * 1024
          // A name that long is in the path of each issue
          const config = { mcpServers: { ["s".repeat(length / 8)]: configs[name]!(length) } }
          const decoded = yield* decode(config)
          for (const { issues } of Result.getOrThrow(decoded).servers.values()) {
            assert.isBelow(JSON.stringify(issues).length, 8 * length)
          }
        })
    )

    it.effect("a variable that can't be expanded is told once for each value that has it", () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* decodeOne({ command: "x", args: ["${A}${A}${-}${-}", "${A}"] }), [
          "mcpServers.s.args[0] needs the variable A, which is not set: set it, or write ${A:-default}",
          `mcpServers.s.args[0] ${unknownVariable}`,
          "mcpServers.s.args[1] needs the variable A, which is not set: set it, or write ${A:-default}"
        ])
      }))

    it.effect("the position of an error is the file's own, whatever the file says of positions", () =>
      Effect.gen(function*() {
        const cases = [
          ["{ /* a\n b */ \"a\": 1, // c\n \"b\" 2 }", "line 3, column 6"],
          ["\uFEFF{ \"a\": [1, /* , */ ] \"b\": 1 }", "line 1, column 23"],
          ["{ \"a at position 1\": 1 \"at position 2\" }", "line 1, column 24"],
          ["{ \"a\": \"\n\" }", "line 1, column 9"]
        ] as const
        for (const [contents, position] of cases) {
          const error = yield* Effect.flip(fromFile(contents))
          assert.include(error.message, position, contents)
        }
        const quoting = yield* Effect.flip(fromFile("{ \"a at position 1\": x at position 2 }"))
        assert.notInclude(quoting.message, "column 2)")
        assert.notInclude(quoting.message, "column 3)")
      }))

    // What a parser of JSON without comments says of the text without them
    const pieces = [
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      " ",
      "\n",
      "1",
      "\"a\"",
      "\"//\"",
      "\"/*\"",
      "\"*/\"",
      "\"\\\"\"",
      "\",]\""
    ]
    const comments = ["// ,]}\n", "/* ,]} \n */", "/**/", "//\n"]
    it.prop(
      "comments and trailing commas change nothing of what else it says",
      [Schema.Json, Schema.Array(Schema.Literals(comments)), Schema.Array(Schema.Literals(pieces))],
      ([json, between, random]) => {
        const joint = [" ", ...between].join("")
        // Comments around each mark of punctuation that is not in a string
        const value: unknown = JSON.parse(JSON.stringify(json))
        const dressed = JSON.stringify(value, undefined, 1).replace(
          /("(?:[^"\\]|\\.)*")|[[{:,\]}]/g,
          (mark, string) => string ?? joint + mark + joint
        )
        assert.deepStrictEqual(Result.getOrThrow(McpJson.parse(dressed)), value)
        const trailing = JSON.stringify([value]).replace(/\]$/, `,${joint}]`)
        assert.deepStrictEqual(Result.getOrThrow(McpJson.parse(trailing)), [value])
        // Anything is read or refused
        assert.isTrue(Result.isResult(McpJson.parse(random.join("") + joint)))
      },
      { arbitrary: { seed } }
    )
  })

  describe("an option without a meaning", () => {
    const wrong: Readonly<Record<string, ReadonlyArray<unknown>>> = {
      file: ["", 5, null, {}],
      forwardCredentials: [true, "all", null],
      clientInfo: ["me", {}, { name: "me" }, null],
      connectTimeout: ["soon", 0, -1, NaN, Infinity, {}],
      requestTimeout: ["soon", 0, -1, NaN, Infinity, {}],
      sampling: [{}, true],
      elicitation: [{}, true],
      urlElicitation: [{}, true],
      roots: [[], "/"],
      workspaceFolder: ["", 5, null],
      // The name of each server is in the configuration
      name: ["weather"],
      forwardCredential: [() => true]
    }
    it.effect.each(Object.keys(wrong))("%s fails make and layer with its name", (option) =>
      Effect.gen(function*() {
        for (const value of wrong[option]!) {
          const options = { [option]: value } as McpServersOptions
          const made = yield* Effect.flip(McpServers.make({ servers: {} }, options))
          assert.instanceOf(made, InvalidOptions)
          assert.deepStrictEqual([made.module, made.method, made.option], ["McpServers", "make", option])
          const layer = option === "file"
            ? McpServers.layer(value as string)
            : McpServers.layer("mcp.json", options)
          const built = yield* Layer.build(layer).pipe(
            Effect.provide(FileSystem.layerNoop({ readFileString: () => Effect.succeed("{ \"servers\": {} }") })),
            Effect.flip
          )
          assert.instanceOf(built, InvalidOptions)
          assert.deepStrictEqual([built.module, built.method, built.option], ["McpServers", "layer", option])
        }
      }))

    it.effect("an answer of forwardCredentials that is neither true nor false is one", () =>
      Effect.gen(function*() {
        const config = { servers: { weather: { url: "http://a" } } }
        for (const answer of ["yes", 1, Promise.resolve(true)]) {
          const forwardCredentials = () => answer as unknown as boolean
          const error = yield* Effect.flip(McpServers.make(config, { forwardCredentials }))
          assert.instanceOf(error, InvalidOptions)
          assert.strictEqual(
            error.message,
            "McpServers.make: option \"forwardCredentials\" must answer true or false for \"weather\""
          )
        }
      }))

    it.effect("is not one that is left undefined", () =>
      Effect.gen(function*() {
        const options: McpServersMakeOptions = {
          file: undefined,
          forwardCredentials: undefined,
          clientInfo: undefined,
          connectTimeout: undefined,
          requestTimeout: undefined,
          sampling: undefined,
          elicitation: undefined,
          urlElicitation: undefined,
          roots: undefined,
          workspaceFolder: undefined
        }
        const { names } = yield* McpServers.make({ servers: { weather: { url: "http://a" } } }, options)
        assert.deepStrictEqual(names, ["weather"])
      }))
  })

  describe("choosing a server", () => {
    const handle = { retire: () => Effect.void, credentials: Effect.succeedNone }
    const connect = (identity: Identity, config: unknown) =>
      McpServers.connect(identity, handle).pipe(
        Effect.provideServiceEffect(McpServers, McpServers.make(config)),
        Effect.flip
      )
    const config = { mcpServers: { weather: { command: "/no/such/command" }, files: { command: "/no/such/command" } } }

    it.effect("that is not there fails with the names that are", () =>
      Effect.gen(function*() {
        const error = yield* connect(Identity.fromKey("tenant:acme").at("wether"), config)
        assert.strictEqual(error._tag, "UnknownServer")
        assert.strictEqual(
          error.message,
          "There is no server \"wether\". Known servers: \"weather\", \"files\"."
        )
        if (error._tag !== "UnknownServer") return
        assert.deepStrictEqual([error.name, ...error.known], ["wether", "weather", "files"])
        assert.strictEqual(error.method, "connect")
        const servers = yield* McpServers.make(config)
        assert.strictEqual((yield* Effect.flip(servers.connector("wether"))).method, "connector")
        assert.strictEqual((yield* error[HttpServerRespondable.symbol]()).status, 404)
      }))

    it.effect("is needed: an identity that has not been given one is told so", () =>
      Effect.gen(function*() {
        assert.strictEqual(
          (yield* connect(Identity.fromKey("weather"), config)).message,
          "The identity names no server; choose one with identity.at(name). Known servers: \"weather\", \"files\"."
        )
        assert.strictEqual(
          (yield* connect(Identity.fromKey("a").at("toString"), { servers: {} })).message,
          "There is no server \"toString\". Known servers: none."
        )
      }))

    it.live("runs the connector of that server, under its name", () =>
      Effect.gen(function*() {
        const error = yield* connect(Identity.fromKey("tenant:acme").at("files"), config)
        assert.strictEqual(error._tag, "McpSessionError")
        if (error._tag === "McpSessionError") {
          assert.strictEqual(error.server, "files")
          assert.strictEqual(error.reason._tag, "Unreachable")
        }
      }))
  })
})
