/**
 * How the tokens of callers are verified: the options of `IdentityResolver.layerJwt` and
 * `IdentityResolver.layerIntrospection`.
 */
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type { Claims } from "./Identity.ts"
import * as Options from "./internal/options.ts"

/**
 * What both ways of verifying a token have in common.
 *
 * @category models
 */
export interface TokenOptions {
  /**
   * Who a token is about, of its claims that have been verified; `undefined` refuses it. The default is `sub`. The key
   * is a digest of it and the issuer, so it may be anything that stays the same from token to token and is never given
   * to somebody else: no e-mail address that is.
   */
  readonly principal?: ((claims: Claims) => string | undefined) | undefined
  /**
   * Scopes of RFC 6749 section 3.3 that each caller must have been granted, else `AccessDenied`. The default is none.
   */
  readonly scopes?: ReadonlyArray<string> | undefined
  /**
   * What keys are digested under, at best 32 random bytes. The default is random and the same for all resolvers of the
   * process; give one for keys that stay the same across restarts and machines.
   */
  readonly keySecret?: Redacted.Redacted | undefined
}

/**
 * How `IdentityResolver.layerJwt` verifies a token.
 *
 * @category models
 */
export interface JwtOptions extends TokenOptions {
  /**
   * Who signs the tokens: their `iss`, character for character. An `https` URL without query and fragment (RFC 8414
   * section 2), or `http` on loopback; with `jwks` any text.
   */
  readonly issuer: string
  /** Whom they are for: one of these must be among their `aud` (RFC 7519 section 4.1.3). */
  readonly audience: string | ReadonlyArray<string>
  /**
   * Where the issuer's keys are (RFC 7517): an `https` URL, or `http` on loopback; or the key set itself, which is
   * never fetched. The default is what the issuer's metadata says (RFC 8414, OpenID Connect Discovery 1.0).
   */
  readonly jwks?: string | URL | { readonly keys: ReadonlyArray<object> } | undefined
  /**
   * How tokens may be signed (RFC 7518 section 3.1, RFC 8037). Only with private keys, never with a secret that is
   * shared. The default is RSA, ECDSA and Ed25519, whichever the key is for.
   */
  readonly algorithms?: ReadonlyArray<JwtAlgorithm> | undefined
  /** By how much the issuer's clock may differ from ours, for `exp` and `nbf`. The default is 0. */
  readonly clockTolerance?: Duration.Input | undefined
}

/**
 * How `IdentityResolver.layerIntrospection` has a token verified.
 *
 * @category models
 */
export interface IntrospectionOptions extends TokenOptions {
  /** The introspection endpoint (RFC 7662 section 2): an `https` URL, or `http` on loopback. */
  readonly endpoint: string | URL
  /** Who asks. It authenticates with HTTP Basic (RFC 6749 section 2.3.1). */
  readonly clientId: string
  /** With which secret. */
  readonly clientSecret: Redacted.Redacted
  /**
   * Who issues the tokens. An answer with another `iss` is refused. The default is the `iss` of each answer, or the
   * endpoint where it has none, and no check.
   */
  readonly issuer?: string | undefined
  /**
   * Whom the tokens are for: one of these must be among the `aud` of the answer. By default every token that the
   * endpoint calls active is taken, also one that was issued for another server: leave it out only where the endpoint
   * looks at that itself.
   */
  readonly audience?: string | ReadonlyArray<string> | undefined
  /**
   * How long an answer is good for, unless the token expires sooner: as long a revoked token may go on. 0 asks each
   * time. The default is 30 seconds.
   */
  readonly timeToLive?: Duration.Input | undefined
}

/**
 * How a JWT may be signed: with a private key, so that whoever can verify can't sign.
 *
 * @category models
 */
export const JwtAlgorithm = Schema.Literals([
  "RS256",
  "RS384",
  "RS512",
  "PS256",
  "PS384",
  "PS512",
  "ES256",
  "ES384",
  "ES512",
  "EdDSA",
  "Ed25519"
])

/**
 * How a JWT may be signed: with a private key, so that whoever can verify can't sign.
 *
 * @category models
 */
export type JwtAlgorithm = typeof JwtAlgorithm.Type

// -----------------------------------------------------------------------------
// Their declarations
// -----------------------------------------------------------------------------

const isText = (value: unknown): value is string => typeof value === "string" && value.trim() !== ""

const text = Options.custom<string, string>({
  rule: "a string that is not empty",
  read: Option.liftPredicate(isText),
  config: Config.String
})

const words = (variable: string) =>
  Config.map(Config.String(variable), (list) => list.split(/[\s,]+/).filter((word) => word !== ""))

