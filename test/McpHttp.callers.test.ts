/**
 * Whose a session is, and whose a request: what handlers and operators are told.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { Operator, SessionRegistry } from "effect-mcp-sessions/SessionRegistry"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Headers from "effect/http/Headers"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scheduler from "effect/Scheduler"
import { inspect } from "node:util"
import { messagesOf, textOf } from "./support/answers.ts"
import { openGuarded } from "./support/guarded.ts"
import { makeLog, makeServer, web } from "./support/mcpHttp.ts"
import { begin, call, initialize, post } from "./support/requests.ts"

/** Everybody is one and the same owner, whatever the token. */
const one = IdentityResolver.layerIdentify((request) =>
  Effect.succeed({
    key: "one",
    auth: { token: (Headers.fromInput(request.headers)["authorization"] ?? "").replace("Bearer ", "") }
  })
)

const tokenOf = (
  identity: Option.Option<{ readonly credentials: Option.Option<{ readonly token: Redacted.Redacted }> }>
) =>
  Option.match(Option.flatMap(identity, ({ credentials }) => credentials), {
    onNone: () => "none",
    onSome: ({ token }) => Redacted.value(token)
  })

/** Its tool says whose token it sees, as soon as `go` is there if it is called "slow". */
const makeSpy =
  (go: Deferred.Deferred<void>, seen: Array<unknown> = []) => (_: unknown, caller: McpHttp.SessionCaller) =>
    Effect.sync(() => {
      const server = new Server({ name: "spy", version: "1" }, { capabilities: { tools: {} } })
      server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => {
        if (params.name === "slow") await Effect.runPromise(Deferred.await(go))
        seen.push(extra.authInfo)
        const session = await Effect.runPromise(caller.identity)
        const says = {
          request: tokenOf(McpHttp.identityOf(extra)),
          auth: extra.authInfo?.token ?? "none",
          session: tokenOf(Option.some(session))
        }
        return { content: [{ type: "text", text: JSON.stringify(says) }] }
      })
      return server
    })

const says = (text: string): unknown => JSON.parse(/\{\\"request.*?\}/.exec(text)![0].replaceAll("\\\"", "\""))

it.live.each([3, 4, 5, 8, 13])(
  "a server is made for the credentials of the very request that asked for it, whatever runs in between (%i)",
  (ops) =>
    Effect.gen(function*() {
      const made = new Map<string, string>()
      const app = McpHttp.layer({
        server: (info, caller) =>
          Effect.flatMap(caller.identity, (identity) => {
            made.set(info.id, tokenOf(Option.some(identity)))
            return makeServer(makeLog())(info)
          })
      })
      const endpoint = yield* web(
        Layer.provideMerge(app, Layer.succeed(Scheduler.MaxOpsBeforeYield, ops)),
        Layer.orDie(one)
      )
      const tokens = ["a", "b", "c", "d", "e", "f", "g", "h"]
      const sessions = yield* Effect.forEach(tokens, (token) => begin(endpoint, token), { concurrency: "unbounded" })
      assert.deepStrictEqual(sessions.map((id) => made.get(id)), tokens)
    })
)

describe.each(["sse", "json"] as const)("a handler of a session that is answered with %s", (response) => {
  it.live("is told the identity of its own request, whatever else has come in the meantime", () =>
    Effect.gen(function*() {
      const go = Deferred.makeUnsafe<void>()
      const endpoint = yield* web(McpHttp.layer({ server: makeSpy(go), response }), Layer.orDie(one))
      const session = yield* begin(endpoint, "low")
      const slow = yield* Effect.forkChild(
        Effect.flatMap(post(endpoint, call("slow", {}, 1), { as: "low", session }), textOf),
        { startImmediately: true }
      )
      const quick = yield* textOf(yield* post(endpoint, call("quick", {}, 2), { as: "high", session }))
      assert.deepStrictEqual(says(quick), { request: "high", auth: "high", session: "high" })
      yield* Deferred.succeed(go, undefined)
      assert.deepStrictEqual(says(yield* Fiber.join(slow)), { request: "low", auth: "low", session: "high" })
    }))

  it.live("has no authInfo of somebody without credentials", () =>
    Effect.gen(function*() {
      const endpoint = yield* web(McpHttp.layer({ server: makeSpy(Deferred.makeUnsafe()), response }))
      const session = yield* begin(endpoint)
      const answer = yield* textOf(yield* post(endpoint, call("quick"), { session }))
      assert.deepStrictEqual(says(answer), { request: "none", auth: "none", session: "none" })
    }))

  it.live("can read the token, which is not printed, copied or serialised with the rest", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const endpoint = yield* web(McpHttp.layer({ server: makeSpy(Deferred.makeUnsafe(), seen), response }))
      const session = yield* begin(endpoint, "hunter2")
      assert.include(yield* textOf(yield* post(endpoint, call("quick"), { as: "hunter2", session })), "hunter2")
      for (
        const text of [inspect(seen, { depth: 10 }), JSON.stringify(seen), JSON.stringify({ ...seen[0] as object })]
      ) {
        assert.include(text, "bearer:")
        assert.notInclude(text, "hunter2")
      }
    }))
})

const named = (name: unknown) => ({
  ...initialize,
  params: { ...initialize.params, clientInfo: { name, version: "1" } }
})

describe("an operator", () => {
  it.live("reads what a client calls itself, made harmless", () =>
    Effect.gen(function*() {
      const endpoint = yield* web(McpHttp.layer({ server: makeServer(makeLog()) }))
      for (const name of ["inspector", `\u001b[2J${"x".repeat(1_000)}`, ""]) {
        yield* textOf(yield* post(endpoint, named(name)))
      }
      const entries = yield* endpoint.registry.entries
      assert.deepStrictEqual(entries.map(({ clientId }) => clientId), ["inspector", `[2J${"x".repeat(125)}`, undefined])
    }))

  it.live("reads it behind guard, too", () =>
    Effect.gen(function*() {
      const endpoint = yield* openGuarded(web)
      yield* messagesOf(yield* post(endpoint, named("inspector")))
      const [entry] = yield* endpoint.registry.entries
      assert.strictEqual(entry?.clientId, "inspector")
    }))

  it.live("has a view of each of two layers in one application", () =>
    Effect.gen(function*() {
      class Public extends Operator<Public>()("test/Public") {}
      const server = makeServer(makeLog())
      let views: Context.Context<Public | SessionRegistry> | undefined
      const both = Layer.merge(
        McpHttp.layer({ server, path: "/public", sessions: Public }),
        McpHttp.layer({ server, path: "/mcp" })
      )
      const { dispose, handler } = HttpRouter.toWebHandler(
        Layer.tap(Layer.orDie(Layer.provide(both, IdentityResolver.layer())), (context) =>
          Effect.sync(() => void (views = context))),
        { disableLogger: true }
      )
      yield* Effect.addFinalizer(() =>
        Effect.promise(dispose)
      )
      const headers = { "content-type": "application/json", accept: "application/json, text/event-stream" }
      const sizes = Effect.suspend(() =>
        Effect.all([Context.get(views!, Public).size, Context.get(views!, SessionRegistry).size])
      )
      for (const [path, expected] of [["public", [1, 0]], ["public", [2, 0]], ["mcp", [2, 1]]] as const) {
        yield* Effect.promise(() =>
          handler(
            new Request(`http://localhost/${path}`, { method: "POST", headers, body: JSON.stringify(initialize) })
          ).then((answer) => answer.text())
        )
        assert.deepStrictEqual(yield* sizes, [...expected])
      }
    }))
})
