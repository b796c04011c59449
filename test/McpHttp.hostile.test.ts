/**
 * Bodies that are made to be slow, or to break what reads them.
 */
import { assert, describe, it } from "@effect/vitest"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { textOf } from "./support/answers.ts"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, makeLog, makeServer, socket, web } from "./support/mcpHttp.ts"
import { write } from "./support/rawHttp.ts"
import { begin, call, initialize, post } from "./support/requests.ts"

const versioned = { "mcp-protocol-version": "2025-11-25" }

interface Opened extends Endpoint {
  /** How many calls have reached a tool. */
  readonly called: () => number
}

const suite = (open: Effect.Effect<Opened, never, Effect.Services<ReturnType<typeof web>>>) => {
  it.live("a batch of more than 100 is refused, whatever is in it, and none of it runs", () =>
    Effect.gen(function*() {
      const endpoint = yield* open
      const session = yield* begin(endpoint)
      const ids = Array.from({ length: 165_592 }, (_, id) => ({ jsonrpc: "2.0", id, method: "ping" }))
      for (
        const batch of [ids.slice(0, 101).map(({ id }) => call("echo", { message: "hi" }, id)), ids.slice(0, 70_000)]
      ) {
        for (const id of [session, undefined]) {
          const answer = yield* post(endpoint, batch, { session: id, headers: versioned })
          assert.strictEqual(answer.status, 400)
          assert.include(yield* textOf(answer), "more than 100 messages")
        }
      }
      assert.strictEqual(endpoint.called(), 0)
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))

  it.live("what is not JSON, and a batch of nothing, are refused", () =>
    Effect.gen(function*() {
      const endpoint = yield* open
      const session = yield* begin(endpoint)
      for (const [body, code] of [["{", -32700], ["", -32700], ["[", -32700], ["[]", -32600]] as const) {
        for (const id of [session, undefined]) {
          const answer = yield* post(endpoint, body, { session: id, headers: versioned })
          assert.strictEqual(answer.status, 400, body)
          assert.include(yield* textOf(answer), `"code":${code}`, body)
        }
      }
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))

  it.live("what is nested without end is answered, and the next caller too", () =>
    Effect.gen(function*() {
      const endpoint = yield* open
      const session = yield* begin(endpoint)
      const deep = "[".repeat(2_000_000) + "]".repeat(2_000_000)
      for (
        const body of [
          deep,
          `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":${deep}}}}`,
          `{"jsonrpc":"2.0","id":1,"method":${deep}}`,
          `{"jsonrpc":"2.0","id":${deep},"method":"ping"}`,
          `{"jsonrpc":"2.0","id":1,"method":"initialize","params":${deep}}`
        ]
      ) {
        for (const id of [session, undefined]) {
          const answer = yield* post(endpoint, body, { session: id, headers: versioned })
          yield* textOf(answer)
          assert.strictEqual(answer.status, 400, body.slice(0, 80))
        }
      }
      const answer = yield* post(endpoint, call("echo", { message: "hi" }), { session, headers: versioned })
      assert.include(yield* textOf(answer), "hi")
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))
}

describe("a body made to be slow", () => {
  describe("McpHttp.layer", () =>
    suite(Effect.gen(function*() {
      const log = makeLog()
      return { ...yield* web(McpHttp.layer({ server: makeServer(log) })), called: () => log.called.length }
    })))

  describe("McpHttp.guard", () =>
    suite(Effect.map(openGuarded(web), (endpoint) => ({ ...endpoint, called: () => endpoint.log.called }))))
})

describe("a Host that is not one", () => {
  it.live.each(["layer", "guard"] as const)(
    "is refused with 400, and quoted nowhere, by McpHttp.%s",
    (kind) =>
      Effect.gen(function*() {
        const logged: Array<string> = []
        const logger = Logger.layer([
          Logger.make(({ cause, message }) => void logged.push(`${String(message)} ${cause}`))
        ])
        const start: typeof socket = (app, resolver) => socket(Layer.provideMerge(app, logger), resolver)
        const endpoint = yield* kind === "guard"
          ? openGuarded(start, { allowedHosts: "*" })
          : start(McpHttp.layer({ server: makeServer(makeLog()), allowedHosts: "*" }))
        const body = JSON.stringify(initialize)
        for (
          const [target, host] of [
            ["/mcp", "user:password@localhost"],
            ["/mcp", "user:password@"],
            ["/mcp", "password@localhost:80"],
            ["/mcp", "localhost/password"],
            ["/mcp", "localhost?password"],
            ["/mcp", "local host password"],
            ["/mcp", "localhost:password"],
            ["/mcp", "[password]"],
            // Decoded in a URL, and quoted in a challenge
            ["/mcp", "%22password%22"],
            ["http://user:password@localhost/mcp", "localhost"]
          ]
        ) {
          const said = yield* write(
            endpoint,
            `POST ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\nContent-Type: application/json\r\n` +
              `Accept: application/json, text/event-stream\r\nContent-Length: ${body.length}\r\n\r\n${body}`
          )
          assert.strictEqual(said.status, 400, `${target} at ${host}`)
          assert.notInclude(said.body, "password")
        }
        assert.deepStrictEqual(logged, [])
        assert.strictEqual(yield* endpoint.registry.size, 0)
      })
  )
})
