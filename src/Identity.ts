/**
 * Who a session belongs to.
 *
 * An {@link Identity} is a {@link SessionKey} that is safe to log, the {@link Credentials} that were presented with it
 * (always `Redacted`), and whether it is the one that anonymous callers share. Two identities with equal keys own the
 * same session: pool and registry compare keys only.
 */
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as Struct from "effect/Struct"
import { expiryOf } from "./internal/jwt.ts"
import * as Keys from "./internal/keys.ts"
import { holds } from "./internal/places.ts"
import { challenge, respond } from "./internal/problem.ts"

/**
 * The name of a session's owner: 1 to 256 characters of visible ASCII, safe to log. Never put a credential in it.
 *
 * @category models
 */
export const SessionKey = Schema.String.check(Schema.isPattern(Keys.sessionKey)).pipe(Schema.brand("SessionKey"))

/**
 * The name of a session's owner: a string that {@link SessionKey} has accepted, in no other way different from it.
 *
 * @category models
 */
export type SessionKey = typeof SessionKey.Type

/**
 * A {@link SessionKey} that a principal may have: any but those that begin with `~`, a name and `/`, as in
 * `~weather/alice`. Those are what {@link Identity.at} makes, so that nobody's key is somebody else's at an upstream.
 *
 * Keys that come from outside are decoded with this one.
 *
 * @category models
 */
export const PrincipalKey = SessionKey.check(Schema.isPattern(Keys.principalKey))

/**
 * The name of an upstream, as {@link Identity.at} takes it: 1 to 128 characters, none of which is a control or format
 * character, the end of a line, or half of one. `My Server` and `github.com/acme/weather` are names, too.
 *
 * @category models
 */
export const UpstreamName = Schema.String.check(Schema.isPattern(Keys.upstreamName))

/**
 * How a header carries a credential: `bearer` (RFC 6750), `basic` (RFC 7617), or `raw`, the header's whole value.
 *
 * @category models
 */
export const CredentialScheme = Schema.Literals(["bearer", "basic", "raw"])

/**
 * How a header carries a credential: `"bearer"`, `"basic"` or `"raw"`.
 *
 * @category models
 */
export type CredentialScheme = typeof CredentialScheme.Type

/**
 * What a caller presented to prove who it is.
 *
 * @category models
 */
export class Credentials extends Schema.Class<Credentials>("effect-mcp-sessions/Credentials")({
  /** How the header carries them. */
  scheme: CredentialScheme,
  /** The credential itself. */
  token: Schema.Redacted(Schema.String),
  /** The header's full value as it was received, so that it can be forwarded as it came. */
  header: Schema.Redacted(Schema.String),
  /** The lower-case name of the header that they came in. */
  name: Schema.String,
  /** When they expire, in milliseconds since the epoch, if whoever made them knows. See {@link Credentials.expiry}. */
  expiresAt: Schema.optional(Schema.Finite)
}) {
  #expiry: Option.Option<number> | undefined

  /**
   * A bearer token, as if it had come in `Authorization: Bearer …`. `expiresAt` is in milliseconds since the epoch.
   */
  static bearer(
    token: string | Redacted.Redacted,
    options?: { readonly expiresAt?: number | undefined }
  ): Credentials {
    const value = Redacted.isRedacted(token) ? Redacted.value(token) : token
    return new Credentials({
      scheme: "bearer",
      token: Redacted.make(value),
      header: Redacted.make(`Bearer ${value}`),
      name: "authorization",
      expiresAt: options?.expiresAt
    })
  }

  /**
   * When they say that they expire, in milliseconds since the epoch: `expiresAt`, else the `exp` of a token that is a
   * JWT. Nobody has verified that, so it decides nothing but which credentials of one key are kept: see
   * {@link Identity.newest}.
   */
  get expiry(): Option.Option<number> {
    return this.#expiry ??= Option.orElse(
      Option.fromUndefinedOr(this.expiresAt),
      () => expiryOf(Redacted.value(this.token))
    )
  }
}

/**
 * The claims of a token by their names, as in RFC 7519 section 4 and RFC 7662 section 2.2.
 *
 * @category models
 */
export const Claims = Schema.Record(Schema.String, Schema.Unknown)

/**
 * The claims of a token by their names.
 *
 * @category models
 */
export type Claims = typeof Claims.Type

const noClaims = Redacted.make<Claims>(Object.freeze({}), { label: "claims" })
const noScopes: ReadonlyArray<string> = Object.freeze([])

