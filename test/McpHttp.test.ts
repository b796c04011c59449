import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { bytesOf, eventually, messagesOf, readUntil, textOf } from "./support/answers.ts"
import { endsOnce } from "./support/endpoints.ts"
import { many, underLoad } from "./support/load.ts"
import { type Endpoint, makeLog, makeServer, socket, web } from "./support/mcpHttp.ts"
import { begin, beginAndUse, byEachMethod, call, initialize, post, request, send } from "./support/requests.ts"

const json = { "content-type": "application/json" }

const echoes = (count: number) => Array.from({ length: count }, (_, id) => call("echo", {}, id))

const open = (
  start: typeof web,
  options: Partial<McpHttp.LayerOptions<never, never>> = {},
  resolver?: Parameters<typeof web>[1]
) =>
  Effect.gen(function*() {
    const log = makeLog()
    const endpoint = yield* start(McpHttp.layer({ server: makeServer(log), ...options }), resolver)
    return { ...endpoint, log }
  })

/** What the answer to a session that is not there looks like. */
const missing = (endpoint: Endpoint) => Effect.flatMap(request(endpoint, "GET", { session: "nobody's" }), bytesOf)

const suite = (start: typeof web) => {
  describe("initialize", () => {
    it.live("begins a session of the caller", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const response = yield* post(endpoint, initialize, { as: "alice" })
        assert.strictEqual(response.status, 200)
        const id = response.headers.get("mcp-session-id") ?? ""
        assert.match(id, /^[\x21-\x7e]{22,}$/)
        const [message] = yield* messagesOf(response)
        assert.strictEqual(message?.id, 0)
        const entries = yield* endpoint.registry.entries
        assert.deepStrictEqual(entries.map((entry) => entry.id), [id])
        assert.match(entries[0]!.owner, /^bearer:/)
        assert.deepStrictEqual(endpoint.log.opened, [id])
      }))

    it.live("with a live id of the caller is 400, with any other 404, and the id becomes nobody's", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint, "alice")
        assert.strictEqual((yield* post(endpoint, initialize, { as: "alice", session })).status, 400)
        assert.deepStrictEqual(
          yield* Effect.flatMap(post(endpoint, initialize, { as: "bob", session }), bytesOf),
          yield* missing(endpoint)
        )
        assert.strictEqual((yield* post(endpoint, initialize, { as: "alice", session: "mine" })).status, 404)
        assert.strictEqual(yield* endpoint.registry.size, 1)
      }))

    it.live("builds nothing that it has no room for", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { capacity: 2, capacityPerOwner: 1 })
        yield* beginAndUse(endpoint, "alice")
        const share = yield* post(endpoint, initialize, { as: "alice" })
        assert.strictEqual(share.status, 503)
        assert.match(share.headers.get("retry-after") ?? "", /^\d+$/)
        yield* beginAndUse(endpoint, "bob")
        const full = yield* post(endpoint, initialize, { as: "carol" })
        assert.strictEqual(full.status, 503)
        assert.match(full.headers.get("retry-after") ?? "", /^\d+$/)
        assert.strictEqual(endpoint.log.opened.length, 2)
      }))

    it.live("that is malformed, or in a batch, builds nothing", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const { id: _, ...notification } = initialize
        for (
          const body of [
            { ...initialize, params: {} },
            { ...initialize, jsonrpc: "1.0" },
            { ...initialize, id: null },
            notification,
            [initialize, initialize],
            [initialize],
            []
          ]
        ) {
          assert.strictEqual((yield* post(endpoint, body)).status, 400)
        }
        assert.deepStrictEqual(endpoint.log.opened, [])
      }))
  })

  describe("the session", () => {
    it.live("is required for anything but initialize", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        for (const session of [undefined, ""]) {
          assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 400)
          assert.strictEqual((yield* request(endpoint, "GET", { session })).status, 400)
          assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 400)
        }
      }))

    it.live("is its owner's alone, and everybody else learns nothing", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint, "alice")
        const stream = yield* request(endpoint, "GET", { as: "alice", session })
        const [before] = yield* endpoint.registry.entries
        const unknown = yield* missing(endpoint)
        assert.strictEqual(unknown.status, 404)
        yield* Effect.sleep(5)
        for (const as of ["bob", undefined]) {
          for (
            const response of [
              yield* post(endpoint, call("echo"), { as, session }),
              yield* post(endpoint, "not json", { as, session }),
              yield* request(endpoint, "GET", { as, session }),
              yield* request(endpoint, "DELETE", { as, session }),
              yield* request(endpoint, "DELETE", { as, session, headers: { "mcp-protocol-version": "1999-12-31" } })
            ]
          ) {
            assert.deepStrictEqual(yield* bytesOf(response), unknown)
          }
        }
        assert.deepStrictEqual(yield* endpoint.registry.entries, [before!])
        assert.deepStrictEqual(endpoint.log.called, [])
        const mine = yield* post(endpoint, call("echo", { message: "hi" }), { as: "alice", session })
        assert.strictEqual(mine.status, 200)
        assert.include(yield* textOf(mine), "hi")
        yield* Effect.promise(() => endpoint.log.servers.get(session)!.sendToolListChanged())
        yield* readUntil(stream, "list_changed")
      }))

    it.live("is not found by an id of any other kind", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        const unknown = yield* missing(endpoint)
        const ids = [
          "__proto__",
          "constructor",
          "toString",
          `${session}, ${session}`,
          `${session},`,
          session.slice(1),
          `${session}x`,
          session.toUpperCase() === session ? session.toLowerCase() : session.toUpperCase(),
          "x".repeat(8_000),
          ...Array.from({ length: many(19, 94) }, (_, i) => `a${String.fromCharCode(0x21 + many(5, 1) * i)}b`),
          "\u00e9\u00ff"
        ]
        for (const id of ids) {
          for (const method of ["GET", "POST", "DELETE"]) {
            const response = yield* request(
              endpoint,
              method,
              { session: id },
              method === "POST" ? call("echo") : undefined
            )
            assert.deepStrictEqual(yield* bytesOf(response), unknown, `${method} ${id.slice(0, 40)}`)
          }
        }
        assert.strictEqual(yield* endpoint.registry.size, 1)
      }), underLoad)

    it.live("ends with DELETE, for ever", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint, "alice")
        const deleted = yield* request(endpoint, "DELETE", { as: "alice", session })
        assert.strictEqual(deleted.status, 204)
        assert.strictEqual(yield* textOf(deleted), "")
        const unknown = yield* missing(endpoint)
        for (const response of yield* byEachMethod(endpoint, { as: "alice", session })) {
          assert.deepStrictEqual(yield* bytesOf(response), unknown)
        }
        yield* eventually(() => endpoint.log.closed.length === 1)
      }))

    it.live("is ended by one of fifty DELETEs", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        yield* endsOnce(endpoint)
        yield* eventually(() => endpoint.log.closed.length === 1)
      }))

    it.live("can't be ended where that is disabled", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { allowTermination: false })
        const session = yield* begin(endpoint)
        const response = yield* request(endpoint, "DELETE", { session })
        assert.strictEqual(response.status, 405)
        assert.strictEqual(response.headers.get("allow"), "GET, POST")
        assert.strictEqual(yield* endpoint.registry.size, 1)
      }))

    it.live("has room for as many as it may, however many come at once", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { capacity: 5 })
        const residents = [yield* beginAndUse(endpoint), yield* beginAndUse(endpoint), yield* beginAndUse(endpoint)]
        const responses = yield* Effect.all(
          Array.from({ length: 12 }, () => post(endpoint, initialize)),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(new Set([...responses.map((response) => response.status), 503]), new Set([200, 503]))
        assert.isAtLeast(responses.filter((response) => response.status === 200).length, 2)
        assert.strictEqual(yield* endpoint.registry.size, 5)
        for (const session of residents) {
          assert.strictEqual((yield* post(endpoint, call("whoami"), { session })).status, 200)
        }
        yield* Effect.forEach(responses, textOf)
      }))
  })

  describe("a refusal", () => {
    it.live("of who does not say who it is: 401", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, {}, IdentityResolver.layer({ mode: "required" }))
        const session = yield* begin(endpoint, "alice")
        for (const headers of [{}, { authorization: "Bearer" }, { authorization: "Basic eDp5" }]) {
          for (const method of ["POST", "GET", "DELETE"]) {
            const response = yield* request(
              endpoint,
              method,
              { session, headers },
              method === "POST" ? call("echo") : undefined
            )
            assert.strictEqual(response.status, 401)
            assert.match(response.headers.get("www-authenticate") ?? "", /^Bearer /)
          }
        }
        assert.deepStrictEqual(endpoint.log.called, [])
      }))

    it.live("of an Origin: 403, before anything else", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, {}, IdentityResolver.layer({ mode: "required" }))
        for (
          const origin of [
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
            "http://localhost, http://x"
          ]
        ) {
          assert.strictEqual((yield* post(endpoint, initialize, { headers: { origin } })).status, 403)
        }
        for (const origin of ["http://localhost:5173", "http://127.0.0.1", "https://[::1]:8"]) {
          assert.strictEqual((yield* post(endpoint, initialize, { as: "alice", headers: { origin } })).status, 200)
        }
        const listed = yield* open(start, { allowedOrigins: ["https://App.example"] })
        assert.strictEqual(
          (yield* post(listed, initialize, { headers: { origin: "https://app.example" } })).status,
          200
        )
        assert.strictEqual((yield* post(listed, initialize, { headers: { origin: "http://localhost" } })).status, 403)
      }))

    it.live("of a protocol version: 400", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        const options = { session, headers: { "mcp-protocol-version": "1999-12-31" } }
        assert.strictEqual((yield* post(endpoint, call("echo"), options)).status, 400)
        assert.strictEqual((yield* request(endpoint, "GET", options)).status, 400)
        assert.strictEqual((yield* request(endpoint, "DELETE", options)).status, 400)
        assert.strictEqual(yield* endpoint.registry.size, 1)
        const modern = { session, headers: { "mcp-protocol-version": "2026-07-28" } }
        assert.strictEqual((yield* post(endpoint, call("echo"), modern)).status, 400)
        assert.deepStrictEqual(endpoint.log.called, [])
      }))

    it.live("of a POST's headers or body: 406, 415, 400, 413", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { maxBodyBytes: 1_000 })
        const session = yield* begin(endpoint)
        for (const [options, body] of [[{}, initialize], [{ session }, call("echo")]] as const) {
          const { headers: _, ...rest } = { headers: {}, ...options }
          const status = (headers: Record<string, string>, text: unknown = body) =>
            Effect.map(post(endpoint, text, { ...rest, headers }), (response) => response.status)
          assert.strictEqual(yield* status({ accept: "application/json" }), 406)
          assert.strictEqual(yield* status({ accept: "*/*" }), 406)
          assert.strictEqual(yield* status({ "content-type": "text/plain" }), 415)
          assert.strictEqual(yield* status({ "content-type": "text/plain; application/json" }), 415)
          assert.strictEqual(yield* status({ "content-type": "application/json; charset=utf-8" }), 200)
          assert.strictEqual(yield* status(json, "{"), 400)
          assert.strictEqual(yield* status(json, "null"), 400)
          assert.strictEqual(yield* status(json, "{}"), 400)
          assert.strictEqual(yield* status(json, "[".repeat(900)), 400)
          assert.strictEqual(yield* status(json, JSON.stringify("x".repeat(1_000))), 413)
        }
        assert.strictEqual((yield* request(endpoint, "GET", { session, headers: { accept: "text/html" } })).status, 406)
        // The session comes first
        assert.strictEqual((yield* post(endpoint, "x".repeat(2_000), { session: "x" })).status, 404)
      }))

    it.live("of a method: 405", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        for (const method of ["PUT", "PATCH", "OPTIONS", "HEAD"]) {
          const response = yield* request(endpoint, method)
          assert.strictEqual(response.status, 405, method)
          assert.strictEqual(response.headers.get("allow"), "GET, POST, DELETE")
        }
      }))

    it.live("of a batch that is empty or has more than 100 messages: 400", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        assert.strictEqual((yield* post(endpoint, [], { session })).status, 400)
        assert.strictEqual((yield* post(endpoint, echoes(101), { session })).status, 400)
        assert.deepStrictEqual(endpoint.log.called, [])
        assert.strictEqual((yield* messagesOf(yield* post(endpoint, echoes(100), { session }))).length, 100)
      }))

    it.live("of a protocol version that is unknown, also to initialize: 400", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const headers = { "mcp-protocol-version": "1999-12-31" }
        assert.strictEqual((yield* post(endpoint, initialize, { headers })).status, 400)
        assert.deepStrictEqual(endpoint.log.opened, [])
      }))

    it.live("of more requests than may be in flight in a session: 429, until one is answered", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { maxConcurrentRequests: 2 })
        const [session, other] = [yield* begin(endpoint), yield* begin(endpoint)]
        const answered = [1, 2].map((id) =>
          send(endpoint, "POST", { session }, call("wait", {}, id)).then((answer) => answer.text())
        )
        yield* eventually(() => endpoint.log.called.length === 2)
        const refused = yield* post(endpoint, call("echo", {}, 3), { session })
        assert.strictEqual(refused.status, 429)
        assert.match(refused.headers.get("retry-after") ?? "", /^\d+$/)
        assert.strictEqual((yield* post(endpoint, call("echo"), { session: other })).status, 200)
        endpoint.log.release()
        yield* Effect.promise(() => Promise.all(answered))
        assert.strictEqual((yield* post(endpoint, call("echo"), { session })).status, 200)
      }))

    it.live("is no activity of the session", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start, { maxBodyBytes: 1_000 })
        const session = yield* begin(endpoint)
        const [before] = yield* endpoint.registry.entries
        yield* Effect.sleep(5)
        const headers = (more: Record<string, string>) => ({ session, headers: { ...json, ...more } })
        for (
          const [status, response] of [
            [406, yield* post(endpoint, call("echo"), headers({ accept: "text/html" }))],
            [406, yield* request(endpoint, "GET", headers({ accept: "text/html" }))],
            [415, yield* post(endpoint, call("echo"), headers({ "content-type": "text/plain" }))],
            [413, yield* post(endpoint, "x".repeat(1_001), { session })],
            [400, yield* post(endpoint, "{", { session })],
            [400, yield* post(endpoint, {}, { session })],
            [400, yield* post(endpoint, [], { session })],
            [400, yield* post(endpoint, initialize, { session })],
            [400, yield* post(endpoint, call("echo"), headers({ "mcp-protocol-version": "1999-12-31" }))],
            [400, yield* request(endpoint, "GET", headers({ "mcp-protocol-version": "1999-12-31" }))]
          ] as const
        ) {
          assert.strictEqual(response.status, status)
        }
        assert.deepStrictEqual(yield* endpoint.registry.entries, [before!])
      }))
  })

  describe("a second GET stream", () => {
    it.live("takes the place of the first, which ends", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        let latest = yield* request(endpoint, "GET", { session })
        for (let i = 0; i < 3; i++) {
          const older = textOf(latest)
          latest = yield* request(endpoint, "GET", { session })
          assert.strictEqual(latest.status, 200)
          assert.notInclude(yield* older.pipe(Effect.timeout("4 seconds")), "data:")
        }
        yield* Effect.promise(() => endpoint.log.servers.get(session)!.sendToolListChanged())
        yield* readUntil(latest, "list_changed")
      }))

    it.live("that is refused leaves the first alone", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(start)
        const session = yield* begin(endpoint)
        const first = yield* request(endpoint, "GET", { session })
        assert.strictEqual((yield* request(endpoint, "GET", { session, headers: { accept: "text/html" } })).status, 406)
        const headers = { "mcp-protocol-version": "1999-12-31" }
        assert.strictEqual((yield* request(endpoint, "GET", { session, headers })).status, 400)
        yield* Effect.promise(() => endpoint.log.servers.get(session)!.sendToolListChanged())
        yield* readUntil(first, "list_changed")
      }))
  })
}

