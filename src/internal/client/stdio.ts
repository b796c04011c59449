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
  readonly readBuffer: ReadBufferLike
  readonly serialize: (message: MessageLike) => string
  /** Each line of stderr, without its end; what goes beyond `stderrLineLimit` characters is dropped. */
  readonly onStderr: (line: string) => void
}

export const stderrLineLimit = 8192

// Of the SDK's buffer, in bytes
const messageLimit = 10 * 1024 * 1024

const newline = 10

// How long a child that no longer reads has to exit, in milliseconds, before that is an error of its own
const lastWords = 250

/**
 * Starts the child. Fails with Node's own error when it can't be started. When the scope closes the whole process tree
 * is gone, after at most 3.5 seconds.
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

const fromChild = (child: ChildProcess, { onStderr, readBuffer, serialize }: Options): StdioTransport => {
  const stdin = child.stdin!
  let closed = false
  let isOverfull = false

  const close = () => {
    if (closed) return
    closed = true
    readBuffer.clear()
    // The child's stdin stays open until the process tree has been looked at: see `processTree.ts`
    transport.onclose?.()
  }
  const report = (error: unknown) => transport.onerror?.(error instanceof Error ? error : new Error(String(error)))

  const transport: StdioTransport = {
    pid: child.pid!,
    ending: () =>
      isOverfull
        ? { detail: "a message of the server was longer than the SDK's limit of 10 MiB" }
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

  // The SDK's buffer is copied with each chunk, so it is given whole lines
  let pending: Array<Buffer> = []
  let pendingSize = 0

  child.stdout!.on("data", (chunk: Buffer) => {
    if (closed) return
    const end = chunk.lastIndexOf(newline) + 1
    pendingSize += chunk.length
    if (end === 0 && pendingSize <= messageLimit) return void pending.push(chunk)
    try {
      readBuffer.append(Buffer.concat([...pending, end === 0 ? chunk : chunk.subarray(0, end)]))
    } catch (error) {
      // What follows can't be made sense of
      isOverfull = true
      pending = []
      report(error)
      return close()
    }
    pending = [chunk.subarray(end)]
    pendingSize = chunk.length - end
    for (;;) {
      if (closed) return
      try {
        const message = readBuffer.readMessage()
        if (message === null) return
        transport.onmessage?.(message as never)
      } catch (error) {
        report(error)
      }
    }
  })
  const flushLines = lines(child, onStderr)
  child.on("error", report)
  stdin.on("error", report)
  child.stdout!.on("error", report)
  // The pipe may hold the child's last words: two turns of the loop read what is there, however long its other holders
  // live. "close" would wait for them.
  const onExit = () => {
    flushLines()
    close()
  }
  child.once("exit", () => setImmediate(() => setImmediate(onExit)))
  return transport
}

/**
 * Calls `onLine` with each line of the child's stderr. The result does so with the one that has no end yet.
 */
const lines = (child: ChildProcess, onLine: (line: string) => void): () => void => {
  let line = ""
  const flush = () => {
    if (line !== "") onLine(line)
    line = ""
  }
  child.stderr!.setEncoding("utf8")
  child.stderr!.on("data", (chunk: string) => {
    const [rest, ...more] = chunk.split("\n")
    line = (line + rest).slice(0, stderrLineLimit)
    for (const next of more) {
      flush()
      line = next.slice(0, stderrLineLimit)
    }
  })
  child.stderr!.on("error", () => {})
  // Not "end": that never comes when the pipe is let go of while somebody still holds its other end
  child.stderr!.once("close", flush)
  return flush
}
