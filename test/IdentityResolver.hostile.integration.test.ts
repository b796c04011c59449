/**
 * Authorization servers that lie, hang, never stop, or lose their minds, and callers who make the most of it.
 */
import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver, type IntrospectionOptions, type JwtOptions } from "effect-mcp-sessions"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { Buffer } from "node:buffer"
import type { ServerResponse } from "node:http"
import { inspect } from "node:util"
import { gzipSync } from "node:zlib"
import { eventually } from "./support/answers.ts"
import * as AuthorizationServer from "./support/authorizationServer.ts"
import { many, underLoad } from "./support/load.ts"
import { refusal, resolve } from "./support/tokens.ts"

/** How many keys are made up in a second. */
const names = many(15, 300)

type Server = AuthorizationServer.AuthorizationServer

const jwt = (server: Server, options: Partial<JwtOptions> = {}) =>
  Layer.orDie(IdentityResolver.layerJwt({ issuer: server.issuer, audience: "mcp", ...options }))

const introspection = (server: Server, options: Partial<IntrospectionOptions> = {}) =>
  Layer.orDie(IdentityResolver.layerIntrospection({
    endpoint: `${server.issuer}/introspect`,
    clientId: "mcp",
    clientSecret: Redacted.make("pw"),
    ...options
  }))

/** Not for ever, by the clock on the wall. */
const joined = <A, E>(fiber: Fiber.Fiber<A, E>) => TestClock.withLive(Effect.timeout(Fiber.join(fiber), "2 seconds"))

const live = (condition: () => boolean) => TestClock.withLive(eventually(condition))

/** Ways never to come to an end. */
const endless: ReadonlyArray<readonly [name: string, write: (response: ServerResponse) => void]> = [
  ["says nothing", () => {}],
  ["says headers and no more", (response) => response.flushHeaders()],
  ["says a byte now and then", (response) => {
    const timer = setInterval(() => response.write(" "), 5)
    response.on("close", () => clearInterval(timer))
  }],
  ["never stops", (response) => {
    const flood = () => {
      while (!response.destroyed && response.write("x".repeat(65_536)));
    }
    response.on("drain", flood)
    flood()
  }]
]

/** Whoever asks is told after five seconds, and nothing is open then. */
const givesUp = Effect.fnUntraced(function*<E, R>(
  server: Server,
  path: string,
  write: (response: ServerResponse) => void,
  ask: Effect.Effect<unknown, E, R>,
  name: string
) {
  let open = 0
  server.answers.set(path, () => ({
    write: (response) => {
      open++
      response.on("close", () => open--)
      write(response)
    }
  }))
  const waiting = yield* Effect.forkChild(ask)
  yield* live(() => server.requests.includes(path))
  yield* TestClock.withLive(Effect.sleep(30))
  yield* TestClock.adjust("5 seconds")
  assert.strictEqual(yield* joined(waiting), "IdentityUnavailable", name)
  yield* live(() => open === 0)
})

