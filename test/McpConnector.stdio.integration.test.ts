import { assert, describe, inject, it } from "@effect/vitest"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import { SessionClosed, Unreachable } from "effect-mcp-sessions/McpSession"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { spawn } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { inspect } from "node:util"
import * as Stdio from "../src/internal/client/stdio.ts"
import { type Generation, generations } from "./support/generations.ts"
import { interruptCalls, interruptedCalls } from "./support/interrupts.ts"
import { underLoad } from "./support/load.ts"
import { descendants, isAlive, survivors } from "./support/processes.ts"
import { makeHandle } from "./support/sessions.ts"
import { temporaryDirectory } from "./support/temporary.ts"
import { call } from "./support/tools.ts"

const stdioServer = inject("stdioServer")
// As it is installed: next to it are the documents that it has as resources
const everything = fileURLToPath(
  new URL("../node_modules/@modelcontextprotocol/server-everything/dist/index.js", import.meta.url)
)

const identity = Identity.fromKey("alice", { credentials: Credentials.bearer("s3cret-token") })

/** The fixture, behaving as told, and the pids of everything that it has started. */
const fixture = (...behaviours: ReadonlyArray<string>) => {
  const pidFile = join(temporaryDirectory("mcp-stdio-"), "pids")
  return {
    options: { command: process.execPath, args: [...stdioServer, ...behaviours], env: { PID_FILE: pidFile } },
    // As npx does it: a shell that waits for the server, and that a signal kills alone
    wrapped: {
      command: "sh",
      args: ["-c", `"${[process.execPath, ...stdioServer].join("\" \"")}" ${behaviours.join(" ")}; true`],
      env: { PID_FILE: pidFile }
    },
    pids: () => existsSync(pidFile) ? readFileSync(pidFile, "utf8").trim().split("\n").map(Number) : []
  }
}

const connectedBy = (connector: Generation) => (options: McpConnector.StdioOptions) =>
  Effect.gen(function*() {
    const handle = makeHandle()
    const scope = yield* Scope.fork(yield* Effect.scope)
    const session = yield* Scope.provide(connector.stdio(options)(identity, handle), scope)
    return { session, handle, close: Scope.close(scope, Exit.void) }
  })

/** Takes 60 ms of each turn of the loop, until the result is called. */
const keepBusy = (): () => void => {
  let next: NodeJS.Immediate
  const work = () => {
    const until = performance.now() + 60
    while (performance.now() < until);
    next = setImmediate(work)
  }
  work()
  return () => clearImmediate(next)
}

