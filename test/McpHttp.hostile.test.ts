/**
 * Bodies that are made to be slow, or to break what reads them.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { openGuarded } from "./support/guarded.ts"
import { begin, call, type Endpoint, makeLog, makeServer, post, textOf, web } from "./support/mcpHttp.ts"

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
