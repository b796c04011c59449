import { assert, describe, inject, it } from "@effect/vitest"
import type { StdioOptions } from "effect-mcp-sessions/Connector"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import type { McpSessionError } from "effect-mcp-sessions/McpSession"
import { Tag } from "effect-mcp-sessions/SessionPool"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { type AnyConnector, type AnySession, generations } from "./support/generations.ts"
import { isAlive, survivors } from "./support/processes.ts"
import { makeHandle } from "./support/sessions.ts"
import { temporaryDirectory } from "./support/temporary.ts"
import { call } from "./support/tools.ts"

class Pool extends Tag<Pool, AnySession, McpSessionError>()("test/Pool") {}

const user = (name: string) => Identity.fromKey(name, { credentials: Credentials.bearer(`s3cret-token-of-${name}`) })
const [alice, bob] = [user("alice"), user("bob")]

/** The fixture, behaving as told, and the pids of everything that it has started. */
const fixture = (...behaviours: ReadonlyArray<string>) => {
  const pidFile = join(temporaryDirectory("mcp-standby-"), "pids")
  return {
    options: { command: process.execPath, args: [...inject("stdioServer"), ...behaviours], env: { PID_FILE: pidFile } },
    pids: () => existsSync(pidFile) ? readFileSync(pidFile, "utf8").trim().split("\n").map(Number) : []
  }
}

const until = (isSo: () => boolean) =>
  Effect.gen(function*() {
    while (!isSo()) yield* Effect.sleep(5)
  }).pipe(Effect.timeout("20 seconds"), Effect.orDie)

const open = Effect.fnUntraced(function*(connect: AnyConnector) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const pool = Context.get(yield* Layer.buildWithScope(Pool.layer({ connect, capacity: 2 }), scope), Pool)
  const ready = (count: number) => until(() => Effect.runSync(pool.stats).standby === count)
  return { pool, ready, close: Scope.close(scope, Exit.void) }
})

