import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { IncomingMessage } from "node:http"
import { Socket } from "node:net"
import { IdentityResolver } from "../src/IdentityResolver.ts"
import { bars } from "./bars.ts"
import * as Manager from "./manager.ts"
import { Pool, pool } from "./pools.ts"
import { interleave, repeat, table } from "./support.ts"

const ops = 20_000
const peer = "a map of promises, nothing leased"

// What a client of MCP sends with a call
const headersOf = (token: string): Record<string, string> => ({
  host: "localhost:3000",
  connection: "keep-alive",
  "content-type": "application/json",
  accept: "application/json, text/event-stream",
  "accept-encoding": "gzip, deflate",
  "user-agent": "node",
  "mcp-protocol-version": "2025-11-25",
  "mcp-session-id": "6f1b1a5e-4a37-4c0b-9a34-1a1d6b0b7c11",
  authorization: `Bearer ${token}`,
  "content-length": "112"
})

const nodeRequest = (token: string): IncomingMessage => {
  const message = new IncomingMessage(new Socket())
  for (const pair of Object.entries(headersOf(token))) message.rawHeaders.push(...pair)
  // Read by whoever has routed it
  void message.headers
  return message
}

const requests = {
  plain: (token: string) => ({ headers: { authorization: `Bearer ${token}` } }),
  "ten headers": (token: string) => ({ headers: headersOf(token) }),
  "Node request": nodeRequest
}

/** From the header of a request to the session that its sender has already. */
const headers = (kind: keyof typeof requests, count: number) =>
  Effect.gen(function*() {
    const all = Array.from({ length: count }, (_, i) => requests[kind](`token-${i}`))
    const manager = Manager.make({ max: count, ttl: 300_000, open: async (key) => ({ key }) })
    const hit = (i: number) =>
      Effect.flatMap(
        IdentityResolver.resolve(all[i % count]!),
        (identity) => Pool.withSession(identity, Effect.succeed)
      )
    for (let i = 0; i < count; i++) {
      yield* hit(i)
      yield* Effect.promise(() => manager.get(all[i]!))
    }
    const run = Effect.runPromiseWith(yield* Effect.context<Pool | IdentityResolver>())
    const name = "header → identity → withSession"
    const figures = yield* interleave([
      {
        name: peer,
        ops,
        // One after the other, as cheaply as that goes
        run: () =>
          new Promise<void>((resolve) => {
            let i = 0
            const next = () => i < ops ? void manager.get(all[i++ % count]!).then(next) : resolve()
            next()
          })
      },
      { name, ops, run: () => run(repeat(ops, hit)) }
    ])
    const bar = kind === "plain" ? bars.header : kind === "Node request" ? bars.headerOfNode : undefined
    table(
      `Header to hit, ${kind}, ${count.toLocaleString("en")} identities`,
      figures,
      peer,
      bar === undefined || count === 1 ? {} : { [name]: bar }
    )
  }).pipe(Effect.provide(Layer.merge(pool(count), IdentityResolver.layer())))

export const main = Effect.gen(function*() {
  for (const kind of Object.keys(requests) as Array<keyof typeof requests>) {
    for (const count of [1, 1_000]) yield* headers(kind, count)
  }
})
