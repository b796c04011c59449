/**
 * Besieges an endpoint of `McpHttp.layer` and one of `McpHttp.guard`: users who call and check what they are answered,
 * alone at first, then among strangers. Prints what happened as JSON.
 *
 * Server, users and strangers are a process each: what a user waits for is not what the strangers keep busy. Users call
 * by a timetable that is the same in peace and in the siege, and a call's time counts from when it was due.
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { Agent } from "node:http"
import { cpus } from "node:os"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { type Answer, call, headersOf, initialize, makeAsk, type Path, paths, whilst } from "./requests.ts"
import type { Besieged, BesiegedOptions } from "./server.ts"
import type { FromStrangers, StrangersOptions, ToStrangers } from "./strangers.ts"

export interface SiegeOptions extends Omit<StrangersOptions, "port">, BesiegedOptions {
  readonly users: number
  /** How long users and strangers come before anything is measured, in milliseconds. */
  readonly warmUp: number
  /** How long it is quiet, in milliseconds. */
  readonly quiet: number
  /** How long the siege lasts, in milliseconds. */
  readonly siege: number
  /** How much time there is for each call of a user, on average, in milliseconds. */
  readonly every: number
  /** When all of it is given up: milliseconds. */
  readonly patience: number
}

/** Milliseconds, of a call, from when it was due. */
export interface Latencies {
  readonly calls: number
  readonly p50: number
  readonly p99: number
  readonly max: number
}

/** What users have seen of a phase. */
export interface Phase extends Latencies {
  /** By endpoint: a call that is guarded takes four turns of the server's loop, within Effect's server. */
  readonly at: Readonly<Record<Path, Latencies>>
  /** How much of a core the server has taken. */
  readonly load: number
  /** How much of the machine was taken, by all of it and by others. */
  readonly machine: number
}

export interface SiegeReport extends FromStrangers {
  readonly before: Besieged
  readonly after: Besieged
  /** How long it took until nothing was left, in milliseconds. */
  readonly settled: number
  readonly quiet: Phase
  readonly besieged: Phase
}

const options: SiegeOptions = JSON.parse(process.argv[2]!)

const run = (script: string, given: unknown): ChildProcess => {
  const child = fork(fileURLToPath(new URL(script, import.meta.url)), [JSON.stringify(given)], {
    stdio: ["ignore", "inherit", "inherit", "ipc"]
  })
  child.once("exit", () => process.exit(1))
  return child
}

const giveUp = (why: string) => {
  process.stderr.write(`${why}\n`)
  process.exit(1)
}
setTimeout(giveUp, options.patience, `The siege has taken more than ${options.patience} ms`).unref()

const server = run("./server.ts", options)
const [port]: [number] = await once(server, "message") as [number]
const strangers = run("./strangers.ts", { namespace: options.namespace, port } satisfies StrangersOptions)
await once(strangers, "message")
const tell = (message: ToStrangers) => void strangers.send(message)
const ask = makeAsk(port)

const measure = async (isThorough = false): Promise<Besieged> => {
  server.send(isThorough)
  const [measured] = await once(server, "message")
  return measured
}

// -----------------------------------------------------------------------------
// Users
// -----------------------------------------------------------------------------

const wrong: Array<string> = []
let ends = Infinity
let latencies: Array<readonly [path: Path, took: number]> = []

/** In how many calls' time a user ends its session and begins another. */
const life = 16

