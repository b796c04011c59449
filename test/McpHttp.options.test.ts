import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { makeLog, makeServer } from "./support/mcpHttp.ts"

const built = (app: ReturnType<typeof McpHttp.guard>) =>
  Effect.flip(
    Layer.build(Layer.provide(app, Layer.merge(HttpRouter.layer, IdentityResolver.layer())))
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
})
