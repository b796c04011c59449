import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import {
  Credentials,
  Identity,
  IdentityError,
  InvalidIdentity,
  InvalidOptions,
  MalformedCredentials,
  MissingCredentials,
  SessionKey
} from "effect-mcp-sessions"
import { inspect } from "node:util"

const response = (error: HttpServerRespondable.Respondable) =>
  Effect.map(HttpServerRespondable.toResponse(error), HttpServerResponse.toWeb)

const withToken = (token: string) => Identity.fromKey("user:1", { credentials: Credentials.bearer(token) })

const json = (web: Response) => Effect.promise((): Promise<unknown> => web.json())

describe("SessionKey", () => {
  it.each(["a", "tenant:acme", "!~", "x".repeat(256), "__proto__"])("accepts %j", (key) => {
    assert.isTrue(Schema.is(SessionKey)(key))
  })

  it.each(["", "a b", "a\n", "\u007f", "é", "x".repeat(257)])("refuses %j", (key) => {
    assert.isFalse(Schema.is(SessionKey)(key))
  })
})

describe("Credentials", () => {
  it("bearer makes what would have come in an Authorization header", () => {
    for (const credentials of [Credentials.bearer("abc"), Credentials.bearer(Redacted.make("abc"))]) {
      assert.strictEqual(credentials.scheme, "bearer")
      assert.strictEqual(Redacted.value(credentials.token), "abc")
      assert.strictEqual(Redacted.value(credentials.header), "Bearer abc")
      assert.strictEqual(credentials.name, "authorization")
    }
  })

  it("show nothing of themselves when they are printed", () => {
    const identity = withToken("SECRET")
    for (const printed of [JSON.stringify(identity), String(identity), inspect(identity, { depth: 9 })]) {
      assert.notInclude(printed, "SECRET")
    }
  })
})

describe("Identity", () => {
  it("fromKey has no credentials and is not shared", () => {
    const identity = Identity.fromKey("tenant:acme")
    assert.strictEqual(identity.key, "tenant:acme")
    assert.isTrue(Option.isNone(identity.credentials))
    assert.isFalse(identity.shared)
  })

  it("fromKey takes credentials along", () => {
    const credentials = Credentials.bearer("abc")
    assert.deepStrictEqual(Identity.fromKey("user:1", { credentials }).credentials, Option.some(credentials))
  })

  it("shared has the key \"shared\" unless told otherwise", () => {
    assert.strictEqual(Identity.shared().key, "shared")
    assert.strictEqual(Identity.shared("everyone").key, "everyone")
    assert.isTrue(Identity.shared().shared)
  })

  it("equals another with the same key and credentials", () => {
    assert.isTrue(Equal.equals(withToken("a"), withToken("a")))
    assert.isFalse(Equal.equals(withToken("a"), withToken("b")))
  })

  it("at prefixes the key and keeps the rest", () => {
    const credentials = Credentials.bearer("abc")
    const identity = Identity.fromKey("user:1", { credentials }).at("weather")
    assert.strictEqual(identity.key, "weather/user:1")
    assert.deepStrictEqual(identity.credentials, Option.some(credentials))
    assert.isFalse(identity.shared)
    assert.isTrue(Identity.shared().at("weather").shared)
  })

  it("at never gives two principals one key", () => {
    // Were "/" allowed, fromKey("c").at("a/b") and fromKey("b/c").at("a") would be one
    assert.throws(() => Identity.fromKey("c").at("a/b"), InvalidIdentity)
    assert.throws(() => Identity.fromKey("c").at(""), InvalidIdentity)
  })

  it("throws InvalidIdentity for what is no session key, and does not repeat it", () => {
    for (
      const make of [
        () => Identity.fromKey("SECRET\n"),
        () => Identity.shared("SECRET\n"),
        () => Identity.fromKey("x".repeat(250)).at("SECRET!")
      ]
    ) {
      try {
        make()
        assert.fail("it was accepted")
      } catch (error) {
        assert.instanceOf(error, InvalidIdentity)
        assert.notInclude(inspect(error), "SECRET")
      }
    }
  })
})