const user = async (index: number, began: number) => {
  const path = paths[index % paths.length]!
  const token = `secret-user-${index}`
  const agent = new Agent({ keepAlive: true, maxSockets: 4 })
  let session: string | undefined
  const isWrong = (what: string) => {
    wrong.push(`${Math.round(performance.now() - began)} ms ${path} ${index} ${session}: ${what}`)
    return false
  }
  const expect = (answer: Answer, status: number, what: string) =>
    answer.status === status || isWrong(`${what}: ${answer.status} ${answer.body.slice(0, 200)}`)
  const listen = (of: string) =>
    ask(agent, "GET", path, headersOf(token, of)).then(
      (answer) => expect(answer, 200, "stream"),
      (error) => isWrong(`stream: ${String(error)}`)
    )
  const begin = async () => {
    const begun = await ask(agent, "POST", path, headersOf(token), initialize)
    if (!expect(begun, 200, "initialize")) return
    session = begun.headers["mcp-session-id"] as string
    const initialized = { jsonrpc: "2.0", method: "notifications/initialized" }
    expect(await ask(agent, "POST", path, headersOf(token, session), initialized), 202, "initialized")
    tell({ path, index, session })
    // A guarded server may not have any
    if (path === "/layer") void listen(session)
  }
  const end = async () => {
    const dead = session!
    expect(await ask(agent, "DELETE", path, headersOf(token, dead)), 204, "DELETE")
    session = undefined
    expect(await ask(agent, "POST", path, headersOf(token, dead), call("echo", 1)), 404, "call of the dead")
  }
  const echo = async (n: number, due: number) => {
    const message = `${index}-${n}`
    const samples = latencies
    const answer = await ask(agent, "POST", path, headersOf(token, session), call("echo", n, message))
    samples.push([path, performance.now() - due])
    if (!expect(answer, 200, "call")) {
      session = undefined
      return
    }
    const data = /^data: (\{.*)$/m.exec(answer.body)?.[1] ?? answer.body
    const { id, result } = JSON.parse(data)
    if (id !== n || !JSON.stringify(result.content).includes(message)) isWrong(`call: ${data}`)
  }
  let n = 0
  let due = 0
  const isDue = async () => {
    due = began + (n + Math.random()) * options.every
    await sleep(Math.max(0, Math.min(due, ends) - performance.now()))
  }
  await isDue()
  await whilst(() => performance.now() < ends, async () => {
    n++
    try {
      if (session === undefined) await begin()
      else if ((n + index) % life === 0) await end()
      else await echo(n, due)
    } catch (error) {
      isWrong(String(error))
      session = undefined
    }
    await isDue()
  })
  if (session !== undefined) await end().catch((error) => isWrong(`end: ${String(error)}`))
  agent.destroy()
}

// -----------------------------------------------------------------------------
// The siege
// -----------------------------------------------------------------------------

/** Since it was started: how long its cores have worked, of how long. */
const machine = (): readonly [busy: number, all: number] =>
  cpus().reduce(([busy, all], { times }) => {
    const passed = Object.values(times).reduce((sum, time) => sum + time, 0)
    return [busy + passed - times.idle, all + passed]
  }, [0, 0])

const round = (part: number) => Math.round(part * 100) / 100

const latenciesOf = (samples: ReadonlyArray<readonly [path: Path, took: number]>): Latencies => {
  const sorted = samples.map(([, took]) => took).toSorted((a, b) => a - b)
  const percentile = (part: number) => Math.round(10 * (sorted[Math.floor(sorted.length * part)] ?? 0)) / 10
  return { calls: sorted.length, p50: percentile(0.5), p99: percentile(0.99), max: percentile(1 - 1e-9) }
}

const phase = async (duration: number): Promise<Phase> => {
  const samples: typeof latencies = []
  latencies = samples
  const { worked } = await measure()
  const [busy, all] = machine()
  await sleep(duration)
  latencies = []
  const load = ((await measure()).worked - worked) / duration
  const [busyAfter, allAfter] = machine()
  const ofPath = (wanted: Path) => latenciesOf(samples.filter(([path]) => path === wanted))
  return {
    ...latenciesOf(samples),
    at: { "/layer": ofPath("/layer"), "/guard": ofPath("/guard") },
    load: round(load),
    machine: round((busyAfter - busy) / (allAfter - all))
  }
}

const campaign = async <A>(body: () => Promise<A>): Promise<A> => {
  ends = Infinity
  const began = performance.now()
  const users = Array.from({ length: options.users }, (_, index) => user(index, began))
  // Each begins a session before it calls, and what that has piled up is worked off
  await sleep(2 * options.every)
  const result = await body()
  ends = performance.now()
  await Promise.all(users)
  return result
}

const settle = async () => {
  const started = performance.now()
  let measured = await measure()
  const isLeft = () =>
    measured.sessions + measured.sockets > 0 && performance.now() - started < 2 * options.idleTimeToLive
  await whilst(isLeft, async () => {
    await sleep(200)
    measured = await measure()
  })
  const settled = Math.round(performance.now() - started)
  return { measured: await measure(true), settled }
}

const besiege = (duration: number) => {
  const reported = once(strangers, "message") as Promise<[FromStrangers]>
  tell({ siege: duration })
  return reported
}

// What is compiled and cached once is not counted, neither its bytes nor its time: a server that has been up for a
// while has answered each kind of request thousands of times
await campaign(() => besiege(options.warmUp))
const { measured: before } = await settle()
const seen = await campaign(async () => {
  const quiet = await phase(options.quiet)
  const reported = besiege(options.siege)
  const besieged = await phase(options.siege)
  const [{ came, wrong: refused }] = await reported
  return { quiet, besieged, came, refused }
})
const { measured: after, settled } = await settle()

const report: SiegeReport = { ...seen, before, after, settled, wrong: [...wrong, ...seen.refused] }
for (const child of [strangers, server]) {
  child.removeAllListeners("exit")
  child.disconnect()
}
await Promise.all([once(server, "exit"), once(strangers, "exit")])
process.stdout.write(JSON.stringify(report), () => process.exit(0))
