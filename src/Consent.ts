/**
 * A caller's consent to what is done in their name upstream: MCP 2025-11-25, client/elicitation, URL mode. A connector
 * whose `authorization` is an `authorizationCode` fails with the reason `ConsentRequired`; {@link withConsent} asks
 * the caller to open an address, {@link callback} is where the authorization server sends the caller back to, and the
 * call goes on.
 *
 * ```ts
 * const answer = SessionPool.withSession(identity, (session) => session.callTool({ name: "inbox" })).pipe(
 *   Consent.withConsent(({ id, message, url }) =>
 *     Effect.tryPromise(() =>
 *       server.elicitInput({ mode: "url", elicitationId: id, message, url: Redacted.value(url) })
 *     )
 *   )
 * )
 *
 * const routes = HttpRouter.add("GET", "/oauth/callback", Consent.callback())
 * ```
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as UrlParams from "effect/http/UrlParams"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type { Identity } from "./Identity.ts"
import * as Apart from "./internal/apart.ts"
import * as Pending from "./internal/consents.ts"
import { respond } from "./internal/problem.ts"
import { McpSessionError } from "./McpSessionError.ts"

/**
 * What a caller is asked.
 *
 * @category models
 */
export interface ConsentRequest {
  /** What the consent is known by: the `elicitationId` of an elicitation. */
  readonly id: string
  /**
   * Where the caller has to go. For nobody else: whoever opens it can consent in the caller's place, to their own
   * account.
   */
  readonly url: Redacted.Redacted
  /** What is asked for, in a sentence that can be shown. */
  readonly message: string
  /** The upstream, as its connector calls it. */
  readonly server: string
}

/**
 * What the caller says to it: `ElicitResult` of either SDK is one. `accept` means that the address will be opened, not
 * that it has been.
 *
 * @category models
 */
export interface ConsentAnswer {
  /** What the caller has decided. */
  readonly action: "accept" | "decline" | "cancel"
}

/**
 * A callback that has brought no tokens: nobody waits for it (any more), consent was refused, or the authorization
 * server gave no tokens for it. Answers 400; nothing of what was sent is in it.
 *
 * @category errors
 */
export class ConsentFailed extends Schema.TaggedError<ConsentFailed>("effect-mcp-sessions/ConsentFailed")(
  "ConsentFailed",
  {
    /**
     * `unknown`: nobody waits for it, or not any more, or it is not for whoever has come, or it says something twice.
     * `denied`: the authorization server says that there is no consent. `failed`: it gave no tokens, or it is another
     * than the one that was asked (RFC 9207), for whose answer the consent goes on waiting; the log says why.
     */
    why: Schema.Literals(["unknown", "denied", "failed"])
  }
) {
  readonly module = "Consent"
  readonly method = "finish"
  readonly reference = "consent-failed"

  override get message(): string {
    return {
      unknown: "Nobody waits for this consent, or not any more. Repeat what asked for it.",
      denied: "The consent was refused. Repeat what asked for it, if that was a mistake.",
      failed: "The authorization server gave no tokens for this consent. Look at the log, and repeat what asked for it."
    }[this.why]
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 400, title: "There is no access" })
  }
}

/**
 * Runs an effect, and when it fails because the caller's consent is missing, asks for it with `ask`, waits until the
 * callback has come, and runs the effect again from its start: three consents at most, of several upstreams.
 *
 * The caller may take as long as the connector's `authorizationCode.timeout` says. A caller who declines, an `ask` that
 * fails and a consent that does not come in time leave the effect's own error. No session is held meanwhile, unless
 * this stands within a lease: put it around `SessionPool.withSession`.
 *
 * An identity's consents at one upstream are the four newest, and those of a process 10,000: an older one is not waited
 * for, and its callback comes in vain.
 *
 * @category combinators
 */
export const withConsent = <R2>(
  ask: (request: ConsentRequest) => Effect.Effect<ConsentAnswer, unknown, R2>
): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R | R2> =>
<A, E, R>(effect: Effect.Effect<A, E, R>) => {
  const attempt = (left: number): Effect.Effect<A, E, R | R2> =>
    left === 0 ?
      effect :
      Effect.catch(effect, (error) =>
        Effect.flatMap(consented(error, ask), (isGiven) => isGiven ? attempt(left - 1) : Effect.fail(error)))
  return attempt(3)
}

const consented = <R>(
  error: unknown,
  ask: (request: ConsentRequest) => Effect.Effect<ConsentAnswer, unknown, R>
): Effect.Effect<boolean, never, R> =>
  Effect.gen(function*() {
    if (!(error instanceof McpSessionError) || error.reason._tag !== "ConsentRequired") return false
    const { server, reason: { id, url } } = error
    const consents = yield* Pending.Consents
    const pending = yield* consents.ofId(id)
    // Of another process, or over
    if (pending === undefined) return false
    const message = `"${server}" wants your consent. Open the address in your browser, and come back.`
    // Whoever asks may ignore that nobody waits any more
    const asked = Apart.run(Effect.suspend(() => ask({ id, url, message, server }))).pipe(
      Effect.tapError(() => Effect.logDebug(`The caller could not be asked for consent to "${server}"`)),
      Effect.orElseSucceed((): ConsentAnswer => ({ action: "cancel" }))
    )
    const now = yield* Pending.moment
    return yield* Effect.raceFirst(
      Deferred.await(pending.done),
      Effect.flatMap(asked, ({ action }) => action === "accept" ? Effect.never : Effect.succeed(false))
    ).pipe(
      Effect.timeoutOrElse({ duration: Math.max(0, pending.until - now), orElse: () => Effect.succeed(false) })
    )
  })