/**
 * The owner of a session.
 *
 * @category models
 */
export class Identity extends Schema.Class<Identity>("effect-mcp-sessions/Identity")(
  Schema.Struct({
    /** The name of the owner, and what pool and registry know it by. At an upstream it is `~<upstream>/<principal>`. */
    key: SessionKey,
    /** What was presented, to be sent on. Who the owner is does not depend on them. */
    credentials: Schema.Option(Credentials),
    /** Whether this is the identity that all anonymous callers have in common. */
    shared: Schema.Boolean,
    /** The upstream that {@link Identity.at} chose. None by default. */
    upstream: Schema.Option(UpstreamName).pipe(Schema.withConstructorDefault(Effect.succeedNone)),
    /**
     * Whether somebody has verified that the caller is who the key says. False by default, as a header proves
     * nothing.
     */
    verified: Schema.Boolean.pipe(Schema.withConstructorDefault(Effect.succeed(false))),
    /**
     * What the one who verified the caller says of it: the claims of its token. None by default. They may name and
     * describe a person, so they are `Redacted`: an identity stays safe to log.
     */
    claims: Schema.Redacted(Claims).pipe(Schema.withConstructorDefault(Effect.sync(() => noClaims))),
    /** What the caller was granted: scopes of RFC 6749 section 3.3. None by default. */
    scopes: Schema.Array(Schema.String).pipe(Schema.withConstructorDefault(Effect.sync(() => noScopes))),
    /** Until when that was verified to hold, in milliseconds since the epoch. None by default. */
    expiresAt: Schema.Option(Schema.Finite).pipe(Schema.withConstructorDefault(Effect.succeedNone))
  }).check(Schema.makeFilter(
    ({ key, upstream }) => Keys.isOf(key, Option.getOrUndefined(upstream)),
    { expected: "a key that is ~<upstream>/<principal> if there is an upstream, and only then" }
  ))
) {
  /**
   * An identity known by its key alone, such as a tenant or a user id. `verified` says that somebody has verified it,
   * by default false; `claims`, `scopes` and `expiresAt` (milliseconds since the epoch) are what they found.
   *
   * Throws {@link InvalidIdentity} when `key` is not a {@link PrincipalKey}: keys that come from outside are decoded
   * with that schema first, or come by way of `IdentityResolver.layerIdentify`, which fails with a typed error
   * instead.
   */
  static fromKey(
    key: string,
    options?: {
      readonly credentials?: Credentials | undefined
      readonly verified?: boolean | undefined
      readonly claims?: Claims | undefined
      readonly scopes?: ReadonlyArray<string> | undefined
      readonly expiresAt?: number | undefined
    }
  ): Identity {
    const claims = options?.claims
    return fromPrincipal("fromKey", key, {
      credentials: Option.fromUndefinedOr(options?.credentials),
      shared: false,
      verified: options?.verified ?? false,
      claims: claims === undefined ? noClaims : Redacted.make(claims, { label: "claims" }),
      scopes: options?.scopes ?? noScopes,
      expiresAt: Option.fromUndefinedOr(options?.expiresAt)
    })
  }

  /**
   * The identity that all anonymous callers have in common. The default key is `"shared"`.
   *
   * Throws {@link InvalidIdentity} when `key` is not a {@link PrincipalKey}.
   */
  static shared(key = "shared"): Identity {
    return fromPrincipal("shared", key, {
      credentials: Option.none(),
      shared: true,
      verified: false,
      claims: noClaims,
      scopes: noScopes,
      expiresAt: Option.none()
    })
  }

  /**
   * Which of two identities with one key is kept: the one that is known, or the one that comes.
   *
   * The newest credentials are, for a token is rotated while a session lives. But requests overtake one another, so
   * credentials that say when they expire are not replaced by some that expire sooner, nor any by some that are expired
   * already, unless they are expired themselves and for longer. `comes` is kept where it says so:
   *
   * | known ↓, comes →      | none  | expires later or at once | expires sooner | has expired | says nothing |
   * |-----------------------|-------|--------------------------|----------------|-------------|--------------|
   * | none                  | known | comes                    | comes          | comes       | comes        |
   * | says when it expires  | known | comes                    | known          | known       | comes        |
   * | has expired           | known | comes                    |                | the later   | comes        |
   * | says nothing          | known | comes                    | comes          | known       | comes        |
   *
   * `clock` tells what has expired, and is asked for nothing else.
   */
  static newest(known: Identity, comes: Identity, clock: Pick<Clock.Clock, "currentTimeMillisUnsafe">): Identity {
    if (comes === known || Option.isNone(comes.credentials)) return known
    if (Option.isNone(known.credentials) || comes.credentials.value === known.credentials.value) return comes
    const comesAt = comes.credentials.value.expiry
    if (Option.isNone(comesAt)) return comes
    const knownUntil = known.credentials.value.expiry
    const least = Option.isSome(knownUntil) ? knownUntil.value : clock.currentTimeMillisUnsafe()
    return comesAt.value >= least ? comes : known
  }

  /**
   * The key without the upstream: the principal's own.
   */
  get principal(): SessionKey {
    return Option.isNone(this.upstream)
      ? this.key
      : this.key.slice(Keys.prefix(this.upstream.value).length) as SessionKey
  }

  /**
   * The same principal at another upstream, which replaces the present one if there is one: one pool serves many
   * servers. `upstream` is `name`, the key becomes `~<name>/<principal>`, the rest stays. In the key, what is not
   * visible ASCII, `/` and `%` are percent-encoded: a name with spaces is `~My%20Server/alice`.
   *
   * Throws {@link InvalidIdentity} when `name` is not an {@link UpstreamName}, or the key would have more than 256
   * characters.
   */
  at(name: string): Identity {
    if (!Keys.isUpstreamName(name)) {
      throw new InvalidIdentity({
        issue: "the name of an upstream must be 1 to 128 characters, none of them a control character",
        method: "at"
      })
    }
    const key = Keys.prefix(name) + this.principal
    if (!isSessionKey(key)) {
      throw new InvalidIdentity({
        issue: "the upstream's name, as it is encoded, and the key have more than 254 characters",
        method: "at"
      })
    }
    return makeIdentity({ ...this, key, upstream: Option.some(name) })
  }
}

