import { assert, describe, it } from "@effect/vitest"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Web from "../src/internal/host/web.ts"

const url = "http://mcp.example.com/mcp?of=1"

const sent = {
  accept: "application/json, text/event-stream",
  authorization: "Bearer abc",
  host: "mcp.example.com",
  "mcp-session-id": "one"
}

const taken = () =>
  Web.toRequest(HttpServerRequest.fromWeb(new Request(url, { method: "POST", headers: sent, body: "{}" })))

describe("the request that the SDK's transport gets", () => {
  it("has the method, the URL and the headers of the one that was sent", () => {
    const request = taken()
    assert.strictEqual(request.method, "POST")
    assert.strictEqual(request.url, url)
    assert.strictEqual(request.headers.get("Authorization"), "Bearer abc")
    const headers = Object.fromEntries(request.headers.entries())
    for (const [name, value] of Object.entries(sent)) assert.strictEqual(headers[name], value)
  })

  it("has no header that was not sent, whatever it is called", () => {
    const { headers } = taken()
    for (const name of ["last-event-id", "constructor", "__proto__", "toString"]) {
      assert.isNull(headers.get(name), name)
      assert.isFalse(headers.has(name), name)
    }
  })

  it("is a whole one for whoever asks for more", async () => {
    const request = taken()
    assert.instanceOf(request, Request)
    assert.instanceOf(request.headers, Headers)
    assert.isTrue("signal" in request)
    assert.isFalse(request.signal.aborted)
    assert.isNull(request.body)
    assert.strictEqual(await request.text(), "")
    const copy = request.clone()
    assert.deepStrictEqual(Array.from(copy.headers), Array.from(request.headers))
    assert.include(Array.from(request.headers.keys()), "mcp-session-id")
    assert.strictEqual(new Headers(request.headers).get("accept"), sent.accept)
  })
})
