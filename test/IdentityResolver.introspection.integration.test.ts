import { assert, describe, it } from "@effect/vitest"
import { AccessDenied, IdentityResolver, IdentityUnavailable, type IntrospectionOptions } from "effect-mcp-sessions"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import { Buffer } from "node:buffer"
import { inspect } from "node:util"
import { eventually } from "./support/answers.ts"
import * as AuthorizationServer from "./support/authorizationServer.ts"
import { refusal, resolve } from "./support/tokens.ts"
import { makeWall } from "./support/wall.ts"

const path = "/introspect"
const token = "opaque-token-SECRET"
const clientSecret = Redacted.make("p:w %SECRET")

const layer = (
  server: AuthorizationServer.AuthorizationServer,
  options: Partial<IntrospectionOptions> = {}
): Layer.Layer<IdentityResolver> =>
  Layer.orDie(
    IdentityResolver.layerIntrospection({ endpoint: server.issuer + path, clientId: "mcp:1", clientSecret, ...options })
  )

/** A server whose answers `run` sets, and a resolver that asks it. */
const withServer = <A, E, R>(
  run: (server: AuthorizationServer.AuthorizationServer) => Effect.Effect<A, E, R>,
  options?: Partial<IntrospectionOptions>
) => Effect.flatMap(AuthorizationServer.make(), (server) => Effect.provide(run(server), layer(server, options)))

const says = (server: AuthorizationServer.AuthorizationServer, body: unknown, status = 200) =>
  void server.answers.set(path, () => ({ status, body }))

const alice = { active: true, sub: "alice", scope: "a b", aud: "mcp", exp: 60 }

