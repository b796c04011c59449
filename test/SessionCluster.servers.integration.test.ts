/**
 * The servers of an `mcp.json` behind a pool, behind the nodes of a cluster, and seen from a node that owns nothing:
 * one program, which fails in the same way wherever it runs.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity, McpServers } from "effect-mcp-sessions"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { fileURLToPath } from "node:url"
import { answer, inside, keySecret } from "./support/cluster.ts"

const echo = fileURLToPath(new URL("./support/servers/echo.mjs", import.meta.url))

const alice = Identity.fromKey("alice")

const program = Effect.gen(function*() {
  const said = yield* SessionCluster.withSession(
    alice.at("echo"),
    (session) => answer(session, "echo", { message: "hi" })
  )
  const unknown = yield* Effect.flip(SessionCluster.withSession(alice.at("weather"), () => Effect.void))
  const disabled = yield* Effect.flip(Effect.scoped(SessionCluster.get(alice.at("off"))))
  const broken = yield* Effect.flip(SessionCluster.withSession(alice.at("broken"), () => Effect.void))
  const missing = yield* Effect.flip(SessionCluster.withSession(alice.at("missing"), () => Effect.void)).pipe(
    Effect.map((error) => error._tag === "McpSessionError" ? error.reason._tag : error._tag)
  )
  const failures = [unknown, disabled, broken].map((error) => [error.constructor, error.message, { ...error }] as const)
  return { said, failures, missing }
})

const servers = Layer.effect(
  McpServers,
  McpServers.make({
    mcpServers: {
      echo: { command: process.execPath, args: [echo] },
      off: { command: process.execPath, disabled: true },
      broken: { command: 7 },
      missing: { command: "/there/is/no/such/program" }
    }
  })
)

describe("SessionCluster of McpServers", () => {
  it.live("runs the same program on a pool, on a cluster, and at a node that owns nothing", () =>
    Effect.gen(function*() {
      const expected = yield* program.pipe(
        Effect.provide(SessionCluster.layerPool({ connect: McpServers.connect })),
        Effect.provide(servers)
      )
      assert.strictEqual(expected.said, "hi")
      assert.deepStrictEqual(expected.failures.map(([, , { _tag }]) => _tag), [
        "UnknownServer",
        "UnknownServer",
        "McpServersError"
      ])
      assert.strictEqual(expected.missing, "Unreachable")

      const memory = ClusterNode.memory()
      const quick = { memory, keySecret, shards: 8, assignmentsInterval: 20 }
      const nodes = yield* Effect.forEach(["a", "b"], (name) =>
        Layer.build(
          SessionCluster.layer({ connect: McpServers.connect }).pipe(
            Layer.provide(servers),
            Layer.provide(ClusterNode.layerMemory({ ...quick, name }))
          )
        ))
      const client = yield* Layer.build(
        SessionCluster.layerClient().pipe(Layer.provide(ClusterNode.layerMemoryClient({ ...quick, name: "client" })))
      )
      yield* Effect.suspend(() =>
        new Set(inside(memory).locks().values()).size === 2 ? Effect.void : Effect.fail("not yet")
      ).pipe(Effect.retry(Schedule.spaced(10)))
      for (const context of [...nodes, client]) {
        assert.deepStrictEqual(
          yield* Effect.provideService(program, SessionCluster, Context.get(context, SessionCluster)),
          expected
        )
      }
    }))
})
