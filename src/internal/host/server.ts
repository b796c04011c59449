/**
 * One SDK server behind one Streamable HTTP transport, for one session.
 *
 * The SDK's transport does the protocol. Answers to requests are written here, from what was read of them once, unless
 * an event store is asked to keep them first. Between the transport and the server stands a wire that knows which
 * requests are in flight, because of what the transport gets wrong (observed with 1.29 to 1.32):
 *
 * - A POST whose session ends is never answered when responses are JSON, and with nothing when they are events; nor is
 *   one whose request the client has cancelled.
 * - Of two requests in flight with one id, the first is never answered.
 * - A client that comes back finds the stream taken that the kernel has not yet noticed to be dead.
 * - What is written to a stream is kept until the client reads it, however much that is.
 * - An error of an event store is told to the client as "Parse error", its text included, and leaves the transport in
 *   two minds about whether it was initialized.
 * - All sessions that share an event store can replay each other's events.
 * - A POST that was answered with JSON is kept as long as the session, with its answer.
 * - A response that is none by its schema is dropped, and one that is no JSON: its POST is never answered.
 */
import type { AuthInfo } from "@modelcontextprotocol/sdk/server/auth/types.js"
import {
  type EventStore,
  WebStandardStreamableHTTPServerTransport
} from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import type { JSONRPCMessage, RequestId } from "@modelcontextprotocol/sdk/types.js"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { constTrue } from "effect/Function"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import type * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Scope from "effect/Scope"
import type { AccessDenied, Identity } from "../../Identity.ts"
import type { ServerLike } from "../../McpHttpOptions.ts"
import * as Finalizers from "../finalizers.ts"
import * as Answers from "./answers.ts"
import * as Callers from "./callers.ts"
import type { Lease } from "./endpoint.ts"
import * as Events from "./events.ts"
import * as Outlet from "./outlet.ts"
import * as Replies from "./replies.ts"
import * as Requests from "./requests.ts"
import * as Returns from "./returns.ts"
import * as Socket from "./socket.ts"
import type * as Spans from "./spans.ts"
import * as Web from "./web.ts"

type Answer = HttpServerResponse.HttpServerResponse

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

/**
 * A request of the session, `body` being what its body says.
 */
export interface Arrival {
  readonly request: HttpServerRequest.HttpServerRequest
  readonly body: unknown
  readonly identity: Identity
  /** Kept until what the request has started is done. */
  readonly lease: Lease
  readonly served: Spans.Served
}

export interface Hosted {
  /** Lives as long as the session. */
  readonly scope: Scope.Scope
  /** The answer. Its body ends with the current scope, or with the session. */
  readonly handle: (arrival: Arrival) => Effect.Effect<Answer, Answers.Refused, Scope.Scope>
  /** Fails with the answer to a request that the session has ended under, before it was started. */
  readonly ended: Effect.Effect<never, Answers.Refused>
  /** Ends the streams that clients have opened to listen, and that would stay open. */
  readonly endStreams: () => void
  /** Answers everything that is in flight, and ends every stream. */
  readonly end: () => void
}

/**
 * Connects the server to a transport of its own. Both are closed with the current scope, the server's own resources
 * after it.
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

/** Its own answer, the transport's, or a stream of what is written here. */
type Given = Answer | Response | "stream"