describe("identity errors over HTTP", () => {
  it.effect("MissingCredentials answers 401 with the challenge of its scheme", () =>
    Effect.gen(function*() {
      for (
        const [scheme, challenge] of [
          ["bearer", "Bearer realm=\"mcp\""],
          ["basic", "Basic realm=\"mcp\""],
          ["raw", "ApiKey realm=\"mcp\""]
        ] as const
      ) {
        const web = yield* response(new MissingCredentials({ header: "authorization", scheme }))
        assert.strictEqual(web.status, 401)
        assert.strictEqual(web.headers.get("www-authenticate"), challenge)
        assert.strictEqual(web.headers.get("cache-control"), "no-store")
        assert.strictEqual(web.headers.get("content-type"), "application/problem+json")
        assert.deepInclude(yield* json(web), {
          status: 401,
          error: "MissingCredentials",
          reference: "missing-credentials"
        })
      }
    }))

  it.effect("MalformedCredentials answers 401, a challenge and error=\"invalid_token\"", () =>
    Effect.gen(function*() {
      const web = yield* response(
        new MalformedCredentials({ header: "authorization", scheme: "bearer", issue: "it is empty" })
      )
      assert.strictEqual(web.status, 401)
      assert.strictEqual(web.headers.get("www-authenticate"), "Bearer realm=\"mcp\", error=\"invalid_token\"")
      assert.deepInclude(yield* json(web), { error: "MalformedCredentials", reference: "malformed-credentials" })
    }))

  it.effect("InvalidIdentity answers 500 and says nothing of the issue", () =>
    Effect.gen(function*() {
      const web = yield* response(new InvalidIdentity({ issue: "an internal matter" }))
      assert.strictEqual(web.status, 500)
      assert.isNull(web.headers.get("www-authenticate"))
      const body = yield* json(web)
      assert.deepInclude(body, { error: "InvalidIdentity", reference: "invalid-identity" })
      assert.notInclude(JSON.stringify(body), "internal")
    }))

  it.effect("InvalidOptions answers 500 and says nothing of the option", () =>
    Effect.gen(function*() {
      const error = new InvalidOptions({
        module: "SessionPool",
        option: "capacity",
        issue: "must be at least 1, got 0"
      })
      assert.strictEqual(error.message, "SessionPool.layer: option \"capacity\" must be at least 1, got 0")
      const web = yield* response(error)
      assert.strictEqual(web.status, 500)
      const body = yield* json(web)
      assert.deepInclude(body, { error: "InvalidOptions", reference: "invalid-options" })
      assert.notInclude(JSON.stringify(body), "capacity")
    }))

  it("each names its module, method and reference, and what to do", () => {
    for (
      const [error, module, method] of [
        [new MissingCredentials({ header: "authorization" }), "IdentityResolver", "resolve"],
        [
          new MalformedCredentials({ header: "authorization", scheme: "basic", issue: "it is empty" }),
          "IdentityResolver",
          "resolve"
        ],
        [new InvalidIdentity({ issue: "it is none" }), "Identity", "identify"],
        [new InvalidOptions({ module: "SessionPool", option: "capacity", issue: "is bad" }), "SessionPool", "layer"]
      ] as const
    ) {
      assert.strictEqual(error.module, module)
      assert.strictEqual(error.method, method)
      assert.match(error.reference, /^[a-z]+(-[a-z]+)*$/)
      assert.isNotEmpty(error.message)
    }
    assert.include(new MissingCredentials({ header: "x-api-key", scheme: "raw" }).message, "x-api-key")
  })

  it.effect("IdentityError decodes what it has encoded", () =>
    Effect.gen(function*() {
      const error = new MalformedCredentials({ header: "authorization", scheme: "basic", issue: "it is empty" })
      const encoded = yield* Schema.encodeEffect(IdentityError)(error)
      const decoded = yield* Schema.decodeUnknownEffect(IdentityError)(JSON.parse(JSON.stringify(encoded)))
      assert.instanceOf(decoded, MalformedCredentials)
      assert.strictEqual(decoded.message, error.message)
    }))
})
