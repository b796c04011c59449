/**
 * Tokens that the library itself asks for, and keeps in the `TokenStore`.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import { AuthorizationFailed } from "../../Authorization.ts"
import type { SessionHandle } from "../../Connector.ts"
import type { Identity } from "../../Identity.ts"
import { ConsentRequired, McpSessionError } from "../../McpSessionError.ts"
import { TokenStore } from "../../TokenStore.ts"
import { type Answer, Consents } from "../consents.ts"
import * as Time from "../time.ts"
import * as Attempts from "./attempts.ts"
import * as Cells from "./cells.ts"
import * as Drafts from "./drafts.ts"
import * as Grants from "./grants.ts"

export const make = (options: Cells.Options, given: Grants.Given): Effect.Effect<Cells.Tokens, unknown, Scope.Scope> =>
  Effect.gen(function*() {
    const { handle, identity, scrub, sdk, server, url } = options
    const context = yield* Effect.context<never>()
    const moment = Time.monotonic(yield* Clock.Clock)
    const consents = Context.get(context, Consents)
    const { clientKey, grantKey } = Grants.keysOf(given, url, identity)
    const owner = Context.get(context, TokenStore)
    const store = Grants.make(owner, server)
    const cell = yield* Cells.cellOf(owner, grantKey)
    const hold = yield* Cells.holder(scrub)

    const known = () => {
      if (cell.grant !== undefined) hold(Grants.secretsOf(cell.grant))
      return cell.grant?.tokens.access_token
    }
    const remember = (grant: Drafts.Grant | undefined) => {
      cell.isRead = true
      cell.grant = grant
    }
    const current = Effect.suspend(() =>
      cell.isRead ? Effect.sync(known) : Effect.map(store.grant(grantKey), (grant) => {
        if (!cell.isRead) remember(grant)
        return known()
      })
    )

    const granted = (draft: Drafts.Draft) =>
      Effect.suspend(() => {
        const tokens = draft.granted!
        if (!isBearer(tokens)) {
          return Effect.fail(
            new AuthorizationFailed({ issue: "what the authorization server gave is no bearer token" })
          )
        }
        const grant = { tokens, client: draft.isRegistered ? draft.client : undefined }
        remember(grant)
        cell.scope = draft.scope ?? cell.scope
        return store.write(grantKey, grant)
      })

    const ask = ({ attempt, provider }: Drafts.Draft, more: Partial<Cells.AuthOptions>) =>
      Effect.tryPromise({
        try: (signal) => sdk.auth(provider, { serverUrl: url, fetchFn: attempt.fetchUntil(signal), ...more }),
        catch: attempt.issueOf
      })

    /** Gets what the caller's callback is good for. */
    const redeem = (draft: Drafts.Draft, more: Partial<Cells.AuthOptions>, { code, iss }: Answer) =>
      ask(draft, { ...more, authorizationCode: code, ...(iss === undefined ? {} : { iss }) }).pipe(
        Effect.andThen(granted(draft)),
        Effect.timeoutOrElse({
          duration: Cells.patience,
          orElse: () => Effect.fail(new AuthorizationFailed({ issue: "the authorization server took too long" }))
        })
      )

    /** Nobody but the log hears what was wrong with a callback. */
    const told = (effect: Effect.Effect<void, AuthorizationFailed>) =>
      effect.pipe(
        Effect.tapError(({ message }) => Effect.logWarning(message)),
        Effect.annotateLogs({ server, session: identity.key }),
        Effect.provideContext(context)
      )

    const consented = Effect.fnUntraced(function*(
      { grant, isStepUp, more, wanted }: Need,
      authorizationCode: Extract<Grants.Given, { readonly authorizationCode: unknown }>["authorizationCode"]
    ) {
      const isAsked = isStepUp || grant?.tokens.refresh_token === undefined
      const before = isAsked ? yield* consents.ofKey(owner, grantKey) : undefined
      if (before !== undefined && Drafts.covers(before.scope, wanted)) return yield* required(before, server)
      const client = grant?.client ?? (yield* store.client(clientKey))
      const draft = Drafts.authorizationCode(authorizationCode, {
        attempt: Attempts.make(options, cell.told),
        privateKeyJwt: sdk.privateKeyJwt,
        scope: wanted,
        // RFC 6749 section 6: a refresh never widens a grant
        tokens: isStepUp ? undefined : grant?.tokens,
        client
      })
      const result = yield* Effect.ensuring(
        ask(draft, more),
        Effect.suspend(() =>
          draft.isRegistered && draft.client !== client ? store.write(clientKey, draft.client) : Effect.void
        )
      )
      if (result === "AUTHORIZED") return yield* granted(draft)
      if (grant !== undefined && !isStepUp && draft.tokens === undefined) {
        // The server says that they are worth nothing: also where another process has been quicker with them
        const stored = yield* store.grant(grantKey)
        if (stored !== undefined && stored.tokens.access_token !== grant.tokens.access_token) return remember(stored)
        remember(undefined)
        yield* store.remove(grantKey)
      }
      // Nobody is sent anywhere else: no script, and no place that another can listen to
      if (draft.url === undefined || !Attempts.mayName(url, draft.url)) {
        return yield* new AuthorizationFailed({
          issue: "the authorization server names no https address to consent at"
        })
      }
      const timeout = Duration.toMillis(authorizationCode.timeout ?? Duration.minutes(10))
      const consent = {
        // Nobody can tell the one from the other
        id: createHash("sha256").update(draft.state).digest("base64url").slice(0, 22),
        state: draft.state,
        store: owner,
        key: grantKey,
        identity,
        url: Redacted.make(draft.url.href),
        scope: draft.scope,
        until: moment() + timeout,
        check: (iss: Answer["iss"]) => told(checkIss(draft, iss)),
        redeem: (answer: Answer) => told(redeem(draft, more, answer)),
        done: Deferred.makeUnsafe<boolean>()
      }
      yield* consents.add(consent)
      return yield* required(consent, server)
    })

    const renew = Effect.fnUntraced(function*(need: Cells.Wanted) {
      const { isStepUp, refused, scope } = need
      const stored = yield* store.grant(grantKey)
      // Another process has been here
      if (stored !== undefined && stored.tokens.access_token !== refused) return remember(stored)
      // A store that forgets is no reason to ask anybody again
      const grant = stored ?? cell.grant
      const wanted = Drafts.widened(scope, cell.scope, isStepUp ? grant?.tokens.scope : undefined)
      const more = Cells.moreOf(cell, need, wanted)
      if ("authorizationCode" in given) {
        return yield* consented({ grant, isStepUp, more, wanted }, given.authorizationCode)
      }
      const draftOptions = {
        attempt: Attempts.make(options, cell.told),
        privateKeyJwt: sdk.privateKeyJwt,
        scope: wanted,
        tokens: undefined,
        client: undefined
      }
      const draft = "clientCredentials" in given
        ? Drafts.clientCredentials(given.clientCredentials, draftOptions)
        : Drafts.tokenExchange(given.tokenExchange, yield* subjectOf(handle, identity), draftOptions)
      yield* ask(draft, more)
      return yield* granted(draft)
    })

    return { current, known, renew, cell }
  })