/** A POST or GET, until it is answered and what it has started is done. */
interface Exchange {
  /** How many came before it. */
  readonly place: number
  readonly isListening: boolean
  readonly identity: Identity
  readonly lease: Lease
  readonly served: Spans.Served
  /** The requests that it brought. */
  readonly ids: ReadonlyArray<RequestId>
  /** Those of them that the server has not responded to. */
  readonly open: Set<RequestId>
  /** Those of them whose response is not given yet: a store may be asked to keep it first. */
  readonly pending: Set<RequestId>
  /** What the others were answered, as JSON, while the answer waits for all of them. */
  readonly responses: Map<RequestId, string>
  /** Whether it is answered with the response, however long that takes: an open has a time limit. */
  readonly isInitialize: boolean
  /** What it is answered with then. */
  ready: Given | undefined
  /** Whether the server has got any of its messages. */
  hasStarted: boolean
  /** Its handler has refused it. */
  denied: AccessDenied | undefined
  /** Answers it, until it is answered. */
  answer: ((answer: Effect.Effect<Given, Answers.Refused>) => void) | undefined
  outlet: Outlet.Outlet | undefined
  /** What was said before there was an outlet, as JSON, unless there will be none. */
  early: { readonly messages: Array<string>; characters: number } | undefined
  /** Those of the pending whose response its client has seen in the event store. */
  seen: ReadonlySet<RequestId>
  /** What its stream says last, when the session has ended under it. */
  last: ReadonlyArray<Replies.Reply>
  /** As the event store knows its stream. */
  streamId: string | undefined
  /** Whether its client can come back for it before anything was said. */
  canReturn: boolean
}

const makeExchange = ({ body, identity, lease, request, served }: Arrival, place: number): Exchange => {
  const ids = Requests.requestIds(body)
  return {
    place,
    isListening: request.method === "GET",
    identity,
    lease,
    served,
    ids,
    open: new Set(ids),
    pending: new Set(ids),
    responses: new Map(),
    isInitialize: Requests.isInitialize(body),
    ready: undefined,
    hasStarted: false,
    denied: undefined,
    answer: undefined,
    outlet: undefined,
    early: { messages: [], characters: 0 },
    seen: none,
    last: [],
    streamId: undefined,
    canReturn: false
  }
}

const none: ReadonlySet<RequestId> = new Set()

// Which exchange a message that comes in belongs to: the transport hands this through. Whose it is, is said later.
class Mark implements AuthInfo {
  readonly token = ""
  readonly clientId = ""
  readonly scopes = []
  readonly exchange: Exchange

  constructor(exchange: Exchange) {
    this.exchange = exchange
  }
}

/** More than this is not kept of a stream that nobody reads: bytes. */
const maxBuffered = 1024 * 1024

/** More than this is not kept for a client that will be back in a moment: messages and characters. */
const maxHeld = { messages: 100, characters: 256 * 1024 }

/** A longer stream is not given as a whole: characters. */
const maxWhole = 16 * 1024

