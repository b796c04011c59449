/**
 * Besieges an endpoint of `McpHttp.layer` and one of `McpHttp.guard`: users who call and check what they are answered,
 * alone at first, then among clients that vanish, ask for an upgrade, stop in the middle of a body, never read, or come
 * with tokens and ids that they made up. Prints what happened as JSON.
 *
 * In a network namespace of its own (`unshare -rn`) the packets to those who vanish are dropped by the kernel. Elsewhere they
 * only stop reading.
 */
import { execFileSync, fork } from "node:child_process"
import { once } from "node:events"
import { Agent, type IncomingHttpHeaders, request } from "node:http"
import { connect, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import type { Besieged, BesiegedOptions } from "./besieged.ts"

export interface SiegeOptions {
  readonly clients: number
  /** How long the siege lasts, in milliseconds. It is as quiet for half of that. */
  readonly duration: number
  /** How long a user thinks before each call, on average, in milliseconds. */
  readonly thinking: number
  /** How long a stream may last, a body take and a session be idle. */
  readonly timeToLive: number
  /** How often each kind of stranger comes to each endpoint, a second. */
  readonly rate: number
  /** In how many turns. */
  readonly turns: number
  /** Whether packets can be dropped. */
  readonly namespace: boolean
}

export interface SiegeReport {
  readonly before: Besieged
  readonly after: Besieged
  /** How long it took until nothing was left, in milliseconds. */
  readonly settled: number
  readonly calls: number
  /** What users were answered that they should not have been. */
  readonly wrong: ReadonlyArray<string>
  /** How many strangers came, by what they did and what they were answered. */
  readonly strangers: Readonly<Record<string, number>>
  /** Milliseconds, of a call. */
  readonly quiet: number
  readonly besieged: number
}

const options: SiegeOptions = JSON.parse(process.argv[2]!)
const capacity = 2 * options.clients

const server = fork(
  fileURLToPath(new URL("./besieged.ts", import.meta.url)),
  [JSON.stringify({ capacity, timeToLive: options.timeToLive } satisfies BesiegedOptions)],
  { stdio: ["ignore", "inherit", "inherit", "ipc"] }
)
server.once("exit", () => process.exit(1))
const [port]: [number] = await once(server, "message") as [number]

const whilst = async (condition: () => boolean, body: () => Promise<unknown>): Promise<void> => {
  if (!condition()) return
  await body()
  return whilst(condition, body)
}

const measure = async (isThorough = false): Promise<Besieged> => {
  server.send(isThorough)
  const [measured] = await once(server, "message")
  return measured
}

// -----------------------------------------------------------------------------
// Requests
// -----------------------------------------------------------------------------

const paths = ["/layer", "/guard"] as const
type Path = (typeof paths)[number]

interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

const headersOf = (token: string, session?: string): Record<string, string> => ({
  accept: "application/json, text/event-stream",
  authorization: `Bearer ${token}`,
  "mcp-protocol-version": "2025-11-25",
  ...(session === undefined ? {} : { "mcp-session-id": session })
})

const ask = (
  agent: Agent | undefined,
  method: string,
  path: Path,
  headers: Record<string, string>,
  body?: unknown
): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const sent = request({
      host: "127.0.0.1",
      port,
      method,
      path,
      agent: agent ?? false,
      headers: { ...headers, ...(body === undefined ? {} : { "content-type": "application/json" }) }
    }, (response) => {
      let read = ""
      response.setEncoding("utf8")
      response.on("data", (chunk) => void (read += chunk))
      response.on("end", () => resolve({ status: response.statusCode!, headers: response.headers, body: read }))
      response.on("error", reject)
    })
    sent.on("error", (error: NodeJS.ErrnoException) =>
      // The server has closed a connection that was idle, as it may
      sent.reusedSocket && (error.code === "ECONNRESET" || error.code === "EPIPE")
        ? resolve(ask(agent, method, path, headers, body))
        : reject(error))
    sent.end(body === undefined ? undefined : JSON.stringify(body))
  })

const initialize = {
  jsonrpc: "2.0",
  id: 0,
  method: "initialize",
  params: { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "siege", version: "0" } }
}

const call = (name: string, id: number, message = "") => ({
  jsonrpc: "2.0",
  id,
  method: "tools/call",
  params: { name, arguments: { message } }
})

