import { assert, describe, it } from "@effect/vitest"
import {
  Credentials,
  Identity,
  IdentityError,
  InvalidIdentity,
  InvalidOptions,
  MalformedCredentials,
  MissingCredentials,
  PrincipalKey,
  SessionKey
} from "effect-mcp-sessions"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { inspect } from "node:util"
import { many, seed, underLoad } from "./support/load.ts"

const response = (error: HttpServerRespondable.Respondable) =>
  Effect.map(HttpServerRespondable.toResponse(error), HttpServerResponse.toWeb)

const withToken = (token: string) => Identity.fromKey("user:1", { credentials: Credentials.bearer(token) })

const json = (web: Response) => Effect.promise((): Promise<unknown> => web.json())

const base64url = (text: string) => Buffer.from(text).toString("base64url")

const jwt = (payload: unknown) =>
  `${base64url("{}")}.${base64url(typeof payload === "string" ? payload : JSON.stringify(payload))}.sig`

/** With credentials that say that they expire then. */
const expiring = (expiresAt: number | undefined) =>
  Identity.fromKey("user:1", { credentials: Credentials.bearer(`t${expiresAt}`, { expiresAt }) })

const isPrincipalKey = Schema.is(PrincipalKey)

// Few characters and short, so that what might be taken for one another comes up
const text = (alphabet: ReadonlyArray<string>) =>
  Arbitrary.map(
    Arbitrary.array(Arbitrary.schema(Schema.Literals(alphabet)), { minLength: 1, maxLength: 6 }),
    (parts) => parts.join("")
  )
