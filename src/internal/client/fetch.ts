/**
 * The `fetch` that an HTTP transport is given: it sets the headers of each request, and knows what becomes of each
 * reply stream. For the SDKs a stream that ends without its reply is no event at all, and one whose request was
 * cancelled stays open until the session is closed.
 *
 *   POST -> (waiting for headers) -> reply stream -> reply                               done
 *                |                       |-> ended or broken, resumable  -> GET, by the SDK -> reply
 *                |                       |-> ended or broken, otherwise  -> the call fails
 *                |-> any other answer, without the reply -> the call fails
 *                '--- cancelled ---------'-> closed
 */
import type { FetchLike } from "../../Connector.ts"
import type { MessageLike } from "./sdk.ts"
import * as Spans from "./spans.ts"
import { type Listener, type RequestId, requestIds, type Wire } from "./wire.ts"

export interface Http {
  readonly fetch: FetchLike
  /** Why the stream that is the session could not be opened: an EventSource keeps that to itself. */
  readonly streamFailure: () => unknown
  readonly attach: (wire: Wire) => Listener
}

export interface Options {
  readonly fetch: FetchLike
  /** The headers of the coming request. Its rejection is the request's. */
  readonly headers: () => Promise<Readonly<Record<string, string>>>
  /** The least time between two tries to open the same stream: a server's own `retry:` may be none at all. */
  readonly pause: () => Promise<void>
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
  const resumable = new Map<string, { readonly id: RequestId; failures: number; ready: Promise<void> | undefined }>()
  let wire: Wire | undefined
  let hasStream = false
  let streamFailure: unknown
  let streamReady: Promise<void> | undefined

  const forgetTokens = (id: RequestId) => {
    for (const [token, resume] of resumable) if (resume.id === id) resumable.delete(token)
  }

  const forget = (exchange: Exchange) => {
    exchange.end()
    for (const id of exchange.ids) if (exchanges.get(String(id)) === exchange) exchanges.delete(String(id))
  }

  // The SDK reads the last bytes in microtasks: one turn of the loop later it has read them all
  const onStreamEnd = (exchange: Exchange) =>
    setImmediate(() => {
      forget(exchange)
      for (const id of exchange.ids) {
        if (wire?.isAwaited(id) !== true) forgetTokens(id)
        else if (!isResumable(id) || exchange.isMisled) wire.abandon(id)
      }
    })

  const isResumable = (id: RequestId): boolean => {
    for (const resume of resumable.values()) if (resume.id === id) return true
    return false
  }

  const post = async (url: string | URL, init: RequestInit, ids: ReadonlyArray<RequestId>): Promise<Response> => {
    const exchange = makeExchange(ids, init.signal)
    for (const id of ids) {
      // It was redirected
      exchanges.get(String(id))?.end()
      exchanges.set(String(id), exchange)
    }
    // From here on `onSettled` says when the SDK is done with it
    const response = await options.fetch(url, { ...init, signal: exchange.signal })
    exchange.status = response.status
    if (!isEventStream(response)) return response
    exchange.hasStream = true
    return withBody(response, exchange.observe(response.body!, () => onStreamEnd(exchange)))
  }

