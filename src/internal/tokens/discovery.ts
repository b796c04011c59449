/**
 * Where the keys of an issuer are, by its metadata.
 */
import * as Effect from "effect/Effect"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Predicate from "effect/Predicate"
import { isTrusted } from "../../TokenOptions.ts"
import * as Server from "./server.ts"

/**
 * Where the metadata of an issuer may be, most probable first: as the authorization section of the MCP specification
 * (2025-11-25) orders what RFC 8414 section 3.1 and OpenID Connect Discovery 1.0 section 4 say.
 */
export const addresses = (issuer: string): ReadonlyArray<string> => {
  const { origin, pathname } = new URL(issuer)
  const path = pathname.replace(/\/$/, "")
  return [
    `${origin}/.well-known/oauth-authorization-server${path}`,
    `${origin}/.well-known/openid-configuration${path}`,
    ...(path === "" ? [] : [`${origin}${path}/.well-known/openid-configuration`])
  ]
}

/**
 * The `jwks_uri` of the metadata that is there. RFC 8414 section 3.3: whose `issuer` is not identical to the one that
 * was asked for "MUST NOT be used".
 */
export const jwksUri = (issuer: string): Effect.Effect<URL, Server.ServerFailed> => {
  const [first, ...others] = addresses(issuer)
  return Effect.flatMap(
    others.reduce(
      (found, address) => Effect.catchIf(found, isMissing, () => Server.ask(HttpClientRequest.get(address))),
      Server.ask(HttpClientRequest.get(first!))
    ),
    (metadata) => {
      if (!Predicate.isObject(metadata) || metadata.issuer !== issuer) {
        return Effect.fail(new Server.ServerFailed({ issue: "its metadata is that of another issuer" }))
      }
      const uri = metadata.jwks_uri
      return typeof uri === "string" && URL.canParse(uri) && isTrusted(new URL(uri)) && isNoFurther(issuer, uri)
        ? Effect.succeed(new URL(uri))
        : Effect.fail(new Server.ServerFailed({ issue: "its metadata has no jwks_uri with https" }))
    }
  )
}

const isMissing = ({ status }: Server.ServerFailed): boolean => status !== undefined && status >= 400 && status < 500

// What is on the internet sends nobody to a server of this machine
const isNoFurther = (issuer: string, uri: string): boolean =>
  new URL(issuer).protocol === "http:" || new URL(uri).protocol === "https:"
