import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js"
import type { Server } from "@modelcontextprotocol/sdk/server/index.js"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { SessionPool } from "../src/SessionPool.ts"
import { bars } from "./bars.ts"
import * as Inbound from "./inbound.ts"
import { heap } from "./memory.ts"
import { identities } from "./pools.ts"
import { inProcess, makeServer } from "./servers.ts"
import { against, median, print } from "./support.ts"

const count = 1_000

/** Fewer of those that are talked to over sockets. */
const countServed = 300

/** What so many sessions take, each, while `open` keeps them. */
const bytes = <E, R>(many: number, open: Effect.Effect<() => unknown, E, R>) =>
  Effect.gen(function*() {
    const before = yield* heap
    const kept = yield* open
    const after = yield* heap
    kept()
    return (after - before) / many
  })

const bareServers = Effect.promise(async () => {
  const servers = await Promise.all(Array.from({ length: count }, async (): Promise<Server> => {
    const [, theirs] = InMemoryTransport.createLinkedPair()
    const server = makeServer()
    await server.connect(theirs)
    return server
  }))
  return () => servers
})

const pooled = Effect.gen(function*() {
  const pool = yield* SessionPool
  for (const id of identities(count)) {
    yield* pool.withSession(id, (session) => session.callTool({ name: "echo" }))
  }
  return () => pool
})

/** Sessions over sockets, each of an owner of its own, initialized and called once. */
const served = (url: Effect.Effect<string, unknown, Scope.Scope>) =>
  Effect.gen(function*() {
    const to = yield* url
    // What the first of them makes for all does not count
    yield* Effect.flatten(Inbound.begin(to, "first"))
    return yield* bytes(
      countServed,
      Effect.as(
        Effect.forEach(identities(countServed), ({ key }) => Effect.flatten(Inbound.begin(to, key)), { discard: true }),
        () => to
      )
    )
  }).pipe(Effect.scoped)

const show = (name: string, figure: number, note = "") =>
  print(`  ${name.padEnd(44)} ${figure.toFixed(0).padStart(6)} bytes${note}`)

/** The server of the SDK is the user's own: what a session takes beyond it is ours, and that of the SDK's client. */
export const main = Effect.gen(function*() {
  const sides = {
    server: Effect.scoped(bytes(count, bareServers)),
    pooled: bytes(count, pooled).pipe(Effect.provide(SessionPool.layer({ connect: inProcess, capacity: count }))),
    bare: served(Inbound.bare),
    hosted: served(Inbound.hosted)
  }
  const samples: Record<keyof typeof sides, Array<number>> = { server: [], pooled: [], bare: [], hosted: [] }
  for (let round = 0; round < 2; round++) {
    for (const name of Object.keys(sides) as Array<keyof typeof sides>) samples[name].push(yield* sides[name])
  }
  print("\nMemory of a session that was used")
  const [server, inPool, bare, inHost] = [samples.server, samples.pooled, samples.bare, samples.hosted].map(median)
  show("the SDK's server, in process", server!)
  show("pooled in process", inPool!)
  show("beyond the server", inPool! - server!, against("A pooled session", inPool! - server!, bars.pooledBytes))
  show("the SDK's server behind its HTTP transport", bare!)
  show("McpHttp.layer", inHost!)
  show("beyond the server", inHost! - bare!, against("An McpHttp session", inHost! - bare!, bars.hostedBytes))
})