const principal = text(["~", "/", "a"])
const upstream = Arbitrary.map(
  Arbitrary.array(text(["~", "a", "/", " ", "%", "%2F", "é"]), { maxLength: 1 }),
  ([name]) => Option.fromUndefinedOr(name)
)
const placed = (key: string, name: Option.Option<string>) => {
  const identity = Identity.fromKey(key)
  return Option.isSome(name) ? identity.at(name.value) : identity
}

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

  it("has no upstream and is not verified unless told otherwise", () => {
    for (const identity of [Identity.fromKey("user:1"), Identity.shared()]) {
      assert.isTrue(Option.isNone(identity.upstream))
      assert.isFalse(identity.verified)
    }
    assert.isTrue(Identity.fromKey("user:1", { verified: true }).verified)
    const made = new Identity({ key: SessionKey.make("user:1"), credentials: Option.none(), shared: false })
    assert.deepStrictEqual(made, Identity.fromKey("user:1"))
  })

  it("at carries the upstream as data and keeps the rest", () => {
    const credentials = Credentials.bearer("abc")
    const identity = Identity.fromKey("user:1", { credentials, verified: true }).at("weather")
    assert.deepStrictEqual(identity.upstream, Option.some("weather"))
    assert.strictEqual(identity.key, "~weather/user:1")
    assert.strictEqual(identity.principal, "user:1")
    assert.deepStrictEqual(identity.credentials, Option.some(credentials))
    assert.isTrue(identity.verified)
    assert.isFalse(identity.shared)
    assert.isTrue(Identity.shared().at("weather").shared)
  })

  it("at of an identity that is at an upstream already is the same principal at another", () => {
    const identity = Identity.fromKey("user:1").at("weather").at("files")
    assert.deepStrictEqual(identity, Identity.fromKey("user:1").at("files"))
    assert.strictEqual(identity.principal, "user:1")
  })

  it("at takes no name that mcp.json would not", () => {
    for (const name of ["", "a\n", "\u007f", "\u0000", "\u202ea", "\u2028", "\ud800", "x".repeat(129)]) {
      assert.throws(() => Identity.fromKey("c").at(name), InvalidIdentity, "the name of an upstream must be")
    }
    for (const name of [undefined, null, 1, ["a"], { toString: () => "a" }]) {
      assert.throws(() => Identity.fromKey("c").at(name as string), InvalidIdentity, "the name of an upstream must be")
    }
    assert.strictEqual(Identity.fromKey("c").at("x".repeat(128)).key.length, 131)
    assert.throws(() => Identity.fromKey("c").at("天".repeat(128)), InvalidIdentity, "more than 254 characters")
  })

  it("at takes whatever people call their servers, and no two of them are one", () => {
    const names: Readonly<Record<string, string>> = {
      "My Server": "My%20Server",
      "My%20Server": "My%2520Server",
      "github.com/acme/weather": "github.com%2Facme%2Fweather",
      "github.com%2Facme/weather": "github.com%252Facme%2Fweather",
      "/": "%2F",
      "é": "%C3%A9",
      "e\u0301": "e%CC%81",
      "天气": "%E5%A4%A9%E6%B0%94",
      "😀": "%F0%9F%98%80"
    }
    for (const [name, encoded] of Object.entries(names)) {
      const identity = Identity.fromKey("c").at(name)
      assert.strictEqual(identity.key, `~${encoded}/c`)
      assert.deepStrictEqual(identity.upstream, Option.some(name))
      assert.strictEqual(identity.principal, "c")
      assert.deepStrictEqual(identity.at("weather").at(name), identity)
      assert.throws(() => Identity.fromKey(identity.key), InvalidIdentity)
      assert.deepStrictEqual(Schema.decodeUnknownSync(Identity)(Schema.encodeSync(Identity)(identity)), identity)
    }
  })

  it.prop(
    "no two principals, and no principal at two upstreams, have one key",
    [principal, upstream, principal, upstream, Schema.Boolean],
    ([key, name, random, otherName, isDerived]) => {
      if (!isPrincipalKey(key)) return
      const one = placed(key, name)
      assert.strictEqual(one.principal, key)
      assert.deepStrictEqual(one.upstream, name)
      // The key that the first has at its upstream is the likeliest to be taken for it
      const otherKey = isDerived ? one.key : random
      if (!isPrincipalKey(otherKey)) return
      const other = placed(otherKey, otherName)
      assert.strictEqual(one.key === other.key, key === otherKey && Equal.equals(name, otherName))
    },
    { arbitrary: { runs: many(300, 1_000), seed }, ...underLoad }
  )

  it.prop("fromKey and shared take a key exactly if PrincipalKey does", [principal], ([key]) => {
    const isTaken = isPrincipalKey(key)
    for (const make of [() => Identity.fromKey(key), () => Identity.shared(key)]) {
      if (isTaken) assert.strictEqual(make().key, key)
      else assert.throws(make, InvalidIdentity, "call at(name) instead")
    }
    const fields = { credentials: Option.none(), shared: false }
    const construct = () => new Identity({ key: SessionKey.make(key), ...fields })
    if (isTaken) assert.strictEqual(construct().key, key)
    else assert.throws(construct)
  }, { arbitrary: { seed } })

  it("the constructor takes no upstream that is not in the key", () => {
    const fields = { credentials: Option.none(), shared: false }
    for (const [key, name] of [["~a/b", "c"], ["b", "a"], ["a/b", "a"], ["~a/", "a"], ["~a/~b/c", "a"]] as const) {
      assert.throws(() => new Identity({ ...fields, key: SessionKey.make(key), upstream: Option.some(name) }))
    }
    const made = new Identity({ ...fields, key: SessionKey.make("~a/b"), upstream: Option.some("a") })
    assert.deepStrictEqual(made, Identity.fromKey("b").at("a"))
  })

  it("throws InvalidIdentity for what can't be a session key, and does not repeat it", () => {
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

describe("Identity.newest", () => {
  const now = 1_000_000
  const clock = { currentTimeMillisUnsafe: () => now }
  const identities = {
    none: Identity.fromKey("user:1"),
    silent: expiring(undefined),
    soon: expiring(now + 1000),
    late: expiring(now + 2000),
    expired: expiring(now - 1),
    longExpired: expiring(now - 1000)
  }
  type Name = keyof typeof identities
  const names = Object.keys(identities) as ReadonlyArray<Name>

  // Which of the columns replace the row
  const replaced: Readonly<Record<Name, ReadonlyArray<Name>>> = {
    none: ["silent", "soon", "late", "expired", "longExpired"],
    silent: ["silent", "soon", "late"],
    soon: ["silent", "soon", "late"],
    late: ["silent", "late"],
    expired: ["silent", "soon", "late", "expired"],
    longExpired: ["silent", "soon", "late", "expired", "longExpired"]
  }

  it.each(names)("credentials of the kind %s are replaced by newer ones, never by some that expire sooner", (name) => {
    const known = identities[name]
    for (const other of names) {
      // Equal and not the same, as they come with another request
      const comes = new Identity(identities[other])
      const kept = Identity.newest(known, comes, clock)
      assert.strictEqual(kept, replaced[name].includes(other) ? comes : known, `${name}, then ${other}`)
    }
  })

  it("asks nobody for the time, and reads no token, when an identity comes again", () => {
    const untouchable = { currentTimeMillisUnsafe: () => assert.fail("it was asked") }
    const identity = withToken("not.read.at-all")
    assert.strictEqual(Identity.newest(identity, identity, untouchable), identity)
    assert.strictEqual(Identity.newest(identity, identity.at("weather"), untouchable).key, "~weather/user:1")
  })
})

describe("Credentials.expiry", () => {
  it("is expiresAt if it was given, else the exp of a JWT", () => {
    const token = jwt({ sub: "é", exp: 2000.5 })
    assert.deepStrictEqual(Credentials.bearer(token).expiry, Option.some(2_000_500))
    assert.deepStrictEqual(Credentials.bearer(token, { expiresAt: 7 }).expiry, Option.some(7))
    assert.deepStrictEqual(Credentials.bearer("opaque", { expiresAt: 7 }).expiry, Option.some(7))
  })

  it("is none of a token that does not say it in a way that can be read", () => {
    for (
      const token of [
        "opaque",
        "",
        ".",
        "..",
        "a.b.c",
        "a.b",
        jwt({}),
        jwt({ exp: "2000" }),
        jwt({ exp: null }),
        jwt("{\"exp\":1e999}"),
        jwt("{\"exp\":1e308}"),
        jwt("null"),
        jwt("[2000]"),
        jwt("{\"exp\":2000"),
        jwt("[".repeat(10_000)),
        `${jwt({ exp: 2000 })}.a.b`,
        `a.${base64url("{\"exp\":2000}")}`,
        jwt({ exp: 2000, more: "x".repeat(16_384) })
      ]
    ) {
      assert.deepStrictEqual(Credentials.bearer(token).expiry, Option.none(), token.slice(0, 80))
    }
  })

  it.prop("is read from whatever token there is", [Schema.Json, Schema.String], ([payload, token]) => {
    assert.isTrue(Option.isOption(Credentials.bearer(jwt(payload)).expiry))
    assert.isTrue(Option.isOption(Credentials.bearer(token).expiry))
  }, { arbitrary: { seed } })

  it("is no part of what makes credentials equal", () => {
    const [one, other] = [withToken(jwt({ exp: 1 })), withToken(jwt({ exp: 1 }))]
    assert.isTrue(Option.isSome(Option.getOrThrow(one.credentials).expiry))
    assert.isTrue(Equal.equals(one, other))
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
