/**
 * What can be done with the connection that a request came over, where that is one of Node's HTTP server. With any
 * other server all of this does nothing.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { constTrue } from "effect/Function"
import * as HttpBody from "effect/http/HttpBody"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Predicate from "effect/Predicate"
import * as Stream from "effect/Stream"
import * as Pieces from "./pieces.ts"

// A `Socket` of node:net.
interface Socket {
  readonly setKeepAlive: (enable: boolean, initialDelay: number) => unknown
  readonly setTimeout: (millis: number, callback: () => void) => unknown
  readonly once: (event: "end" | "close", callback: () => void) => unknown
  readonly resume: () => unknown
  readonly destroy: () => unknown
  readonly destroySoon: () => unknown
  readonly bytesWritten: number
  /** How much of that has not been handed to the system, until the whole of what is being written has. */
  readonly writableLength: number
}

// A `ServerResponse` of node:http or node:http2.
interface Response {
  /** None while those to earlier requests of the connection are being written. */
  readonly socket: Pick<Socket, "bytesWritten" | "writableLength"> | null
  readonly once: (event: "socket" | "close", callback: () => void) => unknown
  readonly prependListener: (event: "finish", callback: () => void) => unknown
  readonly emit: (event: "close") => unknown
  readonly destroyed: boolean
  /** Whether all of it has been handed to the system. Of HTTP/2 its stream knows. */
  readonly writableFinished?: boolean
  readonly stream?: { readonly destroyed: boolean; readonly writableFinished: boolean }
}

/** A `Server` of node:http. */
export interface Server {
  readonly listening: boolean
  readonly on: (event: "request", listener: (source: object, response: Response) => void) => unknown
}

const kept = new WeakSet<Socket>()

/**
 * Lets the kernel find out within some 13 seconds that a silent peer is gone: Node asks for ten probes a second apart,
 * after this delay. It only asks while all that was sent has arrived, so this has to be done before the next comment is
 * sent.
 */
export const keepAlive = (request: HttpServerRequest): void => {
  const socket = socketOf(request)
  if (socket === undefined || kept.has(socket)) return
  kept.add(socket)
  socket.setKeepAlive(true, 2_000)
}

/**
 * Whether Node has taken the request for the beginning of another protocol. It reads the socket of such a one no more,
 * and so does not notice that its client is gone.
 */
export const isUpgrade = ({ headers }: HttpServerRequest): boolean =>
  headers["upgrade"] !== undefined && /\bupgrade\b/i.test(headers["connection"] ?? "")

/**
 * Reads what such a client still sends, and closes the connection after it or after two silent seconds.
 */
export const abandon = (request: HttpServerRequest): void => {
  const socket = socketOf(request)
  if (socket === undefined) return
  const destroy = () => void socket.destroy()
  socket.setTimeout(2_000, destroy)
  socket.once("end", destroy)
  socket.resume()
}

/**
 * Closes the connection at once: whoever does not read what is written will not read that it has ended.
 */
export const hangUp = (request: HttpServerRequest): void => {
  const { source } = request
  // Of HTTP/2 the stream alone: others share the connection
  const stream = Predicate.hasProperty(source, "stream") ? source.stream : undefined
  // Without a reason it would still wait for what was written (CANCEL: RFC 9113 section 7)
  if (Predicate.hasProperty(stream, "close") && typeof stream.close === "function") stream.close(8)
  else socketOf(request)?.destroy()
}

/** By their connection, in order, what waits until the answers to earlier requests have been written. */
const queued = new WeakMap<Socket, Set<Response>>()

/**
 * Sees to it that the request ends when its connection closes, also if the client did not wait for one answer to ask
 * again. Of the answers to such a client Node 20 tells only the first that the connection is closed: Effect would wait
 * for ever to write the others.
 */
export const watch = (request: HttpServerRequest): void => {
  const socket = socketOf(request)
  const response = responseOf(request)
  if (socket !== undefined && response !== undefined) enqueue(socket, response)
}

const enqueue = (socket: Socket, response: Response): void => {
  if (response.socket !== null) return
  const known = queued.get(socket)
  const waiting = known ?? new Set()
  if (waiting.has(response)) return
  waiting.add(response)
  response.once("socket", () => void waiting.delete(response))
  if (known !== undefined) return
  queued.set(socket, waiting)
  socket.once("close", () => {
    for (const each of waiting) each.emit("close")
  })
}

/** Whether no other answer waits for that to this request: the end of the connection would take it along. */
export const isFree = (request: HttpServerRequest): boolean => {
  const socket = socketOf(request)
  return socket === undefined || isFreeAfter(socket, responseOf(request))
}

