/**
 * One server of the SDK behind Streamable HTTP, for one session.
 *
 * The server has a transport of its own: what comes in a POST it is handed as it comes, and what it says is answered
 * here. Each request that was started has an answer: its response, the first that there is, or an error when its
 * session ends before that.
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import {
  DEFAULT_NEGOTIATED_PROTOCOL_VERSION,
  type JSONRPCMessage,
  JSONRPCMessageSchema,
  type RequestId,
  type RequestInfo
} from "@modelcontextprotocol/sdk/types.js"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { AccessDenied } from "../../Identity.ts"
import type { ServerLike } from "../../McpHttpOptions.ts"
import * as Finalizers from "../finalizers.ts"
import * as Answers from "./answers.ts"
import * as Callers from "./callers.ts"
import * as Channels from "./channels.ts"
import * as Events from "./events.ts"
import * as Exchange from "./exchange.ts"
import * as Outlet from "./outlet.ts"
import * as Replies from "./replies.ts"
import * as Requests from "./requests.ts"
import * as Socket from "./socket.ts"
import * as Web from "./web.ts"

type Answer = HttpServerResponse

export interface Options {
  readonly id: string
  readonly enableJsonResponse: boolean
  readonly eventStore: EventStore | undefined
  /** Milliseconds. */
  readonly retryInterval: number | undefined
  /** Milliseconds, or `Infinity`. */
  readonly streamTimeToLive: number
  readonly maxConcurrentRequests: number
  readonly isShuttingDown: () => boolean
  /** Whether an answer waits for a turn, so that a handler which does so at once can refuse its request over HTTP. */
  readonly isProtected: boolean
  /** The server has closed its connection by itself. */
  readonly onClosed: () => void
  /** A handler that the application has given to the server has thrown this. */
  readonly onThrown: (error: unknown) => void
}

export interface Hosted {
  /** Lives as long as the session. */
  readonly scope: Scope.Scope
  /** The answer. Its body ends with the current scope, or with the session. */
  readonly handle: (arrival: Exchange.Arrival) => Effect.Effect<Answer, Answers.Refused, Scope.Scope>
  /** Fails with the answer to a request that the session has ended under, before it was started. */
  readonly ended: Effect.Effect<never, Answers.Refused>
  /** Ends the streams that clients have opened to listen, and that would stay open. */
  readonly endStreams: () => void
  /** Answers everything that is in flight, and ends every stream. */
  readonly end: () => void
}

/**
 * Connects the server to its transport. Both are closed with the current scope, the server's own resources after it.
 */
export const open = Effect.fnUntraced(function*<E, R>(server: Effect.Effect<ServerLike, E, R>, options: Options) {
  const scope = yield* Effect.scope
  const self = make(scope, options)
  const sdk = yield* server
  yield* Effect.acquireRelease(
    Effect.promise(() => sdk.connect(self.wire)),
    () => Effect.andThen(Effect.sync(self.end), Effect.ignore(Effect.tryPromise(() => sdk.close())))
  )
  return self satisfies Hosted as Hosted
})

