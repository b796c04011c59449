/**
 * What tests of streams share: an endpoint and its log, and servers and event stores that take their time, or lie.
 */
import { assert } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { setTimeout as sleep } from "node:timers/promises"
import { makeLog, makeServer, type web } from "./mcpHttp.ts"

export const open = (start: typeof web, options: Partial<McpHttp.LayerOptions<unknown, Scope.Scope>> = {}) =>
  Effect.gen(function*() {
    const log = makeLog()
    const endpoint = yield* start(McpHttp.layer({ server: makeServer(log), ...options }))
    return { ...endpoint, log }
  })

export type Opened = Effect.Success<ReturnType<typeof open>>

export const idIn = (events: string): string => /^id: (.+)$/m.exec(events)![1]!

/** How the answer to a call begins whose session has ended. */
export const abandoned = (id: number) => `{"jsonrpc":"2.0","id":${id},"error":{"code":-32000,`

export const say = (endpoint: { readonly log: ReturnType<typeof makeLog> }, session: string, data: unknown) =>
  Effect.promise(() =>
    endpoint.log.servers.get(session)!.notification({
      method: "notifications/message",
      params: { level: "info", data }
    })
  )

/** A server whose calls say these before they are answered: all at once, and then, if there is one, the last. */
export const saying = (data: ReadonlyArray<unknown>, last?: string) => () =>
  Effect.sync(() => {
    const server = new Server({ name: "saying", version: "1.0.0" }, { capabilities: { logging: {}, tools: {} } })
    server.setRequestHandler(CallToolRequestSchema, async (_, { sendNotification }) => {
      const tell = (one: unknown) =>
        sendNotification({ method: "notifications/message", params: { level: "info", data: one } })
      const said = data.map(tell)
      if (last !== undefined) {
        await sleep(20)
        said.push(tell(last))
      }
      const refused = (await Promise.allSettled(said)).filter(({ status }) => status === "rejected")
      return { content: [{ type: "text", text: `${refused.length} refused` }] }
    })
    return server
  })

/** Gives request 1 a response and changes that, and has another one refused meanwhile. */
export const respondTwice = (endpoint: { readonly log: ReturnType<typeof makeLog> }, session: string) =>
  Effect.promise(async () => {
    const { transport } = endpoint.log.servers.get(session)!
    const result: Record<string, unknown> = { said: "first" }
    void transport!.send({ jsonrpc: "2.0", id: 1, result })
    const second = transport!.send({ jsonrpc: "2.0", id: 1, result: { said: "second" } })
    result["said"] = 1n
    assert.isTrue(await second.then(() => false, () => true))
  })

export const cancel = (requestId: string | number) => ({
  jsonrpc: "2.0",
  method: "notifications/cancelled",
  params: { requestId }
})

/** The promises that are refused and that nobody minds, until the current scope closes: they would end the process. */
export const unhandledRejections = Effect.gen(function*() {
  const reasons: Array<unknown> = []
  const note = (reason: unknown) => void reasons.push(reason)
  yield* Effect.acquireRelease(
    Effect.sync(() => process.on("unhandledRejection", note)),
    () => Effect.sync(() => process.off("unhandledRejection", note))
  )
  return reasons as ReadonlyArray<unknown>
})
