/**
 * Callers with a token.
 */
import { IdentityResolver, InvalidToken } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"

export const resolve = (token: string) => IdentityResolver.resolve({ headers: { authorization: `Bearer ${token}` } })

/** Why it is refused, in a word: the reason of an invalid token, else the error's tag; `undefined` if it is not. */
export const refusal = (token: string) =>
  Effect.match(resolve(token), {
    onSuccess: () => undefined,
    onFailure: (error) => error instanceof InvalidToken ? error.reason : error._tag
  })
