/**
 * A transport over the pipes of a child process, in place of the SDKs' own: it ends when the child exits, not when the
 * last holder of the pipes does, its stderr is always read, and the child's descendants go with it.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { ChildProcess } from "node:child_process"
import * as ProcessTree from "./processTree.ts"
import type { MessageLike, TransportLike } from "./sdk.ts"

/**
 * Cuts a byte stream into messages: the SDK's own `ReadBuffer`.
 */
export interface ReadBufferLike {
  append(chunk: Buffer): void
  readMessage(): unknown
  clear(): void
}

export interface StdioTransport extends TransportLike {
  readonly pid: number
  /** Why it has ended, once that is known. */
  readonly ending: () => Ending | undefined
}

export type Ending =
  | { readonly detail: string }
  | { readonly exitCode: number }
  | { readonly signal: string }

export interface Options {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
  /** Without a limit of its own. */
  readonly readBuffer: ReadBufferLike
  /** A longer message ends the connection. */
  readonly maxMessageBytes: number
  readonly serialize: (message: MessageLike) => string
  /** Each line of stderr, without its end; what goes beyond `stderrLineLimit` characters is dropped. */
  readonly onStderr: (line: string) => void
}

export const stderrLineLimit = 8192

const newline = 10

// What is read in one turn of the loop: a line that is no message costs the SDK half a millisecond, one of stderr its
// search for secrets, and a pipe holds 30,000 of them. Everybody else's timers would wait for that.
const linesATurn = 32

// How long what an exited child has left in its pipes is read, in milliseconds: whoever holds them may still write
const lastLines = 1_000

// How long a child that no longer reads or writes has to exit, in milliseconds, before that is an error of its own: on
// a machine with more to do than it can, an exit comes some 300 after the end of the pipes
const lastWords = 1_000

/**
 * Starts the child. Fails with Node's own error when it can't be started. When the scope closes the whole process tree
 * is gone, after little more than 3.5 seconds at most.
 */
export const make = (options: Options): Effect.Effect<StdioTransport, unknown, Scope.Scope> =>
  Effect.map(
    ProcessTree.make(options.command, options.args, {
      env: options.env,
      cwd: options.cwd,
      stdio: ["pipe", "pipe", "pipe"]
    }),
    (child) => fromChild(child, options)
  )

