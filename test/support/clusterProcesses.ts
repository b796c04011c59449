/**
 * Several nodes of a cluster, each a process of its own, that share a store. They are started and stopped by the test,
 * and whatever is left of them is killed at its end.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, fork } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { connect, createServer, type Socket } from "node:net"
import { join } from "node:path"
import { inject } from "vitest"

interface Call {
  readonly key: string
  readonly tool: string
  readonly args?: Record<string, unknown>
  readonly progress?: boolean
}

export type Question =
  & { readonly id: number }
  & (
    | Call & { readonly ask: "call" }
    /** Interrupts a call after so many milliseconds, and tells how long that took. */
    | Call & { readonly ask: "leave"; readonly after: number }
    | { readonly ask: "members" | "ready" | "drain" | "stats" | "shards" }
  )

export interface Answer {
  readonly id: number
  readonly value?: unknown
  /** The tag of the error. */
  readonly error?: string
  /** The tag of its reason. */
  readonly reason?: string | undefined
  readonly requestSent?: boolean | undefined
}

type Asked = Question extends infer Q ? Q extends Question ? Omit<Q, "id"> : never : never

export const secret = "what all nodes know, and nobody else"
export const keySecret = "sixteen characters and more"

const isFree = (port: number): Effect.Effect<boolean> =>
  Effect.callback((resume) => {
    const server = createServer()
    server.once("error", () => resume(Effect.succeed(false)))
    server.listen({ port, host: "0.0.0.0" }, () => server.close(() => resume(Effect.succeed(true))))
  })

/**
 * Ports that were free a moment ago, at every address of this machine. They are below those that a system gives by
 * itself: a connection of another test may have one of these by the time that it is listened on.
 */
export const freePorts = (n: number): Effect.Effect<ReadonlyArray<number>> =>
  Effect.gen(function*() {
    const ports = new Set<number>()
    while (ports.size < n) {
      const port = 10_000 + Math.floor(Math.random() * 20_000)
      if (yield* isFree(port)) ports.add(port)
    }
    return Array.from(ports)
  })

export interface NodeProcess {
  readonly port: number
  readonly name: string
  readonly child: ChildProcess
  readonly pid: number
  readonly ask: (question: Asked) => Promise<Answer>
  /** Calls a tool of the session of the key. */
  readonly call: (key: string, tool?: string, args?: Record<string, unknown>) => Promise<Answer>
  readonly exited: Promise<number | null>
  readonly log: () => string
}

export interface StartOptions {
  readonly storage: string
  readonly port: number
  /** Where the others reach it: by default on loopback, and nothing is between. */
  readonly host?: string
  readonly env?: Record<string, string>
}

/** Fails with what the node says of itself when it does not start. */
export const startProcess = (
  { env = {}, host = "127.0.0.1", port, storage }: StartOptions
): Effect.Effect<NodeProcess, string, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<NodeProcess, string>((done) => {
      const child = fork(inject("programs").node, {
        stdio: ["ignore", "ignore", "pipe", "ipc"],
        env: {
          PATH: process.env.PATH,
          STDIO_SERVER: JSON.stringify(inject("stdioServer")),
          MCP_CLUSTER_HOST: host,
          MCP_CLUSTER_LISTEN_HOST: "127.0.0.1",
          MCP_CLUSTER_PORT: String(port),
          MCP_CLUSTER_STORAGE: storage,
          MCP_CLUSTER_SECURITY_SECRET: secret,
          MCP_KEY_SECRET: keySecret,
          ...env
        }
      })
      let log = ""
      child.stderr!.on("data", (data: Buffer) => log += String(data))
      const waiting = new Map<number, (answer: Answer) => void>()
      let id = 0
      const ask = (question: Asked) =>
        new Promise<Answer>((answer) => {
          waiting.set(++id, answer)
          if (child.connected) child.send({ ...question, id }, () => {})
        })
      const exited = new Promise<number | null>((exit) => child.once("exit", exit))
      void exited.then(() => done(Effect.fail(`it has ended: ${log}`)))
      child.on("message", (answer: Answer) => {
        if (answer.id !== 0) waiting.get(answer.id)?.(answer)
        else if (answer.error !== undefined) done(Effect.fail(answer.error))
        else {
          done(Effect.succeed({
            port,
            name: `${host}:${port}`,
            child,
            pid: child.pid!,
            ask,
            call: (key, tool = "pid", args = {}) => ask({ ask: "call", key, tool, args }),
            exited,
            log: () => log
          }))
        }
      })
    }),
    ({ child, exited }) =>
      Effect.promise(async () => {
        child.kill("SIGKILL")
        await exited
      })
  )

/** Asks again and again, until it is so: for 20 seconds. Gives how many milliseconds it took. */
export const until = (what: string | (() => string), isSo: () => Promise<boolean>): Effect.Effect<number> =>
  Effect.gen(function*() {
    const since = performance.now()
    while (!(yield* Effect.promise(isSo))) {
      if (performance.now() - since > 20_000) {
        return yield* Effect.die(new Error(`it never was so: ${typeof what === "string" ? what : what()}`))
      }
      yield* Effect.sleep(20)
    }
    return performance.now() - since
  })

