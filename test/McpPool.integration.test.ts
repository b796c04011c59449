/**
 * The pool over real servers: what a user of `SessionPool` with a connector of `McpConnector` sees when servers
 * restart, children die and tokens change.
 */
import { assert, describe, inject, it } from "@effect/vitest"
import { Credentials, Identity, McpConnector, McpSession, type McpSessionError, SessionPool } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { fileURLToPath } from "node:url"
import { becomes } from "./support/answers.ts"
import { many, underLoad } from "./support/load.ts"
import { descendants, isAlive, survivors } from "./support/processes.ts"
import * as HttpServer from "./support/servers/http.ts"
import { call } from "./support/tools.ts"

const stdioServer = inject("stdioServer")
// Starts ten times as fast as one with the SDK
const echoServer = fileURLToPath(new URL("./support/servers/echo.mjs", import.meta.url))

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const withToken = (token: string) => Identity.fromKey("alice", { credentials: Credentials.bearer(token) })

const stdioPool = SessionPool.layer({
  connect: McpConnector.stdio({ command: process.execPath, args: stdioServer })
})

/** A pool over a server of its own. */
const withServer = <A, E, R>(
  run: (server: HttpServer.HttpFixture) => Effect.Effect<A, E, R>,
  options?: Partial<HttpServer.Behaviour>
) =>
  Effect.flatMap(
    HttpServer.start(options),
    (server) => Effect.provide(run(server), SessionPool.layer({ connect: McpConnector.http({ url: server.url }) }))
  )

const echo = (identity: Identity, message: string) =>
  SessionPool.withSession(identity, (session) => call(session, "echo", { message }))

/** A caller whose server forgets the session before the last call: what it gets, and how often it has run. */
const forgotten = Effect.fnUntraced(function*(
  server: HttpServer.HttpFixture,
  before: (session: McpSession) => Effect.Effect<unknown, McpSessionError> = () => Effect.void
) {
  let runs = 0
  const error = yield* Effect.flip(SessionPool.withSession(alice, (session) =>
    Effect.gen(function*() {
      runs++
      yield* before(session)
      yield* server.forget
      return yield* call(session, "echo", { message: "never" })
    })))
  return { error, runs }
})

const pidOf = (identity: Identity) =>
  SessionPool.withSession(identity, (session) => Effect.as(call(session, "echo"), session.pid!))