describe("McpHttp.layer", () => {
  describe("over the web handler", () => suite(web))
  describe("over a socket", () => suite(socket))

  it.live("refuses a Host that is not allowed, where the request says one", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(web)
      const status = (url: string, headers: Record<string, string> = {}) =>
        Effect.promise(() =>
          endpoint.fetch(url, {
            method: "POST",
            headers: { accept: "application/json, text/event-stream", ...json, ...headers },
            body: JSON.stringify(initialize)
          }).then((response) => response.status)
        )
      assert.strictEqual(yield* status("http://evil.example/mcp"), 403)
      assert.strictEqual(yield* status("http://localhost/mcp", { host: "evil.example" }), 403)
      assert.strictEqual(yield* status("http://[::1]:3000/mcp"), 200)
      const listed = yield* open(web, { allowedHosts: ["mcp.example", "other.example:8080"] })
      const listedStatus = (url: string) =>
        Effect.promise(() =>
          listed.fetch(url, {
            method: "POST",
            headers: { accept: "application/json, text/event-stream", ...json },
            body: JSON.stringify(initialize)
          }).then((response) => response.status)
        )
      assert.strictEqual(yield* listedStatus("https://mcp.example/mcp"), 200)
      assert.strictEqual(yield* listedStatus("https://MCP.example:8443/mcp"), 200)
      assert.strictEqual(yield* listedStatus("http://other.example:8080/mcp"), 200)
      assert.strictEqual(yield* listedStatus("http://other.example/mcp"), 403)
      assert.strictEqual(yield* listedStatus("http://localhost/mcp"), 403)
    }))
})