/**
 * @internal
 */
export const listOf = <A extends string>(rule: string, is: (value: unknown) => value is A) =>
  Options.custom<ReadonlyArray<A>, ReadonlyArray<A>>({
    rule,
    read: Option.liftPredicate((value): value is ReadonlyArray<A> =>
      Array.isArray(value) && value.length > 0 && value.every(is)
    ),
    config: words
  })

/**
 * @internal
 */
export const audience = Options.custom<string | ReadonlyArray<string>, ReadonlyArray<string>>({
  rule: "a string that is not empty, or some of them",
  read: (value) => {
    const list: ReadonlyArray<unknown> = Array.isArray(value) ? value : [value]
    return list.length > 0 && list.every(isText) ? Option.some([...list]) : Option.none()
  },
  config: words
})

/**
 * A scope of RFC 6749 section 3.3.
 *
 * @internal
 */
export const isScope = (value: unknown): value is string =>
  typeof value === "string" && /^[\x21\x23-\x5b\x5d-\x7e]+$/.test(value)

/**
 * @internal
 */
export const scopes = Options.custom<ReadonlyArray<string>, ReadonlyArray<string>>({
  rule: "a list of scopes (RFC 6749 section 3.3)",
  read: Option.liftPredicate((value): value is ReadonlyArray<string> => Array.isArray(value) && value.every(isScope)),
  config: words
})

const loopback = /^(?:localhost|127(?:\.\d+){3}|\[::1\])$/

/** Whether nobody on the way can answer in its name. */
export const isTrusted = (url: URL): boolean =>
  (url.protocol === "https:" || (url.protocol === "http:" && loopback.test(url.hostname))) &&
  url.username === "" && url.password === ""

const toUrl = (value: unknown): Option.Option<URL> =>
  Option.filter(
    value instanceof URL ? Option.some(value) : isText(value) && URL.canParse(value)
      ? Option.some(new URL(value))
      : Option.none(),
    isTrusted
  )

const url = Options.custom<string | URL, URL>({
  rule: "an https URL, or http on loopback, without a user",
  read: toUrl,
  config: Config.String
})

const jwks = Options.custom<NonNullable<JwtOptions["jwks"]>, URL | { readonly keys: ReadonlyArray<object> }>({
  rule: `${url.rule}, or a key set`,
  read: (value) => isKeySet(value) ? Option.some(value) : toUrl(value),
  config: Config.String
})

const isKeySet = (value: unknown): value is { readonly keys: ReadonlyArray<object> } =>
  Predicate.hasProperty(value, "keys") && Array.isArray(value.keys) && value.keys.every(Predicate.isObject)

const secret = Options.schema(
  Schema.Redacted(Schema.NonEmptyString),
  "a Redacted string that is not empty",
  { isSecret: true }
)

const common = {
  principal: Options.optional(
    Options.custom<(claims: Claims) => string | undefined, (claims: Claims) => unknown>({
      rule: "a function",
      read: Option.liftPredicate((value): value is (claims: Claims) => unknown => typeof value === "function")
    }),
    { shown: "the subject" }
  ),
  scopes: Options.optional(scopes),
  keySecret: Options.optional(secret, { aliases: ["MCP_AUTH_KEY_SECRET"], shown: "random for the process" })
}

/**
 * @internal
 */
export const jwt = Options.declare<JwtOptions>()({ module: "IdentityResolver", variables: "MCP_JWT" }, {
  issuer: Options.required(text),
  audience: Options.required(audience),
  jwks: Options.optional(jwks, { shown: "the issuer's" }),
  algorithms: Options.withDefault(
    listOf(`a list of ${JwtAlgorithm.literals.join(", ")}`, Schema.is(JwtAlgorithm)),
    JwtAlgorithm.literals,
    { shown: "all of private keys" }
  ),
  clockTolerance: Options.withDefault(Options.patience, 0),
  ...common
})

/**
 * @internal
 */
export const introspection = Options.declare<IntrospectionOptions>()(
  { module: "IdentityResolver", variables: "MCP_INTROSPECTION" },
  {
    endpoint: Options.required(url),
    clientId: Options.required(text),
    clientSecret: Options.required(secret),
    issuer: Options.optional(text, { shown: "the endpoint" }),
    audience: Options.optional(audience, { shown: "any" }),
    timeToLive: Options.withDefault(Options.patience, "30 seconds"),
    ...common
  }
)

/**
 * @internal
 */
export type Jwt = Options.Parsed<typeof jwt.declaration>

/**
 * @internal
 */
export type Introspection = Options.Parsed<typeof introspection.declaration>
