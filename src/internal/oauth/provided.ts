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
import * as Grants from "./grants.ts"

export const make = <R>(
  options: Cells.Options,
  providerOf: ProviderOf<R>
): Effect.Effect<Cells.Tokens, unknown, R | Scope.Scope> =>
  Effect.gen(function*() {
    const { identity, scrub, sdk, url } = options
    const made = yield* Effect.suspend(() => {
      const found = providerOf(identity)
      return Effect.isEffect(found) ? found : Effect.succeed(found)
    })
    const cell = yield* Cells.cellOf(providerOf, Cells.keyOf(options))
    const hold = yield* Cells.holder(scrub)

    const tokens = Effect.tryPromise({
      // What was never kept is `null` in many a store
      try: async () => await made.tokens() ?? undefined,
      catch: () => new AuthorizationFailed({ issue: "the provider's `tokens` failed" })
    }).pipe(
      Effect.timeoutOrElse({
        duration: Cells.patience,
        orElse: () => Effect.fail(new AuthorizationFailed({ issue: "the provider's `tokens` took too long" }))
      }),
      Effect.tap((found) => {
        if (found === undefined) return Effect.void
        hold(Grants.secretsOf({ tokens: found }))
        return Cells.isSendable(found.access_token) ? Effect.void : Effect.fail(Cells.notSendable())
      })
    )

    const renew = Effect.fnUntraced(function*(need: Cells.Wanted) {
      const { isStepUp, scope } = need
      const before = yield* tokens
      const attempt = Attempts.make(options, cell.told)
      const wanted = isStepUp ? Drafts.widened(scope, cell.scope, before?.scope) : scope
      const more = Cells.moreOf(cell, need, wanted)
      yield* Effect.tryPromise({
        try: (signal) =>
          sdk.auth(watched(made, attempt, isStepUp), {
            serverUrl: url,
            fetchFn: attempt.fetchUntil(signal),
            ...more
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
 * keeps no token that it could not send. Its secrets are known from now on.
 */
const watched = (
  provider: OAuthClientProvider,
  attempt: Attempts.Attempt,
  isStepUp: boolean
): OAuthClientProvider => {
  const own: Partial<OAuthClientProvider> = {
    redirectToAuthorization: async (url) => {
      Drafts.refuseAfterFailedRefresh(attempt)
      await provider.redirectToAuthorization(url)
    },
    saveTokens: async (...saved) => {
      if (!Cells.isSendable(saved[0].access_token)) throw Cells.notSendable()
      await provider.saveTokens(...saved)
    },
    saveCodeVerifier: async (verifier) => {
      attempt.know(verifier)
      await provider.saveCodeVerifier(verifier)
    },
    ...(provider.state === undefined ? {} : {
      state: async () => {
        const state = await provider.state!()
        attempt.know(state)
        return state
      }
    }),
    ...(!isStepUp ? {} : {
      // The second generation says of which issuer
      tokens: async (...asked: Parameters<OAuthClientProvider["tokens"]>) => {
        const tokens = await provider.tokens(...asked) ?? undefined
        if (tokens === undefined) return undefined
        const { refresh_token: _, ...rest } = tokens
        return rest
      }
    })
  }
  // A proxy of the provider itself would have to answer for a frozen one as that is
  return new Proxy({} as OAuthClientProvider, {
    has: (_, property) => property in provider,
    get: (_, property) => {
      if (Object.hasOwn(own, property)) return own[property as keyof OAuthClientProvider]
      const value: unknown = Reflect.get(provider, property)
      // Private fields are the provider's
      return typeof value === "function" ? value.bind(provider) as unknown : value
    }
  })
}
