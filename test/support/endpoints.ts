/**
 * What holds of every endpoint, whether it hosts its sessions or guards those of another server.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { bytesOf } from "./answers.ts"
import { some } from "./load.ts"
import type { Endpoint } from "./mcpHttp.ts"
import { head, write } from "./rawHttp.ts"
import { begin, call, initialize, post, request } from "./requests.ts"

/** Of fifty DELETEs at once, one ends the session, and the others find none. */
export const endsOnce = Effect.fnUntraced(function*(endpoint: Endpoint) {
  const session = yield* begin(endpoint)
  const responses = yield* Effect.all(
    Array.from({ length: 50 }, () => request(endpoint, "DELETE", { session })),
    { concurrency: "unbounded" }
  )
  const statuses = responses.map((response) => response.status).toSorted()
  assert.deepStrictEqual(statuses, [204, ...Array.from({ length: 49 }, () => 404)])
})

/** When it has shut down, it answers everything with 503: a request of a session it had, and a new one. */
export const refusesWhenClosed = Effect.fnUntraced(function*(endpoint: Endpoint, headers: Record<string, string> = {}) {
  const session = yield* begin(endpoint)
  yield* endpoint.close
  for (const method of ["POST", "GET", "DELETE"]) {
    const body = method === "POST" ? call("echo") : undefined
    const response = yield* request(endpoint, method, { session, headers }, body)
    assert.strictEqual((yield* bytesOf(response)).status, 503, method)
  }
  assert.strictEqual((yield* post(endpoint, initialize)).status, 503)
})

/** No other bytes are the id of a session. `stream` answers who asks for a stream with the id itself. */
export const knowsIdsToTheByte = Effect.fnUntraced(function*(endpoint: Endpoint, stream: number) {
  const session = yield* begin(endpoint)
  const { body: unknown } = yield* bytesOf(yield* request(endpoint, "GET", { session: "x" }))
  const wrong = some((byte: string) => `${session}${byte}`, (byte: string) => `a${byte}b`)
  const ids = wrong.flatMap((idOf) => Array.from({ length: 256 }, (_, byte) => idOf(String.fromCharCode(byte))))
  const said = yield* Effect.forEach(ids, (id) => write(endpoint, head([`Mcp-Session-Id: ${id}`])), {
    concurrency: 64
  })
  for (const [i, { body, status }] of said.entries()) {
    // 400 is Node's own, to what can't be a header. Whitespace around a value does not count: it is the same id.
    const isSame = i === 9 || i === 32
    assert.include(isSame ? [stream] : [400, 404], status, `byte ${i % 256}`)
    if (status === 404) assert.strictEqual(body, unknown)
  }
  assert.strictEqual(yield* endpoint.registry.size, 1)
})

/** Neither two ids nor one that is too long are the id of `session`. */
export const knowsOneIdOnly = Effect.fnUntraced(function*(endpoint: Endpoint, session: string) {
  for (
    const lines of [
      [`Mcp-Session-Id: ${session}`, `Mcp-Session-Id: ${session}`],
      [`Mcp-Session-Id: ${session}`, "mcp-session-id: x"],
      ["Mcp-Session-Id: x", `MCP-SESSION-ID: ${session}`],
      [`Mcp-Session-Id: ${session}`, "Mcp-Session-Id:"],
      ["Mcp-Session-Id:", `Mcp-Session-Id: ${session}`],
      [`Mcp-Session-Id: ${"x".repeat(15 * 1024)}`],
      ["Mcp-Session-Id: __proto__"]
    ]
  ) {
    assert.strictEqual((yield* write(endpoint, head(lines))).status, 404, lines.join().slice(0, 80))
  }
})
