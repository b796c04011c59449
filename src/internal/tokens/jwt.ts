/**
 * Tokens that say themselves whose they are, under the signature of their issuer: JWTs (RFC 7519), as access tokens
 * (RFC 9068) or not.
 *
 * `jose` has the last word on signature, `iss`, `aud`, `exp` and `nbf`. Before that, what nobody has verified is read
 * only to refuse: a token of another issuer, or one that has expired, is refused although the key server is down, and
 * asks it for no key.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import type { CryptoKey, JWTVerifyGetKey, LocalJWKSet } from "jose"
import type { Claims, Identity, IdentityError, IdentityUnavailable, InvalidToken } from "../../Identity.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import { isTrusted, type Jwt } from "../../TokenOptions.ts"
import { makeCredentials, makeMemo } from "../authorization.ts"
import { identities, millisOf, presented, refuse, tokenIn } from "./claims.ts"
import * as Discovery from "./discovery.ts"
import type { Jose } from "./jose.ts"
import * as KeySet from "./keySet.ts"
import * as Server from "./server.ts"

/** What is known by one answer of the issuer: whoever was verified with keys that are gone is verified anew. */
interface Keys {
  readonly find: LocalJWKSet
  readonly memo: ReturnType<typeof makeMemo<Identity>>
  /** Whether the log has been told of one that can't be used. Callers choose how often it is. */
  hasWarned: boolean
}

/** The keys that there are can't have signed it. */
class KeyUnknown extends Data.TaggedError("KeyUnknown")<{ readonly reason: "key" | "signature" }> {}

// A token without `kid` is tried with each of them
const maxKeys = 64

export const make = Effect.fnUntraced(function*(jose: Jose, settings: Jwt, method: string) {
  const keySet = yield* keySetOf(jose, settings, method)
  const toIdentity = identities(settings)
  const tolerance = settings.clockTolerance

  const verify = (token: string, key: JWTVerifyGetKey): Effect.Effect<Claims, Fault> =>
    Effect.flatMap(Clock.currentTimeMillis, (now) =>
      Effect.tryPromise({
        try: () =>
          jose.jwtVerify(token, key, {
            issuer: settings.issuer,
            audience: [...settings.audience],
            algorithms: [...settings.algorithms],
            clockTolerance: tolerance / 1000,
            currentDate: new Date(now),
            requiredClaims: ["exp"]
          }),
        catch: (error) => faultOf(error)
      })).pipe(Effect.map(({ payload }) => payload))

  /** With each of the keys that could have signed it: it has no `kid`. */
  const verifyWithAny = Effect.fnUntraced(function*(token: string, keys: AsyncIterable<CryptoKey>) {
    for (const key of yield* Stream.runCollect(Stream.fromAsyncIterable(keys, faultOf))) {
      const result = yield* Effect.result(verify(token, () => Promise.resolve(key)))
      if (Result.isSuccess(result)) return result.success
      if (result.failure.reason !== "signature") return yield* Effect.fail(result.failure)
    }
    return yield* Effect.fail<Fault>({ reason: "signature" })
  })

  const check = (keys: Keys, { kid, token }: Unverified) =>
    verify(token, keys.find).pipe(
      Effect.catch((fault) => fault.among === undefined ? Effect.fail(fault) : verifyWithAny(token, fault.among)),
      Effect.catch((fault): Effect.Effect<never, KeyUnknown | InvalidToken | IdentityUnavailable> => {
        if (fault.reason === undefined) return broken(keys, fault.error)
        return fault.reason === "key" || (fault.reason === "signature" && kid === undefined)
          ? Effect.fail(new KeyUnknown({ reason: fault.reason }))
          : refuse(fault.reason)
      })
    )

  return Effect.fnUntraced(function*(request: unknown): Effect.fn.Return<Identity, IdentityError> {
    const value = yield* presented(request)
    const clock = yield* Clock.Clock
    const isOver = (exp: number) => clock.currentTimeMillisUnsafe() >= exp + tolerance

    const token = yield* tokenIn(value)
    const unverified = yield* read(jose, settings, token, isOver)
    let keys = yield* keySet.current
    const known = keys.memo.get(value)
    if (known !== undefined) return known

    const claims = yield* check(keys, unverified).pipe(
      Effect.catchTag("KeyUnknown", ({ reason }) =>
        Effect.flatMap(
          keySet.after(keys),
          Option.match({
            onNone: () => refuse(reason),
            onSome: (newer) => {
              keys = newer
              return Effect.catchTag(check(newer, unverified), "KeyUnknown", (unknown) => refuse(unknown.reason))
            }
          })
        ))
    )
    const exp = millisOf(claims.exp)
    if (exp === undefined) return yield* refuse("claims")
    const identity = yield* toIdentity(
      settings.issuer,
      claims,
      makeCredentials("bearer", token, value, "authorization", exp)
    )
    keys.memo.set(value, identity)
    return identity
  })
})

// -----------------------------------------------------------------------------
// Keys
// -----------------------------------------------------------------------------

