/**
 * A transport over the pipes of a child process, in place of the SDKs' own: it ends when the child exits, not when the
 * last holder of the pipes does, its stderr is always read, and the child's descendants go with it.
 */
import type { ChildProcess } from "node:child_process"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { MessageLike, TransportLike } from "./sdk.ts"
import * as ProcessTree from "./processTree.ts"

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
}

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
    start: async () => {
      if (closed) throw new Error("Connection closed")
    },
    close: async () => close(),
    send: (message: MessageLike) =>
      closed
        ? Promise.reject(new Error("Not connected"))
        : new Promise((resolve, reject) =>
          stdin.write(serialize(message), (error) => error === null || error === undefined ? resolve() : reject(error))
        )
  }

  child.stdout!.on("data", (chunk: Buffer) => {
    if (closed) return
    try {
      readBuffer.append(chunk)
    } catch (error) {
      // More than the SDK's limit of 10 MB in one line: what follows can't be made sense of
      report(error)
      return close()
    }
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
  lines(child, onStderr)
  child.on("error", report)
  stdin.on("error", report)
  child.stdout!.on("error", report)
  // The pipe may hold the child's last words: two turns of the loop read what is there, however long its other holders
  // live. "close" would wait for them.
  child.once("exit", () => setImmediate(() => setImmediate(close)))
  return transport
}

const lines = (child: ChildProcess, onLine: (line: string) => void): void => {
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
}