/**
 * Takes what the authorization server has sent back: the address of the callback, or its query. Gets the tokens, puts
 * them into the `TokenStore`, and lets whoever waits go on. Each answer counts once, and goes on when whoever brings it
 * has left.
 *
 * The consent must have been asked for in this process.
 *
 * @category constructors
 */
export const finish = (
  answer: string | URL | URLSearchParams
): Effect.Effect<Identity, ConsentFailed> => finishAs(answer, () => Effect.succeed(true))

const finishAs = <R>(
  answer: string | URL | URLSearchParams,
  isOwner: (identity: Identity) => Effect.Effect<boolean, unknown, R>
): Effect.Effect<Identity, ConsentFailed, R> =>
  Effect.gen(function*() {
    const query = queryOf(answer)
    // RFC 6749 section 3.1. Which of them counts is nothing that whoever has added one should decide
    if (once.some((name) => query.getAll(name).length > 1)) return yield* new ConsentFailed({ why: "unknown" })
    const consents = yield* Pending.Consents
    const pending = yield* consents.ofState(query.get("state") ?? "")
    if (pending === undefined) return yield* new ConsentFailed({ why: "unknown" })
    if (!(yield* said(isOwner, pending.identity))) return yield* new ConsentFailed({ why: "unknown" })
    yield* Effect.mapError(pending.check(query.get("iss") ?? undefined), () => new ConsentFailed({ why: "failed" }))
    // Goes on when the browser leaves: a code is good for once
    const redeeming = yield* Effect.forkDetach(redeemed(consents, pending, query), { startImmediately: true })
    return yield* Fiber.join(redeeming)
  })

// It may hang, and ignore that nobody waits any more
const ownerPatience = "30 seconds"

const said = <R>(
  isOwner: (identity: Identity) => Effect.Effect<boolean, unknown, R>,
  identity: Identity
): Effect.Effect<boolean, never, R> =>
  Apart.run(Effect.suspend(() => isOwner(identity))).pipe(
    Effect.orElseSucceed(() => false),
    Effect.timeoutOrElse({
      duration: ownerPatience,
      orElse: () =>
        Effect.as(
          Effect.logWarning(`Consent.callback: isOwner took longer than ${ownerPatience}, and counts as no`),
          false
        )
    })
  )

const redeemed = (consents: Pending.Consents, pending: Pending.Pending, query: URLSearchParams) =>
  Effect.suspend((): Effect.Effect<Identity, ConsentFailed> => {
    // It may have come a second time while its owner was looked up
    if (!consents.claim(pending)) return Effect.fail(new ConsentFailed({ why: "unknown" }))
    const code = query.get("code")
    const given = code === null
      ? Effect.fail(new ConsentFailed({ why: "denied" }))
      : Effect.mapError(
        pending.redeem({ code, iss: query.get("iss") ?? undefined }),
        () => new ConsentFailed({ why: "failed" })
      )
    return Effect.as(
      Effect.onExit(given, (exit) => Deferred.succeed(pending.done, Exit.isSuccess(exit))),
      pending.identity
    )
  })

const once = ["state", "code", "iss", "error"]

const queryOf = (answer: string | URL | URLSearchParams): URLSearchParams => {
  if (answer instanceof URLSearchParams) return answer
  const text = String(answer)
  return URL.canParse(text, "http://localhost") ? new URL(text, "http://localhost").searchParams : new URLSearchParams()
}

/**
 * The route that the authorization server sends callers back to: a `GET` of `authorizationCode.redirectUrl`. It answers
 * with a page that says that there is nothing more to do.
 *
 * `isOwner` says whether it is that identity's owner who has come, for example by a cookie of one's own: MCP
 * 2025-11-25, client/elicitation, asks servers to verify that the user who opens the address is the one who was asked,
 * because somebody else might be made to open it. One that fails, or has said nothing for 30 seconds, says no. Default:
 * whoever comes with the right `state`.
 *
 * What comes has secrets in its address: {@link layerRedacted} keeps them out of the spans of Effect's HTTP server.
 *
 * @category constructors
 */
export const callback = <R = never>(
  options: { readonly isOwner?: ((identity: Identity) => Effect.Effect<boolean, unknown, R>) | undefined } = {}
): Effect.Effect<
  HttpServerResponse.HttpServerResponse,
  ConsentFailed,
  HttpServerRequest.HttpServerRequest | R
> =>
  Effect.gen(function*() {
    const { url } = yield* HttpServerRequest.HttpServerRequest
    yield* finishAs(url, options.isOwner ?? (() => Effect.succeed(true)))
    return HttpServerResponse.text("Thank you. You can close this window and go back.", { headers: pageHeaders })
  })

/**
 * Has Effect's HTTP server leave out `code` and `state` of the addresses that its spans tell: those of callbacks have
 * both, and are the only ones of this library with secrets in them. Provide it to the server.
 *
 * ```ts
 * const routes = HttpRouter.add("GET", "/oauth/callback", Consent.callback())
 * const served = HttpRouter.serve(routes).pipe(Layer.provide(Consent.layerRedacted))
 * ```
 *
 * @category layers
 */
export const layerRedacted: Layer.Layer<never> = Layer.effect(
  UrlParams.CurrentRedactedNames,
  Effect.map(UrlParams.CurrentRedactedNames, (names) => [...names, "code", "state"])
)

// The address has a code in it
const pageHeaders = { "cache-control": "no-store", "referrer-policy": "no-referrer" }
