/**
 * Who reads the streams of a session, and what is said there.
 *
 * A stream has one reader. Whoever comes for it last has it: the one before is a ghost, whose end the kernel has not
 * noticed yet. What nobody reads is not kept here without a bound; what an event store has a client can come back for.
 */
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type { JSONRPCMessage } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import { constVoid } from "effect/Function"
import { randomUUID } from "node:crypto"
import * as Answers from "./answers.ts"
import * as Events from "./events.ts"
import * as Exchange from "./exchange.ts"
import * as Replies from "./replies.ts"
import * as Requests from "./requests.ts"
import * as Resumption from "./resumption.ts"
import * as Web from "./web.ts"

export interface Channels {
  /** Whether an event store is asked to keep what is said in answer to calls. */
  readonly isStored: boolean
  /** The stream of a POST. */
  readonly ofCall: (call: Exchange.Exchange) => Exchange.Channel
  /** Has the store keep the beginning of a stream, so that its client can come back before anything else is said. */
  readonly prime: (channel: Exchange.Channel) => Promise<void>
  /** Gives the server's own stream to a GET. */
  readonly listen: (exchange: Exchange.Exchange) => void
  /** Gives a GET the stream that it has come back for, with what it has missed there. */
  readonly resume: (exchange: Exchange.Exchange, lastEventId: string) => void
  /** Says on the stream of a call what is no response. */
  readonly mention: (channel: Exchange.Channel, message: JSONRPCMessage) => Promise<void>
  /**
   * Says a message on a stream, as JSON, and then calls `onSaid`: at once, or when the store has it. What is not needed
   * is not said to a client who has left too much unread and can't come back.
   */
  readonly say: (channel: Exchange.Channel, json: string, isNeeded: boolean, onSaid?: () => void) => Promise<void>
  /** Says what belongs to no call, on the server's own stream. */
  readonly announce: (message: JSONRPCMessage) => Promise<void>
  /** Whether all was said that the exchange is to hear. */
  readonly isComplete: (exchange: Exchange.Exchange) => boolean
  readonly own: Exchange.Channel
  /** The exchange's outlet has ended, or it will have none. `isExpired` if the client is told to come again. */
  readonly leave: (exchange: Exchange.Exchange, isExpired: boolean) => void
  /** The exchange does not want a stream any more. */
  readonly forgo: (exchange: Exchange.Exchange) => void
}

export interface Options {
  readonly enableJsonResponse: boolean
  readonly eventStore: EventStore | undefined
  /** Milliseconds. */
  readonly retryInterval: number | undefined
  readonly hasEnded: () => boolean
}

/** More than this is not kept of a stream that nobody reads: bytes. */
const maxUnread = 1024 * 1024

/** More than this a store is not given before it has said that it has the rest: characters. */
const maxWaiting = 4 * 1024 * 1024

/** More than this is not kept for a client that will be back in a moment: messages and characters. */
const maxHeld = { messages: 100, characters: 256 * 1024 }

