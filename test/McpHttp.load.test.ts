/**
 * Many sessions at once, through the router's web handler: what one caller may cost the others, and what is left of
 * those whom nobody ended.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { setTimeout as sleep } from "node:timers/promises"
import { eventually, textOf } from "./support/answers.ts"
import { assertLeaves } from "./support/heap.ts"
import { many, underLoad } from "./support/load.ts"
import { web } from "./support/mcpHttp.ts"
import { begin, call, initialize, post } from "./support/requests.ts"

const served = (options: Omit<McpHttp.LayerOptions<never, never>, "server"> = {}) => {
  const built = { count: 0 }
  const app = McpHttp.layer({
    response: "json",
    ...options,
    server: () =>
      Effect.sync(() => {
        built.count++
        const server = new Server({ name: "load", version: "1" }, { capabilities: { tools: {} } })
        server.setRequestHandler(CallToolRequestSchema, ({ params }) => {
          const text = params.name === "much" ? "much".repeat(5_000) : "here"
          return { content: [{ type: "text", text }] }
        })
        return server
      })
  })
  return Effect.map(web(app), (endpoint) => ({ built, endpoint }))
}

const initializes = many(200, 100_000)
const abandoned = many(50, 10_000)
const answers = many(50, 2_000)
// What is compiled and cached once is not counted
const warmUp = many(50, 300)

describe("McpHttp.layer under load", () => {
  it.live("keeps nothing of what a call says that was refused", () =>
    Effect.gen(function*() {
      let isOver = false
      const server = () =>
        Effect.sync(() => {
          const refusing = new Server({ name: "load", version: "1" }, { capabilities: { logging: {}, tools: {} } })
          refusing.setRequestHandler(CallToolRequestSchema, async (_, extra) => {
            await Effect.runPromiseExit(McpHttp.requireScopes(extra, ["other"]))
            const params = { level: "info", data: "x".repeat(64 * 1024) } as const
            await sleep(20)
            await Promise.all(
              Array.from({ length: 512 }, () => extra.sendNotification({ method: "notifications/message", params }))
            )
            isOver = true
            return new Promise<never>(() => {})
          })
          return refusing
        })
      const endpoint = yield* web(McpHttp.layer({ server, authorization: { servers: ["https://a.example.com"] } }))
      const session = yield* begin(endpoint, "alice")
      const refused = Effect.gen(function*() {
        const answer = yield* post(endpoint, call("any"), { as: "alice", session })
        assert.strictEqual(answer.status, 403)
        yield* eventually(() => isOver)
      })
      yield* assertLeaves(Effect.void, refused, () => 8 * 1024 * 1024)
    }), underLoad)

  it.live(
    `${initializes.toLocaleString("en")} initializes of one owner fill its share and no more, and another is served`,
    () =>
      Effect.gen(function*() {
        // By default 10,000 fit, and a hundredth of them is the share
        const capacity = many(1_000, 10_000)
        const share = capacity / 100
        const { built, endpoint } = yield* served(capacity === 10_000 ? {} : { capacity })
        const session = yield* begin(endpoint, "bystander")
        let full = 0
        let retryAfter = 0
        for (let i = 0; i < initializes; i++) {
          const response = yield* post(endpoint, initialize, { as: "greedy" })
          yield* textOf(response)
          if (response.status === 503) {
            full++
            if (response.headers.has("retry-after")) retryAfter++
          } else {
            assert.strictEqual(response.status, 200)
            // Used, it gives way to nobody
            const mine = response.headers.get("mcp-session-id") ?? undefined
            yield* Effect.flatMap(post(endpoint, call("hello"), { as: "greedy", session: mine }), textOf)
          }
          if (i % (initializes / 10) !== 0) continue
          const answer = yield* post(endpoint, call("hello"), { as: "bystander", session })
          assert.include(yield* textOf(answer), "here")
        }
        const refused = initializes - share
        assert.deepStrictEqual([built.count, full, retryAfter], [share + 1, refused, refused])
        assert.strictEqual(yield* endpoint.registry.size, share + 1)
      }),
    underLoad
  )

  it.live(
    `${
      abandoned.toLocaleString("en")
    } sessions that are abandoned are all closed on time, and their memory is free again`,
    () =>
      Effect.gen(function*() {
        const { endpoint } = yield* served({ idleTimeToLive: "1 second" })
        const abandon = (count: number) =>
          Effect.gen(function*() {
            for (let i = 0; i < count; i++) yield* begin(endpoint, `owner-${i % 100}`)
            yield* Effect.sleep("100 millis").pipe(
              Effect.andThen(endpoint.registry.stats),
              Effect.repeat({ until: (stats) => stats.size + stats.closing === 0 })
            )
          })
        yield* assertLeaves(abandon(warmUp), abandon(abandoned), (before) => before / 10)
        assert.strictEqual((yield* endpoint.registry.stats).expirations, warmUp + abandoned)
      }),
    underLoad
  )

  it.live.each(["json", "sse"] as const)(
    `keeps nothing of ${answers.toLocaleString("en")} answers to one session (%s)`,
    (response) =>
      Effect.gen(function*() {
        const { endpoint } = yield* served({ response })
        const session = yield* begin(endpoint)
        const ask = (count: number) =>
          Effect.gen(function*() {
            for (let i = 0; i < count; i++) {
              assert.include(yield* textOf(yield* post(endpoint, call("much"), { session })), "much")
            }
          })
        // They are 40 MB
        yield* assertLeaves(ask(warmUp), ask(answers), () => 4_000_000)
      }),
    underLoad
  )
})