for (const [sdk, connector] of generations) {
  describe(`children on standby with ${sdk}`, { concurrent: true }, () => {
    it.live("start with the layer, are taken each by one identity, and end with the layer", () =>
      Effect.gen(function*() {
        const { options, pids } = fixture()
        const { close, pool, ready } = yield* open(connector.stdio({ ...options, standby: { size: 2 } }))
        yield* ready(2)
        const first = pids()
        assert.strictEqual(first.length, 2)
        const { size, standby } = yield* pool.stats
        assert.deepStrictEqual({ size, standby }, { size: 0, standby: 2 }, "they have no place of the pool's")
        yield* Effect.scoped(Effect.gen(function*() {
          const [a, b] = [yield* pool.get(alice), yield* pool.get(bob)]
          assert.sameMembers([a.pid, b.pid], first)
          assert.strictEqual(a.identity, alice)
          assert.strictEqual(b.identity, bob)
          assert.strictEqual(yield* call(a, "echo", { message: "hi" }), "hi")
          assert.strictEqual(yield* call(b, "echo", { message: "ho" }), "ho")
        }))
        yield* ready(2)
        assert.strictEqual(pids().length, 4)
        yield* close
        assert.deepStrictEqual(yield* survivors(pids()), [])
      }))

    it.live("know nothing of who was there before: lists, notifications and handles are the owner's own", () =>
      Effect.gen(function*() {
        const { options } = fixture()
        const { pool, ready } = yield* open(connector.stdio({ ...options, standby: { size: 1 } }))
        yield* ready(1)
        yield* pool.withSession(
          alice,
          (session) => Effect.andThen(call(session, "grow", { name: "private" }), session.listTools())
        )
        yield* ready(1)
        const names = yield* pool.withSession(bob, (session) => session.listTools())
        assert.notInclude(names.tools.map(({ name }) => name), "private")
        const pid = yield* pool.withSession(bob, (session) => Effect.succeed(session.pid!))
        process.kill(pid, "SIGKILL")
        yield* until(() => Effect.runSync(pool.stats).size === 1)
        assert.deepStrictEqual((yield* pool.stats).keys, [alice.key])
      }))

    it.live("are warmed up before anybody has them, and those that can't be are closed", () => {
      const lines: Array<string> = []
      const logger = Logger.map(Logger.formatJson, (line) => void lines.push(line))
      return Effect.gen(function*() {
        const { options, pids } = fixture()
        const warmed: Array<number> = []
        const { pool, ready } = yield* open(connector.stdio({
          ...options,
          standby: {
            size: 1,
            warmUp: (session) => {
              warmed.push(session.pid!)
              if (warmed.length === 1) return Effect.fail(new Error("s3cret of a call"))
              if (warmed.length === 2) throw new Error("s3cret of a call")
              return session.callTool({ name: "grow", arguments: { name: "warm" } })
            }
          }
        }))
        yield* ready(1)
        const { names, pid } = yield* pool.withSession(
          alice,
          (session) =>
            Effect.map(session.listTools(), ({ tools }) => ({ names: tools.map(({ name }) => name), pid: session.pid }))
        )
        assert.include(names, "warm")
        assert.strictEqual(pid, warmed[2])
        assert.deepStrictEqual(yield* survivors(pids().slice(0, 2)), [])
        assert.deepStrictEqual(
          lines.map((line) => JSON.parse(line)).map(({ level, message }) => [level, message[0]]),
          [["WARN", "A child on standby could not be warmed up"], ["WARN", "A child on standby could not be warmed up"]]
        )
        assert.notInclude(lines.join(), "s3cret")
      }).pipe(Effect.provide(Logger.layer([logger])))
    })

    it.live("that crash at start are no spawn loop, and callers are told", () =>
      Effect.gen(function*() {
        const { options, pids } = fixture("exit-at-start")
        const clock = yield* Clock.Clock
        const waits: Array<number> = []
        const { pool } = yield* open(connector.stdio({ ...options, standby: { size: 5 } })).pipe(
          Effect.provideService(
            Clock.Clock,
            Object.assign(Object.create(clock) as Clock.Clock, {
              sleep: (duration: Duration.Duration) => {
                waits.push(Duration.toMillis(duration))
                return clock.sleep(duration)
              }
            })
          )
        )
        const backoffs = () => waits.filter((millis) => millis < 500)
        yield* until(() => backoffs().length === 3)
        assert.deepStrictEqual(backoffs(), [100, 200, 400])
        // Three have been tried, and the second generation tries each in two ways
        assert.include([3, 6], pids().length)
        const error = yield* Effect.flip(pool.withSession(alice, () => Effect.void))
        assert.strictEqual(error._tag === "McpSessionError" ? error.reason._tag : "", "SessionClosed")
      }).pipe(Effect.provide(Logger.layer([]))))

    it.live("ask their owner what the server asks", () =>
      Effect.gen(function*() {
        const asked: Array<string> = []
        const { options } = fixture()
        const { pool, ready } = yield* open(connector.stdio({
          ...options,
          standby: { size: 1 },
          elicitation: (_, identity) =>
            Effect.sync(() => {
              asked.push(identity.key)
              return { action: "decline" as const }
            })
        }))
        yield* ready(1)
        yield* pool.withSession(bob, (session) => call(session, "elicit", { message: "who?" }))
        assert.deepStrictEqual(asked, ["bob"])
      }))

    it("are refused where what they are depends on who owns them", () => {
      const refused: ReadonlyArray<Partial<StdioOptions>> = [
        { env: () => ({ KEY: "s3cret" }) },
        { roots: () => Effect.succeed([]) },
        { standby: { size: 0 } },
        { standby: { size: 1.5 } },
        { standby: { size: 1, idleTimeToLive: 0 } },
        { standby: { size: 1, startTimeout: Infinity } },
        { standby: { size: 1, sizes: 2 } as never },
        { standby: true as never }
      ]
      for (const options of refused) {
        try {
          connector.stdio({ command: "cat", standby: { size: 1 }, ...options })
          assert.fail("accepted")
        } catch (error) {
          assert.instanceOf(error, InvalidOptions)
          assert.strictEqual(error.option, "standby")
          assert.strictEqual(error.method, "stdio")
        }
      }
    })
  })
}