// Not `Schema.is`, which costs as much as the rest of making an identity
const isSessionKey = (key: string): key is SessionKey => Keys.sessionKey.test(key)
const isPrincipalKey = (key: string): key is SessionKey => Keys.principalKey.test(key)

type Fields = Pick<
  Identity,
  "key" | "credentials" | "shared" | "upstream" | "verified" | "claims" | "scopes" | "expiresAt"
>

const makeIdentity = (fields: Fields): Identity => new Identity(fields, { disableChecks: true })

const fromPrincipal = (
  method: string,
  key: string,
  fields: Omit<Fields, "key" | "upstream">
): Identity => {
  if (!isPrincipalKey(key)) throw new InvalidIdentity({ issue: Keys.issueOf(key), method })
  return makeIdentity({ ...fields, key, upstream: Option.none() })
}

// -----------------------------------------------------------------------------
// Errors
// -----------------------------------------------------------------------------

/**
 * Credentials are required and the request has none: the header is absent or empty. Answers 401.
 *
 * @category errors
 */
export class MissingCredentials
  extends Schema.TaggedError<MissingCredentials>("effect-mcp-sessions/MissingCredentials")("MissingCredentials", {
    /** The lower-case name of the header that was looked for. */
    header: Schema.String,
    /** How it would have carried them. Without one, the challenge is for a bearer token. */
    scheme: Schema.optionalKey(CredentialScheme)
  })
{
  readonly module = "IdentityResolver"
  readonly method = "resolve"
  readonly reference = "missing-credentials"

  override get message(): string {
    return `The request has no credentials in its "${this.header}" header. Send ${expected(this.scheme)} in it.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, {
      status: 401,
      title: "Credentials are required",
      headers: { "www-authenticate": challenge(this.scheme) }
    })
  }
}

/**
 * The header is there and does not hold exactly one credential of the expected scheme. Answers 401, in every mode: a
 * credential that can't be read is never taken for no credential.
 *
 * @category errors
 */
export class MalformedCredentials
  extends Schema.TaggedError<MalformedCredentials>("effect-mcp-sessions/MalformedCredentials")("MalformedCredentials", {
    /** The lower-case name of the header. */
    header: Schema.String,
    /** How it should carry them. */
    scheme: CredentialScheme,
    /** What is wrong with it, without its value. */
    issue: Schema.String
  })
{
  readonly module = "IdentityResolver"
  readonly method = "resolve"
  readonly reference = "malformed-credentials"

  override get message(): string {
    return `The "${this.header}" header can't be read: ${this.issue}. Send ${expected(this.scheme)} in it.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, {
      status: 401,
      title: "The credentials can't be read",
      // RFC 6750 section 3.1
      headers: { "www-authenticate": `${challenge(this.scheme)}, error="invalid_token"` }
    })
  }
}

