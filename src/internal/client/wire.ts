/**
 * What stands between a client and its transport, and sees each message: the one place that knows which requests are
 * unanswered, and the moment the connection ends. Both generations of the SDK connect to it as to any transport.
 *
 * It settles what they leave open:
 * - a connection ends once, and at once: the v1 and v2 stdio transports tell only when each holder of the pipes is
 *   gone;
 * - a request whose reply can no longer come is failed instead of waiting for its timeout ({@link Wire.abandon});
 * - a late reply to a cancelled request is dropped, where the SDK would report an error;
 * - replies never overtake the progress that was read before them: the SDK handles progress a microtask later;
 * - what the SDK keeps for a request that could not be sent is freed;
 * - a tool's error never makes the v2 SDK call it again: see {@link unrepeated};
 * - what the server may have run is counted, also what nobody waits for: see `sent.ts`.
 */
import * as Sent from "../sent.ts"
import { headerMismatch, streamEnded } from "./classify.ts"
import type { MessageLike, SendOptionsLike, TransportLike } from "./sdk.ts"
import * as Spans from "./spans.ts"

export type RequestId = string | number

export interface Wire extends TransportLike {
  readonly closed: boolean
  /** The version that the handshake agreed on. */
  readonly protocolVersion: string | undefined
  readonly isAwaited: (id: RequestId) => boolean
  /**
   * Fails the request `id`, whose reply can't come any more: by default because its stream has ended. Does nothing if
   * it has come.
   */
  readonly abandon: (id: RequestId, error?: ErrorLike) => void
  /** What the server says unasked can't be heard for now: `isDeaf`, until somebody sets it to false. */
  readonly deafen: () => void
  /** Ends the connection as if the server had. */
  readonly end: () => void
  /** What has left, whoever sent it. */
  readonly sent: Sent.Sent
  isDeaf: boolean
  listener: Listener
  /** Of what is sent now and belongs to no call. */
  trace: Spans.Trace | undefined
}

interface ErrorLike {
  readonly code: number
  readonly message: string
  readonly data?: unknown
}

export interface Listener {
  readonly onEnd?: () => void
  /** Something that the transport could not make sense of, or do. Not the end of anything. */
  readonly onError?: (error: Error) => void
  readonly onDeaf?: () => void
  readonly onNotification?: (notification: MessageLike) => void
  /** `message` could not be sent. Comes before anybody else hears of it. */
  readonly onFailed?: (error: unknown, message: unknown) => void
  /** Something could not be sent. True if it was certainly not run. */
  readonly onUnsent?: (error: unknown) => boolean
  /** The transport has sent `id` and read what was there to be read at once, or has failed to. */
  readonly onSettled?: (id: RequestId) => void
  /** A reply to nothing that was asked, or to what was answered before. */
  readonly onStray?: () => void
  /** The client no longer waits for `id`, and the server was told, or can't be. */
  readonly onCancelled?: (id: RequestId) => void
  /** A reply stream can be resumed after `token`, should it break before the reply to `id`. */
  readonly onResumable?: (id: RequestId, token: string) => void
}

// Those whose reply came after all are forgotten with it
const maxCancelled = 1_000

const ended: ErrorLike = { code: -32000, message: "The reply stream ended", data: { cause: { code: streamEnded } } }

