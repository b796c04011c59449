/**
 * What is known of a refusal over HTTP besides its status: when to come back, and what the server asks for. With each
 * generation of the SDK, from a real server.
 */
import { assert, describe, it } from "@effect/vitest"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import type { McpSessionError } from "effect-mcp-sessions/McpSession"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import { createServer } from "node:http"
import { inspect } from "node:util"
import { parse } from "../src/internal/challenges.ts"
import { type Generation, generations } from "./support/generations.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"

const identity = Identity.fromKey("alice", { credentials: Credentials.bearer("s3cret-token-of-alice") })

const refuse = (status: number, headers: Record<string, string> = {}): Scripted.Answer => (response) =>
  void response.writeHead(status, { "content-type": "text/plain", ...headers }).end("no")

const reasonOf = (error: McpSessionError): Record<string, unknown> => ({ ...error.reason })

/** What a call fails with that is answered like that. */
const refusedBy = Effect.fnUntraced(function*(connector: Generation, answer: Scripted.Answer) {
  const server = yield* Scripted.start()
  const handle = makeHandle()
  const session = yield* connector.http({ url: server.url, forwardCredentials: true })(identity, handle)
  server.on("tool", answer)
  const error = yield* Effect.flip(session.callTool({ name: "tool" }))
  assert.deepStrictEqual(handle.retired, [])
  yield* session.callTool({ name: "another" })
  return error
})

describe("a challenge", () => {
  it("is read with its parameters, quoted or plain, and several of them apart", () => {
    assert.deepStrictEqual(
      parse(`Bearer realm="a \\"b\\", c", Scope=x , error = "invalid_token",, Basic realm=z, Negotiate YII=, Custom`),
      [
        { scheme: "Bearer", parameters: { realm: "a \"b\", c", scope: "x", error: "invalid_token" } },
        { scheme: "Basic", parameters: { realm: "z" } },
        { scheme: "Negotiate", parameters: {} },
        { scheme: "Custom", parameters: {} }
      ]
    )
  })

  it("that is none is left out, and what comes after it", () => {
    assert.deepStrictEqual(parse(""), [])
    assert.deepStrictEqual(parse("\"Bearer\""), [])
    assert.deepStrictEqual(parse("Basic realm=\"never closed, Bearer realm=x"), [
      { scheme: "Basic", parameters: {} },
      { scheme: "realm", parameters: {} }
    ])
    assert.isAtMost(parse("A b=c, ".repeat(10_000)).length, 8)
    const [long] = parse(`A ${Array.from({ length: 100 }, (_, i) => `p${i}="${"x".repeat(5_000)}"`).join()}`)
    assert.strictEqual(JSON.stringify(long).length < 20_000, true)
  })
})

for (const [sdk, connector] of generations) {
  describe(`a refusal with ${sdk}`, { concurrent: true }, () => {
    const now = "Sat, 01 Aug 2026 12:00:00 GMT"
    const waits: ReadonlyArray<readonly [string, Record<string, string>, Duration.Input | undefined]> = [
      ["seconds", { "retry-after": "7" }, "7 seconds"],
      [
        "a date, by the server's own clock",
        { "retry-after": "Sat, 01 Aug 2026 12:01:30 GMT", date: now },
        "90 seconds"
      ],
      ["a date of the past", { "retry-after": "Sat, 01 Aug 2026 11:00:00 GMT", date: now }, 0],
      ["nothing", {}, undefined],
      ["less than nothing", { "retry-after": "-1" }, undefined],
      ["nonsense", { "retry-after": "soon, 1" }, undefined],
      ["forever", { "retry-after": "9".repeat(400) }, undefined]
    ]
    for (const [what, headers, expected] of waits) {
      for (const status of [429, 503]) {
        it.live(`with ${status} tells when to come back: ${what}`, () =>
          Effect.gen(function*() {
            const error = yield* refusedBy(connector, refuse(status, headers))
            assert.deepStrictEqual(reasonOf(error), {
              _tag: "HttpFailure",
              status,
              requestSent: true,
              ...(expected === undefined ? {} : { retryAfter: Duration.fromInputUnsafe(expected) })
            })
            const response = yield* HttpServerRespondable.toResponse(error)
            assert.strictEqual(
              response.headers["retry-after"],
              expected === undefined ? undefined : String(Duration.toSeconds(Duration.fromInputUnsafe(expected)))
            )
          }))
      }
    }

    for (const transport of ["http", "sse"] as const) {
      it.live(`of a connect over ${transport} tells when to come back`, () =>
        Effect.gen(function*() {
          const { url } = yield* Scripted.start({
            create: () =>
              createServer((request, response) =>
                void request.resume().on(
                  "end",
                  () => response.writeHead(503, { "content-type": "text/plain", "retry-after": "7" }).end("no")
                )
              )
          })
          const error = yield* Effect.flip(connector[transport]({ url })(identity, makeHandle()))
          assert.deepStrictEqual(reasonOf(error), {
            _tag: "HttpFailure",
            status: 503,
            requestSent: true,
            retryAfter: Duration.seconds(7)
          })
        }))
    }

    for (
      const [status, tag, asked] of [[401, "Unauthorized", "invalid_token"], [
        403,
        "Forbidden",
        "insufficient_scope"
      ]] as const
    ) {
      it.live(`with ${status} tells what is asked for, without the caller's own secret`, () =>
        Effect.gen(function*() {
          const error = yield* refusedBy(
            connector,
            refuse(status, {
              "www-authenticate": `Bearer error="${asked}", scope="a b", realm="not s3cret-token-of-alice",` +
                "resource_metadata=\"https://example.com/.well-known/oauth-protected-resource\""
            })
          )
          assert.deepStrictEqual(reasonOf(error), {
            _tag: tag,
            requestSent: true,
            forwarded: "bearer",
            challenges: [{
              scheme: "Bearer",
              parameters: {
                error: asked,
                scope: "a b",
                realm: "not<redacted>",
                resource_metadata: "https://example.com/.well-known/oauth-protected-resource"
              }
            }]
          })
          assert.notInclude(inspect(error, { depth: 9 }), "s3cret-token")
        }))
    }

    it.live("of a connect tells what is asked for", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        server.on("initialize", refuse(401, { "www-authenticate": "Bearer scope=x" }))
        const error = yield* Effect.flip(connector.http({ url: server.url })(identity, makeHandle()))
        assert.deepStrictEqual(reasonOf(error), {
          _tag: "Unauthorized",
          requestSent: true,
          challenges: [{ scheme: "Bearer", parameters: { scope: "x" } }]
        })
      }))

    it.live("whose body never ends is known by its status at once", () =>
      Effect.gen(function*() {
        const error = yield* refusedBy(connector, (response) => {
          response.writeHead(500, { "content-type": "text/plain" })
          const more = () => {
            while (!response.destroyed && response.write("no ".repeat(10_000))) { /* until it is full */ }
          }
          response.on("drain", more)
          more()
        })
        assert.deepStrictEqual(reasonOf(error), { _tag: "HttpFailure", status: 500, requestSent: true })
      }))

    it.live("that breaks off is known by its status", () =>
      Effect.gen(function*() {
        const error = yield* refusedBy(connector, (response) => {
          response.writeHead(503, { "content-length": "1000", "retry-after": "1" }).write("no")
          setTimeout(() => response.destroy(), 20)
        })
        assert.deepInclude(reasonOf(error), { _tag: "HttpFailure", status: 503 })
      }))
  })
}
