/**
 * A node that has no sessions of its own, and a member of its cluster that answers HTTP as a test says.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { type ClusterMember, ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import { createHash } from "node:crypto"
import { once } from "node:events"
import { createServer as createHttpServer } from "node:http"
import { type AddressInfo, createServer, type Socket } from "node:net"
import { makeLog, makeServer } from "./mcpHttp.ts"
import type { Endpoint } from "./requests.ts"

export interface Liar {
  readonly port: number
  /** What it makes of each connection. */
  lie: (socket: Socket, heard: () => string) => void
  /** The connections that it has now. */
  readonly sockets: ReadonlySet<Socket>
}

/** Takes connections, and says nothing unless it is told to. */
export const liar = Effect.acquireRelease(
  Effect.promise(async () => {
    const sockets = new Set<Socket>()
    const server = createServer({ noDelay: true }, (socket) => {
      let heard = ""
      sockets.add(socket)
      socket.on("data", (data) => heard += data.toString("latin1"))
      socket.on("error", () => undefined)
      socket.once("close", () => sockets.delete(socket))
      self.lie(socket, () => heard)
    })
    server.listen(0, "127.0.0.1")
    await once(server, "listening")
    const self = { port: (server.address() as AddressInfo).port, lie: () => {}, sockets, server } as Liar & {
      readonly server: typeof server
    }
    return self
  }),
  ({ server, sockets }) =>
    Effect.sync(() => {
      server.close()
      for (const socket of sockets) socket.destroy()
    })
)

/** Says this when all of a request has come, by its length. */
export const saying = (member: Liar, answer: (socket: Socket) => void): void => {
  member.lie = (socket, heard) => {
    let isSaid = false
    socket.on("data", () => {
      const end = heard().indexOf("\r\n\r\n") + 4
      const length = Number(/\r\ncontent-length: (\d+)/i.exec(heard())?.[1] ?? 0)
      if (isSaid || end < 4 || heard().length < end + length) return
      isSaid = true
      answer(socket)
    })
  }
}

/** The id of a session of a member. */
export const sessionOf = ({ host, port }: ClusterMember): string =>
  `${"A".repeat(32)}.${createHash("sha256").update(`${host}:${port}`).digest("base64url").slice(0, 12)}`

export interface Alone extends Endpoint {
  /** Who is there. */
  nodes: ReadonlyArray<ClusterMember>
  /** How often it was looked who is there. */
  readonly looked: () => number
}

/** A node that drains, and that knows of its cluster what it is told. */
export const nodeAmong = Effect.fnUntraced(function*(options: {
  readonly self?: ClusterMember
  readonly address: (member: ClusterMember) => string
  readonly maxBodyBytes?: number
}) {
  let looks = 0
  const nodes = Effect.sync(() => self.nodes)
  const membership = ClusterMembership.of({
    self: options.self,
    members: nodes,
    nodes: Effect.tap(nodes, () => Effect.sync(() => looks++)),
    nodesNow: nodes,
    isReady: Effect.succeed(false),
    isDraining: Effect.succeed(true),
    drain: Effect.void,
    finishing: () => Effect.void
  })
  const served = HttpRouter.serve(
    McpHttp.layer({
      server: makeServer(makeLog()),
      ...(options.maxBodyBytes === undefined ? {} : { maxBodyBytes: options.maxBodyBytes })
    }).pipe(
      McpHttp.routed({ address: options.address }),
      Layer.provide([IdentityResolver.layer(), Layer.succeed(ClusterMembership, membership)])
    ),
    { disableLogger: true, disableListenLog: true }
  ).pipe(Layer.provideMerge(NodeHttpServer.layer(() => createHttpServer(), { port: 0, host: "127.0.0.1" })))
  const self: Alone = { nodes: [], looked: () => looks, url: "", fetch: (url, init) => fetch(url, init) }
  const { address } = Context.get(yield* Effect.orDie(Layer.build(served)), HttpServer.HttpServer)
  return Object.assign(self, { url: `http://127.0.0.1:${"port" in address ? address.port : 0}/mcp` })
})