/** What has to be asked for. */
interface Need {
  /** What there is. */
  readonly grant: Drafts.Grant | undefined
  readonly isStepUp: boolean
  readonly wanted: string | undefined
  readonly more: Partial<Cells.AuthOptions>
}

const required = ({ id, url }: { readonly id: string; readonly url: Redacted.Redacted }, server: string) =>
  Effect.fail(
    new McpSessionError({ reason: new ConsentRequired({ id, url, requestSent: false }), method: "connect", server })
  )

/** RFC 6749 section 7.1: a client "MUST NOT use an access token if it does not understand the token type". */
const isBearer = ({ access_token: token, token_type: type }: Drafts.Grant["tokens"]): boolean =>
  type.toLowerCase() === "bearer" && Cells.isSendable(token)

const subjectOf = (handle: SessionHandle, identity: Identity) =>
  Effect.flatMap(handle.credentials, (newest) => {
    const credentials = Option.orElse(newest, () => identity.credentials)
    return Option.isSome(credentials) && credentials.value.scheme === "bearer"
      ? Effect.succeed(credentials.value.token)
      : Effect.fail(new AuthorizationFailed({ issue: "the caller has presented no bearer token to exchange" }))
  })

/**
 * RFC 9207 section 2.4: an answer whose `iss` is another, or is missing where the server always has one, MUST be
 * rejected, and an error is not to be taken for one of the server that was asked.
 */
const checkIss = ({ discovery }: Drafts.Draft, iss: string | undefined): Effect.Effect<void, AuthorizationFailed> => {
  const metadata = discovery?.authorizationServerMetadata as
    | { readonly issuer?: string; readonly authorization_response_iss_parameter_supported?: boolean }
    | undefined
  const isRight = iss === undefined
    ? metadata?.authorization_response_iss_parameter_supported !== true
    : iss === (metadata?.issuer ?? discovery?.authorizationServerUrl)
  return isRight
    ? Effect.void
    : Effect.fail(new AuthorizationFailed({ issue: "the answer comes from another authorization server" }))
}
