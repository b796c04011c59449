/**
 * Whose a message is that the SDK hands to its server: known to the handlers of that server by what comes with the
 * message.
 */
import type { AuthInfo } from "@modelcontextprotocol/sdk/server/auth/types.js"
import type { MessageExtraInfo } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Struct from "effect/Struct"
import type * as Tracer from "effect/Tracer"
import type { AccessDenied, Credentials, Identity } from "../../Identity.ts"
import * as Scopes from "./scopes.ts"

/** By what the SDK says of the HTTP request, which it hands on as it is. */
const identities = new WeakMap<object, Identity>()

/** By the same, the span of a message. */
const spans = new WeakMap<object, Tracer.AnySpan>()

/** By the same, what refuses the HTTP request, as long as it has not been answered. */
const refusals = new WeakMap<object, (error: AccessDenied) => void>()

export const spanOf = (extra: { readonly requestInfo?: object | undefined }): Option.Option<Tracer.AnySpan> =>
  Option.fromUndefinedOr(extra.requestInfo === undefined ? undefined : spans.get(extra.requestInfo))

export const identityOf = (extra: { readonly requestInfo?: object | undefined }): Option.Option<Identity> =>
  Option.fromUndefinedOr(extra.requestInfo === undefined ? undefined : identities.get(extra.requestInfo))

export const requireScopes = (
  extra: { readonly requestInfo?: object | undefined },
  scopes: ReadonlyArray<string>
): Effect.Effect<void, AccessDenied> =>
  Effect.suspend(() => {
    const denied = Scopes.lacking(Option.getOrUndefined(identityOf(extra)), scopes)
    if (denied === undefined) return Effect.void
    if (extra.requestInfo !== undefined) refusals.get(extra.requestInfo)?.(denied)
    return Effect.fail(denied)
  })

/**
 * What comes with a message of the identity. `authInfo` is there if it has credentials, for there are servers that take
 * it for a proof of some.
 */
export const introduce = (
  identity: Identity,
  extra: MessageExtraInfo,
  span: Tracer.AnySpan | undefined,
  refuse: ((error: AccessDenied) => void) | undefined
): MessageExtraInfo => {
  if (extra.requestInfo !== undefined) {
    identities.set(extra.requestInfo, identity)
    if (span !== undefined) spans.set(extra.requestInfo, span)
    if (refuse !== undefined) refusals.set(extra.requestInfo, refuse)
  }
  return {
    ...Struct.omit(extra, ["authInfo"]),
    ...Option.match(identity.credentials, {
      onNone: () => ({}),
      onSome: (credentials) => ({ authInfo: new CallerAuth(identity, credentials) })
    })
  }
}

/** A mark to find a message's request by, until it is known who sent it. */
export const nobody = (): AuthInfo => ({ token: "", clientId: "", scopes: [] })

// A handler may read the token. What prints, copies or serialises this does not see it.
class CallerAuth implements AuthInfo {
  readonly clientId: string
  readonly scopes: Array<string>
  readonly expiresAt?: number
  readonly extra: { readonly identity: Identity }
  readonly #credentials: Credentials

  constructor(identity: Identity, credentials: Credentials) {
    this.clientId = identity.key
    this.scopes = [...identity.scopes]
    // In seconds
    if (Option.isSome(credentials.expiry)) this.expiresAt = Math.floor(credentials.expiry.value / 1_000)
    this.extra = { identity }
    this.#credentials = credentials
  }

  get token(): string {
    return Redacted.value(this.#credentials.token)
  }
}
