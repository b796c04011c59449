/**
 * Several nodes of one process, with real servers of the SDK behind them that know which node has opened them.
 */
import type { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { Identity, McpConnector } from "effect-mcp-sessions"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode, type MemoryCluster, type MemoryOptions } from "effect-mcp-sessions/ClusterNode"
import type { Connector } from "effect-mcp-sessions/Connector"
import {
  type ClientOptions,
  type RemoteSession,
  SessionCluster,
  type SessionClusterOptions
} from "effect-mcp-sessions/SessionCluster"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { type Calls, makeCalls, makeServer, text, type Tool } from "./servers/tools.mjs"
import type { Wall } from "./wall.ts"

export const keySecret = Redacted.make("sixteen characters and more")

/** A fifth of the default: the locks of each are refreshed again and again, as the clock goes on. */
const shards = 20

export interface Upstream {
  /** Sessions that were opened, as `key@node#number`, in order. */
  readonly opened: Array<string>
  readonly closed: Array<string>
  /** How often each argument of the tool `once` has run. */
  readonly runs: Map<string, number>
  /** The largest number of sessions that one key has had at once. */
  readonly overlaps: () => number
  readonly calls: Calls
  readonly tools: Record<string, Tool>
  readonly serverAt: (node: string) => (identity: Identity) => Effect.Effect<Server, never, Scope.Scope>
  readonly connectAt: (node: string) => Connector<Scope.Scope>
}

export const makeUpstream = (): Upstream => {
  const opened: Array<string> = []
  const closed: Array<string> = []
  const runs = new Map<string, number>()
  const live = new Map<string, number>()
  const calls = makeCalls()
  const tools: Record<string, Tool> = {}
  let overlaps = 0
  let number = 0
  const serverAt: Upstream["serverAt"] = (node) => ({ key }) =>
    Effect.gen(function*() {
      const name = `${key}@${node}#${++number}`
      const { server, watch } = makeServer(calls, {
        who: { run: () => text(name) },
        once: {
          run: ({ id }) => {
            runs.set(String(id), (runs.get(String(id)) ?? 0) + 1)
            return text(id)
          }
        },
        ...tools
      })
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          opened.push(name)
          live.set(key, (live.get(key) ?? 0) + 1)
          overlaps = Math.max(overlaps, live.get(key)!)
        }),
        () =>
          Effect.sync(() => {
            closed.push(name)
            live.set(key, live.get(key)! - 1)
          })
      )
      const connect = server.connect.bind(server)
      server.connect = (transport) => connect(watch(transport))
      return server
    })
  return {
    opened,
    closed,
    runs,
    calls,
    tools,
    overlaps: () => overlaps,
    connectAt: (node) => McpConnector.inProcess(serverAt(node)),
    serverAt
  }
}

export interface NodeOptions {
  readonly node?: Partial<MemoryOptions>
  readonly sessions?: Partial<SessionClusterOptions<never>>
  /** Runs what builds a node, and with it all that the node does, on a clock of its own. */
  readonly on?: Wall["on"]
}

export const inside = (memory: MemoryCluster) => memory["~effect-mcp-sessions/MemoryCluster"]

export const identities = (n: number, prefix = "user") =>
  Array.from({ length: n }, (_, i) => Identity.fromKey(`${prefix}${i}`))

/** What a tool answered, as text. */
export const answer = (session: RemoteSession, name: string, args: Record<string, unknown> = {}) =>
  Effect.map(session.callTool({ name, arguments: args }), ({ content }) => {
    const [first] = content as ReadonlyArray<{ readonly text?: string }>
    return first?.text ?? ""
  })

export const nodeLayer = (memory: MemoryCluster, upstream: Upstream, name: string, options: NodeOptions = {}) =>
  SessionCluster.layer<never, never>({ connect: upstream.connectAt(name), ...options.sessions }).pipe(
    Layer.provideMerge(ClusterNode.layerMemory({ memory, name, keySecret, shards, ...options.node }))
  )

export const clientLayer = (memory: MemoryCluster, name: string, options?: ClientOptions) =>
  SessionCluster.layerClient(options).pipe(
    Layer.provideMerge(ClusterNode.layerMemoryClient({ memory, name, keySecret, shards }))
  )

/**
 * Runs an effect on the test clock while what belongs to Node, promises and the like, runs, too: time goes on by so
 * many milliseconds whenever nothing else happens.
 */
export const passing = <A, E, R>(effect: Effect.Effect<A, E, R>, step = 10): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    for (let turns = 0; fiber.pollUnsafe() === undefined; turns++) {
      yield* Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve)))
      if (turns % 3 === 2) yield* TestClock.adjust(step)
    }
    return yield* Fiber.join(fiber)
  })

export interface Started {
  readonly name: string
  readonly cluster: Context.Service.Shape<typeof SessionCluster>
  readonly membership: Context.Service.Shape<typeof ClusterMembership>
  readonly close: Effect.Effect<void>
}

/** A node with a scope of its own, which is closed at the end of the test if it is not before. */
export const startNode = (
  name: string,
  layer: Layer.Layer<SessionCluster | ClusterMembership, unknown>,
  on: Wall["on"] = identity
): Effect.Effect<Started, unknown, Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const context = yield* on(Layer.buildWithScope(layer, scope))
    const close = Scope.close(scope, Exit.void)
    yield* Effect.addFinalizer(() => passing(close, 1_000))
    return {
      name,
      close,
      cluster: Context.get(context, SessionCluster),
      membership: Context.get(context, ClusterMembership)
    }
  })

/** Nodes of one process that know each other and have their shares. */
export const startNodes = Effect.fnUntraced(function*(names: ReadonlyArray<string>, options: NodeOptions = {}) {
  const memory = ClusterNode.memory()
  const upstream = makeUpstream()
  const nodes = yield* Effect.forEach(
    names,
    (name) => startNode(name, nodeLayer(memory, upstream, name, options), options.on)
  )
  yield* TestClock.adjust("12 seconds")
  return { memory, upstream, nodes }
})

/** Which node has the session of the key, and one that does not. */
export const rolesOf = (upstream: Upstream, nodes: ReadonlyArray<Started>, key: string) => {
  const last = upstream.opened.findLast((name) => name.startsWith(`${key}@`))
  const owner = nodes.find(({ name }) => last?.startsWith(`${key}@${name}#`) === true)
  const other = nodes.find((node) => node !== owner)
  if (owner === undefined || other === undefined) throw new Error(`no session of ${key}: ${upstream.opened.join()}`)
  return { owner, other }
}
