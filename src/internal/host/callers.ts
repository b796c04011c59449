/**
 * Whose a message is that the SDK hands to its server: known to the handlers of that server by what comes with the
 * message.
 */
import type { AuthInfo } from "@modelcontextprotocol/sdk/server/auth/types.js"
import type { MessageExtraInfo, RequestInfo } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Tracer from "effect/Tracer"
import type { AccessDenied, Credentials, Identity } from "../../Identity.ts"
import * as Scopes from "./scopes.ts"

/** What is known of whoever has sent a message. */
interface Caller {
  readonly identity: Identity
  readonly span: Tracer.AnySpan | undefined
  /** Refuses the HTTP request, as long as it has not been answered. */
  readonly refuse: ((error: AccessDenied) => void) | undefined
}

/** By what the SDK says of the HTTP request, which it hands on as it is. */
const callers = new WeakMap<object, Caller>()

interface Extra {
  readonly requestInfo?: object | undefined
}

const callerOf = ({ requestInfo }: Extra): Caller | undefined =>
  requestInfo === undefined ? undefined : callers.get(requestInfo)

export const spanOf = (extra: Extra): Option.Option<Tracer.AnySpan> => Option.fromUndefinedOr(callerOf(extra)?.span)

export const identityOf = (extra: Extra): Option.Option<Identity> => Option.fromUndefinedOr(callerOf(extra)?.identity)

export const requireScopes = (extra: Extra, scopes: ReadonlyArray<string>): Effect.Effect<void, AccessDenied> =>
  Effect.suspend(() => {
    const caller = callerOf(extra)
    const denied = Scopes.lacking(caller?.identity, scopes)
    if (denied === undefined) return Effect.void
    caller?.refuse?.(denied)
    return Effect.fail(denied)
  })

/**
 * What comes with a message of the identity. `authInfo` is there if it has credentials, for there are servers that take
 * it for a proof of some.
 */
export const introduce = (caller: Caller, requestInfo: RequestInfo): MessageExtraInfo => {
  callers.set(requestInfo, caller)
  const { identity } = caller
  return Option.isSome(identity.credentials)
    ? { requestInfo, authInfo: new CallerAuth(identity, identity.credentials.value) }
    : { requestInfo }
}

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
