/**
 * Links between nodes over TCP.
 *
 * A link is one connection, made when there is something to send. When it breaks, everything that was sent on it fails,
 * and so does whatever waits for it to open; the next request makes another one. Nothing moves from one link to the
 * next, because what was sent may have been run. A node that stops says so first, and refuses what is still under way
 * to it: of what a closed link has carried nobody could say that it was not run.
 *
 * A stream is not acknowledged piece by piece, each of which would wait for the way there and back: TCP holds back who
 * sends faster than the other end reads. And that end has to read on, whatever becomes of one stream, because the link
 * is everybody's: whoever takes his time reads from a buffer that loses the oldest.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as RpcClient from "effect/rpc/RpcClient"
import { RpcClientDefect, RpcClientError } from "effect/rpc/RpcClientError"
import type { FromClientEncoded, FromServerEncoded, RequestEncoded } from "effect/rpc/RpcMessage"
import * as RpcSerialization from "effect/rpc/RpcSerialization"
import * as RpcServer from "effect/rpc/RpcServer"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as SocketServer from "effect/socket/SocketServer"
import * as Net from "node:net"
import * as Tls from "node:tls"
import type { ClusterMember } from "../../ClusterMembership.ts"
import { serialization } from "./lines.ts"
import { load } from "./peers.ts"
import * as Security from "./security.ts"
import type { Transport } from "./transport.ts"

/** How long a connection may take to open, and then the first answer on it. */
const openTimeout = 2_000

/**
 * After how many questions without an answer the other end is not there. It is no time that counts, because a process
 * that was itself frozen has asked none.
 */
const patience = 3

/** After how many milliseconds without a byte the server ends a connection: its client, which pings, is not there. */
const silence = 60_000

/** How many milliseconds a node that stops waits for the others to hang up. */
const farewell = 1_000

/** The last that a node says: it runs nothing any more. Who hears it sends nothing more, and hangs up when it can. */
interface Leaving {
  readonly _tag: "Leaving"
}

const leaving = `${JSON.stringify({ _tag: "Leaving" } satisfies Leaving)}\n`

export interface SocketOptions {
  readonly security: Security.Security
  /** Where this node listens. Undefined for one that owns nothing. */
  readonly listen: ClusterMember | undefined
  /** How often the other end is asked whether it is there, in milliseconds. */
  readonly pingInterval: number
}

const loadSockets = load(
  "talks through @effect/platform-node",
  "@effect/platform-node",
  () =>
    Promise.all([import("@effect/platform-node/NodeSocket"), import("@effect/platform-node/NodeSocketServer")])
      .then(([client, server]) => ({ client, server }))
)

type Sockets = Effect.Success<typeof loadSockets>

export interface SocketTransport extends Transport<SocketServer.SocketServerError> {
  /** From now on nobody can connect. Waits a second at most for those who are connected to hang up. */
  readonly leave: Effect.Effect<void>
}

export const make = (options: SocketOptions): Effect.Effect<SocketTransport> =>
  Effect.map(loadSockets, (sockets) => {
    const ends = Security.endsOf(options.security)
    const closing = new AbortController()
    const links = new Set<Net.Socket>()
    return {
      codecFor: serialization.codecFor,
      connect: (member, isThere) => connect(dial(sockets, member, ends), isThere, options),
      listen: accept(sockets, options, ends, closing.signal, links),
      leave: Effect.suspend(() => {
        closing.abort()
        return Effect.timeoutOption(
          Effect.forEach(Array.from(links), partFrom, { concurrency: "unbounded", discard: true }),
          farewell
        )
      })
    }
  })

// -----------------------------------------------------------------------------
// The end that asks
// -----------------------------------------------------------------------------

const openFailed = (cause: unknown) =>
  new Socket.SocketError({ reason: new Socket.SocketOpenError({ kind: "Unknown", cause }) })

/** Connects when it is read from. */
const dial = (
  { client }: Sockets,
  { host, port }: ClusterMember,
  ends: Security.Ends | undefined
): Effect.Effect<Socket.Socket> =>
  client.fromDuplex(
    Effect.acquireRelease(
      Effect.suspend((): Effect.Effect<Net.Socket, Socket.SocketError> => {
        if (ends === undefined && !Security.isLoopback(host)) {
          return Effect.fail(openFailed(new Error(`${host} is on another machine, and links are not secured`)))
        }
        return Effect.callback((resume) => {
          const at = { host, port, noDelay: true }
          const conn = ends === undefined ? Net.connect(at) : Tls.connect({ ...ends.client, ...at })
          const onError = (cause: Error) => {
            conn.destroy()
            resume(Effect.fail(openFailed(cause)))
          }
          conn.once("error", onError)
          conn.once(ends === undefined ? "connect" : "secureConnect", () => {
            conn.off("error", onError)
            // To begin with nobody else listens, and an error nobody listens to ends the process
            conn.on("error", () => {})
            // Node hands it to no socket that is made by `tls`: without it a streamed call takes 180 ms
            conn.setNoDelay(true)
            conn.setMaxListeners(0)
            resume(Effect.succeed(conn))
          })
          return Effect.sync(() => conn.destroy())
        })
      }),
      (conn) => Effect.sync(() => conn.destroySoon()),
      { interruptible: true }
    ),
    { openTimeout }
  )

