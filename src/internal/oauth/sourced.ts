/**
 * Tokens of a function that has them: kept in memory, until they expire or are refused.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { AccessToken, TokenSource } from "../../Authorization.ts"
import { Identity } from "../../Identity.ts"
import { expiryOf } from "../jwt.ts"
import * as Cells from "./cells.ts"

export const make = <R>(
  options: Cells.Options,
  source: TokenSource<R>
): Effect.Effect<Cells.Tokens, unknown, R | Scope.Scope> =>
  Effect.gen(function*() {
    const { handle, identity, scrub } = options
    const context = yield* Effect.context<R>()
    const clock = yield* Clock.Clock
    const cell = yield* Cells.cellOf(source, Cells.keyOf(options))
    const hold = yield* Cells.holder(scrub)

    const take = (found: Redacted.Redacted | AccessToken) => {
      const { expiresIn, token } = Redacted.isRedacted(found) ? { token: found, expiresIn: undefined } : found
      // RFC 9110 section 5.5: a field's value has none at its ends, and a file's last line has
      const text = Redacted.value(token).trim()
      const until = expiresIn === undefined
        ? Option.getOrElse(expiryOf(text), () => Infinity)
        : clock.currentTimeMillisUnsafe() + Duration.toMillis(expiresIn)
      if (!Cells.isSendable(text)) return Effect.fail(Cells.notSendable())
      cell.source = { token: text, until }
      return Effect.void
    }
    const owner = Effect.map(handle.credentials, (newest) =>
      Option.isNone(newest) ? identity : new Identity({ ...identity, credentials: newest }, { disableChecks: true }))

    const renewed = ({ refused, scope }: Pick<Cells.Wanted, "refused" | "scope">) =>
      Effect.flatMap(owner, (caller) =>
        refused === undefined || source.refresh === undefined
          ? source.token(caller)
          : source.refresh(caller, { token: Redacted.make(refused), scope })).pipe(
          Effect.flatMap(take),
          Effect.provideContext(context)
        )

    const isGood = () =>
      cell.source !== undefined && clock.currentTimeMillisUnsafe() < cell.source.until
    const known = () => {
      if (!isGood()) {
        return undefined
      }
      const { token } = cell.source!
      hold([token])
      return token
    }
    const current: Cells.Tokens["current"] = Effect.suspend(() =>
      isGood()
        ? Effect.sync(known)
        : Effect.map(Cells.fly(cell, renewed({ refused: cell.source?.token, scope: undefined })), () => {
          // One that has expired by its own words may be good by the upstream's clock
          const { token } = cell.source!
          hold([token])
          return token
        })
    )

    return { current, known, renew: renewed, cell }
  })
