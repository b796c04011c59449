/**
 * Both layers against programs that are drawn from a seed: whatever is written to their sockets, they answer as the
 * table in `McpHttp`'s documentation says, and nothing is left of it.
 */
import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { openGuarded } from "./support/guarded.ts"
import { fuzz, type Target } from "./support/inboundFuzz.ts"
import { many, underLoad } from "./support/load.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { makeDice } from "./support/world.ts"

const options: McpHttp.EndpointOptions = {
  maxBodyBytes: 64 * 1024,
  capacityPerOwner: 5_000,
  allowedOrigins: ["http://localhost:5173"]
}
const required = IdentityResolver.layer({ mode: "required" })

const hosted = (response: "sse" | "json", own: Partial<Parameters<typeof McpHttp.layer>[0]> = {}) =>
  socket(McpHttp.layer({ ...options, ...own, response, server: makeServer(makeLog()) }), required)

const targets: ReadonlyArray<readonly [string, Target["kind"], ReturnType<typeof hosted>, isResumable: boolean]> = [
  ["McpHttp.layer (sse)", "layer", hosted("sse"), false],
  ["McpHttp.layer (json)", "layer", hosted("json"), false],
  ["McpHttp.layer (events kept)", "layer", hosted("sse", { eventStore: McpHttp.memoryEventStore() }), true],
  [
    "McpHttp.guard",
    "guard",
    Effect.map(openGuarded(socket, options, required), (endpoint): Endpoint => endpoint),
    false
  ]
]

const seeds = many(2, 60)

describe.each(targets)("%s", (_, kind, open, isResumable) => {
  it.live(
    `answers ${seeds} programs as it says, and nothing is left of them`,
    () =>
      Effect.gen(function*() {
        const endpoint = yield* open
        const target = { port: Number(new URL(endpoint.url).port), kind, maxBodyBytes: 64 * 1024, isResumable }
        const answered: Record<string, number> = {}
        for (let seed = 1; seed <= seeds; seed++) {
          const { found, statuses } = yield* Effect.promise(() => fuzz(target, makeDice(seed), 120))
          assert.deepStrictEqual(found, [], `seed ${seed}`)
          for (const [status, times] of Object.entries(statuses)) answered[status] = (answered[status] ?? 0) + times
        }
        const all = ["200", "202", "204", "400", "401", "403", "404", "405", "406", "413", "415"]
        assert.includeMembers(Object.keys(answered), all)
        yield* endpoint.registry.clear
        yield* endpoint.registry.stats.pipe(
          Effect.delay(10),
          Effect.repeat({ until: ({ closing, draining, held, size }) => size + held + draining + closing === 0 }),
          Effect.timeout("10 seconds")
        )
      }),
    underLoad
  )
})
