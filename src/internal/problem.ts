/**
 * What every error of this library answers when a route fails with it: a problem document (RFC 9457) that
 * names the error and its entry in the README, and says nothing of identities, keys or upstreams.
 */
import * as Effect from "effect/Effect"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as ProblemDetails from "effect/http/ProblemDetails"

export const respond = (
  error: { readonly _tag: string; readonly reference: string },
  options: {
    readonly status: number
    readonly title: string
    readonly headers?: Readonly<Record<string, string>> | undefined
  }
): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  Effect.sync(() =>
    HttpServerResponse.setHeaders(
      ProblemDetails.toResponse({
        type: ProblemDetails.blankType,
        status: options.status,
        title: options.title,
        error: error._tag,
        reference: error.reference
      }),
      { "cache-control": "no-store", ...options.headers }
    )
  )

/**
 * What asks for credentials of a scheme, without parameters but the realm.
 *
 * RFC 9110 section 11.6.1. There is no registered scheme for a raw value: "ApiKey" is what is in use.
 */
export const challenge = (scheme: "basic" | "bearer" | "raw" | undefined, realm = "mcp"): string =>
  `${scheme === "basic" ? "Basic" : scheme === "raw" ? "ApiKey" : "Bearer"} realm="${realm.replace(/["\\]/g, "\\$&")}"`

/** The protected resource that a request was made to, as challenges point to it. */
export interface Resource {
  /** The URL of its metadata. */
  readonly metadata: string
  /** What all calls need a token to cover, if there is anything to say. */
  readonly scope: string | undefined
}

/**
 * The same answer, whose challenge for a bearer token says where to get one (RFC 9728 section 5.1), and what for (RFC
 * 6750 section 3). What a 403 says of scopes is left as it is: whoever has refused the request knows what it needs. A
 * 401 without a challenge gets one, as it "MUST" have (RFC 9110 section 15.5.2).
 */
export const pointing = (
  response: HttpServerResponse.HttpServerResponse,
  resource: () => Resource
): HttpServerResponse.HttpServerResponse => {
  const isUnauthorized = response.status === 401
  if (!isUnauthorized && response.status !== 403) return response
  const said = response.headers["www-authenticate"] ?? (isUnauthorized ? challenge("bearer") : "")
  if (!/^bearer /i.test(said) || /\bresource_metadata=/.test(said)) return response
  const { metadata, scope } = resource()
  const scoped = isUnauthorized && scope !== undefined && !/\bscope=/.test(said) ? `${said}, scope="${scope}"` : said
  return HttpServerResponse.setHeader(response, "www-authenticate", `${scoped}, resource_metadata="${metadata}"`)
}
