/**
 * What stands between the transport and an event store, for clients that come back for a stream with the id of the last
 * event that they have.
 *
 * The transport asks the event store by that id, and several may come back with the same one: so it gets a ticket in
 * place of the id, which tells who asks. A replay for somebody who does not have the stream any more is stopped, as is
 * one whose store has been given up on.
 *
 * What the store has kept the transport writes to whoever has the stream then, unless that one has had it by its
 * replay. So it hears of that in the order in which it was said, and not while somebody replays the stream, who has it
 * only then. It does not know whom else the store has shown it before it said so: that is known here.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { constVoid } from "effect/Function"
import * as Events from "./events.ts"

export interface Returns<Client> {
  /** What the transport is told in place of the id of an event, until it has answered. */
  readonly ticket: (client: Client, eventId: string) => string
  /** The transport has answered. */
  readonly forget: (ticket: string) => void
  /** The client does not want a stream any more, or is not to have it. */
  readonly leave: (client: Client) => void
  /** What the transport asks, by a ticket. */
  readonly store: EventStore
  /** Whether whoever had the stream before has had what the transport says to the client now, as an event. */
  readonly wasHeard: (client: Client, event: Uint8Array) => boolean
}

interface Ticket<Client> {
  readonly client: Client
  readonly eventId: string
  /** Of the stream, once that is known. */
  streamId: string | undefined
  /** Until the transport has answered the client does not have the stream. */
  phase: "looking" | "replaying" | "replayed" | "gone"
  readonly answered: Promise<void>
  readonly answer: () => void
}

/** A stream of which the store has been given something that it has not said to have. */
interface Line<Client> {
  /** Ends when the transport has heard of the last of it. */
  last: Promise<void>
  waiting: number
  /** The last that the store has shown meanwhile, in order, by whom it has shown it to. */
  readonly shown: Map<Client, Array<string>>
  /** What of it those have had who came back since. */
  readonly had: Map<Client, ReadonlySet<string>>
}

const ended = () => new Error("Nobody waits for the rest of this stream")

export const make = <Client>(store: EventStore, { has, holder, take }: {
  /** The client has found its stream, and is to have it unless somebody came after it. */
  readonly take: (streamId: string, client: Client) => void
  /** Whether it still wants the stream, and nobody came after it. */
  readonly has: (streamId: string | undefined, client: Client) => boolean
  /** Who came for the stream last. */
  readonly holder: (streamId: string) => Client | undefined
}): Returns<Client> => {
  const tickets = new Map<string, Ticket<Client>>()
  const lines = new Map<string, Line<Client>>()
  /** What the transport says in this turn, and to whom, though it was shown to somebody before. */
  const heard = new Map<string, Client>()
  let issued = 0

  const lineOf = (streamId: string): Line<Client> => {
    const known = lines.get(streamId)
    if (known !== undefined) return known
    const line: Line<Client> = { last: Promise.resolve(), waiting: 0, shown: new Map(), had: new Map() }
    lines.set(streamId, line)
    return line
  }

  /** What a client may be shown. */
  const linesOf = ({ streamId }: Ticket<Client>): Iterable<Line<Client>> => {
    if (streamId === undefined) return lines.values()
    const line = lines.get(streamId)
    return line === undefined ? [] : [line]
  }

  // Of what is shown no more than the last can be what it has not said to have
  const show = ({ shown, waiting }: Line<Client>, client: Client, id: string): void => {
    const ids = shown.get(client) ?? []
    shown.set(client, ids)
    ids.push(id)
    if (ids.length > waiting) ids.shift()
  }

  /** It has had the event, and so what was shown before that. */
  const hasHad = (client: Client, eventId: string): void => {
    for (const { had, shown } of lines.values()) {
      for (const ids of shown.values()) {
        const index = ids.indexOf(eventId)
        if (index !== -1) had.set(client, new Set(ids.slice(0, index + 1)))
      }
    }
  }

  /** Ends when whoever is as far as that on the way to the stream has it, or does not get it. */
  const arrived = (streamId: string, ...phases: ReadonlyArray<Ticket<Client>["phase"]>): Promise<unknown> =>
    Promise.all(
      Array.from(tickets.values())
        .filter((ticket) => (ticket.streamId ?? streamId) === streamId && phases.includes(ticket.phase))
        .map(({ answered }) => answered)
    )

  const storeEvent: EventStore["storeEvent"] = (streamId, message) => {
    const line = lineOf(streamId)
    const before = line.last
    line.waiting++
    const inTurn = async (kept: Promise<string>): Promise<string> => {
      try {
        return await kept
      } finally {
        // Whoever looks later has it by the replay, and nobody comes back for a stream that has yet to begin
        const coming = "jsonrpc" in message ? arrived(streamId, "replaying", "replayed") : undefined
        await before
        await coming
      }
    }
    const told = inTurn(store.storeEvent(streamId, message))
    line.last = told.then((id) => {
      const client = holder(streamId)
      if (client === undefined || line.had.get(client)?.has(id) !== true) return
      heard.set(id, client)
      setImmediate(() => heard.delete(id))
    }, constVoid).then(() => {
      if (--line.waiting === 0) lines.delete(streamId)
    })
    return told
  }

  const replayEventsAfter: EventStore["replayEventsAfter"] = async (id, { send }) => {
    const ticket = tickets.get(id)!
    const { client, eventId } = ticket
    let isOver = false
    if (ticket.phase === "gone") throw ended()
    ticket.phase = "replaying"
    try {
      const streamId = await store.replayEventsAfter(eventId, {
        send: async (shownId, message) => {
          if (isOver || !has(undefined, client)) throw ended()
          for (const line of linesOf(ticket)) show(line, client, shownId)
          return send(shownId, message)
        }
      })
      if (store.getStreamIdForEventId === undefined) take(streamId, client)
      if (!has(streamId, client)) throw ended()
      ticket.streamId = streamId
      ticket.phase = "replayed"
      return streamId
    } finally {
      isOver = true
    }
  }

  const getStreamIdForEventId = store.getStreamIdForEventId === undefined ? {} : {
    getStreamIdForEventId: async (id: string) => {
      const ticket = tickets.get(id)!
      const streamId = await store.getStreamIdForEventId!(ticket.eventId)
      if (streamId === undefined) return undefined
      take(streamId, ticket.client)
      // Who has just got it has lost it, but the transport is still about to say so, and would refuse another
      await arrived(streamId, "replayed")
      ticket.streamId = streamId
      return streamId
    }
  }

  return {
    ticket: (client, eventId) => {
      const ticket = String(++issued)
      let answer: () => void = constVoid
      const answered = new Promise<void>((resolve) => {
        answer = resolve
      })
      hasHad(client, eventId)
      tickets.set(ticket, { client, eventId, streamId: undefined, phase: "looking", answered, answer })
      return ticket
    },
    forget: (ticket) => {
      tickets.get(ticket)?.answer()
      tickets.delete(ticket)
    },
    leave: (client) => {
      for (const ticket of tickets.values()) {
        // The transport is about to tell it who has its stream already
        if (ticket.client !== client || ticket.phase === "replayed") continue
        ticket.phase = "gone"
        ticket.answer()
      }
    },
    wasHeard: (client, event) => {
      const id = heard.size === 0 ? undefined : Events.idOf(event)
      return id !== undefined && heard.get(id) === client
    },
    store: { storeEvent, replayEventsAfter, ...getStreamIdForEventId }
  }
}