export const make = ({ enableJsonResponse, eventStore, hasEnded, retryInterval }: Options): Channels => {
  // The name that the SDK's transport has for it: there are stores that know it
  const own = Exchange.makeChannel("_GET_stream")
  /** Those that somebody may come back for, or has. */
  const channels = new Map([[own.id, own]])
  /** What is said on the server's own stream while nobody reads it for a moment. */
  let held: { readonly messages: Array<string>; characters: number } | undefined

  const channelOf = (id: string): Exchange.Channel => {
    const known = channels.get(id)
    if (known !== undefined) return known
    const channel = Exchange.makeChannel(id)
    channels.set(id, channel)
    return channel
  }

  const isAwaiting = ({ answer }: Exchange.Exchange): boolean => answer !== undefined && !hasEnded()

  const resumption = eventStore && Resumption.make<Exchange.Exchange>(eventStore, {
    take: (id, exchange) => {
      if (!isAwaiting(exchange)) return
      const channel = channelOf(id)
      if ([channel.reader, channel.comer].some((holder) => holder !== undefined && holder.place > exchange.place)) {
        return dismiss(exchange)
      }
      giveWay(channel)
      channel.comer = exchange
      exchange.channel = channel
      for (const shown of exchange.shown) channel.shown.add(shown)
    },
    awaits: (exchange) =>
      isAwaiting(exchange) && (exchange.channel === undefined || exchange.channel.comer === exchange),
    attach: (exchange) => {
      const channel = exchange.channel!
      channel.comer = undefined
      channel.reader = exchange
    }
  })

  /** Somebody else has the stream that it was to have. */
  const dismiss = (exchange: Exchange.Exchange): void => {
    resumption?.leave(exchange)
    exchange.answer?.(Effect.succeed(Web.emptyStream))
  }

  const giveWay = (channel: Exchange.Channel): void => {
    const { comer, reader } = channel
    channel.comer = channel.reader = undefined
    if (comer !== undefined) dismiss(comer)
    if (reader === undefined) return
    if (reader.isListening) dismiss(reader)
    reader.early = undefined
    reader.outlet?.end()
  }

  /** Whether there is room for more of what is said there. Who has left too much unread comes back, if it can. */
  const hasRoom = (channel: Exchange.Channel): boolean => {
    if (Exchange.unread(channel) <= maxUnread) return true
    if (channel === own) {
      own.reader?.outlet?.drop()
      own.reader = undefined
    } else if (channel.isPrimed) Exchange.cut(channel)
    return false
  }

  /** Says an event to whoever reads, unless that is one too many. */
  const sayNow = (channel: Exchange.Channel, event: Events.Event, isNeeded: boolean): void => {
    const isHeard = isNeeded || hasRoom(channel)
    if (isHeard && channel.reader !== undefined && !hasEnded()) Exchange.say(channel.reader, event)
  }

  const say: Channels["say"] = async (channel, json, isNeeded, onSaid = constVoid) => {
    if (resumption === undefined) {
      sayNow(channel, Events.ofMessage(json), isNeeded)
      return onSaid()
    }
    if (channel.waiting > maxWaiting && !isNeeded) return
    // As it is now, whatever becomes of it
    const message = JSON.parse(json) as JSONRPCMessage
    channel.waiting += json.length
    return resumption.say(channel.id, message, (eventId, hasHeard) => {
      channel.waiting -= json.length
      if (channel.reader !== undefined && !hasHeard(channel.reader)) {
        sayNow(channel, Events.ofMessage(json, eventId), isNeeded)
      }
      onSaid()
    })
  }

  const announce: Channels["announce"] = async (message) => {
    const json = Replies.jsonOf(message)
    if (resumption === undefined && !hasRoom(own)) hold()
    if (held === undefined) return say(own, json, "id" in message)
    held.messages.push(json)
    held.characters += json.length
    while (held.messages.length > maxHeld.messages || held.characters > maxHeld.characters) {
      held.characters -= held.messages.shift()!.length
    }
  }

  const hold = (): void => void (held ??= { messages: [], characters: 0 })

  const leave: Channels["leave"] = (exchange, isExpired) => {
    const { channel } = exchange
    if (channel === undefined) return
    if (channel.comer === exchange) channel.comer = undefined
    if (channel.reader === exchange) {
      channel.reader = undefined
      // The client will be back in a moment
      if (isExpired && channel === own && resumption === undefined) hold()
    }
    const isIdle = channel.reader === undefined && channel.comer === undefined && !Exchange.isAwaited(channel)
    if (isIdle && channel !== own) channels.delete(channel.id)
  }

  return {
    isStored: resumption !== undefined && !enableJsonResponse,
    own,
    ofCall: (call) => {
      const channel = Exchange.makeChannel(resumption === undefined ? "" : randomUUID(), call)
      call.channel = channel
      if (resumption !== undefined) channels.set(channel.id, channel)
      return channel
    },
    prime: async (channel) => {
      const eventId = await resumption?.begin(channel.id)
      if (eventId === undefined) return
      channel.isPrimed = true
      sayNow(channel, Events.ofBeginning(eventId, retryInterval), true)
    },
    listen: (exchange) => {
      giveWay(own)
      own.reader = exchange
      exchange.channel = own
      const missed = held?.messages ?? []
      held = undefined
      for (const json of missed) Exchange.say(exchange, Events.ofMessage(json))
      exchange.answer?.(Effect.succeed("stream"))
    },
    resume: (exchange, lastEventId) =>
      void resumption?.resume(exchange, lastEventId, (eventId, message) => {
        const shown = exchange.channel?.shown ?? exchange.shown
        if (Requests.isResponse(message)) shown.add(message.id)
        Exchange.say(exchange, Events.ofMessage(JSON.stringify(message), eventId))
      }).then(
        (isKnown) => exchange.answer?.(isKnown ? Effect.succeed("stream") : Answers.unknownEvent),
        (defect) => exchange.answer?.(Effect.die(defect))
      ),
    mention: async (channel, message) => say(channel, Replies.jsonOf(message), "id" in message),
    say,
    announce,
    isComplete: (exchange) => {
      const { channel } = exchange
      return channel?.reader !== exchange || (channel !== own && !Exchange.isAwaited(channel))
    },
    leave,
    forgo: (exchange) => resumption?.leave(exchange)
  }
}
