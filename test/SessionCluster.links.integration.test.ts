/**
 * What one caller at a node does to the others there, who are on the same link: nothing.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity } from "effect-mcp-sessions"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { join } from "node:path"
import { answer, keySecret, makeUpstream } from "./support/cluster.ts"
import { freePorts } from "./support/clusterProcesses.ts"
import { temporaryDirectory } from "./support/temporary.ts"

/** An owner and a node that owns nothing, in this process, with sockets between them. */
const startPair = Effect.gen(function*() {
  const [port] = yield* freePorts(1)
  const common = {
    storage: `sqlite:${join(temporaryDirectory("links-"), "cluster.db")}`,
    security: { secret: Redacted.make("what all nodes know, and nobody else") },
    keySecret,
    shards: 10,
    assignmentsInterval: "100 millis"
  } as const
  const upstream = makeUpstream()
  yield* Layer.build(
    SessionCluster.layer<never, never>({ connect: upstream.connectAt("owner") }).pipe(
      Layer.provide(ClusterNode.layer({ ...common, host: "127.0.0.1", port: port! }))
    )
  )
  const client = yield* Layer.build(
    SessionCluster.layerClient().pipe(Layer.provide(ClusterNode.layerClient(common)))
  )
  return { client: Context.get(client, SessionCluster), upstream }
})

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const meta = "_meta"

// A server may say this unasked, and put into it what it likes
const message = (index: number) => ({
  method: "notifications/tools/list_changed" as const,
  params: { [meta]: { index, padding: "x".repeat(1_000) } }
})

describe("a link between nodes", () => {
  it.live("goes on for all while somebody does not read notifications, who loses the oldest", () =>
    Effect.gen(function*() {
      const { client, upstream } = yield* startPair
      const count = 3_000
      upstream.tools.flood = {
        run: async (_, { server }) => {
          await Promise.all(Array.from({ length: count }, (__, index) => server.notification(message(index))))
          return { content: [] }
        }
      }
      const session = yield* client.get(alice)
      const first = yield* Deferred.make<void>()
      const reads = yield* Deferred.make<void>()
      const seen: Array<number> = []
      const reading = yield* Effect.forkChild(
        Stream.runForEach(session.notifications, ({ params }) =>
          Effect.gen(function*() {
            const { index } = (params as ReturnType<typeof message>["params"])[meta]
            seen.push(index)
            yield* Deferred.succeed(first, undefined)
            yield* Deferred.await(reads)
            if (index === count - 1) yield* Effect.interrupt
          })),
        { startImmediately: true }
      )
      const flood = Effect.andThen(session.callTool({ name: "flood" }), Effect.sleep(10))
      yield* Effect.raceFirst(Deferred.await(first), Effect.forever(flood))
      yield* flood
      // Both are on the link that has brought all these
      assert.strictEqual(yield* answer(session, "who"), "alice@owner#1")
      assert.strictEqual(yield* client.withSession(bob, (other) => answer(other, "who")), "bob@owner#2")
      yield* Deferred.succeed(reads, undefined)
      yield* Fiber.await(reading)
      assert.strictEqual(seen.at(-1), count - 1)
      assert.isBelow(seen.length, count)
      assert.isAbove(seen.length, 255)
    }).pipe(Effect.timeout("20 seconds")))
})
