/**
 * How a connector gets tokens for a server that asks for OAuth: the option `authorization` of `McpConnector.http` and
 * `sse`, for both generations of the SDK.
 *
 * The SDK's own code finds the authorization server, registers, and asks for tokens (MCP 2025-11-25,
 * basic/authorization). What this library adds is what many callers need: one refresh for all calls of an identity, a
 * request that was refused with 401 is repeated once with the new token, scopes are stepped up when the server answers
 * 403 `insufficient_scope`, every answer of the authorization server is bounded in time and size, and tokens are kept
 * in the `TokenStore`.
 *
 * A token is one identity's, at one upstream: one authorization may serve several connectors, and none of them is sent
 * what was got for another.
 *
 * Scopes are stepped up to those that the challenge names, together with those that were asked for and granted before,
 * so that no other call loses its own (2026-07-28, basic/authorization, step-up authorization flow; RFC 6750 section
 * 3.1). Where all of them are longer than 4,096 characters those of the challenge are asked for alone.
 *
 * A token that is refused as soon as it has come is not replaced for a second, and for up to half a minute when those
 * after it are, too: each call hears then that it was refused.
 *
 * An authorization server that is down, hangs, or says no fails the open or the call with the reason
 * `PreparationFailed`, whose `cause` is an {@link AuthorizationFailed}. So does a token that can't be sent in a header,
 * wherever it is from: it is neither sent nor kept, and quoted nowhere. The session lives on.
 */
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import type { OAuthClientMetadata } from "@modelcontextprotocol/sdk/shared/auth.js"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type { Identity } from "./Identity.ts"

/**
 * The ways to a token for an upstream.
 *
 * @category models
 */
export type Authorization<R = never> =
  | ProviderOf<R>
  | { readonly clientCredentials: ClientCredentials }
  | { readonly tokenExchange: TokenExchange }
  | { readonly authorizationCode: AuthorizationCode }
  | TokenSource<R>

/**
 * The SDK's own `OAuthClientProvider` of an identity, of either generation. It is asked for once a session, and has its
 * own store: what it keeps where is its business. Its tokens are sent as `Bearer`, without proofs of possession. Where
 * it wants to redirect somebody, the call fails with
 * `Unauthorized`, as soon as its `redirectToAuthorization` has been called.
 *
 * @category models
 */
export type ProviderOf<R = never> = (
  identity: Identity
) => OAuthClientProvider | Effect.Effect<OAuthClientProvider, unknown, R>

/**
 * How a client proves who it is to the authorization server.
 *
 * @category models
 */
export interface ClientAuthentication {
  /** The client, as it is registered there. */
  readonly clientId: string
  /**
   * Its secret. It is sent as the server's metadata says: with HTTP Basic (RFC 6749 section 2.3.1), or in the body.
   * Default: none, a public client.
   */
  readonly clientSecret?: Redacted.Redacted | undefined
  /**
   * A key in place of a secret: the client signs an assertion (`private_key_jwt`, RFC 7523 section 2.2). In PKCS#8,
   * with the algorithm that it is for, such as `"ES256"`. Default: none.
   */
  readonly privateKey?: { readonly key: Redacted.Redacted; readonly algorithm: string } | undefined
}

/**
 * The client's own token, for all identities (RFC 6749 section 4.4): servers that have no users, or where the program
 * is the user.
 *
 * @category models
 */
export interface ClientCredentials extends ClientAuthentication {
  /**
   * The authorization server that knows the client, an `https` URL, or `http` on loopback. It is asked, and no other:
   * by itself an upstream could name a server of its own and would be sent the secret.
   */
  readonly issuer: string
  /**
   * The scopes to ask for. Default: those that the upstream's challenge or its metadata names (MCP 2025-11-25,
   * basic/authorization, scope selection strategy).
   */
  readonly scope?: string | undefined
}

/**
 * A token for the upstream in exchange for the caller's own (RFC 8693): the caller's newest bearer token goes to the
 * authorization server, and never to the upstream. An identity without one can't be exchanged: `PreparationFailed`.
 *
 * @category models
 */
