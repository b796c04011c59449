/**
 * The reference servers that keep something, with the connectors of both SDKs, each session in a pool: what an identity
 * stores is its own, and is there on its next call.
 */
import { assert, describe, inject, it } from "@effect/vitest"
import type { Client } from "@modelcontextprotocol/client"
import { Identity, McpConnector, type McpSession, type McpSessionError, SessionPool } from "effect-mcp-sessions"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import * as Effect from "effect/Effect"
import { readFile, realpath } from "node:fs/promises"
import { join } from "node:path"
import { temporaryDirectory } from "./support/temporary.ts"
import { call } from "./support/tools.ts"

class PoolV2 extends SessionPool.Tag<PoolV2, McpSession<Client>, McpSessionError>()("test/PoolV2") {}

const { filesystem, memory } = inject("referenceServers")

const directory = Effect.promise(() => realpath(temporaryDirectory("reference-servers-")))

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const generations = [
  {
    sdk: "@modelcontextprotocol/sdk",
    withCalls:
      (options: McpConnector.StdioOptions) => (identity: Identity, name: string, args: Record<string, unknown>) =>
        Effect.provide(
          SessionPool.withSession(identity, (session) => call(session, name, args)),
          SessionPool.layer({ connect: McpConnector.stdio(options) })
        )
  },
  {
    sdk: "@modelcontextprotocol/client",
    withCalls:
      (options: McpConnector.StdioOptions) => (identity: Identity, name: string, args: Record<string, unknown>) =>
        Effect.provide(
          PoolV2.withSession(identity, (session) => call(session, name, args)),
          PoolV2.layer({ connect: McpConnectorV2.stdio(options) })
        )
  }
]

for (const { sdk, withCalls } of generations) {
  describe(`reference servers with ${sdk}`, { concurrent: true }, () => {
    it.live("server-filesystem writes and reads within its directory alone", () =>
      Effect.gen(function*() {
        const path = yield* directory
        const ask = withCalls({ command: process.execPath, args: [filesystem, path] })
        yield* ask(alice, "write_file", { path: join(path, "note.txt"), content: "from alice" })
        assert.strictEqual(yield* Effect.promise(() => readFile(join(path, "note.txt"), "utf8")), "from alice")
        assert.include(yield* ask(bob, "read_text_file", { path: join(path, "note.txt") }), "from alice")
        assert.match(yield* ask(bob, "read_text_file", { path: "/etc/hostname" }), /Access denied/)
      }))

    it.live("server-memory keeps a graph for each identity, in a file that the identity's env names", () =>
      Effect.gen(function*() {
        const path = yield* directory
        const ask = withCalls({
          command: process.execPath,
          args: [memory],
          env: (identity) => ({ MEMORY_FILE_PATH: join(path, `${identity.key}.json`) })
        })
        const entities = [{ name: "Ada", entityType: "person", observations: ["wrote the first program"] }]
        yield* ask(alice, "create_entities", { entities })
        assert.include(yield* ask(alice, "read_graph", {}), "Ada")
        assert.notInclude(yield* ask(bob, "read_graph", {}), "Ada")
      }))
  })
}
