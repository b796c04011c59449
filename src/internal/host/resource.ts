/**
 * An endpoint as a protected resource of OAuth: it says of itself who issues tokens for it (RFC 9728), points every
 * challenge there, and refuses tokens that are for another, or that do not cover what is called.
 *
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/authorization
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { type AccessDenied, type Identity, InvalidToken } from "../../Identity.ts"
import type { Authorization, Call } from "../../McpHttpOptions.ts"
import { isRecord } from "../options.ts"
import type * as Problem from "../problem.ts"
import * as Answers from "./answers.ts"
import * as Cors from "./cors.ts"
import * as Paths from "./paths.ts"
import * as Scopes from "./scopes.ts"
import * as Strays from "./strays.ts"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse

export interface Resource {
  /** As a challenge to the request points to it. */
  readonly of: (request: Request) => Problem.Resource
  /** The path is below this prefix of the router: nobody knows before there is a request for it. */
  readonly below: (prefix: string) => void
  /** What is wrong with a caller whose token is for another. */
  readonly audienceIssue: (identity: Identity) => InvalidToken | undefined
  /** What is wrong with a caller whose token does not cover what the body of the request calls. */
  readonly scopeIssue: (identity: Identity, body: unknown) => AccessDenied | undefined
  /** Answers those who ask the router for the metadata. */
  readonly publish: (router: HttpRouter.HttpRouter) => Effect.Effect<void>
}

const wellKnown = "/.well-known/oauth-protected-resource"

// Who issues tokens may change, and clients ask once for each that they need
const maxAge = "max-age=300"

export const make = (
  { audience, required, resource, scopes, servers }: Authorization,
  path: HttpRouter.PathInput,
  hostIssue: (request: Request) => Answers.Refused | undefined
): Resource => {
  const canonical = resource === undefined ? undefined : uriOf(resource.origin, resource.pathname)
  let whole = path
  let isOwn = Paths.matcher(whole)

  /** A path with a parameter is many resources, each called as it is. */
  const isOne = () => !/[:*(]/.test(whole)

  const of = (request: Request): Problem.Resource => {
    const called = resource?.pathname ?? (isOne() ? whole : pathOf(request.originalUrl))
    return {
      // Whatever is in the path, no quotation mark is in a URL
      metadata: new URL(wellKnown + withoutSlash(called), resource ?? originOf(request)).href,
      scope: scopes === undefined || scopes.length === 0 ? undefined : scopes.join(" ")
    }
  }

  const below = (prefix: string): void => {
    const found = HttpRouter.prefixPath(path, prefix) as HttpRouter.PathInput
    if (found === whole) return
    whole = found
    isOwn = Paths.matcher(whole)
  }

  /** The path of what is at this place below the well-known one, if that is this endpoint. */
  const pathAt = (place: string): string | undefined => {
    if (withoutSlash(place) === "") return resource !== undefined || isOne() ? whole : undefined
    const isCalledSo = resource !== undefined && withoutSlash(place) === withoutSlash(resource.pathname)
    return isCalledSo || isOwn(place) ? place : undefined
  }

  const answer = (request: Request): Effect.Effect<Response> | undefined => {
    const asked = pathOf(request.url)
    if (!asked.startsWith(wellKnown)) return undefined
    const place = asked.slice(wellKnown.length)
    const found = place === "" || place.startsWith("/") ? pathAt(place) : undefined
    if (found === undefined) return undefined
    Strays.take(request)
    return Effect.sync(() => forEverybody(request, tell(request, found)))
  }

  const tell = (request: Request, called: string): Response => {
    const issue = hostIssue(request)
    if (issue !== undefined) return issue.response
    if (request.method !== "GET" && request.method !== "HEAD") return notAllowed.response
    return HttpServerResponse.jsonUnsafe({
      resource: canonical ?? uriOf(originOf(request), called),
      authorization_servers: servers,
      ...(scopes === undefined ? {} : { scopes_supported: scopes }),
      bearer_methods_supported: ["header"]
    }, { headers: { "cache-control": maxAge } })
  }

  const audiences = audience ?? (canonical === undefined ? undefined : [canonical])
  const accepted = audiences === undefined ? undefined : new Set(audiences.map(comparable))

  // "MUST validate that access tokens were issued specifically for them as the intended audience"
  const audienceIssue: Resource["audienceIssue"] = (identity) => {
    if (accepted === undefined) return undefined
    const { aud } = Redacted.value(identity.claims)
    const all: ReadonlyArray<unknown> = Array.isArray(aud) ? aud : [aud]
    return aud === undefined || all.some((one) => typeof one === "string" && accepted.has(comparable(one)))
      ? undefined
      : new InvalidToken({ reason: "audience" })
  }

  const scopeIssue: Resource["scopeIssue"] = (identity, body) =>
    required === undefined
      ? undefined
      : Scopes.lacking(identity, callsOf(body).flatMap((call) => listed(required(call))))

  return {
    of,
    below,
    audienceIssue,
    scopeIssue,
    publish: (router) =>
      router.addGlobalMiddleware((routes) =>
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => answer(request) ?? routes)
      )
  }
}

const notAllowed = Answers.methodNotAllowed("GET, HEAD")

/** Web pages of any origin may read it: there is nothing in it that not everybody may know. */
const forEverybody = (request: Request, response: Response): Response =>
  Cors.isPreflight(request)
    ? Cors.preflight("*", ["GET", "HEAD"], request.headers["access-control-request-headers"])
    : HttpServerResponse.setHeader(response, "access-control-allow-origin", "*")

// A promise of one would be none
const listed = (scopes: ReadonlyArray<string>): ReadonlyArray<string> => {
  if (Array.isArray(scopes)) return scopes
  throw new TypeError("McpHttp: `required` of `authorization` must return a list of scopes")
}

const callsOf = (body: unknown): ReadonlyArray<Call> =>
  (Array.isArray(body) ? body : [body]).flatMap((message: unknown) => {
    if (!Predicate.hasProperty(message, "method") || typeof message.method !== "string") return []
    const params = Predicate.hasProperty(message, "params") ? message.params : undefined
    return [{ method: message.method, params: isRecord(params) ? params : {} }]
  })

// -----------------------------------------------------------------------------
// URIs
// -----------------------------------------------------------------------------

/** "Implementations SHOULD consistently use the form without the trailing slash", and here there is no other. */
const uriOf = (origin: string, path: string): string => origin + withoutSlash(path)

const withoutSlash = (path: string): string => path.endsWith("/") ? path.slice(0, -1) : path

/** Scheme and host in lower case, no default port, no slash at the end. What is no URL stays as it is. */
const comparable = (uri: string): string => withoutSlash(URL.canParse(uri) ? new URL(uri).href : uri)

/** Of a URL as a request has it, which may be a whole one. */
const pathOf = (url: string): string => /^(?:https?:\/\/[^/?#]*)?([^?#]*)/i.exec(url)?.[1] ?? ""

/** Where the request was sent. Its `Host` is one of ours, for others are refused. */
const originOf = (request: Request): string => {
  const [, scheme, authority] = /^(https?):\/\/([^/?#]*)/i.exec(request.originalUrl) ?? []
  const protocol = request.protocol ?? (isEncrypted(request) ? "https" : scheme?.toLowerCase() ?? "http")
  const sent = `${protocol}://${request.headers["host"] ?? authority ?? "localhost"}`
  return URL.canParse(sent) ? new URL(sent).origin : `${protocol}://localhost`
}

const isEncrypted = ({ source }: Request): boolean => {
  const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
  return Predicate.hasProperty(socket, "encrypted") && socket.encrypted === true
}
