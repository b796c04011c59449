/**
 * What stands between one node and its Postgres, to be shut for this node alone.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { once } from "node:events"
import { type AddressInfo, connect, createServer, type Socket } from "node:net"

/**
 * `cut`: every connection breaks, and no other is had. `hung`: connections stay and new ones are accepted, but nothing
 * is said on them until the gate opens; then all of it is. `half-open`: the same, but on those connections nothing is
 * ever said again, as when a machine has vanished.
 */
export type Shut = "cut" | "hung" | "half-open"

export interface Gate {
  readonly url: string
  readonly shut: (how: Shut) => void
  readonly open: () => void
}

interface Pair {
  readonly sockets: readonly [Socket, Socket]
  state: "flows" | "waits" | "dead"
}

/** The gate before the server of a URL. */
export const gateTo = (url: string): Effect.Effect<Gate, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(async () => {
        const target = new URL(url)
        const pairs = new Set<Pair>()
        let shut: Shut | undefined
        const flow = (pair: Pair) => {
          pair.state = "flows"
          for (const socket of pair.sockets) socket.resume()
        }
        const server = createServer((incoming) => {
          if (shut === "cut") return void incoming.destroy()
          const pair: Pair = {
            sockets: [incoming, connect(Number(target.port), target.hostname)],
            state: shut === undefined ? "flows" : "waits"
          }
          pairs.add(pair)
          for (const [from, to] of [pair.sockets, pair.sockets.toReversed()] as Array<[Socket, Socket]>) {
            from.setNoDelay(true)
            from.pause()
            from.on("data", (data) => void to.write(data))
            from.on("error", () => undefined)
            from.on("close", () => {
              // Nobody tells anybody of the end of what is half open
              if (pair.state !== "dead") to.destroy()
              if (to.closed) pairs.delete(pair)
            })
          }
          if (pair.state === "flows") flow(pair)
        })
        server.listen(0, "127.0.0.1")
        await once(server, "listening")
        const all = new URL(url)
        all.port = String((server.address() as AddressInfo).port)
        const destroy = (pair: Pair) => {
          for (const socket of pair.sockets) socket.destroy()
        }
        const gate: Gate = {
          url: all.href,
          shut: (how) => {
            shut = how
            for (const pair of pairs) {
              if (how === "cut") destroy(pair)
              else {
                pair.state = how === "hung" ? "waits" : "dead"
                for (const socket of pair.sockets) socket.pause()
              }
            }
          },
          open: () => {
            shut = undefined
            for (const pair of pairs) if (pair.state === "waits") flow(pair)
          }
        }
        return { gate, server, pairs, destroy }
      }),
      ({ destroy, pairs, server }) =>
        Effect.promise(async () => {
          for (const pair of pairs) destroy(pair)
          server.close()
          await once(server, "close")
        })
    ),
    ({ gate }) => gate
  )
