/**
 * Every block of TypeScript in README, ARCHITECTURE, CONTRIBUTING and the docstrings compiles.
 *
 * A block that imports something is complete. The others are what a reader would write between imports and names of
 * their own: those are below, and everything that this package and Effect export is there.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Sessions from "effect-mcp-sessions"
import * as Effect from "effect/Effect"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Compiler from "./support/compiler.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

/** What the blocks leave to their readers, wherever they are. */
const prelude = `
import { Clock, Config, Console, Context, Data, Duration, Effect, Layer, ManagedRuntime, Metric, Option, Redacted,
  Schedule, Schema, Scope, Stream } from "effect"
import { McpProtocol, McpServer } from "effect/ai"
import { HttpRouter, HttpServerRequest } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { CircuitBreaker, KeyValueStore, RateLimiter } from "effect/persistence"
import { TestClock } from "effect/testing"
import { createServer } from "node:http"
import { assert, it } from "@effect/vitest"
import { ClientCredentialsProvider } from "@modelcontextprotocol/sdk/client/auth-extensions.js"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import { ${Object.keys(Sessions).join(", ")}, type SessionHandle, type SessionInfo } from "effect-mcp-sessions"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"

interface Connection { readonly query: (sql: string) => Effect.Effect<ReadonlyArray<object>> }
interface User { readonly id: string; readonly scopes: ReadonlyArray<string> }
declare const dial: (key: string) => Effect.Effect<Connection & { readonly close: Effect.Effect<void> }, SqlError>
declare class SqlError { readonly _tag: "SqlError" }
declare const identity: Identity
declare const keySecret: Redacted.Redacted
declare const request: { readonly headers: Record<string, string> }
declare const session: McpSession
declare const call: Effect.Effect<string, McpSessionError>
declare const f: (session: McpSession) => Effect.Effect<string>
declare const connect: ReturnType<typeof McpConnector.stdio>
declare const open: (info: SessionInfo) => Effect.Effect<Connection, never, Scope.Scope>
declare const server: Server
declare const transport: Transport
declare const client: Client
declare const handle: SessionHandle
declare const makeServer: (info: SessionInfo) => Effect.Effect<Server, never, Scope.Scope>
declare const forward: <E, R>(
  lease: (f: (session: McpSession) => Effect.Effect<object, McpSessionError>) => Effect.Effect<object, E, R>
) => Effect.Effect<Server, never, R | Scope.Scope>
declare const verify: (request: object) => Effect.Effect<User>
declare const lookup: (request: object) => Effect.Effect<string, SqlError>
declare const digest: (text: string) => string
declare const testPool: Layer.Layer<SessionPool>
declare const closed: Array<string>
declare const protocols: readonly [typeof McpProtocol.v2025_11_25]
declare const name: string
declare const clientId: string
declare const clientSecret: Redacted.Redacted
declare const issuer: string
declare const redirectUrl: string
declare const fromVault: (identity: Identity) => Effect.Effect<Redacted.Redacted>
declare const provider: ClientCredentialsProvider
declare const url: string
declare const token: string
declare const headers: Record<string, string>
declare const command: string
declare const args: Array<string>
declare const env: Record<string, string>
declare const cwd: string
`

/** And what those of one module mean by a name. */
const meanings: Readonly<Record<string, string>> = {
  "src/ClusterMembership.ts": `
    const { HttpServerResponse } = await import("effect/http")`,
  "src/IdentityResolver.ts": `
    const { Headers } = await import("effect/http")
    const verify = (_: object) => Effect.succeed({ sub: "alice" })`,
  "src/McpConnectorV2.ts": `
    type Client = import("@modelcontextprotocol/client").Client`,
  "src/McpHttp.ts": `
    const { McpServer: SdkServer } = await import("@modelcontextprotocol/sdk/server/mcp.js")
    const server = new SdkServer({ name: "example", version: "1.0.0" })
    const forecast = Effect.succeed({ content: [{ type: "text" as const, text: "sunny" }] })`,
  "src/McpServers.ts": `
    const { NodeServices } = await import("@effect/platform-node")`,
  "src/McpServersV2.ts": `
    const { NodeServices } = await import("@effect/platform-node")
    const { McpServersV2 } = await import("effect-mcp-sessions/McpServersV2")
    type Client = import("@modelcontextprotocol/client").Client`,
  "src/Session.ts": `
    const { EmptyResultSchema: ResultSchema } = await import("@modelcontextprotocol/sdk/types.js")`,
  "src/SessionPool.ts": `
    const openConnection = (_: string): Effect.Effect<Connection> => Effect.never`,
  "src/SessionRegistry.ts": `
    interface Shell { readonly run: (line: string) => Effect.Effect<string> }
    const openShell = (_: string): Effect.Effect<Shell, PlatformError> => Effect.never
    type PlatformError = import("effect/PlatformError").PlatformError`
}

interface Block {
  readonly file: string
  readonly line: number
  readonly code: string
}

const blocksOf = (file: string, text: string): ReadonlyArray<Block> =>
  Array.from(text.matchAll(/^```ts\n(.*?)^```$/gms), (match): Block => ({
    file,
    line: text.slice(0, match.index).split("\n").length,
    code: match[1]!
  }))

// Without what makes them comments, line by line, so that the numbers stay
const docstrings = (text: string) => text.replaceAll(/^ *(?:\/\*\*| \*\/| \* ?)/gm, "")

const files = [
  ...["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/kubernetes.md"].filter((file) =>
    existsSync(join(root, file))
  ),
  ...readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" }).map((file) => join("src", file))
].filter((file) => /\.(?:md|ts)$/.test(file))

const blocks = files.flatMap((file) => {
  const text = readFileSync(join(root, file), "utf8")
  return blocksOf(file, file.endsWith(".ts") ? docstrings(text) : text)
})

const isComplete = ({ code }: Block) => /^import /m.test(code)

describe("documents", () => {
  it.live("have no TypeScript that does not compile", () =>
    Effect.gen(function*() {
      assert.isAbove(blocks.length, 30)
      const complaints = yield* Compiler.check(Object.fromEntries(blocks.map((block, i) => [
        `block${i}.ts`,
        isComplete(block) ? block.code : `${prelude}\n{${meanings[block.file] ?? ""}\n${block.code}}\n`
      ])))
      const wrong = blocks.flatMap(({ file, line }, i) =>
        complaints[`block${i}.ts`]!.map(({ at, text }) => `${file}:${line}: ${at}: ${text}`)
      )
      assert.deepStrictEqual(wrong, [])
    }), 60_000)
})
