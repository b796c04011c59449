/**
 * The `fetch` that brings tokens along. It stands next to the user's own, below everything that knows of MCP: what is
 * above it sees a request that was refused for want of a token only when there is no better one.
 *
 *   request -> token? -> sent -> 401 -> another token? -> sent again -> whatever it answers
 *                          |                 '-> none: the 401
 *                          '-> 403 insufficient_scope -> more scopes? -> sent again, twice at most
 *
 * RFC 9110 section 15.5.2: a request that is answered with 401 "has not been applied". One that was redirected has been
 * somewhere else before, so it is not sent again unless it has no effects.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import type { Authorization } from "../../Authorization.ts"
import type { FetchLike } from "../../Connector.ts"
import type { McpSessionError } from "../../McpSessionError.ts"
import { isTrusted } from "../../TokenOptions.ts"
import * as Challenges from "../challenges.ts"
import * as Time from "../time.ts"
import * as Cells from "./cells.ts"
import * as Granted from "./granted.ts"
import * as Provided from "./provided.ts"
import * as Sourced from "./sourced.ts"

export interface Options<R> extends Omit<Cells.Options, "sdk"> {
  readonly authorization: Authorization<R>
}

/** Of a generation of the SDK. */
export type Authorized = <R>(
  options: Options<R>
) => Effect.Effect<FetchLike, McpSessionError, R | Scope.Scope>

/** What a request has been through. */
interface Course {
  readonly token: string | undefined
  readonly renewals: number
  readonly stepUps: number
}

/**
 * How long a token that was refused as soon as it had come is not replaced, in milliseconds: at first, and at last when
 * all that come after it are refused, too.
 */
const minRest = 1_000
const maxRest = 30_000

const maxStepUps = 2

export const make = (sdk: Cells.Sdk): Authorized => (options) =>
  Effect.gen(function*() {
    const { fetch, prepare, url } = options
    const tokens = yield* prepare(tokensOf({ ...options, sdk }))
    const context = yield* Effect.context<never>()
    const runPromise = Effect.runPromiseWith(context)
    const moment = Time.monotonic(yield* Clock.Clock)
    const wasRedirected = redirects()

    /** Another token than this, if there is one. */
    const replaced = (wanted: Cells.Wanted, flown: number): Effect.Effect<string | undefined, unknown> =>
      Effect.gen(function*() {
        const { cell, current, renew } = tokens
        for (let isOwn = false; !isOwn;) {
          // Those who wait for the same flight share what comes of it
          while (cell.flight !== undefined) yield* Deferred.await(cell.flight)
          const now = yield* current
          if (now !== wanted.refused) return now
          if (cell.flown > flown) {
            if (cell.failed !== undefined) return yield* Effect.as(cell.failed, undefined)
            // It has brought the same again
            if (!wanted.isStepUp || cell.widenedBy === wanted.scope) return undefined
          }
          const { unproven } = cell
          const isResting = unproven !== undefined && unproven.token === now && moment() < unproven.until
          if (isResting && !wanted.isStepUp) return undefined
          isOwn = yield* Cells.fly(
            cell,
            Effect.suspend(() => {
              if (wanted.isStepUp) cell.widenedBy = wanted.scope
              return renew(wanted)
            })
          )
        }
        const next = yield* current
        if (next === undefined || next === wanted.refused) return undefined
        const rest = Math.min(maxRest, 2 * (cell.unproven?.rest ?? minRest / 2))
        cell.unproven = { token: next, rest, until: moment() + rest }
        return next
      })

    // Whoever has given up hears that, and not that a fiber was interrupted
    const within = async <A>({ signal }: RequestInit, effect: Effect.Effect<A, unknown>): Promise<A> => {
      try {
        return await runPromise(prepare(effect), signal === null || signal === undefined ? {} : { signal })
      } catch (error) {
        signal?.throwIfAborted()
        throw error
      }
    }

    const send = async (target: string | URL, init: RequestInit, course: Course): Promise<Response> => {
      const { renewals, stepUps, token } = course
      const body = typeof init.body === "string" ? init.body : undefined
      const { flown } = tokens.cell
      const response = await fetch(target, bearing(init, token))
      if (tokens.cell.unproven?.token === token && response.status !== 401) tokens.cell.unproven = undefined
      const isRedirected = wasRedirected(response, body)
      const refusal = refusalOf(response, url)
      if (refusal === undefined || (isRedirected && !isHarmless(body))) return response
      if (refusal.isStepUp ? stepUps === maxStepUps : renewals === 1) return response
      try {
        const next = await within(init, replaced({ ...refusal, refused: token }, flown))
        if (next === undefined) return response
        letGo(response)
        return await send(target, init, {
          token: next,
          renewals: renewals + (refusal.isStepUp ? 0 : 1),
          stepUps: stepUps + (refusal.isStepUp ? 1 : 0)
        })
      } catch (error) {
        letGo(response)
        throw error
      }
    }

    return async (target, init = {}) => {
      if (new URL(target).origin !== url.origin) return fetch(target, init)
      const token = tokens.known() ?? await within(init, tokens.current)
      return send(target, init, { token, renewals: 0, stepUps: 0 })
    }
  })

