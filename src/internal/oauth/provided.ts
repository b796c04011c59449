/**
 * Tokens of a provider of the user's own.
 */
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { AuthorizationFailed, type ProviderOf } from "../../Authorization.ts"
import * as Attempts from "./attempts.ts"
import * as Cells from "./cells.ts"
import * as Drafts from "./drafts.ts"

export const make = <R>(
  options: Cells.Options,
  providerOf: ProviderOf<R>
): Effect.Effect<Cells.Tokens, unknown, R | Scope.Scope> =>
  Effect.gen(function*() {
    const { fetch, identity, scrub, sdk, url } = options
    const made = yield* Effect.suspend(() => {
      const found = providerOf(identity)
      return Effect.isEffect(found) ? found : Effect.succeed(found)
    })
    const cell = yield* Cells.cellOf(providerOf, Cells.keyOf(options))
    const hold = yield* Cells.holder(scrub)

    const tokens = Effect.tryPromise({
      try: async () => made.tokens(),
      catch: () => new AuthorizationFailed({ issue: "the provider's `tokens` failed" })
    }).pipe(
      Effect.timeoutOrElse({
        duration: Cells.patience,
        orElse: () => Effect.fail(new AuthorizationFailed({ issue: "the provider's `tokens` took too long" }))
      }),
      Effect.tap((found) => {
        if (found === undefined) return Effect.void
        hold(Drafts.secretsOf({ tokens: found }))
        return Cells.isSendable(found.access_token) ? Effect.void : Effect.fail(Cells.notSendable())
      })
    )

    const renew = ({ isStepUp, resourceMetadataUrl, scope }: Cells.Wanted) =>
      Effect.gen(function*() {
        const before = yield* tokens
        const attempt = Attempts.make({ fetch, upstream: url, scrub })
        const wanted = isStepUp ? Drafts.widened(scope, cell.scope, before?.scope) : scope
        cell.resourceMetadataUrl = resourceMetadataUrl ?? cell.resourceMetadataUrl
        yield* Effect.tryPromise({
          try: (signal) =>
            sdk.auth(watched(made, attempt, isStepUp), {
              serverUrl: url,
              fetchFn: attempt.fetchUntil(signal),
              ...(wanted === undefined ? {} : { scope: wanted }),
              ...(cell.resourceMetadataUrl === undefined ? {} : { resourceMetadataUrl: cell.resourceMetadataUrl }),
              ...(isStepUp ? { forceReauthorization: true } : {})
            }),
          catch: attempt.issueOf
        })
        // What could not be had is not asked for again, with what another call needs
        if (isStepUp) cell.scope = wanted
      })

    return { current: Effect.map(tokens, (found) => found?.access_token), known: () => undefined, renew, cell }
  })

/**
 * The provider, but that it redirects nobody because a server is down, refreshes nothing that is to be widened, and
 * keeps no token that it could not send.
 */
const watched = (
  provider: OAuthClientProvider,
  attempt: Attempts.Attempt,
  isStepUp: boolean
): OAuthClientProvider =>
  new Proxy(provider, {
    get: (target, property) => {
      const value: unknown = Reflect.get(target, property, target)
      if (property === "redirectToAuthorization") {
        return async (url: URL) => {
          Drafts.refuseAfterFailedRefresh(attempt)
          await target.redirectToAuthorization(url)
        }
      }
      if (property === "saveTokens") {
        return async (...saved: Parameters<OAuthClientProvider["saveTokens"]>) => {
          if (!Cells.isSendable(saved[0].access_token)) throw Cells.notSendable()
          await target.saveTokens(...saved)
        }
      }
      if (property === "tokens" && isStepUp) {
        return async () => {
          const tokens = await target.tokens()
          if (tokens === undefined) return undefined
          const { refresh_token: _, ...rest } = tokens
          return rest
        }
      }
      // Private fields are the target's
      return typeof value === "function" ? value.bind(target) as unknown : value
    }
  })
