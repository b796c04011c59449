/**
 * Several nodes in one process: each with an HTTP server of its own on loopback, and with a store for all of them.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode, type MemoryCluster } from "effect-mcp-sessions/ClusterNode"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { SessionRegistry } from "effect-mcp-sessions/SessionRegistry"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { createServer } from "node:http"
import { createServer as createSecureServer } from "node:https"
import type { Certificate } from "./certificates.ts"
import type { Log } from "./mcpHttp.ts"
import { type App, type Endpoint, makeLog, makeServer } from "./mcpHttp.ts"

const keySecret = Redacted.make("sixteen characters and more")

export interface Node extends Endpoint {
  readonly name: string
  readonly port: number
  readonly log: Log
  readonly membership: ClusterMembership["Service"]
  /** It is gone from one moment to the next, and tells nobody. */
  readonly kill: Effect.Effect<void>
}

export interface Cluster {
  readonly memory: MemoryCluster
  /** What every node makes of the address of another: by default where it listens. */
  readonly ports: Map<string, number>
  readonly start: (name: string, options?: StartOptions) => Effect.Effect<Node, never, Scope.Scope>
}

export interface StartOptions {
  readonly app?: (log: Log) => App
  readonly routed?: Partial<McpHttp.RoutedOptions>
  readonly resolver?: Layer.Layer<IdentityResolver>
  readonly tracer?: Tracer.Tracer
  /** If its server speaks TLS. */
  readonly certificate?: Certificate
  /** Called when a node asks the store who is there. */
  readonly onAsk?: () => void
}

const watched = <A, E, R>(node: Layer.Layer<A | ClusterMembership, E, R>, onAsk = () => {}) =>
  Layer.effectContext(Effect.map(Layer.build(node), (context) => {
    const membership = Context.get(context, ClusterMembership)
    const nodesNow = Effect.andThen(Effect.sync(onAsk), membership.nodesNow)
    return Context.add(context, ClusterMembership, { ...membership, nodesNow })
  }))

/** Nodes that miss each other after a second. */
export const cluster = (defaults: StartOptions = {}): Cluster => {
  const memory = ClusterNode.memory()
  const ports = new Map<string, number>()
  return {
    memory,
    ports,
    start: Effect.fnUntraced(function*(name, given = {}) {
      const log = makeLog()
      const { app, certificate, onAsk, resolver, routed, tracer } = { ...defaults, ...given }
      const endpoint = app?.(log) ?? McpHttp.layer({ server: makeServer(log) })
      const http = certificate === undefined ? createServer() : createSecureServer(certificate)
      const node = ClusterNode.layerMemory({
        memory,
        name,
        keySecret,
        shards: 4,
        lockTimeToLive: "1 second",
        refreshInterval: "200 millis",
        assignmentsInterval: "100 millis"
      })
      const served = HttpRouter.serve(
        endpoint.pipe(
          McpHttp.routed({ address: ({ host }) => `http://127.0.0.1:${ports.get(host)}`, ...routed }),
          Layer.provide(resolver ?? IdentityResolver.layer({ keySecret }))
        ),
        { disableLogger: true, disableListenLog: true }
      ).pipe(
        Layer.provideMerge(NodeHttpServer.layer(() => http, { port: 0, host: "127.0.0.1" })),
        Layer.provideMerge(watched(node, onAsk))
      )
      const scope = yield* Scope.fork(yield* Effect.scope)
      const traced = tracer === undefined
        ? served
        : Layer.provideMerge(served, Layer.succeed(Tracer.Tracer, tracer))
      const context = yield* Effect.orDie(Layer.buildWithScope(traced, scope))
      const { address } = Context.get(context, HttpServer.HttpServer)
      const port = "port" in address ? address.port : 0
      ports.set(name, port)
      const membership = Context.get(context, ClusterMembership)
      return {
        name,
        port,
        log,
        url: `http://127.0.0.1:${port}/mcp`,
        fetch: (url, init) => fetch(url, init),
        registry: Context.get(context, SessionRegistry),
        membership,
        close: Scope.close(scope, Exit.void),
        kill: Effect.andThen(
          memory["~effect-mcp-sessions/MemoryCluster"].cutOff(`${name}:1`),
          Effect.sync(() => {
            http.close()
            http.closeAllConnections()
          })
        )
      }
    })
  }
}

/** Three of them, which know each other. */
export const three = Effect.fnUntraced(function*(options: StartOptions = {}) {
  const all = cluster(options)
  const [a, b, c] = yield* Effect.all([all.start("a"), all.start("b"), all.start("c")], { concurrency: "unbounded" })
  const nodes: readonly [Node, Node, Node] = [a, b, c]
  for (const { membership } of nodes) {
    while ((yield* Effect.orDie(membership.nodesNow)).length < 3) yield* Effect.sleep(10)
  }
  return { ...all, a, b, c, nodes }
})
