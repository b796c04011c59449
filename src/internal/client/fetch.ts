/**
 * The `fetch` that an HTTP transport is given: it sets the headers of each request, and knows what becomes of each reply
 * stream. For the SDKs a stream that ends without its reply is no event at all, and one whose request was cancelled
 * stays open until the session is closed.
 *
 *   POST -> (waiting for headers) -> reply stream -> reply                               done
 *                |                       |-> ended or broken, resumable  -> GET, by the SDK -> reply
 *                |                       |-> ended or broken, otherwise  -> the call fails
 *                '--- cancelled ---------'-> closed
 */
import type { FetchLike } from "../../Connector.ts"
import type { Listener, RequestId, Wire } from "./wire.ts"

export interface Http {
  readonly fetch: FetchLike
  readonly attach: (wire: Wire) => Listener
}

export interface Options {
  readonly fetch: FetchLike
  /** The headers of the coming request. Its rejection is the request's. */
  readonly headers: () => Promise<Readonly<Record<string, string>>>
  /**
   * Whether the session is the GET stream itself, as in the SSE transport: then its end is the session's. Left alone,
   * the EventSource would come back to a new session that was never initialized.
   */
  readonly isStreamSession: boolean
}

// What the transport itself says of a request is not to be overruled
const reserved = new Set([
  "accept",
  "content-type",
  "last-event-id",
  "mcp-method",
  "mcp-name",
  "mcp-protocol-version",
  "mcp-session-id"
])

// The SDKs try twice to resume a reply stream
const maxResumes = 2

// One for each call whose reply stream has events with ids; those of resumed calls stay until there are this many
const maxTokens = 1_000

export const make = (options: Options): Http => {
  const exchanges = new Map<string, Exchange>()
  const resumable = new Map<string, { readonly id: RequestId; failures: number }>()
  let wire: Wire | undefined
  let hasStream = false

  const forgetTokens = (id: RequestId) => {
    for (const [token, resume] of resumable) if (resume.id === id) resumable.delete(token)
  }

  // The SDK reads the last bytes in microtasks: one turn of the loop later it has read them all
  const onStreamEnd = (id: RequestId) =>
    setImmediate(() => {
      exchanges.delete(String(id))
      if (wire?.isAwaited(id) !== true) return forgetTokens(id)
      for (const resume of resumable.values()) if (resume.id === id) return
      wire.abandon(id)
    })

  const post = async (url: string | URL, init: RequestInit, id: RequestId): Promise<Response> => {
    const exchange = makeExchange(id, init.signal)
    exchanges.set(String(id), exchange)
    try {
      const response = await options.fetch(url, { ...init, signal: exchange.signal })
      if (isEventStream(response)) {
        return withBody(response, exchange.observe(response.body!, () => onStreamEnd(id)))
      }
      exchange.end()
      exchanges.delete(String(id))
      return response
    } catch (error) {
      exchange.end()
      exchanges.delete(String(id))
      throw error
    }
  }

  const reopen = async (url: string | URL, init: RequestInit, token: string): Promise<Response> => {
    const resuming = resumable.get(token)!
    // Cancelled or given up meanwhile. To the SDK 405 says that there is no stream, and that this is fine.
    if (wire?.isAwaited(resuming.id) !== true) {
      resumable.delete(token)
      return new Response(null, { status: 405 })
    }
    const failed = () => {
      resuming.failures++
      if (resuming.failures >= maxResumes) setImmediate(() => wire?.abandon(resuming.id))
    }
    try {
      const response = await options.fetch(url, init)
      // Refused is refused: there is nothing to wait for
      if (!response.ok) resuming.failures = maxResumes
      if (!isEventStream(response)) failed()
      return response
    } catch (error) {
      failed()
      throw error
    }
  }

  /** The stream on which the server speaks unasked. */
  const stream = async (url: string | URL, init: RequestInit): Promise<Response> => {
    if (hasStream && options.isStreamSession) throw new Error("The stream of this session has ended")
    const response = await options.fetch(url, init)
    if (!isEventStream(response)) return response
    hasStream = true
    if (wire !== undefined) wire.isDeaf = false
    return withBody(response, observe(response.body!, () => options.isStreamSession ? wire?.end() : wire?.deafen()))
  }

  return {
    fetch: async (url, init = {}) => {
      const headers = new Headers(init.headers)
      for (const [name, value] of Object.entries(await options.headers())) {
        if (!reserved.has(name.toLowerCase())) headers.set(name, value)
      }
      const request = { ...init, headers }
      const id = init.method === "POST" && !options.isStreamSession ? requestIdOf(init.body) : undefined
      if (id !== undefined) return post(url, request, id)
      if (init.method !== undefined && init.method !== "GET") return options.fetch(url, request)
      const token = headers.get("last-event-id")
      return token !== null && resumable.has(token) ? reopen(url, request, token) : stream(url, request)
    },
    attach: (attached) => {
      wire = attached
      return {
        onCancelled: (id) => {
          // With its stream gone already the SDK is about to resume it: the token stays, for that to be refused
          const exchange = exchanges.get(String(id))
          if (exchange === undefined) return
          exchanges.delete(String(id))
          forgetTokens(id)
          exchange.cancel()
        },
        onResumable: (id, token) => {
          forgetTokens(id)
          if (wire?.isAwaited(id) !== true) return
          resumable.set(token, { id, failures: 0 })
          if (resumable.size > maxTokens) resumable.delete(resumable.keys().next().value!)
        }
      }
    }
  }
}