const make = (scope: Scope.Scope, options: Options) => {
  const { enableJsonResponse } = options
  const ownHeaders = { ...Web.streamHeaders, [Requests.sessionHeader]: options.id }
  const exchanges = new Set<Exchange.Exchange>()
  let places = 0
  /** By request id, what is to be answered. */
  const inFlight = new Map<RequestId, Exchange.Exchange>()
  /** Those whose client may not have all of it yet. */
  const outlets = new Set<Outlet.Outlet>()
  /** Whether nobody is to listen any more. */
  let isRetired = false
  let isStarted = false
  let hasEnded = false
  let isClosed = false
  const ended = Deferred.makeUnsafe<never, Answers.Refused>()
  const channels = Channels.make({ ...options, hasEnded: () => hasEnded })

  // ---------------------------------------------------------------------------
  // What the server says
  // ---------------------------------------------------------------------------

  const wire: Transport = {
    start: async () => {
      if (isStarted) throw new Error("This transport was started before")
      isStarted = true
    },
    close: async () => close(),
    send: async (message, { relatedRequestId } = {}) => {
      if (hasEnded) return
      if (Replies.isReply(message)) return await respondTo(message)
      try {
        if (relatedRequestId === undefined) return await channels.announce(message)
        return await mention(relatedRequestId, message)
      } catch (error) {
        // Nobody has to wait for a notification, and nobody may mind: that would end the process
        if ("id" in message) throw error
        tell(() => wire.onerror?.(error instanceof Error ? error : new Error(String(error))))
      }
    },
    get sessionId() {
      return options.id
    }
  }

  // The server tells handlers of the application. Nobody waits for what they throw: it would end the process
  const tell = (event: () => void): void => {
    try {
      event()
    } catch (error) {
      options.onThrown(error)
    }
  }

  /** Says what belongs to a request, and is no response to it. */
  const mention = async (id: RequestId, message: JSONRPCMessage): Promise<void> => {
    const exchange = inFlight.get(id)
    if (exchange === undefined) throw new Error(`No request with the id ${String(id)} is in flight`)
    // An answer in JSON has no room for it
    if (exchange.channel !== undefined) await channels.mention(exchange.channel, message)
  }

  /** Gives a request its response, the first that there is. One that can't be said is an error to the client, too. */
  const respondTo = async (message: Replies.Reply): Promise<void> => {
    const { id } = message
    const exchange = inFlight.get(id)
    if (exchange?.open.delete(id) !== true) throw new Error(`No request with the id ${String(id)} waits for a response`)
    try {
      await give(exchange, Replies.read(message, id))
    } catch (error) {
      if (exchange.pending.has(id)) await give(exchange, Replies.read(Answers.unwritten(id), id))
      throw error
    }
  }

  const give = (exchange: Exchange.Exchange, said: Replies.Said): Promise<void> => {
    exchange.served.answered(said.gist)
    const { channel } = exchange
    return channel === undefined
      ? keep(exchange, said)
      : channels.say(channel, said.text, true, () => settle(exchange, said.id))
  }

  /** Keeps a response for the answer, which has that of each request in the order of the requests. */
  const keep = async (exchange: Exchange.Exchange, { id, text }: Replies.Said): Promise<void> => {
    exchange.responses.set(id, text)
    settle(exchange, id)
    if (exchange.pending.size === 0) Exchange.answer(exchange, jsonOf(exchange, 200))
  }

  const jsonOf = ({ ids, responses }: Exchange.Exchange, status: number): Answer => {
    const texts = ids.map((id) => responses.get(id))
    return Web.json(ids.length === 1 ? texts[0]! : `[${texts.join()}]`, status, {
      [Requests.sessionHeader]: options.id
    })
  }

  /** A request has its response, or will not have one. */
  const settle = (exchange: Exchange.Exchange, id: RequestId): void => {
    if (!exchange.pending.delete(id)) return
    exchange.served.left(id)
    if (exchange.pending.size > 0) return
    // None of a batch before: its answer has all of them
    for (const each of exchange.ids) inFlight.delete(each)
    exchange.lease.release()
    if (exchange.isReady) Exchange.answer(exchange, "stream")
    exchange.channel?.reader?.outlet?.close()
    leave(exchange)
  }

  const settleAll = (exchange: Exchange.Exchange): void => {
    for (const id of exchange.ids) settle(exchange, id)
  }

  const leave = (exchange: Exchange.Exchange, isExpired = false): void => {
    if (exchange.outlet !== undefined || !exchange.isAnswered) return
    channels.leave(exchange, isExpired)
    if (exchange.pending.size === 0) exchanges.delete(exchange)
  }

  // ---------------------------------------------------------------------------
  // What the client says
  // ---------------------------------------------------------------------------

  const handle: Hosted["handle"] = (arrival) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const exchange = Exchange.make(arrival, places++)
        return Effect.flatMap(
          restore(respond(arrival, exchange)),
          (given) =>
            given === "stream"
              ? toStream(exchange, arrival)
              : Effect.as(Socket.hurryAfter(arrival.request, given, Deferred.await(ended)), given)
        ).pipe(Effect.ensuring(Effect.sync(() => {
          exchange.isAnswered = true
          leave(exchange)
        })))
      })
    )

  const respond = ({ body, request }: Exchange.Arrival, exchange: Exchange.Exchange) =>
    Effect.callback<Exchange.Given, Answers.Refused>((resume) => {
      const messages = messagesOf(body)
      if (messages === undefined) return resume(Answers.malformed)
      const issue = issueWith(exchange)
      if (issue !== undefined) return resume(issue)
      exchanges.add(exchange)
      exchange.answer = (answer) => {
        exchange.answer = undefined
        resume(answer)
      }
      if (exchange.isListening) listen(exchange, request)
      else take(exchange, request, messages)
      return Effect.sync(() => {
        exchange.answer = undefined
        exchange.early = undefined
        channels.forgo(exchange)
      })
    })

  const issueWith = ({ ids, pending }: Exchange.Exchange): Answers.Refused | undefined => {
    if (hasEnded) return gone()
    if (pending.size < ids.length || ids.some((id) => inFlight.has(id))) return Answers.requestIdInUse
    return inFlight.size + ids.length > options.maxConcurrentRequests
      ? Answers.tooManyRequests(options.maxConcurrentRequests)
      : undefined
  }

  const gone = (): Answers.Refused => options.isShuttingDown() ? Answers.unavailable : Answers.notFound

  const listen = (exchange: Exchange.Exchange, request: HttpServerRequest.HttpServerRequest): void => {
    const lastEventId = request.headers["last-event-id"]
    if (lastEventId === undefined || lastEventId === "" || options.eventStore === undefined) channels.listen(exchange)
    else channels.resume(exchange, lastEventId)
  }

  const take = (
    exchange: Exchange.Exchange,
    request: HttpServerRequest.HttpServerRequest,
    messages: ReadonlyArray<JSONRPCMessage>
  ): void => {
    for (const id of exchange.ids) inFlight.set(id, exchange)
    if (exchange.ids.length > 0) exchange.lease.retain()
    const start = () => receive(exchange, messages, infoOf(request))
    const fail = (defect: unknown) => {
      settleAll(exchange)
      exchange.answer?.(Effect.die(defect))
    }
    const channel = exchange.ids.length > 0 && !enableJsonResponse ? channels.ofCall(exchange) : undefined
    if (channel !== undefined && channels.isStored && canResume(request, messages)) {
      channels.prime(channel).then(start).catch(fail)
      return
    }
    try {
      start()
    } catch (defect) {
      fail(defect)
    }
  }

  /** Hands the server its messages. */
  const receive = (
    exchange: Exchange.Exchange,
    messages: ReadonlyArray<JSONRPCMessage>,
    requestInfo: RequestInfo
  ): void => {
    // Its session has ended while it began, or its client is gone: nothing has run
    if (exchange.answer === undefined) return settleAll(exchange)
    const { channel, identity, ids, served: { span } } = exchange
    exchange.hasStarted = true
    if (channel !== undefined) {
      // Once no promise has anything left to do: most tools have answered by then
      queueMicrotask(() => process.nextTick(giveStream, exchange))
    }
    // Of a batch the others may have run
    const refuse = ids.length === 1 ? (error: AccessDenied) => void (exchange.denied = error) : undefined
    const extra = Callers.introduce({ identity, span, refuse }, requestInfo)
    const ofRequests = channel?.isPrimed === true
      ? {
        ...extra,
        closeSSEStream: () => Exchange.cut(channel),
        closeStandaloneSSEStream: () => Exchange.cut(channels.own)
      }
      : extra
    for (const message of messages) {
      if (hasEnded) return
      const isRequest = "id" in message && "method" in message
      // It was cancelled before it was begun
      if (isRequest && !exchange.open.has(message.id)) continue
      wire.onmessage?.(message, isRequest ? ofRequests : extra)
      if ("method" in message && message.method === "notifications/cancelled") cancelled(message.params?.["requestId"])
    }
    if (ids.length === 0) exchange.answer?.(Effect.succeed(Web.accepted))
  }

  // A server sends no response to a request that was cancelled, so the POST that brought it would stay open. This ends
  // that POST without a message in it: "Not send a response for the cancelled request".
  // https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation#behavior-requirements
  const cancelled = (id: unknown): void => {
    if (typeof id !== "string" && typeof id !== "number") return
    const post = inFlight.get(id)
    if (post?.open.has(id) !== true) return
    const response = { jsonrpc: "2.0" as const, id, error: { code: -32800, message: "Request cancelled" } }
    // A batch is answered when there is a response to each request
    if (post.ids.length > 1) return void respondTo(response).catch(() => undefined)
    post.open.delete(id)
    post.served.answered(response)
    settle(post, id)
    post.answer?.(Effect.succeed(Web.emptyStream))
  }

  // ---------------------------------------------------------------------------
  // What the client is answered
  // ---------------------------------------------------------------------------

  // It may be there before its handler has had a turn, in which that may refuse
  const giveStream = (exchange: Exchange.Exchange): void => {
    if (exchange.isInitialize && exchange.pending.size > 0) exchange.isReady = true
    else if (options.isProtected && exchange.pending.size > 0) setImmediate(() => Exchange.answer(exchange, "stream"))
    else Exchange.answer(exchange, "stream")
  }

  const toStream = (
    exchange: Exchange.Exchange,
    { request }: Exchange.Arrival
  ): Effect.Effect<Answer, never, Scope.Scope> => {
    const isComplete = channels.isComplete(exchange)
    const whole = isComplete ? wholeOf(exchange) : undefined
    const status = exchange.last.length > 0 && options.isShuttingDown() ? 503 : 200
    if (whole !== undefined) return Effect.succeed(Web.wholeStream(whole, status, ownHeaders))
    return Effect.contextWith((services: Context.Context<Scope.Scope>) => {
      const outlet = Outlet.make({
        request,
        services,
        maxAge: exchange.isListening && !Exchange.isAwaited(exchange.channel!) ? options.streamTimeToLive : Infinity,
        patience: options.streamTimeToLive,
        last: () => exchange.last,
        onEnd: (isExpired) => {
          exchange.outlet = undefined
          leave(exchange, isExpired)
        }
      })
      for (const event of exchange.early?.events ?? []) outlet.say(event)
      exchange.early = undefined
      exchange.outlet = outlet
      outlets.add(outlet)
      if (hasEnded) outlet.hurry()
      if (isComplete) outlet.close()
      // When what it has missed is read
      else if (isRetired) setImmediate(endStream, exchange)
      return Effect.as(
        // Not the stream's own: it may never begin, if the client is gone by now.
        Finalizers.add(Effect.sync(() => {
          outlet.end()
          Socket.whenSent(request, () => void outlets.delete(outlet))
        })),
        Web.stream(outlet.stream, 200, ownHeaders)
      )
    })
  }

  // ---------------------------------------------------------------------------
  // How it ends
  // ---------------------------------------------------------------------------

  const endStreams = (): void => {
    isRetired = true
    for (const exchange of Array.from(exchanges)) endStream(exchange)
  }

  /** Answers what is in flight, and ends every stream. */
  const finish = (): void => {
    if (hasEnded) return
    hasEnded = true
    Deferred.doneUnsafe(ended, Exit.fail(gone()))
    const isShuttingDown = options.isShuttingDown()
    const abandoned = Array.from(exchanges, (exchange) => {
      const { channel, pending, served } = exchange
      const last = Array.from(pending)
        .filter((id) => channel?.shown.has(id) !== true)
        .map((id) => Answers.abandoned(id, isShuttingDown))
      for (const response of last) served.answered(response)
      const reader = channel?.reader ?? channel?.comer ?? exchange
      reader.last = [...reader.last, ...last]
      return { exchange, last }
    })
    for (const { exchange, last } of abandoned) {
      const { hasStarted, ids, isListening, outlet, responses } = exchange
      // It has come back for a stream, and is about to hear what was said there meanwhile
      if (isListening && exchange.last.length > 0) exchange.answer?.(Effect.succeed("stream"))
      else if (!hasStarted) exchange.answer?.(gone())
      else if (ids.length === 0) exchange.answer?.(Effect.succeed(Web.accepted))
      // A stream is about to be given, and says it
      else if (enableJsonResponse) {
        for (const response of last) responses.set(response.id, JSON.stringify(response))
        exchange.answer?.(Effect.succeed(jsonOf(exchange, isShuttingDown ? 503 : 200)))
      }
      settleAll(exchange)
      outlet?.close()
    }
    for (const outlet of outlets) outlet.hurry()
  }

  /** The same, and tells the server. */
  const close = (): void => {
    if (isClosed) return
    isClosed = true
    const isByItself = !hasEnded
    finish()
    if (isByItself) options.onClosed()
    tell(() => wire.onclose?.())
  }

  const end = (): void => {
    finish()
    close()
  }

  return { scope, wire, handle, ended: Deferred.await(ended), endStreams, end }
}

