/**
 * One `mcp.json`, real servers, both generations of the SDK: each session is opened at the one that its identity chose.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, inject, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { Credentials, Identity } from "../src/Identity.ts"
import { McpServers } from "../src/McpServers.ts"
import { McpServersV2 } from "../src/McpServersV2.ts"
import type { McpSession } from "../src/McpSession.ts"
import { descendants, survivors } from "./support/processes.ts"
import * as HttpServer from "./support/servers/http.ts"
import { temporaryDirectory } from "./support/temporary.ts"

const { everything } = inject("referenceServers")

const writeServers = (config: unknown) =>
  Effect.sync(() => {
    const directory = temporaryDirectory("mcp-servers-")
    const file = join(directory, ".vscode", "mcp.json")
    mkdirSync(join(directory, ".vscode"))
    writeFileSync(file, JSON.stringify(config))
    writeFileSync(join(directory, ".env"), "GREETED=from a file")
    return file
  })

const handle = (identity: Identity) => ({
  retire: () => Effect.void,
  credentials: Effect.succeed(identity.credentials)
})

const generations = {
  McpServers: {
    layer: McpServers.layer,
    connect: (identity: Identity) => McpServers.connect(identity, handle(identity))
  },
  McpServersV2: {
    layer: McpServersV2.layer,
    connect: (identity: Identity) => McpServersV2.connect(identity, handle(identity))
  }
}

const textOf = (result: { readonly content: ReadonlyArray<{ readonly type: string; readonly text?: unknown }> }) =>
  result.content.map((block) => block.type === "text" ? String(block.text) : "").join()

const suite = <S, E, E2>(
  generation: string,
  { connect, layer }: {
    readonly layer: (
      file: string,
      options?: { readonly forwardCredentials?: (name: string) => boolean }
    ) => Layer.Layer<S, E, FileSystem.FileSystem>
    readonly connect: (identity: Identity) => Effect.Effect<
      Pick<McpSession<never>, "serverInfo" | "pid" | "callTool">,
      E2,
      Scope.Scope | S
    >
  }
) =>
  describe(`${generation} with real servers`, () => {
    it.live("opens a session at the server that the identity chose, whatever it is called", () =>
      Effect.gen(function*() {
        const server = yield* HttpServer.start()
        const file = yield* writeServers({
          mcpServers: {
            "Everything / 1": {
              command: "${NODE}",
              args: [everything, "stdio"],
              env: { GREETING: "${GREETING:-hello}" },
              envFile: ".env"
            },
            private: { serverUrl: server.url, headers: { Authorization: "Bearer $TOKEN" } },
            old: { type: "remote", url: server.sseUrl },
            open: { type: "streamableHttp", url: server.url },
            broken: { type: "http", url: "nowhere" }
          }
        })
        const variables = ConfigProvider.layer(ConfigProvider.fromEnvRecord({ NODE: process.execPath, TOKEN: "t0ken" }))
        const servers = layer(file, { forwardCredentials: (name) => name === "open" }).pipe(
          Layer.provide([NodeFileSystem.layer, variables])
        )
        const user = Identity.fromKey("user:1", { credentials: Credentials.bearer("user-token") })
        const children = yield* Effect.gen(function*() {
          const stdio = yield* connect(user.at("Everything / 1"))
          assert.include(stdio.serverInfo.name, "everything")
          const environment = yield* stdio.callTool({ name: "get-env" })
          assert.include(textOf(environment), "hello")
          assert.include(textOf(environment), "from a file")

          const whoami = (name: string) =>
            Effect.flatMap(connect(user.at(name)), (session) => session.callTool({ name: "whoami" })).pipe(
              Effect.map(textOf)
            )
          assert.strictEqual(yield* whoami("private"), "Bearer t0ken")
          assert.strictEqual(yield* whoami("open"), "Bearer user-token")
          assert.strictEqual(yield* whoami("old"), "")
          assert.lengthOf(server.sessions, 3)
          assert.include(String(yield* Effect.flip(connect(user.at("broken")))), "mcpServers.broken.url is not a URL")
          const pids = descendants()
          assert.include(pids, stdio.pid)
          return pids
        }).pipe(Effect.scoped, Effect.provide(servers))
        assert.deepStrictEqual(yield* survivors(children), [])
        assert.deepStrictEqual(server.sessions, [])
      }))

    it.live("quotes no password that was asked for, nor what a file holds, though they are plain words", () =>
      Effect.gen(function*() {
        const told = "console.error(process.env.GREETING, process.argv[1], process.env.FILE); process.exit(3)"
        const file = yield* writeServers({
          inputs: [{ type: "promptString", id: "pass-phrase", password: true }],
          servers: {
            teller: {
              command: "${NODE}",
              args: ["-e", told, "${file:../.env}"],
              env: { GREETING: "${input:pass-phrase}", FILE: "${file:../.env}" }
            }
          }
        })
        const variables = { NODE: process.execPath, PASS_PHRASE: "elephant" }
        const servers = layer(file).pipe(
          Layer.provide([NodeFileSystem.layer, ConfigProvider.layer(ConfigProvider.fromEnvRecord(variables))])
        )
        const error = yield* connect(Identity.fromKey("user:1").at("teller")).pipe(
          Effect.scoped,
          Effect.provide(servers),
          Effect.flip
        )
        assert.include(JSON.stringify(error), "<redacted> <redacted> <redacted>")
        assert.notMatch(JSON.stringify(error) + String(error), /elephant|from a file/)
      }))
  })

suite("McpServers", generations.McpServers)
suite("McpServersV2", generations.McpServersV2)