describe("SessionPool over real servers", () => {
  it.live("a killed child is noticed without a call, and the next call runs on a new one", () =>
    Effect.gen(function*() {
      const pid = yield* pidOf(alice)
      process.kill(pid, "SIGKILL")
      assert.deepStrictEqual(yield* survivors([pid]), [])
      // Noticed by its exit, which no call has to ask for.
      yield* becomes(SessionPool.stats, (stats) => stats.size === 0)
      const next = yield* pidOf(alice)
      assert.notStrictEqual(next, pid)
      const stats = yield* SessionPool.stats
      assert.strictEqual(stats.retirements, 1)
    }).pipe(Effect.provide(stdioPool)))

  it.live("no child is left when the pool's layer is closed", () =>
    Effect.gen(function*() {
      yield* Effect.all([echo(alice, "1"), echo(bob, "2")], { concurrency: "unbounded" }).pipe(
        Effect.andThen(Effect.sync(() => assert.isAtLeast(descendants().length, 2))),
        Effect.provide(stdioPool)
      )
      assert.deepStrictEqual(descendants(), [])
    }))

  for (const [manner, lostSession] of [["404", 404], ["400, as server-everything does", 400]] as const) {
    it.live(`a server that has forgotten its sessions is answered by a fresh one (${manner})`, () =>
      withServer(
        Effect.fnUntraced(function*(server) {
          assert.strictEqual(yield* echo(alice, "before"), "before")
          yield* server.forget
          assert.strictEqual(yield* echo(alice, "after"), "after")
          assert.strictEqual(server.requestsOf("initialize").length, 2)
          const stats = yield* SessionPool.stats
          assert.deepStrictEqual([stats.size, stats.retirements], [1, 1])
        }),
        { lostSession }
      ))
  }

  it.live("a server that restarts between two calls costs no caller an error", () =>
    withServer(Effect.fnUntraced(function*(server) {
      yield* echo(alice, "before")
      yield* server.close
      yield* server.listen
      // A request on a connection whose end this process has not heard of yet may have run: it is not repeated.
      yield* Effect.sleep("50 millis")
      assert.strictEqual(yield* echo(alice, "after"), "after")
    })))

  it.live("what has been accepted is not run again when the session expires later in the same lease", () =>
    withServer(Effect.fnUntraced(function*(server) {
      yield* echo(alice, "before")
      const { error } = yield* forgotten(server, (session) => call(session, "echo", { message: "once" }))
      assert.isTrue(McpSession.isSessionExpired(error))
      assert.strictEqual(server.requestsOf("tools/call").length, 3)
    })))

  it.live("a fresh session that is forgotten at once is not run again", () =>
    withServer(Effect.fnUntraced(function*(server) {
      const { error, runs } = yield* forgotten(server)
      assert.isTrue(McpSession.isSessionExpired(error))
      assert.strictEqual(runs, 1)
      assert.strictEqual(server.requestsOf("initialize").length, 1)
      assert.strictEqual(server.requestsOf("tools/call").length, 1)
      // It was the session that was lost, and nothing else
      assert.strictEqual(yield* echo(alice, "next"), "next")
    })))

  it.live("a call whose second session is forgotten too is run again once only", () =>
    withServer(Effect.fnUntraced(function*(server) {
      yield* echo(alice, "before")
      const { error, runs } = yield* forgotten(server)
      assert.isTrue(McpSession.isSessionExpired(error))
      assert.strictEqual(runs, 2)
      assert.strictEqual(server.requestsOf("initialize").length, 2)
      assert.strictEqual(server.requestsOf("tools/call").length, 3)
      assert.strictEqual((yield* SessionPool.stats).retirements, 2)
    })))

  it.live("only the session that died is retired", () =>
    Effect.gen(function*() {
      const [ofAlice, ofBob] = yield* Effect.all([pidOf(alice), pidOf(bob)], { concurrency: "unbounded" })
      process.kill(ofAlice, "SIGKILL")
      yield* becomes(SessionPool.stats, (stats) => stats.size === 1)
      assert.strictEqual(yield* pidOf(bob), ofBob)
      assert.notStrictEqual(yield* pidOf(alice), ofAlice)
      const stats = yield* SessionPool.stats
      assert.deepStrictEqual([stats.size, stats.retirements], [2, 1])
    }).pipe(Effect.provide(stdioPool)))

  it.live("a child that takes its time to end delays no other identity", () => {
    const toStubborn = McpConnector.stdio({ command: process.execPath, args: [...stdioServer, "stubborn"] })
    const toFine = McpConnector.stdio({ command: process.execPath, args: stdioServer })
    return Effect.gen(function*() {
      const pid = yield* pidOf(alice)
      assert.isTrue(yield* SessionPool.invalidate(alice))
      yield* becomes(SessionPool.stats, (stats) => stats.closing === 1)
      assert.strictEqual(yield* echo(bob, "opened meanwhile"), "opened meanwhile")
      assert.strictEqual(yield* echo(bob, "reused meanwhile"), "reused meanwhile")
      assert.strictEqual((yield* SessionPool.stats).closing, 1)
      assert.isTrue(isAlive(pid), "alice's child is still there when bob has his answers")
      yield* Effect.repeat(SessionPool.stats, {
        until: (stats) => stats.closing === 0,
        schedule: Schedule.spaced("10 millis")
      })
      assert.isFalse(isAlive(pid))
    }).pipe(
      Effect.provide(SessionPool.layer({
        connect: (identity, handle) => (identity.key === "alice" ? toStubborn : toFine)(identity, handle)
      }))
    )
  })

  it.live("a rotated token reaches the wire on the same session", () =>
    Effect.gen(function*() {
      const server = yield* HttpServer.start()
      yield* Effect.gen(function*() {
        const first = yield* SessionPool.withSession(withToken("first"), (session) => call(session, "whoami"))
        const second = yield* SessionPool.withSession(withToken("second"), (session) => call(session, "whoami"))
        assert.deepStrictEqual([first, second], ["Bearer first", "Bearer second"])
        assert.strictEqual(server.requestsOf("initialize").length, 1)
      }).pipe(
        Effect.provide(
          SessionPool.layer({ connect: McpConnector.http({ url: server.url, forwardCredentials: true }) })
        )
      )
    }))

  it.live("a server that hangs for one identity delays no other", () =>
    Effect.gen(function*() {
      const hung = yield* HttpServer.start({ initialize: "hang" })
      const fine = yield* HttpServer.start()
      const toHung = McpConnector.http({ url: hung.url })
      const toFine = McpConnector.http({ url: fine.url })
      yield* Effect.gen(function*() {
        const waiting = yield* Effect.forkChild(echo(alice, "never"))
        assert.strictEqual(yield* echo(bob, "at once"), "at once")
        assert.isUndefined(waiting.pollUnsafe())
        yield* Fiber.interrupt(waiting)
      }).pipe(
        Effect.provide(SessionPool.layer({
          connect: (identity, handle) => (identity.key === "alice" ? toHung : toFine)(identity, handle)
        }))
      )
    }))

  it.live("a call in flight fails at once when its session is closed by the end of the pool", () =>
    Effect.gen(function*() {
      const calling = yield* Effect.gen(function*() {
        const fiber = yield* Effect.forkDetach(
          SessionPool.withSession(alice, (session) => call(session, "slow", { ms: 60_000 })),
          { startImmediately: true }
        )
        yield* becomes(SessionPool.stats, (stats) => stats.leased === 1)
        return fiber
      }).pipe(Effect.provide(stdioPool))
      const error = yield* Effect.flip(Fiber.join(calling))
      assert.strictEqual(error._tag === "McpSessionError" ? error.reason._tag : error._tag, "SessionClosed")
    }))

  it.live(
    "callers that are many times the capacity each get an answer, from as many children as it says at most",
    () =>
      Effect.gen(function*() {
        let most = 0
        const one = (i: number) =>
          SessionPool.withSession(Identity.fromKey(`user-${i}`), (session) =>
            Effect.tap(call(session, "echo", { message: `${i}` }), () =>
              Effect.map(SessionPool.stats, ({ draining, idle, leased, opening }) => {
                most = Math.max(most, opening + leased + idle + draining)
              })))
        const callers = Array.from({ length: many(20, 100) }, (_, i) =>
          i)
        const answers = yield* Effect.forEach(callers, one, { concurrency: "unbounded" })
        assert.deepStrictEqual(answers, callers.map(String))
        assert.isAtMost(most, 10)
      }).pipe(
        Effect.provide(SessionPool.layer({
          connect: McpConnector.stdio({ command: process.execPath, args: [echoServer] }),
          capacity: 10,
          acquireTimeout: "60 seconds"
        }))
      ),
    underLoad
  )
})
