/**
 * One `mcp.json`, three real servers: each session is opened at the one that its identity chose.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Credentials, Identity } from "../src/Identity.ts"
import { McpServers } from "../src/McpServers.ts"
import { descendants, survivors } from "./support/processes.ts"
import * as HttpServer from "./support/servers/http.ts"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

const writeServers = (config: unknown) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "mcp-servers-"))),
      (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
    ),
    (directory) => {
      const file = join(directory, "mcp.json")
      writeFileSync(file, JSON.stringify(config))
      return file
    }
  )

const connect = (identity: Identity) =>
  McpServers.connect(identity, { retire: () => Effect.void, credentials: Effect.succeed(identity.credentials) })

const textOf = (result: CallToolResult) => result.content.map((block) => block.type === "text" ? block.text : "").join()

describe("McpServers with real servers", () => {
  it.live("opens a session at the server that the identity chose", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      const file = yield* writeServers({
        mcpServers: {
          everything: { command: "${NODE}", args: [everything, "stdio"], env: { GREETING: "${GREETING:-hello}" } },
          private: { url: server.url, headers: { Authorization: "Bearer ${TOKEN}" } },
          old: { url: server.sseUrl, type: "sse" },
          open: { url: server.url }
        }
      })
      const variables = ConfigProvider.layer(ConfigProvider.fromEnvRecord({ NODE: process.execPath, TOKEN: "t0ken" }))
      const servers = McpServers.layer(file, { forwardCredentials: (name) => name === "open" }).pipe(
        Layer.provide([NodeFileSystem.layer, variables])
      )
      const user = Identity.fromKey("user:1", { credentials: Credentials.bearer("user-token") })
      const children = yield* Effect.gen(function*() {
        const stdio = yield* connect(user.at("everything"))
        assert.include(stdio.serverInfo.name, "everything")
        const environment = yield* stdio.callTool({ name: "get-env" })
        assert.include(textOf(environment), "hello")

        const whoami = (name: string) =>
          Effect.flatMap(connect(user.at(name)), (session) => session.callTool({ name: "whoami" })).pipe(
            Effect.map(textOf)
          )
        assert.strictEqual(yield* whoami("private"), "Bearer t0ken")
        assert.strictEqual(yield* whoami("open"), "Bearer user-token")
        assert.strictEqual(yield* whoami("old"), "")
        assert.lengthOf(server.sessions, 3)
        const pids = descendants()
        assert.include(pids, stdio.pid)
        return pids
      }).pipe(Effect.scoped, Effect.provide(servers))
      assert.deepStrictEqual(yield* survivors(children), [])
      assert.deepStrictEqual(server.sessions, [])
    }))
})
