/**
 * Three replicas of one server behind a small proxy that asks them in turns, and two users. Each user has one session,
 * a child process, whichever replica is asked. One replica is stopped as in a deploy, another is killed, and this
 * tells who has which session, and what callers saw.
 *
 * `npm run cluster`
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Console, Data, Duration, Effect, Fiber, Layer, Logger, Redacted, Schedule } from "effect"
import { IdentityResolver, McpConnector } from "effect-mcp-sessions"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { type AddressInfo, createServer as createTcpServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

// -----------------------------------------------------------------------------
// A replica
// -----------------------------------------------------------------------------

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

// The same at all replicas. In earnest both come from where secrets are kept.
const keySecret = Redacted.make("makes the same key of a token everywhere")
const secret = Redacted.make("known to these replicas, and to nobody else")

const replica = (port: number, httpPort: number, storage: string) => {
  const Node = ClusterNode.layer({
    host: "127.0.0.1",
    port,
    storage,
    security: { secret },
    keySecret,
    // So that nobody has to wait for long here: by default 10 seconds
    lockTimeToLive: "3 seconds",
    refreshInterval: "1 second",
    assignmentsInterval: "250 millis"
  })

  const Sessions = SessionCluster.layer({
    connect: McpConnector.stdio({ command: process.execPath, args: [everything, "stdio"] })
  })

  const echo = HttpRouter.add(
    "POST",
    "/echo",
    Effect.gen(function*() {
      const identity = yield* IdentityResolver.fromHttpRequest
      const runner = yield* SessionCluster.withSession(
        identity,
        (session) => Effect.as(session.callTool({ name: "echo", arguments: { message: "hello" } }), session.runner)
      )
      return HttpServerResponse.jsonUnsafe({ key: identity.key, runner })
    })
  )

  const sessions = HttpRouter.add(
    "GET",
    "/sessions",
    Effect.map(
      SessionCluster.entries,
      ({ entries }) => HttpServerResponse.jsonUnsafe(entries.map(({ key, runner }) => ({ key, runner })))
    )
  )

  const ready = HttpRouter.add(
    "GET",
    "/ready",
    Effect.map(ClusterMembership.isReady, (isReady) => HttpServerResponse.empty({ status: isReady ? 204 : 503 }))
  )

  return HttpRouter.serve(Layer.mergeAll(echo, sessions, ready), { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: httpPort })),
    Layer.provide(Sessions),
    Layer.provide(Node),
    Layer.provide(IdentityResolver.layer({ mode: "required", keySecret }))
  )
}

// -----------------------------------------------------------------------------
// Their callers
// -----------------------------------------------------------------------------

interface Replica {
  readonly name: string
  readonly url: string
  readonly child: ChildProcess
}

const freePorts = (count: number) =>
  Effect.promise(async () => {
    const servers = Array.from({ length: count }, () => createTcpServer().listen(0, "127.0.0.1"))
    await Promise.all(servers.map((server) => once(server, "listening")))
    const ports = servers.map((server) => (server.address() as AddressInfo).port)
    for (const server of servers) server.close()
    return ports
  })

const directory = mkdtempSync(join(tmpdir(), "mcp-cluster-"))
const replicas: Array<Replica> = []

const start = (name: string, port: number, httpPort: number) =>
  Effect.sync(() => {
    const args = ["replica", String(port), String(httpPort), `sqlite:${join(directory, "cluster.db")}`]
    const child = fork(fileURLToPath(import.meta.url), args, { stdio: ["ignore", "ignore", "inherit", "ipc"] })
    names.set(`127.0.0.1:${port}`, name)
    replicas.push({ name, url: `http://127.0.0.1:${httpPort}`, child })
  })

class NotSent extends Data.TaggedError("NotSent")<{}> {}

let turn = 0

/** Asks the replicas in turns. One that can't be connected to has not got the request, so that the next one may. */
const ask = (path: string, token?: string) =>
  Effect.suspend(() => {
    const by = replicas[turn++ % replicas.length]!
    return Effect.tryPromise({
      try: async () => {
        const response = await fetch(by.url + path, {
          method: token === undefined ? "GET" : "POST",
          headers: token === undefined ? {} : { authorization: `Bearer ${token}` }
        })
        const text = await response.text()
        return { status: response.status, by, body: text === "" ? undefined : JSON.parse(text) as unknown }
      },
      catch: (error) => {
        const { cause } = error as { readonly cause?: { readonly code?: string } }
        return cause?.code === "ECONNREFUSED" ? new NotSent() : error
      }
    })
  }).pipe(Effect.retry({ while: (error) => error instanceof NotSent, times: 3 }), Effect.orDie)

