/**
 * An MCP server over stdio that misbehaves as it is told to: `node stdio.mjs <behaviour…>`.
 *
 *   exit-at-start        exits with 1 before it reads anything
 *   hang-initialize      reads its stdin and never answers
 *   ignore-sigterm       survives SIGTERM
 *   ignore-eof           survives the end of its stdin
 *   stubborn             both of these
 *   grandchild           starts `sleep`, which holds all three pipes open; its pid: tool `grandchild`
 *   detached-grandchild  the same in a session and process group of its own
 *   late-grandchild      the same once its stdin has ended
 *   garbage              prints lines that are no JSON, or no JSON-RPC, on stdout before anything else
 *   flood-stderr         writes 1 MB to stderr with blocking writes before it answers anything
 *
 * Tools, besides those of tools.mjs: `pid`, `grandchild`, `die` (exit 3), `kill` (SIGKILL to itself), `garbage`,
 * `flood` (stderr, blocking), `flood-stdout` (for ever, what is no JSON-RPC), `last-words` (200 notifications, and
 * exits), `close-stdout` (never answers anything again, and lives), `note` (adds a line to a file, and gives its pid
 * after `ms`).
 *
 * With PID_FILE in its environment it appends its pid, and its grandchild's, to that file, one a line: the only way to
 * learn the pid of a server that never gets as far as answering. Whatever happens it is gone after two minutes.
 */
import { spawn } from "node:child_process"
import { appendFileSync, closeSync, writeSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"

const behaviours = new Set(process.argv.slice(2))
const known = new Set([
  "exit-at-start",
  "hang-initialize",
  "ignore-sigterm",
  "ignore-eof",
  "stubborn",
  "grandchild",
  "detached-grandchild",
  "late-grandchild",
  "garbage",
  "flood-stderr"
])
for (const behaviour of behaviours) {
  if (!known.has(behaviour)) throw new Error(`no such behaviour: ${behaviour}`)
}

const announce = (pid) => {
  if (process.env.PID_FILE !== undefined) appendFileSync(process.env.PID_FILE, `${pid}\n`)
}

const garbage = () =>
  writeSync(1, "Server listening, have a nice day\n{\"neither\":\"request\",\"nor\":\"response\"}\n{\"cut off\n")

// Whether the pipe's end is a blocking one depends on the parent and its Node: this write blocks either way.
const writeBlocking = (fd, bytes) => {
  for (let written = 0; written < bytes.length;) {
    try {
      written += writeSync(fd, bytes, written)
    } catch (cause) {
      if (cause.code !== "EAGAIN") throw cause
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
    }
  }
}

const flood = () => writeBlocking(2, Buffer.from(`${"x".repeat(1023)}\n`.repeat(1024)))

const word = (data) => ({ jsonrpc: "2.0", method: "notifications/message", params: { level: "info", data } })

announce(process.pid)
setTimeout(() => process.exit(99), 120_000).unref()

if (behaviours.has("exit-at-start")) process.exit(1)
if (behaviours.has("ignore-sigterm") || behaviours.has("stubborn")) process.on("SIGTERM", () => {})
if (behaviours.has("ignore-eof") || behaviours.has("stubborn")) setInterval(() => {}, 60_000)

let grandchild
const startGrandchild = () => {
  grandchild = spawn("sleep", ["120"], { stdio: "inherit", detached: !behaviours.has("grandchild") })
  // Without this the server would outlive its stdin until its child is gone.
  grandchild.unref()
  announce(grandchild.pid)
}
if (behaviours.has("grandchild") || behaviours.has("detached-grandchild")) startGrandchild()
if (behaviours.has("late-grandchild")) process.stdin.once("end", startGrandchild)
if (behaviours.has("garbage")) garbage()
if (behaviours.has("flood-stderr")) flood()

if (behaviours.has("hang-initialize")) {
  process.stdin.resume()
} else {
  // Two thirds of the time to start, which those do without that never get here
  const { StdioServerTransport, makeCalls, makeServer, text } =
    globalThis.stdioServer ?? await import("./stdioServer.mjs")
  const { server, watch } = makeServer(makeCalls(), {
    pid: { run: () => text(process.pid) },
    grandchild: { run: () => text(grandchild.pid) },
    note: {
      run: async ({ file, line, ms }) => {
        appendFileSync(file, `${line} ${process.pid}\n`)
        await sleep(ms)
        return text(process.pid)
      }
    },
    big: { run: () => text("x".repeat(11 * 1024 * 1024)) },
    die: { run: () => process.exit(3) },
    kill: { run: () => process.kill(process.pid, "SIGKILL") },
    garbage: {
      run: () => {
        garbage()
        return text("done")
      }
    },
    flood: {
      run: () => {
        flood()
        return text("done")
      }
    },
    "flood-stdout": {
      run: () => {
        const more = () => process.stdout.write("{}\n".repeat(10_000), () => setImmediate(more))
        more()
        return new Promise(() => {})
      }
    },
    "last-words": {
      run: () => {
        writeSync(1, Array.from({ length: 200 }, (_, i) => `${JSON.stringify(word(i))}\n`).join(""))
        process.exit(0)
      }
    },
    "close-stdout": {
      run: () => {
        process.stdout.on("error", () => {})
        closeSync(1)
        return text("you will never read this")
      }
    }
  })
  await server.connect(watch(new StdioServerTransport()))
}