const maxRedirected = 1_000

/**
 * Whether the request with this body has been somewhere else before it was answered. The SDKs follow redirects
 * themselves, and send the same body again.
 */
const redirects = () => {
  const redirected = new Set<string>()
  return (response: Response, body: string | undefined): boolean => {
    const isRedirect = response.status >= 300 && response.status < 400
    if (body === undefined || (!isRedirect && redirected.size === 0)) return response.redirected
    const digest = createHash("sha256").update(body).digest("base64url")
    const isKnown = redirected.delete(digest)
    if (isRedirect) redirected.add(digest)
    if (redirected.size > maxRedirected) redirected.delete(redirected.values().next().value!)
    return isKnown || response.redirected
  }
}

const letGo = ({ body }: Response): void => {
  if (body?.locked === false) void body.cancel().catch(() => {})
}

const bearing = (init: RequestInit, token: string | undefined): RequestInit => {
  if (token === undefined) return init
  const headers = new Headers(init.headers)
  headers.set("authorization", `Bearer ${token}`)
  return { ...init, headers }
}

/** What the upstream says of the token, if that is what it refuses. */
const refusalOf = (response: Response, upstream: URL): Omit<Cells.Wanted, "refused"> | undefined => {
  if (response.status !== 401 && response.status !== 403) return undefined
  const { parameters } = Challenges.parse(response.headers.get("www-authenticate") ?? "")
    .find(({ scheme }) => scheme.toLowerCase() === "bearer") ?? { parameters: undefined }
  const isStepUp = response.status === 403
  const named = parameters?.["scope"] ?? ""
  const scope = named.length < Challenges.maxScope ? named || undefined : undefined
  // RFC 6750 section 3.1. Without a scope there is nothing to ask for
  if (isStepUp && (parameters?.["error"] !== "insufficient_scope" || scope === undefined)) return undefined
  return { isStepUp, scope, resourceMetadataUrl: metadataUrl(parameters?.["resource_metadata"], upstream) }
}

const metadataUrl = (text: string | undefined, upstream: URL): URL | undefined => {
  if (text === undefined || !URL.canParse(text)) return undefined
  const url = new URL(text)
  return url.origin === upstream.origin || isTrusted(url) ? url : undefined
}

/** Whether sending it twice is as good as sending it once. */
const isHarmless = (body: string | undefined): boolean =>
  body === undefined || harmless.has((JSON.parse(body) as { readonly method?: unknown }).method)

const harmless: ReadonlySet<unknown> = new Set(["initialize", "ping", "server/discover"])

const tokensOf = <R>(options: Options<R> & Cells.Options): Effect.Effect<Cells.Tokens, unknown, R | Scope.Scope> => {
  const { authorization } = options
  if (typeof authorization === "function") return Provided.make(options, authorization)
  return "token" in authorization ? Sourced.make(options, authorization) : Granted.make(options, authorization)
}