const isFreeAfter = (socket: Socket, response: Response | undefined): boolean => {
  const behind = Array.from(queued.get(socket) ?? []).at(-1)
  return behind === undefined || behind === response
}

/**
 * Has the connections of a server that no longer listens end when their last answer has been handed to the system: that
 * of this request, and of all that come after it, for any route.
 */
export const endWithLast = (server: Server, request: HttpServerRequest): void => {
  const watchOne = (source: object, response: Response): void => {
    const socket = socketOf({ source })
    if (socket === undefined) return
    enqueue(socket, response)
    // Before Node gives the connection to an answer that waits for it. Who still sends a body would lose the answer
    response.prependListener("finish", () => {
      if (!server.listening && isFreeAfter(socket, response) && !isComing({ source })) socket.destroySoon()
    })
  }
  server.on("request", watchOne)
  const response = responseOf(request)
  if (response !== undefined) watchOne(request.source, response)
}

/** How long a client may take to read the rest of what was ended early: milliseconds. */
const patienceWhenHurried = 5_000

/** By the answer, for how long it is still waited that more of it is read: milliseconds. */
const unread = new WeakMap<Response, { left: number; isHurried: boolean }>()

/**
 * Closes the connection if nothing of the answer, which is being written, has been handed to the system for so many
 * milliseconds; or after five seconds, from the moment on that its client is hurried.
 */
export const hangUpUnread = (
  request: HttpServerRequest,
  patience: number,
  isHurried: () => boolean
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const response = responseOf(request)
    if (response === undefined || isSent(response)) return Effect.void
    if (isQueued(response)) return whenWritten(response, hangUpUnread(request, patience, isHurried))
    const known = unread.get(response)
    if (known !== undefined) {
      known.left = Math.min(known.left, patience)
      known.isHurried ||= isHurried()
      return Effect.void
    }
    const wait = { left: patience, isHurried: false }
    unread.set(response, wait)
    const look = Effect.suspend(() => {
      wait.isHurried ||= isHurried()
      if (wait.isHurried) wait.left = Math.min(wait.left, patienceWhenHurried)
      const step = Math.min(wait.left, 1_000)
      const before = handedOn(response)
      return Effect.map(Effect.sleep(step), () => {
        wait.left = wait.isHurried || handedOn(response) === before ? wait.left - step : patience
        return wait.left <= 0
      })
    })
    const late = Effect.andThen(
      Effect.repeat(look, { until: (isOver) => isOver }),
      Effect.sync(() => isSent(response) ? undefined : hangUp(request))
    )
    return Effect.map(
      Effect.forkDetach(late),
      (fiber) => void response.once("close", () => fiber.interruptUnsafe())
    )
  })

/** What changes whenever more was handed to the system. Of HTTP/2 that is not known. */
const handedOn = ({ socket, stream }: Response): string => {
  if (stream !== undefined || socket === null) return ""
  // A big piece counts when it has been handed on whole. Node looks at how much of one is left, too, for its timeouts
  const handle: unknown = Reflect.get(socket, "_handle")
  // Of TLS that is known below it
  const below = Predicate.hasProperty(handle, "_parent") ? Reflect.get(handle, "_parent") : undefined
  return [socket.bytesWritten - socket.writableLength, leftOf(handle), leftOf(below)].join("/")
}

const leftOf = (handle: unknown): string =>
  Predicate.hasProperty(handle, "writeQueueSize") ? String(handle.writeQueueSize) : ""

// Behind the answer to an earlier request: nobody can read it yet.
const isQueued = (response: Response): boolean => response.stream === undefined && response.socket === null

const isWaiting = (request: HttpServerRequest): boolean => {
  const response = responseOf(request)
  return response !== undefined && isQueued(response)
}

