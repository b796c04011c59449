/**
 * A store and a network for several nodes of one process, on the `Clock`: locks exclude and expire, heartbeats are
 * missed, links break. For tests, of this library and of whoever uses it.
 */
import type * as Clock from "effect/Clock"
import { PersistenceError } from "effect/cluster/ClusterError"
import * as MachineId from "effect/cluster/MachineId"
import type { Runner } from "effect/cluster/Runner"
import type { RunnerAddress } from "effect/cluster/RunnerAddress"
import type * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as RpcClient from "effect/rpc/RpcClient"
import { RpcClientError } from "effect/rpc/RpcClientError"
import type { FromClientEncoded, FromServerEncoded } from "effect/rpc/RpcMessage"
import { json } from "effect/rpc/RpcSerialization"
import * as RpcServer from "effect/rpc/RpcServer"
import type * as Scope from "effect/Scope"
import { SocketCloseError, SocketOpenError } from "effect/socket/Socket"
import type { Transport } from "./transport.ts"

type Storage = RunnerStorage.RunnerStorage["Service"]

export interface Memory {
  readonly storage: (clock: Clock.Clock, expiry: number, self: string) => Storage
  readonly transport: (self: string) => Transport
  /** Nobody can reach the store. */
  isStoreDown: boolean
  /** Nodes that can reach neither the store nor each other, as if they were on a machine of their own. */
  readonly cutOff: (node: string) => Effect.Effect<void>
  /** Breaks the links between two nodes; new ones can be made at once. */
  readonly breakLinks: (one: string, other: string) => Effect.Effect<void>
  /** Which node has which shard, as the store has it. */
  readonly locks: () => ReadonlyMap<string, string>
}

interface Link {
  readonly id: number
  readonly from: string
  readonly to: string
  readonly receive: (message: FromServerEncoded) => Effect.Effect<void>
  readonly lose: (error: RpcClientError) => Effect.Effect<void>
}

interface Server {
  readonly links: Map<number, Link>
  readonly disconnects: Queue.Queue<number>
  readonly receive: (link: number, message: FromClientEncoded) => Effect.Effect<void>
}