type Send = (message: FromClientEncoded) => Effect.Effect<void, RpcClientError>

interface Link {
  readonly opened: Deferred.Deferred<Send, RpcClientError>
  /** From when it is open. */
  send: Send | undefined
  /** The other end answers what was sent, and runs nothing more. */
  isLeaving: boolean
  /** It has ended, and whoever had sent something on it knows. */
  readonly ended: Deferred.Deferred<void>
  isLost: boolean
}

const connect = (
  dialed: Effect.Effect<Socket.Socket>,
  isThere: () => boolean,
  { pingInterval }: SocketOptions
): Effect.Effect<RpcClient.Protocol["Service"], never, Scope.Scope> =>
  RpcClient.Protocol.make(Effect.fnUntraced(function*(write, clients) {
    const scope = yield* Effect.scope
    const requests = new Map<string | number, number>()
    let current: Link | undefined

    const deliver = (link: Link, message: FromServerEncoded | Leaving): Effect.Effect<void> => {
      if (message._tag === "Pong") return Effect.void
      if (message._tag === "Leaving") {
        link.isLeaving = true
        return Effect.void
      }
      if ("requestId" in message) {
        const client = requests.get(message.requestId)
        if (client === undefined) return Effect.void
        if (message._tag === "Exit") requests.delete(message.requestId)
        return write(client, message)
      }
      return Effect.forEach(Array.from(clients), (client) => write(client, message), { discard: true })
    }

    const lose = (link: Link, error: RpcClientError) =>
      Effect.suspend(() => {
        link.isLost = true
        Deferred.doneUnsafe(link.opened, Effect.fail(error))
        requests.clear()
        return Effect.forEach(Array.from(clients), (client) => write(client, { _tag: "ClientProtocolError", error }), {
          discard: true
        })
      }).pipe(Effect.ensuring(Effect.sync(() => {
        if (current === link) current = undefined
        Deferred.doneUnsafe(link.ended, Effect.void)
      })))

    const untilGone = Effect.forever(
      Effect.delay(Effect.suspend(() => isThere() ? Effect.void : Effect.fail(openFailed(gone))), 100)
    )

    // Reads until the link breaks, or the other end does not answer
    const run = Effect.fnUntraced(function*(link: Link) {
      const socket = yield* dialed
      const writer = yield* socket.writer
      const { pull } = yield* Effect.raceFirst(socket.reader, untilGone)
      const parser = serialization.makeUnsafe()
      let unanswered = 0
      let isDelivering = false
      const send: Send = (message) =>
        Effect.suspend(() => link.isLost ? Effect.fail(lost) : writer.write(parser.encode(message)!)).pipe(
          Effect.mapError(({ reason }) => new RpcClientError({ reason }))
        )
      // Runs before the socket is taken away: whoever wrote to it then would wait for ever
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          link.isLost = true
        })
      )
      // A node that is just closing may accept and read nothing: whoever has answered once says before it leaves
      yield* send(ping)
      const read = Effect.gen(function*() {
        while (true) {
          const frames = yield* pull
          if (link.send === undefined) {
            link.send = send
            Deferred.doneUnsafe(link.opened, Effect.succeed(send))
          }
          unanswered = 0
          isDelivering = true
          for (const frame of frames) {
            for (
              const message of yield* Effect.sync(() => parser.decode(frame) as Array<FromServerEncoded | Leaving>)
            ) {
              yield* deliver(link, message)
            }
          }
          if (link.isLeaving && requests.size === 0) return yield* Effect.fail(lost)
          isDelivering = false
        }
      })
      const keepAlive = Effect.gen(function*() {
        yield* Effect.sleep(pingInterval)
        if (unanswered >= patience && !isDelivering) return yield* Effect.fail(silent)
        unanswered++
        yield* send(ping)
      })
      const opening = Effect.delay(
        Effect.suspend(() => link.send === undefined ? Effect.fail(silent) : Effect.never),
        openTimeout
      )
      return yield* Effect.raceAllFirst([
        Effect.mapError(read, ({ reason }) => new RpcClientError({ reason })),
        Effect.forever(keepAlive),
        opening
      ])
    }, Effect.scoped)

    const open = Effect.suspend(() => {
      const link: Link = {
        opened: Deferred.makeUnsafe(),
        send: undefined,
        isLeaving: false,
        ended: Deferred.makeUnsafe(),
        isLost: false
      }
      current = link
      const life = Effect.onExit(
        run(link),
        (exit) => exit._tag === "Failure" ? lose(link, errorOf(exit.cause, link)) : Effect.void
      )
      return Effect.as(Effect.forkIn(Effect.ignoreCause(life), scope, { startImmediately: true }), link)
    })

    const request = (client: number, message: RequestEncoded): ReturnType<Send> =>
      Effect.suspend(() => {
        // Who asked may have left meanwhile
        const whenOpen = (send: Send) => requests.has(message.id) ? send(message) : Effect.void
        const link = current
        if (link?.isLost === true) return Effect.andThen(Deferred.await(link.ended), request(client, message))
        if (link?.isLeaving === true) return Effect.fail(left)
        requests.set(message.id, client)
        return Effect.flatMap(
          link === undefined ? open : Effect.succeed(link),
          ({ opened, send }) => send === undefined ? Effect.flatMap(Deferred.await(opened), whenOpen) : send(message)
        ).pipe(Effect.onError(() => Effect.sync(() => requests.delete(message.id))))
      })

    return {
      send: (client, message) =>
        Effect.suspend(() => {
          if (message._tag === "Request") return request(client, message)
          if (message._tag === "Interrupt") requests.delete(message.requestId)
          // It is about a request: if the link of that is gone, so is it
          return current?.send?.(message) ?? Effect.void
        }),
      supportsAck: false,
      supportsTransferables: false,
      codecFor: serialization.codecFor
    }
  }))

