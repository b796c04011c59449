/**
 * Those who besiege: they vanish, never read, ask for an upgrade, stop in the middle of a body, come in floods, and try
 * ids of others. They begin and end when they are told to, and then say what they have seen.
 *
 * In a network namespace of its own (`unshare -rn`) the kernel drops the packets to those who vanish. Elsewhere
 * they only stop reading.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { connect, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import { call, headersOf, initialize, makeAsk, type Path, paths } from "./requests.ts"

export interface StrangersOptions {
  readonly port: number
  /** Whether packets can be dropped. */
  readonly namespace: boolean
}

export type ToStrangers =
  | { readonly siege: number }
  | { readonly path: Path; readonly index: number; readonly session: string }

export interface FromStrangers {
  /** How many came, by what they did and what they were answered. */
  readonly came: Readonly<Record<string, number>>
  /** What they were answered that they should not have been. */
  readonly wrong: ReadonlyArray<string>
}

const options: StrangersOptions = JSON.parse(process.argv[2]!)
const ask = makeAsk(options.port)

const came: Record<string, number> = {}
const count = (what: string) => void (came[what] = (came[what] ?? 0) + 1)
const wrong: Array<string> = []

/** The sessions of users, as far as they have leaked. */
const known = new Map<Path, Array<string>>(paths.map((path) => [path, []]))

const stolenFrom = (path: Path): string => {
  const sessions = known.get(path)!.filter((session) => session !== undefined)
  return sessions[Math.floor(Math.random() * sessions.length)] ?? "none"
}

// Those who have vanished don't say so, for as long as this process lives
const vanished: Array<Socket> = []
let made = 0

const open = async (from = "127.0.0.1"): Promise<Socket> => {
  const socket = connect({ port: options.port, host: "127.0.0.1", localAddress: from })
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
  ].join("\r\n") + "\r\n\r\n"

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

/** What it is answered at first: 0 if the server hangs up, or says nothing in half a minute. */
const statusOf = async (socket: Socket): Promise<number> => {
  const said = await Promise.race([
    once(socket, "data").then(String, () => ""),
    once(socket, "close").then(() => "", () => ""),
    sleep(30_000, "", { ref: false })
  ])
  return Number(/^HTTP\/1\.1 (\d+)/.exec(said)?.[1] ?? 0)
}

const beginAs = async (path: Path, token: string) => {
  const begun = await ask(undefined, "POST", path, headersOf(token), initialize)
  // The room may be taken by those who use theirs
  if (begun.status !== 200 && begun.status !== 503) wrong.push(`${path} stranger's initialize: ${begun.status}`)
  return begun.status === 200 ? begun.headers["mcp-session-id"] as string : undefined
}

/** One that takes commands is cheaper than one for each. */
let ip: ChildProcess | undefined

const dropPacketsTo = (address: string) => {
  if (!options.namespace) return
  ip ??= spawn("ip", ["-batch", "-"], { stdio: ["pipe", "ignore", "inherit"] })
  ip.stdin!.write(`route add blackhole ${address}/32 table local\n`)
}

/** Has a stream and a call in flight, and is never heard of again. */
const vanish = async (path: Path) => {
  const number = made++
  const token = `secret-vanished-${number}`
  const session = await beginAs(path, token)
  if (session === undefined) return count("vanish: 503")
  const from = `127.66.${number >> 8}.${number & 255}`
  const stream = await open(from)
  const caller = await open(from)
  write(stream, "GET", path, headersOf(token, session))
  write(caller, "POST", path, headersOf(token, session), call("wait", 1))
  await sleep(100)
  for (const socket of [stream, caller]) socket.pause()
  dropPacketsTo(from)
  count("vanish")
}

/** Asks for more than the kernel keeps for it, piece by piece, and reads none of that. */
const neverRead = async (path: Path) => {
  const token = `secret-deaf-${made++}`
  const session = await beginAs(path, token)
  if (session === undefined) return count("never read: 503")
  const socket = await open()
  socket.pause()
  count("never read")
  const name = path === "/layer" ? "big" : "echo"
  await Promise.all(Array.from({ length: 8 }, async (_, id) => {
    await sleep(200 * id)
    write(socket, "POST", path, headersOf(token, session), call(name, id))
  }))
}

/** Asks for another protocol, and stays. */
const upgrade = async (path: Path) => {
  const socket = await open()
  write(socket, "GET", path, {
    ...headersOf(`secret-upgrade-${made++}`, stolenFrom(path)),
    connection: "Upgrade",
    upgrade: "websocket"
  })
  const status = await statusOf(socket)
  count(`upgrade: ${status}`)
  if (status !== 400) wrong.push(`${path} upgrade: ${status}`)
}

/** Stops in the middle of a body. */
const half = async (path: Path) => {
  const token = `secret-half-${made++}`
  const session = await beginAs(path, token)
  if (session === undefined) return count("half: 503")
  const socket = await open()
  socket.write(
    head("POST", path, { ...headersOf(token, session), "content-type": "application/json", "content-length": "1000" }) +
      "{\"jsonrpc\":"
  )
  const status = await statusOf(socket)
  // Its session may have given way
  if (status !== 408 && status !== 404) wrong.push(`${path} half: ${status}`)
  count(`half: ${status}`)
}

/** Begins a session in a name of its own, and no more. */
const newcomer = async (path: Path) =>
  count(`newcomer: ${await beginAs(path, `secret-newcomer-${made++}`) === undefined ? 503 : 200}`)

/** Tries ids that it has made up or come by, and no token at all. */
const guess = async (path: Path) => {
  const stolen = stolenFrom(path)
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

/** How many of each kind come to each endpoint, a second. Together they ask for more than the users do. */
const kinds = [
  { kind: vanish, rate: 2 },
  { kind: neverRead, rate: 1 },
  { kind: upgrade, rate: 4 },
  { kind: half, rate: 4 },
  { kind: newcomer, rate: 10 },
  { kind: guess, rate: 4 }
]

const besiege = async (duration: number): Promise<void> => {
  const began = performance.now()
  await Promise.all(kinds.flatMap(({ kind, rate }) =>
    paths.flatMap((path) =>
      // Each at a time of its own, whatever becomes of the others
      Array.from({ length: Math.floor(rate * duration / 1000) }, async () => {
        await sleep(Math.random() * duration)
        const after = Math.round(performance.now() - began)
        await kind(path).catch((error) => void wrong.push(`${after} ms ${path} ${kind.name}: ${String(error)}`))
      })
    )
  ))
}

process.on("message", (message: ToStrangers) => {
  if ("siege" in message) {
    void besiege(message.siege).then(() => process.send!({ came, wrong } satisfies FromStrangers))
  } else {
    known.get(message.path)![message.index] = message.session
  }
})

process.once("disconnect", () => {
  ip?.kill()
  process.exit(0)
})
process.send!("ready")
