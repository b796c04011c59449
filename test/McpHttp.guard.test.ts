import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import { openGuarded as open } from "./support/guarded.ts"
import {
  begin,
  bytesOf,
  call,
  eventually,
  initialize,
  post,
  request,
  send,
  socket,
  textOf,
  web
} from "./support/mcpHttp.ts"

const versioned = { "mcp-protocol-version": "2025-11-25" }

const modern = (name: string, args: Record<string, unknown> = {}) => ({
  ...call(name, args),
  params: {
    name,
    arguments: args,
    _meta: {
      "io.modelcontextprotocol/protocolVersion": "2026-07-28",
      "io.modelcontextprotocol/clientCapabilities": {},
      "io.modelcontextprotocol/clientInfo": { name: "test", version: "0" }
    }
  }
})

const suite = (start: typeof web) => {
  it.live("a session has an owner, and is nobody else's", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint, "alice")
      const answer = yield* post(endpoint, call("echo", { message: "hi" }), {
        as: "alice",
        session,
        headers: versioned
      })
      assert.strictEqual(answer.status, 200)
      assert.include(yield* textOf(answer), "hi")
      const unknown = yield* bytesOf(yield* request(endpoint, "GET", { as: "bob", session: "x" }))
      assert.strictEqual(unknown.status, 404)
      const [before] = yield* endpoint.registry.entries
      assert.strictEqual(before!.id, session)
      for (
        const response of [
          yield* post(endpoint, call("echo"), { as: "bob", session }),
          yield* post(endpoint, "not json", { as: "bob", session }),
          yield* post(endpoint, initialize, { as: "bob", session }),
          yield* request(endpoint, "GET", { as: "bob", session }),
          yield* request(endpoint, "DELETE", { as: "bob", session }),
          yield* request(endpoint, "DELETE", { as: "alice", session: `${session}, ${session}` })
        ]
      ) {
        assert.deepStrictEqual(yield* bytesOf(response), unknown)
      }
      assert.deepStrictEqual(yield* endpoint.registry.entries, [before!])
      assert.strictEqual(endpoint.log.called, 1)
      assert.strictEqual((yield* post(endpoint, initialize, { as: "alice", session })).status, 400)
      assert.strictEqual((yield* request(endpoint, "DELETE", { as: "alice", session })).status, 204)
      for (const method of ["POST", "GET", "DELETE"]) {
        const response = yield* request(
          endpoint,
          method,
          { as: "alice", session },
          method === "POST" ? call("echo") : undefined
        )
        assert.deepStrictEqual(yield* bytesOf(response), unknown)
      }
    }))

  it.live("its ids are the registry's, and those inside are no way around it", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const response = yield* post(endpoint, initialize)
      const id = response.headers.get("mcp-session-id")!
      assert.match(id, /^[A-Za-z0-9_-]{32}$/)
      assert.strictEqual(yield* endpoint.registry.size, 1)
      for (const variant of ["/mcp/", "//mcp", "/MCP", "/%6dcp", "/mcp?x", "/mcp;x"]) {
        const url = endpoint.url.replace(/\/mcp$/, variant)
        const at = yield* Effect.promise(() =>
          endpoint.fetch(url, {
            method: "POST",
            headers: { "content-type": "application/json", accept: "application/json, text/event-stream" },
            body: JSON.stringify(initialize)
          })
        )
        const minted = at.headers.get("mcp-session-id")
        const entries = yield* endpoint.registry.entries
        assert.isTrue(minted === null || entries.some((entry) => entry.id === minted), variant)
      }
    }))

  it.live("what is in flight ends with its session", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint)
      const answered = send(endpoint, "POST", { session, headers: versioned }, call("wait"))
        .then(async (response) => ({ status: response.status, text: await response.text() }))
      yield* eventually(() => endpoint.log.called === 1)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      const answer = yield* Effect.promise(() => answered).pipe(Effect.timeout("1 second"))
      assert.strictEqual(answer.status, 404)
      yield* eventually(() => endpoint.log.interrupted === 1 && endpoint.log.inside.includes("DELETE 204"))
    }))

  it.live("a call longer than the idle time keeps its session, which is freed inside when it expires", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { idleTimeToLive: 150 })
      endpoint.log.release = Effect.sleep(400)
      const session = yield* begin(endpoint)
      const answer = yield* post(endpoint, call("wait"), { session, headers: versioned })
      assert.include(yield* textOf(answer), "waited")
      assert.strictEqual((yield* endpoint.registry.stats).size, 1)
      assert.notInclude(endpoint.log.inside, "DELETE 204")
      yield* eventually(() => endpoint.log.inside.includes("DELETE 204"))
      assert.strictEqual((yield* post(endpoint, call("echo"), { session, headers: versioned })).status, 404)
      assert.strictEqual((yield* endpoint.registry.stats).expirations, 1)
    }))

  it.live("has room for as many as it may", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { capacity: 3 })
      const responses = yield* Effect.all(Array.from({ length: 8 }, () => post(endpoint, initialize)), {
        concurrency: "unbounded"
      })
      yield* Effect.forEach(responses, textOf)
      assert.strictEqual(responses.filter(({ status }) => status === 200).length, 3)
      const refused = responses.filter(({ status }) => status === 503)
      assert.strictEqual(refused.length, 5)
      for (const response of refused) assert.match(response.headers.get("retry-after") ?? "", /^\d+$/)
      // What the server inside refuses takes no room
      const one = yield* open(start, { capacity: 1 })
      for (
        const body of [{ ...initialize, params: {} }, { ...initialize, jsonrpc: "1.0" }, { ...initialize, id: null }]
      ) {
        const response = yield* post(one, body)
        yield* textOf(response)
        assert.isNull(response.headers.get("mcp-session-id"))
        assert.strictEqual(yield* one.registry.size, 0, JSON.stringify(body))
      }
      yield* begin(one)
    }))

  it.live("refuses what it should", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { maxBodyBytes: 1_000 }, IdentityResolver.layer({ mode: "required" }))
      assert.strictEqual((yield* post(endpoint, initialize)).status, 401)
      assert.strictEqual((yield* post(endpoint, modern("echo"))).status, 401)
      const as = "alice"
      const session = yield* begin(endpoint, as)
      const status = (
        method: string,
        headers: Record<string, string>,
        body?: unknown,
        id: string | undefined = session
      ) => Effect.map(request(endpoint, method, { as, session: id, headers }, body), (response) => response.status)
      const forbidden = { origin: "https://evil.example" }
      assert.strictEqual(yield* status("POST", forbidden, initialize, ""), 403)
      assert.strictEqual(yield* status("POST", { "mcp-session-id": "" }, call("echo")), 400)
      assert.strictEqual(yield* status("DELETE", { "mcp-session-id": "" }), 400)
      assert.strictEqual(yield* status("POST", { "mcp-protocol-version": "1999-12-31" }, call("echo")), 400)
      assert.strictEqual(yield* status("DELETE", { "mcp-protocol-version": "1999-12-31" }), 400)
      assert.strictEqual(yield* status("POST", { accept: "application/json" }, call("echo")), 406)
      assert.strictEqual(yield* status("POST", { "content-type": "text/plain" }, call("echo")), 415)
      assert.strictEqual(yield* status("POST", {}, "x".repeat(2_000)), 413)
      assert.strictEqual(yield* status("POST", {}, "x".repeat(2_000), "x"), 404)
      for (const method of ["GET", "PUT", "PATCH", "OPTIONS"]) {
        const response = yield* request(endpoint, method, { as, session })
        assert.strictEqual(response.status, 405, method)
        assert.isNotNull(response.headers.get("allow"))
      }
      assert.strictEqual(yield* endpoint.registry.size, 1)
      assert.strictEqual(endpoint.log.called, 0)
    }))

  it.live("2026-07-28 has no sessions", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint, "alice")
      const headers = {
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tools/call",
        "mcp-name": "echo"
      }
      for (const id of [undefined, session, "x"]) {
        const response = yield* post(endpoint, modern("echo", { message: "hi" }), { as: "bob", session: id, headers })
        assert.strictEqual(response.status, 200)
        assert.isNull(response.headers.get("mcp-session-id"))
        assert.include(yield* textOf(response), "hi")
      }
      assert.strictEqual(yield* endpoint.registry.size, 1)
      // Nor does it get one by saying so
      const minted = yield* post(endpoint, initialize, { as: "bob", headers })
      yield* textOf(minted)
      const entries = yield* endpoint.registry.entries
      const id = minted.headers.get("mcp-session-id")
      assert.isTrue(id === null || entries.some((entry) => entry.id === id))
      // Nor is a session reached that way
      const wait = yield* post(endpoint, call("echo", { message: "hi" }), { as: "bob", session, headers })
      assert.strictEqual(wait.status, 400)
    }))

  it.live("what is not guarded is left alone, and what can't be ended says so", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { path: "/other", allowTermination: false })
      const session = yield* begin(endpoint)
      assert.match(session, /^[0-9a-f-]{36}$/)
      const guarded = yield* open(start, { allowTermination: false })
      const response = yield* request(guarded, "DELETE", { session: yield* begin(guarded) })
      assert.strictEqual(response.status, 405)
      assert.strictEqual(response.headers.get("allow"), "POST")
    }))

  it.live("what is open when the endpoint closes ends with it", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint)
      const called = send(endpoint, "POST", { session, headers: versioned }, call("wait"))
        .then((answer) => answer.text(), () => "")
      yield* eventually(() => endpoint.log.called === 1)
      yield* endpoint.close.pipe(Effect.timeout("3 seconds"))
      assert.notInclude(yield* Effect.promise(() => called), "waited")
    }))
}

describe("McpHttp.guard", () => {
  describe("over the web handler", () => suite(web))
  describe("over a socket", () => suite(socket))
})
