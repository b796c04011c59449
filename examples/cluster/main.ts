/**
 * Three replicas of one server behind a small proxy that asks them in turns, and two users. Each user has one session, a
 * child process, whichever replica is asked. One replica is stopped as in a deploy, another is killed, and this tells
 * who has which session, and what callers saw.
 *
 * `npm run cluster`
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Effect, Layer, Logger, Redacted } from "effect"
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
import { setTimeout as sleep } from "node:timers/promises"
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
      const session = yield* SessionCluster.withSession(
        identity,
        (session) => Effect.as(session.callTool({ name: "echo", arguments: { message: "hello" } }), session.runner)
      )
      return HttpServerResponse.jsonUnsafe({ key: identity.key, session })
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
  readonly runner: string
  readonly url: string
  readonly child: ChildProcess
}

const freePorts = async (count: number): Promise<ReadonlyArray<number>> => {
  const servers = Array.from({ length: count }, () => createTcpServer().listen(0, "127.0.0.1"))
  await Promise.all(servers.map((server) => once(server, "listening")))
  const ports = servers.map((server) => (server.address() as AddressInfo).port)
  for (const server of servers) server.close()
  return ports
}

const directory = mkdtempSync(join(tmpdir(), "mcp-cluster-"))
const replicas: Array<Replica> = []

const start = (name: string, port: number, httpPort: number) => {
  const args = ["replica", String(port), String(httpPort), `sqlite:${join(directory, "cluster.db")}`]
  const child = fork(fileURLToPath(import.meta.url), args, { stdio: ["ignore", "ignore", "inherit", "ipc"] })
  replicas.push({ name, runner: `127.0.0.1:${port}`, url: `http://127.0.0.1:${httpPort}`, child })
}

let turn = 0

/** Asks the replicas in turns. One that can't be connected to has not got the request, so that the next one may. */
const ask = async (path: string, token?: string): Promise<{ status: number; by: Replica; body: unknown }> => {
  for (let tries = 0;; tries++) {
    const by = replicas[turn++ % replicas.length]!
    try {
      const response = await fetch(by.url + path, {
        method: token === undefined ? "GET" : "POST",
        headers: token === undefined ? {} : { authorization: `Bearer ${token}` }
      })
      const text = await response.text()
      return { status: response.status, by, body: text === "" ? undefined : JSON.parse(text) }
    } catch (error) {
      const { cause } = error as { readonly cause?: { readonly code?: string } }
      if (cause?.code !== "ECONNREFUSED" || tries === replicas.length) throw error
    }
  }
}

const users = { alice: "alice-token", bob: "bob-token" } as const
type User = keyof typeof users
const keys = new Map<string, User>()

const nameOf = (runner: string): string => replicas.find((one) => one.runner === runner)?.name ?? runner

/** One request of a user: who answered, and where the session was. */
const request = async (user: User) => {
  const { body, by, status } = await ask("/echo", users[user])
  if (status !== 200) return { status, by: by.name, at: undefined }
  const { key, session } = body as { readonly key: string; readonly session: string }
  keys.set(key, user)
  return { status, by: by.name, at: nameOf(session) }
}

const showSessions = async () => {
  const { body } = await ask("/sessions")
  for (const { key, runner } of body as ReadonlyArray<{ readonly key: string; readonly runner: string }>) {
    console.log(`  ${keys.get(key)} has a session at ${nameOf(runner)}`)
  }
}

/** Requests of a user, one after the other, until one is answered from a replica other than `left`. */
const until = async (user: User, left: string) => {
  const since = performance.now()
  const statuses = new Map<number, number>()
  while (true) {
    const { at, status } = await request(user)
    statuses.set(status, (statuses.get(status) ?? 0) + 1)
    if (at !== undefined && at !== left) {
      const seen = Array.from(statuses, ([code, count]) => `${count} × ${code}`).join(", ")
      const seconds = ((performance.now() - since) / 1_000).toFixed(1)
      console.log(`  ${user} saw ${seen}, and has a session at ${at} after ${seconds} s`)
      return
    }
    await sleep(50)
  }
}

const leave = async (name: string, signal: NodeJS.Signals) => {
  const index = replicas.findIndex((one) => one.name === name)
  const [{ child }] = replicas.splice(index, 1) as [Replica]
  const exited = once(child, "exit")
  child.kill(signal)
  return exited
}

const main = async () => {
  const ports = await freePorts(6)
  for (let i = 0; i < 3; i++) start(`replica ${i + 1}`, ports[2 * i]!, ports[2 * i + 1]!)
  for (const { url } of replicas) {
    while (await fetch(`${url}/ready`).then(({ status }) => status !== 204, () => true)) await sleep(50)
  }
  console.log("Three replicas are ready")
  // They take up to two seconds to share out what there is
  await sleep(3_000)

  for (const user of ["alice", "bob", "alice", "bob", "alice", "bob"] as const) {
    const { at, by, status } = await request(user)
    console.log(`  ${user} asked ${by}: ${status}, from the session at ${at}`)
  }
  await showSessions()

  const stopped = (await request("alice")).at!
  console.log(`${stopped} is stopped, as in a deploy`)
  const left = leave(stopped, "SIGTERM")
  await until("alice", stopped)
  await left

  const killed = (await request("bob")).at!
  console.log(`${killed} is killed`)
  await leave(killed, "SIGKILL")
  await until("bob", killed)
  await showSessions()

  await Promise.all(replicas.map(({ name }) => leave(name, "SIGTERM")))
  rmSync(directory, { recursive: true })
  console.log("All replicas have ended")
}

const [role, port, httpPort, storage] = process.argv.slice(2)
if (role === "replica") {
  // Whoever started it may be killed
  process.once("disconnect", () => process.kill(process.pid, "SIGTERM"))
  NodeRuntime.runMain(
    Layer.launch(replica(Number(port), Number(httpPort), storage!)).pipe(
      Effect.provide(Logger.layer([]))
    )
  )
} else await main()