describe("IdentityResolver.layerIntrospection", () => {
  it.effect("asks the endpoint whose a token is, as RFC 7662 and RFC 6749 say", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const asked: Array<unknown> = []
      server.answers.set(path, ({ headers, method }, body) => {
        asked.push([method, headers.authorization, headers["content-type"]?.split(";")[0], body])
        return { body: { ...alice, username: "Alice" } }
      })
      const identity = yield* resolve(token)
      assert.deepStrictEqual(asked, [[
        "POST",
        `Basic ${Buffer.from("mcp%3A1:p%3Aw+%25SECRET").toString("base64")}`,
        "application/x-www-form-urlencoded",
        `token=${token}&token_type_hint=access_token`
      ]])
      assert.isTrue(identity.verified)
      assert.match(identity.key, /^oauth:[\w-]{43}$/)
      assert.deepStrictEqual(identity.scopes, ["a", "b"])
      assert.deepStrictEqual(identity.expiresAt, Option.some(60_000))
      assert.deepInclude(Redacted.value(identity.claims), { username: "Alice" })
      assert.notInclude(inspect(identity, { depth: 9 }), "Alice")
      assert.strictEqual(Redacted.value(Option.getOrThrow(identity.credentials).token), token)
    })))

  it.effect("another token of the same subject has the same key", () =>
    withServer(Effect.fnUntraced(function*(server) {
      says(server, alice)
      const key = (yield* resolve(token)).key
      assert.strictEqual((yield* resolve("another")).key, key)
      says(server, { ...alice, sub: "bob" })
      assert.notStrictEqual((yield* resolve("bobs")).key, key)
    })))

  it.effect("an answer is good for timeToLive, and never for longer than the token", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        says(server, alice)
        yield* resolve(token)
        yield* TestClock.adjust(29_999)
        yield* resolve(token)
        assert.lengthOf(server.requests, 1)
        // Revoked
        says(server, { active: false })
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* refusal(token), "inactive")
        assert.strictEqual(yield* refusal(token), "inactive")
        assert.lengthOf(server.requests, 3)
        says(server, alice)
        assert.isUndefined(yield* refusal(token))
        yield* TestClock.adjust(29_999)
        assert.isUndefined(yield* refusal(token))
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* refusal(token), "expired")
      })
    ))

  it.effect("a clock that is set back keeps no revoked token for longer", () =>
    Effect.flatMap(makeWall, (wall) =>
      wall.on(withServer(Effect.fnUntraced(function*(server) {
        says(server, { ...alice, exp: undefined })
        yield* resolve(token)
        says(server, { active: false })
        yield* wall.jump(-3_600_000)
        yield* wall.adjust("29 seconds")
        assert.isUndefined(yield* refusal(token))
        yield* wall.adjust("1 second")
        const refusals = yield* Effect.all([refusal(token), refusal(token)], { concurrency: 2 })
        assert.deepStrictEqual(refusals, ["inactive", "inactive"])
        assert.lengthOf(server.requests, 2)
      })))))

  it.effect("a longer timeToLive lets no expired token through", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        says(server, alice)
        yield* resolve(token)
        yield* TestClock.adjust(59_999)
        assert.isUndefined(yield* refusal(token))
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* refusal(token), "expired")
        assert.lengthOf(server.requests, 1)
      }),
      { timeToLive: "1 hour" }
    ))

  it.effect("1,000 requests with one token make one request, and the first of them may leave", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const opened = Deferred.makeUnsafe<void>()
      server.answers.set(path, () => Effect.runPromise(Deferred.await(opened)).then(() => ({ body: alice })))
      const first = yield* Effect.forkChild(resolve(token))
      yield* TestClock.withLive(eventually(() => server.requests.length === 1))
      const herd = yield* Effect.forkChild(
        Effect.forEach(Array.from({ length: 1_000 }), () => resolve(token), { concurrency: "unbounded" })
      )
      yield* Effect.yieldNow
      yield* Fiber.interrupt(first)
      Deferred.doneUnsafe(opened, Exit.void)
      assert.lengthOf(new Set((yield* Fiber.join(herd)).map(({ key }) => key)), 1)
      assert.lengthOf(server.requests, 1)
    })))

  it.effect("refuses what the endpoint says is of another, for another, or over", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        const cases: ReadonlyArray<readonly [reason: string | undefined, answer: object]> = [
          [undefined, { aud: ["other", "mcp"] }],
          [undefined, { exp: undefined }],
          [undefined, { iss: "https://login.example.com" }],
          ["inactive", { active: false }],
          ["expired", { exp: 0 }],
          ["early", { nbf: 1 }],
          ["claims", { exp: "60" }],
          ["claims", { nbf: null }],
          ["claims", { sub: undefined }],
          ["issuer", { iss: "https://evil.example.com" }],
          ["audience", { aud: "other" }],
          ["audience", { aud: undefined }],
          ["bound", { cnf: { "x5t#S256": "x" } }],
          ["AccessDenied", { scope: "b" }],
          ["IdentityUnavailable", { active: "true" }],
          ["IdentityUnavailable", { active: undefined }]
        ]
        for (const [index, [reason, answer]] of cases.entries()) {
          says(server, { ...alice, ...answer })
          assert.strictEqual(yield* refusal(`${token}${index}`), reason, inspect(answer))
        }
        says(server, { ...alice, scope: "" })
        assert.instanceOf(yield* Effect.flip(resolve(token)), AccessDenied)
      }),
      { audience: "mcp", issuer: "https://login.example.com", scopes: ["a"] }
    ))

  it.effect("the endpoint down, slow, redirecting or refusing us: 503, and no secret in it", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const failures: ReadonlyArray<readonly [name: string, answer: AuthorizationServer.Answer]> = [
        ["down", { status: 503 }],
        ["refusing us", { status: 401, body: { error: "invalid_client" } }],
        ["redirecting", { status: 307, headers: { location: "/elsewhere" } }],
        ["too long", { body: `"${token}${"x".repeat(300_000)}"` }],
        ["no JSON", { body: token }]
      ]
      for (const [name, answer] of failures) {
        server.answers.set(path, () => answer)
        const error = yield* Effect.flip(resolve(token))
        assert.instanceOf(error, IdentityUnavailable, name)
        assert.strictEqual((yield* HttpServerRespondable.toResponse(error)).status, 503)
        assert.notInclude(
          `${inspect(error, { depth: 9 })}${JSON.stringify(error)}${
            inspect(Redacted.value(error.cause!), { depth: 9 })
          }`,
          "SECRET"
        )
      }
      assert.notInclude(server.requests, "/elsewhere")
      server.answers.set(path, () => new Promise(() => {}))
      const count = server.requests.length
      const slow = yield* Effect.forkChild(refusal(token))
      yield* TestClock.withLive(eventually(() => server.requests.length > count))
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* Fiber.join(slow), "IdentityUnavailable")
      says(server, alice)
      assert.isUndefined(yield* refusal(token))
    })))

  it.effect("more than 64 tokens at once are not asked for", () =>
    withServer(Effect.fnUntraced(function*(server) {
      server.answers.set(path, () => new Promise(() => {}))
      const flood = yield* Effect.forkChild(
        Effect.forEach(Array.from({ length: 100 }, (_, i) => `${i}`), refusal, { concurrency: "unbounded" })
      )
      yield* TestClock.withLive(eventually(() => server.requests.length === 64))
      assert.strictEqual(yield* refusal("two tokens"), "MalformedCredentials")
      assert.strictEqual(yield* refusal("another"), "IdentityUnavailable")
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual([...new Set(yield* Fiber.join(flood))], ["IdentityUnavailable"])
      assert.lengthOf(server.requests, 64)
      says(server, alice)
      assert.isUndefined(yield* refusal(token))
    })))

  it.effect("refuses options that have no meaning, and reads them from the configuration", () =>
    Effect.gen(function*() {
      const good = { endpoint: "https://login.example.com/introspect", clientId: "mcp", clientSecret }
      const wrong: ReadonlyArray<readonly [option: string, options: object]> = [
        ["endpoint", { ...good, endpoint: "http://login.example.com" }],
        ["clientId", { ...good, clientId: "" }],
        ["clientSecret", { ...good, clientSecret: "SECRET" }],
        ["audience", { ...good, audience: [] }],
        ["timeToLive", { ...good, timeToLive: -1 }],
        ["ttl", { ...good, ttl: 5 }]
      ]
      for (const [option, options] of wrong) {
        const error = yield* Effect.flip(
          Effect.scoped(Layer.build(IdentityResolver.layerIntrospection(options as IntrospectionOptions)))
        )
        assert.strictEqual(error.option, option)
        assert.notInclude(error.message, "SECRET")
      }
      const server = yield* AuthorizationServer.make()
      says(server, alice)
      const configured = IdentityResolver.layerIntrospectionConfig().pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord({
          MCP_INTROSPECTION_ENDPOINT: server.issuer + path,
          MCP_INTROSPECTION_CLIENT_ID: "mcp",
          MCP_INTROSPECTION_CLIENT_SECRET: "pw",
          MCP_INTROSPECTION_TIME_TO_LIVE: "1 minute"
        })))
      )
      assert.isUndefined(yield* Effect.provide(refusal(token), configured))
    }))
})