// Most of the time is spent waiting for stubborn processes, so all wait at once
for (const [sdk, connector] of generations) {
  describe(`stdio with ${sdk}`, { concurrent: true }, () => {
    const connected = connectedBy(connector)

    it.live("works with the reference server", () =>
      Effect.gen(function*() {
        const { close, handle, session } = yield* connected({ command: process.execPath, args: [everything] })
        assert.strictEqual(session.serverInfo.name, "mcp-servers/everything")
        assert.isTrue(isAlive(session.pid!))
        assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "Echo: hi")
        assert.include((yield* session.listTools()).tools.map((tool) => tool.name), "echo")
        assert.isAbove((yield* session.listResources()).resources.length, 0)
        assert.isAbove((yield* session.listResourceTemplates()).resourceTemplates.length, 0)
        assert.isAbove((yield* session.listPrompts()).prompts.length, 0)
        const [resource] = (yield* session.listResources()).resources
        assert.isAbove((yield* session.readResource({ uri: resource!.uri })).contents.length, 0)
        assert.isAbove((yield* session.getPrompt({ name: "simple-prompt" })).messages.length, 0)
        const completion = yield* session.complete({
          ref: { type: "ref/prompt", name: "completable-prompt" },
          argument: { name: "department", value: "E" }
        })
        assert.include(completion.completion.values, "Engineering")
        yield* session.setLoggingLevel("error")
        yield* session.subscribeResource({ uri: resource!.uri })
        yield* session.unsubscribeResource({ uri: resource!.uri })
        yield* session.ping()
        yield* close
        assert.isFalse(isAlive(session.pid!))
        assert.deepStrictEqual(handle.retired, [])
      }))

    describe("connecting", () => {
      it.live("to a command that does not exist fails with Unreachable, and nothing was sent", () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(connected({ command: "no-such-command" }))
          assert.deepStrictEqual(error.reason, new Unreachable({ code: "ENOENT", requestSent: false }))
          assert.strictEqual(error.method, "connect")
          assert.strictEqual(error.server, "no-such-command")
        }))

      it.live("to a server that exits when it is asked fails with the last words of that very child", () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(connected({
            command: process.execPath,
            args: ["-e", "process.stdin.once('data', () => process.stderr.write('bye', () => process.exit(7)))"]
          }))
          assert.deepInclude(error.reason, { _tag: "SessionClosed", exitCode: 7, stderr: "bye" })
        }))

      it.live("to a server that exits at start fails with its exit code and last words, and may be repeated", () => {
        const lines: Array<string> = []
        const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel} ${String(message)}`))
        return Effect.gen(function*() {
          const error = yield* Effect.flip(connected({
            command: process.execPath,
            args: [
              "-e",
              "console.error('no database\\ntoken s3cret-token'); process.stderr.write('bye'); process.exitCode = 7"
            ]
          }))
          assert.deepStrictEqual(
            error.reason,
            new SessionClosed({ requestSent: false, exitCode: 7, stderr: "no database\ntoken <redacted>\nbye" })
          )
          assert.include(error.message, "exited with code 7")
          assert.include(error.message, "repeating this is safe")
          assert.deepStrictEqual(lines, [`Warn ${error.message}`])
        }).pipe(Effect.provide(Logger.layer([logger])))
      })

      it.live("to a server that is killed at start fails with the signal", () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(connected({
            command: process.execPath,
            args: ["-e", "process.kill(process.pid, 'SIGKILL')"]
          }))
          assert.deepStrictEqual(error.reason, new SessionClosed({ requestSent: false, signal: "SIGKILL" }))
        }).pipe(Effect.provide(Logger.layer([]))))

      it.live("with a NUL in an environment variable fails without quoting it, and nothing was sent", () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(connected({
            command: "cat",
            env: () => ({ API_KEY: "s3cret-\0-word" })
          }))
          assert.strictEqual(error.reason._tag, "PreparationFailed")
          assert.isFalse(error.reason.requestSent)
          assert.notMatch(`${error.message} ${inspect(error, { depth: 9 })} ${JSON.stringify(error)}`, /s3cret|-word/)
        }).pipe(Effect.provide(Logger.layer([]))))

      it.live("with an env that fails tells of it, and starts nothing", () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(connected({ command: "cat", env: () => Effect.fail({ _tag: "NoVault" }) }))
          assert.strictEqual(error.reason._tag, "PreparationFailed")
          assert(error.reason._tag === "PreparationFailed")
          assert.strictEqual(error.reason.option, "env")
          assert.deepStrictEqual(Redacted.value(error.reason.cause), { _tag: "NoVault" })
          assert.isFalse(error.reason.requestSent)
        }).pipe(Effect.provide(Logger.layer([]))))

      it.live("to a server that hangs ends with its deadline, and with the process", () =>
        Effect.gen(function*() {
          const { options, pids } = fixture("hang-initialize")
          const error = yield* Effect.flip(connected({ ...options, connectTimeout: "400 millis" }))
          assert.strictEqual(error.reason._tag, "RequestTimeout")
          assert.deepStrictEqual(pids().filter(isAlive), [])
        }))

      it.live("can be interrupted, and the process is gone by then", () =>
        Effect.gen(function*() {
          const { options, pids } = fixture("hang-initialize", "stubborn")
          const fiber = yield* Effect.forkChild(connected(options))
          while (pids().length === 0) yield* Effect.sleep(10)
          yield* Fiber.interrupt(fiber)
          assert.deepStrictEqual(pids().filter(isAlive), [])
        }))

      it.live("survives garbage on stdout and a flood on stderr", () =>
        Effect.gen(function*() {
          const { session } = yield* connected(fixture("garbage", "flood-stderr").options)
          yield* call(session, "flood")
          yield* call(session, "garbage")
          assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
        }))
    })

    describe("a session", () => {
      it.live("times out under a flood of lines that are no messages, which holds up nobody's timers", () =>
        Effect.gen(function*() {
          const { session } = yield* connected(fixture().options)
          const other = yield* connected(fixture().options)
          const flooded = yield* Effect.forkChild(
            Effect.flip(session.callTool({ name: "flood-stdout" }, { timeout: "500 millis" })),
            { startImmediately: true }
          )
          assert.strictEqual((yield* Fiber.join(flooded)).reason._tag, "RequestTimeout")
          assert.strictEqual(yield* call(other.session, "echo", { message: "hi" }), "hi")
          // It would go on until it is told to end for the second time
          process.kill(session.pid!, "SIGKILL")
        }))

      for (const [when, busy] of [["however much that is", false], ["also in a process that is busy", true]] as const) {
        it.live(`reads what its child said last, ${when}`, () =>
          Effect.gen(function*() {
            const { session } = yield* connected(fixture().options)
            const last = session.notifications.pipe(
              Stream.filter(({ method, params }) => method === "notifications/message" && params.data === 199),
              Stream.runHead
            )
            const listening = yield* Effect.forkChild(last, { startImmediately: true })
            if (busy) yield* Effect.acquireRelease(Effect.sync(keepBusy), (stop) => Effect.sync(stop))
            yield* Effect.flip(call(session, "last-words"))
            assert.isTrue(Option.isSome(yield* Fiber.join(listening).pipe(Effect.timeoutOption("5 seconds"))))
          }))
      }

      it.live("is retired when its child is killed, without a call", () =>
        Effect.gen(function*() {
          const { handle, session } = yield* connected(fixture().options)
          process.kill(session.pid!, "SIGKILL")
          assert.strictEqual(yield* Effect.promise(() => handle.whenRetired), "died")
        }))

      it.live("fails its calls the moment that its child dies, even if a grandchild holds the pipes", () =>
        Effect.gen(function*() {
          for (const behaviours of [[], ["grandchild"]]) {
            for (const tool of ["die", "kill"]) {
              const { handle, session } = yield* connected(fixture(...behaviours).options)
              const slow = yield* Effect.forkChild(Effect.flip(call(session, "slow", { ms: 60_000 })), {
                startImmediately: true
              })
              const error = yield* Effect.flip(call(session, tool))
              const ending = tool === "die" ? { exitCode: 3 } : { signal: "SIGKILL" }
              assert.deepStrictEqual(error.reason, new SessionClosed({ requestSent: true, ...ending }))
              assert.deepStrictEqual((yield* Fiber.join(slow)).reason, error.reason)
              assert.include(handle.retired, "died")
              const late = yield* Effect.flip(call(session, "echo", { message: "hi" }))
              assert.deepStrictEqual(late.reason, new SessionClosed({ requestSent: false, ...ending }))
            }
          }
        }))

      it.live("that is closed fails a call in flight at once, however long its child takes", () =>
        Effect.gen(function*() {
          const { close, session } = yield* connected(fixture("stubborn").options)
          const fiber = yield* Effect.forkChild(Effect.flip(call(session, "slow", { ms: 60_000 })), {
            startImmediately: true
          })
          assert.strictEqual(JSON.parse(yield* call(session, "calls")).started, 1)
          const closing = yield* Effect.forkChild(close)
          const error = yield* Fiber.join(fiber)
          assert.deepStrictEqual(error.reason, new SessionClosed({ requestSent: true }))
          assert.isTrue(isAlive(session.pid!), "the child is still there when the call has failed")
          yield* Fiber.join(closing)
        }))

      it.live("that stops answering is found out by two timeouts and a probe", () =>
        Effect.gen(function*() {
          const { handle, session } = yield* connected({ ...fixture().options, requestTimeout: "100 millis" })
          process.kill(session.pid!, "SIGSTOP")
          yield* Effect.flip(call(session, "echo", { message: "1" }))
          yield* Effect.flip(call(session, "echo", { message: "2" }))
          assert.strictEqual(yield* Effect.promise(() => handle.whenRetired), "unhealthy")
        }))

      it.live("whose server has closed its stdout, and lives, ends at once", () =>
        Effect.gen(function*() {
          const { close, handle, session } = yield* connected(fixture().options)
          const pid = session.pid!
          const error = yield* Effect.flip(call(session, "close-stdout"))
          assert.deepStrictEqual(
            error.reason,
            new SessionClosed({ requestSent: true, detail: "the server has closed its stdout" })
          )
          assert.deepStrictEqual(handle.retired, ["died"])
          assert.isTrue(isAlive(pid), "nothing else would have told")
          const late = yield* Effect.flip(call(session, "echo", { message: "hi" }))
          assert.isFalse(late.reason.requestSent)
          yield* close
          assert.isFalse(isAlive(pid))
        }))

      it.live(
        `survives ${
          interruptedCalls.toLocaleString("en")
        } calls that are interrupted at random, and the server hears of each that it has begun`,
        () =>
          Effect.gen(function*() {
            const { session } = yield* connected(fixture().options)
            yield* interruptCalls(connector, session, 50)
            // What is still on its way is ahead of this call in the pipe
            const calls = JSON.parse(yield* call(session, "calls"))
            assert.strictEqual(calls.answered + calls.cancelled, calls.started)
            const fiber = yield* Effect.forkChild(call(session, "slow", { ms: 60_000 }), { startImmediately: true })
            yield* call(session, "echo", { message: "after it in the pipe" })
            yield* Fiber.interrupt(fiber)
            assert.strictEqual(JSON.parse(yield* call(session, "calls")).cancelled, calls.cancelled + 1)
            assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
          }),
        underLoad
      )

      it.live("hands on each progress before the result", () =>
        Effect.gen(function*() {
          const { session } = yield* connected(fixture().options)
          const progress: Array<number> = []
          yield* session.callTool({ name: "slow", arguments: { ms: 100 } }, {
            onProgress: (event) => Effect.sync(() => void progress.push(event.progress))
          })
          assert.deepStrictEqual(progress, [1, 2, 3, 4, 5, 6, 7, 8, 9])
        }))

      it.live("asks again for its tools once the server says that they have changed", () =>
        Effect.gen(function*() {
          const { session } = yield* connected(fixture().options)
          const names = Effect.map(session.listTools(), ({ tools }) => tools.map((tool) => tool.name))
          assert.notInclude(yield* names, "brand-new")
          yield* call(session, "grow", { name: "brand-new" })
          assert.include(yield* names, "brand-new")
        }))

      it.live("answers the server's requests with the connector's handlers and services", () =>
        Effect.gen(function*() {
          const { session } = yield* connected({
            ...fixture().options,
            sampling: ({ messages }, { key }) => {
              const content = messages[0]!.content
              const text = !Array.isArray(content) && content.type === "text" ? `${key}: ${content.text}` : ""
              return Effect.succeed({ role: "assistant", model: "none", content: { type: "text", text } })
            },
            elicitation: ({ message }) => Effect.succeed({ action: "accept", content: { name: message } }),
            roots: ({ key }) => Effect.succeed([{ uri: `file:///home/${key}` }])
          })
          assert.strictEqual(yield* call(session, "sample", { prompt: "hi" }), "alice: hi")
          assert.include(yield* call(session, "elicit", { message: "who?" }), "who?")
          assert.strictEqual(yield* call(session, "roots"), "file:///home/alice")
        }))

      it.live("that is closed interrupts a handler at once, however long its child takes", () =>
        Effect.gen(function*() {
          const started = yield* Deferred.make<void>()
          const interrupted = yield* Deferred.make<void>()
          const { close, session } = yield* connected({
            ...fixture("stubborn").options,
            roots: () =>
              Deferred.succeed(started, undefined).pipe(
                Effect.andThen(Effect.never),
                Effect.onInterrupt(() => Deferred.succeed(interrupted, undefined))
              )
          })
          const fiber = yield* Effect.forkChild(Effect.flip(call(session, "roots")))
          yield* Deferred.await(started)
          const closing = yield* Effect.forkChild(close)
          yield* Deferred.await(interrupted)
          assert.isTrue(isAlive(session.pid!), "the child is still there when the handler has been interrupted")
          yield* Fiber.join(closing)
          assert.deepStrictEqual((yield* Fiber.join(fiber)).reason, new SessionClosed({ requestSent: true }))
        }).pipe(Effect.provide(Logger.layer([]))))

      it.live("tells the server nothing of why a handler failed, and the log no credentials", () => {
        const lines: Array<string> = []
        const logger = Logger.make(({ cause, message }) => void lines.push(`${String(message)} ${Cause.pretty(cause)}`))
        return Effect.gen(function*() {
          const { session } = yield* connected({
            ...fixture().options,
            roots: () => Effect.fail("the database password is hunter2, the token s3cret-token")
          })
          const error = yield* Effect.flip(call(session, "roots"))
          assert.include(error.message, "could not answer")
          assert.notInclude(error.message, "hunter2")
          assert.include(lines.join(), "the token <redacted>")
          assert.notInclude(lines.join(), "s3cret-token")
        }).pipe(Effect.provide(Logger.layer([logger])))
      })
    })

    it.live("gives the child the safe variables and the identity's own", () =>
      Effect.gen(function*() {
        process.env["MCP_TEST_PRIVATE"] = "of the parent"
        const { session } = yield* connected({
          command: process.execPath,
          args: stdioServer,
          env: ({ key }) => Effect.succeed({ WHO: key })
        })
        assert.strictEqual(yield* call(session, "env", { name: "WHO" }), "alice")
        assert.strictEqual(yield* call(session, "env", { name: "PATH" }), process.env["PATH"])
        assert.strictEqual(yield* call(session, "env", { name: "MCP_TEST_PRIVATE" }), "")
      }))

    it.live("ends the session with the reason when a message is longer than 10 MiB", () =>
      Effect.gen(function*() {
        const { handle, session } = yield* connected(fixture().options)
        const error = yield* Effect.flip(call(session, "big"))
        assert(error.reason._tag === "SessionClosed")
        assert.include(error.reason.detail, "`maxMessageBytes` (10,485,760)")
        assert.include(error.message, "10,485,760")
        assert.isTrue(error.reason.requestSent)
        assert.deepStrictEqual(handle.retired, ["died"])
      }))

    it.live("takes messages of as many bytes as the connector says, and none that is longer", () =>
      Effect.gen(function*() {
        const { session: patient } = yield* connected({ ...fixture().options, maxMessageBytes: 32 * 1024 * 1024 })
        assert.isAbove((yield* call(patient, "big")).length, 10 * 1024 * 1024)
        const answer = (length: number) => call(patient, "echo", { message: "é".repeat(length) })
        assert.strictEqual((yield* answer(1_000)).length, 1_000)

        const { session } = yield* connected({ ...fixture().options, maxMessageBytes: 20_000 })
        // Each is short, whatever comes in one piece
        yield* Effect.forEach(
          Array.from({ length: 20 }, () => "x".repeat(10_000)),
          (message) => call(session, "echo", { message }),
          { concurrency: "unbounded" }
        )
        const error = yield* Effect.flip(call(session, "echo", { message: "é".repeat(10_000) }))
        assert(error.reason._tag === "SessionClosed")
        assert.include(error.reason.detail, "`maxMessageBytes` (20,000)")
      }))

    it.live("keeps a secret out of errors and logs that is in the name of the command's file", () => {
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      return Effect.gen(function*() {
        const directory = temporaryDirectory("mcp-command-")
        const commands: ReadonlyArray<readonly [file: string, rest: Partial<McpConnector.StdioOptions>]> = [
          ["sk-live-4eC39HqLyjWDarjtT1zdp7dc", {}],
          ["run-s3cret-token", {}],
          ["run-as-hunter", { env: { DB_PASSWORD: "hunter" } }],
          ["run-as-hunter", { args: ["--password", "hunter"] }]
        ]
        for (const [file, rest] of commands) {
          const error = yield* Effect.flip(connected({ command: join(directory, file), ...rest }))
          assert.notMatch(inspect(error, { depth: 9 }), /4eC39|s3cret|hunter/)
        }
        const known = yield* Effect.flip(connected({ command: join(directory, "mcp-server-x86_64-linux") }))
        assert.strictEqual(known.server, "mcp-server-x86_64-linux")
        assert.isAbove(lines.length, 0)
        for (const line of lines) assert.notMatch(line, /4eC39|s3cret|hunter/)
      }).pipe(Effect.provide(Logger.layer([logger])))
    })

    it.live("keeps the token out of errors and logs, however much else the child was given", () => {
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      return Effect.gen(function*() {
        const error = yield* Effect.flip(connected({
          command: process.execPath,
          args: [
            "-e",
            "console.error('production', 's3cret-token', process.env.KEY_0, encodeURIComponent(process.env.KEY_39))"
          ],
          env: {
            NODE_ENV: "production",
            ...Object.fromEntries(Array.from({ length: 40 }, (_, index) => [`KEY_${index}`, `=secret/${index}=`]))
          }
        }))
        assert.include(error.message, "production <redacted> <redacted> <redacted>")
        assert.isAbove(lines.length, 0)
        for (const line of lines) assert.notMatch(line, /s3cret|secret/)
      }).pipe(Effect.provide(Logger.layer([logger])), Effect.provideService(References.MinimumLogLevel, "Debug"))
    })

    it.live("logs the child's stderr at debug level, without credentials", () => {
      // When it is asked: to write to one that has left already fails, which is logged too
      const saysAndLeaves = `process.stdin.once("data", () => {
        console.error("token s3cret-token", process.env.API_KEY)
        process.stderr.write("last words", () => process.exit())
      })`
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => {
        if (logLevel === "Debug") lines.push(`${logLevel} ${String(message)}`)
      })
      return Effect.gen(function*() {
        const { close } = yield* connected({
          command: process.execPath,
          args: ["-e", saysAndLeaves],
          env: { API_KEY: "sk-0123456789" }
        }).pipe(Effect.catch(() => Effect.succeed({ close: Effect.void })))
        yield* close
        // The second generation starts a server once more that has exited on the question for its version
        const once = ["Debug token <redacted> <redacted>", "Debug last words"]
        const expected = connector === McpConnectorV2 ? [...once, ...once] : once
        while (lines.length < expected.length) yield* Effect.sleep(10)
        assert.deepStrictEqual(lines, expected)
      }).pipe(
        Effect.provide(Logger.layer([logger])),
        Effect.provideService(References.MinimumLogLevel, "Debug")
      )
    })
  })
}

