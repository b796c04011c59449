/**
 * What a web page may read of an answer. `McpHttp.browser.ts` is the same in a browser.
 */
import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import * as HttpMiddleware from "effect/http/HttpMiddleware"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import { textOf } from "./support/answers.ts"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, makeLog, makeServer, socket, web } from "./support/mcpHttp.ts"
import { begin, call, initialize, request } from "./support/requests.ts"

const origin = "https://app.example"
const options = { allowedOrigins: [origin], maxBodyBytes: 1_000, capacity: 1 }
const required = IdentityResolver.layer({ mode: "required" })

type Open = (start: typeof web) => Effect.Effect<Endpoint, never, Effect.Services<ReturnType<typeof web>>>

const namesOf = (response: Response, header: string): ReadonlyArray<string> =>
  (response.headers.get(header) ?? "").toLowerCase().split(",").map((name) => name.trim())

const assertReadable = (response: Response, message?: string) => {
  assert.strictEqual(response.headers.get("access-control-allow-origin"), origin, message)
  assert.include(namesOf(response, "vary"), "origin", message)
  const exposed = namesOf(response, "access-control-expose-headers")
  for (const name of ["mcp-session-id", "www-authenticate", "retry-after"]) assert.include(exposed, name, message)
}

const assertUnreadable = (response: Response, message?: string) => {
  for (const [name] of response.headers) assert.notMatch(name, /^access-control-/, message)
  assert.include(namesOf(response, "vary"), "origin", message)
}

const preflight = (endpoint: Endpoint, headers: Record<string, string>) =>
  request(endpoint, "OPTIONS", { headers: { "access-control-request-method": "POST", ...headers } })

const suite = (open: Open, start: typeof web) => {
  it.live("a preflight of an allowed origin is answered, without credentials", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const asked = "authorization,content-type,mcp-session-id,mcp-protocol-version,last-event-id,x-tenant, a b"
      const response = yield* preflight(endpoint, { origin, "access-control-request-headers": asked })
      assert.strictEqual(response.status, 204)
      assert.strictEqual(response.headers.get("access-control-allow-origin"), origin)
      assert.includeMembers([...namesOf(response, "access-control-allow-methods")], ["get", "post", "delete"])
      const allowed = namesOf(response, "access-control-allow-headers")
      assert.includeMembers([...allowed], [...asked.split(",").slice(0, 6), "accept", "mcp-method", "mcp-name"])
      assert.notInclude(allowed, "a b")
      assert.include(namesOf(response, "vary"), "origin")
    }))

  it.live("a preflight of any other is refused, and so is what is not a preflight", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      for (const other of ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null"]) {
        const response = yield* preflight(endpoint, { origin: other })
        assert.strictEqual(response.status, 403, other)
        assertUnreadable(response, other)
      }
      const response = yield* preflight(endpoint, {})
      assert.strictEqual(response.status, 405)
      assertUnreadable(response)
      assert.strictEqual((yield* request(endpoint, "OPTIONS", { headers: { origin } })).status, 405)
    }))

  it.live("every answer can be read by pages of allowed origins, and by no others", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint, "alice")
      const large = "x".repeat(2_000)
      const rows: ReadonlyArray<readonly [number, string, Parameters<typeof request>[2], unknown?]> = [
        [200, "POST", { as: "alice", session }, call("echo", { message: "hi" })],
        [401, "POST", {}, initialize],
        [404, "POST", { as: "alice", session: "x" }, call("echo")],
        [404, "POST", { as: "bob", session }, call("echo")],
        [400, "POST", { as: "alice", session }, "{"],
        [413, "POST", { as: "alice", session }, large],
        [503, "POST", { as: "alice" }, initialize],
        [405, "PUT", { as: "alice", session }],
        [204, "DELETE", { as: "alice", session }],
        [200, "POST", { as: "alice" }, initialize]
      ]
      for (const [status, method, from, body] of rows) {
        const message = `${method} ${status}`
        const headers = { "mcp-protocol-version": "2025-11-25" }
        const evil = yield* request(
          endpoint,
          method,
          { ...from, headers: { ...headers, origin: "https://evil.example" } },
          body
        )
        assert.strictEqual(evil.status, 403, message)
        assertUnreadable(evil, message)
        const response = yield* request(endpoint, method, { ...from, headers: { ...headers, origin } }, body)
        yield* textOf(response)
        assert.strictEqual(response.status, status, message)
        assertReadable(response, message)
      }
      const plain = yield* request(endpoint, "POST", { as: "alice", session: "x" }, call("echo"))
      assertUnreadable(plain)
    }))
}

const layer: Open = (start) => start(McpHttp.layer({ server: makeServer(makeLog()), ...options }), required)

const guard: Open = (start) => openGuarded(start, options, required, { allowedOrigins: [origin] })

describe("web pages", () => {
  describe("and McpHttp.layer", () => {
    describe("over the web handler", () => suite(layer, web))
    describe("over a socket", () => suite(layer, socket))
  })

  describe("and McpHttp.guard", () => {
    describe("over the web handler", () => suite(guard, web))
    describe("over a socket", () => suite(guard, socket))
  })

  it.live("are told of once, and by the endpoint, where the app has a CORS of its own in front", () =>
    Effect.gen(function*() {
      const cors = HttpRouter.middleware(
        HttpMiddleware.cors({ allowedOrigins: [origin], exposedHeaders: ["mcp-session-id"] }),
        { global: true }
      )
      const endpoint = yield* web(
        Layer.provideMerge(McpHttp.layer({ server: makeServer(makeLog()), ...options }), cors),
        required
      )
      const response = yield* request(endpoint, "POST", { as: "alice", headers: { origin } }, initialize)
      yield* textOf(response)
      assertReadable(response)
      assert.deepStrictEqual(namesOf(response, "vary"), ["origin"])
    }))
})
