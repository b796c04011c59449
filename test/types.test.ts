/**
 * What the compiler says to mistakes, and what the types let through: compiled once, as one project, each in a file of
 * its own.
 */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Compiler from "./support/compiler.ts"

const imports = `
import { Config, Context, Duration, Effect, Layer, type Scope } from "effect"
import { HttpRouter } from "effect/http"
import {
  Identity, IdentityResolver, McpConnector, McpHttp, McpServers, McpSession, McpSessionError, SessionPool,
  SessionRegistry
} from "effect-mcp-sessions"
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js"

const alice = Identity.fromKey("alice")
const connect = McpConnector.stdio({ command: "server" })
const makeServer = () => Effect.sync(() => new McpServer({ name: "example", version: "1.0.0" }))

interface Connection { readonly query: (sql: string) => Effect.Effect<string> }
class Connections extends SessionPool.Tag<Connections, Connection, Error>()("app/Connections") {}
const connection: Connection = { query: Effect.succeed }
const dial = () => Effect.acquireRelease(Effect.succeed(connection), () => Effect.void)

interface Shell { readonly id: string }
class Shells extends SessionRegistry.Tag<Shells, Shell, Error>()("app/Shells") {}
const open = ({ id }: { readonly id: string }) => Effect.acquireRelease(Effect.succeed({ id }), () => Effect.void)

const hosted = McpHttp.guard()
declare const withHosted: (program: Effect.Effect<unknown, unknown, Layer.Success<typeof hosted> | Scope.Scope>) => void
`

/** What is written, and what the one complaint about it has to name. */
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

/** Complaints of a single line: it names the type that the user knows, and no other. */
const oneLiners = {
  "an unknown option of a pool of one's own": [
    "'max' does not exist in type 'SessionPoolOptions<Connection,",
    "Connections.layer({ connect: dial, max: 10 })"
  ],
  "an unknown option beside a connector": [
    "'max' does not exist in type 'SessionPoolOptions<McpSession",
    `SessionPool.layer({ connect: McpConnector.http({ url: "https://x" }), max: 10 })`
  ],
  "a pool's capacity that is a string": [
    "'string' is not assignable to type 'number'",
    `Connections.layer({ connect: dial, capacity: "10" })`
  ],
  "a connect that is no effect": [
    "'number' is not assignable to type 'Effect<Connection, Error, Scope>'",
    "Connections.layer({ connect: () => 5 })"
  ],
  "no connect": ["'connect' is missing", "Connections.layer({ capacity: 10 })"],
  "an unknown option of a registry": [
    "'max' does not exist in type 'SessionRegistryOptions<Shell,",
    "Shells.layer({ open, max: 10 })"
  ],
  "a registry's capacity that is a string": [
    "'string' is not assignable to type 'number'",
    `Shells.layer({ open, capacity: "10" })`
  ],
  "an open that is no effect": [
    "'number' is not assignable to type 'Effect<Shell, Error, Scope>'",
    "Shells.layer({ open: () => 5 })"
  ],
  "no open": ["'open' is missing", "Shells.layer({ capacity: 10 })"],
  "an unknown option of a registry's layerConfig": [
    "'max' does not exist in type",
    "Shells.layerConfig({ open, max: 10 })"
  ]
} as const

/** What else is refused, with one complaint. */
const refused = {
  "an operator of McpHttp's sessions who creates one": [
    "CreatesSessions",
    "withHosted(SessionRegistry.create(alice))"
  ],
  "an operator of McpHttp's sessions who gets one": [
    "CreatesSessions",
    `withHosted(SessionRegistry.get("id", alice))`
  ],
  "a registry's value that creates": [
    "'create' does not exist on type 'Operator'",
    "Effect.map(SessionRegistry, (registry) => registry.create(alice))"
  ],
  "a Config of another type": [
    "string",
    `Shells.layerConfig({ open, capacity: Config.String("SESSIONS") })`
  ]
} as const

/** What there is nothing to say against. */
const fine = {
  "a pool": "SessionPool.layer({ connect, capacity: 10 })",
  "a connect and a check with finalizers, which leave nothing to provide":
    "Connections.layer({ connect: dial, check: () => Effect.scope }) satisfies Layer.Layer<Connections, unknown>",
  "an operator of McpHttp's sessions who looks and ends":
    "[withHosted(SessionRegistry.size), withHosted(SessionRegistry.terminateAll(alice))]",
  "who creates in a registry of their own":
    "Effect.provide(SessionRegistry.create(alice), SessionRegistry.layer({ open }))",
  "a Config for one option": `Shells.layerConfig({ open, capacity: Config.Int("SESSIONS"), idleTimeToLive: "1 hour" })`,
  "a Config for all of them":
    `Shells.layerConfig(Config.all({ open: Config.succeed(open), capacity: Config.Int("N") }))`
} as const

const files = [
  ...[mistakes, oneLiners, refused].flatMap((group) => Object.values(group).map(([, code]) => code)),
  ...Object.values(fine)
].map((code, i) => ({ code, file: `file${i}.ts` }))

let said: Readonly<Record<string, ReadonlyArray<Compiler.Complaint>>>

beforeAll(async () => {
  const contents = files.map(({ code, file }) => [file, `${imports}\nexport const result = ${code}`])
  said = await Effect.runPromise(Compiler.check(Object.fromEntries(contents)))
}, 120_000)

const complaints = (code: string) => said[files.find((one) => one.code === code)!.file]!

describe("the compiler", () => {
  describe("names the mistake in one line, or two if it has to give a reason", () => {
    it.each(Object.entries(mistakes))("%s", (title, [names, code]) => {
      const all = new Set(complaints(code).map(({ at, text }) => `${at}: ${text}`))
      assert.strictEqual(all.size, 1, Array.from(all).join("\n"))
      const [first = ""] = all
      assert.include(first, names)
      assert.isAtMost(first.length, 300)
      assert.isAtMost(first.split("\n").length, title.startsWith("an unknown") ? 1 : 2)
    })
  })

  describe("says in one line what is wrong, in the user's words", () => {
    it.each(Object.entries(oneLiners))("%s", (_, [mention, code]) => {
      assert.lengthOf(complaints(code), 1)
      assert.include(complaints(code)[0]!.text, mention)
      assert.notInclude(complaints(code)[0]!.text, "\n")
    })
  })

  describe("refuses", () => {
    it.each(Object.entries(refused))("%s", (_, [mention, code]) => {
      assert.lengthOf(complaints(code), 1)
      assert.include(complaints(code)[0]!.text, mention)
    })
  })

  describe("has nothing against", () => {
    it.each(Object.entries(fine))("%s", (_, code) => {
      assert.deepStrictEqual(complaints(code), [])
    })
  })
})
