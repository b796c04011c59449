import { assert, describe, it } from "@effect/vitest"
import {
  AccessDenied,
  type IdentityError,
  IdentityResolver,
  IdentityUnavailable,
  type JwtOptions,
  SessionPool
} from "effect-mcp-sessions"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import * as Jose from "jose"
import { Buffer } from "node:buffer"
import { inspect } from "node:util"
import { load } from "../src/internal/tokens/jose.ts"
import { eventually } from "./support/answers.ts"
import * as AuthorizationServer from "./support/authorizationServer.ts"
import { many, underLoad } from "./support/load.ts"
import { refusal, resolve } from "./support/tokens.ts"

const herds = many(50, 1_000)

const layer = (
  server: AuthorizationServer.AuthorizationServer,
  options: Partial<JwtOptions> = {}
): Layer.Layer<IdentityResolver> =>
  Layer.orDie(IdentityResolver.layerJwt({ issuer: server.issuer, audience: "mcp", ...options }))

const tag = (headers: Record<string, string | Array<string>>) =>
  Effect.map(Effect.flip(IdentityResolver.resolve({ headers })), ({ _tag }) => _tag)

const keyUnder = (server: AuthorizationServer.AuthorizationServer, secret: string) =>
  Effect.flatMap(server.sign({}), resolve).pipe(
    Effect.map(({ key }) => key),
    Effect.provide(layer(server, { keySecret: Redacted.make(secret) }))
  )

/** A server and a resolver that believes it. */
const withServer = <A, E, R>(
  run: (server: AuthorizationServer.AuthorizationServer) => Effect.Effect<A, E, R>,
  options?: Partial<JwtOptions>
) => Effect.flatMap(AuthorizationServer.make(), (server) => Effect.provide(run(server), layer(server, options)))

/** Keys that are answered when the gate opens. */
const gate = (server: AuthorizationServer.AuthorizationServer) => {
  const answer = server.answers.get("/keys")!
  const opened = Deferred.makeUnsafe<void>()
  server.answers.set(
    "/keys",
    (request, body) => Effect.runPromise(Deferred.await(opened)).then(() => answer(request, body)!)
  )
  return () => Deferred.doneUnsafe(opened, Exit.void)
}

const down = (server: AuthorizationServer.AuthorizationServer) => {
  const answer = server.answers.get("/keys")!
  server.answers.set("/keys", () => ({ status: 503 }))
  return () => void server.answers.set("/keys", answer)
}

const live = (condition: () => boolean) => TestClock.withLive(eventually(condition))

class Sessions extends SessionPool.Tag<Sessions, void, never>()("test/Sessions") {}

const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url")

const responseOf = (error: IdentityError) => HttpServerRespondable.toResponse(error)