const fromChild = (
  child: ChildProcess,
  { maxMessageBytes, onStderr, readBuffer, serialize }: Options
): StdioTransport => {
  const stdin = child.stdin!
  let closed = false
  let detail: string | undefined

  const close = () => {
    if (closed) return
    closed = true
    readBuffer.clear()
    // The child's stdin stays open until the process tree has been looked at: see `processTree.ts`
    transport.onclose?.()
  }
  const closeBecause = (why: string) => {
    if (!closed) detail = why
    close()
  }
  const report = (error: unknown) => transport.onerror?.(error instanceof Error ? error : new Error(String(error)))

  const transport: StdioTransport = {
    pid: child.pid!,
    ending: () =>
      detail !== undefined
        ? { detail }
        : child.exitCode !== null
        ? { exitCode: child.exitCode }
        : child.signalCode === null
        ? undefined
        : { signal: child.signalCode },
    start: async () => {
      if (closed) throw new Error("Connection closed")
    },
    close: async () => close(),
    send: (message: MessageLike) =>
      closed
        ? Promise.reject(new Error("Not connected"))
        : new Promise((resolve, reject) =>
          stdin.write(serialize(message), (error) => {
            if (error === null || error === undefined) return resolve()
            // A child that no longer reads is about to exit: with what, and not that its pipe broke, is what it died of
            setTimeout(() => reject(error), lastWords).unref()
          })
        )
  }

  // The SDK's buffer is copied with each chunk, and its limit is for all that it has: it is given one line at a time
  let pending: Array<Buffer> = []
  let size = 0
  let isReading = false
  let isLate = false

  const receive = (line: Buffer) => {
    readBuffer.append(line)
    for (;;) {
      if (closed) return
      try {
        const message = readBuffer.readMessage()
        if (message === null) return readBuffer.clear()
        transport.onmessage?.(message as never)
      } catch (error) {
        report(error)
      }
    }
  }

  const read = (chunk: Buffer): void => {
    let start = 0
    for (let line = 0; start < chunk.length; line++) {
      if (closed) break
      if (line === linesATurn) {
        isReading = true
        child.stdout!.pause()
        return void setImmediate(read, chunk.subarray(start))
      }
      const end = chunk.indexOf(newline, start) + 1
      const piece = chunk.subarray(start, end === 0 ? chunk.length : end)
      pending.push(piece)
      size += piece.length
      if (size - Math.min(end, 1) > maxMessageBytes) {
        pending = []
        // What follows can't be made sense of
        closeBecause(
          `a message of the server was longer than \`maxMessageBytes\` (${maxMessageBytes.toLocaleString("en-US")})`
        )
        break
      }
      if (end === 0) break
      const whole = pending.length === 1 ? piece : Buffer.concat(pending)
      pending = []
      size = 0
      start = end
      receive(whole)
    }
    if (!isReading) return
    isReading = false
    if (!isLate) child.stdout!.resume()
  }
  let chunks = 0
  child.stdout!.on("data", (chunk: Buffer) => {
    chunks++
    read(chunk)
  })
  // It can't answer any more. Most are about to exit, and with what says more than this
  const onDeaf = () => isReading ? void setImmediate(onDeaf) : closeBecause("the server has closed its stdout")
  child.stdout!.once("close", () => void setTimeout(onDeaf, lastWords).unref())
  const stderr = lines(child, onStderr)
  child.on("error", report)
  stdin.on("error", report)
  child.stdout!.on("error", report)
  // The pipes may hold the child's last words: what is there is read in two turns of the loop, and in two more after
  // each piece of it, however long their other holders live. "close" would wait for them.
  const onExit = () => {
    stderr.flush()
    close()
  }
  const onceRead = (turns: number, known: number) => {
    const pieces = chunks + stderr.chunks()
    if (isReading || stderr.isReading()) return void setImmediate(onceRead, 0, pieces)
    if (!isLate && pieces > known) return void setImmediate(onceRead, 0, pieces)
    if (!isLate && turns < 2) return void setImmediate(onceRead, turns + 1, pieces)
    onExit()
  }
  child.once("exit", () => {
    // What has been read by then is made sense of, nothing more is read
    setTimeout(() => {
      isLate = true
      stderr.stop()
    }, lastLines).unref()
    setImmediate(onceRead, 1, chunks + stderr.chunks())
  })
  return transport
}

/**
 * Calls `onLine` with each line of the child's stderr. `flush` does so with the one that has no end yet.
 */
const lines = (
  child: ChildProcess,
  onLine: (line: string) => void
): {
  readonly isReading: () => boolean
  readonly chunks: () => number
  readonly stop: () => void
  readonly flush: () => void
} => {
  const stderr = child.stderr!
  let line = ""
  let isReading = false
  let isStopped = false
  const flush = () => {
    if (line !== "") onLine(line)
    line = ""
  }
  const read = (text: string): void => {
    let start = 0
    for (let count = 0;; count++) {
      if (count === linesATurn) {
        isReading = true
        stderr.pause()
        return void setImmediate(read, text.slice(start))
      }
      const end = text.indexOf("\n", start)
      const piece = end === -1 ? text.slice(start) : text.slice(start, end)
      line = (line + piece).slice(0, stderrLineLimit)
      if (end === -1) break
      flush()
      start = end + 1
    }
    if (!isReading) return
    isReading = false
    if (!isStopped) stderr.resume()
  }
  let chunks = 0
  stderr.setEncoding("utf8")
  stderr.on("data", (text: string) => {
    chunks++
    read(text)
  })
  stderr.on("error", () => {})
  // Not "end": that never comes when the pipe is let go of while somebody still holds its other end
  stderr.once("close", flush)
  const stop = () => {
    isStopped = true
  }
  return { isReading: () => isReading, chunks: () => chunks, stop, flush }
}