// Nothing was sent on a link that has not opened
const errorOf = (cause: Cause.Cause<RpcClientError | Socket.SocketError>, { send }: Link): RpcClientError => {
  const [failure] = cause.reasons
  const reason = failure?._tag === "Fail"
    ? failure.error.reason
    : new RpcClientDefect({ message: "The link has broken", cause: Cause.squash(cause) })
  return new RpcClientError({
    reason: send === undefined && reason._tag !== "SocketOpenError" ? openFailed(reason).reason : reason
  })
}

const ping = { _tag: "Ping" } as const

const silent = new RpcClientError({
  reason: new Socket.SocketReadError({ cause: new Error("the peer does not answer") })
})

const gone = new Error("the peer is not there any more")

// As when it could not be connected to any more: nothing was sent
const left = new RpcClientError({ reason: openFailed(new Error("the peer is leaving")).reason })

const lost = new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1006 }) })

// -----------------------------------------------------------------------------
// The end that answers
// -----------------------------------------------------------------------------

const partFrom = (link: Net.Socket): Effect.Effect<void> =>
  Effect.callback((resume) => {
    link.once("close", () => resume(Effect.void))
    if (link.writable) link.write(leaving)
  })

const accept = (
  { client, server }: Sockets,
  { listen }: SocketOptions,
  ends: Security.Ends | undefined,
  closing: AbortSignal,
  links: Set<Net.Socket>
): Transport<SocketServer.SocketServerError>["listen"] =>
  Effect.gen(function*() {
    const at = { host: listen!.host, port: listen!.port, noDelay: true, signal: closing }
    const scope = yield* Scope.fork(yield* Effect.scope)
    const sockets = yield* Scope.provide(
      ends === undefined
        ? server.make(at)
        : server.makeTls({ ...ends.server, ...at, handshakeTimeout: 5_000 }),
      scope
    )
    // The server ends with its last connection. What was accepted before it closed, and is ready when nobody answers
    // any more, is handed to nobody: it would stay for as long as the process, and the process for as long as it.
    const hangUp = Effect.map(Effect.serviceOption(client.NetSocket), (conn) => Option.getOrThrow(conn).destroy())
    const hangingUp = Effect.catch(sockets.run(() => hangUp), () => Effect.never)
    yield* Effect.addFinalizer((exit) => Effect.raceFirst(Effect.interruptible(hangingUp), Scope.close(scope, exit)))
    const run: typeof sockets["run"] = (handler) =>
      sockets.run((socket) =>
        Effect.gen(function*() {
          const conn = Option.getOrThrow(yield* Effect.serviceOption(client.NetSocket))
          // The others have been told that this node leaves, and nothing was sent on a link that never answered
          if (closing.aborted) return void conn.destroy()
          conn.setTimeout(silence, () => conn.destroy())
          // Each message that waits for room listens for it: Node takes more than ten for a leak, and warns
          conn.setMaxListeners(0)
          links.add(conn)
          conn.once("close", () => links.delete(conn))
          // A peer that was killed is no error of this node
          yield* Effect.catchCause(handler(socket), (cause) => Effect.logDebug("A link of a peer has broken", cause))
          // What is written is sent, but a peer that does not read it is not waited for
          conn.setTimeout(1_000)
        })
      )
    const protocol = yield* RpcServer.makeProtocolSocketServer.pipe(
      Effect.provideService(SocketServer.SocketServer, { address: sockets.address, run }),
      Effect.provideService(RpcSerialization.RpcSerialization, serialization)
    )
    return { ...protocol, supportsAck: false }
  })
