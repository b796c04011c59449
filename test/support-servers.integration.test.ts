/**
 * The fixtures do what they say: everything that is tested with them rests on that.
 */
import { mkdtempSync, readFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js"
import { type CallToolResult, CallToolResultSchema } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import { descendants, inGroup, isAlive, survivors } from "./support/processes.ts"

const script = fileURLToPath(new URL("./support/servers/stdio.mjs", import.meta.url))

const textOf = (result: CallToolResult): string => {
  const [block] = result.content
  return block?.type === "text" ? block.text : ""
}

const call = (client: Client, name: string, args: Record<string, unknown> = {}, options = {}) =>
  Effect.promise(async () =>
    textOf(await client.callTool({ name, arguments: args }, CallToolResultSchema, options) as CallToolResult)
  )

const rejection = (promise: Promise<unknown>) =>
  Effect.promise(() => promise.then(() => "it did not reject", (cause: unknown) => String(cause)))

/** A child that is killed when the test ends, however stubborn. */
const stdio = (...behaviours: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const pidFile = join(mkdtempSync(join(tmpdir(), "mcp-fixture-")), "pids")
    const transport = new StdioClientTransport({
      command: process.execPath,
      args: [script, ...behaviours],
      env: { PID_FILE: pidFile },
      stderr: "pipe"
    })
    const client = new Client({ name: "test", version: "1.0.0" })
    const pids = () => readFileSync(pidFile, "utf8").trim().split("\n").map(Number)
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        const alive = pids().filter(isAlive)
        for (const pid of alive) process.kill(pid, "SIGKILL")
        assert.deepStrictEqual(yield* survivors(alive), [])
      })
    )
    return { transport, client, pids, connect: (options = {}) => client.connect(transport, options) }
  })

const connected = (...behaviours: ReadonlyArray<string>) =>
  Effect.tap(stdio(...behaviours), ({ connect }) => Effect.promise(() => connect()))

describe("the stdio fixture", () => {
  it.live("serves tools, and tells its pid and its environment", () =>
    Effect.gen(function*() {
      const { client, pids, transport } = yield* connected()
      assert.strictEqual(yield* call(client, "echo", { message: "hi" }), "hi")
      assert.strictEqual(yield* call(client, "pid"), String(transport.pid))
      assert.strictEqual(yield* call(client, "env", { name: "PATH" }), process.env["PATH"])
      assert.deepStrictEqual(pids(), [transport.pid])
      assert.include(descendants(), transport.pid)
      yield* Effect.promise(() => client.close())
      assert.deepStrictEqual(yield* survivors(pids(), 500), [])
    }))

  it.live("counts the cancels that it gets, reports progress and announces new tools", () =>
    Effect.gen(function*() {
      const { client } = yield* connected()
      const progress: Array<number> = []
      yield* call(client, "slow", { ms: 20 }, {
        onprogress: (event: { progress: number }) => progress.push(event.progress)
      })
      assert.strictEqual(progress.at(-1), 10)
      yield* rejection(
        client.callTool({ name: "slow", arguments: { ms: 5_000 } }, CallToolResultSchema, { timeout: 50 })
      )
      assert.strictEqual(yield* call(client, "cancelled"), "1")
      assert.deepStrictEqual(JSON.parse(yield* call(client, "calls")), {
        started: 2,
        answered: 1,
        cancelled: 1,
        strayCancels: 0
      })
      yield* call(client, "grow", { name: "brand-new" })
      const { tools } = yield* Effect.promise(() => client.listTools())
      assert.include(tools.map((tool) => tool.name), "brand-new")
    }))

  it.live("can exit at start, and hang in initialize", () =>
    Effect.gen(function*() {
      const dead = yield* stdio("exit-at-start")
      assert.include(yield* rejection(dead.connect()), "Connection closed")
      const mute = yield* stdio("hang-initialize")
      assert.include(yield* rejection(mute.connect({ timeout: 400 })), "timed out")
      assert.deepStrictEqual(yield* survivors(mute.pids(), 1_000), [])
    }))

  it.live("can die in the middle of a call, by exit and by signal", () =>
    Effect.gen(function*() {
      for (const tool of ["die", "kill"]) {
        const { client, pids } = yield* connected()
        assert.include(yield* rejection(client.callTool({ name: tool })), "Connection closed")
        assert.deepStrictEqual(yield* survivors(pids(), 500), [])
      }
    }))

  it.live("can ignore SIGTERM and the end of its stdin", () =>
    Effect.gen(function*() {
      const { client, pids } = yield* connected("stubborn")
      const closing = client.close()
      process.kill(pids()[0]!, "SIGTERM")
      assert.lengthOf(yield* survivors(pids(), 500), 1)
      process.kill(pids()[0]!, "SIGKILL")
      yield* Effect.promise(() => closing)
    }))

  it.live("can leave a grandchild behind that holds its pipes, in its group or out of it", () =>
    Effect.gen(function*() {
      for (const [behaviour, sameGroup] of [["grandchild", true], ["detached-grandchild", false]] as const) {
        const { client, pids } = yield* connected(behaviour)
        const grandchild = Number(yield* call(client, "grandchild"))
        const [child] = pids()
        assert.deepStrictEqual(pids(), [child, grandchild])
        assert.deepStrictEqual(descendants(child), [grandchild])
        assert.strictEqual(inGroup(grandchild).includes(grandchild), !sameGroup)
        let closed = false
        Object.assign(client, { onclose: () => void (closed = true) })
        process.kill(child!, "SIGKILL")
        assert.deepStrictEqual(yield* survivors([child!], 1_000), [])
        yield* Effect.sleep(100)
        assert.isTrue(isAlive(grandchild))
        assert.isFalse(closed)
      }
    }))

  it.live("can print garbage on stdout, and deadlock on a stderr that nobody reads", () =>
    Effect.gen(function*() {
      const noisy = yield* connected("garbage")
      yield* call(noisy.client, "garbage")
      assert.strictEqual(yield* call(noisy.client, "echo", { message: "still here" }), "still here")
      const flooding = yield* stdio("flood-stderr")
      const connecting = flooding.connect()
      assert.include(
        yield* Effect.promise(() =>
          Promise.race([connecting, Effect.runPromise(Effect.as(Effect.sleep(700), "deadlock"))])
        ),
        "deadlock"
      )
      flooding.transport.stderr?.on("data", () => {})
      yield* Effect.promise(() => connecting)
    }))

  it.live("can close its stdout and live", () =>
    Effect.gen(function*() {
      const { client, pids } = yield* connected()
      assert.include(
        yield* rejection(client.callTool({ name: "close-stdout" }, CallToolResultSchema, { timeout: 200 })),
        "timed out"
      )
      assert.isTrue(isAlive(pids()[0]!))
    }))
})