// What is there by then is written in the same turn.
const whenWritten = (response: Response, effect: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.contextWith((services: Context.Context<never>) =>
    Effect.sync(() => {
      response.once("socket", () => Effect.runForkWith(services)(Effect.andThen(Effect.yieldNow, effect)))
    })
  )

/** The same from now on, whoever hurries. */
export const hurry = (request: HttpServerRequest): Effect.Effect<void> =>
  hangUpUnread(request, patienceWhenHurried, constTrue)

/** The same from the moment on that its session is `over`, for an answer that is long and is no stream. */
export const hurryAfter = (
  request: HttpServerRequest,
  response: HttpServerResponse.HttpServerResponse,
  over: Effect.Effect<unknown, unknown>
): Effect.Effect<void> =>
  isLong(response)
    ? Effect.map(
      Effect.forkDetach(Effect.andThen(Effect.exit(over), hurry(request))),
      (fiber) => whenSent(request, () => fiber.interruptUnsafe())
    )
    : Effect.void

/** Nobody waits for less to be read: bytes. */
export const maxUnread = 16 * 1024

/** Whether an answer is no stream, and so long that it is waited for that it is read. */
export const isLong = ({ body }: HttpServerResponse.HttpServerResponse): boolean =>
  body._tag === "Uint8Array" && body.contentLength > maxUnread

/**
 * The same answer, as a stream if it is long. Node takes the connection of one that it was given whole for idle, and
 * closes it together with its server, however much of the answer is still to be read.
 */
export const inPieces = (response: HttpServerResponse.HttpServerResponse): HttpServerResponse.HttpServerResponse => {
  const { body } = response
  if (body._tag !== "Uint8Array" || !isLong(response)) return response
  const pieces = body.text === undefined ? Pieces.ofBytes(body.body) : Pieces.ofText(body.text)
  return HttpServerResponse.setBody(response, HttpBody.stream(pieces, body.contentType, body.contentLength))
}

/** Tells when the answer has been handed to the system, or its client is gone. */
export const whenSent = (request: HttpServerRequest, f: () => void): void => {
  const response = responseOf(request)
  if (response === undefined || isSent(response)) f()
  else response.once("close", f)
}

const isSent = (response: Response): boolean => {
  const { destroyed, writableFinished } = response.stream ?? response
  return destroyed || writableFinished === true
}

/**
 * Closes the connection if the request's body is not there two seconds after the answer. Nobody waits for it any more,
 * but a connection with such a body is not idle, and the end of its server would wait for that.
 */
export const hangUpUnfinished = (request: HttpServerRequest): Effect.Effect<void> =>
  Effect.contextWith((services: Context.Context<never>) => {
    const response = responseOf(request)
    if (response === undefined || !isComing(request)) return Effect.void
    const late = Effect.andThen(
      Effect.sleep("2 seconds"),
      Effect.sync(() => isComing(request) ? hangUp(request) : undefined)
    )
    response.once("close", () => isComing(request) ? Effect.runForkWith(services)(late) : undefined)
    return Effect.void
  })

// Neither is it all there, nor is its client gone.
const isComing = ({ source }: Pick<HttpServerRequest, "source">): boolean =>
  Predicate.hasProperty(source, "complete") && source.complete === false &&
  !(Predicate.hasProperty(source, "destroyed") && source.destroyed === true)

/**
 * A stream that ends with the connection of a client who leaves what it was given unread: for so many milliseconds, or
 * up to twice as many; or for five seconds, or up to ten, from the moment on that it is `over`.
 */
export const whileRead = (
  response: HttpServerResponse.HttpServerResponse,
  request: HttpServerRequest,
  patience: number,
  over: Effect.Effect<unknown, unknown>
): HttpServerResponse.HttpServerResponse => {
  const { body } = response
  if (body._tag !== "Stream") return response
  const stream = Stream.transformPull(body.stream, (pull, scope) => {
    let given = 0
    let isReading = true
    const written = responseOf(request)
    const taken = () => `${given} ${written === undefined ? "" : handedOn(written)}`
    const look = (within: number, progress: () => unknown) =>
      Effect.suspend(() => {
        const before = progress()
        // Nobody can read it yet, if it waits for the answer to an earlier request
        const isEarly = isWaiting(request)
        return Effect.andThen(
          Effect.sleep(within),
          Effect.sync(() => !isEarly && !isReading && progress() === before ? hangUp(request) : undefined)
        )
      })
    const counted = Effect.suspend(() => {
      isReading = true
      return Effect.map(pull, (chunk) => {
        isReading = false
        given++
        return chunk
      })
    })
    const hurried = Effect.andThen(Effect.exit(over), Effect.forever(look(patienceWhenHurried, () => given)))
    return Effect.forkIn(hurried, scope).pipe(
      Effect.andThen(patience === Infinity ? Effect.void : Effect.forkIn(Effect.forever(look(patience, taken)), scope)),
      Effect.as(counted)
    )
  })
  return HttpServerResponse.setBody(response, HttpBody.stream(stream, body.contentType, body.contentLength))
}

const responseOf = (request: HttpServerRequest): Response | undefined =>
  Predicate.hasProperty(request, "response") && Predicate.hasProperty(request.response, "writableEnded")
    ? request.response as unknown as Response
    : undefined

const socketOf = ({ source }: Pick<HttpServerRequest, "source">): Socket | undefined =>
  Predicate.hasProperty(source, "httpVersionMajor") && source.httpVersionMajor === 1 &&
    Predicate.hasProperty(source, "socket") && Predicate.hasProperty(source.socket, "setKeepAlive")
    ? source.socket as unknown as Socket
    : undefined
