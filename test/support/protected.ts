/**
 * An MCP server that takes nothing but the tokens of an authorization server, and that server: both on loopback.
 */
import * as Effect from "effect/Effect"
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
  /** Its tokens, with their scopes. */
  readonly valid: Map<string, string>
  /** No token is good any more. */
  readonly revoke: () => void
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
    valid: new Map(),
    revoke: () => self.valid.clear(),
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
      response_types_supported: ["code"],
      grant_types_supported: ["client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"],
      code_challenge_methods_supported: ["S256"]
    }
  }))
  authority.answers.set("/token", (request, body) => {
    const form = new URLSearchParams(body)
    self.grants.push(form)
    self.clients.push(request.headers.authorization)
    if (self.answer !== undefined) return self.answer(form)
    issued++
    const token = `access-token-number-${issued}`
    const scope = form.get("scope") ?? ""
    self.valid.set(token, scope)
    return {
      body: {
        access_token: token,
        token_type: "Bearer",
        expires_in: 3_600,
        refresh_token: `refresh-token-number-${issued}`,
        ...(scope === "" ? {} : { scope })
      }
    }
  })
  return self
})