const make = (scope: Scope.Scope, options: Options) => {
  const ownHeaders = { ...Web.streamHeaders, [Requests.sessionHeader]: options.id }
  const exchanges = new Set<Exchange>()
  let places = 0
  /** By request id, what is to be answered. */
  const inFlight = new Map<RequestId, Exchange>()
  /** Whether an event store is asked to keep what is said before it is: by the transport, which writes it then. */
  const isStored = options.eventStore !== undefined && !options.enableJsonResponse
  /** Whether the streams that answer requests are written here. */
  const isWritten = !isStored && !options.enableJsonResponse
  /** Streams of an event store that are open, and the name that it has for the server's own. */
  const streams = new Map<string, Exchange>()
  let ownStreamId: string | undefined
  /** Those whose client may not have all of it yet. */
  const outlets = new Set<Outlet.Outlet>()
  /** Whether nobody is to listen any more. */
  let isRetired = false
  /** On whose behalf the transport is being called. */
  let current: Exchange | "server" | undefined
  /** The answer to GET, and what is said while there is none for a moment. */
  let listening: Exchange | undefined
  /** The newest that has come to listen, until it is answered. */
  let comer: Exchange | undefined
  let held: { readonly messages: Array<string>; characters: number } | undefined
  let hasEnded = false
  const ended = Deferred.makeUnsafe<never, Answers.Refused>()

  const onBehalfOf = <A>(exchange: Exchange | "server" | undefined, f: () => A): A => {
    current = exchange
    try {
      return f()
    } finally {
      current = undefined
    }
  }

  // Asked synchronously, before anything else can call the transport.
  const watched = (store: EventStore): EventStore => ({
    ...store,
    storeEvent: (streamId, message) => {
      if (current === "server") ownStreamId = streamId
      else if (current !== undefined && current.streamId === undefined) {
        attach(streamId, current)
        // What is said first has an id, and nothing else
        current.canReturn = !("jsonrpc" in message)
      }
      return store.storeEvent(streamId, message)
    }
  })

  const attach = (streamId: string, exchange: Exchange): void => {
    exchange.streamId = streamId
    streams.set(streamId, exchange)
  }

  const returns = options.eventStore && Returns.make<Exchange>(options.eventStore, {
    take: (streamId, exchange) => {
      if (!isAwaitingAnswer(exchange)) return
      const holders = [streams.get(streamId), ...streamId === ownStreamId ? [listening, comer] : []]
      if (holders.some((holder) => holder !== undefined && holder.place > exchange.place)) return dismiss(exchange)
      giveWay(streamId)
      attach(streamId, exchange)
    },
    has: (streamId, exchange) =>
      isAwaitingAnswer(exchange) && (streamId === undefined || streams.get(streamId) === exchange),
    holder: (streamId) => streams.get(streamId)
  })

  const isAwaitingAnswer = ({ answer }: Exchange): boolean => answer !== undefined && !hasEnded

  /** Whoever comes back for a stream has lost it: the one that is open is a ghost's, or was come back for before. */
  const giveWay = (streamId: string): void => {
    if (streamId === ownStreamId) return replaceListener()
    const ghost = streams.get(streamId)
    if (ghost === undefined) return
    dismiss(ghost)
    ghost.outlet?.end()
    for (const id of ghost.pending) transport.closeSSEStream(id)
  }

  /** Somebody else has the stream that it was to have. */
  const dismiss = (exchange: Exchange): void => {
    if (!exchange.isListening) return
    returns?.leave(exchange)
    exchange.answer?.(Effect.succeed(Web.emptyStream))
  }

  const replaceListener = (): void => {
    const returning = ownStreamId === undefined ? undefined : streams.get(ownStreamId)
    if (returning !== undefined) dismiss(returning)
    listening?.outlet?.end()
    transport.closeStandaloneSSEStream()
  }

  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: () => options.id,
    // It waits for all responses, and forgets them: see `forgetPost`
    enableJsonResponse: !isStored,
    // Comments are the outlet's: these would pile up where nobody reads
    keepAliveMs: 0,
    ...(returns === undefined ? {} : { eventStore: watched(returns.store) }),
    ...(options.retryInterval === undefined ? {} : { retryInterval: options.retryInterval })
  })

  const wire: Transport = {
    start: () => transport.start(),
    close: () => transport.close(),
    async send(message, { relatedRequestId } = {}) {
      if (hasEnded) return
      if (Replies.isReply(message)) return respondTo(message)
      if (relatedRequestId === undefined) return announce(message)
      const exchange = inFlight.get(relatedRequestId)
      // The transport keeps it, and nobody can read it yet
      if (isStored && exchange?.early !== undefined) exchange.early.characters += Replies.jsonOf(message).length
      const stream = exchange && streamOf(exchange)
      if (stream !== undefined && isUnread(stream)) {
        // What it misses it can have again, if there is an event store that has it
        if (stream.streamId !== undefined && (stream.canReturn || stream.outlet !== undefined)) {
          transport.closeSSEStream(relatedRequestId)
        } else if (!("id" in message)) return
      }
      if (exchange !== undefined && isWritten) return say(exchange, Replies.jsonOf(message))
      return onBehalfOf(exchange, () => transport.send(message, { relatedRequestId }))
    },
    get sessionId() {
      return options.id
    }
  }

  /** Gives a request its response, the first that there is. One that can't be said is an error to the client, too. */
  const respondTo = async (message: Replies.Reply): Promise<void> => {
    const { id } = message
    const exchange = inFlight.get(id)
    if (exchange?.open.delete(id) !== true) throw new Error(`No request with the id ${String(id)} waits for a response`)
    const respond = options.enableJsonResponse ? keep : isWritten ? write : store
    try {
      await respond(exchange, Replies.read(message, id))
    } catch (error) {
      if (exchange.pending.has(id)) await respond(exchange, Replies.read(Answers.unwritten(id), id))
      throw error
    }
  }

  /** Keeps a response for the answer, which has that of each request in the order of the requests. */
  const keep = (exchange: Exchange, { gist, id, text }: Replies.Said): void => {
    exchange.responses.set(id, text)
    exchange.served.answered(gist)
    settle(exchange, id)
    if (exchange.pending.size === 0) give(exchange, jsonOf(exchange, 200))
  }

  const jsonOf = ({ ids, responses }: Exchange, status: number): Answer => {
    const texts = ids.map((id) => responses.get(id))
    return Web.json(ids.length === 1 ? texts[0]! : `[${texts.join()}]`, status, {
      [Requests.sessionHeader]: options.id
    })
  }

  /** Writes a response to the stream of its request. */
  const write = (exchange: Exchange, { gist, id, text }: Replies.Said): void => {
    exchange.served.answered(gist)
    say(exchange, text)
    settle(exchange, id)
    if (exchange.pending.size === 0) exchange.outlet?.close()
  }

  /** Says a message on the stream of a request, unless that has ended. */
  const say = ({ early, outlet }: Exchange, json: string): void => {
    if (outlet !== undefined) return outlet.say(json)
    if (early === undefined) return
    early.messages.push(json)
    early.characters += json.length
  }

  /** Says no more. */
  const silence = (exchange: Exchange): void => {
    exchange.early = undefined
    exchange.outlet?.close()
  }

  /** Has the event store keep a response, and the transport write it. */
  const store = async (exchange: Exchange, said: Replies.Said): Promise<void> => {
    exchange.served.answered(said.gist)
    try {
      await onBehalfOf(exchange, () => transport.send(Replies.messageOf(said)))
    } finally {
      settle(exchange, said.id)
    }
  }

  /** Says what belongs to no request, on the server's own stream. */
  const announce = async (message: JSONRPCMessage): Promise<void> => {
    if (listening !== undefined && isUnread(listening)) {
      listening.outlet?.drop()
      held ??= { messages: [], characters: 0 }
    }
    if (held === undefined || options.eventStore !== undefined) {
      return onBehalfOf("server", () => transport.send(message))
    }
    const text = JSON.stringify(message)
    held.messages.push(text)
    held.characters += text.length
    while (held.messages.length > maxHeld.messages || held.characters > maxHeld.characters) {
      held.characters -= held.messages.shift()!.length
    }
  }

  const isUnread = ({ early, outlet }: Exchange): boolean =>
    (outlet?.buffered() ?? early?.characters ?? 0) > maxBuffered

  const settle = (exchange: Exchange, id: RequestId): void => {
    if (!exchange.pending.delete(id)) return
    exchange.served.left(id)
    if (exchange.pending.size > 0) return
    // None of a batch before: the transport knows its ids until it has a response to each
    for (const each of exchange.ids) inFlight.delete(each)
    if (!isStored && exchange.hasStarted) forgetPost(exchange)
    exchange.lease.release()
    if (exchange.ready !== undefined) give(exchange, hasEnded ? "stream" : exchange.ready)
    leave(exchange)
  }

  // The transport would make an answer of its own, and keep the POST and that as long as the session. It forgets what
  // has no stream when it has a response to each request of it.
  const forgetPost = ({ ids }: Exchange): void => {
    transport.closeSSEStream(ids[0]!)
    for (const id of ids) transport.send({ jsonrpc: "2.0", id, result: {} }).catch(() => undefined)
  }

  const leave = (exchange: Exchange): void => {
    if (exchange.pending.size > 0 || exchange.answer !== undefined || exchange.outlet !== undefined) return
    exchanges.delete(exchange)
    if (exchange.streamId !== undefined && streams.get(exchange.streamId) === exchange) {
      streams.delete(exchange.streamId)
    }
  }

  // The server passes it on to handlers of the application. Nobody waits for what they throw: it would end the process.
  const tell = (event: () => void): void => {
    try {
      event()
    } catch (error) {
      options.onThrown(error)
    }
  }

  Object.assign(
    transport,
    {
      onclose: () => {
        if (!hasEnded) {
          finish()
          options.onClosed()
        }
        tell(() => wire.onclose?.())
      },
      onerror: (error) => tell(() => wire.onerror?.(error)),
      onmessage: (message, extra) => {
        const exchange = extra?.authInfo instanceof Mark ? extra.authInfo.exchange : undefined
        // The transport may have waited for an event store in the meantime
        if (hasEnded || exchange === undefined) return
        if (isWritten && !exchange.hasStarted && exchange.ids.length > 0) {
          // Once no promise has anything left to do: most tools have answered by then
          queueMicrotask(() => process.nextTick(giveStream, exchange, "stream"))
        }
        exchange.hasStarted = true
        const { identity, ids, served: { span } } = exchange
        // Of a batch the others may have run
        const refuse = ids.length === 1 ? (error: AccessDenied) => void (exchange.denied = error) : undefined
        wire.onmessage?.(message, Callers.introduce({ identity, span, refuse }, extra!))
        if ("method" in message && message.method === "notifications/cancelled") {
          cancelled(message.params?.["requestId"])
        }
      }
    } satisfies Pick<Transport, "onclose" | "onerror" | "onmessage">
  )

  // A server sends no response to a request that was cancelled, so the POST that brought it would stay open. This ends
  // that POST without a message in it: "Not send a response for the cancelled request".
  // https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation#behavior-requirements
  const cancelled = (id: unknown): void => {
    if (typeof id !== "string" && typeof id !== "number") return
    const post = inFlight.get(id)
    if (post?.open.has(id) !== true) return
    if (post.ids.length === 1) {
      if (isStored) transport.closeSSEStream(id)
      else silence(post)
      post.answer?.(Effect.succeed(Web.emptyStream))
    }
    // A batch is answered when there is a response to each request, so this one needs a response. The stream of a
    // single request has just been closed: the transport forgets the request, and complains that there is no stream.
    respondTo({ jsonrpc: "2.0", id, error: { code: -32800, message: "Request cancelled" } }).catch(() => undefined)
  }

  const handle: Hosted["handle"] = (arrival) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const exchange = makeExchange(arrival, places++)
        const answer = Effect.flatMap(
          restore(respond(arrival, exchange)),
          (given) => toAnswer(given, arrival, exchange)
        )
        return exchange.isListening ? Effect.ensuring(answer, hasCome(exchange)) : answer
      })
    )

  const hasCome = (exchange: Exchange) => Effect.sync(() => comer === exchange ? comer = undefined : undefined)

  const issueWith = ({ ids, pending }: Exchange): Answers.Refused | undefined => {
    if (hasEnded) return gone()
    if (pending.size < ids.length || ids.some((id) => inFlight.has(id))) return Answers.requestIdInUse
    return inFlight.size + ids.length > options.maxConcurrentRequests
      ? Answers.tooManyRequests(options.maxConcurrentRequests)
      : undefined
  }

  const gone = (): Answers.Refused => options.isShuttingDown() ? Answers.unavailable : Answers.notFound

  const respond = ({ body, request }: Arrival, exchange: Exchange) =>
    Effect.callback<Given, Answers.Refused>((resume) => {
      const issue = issueWith(exchange)
      if (issue !== undefined) return resume(issue)
      const authInfo = new Mark(exchange)
      exchanges.add(exchange)
      exchange.answer = (answer) => {
        exchange.answer = undefined
        resume(answer)
        leave(exchange)
      }
      for (const id of exchange.ids) inFlight.set(id, exchange)
      if (exchange.ids.length > 0) exchange.lease.retain()
      const lastEventId = exchange.isListening ? request.headers["last-event-id"] : undefined
      const ticket = lastEventId === undefined || lastEventId === ""
        ? undefined
        : returns?.ticket(exchange, lastEventId)
      if (exchange.isListening && ticket === undefined) {
        replaceListener()
        comer = exchange
      }
      const webRequest = ticket === undefined
        ? Web.toRequest(request)
        : Web.toRequest(request, { ...request.headers, "last-event-id": ticket })
      const parsed = body === undefined ? { authInfo } : { authInfo, parsedBody: body }
      onBehalfOf(exchange, () => transport.handleRequest(webRequest, parsed)).then(
        (response) => {
          if (ticket !== undefined) returns?.forget(ticket)
          if (response.status >= 400) forget(exchange)
          giveStream(exchange, response)
        },
        (defect) => {
          if (ticket !== undefined) returns?.forget(ticket)
          forget(exchange)
          exchange.answer?.(Effect.die(defect))
        }
      )
      return Effect.sync(() => {
        exchange.answer = undefined
        exchange.early = undefined
        if (ticket !== undefined) returns?.leave(exchange)
        leave(exchange)
      })
    })

  // It may be there before its handler has had a turn, in which that may refuse
  const giveStream = (exchange: Exchange, given: Given): void => {
    if (exchange.isInitialize && exchange.pending.size > 0) exchange.ready = given
    else if (options.isProtected && exchange.pending.size > 0) setImmediate(() => give(exchange, given))
    else give(exchange, given)
  }

  const give = (exchange: Exchange, given: Given): void => {
    const { answer, denied } = exchange
    if (denied !== undefined) exchange.early = undefined
    if (given instanceof Response && (answer === undefined || denied !== undefined)) void given.body?.cancel()
    answer?.(
      denied === undefined
        ? Effect.succeed(given)
        : Effect.flatMap(
          HttpServerRespondable.toResponse(denied),
          (refusal) => Effect.fail(new Answers.Refused({ response: refusal }))
        )
    )
  }

  const forget = (exchange: Exchange): void => {
    for (const id of exchange.ids) settle(exchange, id)
  }

  const toAnswer = (
    given: Given,
    { request }: Arrival,
    exchange: Exchange
  ): Effect.Effect<Answer, Answers.Refused, Scope.Scope> => {
    const isOwn = given === "stream"
    if (!isOwn && !(given instanceof Response)) return Effect.succeed(given)
    if (!isOwn && !Web.isStream(given)) return Web.toPlainAnswer(given)
    const whole = isOwn ? wholeOf(exchange) : undefined
    const status = exchange.last.length > 0 && options.isShuttingDown() ? 503 : 200
    if (whole !== undefined) return Effect.succeed(Web.wholeStream(whole, status, ownHeaders))
    return Effect.contextWith((services: Context.Context<Scope.Scope>) => {
      const outlet = Outlet.make(isOwn ? undefined : given.body!, {
        request,
        services,
        maxAge: exchange.isListening && !isAwaited(exchange) ? options.streamTimeToLive : Infinity,
        patience: options.streamTimeToLive,
        last: () => exchange.last,
        // Nothing else tells when the transport says what a store was asked to keep
        passes: isStored ? passing(exchange) : constTrue,
        onEnd: (isExpired) => {
          exchange.outlet = undefined
          if (listening === exchange) {
            listening = undefined
            // The client will be back in a moment
            if (isExpired) held ??= { messages: [], characters: 0 }
          }
          leave(exchange)
        }
      })
      exchange.outlet = outlet
      exchanges.add(exchange)
      outlets.add(outlet)
      if (hasEnded) outlet.hurry()
      // Whoever is answered has left, until its stream is there
      if (exchange.streamId !== undefined && !streams.has(exchange.streamId)) {
        streams.set(exchange.streamId, exchange)
      }
      for (const json of exchange.early?.messages ?? []) outlet.say(json)
      exchange.early = undefined
      if (isOwn && exchange.pending.size === 0) outlet.close()
      if (exchange.isListening && (exchange.streamId === undefined || exchange.streamId === ownStreamId)) {
        listen(exchange)
      }
      // When what it has missed is read. The transport would keep the stream of a call that is over
      const isOver = isRetired || (exchange.streamId ?? ownStreamId) !== ownStreamId
      if (exchange.isListening && isOver) setImmediate(endStream, exchange)
      return Effect.as(
        // Not the stream's own: it may never begin, if the client is gone by now.
        Finalizers.add(Effect.sync(() => {
          outlet.end()
          Socket.whenSent(request, () => void outlets.delete(outlet))
        })),
        isOwn
          ? Web.stream(outlet.stream, 200, ownHeaders)
          : Web.stream(outlet.stream, given.status, Web.headersOf(given))
      )
    })
  }

  /** All that its stream says, if that is known by now, and so short that nobody has to wait for it to be read. */
  const wholeOf = ({ early, last, pending }: Exchange): string | undefined => {
    if (pending.size > 0 || (early?.characters ?? 0) > maxWhole) return undefined
    const said = [...early?.messages ?? [], ...last.map((response) => JSON.stringify(response))]
    const characters = said.reduce((sum, { length }) => sum + length, 0)
    return characters > maxWhole ? undefined : said.map(Events.ofMessage).join("")
  }

  const passing = (exchange: Exchange) => {
    const watch = Events.watching(({ id }) => heard(exchange, id))
    return (event: Uint8Array): boolean => {
      if (returns?.wasHeard(exchange, event) === true) return false
      watch(event)
      return true
    }
  }

  const heard = (exchange: Exchange, id: RequestId): void => {
    const asked = inFlight.get(id)
    if (asked === exchange) settle(exchange, id)
    // The transport has yet to hear from the store that it has the response, which the client has read there
    else if (asked !== undefined && asked.streamId === exchange.streamId) asked.seen = new Set([...asked.seen, id])
    exchange.last = exchange.last.filter((response) => response.id !== id)
  }

  const listen = (exchange: Exchange): void => {
    listening = exchange
    const missed = held?.messages ?? []
    held = undefined
    for (const text of missed) void wire.send(JSON.parse(text) as JSONRPCMessage).catch(() => undefined)
  }

  const endStreams = (): void => {
    isRetired = true
    for (const exchange of Array.from(exchanges)) endStream(exchange)
  }

  const endStream = (exchange: Exchange): void => {
    if (exchange.isListening && !isAwaited(exchange)) exchange.outlet?.end()
  }

  /** Whether it is a stream of a call in flight, for which its client has come back. */
  const isAwaited = ({ streamId }: Exchange): boolean =>
    streamId !== undefined && Array.from(exchanges).some((one) => one.streamId === streamId && one.pending.size > 0)

  /** The exchange whose stream a client hears this one's responses in: its own, unless it has come back for it. */
  const streamOf = (exchange: Exchange): Exchange =>
    (exchange.streamId === undefined ? undefined : streams.get(exchange.streamId)) ?? exchange

  /** Answers what is in flight. The transport closes the streams after it. */
  const finish = (): void => {
    if (hasEnded) return
    hasEnded = true
    Deferred.doneUnsafe(ended, Exit.fail(gone()))
    const isShuttingDown = options.isShuttingDown()
    const abandoned = Array.from(exchanges, (exchange) => {
      const { pending, seen, served } = exchange
      const last = Array.from(pending).filter((id) => !seen.has(id)).map((id) => Answers.abandoned(id, isShuttingDown))
      for (const response of last) served.answered(response)
      const stream = streamOf(exchange)
      stream.last = [...stream.last, ...last]
      return { exchange, last }
    })
    for (const { exchange, last } of abandoned) {
      const { answer, hasStarted, ids, responses } = exchange
      // It has come back for a stream, and is about to hear what was said there meanwhile
      if (exchange.isListening && exchange.last.length > 0) answer?.(Effect.succeed("stream"))
      else if (!hasStarted) answer?.(gone())
      else if (ids.length === 0) answer?.(Effect.succeed(Web.accepted))
      // A stream is about to be given, and says it
      else if (options.enableJsonResponse) {
        for (const response of last) responses.set(response.id, JSON.stringify(response))
        answer?.(Effect.succeed(jsonOf(exchange, isShuttingDown ? 503 : 200)))
      }
      forget(exchange)
      if (isWritten && ids.length > 0) exchange.outlet?.close()
    }
    for (const outlet of outlets) outlet.hurry()
  }

  const end = (): void => {
    finish()
    void transport.close()
  }

  return { scope, wire, handle, ended: Deferred.await(ended), endStreams, end }
}
