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
import * as Time from "../time.ts"
import * as Cells from "./cells.ts"

export const make = <R>(
  options: Cells.Options,
  source: TokenSource<R>
): Effect.Effect<Cells.Tokens, unknown, R | Scope.Scope> =>
  Effect.gen(function*() {
    const { handle, identity, scrub } = options
    const context = yield* Effect.context<R>()
    const clock = yield* Clock.Clock
    const moment = Time.monotonic(clock)
    const cell = yield* Cells.cellOf(source, Cells.keyOf(options))
    const hold = yield* Cells.holder(scrub)

    /** What it says of itself goes by the clock on the wall, and what is said of it by how much time passes. */
    const validity = (text: string, expiresIn: AccessToken["expiresIn"]): () => boolean => {
      if (expiresIn !== undefined) {
        const until = moment() + Duration.toMillis(expiresIn)
        return () => moment() < until
      }
      const until = Option.getOrElse(expiryOf(text), () => Infinity)
      return () => clock.currentTimeMillisUnsafe() < until
    }

    const take = (found: Redacted.Redacted | AccessToken) => {
      const { expiresIn, token } = Redacted.isRedacted(found) ? { token: found, expiresIn: undefined } : found
      // RFC 9110 section 5.5: a field's value has none at its ends, and a file's last line has
      const text = Redacted.value(token).trim()
      if (!Cells.isSendable(text)) return Effect.fail(Cells.notSendable())
      cell.source = { token: text, isGood: validity(text, expiresIn) }
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

    const held = ({ token }: NonNullable<Cells.Cell["source"]>) => {
      hold([token])
      return token
    }
    const known = () =>
      cell.source?.isGood() === true ? held(cell.source) : undefined
    const current: Cells.Tokens["current"] = Effect.suspend(() => {
      const token = known()
      return token !== undefined
        ? Effect.succeed(token)
        // One that has expired by its own words may be good by the upstream's clock
        : Effect.map(
          Cells.fly(cell, renewed({ refused: cell.source?.token, scope: undefined })),
          () =>
            held(cell.source!)
        )
    })

    return { current, known, renew: renewed, cell }
  })
