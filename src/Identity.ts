/**
 * Who a session belongs to.
 *
 * An {@link Identity} is a {@link SessionKey} that is safe to log, the {@link Credentials} that were presented with it
 * (always `Redacted`), and whether it is the one that anonymous callers share. Two identities with equal keys own the
 * same session: pool and registry compare keys only.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import { respond } from "./internal/problem.ts"

/**
 * The name of a session's owner: 1 to 256 characters of visible ASCII, safe to log. Never put a credential in it.
 *
 * @category models
 */
export const SessionKey = Schema.String.check(Schema.isPattern(/^[\x21-\x7e]{1,256}$/)).pipe(
  Schema.brand("SessionKey")
)

/**
 * @category models
 */
export type SessionKey = typeof SessionKey.Type

/**
 * How a header carries a credential: `bearer` (RFC 6750), `basic` (RFC 7617), or `raw`, the header's whole value.
 *
 * @category models
 */
export const CredentialScheme = Schema.Literals(["bearer", "basic", "raw"])

/**
 * @category models
 */
export type CredentialScheme = typeof CredentialScheme.Type

/**
 * What a caller presented to prove who it is.
 *
 * `token` is the credential itself, `header` the full value as it was received (so that it can be forwarded as it
 * came), `name` the lower-case name of the header that it came in.
 *
 * @category models
 */
export class Credentials extends Schema.Class<Credentials>("effect-mcp-sessions/Credentials")({
  scheme: CredentialScheme,
  token: Schema.Redacted(Schema.String),
  header: Schema.Redacted(Schema.String),
  name: Schema.String
}) {
  /**
   * A bearer token, as if it had come in `Authorization: Bearer …`.
   */
  static bearer(token: string | Redacted.Redacted): Credentials {
    const value = Redacted.isRedacted(token) ? Redacted.value(token) : token
    return new Credentials({
      scheme: "bearer",
      token: Redacted.make(value),
      header: Redacted.make(`Bearer ${value}`),
      name: "authorization"
    })
  }
}

/**
 * The owner of a session.
 *
 * @category models
 */
export class Identity extends Schema.Class<Identity>("effect-mcp-sessions/Identity")({
  key: SessionKey,
  credentials: Schema.Option(Credentials),
  shared: Schema.Boolean
}) {
  /**
   * An identity known by its key alone, such as a tenant or a user id.
   *
   * Throws {@link InvalidIdentity} when `key` is not a {@link SessionKey}: for keys that come from outside, decode them
   * with the `SessionKey` schema first, or let `IdentityResolver.layerIdentify` do it.
   */
  static fromKey(key: string, options?: { readonly credentials?: Credentials | undefined }): Identity {
    return make("fromKey", key, Option.fromUndefinedOr(options?.credentials), false)
  }

  /**
   * The identity that all anonymous callers have in common. The default key is `"shared"`.
   */
  static shared(key = "shared"): Identity {
    return make("shared", key, Option.none(), true)
  }

  /**
   * The same principal at another upstream: the key becomes `"<name>/<key>"`, the rest stays. This is how one pool
   * serves many servers.
   *
   * Throws {@link InvalidIdentity} when `name` is empty or has a `/` in it (two principals could end up with one key),
   * or when the result is not a {@link SessionKey}.
   */
  at(name: string): Identity {
    if (name === "" || name.includes("/")) {
      throw new InvalidIdentity({ issue: "the name given to at() must not be empty or contain \"/\"", method: "at" })
    }
    return make("at", `${name}/${this.key}`, this.credentials, this.shared)
  }
}

const isSessionKey = Schema.is(SessionKey)

const make = (method: string, key: string, credentials: Option.Option<Credentials>, shared: boolean): Identity => {
  if (!isSessionKey(key)) {
    throw new InvalidIdentity({ issue: "a session key must be 1 to 256 characters of visible ASCII", method })
  }
  return new Identity({ key, credentials, shared }, { disableChecks: true })
}

// -----------------------------------------------------------------------------
// Errors
// -----------------------------------------------------------------------------

/**
 * Credentials are required and the request has none: the header is absent or empty. Answers 401.
 *
 * @category errors
 */
export class MissingCredentials extends Schema.TaggedError<MissingCredentials>()("MissingCredentials", {
  /** The lower-case name of the header that was looked for. */
  header: Schema.String,
  scheme: Schema.optionalKey(CredentialScheme)
}) {
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
export class MalformedCredentials extends Schema.TaggedError<MalformedCredentials>()("MalformedCredentials", {
  /** The lower-case name of the header. */
  header: Schema.String,
  scheme: CredentialScheme,
  /** What is wrong with it, without its value. */
  issue: Schema.String
}) {
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

/**
 * Code of this server made something that is no identity: a custom `identify` returned neither a key nor
 * `{ key, auth?, shared? }`, or a key breaks the rules of {@link SessionKey}. Answers 500.
 *
 * @category errors
 */
export class InvalidIdentity extends Schema.TaggedError<InvalidIdentity>()("InvalidIdentity", {
  issue: Schema.String,
  /** The function that refused it: `identify`, `fromKey`, `shared` or `at`. */
  method: Schema.String.pipe(Schema.withConstructorDefault(Effect.succeed("identify")))
}) {
  readonly module = "Identity"
  readonly reference = "invalid-identity"

  override get message(): string {
    return this.method === "identify"
      ? `identify: ${this.issue}. Return a session key, { key, auth?, shared? } or an Identity.`
      : `Identity.${this.method}: ${this.issue}. Decode keys that come from outside with the SessionKey schema first.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The caller could not be identified" })
  }
}

/**
 * @category errors
 */
export type IdentityError = MissingCredentials | MalformedCredentials | InvalidIdentity

/**
 * @category errors
 */
export const IdentityError = Schema.Union([MissingCredentials, MalformedCredentials, InvalidIdentity])

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

// RFC 9110 section 11.6.1. There is no registered scheme for a raw value: "ApiKey" is what is in use.
const challenge = (scheme: CredentialScheme | undefined): string =>
  `${scheme === "basic" ? "Basic" : scheme === "raw" ? "ApiKey" : "Bearer"} realm="mcp"`
