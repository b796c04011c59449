/**
 * From the verified claims of a token to the identity of who presented it.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import {
  AccessDenied,
  type Claims,
  type Credentials,
  IdentifyFailed,
  Identity,
  InvalidToken,
  MalformedCredentials,
  MissingCredentials
} from "../../Identity.ts"
import { digestUnder, parse, valueIn } from "../authorization.ts"
import { nameOf, namesAndPlaces } from "../places.ts"

export interface Settings {
  readonly principal: ((claims: Claims) => unknown) | undefined
  readonly scopes: ReadonlyArray<string> | undefined
  readonly keySecret: Redacted.Redacted | undefined
}

/** The header that a token comes in, as it came, or `undefined` if there is none. RFC 6750 section 2.1. */
const header = "authorization"

/**
 * The value of the header that has a token in it. Nobody is anonymous here.
 */
export const presented = (request: unknown): Effect.Effect<string, MissingCredentials | MalformedCredentials> => {
  const found = valueIn(request, header)
  if (found._tag === "Failure") return malformed(found.failure)
  return found.success === undefined || found.success === ""
    ? Effect.failSync(() => new MissingCredentials({ header, scheme: "bearer" }))
    : Effect.succeed(found.success)
}

export const tokenIn = (value: string): Effect.Effect<string, MalformedCredentials> => {
  const token = parse("bearer", value)
  return token._tag === "Failure" ? malformed(token.failure) : Effect.succeed(token.success)
}

const malformed = (issue: string) => Effect.fail(new MalformedCredentials({ header, scheme: "bearer", issue }))

export const refuse = (reason: InvalidToken["reason"]): Effect.Effect<never, InvalidToken> =>
  Effect.fail(new InvalidToken({ reason }))

/**
 * What is granted: `scope`, words with a space between two (RFC 9068 section 2.2.3, RFC 7662 section 2.2), or `scp`, as
 * some issuers call it, which may be a list.
 */
export const scopesOf = (claims: Claims): ReadonlyArray<string> => {
  const scope = typeof claims.scope === "string" ? claims.scope : claims.scp
  if (typeof scope === "string") return scope.split(" ").filter((word) => word !== "")
  return Array.isArray(scope) ? scope.filter(Predicate.isString) : []
}

/**
 * Makes identities of an issuer's claims. The key is the digest of the issuer and the principal, so a token that was
 * refreshed has the key of the one before it.
 */
export const identities = (settings: Settings) => {
  const digest = digestUnder(settings.keySecret)
  const required = settings.scopes ?? []
  const principalOf = settings.principal ?? ((claims: Claims) => claims.sub)

  return Effect.fnUntraced(function*(issuer: string, claims: Claims, credentials: Credentials) {
    // RFC 7800 section 3.1, RFC 8705 section 3, RFC 9449 section 6: whoever has stolen it must not be able to use it
    if (claims.cnf !== undefined) return yield* refuse("bound")
    const principal = yield* attempt(() => principalOf(claims))
    if (typeof principal !== "string" || principal === "") return yield* refuse("claims")
    const scopes = scopesOf(claims)
    if (!required.every((scope) => scopes.includes(scope))) {
      return yield* new AccessDenied({ scope: required.join(" ") })
    }
    return Identity.fromKey(`oauth:${digest(JSON.stringify([issuer, principal]))}`, {
      credentials,
      verified: true,
      claims: Object.freeze(claims),
      scopes: Object.freeze(scopes),
      expiresAt: credentials.expiresAt
    })
  })
}

/** Code of the user's own. What it throws may quote a claim. */
const attempt = (principal: () => unknown): Effect.Effect<unknown, IdentifyFailed> =>
  Effect.catchCause(Effect.sync(principal), (cause) => {
    const defect = Cause.squash(cause)
    const name = nameOf(defect)
    return Effect.andThen(
      Effect.logError("IdentityResolver: principal died", namesAndPlaces(cause)),
      Effect.fail(
        new IdentifyFailed({ reason: "died", error: Redacted.make(defect), ...(name === undefined ? {} : { name }) })
      )
    )
  })

/** A NumericDate (RFC 7519 section 2) in milliseconds, or `undefined` if it is none. */
export const millisOf = (date: unknown): number | undefined =>
  typeof date === "number" && Number.isFinite(date * 1000) ? date * 1000 : undefined