const keySetOf = Effect.fnUntraced(function*(jose: Jose, { issuer, jwks }: Jwt, method: string) {
  const invalid = (option: string, issue: string) =>
    new InvalidOptions({ module: "IdentityResolver", method, option, issue })

  const toKeys = (json: unknown): Result.Result<Keys, string> => {
    if (!Predicate.hasProperty(json, "keys") || !Array.isArray(json.keys) || !json.keys.every(Predicate.isObject)) {
      return Result.fail("is no key set (RFC 7517 section 5)")
    }
    const { keys } = json
    return keys.length > maxKeys
      ? Result.fail(`has more than ${maxKeys} keys`)
      : Result.mapError(
        Result.try(() => ({ find: jose.createLocalJWKSet({ keys }), memo: makeMemo<Identity>(), hasWarned: false })),
        () => "is no key set (RFC 7517 section 5)"
      )
  }

  if (jwks !== undefined && !(jwks instanceof URL)) {
    return KeySet.fixed(yield* Effect.fromResult(Result.mapError(toKeys(jwks), (issue) => invalid("jwks", issue))))
  }
  if (jwks === undefined && !isIssuer(issuer)) {
    return yield* invalid(
      "issuer",
      "must be an https URL without query and fragment, or http on loopback, if there is no jwks"
    )
  }
  // That of the layer: the keys are fetched in a fiber of whoever needs them first
  const fetch = yield* FetchHttpClient.Fetch
  return yield* KeySet.make(
    (jwks === undefined ? Discovery.jwksUri(issuer) : Effect.succeed(jwks)).pipe(
      Effect.flatMap((url) => Server.ask(HttpClientRequest.get(url))),
      Effect.flatMap((json) =>
        Effect.fromResult(
          Result.mapError(toKeys(json), (issue) => new Server.ServerFailed({ issue: `what it answered ${issue}` }))
        )
      ),
      Server.inTime,
      Effect.provideService(FetchHttpClient.Fetch, fetch)
    )
  )
})

/** RFC 8414 section 2. */
const isIssuer = (issuer: string): boolean => URL.canParse(issuer) && isTrusted(new URL(issuer)) && !/[?#]/.test(issuer)

// -----------------------------------------------------------------------------
// What nobody has verified
// -----------------------------------------------------------------------------

interface Unverified {
  readonly token: string
  readonly kid: unknown
}

/**
 * RFC 8725 section 3.11: what is something else than an access token, such as a logout token, says so in its type. An
 * ID token says nothing, and is refused by its audience. RFC 9068 section 2.1 asks for `at+jwt`, which half of the
 * issuers there are do not write.
 */
const types: ReadonlySet<unknown> = new Set([undefined, "jwt", "at+jwt"])

const read = (
  jose: Jose,
  { algorithms, issuer }: Jwt,
  token: string,
  isOver: (exp: number) => boolean
): Effect.Effect<Unverified, InvalidToken> =>
  Effect.suspend(() => {
    const parts = Result.try(() => ({
      header: jose.decodeProtectedHeader(token),
      claims: jose.decodeJwt(token)
    }))
    if (Result.isFailure(parts)) return refuse("malformed")
    const { claims, header } = parts.success
    if (!algorithms.some((algorithm) => algorithm === header.alg)) return refuse("algorithm")
    const type: unknown = header.typ
    if (!types.has(typeof type === "string" ? type.toLowerCase().replace(/^application\//, "") : type)) {
      return refuse("malformed")
    }
    if (claims.iss !== issuer) return refuse("issuer")
    const exp = millisOf(claims.exp)
    if (exp === undefined) return refuse("claims")
    return isOver(exp) ? refuse("expired") : Effect.succeed({ token, kid: header.kid })
  })

// -----------------------------------------------------------------------------
// What jose throws
// -----------------------------------------------------------------------------

interface Fault {
  /** What is wrong with the token. If nothing is, the keys are at fault. */
  readonly reason?: InvalidToken["reason"]
  readonly error?: unknown
  /** The keys, when it may be any of them. */
  readonly among?: AsyncIterable<CryptoKey>
}

const faultOf = (error: unknown): Fault => {
  const code = Predicate.hasProperty(error, "code") ? error.code : undefined
  switch (code) {
    case "ERR_JWKS_MULTIPLE_MATCHING_KEYS":
      return { error, among: error as AsyncIterable<CryptoKey> }
    case "ERR_JWKS_NO_MATCHING_KEY":
      return { reason: "key" }
    case "ERR_JWS_SIGNATURE_VERIFICATION_FAILED":
      return { reason: "signature" }
    case "ERR_JOSE_ALG_NOT_ALLOWED":
      return { reason: "algorithm" }
    case "ERR_JWT_EXPIRED":
      return { reason: "expired" }
    case "ERR_JWT_CLAIM_VALIDATION_FAILED":
      return { reason: reasonOf(error) }
    case "ERR_JWS_INVALID":
    case "ERR_JWT_INVALID":
    case "ERR_JOSE_NOT_SUPPORTED":
      return { reason: "malformed" }
    default:
      return { error }
  }
}

const reasonOf = (error: unknown): InvalidToken["reason"] => {
  const isOfWrongType = Predicate.hasProperty(error, "reason") && error.reason === "invalid"
  const claim = Predicate.hasProperty(error, "claim") && !isOfWrongType ? error.claim : undefined
  return claim === "iss" ? "issuer" : claim === "aud" ? "audience" : claim === "nbf" ? "early" : "claims"
}

const broken = (keys: Keys, error: unknown): Effect.Effect<never, IdentityUnavailable> =>
  Effect.suspend(() => {
    const warned = keys.hasWarned ? Effect.void : Effect.logWarning(
      "IdentityResolver: a key of the issuer can't be used: is it a public one of at least 2048 bits?"
    )
    keys.hasWarned = true
    return Effect.andThen(warned, Effect.fail(Server.unavailable(error)))
  })
