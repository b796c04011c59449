/**
 * The `fetch` with which the SDKs talk to authorization servers: an answer is read to its end, within bounds, before
 * the SDK sees any of it, and what it may quote of the secrets that it was sent is taken out.
 */
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import { AuthorizationFailed } from "../../Authorization.ts"
import type { FetchLike } from "../../Connector.ts"
import { isTrusted } from "../../TokenOptions.ts"
import type { Scrub } from "../scrub.ts"

/** What happened on the way to a token, as far as the SDK keeps it to itself: it may ask several times. */
export interface Attempt {
  /** From now on it is taken out of what authorization servers say. */
  readonly know: (secret: string) => void
  /** Until then. */
  readonly fetchUntil: (signal: AbortSignal) => FetchLike
  /** Why the last request failed, where no OAuth error came back. */
  failure: AuthorizationFailed | undefined
  /**
   * A refresh that the server has neither granted nor refused. The SDKs then begin anew and ask for somebody's consent:
   * it is not them who can repair that.
   */
  failedRefresh: AuthorizationFailed | undefined
  /** What an error of the SDK means. */
  readonly issueOf: (error: unknown) => AuthorizationFailed
}

const maxBytes = 256 * 1024

// Of an error: what one may say is a few hundred characters
const maxSaid = 16_384

export interface Options {
  readonly fetch: FetchLike
  /** The upstream for which tokens are wanted. */
  readonly url: URL
  /** Of the session. */
  readonly scrub: Scrub
}

/** `told` takes out what authorization servers were told. */
export const make = ({ fetch, scrub, url: upstream }: Options, told: Scrub): Attempt => {
  const scrubbed = (text: string) => told(scrub.beginning(text, maxSaid))

  // No TypeError: the SDKs take that for a browser's CORS, and try again without headers
  const failed = (issue: string): AuthorizationFailed => {
    const failure = attempt.failure = new AuthorizationFailed({ issue })
    if (attempt.failedRefresh !== undefined) attempt.failedRefresh = failure
    return failure
  }

  const attempt: Attempt = {
    failure: undefined,
    failedRefresh: undefined,
    know: (secret) => told.hold(secret)(),
    fetchUntil: (signal) => async (url, init) => {
      attempt.failure = undefined
      const target = new URL(url)
      if (!isAllowed(target, init, upstream)) {
        throw failed("what names the authorization server leads to an address that is not https")
      }
      const form = formOf(init)
      const isRefresh = form.get("grant_type") === "refresh_token"
      // Until it has said no
      if (isRefresh) attempt.failedRefresh = failed("the authorization server gave no token")
      for (const secret of secretsOf(init, form)) attempt.know(secret)
      let response: Response
      let text: string
      try {
        response = await fetch(url, { ...init, redirect: "manual", signal })
        text = await read(response)
      } catch (error) {
        if (error === tooLong) throw failed(`the answer of the authorization server is longer than ${maxBytes} bytes`)
        throw failed(
          signal.aborted ? "the authorization server took too long" : "the authorization server can't be reached"
        )
      }
      let { ok, status } = response
      if (init?.method === "POST") {
        // The SDKs quote in errors, and on the console, what they can't read: it may have a token in it
        const body = parse(text)
        if (ok && body === undefined) throw failed(unreadable)
        // GitHub says no with 200
        if (ok && isError(body)) [ok, status] = [false, 400]
        // RFC 6749 section 5.2. Whatever else it answers is not its word on what it was asked
        if (!ok && !(status >= 400 && status !== 429 && isError(body))) {
          throw failed(`the authorization server answered ${status}`)
        }
      }
      if (status >= 500) failed(`the authorization server answered ${status}`)
      else if (ok) attempt.failure = undefined
      else attempt.failure = attempt.failedRefresh = undefined
      const body = text === "" ? null : ok ? text : scrubbed(text)
      return Object.defineProperty(new Response(body, { headers: response.headers, status }), "url", {
        value: target.href
      })
    },
    issueOf: (error) => {
      if (error instanceof AuthorizationFailed) return error
      if (attempt.failure !== undefined) return attempt.failure
      const { code, message } = describe(error)
      const said = scrubbed(message).slice(0, 300)
      return code === undefined
        ? new AuthorizationFailed({ issue: said === "" ? "the authorization server gave none" : said })
        : new AuthorizationFailed({
          issue: `the authorization server says ${code}${said === "" ? "" : `: ${said}`}`,
          code
        })
    }
  }
  return attempt
}

const isAllowed = (target: URL, init: RequestInit | undefined, upstream: URL): boolean =>
  // What the upstream says of itself is as good as the upstream
  (target.origin === upstream.origin && (init?.method ?? "GET") === "GET") || mayName(upstream, target)

/**
 * MCP 2025-11-25, basic/authorization, communication security: all endpoints of an authorization server MUST be served
 * over HTTPS. One on this machine may do without, for an upstream on this machine: nobody else sends us here, or the
 * caller's browser.
 */
export const mayName = (upstream: URL, endpoint: URL): boolean => {
  const isLocal = upstream.protocol === "http:" && isTrusted(upstream)
  return isTrusted(endpoint) && (isLocal || endpoint.protocol === "https:")
}

const unreadable = "the authorization server's answer is not what OAuth says"

const parse = (text: string): unknown =>
  Option.getOrUndefined(Option.liftThrowable((json: string): unknown => JSON.parse(json))(text))

const isError = (body: unknown): boolean => Predicate.hasProperty(body, "error") && typeof body.error === "string"

const tooLong = new Error("too long")

const read = async ({ body }: Response): Promise<string> => {
  if (body === null) return ""
  const chunks: Array<Uint8Array> = []
  const reader = body.getReader()
  let size = 0
  const readOn = async (): Promise<void> => {
    const { done, value } = await reader.read()
    if (done) return
    chunks.push(value)
    size += value.length
    if (size <= maxBytes) return readOn()
    void reader.cancel().catch(() => {})
    throw tooLong
  }
  await readOn()
  return Buffer.concat(chunks).toString()
}

const formOf = (init: RequestInit | undefined): URLSearchParams => {
  const { body } = init ?? {}
  return body instanceof URLSearchParams ? body : new URLSearchParams(typeof body === "string" ? body : "")
}

/** What of a request an answer must not say in an error. */
const secretsOf = (init: RequestInit | undefined, form: URLSearchParams): ReadonlyArray<string> => {
  const [, basic = ""] = /^Basic (.+)$/.exec(new Headers(init?.headers).get("authorization") ?? "") ?? []
  const password = Buffer.from(basic, "base64").toString().replace(/^[^:]*:/, "")
  return [basic, password, ...secretParameters.flatMap((name) => form.getAll(name))]
}

const secretParameters = [
  "actor_token",
  "assertion",
  "client_assertion",
  "client_secret",
  "code",
  "code_verifier",
  "refresh_token",
  "subject_token"
]

const describe = (error: unknown): { readonly code: string | undefined; readonly message: string } => {
  if (!(error instanceof Error)) return { code: undefined, message: "" }
  const { code, errorCode } = error as { readonly code?: unknown; readonly errorCode?: unknown }
  // Of schemas that it does not match: thousands of characters of JSON. Of what is no JSON: it is quoted, and may be a
  // token
  if ("issues" in error || error instanceof SyntaxError) {
    return { code: undefined, message: unreadable }
  }
  const found = [errorCode, code].find((one) => typeof one === "string" && /^[\w-]{1,60}$/.test(one))
  return { code: found as string | undefined, message: error.message }
}