const users = { alice: "alice-token", bob: "bob-token" } as const
type User = keyof typeof users
const keys = new Map<string, User>()

// Of those that have left, too: one that stops still answers what it was asked
const names = new Map<string, string>()
const nameOf = (runner: string): string => names.get(runner) ?? runner

/** One request of a user: who answered, and where the session was. */
const request = (user: User) =>
  Effect.map(ask("/echo", users[user]), ({ body, by, status }) => {
    if (status !== 200) return { status, by: by.name, at: undefined }
    const { key, runner } = body as { readonly key: string; readonly runner: string }
    keys.set(key, user)
    return { status, by: by.name, at: nameOf(runner) }
  })

const showSessions = Effect.flatMap(ask("/sessions"), ({ body }) =>
  Effect.forEach(
    body as ReadonlyArray<{ readonly key: string; readonly runner: string }>,
    ({ key, runner }) => Console.log(`  ${keys.get(key)} has a session at ${nameOf(runner)}`)
  ))

/** Requests of a user, one after the other, until one is answered from a replica other than `left`. */
const until = Effect.fnUntraced(function*(user: User, left: string) {
  const statuses = new Map<number, number>()
  const asked = request(user).pipe(
    Effect.tap(({ status }) => Effect.sync(() => statuses.set(status, (statuses.get(status) ?? 0) + 1))),
    Effect.repeat({ until: ({ at }) => at !== undefined && at !== left, schedule: Schedule.spaced("50 millis") })
  )
  const [took, { at }] = yield* Effect.timed(asked)
  const seen = Array.from(statuses, ([code, count]) => `${count} × ${code}`).join(", ")
  yield* Console.log(`  ${user} saw ${seen}, and has a session at ${at} after ${Duration.format(took)}`)
})

const leave = (name: string, signal: NodeJS.Signals) =>
  Effect.promise(() => {
    const [{ child }] = replicas.splice(replicas.findIndex((one) => one.name === name), 1) as [Replica]
    const exited = once(child, "exit")
    child.kill(signal)
    return exited
  })

const callers = Effect.gen(function*() {
  const ports = yield* freePorts(6)
  for (let i = 0; i < 3; i++) yield* start(`replica ${i + 1}`, ports[2 * i]!, ports[2 * i + 1]!)
  for (const { url } of replicas) {
    yield* Effect.tryPromise(() => fetch(`${url}/ready`)).pipe(
      Effect.filterOrFail(({ status }) => status === 204),
      Effect.retry(Schedule.spaced("50 millis"))
    )
  }
  yield* Console.log("Three replicas are ready")
  // They take up to two seconds to share out what there is
  yield* Effect.sleep("3 seconds")

  for (const user of ["alice", "bob", "alice", "bob", "alice", "bob"] as const) {
    const { at, by, status } = yield* request(user)
    yield* Console.log(`  ${user} asked ${by}: ${status}, from the session at ${at}`)
  }
  yield* showSessions

  const stopped = (yield* request("alice")).at!
  yield* Console.log(`${stopped} is stopped, as in a deploy`)
  const leaving = yield* Effect.forkChild(leave(stopped, "SIGTERM"), { startImmediately: true })
  yield* until("alice", stopped)
  yield* Fiber.join(leaving)

  const killed = (yield* request("bob")).at!
  yield* Console.log(`${killed} is killed`)
  yield* leave(killed, "SIGKILL")
  yield* until("bob", killed)
  yield* showSessions

  yield* Effect.forEach(replicas.map(({ name }) => name), (name) => leave(name, "SIGTERM"), {
    concurrency: "unbounded"
  })
  rmSync(directory, { recursive: true })
  yield* Console.log("All replicas have ended")
})

const [role, port, httpPort, storage] = process.argv.slice(2)
if (role === "replica") {
  // Whoever started it may be killed
  process.once("disconnect", () => process.kill(process.pid, "SIGTERM"))
  NodeRuntime.runMain(
    Layer.launch(replica(Number(port), Number(httpPort), storage!)).pipe(
      Effect.provide(Logger.layer([]))
    )
  )
} else await Effect.runPromise(callers)