export const make = (): Memory => {
  const runners = new Map<string, { readonly runner: Runner; healthy: boolean; heartbeat: number }>()
  const locks = new Map<string, { readonly owner: string; at: number }>()
  const machines = new Map<string, number>()
  const servers = new Map<string, Server>()
  const islands = new Set<string>()
  let links = 0

  const storage: Memory["storage"] = (clock, expiry, self) => {
    const now = () => clock.currentTimeMillisUnsafe()
    const isHeld = (lock: { readonly at: number } | undefined) => lock !== undefined && now() - lock.at < expiry
    const ask = <A>(f: () => A): Effect.Effect<A, PersistenceError> =>
      Effect.suspend(() =>
        memory.isStoreDown || islands.has(self)
          ? Effect.fail(new PersistenceError({ cause: new Error("the store is down") }))
          : Effect.sync(f)
      )
    return {
      register: (runner, healthy) =>
        ask(() => {
          const name = keyOf(runner.address)
          runners.set(name, { runner, healthy, heartbeat: now() })
          if (!machines.has(name)) machines.set(name, machines.size)
          return MachineId.make(machines.get(name)!)
        }),
      unregister: (address) => ask(() => void runners.delete(keyOf(address))),
      getRunners: ask(() =>
        Array.from(runners.values())
          .filter(({ heartbeat }) => now() - heartbeat < expiry)
          .map(({ healthy, runner }) => [runner, healthy] as const)
      ),
      setRunnerHealth: (address, healthy) =>
        ask(() => {
          const known = runners.get(keyOf(address))
          if (known !== undefined) known.healthy = healthy
        }),
      acquire: (address, shards) =>
        ask(() =>
          Array.from(shards).filter((shard) => {
            const lock = locks.get(String(shard))
            if (isHeld(lock) && lock!.owner !== keyOf(address)) return false
            locks.set(String(shard), { owner: keyOf(address), at: now() })
            return true
          })
        ),
      refresh: (address, shards) =>
        ask(() => {
          const known = runners.get(keyOf(address))
          if (known !== undefined) known.heartbeat = now()
          return Array.from(shards).filter((shard) => {
            const lock = locks.get(String(shard))
            if (lock?.owner !== keyOf(address)) return false
            lock.at = now()
            return true
          })
        }),
      release: (address, shard) =>
        ask(() => {
          if (locks.get(String(shard))?.owner === keyOf(address)) locks.delete(String(shard))
        }),
      releaseAll: (address) =>
        ask(() => {
          for (const [shard, { owner }] of locks) if (owner === keyOf(address)) locks.delete(shard)
        })
    }
  }

  const isReachable = (one: string, other: string) => one === other || !(islands.has(one) || islands.has(other))

  const connect = (from: string, to: string): Effect.Effect<RpcClient.Protocol["Service"], never, Scope.Scope> =>
    RpcClient.Protocol.make(Effect.fnUntraced(function*(write, clients) {
      const requests = new Map<string | number, number>()
      let link: Link | undefined
      const dial = (server: Server): Link => {
        const made: Link = {
          id: ++links,
          from,
          to,
          receive: (message) =>
            Effect.suspend(() => {
              if (link !== made || !("requestId" in message)) return Effect.void
              const client = requests.get(message.requestId)
              if (client === undefined) return Effect.void
              if (message._tag === "Exit") requests.delete(message.requestId)
              return write(client, message)
            }),
          lose: (error) =>
            Effect.suspend(() => {
              if (link === made) link = undefined
              requests.clear()
              return Effect.forEach(Array.from(clients), (client) =>
                write(client, { _tag: "ClientProtocolError", error }), { discard: true })
            })
        }
        server.links.set(made.id, made)
        return made
      }
      yield* Effect.addFinalizer(() => {
        const left = link
        link = undefined
        const server = left && servers.get(to)
        return left !== undefined && server?.links.delete(left.id) === true
          ? Queue.offer(server.disconnects, left.id)
          : Effect.void
      })
      return {
        send: (client, message) =>
          Effect.suspend((): Effect.Effect<void, RpcClientError> => {
            const server = servers.get(to)
            if (server === undefined || !isReachable(from, to)) {
              return Effect.fail(
                new RpcClientError({
                  reason: new SocketOpenError({ kind: "Unknown", cause: new Error(`${to} can't be reached`) })
                })
              )
            }
            link ??= dial(server)
            if (message._tag === "Request") requests.set(message.id, client)
            return server.receive(link.id, message)
          }),
        supportsAck: false,
        supportsTransferables: false,
        codecFor: json.codecFor
      }
    }))

  const cut = (server: Server, link: Link) =>
    Effect.suspend(() => {
      if (!server.links.delete(link.id)) return Effect.void
      const error = new RpcClientError({ reason: new SocketCloseError({ code: 1006 }) })
      return Effect.andThen(Queue.offer(server.disconnects, link.id), link.lose(error))
    })

  const cutWhere = (f: (link: Link) => boolean) =>
    Effect.suspend(() =>
      Effect.forEach(
        Array.from(servers.values()),
        (server) =>
          Effect.forEach(Array.from(server.links.values()).filter(f), (link) => cut(server, link), { discard: true }),
        { discard: true }
      )
    )

  const listen = (self: string): Effect.Effect<RpcServer.Protocol["Service"], never, Scope.Scope> =>
    RpcServer.Protocol.make(Effect.fnUntraced(function*(receive) {
      const disconnects = yield* Queue.make<number>()
      const server: Server = { links: new Map(), disconnects, receive }
      yield* Effect.acquireRelease(
        Effect.sync(() => servers.set(self, server)),
        () =>
          Effect.suspend(() => {
            if (servers.get(self) === server) servers.delete(self)
            return Effect.forEach(Array.from(server.links.values()), (link) => cut(server, link), { discard: true })
          })
      )
      return {
        disconnects,
        send: (link, message) => Effect.suspend(() => server.links.get(link)?.receive(message) ?? Effect.void),
        end: () => Effect.void,
        clientIds: Effect.sync(() => new Set(server.links.keys())),
        initialMessage: Effect.succeedNone,
        supportsAck: false,
        supportsTransferables: false,
        supportsSpanPropagation: true,
        supportsNotifications: true,
        codecFor: json.codecFor
      }
    }))

  const memory: Memory = {
    storage,
    transport: (self) => ({
      codecFor: json.codecFor,
      connect: ({ host, port }) => connect(self, `${host}:${port}`),
      listen: listen(self)
    }),
    isStoreDown: false,
    cutOff: (node) =>
      Effect.suspend(() => {
        islands.add(node)
        return cutWhere(({ from, to }) => from !== to && (from === node || to === node))
      }),
    breakLinks: (one, other) =>
      cutWhere(({ from, to }) => (from === one && to === other) || (from === other && to === one)),
    locks: () => new Map(Array.from(locks, ([shard, { owner }]) => [shard, owner]))
  }
  return memory
}

const keyOf = ({ host, port }: RunnerAddress): string => `${host}:${port}`
