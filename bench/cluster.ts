/**
 * A call of a session that is in this process, at the owner in a cluster, and at another node: two nodes in this
 * process, over TLS with a shared secret, their store in a file. Both ends of a link have the same core here, which is
 * the worst.
 */
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { ClusterNode } from "../src/ClusterNode.ts"
import { Identity } from "../src/Identity.ts"
import * as McpConnector from "../src/McpConnector.ts"
import { SessionCluster } from "../src/SessionCluster.ts"
import { bars } from "./bars.ts"
import { median, print, table } from "./support.ts"

const connect = McpConnector.inProcess(() =>
  Effect.sync(() => {
    const server = new Server({ name: "bench", version: "1" }, { capabilities: { tools: {} } })
    server.setRequestHandler(CallToolRequestSchema, ({ params: { _meta: meta } }, { sendNotification }) => {
      const { progressToken } = meta ?? {}
      const told = progressToken === undefined ?
        [] :
        [1, 2, 3].map((progress) =>
          sendNotification({ method: "notifications/progress", params: { progressToken, progress } })
        )
      return Promise.all(told).then(() => ({ content: [{ type: "text", text: "hi" }] }))
    })
    return server
  })
)

type Cluster = Context.Service.Shape<typeof SessionCluster>

const identity = Identity.fromKey("alice")
const echo = { name: "echo", arguments: { message: "hi" } }

const freePort = Effect.promise(() =>
  new Promise<number>((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => done(typeof address === "object" && address !== null ? address.port : 0))
    })
  })
)

const started = (layer: Layer.Layer<SessionCluster, unknown>) =>
  Effect.map(Layer.build(layer), Context.get(SessionCluster))

const node = (storage: string) =>
  Effect.flatMap(freePort, (port) =>
    started(
      SessionCluster.layer({ connect, leaseTimeToLive: "1 minute" }).pipe(
        Layer.provide(ClusterNode.layer({
          host: "127.0.0.1",
          port,
          storage,
          security: { secret: Redacted.make("what only the nodes of this bench know") },
          keySecret: Redacted.make("sixteen characters and more")
        }))
      )
    ))

const plain = (cluster: Cluster) => cluster.withSession(identity, (session) => session.callTool(echo))

const streamed = (cluster: Cluster) =>
  cluster.withSession(identity, (session) => session.callTool(echo, { onProgress: () => Effect.void }))

/** The medians of calls that are made in turns, as in a process that does all of that: whose code is never at hand. */
const inTurns = Effect.fnUntraced(function*(sides: Readonly<Record<string, Effect.Effect<unknown, unknown>>>) {
  const times = new Map(Object.keys(sides).map((name): [string, Array<number>] => [name, []]))
  for (let i = 0; i < 2_000; i++) {
    for (const [name, call] of Object.entries(sides)) {
      const since = process.hrtime.bigint()
      yield* call
      times.get(name)!.push(Number(process.hrtime.bigint() - since))
    }
  }
  return new Map(Array.from(times, ([name, values]) => [name, median(values)]))
})

/** The median and the 99th of so many calls, one after the other, and how many a second 32 callers have. */
const measure = Effect.fnUntraced(function*(call: Effect.Effect<unknown, unknown>, count: number) {
  const times: Array<number> = []
  for (let i = 0; i < count; i++) {
    const since = process.hrtime.bigint()
    yield* call
    times.push(Number(process.hrtime.bigint() - since))
  }
  const since = performance.now()
  yield* Effect.forEach(Array.from({ length: 32 }), () => Effect.repeat(call, { times: count / 32 }), {
    concurrency: "unbounded",
    discard: true
  })
  return {
    p50: median(times),
    p99: times.toSorted((a, b) => a - b)[Math.floor(count * 0.99)]!,
    perSecond: Math.round(count / (performance.now() - since) * 1_000)
  }
})

export const main = Effect.gen(function*() {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "bench-cluster-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true }))
  )
  const storage = `sqlite:${join(directory, "cluster.db")}`
  const local = yield* started(SessionCluster.layerPool({ connect }))
  const nodes = yield* Effect.all([node(storage), node(storage)])
  // Until both have their shares: else the session moves while it is measured
  yield* Effect.sleep("8 seconds")
  yield* plain(nodes[0])
  const { nodes: stats } = yield* nodes[0].stats
  if (stats.length !== 2) throw new Error("the nodes do not know each other")
  // Which of the two is the owner the ports decide: whoever answers faster is
  const quick = yield* Effect.forEach(nodes, (cluster) => Effect.map(measure(plain(cluster), 320), ({ p50 }) => p50))
  const [owner, other] = quick[0]! < quick[1]! ? [nodes[0], nodes[1]] : [nodes[1], nodes[0]]
  const sides = {
    "in a pool": plain(local),
    "in a pool, with progress": streamed(local),
    "at the owner": plain(owner),
    "from another node": plain(other),
    "from another node, with progress": streamed(other)
  }
  const figures = new Map<string, Array<number>>()
  const last: Record<string, { readonly p99: number; readonly perSecond: number }> = {}
  for (let round = 0; round < 5; round++) {
    for (const [name, call] of Object.entries(sides)) {
      const { p50, ...rest } = yield* measure(call, 960)
      figures.set(name, [...figures.get(name) ?? [], p50])
      last[name] = rest
    }
  }
  table(
    "A call in a cluster",
    new Map(Array.from(figures, ([name, values]) => [name, median(values)])),
    "in a pool"
  )
  for (const [name, { p99, perSecond }] of Object.entries(last)) {
    print(`  ${name.padEnd(44)} p99 ${(p99 / 1e6).toFixed(2)} ms, 32 at once ${perSecond}/s`)
  }
  // What a call of a pool takes alone, again and again, is one of two figures by the run, so the bars are for these
  table("The same, one call of each after the other", yield* inTurns(sides), "in a pool", {
    "from another node": bars.remoteCall,
    "from another node, with progress": bars.remoteStreamed
  })
}).pipe(Effect.scoped)
