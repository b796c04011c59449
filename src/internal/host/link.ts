/**
 * Requests of other nodes, by Node's own client: as they are given, with every header as often as it came, and with an
 * answer to whether anything of one was sent.
 */
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Agent, ClientRequest, IncomingMessage } from "node:http"
import { nameOf } from "../places.ts"

export interface Outgoing {
  /** Where the node is. Its path goes before the request's. */
  readonly base: URL
  /** With the query; begins with a slash. */
  readonly path: string
  readonly method: string
  /** Names and values by turns. */
  readonly headers: ReadonlyArray<string>
  /** A stream is sent when the node asks for it. */
  readonly body: string | Stream.Stream<Uint8Array, unknown> | undefined
}

/** The node was not reached, or it was lost before it answered. */
export class Unanswered extends Data.TaggedError("Unanswered")<{
  /** Whether it may have got the request. */
  readonly isSent: boolean
  /** What went wrong, by the name that the system has for it. */
  readonly code: string
}> {}

export interface Link {
  /**
   * Sends it, and answers when there are the headers of the response. Both end with the current scope, or when
   * `onOpen` says so: then the response breaks off, if it has begun.
   */
  readonly send: (
    outgoing: Outgoing,
    onOpen: (abort: () => void) => void
  ) => Effect.Effect<IncomingMessage, Unanswered, Scope.Scope>
}

/** How long a node may take to ask for a body: whoever does not know of that may wait for it without a word. */
const patience = "1 second"

/** Until the next turn of the event loop: by then a connection is known to be closed that was closed a moment ago. */
const turn = Effect.callback<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

export const make = Effect.fnUntraced(function*(agent: Agent | undefined, connectTimeout: number) {
  const [http, https] = yield* Effect.promise(() => Promise.all([import("node:http"), import("node:https")]))
  // Idle for less than Node's servers wait: a connection that they close just then would take a request with it
  const settings = { keepAlive: true, timeout: 4_000 }
  const agents = yield* Effect.acquireRelease(
    Effect.sync(() => ({ http: new http.Agent(settings), https: new https.Agent(settings) })),
    (own) =>
      Effect.sync(() => {
        own.http.destroy()
        own.https.destroy()
      })
  )

  const open = ({ base, headers, method, path }: Outgoing): ClientRequest => {
    const isEncrypted = base.protocol === "https:"
    return (isEncrypted ? https : http).request({
      // An address of IPv6 has brackets in a URL, and nowhere else
      hostname: base.hostname.replace(/^\[|\]$/g, ""),
      port: base.port === "" ? undefined : Number(base.port),
      path: base.pathname.replace(/\/$/, "") + path,
      method,
      headers: [...headers],
      agent: agent ?? (isEncrypted ? agents.https : agents.http)
    })
  }

  const link: Link = {
    send: Effect.fnUntraced(function*(outgoing, onOpen) {
      yield* turn
      const { answered, asked, connected, request } = yield* Effect.acquireRelease(
        Effect.try({
          try: () => watch(open(outgoing), connectTimeout),
          catch: (error) => new Unanswered({ isSent: false, code: codeOf(error) })
        }),
        (opened) => Effect.sync(() => opened.request.destroy())
      )
      onOpen(() => void request.destroy())
      const { body } = outgoing
      if (Stream.isStream(body)) {
        request.flushHeaders()
        // Whose connection comes to nothing takes nothing of it: it can be sent to another node
        const wanted = Effect.andThen(Deferred.await(connected), Effect.timeoutOption(Deferred.await(asked), patience))
        yield* Effect.forkScoped(Effect.andThen(wanted, pour(request, body)))
      } else request.end(body)
      return yield* Deferred.await(answered)
    })
  }
  return link
})

/** Hears of all that becomes of a request, from the first moment on: an error that nobody hears of ends the process. */
const watch = (request: ClientRequest, connectTimeout: number) => {
  const connected = Deferred.makeUnsafe<void>()
  const asked = Deferred.makeUnsafe<void>()
  const answered = Deferred.makeUnsafe<IncomingMessage, Unanswered>()
  const fail = (error: unknown) => {
    // Each request closes in the end
    if (Deferred.isDoneUnsafe(answered)) return
    const isSent = Deferred.isDoneUnsafe(connected)
    Deferred.doneUnsafe(answered, Exit.fail(new Unanswered({ isSent, code: codeOf(error) })))
  }
  request.on("error", fail)
  request.once("close", () => fail(undefined))
  request.once("continue", () => Deferred.doneUnsafe(asked, Exit.void))
  request.once("response", (response) => {
    response.on("error", () => undefined)
    Deferred.doneUnsafe(answered, Exit.succeed(response))
  })
  onceConnected(request, connectTimeout, () => Deferred.doneUnsafe(connected, Exit.void))
  return { request, connected, asked, answered }
}

/** Gives up a connection that is not there in time. */
const onceConnected = (request: ClientRequest, timeout: number, f: () => void): void => {
  const late = () => void request.destroy(Object.assign(new Error("late"), { code: "ETIMEDOUT" }))
  request.once("socket", (socket) => {
    if (!socket.connecting) return f()
    socket.setTimeout(timeout, late)
    socket.once("encrypted" in socket ? "secureConnect" : "connect", () => {
      f()
      socket.off("timeout", late)
      socket.setTimeout(0)
    })
  })
}

/** Sends a body as fast as it is taken. */
const pour = (request: ClientRequest, body: Stream.Stream<Uint8Array, unknown>): Effect.Effect<void> => {
  const write = (chunk: Uint8Array) =>
    Effect.callback<void>((resume) => {
      if (request.destroyed || request.write(chunk)) return resume(Effect.void)
      const done = () => {
        request.off("drain", done)
        request.off("close", done)
        resume(Effect.void)
      }
      request.on("drain", done)
      request.on("close", done)
      return Effect.sync(done)
    })
  return Effect.matchCause(Stream.runForEach(body, write), {
    onFailure: () => void request.destroy(),
    onSuccess: () => void request.end()
  })
}

const codeOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "code" in error && typeof error.code === "string"
    ? error.code
    : nameOf(error) ?? "ECONNRESET"
