/**
 * Watches the HTTP servers that requests come from, and ends what is open when they stop listening.
 *
 * A server that closes waits for its connections (Effect's for 20 seconds, then it cuts off what it still answers), and
 * the layers above it are closed only then. A stream that is open until its session ends would make every shutdown take
 * that long. Nothing tells a request that its server is closing, so while there are requests their servers are asked,
 * ten times a second.
 *
 * Nor does Node close a connection whose answer ends later than that, or that is always busy, as a proxy's is. So each
 * answer is the last of its connection then, and ours say so if that is still to be said (RFC 9112 section 9.6).
 */
import * as Effect from "effect/Effect"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Latch from "effect/Latch"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Finalizers from "../finalizers.ts"
import * as Socket from "./socket.ts"

/**
 * Makes a function that is told of each request, and counts it until the current scope closes. `end` runs once: when
 * none of the servers that sent a request listens any more, and at least one request is still counted.
 */
export const make = Effect.fnUntraced(function*(end: Effect.Effect<void>) {
  const requests = new Map<Socket.Server, number>()
  const servers = new Set<Socket.Server>()
  const anyRequest = Latch.makeUnsafe(false)
  let isEnding = false

  const look = Effect.suspend(() => {
    if (requests.size === 0) anyRequest.closeUnsafe()
    else if (!isEnding && Array.from(servers).every((server) => !server.listening)) {
      isEnding = true
      return end
    }
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
        servers.add(listener)
        requests.set(listener, (requests.get(listener) ?? 0) + 1)
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

/** The same as of `Socket`, whose client is hurried once its server has stopped listening. */
export const hangUpUnread = (request: HttpServerRequest, patience: number): Effect.Effect<void> =>
  Socket.hangUpUnread(request, patience, () => hasStopped(request))

const hasStopped = (request: HttpServerRequest): boolean => listenerOf(request)?.listening === false

/** Whether the answer to the request is the last of its connection, because its server has stopped listening. */
export const isLast = (request: HttpServerRequest): boolean => hasStopped(request) && Socket.isFree(request)

const known = new WeakSet<Socket.Server>()

/** Comes to know the server of a request: before that, nothing here is of any effect. */
export const watch = (request: HttpServerRequest): void => {
  const server = serverOf(request)
  if (server === undefined || known.has(server) || !hasListened(server)) return
  known.add(server)
  Socket.endWithLast(server, request)
}

// One that is handed its connections does not listen, and never did. Of a server that has stopped before its first
// request Node alone knows that: by where it listened
const hasListened = (server: Socket.Server): boolean =>
  server.listening || Predicate.hasProperty(server, "_connectionKey")

const listenerOf = (request: HttpServerRequest): Socket.Server | undefined => {
  const server = serverOf(request)
  return server !== undefined && known.has(server) ? server : undefined
}

const serverOf = ({ source }: HttpServerRequest): Socket.Server | undefined => {
  const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
  const server = Predicate.hasProperty(socket, "server") ? socket.server : undefined
  return isServer(server) ? server : undefined
}

const isServer = (value: unknown): value is Socket.Server =>
  Predicate.hasProperty(value, "listening") && Predicate.hasProperty(value, "on")
