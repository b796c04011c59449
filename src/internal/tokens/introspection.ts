/**
 * Tokens that say nothing themselves: their issuer is asked whose they are (RFC 7662).
 */
import * as Cache from "effect/Cache"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Semaphore from "effect/Semaphore"
import { Credentials, type Identity, type IdentityError, type InvalidToken } from "../../Identity.ts"
import type { Introspection } from "../../TokenOptions.ts"
import { makeMemo } from "../authorization.ts"
import * as Time from "../time.ts"
import { identities, millisOf, presented, refuse, tokenIn } from "./claims.ts"
import * as Server from "./server.ts"

/** What the endpoint has said of a token, and when, by the monotonic clock. */
interface Answer {
  readonly identity: Identity
  readonly at: number
}

const capacity = 1024

// Whoever makes up tokens has each of them asked for: no more than these at once. Nor are more of those that were
// active before, which have as many places of their own: a flood keeps nobody out who was in.
const maxConcurrent = 64

export const make = Effect.fnUntraced(function*(settings: Introspection) {
  const toIdentity = identities(settings)
  const ofStrangers = yield* Semaphore.make(maxConcurrent)
  const ofKnown = yield* Semaphore.make(maxConcurrent)
  const known = makeMemo<true>()
  const now = Time.monotonic(yield* Clock.Clock)
  const question = HttpClientRequest.post(settings.endpoint).pipe(
    HttpClientRequest.acceptJson,
    // RFC 6749 section 2.3.1: encoded as in a form before they are joined
    HttpClientRequest.basicAuth(encode(settings.clientId), encode(Redacted.value(settings.clientSecret)))
  )

  const introspect = (token: string) =>
    question.pipe(
      HttpClientRequest.bodyUrlParams({ token, token_type_hint: "access_token" }),
      Server.ask,
      Server.inTime,
      Effect.filterOrFail(
        (answer): answer is Readonly<Record<string, unknown>> & { readonly active: boolean } =>
          Predicate.isObject(answer) && typeof answer.active === "boolean",
        () => new Server.ServerFailed({ issue: "its answer does not say whether the token is active" })
      ),
      Effect.tapError(({ issue }) =>
        Effect.logWarning(`IdentityResolver: the introspection endpoint could not be asked: ${issue}`)
      ),
      Effect.mapError(Server.unavailable)
    )

  const lookup = Effect.fnUntraced(function*(token: string): Effect.fn.Return<Identity, IdentityError> {
    const answer = yield* introspect(token)
    if (!answer.active) return yield* refuse("inactive")
    const { active: _, ...claims } = answer
    const wrong = issueOf(claims, settings, yield* Clock.currentTimeMillis)
    if (wrong !== undefined) return yield* refuse(wrong)
    // One endpoint may answer for several issuers, and each has an alice
    const issuer = settings.issuer ?? (typeof claims.iss === "string" ? claims.iss : settings.endpoint.href)
    known.set(token, true)
    return yield* toIdentity(issuer, claims, Credentials.bearer(token, { expiresAt: millisOf(claims.exp) }))
  })

  // One request for all who come with the token while it is under way; nothing is kept of a failure
  const answers = yield* Cache.makeWith(
    (token: string) =>
      Effect.flatMap(
        (known.get(token) === true ? ofKnown : ofStrangers).withPermitsIfAvailable(1)(lookup(token)),
        (identity) =>
          identity._tag === "Some"
            ? Effect.sync((): Answer => ({ identity: identity.value, at: now() }))
            : Effect.fail(Server.unavailable(new Server.ServerFailed({ issue: "too many tokens are asked for" }), 1000))
      ),
    { capacity, timeToLive: (exit) => Exit.isSuccess(exit) ? settings.timeToLive : 0 }
  )

  /** What is known of a token, which may be too old: the cache goes by the clock on the wall, which can be set back. */
  const answerTo = Effect.fnUntraced(function*(token: string): Effect.fn.Return<Answer, IdentityError> {
    const came = now()
    const answer = yield* Cache.get(answers, token)
    if (answer.at >= came || came - answer.at < settings.timeToLive) return answer
    yield* Cache.invalidateWhen(answers, token, (kept) => kept === answer)
    return yield* Cache.get(answers, token)
  })

  return Effect.fnUntraced(function*(request: unknown): Effect.fn.Return<Identity, IdentityError> {
    const token = yield* tokenIn(yield* presented(request))
    const { identity } = yield* answerTo(token)
    if (identity.expiresAt._tag === "Some" && identity.expiresAt.value <= (yield* Clock.currentTimeMillis)) {
      return yield* refuse("expired")
    }
    return identity
  })
})

const encode = (text: string): string => new URLSearchParams([["", text]]).toString().slice(1)

/** RFC 9449 section 6.2: not to be used without a proof, which nobody here asks for. */
const bound: ReadonlySet<unknown> = new Set(["dpop", "pop", "mac"])

/**
 * What an endpoint may call active, too, though it is no access token: by `token_type` (RFC 8693 section 2.2.1), by
 * `token_use`, or by `typ`, as it is called here and there.
 */
const others: ReadonlySet<unknown> = new Set(["n_a", "refresh", "refresh_token", "offline", "id", "id_token"])

const wordOf = (kind: unknown): unknown => typeof kind === "string" ? kind.toLowerCase() : undefined

/** RFC 7662 section 4: what the endpoint says of `exp`, `nbf`, `iss` and `aud` is looked at here, too. */
const issueOf = (
  claims: Readonly<Record<string, unknown>>,
  { audience, issuer }: Introspection,
  now: number
): InvalidToken["reason"] | undefined => {
  const { aud, exp, iss, nbf } = claims
  const until = millisOf(exp)
  const from = millisOf(nbf)
  if ((exp !== undefined && until === undefined) || (nbf !== undefined && from === undefined)) return "claims"
  if (until !== undefined && until <= now) return "expired"
  if (from !== undefined && from > now) return "early"
  if (issuer !== undefined && iss !== undefined && iss !== issuer) return "issuer"
  if (bound.has(wordOf(claims.token_type))) return "bound"
  if ([claims.token_type, claims.token_use, claims.typ].some((kind) => others.has(wordOf(kind)))) return "malformed"
  const all: ReadonlyArray<unknown> = Array.isArray(aud) ? aud : [aud]
  return audience === undefined || audience.some((one) => all.includes(one)) ? undefined : "audience"
}
