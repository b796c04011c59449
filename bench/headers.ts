import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { once } from "node:events"
import { createServer, type IncomingMessage } from "node:http"
import { IdentityResolver } from "../src/IdentityResolver.ts"
import { bars } from "./bars.ts"
import * as Manager from "./manager.ts"
import { Pool, pool } from "./pools.ts"
import { interleave, repeat, table } from "./support.ts"

const ops = 20_000
const peer = "a map of promises, nothing leased"

// What a client of MCP sends with a call, and what `fetch` adds
const sent = (token: string): Record<string, string> => ({
  "content-type": "application/json",
  accept: "application/json, text/event-stream",
  "mcp-protocol-version": "2025-11-25",
  "mcp-session-id": "6f1b1a5e-4a37-4c0b-9a34-1a1d6b0b7c11",
  authorization: `Bearer ${token}`
})

const common: Record<string, string> = {
  host: "127.0.0.1:3000",
  connection: "keep-alive",
  "accept-language": "*",
  "user-agent": "node",
  "accept-encoding": "gzip, deflate"
}

/** As Node makes them: each has come over a socket. */
const received = (tokens: ReadonlyArray<string>) =>
  Effect.promise(async () => {
    const messages: Array<IncomingMessage> = []
    const server = createServer((message, response) => {
      messages.push(message)
      response.end()
    }).listen(0, "127.0.0.1")
    await once(server, "listening")
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    await Promise.all(tokens.map((token) => fetch(`http://127.0.0.1:${port}`, { headers: sent(token) })))
    server.close()
    server.closeAllConnections()
    return messages
  })

type Requests = ReadonlyArray<{ readonly headers: NodeJS.Dict<string | Array<string>> }>

const requests = {
  plain: (tokens: ReadonlyArray<string>) =>
    Effect.succeed<Requests>(tokens.map((token) => ({ headers: { authorization: `Bearer ${token}` } }))),
  "ten headers": (tokens: ReadonlyArray<string>) =>
    Effect.succeed<Requests>(tokens.map((token) => ({ headers: { ...common, ...sent(token) } }))),
  "Node request": (tokens: ReadonlyArray<string>) => Effect.map(received(tokens), (messages): Requests => messages)
}

/** From the header of a request to the session that its sender has already. */
const headers = (kind: keyof typeof requests, count: number) =>
  Effect.gen(function*() {
    const all = yield* requests[kind](Array.from({ length: count }, (_, i) => `token-${i}`))
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
  for (const kind of ["plain", "Node request"] as const) yield* headers(kind, 1)
  for (const kind of ["plain", "ten headers", "Node request"] as const) yield* headers(kind, 1_000)
})
