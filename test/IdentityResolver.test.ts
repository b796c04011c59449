import { assert, describe, it } from "@effect/vitest"
import {
  Credentials,
  type CredentialScheme,
  type Identified,
  Identity,
  type IdentityError,
  type IdentityRequest,
  IdentityResolver,
  type IdentityResolverOptions,
  InvalidIdentity,
  InvalidOptions,
  MalformedCredentials,
  MissingCredentials
} from "effect-mcp-sessions"
import * as Arbitrary from "effect/Arbitrary"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as EffectHeaders from "effect/http/Headers"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { Request as ExpressRequest } from "express"
import type { FastifyRequest } from "fastify"
import { Buffer } from "node:buffer"
import { createHmac } from "node:crypto"
import type { IncomingMessage } from "node:http"
import { inspect } from "node:util"
import { seed } from "./support/load.ts"

const schemes: ReadonlyArray<CredentialScheme> = ["bearer", "basic", "raw"]

/** What a caller that TypeScript does not check may pass as a request. */
const untyped = (request: unknown) => request as IdentityRequest

const resolve = (request: unknown, options?: IdentityResolverOptions) =>
  Effect.provide(IdentityResolver.resolve(untyped(request)), IdentityResolver.layer(options))

const resolveValue = (value: unknown, options?: IdentityResolverOptions) =>
  resolve({ headers: { authorization: value } }, options)

const resolveWith = <R>(identify: (request: IdentityRequest) => Effect.Effect<Identified, IdentityError, R>) =>
  Effect.provide(IdentityResolver.resolve({ headers: {} }), IdentityResolver.layerIdentify(identify))

const tokenOf = (identity: Identity) =>
  Option.match(identity.credentials, { onNone: () => undefined, onSome: ({ token }) => Redacted.value(token) })

const headerOf = (identity: Identity) =>
  Option.match(identity.credentials, { onNone: () => undefined, onSome: ({ header }) => Redacted.value(header) })

/** An identity or an error in a word: its `scheme:token`, `shared`, `missing`, `malformed`, `invalid`. */
const outcome = <R>(effect: Effect.Effect<Identity, IdentityError | InvalidOptions, R>) =>
  Effect.match(effect, {
    onSuccess: (identity) =>
      identity.shared
        ? "shared"
        : Option.match(identity.credentials, {
          onNone: () => identity.key,
          onSome: ({ scheme, token }) => `${scheme}:${Redacted.value(token)}`
        }),
    onFailure: (error) => error._tag
  })

const basic = (userPass: string | Uint8Array) => `Basic ${Buffer.from(userPass).toString("base64")}`

const keyUnder = (secret: string, scheme: string, token: string) =>
  `${scheme}:${createHmac("sha256", secret).update(token).digest("base64url")}`

const rendered = (value: unknown) =>
  [
    JSON.stringify(value),
    String(value),
    inspect(value, { depth: 9, showHidden: true }),
    value instanceof Error ? `${value.message} ${value.stack}` : ""
  ].join("\n")

/** Never run: that it compiles is the test. */
const compiled = (
  node: IncomingMessage,
  fastify: FastifyRequest,
  express: ExpressRequest,
  effect: HttpServerRequest.HttpServerRequest
) => [
  IdentityResolver.resolve(node),
  IdentityResolver.resolve(fastify),
  IdentityResolver.resolve(express),
  IdentityResolver.resolve(effect),
  IdentityResolver.resolve(new Request("http://localhost")),
  IdentityResolver.resolve(new Headers()),
  IdentityResolver.resolve(new Map<string, string>()),
  IdentityResolver.resolve(EffectHeaders.empty),
  IdentityResolver.resolve({ headers: { authorization: "Bearer abc", other: ["a", "b"] } }),
  IdentityResolver.resolve({ headers: [["authorization", "Bearer abc"]] }),
  // @ts-expect-error There are no headers in it
  IdentityResolver.resolve({ authorization: "Bearer abc" }),
  // @ts-expect-error Nor here
  IdentityResolver.resolve(undefined)
]

const configured = (env: Record<string, string>) =>
  IdentityResolver.layerConfig.pipe(Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord(env))))

const resolveIn = (env: Record<string, string>, headers: EffectHeaders.Input) =>
  Effect.provide(IdentityResolver.resolve({ headers }), configured(env))

/** What a regular expression that tries again takes long for. */
const slow = (length: number) => [
  " ".repeat(length),
  `Bearer${" ".repeat(length - 7)}\n`,
  `Basic${" ".repeat(length - 6)}\n`,
  `x${" ".repeat(length - 2)}\n`,
  `x${" \t".repeat(length / 2 - 1)}x`,
  `Bearer ${"=".repeat(length - 7)}`,
  `Bearer ${"a".repeat(length - 8)}!`,
  `Bearer ${"a=".repeat(length / 2 - 4)}`,
  `Basic ${"a".repeat(length - 7)}!`,
  `Basic ${"=".repeat(length - 6)}`
]

const inWords = (value: unknown) => inspect(value, { breakLength: Infinity }).slice(0, 60)

const named = (error: IdentityError) => [error._tag, error.module, error.method, error.reference]

const joined = (parts: ReadonlyArray<string>, minLength: number) =>
  Arbitrary.map(
    Arbitrary.array(Arbitrary.schema(Schema.Literals(parts)), { minLength, maxLength: 24 }),
    (strings) => strings.join("")
  )

