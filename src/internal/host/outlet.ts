/**
 * The body of an answer that is a stream of events.
 *
 * What is written is kept here until the client takes it, so that it is known how much of it there is, and so that what
 * ends the stream can still add to it. It is kept as text, and made bytes piece by piece as it is taken.
 *
 * A stream that has nothing to say says a comment now and then, for whatever stands between, and for the kernel to find
 * out that the client is gone.
 */
import type { JSONRPCMessage } from "@modelcontextprotocol/sdk/types.js"
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Events from "./events.ts"
import * as Listener from "./listener.ts"
import * as Pieces from "./pieces.ts"
import * as Socket from "./socket.ts"

export interface Outlet {
  readonly stream: Stream.Stream<Uint8Array>
  /** How many bytes were said since the client began to take what it takes now. */
  readonly buffered: () => number
  /** Says an event, unless it has ended. */
  readonly say: (event: Events.Event) => void
  /** All is said: it ends when the client has that. */
  readonly close: () => void
  /** Ends it now. What is buffered is still said, and the client has little time to read it. */
  readonly end: () => void
  /** The same, and what is buffered is dropped. */
  readonly drop: () => void
  /** From now on its client has little time to read the rest of it, once it has ended. */
  readonly hurry: () => void
}

/**
 * How often it is looked at, whether a stream has been silent since the last time: so that it never is for longer than
 * 15 seconds, which the kernel needs to find out that a silent peer is gone.
 */
const beats = "7.5 seconds"

export interface Options {
  readonly request: HttpServerRequest
  /** Those of the request, whose scope ends when the client has it all or is gone. */
  readonly services: Context.Context<Scope.Scope>
  /** How old it may get: milliseconds, or `Infinity`. */
  readonly maxAge: number
  /** How long the client may take to read the rest of one that has ended: milliseconds, or `Infinity`. */
  readonly patience: number
  /** What it says last. */
  readonly last: () => ReadonlyArray<JSONRPCMessage>
  readonly onEnd: (isExpired: boolean) => void
}

export const make = (options: Options): Outlet => {
  const { patience, request } = options
  const scope = Context.get(options.services, Scope.Scope)
  const runFork = Effect.runForkWith(options.services)
  // What the client takes now, whole events, and those that were said since
  let pieces: Iterator<string, undefined> | undefined
  let events: Array<Events.Event> = []
  let buffered = 0
  // What was taken last is written while nobody waits for more
  let isWriting = false
  let isDone = false
  let hasBegun = false
  let isSilent = true
  let isExpired = false
  let isHurried = false
  let waiter: ((pulled: Pulled) => void) | undefined

  const run = (effect: Effect.Effect<void>): void => void Fiber.runIn(runFork(effect), scope)

  const push = (event: Events.Event): void => {
    events.push(event)
    buffered += Events.bytesOf(event)
  }

  const offer = (): void => {
    if (waiter === undefined) return
    const pulled = next()
    if (pulled === undefined) return
    const resume = waiter
    waiter = undefined
    resume(pulled)
  }

  const next = (): Pulled | undefined => {
    const piece = take()
    if (piece === undefined) return isDone ? Cause.done() : undefined
    isSilent = false
    isWriting = true
    return Effect.succeed([Pieces.encode(piece)])
  }

  // However long it takes, the client is reading: what it has left unread is what was said since
  const take = (): string | undefined => {
    const piece = pieces?.next().value
    if (piece !== undefined) return piece
    // An exhausted generator keeps what it was made of
    pieces = undefined
    if (events.length === 0) return undefined
    pieces = Pieces.of(events.flat(), () => events.length === 0 ? Pieces.most : mostInHaste)
    events = []
    buffered = 0
    return take()
  }

  const finish = (isEarly: boolean): void => {
    if (isDone) return
    isDone = true
    for (const message of options.last()) push(Events.ofMessage(JSON.stringify(message)))
    options.onEnd(isExpired)
    const isWaiting = waiter !== undefined
    offer()
    // A small rest, which the connection keeps of what was given before, is for whoever writes it
    if (isEarly || isHurried) runFork(Socket.hurry(request))
    else if (!isWaiting || isWriting) runFork(Listener.hangUpUnread(request, patience))
  }

  const say: Outlet["say"] = (event) => {
    if (isDone) return
    push(event)
    offer()
  }

  const close = (): void => finish(options.last().length > 0)

  const end = (): void => finish(true)

  const hurry = (): void => {
    isHurried = true
    if (isDone) runFork(Socket.hurry(request))
  }

  if (options.maxAge < Infinity) {
    run(Effect.andThen(
      Effect.sleep(options.maxAge),
      Effect.sync(() => {
        isExpired = true
        close()
      })
    ))
  }

  const beat = Effect.sync(() => {
    const wasSilent = isSilent
    isSilent = true
    if (!wasSilent || waiter === undefined) return
    push(comment)
    offer()
  })

  const pull = Effect.callback<Arr.NonEmptyReadonlyArray<Uint8Array>, Cause.Done>((resume) => {
    isWriting = false
    const pulled = next()
    if (pulled !== undefined) return resume(pulled)
    waiter = resume
    const isFirst = !hasBegun
    hasBegun = true
    if (!isFirst) return Effect.sync(() => waiter = undefined)
    // A Node server sends the headers with the first bytes of the body, and a client that has no headers does not know
    // that its stream is open
    const tick = setImmediate(() => {
      if (isDone) return
      run(Effect.forever(Effect.andThen(Effect.sleep(beats), beat)))
      if (waiter !== resume) return
      push(comment)
      offer()
    })
    return Effect.sync(() => {
      waiter = undefined
      clearImmediate(tick)
    })
  })

  return {
    stream: Stream.fromPull(Effect.succeed(pull)),
    buffered: () => buffered,
    say,
    close,
    end,
    drop: () => {
      events = []
      buffered = 0
      end()
    },
    hurry
  }
}

type Pulled = Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, Cause.Done>

const comment: Events.Event = [":\n\n"]

/** How much is given at once while something waits behind it, in characters: a turn of the loop may be all it takes. */
const mostInHaste = 1024 * 1024
