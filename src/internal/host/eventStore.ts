/**
 * The events of one session's streams, for clients that come back.
 *
 * An event's id says which stream it is of, as the specification advises, and its place in the session: so what is
 * replayed is in order, and of that stream alone.
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#resumability-and-redelivery
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { type JSONRPCMessage, JSONRPCMessageSchema } from "@modelcontextprotocol/sdk/types.js"

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

  return {
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
}
