/**
 * The events of one session's streams, for clients that come back.
 *
 * An event's id says which stream it is of, as the specification advises, and its place in the session: so what is
 * replayed is in order, and of that stream alone.
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#resumability-and-redelivery
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { type JSONRPCMessage, JSONRPCMessageSchema } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

interface Event {
  readonly id: string
  readonly streamId: string
  readonly place: number
  readonly message: JSONRPCMessage
  readonly bytes: number
}

export interface Limits {
  /** How many events are kept, */
  readonly capacity: number
  /** and how much they may take as JSON. */
  readonly maxBytes: number
}

// They answer at once, and always
const made = new WeakSet<EventStore>()

export const make = ({ capacity, maxBytes }: Limits): EventStore => {
  const events: Array<Event> = []
  let places = 0
  let bytes = 0

  // Of a stream that has no event left, nothing is known.
  const locate = (id: string): Pick<Event, "streamId" | "place"> | undefined => {
    const [, place, streamId] = /^(\d{1,15})\.(.+)$/.exec(id) ?? []
    return place !== undefined && streamId !== undefined && events.some((event) => event.streamId === streamId)
      ? { streamId, place: Number(place) }
      : undefined
  }

  const store: EventStore = {
    storeEvent: async (streamId, message) => {
      const place = places++
      const id = `${place}.${streamId}`
      const event = { id, streamId, place, message, bytes: Buffer.byteLength(JSON.stringify(message)) }
      events.push(event)
      bytes += event.bytes
      while (events.length > capacity || bytes > maxBytes) bytes -= events.shift()!.bytes
      return id
    },
    getStreamIdForEventId: async (id) => locate(id)?.streamId,
    replayEventsAfter: async (lastEventId, { send }) => {
      const last = locate(lastEventId)
      if (last === undefined) throw new Error("There is no such event")
      const missed = events.filter(({ message, place, streamId }) =>
        // The event that opens a stream is no message. Its client has it, or it would not know the stream.
        streamId === last.streamId && place > last.place && JSONRPCMessageSchema.safeParse(message).success
      )
      await Promise.all(missed.map((event) => send(event.id, event.message)))
      return last.streamId
    }
  }
  made.add(store)
  return store
}

// -----------------------------------------------------------------------------
// Stores of others
// -----------------------------------------------------------------------------

/** How long a store may take for anything. */
const patience = "10 seconds"

// An event that has none is said without one, and can't be had again
const noId = undefined as unknown as string

const hasEnded = new Error("The session has ended")

/**
 * The same store, which keeps nobody waiting: what it does not keep in time is said all the same, but can't be had
 * again; where it does not say in time how a stream begins, or resumes, that fails.
 */
export const bounded = (store: EventStore, { onFailure, run }: {
  /** Interrupted when the session ends. */
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Promise<Exit.Exit<A, E>>
  /** Something could not be kept. */
  readonly onFailure: (error: unknown) => void
}): EventStore => {
  if (made.has(store)) return store

  // The store is asked at once: see who calls
  const inTime = async <A>(asked: Promise<A>): Promise<A> => {
    const exit = await run(Effect.timeout(Effect.tryPromise({ try: () => asked, catch: (error) => error }), patience))
    if (Exit.isSuccess(exit)) return exit.value
    throw Cause.hasInterruptsOnly(exit.cause) ? hasEnded : Cause.squash(exit.cause)
  }

  return {
    storeEvent: (streamId, message) => {
      const kept = inTime(ask(() => store.storeEvent(streamId, message)))
      // The first of a stream is empty. Nothing of the request has run yet
      if (!("jsonrpc" in message)) return kept
      return kept.catch((error: unknown) => {
        if (error !== hasEnded) onFailure(error)
        return noId
      })
    },
    replayEventsAfter: (id, replay) => inTime(ask(() => store.replayEventsAfter(id, replay))),
    ...(store.getStreamIdForEventId === undefined ? {} : {
      getStreamIdForEventId: (id: string) => inTime(ask(() => store.getStreamIdForEventId!(id)))
    })
  }
}

const ask = async <A>(f: () => Promise<A>): Promise<A> => f()