/** `canExpire`: whether an error can say of the session that its server has forgotten it. */
export const make = (inner: TransportLike, canExpire = false): Wire => {
  // By their text: the SDK takes "1" for an answer to 1
  const awaited = new Map<string, { readonly sent: Sent.Message; readonly method: string | undefined }>()
  const sent = Sent.make(canExpire)
  // Given up by us, so that a reply is no surprise
  const cancelled = new Set<string>()
  let closed = false
  let protocolVersion: string | undefined

  const receive = (message: unknown, extra?: unknown) =>
    (wire.onmessage as ((message: unknown, extra?: unknown) => void) | undefined)?.(message, extra)

  /** Nothing is awaited of `id` any more. False if nothing was. */
  const settle = (id: RequestId): boolean => {
    const asked = awaited.get(String(id))
    if (asked !== undefined) Sent.settled(sent, asked.sent)
    return awaited.delete(String(id))
  }

  const unsent = (message: Sent.Message, error: unknown) =>
    wire.listener.onUnsent?.(error) === true ? Sent.refused(sent, message) : Sent.settled(sent, message)

  const isModern = () => protocolVersion !== undefined && protocolVersion >= "2026-07-28"

  const refuse = (id: RequestId, error: ErrorLike = ended) => receive({ jsonrpc: "2.0", id, error })

  const send = (message: MessageLike, options: SendOptionsLike | undefined) =>
    inner.send(message as never, options).catch((error: unknown) => {
      wire.listener.onFailed?.(error, message)
      throw error
    })

  const end = () => {
    if (closed) return
    closed = true
    for (const id of awaited.keys()) settle(id)
    wire.listener.onEnd?.()
    wire.onclose?.()
  }

  const wire: Wire = {
    isDeaf: false,
    sent,
    listener: {},
    trace: undefined,
    ...(inner.hasPerRequestStream === undefined ? {} : { hasPerRequestStream: inner.hasPerRequestStream }),
    // By these two v2 knows a child process: a server that is silent on its probe is then one of the older kind
    ...(inner.pid === undefined ? {} : { pid: inner.pid, stderr: null }),
    get closed() {
      return closed
    },
    get protocolVersion() {
      return protocolVersion
    },
    get sessionId() {
      return inner.sessionId
    },
    isAwaited: (id) => awaited.has(String(id)),
    abandon: (id, error) => {
      if (settle(id)) refuse(id, error)
    },
    deafen: () => {
      wire.isDeaf = true
      wire.listener.onDeaf?.()
    },
    end: () => {
      end()
      void inner.close().catch(() => {})
    },
    start: () => inner.start(),
    close: async () => {
      await inner.close()
      // v1's SSE and HTTP transports say so themselves; a transport that doesn't must not leave calls hanging
      end()
    },
    setProtocolVersion: (version) => {
      protocolVersion = version
      inner.setProtocolVersion?.(version)
    },
    send: async (untraced: MessageLike, options) => {
      if (closed) throw new Error("Not connected")
      const message = Spans.traced(untraced, Spans.carried(options?.onresumptiontoken) ?? wire.trace)
      const ids = requestIds(message)
      if (ids.length > 0) return ask(message, ids, options)
      const given = message.method === "notifications/cancelled" ? message.params?.requestId : undefined
      if (isRequestId(given)) return cancel(message, given, options)
      return isReply(message) ? send(message, options) : notify(message, options)
    }
  }

  const ask = async (
    message: MessageLike,
    ids: ReadonlyArray<RequestId>,
    options: SendOptionsLike | undefined
  ) => {
    const left = Sent.leave(sent, Sent.carriedBy(options?.onresumptiontoken))
    for (const id of ids) awaited.set(String(id), { sent: left, method: message.method })
    try {
      await send(message, resumable(wire, ids[0]!, options))
    } catch (error) {
      unsent(left, error)
      for (const id of ids) {
        // The SDK rejects the call, and keeps its handlers: a reply that comes after that frees them
        if (awaited.delete(String(id))) setImmediate(() => refuse(id))
      }
      throw error
    } finally {
      wire.listener.onSettled?.(ids[0]!)
    }
  }

  const cancel = async (message: MessageLike, id: RequestId, options: SendOptionsLike | undefined) => {
    if (settle(id)) cancelled.add(String(id))
    if (cancelled.size > maxCancelled) cancelled.delete(cancelled.values().next().value!)
    // Then only is the request let go of: one that is cut off on its way may come after its cancel, and run
    try {
      return await send(message, options)
    } finally {
      wire.listener.onCancelled?.(id)
    }
  }

  const notify = async (message: MessageLike, options: SendOptionsLike | undefined) => {
    const left = Sent.leave(sent, Sent.carriedBy(options?.onresumptiontoken))
    try {
      await send(message, options)
      Sent.settled(sent, left)
    } catch (error) {
      unsent(left, error)
      throw error
    }
  }

  Object.assign(inner, {
    onclose: end,
    onerror: (error: Error) => {
      if (!closed) wire.listener.onError?.(error)
      wire.onerror?.(error)
    },
    onmessage: (message: MessageLike, extra?: unknown) => {
      if (closed) return
      const { id, method } = message
      if (method !== undefined) {
        if (id === undefined) wire.listener.onNotification?.(message)
        return receive(message, extra)
      }
      queueMicrotask(() => {
        const asked = id === undefined ? undefined : awaited.get(String(id))
        if (id === undefined || settle(id)) {
          receive(asked?.method === "tools/call" && isModern() ? unrepeated(message) : message, extra)
        } else if (!cancelled.delete(String(id))) wire.listener.onStray?.()
      })
    }
  })
  return wire
}

const resumable = (wire: Wire, id: RequestId, options: SendOptionsLike | undefined): SendOptionsLike => ({
  ...options,
  onresumptiontoken: (token) => {
    wire.listener.onResumable?.(id, token)
    options?.onresumptiontoken?.(token)
  }
})

/**
 * The requests in what is sent: one message, or a batch of 2025-03-26 that somebody gave to the transport.
 */
export const requestIds = (message: MessageLike | ReadonlyArray<MessageLike>): ReadonlyArray<RequestId> =>
  (Array.isArray(message) ? message as ReadonlyArray<MessageLike> : [message as MessageLike]).flatMap((
    { id, method }
  ) => method === undefined || id === undefined ? [] : [id])

/**
 * To -32020 the v2 SDK reads the tools again and calls the tool a second time, with other headers. The server has read
 * the first call, and only it knows whether that ran: so the SDK sees another error, and `classify` this one.
 */
const unrepeated = (reply: MessageLike & { readonly error?: ErrorLike }): MessageLike =>
  reply.error?.code !== headerMismatch ? reply : {
    ...reply,
    error: { code: -32000, message: reply.error.message, data: { cause: reply.error } }
  } as MessageLike

const isReply = (message: MessageLike): boolean => !Array.isArray(message) && message.method === undefined

const isRequestId = (value: unknown): value is RequestId => typeof value === "string" || typeof value === "number"
