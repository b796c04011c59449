/**
 * Besieges an endpoint of `McpHttp.layer` and one of `McpHttp.guard`: users who call and check what they are answered,
 * alone at first, then among strangers. Prints what happened as JSON.
 *
 * Server, users and strangers are a process each: what a user waits for is not what the strangers keep busy.
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { Agent } from "node:http"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { type Answer, call, headersOf, initialize, makeAsk, paths, whilst } from "./requests.ts"
import type { Besieged, BesiegedOptions } from "./server.ts"
import type { FromStrangers, StrangersOptions, ToStrangers } from "./strangers.ts"

export interface SiegeOptions extends Omit<StrangersOptions, "port"> {
  readonly users: number
  /** How long the siege lasts, in milliseconds. It is as quiet for half of that. */
  readonly duration: number
  /** How long a user thinks before each call, on average, in milliseconds. */
  readonly thinking: number
  /** How long a stream may last, a body take, and half of how long a session may be idle. */
  readonly timeToLive: number
  /** In how many turns: a machine has its own affairs. */
  readonly turns: number
  /** When all of it is given up: milliseconds. */
  readonly patience: number
}

export interface SiegeReport extends FromStrangers {
  readonly before: Besieged
  readonly after: Besieged
  /** How long it took until nothing was left, in milliseconds. */
  readonly settled: number
  readonly calls: { readonly quiet: number; readonly besieged: number }
  /** Milliseconds, of a call. */
  readonly p99: { readonly quiet: number; readonly besieged: number }
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

const server = run(
  "./server.ts",
  { capacity: 2 * options.users, timeToLive: options.timeToLive } satisfies BesiegedOptions
)
const [port]: [number] = await once(server, "message") as [number]
const strangers = run("./strangers.ts", { ...options, port } satisfies StrangersOptions)
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
let done = false
let latencies: Array<number> = []

const user = async (index: number) => {
  const path = paths[index % paths.length]!
  const token = `secret-user-${index}`
  const agent = new Agent({ keepAlive: true, maxSockets: 4 })
  const expect = (answer: Answer, status: number, what: string) => {
    if (answer.status !== status) wrong.push(`${path} ${what}: ${answer.status} ${answer.body.slice(0, 200)}`)
    return answer.status === status
  }
  let session: string | undefined
  const begin = async () => {
    const begun = await ask(agent, "POST", path, headersOf(token), initialize)
    if (!expect(begun, 200, "initialize")) return
    session = begun.headers["mcp-session-id"] as string
    const initialized = { jsonrpc: "2.0", method: "notifications/initialized" }
    expect(await ask(agent, "POST", path, headersOf(token, session), initialized), 202, "initialized")
    tell({ path, index, session })
  }
  const end = async () => {
    expect(await ask(agent, "DELETE", path, headersOf(token, session)), 204, "DELETE")
    expect(await ask(agent, "POST", path, headersOf(token, session), call("echo", 1)), 404, "call of the dead")
    session = undefined
  }
  await sleep(Math.random() * options.thinking)
  let n = 0
  await whilst(() => !done, async () => {
    n++
    try {
      if (session === undefined) await begin()
      // As many streams as there are users would be held in vain
      if (path === "/layer" && n % 10 === 1) {
        void ask(agent, "GET", path, headersOf(token, session)).then(
          (answer) => expect(answer, 200, "stream"),
          (error) => wrong.push(`${path} stream: ${String(error)}`)
        )
      }
      const message = `${index}-${n}`
      const started = performance.now()
      const answer = await ask(agent, "POST", path, headersOf(token, session), call("echo", n, message))
      latencies.push(performance.now() - started)
      if (expect(answer, 200, "call")) {
        const data = /^data: (\{.*)$/m.exec(answer.body)?.[1] ?? answer.body
        const { id, result } = JSON.parse(data)
        if (id !== n || !JSON.stringify(result.content).includes(message)) wrong.push(`${path} call: ${data}`)
      } else {
        session = undefined
      }
      if (n % 20 === 0 && session !== undefined) await end()
    } catch (error) {
      wrong.push(`${path} ${String(error)}`)
      session = undefined
    }
    await sleep(Math.random() * 2 * options.thinking)
  })
  if (session !== undefined) await end().catch((error) => wrong.push(`${path} end: ${String(error)}`))
  agent.destroy()
}

// -----------------------------------------------------------------------------
// The siege
// -----------------------------------------------------------------------------

const percentile = (samples: ReadonlyArray<number>) =>
  samples.toSorted((a, b) => a - b)[Math.floor(samples.length * 0.99)] ?? 0

let report: FromStrangers = { came: {}, wrong: [] }

const besiege = async (duration: number) => {
  tell({ siege: duration })
  const reported = once(strangers, "message")
  await sleep(duration)
  return reported
}

const campaign = async (duration: number) => {
  done = false
  const samples = { quiet: [] as Array<number>, besieged: [] as Array<number> }
  const users = Array.from({ length: options.users }, (_, index) => user(index))
  await sleep(2 * options.thinking)
  let turn = 0
  await whilst(() => turn++ < options.turns, async () => {
    latencies = samples.quiet
    await sleep(duration / options.turns / 2)
    latencies = samples.besieged
    ;[report] = await besiege(duration / options.turns)
    // What the last of them has left goes on
    latencies = []
    await sleep(options.thinking)
  })
  done = true
  await Promise.all(users)
  return samples
}

const settle = async () => {
  const started = performance.now()
  let measured = await measure()
  const isLeft = () => measured.sessions + measured.sockets > 0 && performance.now() - started < 60_000
  await whilst(isLeft, async () => {
    await sleep(200)
    measured = await measure()
  })
  const settled = performance.now() - started
  return { measured: await measure(true), settled }
}

// What is compiled and cached once is not counted
await campaign(options.duration / 10)
const { measured: before } = await settle()
const { besieged, quiet } = await campaign(options.duration)
const { measured: after, settled } = await settle()

const told = JSON.stringify(
  {
    before,
    after,
    settled,
    calls: { quiet: quiet.length, besieged: besieged.length },
    p99: { quiet: percentile(quiet), besieged: percentile(besieged) },
    came: report.came,
    wrong: [...wrong, ...report.wrong].slice(0, 50)
  } satisfies SiegeReport
)
for (const child of [strangers, server]) {
  child.removeAllListeners("exit")
  child.disconnect()
}
await Promise.all([once(server, "exit"), once(strangers, "exit")])
process.stdout.write(told, () => process.exit(0))
