/**
 * What an HTTP server says when it refuses a request, and what the SDKs keep to themselves: when to come back, which
 * credentials it asks for, whether this very request was answered, and whether another server had it before.
 *
 * It stands around `fetch`, and knows a request by its body, so that whatever the SDK throws for it can be told apart.
 */
import * as Duration from "effect/Duration"
import type { FetchLike } from "../../Connector.ts"
import type { Challenge } from "../../McpSessionError.ts"
import * as Challenges from "../challenges.ts"
import { causesOf } from "./classify.ts"
import type { MessageLike } from "./sdk.ts"
import { requestIds } from "./wire.ts"

export interface Refusal {
  readonly status: number
  readonly retryAfter: Duration.Duration | undefined
  readonly challenges: ReadonlyArray<Challenge>
  /**
   * Whether nothing of the request can have run, if the server says that it does not know the session. Not so when the
   * answer has the request's own id, for it was read; nor when another server had sent it here.
   */
  readonly isUnread: boolean
  readonly isRedirected: boolean
}

export interface Refusals {
  readonly fetch: FetchLike
  /** `error` is what became of sending `message`. */
  readonly onFailed: (error: unknown, message: unknown) => void
  /** What was said about the request that has failed with `error`. */
  readonly of: (error: unknown) => Refusal | undefined
  /** What was said last, to whatever request: not every error can be told by what it is an error of. */
  readonly latest: () => Refusal | undefined
}

// The SDKs quote all of it in their errors, and it may never end
const maxBody = 64 * 1024

export interface Options {
  readonly fetch: FetchLike
  readonly now: () => number
  /** Calls it when an error has taken too long to be told, unless it is called back before. */
  readonly whenLate: (f: () => void) => () => void
}

/** A request that was refused or redirected, until the SDK has said what it makes of that. */
interface Pending extends Refusal {
  /** Where it was sent. */
  readonly tried: ReadonlyArray<string>
}

export const make = ({ fetch, now, whenLate }: Options): Refusals => {
  /** By their body. */
  const pending = new Map<string, Pending>()
  const refusals = new WeakMap<object, Refusal>()
  let latest: Refusal | undefined

  const retryAfterOf = ({ headers }: Response): Duration.Duration | undefined => {
    const text = headers.get("retry-after")?.trim() ?? ""
    if (/^\d{1,10}$/.test(text)) return Duration.seconds(Number(text))
    // RFC 9110 section 10.2.3: seconds, or a date. It is the server's clock that this one is by.
    const isDate = /^[A-Z][a-z]+, ?\d/.test(text)
    const until = isDate ? Date.parse(text) : NaN
    if (Number.isNaN(until)) return undefined
    const said = Date.parse(headers.get("date") ?? "")
    return Duration.millis(Math.max(0, until - (Number.isNaN(said) ? now() : said)))
  }

  const wrapped: FetchLike = async (url, init) => {
    const body = init?.method === "POST" && typeof init.body === "string" ? init.body : undefined
    const before = body === undefined ? undefined : pending.get(body)
    const response = await fetch(url, init)
    if (response.status < 300) {
      if (body !== undefined) pending.delete(body)
      return response
    }
    const tried = [...before?.tried ?? [], String(url)]
    const isRedirected = before !== undefined || response.redirected || response.status < 400
    const refused = (isUnread: boolean) => {
      latest = {
        status: response.status,
        retryAfter: retryAfterOf(response),
        challenges: Challenges.parse(response.headers.get("www-authenticate") ?? ""),
        isUnread: isUnread && !isRedirected,
        isRedirected
      }
      if (body !== undefined) pending.set(body, { ...latest, tried })
    }
    if (response.status < 400) {
      refused(false)
      return leadsBack(response, url, tried) ? ended(response) : response
    }
    const { isWhole, text } = await read(response, init?.signal, whenLate)
    refused(isWhole && (body === undefined || !names(text, body)))
    return withText(response, text)
  }

  return {
    fetch: wrapped,
    onFailed: (error, message) => {
      if (pending.size === 0) return
      const body = JSON.stringify(message)
      const refusal = pending.get(body)
      pending.delete(body)
      if (refusal !== undefined && typeof error === "object" && error !== null) refusals.set(error, refusal)
    },
    of: (error) => {
      for (const cause of causesOf(error)) {
        const refusal = refusals.get(cause)
        if (refusal !== undefined) return refusal
      }
      return undefined
    },
    latest: () => latest
  }
}

/** Whether a redirect from `url` leads to where the request has been before. */
const leadsBack = ({ headers }: Response, url: string | URL, tried: ReadonlyArray<string>): boolean => {
  const location = headers.get("location") ?? ""
  if (location === "" || !URL.canParse(location, String(url))) return false
  const target = new URL(location, url)
  target.hash = ""
  return tried.includes(target.href)
}

/** The same redirect, to nowhere: the SDKs would send the request again, and again. */
const ended = (response: Response): Response => {
  void response.body?.cancel().catch(() => {})
  const headers = new Headers(response.headers)
  headers.delete("location")
  return new Response(null, { status: response.status, headers })
}

/**
 * As much of a body as is wanted, and has come in time: nobody waits for the end of what answers a notification. One
 * that breaks off is as long as it is, unless it was broken off here.
 */
const read = async (
  { body }: Response,
  signal: AbortSignal | null | undefined,
  whenLate: Options["whenLate"]
): Promise<{ readonly text: string; readonly isWhole: boolean }> => {
  if (body === null) return { text: "", isWhole: true }
  const chunks: Array<Uint8Array> = []
  const reader = body.getReader()
  let left = maxBody
  let isWhole = true
  const breakOff = () => {
    isWhole = false
    void reader.cancel().catch(() => {})
  }
  const inTime = whenLate(breakOff)
  const readOn = async (): Promise<void> => {
    const { done, value } = await reader.read()
    if (done) return
    chunks.push(value.subarray(0, left))
    left -= value.length
    return left > 0 ? readOn() : breakOff()
  }
  try {
    await readOn()
  } catch (error) {
    if (signal?.aborted === true) throw error
    isWhole = false
  } finally {
    inTime()
  }
  return { text: Buffer.concat(chunks).toString(), isWhole }
}

const withText = ({ headers, redirected, status, statusText, url }: Response, text: string): Response =>
  Object.defineProperties(new Response(text, { headers, status, statusText }), {
    redirected: { value: redirected },
    url: { value: url }
  })

/**
 * Whether the answer has the id of a request in `body`, however it is written: 1, 1.0 and "1" are one to the SDK, and
 * any character may be escaped. It need not be JSON, nor whole.
 */
const names = (text: string, body: string): boolean => {
  const ids = new Set(requestIds(JSON.parse(body) as MessageLike).map(String))
  const unescaped = text.replace(/\\u([\da-f]{4})/gi, (_, code: string) => String.fromCharCode(parseInt(code, 16)))
  for (const [, string, other] of unescaped.matchAll(/"id"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([-+.\w]+))/g)) {
    if (ids.has(string ?? (Number.isNaN(Number(other)) ? other! : String(Number(other))))) return true
  }
  return false
}
