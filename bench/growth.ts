/**
 * What more nodes and very many identities cost: 1, 3 and 9 nodes of one process, their store and their links in its
 * memory, so that nothing but the library and Effect Cluster is measured. All identities share one session of the SDK.
 *
 * It takes minutes, so it runs only when it is asked for: `BENCH_IDENTITIES=100000 npm run bench -- growth`.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { ClusterNode } from "../src/ClusterNode.ts"
import type { SessionHandle } from "../src/Connector.ts"
import { Identity } from "../src/Identity.ts"
import type { McpSession } from "../src/McpSession.ts"
import { SessionCluster } from "../src/SessionCluster.ts"
import { heap } from "./memory.ts"
import { identities } from "./pools.ts"
import { inProcess } from "./servers.ts"
import { median, print } from "./support.ts"

type Cluster = Context.Service.Shape<typeof SessionCluster>

const runners = [1, 3, 9] as const

/** How many sessions there are while it is measured. To open one takes a millisecond or more. */
const counts = [1, Number(process.env["BENCH_IDENTITIES"] ?? 10_000)] as const

const alice = Identity.fromKey("alice")
const handle: SessionHandle = { retire: () => Effect.void, credentials: Effect.succeedNone }

const started = <E>(layer: Layer.Layer<SessionCluster, E>) =>
  Effect.map(Layer.build(layer), Context.get(SessionCluster))

/** As many nodes, once all have their shares. */
const start = Effect.fnUntraced(function*(count: number, session: McpSession) {
  const memory = ClusterNode.memory()
  const nodes = yield* Effect.forEach(Array.from({ length: count }), (_, i) =>
    started(
      SessionCluster.layer({
        connect: () => Effect.succeed(session),
        capacity: counts[1] + 1,
        idleTimeToLive: "1 hour",
        leaseTimeToLive: "1 second"
      }).pipe(
        Layer.provide(
          ClusterNode.layerMemory({
            memory,
            name: `node-${i}`,
            keySecret: Redacted.make("sixteen characters and more"),
            assignmentsInterval: 100,
            // All nodes share one loop and one heap: a collection of that stops nine of them, not one
            lockTimeToLive: "1 minute"
          })
        )
      )
    ))
  const { locks } = memory["~effect-mcp-sessions/MemoryCluster"]
  while (locks().size < 100 || new Set(locks().values()).size < count) yield* Effect.sleep(50)
  yield* Effect.sleep(500)
  return nodes
})

const call = (cluster: Cluster) => cluster.withSession(alice, (session) => session.callTool({ name: "echo" }))

/** The median of so many, one after the other, in microseconds. */
const timed = Effect.fnUntraced(function*(effect: Effect.Effect<unknown, unknown>, count: number) {
  const times: Array<number> = []
  for (let i = 0; i < count; i++) {
    const since = performance.now()
    yield* effect
    times.push((performance.now() - since) * 1_000)
  }
  return median(times)
})

const measure = Effect.fnUntraced(function*(count: number, session: McpSession, local: Cluster) {
  const nodes = yield* start(count, session)
  const { runner } = yield* Effect.scoped(nodes[0]!.get(alice))
  const owner = nodes[Number(/\d+/.exec(runner)![0])]!
  const other = nodes.find((node) => node !== owner)
  const sides = { local, owner, ...(other === undefined ? {} : { other }) }

  /** Each beside the pool, in turns. */
  const calls = Effect.gen(function*() {
    const samples: Record<string, Array<number>> = {}
    for (let round = 0; round < 7; round++) {
      for (const [name, node] of Object.entries(sides)) (samples[name] ??= []).push(yield* timed(call(node), 300))
    }
    const base = median(samples["local"]!)
    const ratio = (name: string) => samples[name] === undefined ? "–" : (median(samples[name]) / base).toFixed(2)
    return `${ratio("owner").padStart(6)} ${ratio("other").padStart(6)}`
  })

  const millis = (effect: Effect.Effect<unknown, unknown>) =>
    Effect.map(timed(effect, 5), (micros) => (micros / 1_000).toFixed(1).padStart(8))

  const show = Effect.fnUntraced(function*(sessions: number, bytes: string) {
    const node = nodes[0]!
    print(
      `  ${String(count).padStart(5)} ${sessions.toLocaleString("en").padStart(9)} ${yield* calls} ${bytes}` +
        ` ${yield* millis(node.stats)} ${yield* millis(node.entries)}`
    )
  })

  yield* timed(call(owner), 300)
  yield* show(counts[0], "           ".padEnd(18))
  const others = identities(counts[1] - 1)
  const before = yield* heap
  const since = performance.now()
  // One after the other: where links are in memory, who waits for many at once keeps the clocks of all nodes from
  // being heard
  yield* Effect.forEach(others, (identity, i) =>
    Effect.andThen(
      nodes[i % count]!.withSession(identity, () => Effect.void),
      i % 16 === 0 ? Effect.sleep(0) : Effect.void
    ), { discard: true })
  const opened = ((performance.now() - since) * 1_000 / others.length).toFixed(0)
  // Until nobody has a lease any more
  yield* Effect.sleep("3 seconds")
  const bytes = ((yield* heap) - before) / others.length
  yield* show(counts[1], `${bytes.toFixed(0).padStart(8)} ${opened.padStart(8)} `)
}, Effect.scoped)

export const main = Effect.gen(function*() {
  const session = yield* inProcess(alice, handle)
  const local = yield* started(SessionCluster.layerPool({ connect: () => Effect.succeed(session) }))
  yield* timed(call(local), 300)
  print("\nNodes of one process, links in memory: a call ÷ one of a pool, and what an idle session takes")
  print("  nodes  sessions  owner  other    bytes  open µs  stats ms entries ms")
  for (const count of runners) yield* measure(count, session, local)
}).pipe(Effect.scoped)
