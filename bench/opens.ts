import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { createRequire } from "node:module"
import { createServer } from "node:net"
import { Identity } from "../src/Identity.ts"
import * as McpConnector from "../src/McpConnector.ts"
import type { McpSession } from "../src/McpSession.ts"
import { SessionPool } from "../src/SessionPool.ts"
import { type Bar, bars } from "./bars.ts"
import { inProcess } from "./servers.ts"
import { median, table } from "./support.ts"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

const echo = (session: McpSession<unknown>) => session.callTool({ name: "echo", arguments: { message: "hi" } })

const everythingServer = { command: process.execPath, args: [everything, "stdio"] }

const stdio = McpConnector.stdio(everythingServer)

const freePort = Effect.promise(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  return typeof address === "object" && address !== null ? address.port : 0
})

// The reference server in a process of its own.
const http = Effect.gen(function*() {
  const port = yield* freePort
  yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const child = spawn(process.execPath, [everything, "streamableHttp"], {
        env: { ...process.env, PORT: `${port}` },
        stdio: ["ignore", "ignore", "pipe"]
      })
      await once(child.stderr, "data")
      return child
    }),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  return McpConnector.http({ url: `http://127.0.0.1:${port}/mcp` })
})

const timed = <E, R>(effect: Effect.Effect<unknown, E, R>): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    const started = process.hrtime.bigint()
    return Effect.map(effect, () => Number(process.hrtime.bigint() - started))
  })

/** The first call of so many identities, each of which opens a session, and their second, which does not. */
const compare = (name: string, times: number, pool: Layer.Layer<SessionPool, unknown>, bar?: Bar) =>
  Effect.gen(function*() {
    const opened: Array<number> = []
    const reused: Array<number> = []
    for (let i = 0; i < times; i++) {
      const call = timed(SessionPool.withSession(Identity.fromKey(`user-${i}`), echo))
      opened.push(yield* call)
      reused.push(yield* call)
    }
    table(
      `Open against reuse, ${name}`,
      new Map([["reused", median(reused)], ["opened", median(opened)]]),
      "reused",
      bar && { opened: bar }
    )
  }).pipe(Effect.provide(pool))

/**
 * The first call of so many identities, with children on standby and without, each when there is nothing else to do:
 * the next child is there already. Those on standby have had a call, which is no identity's.
 */
const compareStandby = Effect.fnUntraced(function*(times: number) {
  const build = (connect: typeof stdio) =>
    Effect.map(Layer.build(SessionPool.layer({ connect, capacity: 2 })), Context.get(SessionPool))
  const size = 2
  const warm = yield* build(McpConnector.stdio({ ...everythingServer, standby: { size, warmUp: echo } }))
  const cold = yield* build(stdio)
  const figures = { reused: [], "from standby": [], cold: [] } as Record<string, Array<number>>
  for (let i = 0; i < times; i++) {
    const identity = Identity.fromKey(`user-${i}`)
    while ((yield* warm.stats).standby < size) yield* Effect.sleep("20 millis")
    yield* Effect.sleep("200 millis")
    figures["from standby"]!.push(yield* timed(warm.withSession(identity, echo)))
    figures["reused"]!.push(yield* timed(warm.withSession(identity, echo)))
    while ((yield* warm.stats).standby < size) yield* Effect.sleep("20 millis")
    figures["cold"]!.push(yield* timed(cold.withSession(identity, echo)))
  }
  const medians = new Map(Object.entries(figures).map(([name, values]) => [name, median(values)]))
  table("A new identity's first call, stdio", medians, "reused", { "from standby": bars.standby })
  table("The same against no standby", medians, "cold", { "from standby": bars.standbyOfCold })
})

export const main = Effect.gen(function*() {
  yield* compare("in process", 200, SessionPool.layer({ connect: inProcess, capacity: 4 }), bars.openInProcess)
  yield* compare("HTTP", 50, SessionPool.layer({ connect: yield* http, capacity: 4 }))
  yield* compare("stdio", 15, SessionPool.layer({ connect: stdio, capacity: 4 }))
  yield* compareStandby(15)
}).pipe(Effect.scoped)
