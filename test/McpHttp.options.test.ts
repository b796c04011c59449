import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as McpHttpOptions from "effect-mcp-sessions/McpHttpOptions"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { makeLog, makeServer } from "./support/mcpHttp.ts"

const built = (app: ReturnType<typeof McpHttp.guard>) =>
  Effect.flip(
    Layer.build(Layer.provide(app, Layer.merge(HttpRouter.layer, IdentityResolver.layer())))
  )

/** `authorization`, as it is given and as the variables say. */
const configured = (env: Record<string, string>, authorization?: McpHttp.AuthorizationOptions) =>
  Effect.map(
    Effect.provideService(
      McpHttpOptions.endpoint.configured({ authorization }),
      ConfigProvider.ConfigProvider,
      ConfigProvider.fromEnv({ env })
    ),
    (options) => options.authorization as unknown
  )

const endpoint: ReadonlyArray<readonly [option: string, value: unknown]> = [
  ["path", "mcp"],
  ["path", 1],
  ["allowedOrigins", "https://app.example"],
  ["allowedOrigins", [1]],
  ["allowedHosts", {}],
  ["maxBodyBytes", 0],
  ["maxBodyBytes", "4 MiB"],
  ["allowTermination", "no"],
  ["capacity", 0],
  ["capacityPerOwner", 1.5],
  ["idleTimeToLive", 0],
  ["maxLifetime", -1],
  ["authorization", "https://login.example.com"],
  ["authorization", {}],
  ["authorization", { servers: [] }],
  ["authorization", { servers: "https://login.example.com" }],
  ["authorization", { servers: ["login.example.com"] }],
  ["authorization", { servers: ["http://login.example.com"] }],
  ["authorization", { servers: ["https://login.example.com?a=b"] }],
  ["authorization", { servers: ["https://login.example.com"], scopes: "mcp" }],
  ["authorization", { servers: ["https://login.example.com"], scopes: ["a b"] }],
  ["authorization", { servers: ["https://login.example.com"], resource: "mcp.example.com" }],
  ["authorization", { servers: ["https://login.example.com"], resource: "http://mcp.example.com/mcp" }],
  ["authorization", { servers: ["https://login.example.com"], resource: "https://mcp.example.com/mcp#a" }],
  ["authorization", { servers: ["https://login.example.com"], audience: [] }],
  ["authorization", { servers: ["https://login.example.com"], required: ["mcp"] }],
  ["authorization", { servers: ["https://login.example.com"], scope: "mcp" }],
  ["idleTimeout", 1_000]
]

describe("McpHttp's layers", () => {
  it.effect.each([
    ...endpoint,
    ["server", undefined],
    ["server", {}],
    ["response", "xml"],
    ["eventStore", {}],
    ["retryInterval", -1],
    ["retryInterval", Number.NaN]
  ])("layer refuses %s: %j", ([option, value]) =>
    Effect.gen(function*() {
      const options = { server: makeServer(makeLog()), [option as string]: value } as McpHttp.LayerOptions<
        never,
        Scope.Scope
      >
      const error = yield* built(McpHttp.layer(options))
      assert.deepStrictEqual([error._tag, error.option], ["InvalidOptions", option as string])
    }))

  it.effect.each(endpoint)("guard refuses %s: %j", ([option, value]) =>
    Effect.gen(function*() {
      const error = yield* built(McpHttp.guard({ [option]: value }))
      assert.deepStrictEqual([error._tag, error.option], ["InvalidOptions", option])
    }))

  it.effect("says which option of `authorization` is wrong", () =>
    Effect.gen(function*() {
      const error = yield* built(McpHttp.guard({ authorization: { servers: [] } }))
      assert.include(error.message, "option \"authorization\" is wrong: its \"servers\" must be a list of https URLs")
    }))

  it.effect("read `authorization` from variables of its own, beside what is given", () =>
    Effect.gen(function*() {
      const variables = {
        MCP_REGISTRY_AUTHORIZATION_SERVERS: "https://one.example.com, https://two.example.com",
        MCP_REGISTRY_AUTHORIZATION_SCOPES: "mcp:use mcp:list"
      }
      const servers = ["https://one.example.com", "https://two.example.com"]
      const scopes = ["mcp:use", "mcp:list"]
      assert.isUndefined(yield* configured({}))
      assert.deepStrictEqual(yield* configured(variables), { servers, scopes })
      const resource = "https://mcp.example.com/mcp"
      assert.deepStrictEqual(
        yield* configured(variables, { servers: ["https://three.example.com"], resource }),
        { servers, scopes, resource }
      )
      // Half of it is no more than that
      const half = yield* configured({ MCP_REGISTRY_AUTHORIZATION_RESOURCE: resource })
      const error = yield* Effect.flip(Effect.fromResult(McpHttpOptions.endpoint.parse({ authorization: half })))
      assert.include(error.message, "\"servers\" must be")
    }))
})
