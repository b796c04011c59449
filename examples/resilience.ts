/**
 * Retry, rate limit and circuit breaker around a pool: all of them Effect's own.
 *
 * `npx tsx examples/resilience.ts`
 */
import { Console, Effect, Layer, Option, Schedule } from "effect"
import { Identity, McpConnector, type McpSession, SessionPool } from "effect-mcp-sessions"
import { CircuitBreaker, RateLimiter } from "effect/persistence"
import { createRequire } from "node:module"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

const up = McpConnector.stdio({ command: process.execPath, args: [everything, "stdio"] })

// Nobody listens on port 1.
const down = McpConnector.http({ url: "http://127.0.0.1:1/mcp" })

// A failed connect leaves nothing in its scope, so it may be tried again there.
const Pool = SessionPool.layer({
  connect: (identity, handle) =>
    Effect.retry((Option.contains(identity.upstream, "down") ? down : up)(identity, handle), {
      schedule: Schedule.exponential("50 millis"),
      times: 2,
      while: (error) => error.reason._tag === "Unreachable"
    })
})

const Breaker = CircuitBreaker.layer({ tripPolicy: CircuitBreaker.consecutive(2), openDuration: "30 seconds" }).pipe(
  Layer.provide(CircuitBreaker.layerStoreMemory())
)

const Limiter = RateLimiter.layer.pipe(Layer.provide(RateLimiter.layerStoreMemory))

/** Three calls a minute for each caller; a server that failed twice in a row is left alone for a while. */
const call = Effect.fn(function*(server: string, caller: Identity, message: string) {
  const limiter = yield* RateLimiter.RateLimiter
  const breaker = yield* CircuitBreaker.CircuitBreaker
  yield* limiter.consume({ key: caller.key, limit: 3, window: "1 minute", onExceeded: "fail" })
  const echo = (session: McpSession) => session.callTool({ name: "echo", arguments: { message } })
  return yield* SessionPool.withSession(caller.at(server), echo).pipe(breaker.execute({ key: server }))
})

const tell = (what: string, effect: ReturnType<typeof call>) =>
  Effect.matchEffect(effect, {
    onSuccess: ({ content }) => Console.log(`${what}: ${JSON.stringify(content)}`),
    onFailure: (error) => Console.log(`${what}: ${"reason" in error ? error.reason._tag : error._tag}`)
  })

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const program = Effect.gen(function*() {
  yield* tell("alice", call("up", alice, "hello"))
  yield* tell("bob, of a server that is down", call("down", bob, "hello"))
  yield* tell("bob, once more", call("down", bob, "hello"))
  yield* tell("bob, at an open circuit", call("down", bob, "hello"))
  yield* tell("bob, beyond the limit", call("up", bob, "hello"))
})

await Effect.runPromise(Effect.provide(program, Layer.mergeAll(Pool, Breaker, Limiter)))
