/**
 * An MCP server that takes nothing but the tokens of an authorization server, and that server: both on loopback.
 */
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import type { Answer } from "./authorizationServer.ts"
import * as AuthorizationServer from "./authorizationServer.ts"
import * as HttpServer from "./servers/http.ts"

export interface Protected {
  readonly server: HttpServer.HttpFixture
  readonly authority: AuthorizationServer.AuthorizationServer
  /** What was asked for, at the token endpoint. */
  readonly grants: Array<URLSearchParams>
  /** The `Authorization` of each of those. */
  readonly clients: Array<string | undefined>
  /** All that was ever given out or sent that is a secret. */
  readonly secrets: Set<string>
  /** What refresh tokens there are. */
  readonly refreshable: Set<string>
  /** Its tokens, with their scopes. */
  readonly valid: Map<string, string>
  /** No token is good any more. */
  readonly revoke: () => void
  /** How it spells the secrets that it makes. */
  spell: (secret: string) => string
  /** The scopes that the request needs. */
  needs: (request: HttpServer.RecordedRequest) => string
  /** In place of a token. */
  answer: ((form: URLSearchParams) => Promise<Answer> | Answer | undefined) | undefined
}

const has = (granted: string, needed: string): boolean => {
  const scopes = new Set(granted.split(" "))
  return needed.split(" ").every((scope) => scope === "" || scopes.has(scope))
}

export const make = Effect.gen(function*() {
  const authority = yield* AuthorizationServer.make()
  const server = yield* HttpServer.start()
  const origin = new URL(server.url).origin
  const metadata = `${origin}/.well-known/oauth-protected-resource/mcp`
  let issued = 0

  const self: Protected = {
    server,
    authority,
    grants: [],
    clients: [],
    secrets: new Set(),
    refreshable: new Set(),
    valid: new Map(),
    revoke: () => self.valid.clear(),
    spell: (secret) => secret,
    needs: () => "",
    answer: undefined
  }

  server.behaviour.documents = {
    [new URL(metadata).pathname]: { resource: server.url, authorization_servers: [authority.issuer] }
  }
  server.behaviour.refuse = (request) => {
    const token = request.authorization?.replace(/^Bearer /, "")
    const granted = token === undefined ? undefined : self.valid.get(token)
    const needed = self.needs(request)
    const named = needed === "" ? "" : `, scope="${needed}"`
    if (granted === undefined) return [401, `Bearer error="invalid_token", resource_metadata="${metadata}"${named}`]
    return has(granted, needed)
      ? undefined
      : [403, `Bearer error="insufficient_scope", resource_metadata="${metadata}"${named}`]
  }

  authority.answers.set("/.well-known/oauth-authorization-server", () => ({
    body: {
      issuer: authority.issuer,
      authorization_endpoint: `${authority.issuer}/authorize`,
      token_endpoint: `${authority.issuer}/token`,
      registration_endpoint: `${authority.issuer}/register`,
      response_types_supported: ["code"],
      grant_types_supported: ["client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"],
      code_challenge_methods_supported: ["S256"]
    }
  }))
  const codes = new Map<string, { readonly challenge: string; readonly scope: string }>()

  authority.answers.set("/register", (_, body) => {
    issued++
    const secret = keep(self.spell(`registered-secret-number-${issued}`))
    const client = { ...JSON.parse(body), client_id: `registered-${issued}`, client_secret: secret }
    return { status: 201, body: client }
  })
  // Whoever comes agrees
  authority.answers.set("/authorize", (request) => {
    const asked = new URL(request.url!, authority.issuer).searchParams
    issued++
    const code = keep(self.spell(`authorization-code-number-${issued}`))
    codes.set(code, { challenge: asked.get("code_challenge")!, scope: asked.get("scope") ?? "" })
    const back = new URL(asked.get("redirect_uri")!)
    back.searchParams.set("code", code)
    back.searchParams.set("state", keep(asked.get("state")!))
    return { status: 302, headers: { location: back.href } }
  })
  const keep = (secret: string) => {
    self.secrets.add(secret)
    return secret
  }

  authority.answers.set("/token", (request, body) => {
    const form = new URLSearchParams(body)
    self.grants.push(form)
    self.clients.push(request.headers.authorization)
    for (const name of ["client_assertion", "code_verifier", "subject_token"]) if (form.has(name)) keep(form.get(name)!)
    if (self.answer !== undefined) return self.answer(form)
    const code = codes.get(form.get("code") ?? "")
    codes.delete(form.get("code") ?? "")
    const isGranted = {
      authorization_code: code?.challenge ===
        createHash("sha256").update(form.get("code_verifier") ?? "").digest("base64url"),
      refresh_token: self.refreshable.delete(form.get("refresh_token") ?? "")
    }[form.get("grant_type") ?? ""]
    if (isGranted === false) return { status: 400, body: { error: "invalid_grant" } }
    issued++
    const token = keep(self.spell(`access-token-number-${issued}`))
    const refresh = keep(self.spell(`refresh-token-number-${issued}`))
    const scope = code?.scope ?? form.get("scope") ?? ""
    self.valid.set(token, scope)
    self.refreshable.add(refresh)
    return {
      body: {
        access_token: token,
        token_type: "Bearer",
        expires_in: 3_600,
        refresh_token: refresh,
        ...(scope === "" ? {} : { scope })
      }
    }
  })
  return self
})