// -----------------------------------------------------------------------------
// One POST
// -----------------------------------------------------------------------------

interface Exchange {
  readonly signal: AbortSignal
  /** Nobody waits for the reply any more: lets go of the connection. */
  readonly cancel: () => void
  readonly end: () => void
  readonly observe: (body: ReadableStream<Uint8Array>, onEnd: () => void) => ReadableStream<Uint8Array>
}

const makeExchange = (id: RequestId, outer: AbortSignal | null | undefined): Exchange => {
  const controller = new AbortController()
  const abort = () => controller.abort(outer?.reason)
  if (outer?.aborted === true) abort()
  else outer?.addEventListener("abort", abort, { once: true })
  let release: (() => void) | undefined

  const exchange: Exchange = {
    signal: controller.signal,
    cancel: () => {
      if (release === undefined) controller.abort()
      else release()
      exchange.end()
    },
    // One listener a request would otherwise stay at the transport's signal for the life of the session
    end: () => outer?.removeEventListener("abort", abort),
    observe: (body, onEnd) =>
      observe(body, () => {
        exchange.end()
        onEnd()
      }, (close) => {
        // A stream that breaks off would be resumed by the SDK: it is told that the reply has come. The wire drops it.
        release = () => close(`data: ${JSON.stringify({ jsonrpc: "2.0", id, result: {} })}\n\n`)
      })
  }
  return exchange
}

/**
 * The same bytes, and word of the end: `onEnd` is called once, when the stream ends, breaks or is cancelled.
 * `onStart` gets a function that ends it from our side, after one last text.
 */
const observe = (
  body: ReadableStream<Uint8Array>,
  onEnd: () => void,
  onStart?: (close: (last: string) => void) => void
): ReadableStream<Uint8Array> => {
  const reader = body.getReader()
  let ended = false
  const end = () => {
    if (ended) return false
    ended = true
    onEnd()
    return true
  }
  return new ReadableStream<Uint8Array>({
    start: (controller) =>
      onStart?.((last) => {
        if (!end()) return
        controller.enqueue(new TextEncoder().encode(last))
        controller.close()
        void reader.cancel().catch(() => {})
      }),
    pull: async (controller) => {
      try {
        const { done, value } = await reader.read()
        if (ended) return
        if (!done) return controller.enqueue(value)
        controller.close()
      } catch (error) {
        if (!ended) controller.error(error)
      }
      end()
    },
    cancel: (reason) => {
      end()
      return reader.cancel(reason)
    }
  })
}

const isEventStream = (response: Response): boolean =>
  response.ok && response.body !== null && /^text\/event-stream\b/i.test(response.headers.get("content-type") ?? "")

// A new Response would lose its URL and whether it was redirected
const withBody = (response: Response, body: ReadableStream<Uint8Array>): Response =>
  Object.defineProperty(response, "body", { value: body })

const requestIdOf = (body: RequestInit["body"]): RequestId | undefined => {
  if (typeof body !== "string") return undefined
  const message = JSON.parse(body) as { readonly id?: RequestId; readonly method?: string }
  return message.method === undefined ? undefined : message.id
}