describe("IdentityResolver.layerJwt, against a hostile world,", () => {
  it.effect("waits 5 seconds for a key server that never comes to an end, and hangs up on it", () =>
    Effect.gen(function*() {
      for (const [name, write] of endless) {
        for (const path of ["/keys", "/.well-known/oauth-authorization-server"]) {
          const server = yield* AuthorizationServer.make()
          yield* Effect.provide(
            givesUp(server, path, write, Effect.flatMap(server.sign({}), refusal), name),
            jwt(server)
          )
        }
      }
    }))

  it.effect("reads no more than 256 KiB, however they are packed", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const bomb = gzipSync(Buffer.alloc(32 * 1024 * 1024, " "))
      server.answers.set("/keys", () => ({
        headers: { "content-encoding": "gzip" },
        write: (response) => void response.end(bomb)
      }))
      assert.strictEqual(yield* Effect.provide(refusal(yield* server.sign({})), jwt(server)), "IdentityUnavailable")
    }))

  it.effect("a key set of monstrous keys is no key set, or one without the key", () =>
    Effect.gen(function*() {
      const monsters: ReadonlyArray<unknown> = [
        `{"keys":[{"kty":"EC","kid":"first","x":${"[".repeat(50_000)}${"]".repeat(50_000)}}]}`,
        { keys: [{ kty: "oct", kid: "first", k: "AAAA", alg: "HS256" }] },
        { keys: [{ kty: "RSA", kid: "first", n: "AQAB", e: "AQAB", alg: "RS256" }] },
        { keys: [{ kty: "EC", kid: "first", crv: "P-256", x: 1, y: null, alg: "ES256" }] },
        { keys: [{ __proto__: null, kid: "first" }] },
        "{\"keys\":[{\"__proto__\":{\"kty\":\"EC\"},\"kid\":\"first\"}]}"
      ]
      for (const body of monsters) {
        const server = yield* AuthorizationServer.make()
        server.answers.set("/keys", () => ({ body }))
        const reason = yield* Effect.provide(refusal(yield* server.sign({})), jwt(server))
        assert.include(["IdentityUnavailable", "key", "signature"], reason, inspect(body).slice(0, 80))
      }
    }))

  it.effect("an unusable key of the issuer is warned of once, whoever names it how often", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      const server = yield* AuthorizationServer.make()
      const own = server.keys[0]!
      server.answers.set("/keys", () => ({ body: { keys: [{ ...own.publicJwk, x: "AAAA" }] } }))
      yield* Effect.gen(function*() {
        for (let i = 0; i < 20; i++) {
          assert.strictEqual(yield* refusal(yield* server.sign({ jti: `${i}` })), "IdentityUnavailable")
        }
      }).pipe(Effect.provide(jwt(server)), Effect.provide(Logger.layer([logger])))
      assert.lengthOf(lines.filter((line) => line.includes("can't be used")), 1)
    }))

  it.effect("whoever asks a resolver that has ended is told so", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(jwt(server), scope)
      yield* Scope.close(scope, Exit.void)
      const { resolve: ask } = Context.get(context, IdentityResolver)
      const token = yield* server.sign({})
      for (let i = 0; i < 2; i++) {
        const asking = yield* Effect.forkChild(Effect.flip(ask({ headers: { authorization: `Bearer ${token}` } })))
        assert.strictEqual((yield* joined(asking))._tag, "IdentityUnavailable")
      }
    }))

  it.effect("a clock that jumps keeps no key for longer, lets no expired token in, and asks for keys again", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const day = 86_400_000
      yield* TestClock.setTime(100 * day)
      yield* Effect.gen(function*() {
        const exp = 101 * 86_400
        const token = yield* server.sign({ exp })
        assert.isUndefined(yield* refusal(token))
        const fetches = server.fetches()
        yield* TestClock.setTime(99 * day)
        assert.isUndefined(yield* refusal(token))
        assert.isAbove(server.fetches(), fetches)
        yield* TestClock.setTime(101 * day)
        assert.strictEqual(yield* refusal(token), "expired")
        server.answers.set("/keys", () => undefined)
        yield* TestClock.setTime(50 * day)
        assert.strictEqual(yield* refusal(token), "IdentityUnavailable")
      }).pipe(Effect.provide(jwt(server)))
    }))

  it.effect(
    `${names * 60} names of keys in a minute are 7 fetches at most, and the known key goes on`,
    () =>
      Effect.gen(function*() {
        const server = yield* AuthorizationServer.make()
        yield* Effect.gen(function*() {
          const good = yield* server.sign({})
          const [, payload, signature] = good.split(".")
          const forged = (kid: unknown) =>
            `${Buffer.from(JSON.stringify({ alg: "ES256", kid })).toString("base64url")}.${payload}.${signature}`
          for (let second = 0; second < 60; second++) {
            const refused = yield* Effect.forEach(
              Array.from({ length: names }, (_, i) => i),
              (i) => refusal(forged(`${second}-${i}`)),
              { concurrency: "unbounded" }
            )
            assert.deepStrictEqual([...new Set(refused)], ["key"])
            assert.isUndefined(yield* refusal(good))
            yield* TestClock.adjust("1 second")
          }
          for (const kid of [5, {}, ["first"], null, true, "first\u0000", "FIRST", "__proto__", "constructor"]) {
            assert.include(["key", "signature", "malformed"], yield* refusal(forged(kid)), inspect(kid))
          }
        }).pipe(Effect.provide(jwt(server)))
        assert.isAtMost(server.fetches(), 7)
      }),
    underLoad
  )
})