  const reopen = async (url: string | URL, init: RequestInit, token: string): Promise<Response> => {
    const resuming = resumable.get(token)!
    await resuming.ready
    resuming.ready = options.pause()
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
      if (isEventStream(response)) return withBody(response, observe(response.body!, () => {}))
      failed()
      return response
    } catch (error) {
      failed()
      throw error
    }
  }

  /** The stream on which the server speaks unasked. */
  const stream = async (url: string | URL, init: RequestInit): Promise<Response> => {
    if (hasStream && options.isStreamSession) throw new Error("The stream of this session has ended")
    await streamReady
    streamReady = options.pause()
    const response = await options.fetch(url, init).catch((error: unknown) => {
      streamFailure = error
      throw error
    })
    streamFailure = undefined
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
      const messages = messagesIn(init.body)
      const traceparent = messages === undefined ? undefined : Spans.traceparentIn(messages)
      if (traceparent !== undefined) headers.set("traceparent", traceparent)
      if (init.method === "POST" && !options.isStreamSession) {
        const ids = messages === undefined ? [] : requestIds(messages)
        return ids.length > 0 ? post(url, request, ids) : discarded(await options.fetch(url, request))
      }
      if (init.method !== undefined && init.method !== "GET") return options.fetch(url, request)
      const token = headers.get("last-event-id")
      return token !== null && resumable.has(token) ? reopen(url, request, token) : stream(url, request)
    },
    streamFailure: () => streamFailure,
    attach: (attached) => {
      wire = attached
      // Until there is a stream of the server's own. It may have none
      attached.isDeaf = true
      return {
        onSettled: (id) => {
          const exchange = exchanges.get(String(id))
          if (exchange === undefined || exchange.hasStream) return
          forget(exchange)
          // 2025-11-25, basic/transports: the answer to a request MUST be a stream or one JSON object. All has been
          // read
          const status = exchange.status === undefined ? "" : ` (HTTP ${exchange.status})`
          const message = `The server answered${status} without a reply to this request`
          for (const other of exchange.ids) attached.abandon(other, { code: -32603, message })
        },
        onStray: () => {
          // It looks like a reply to the SDK, which resumes no stream that has brought one
          for (const exchange of exchanges.values()) exchange.isMisled = true
        },
        onCancelled: (id) => {
          // With its stream gone already the SDK is about to resume it: the token stays, for that to be refused
          const exchange = exchanges.get(String(id))
          if (exchange === undefined) return
          forgetTokens(id)
          if (exchange.ids.some((other) => attached.isAwaited(other))) return
          forget(exchange)
          exchange.cancel()
        },
        onResumable: (id, token) => {
          const ready = Array.from(resumable.values()).find((resume) => resume.id === id)?.ready
          forgetTokens(id)
          if (wire?.isAwaited(id) !== true) return
          resumable.set(token, { id, failures: 0, ready })
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
  /** The requests in its body: more than one of a batch. */
  readonly ids: ReadonlyArray<RequestId>
  /** The answer's, once it has begun. */
  status: number | undefined
  /** The answer is a stream of events, and its end the stream's. */
  hasStream: boolean
  /** Its stream may have brought a reply to nobody's request. */
  isMisled: boolean
  readonly signal: AbortSignal
  /** Nobody waits for the reply any more: lets go of the connection. */
  readonly cancel: () => void
  readonly end: () => void
  readonly observe: (body: ReadableStream<Uint8Array>, onEnd: () => void) => ReadableStream<Uint8Array>
}

const makeExchange = (ids: ReadonlyArray<RequestId>, outer: AbortSignal | null | undefined): Exchange => {
  const controller = new AbortController()
  const abort = () => controller.abort(outer?.reason)
  if (outer?.aborted === true) abort()
  else outer?.addEventListener("abort", abort, { once: true })
  let release: (() => void) | undefined

  const exchange: Exchange = {
    ids,
    status: undefined,
    hasStream: false,
    isMisled: false,
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
        release = () => close(`data: ${JSON.stringify({ jsonrpc: "2.0", id: ids[0], result: {} })}\n\n`)
      })
  }
  return exchange
}

/**
 * The same bytes, and word of the end: `onEnd` is called once, when the stream ends, breaks or is cancelled.
 * `onStart` gets a function that ends it from our side, after one last text.
 *
 * The SDKs read a stream without a turn of the loop in between, and what is no message costs them half a millisecond:
 * many lines at once are given to them a few at a time, or everybody else's timers would wait for a flood.
 */
const observe = (
  body: ReadableStream<Uint8Array>,
  onEnd: () => void,
  onStart?: (close: (last: string) => void) => void
): ReadableStream<Uint8Array> => {
  const reader = body.getReader()
  let ended = false
  let rest: Uint8Array | undefined
  const give = (controller: ReadableStreamDefaultController<Uint8Array>, bytes: Uint8Array) => {
    const cut = endOfLines(bytes)
    rest = cut < bytes.length ? bytes.subarray(cut) : undefined
    controller.enqueue(rest === undefined ? bytes : bytes.subarray(0, cut))
  }
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
        if (rest !== undefined) {
          await new Promise((resolve) => setImmediate(resolve))
          return ended ? undefined : give(controller, rest)
        }
        const { done, value } = await reader.read()
        if (ended) return
        if (!done) return give(controller, value)
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

const linesATurn = 64

/** Where the first of so many lines end, or all. */
const endOfLines = (bytes: Uint8Array): number => {
  let end = 0
  for (let line = 0; line < linesATurn; line++) {
    end = bytes.indexOf(newline, end) + 1
    if (end === 0) return bytes.length
  }
  return end
}

const newline = 10

// As the SDKs see it: 202 has no body to them, whatever it says
const isEventStream = (response: Response): boolean =>
  response.ok && response.status !== 202 && response.body !== null &&
  response.headers.get("content-type")?.split(";")[0]!.trim().toLowerCase() === "text/event-stream"

// What answers a notification holds nothing, and the SDK would wait for its end
const discarded = (response: Response): Response => {
  if (!response.ok || response.body === null) return response
  void response.body.cancel().catch(() => {})
  return new Response(null, { status: response.status, headers: response.headers })
}

// A new Response would lose its URL and whether it was redirected
const withBody = (response: Response, body: ReadableStream<Uint8Array>): Response =>
  Object.defineProperty(response, "body", { value: body })

const messagesIn = (body: RequestInit["body"]): MessageLike | ReadonlyArray<MessageLike> | undefined =>
  typeof body === "string" ? JSON.parse(body) as MessageLike | ReadonlyArray<MessageLike> : undefined