// Of RFC 6750 section 3: for developers, without a quotation mark, and without a word of the token
const refusals = {
  malformed: "the token can't be read",
  algorithm: "the token is not signed in a way that is accepted",
  key: "the token is signed with a key that its issuer does not have",
  signature: "the signature of the token is not valid",
  issuer: "the token is of another issuer",
  audience: "the token is for another audience",
  expired: "the token has expired",
  early: "the token is not valid yet",
  claims: "the token lacks a claim, or has one that can't be read",
  bound: "the token is bound to a key of its holder, which is not checked here",
  inactive: "the token is not active"
} as const

/**
 * The caller presented a token that is not valid: it has expired, was revoked, was forged, or is meant for another.
 * Answers 401 and a challenge with `invalid_token` (RFC 6750 section 3.1), so that a client can get another.
 *
 * @category errors
 */
export class InvalidToken extends Schema.TaggedError<InvalidToken>("effect-mcp-sessions/InvalidToken")("InvalidToken", {
  /** Why. Callers see it, in words. */
  reason: Schema.Literals(Struct.keys(refusals))
}) {
  readonly module = "IdentityResolver"
  readonly method = "resolve"
  readonly reference = "invalid-token"

  override get message(): string {
    return `The caller's token was refused: ${refusals[this.reason]}. Get a new one from its issuer.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, {
      status: 401,
      title: "The token is not valid",
      headers: {
        "www-authenticate": `${challenge("bearer")}, error="invalid_token", error_description="${
          refusals[this.reason]
        }"`
      }
    })
  }
}

/**
 * Code of this server made something that can't be an identity: a custom `identify` returned neither a key nor
 * `{ key, auth?, shared? }`, or a key breaks the rules of {@link PrincipalKey}. Answers 500.
 *
 * @category errors
 */
