/**
 * Clients that come back for a stream with the id of the last event that they have.
 *
 * The transport asks the event store by that id, and several may come back with the same one: so it gets a ticket in
 * place of the id, which tells who asks. A replay for somebody who does not have the stream any more is stopped, as is
 * one whose store has been given up on.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"

export interface Returns<Client> {
  /** What the transport is told in place of the id of an event, until it has answered. */
  readonly ticket: (client: Client, eventId: string) => string
  /** The transport has answered. */
  readonly forget: (ticket: string) => void
  /** What the transport asks the store by a ticket. */
  readonly store: Pick<EventStore, "getStreamIdForEventId" | "replayEventsAfter">
}

const ended = () => new Error("Nobody waits for the rest of this stream")

export const make = <Client>(store: EventStore, { has, take }: {
  /** The client has found its stream, and is to have it unless somebody came after it. */
  readonly take: (streamId: string, client: Client) => void
  /** Whether it still wants the stream, and nobody came after it. */
  readonly has: (streamId: string | undefined, client: Client) => boolean
}): Returns<Client> => {
  const tickets = new Map<string, { readonly client: Client; readonly eventId: string }>()
  let issued = 0

  const replayEventsAfter: EventStore["replayEventsAfter"] = async (ticket, { send }) => {
    const { client, eventId } = tickets.get(ticket)!
    let isOver = false
    try {
      const streamId = await store.replayEventsAfter(eventId, {
        send: async (id, message) => {
          if (isOver || !has(undefined, client)) throw ended()
          return send(id, message)
        }
      })
      if (store.getStreamIdForEventId === undefined) take(streamId, client)
      if (!has(streamId, client)) throw ended()
      return streamId
    } finally {
      isOver = true
    }
  }

  return {
    ticket: (client, eventId) => {
      const ticket = String(++issued)
      tickets.set(ticket, { client, eventId })
      return ticket
    },
    forget: (ticket) => void tickets.delete(ticket),
    store: store.getStreamIdForEventId === undefined ? { replayEventsAfter } : {
      replayEventsAfter,
      getStreamIdForEventId: async (ticket) => {
        const { client, eventId } = tickets.get(ticket)!
        const streamId = await store.getStreamIdForEventId!(eventId)
        if (streamId !== undefined) take(streamId, client)
        return streamId
      }
    }
  }
}
