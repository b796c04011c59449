/**
 * Watches the HTTP servers that requests come from, and ends what is open when they stop listening.
 *
 * A server that closes waits for its connections (Effect's for 20 seconds), and the layers above it are closed only
 * then. A stream that is open until its session ends would make every shutdown take that long, and so would a
 * connection whose answer ends a moment after the server has closed those that were idle: it is kept for the next
 * request, which nobody takes. Nothing tells a request that its server is closing, so while there are requests their
 * servers are asked, ten times a second.
 *
 * A connection that is always busy, as a proxy's is, would never be found idle: it is told with its next answer that
 * there will be no other (RFC 9112 section 9.6).
 */
import * as Effect from "effect/Effect"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Latch from "effect/Latch"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Finalizers from "../finalizers.ts"

// A `Server` of node:http.
interface Listener {
  readonly listening: boolean
  readonly closeIdleConnections?: () => void
}

/**
 * Makes a function that is told of each request, and counts it until the current scope closes. `end` runs once: when
 * none of the servers that sent a request listens any more, and at least one request is still counted.
 */
export const make = Effect.fnUntraced(function*(end: Effect.Effect<void>) {
  const requests = new Map<Listener, number>()
  const known = new Set<Listener>()
  const anyRequest = Latch.makeUnsafe(false)
  let isEnding = false
  let isQuiet = false

  const look = Effect.suspend(() => {
    const closed = Array.from(known).filter((listener) => !listener.listening)
    // The connections whose answers have ended are idle now. The server has closed only those that were so before.
    for (const listener of closed) listener.closeIdleConnections?.()
    if (requests.size > 0) {
      isQuiet = false
      if (isEnding || closed.length < known.size) return Effect.void
      isEnding = true
      return end
    }
    // Two more times after the last request: when it ends, its connection is not idle yet
    if (isQuiet && !isEnding) anyRequest.closeUnsafe()
    isQuiet = true
    return Effect.void
  })

  yield* anyRequest.await.pipe(
    Effect.andThen(Effect.sleep(100)),
    Effect.andThen(look),
    Effect.forever,
    Effect.forkScoped
  )

  return (request: HttpServerRequest): Effect.Effect<void, never, Scope.Scope> => {
    const listener = listenerOf(request)
    if (listener === undefined) return Effect.void
    return Finalizers.hold(
      () => {
        known.add(listener)
        requests.set(listener, (requests.get(listener) ?? 0) + 1)
        isQuiet = false
        anyRequest.openUnsafe()
      },
      () => {
        const others = requests.get(listener)! - 1
        if (others > 0) requests.set(listener, others)
        else requests.delete(listener)
      }
    )
  }
})

/** Whether the server that the request came from has stopped listening. */
export const isClosed = (request: HttpServerRequest): boolean => listenerOf(request)?.listening === false

// One that is handed its connections does not listen, and never did
const haveListened = new WeakSet<object>()

const listenerOf = ({ source }: HttpServerRequest): Listener | undefined => {
  const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
  const server = Predicate.hasProperty(socket, "server") ? socket.server : undefined
  if (!Predicate.hasProperty(server, "listening")) return undefined
  if (server.listening === true) haveListened.add(server)
  return haveListened.has(server) ? server as object as Listener : undefined
}