describe("IdentityResolver", () => {
  describe("modes", () => {
    it.effect("optional is the default: credentials when there are some, else the shared identity", () =>
      Effect.gen(function*() {
        assert.strictEqual(yield* outcome(resolveValue("Bearer abc")), "bearer:abc")
        const shared = yield* resolve({ headers: {} })
        assert.strictEqual(shared.key, "shared")
        assert.isTrue(shared.shared)
        assert.isTrue(Option.isNone(shared.credentials))
      }))

    it.effect.each([
      ["none", {}],
      ["undefined", { "x-api-key": undefined }],
      ["an empty array", { "x-api-key": [] }],
      ["an empty text", { "x-api-key": "" }],
      ["an empty Map", new Map()]
    ])(
      "required refuses an absent header (%s) as missing, and names header and scheme",
      ([, headers]) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(
            resolve({ headers }, { mode: "required", header: "X-API-Key", scheme: "raw" })
          )
          assert.instanceOf(error, MissingCredentials)
          assert.strictEqual(error.header, "x-api-key")
          assert.strictEqual(error.scheme, "raw")
        })
    )

    it.effect("required takes credentials", () =>
      Effect.gen(function*() {
        assert.strictEqual(yield* outcome(resolveValue("Bearer abc", { mode: "required" })), "bearer:abc")
      }))

    const untouchable = new Proxy({}, {
      get: () => assert.fail("it was read"),
      has: () => assert.fail("it was read")
    })

    it.effect.each([
      ["one that must not be read", untouchable],
      ["one with credentials", { headers: { authorization: "Bearer abc" } }],
      ["undefined", undefined],
      ["null", null],
      ["an empty object", {}],
      ["a number", 5]
    ])("disabled is the shared identity of any request: %s", ([, request]) =>
      Effect.gen(function*() {
        const identity = yield* resolve(request, { mode: "disabled", sharedKey: "everyone" })
        assert.strictEqual(identity.key, "everyone")
        assert.isTrue(identity.shared)
        assert.isTrue(Option.isNone(identity.credentials))
      }))

    it.effect.each(["optional", "required"] as const)(
      "a malformed header is an error in the mode %s",
      (mode) =>
        Effect.gen(function*() {
          for (const value of [" ", "Bearer", "Basic abc", "Bearer a b", ["Bearer a", "Bearer b"]]) {
            assert.strictEqual(yield* outcome(resolveValue(value, { mode })), "MalformedCredentials")
          }
        })
    )
  })

  describe("keys", () => {
    it.effect("are the scheme and the HMAC-SHA-256 of the token under keySecret", () =>
      Effect.gen(function*() {
        const keySecret = Redacted.make("a secret of this test")
        for (
          const [scheme, value, token] of [
            ["bearer", "Bearer abc", "abc"],
            ["basic", "Basic dXNlcjpw", "dXNlcjpw"],
            ["raw", " abc d ", "abc d"]
          ] as const
        ) {
          const identity = yield* resolveValue(value, { scheme, keySecret })
          assert.strictEqual(identity.key, keyUnder("a secret of this test", scheme, token))
        }
      }))

    it.effect("agree between all resolvers of the process by default", () =>
      Effect.gen(function*() {
        const one = yield* resolveValue("Bearer abc")
        const other = yield* resolveValue("bearer  abc", { mode: "required" })
        assert.strictEqual(one.key, other.key)
        assert.notStrictEqual(one.key, (yield* resolveValue("Bearer abc", { keySecret: Redacted.make("x") })).key)
      }))

    it.effect("differ between schemes for one and the same token", () =>
      Effect.gen(function*() {
        const bearer = yield* resolveValue("Bearer dXNlcjpw")
        const raw = yield* resolveValue("dXNlcjpw", { scheme: "raw" })
        const base64 = yield* resolveValue("Basic dXNlcjpw", { scheme: "basic" })
        assert.strictEqual(new Set([bearer.key, raw.key, base64.key]).size, 3)
      }))

    it.effect("stay the same when a header comes again, or after thousands of others", () =>
      Effect.gen(function*() {
        const resolver = yield* IdentityResolver
        const request = (token: string) => resolver.resolve({ headers: { authorization: `Bearer ${token}` } })
        const first = yield* request("first")
        assert.strictEqual(yield* request("first"), first)
        for (let i = 0; i < 3000; i++) {
          assert.strictEqual(tokenOf(yield* request(`t${i}`)), `t${i}`)
        }
        assert.deepStrictEqual(yield* request("first"), first)
      }).pipe(Effect.provide(IdentityResolver.layer())))

    it.effect("of tokens too long to be remembered are no different", () =>
      Effect.gen(function*() {
        const resolver = yield* IdentityResolver
        const request = resolver.resolve({ headers: { authorization: `Bearer ${"x".repeat(10_000)}` } })
        assert.strictEqual((yield* request).key, (yield* request).key)
      }).pipe(Effect.provide(IdentityResolver.layer())))

    it.effect("are not the shared key, though that is spelt like one", () =>
      Effect.gen(function*() {
        const options: IdentityResolverOptions = { sharedKey: "bearer:x" }
        const anonymous = yield* resolve({ headers: {} }, options)
        const x = yield* resolveValue("Bearer x", options)
        assert.strictEqual(anonymous.key, "bearer:x")
        assert.notStrictEqual(anonymous.key, x.key)
      }))

    it.effect("are one for all spellings of a value", () =>
      Effect.gen(function*() {
        const keys = yield* Effect.forEach(
          ["Bearer x", "Bearer x ", "Bearer x\t", " Bearer x", "bearer  x"],
          (value) => Effect.map(resolveValue(value), (identity) => identity.key)
        )
        assert.strictEqual(new Set(keys).size, 1)
      }))
  })

  describe("credentials", () => {
    it.effect("hold scheme, token, the value as received, and the lower-case name of the header", () =>
      Effect.gen(function*() {
        const identity = yield* resolve({ headers: { "x-token": " bEaReR  abc \t" } }, { header: "X-Token" })
        const credentials = Option.getOrThrow(identity.credentials)
        assert.strictEqual(credentials.scheme, "bearer")
        assert.strictEqual(Redacted.value(credentials.token), "abc")
        assert.strictEqual(Redacted.value(credentials.header), " bEaReR  abc \t")
        assert.strictEqual(credentials.name, "x-token")
        assert.isFalse(identity.shared)
      }))

    it.effect("are not in the key, nor in anything that is printed", () =>
      Effect.gen(function*() {
        for (
          const [scheme, value, secret] of [
            ["bearer", "Bearer sk-live-SECRET", "sk-live-SECRET"],
            ["basic", basic("alice:hunter2"), "YWxpY2U6aHVudGVyMg=="],
            ["raw", "sk-live-SECRET", "sk-live-SECRET"]
          ] as const
        ) {
          const identity = yield* resolveValue(value, { scheme })
          assert.match(identity.key, new RegExp(`^${scheme}:[A-Za-z0-9_-]{43}$`))
          assert.notInclude(rendered(identity), secret)
          assert.notInclude(rendered(identity), "hunter2")
        }
      }))
  })

  describe("requests", () => {
    const abc = { host: "localhost", authorization: "Bearer abc", "set-cookie": ["a", "b"] }
    const shapes: Record<string, unknown> = {
      "a plain object": { headers: abc },
      "a plain object with a capital": { headers: { Authorization: "Bearer abc" } },
      "an array of one value": { headers: { AUTHORIZATION: ["Bearer abc"] } },
      "an object without a prototype": { headers: Object.assign(Object.create(null), abc) },
      "WHATWG Headers": { headers: new Headers({ Authorization: "Bearer abc" }) },
      "a Map": { headers: new Map([["Authorization", "Bearer abc"]]) },
      "a Map of arrays": { headers: new Map([["authorization", ["Bearer abc"]]]) },
      "pairs": { headers: [["Host", "localhost"], ["Authorization", "Bearer abc"]] },
      "the entries of Headers": { headers: new Headers({ Authorization: "Bearer abc" }).entries() },
      "Effect Headers": { headers: EffectHeaders.fromInput(abc) },
      "a WHATWG Request": new Request("http://localhost", { headers: { Authorization: "Bearer abc" } }),
      "an Effect HttpServerRequest": HttpServerRequest.fromWeb(
        new Request("http://localhost", { headers: { Authorization: "Bearer abc" } })
      ),
      "WHATWG Headers in place of a request": new Headers({ Authorization: "Bearer abc" }),
      "a Map in place of a request": new Map([["AUTHORIZATION", "Bearer abc"]]),
      "Effect Headers in place of a request": EffectHeaders.fromInput(abc),
      "headers behind a getter": new (class {
        get headers() {
          return abc
        }
      })(),
      "a Node message": { headers: abc, rawHeaders: ["Host", "localhost", "Authorization", "Bearer abc"] },
      "a Fastify request": { headers: abc, raw: { rawHeaders: ["authorization", "Bearer abc"] } }
    }

    it.effect.each(Object.keys(shapes))("%s is read", (name) =>
      Effect.gen(function*() {
        const identity = yield* resolve(shapes[name], { mode: "required" })
        assert.strictEqual(tokenOf(identity), "abc")
      }))

    const one = { authorization: "Bearer a" }
    const twice = ["Authorization", "Bearer a", "Host", "localhost", "authorization", "Bearer b"]

    it.effect.each([
      ["in an array", { headers: { authorization: ["Bearer a", "Bearer a"] } }],
      ["in an array, empty", { headers: { authorization: ["", ""] } }],
      ["in another spelling", { headers: { authorization: "Bearer a", Authorization: "Bearer a" } }],
      ["in a Map", { headers: new Map([["authorization", "Bearer a"], ["Authorization", "Bearer a"]]) }],
      ["in pairs", { headers: [["authorization", "Bearer a"], ["authorization", "Bearer b"]] }],
      ["in Headers", { headers: new Headers([["authorization", "Bearer a"], ["authorization", "Bearer b"]]) }],
      ["on Node's wire", { headers: one, rawHeaders: twice }],
      ["on Fastify's wire", { headers: one, raw: { headers: one, rawHeaders: twice } }],
      ["on Effect's wire", { headers: EffectHeaders.fromInput(one), source: { headers: one, rawHeaders: twice } }],
      ["on the wire alone", { headers: {}, rawHeaders: twice }]
    ])("that repeat the header %s are malformed", ([, request]) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* outcome(resolve(request)), "MalformedCredentials")
      }))

    it.effect("are never read from rawHeaders, which only count", () =>
      Effect.gen(function*() {
        const rawHeaders = ["Authorization", "Bearer raw", "x-other", "authorization"]
        assert.strictEqual(yield* outcome(resolve({ headers: {}, rawHeaders })), "shared")
        assert.strictEqual(
          yield* outcome(resolve({ headers: { authorization: "Bearer abc" }, rawHeaders })),
          "bearer:abc"
        )
        assert.strictEqual(yield* outcome(resolve({ rawHeaders })), "MalformedCredentials")
      }))

    it.effect.each(["__proto__", "constructor", "toString", "hasOwnProperty"])(
      "with a header named %s confuse nobody",
      (header) =>
        Effect.gen(function*() {
          const options: IdentityResolverOptions = { header, scheme: "raw" }
          for (const headers of [{}, new Headers(), new Map(), EffectHeaders.empty]) {
            assert.strictEqual(yield* outcome(resolve({ headers }, options)), "shared")
          }
          const headers: unknown = JSON.parse(`{ "${header}": "abc" }`)
          assert.strictEqual(yield* outcome(resolve({ headers }, options)), "raw:abc")
        })
    )

    it.effect("have nothing from a prototype", () =>
      Effect.gen(function*() {
        const polluting: unknown = JSON.parse("{ \"__proto__\": { \"authorization\": \"Bearer abc\" } }")
        assert.strictEqual(yield* outcome(resolve({ headers: polluting })), "shared")
        const inherited = Object.create({ authorization: "Bearer abc" })
        assert.strictEqual(yield* outcome(resolve({ headers: inherited })), "MalformedCredentials")
      }))

    it.effect("fromHttpRequest reads the request that is being served", () =>
      Effect.gen(function*() {
        const request = HttpServerRequest.fromWeb(
          new Request("http://localhost", { headers: { authorization: "Bearer abc" } })
        )
        const identity = yield* Effect.provideService(
          IdentityResolver.fromHttpRequest,
          HttpServerRequest.HttpServerRequest,
          request
        )
        assert.strictEqual(tokenOf(identity), "abc")
      }).pipe(Effect.provide(IdentityResolver.layer({ mode: "required" }))))

    it("type-check as what Node, Fastify, Express and Effect give", () => {
      assert.isFunction(compiled)
    })

    it.effect("are never of the shared session for how the header is spelt or held", () =>
      Effect.gen(function*() {
        for (
          const headers of [
            { Authorization: "Bearer abc" },
            { AUTHORIZATION: "Bearer abc" },
            new Headers({ authorization: "Bearer abc" }),
            new Map([["Authorization", "Bearer abc"]])
          ]
        ) {
          assert.strictEqual(yield* outcome(resolve({ headers }, { mode: "optional" })), "bearer:abc")
        }
      }))
  })

  describe("values", () => {
    const M = "MalformedCredentials"

    // What the manager that this library replaces made of them is in the comments, where we differ
    const bearer: ReadonlyArray<readonly [value: unknown, optional: string, required?: string]> = [
      ["Bearer abc", "bearer:abc"],
      ["bearer abc", "bearer:abc"],
      ["BEARER abc", "bearer:abc"],
      ["BeArEr abc", "bearer:abc"],
      ["Bearer  abc", "bearer:abc"],
      ["Bearer\tabc", M], // token abc
      ["Bearer \t abc", M], // token abc
      ["Bearer\n abc", M], // token abc
      ["Bearer \u00a0abc", M], // token abc
      ["Bearer abc ", "bearer:abc"], // token "abc "
      [" Bearer abc", "bearer:abc"], // refused
      ["\tBearer abc\t", "bearer:abc"],
      ["Bearer abc def", M], // the rest, as it was, for these four
      ["Bearer a,b", M],
      ["Bearer \"abc\"", M],
      ["Bearer abc, Bearer def", M],
      ["Bearerabc", M],
      ["Bearer", M],
      ["Bearer ", M],
      ["Bearer: abc", M],
      ["Basic abc", M],
      ["abc", M],
      ["  ", M],
      ["\t", M],
      ["\n", M],
      ["Bearer a\nb", M],
      ["Bearer abc\n", M],
      ["Bearer abc\r\nX-Admin: 1", M],
      ["Bearer a\0", M],
      ["Bearer a\u007f", M],
      ["Bearer  ", M], // token " "
      ["Bearer   ", M], // token " "
      ["", M, "MissingCredentials"], // shared
      [["Bearer a", "Bearer b"], M], // token "a,Bearer b"
      [["Bearer a"], "bearer:a"],
      [["", ""], M],
      [[""], M, "MissingCredentials"], // shared
      [[], "shared", "MissingCredentials"],
      [undefined, "shared", "MissingCredentials"],
      [["Basic x", "Bearer b"], M],
      ["Bearer aZ09-._~+/==", "bearer:aZ09-._~+/=="],
      ["Bearer ===", M],
      ["Bearer a=b", M],
      ["Bearer é", M],
      ["Bearer \u{1f600}", M],
      ["\u0392earer abc", M], // Greek, not Latin
      ["Bearer __proto__", "bearer:__proto__"]
    ]

    const basics: typeof bearer = [
      ["Basic dXNlcjpw", "basic:dXNlcjpw"],
      ["basic dXNlcjpw", "basic:dXNlcjpw"],
      ["BASIC   dXNlcjpw ", "basic:dXNlcjpw"],
      [basic("user:"), "basic:dXNlcjo="],
      [basic(":"), "basic:Og=="],
      [basic("user:p:q"), "basic:dXNlcjpwOnE="],
      [basic("usér:pässword"), `basic:${Buffer.from("usér:pässword").toString("base64")}`],
      [basic(Uint8Array.of(0xff, 0x3a, 0xfe)), "basic:/zr+"],
      ["Basic not-base64!!", M], // accepted
      ["Basic dXNlcjpw dXNlcjpw", M], // accepted
      ["Basic dXNlcjpw,dXNlcjpw", M], // accepted
      ["Basic dXNlcjo", M], // no padding
      ["Basic dXNlcjo==", M], // too much of it
      ["Basic dXNlcjp=", M],
      ["Basic Og==Og==", M],
      ["Basic Oh==", M], // bits left over: a second spelling of ":"
      ["Basic ===", M],
      ["Basic _zr-", M], // base64url
      [basic("user"), M], // no colon
      [basic("user:p\n"), M],
      [basic("us\0er:p"), M],
      [basic("user:\u007f"), M],
      ["Basic ", M],
      ["Basic", M],
      ["Basicdxnlcjpw", M],
      ["Bearer x", M],
      ["Basic\tdXNlcjpw", M],
      ["", M, "MissingCredentials"] // shared
    ]

    const raws: typeof bearer = [
      ["k", "raw:k"],
      [" k ", "raw:k"], // token " k "
      ["\tk\t", "raw:k"],
      ["a b", "raw:a b"],
      ["Bearer x", "raw:Bearer x"],
      ["bearer x", "raw:bearer x"],
      ["clé", "raw:clé"],
      [" ", M], // token " "
      ["", M, "MissingCredentials"], // shared
      ["a\tb", M],
      ["a\nb", M],
      ["a\u0000", M],
      ["\u{1f600}", M],
      ["\ud800", M],
      [["a", "b"], M], // token "a,b"
      [["a"], "raw:a"]
    ]

    const tables = { bearer, basic: basics, raw: raws }
    for (const scheme of schemes) {
      it.effect.each(tables[scheme])(`${scheme}: %j is %s`, ([value, optional, required]) =>
        Effect.gen(function*() {
          assert.strictEqual(yield* outcome(resolveValue(value, { scheme })), optional)
          assert.strictEqual(yield* outcome(resolveValue(value, { scheme, mode: "required" })), required ?? optional)
        }))
    }

    it.effect("of more than 16 KiB are malformed, of 16 KiB are not", () =>
      Effect.gen(function*() {
        const longest = "x".repeat(16_384 - "Bearer ".length)
        assert.strictEqual(tokenOf(yield* resolveValue(`Bearer ${longest}`)), longest)
        assert.strictEqual(yield* outcome(resolveValue(`Bearer ${longest}x`)), M)
        assert.strictEqual(yield* outcome(resolveValue(` ${longest} `.padEnd(16_385))), M)
        assert.strictEqual(yield* outcome(resolveValue("x".repeat(16_385), { scheme: "raw" })), M)
      }))

    it.effect("are told what is wrong with them in words that have none of them", () =>
      Effect.gen(function*() {
        for (const scheme of schemes) {
          for (
            const value of [
              "SECRET \n",
              "SECRET\u{1f600}",
              "SECRET".repeat(4000),
              ["SECRET", "SECRET"],
              { SECRET: "SECRET" },
              ...scheme === "raw" ? [] : ["SECRET", "Bearer SECRET SECRET", "Basic SECRET", "Basic SECRETSE"]
            ]
          ) {
            const error = yield* Effect.flip(resolveValue(value, { scheme }))
            assert.instanceOf(error, MalformedCredentials)
            assert.isNotEmpty(error.issue)
            assert.strictEqual(error.scheme, scheme)
            assert.notInclude(rendered(error), "SECRET")
          }
        }
      }))

    it.effect("are read in linear time", () =>
      // Expressions that try again take a tenth of a second and more for each of these at 16 Ki, and hours at 1 Mi
      Effect.gen(function*() {
        for (const scheme of schemes) {
          const resolver = yield* Effect.provide(IdentityResolver, IdentityResolver.layer({ scheme }))
          for (const authorization of slow(1024 * 1024)) {
            assert.isTrue(Result.isFailure(yield* Effect.result(resolver.resolve({ headers: { authorization } }))))
          }
          for (const authorization of slow(16_384)) {
            for (let i = 0; i < 100; i++) {
              yield* Effect.result(resolver.resolve({ headers: { authorization } }))
            }
          }
        }
      }))
  })

  describe("errors", () => {
    it.effect("answer 401 over HTTP, challenge for the scheme, and have nothing of the header in them", () =>
      Effect.gen(function*() {
        for (
          const [scheme, challenge] of [["bearer", "Bearer"], ["basic", "Basic"], ["raw", "ApiKey"]] as const
        ) {
          for (const value of ["SECRET\nSECRET", ""]) {
            const error = yield* Effect.flip(resolveValue(value, { scheme, mode: "required" }))
            const web = HttpServerResponse.toWeb(yield* HttpServerRespondable.toResponse(error))
            assert.strictEqual(web.status, 401)
            assert.match(web.headers.get("www-authenticate") ?? "", new RegExp(`^${challenge} realm="mcp"`))
            const body = yield* Effect.promise(() => web.text())
            assert.include(body, error._tag)
            assert.notInclude(body + JSON.stringify([...web.headers]), "SECRET")
          }
        }
      }))

    it.effect("are told by their tag, and name where they come from and where to read on", () =>
      Effect.gen(function*() {
        const answered = yield* Effect.all([
          resolveValue(undefined, { mode: "required" }),
          resolveValue("abc"),
          resolveWith(() => Effect.succeed(""))
        ].map((effect) =>
          effect.pipe(
            Effect.map(() => []),
            Effect.catchTags({
              MissingCredentials: (error) => Effect.succeed(named(error)),
              MalformedCredentials: (error) => Effect.succeed(named(error)),
              InvalidIdentity: (error) => Effect.succeed(named(error))
            })
          )
        ))
        assert.deepStrictEqual(answered, [
          ["MissingCredentials", "IdentityResolver", "resolve", "missing-credentials"],
          ["MalformedCredentials", "IdentityResolver", "resolve", "malformed-credentials"],
          ["InvalidIdentity", "Identity", "identify", "invalid-identity"]
        ])
      }))
  })

  describe("layer", () => {
    const meaningless: ReadonlyArray<readonly [option: string, values: ReadonlyArray<unknown>]> = [
      ["mode", ["REQUIRED", "bogus", "", null, 5, ["required"]]],
      ["scheme", ["Raw", "digest", "", null]],
      ["header", ["", "a b", "x:y", "é", "a\n", null, 5]],
      ["sharedKey", ["", "a b", "x".repeat(257), "~a/b", null, 5]],
      ["keySecret", ["SECRET", Redacted.make(""), Redacted.make(5), null]]
    ]

    it.effect.each(meaningless)(
      "fails with InvalidOptions for a %s without a meaning",
      ([option, values]) =>
        Effect.gen(function*() {
          for (const value of values) {
            const options = { [option]: value } as IdentityResolverOptions
            const error = yield* Effect.flip(Layer.build(IdentityResolver.layer(options)))
            assert.instanceOf(error, InvalidOptions)
            assert.strictEqual(error.module, "IdentityResolver")
            assert.strictEqual(error.option, option)
            assert.match(error.message, /^IdentityResolver\.layer: option "\w+" must be /)
            assert.notInclude(error.message, "SECRET")
          }
        })
    )

    it.effect("says what an option must be and what it was", () =>
      Effect.gen(function*() {
        const options = { mode: "REQUIRED" } as unknown as IdentityResolverOptions
        const error = yield* Effect.flip(Layer.build(IdentityResolver.layer(options)))
        assert.strictEqual(
          error.message,
          "IdentityResolver.layer: option \"mode\" must be \"optional\", \"required\" or \"disabled\", got \"REQUIRED\""
        )
      }))

    it("does not type-check with an unknown mode or scheme", () => {
      // @ts-expect-error There is no such mode
      IdentityResolver.layer({ mode: "REQUIRED" })
      // @ts-expect-error There is no such scheme
      IdentityResolver.layer({ scheme: "digest" })
      // @ts-expect-error A secret is redacted
      IdentityResolver.layer({ keySecret: "SECRET" })
    })

    it.effect("takes undefined for the default", () =>
      Effect.gen(function*() {
        const identity = yield* resolveValue("Bearer abc", {
          mode: undefined,
          header: undefined,
          scheme: undefined,
          sharedKey: undefined,
          keySecret: undefined
        })
        assert.strictEqual(tokenOf(identity), "abc")
      }))

    it.effect.each([["mod", { mod: "required" }], ["auth", { auth: {} }], ["options", null]])(
      "refuses a misspelt option, and does not leave the door open: %s",
      ([option, wrong]) =>
        Effect.gen(function*() {
          const options = wrong as unknown as Parameters<typeof IdentityResolver.layer>[0]
          const error = yield* Effect.flip(Effect.scoped(Layer.build(IdentityResolver.layer(options))))
          assert.instanceOf(error, InvalidOptions)
          assert.strictEqual(error.option, option)
        })
    )
  })

  describe("layerConfig", () => {
    it.effect("has the defaults of layer", () =>
      Effect.gen(function*() {
        const identity = yield* resolveIn({}, { authorization: "Bearer abc" })
        assert.deepStrictEqual(identity, yield* resolveValue("Bearer abc"))
        assert.strictEqual((yield* resolveIn({}, {})).key, "shared")
        assert.strictEqual((yield* resolveIn({ MCP_AUTH_MODE: "", MCP_KEY_SECRET: "" }, {})).key, "shared")
      }))

    it.effect("reads every option", () =>
      Effect.gen(function*() {
        const env = {
          MCP_AUTH_MODE: "required",
          MCP_AUTH_HEADER: "X-Api-Key",
          MCP_AUTH_SCHEME: "raw",
          MCP_SHARED_KEY: "everyone",
          MCP_KEY_SECRET: "a secret of this test"
        }
        const identity = yield* resolveIn(env, { "x-api-key": "abc" })
        assert.strictEqual(identity.key, keyUnder("a secret of this test", "raw", "abc"))
        assert.instanceOf(yield* Effect.flip(resolveIn(env, {})), MissingCredentials)
        assert.strictEqual((yield* resolveIn({ ...env, MCP_AUTH_MODE: "disabled" }, {})).key, "everyone")
      }))

    it.effect("fails with a ConfigError that names the variable", () =>
      Effect.gen(function*() {
        for (
          const [name, value] of [
            ["MCP_AUTH_MODE", "REQUIRED"],
            ["MCP_AUTH_SCHEME", "digest"],
            ["MCP_AUTH_HEADER", "a b"],
            ["MCP_SHARED_KEY", "a b"],
            ["MCP_SHARED_KEY", "~a/b"]
          ] as const
        ) {
          const error = yield* Effect.flip(Layer.build(configured({ [name]: value })))
          assert.instanceOf(error, Config.ConfigError)
          assert.include(error.message, name)
        }
      }))
  })

  describe("layerIdentify", () => {
    it.effect("takes a string for a key without credentials", () =>
      Effect.gen(function*() {
        const identity = yield* resolveWith(() => Effect.succeed("tenant:acme"))
        assert.deepStrictEqual(identity, Identity.fromKey("tenant:acme"))
      }))

    it.effect("takes an Identity as it is", () =>
      Effect.gen(function*() {
        const identity = Identity.fromKey("user:1", { credentials: Credentials.bearer("abcdefgh") }).at("weather")
        assert.deepStrictEqual(yield* resolveWith(() => Effect.succeed(identity)), identity)
        assert.deepStrictEqual(yield* resolveWith(() => Effect.succeed(Identity.shared())), Identity.shared())
      }))

    it.effect("takes a key with what it takes to forward its credentials", () =>
      Effect.gen(function*() {
        for (
          const [auth, scheme, token, header] of [
            [{ token: "t" }, "raw", "t", "t"],
            [{ token: Redacted.make("t") }, "raw", "t", "t"],
            [{ token: "t", scheme: "bearer" }, "bearer", "t", "Bearer t"],
            [{ token: "dXNlcjpw", scheme: "basic" }, "basic", "dXNlcjpw", "Basic dXNlcjpw"],
            [{ token: "t", scheme: "bearer", header: "Token t" }, "bearer", "t", "Token t"],
            [{ token: "t", header: Redacted.make("Token t") }, "raw", "t", "Token t"],
            [{ token: "t", scheme: undefined, header: "" }, "raw", "t", "t"],
            [{ token: "t", expiresAt: undefined }, "raw", "t", "t"]
          ] as const
        ) {
          const identity = yield* resolveWith(() => Effect.succeed({ key: "user:1", auth }))
          assert.strictEqual(identity.key, "user:1")
          assert.isFalse(identity.shared)
          const credentials = Option.getOrThrow(identity.credentials)
          assert.strictEqual(credentials.scheme, scheme)
          assert.strictEqual(credentials.name, "authorization")
          assert.strictEqual(tokenOf(identity), token)
          assert.strictEqual(headerOf(identity), header)
        }
      }))

    it.effect.each([undefined, null, {}, { token: undefined }, { token: "" }, { token: Redacted.make("") }])(
      "takes no token, or an empty one, for no credentials: %j",
      (auth) =>
        Effect.gen(function*() {
          const identity = yield* resolveWith(() => Effect.succeed({ key: "user:1", auth }))
          assert.deepStrictEqual(identity, Identity.fromKey("user:1"))
        })
    )

    it.effect("takes when the credentials expire", () =>
      Effect.gen(function*() {
        const identity = yield* resolveWith(() => Effect.succeed({ key: "user:1", auth: { token: "t", expiresAt: 7 } }))
        assert.deepStrictEqual(Option.getOrThrow(identity.credentials).expiry, Option.some(7))
      }))

    it.effect("takes an Identity that says that it is verified", () =>
      Effect.gen(function*() {
        assert.isTrue((yield* resolveWith(() => Effect.succeed(Identity.fromKey("u", { verified: true })))).verified)
        assert.isFalse((yield* resolveWith(() => Effect.succeed("u"))).verified)
      }))

    it.effect("takes shared", () =>
      Effect.gen(function*() {
        assert.isTrue((yield* resolveWith(() => Effect.succeed({ key: "demo", shared: true }))).shared)
        assert.isFalse((yield* resolveWith(() => Effect.succeed({ key: "demo", shared: undefined }))).shared)
      }))

    const key = "user:1"
    const refused: ReadonlyArray<unknown> = [
      undefined,
      null,
      5,
      true,
      [],
      ["user:1"],
      () => "user:1",
      Symbol("user:1"),
      {},
      new Map([["key", "user:1"]]),
      Promise.resolve("user:1"),
      Option.some("user:1"),
      "",
      "SECRET\n",
      "x".repeat(257),
      { key: 5 },
      { key: "" },
      { key: "SECRET SECRET" },
      { key: Object("user:1") },
      { key, shared: "yes" },
      { key, shared: null },
      { key, auth: "SECRET" },
      { key, auth: ["SECRET"] },
      { key, auth: { token: 7 } },
      { key, auth: { token: ["SECRET"] } },
      { key, auth: { token: Redacted.make(7) } },
      { key, auth: { token: "SECRET", scheme: "zzz" } },
      { key, auth: { token: "SECRET", header: 7 } },
      { key, auth: { token: "SECRET", expiresAt: "7" } },
      { key, auth: { token: "SECRET", expiresAt: NaN } },
      { key, auth: { header: "Bearer sk-live-SECRET" } },
      "~weather/SECRET",
      { key: "~weather/SECRET" },
      // Made without the checks of its constructor: the key of somebody else
      new Identity({ ...Identity.fromKey("user:1"), key: Identity.fromKey("SECRET").at("weather").key }, {
        disableChecks: true
      }),
      new Identity({ ...Identity.fromKey("SECRET"), upstream: Option.some("weather") }, { disableChecks: true })
    ]

    it.effect.each(refused.map((identified) => [inWords(identified), identified]))(
      "refuses %s with InvalidIdentity, without repeating it",
      ([, identified]) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(resolveWith(() => Effect.succeed(identified as Identified)))
          assert.instanceOf(error, InvalidIdentity)
          assert.strictEqual(error.method, "identify")
          assert.notInclude(rendered(error), "SECRET")
        })
    )

    const token = "abcdefgh"
    const secret = "sk-live-SECRET"
    const telling: ReadonlyArray<Identified> = [
      { key: `bearer:${token}`, auth: { token } },
      { key: token, auth: { token: Redacted.make(token), scheme: "bearer" as const } },
      Identity.fromKey(`user:${token}`, { credentials: Credentials.bearer(token) }),
      { key: Buffer.from(secret).toString("base64"), auth: { token: secret } },
      { key: `user-${Buffer.from(secret).toString("base64url")}`, auth: { token: secret } },
      { key: `user-${Buffer.from(secret).toString("hex")}`, auth: { token: secret } },
      { key: `user-${Buffer.from(secret).toString("hex").toUpperCase()}`, auth: { token: secret } },
      { key: `user:${encodeURIComponent(`${secret} é`)}`, auth: { token: `${secret} é` } },
      { key: `user:${secret}`, auth: { token: "another-token", header: `ApiKey ${secret}` } }
    ]

    it.effect.each(telling.map((identified) => [inWords(identified), identified] as const))(
      "refuses a key that has its own token in it, as it is or encoded: %s",
      ([, identified]) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(resolveWith(() => Effect.succeed(identified)))
          assert.instanceOf(error, InvalidIdentity)
          assert.notInclude(rendered(error), token)
          assert.notInclude(rendered(error), secret)
        })
    )

    it.effect("takes a key with a token in it that is too short to tell from chance", () =>
      Effect.gen(function*() {
        const identity = yield* resolveWith(() => Effect.succeed({ key: "user:1", auth: { token: "1" } }))
        assert.strictEqual(identity.key, "user:1")
      }))

    it.effect.each([
      ["a text", "user:1"],
      ["undefined", undefined],
      ["a promise", Promise.resolve("user:1")],
      ["an object", { key: "user:1" }]
    ])("refuses a function that returns no Effect but %s", ([, returned]) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(resolveWith(() => returned as unknown as Effect.Effect<string>))
        assert.instanceOf(error, InvalidIdentity)
        assert.include(error.message, "Effect")
      }))

    it.effect("hands the very request to the function, and headers as { headers }", () =>
      Effect.gen(function*() {
        const seen: Array<unknown> = []
        const resolver = yield* Effect.provide(
          IdentityResolver,
          IdentityResolver.layerIdentify((request) => {
            seen.push(request)
            return Effect.succeed("user:1")
          })
        )
        const request = { headers: {}, user: "alice" }
        const map = new Map([["authorization", "Bearer abc"]])
        yield* resolver.resolve(request)
        yield* resolver.resolve(map)
        assert.strictEqual(seen[0], request)
        assert.deepStrictEqual(seen[1], { headers: map })
        assert.strictEqual((seen[1] as IdentityRequest).headers, map)
      }))

    it.effect("gives the function the services that the layer was built with", () => {
      class Users extends Context.Service<Users, { readonly find: (name: string) => Effect.Effect<string> }>()(
        "test/Users"
      ) {}
      const layer = IdentityResolver.layerIdentify((request) =>
        Effect.gen(function*() {
          const users = yield* Users
          return yield* users.find(EffectHeaders.fromInput(request.headers)["x-user"] ?? "nobody")
        })
      ).pipe(Layer.provide(Layer.succeed(Users, { find: (name) => Effect.succeed(`user:${name}`) })))
      return Effect.gen(function*() {
        const identity = yield* IdentityResolver.resolve({ headers: { "X-User": "alice" } })
        assert.strictEqual(identity.key, "user:alice")
      }).pipe(Effect.provide(layer))
    })

    it.effect("can go on from what the header says", () => {
      const layer = IdentityResolver.layerIdentify((request) =>
        Effect.map(IdentityResolver.resolve(request), (identity) => identity.at("tenant"))
      ).pipe(Layer.provide(IdentityResolver.layer({ mode: "required" })))
      return Effect.gen(function*() {
        const identity = yield* IdentityResolver.resolve({ headers: { authorization: "Bearer abc" } })
        assert.match(identity.key, /^~tenant\/bearer:/)
        assert.strictEqual(tokenOf(identity), "abc")
        assert.instanceOf(yield* Effect.flip(IdentityResolver.resolve({ headers: {} })), MissingCredentials)
      }).pipe(Effect.provide(layer))
    })

    it.effect("runs the function in the span of the request, not of the layer", () => {
      const layer = IdentityResolver.layerIdentify(() =>
        Effect.map(Effect.currentSpan, (span) => span.name).pipe(
          Effect.orDie
        )
      ).pipe(Layer.withSpan("startup"))
      return Effect.gen(function*() {
        const identity = yield* Effect.withSpan(IdentityResolver.resolve({ headers: {} }), "request")
        assert.strictEqual(identity.key, "request")
      }).pipe(Effect.provide(layer))
    })
  })

  describe("properties", () => {
    const keySecret = Redacted.make("a secret of this test")

    const spaces = Arbitrary.map(
      Arbitrary.array(Arbitrary.schema(Schema.Literals([" "])), { minLength: 1, maxLength: 4 }),
      (strings) => strings.join("")
    )
    const ows = joined([" ", "\t"], 0)

    // Few characters and short, so that equal tokens come up as well
    const token = joined([..."aA0-._~+/"], 1)
    const userPass = joined([..."aé:", " ", "\u{1f600}"], 0)
    const rawValue = joined([..."aA:,;=\"é~!"], 1)

    const wellFormed: Record<
      CredentialScheme,
      Arbitrary.Arbitrary<{ readonly value: string; readonly token: string }>
    > = {
      bearer: Arbitrary.map(
        Arbitrary.all([Arbitrary.schema(Schema.Literals(["Bearer", "bearer", "BEARER"])), spaces, token, ows]),
        ([scheme, space, text, end]) => ({ value: `${end}${scheme}${space}${text}==${end}`, token: `${text}==` })
      ),
      basic: Arbitrary.map(
        Arbitrary.all([Arbitrary.schema(Schema.Literals(["Basic", "basic", "BASIC"])), spaces, userPass, ows]),
        ([scheme, space, text, end]) => {
          const base64 = Buffer.from(`${text}:`).toString("base64")
          return { value: `${end}${scheme}${space}${base64}${end}`, token: base64 }
        }
      ),
      raw: Arbitrary.map(
        Arbitrary.all([rawValue, ows]),
        ([text, end]) => ({ value: `${end}${text}${end}`, token: text })
      )
    }

    for (const scheme of schemes) {
      it.effect.prop(
        `${scheme}: well-formed headers resolve, equal tokens to equal keys and others to others`,
        [wellFormed[scheme], wellFormed[scheme]],
        ([one, other]) =>
          Effect.gen(function*() {
            const options: IdentityResolverOptions = { mode: "required", scheme, keySecret }
            const first = yield* resolveValue(one.value, options)
            const second = yield* resolve(new Map([["Authorization", other.value]]), options)
            assert.strictEqual(tokenOf(first), one.token)
            assert.strictEqual(headerOf(first), one.value)
            assert.strictEqual(first.key === second.key, one.token === other.token)
          }),
        { arbitrary: { seed } }
      )
    }

    const hostile = joined(
      ["SECRET", "Bearer", "Basic", " ", "\t", "\n", "\r", "\0", "\u007f", "=", ",", ";", "\"", "é", "\u00a0", "\u2028"]
        .concat([
          "\ud800",
          "\udc00",
          "\u{1f600}",
          "\ufeff",
          "dXNlcjpw",
          "%00",
          "__proto__",
          "${7*7}",
          "x".repeat(4096)
        ]),
      1
    )
    const anything = Schema.String.check(Schema.isNonEmpty())

    for (const scheme of schemes) {
      it.effect.prop(
        `${scheme}: hostile values never crash it, never are shared, never come out again`,
        [hostile, anything],
        (values) =>
          Effect.gen(function*() {
            for (const value of values) {
              const result = yield* Effect.result(resolveValue(value, { scheme }))
              if (Result.isSuccess(result)) {
                assert.isFalse(result.success.shared)
                assert.strictEqual(headerOf(result.success), value)
                assert.notInclude(rendered(result.success), "SECRET")
              } else {
                assert.instanceOf(result.failure, MalformedCredentials)
                assert.notInclude(rendered(result.failure), "SECRET")
              }
            }
          }),
        { arbitrary: { seed } }
      )
    }

    it.effect.prop("requests of any JSON never crash it", [Schema.Json], ([json]) =>
      Effect.gen(function*() {
        for (const request of [json, { headers: json }, { headers: { authorization: json } }]) {
          const result = yield* Effect.result(resolve(request, { mode: "required" }))
          if (Result.isFailure(result)) {
            assert.include(["MissingCredentials", "MalformedCredentials"], result.failure._tag)
          }
        }
      }), { arbitrary: { seed } })
  })
})