describe("IdentityResolver.layerJwt", () => {
  it.effect("tells who a caller is by the claims that its issuer has signed", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const token = yield* server.sign({ scope: "mcp:read mcp:write", name: "Alice" })
      const identity = yield* resolve(token)
      assert.isTrue(identity.verified)
      assert.isFalse(identity.shared)
      assert.match(identity.key, /^oauth:[\w-]{43}$/)
      assert.deepStrictEqual(identity.scopes, ["mcp:read", "mcp:write"])
      assert.deepStrictEqual(identity.expiresAt, Option.some(3_600_000))
      assert.deepInclude(Redacted.value(identity.claims), { sub: "alice", name: "Alice", iss: server.issuer })
      assert.strictEqual(Redacted.value(Option.getOrThrow(identity.credentials).token), token)
      assert.notInclude(`${inspect(identity, { depth: 9 })}${JSON.stringify({ ...identity })}`, "Alice")
      // The upstream's key is another, what is known of the caller is the same
      assert.deepStrictEqual(identity.at("weather").scopes, identity.scopes)
    })))

  it.effect("a token that is refreshed 20 times in 1,000 calls reaches one session, and bob's another", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const opened: Array<string> = []
      const pool = Sessions.layer({ connect: (identity) => Effect.sync(() => void opened.push(identity.key)) })
      yield* Effect.gen(function*() {
        for (let refresh = 0; refresh < 20; refresh++) {
          const token = yield* server.sign({ exp: (refresh + 1) * 240, jti: `${refresh}` })
          for (let call = 0; call < 50; call++) {
            yield* Sessions.withSession(yield* resolve(token), () => Effect.void)
          }
          yield* TestClock.adjust("4 minutes")
          assert.strictEqual(yield* refusal(token), "expired")
        }
        assert.lengthOf(opened, 1)
        yield* Sessions.withSession(
          yield* resolve(yield* server.sign({ exp: 9_999, sub: "bob" })),
          () => Effect.void
        )
        assert.lengthOf(new Set(opened), 2)
      }).pipe(Effect.provide(pool))
    })))

  it.effect("refuses what is expired, for others, of others, unsigned, or signed with another key", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const { sign } = server
      const own = server.keys[0]!
      const stranger = yield* AuthorizationServer.makeKey(own.kid)
      const claims = { iss: server.issuer, aud: "mcp", sub: "alice", exp: 3_600 }
      const good = yield* sign({})
      const hmac = (secret: string) =>
        Effect.promise(() =>
          new Jose.SignJWT(claims).setProtectedHeader({ alg: "HS256", kid: own.kid! }).sign(Buffer.from(secret))
        )
      const pem = yield* Effect.promise(async () =>
        Jose.exportSPKI(await Jose.importJWK(own.publicJwk, own.alg, { extractable: true }) as Jose.CryptoKey)
      )
      const [header, , signature] = good.split(".")
      const raw = (payload: string) =>
        Effect.promise(() =>
          new Jose.CompactSign(Buffer.from(payload)).setProtectedHeader({ alg: own.alg, kid: own.kid! }).sign(
            own.privateKey
          )
        )
      // RFC 7797, signed by the issuer
      const unencoded = Effect.map(
        Effect.promise(() =>
          new Jose.FlattenedSign(Buffer.from(part(claims)))
            .setProtectedHeader({ alg: own.alg, kid: own.kid!, crit: ["b64"], b64: false })
            .sign(own.privateKey)
        ),
        (jws) => `${jws.protected}.${part(claims)}.${jws.signature}`
      )
      const withHeader = (more: object) =>
        Effect.succeed(`${part({ alg: own.alg, kid: own.kid, ...more })}.${part(claims)}.${signature}`)
      const cases: ReadonlyArray<readonly [reason: string | undefined, token: Effect.Effect<string>]> = [
        [undefined, Effect.succeed(good)],
        [undefined, sign({ aud: ["other", "mcp"] })],
        [undefined, sign({}, { header: { typ: "at+jwt" } })],
        [undefined, sign({}, { header: { typ: "application/AT+JWT" } })],
        [undefined, sign({ nbf: 0 })],
        ["expired", sign({ exp: 0 })],
        ["expired", sign({ exp: -5 })],
        ["early", sign({ nbf: 1 })],
        ["audience", sign({ aud: "other" })],
        ["audience", sign({ aud: [] })],
        ["audience", sign({ aud: ["mcp2"] })],
        ["issuer", sign({ iss: "https://evil.example.com" })],
        ["issuer", sign({ iss: `${server.issuer}/` })],
        ["signature", sign({}, { key: stranger })],
        ["signature", Effect.succeed(`${header}.${part({ ...claims, sub: "bob" })}.${signature}`)],
        ["algorithm", Effect.succeed(`${part({ alg: "none" })}.${part(claims)}.`)],
        ["algorithm", Effect.succeed(`${part({ alg: "None", kid: own.kid })}.${part(claims)}.${signature}`)],
        ["algorithm", hmac(pem)],
        ["algorithm", hmac(JSON.stringify(own.publicJwk))],
        ["key", Effect.succeed(`${part({ alg: "ES384", kid: own.kid })}.${part(claims)}.${signature}`)],
        ["malformed", sign({}, { header: { typ: "logout+jwt" } })],
        ["malformed", sign({}, { header: { typ: "dpop+jwt" } })],
        [
          "malformed",
          withHeader({ crit: ["exp"], exp: 1 })
        ],
        ["signature", withHeader({ crit: ["b64"], b64: false })],
        ["malformed", unencoded],
        ["malformed", Effect.succeed("opaque")],
        ["malformed", Effect.succeed("a.b.c")],
        ["malformed", Effect.succeed(`${good}.x.y`)],
        ["malformed", raw("[]")],
        ["malformed", raw("null")],
        ["claims", raw(JSON.stringify({ ...claims, exp: undefined }))],
        ["claims", raw(JSON.stringify({ ...claims, exp: "3600" }))],
        ["claims", raw(JSON.stringify({ ...claims, exp: 1e306 }))],
        ["claims", raw(JSON.stringify({ ...claims, nbf: "0" }))],
        ["claims", raw(JSON.stringify({ ...claims, sub: undefined }))],
        ["claims", raw(JSON.stringify({ ...claims, sub: "" }))],
        ["claims", raw(JSON.stringify({ ...claims, sub: { $ne: "" } }))],
        // The last of two claims counts, in each place that looks
        ["expired", raw(`{"exp":3600,${JSON.stringify({ ...claims, exp: 0 }).slice(1)}`)],
        ["issuer", raw(`{"iss":"${server.issuer}",${JSON.stringify({ ...claims, iss: "other" }).slice(1)}`)],
        ["bound", sign({ cnf: { jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" } })]
      ]
      for (const [index, [reason, make]] of cases.entries()) {
        const token = yield* make
        assert.strictEqual(yield* refusal(token), reason, `case ${index}`)
        if (reason === undefined) continue
        const error = yield* Effect.flip(resolve(token))
        const response = yield* responseOf(error)
        assert.strictEqual(response.status, 401)
        assert.match(response.headers["www-authenticate"]!, /^Bearer realm="mcp", error="invalid_token", error_desc/)
        const texts = `${error.message}${inspect(error)}${JSON.stringify(error)}${JSON.stringify(response.headers)}`
        for (const secret of token.split(".")) {
          if (secret.length > 8) assert.notInclude(texts, secret)
        }
      }
    })))

  it.effect("takes no key from the token itself, and asks nobody whom a token names", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const evil = yield* AuthorizationServer.make()
      evil.keys = [yield* AuthorizationServer.makeKey("evil")]
      const [key] = evil.keys
      const sign = (header: object) => server.sign({}, { key: key!, header })
      for (
        const header of [
          { jwk: key!.publicJwk },
          { jku: evil.jwksUri },
          { x5u: evil.jwksUri, x5c: ["AAAA"] },
          { jwk: key!.publicJwk, kid: "first" },
          { kid: evil.jwksUri },
          { kid: "../../../../dev/null" }
        ]
      ) {
        assert.include(["key", "signature"], yield* refusal(yield* sign(header)))
      }
      assert.deepStrictEqual(evil.requests, [])
    })))

  it.effect("a token that is too long, or not the only one, is malformed, and none is missing", () =>
    withServer(Effect.fnUntraced(function*() {
      assert.strictEqual(yield* tag({}), "MissingCredentials")
      assert.strictEqual(yield* tag({ authorization: "" }), "MissingCredentials")
      assert.strictEqual(yield* tag({ authorization: `Bearer ${"a".repeat(20_000)}` }), "MalformedCredentials")
      assert.strictEqual(yield* tag({ authorization: "Basic YWxpY2U6cHc=" }), "MalformedCredentials")
      assert.strictEqual(yield* tag({ authorization: ["Bearer a", "Bearer b"] }), "MalformedCredentials")
    })))

  it.effect("a key that was rotated out is refused, memo or not, and the new one is found by its name at once", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const old = yield* server.sign({})
      assert.isUndefined(yield* refusal(old))
      server.keys = [yield* AuthorizationServer.makeKey("second")]
      yield* TestClock.adjust("11 seconds")
      assert.isUndefined(yield* refusal(yield* server.sign({})))
      assert.strictEqual(server.fetches(), 2)
      assert.strictEqual(yield* refusal(old), "key")
    })))

  it.effect("a key that was rotated out is refused after 10 minutes, though nobody has named another", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const old = yield* server.sign({})
      assert.isUndefined(yield* refusal(old))
      server.keys = [yield* AuthorizationServer.makeKey("second")]
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(yield* refusal(old), "key")
    })))

  it.effect("an expired token gets through neither by the memo nor by a key that was long in coming", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const open = gate(server)
      const token = yield* server.sign({ exp: 3 })
      const waiting = yield* Effect.forkChild(refusal(token))
      yield* live(() => server.fetches() === 1)
      yield* TestClock.adjust("3 seconds")
      open()
      assert.strictEqual(yield* Fiber.join(waiting), "expired")
      const later = yield* server.sign({ exp: 10 })
      assert.isUndefined(yield* refusal(later))
      yield* TestClock.adjust(6_999)
      assert.isUndefined(yield* refusal(later))
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* refusal(later), "expired")
    })))

  it.effect("clockTolerance is what exp and nbf may be off by", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        const token = yield* server.sign({ exp: 10 })
        const early = yield* server.sign({ nbf: 6 })
        assert.isUndefined(yield* refusal(token))
        assert.strictEqual(yield* refusal(early), "early")
        yield* TestClock.adjust("14 seconds")
        assert.isUndefined(yield* refusal(token))
        assert.isUndefined(yield* refusal(early))
        yield* TestClock.adjust("1 second")
        assert.strictEqual(yield* refusal(token), "expired")
      }),
      { clockTolerance: "5 seconds" }
    ))

  it.effect(
    `${herds} requests with a key that is new make one fetch, and the first of them may leave`,
    () =>
      withServer(Effect.fnUntraced(function*(server) {
        yield* resolve(yield* server.sign({}))
        server.keys = [yield* AuthorizationServer.makeKey("second")]
        yield* TestClock.adjust("1 minute")
        const token = yield* server.sign({})
        const open = gate(server)
        const first = yield* Effect.forkChild(resolve(token))
        yield* live(() => server.fetches() === 2)
        const herd = yield* Effect.forkChild(
          Effect.forEach(Array.from({ length: herds }), () => resolve(token), { concurrency: "unbounded" })
        )
        yield* Effect.yieldNow
        yield* Fiber.interrupt(first)
        yield* TestClock.adjust("2 seconds")
        open()
        const identities = yield* Fiber.join(herd)
        assert.lengthOf(new Set(identities.map(({ key }) => key)), 1)
        assert.strictEqual(server.fetches(), 2)
      })),
    underLoad
  )

  it.effect("the key server down: 503 for keys that are unknown, while known ones go on for a day", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const exp = 1_000_000
      const known = yield* server.sign({ exp })
      assert.isUndefined(yield* refusal(known))
      const up = down(server)
      const unknown = yield* server.sign({ exp }, { key: yield* AuthorizationServer.makeKey("second") })
      yield* TestClock.adjust("1 minute")
      const error = yield* Effect.flip(resolve(unknown))
      assert.instanceOf(error, IdentityUnavailable)
      const response = yield* responseOf(error)
      assert.deepStrictEqual([response.status, response.headers["retry-after"]], [503, "10"])
      // What is no token of the issuer is not its business
      assert.strictEqual(yield* refusal(yield* server.sign({ exp, iss: "other" })), "issuer")
      for (const duration of ["5 minutes", "10 minutes", "23 hours"] as const) {
        yield* TestClock.adjust(duration)
        assert.isUndefined(yield* refusal(known))
        assert.strictEqual(yield* refusal(unknown), "IdentityUnavailable")
      }
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* refusal(known), "IdentityUnavailable")
      up()
      assert.strictEqual(yield* refusal(known), "IdentityUnavailable")
      yield* TestClock.adjust("10 seconds")
      assert.isUndefined(yield* refusal(known))
      assert.strictEqual(yield* refusal(unknown), "key")
    })))

  it.effect("a flood of names of keys makes a fetch every 10 seconds, also when the server is down", () =>
    withServer(Effect.fnUntraced(function*(server) {
      yield* resolve(yield* server.sign({}))
      const key = yield* AuthorizationServer.makeKey("unknown")
      const flood = Effect.forEach(
        Array.from({ length: 200 }, (_, i) => i),
        (i) => Effect.flatMap(server.sign({}, { key, header: { kid: `${i}` } }), refusal),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual([...new Set(yield* flood)], ["key"])
      assert.strictEqual(server.fetches(), 1)
      yield* TestClock.adjust("10 seconds")
      yield* flood
      assert.strictEqual(server.fetches(), 2)
      down(server)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual([...new Set(yield* flood)], ["IdentityUnavailable"])
      yield* flood
      assert.strictEqual(server.fetches(), 3)
    })))

  it.effect("callers wait 5 seconds for keys, and no longer", () =>
    withServer(Effect.fnUntraced(function*(server) {
      gate(server)
      const waiting = yield* Effect.forkChild(refusal(yield* server.sign({})))
      yield* live(() => server.fetches() === 1)
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* Fiber.join(waiting), "IdentityUnavailable")
    })))

  it.effect("keys are fetched behind callers before they are old", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const token = yield* server.sign({})
      yield* resolve(token)
      const open = gate(server)
      yield* TestClock.adjust("6 minutes")
      yield* resolve(token)
      yield* live(() => server.fetches() === 2)
      yield* resolve(token)
      open()
      assert.strictEqual(server.fetches(), 2)
    })))

  it.effect("believes no answer that is too long, a redirect, no key set, or the metadata of another", () =>
    Effect.gen(function*() {
      const answers: ReadonlyArray<readonly [path: string, answer: AuthorizationServer.Answer]> = [
        ["/keys", { body: { keys: [], pad: "x".repeat(300_000) } }],
        ["/keys", { status: 302, headers: { location: "/elsewhere" } }],
        ["/keys", { body: "<html>" }],
        ["/keys", { body: { keys: {} } }],
        ["/keys", { body: { keys: Array.from({ length: 65 }, () => ({ kty: "EC" })) } }],
        ["/.well-known/oauth-authorization-server", { body: { issuer: "https://evil.example.com", jwks_uri: "x" } }],
        ["/.well-known/oauth-authorization-server", { status: 500 }],
        ["/.well-known/oauth-authorization-server", { status: 404 }],
        ["/.well-known/oauth-authorization-server", { body: [] }]
      ]
      for (const [path, answer] of answers) {
        const server = yield* AuthorizationServer.make()
        server.answers.set(path, () => answer)
        server.answers.set("/elsewhere", () => ({ body: { keys: server.keys.map(({ publicJwk }) => publicJwk) } }))
        const error = yield* Effect.provide(refusal(yield* server.sign({})), layer(server))
        assert.strictEqual(error, "IdentityUnavailable", inspect(answer).slice(0, 80))
        assert.notInclude(server.requests, "/elsewhere")
      }
    }))

  it.effect("finds the metadata of an issuer with a path where RFC 8414 and OpenID Connect put it", () =>
    Effect.gen(function*() {
      for (
        const place of [
          "/.well-known/oauth-authorization-server/tenant",
          "/.well-known/openid-configuration/tenant",
          "/tenant/.well-known/openid-configuration"
        ]
      ) {
        const server = yield* AuthorizationServer.make({ path: "/tenant" })
        const metadata = server.answers.get("/.well-known/oauth-authorization-server/tenant")!
        server.answers.delete("/.well-known/oauth-authorization-server/tenant")
        server.answers.set(place, metadata)
        assert.isUndefined(yield* Effect.provide(refusal(yield* server.sign({})), layer(server)), place)
      }
    }))

  it.effect("jwks may be where the keys are, or the keys themselves, and nothing else is asked", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const token = yield* server.sign({})
      assert.isUndefined(yield* Effect.provide(refusal(token), layer(server, { jwks: server.jwksUri })))
      assert.deepStrictEqual(server.requests, ["/keys"])
      const jwks = { keys: server.keys.map(({ publicJwk }) => publicJwk) }
      assert.isUndefined(yield* Effect.provide(refusal(token), layer(server, { jwks })))
      const other = yield* server.sign({}, { key: yield* AuthorizationServer.makeKey("other") })
      assert.strictEqual(yield* Effect.provide(refusal(other), layer(server, { jwks })), "key")
      assert.deepStrictEqual(server.requests, ["/keys"])
    }))

  it.effect("keys are fetched by the fetch that the layer is given", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const token = yield* server.sign({})
      const asked: Array<string> = []
      const proxied: typeof globalThis.fetch = (input, init) => {
        asked.push(String(input))
        return fetch(input, init)
      }
      const resolver = Layer.provide(
        layer(server, { jwks: server.jwksUri }),
        Layer.succeed(FetchHttpClient.Fetch, proxied)
      )
      const context = yield* Layer.build(resolver)
      assert.isUndefined(
        yield* Effect.provideService(refusal(token), IdentityResolver, Context.get(context, IdentityResolver))
      )
      assert.deepStrictEqual(asked, [server.jwksUri])
    }))

  it.effect("a token that names no key is tried with each, and one of them may be new", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const keys = yield* Effect.forEach([1, 2, 3], () => AuthorizationServer.makeKey(undefined))
      server.keys = keys.slice(0, 2)
      assert.isUndefined(yield* refusal(yield* server.sign({}, { key: keys[1]! })))
      assert.strictEqual(yield* refusal(yield* server.sign({ aud: "other" }, { key: keys[1]! })), "audience")
      const third = yield* server.sign({}, { key: keys[2]! })
      assert.strictEqual(yield* refusal(third), "signature")
      server.keys = keys
      yield* TestClock.adjust("10 seconds")
      assert.isUndefined(yield* refusal(third))
    })))

  it.effect("verifies RSA, ECDSA and Ed25519, and only those that algorithms has", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        const algorithms = ["RS256", "PS384", "ES512", "Ed25519", "ES256"]
        server.keys = yield* Effect.forEach(algorithms, (alg) => AuthorizationServer.makeKey(alg, alg))
        const results = yield* Effect.forEach(server.keys, (key) => Effect.flatMap(server.sign({}, { key }), refusal))
        assert.deepStrictEqual(results, [undefined, undefined, undefined, undefined, "algorithm"])
      }),
      { algorithms: ["RS256", "PS384", "ES512", "Ed25519"] }
    ))

  it.effect("scopes that were not granted are AccessDenied, which asks for them", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        for (const claims of [{ scope: "a b c" }, { scp: "b a" }, { scp: ["a", "b"] }]) {
          assert.isUndefined(yield* refusal(yield* server.sign(claims)))
        }
        for (
          const claims of [{}, { scope: "a" }, { scope: "" }, { scope: "ab" }, { scp: [1, "a"] }, { scope: ["a"] }]
        ) {
          const error = yield* Effect.flip(resolve(yield* server.sign(claims)))
          assert.instanceOf(error, AccessDenied)
          const response = yield* responseOf(error)
          assert.strictEqual(response.status, 403)
          assert.include(response.headers["www-authenticate"]!, "error=\"insufficient_scope\", scope=\"a b\"")
        }
      }),
      { scopes: ["a", "b"] }
    ))

  it.effect("principal says of the claims who it is, and a throw of it is logged without what it says", () =>
    withServer(
      Effect.fnUntraced(function*(server) {
        const first = yield* resolve(yield* server.sign({ sub: "x", tenant: "acme" }))
        const second = yield* resolve(yield* server.sign({ sub: "y", tenant: "acme" }))
        assert.strictEqual(first.key, second.key)
        assert.notInclude(first.key, "acme")
        assert.strictEqual(yield* refusal(yield* server.sign({})), "claims")
        const error = yield* Effect.flip(resolve(yield* server.sign({ tenant: "boom" })))
        assert.strictEqual(error._tag, "IdentifyFailed")
        assert.notInclude(`${error.message}${JSON.stringify(error)}${inspect(error, { depth: 9 })}`, "boom")
      }),
      {
        principal: ({ tenant }) => {
          if (tenant === "boom") throw new Error("boom")
          return tenant as string | undefined
        }
      }
    ))

  it.effect("keys are the same under the same secret, and others under another, or of another issuer", () =>
    Effect.gen(function*() {
      const [one, two] = [yield* AuthorizationServer.make(), yield* AuthorizationServer.make()]
      const keys = [
        yield* keyUnder(one, "a"),
        yield* keyUnder(one, "a"),
        yield* keyUnder(one, "b"),
        yield* keyUnder(two, "a")
      ]
      assert.strictEqual(keys[0], keys[1])
      assert.lengthOf(new Set(keys), 3)
    }))

  it.effect("refuses options that would verify nothing, and reads them from the configuration", () =>
    Effect.gen(function*() {
      const issuer = "https://login.example.com"
      const wrong: ReadonlyArray<readonly [option: string, options: object]> = [
        ["issuer", { audience: "mcp" }],
        ["issuer", { issuer: "login.example.com", audience: "mcp" }],
        ["issuer", { issuer: "http://login.example.com", audience: "mcp" }],
        ["issuer", { issuer: `${issuer}?a=b`, audience: "mcp" }],
        ["audience", { issuer }],
        ["audience", { issuer, audience: [] }],
        ["audience", { issuer, audience: "" }],
        ["audience", { issuer, audience: [""] }],
        ["algorithms", { issuer, audience: "mcp", algorithms: [] }],
        ["algorithms", { issuer, audience: "mcp", algorithms: ["none"] }],
        ["algorithms", { issuer, audience: "mcp", algorithms: ["HS256"] }],
        ["jwks", { issuer, audience: "mcp", jwks: "http://login.example.com/keys" }],
        ["jwks", { issuer, audience: "mcp", jwks: "https://user:pw@login.example.com/keys" }],
        ["jwks", { issuer, audience: "mcp", jwks: "keys.json" }],
        ["jwks", { issuer, audience: "mcp", jwks: { keys: "none" } }],
        ["clockTolerance", { issuer, audience: "mcp", clockTolerance: Duration.infinity }],
        ["scopes", { issuer, audience: "mcp", scopes: ["a b"] }],
        ["keySecret", { issuer, audience: "mcp", keySecret: "hunter2" }],
        ["principal", { issuer, audience: "mcp", principal: "sub" }],
        ["audiences", { issuer, audience: "mcp", audiences: "mcp" }]
      ]
      for (const [option, options] of wrong) {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(IdentityResolver.layerJwt(options as JwtOptions))))
        assert.deepStrictEqual([error.option, error.method], [option, "layerJwt"], inspect(options))
        assert.notInclude(error.message, "hunter2")
      }
      const server = yield* AuthorizationServer.make()
      const configured = IdentityResolver.layerJwtConfig({ scopes: ["a"] }).pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord({
          MCP_JWT_ISSUER: server.issuer,
          MCP_JWT_AUDIENCE: "other, mcp",
          MCP_JWT_ALGORITHMS: "ES256 RS256",
          MCP_JWT_JWKS: server.jwksUri
        })))
      )
      assert.isUndefined(yield* Effect.provide(refusal(yield* server.sign({ scope: "a" })), configured))
      assert.strictEqual(yield* Effect.provide(refusal(yield* server.sign({})), configured), "AccessDenied")
    }))

  it.effect("says what to install when jose is not there", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(load(() => Promise.reject(new Error("Cannot find package 'jose'"))))
      assert.include(inspect(exit, { depth: 9 }), "npm install jose@6")
    }))
})