const alice = { active: true, sub: "alice", scope: "a", aud: "mcp", exp: 1_000 }

const says = (server: Server, body: unknown) => void server.answers.set("/introspect", () => ({ body }))

describe("IdentityResolver.layerIntrospection, against a hostile world,", () => {
  it.effect("two people whom two issuers call the same are two", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      yield* Effect.gen(function*() {
        const keys: Array<string> = []
        for (const iss of ["https://one.example.com", "https://two.example.com", "https://one.example.com"]) {
          says(server, { ...alice, iss })
          keys.push((yield* resolve(`token-${keys.length}`)).key)
        }
        assert.lengthOf(new Set(keys), 2)
        assert.strictEqual(keys[0], keys[2])
      }).pipe(Effect.provide(introspection(server)))
    }))

  it.effect("what the endpoint says is no bearer's access token is none", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const cases: ReadonlyArray<readonly [reason: string | undefined, answer: object]> = [
        [undefined, {}],
        [undefined, { token_type: "Bearer" }],
        [undefined, { token_type: "bearer", token_use: "access_token" }],
        [undefined, { token_type: "access_token", token_use: "access" }],
        ["bound", { token_type: "DPoP" }],
        ["bound", { token_type: "PoP" }],
        ["bound", { token_type: "mac" }],
        ["malformed", { token_type: "N_A" }],
        ["malformed", { token_type: "refresh_token" }],
        ["malformed", { token_use: "refresh_token" }],
        ["malformed", { token_use: "id" }],
        ["malformed", { typ: "Refresh" }],
        ["malformed", { typ: "Offline" }],
        ["malformed", { typ: "ID" }]
      ]
      yield* Effect.gen(function*() {
        for (const [index, [reason, answer]] of cases.entries()) {
          says(server, { ...alice, ...answer })
          assert.strictEqual(yield* refusal(`token-${index}`), reason, inspect(answer))
        }
      }).pipe(Effect.provide(introspection(server)))
    }))

  it.effect("a flood of made-up tokens leaves those in who were known before", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      let isFlooded = false
      server.answers.set("/introspect", (_, body) =>
        body.includes("token=alice")
          ? { body: alice }
          : isFlooded
          ? new Promise(() => {})
          : { body: { active: false } })
      yield* Effect.gen(function*() {
        assert.isUndefined(yield* refusal("alice"))
        isFlooded = true
        const flood = yield* Effect.forkChild(
          Effect.forEach(Array.from({ length: 200 }, (_, i) => `${i}`), refusal, { concurrency: "unbounded" })
        )
        yield* live(() => server.requests.length === 65)
        yield* TestClock.adjust("4 seconds")
        assert.isUndefined(yield* refusal("alice"))
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(flood)
      }).pipe(Effect.provide(introspection(server, { timeToLive: "1 second" })))
    }))

  it.effect("an endpoint that never comes to an end is waited for 5 seconds, and hung up on", () =>
    Effect.gen(function*() {
      for (const [name, write] of endless) {
        const server = yield* AuthorizationServer.make()
        yield* Effect.provide(
          givesUp(server, "/introspect", write, refusal("token"), name),
          introspection(server)
        )
      }
    }))

  it.effect("what is monstrous in an answer is refused, and breaks nothing", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const answers: ReadonlyArray<unknown> = [
        `{"active":true,"sub":"alice","aud":${"[".repeat(50_000)}${"]".repeat(50_000)}}`,
        "{\"active\":true,\"__proto__\":{\"sub\":\"root\"}}",
        { active: true, sub: "a".repeat(100_000) },
        { active: true, sub: "alice", exp: -1e308 },
        { active: true, sub: "alice", exp: 1e308 },
        { active: true, sub: "alice", scope: 5 },
        [],
        null,
        5,
        "x"
      ]
      yield* Effect.gen(function*() {
        for (const [index, answer] of answers.entries()) {
          says(server, answer)
          const exit = yield* Effect.exit(resolve(`token-${index}`))
          if (Exit.isFailure(exit)) assert.isFalse(Cause.hasDies(exit.cause), inspect(answer).slice(0, 80))
        }
      }).pipe(Effect.provide(introspection(server)))
    }))
})
