/**
 * Where the tokens live that connectors have got from authorization servers: in the memory of this process, unless a
 * program provides a store that lasts.
 *
 * ```ts
 * const pool = SessionPool.layer({ connect }).pipe(
 *   Layer.provide(TokenStore.layerKeyValueStore),
 *   Layer.provide(KeyValueStore.layerMemory)
 * )
 * ```
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"

/**
 * The store did not do what it was asked. Whatever its cause says stays in it, and in no log of this library.
 *
 * A connector that can't read it, within ten seconds, fails the open or the call with the reason `PreparationFailed`.
 * One that can't write to it, within two, logs that, and goes on with what it has got, as do all others of the process:
 * that is kept in memory in place of what the store has, 10,000 values of it, until there is something newer and that
 * can be written. What it finds there and can't read is nothing to it.
 *
 * @category errors
 */
export class TokenStoreError extends Schema.TaggedError<TokenStoreError>("effect-mcp-sessions/TokenStoreError")(
  "TokenStoreError",
  {
    /** What was asked for. */
    method: Schema.Literals(["get", "set", "remove"]),
    /** What the store failed with. Redacted, because it may quote what it was given. */
    cause: Schema.Redacted(Schema.Unknown)
  }
) {
  readonly module = "TokenStore"
  readonly reference = "preparation-failed"

  override get message(): string {
    return `TokenStore.${this.method} failed. Look at the store: \`Redacted.value(cause)\` is its own error.`
  }
}

/**
 * What a store does.
 *
 * @category models
 */
export interface TokenStoreShape {
  /** What is kept under the key. */
  readonly get: (key: string) => Effect.Effect<Option.Option<Redacted.Redacted>, TokenStoreError>
  /** Keeps a text, in place of what was there. */
  readonly set: (key: string, value: Redacted.Redacted) => Effect.Effect<void, TokenStoreError>
  /** Forgets the key. */
  readonly remove: (key: string) => Effect.Effect<void, TokenStoreError>
}

// As many as a process may have users; of two kilobytes each they are 20 MB
const maxKept = 10_000

/**
 * @internal
 */
export const makeMemory = (): TokenStoreShape => {
  const kept = new Map<string, Redacted.Redacted>()
  return {
    get: (key) =>
      Effect.sync(() => {
        const found = kept.get(key)
        if (found === undefined) return Option.none()
        kept.delete(key)
        kept.set(key, found)
        return Option.some(found)
      }),
    set: (key, value) =>
      Effect.sync(() => {
        kept.delete(key)
        kept.set(key, value)
        if (kept.size > maxKept) kept.delete(kept.keys().next().value!)
      }),
    remove: (key) => Effect.sync(() => void kept.delete(key))
  }
}

const failed = (method: TokenStoreError["method"]) =>
  Effect.mapError((cause: KeyValueStore.KeyValueStoreError) =>
    new TokenStoreError({ method, cause: Redacted.make(cause) })
  )

/**
 * Keeps what the `authorization` of a connector has got: access tokens, refresh tokens, and what a client was told when
 * it registered. A key is one of `SHA-256` over the identity's key, the upstream and the client, in base64url behind a
 * word: safe to log, and short enough for the name of a file. A value is JSON, all of it is secret, and it counts under
 * its own key alone, which is in it.
 *
 * A connector takes the store of the layer that it is used in. By default that is the memory of this process, with room
 * for 10,000 values: the one that was used least recently makes room.
 *
 * `Layer.succeed(TokenStore, { get, set, remove })` provides a store of one's own.
 *
 * The keys of identities have to be the same after a restart for a store that lasts: give the `IdentityResolver` a
 * `keySecret`.
 *
 * @category services
 */
export class TokenStore extends Context.Reference<TokenStoreShape>("effect-mcp-sessions/TokenStore", {
  defaultValue: makeMemory
}) {
  /** A memory of its own, for tests and for pools that are to share nothing. */
  static readonly layerMemory: Layer.Layer<never> = Layer.effect(TokenStore, Effect.sync(makeMemory))

  /**
   * Effect's `KeyValueStore`, each key behind `effect-mcp-sessions/`. What is written is not encrypted: let nobody read
   * it who may not act for its users.
   */
  static readonly layerKeyValueStore: Layer.Layer<never, never, KeyValueStore.KeyValueStore> = Layer.effect(
    TokenStore,
    Effect.map(KeyValueStore.KeyValueStore, (unprefixed): TokenStoreShape => {
      const store = KeyValueStore.prefix(unprefixed, "effect-mcp-sessions/")
      return {
        get: (key) =>
          Effect.map(
            failed("get")(store.get(key)),
            (found) => Option.map(Option.fromUndefinedOr(found), (text) => Redacted.make(text))
          ),
        set: (key, value) => failed("set")(store.set(key, Redacted.value(value))),
        remove: (key) => failed("remove")(store.remove(key))
      }
    })
  )
}
