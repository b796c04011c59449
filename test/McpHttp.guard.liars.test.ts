/**
 * A guard before a server that does not do what servers do.
 */
import { assert, describe, it } from "@effect/vitest"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Scope from "effect/Scope"
import { becomes, textOf } from "./support/answers.ts"
import { socket, web } from "./support/mcpHttp.ts"
import { begin, call, initialize, post, request } from "./support/requests.ts"

type Inside = (
  method: string,
  body: string
) => Effect.Effect<HttpServerResponse.HttpServerResponse, never, Scope.Scope>

/** An answer, in a session of that id. */
const answer = (session: string) =>
  HttpServerResponse.setHeader(
    HttpServerResponse.jsonUnsafe({ jsonrpc: "2.0", id: 0, result: {} }),
    "mcp-session-id",
    session
  )

const open = (inside: Inside, over: "web" | "socket" = "web") =>
  Effect.gen(function*() {
    const deleted: Array<string | undefined> = []
    const logged: Array<string> = []
    const route = HttpRouter.add(
      "*",
      "/mcp",
      Effect.gen(function*() {
        const { headers, method, text } = yield* HttpServerRequest
        if (method === "DELETE") deleted.push(headers["mcp-session-id"])
        return yield* inside(method, method === "POST" ? yield* Effect.orDie(text) : "")
      })
    )
    const logger = Logger.layer([Logger.map(Logger.formatLogFmt, (line) => void logged.push(line))])
    const app = Layer.provideMerge(
      Layer.mergeAll(McpHttp.guard({ openTimeout: 300, closeTimeout: 300 }), route),
      logger
    )
    return { ...yield* over === "web" ? web(app) : socket(app), deleted, logged }
  })

describe("a server behind McpHttp.guard", () => {
  it.live("that has one session for two callers has it for the first of them alone", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(() => Effect.succeed(answer("one for all")))
      const session = yield* begin(endpoint, "alice")
      const second = yield* post(endpoint, initialize, { as: "bob" })
      assert.strictEqual(second.status, 503)
      assert.isNull(second.headers.get("mcp-session-id"))
      assert.strictEqual(yield* endpoint.registry.size, 1)
      assert.match(endpoint.logged.join("\n"), /same session for two/)
      assert.deepStrictEqual(endpoint.deleted, [])
      yield* request(endpoint, "DELETE", { as: "alice", session })
      assert.deepStrictEqual(endpoint.deleted, ["one for all"])
      yield* begin(endpoint, "bob")
    }))

  it.live("that never answers initialize has no session after openTimeout, and its client is told", () =>
    Effect.gen(function*() {
      const endpoint = yield* open((method) => method === "POST" ? Effect.never : Effect.succeed(answer("x")))
      const response = yield* post(endpoint, initialize).pipe(Effect.timeout("2 seconds"))
      assert.strictEqual(response.status, 503)
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))

  it.live("that ignores interruption keeps nobody waiting: no client, no session, not the end", () =>
    Effect.gen(function*() {
      const released = yield* Deferred.make<void>()
      const deaf = Effect.uninterruptible(Effect.as(Deferred.await(released), answer("late")))
      const endpoint = yield* open((method, body) =>
        method === "POST" && !body.includes("first") ? deaf : Effect.succeed(answer("x"))
      )
      const begun = yield* post(endpoint, { ...initialize, id: "first" })
      const session = begun.headers.get("mcp-session-id")!
      assert.strictEqual((yield* post(endpoint, initialize).pipe(Effect.timeout("5 seconds"))).status, 503)
      const called = yield* Effect.forkChild(post(endpoint, call("echo"), { session }), { startImmediately: true })
      yield* becomes(endpoint.registry.stats, ({ held }) => held === 1)
      yield* request(endpoint, "DELETE", { session })
      assert.include(yield* textOf(yield* Fiber.join(called).pipe(Effect.timeout("5 seconds"))), "may have run")
      yield* becomes(endpoint.registry.size, (size) => size === 0)
      yield* endpoint.close.pipe(Effect.timeout("5 seconds"))
      yield* Deferred.succeed(released, undefined)
    }))

  it.live("whose finalizers never end holds neither a session nor the end", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(
        (method) => Effect.as(method === "POST" ? Effect.addFinalizer(() => Effect.never) : Effect.void, answer("x")),
        "socket"
      )
      yield* begin(endpoint, "alice")
      yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
      yield* endpoint.close.pipe(Effect.timeout("5 seconds"))
    }))

  it.live("that begins sessions unasked, and never ends one, keeps nobody waiting", () =>
    Effect.gen(function*() {
      let minted = 0
      const endpoint = yield* open((method) =>
        method === "DELETE" ? Effect.never : Effect.sync(() => answer(`unasked ${++minted}`))
      )
      const response = yield* post(endpoint, call("echo")).pipe(Effect.timeout("2 seconds"))
      assert.strictEqual(response.status, 400)
      assert.isNull(response.headers.get("mcp-session-id"))
      assert.deepStrictEqual(endpoint.deleted, [`unasked ${minted}`])
    }))

  it.live("that dies of what its caller has sent tells that neither to the caller nor to the log", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(() => Effect.die(new TypeError("not a header: Bearer sk-live-SECRET")))
      const response = yield* post(endpoint, initialize, { as: "sk-live-SECRET" })
      assert.strictEqual(response.status, 503)
      assert.notInclude(yield* textOf(response), "SECRET")
      assert.include(endpoint.logged.join("\n"), "TypeError")
      assert.notInclude(endpoint.logged.join("\n"), "SECRET")
    }))
})