export interface TokenExchange extends ClientCredentials {
  /** For whom the token is to be (RFC 8693 section 2.1). Default: the upstream's `resource` alone. */
  readonly audience?: string | undefined
  /**
   * What kind of token the caller's is (RFC 8693 section 3). Default: an access token,
   * `urn:ietf:params:oauth:token-type:access_token`.
   */
  readonly subjectTokenType?: string | undefined
}

/**
 * The caller's own consent (RFC 6749 section 4.1, with PKCE): the first call that needs it fails with the reason
 * `ConsentRequired`, which has the address that the caller has to open. `Consent.withConsent` asks, waits for the
 * callback, and goes on. From then on tokens are refreshed.
 *
 * @category models
 */
export interface AuthorizationCode extends Partial<ClientAuthentication> {
  /** Where the authorization server sends the caller back to: the route of `Consent.callback`. */
  readonly redirectUrl: string | URL
  /**
   * Of a client that is known already: who knows it, an `https` URL, or `http` on loopback. Required with `clientId`.
   * Default: whatever server the upstream names; the client registers itself there (RFC 7591).
   */
  readonly issuer?: string | undefined
  /**
   * Where what this client says of itself can be read, an `https` URL with a path: its `client_id` at servers that
   * support such (Client ID Metadata Documents). Default: none.
   */
  readonly clientMetadataUrl?: string | undefined
  /** What the client says of itself when it registers, besides its `redirect_uris`. Default: the library's name. */
  readonly clientMetadata?: Partial<OAuthClientMetadata> | undefined
  /** The scopes to ask for where the upstream names none. Default: none. */
  readonly scope?: string | undefined
  /** How long the caller may take to consent, more than 0 and finite. Default: 10 minutes. */
  readonly timeout?: Duration.Input | undefined
}

/**
 * A token, and how long it is good for.
 *
 * @category models
 */
export interface AccessToken {
  /** The token itself: it is sent as `Authorization: Bearer …`. */
  readonly token: Redacted.Redacted
  /** From now on. Default: what a JWT says of itself (`exp`), and otherwise until the upstream refuses it. */
  readonly expiresIn?: Duration.Input | undefined
}

/**
 * What the upstream said when it refused a token.
 *
 * @category models
 */
export interface Refused {
  /** The token that it has refused, or that has expired. */
  readonly token: Redacted.Redacted
  /** The scopes that it asks for (RFC 6750 section 3), as it says them: nothing of it is checked. */
  readonly scope: string | undefined
}

/**
 * A function that has tokens: a vault, a cloud's metadata server, a library of its own. A token is kept in memory and
 * used until it expires, or the upstream refuses it. It is asked for once for each identity and upstream, and not told
 * which that is: give an upstream whose tokens are others a function of its own.
 *
 * @category models
 */
export interface TokenSource<out R = never> {
  /**
   * The token of an identity, which has the newest credentials of the caller. Asked for when there is none yet. Any
   * failure is `PreparationFailed`, and so is a token with anything in it that is no visible ASCII (RFC 6750 section
   * 2.1), but for space and a line's end around it.
   */
  readonly token: (identity: Identity) => Effect.Effect<Redacted.Redacted | AccessToken, unknown, R>
  /**
   * Another one, asked for once for all calls whose token was refused with 401, or has expired. When it is the same
   * again, they fail with `Unauthorized`. Default: `token` is asked again.
   */
  readonly refresh?:
    | ((identity: Identity, refused: Refused) => Effect.Effect<Redacted.Redacted | AccessToken, unknown, R>)
    | undefined
}

/**
 * Why there is no token: the `cause` of a `PreparationFailed` whose `option` is `authorization`. What the authorization
 * server said is in it as far as it has no secret in it.
 *
 * @category errors
 */
export class AuthorizationFailed
  extends Schema.TaggedError<AuthorizationFailed>("effect-mcp-sessions/AuthorizationFailed")("AuthorizationFailed", {
    /** What happened, in words that have no secret in them. */
    issue: Schema.String,
    /** The error code of OAuth (RFC 6749 section 5.2), such as `"invalid_grant"`, if the server gave one. */
    code: Schema.optionalKey(Schema.String)
  })
{
  readonly module = "Authorization"
  readonly method = "connect"
  readonly reference = "preparation-failed"

  override get message(): string {
    return `No token for this server: ${this.issue}`
  }
}