export class InvalidIdentity
  extends Schema.TaggedError<InvalidIdentity>("effect-mcp-sessions/InvalidIdentity")("InvalidIdentity", {
    /** What is wrong with it, without its value. */
    issue: Schema.String,
    /** The function that refused it: `identify` (the default), `fromKey`, `shared` or `at`. */
    method: Schema.String.pipe(Schema.withConstructorDefault(Effect.succeed("identify")))
  })
{
  readonly module = "Identity"
  readonly reference = "invalid-identity"

  override get message(): string {
    return this.method === "identify"
      ? `identify: ${this.issue}. Return a session key, { key, auth?, shared? } or an Identity.`
      : `Identity.${this.method}: ${this.issue}. Decode keys that come from outside with the PrincipalKey schema first.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The caller could not be identified" })
  }
}

/**
 * The caller is known and may not have this: for an `identify` of your own to fail with. Answers 403 and a challenge
 * with `insufficient_scope` (RFC 6750 section 3.1), so that a client can ask for more.
 *
 * @category errors
 */
export class AccessDenied extends Schema.TaggedError<AccessDenied>("effect-mcp-sessions/AccessDenied")("AccessDenied", {
  /**
   * What the credentials would have to cover: scopes of RFC 6749 section 3.3, with a space between two. Callers see
   * it.
   */
  scope: Schema.optionalKey(
    Schema.String.check(Schema.isPattern(/^[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*$/))
  ),
  /** What is protected: printable ASCII, by default `"mcp"`. Callers see it. */
  realm: Schema.String.check(Schema.isPattern(/^[\x20-\x7e]*$/)).pipe(
    Schema.withConstructorDefault(Effect.succeed("mcp"))
  ),
  /** How the caller presents credentials. The default is `"bearer"`. */
  scheme: CredentialScheme.pipe(Schema.withConstructorDefault(Effect.succeed("bearer" as const)))
}) {
  readonly module = "IdentityResolver"
  readonly method = "resolve"
  readonly reference = "access-denied"

  override get message(): string {
    const missing = this.scope === undefined ? "what is asked for" : `the scope "${this.scope}"`
    return `The caller may not do this. Present credentials that cover ${missing}.`
  }

  [HttpServerRespondable.symbol]() {
    const scope = this.scope === undefined ? "" : `, scope="${this.scope}"`
    return respond(this, {
      status: 403,
      title: "Access is denied",
      headers: { "www-authenticate": `${challenge(this.scheme, this.realm)}, error="insufficient_scope"${scope}` }
    })
  }
}

// Whatever it holds, it is encoded as nothing
const Hidden = Schema.Redacted(Schema.Unknown).pipe(Schema.encodeTo(Schema.Null, {
  decode: SchemaGetter.transform(() => Redacted.make<unknown>(null)),
  encode: SchemaGetter.transform(() => null)
}))

/**
 * What tells who the caller is can't be asked now: for an `identify` of your own to fail with when its database or
 * issuer is down. Answers 503 with `Retry-After`.
 *
 * @category errors
 */
export class IdentityUnavailable
  extends Schema.TaggedError<IdentityUnavailable>("effect-mcp-sessions/IdentityUnavailable")("IdentityUnavailable", {
    /** When callers may try again, in whole seconds of at least 1. The default is 10 seconds. */
    retryAfter: Schema.Duration.pipe(Schema.withConstructorDefault(Effect.succeed(Duration.seconds(10)))),
    /** Why, for whoever handles the error: it is in no message, no answer and no encoding. */
    cause: Schema.optionalKey(Hidden)
  })
{
  readonly module = "IdentityResolver"
  readonly method = "resolve"
  readonly reference = "identity-unavailable"

  override get message(): string {
    return "Who the caller is can't be found out now. Try again later, and check what identify asks."
  }

  [HttpServerRespondable.symbol]() {
    const seconds = Math.ceil(Duration.toSeconds(this.retryAfter))
    return respond(this, {
      status: 503,
      title: "The caller can't be identified now",
      headers: Number.isFinite(seconds) ? { "retry-after": String(Math.max(1, seconds)) } : undefined
    })
  }
}

/**
 * An `identify` of your own broke, or failed with an error that is not an {@link IdentityError}. Answers as that error
 * does, if it is an `HttpServerRespondable`; else 500, and the log has the names and places of what went wrong.
 *
 * @category errors
 */
export class IdentifyFailed
  extends Schema.TaggedError<IdentifyFailed>("effect-mcp-sessions/IdentifyFailed")("IdentifyFailed", {
    /** Whether it failed with an error of its own, died of a defect, or interrupted itself. */
    reason: Schema.Literals(["failed", "died", "interrupted"]),
    /** The name or tag of what it failed with, if it has one. */
    name: Schema.optionalKey(Schema.String),
    /** What it failed with, for whoever handles the error: it is in no message, no answer and no encoding. */
    error: Hidden
  })
{
  readonly module = "IdentityResolver"
  readonly method = "identify"
  readonly reference = "identify-failed"

  override get message(): string {
    const how = { failed: "failed with an error of its own", died: "died", interrupted: "interrupted itself" }
    // Every error has a name of its own, too
    const name = Object.hasOwn(this, "name") ? ` (${this.name})` : ""
    return `identify ${how[this.reason]}${name}. ` +
      "Let it fail with an IdentityError, or with an error that is HttpServerRespondable."
  }

  [HttpServerRespondable.symbol]() {
    const failed = respond(this, { status: 500, title: "The caller could not be identified" })
    const error = Redacted.value(this.error)
    return this.reason === "failed" && holds(HttpServerRespondable.isRespondable, error)
      ? Effect.catchCause(HttpServerRespondable.toResponse(error), () => failed)
      : failed
  }
}

/**
 * What a request's identity fails with.
 *
 * @category errors
 */
export type IdentityError =
  | MissingCredentials
  | MalformedCredentials
  | InvalidToken
  | InvalidIdentity
  | AccessDenied
  | IdentityUnavailable
  | IdentifyFailed

/**
 * What a request's identity fails with, as a schema.
 *
 * @category errors
 */
export const IdentityError = Schema.Union([
  MissingCredentials,
  MalformedCredentials,
  InvalidToken,
  InvalidIdentity,
  AccessDenied,
  IdentityUnavailable,
  IdentifyFailed
])

const expected = (scheme: CredentialScheme | undefined): string => {
  switch (scheme) {
    case "basic":
      return "`Basic` and the base64 of user:password (RFC 7617)"
    case "raw":
      return "the credential alone"
    default:
      return "`Bearer` and one token (RFC 6750)"
  }
}