export interface Proxy {
  /** Cuts the connections that there are, as a broken wire does. */
  readonly cut: () => number
}

/** What the others reach a node through, on a loopback address of its own: `delay` milliseconds away. */
export const proxyTo = (host: string, port: number, delay = 0): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const sockets = new Set<Socket>()
      const server = createServer((incoming) => {
        const outgoing = connect(port, "127.0.0.1")
        for (const [one, other] of [[incoming, outgoing], [outgoing, incoming]] as const) {
          sockets.add(one)
          one.setNoDelay(true)
          one.on("error", () => {})
          one.on("close", () => {
            sockets.delete(one)
            setTimeout(() => other.destroy(), delay)
          })
          if (delay === 0) one.pipe(other)
          else {
            one.on("data", (data) => setTimeout(() => other.write(data), delay))
            one.on("end", () => setTimeout(() => other.end(), delay))
          }
        }
      })
      await new Promise<void>((done) => server.listen(port, host, done))
      const cut = () => {
        const { size } = sockets
        for (const socket of sockets) socket.resetAndDestroy()
        return size / 2
      }
      return { cut, server }
    }),
    ({ cut, server }) =>
      Effect.promise(() =>
        new Promise<void>((done) => {
          server.close(() => done())
          cut()
        })
      )
  )

/** Into how many the keys of these nodes are divided. */
const shards = 20

/** The times of the defaults by a third, or less. */
export const quick = {
  MCP_CLUSTER_SHARDS: String(shards),
  MCP_CLUSTER_LOCK_TIME_TO_LIVE: "3 seconds",
  MCP_CLUSTER_REFRESH_INTERVAL: "1 second",
  MCP_CLUSTER_ASSIGNMENTS_INTERVAL: "200 millis",
  MCP_CLUSTER_TERMINATION_TIMEOUT: "3 seconds"
}

/** Until all of them know each other, and have all shards between them. */
export const settled = (nodes: ReadonlyArray<NodeProcess>): Effect.Effect<number> => {
  let seen: ReadonlyArray<unknown> = []
  return until(() => `all nodes have their share: ${JSON.stringify(seen)}`, async () => {
    const members = await Promise.all(nodes.map(({ ask }) => ask({ ask: "members" })))
    const shares = await Promise.all(nodes.map(({ ask }) => ask({ ask: "shards" })))
    seen = [...members, ...shares].map(({ error, value }) => error ?? value)
    return members.every(({ value }) => Array.isArray(value) && value.length === nodes.length) &&
      shares.every(({ value }) => Number(value) > 0) &&
      shares.reduce((sum, { value }) => sum + Number(value), 0) === shards
  })
}

/** What a tool has answered, and where. */
export interface Said {
  readonly text: string
  readonly runner: string
}

export const said = ({ error, reason, value }: Answer): Said => {
  if (error !== undefined) throw new Error(`the call has failed: ${error} ${reason ?? ""}`)
  return value as Said
}

/** Calls a tool of the session of the key, `pid` by default, which has to succeed. */
export const call = (node: NodeProcess, key: string, tool?: string, args?: Record<string, unknown>) =>
  Effect.map(Effect.promise(() => node.call(key, tool, args)), said)

/** Who has the session of the key, another node, and the pid of the child. */
export const rolesOf = Effect.fnUntraced(function*(nodes: ReadonlyArray<NodeProcess>, key: string) {
  const { runner, text } = yield* call(nodes[0]!, key)
  const owner = nodes.find(({ name }) => name === runner)!
  return { owner, other: nodes.find((node) => node !== owner)!, pid: Number(text) }
})

/** A tool that says in a file that it runs, and takes its time. */
export const noting = (directory: string, name: string) => {
  const file = join(directory, name)
  const notes = () => existsSync(file) ? readFileSync(file, "utf8").trim().split("\n").length : 0
  const runs = until("the tool runs", () => Promise.resolve(notes() === 1))
  return {
    args: (ms: number) => ({ file, line: name, ms }),
    /** How often it has run. */
    notes,
    /** Until it does. */
    runs,
    begin: Effect.fnUntraced(function*(node: NodeProcess, key: string, ms: number) {
      const answer = node.call(key, "note", { file, line: name, ms })
      yield* runs
      return answer
    })
  }
}

/** How long it takes at best, in milliseconds, until an interrupted call has returned: three are, after `after`. */
export const leaving = (node: NodeProcess, key: string, after: number, tool = "pid", args = {}) =>
  Effect.map(
    Effect.forEach([1, 2, 3], () => Effect.promise(() => node.ask({ ask: "leave", key, tool, args, after }))),
    (answers) => Math.min(...answers.map(({ error, value }) => error === undefined ? Number(value) : Infinity))
  )
