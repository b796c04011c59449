/**
 * A POST or GET of a session, and the streams of events that they are answered with.
 */
import type { RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import type { AccessDenied, Identity } from "../../Identity.ts"
import * as Answers from "./answers.ts"
import type { Lease } from "./endpoint.ts"
import * as Events from "./events.ts"
import type * as Outlet from "./outlet.ts"
import type * as Replies from "./replies.ts"
import * as Requests from "./requests.ts"
import type * as Spans from "./spans.ts"

/**
 * A request of the session, `body` being what its body says.
 */
export interface Arrival {
  readonly request: HttpServerRequest
  readonly body: unknown
  readonly identity: Identity
  /** Kept until what the request has started is done. */
  readonly lease: Lease
  readonly served: Spans.Served
}

/** An answer that is known, or the stream that the exchange has. */
export type Given = HttpServerResponse | "stream"

/** A POST or GET, until it is answered and what it has started is done. */
export interface Exchange {
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
  /** Whether its stream can be given once it has that. */
  isReady: boolean
  /** Whether the server has got any of its messages. */
  hasStarted: boolean
  /** Its handler has refused it. */
  denied: AccessDenied | undefined
  /** Answers it, until it is answered. */
  answer: ((answer: Effect.Effect<Given, Answers.Refused>) => void) | undefined
  /** Whether its answer is made, or will not be. */
  isAnswered: boolean
  /** The stream that its client is to read, once that is known. An answer in JSON has none. */
  channel: Channel | undefined
  outlet: Outlet.Outlet | undefined
  /** The events that were said before there was an outlet, unless there will be none. */
  early: { readonly events: Array<Events.Event>; bytes: number } | undefined
  /** The responses that a replay has shown before its stream was known. */
  readonly shown: Set<RequestId>
  /** What its stream says last, when the session has ended under it. */
  last: ReadonlyArray<Replies.Reply>
}

/** A stream of events: that of the server itself, or of a POST. */
export interface Channel {
  /** As an event store knows it. */
  readonly id: string
  /** The POST. */
  readonly call: Exchange | undefined
  /** Whoever it is said to. */
  reader: Exchange | undefined
  /** Whoever has come back for it, until that one has what was missed. */
  comer: Exchange | undefined
  /** Whether its client can come back for it before anything was said. */
  isPrimed: boolean
  /** How much an event store is asked to keep, and is yet to be said: characters. */
  waiting: number
  /** The responses that a replay has shown to its client. */
  readonly shown: Set<RequestId>
}

export const make = ({ body, identity, lease, request, served }: Arrival, place: number): Exchange => {
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
    isReady: false,
    hasStarted: false,
    denied: undefined,
    answer: undefined,
    isAnswered: false,
    channel: undefined,
    outlet: undefined,
    early: { events: [], bytes: 0 },
    shown: new Set(),
    last: []
  }
}

export const makeChannel = (id: string, call?: Exchange): Channel => ({
  id,
  call,
  reader: call,
  comer: undefined,
  isPrimed: false,
  waiting: 0,
  shown: new Set()
})

/** Whether the stream is of a call in flight. */
export const isAwaited = ({ call }: Channel): boolean => call !== undefined && call.pending.size > 0

/** Says an event to whoever reads it, unless that has ended. */
export const say = ({ early, outlet }: Exchange, event: Events.Event): void => {
  if (outlet !== undefined) return outlet.say(event)
  if (early === undefined) return
  early.events.push(event)
  early.bytes += Events.bytesOf(event)
}

/** Answers it, unless its handler has refused it. */
export const answer = (exchange: Exchange, given: Given): void => {
  const { denied } = exchange
  if (denied !== undefined) exchange.early = undefined
  exchange.answer?.(
    denied === undefined
      ? Effect.succeed(given)
      : Effect.flatMap(
        HttpServerRespondable.toResponse(denied),
        (response) => Effect.fail(new Answers.Refused({ response }))
      )
  )
}

/** Ends what is read now of a stream. Its client may come back for it. */
export const cut = (channel: Channel): void => {
  const { reader } = channel
  channel.reader = undefined
  reader?.outlet?.close()
}

/** How much there is to read for whoever reads it: bytes. */
export const unread = ({ reader }: Channel): number => reader?.outlet?.buffered() ?? reader?.early?.bytes ?? 0