/** All that its stream says, if that is so short that nobody waits for it to be read. */
const wholeOf = ({ early, last }: Exchange.Exchange): string | undefined => {
  const events = [...early?.events ?? [], ...last.map((response) => Events.ofMessage(JSON.stringify(response)))].flat()
  return Events.bytesOf(events) > Socket.maxUnread ? undefined : events.join("")
}

const endStream = ({ channel, isListening, outlet }: Exchange.Exchange): void => {
  if (isListening && channel !== undefined && !Exchange.isAwaited(channel)) outlet?.end()
}

/** The messages of a body. A GET has none. */
const messagesOf = (body: unknown): ReadonlyArray<JSONRPCMessage> | undefined => {
  const given: ReadonlyArray<unknown> = body === undefined ? [] : Array.isArray(body) ? body : [body]
  const messages: Array<JSONRPCMessage> = []
  for (const each of given) {
    const { data, success } = JSONRPCMessageSchema.safeParse(each)
    if (!success) return undefined
    messages.push(data)
  }
  return messages
}

/** What a handler is told of the request. Few ask for its URL. */
const infoOf = (request: HttpServerRequest.HttpServerRequest): RequestInfo => ({
  headers: { ...request.headers },
  get url() {
    // As it was sent, whatever the routes are below
    const whole = request.modify({ url: request.originalUrl })
    return Option.getOrElse(HttpServerRequest.toURL(whole), () => new URL("http://localhost"))
  }
})

/** Whether its client reads events that have no message in them: since version 2025-11-25. */
const canResume = (
  { headers }: HttpServerRequest.HttpServerRequest,
  [first]: ReadonlyArray<JSONRPCMessage>
): boolean => {
  const asked = first !== undefined && "method" in first && first.method === "initialize"
    ? first.params?.["protocolVersion"]
    : headers["mcp-protocol-version"] ?? DEFAULT_NEGOTIATED_PROTOCOL_VERSION
  return typeof asked === "string" && asked >= "2025-11-25"
}