// What is of neither SDK, but of this package, is shown with one of them
describe("stdio", { concurrent: true }, () => {
  describe("leaves nothing behind", () => {
    const cases: ReadonlyArray<readonly [string, McpConnector.StdioOptions, () => ReadonlyArray<number>]> = [
      ["a well-behaved server", [], false] as const,
      ["a server behind a shell", [], true] as const,
      ["a server that ignores the end of its stdin and SIGTERM", ["stubborn"], false] as const,
      ["a stubborn server behind a shell", ["stubborn"], true] as const,
      ["a grandchild that holds the pipes", ["grandchild"], false] as const,
      ["a grandchild that has left the process group", ["detached-grandchild"], false] as const
    ].map(([name, behaviours, isWrapped]) => {
      const { options, pids, wrapped } = fixture(...behaviours)
      return [name, isWrapped ? wrapped : options, pids] as const
    })
    for (const [name, options, pids] of cases) {
      it.live(`of ${name}`, () =>
        Effect.gen(function*() {
          const { close, session } = yield* connectedBy(McpConnector)(options)
          assert.strictEqual(yield* call(session, "echo", { message: "hi" }), "hi")
          const started = [session.pid!, ...descendants(session.pid), ...pids()]
          yield* close
          assert.deepStrictEqual(started.filter(isAlive), [])
        }))
    }

    for (const tool of ["die", "kill"]) {
      it.live(`outside of the process group of a server that has crashed (${tool}), and ends nobody else's`, () =>
        Effect.gen(function*() {
          const { options, pids } = fixture("detached-grandchild")
          const { close, session } = yield* connectedBy(McpConnector)(options)
          const other = yield* connectedBy(McpConnector)(options)
          const ofOther = Number(yield* call(other.session, "grandchild"))
          yield* Effect.flip(call(session, tool))
          yield* close
          assert.sameMembers(pids().filter(isAlive), [other.session.pid!, ofOther])
        }))
    }

    it.live("of what a server starts outside of its process group when it is asked to go", () =>
      Effect.gen(function*() {
        const { options, pids } = fixture("late-grandchild")
        const { close } = yield* connectedBy(McpConnector)(options)
        yield* close
        assert.strictEqual(pids().length, 2)
        assert.deepStrictEqual(pids().filter(isAlive), [])
      }))

    it.live("where servers start servers: a child has the marks of all whose tree it belongs to", () =>
      Effect.gen(function*() {
        const name = "EFFECT_MCP_PROCESS_TREE"
        yield* Effect.acquireRelease(
          Effect.sync(() => void (process.env[name] = "outer")),
          () => Effect.sync(() => void delete process.env[name])
        )
        const { session } = yield* connectedBy(McpConnector)({ ...fixture().options, env: { [name]: "a user's" } })
        assert.match(yield* call(session, "env", { name }), /^outer [-0-9a-f]{36}$/)
      }))
  })

  it.live("reads a flood on stderr a few lines at a time, and all of it", () =>
    Effect.gen(function*() {
      const ended = yield* Deferred.make<void>()
      let count = 0
      let inTurn = 0
      let most = 0
      yield* Stdio.make({
        command: process.execPath,
        args: ["-e", "process.stderr.write('x\\n'.repeat(20000) + 'the end')"],
        env: {},
        cwd: undefined,
        readBuffer: { append: () => {}, readMessage: () => null, clear: () => {} },
        maxMessageBytes: 1_000,
        serialize: JSON.stringify,
        onStderr: (line) => {
          count++
          if (inTurn === 0) setImmediate(() => inTurn = 0)
          most = Math.max(most, ++inTurn)
          if (line === "the end") Deferred.doneUnsafe(ended, Exit.void)
        }
      })
      yield* Deferred.await(ended)
      assert.strictEqual(count, 20_001)
      assert.isAtMost(most, 64)
    }))

  it.live("leaves nothing behind when this process exits without closing its sessions", () =>
    Effect.gen(function*() {
      const output = yield* Effect.callback<string>((resume) => {
        const parent = spawn(process.execPath, [inject("programs").exits, ...stdioServer], {
          stdio: ["ignore", "pipe", "inherit"]
        })
        let text = ""
        parent.stdout.on("data", (chunk) => {
          text += chunk
        })
        parent.on("close", () => resume(Effect.succeed(text)))
      })
      const pids = output.trim().split(" ").map(Number)
      assert.strictEqual(pids.length, 2)
      assert.deepStrictEqual(yield* survivors(pids, 1_000), [])
    }))
})
