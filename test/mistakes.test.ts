/**
 * What the compiler says to common mistakes: one line, which names what is wrong.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Compiler from "./support/compiler.ts"

const imports = `
import { Context, Duration, Effect, Layer } from "effect"
import {
  Identity, IdentityResolver, McpConnector, McpHttp, McpServers, McpSession, McpSessionError, SessionPool,
  SessionRegistry
} from "effect-mcp-sessions"
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js"

const connect = McpConnector.stdio({ command: "server" })
const makeServer = () => Effect.sync(() => new McpServer({ name: "example", version: "1.0.0" }))
const open = () => Effect.succeed("resource")
interface Connection { readonly query: (sql: string) => Effect.Effect<string> }
class Connections extends SessionPool.Tag<Connections, Connection, Error>()("app/Connections") {}
const connection: Connection = { query: Effect.succeed }
`

/** What is written, and what the complaint has to name. */
const mistakes = {
  "an unknown option of the pool": ["max", "SessionPool.layer({ connect, max: 10 })"],
  "the old name of an option": ["ttl", `SessionPool.layer({ connect, ttl: "5 minutes" })`],
  "a misspelt option beside others": [
    "idleTimeToLife",
    `SessionPool.layer({ connect, capacity: 10, idleTimeToLife: "1 minute" })`
  ],
  "a capacity that is a string": ["string", `SessionPool.layer({ connect, capacity: "10" })`],
  "a duration that is none": ["5 minuts", `SessionPool.layer({ connect, idleTimeToLive: "5 minuts" })`],
  "a pool without connect": ["connect", "SessionPool.layer({ capacity: 10 })"],
  "an unknown option of one's own pool": [
    "max",
    "Connections.layer({ connect: () => Effect.succeed(connection), max: 10 })"
  ],
  "an unknown option beside an inline connect": [
    "max",
    "SessionPool.layer({ connect: (identity, handle) => connect(identity, handle), max: 10 })"
  ],
  "an unknown option of the resolver": ["modes", `IdentityResolver.layer({ modes: "required" })`],
  "an unknown mode": ["always", `IdentityResolver.layer({ mode: "always" })`],
  "an unknown option of stdio": ["arguments", `McpConnector.stdio({ command: "node", arguments: ["server.js"] })`],
  "stdio without a command": ["command", `McpConnector.stdio({ args: ["server.js"] })`],
  "an unknown option of http": ["uri", `McpConnector.http({ url: "http://127.0.0.1", uri: "/mcp" })`],
  "an unknown option of the registry": ["ttl", "SessionRegistry.layer({ open, ttl: 1 })"],
  "an unknown option of McpHttp.layer": ["route", `McpHttp.layer({ server: makeServer, route: "/mcp" })`],
  "an unknown option of McpHttp.guard": ["server", "McpHttp.guard({ server: makeServer })"],
  "an operation that a session does not have": [
    "callTools",
    `SessionPool.withSession(Identity.shared(), (session) => session.callTools({ name: "echo" }))`
  ],
  "a key where an identity belongs": ["Identity", `SessionPool.get("alice")`]
} as const

const files = Object.entries(mistakes).map(([title, [names, code]], i) => ({ title, names, code, file: `m${i}.ts` }))

const checked = Compiler.check({
  "none.ts": `${imports}\nSessionPool.layer({ connect, capacity: 10 })`,
  ...Object.fromEntries(files.map(({ code, file }) => [file, `${imports}\n${code}`]))
})

describe("the compiler", () => {
  it.live("names the mistake in one line, or two if it has to give a reason", () =>
    Effect.gen(function*() {
      const said: Readonly<Record<string, ReadonlyArray<Compiler.Complaint>>> = yield* checked
      assert.deepStrictEqual(said["none.ts"], [])
      const wrong = files.flatMap(({ file, names, title }) => {
        const complaints = said[file]!.map(({ at, text }) => `${at}: ${text}`)
        const [first = "", ...more] = new Set(complaints)
        const lines = title.startsWith("an unknown") ? 1 : 2
        const fine = more.length === 0 && first.includes(names) && first.length <= 300 &&
          first.split("\n").length <= lines
        return fine ? [] : [[title, ...complaints].join("\n")]
      })
      assert.deepStrictEqual(wrong, [])
    }), 120_000)
})
