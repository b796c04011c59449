import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpProtocol from "effect/ai/McpProtocol"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { becomes, bytesOf, eventually, pause, textOf } from "./support/answers.ts"
import { endsOnce, knowsIdsToTheByte, knowsOneIdOnly, refusesWhenClosed } from "./support/endpoints.ts"
import { modern, openGuarded as open } from "./support/guarded.ts"
import { many, underLoad } from "./support/load.ts"
import { type Endpoint, socket, web } from "./support/mcpHttp.ts"
import { head, write } from "./support/rawHttp.ts"
import { begin, beginAndUse, byEachMethod, call, initialize, post, request, send } from "./support/requests.ts"
import { makeDice } from "./support/world.ts"

const versioned = { "mcp-protocol-version": "2025-11-25" }

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
      for (const response of yield* byEachMethod(endpoint, { as: "alice", session })) {
        assert.deepStrictEqual(yield* bytesOf(response), unknown)
      }
    }))

  it.live("its ids are the registry's, by whatever variant of the path", () =>
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

  it.live("what is in flight when its session ends may have run, and is told so", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint)
      const answered = send(endpoint, "POST", { session, headers: versioned }, call("wait"))
        .then(async (response) => ({ status: response.status, text: await response.text() }))
      yield* eventually(() => endpoint.log.called === 1)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      const answer = yield* Effect.promise(() => answered).pipe(Effect.timeout("4 seconds"))
      assert.strictEqual(answer.status, 200)
      const { error, id } = JSON.parse(answer.text)
      assert.strictEqual(id, 1)
      assert.include(error.message, "may have run")
      yield* eventually(() => endpoint.log.interrupted === 1 && endpoint.log.inside.includes("DELETE 204"))
    }))

  it.live("a call longer than the idle time keeps its session, which is freed inside when it expires", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { idleTimeToLive: 1_000 })
      endpoint.log.release = Effect.sleep(1_500)
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
      const residents = [yield* beginAndUse(endpoint), yield* beginAndUse(endpoint)]
      const responses = yield* Effect.all(Array.from({ length: 8 }, () => post(endpoint, initialize)), {
        concurrency: "unbounded"
      })
      yield* Effect.forEach(responses, textOf)
      assert.isAtLeast(responses.filter(({ status }) => status === 200).length, 1)
      assert.strictEqual(yield* endpoint.registry.size, 3)
      for (const session of residents) {
        assert.strictEqual((yield* post(endpoint, call("echo", { message: "still" }), { session })).status, 200)
      }
      yield* beginAndUse(endpoint)
      const refused = yield* post(endpoint, initialize)
      assert.strictEqual(refused.status, 503)
      assert.match(refused.headers.get("retry-after") ?? "", /^\d+$/)
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

  it.live("answers each kind of request that it does not take with a status of its own", () =>
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

  it.live("a server without sessions has nothing to listen to or to end, and says so", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, {}, IdentityResolver.layer({ mode: "required" }), {
        protocols: [McpProtocol.v2026_07_28]
      })
      for (const options of [{}, { as: "alice" }, { as: "alice", session: "x" }]) {
        for (const method of ["DELETE", "GET"]) {
          const response = yield* request(endpoint, method, options)
          assert.strictEqual(response.status, 405)
          assert.strictEqual(response.headers.get("allow"), "POST")
        }
      }
      const headers = { "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "echo" }
      assert.strictEqual((yield* post(endpoint, modern("echo", { message: "hi" }), { headers })).status, 401)
      const answer = yield* post(endpoint, modern("echo", { message: "hi" }), { as: "alice", headers })
      assert.include(yield* textOf(answer), "hi")
    }))

  it.live("initialize in a version that nobody knows is refused, and begins nothing", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const answer = yield* post(endpoint, initialize, { headers: { "mcp-protocol-version": "1999-12-31" } })
      assert.strictEqual(answer.status, 400)
      assert.strictEqual(yield* endpoint.registry.size, 0)
      assert.notInclude(endpoint.log.inside, "POST 200")
    }))

  it.live("a stream whose session ends has an error for the call in it", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint)
      const answer = yield* post(
        endpoint,
        { ...call("slow"), params: { name: "slow", arguments: {}, _meta: { progressToken: 1 } } },
        { session, headers: versioned }
      )
      const read = textOf(answer).pipe(Effect.timeout("5 seconds"))
      const text = yield* Effect.forkChild(read)
      yield* eventually(() => endpoint.log.called === 1)
      assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 204)
      assert.include(yield* Fiber.join(text), "may have run")
    }))

  it.live("what can't be ended says so", () =>
    Effect.gen(function*() {
      const guarded = yield* open(start, { allowTermination: false })
      const session = yield* begin(guarded)
      for (const method of ["DELETE", "GET", "PUT"]) {
        const response = yield* request(guarded, method, { session })
        assert.strictEqual(response.status, 405)
        assert.strictEqual(response.headers.get("allow"), "POST")
      }
    }))

  it.live("takes no request past its lifetime, and is freed inside then", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { maxLifetime: 300 })
      const session = yield* begin(endpoint)
      yield* eventually(() => endpoint.log.inside.includes("DELETE 204"))
      const unknown = yield* bytesOf(yield* request(endpoint, "GET", { session: "x" }))
      const { called } = endpoint.log
      for (const method of ["POST", "GET", "DELETE"]) {
        const body = method === "POST" ? call("echo", { message: "hi" }) : undefined
        const response = yield* request(endpoint, method, { session, headers: versioned }, body)
        assert.strictEqual(response.status, 404)
        assert.deepStrictEqual(yield* bytesOf(response), unknown)
      }
      assert.strictEqual(endpoint.log.called, called)
      assert.strictEqual(endpoint.log.inside.filter((line) => line.startsWith("DELETE")).length, 1)
      assert.strictEqual((yield* endpoint.registry.stats).retirements, 1)
    }))

  it.live("an id of the caller's own making names no session, nor begins one", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      const session = yield* begin(endpoint)
      const unknown = yield* bytesOf(yield* request(endpoint, "GET", { session: "x" }))
      assert.strictEqual(unknown.status, 404)
      const reached = endpoint.log.inside.length
      for (
        const id of [
          "mine",
          "__proto__",
          "a b",
          `${session}x`,
          `${session}, ${session}`,
          `x, ${session}`,
          "x".repeat(8_192)
        ]
      ) {
        for (
          const response of [
            yield* post(endpoint, initialize, { session: id }),
            yield* post(endpoint, call("echo"), { session: id, headers: versioned }),
            yield* request(endpoint, "GET", { session: id }),
            yield* request(endpoint, "DELETE", { session: id })
          ]
        ) {
          assert.deepStrictEqual(yield* bytesOf(response), unknown, id.slice(0, 80))
        }
      }
      // None at all
      assert.strictEqual((yield* request(endpoint, "DELETE", { session: "" })).status, 400)
      assert.strictEqual((yield* request(endpoint, "DELETE")).status, 400)
      assert.strictEqual(endpoint.log.inside.length, reached)
      for (const none of ["", undefined]) {
        assert.strictEqual((yield* post(endpoint, call("echo"), { session: none, headers: versioned })).status, 400)
      }
      assert.strictEqual(endpoint.log.called, 0)
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))

  it.live("who does not say who it is learns how to, whatever it asks", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, {}, IdentityResolver.layer({ mode: "required" }))
      const session = yield* begin(endpoint, "alice")
      const reached = endpoint.log.inside.length
      for (const headers of [{}, { authorization: "Bearer" }, { authorization: "Basic eDp5" }]) {
        for (const method of ["POST", "GET", "DELETE"]) {
          for (const id of [session, "x", undefined]) {
            const body = method === "POST" ? call("echo") : undefined
            const response = yield* request(endpoint, method, { session: id, headers }, body)
            assert.strictEqual(response.status, 401, method)
            assert.match(response.headers.get("www-authenticate") ?? "", /^Bearer /)
          }
        }
      }
      assert.strictEqual(endpoint.log.inside.length, reached)
      assert.strictEqual(yield* endpoint.registry.size, 1)
    }))

  it.live("an owner has room for as many as it may, and takes none of the others'", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start, { capacityPerOwner: 1 })
      const session = yield* beginAndUse(endpoint, "alice")
      const reached = endpoint.log.inside.length
      const refused = yield* post(endpoint, initialize, { as: "alice" })
      assert.strictEqual(refused.status, 503)
      assert.match(refused.headers.get("retry-after") ?? "", /^\d+$/)
      assert.isNull(refused.headers.get("mcp-session-id"))
      assert.strictEqual(endpoint.log.inside.length, reached)
      yield* begin(endpoint, "bob")
      yield* request(endpoint, "DELETE", { as: "alice", session })
      yield* begin(endpoint, "alice")
      assert.strictEqual(yield* endpoint.registry.size, 2)
    }))

  it.live("is ended by one of fifty DELETEs, and freed inside by one", () =>
    Effect.gen(function*() {
      const endpoint = yield* open(start)
      yield* endsOnce(endpoint)
      yield* eventually(() => endpoint.log.inside.includes("DELETE 204"))
      assert.strictEqual(endpoint.log.inside.filter((line) => line.startsWith("DELETE")).length, 1)
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

const interleavings = many(30, 1_000)

/** Turns of the event loop, of which an answer of the server inside takes some. */
const turns = (count: number) =>
  Effect.gen(function*() {
    for (let i = 0; i < count; i++) yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
  })

/** What a POST, if nothing else is said, is answered at any URL. */
const statusAt = (endpoint: Endpoint, url: string, options: RequestInit = {}) =>
  Effect.promise(async () => {
    const response = await endpoint.fetch(url, {
      method: "POST",
      body: options.method === undefined ? JSON.stringify(initialize) : null,
      ...options,
      headers: {
        accept: "application/json, text/event-stream",
        "content-type": "application/json",
        ...options.headers
      }
    })
    await response.text()
    return response.status
  })

describe("McpHttp.guard", () => {
  describe("over the web handler", () => {
    suite(web)

    it.live("answers 503 when it has shut down", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(web)
        yield* refusesWhenClosed(endpoint, versioned)
        assert.strictEqual(endpoint.log.called, 0)
      }))

    it.live("refuses a Host that is not allowed, and nothing inside hears of it", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(web)
        const session = yield* begin(endpoint)
        const reached = endpoint.log.inside.length
        assert.strictEqual(yield* statusAt(endpoint, "http://evil.example/mcp"), 403)
        assert.strictEqual(
          yield* statusAt(endpoint, "http://localhost/mcp", { headers: { host: "evil.example" } }),
          403
        )
        for (const method of ["GET", "DELETE", "OPTIONS"]) {
          const headers = { "mcp-session-id": session }
          assert.strictEqual(yield* statusAt(endpoint, "http://evil.example/mcp", { method, headers }), 403, method)
        }
        assert.strictEqual(endpoint.log.inside.length, reached)
        assert.strictEqual(yield* endpoint.registry.size, 1)
        assert.strictEqual(yield* statusAt(endpoint, "http://[::1]:3000/mcp"), 200)
        const listed = yield* open(web, { allowedHosts: ["mcp.example", "other.example:8080"] })
        assert.strictEqual(yield* statusAt(listed, "https://MCP.example:8443/mcp"), 200)
        assert.strictEqual(yield* statusAt(listed, "http://other.example:8080/mcp"), 200)
        assert.strictEqual(yield* statusAt(listed, "http://other.example/mcp"), 403)
        assert.strictEqual(yield* statusAt(listed, "http://localhost/mcp"), 403)
      }))

    it.live(
      "whatever comes first, a call and a DELETE both end, and the session with them",
      () =>
        Effect.gen(function*() {
          const endpoint = yield* open(web, { capacity: 20 })
          const seen = new Set<string>()
          for (let seed = 0; seed < interleavings; seed++) {
            const dice = makeDice(seed)
            const session = yield* begin(endpoint)
            const before = endpoint.log.called
            const [called, deleted] = yield* Effect.all([
              Effect.andThen(
                pause(dice.below(24)),
                post(endpoint, call("echo", { message: "hi" }), { session, headers: versioned }).pipe(
                  Effect.flatMap((answer) => Effect.map(textOf(answer), (text) => ({ status: answer.status, text })))
                )
              ),
              turns(dice.below(6)).pipe(
                Effect.andThen(pause(dice.below(24))),
                Effect.andThen(request(endpoint, "DELETE", { session }))
              )
            ], { concurrency: "unbounded" }).pipe(Effect.timeout("4 seconds"))
            assert.strictEqual(deleted.status, 204)
            const kind = called.status === 404
              ? "Session not found"
              : called.text.includes("error")
              ? "may have run"
              : "hi"
            seen.add(kind)
            assert.include(called.text, kind, `seed ${seed}`)
            const ran = endpoint.log.called - before
            if (kind === "hi") assert.strictEqual(ran, 1, `seed ${seed}`)
            // It may be sent again
            if (kind === "Session not found") assert.strictEqual(ran, 0, `seed ${seed}`)
            assert.strictEqual((yield* request(endpoint, "DELETE", { session })).status, 404)
          }
          assert.deepStrictEqual(Array.from(seen).toSorted(), ["Session not found", "hi", "may have run"])
          const freed = () => endpoint.log.inside.filter((line) => line === "DELETE 204").length
          yield* eventually(() => freed() >= interleavings)
          assert.strictEqual(freed(), interleavings)
          assert.strictEqual(yield* endpoint.registry.size, 0)
        }),
      underLoad
    )
  })

  describe("over a socket", () => {
    suite(socket)

    it.live("has no session with an id of any bytes", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(socket)
        // The server inside has no stream to give
        yield* knowsIdsToTheByte(endpoint, 405)
      }), underLoad)

    it.live("has none with two ids, nor with one that is too long, nor under another's name", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(socket)
        const session = yield* begin(endpoint)
        const reached = endpoint.log.inside.length
        yield* knowsOneIdOnly(endpoint, session)
        const origins = head(["Origin: http://localhost", "Origin: http://evil.example"])
        assert.strictEqual((yield* write(endpoint, origins)).status, 403)
        const otherHost = `DELETE /mcp HTTP/1.1\r\nHost: evil.example\r\nMcp-Session-Id: ${session}\r\n\r\n`
        assert.strictEqual((yield* write(endpoint, otherHost)).status, 403)
        const otherUrl = "GET http://evil.example/mcp HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert.strictEqual((yield* write(endpoint, otherUrl)).status, 403)
        assert.strictEqual(endpoint.log.inside.length, reached)
        assert.strictEqual(yield* endpoint.registry.size, 1)
      }))

    it.live("does not wait, nor make a session, with half a body", () =>
      Effect.gen(function*() {
        const endpoint = yield* open(socket)
        const session = yield* begin(endpoint)
        const half = (line: string, patience?: number) =>
          write(
            endpoint,
            `POST /mcp HTTP/1.1\r\nHost: localhost\r\n${line}Content-Type: application/json\r\n` +
              "Accept: application/json, text/event-stream\r\nContent-Length: 1000\r\n\r\n{\"jsonrpc\":",
            patience
          )
        assert.strictEqual((yield* half("Mcp-Session-Id: x\r\n")).status, 404)
        assert.strictEqual((yield* half(`Mcp-Session-Id: ${session}\r\n`, 1_000)).status, 0)
        assert.strictEqual((yield* half("", 1_000)).status, 0)
        yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
        assert.strictEqual(yield* endpoint.registry.size, 1)
        const answer = yield* post(endpoint, call("echo", { message: "hi" }), { session, headers: versioned })
        assert.strictEqual(answer.status, 200)
        assert.include(yield* textOf(answer), "hi")
      }))
  })
})