// Each test starts several processes: what does not depend on the generation is shown with one of them
describe("children on standby", { concurrent: true }, () => {
  const connector = McpConnector

  it.live("are never put back: what one identity had is gone when its session is", () =>
    Effect.gen(function*() {
      const { options } = fixture()
      const { pool, ready } = yield* open(connector.stdio({ ...options, standby: { size: 1 } }))
      const visit = (identity: Identity) => pool.withSession(identity, (session) => Effect.succeed(session.pid!))
      yield* ready(1)
      const before = yield* visit(alice)
      yield* pool.invalidate(alice)
      yield* ready(1)
      const after = yield* visit(alice)
      yield* ready(1)
      assert.strictEqual(new Set([before, after, yield* visit(bob)]).size, 3)
      assert.deepStrictEqual(yield* survivors([before]), [])
    }))

  it.live("whose warmUp ignores interruption end with the pool all the same", () =>
    Effect.gen(function*() {
      const { options, pids } = fixture()
      let warmed = 0
      const warmUp = () => Effect.uninterruptible(Effect.andThen(Effect.sync(() => warmed++), Effect.never))
      const { close } = yield* open(
        McpConnector.stdio({ ...options, standby: { size: 1, startTimeout: "5 seconds", warmUp } })
      )
      yield* until(() => warmed === 1)
      yield* close
      assert.deepStrictEqual(yield* survivors(pids()), [])
    }))

  it.live("that die while they wait are replaced, and the log says why", () => {
    const warnings: Array<string> = []
    const logger = Logger.map(Logger.formatLogFmt, (line) => void (line.includes("level=WARN") && warnings.push(line)))
    return Effect.gen(function*() {
      const { options, pids } = fixture()
      const { pool, ready } = yield* open(connector.stdio({ ...options, standby: { size: 1 } }))
      yield* ready(1)
      const [first] = pids()
      process.kill(first!, "SIGKILL")
      yield* ready(0)
      yield* ready(1)
      assert.strictEqual(yield* pool.withSession(alice, (session) => call(session, "pid")), String(pids()[1]))
      assert.match(warnings.join("\n"), /^[^\n]*standby[^\n]*SIGKILL[^\n]*$/)
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.live("that do not answer are given to nobody: a new child is started instead", () =>
    Effect.gen(function*() {
      const { options, pids } = fixture()
      const { pool, ready } = yield* open(connector.stdio({ ...options, standby: { size: 1 } }))
      yield* ready(1)
      const [hung] = pids()
      process.kill(hung!, "SIGSTOP")
      const pid = yield* pool.withSession(alice, (session) => call(session, "pid"))
      assert.notStrictEqual(pid, String(hung))
      assert.deepStrictEqual(yield* survivors([hung!], 10_000), [])
    }))

  it.live("that hang at start keep nobody waiting, and are gone with the layer", () =>
    Effect.gen(function*() {
      const { options, pids } = fixture("hang-initialize")
      const { close, pool } = yield* open(connector.stdio({ ...options, standby: { size: 1 } }))
      yield* until(() => pids().length === 1)
      assert.strictEqual((yield* pool.stats).standby, 0)
      yield* close
      assert.deepStrictEqual(yield* survivors(pids()), [])
    }))

  it.live("make room for a fresh one when their time is over", () =>
    Effect.gen(function*() {
      const { options, pids } = fixture()
      yield* open(connector.stdio({ ...options, standby: { size: 1, idleTimeToLive: 50 } }))
      yield* until(() => pids().length === 3)
      assert.deepStrictEqual(yield* survivors(pids().slice(0, 1)), [])
    }))

  it.live("have their stderr read while they wait, without the secrets of the owner to come", () => {
    const lines: Array<string> = []
    const logger = Logger.make(({ fiber, message }) => {
      const { server, session } = fiber.getRef(References.CurrentLogAnnotations)
      lines.push(`${String(server)} ${String(session)} ${String(message)}`)
    })
    return Effect.gen(function*() {
      const { options } = fixture("flood-stderr")
      const { pool, ready } = yield* open(connector.stdio({
        command: "sh",
        args: ["-c", `echo "it begins" >&2; "$0" "$@"`, options.command, ...options.args],
        env: options.env,
        name: "server",
        standby: { size: 1 }
      }))
      yield* ready(1)
      assert.include(lines, "server on standby it begins")
      const error = yield* Effect.flip(
        pool.withSession(alice, (session) => Effect.andThen(call(session, "flood"), call(session, "die")))
      )
      assert.strictEqual(error._tag === "McpSessionError" ? error.reason._tag : "", "SessionClosed")
      assert.isTrue(lines.some((line) => line.startsWith("server alice xxx")))
    }).pipe(
      Effect.provide(Logger.layer([logger])),
      Effect.provideService(References.MinimumLogLevel, "Debug")
    )
  })

  it.live("show nothing of the owner's secrets in what they said before it came", () =>
    Effect.gen(function*() {
      const { options } = fixture()
      const { pool, ready } = yield* open(connector.stdio({
        command: "sh",
        args: ["-c", `echo "last seen: s3cret-token-of-alice" >&2; exec "$0" "$@"`, options.command, ...options.args],
        standby: { size: 1 }
      }))
      yield* ready(1)
      const error = yield* Effect.flip(pool.withSession(alice, (session) => call(session, "die")))
      assert(error._tag === "McpSessionError" && error.reason._tag === "SessionClosed")
      assert.strictEqual(error.reason.stderr, "last seen: <redacted>")
    }).pipe(Effect.provide(Logger.layer([]))))

  it.live("begin with the first session where a function of the user's own calls the connector", () =>
    Effect.gen(function*() {
      const { options, pids } = fixture()
      const files = connector.stdio({ ...options, standby: { size: 1 } })
      const { close, pool, ready } = yield* open((identity, handle) => files(identity, handle))
      assert.deepStrictEqual(pids(), [])
      yield* pool.withSession(alice, (session) => call(session, "pid"))
      yield* ready(1)
      yield* close
      assert.deepStrictEqual(yield* survivors(pids()), [])
    }))

  it.live("are each pool's own, and there are none without a pool", () =>
    Effect.gen(function*() {
      const { options, pids } = fixture()
      const connect = connector.stdio({ ...options, standby: { size: 1 } })
      const [one, other] = [yield* open(connect), yield* open(connect)]
      yield* one.ready(1)
      yield* other.ready(1)
      assert.strictEqual(pids().length, 2)
      yield* one.close
      assert.strictEqual((yield* other.pool.stats).standby, 1)
      const session = yield* connect(alice, makeHandle())
      assert.notInclude(pids().slice(0, 2), session.pid)
      assert.strictEqual(pids().filter(isAlive).length, 2)
    }))
})
