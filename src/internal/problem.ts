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
