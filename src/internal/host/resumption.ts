/**
 * The streams of a session as its event store keeps them, for clients that come back for one with the id of the last
 * event that they have.
 *
 * What is said is told in the order in which it was said, when the store has it: with the id that it has there, to
 * whoever has the stream then. While somebody replays a stream nothing of it is told, because only after that it is
 * known what they have of it. A store may show an event before it says that it has it: whoever was shown it, or has
 * come back with the id of it or of a later one, has heard it.
 *
 * Several may come back for one stream, and the last of them has it. A replay for somebody else is stopped, as is one
 * whose store has been given up on.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type { JSONRPCMessage } from "@modelcontextprotocol/sdk/types.js"
import { constVoid } from "effect/Function"
import * as Predicate from "effect/Predicate"

export interface Resumption<Client> {
  /** Keeps the beginning of a stream, and gives its id: with that a client can come back who has heard nothing. */
  readonly begin: (streamId: string) => Promise<string | undefined>
  /** Keeps a message, and tells it in its turn. Ends after that. */
  readonly say: (streamId: string, message: JSONRPCMessage, tell: Tell<Client>) => Promise<void>
  /**
   * Gives a stream to a client who comes back for it, and shows what was said there after that event. `false` if there
   * is no such event. Fails if the store does, or if the client does not get the stream.
   */
  readonly resume: (client: Client, lastEventId: string, show: Show) => Promise<boolean>
  /** The client does not want a stream any more, or is not to have it. */
  readonly leave: (client: Client) => void
}

/** An event has an id if it can be had again. */
export type Tell<Client> = (eventId: string | undefined, hasHeard: (client: Client) => boolean) => void

export type Show = (eventId: string | undefined, message: JSONRPCMessage) => void

export interface Streams<Client> {
  /** The client has found its stream, and is to have it unless somebody came after it. */
  readonly take: (streamId: string, client: Client) => void
  /** Whether it still wants a stream, and nobody came after it. */
  readonly awaits: (client: Client) => boolean
  /** The client has the stream now: it has been shown all that it has missed. */
  readonly attach: (client: Client) => void
}

/** Somebody who is on the way to a stream. */
interface Return<Client> {
  readonly client: Client
  /** Once that is known. */
  streamId: string | undefined
  isReplaying: boolean
  readonly over: Promise<void>
  readonly end: () => void
}

/** A stream of which the store has been given something that is not told yet. */
interface Line<Client> {
  /** Ends when the last of it is told. */
  last: Promise<void>
  waiting: number
  /** What the store has shown meanwhile, in order, by whom it has shown it to. */
  readonly shown: Map<Client, Set<string>>
  /** What of it those have had who came back since. */
  readonly had: Map<Client, ReadonlySet<string>>
}

type Send = Parameters<EventStore["replayEventsAfter"]>[1]["send"]

const stopped = () => new Error("Nobody waits for the rest of this stream")

export const make = <Client>(
  store: EventStore,
  { attach, awaits, take }: Streams<Client>
): Resumption<Client> => {
  const returns = new Set<Return<Client>>()
  const lines = new Map<string, Line<Client>>()

  const lineOf = (streamId: string): Line<Client> => {
    const known = lines.get(streamId)
    if (known !== undefined) return known
    const line: Line<Client> = { last: Promise.resolve(), waiting: 0, shown: new Map(), had: new Map() }
    lines.set(streamId, line)
    return line
  }

  /** It has had the event, and so what was shown before that. */
  const hasHad = (client: Client, eventId: string): void => {
    for (const { had, shown } of lines.values()) {
      for (const ids of shown.values()) {
        const inOrder = Array.from(ids)
        if (ids.has(eventId)) had.set(client, new Set(inOrder.slice(0, inOrder.indexOf(eventId) + 1)))
      }
    }
  }

  const isShown = ({ streamId, client }: Return<Client>, eventId: string): void => {
    for (const [id, { shown }] of lines) {
      if (streamId !== undefined && id !== streamId) continue
      const ids = shown.get(client) ?? new Set()
      shown.set(client, ids.add(eventId))
    }
  }

  /** Ends when whoever replays the stream has it, or does not get it. Whoever does so later is shown all until now. */
  const replayed = (streamId: string): Promise<unknown> =>
    Promise.all(
      Array.from(returns)
        .filter((each) => each.isReplaying && (each.streamId ?? streamId) === streamId)
        .map(({ over }) => over)
    )

  const say: Resumption<Client>["say"] = (streamId, message, tell) => {
    const line = lineOf(streamId)
    const before = line.last
    line.waiting++
    const inTurn = async (kept: Promise<string>): Promise<void> => {
      const id = idOf(await kept)
      const coming = replayed(streamId)
      await before
      await coming
      tell(id, (client) => id !== undefined && [line.shown, line.had].some((by) => by.get(client)?.has(id) === true))
    }
    const told = inTurn(store.storeEvent(streamId, message))
    line.last = told.catch(constVoid).then(() => {
      if (--line.waiting === 0) lines.delete(streamId)
    })
    return told
  }

  const replay = async (coming: Return<Client>, lastEventId: string, show: Show): Promise<string> => {
    let isOver = false
    coming.isReplaying = true
    const send: Send = async (eventId, message) => {
      if (isOver || !awaits(coming.client)) throw stopped()
      const id = idOf(eventId)
      if (id !== undefined) isShown(coming, id)
      // What a stream begins with is no message, and is known to whoever knows the stream
      if (isMessage(message)) show(id, message)
    }
    try {
      return await store.replayEventsAfter(lastEventId, {
        send: (eventId, message) => {
          const sent = send(eventId, message)
          // A store need not wait for it, and nobody may mind: that would end the process
          sent.catch(constVoid)
          return sent
        }
      })
    } finally {
      isOver = true
    }
  }

  /** What a stream is known to be before or, if the store can't tell that, after it is replayed. */
  const lookUp = async (coming: Return<Client>, lastEventId: string, show: Show): Promise<boolean> => {
    const found = await store.getStreamIdForEventId?.(lastEventId)
    if (found === undefined && store.getStreamIdForEventId !== undefined) return false
    const { client } = coming
    if (found !== undefined) take(found, client)
    if (!awaits(client)) throw stopped()
    coming.streamId = found
    const streamId = await replay(coming, lastEventId, show)
    if (found === undefined) take(streamId, client)
    if (!awaits(client)) throw stopped()
    attach(client)
    return true
  }

  return {
    begin: async (streamId) => idOf(await store.storeEvent(streamId, {} as JSONRPCMessage)),
    say,
    resume: async (client, lastEventId, show) => {
      let end: () => void = constVoid
      const over = new Promise<void>((resolve) => {
        end = resolve
      })
      const coming: Return<Client> = { client, streamId: undefined, isReplaying: false, over, end }
      hasHad(client, lastEventId)
      returns.add(coming)
      try {
        return await lookUp(coming, lastEventId, show)
      } finally {
        returns.delete(coming)
        end()
      }
    },
    leave: (client) => {
      for (const coming of returns) {
        if (coming.client !== client) continue
        returns.delete(coming)
        coming.end()
      }
    }
  }
}

const isMessage = (event: object): boolean => Predicate.hasProperty(event, "jsonrpc")

/** What can't be said in an event is the id of none (Server-Sent Events, HTML section 9.2.6). */
const idOf = (given: unknown): string | undefined =>
  typeof given === "string" && given !== "" && !/[\0\r\n]/.test(given) ? given : undefined
