/**
 * What is kept of a grant in the `TokenStore`, and where.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { createHash } from "node:crypto"
import { type Authorization, AuthorizationFailed, type ProviderOf, type TokenSource } from "../../Authorization.ts"
import type { Identity } from "../../Identity.ts"
import { makeMemory, type TokenStoreShape } from "../../TokenStore.ts"
import * as Cells from "./cells.ts"
import type { Grant } from "./drafts.ts"

/** The ways whose tokens the library asks for itself. */
export type Given = Exclude<Authorization, ProviderOf | TokenSource>

/** All that is secret in it. */
export const secretsOf = ({ client, tokens }: Grant): ReadonlyArray<string> =>
  [tokens.access_token, tokens.refresh_token, tokens.id_token, client?.client_secret].filter((one) => one !== undefined)

const late = () => new AuthorizationFailed({ issue: "the TokenStore took too long" })

/** How long a store may take for what nobody needs to wait for. */
const writePatience = Duration.seconds(2)

const change = (work: () => Effect.Effect<void, unknown>) => Cells.inTime(Effect.suspend(work), writePatience, late)

/** What could not be written, by the store that it was for: that may still have what a refresh has used up. */
const unwritten = new WeakMap<TokenStoreShape, TokenStoreShape>()

/** The part of the store that has JSON in it. It is as slow as it likes, but nobody waits for that. */
export const make = (store: TokenStoreShape, server: string) => {
  const memory = unwritten.get(store) ?? makeMemory()
  unwritten.set(store, memory)
  const read = (key: string): Effect.Effect<unknown, unknown> =>
    Effect.map(
      Effect.flatMap(memory.get(key), (mine) =>
        Option.isSome(mine)
          ? Effect.succeed(mine)
          : Cells.inTime(Effect.suspend(() => store.get(key)), Cells.patience, late)),
      (found) => {
        const kept = Option.getOrUndefined(
          Option.flatMap(found, Option.liftThrowable((text): unknown => JSON.parse(Redacted.value(text))))
        )
        // Of a store that takes two keys for one, such as by their case, it may be somebody else's
        return Predicate.hasProperty(kept, "key") && kept.key === key && "value" in kept ? kept.value : undefined
      }
    )
  return {
    grant: (key: string) => Effect.map(read(key), (found) => isGrant(found) ? found : undefined),
    client: (key: string) => Effect.map(read(key), (found) => isClient(found) ? found : undefined),
    remove: (key: string) =>
      Effect.andThen(
        Effect.ignore(memory.remove(key)),
        Effect.ignoreCause(change(() => store.remove(key)))
      ),
    write: (key: string, value: unknown) => {
      const text = Redacted.make(JSON.stringify({ key, value }))
      return Effect.matchCauseEffect(change(() => store.set(key, text)), {
        onSuccess: () => Effect.ignore(memory.remove(key)),
        onFailure: () =>
          Effect.andThen(
            Effect.ignore(memory.set(key, text)),
            Effect.logWarning(
              `What the authorization server of "${server}" has granted could not be written to the TokenStore, ` +
                "and will be lost with this process"
            )
          )
      })
    }
  }
}

/** A store may have anything in it: what would break here counts as nothing. */
const isGrant = (found: unknown): found is Grant =>
  Predicate.hasProperty(found, "tokens") && Predicate.hasProperty(found.tokens, "access_token") &&
  typeof found.tokens.access_token === "string" && Cells.isSendable(found.tokens.access_token) &&
  Object.values(found.tokens).every((one) => typeof one === "string" || typeof one === "number") &&
  (!Predicate.hasProperty(found, "client") || isClient(found.client))

const isClient = (found: unknown): found is NonNullable<Grant["client"]> =>
  Predicate.hasProperty(found, "client_id") && typeof found.client_id === "string" &&
  (!Predicate.hasProperty(found, "client_secret") || typeof found.client_secret === "string")

/** Where a grant is kept: nothing of it can be read back, and it fits a file's name. */
export const keysOf = (given: Given, url: URL, identity: Identity) => {
  const [kind, client] = clientOf(given)
  const digest = (whose: string) =>
    createHash("sha256").update(JSON.stringify([kind, Cells.resourceOf(url), client, whose])).digest("base64url")
  return {
    // One for all identities where it is the client's own
    grantKey: `grant-${digest(kind === "clientCredentials" ? "" : identity.key)}`,
    clientKey: `client-${digest("")}`
  }
}

const clientOf = (given: Given): readonly [kind: string, client: ReadonlyArray<unknown>] => {
  if ("clientCredentials" in given) {
    const { clientId, issuer, scope } = given.clientCredentials
    return ["clientCredentials", [issuer, clientId, scope]]
  }
  if ("tokenExchange" in given) {
    const { audience, clientId, issuer, scope, subjectTokenType } = given.tokenExchange
    return ["tokenExchange", [issuer, clientId, scope, audience, subjectTokenType]]
  }
  const { clientId, clientMetadataUrl, issuer, redirectUrl, scope } = given.authorizationCode
  return ["authorizationCode", [issuer, clientId, scope, String(redirectUrl), clientMetadataUrl]]
}
