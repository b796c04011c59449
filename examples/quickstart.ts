/**
 * Three callers, one of them anonymous, and room for two sessions: a real MCP server runs as a child process for each
 * session, and this tells which caller got which child, and why each child ended.
 *
 * `npm start`
 */
import { Console, Duration, Effect, Fiber, Layer, Stream } from "effect"
import { IdentityResolver, McpConnector, SessionPool, type SessionPoolEvent } from "effect-mcp-sessions"
import { createRequire } from "node:module"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

const Pool = SessionPool.layer({
  connect: McpConnector.stdio({ command: process.execPath, args: [everything, "stdio"] }),
  capacity: 2,
  idleTimeToLive: "2 seconds"
})

const Resolver = IdentityResolver.layer({ mode: "optional" })

// A key is a digest of the token, so it may be printed. Names are nicer.
const names = new Map<string, string>()
const pids = new Set<number>()

/** One request: who is it, and what does the tool say on that caller's own session? */
const request = Effect.fnUntraced(function*(name: string, headers: Record<string, string>) {
  const identity = yield* IdentityResolver.resolve({ headers })
  names.set(identity.key, name)
  yield* SessionPool.withSession(identity, (session) =>
    Effect.gen(function*() {
      const child = pids.has(session.pid!) ? "reused" : "opened"
      pids.add(session.pid!)
      yield* session.callTool({ name: "echo", arguments: { message: name } })
      yield* Console.log(`${name.padEnd(9)} was answered by child ${session.pid} (${child})`)
    }))
})

const tell = (event: SessionPoolEvent) => {
  const name = (names.get(event.key) ?? event.key).padEnd(9)
  switch (event._tag) {
    case "Closed":
      return Console.log(
        `${name} closed: ${event.reason}, after ${Duration.format(event.lived)}, leased ${event.uses}×`
      )
    case "Retired":
      return Console.log(`${name} retired: ${event.reason}`)
    default:
      return Console.log(`${name} ${event._tag}`)
  }
}

const alice = request("alice", { authorization: "Bearer alice-token" })
const bob = request("bob", { authorization: "Bearer bob-token" })
const anonymous = request("anonymous", {})

const main = Effect.gen(function*() {
  const told = yield* Effect.forkDetach(Stream.runForEach(SessionPool.events, tell), { startImmediately: true })

  yield* Console.log("- alice three times at once, and bob: two children")
  yield* Effect.all([alice, alice, bob, alice], { concurrency: "unbounded" })

  yield* Console.log("- an anonymous caller: the least recently used session makes room")
  yield* anonymous

  yield* Console.log("- nobody, for longer than idleTimeToLive")
  yield* Effect.sleep("2500 millis")

  yield* Console.log("- bob once more, then the end of the pool")
  yield* bob

  const { evictions, expirations, hits, misses } = yield* SessionPool.stats
  yield* Console.log(`${hits} hits, ${misses} misses, ${evictions} evictions, ${expirations} expirations`)
  return told
})

const isAlive = (pid: number) => Effect.isSuccess(Effect.try(() => process.kill(pid, 0)))

// When the pool's layer is closed its children are gone; the events end after the last of them.
const program = Effect.gen(function*() {
  const told = yield* Effect.provide(main, Layer.merge(Pool, Resolver))
  yield* Fiber.join(told)
  const left = yield* Effect.filter(pids, isAlive)
  yield* Console.log(`${pids.size} children were started, ${left.length} are left`)
})

await Effect.runPromise(program)