const wrong: Array<string> = []

// -----------------------------------------------------------------------------
// Users
// -----------------------------------------------------------------------------

const live = new Map<Path, Array<string>>(paths.map((path) => [path, []]))
const ids = (path: Path) => live.get(path)!

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
    expect(
      await ask(agent, "POST", path, headersOf(token, session), {
        jsonrpc: "2.0",
        method: "notifications/initialized"
      }),
      202,
      "initialized"
    )
    ids(path)[index] = session
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
      if (!expect(answer, 200, "call")) {
        session = undefined
      } else {
        const data = /^data: (\{.*)$/m.exec(answer.body)?.[1] ?? answer.body
        const { id, result } = JSON.parse(data)
        if (id !== n || !JSON.stringify(result.content).includes(message)) wrong.push(`${path} call: ${data}`)
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
// Strangers
// -----------------------------------------------------------------------------

const strangers: Record<string, number> = {}
const count = (what: string) => void (strangers[what] = (strangers[what] ?? 0) + 1)

// Those who have vanished don't say so, for as long as this process lives
const vanished: Array<Socket> = []
let made = 0

const open = async (from = "127.0.0.1"): Promise<Socket> => {
  const socket = connect({ port, host: "127.0.0.1", localAddress: from })
  socket.on("error", () => undefined)
  await once(socket, "connect")
  vanished.push(socket)
  return socket
}

const head = (method: string, path: Path, headers: Record<string, string>) =>
  [
    `${method} ${path} HTTP/1.1`,
    "host: localhost",
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  ]
    .join("\r\n") + "\r\n\r\n"

const write = (socket: Socket, method: string, path: Path, headers: Record<string, string>, body?: unknown) => {
  const text = body === undefined ? undefined : JSON.stringify(body)
  socket.write(
    head(
      method,
      path,
      text === undefined
        ? headers
        : { ...headers, "content-type": "application/json", "content-length": String(Buffer.byteLength(text)) }
    ) + (text ?? "")
  )
}

/** What it is answered at first: nothing if the server hangs up, or says none in half a minute. */
const answerTo = (socket: Socket): Promise<string> =>
  Promise.race([
    once(socket, "data").then(String, () => ""),
    once(socket, "close").then(() => "", () => ""),
    sleep(30_000, "", { ref: false })
  ])

const beginAs = async (path: Path, token: string) => {
  const begun = await ask(undefined, "POST", path, headersOf(token), initialize)
  const session = begun.headers["mcp-session-id"] as string | undefined
  // The room may be taken by those who use theirs
  if (begun.status !== 200 && begun.status !== 503) wrong.push(`${path} stranger's initialize: ${begun.status}`)
  return begun.status === 200 ? session : undefined
}

/** Has a stream and a call in flight, and is never heard of again. */
const vanish = async (path: Path) => {
  const number = made++
  const token = `secret-vanished-${number}`
  const session = await beginAs(path, token)
  if (session === undefined) return count("vanish: 503")
  const from = `127.66.${number >> 8}.${number & 255}`
  write(await open(from), "GET", path, headersOf(token, session))
  write(await open(from), "POST", path, headersOf(token, session), call("wait", 1))
  await sleep(100)
  if (options.namespace) execFileSync("ip", ["route", "add", "blackhole", `${from}/32`, "table", "local"])
  count("vanish")
}

/** Is sent more than the kernel keeps for it, and reads none of that. */
const neverRead = async (path: Path) => {
  const token = `secret-deaf-${made++}`
  const session = await beginAs(path, token)
  if (session === undefined) return count("never read: 503")
  const socket = await open()
  socket.pause()
  for (let id = 1; id <= 8; id++) {
    write(socket, "POST", path, headersOf(token, session), call(path === "/layer" ? "big" : "echo", id))
  }
  count("never read")
}

/** Asks for another protocol, and stays. */
const upgrade = async (path: Path) => {
  const token = `secret-upgrade-${made++}`
  const socket = await open()
  write(socket, "GET", path, {
    ...headersOf(token, ids(path).find((id) => id !== undefined)),
    connection: "Upgrade",
    upgrade: "websocket"
  })
  const said = await answerTo(socket)
  const status = /^HTTP\/1\.1 (\d+)/.exec(said)?.[1]
  count(`upgrade: ${status}`)
  if (status !== "400") wrong.push(`${path} upgrade: ${status}`)
}

/** Stops in the middle of a body. */
const half = async (path: Path) => {
  const token = `secret-half-${made++}`
  const session = await beginAs(path, token)
  const socket = await open()
  socket.write(
    head("POST", path, { ...headersOf(token, session), "content-type": "application/json", "content-length": "1000" }) +
      "{\"jsonrpc\":"
  )
  const status = /^HTTP\/1\.1 (\d+)/.exec(await answerTo(socket))?.[1]
  // Its session may have given way, or ended
  if (status !== "408" && status !== "404") wrong.push(`${path} half: ${status}`)
  count(`half: ${status}`)
}

/** Begins a session in a name of its own, and no more. */
const newcomer = async (path: Path) =>
  count(`newcomer: ${await beginAs(path, `secret-newcomer-${made++}`) === undefined ? 503 : 200}`)

/** Tries ids that it has made up or come by, and no token at all. */
const guess = async (path: Path) => {
  const known = ids(path)
  const stolen = known[Math.floor(Math.random() * known.length)] ?? "none"
  const answers = [
    await ask(undefined, "POST", path, headersOf("secret-guess", stolen), call("echo", 1)),
    await ask(undefined, "DELETE", path, headersOf("secret-guess", stolen)),
    await ask(undefined, "POST", path, headersOf("secret-guess", crypto.randomUUID()), call("echo", 1)),
    await ask(undefined, "POST", path, { accept: "*/*", "mcp-session-id": stolen }, call("echo", 1))
  ]
  const statuses = answers.map(({ status }) => status)
  if (statuses.join() !== "404,404,404,401") wrong.push(`${path} guess: ${statuses.join()}`)
  if (answers.some(({ body }) => body.includes("secret"))) wrong.push(`${path} guess: told a token`)
  count("guess")
}

const besiege = async (end: number) => {
  const kinds = { vanish, neverRead, upgrade, half, newcomer, guess }
  await Promise.all(
    Object.entries(kinds).flatMap(([name, kind]) =>
      paths.map(async (path) => {
        // Most of them are newcomers
        const every = 1000 / options.rate / (kind === newcomer ? 20 : 1)
        const under: Array<Promise<void>> = []
        await whilst(() => performance.now() < end, () => {
          under.push(kind(path).catch((error) => void wrong.push(`${path} ${name}: ${String(error)}`)))
          return sleep(Math.random() * 2 * every)
        })
        await Promise.all(under)
      })
    )
  )
}

// -----------------------------------------------------------------------------
// The siege
// -----------------------------------------------------------------------------

const p99 = (samples: ReadonlyArray<number>) =>
  samples.toSorted((a, b) => a - b)[Math.floor(samples.length * 0.99)] ?? 0

/** Quiet and besieged in turns, since a machine has its own affairs. */
const campaign = async (duration: number) => {
  done = false
  const samples = { quiet: [] as Array<number>, besieged: [] as Array<number> }
  const users = Array.from({ length: options.clients }, (_, index) => user(index))
  await sleep(2 * options.thinking)
  let turn = 0
  await whilst(() => turn++ < options.turns, async () => {
    latencies = samples.quiet
    await sleep(duration / options.turns / 2)
    latencies = samples.besieged
    await besiege(performance.now() + duration / options.turns)
    // Until the last of them has been answered
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

// Else the first users find their sessions expired before the server has got going
await Promise.all([0, 1].map((index) => {
  setTimeout(() => void (done = true), 1_000)
  return user(index)
}))
// What is compiled and cached once is not counted
await campaign(options.duration / 6)
const { measured: before } = await settle()
const { besieged, quiet } = await campaign(options.duration)
const { measured: after, settled } = await settle()

process.stdout.write(JSON.stringify(
  {
    before,
    after,
    settled,
    calls: quiet.length + besieged.length,
    wrong: wrong.slice(0, 50),
    strangers,
    quiet: p99(quiet),
    besieged: p99(besieged)
  } satisfies SiegeReport
))
for (const socket of vanished) socket.destroy()
server.removeAllListeners("exit")
server.disconnect()
await once(server, "exit")
process.exit(0)
