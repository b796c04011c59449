/**
 * A server that others can reach, and whose callers nobody verifies, says so in the log.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, describe, it } from "@effect/vitest"
import { Identity } from "effect-mcp-sessions/Identity"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { createServer } from "node:http"
import { textOf } from "./support/answers.ts"
import * as AuthorizationServer from "./support/authorizationServer.ts"
import { inside, makeInsideLog } from "./support/guarded.ts"
import { makeLog, makeServer } from "./support/mcpHttp.ts"
import { initialize } from "./support/requests.ts"

const apps = [
  ["layer", (options: McpHttp.EndpointOptions) => McpHttp.layer({ server: makeServer(makeLog()), ...options })],
  ["guard", (options: McpHttp.EndpointOptions) => Layer.merge(McpHttp.guard(options), inside(makeInsideLog()))]
] as const

const isAdvice = (line: string) => line.includes("nobody verifies")

const authorization = { servers: ["https://login.example.com"] }

describe.each(apps)("McpHttp.%s", (name, app) => {
  /** What the log says when it listens there, and after two requests. */
  const warnings = (
    host: string,
    resolver: Layer.Layer<IdentityResolver>,
    options: McpHttp.EndpointOptions = {}
  ) =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel} ${String(message)}`))
      const served = HttpRouter.serve(Layer.provide(app(options), resolver), {
        disableLogger: true,
        disableListenLog: true
      })
      const context = yield* Layer.build(
        Layer.orDie(Layer.provideMerge(served, NodeHttpServer.layer(() => createServer(), { port: 0, host })))
      ).pipe(Effect.provide(Logger.layer([logger])))
      const atStart = lines.filter(isAdvice).length
      const { address } = Context.get(context, HttpServer.HttpServer)
      const port = "port" in address ? address.port : 0
      for (let i = 0; i < 2; i++) {
        const response = yield* Effect.promise(() =>
          fetch(`http://${host === "0.0.0.0" ? "127.0.0.1" : host}:${port}/mcp`, {
            method: "POST",
            headers: { "content-type": "application/json", accept: "application/json, text/event-stream" },
            body: JSON.stringify(initialize)
          })
        )
        yield* textOf(response)
      }
      return { atStart, lines: lines.filter(isAdvice) }
    }).pipe(Effect.scoped)

  it.live("warns when it starts, once, if it can be reached by others and its resolver verifies nobody", () =>
    Effect.gen(function*() {
      for (const mode of ["optional", "required", "disabled"] as const) {
        const { atStart, lines } = yield* warnings("0.0.0.0", Layer.orDie(IdentityResolver.layer({ mode })))
        assert.strictEqual(atStart, 1, mode)
        assert.lengthOf(lines, 1)
        assert.match(lines[0]!, new RegExp(`^Warn McpHttp\\.${name}: this server listens on 0\\.0\\.0\\.0:\\d+,`))
        for (const way of ["layerJwt", "layerIntrospection", "verified: true", "127.0.0.1"]) {
          assert.include(lines[0], way)
        }
      }
    }))

  it.live("warns when the first caller comes whom an identify of the user's has not verified", () =>
    Effect.gen(function*() {
      const resolver = IdentityResolver.layerIdentify(() => Effect.succeed("user:alice"))
      const { atStart, lines } = yield* warnings("0.0.0.0", resolver)
      assert.strictEqual(atStart, 0)
      assert.lengthOf(lines, 1)
    }))

  it.live("warns wherever it is, if it tells clients to get tokens that nobody verifies", () =>
    Effect.gen(function*() {
      const required = Layer.orDie(IdentityResolver.layer({ mode: "required" }))
      const started = yield* warnings("127.0.0.1", required, { authorization })
      assert.strictEqual(started.atStart, 1)
      assert.lengthOf(started.lines, 1)
      assert.match(started.lines[0]!, new RegExp(`^Warn McpHttp\\.${name}: with "authorization" clients are told`))
      const identify = IdentityResolver.layerIdentify(() => Effect.succeed("user:alice"))
      const { atStart, lines } = yield* warnings("127.0.0.1", identify, { authorization })
      assert.deepStrictEqual([atStart, lines.length], [0, 1])
    }))

  it.live("says nothing on loopback, or where somebody verifies callers", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const verified = IdentityResolver.layerIdentify(() =>
        Effect.succeed(Identity.fromKey("user:alice", { verified: true }))
      )
      const jwt = IdentityResolver.layerJwt({ issuer: server.issuer, audience: "mcp" })
      for (
        const [host, resolver] of [
          ["127.0.0.1", Layer.orDie(IdentityResolver.layer())],
          ["127.0.0.2", IdentityResolver.layerIdentify(() => Effect.succeed("user:alice"))],
          ["0.0.0.0", verified],
          ["0.0.0.0", Layer.orDie(jwt)]
        ] as const
      ) {
        assert.deepStrictEqual((yield* warnings(host, resolver)).lines, [])
      }
      assert.deepStrictEqual((yield* warnings("0.0.0.0", Layer.orDie(jwt), { authorization })).lines, [])
    }))
})
