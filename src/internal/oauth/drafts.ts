/**
 * What a connector is granted, and the SDK's `OAuthClientProvider` by which it is asked for: one for each try, made of
 * what is known, which remembers what it was told.
 */
import type { AddClientAuthentication, OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import type { OAuthDiscoveryState } from "@modelcontextprotocol/sdk/client/auth.js"
import type { OAuthClientInformationMixed, OAuthTokens } from "@modelcontextprotocol/sdk/shared/auth.js"
import * as Redacted from "effect/Redacted"
import { randomBytes } from "node:crypto"
import {
  type AuthorizationCode,
  AuthorizationFailed,
  type ClientAuthentication,
  type ClientCredentials,
  type TokenExchange
} from "../../Authorization.ts"
import type { Attempt } from "./attempts.ts"

/** What the `TokenStore` has of an identity at an upstream, as JSON. */
export interface Grant {
  readonly tokens: OAuthTokens
  /** The client that they were issued to, if it has registered itself. */
  readonly client?: OAuthClientInformationMixed | undefined
}

/** What is signed with a private key, by either SDK. */
export type PrivateKeyJwt = (options: {
  readonly issuer: string
  readonly subject: string
  readonly privateKey: string
  readonly alg: string
}) => AddClientAuthentication

/** What a provider knows, and is told. */
interface Notes {
  readonly attempt: Attempt
  /** What has come of it. */
  granted: OAuthTokens | undefined
  client: OAuthClientInformationMixed | undefined
  /** The client has registered itself, or will. */
  readonly isRegistered: boolean
  /** What is known from before, until the server says that it is worth nothing. */
  tokens: OAuthTokens | undefined
  discovery: OAuthDiscoveryState | undefined
  verifier: string | undefined
  /** Where somebody has to go. */
  url: URL | undefined
  readonly state: string
  /** The scopes that were asked for. */
  scope: string | undefined
}

export interface Draft extends Notes {
  readonly provider: OAuthClientProvider
}

export interface DraftOptions {
  readonly attempt: Attempt
  readonly privateKeyJwt: PrivateKeyJwt
  readonly tokens: OAuthTokens | undefined
  readonly client: OAuthClientInformationMixed | undefined
  /** The scopes that are needed, as far as that is known. */
  readonly scope: string | undefined
}

/** The scopes of all, each once (RFC 6749 section 3.3). */
export const union = (...scopes: ReadonlyArray<string | undefined>): string | undefined => {
  const all = new Set(scopes.flatMap((scope) => scope?.split(" ") ?? []).filter((one) => one !== ""))
  return all.size === 0 ? undefined : Array.from(all).join(" ")
}

/** As much as fits an address. */
const maxScope = 4_096

/**
 * What to ask for when `wanted` is needed: with what was asked for and granted before, or permissions for other calls
 * would be lost with each (2026-07-28, basic/authorization, step-up authorization flow, SEP-2350; RFC 6750 section 3.1
 * has servers name what the one request needs). Where that gets too long `wanted` alone, which is "authoritative for
 * satisfying the current request" (2025-11-25, basic/authorization): who always names something new gets no endless
 * list.
 */
export const widened = (wanted: string | undefined, ...before: ReadonlyArray<string | undefined>) => {
  const all = union(...before, wanted)
  return all === undefined || all.length <= maxScope ? all : wanted
}

/** Whether `scope` has all of `wanted`. */
export const covers = (scope: string | undefined, wanted: string | undefined): boolean => {
  const had = new Set(scope?.split(" "))
  return (wanted ?? "").split(" ").every((one) => one === "" || had.has(one))
}

const makeDraft = (
  { attempt, client, isRegistered, scope, tokens }: DraftOptions & Pick<Notes, "isRegistered">,
  own: (notes: Notes) => Pick<OAuthClientProvider, "redirectUrl" | "clientMetadata"> & Partial<OAuthClientProvider>
): Draft => {
  const notes: Notes = {
    attempt,
    granted: undefined,
    client,
    isRegistered,
    tokens,
    discovery: undefined,
    verifier: undefined,
    url: undefined,
    state: randomBytes(32).toString("base64url"),
    scope
  }
  const provider: OAuthClientProvider = {
    clientInformation: () => notes.client,
    tokens: () => notes.tokens,
    saveTokens: (saved) => {
      notes.granted = notes.tokens = saved
    },
    state: () => {
      attempt.know(notes.state)
      return notes.state
    },
    saveCodeVerifier: (verifier) => {
      attempt.know(verifier)
      notes.verifier = verifier
    },
    codeVerifier: () => notes.verifier ?? "",
    redirectToAuthorization: (url) => {
      refuseAfterFailedRefresh(attempt)
      notes.url = url
      notes.scope = url.searchParams.get("scope") ?? notes.scope
    },
    discoveryState: () => notes.discovery,
    saveDiscoveryState: (state) => {
      checkIssuer(state)
      notes.discovery = state
    },
    ...own(notes)
  }
  return Object.assign(notes, { provider })
}

export const refuseAfterFailedRefresh = ({ failedRefresh }: Attempt): void => {
  if (failedRefresh !== undefined) throw failedRefresh
}

/** RFC 8414 section 3.3: metadata of another issuer than the one that was asked for MUST NOT be used. */
const checkIssuer = ({ authorizationServerMetadata, authorizationServerUrl }: OAuthDiscoveryState): void => {
  const issuer = authorizationServerMetadata?.issuer
  if (issuer !== undefined && withoutSlash(issuer) !== withoutSlash(authorizationServerUrl)) {
    throw new AuthorizationFailed({ issue: "the metadata of the authorization server is that of another issuer" })
  }
}

const withoutSlash = (url: string): string => url.replace(/\/$/, "")

/** The client as it is known from the start, bound to the server that knows it. */
const clientOf = (
  { clientId, clientSecret, issuer }: Partial<ClientAuthentication> & { readonly issuer?: string | undefined }
): OAuthClientInformationMixed | undefined =>
  clientId === undefined ? undefined : {
    client_id: clientId,
    ...(clientSecret === undefined ? {} : { client_secret: Redacted.value(clientSecret) }),
    ...(issuer === undefined ? {} : { issuer })
  }

const authenticationOf = (
  { clientId, privateKey }: Partial<ClientAuthentication>,
  privateKeyJwt: PrivateKeyJwt
): Pick<OAuthClientProvider, "addClientAuthentication"> =>
  clientId === undefined || privateKey === undefined ? {} : {
    addClientAuthentication: privateKeyJwt({
      issuer: clientId,
      subject: clientId,
      privateKey: Redacted.value(privateKey.key),
      alg: privateKey.algorithm
    })
  }

/** A grant that nobody has to be asked for: `parameters` says which. */
const machine = (
  given: ClientCredentials,
  options: DraftOptions,
  parameters: Readonly<Record<string, string>>
): Draft =>
  makeDraft({ ...options, tokens: undefined, client: clientOf(given), isRegistered: false }, (notes) => {
    notes.discovery = { authorizationServerUrl: given.issuer }
    return {
      redirectUrl: undefined,
      clientMetadata: {
        redirect_uris: [],
        grant_types: [parameters["grant_type"]!],
        ...(given.scope === undefined ? {} : { scope: given.scope })
      },
      prepareTokenRequest: () => {
        // The SDKs differ in the scope that they give
        notes.scope = union(given.scope, options.scope) ??
          union(...notes.discovery?.resourceMetadata?.scopes_supported ?? [])
        return new URLSearchParams({ ...parameters, ...(notes.scope === undefined ? {} : { scope: notes.scope }) })
      },
      ...authenticationOf(given, options.privateKeyJwt)
    }
  })

/** RFC 6749 section 4.4.2. */
export const clientCredentials = (given: ClientCredentials, options: DraftOptions): Draft =>
  machine(given, options, { grant_type: "client_credentials" })

/** RFC 8693 section 2.1. */
export const tokenExchange = (given: TokenExchange, subject: Redacted.Redacted, options: DraftOptions): Draft =>
  machine(given, options, {
    grant_type: "urn:ietf:params:oauth:grant-type:token-exchange",
    subject_token: Redacted.value(subject),
    subject_token_type: given.subjectTokenType ?? "urn:ietf:params:oauth:token-type:access_token",
    requested_token_type: "urn:ietf:params:oauth:token-type:access_token",
    ...(given.audience === undefined ? {} : { audience: given.audience })
  })

/** RFC 6749 section 4.1, with PKCE: the first tokens need somebody's consent, and later ones the refresh token. */
export const authorizationCode = (given: AuthorizationCode, options: DraftOptions): Draft => {
  const known = clientOf(given)
  const redirectUrl = String(given.redirectUrl)
  const isRegistered = known === undefined
  return makeDraft({ ...options, client: known ?? options.client, isRegistered }, (notes) => {
    if (given.issuer !== undefined) notes.discovery = { authorizationServerUrl: given.issuer }
    return {
      redirectUrl,
      clientMetadata: {
        client_name: "effect-mcp-sessions",
        grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"],
        ...given.clientMetadata,
        redirect_uris: [redirectUrl],
        ...(given.scope === undefined ? {} : { scope: given.scope })
      },
      ...(given.clientMetadataUrl === undefined ? {} : { clientMetadataUrl: given.clientMetadataUrl }),
      ...(known !== undefined ? {} : {
        saveClientInformation: (client: OAuthClientInformationMixed) => {
          notes.client = client
        }
      }),
      invalidateCredentials: (which) => {
        if (which === "all" || which === "tokens") notes.tokens = undefined
        if ((which === "all" || which === "client") && known === undefined) notes.client = undefined
      },
      ...authenticationOf(given, options.privateKeyJwt)
    }
  })
}
