/**
 * Nodes with an HTTP server each that are deployed one after the other under load, and whose Postgres goes away. Only
 * for `npm run load`.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { messagesOf, textOf } from "./support/answers.ts"
import { noting, quick, settled, until } from "./support/clusterProcesses.ts"
import { assertWithin, underLoad } from "./support/load.ts"
import { startPostgres } from "./support/postgres.ts"
import { begin, call, initialize, post, request, send } from "./support/requests.ts"
import { makeNodes, type RoutedNode } from "./support/routedProcesses.ts"
import { temporaryDirectory } from "./support/temporary.ts"
import { makeDice } from "./support/world.ts"

interface Deployed {
  readonly answered: number
  /** What users were told of calls that may have run. */
  readonly lost: Readonly<Record<string, number>>
  /** And of those that have not. */
  readonly refused: Readonly<Record<string, number>>
  /** Answers that were not those of the call, or of another process than the session's. */
  readonly wrong: ReadonlyArray<string>
  /** Calls that have run more than once. */
  readonly twice: number
  /** Calls that were answered, and have not run. */
  readonly invented: number
  /** Calls of which was said that they have not run, and that have. */
  readonly denied: number
  /** How many milliseconds each stop took. */
  readonly stops: ReadonlyArray<number>
}

const count = (counts: Record<string, number>, what: string) => void (counts[what] = (counts[what] ?? 0) + 1)

const codeOf = (error: unknown) => (error as { cause?: { code?: string } }).cause?.code ?? String(error)

/** What an answer says, or why its connection was closed before its end. */
const whole = <A>(read: Effect.Effect<A>): Effect.Effect<Result.Result<A, string>> =>
  read.pipe(
    Effect.map(Result.succeed),
    Effect.catchDefect((error) => Effect.succeed(Result.fail(`${codeOf(error)} within an answer`)))
  )

/** Users who ask any node for their sessions, while each node is stopped and started again, `rounds` times. */
const deploy = Effect.fnUntraced(function*(storage: string, rounds: number) {
  const { start } = yield* makeNodes()
  let nodes: ReadonlyArray<RoutedNode> = yield* Effect.all([start(storage), start(storage), start(storage)], {
    concurrency: "unbounded"
  })
  yield* settled(nodes)
  const dice = makeDice(7)
  const file = join(temporaryDirectory("deploy-"), "notes")
  const answered = new Set<string>()
  const unrun = new Set<string>()
  const wrong: Array<string> = []
  const lost: Record<string, number> = {}
  const refused: Record<string, number> = {}
  const stops: Array<number> = []
  let calls = 0

  /** As a load balancer that goes on to the next where nobody listens. */
  const ask = async (options: { readonly as: string; readonly session?: string | undefined }, body: unknown) => {
    const first = Math.floor(dice.next() * nodes.length)
    const asks = async (i: number): Promise<Response> => {
      try {
        return await send(nodes[(first + i) % nodes.length]!, "POST", options, body)
      } catch (error) {
        if (codeOf(error) !== "ECONNREFUSED" || i === 2) throw error
        return asks(i + 1)
      }
    }
    return asks(0)
  }

  const user = Effect.fnUntraced(function*(i: number) {
    const as = `user${i}`
    let session: string | undefined
    let pid: string | undefined
    while (true) {
      if (session === undefined) {
        const begun = yield* Effect.promise(() => ask({ as }, initialize))
        const text = yield* whole(textOf(begun))
        if (Result.isFailure(text)) {
          count(lost, text.failure)
          continue
        }
        session = begun.headers.get("mcp-session-id") ?? undefined
        pid = undefined
        if (begun.status !== 200) {
          count(refused, `initialize ${begun.status}`)
          yield* Effect.sleep(50)
          continue
        }
      }
      const line = `${as}:${++calls}`
      const ms = dice.chance(0.02) ? 1_000 : dice.next() * 40
      const response = yield* Effect.promise(() =>
        ask({ as, session }, call("note", { file, line, ms }, line)).catch(codeOf)
      )
      if (typeof response === "string") {
        count(lost, response)
        continue
      }
      const read = yield* whole(messagesOf(response))
      if (Result.isFailure(read)) {
        count(lost, read.failure)
        continue
      }
      const messages = read.success
      const [message] = messages as ReadonlyArray<{ id?: unknown; error?: { message: string }; result?: object }>
      if (response.status === 200 && message?.result !== undefined) {
        answered.add(line)
        const [, said, by] = /"text":"(\S+) (\d+)"/.exec(JSON.stringify(message)) ?? []
        pid ??= by
        if (messages.length !== 1 || message.id !== line || said !== line || by !== pid) {
          wrong.push(`${line}: ${JSON.stringify(messages)}`)
        }
      } else if (message?.id === line || response.status === 502) {
        count(lost, `${response.status} ${message?.error?.message}`)
      } else {
        count(refused, String(response.status))
        unrun.add(line)
        if (response.status === 404) session = undefined
        else yield* Effect.sleep(50)
      }
    }
  })
  const users = yield* Effect.forEach(Array.from({ length: 9 }, (_, i) => i), (i) => Effect.forkChild(user(i)))

  for (let round = 0; round < rounds; round++) {
    for (const node of nodes) {
      yield* Effect.sleep("2 seconds")
      const since = performance.now()
      process.kill(node.pid, "SIGTERM")
      assert.strictEqual(yield* Effect.promise(() => node.exited), 0, node.log())
      stops.push(Math.round(performance.now() - since))
      const again = yield* start(storage, node)
      nodes = nodes.map((other) => other === node ? again : other)
      yield* until("it is ready", async () => (await again.ask({ ask: "ready" })).value === true)
    }
  }
  yield* Effect.sleep("2 seconds")
  for (const fiber of users) assert.isUndefined(fiber.pollUnsafe(), "a user has failed")
  yield* Fiber.interruptAll(users)

  const runs = new Map<string, number>()
  for (const note of readFileSync(file, "utf8").trim().split("\n")) {
    const [line = ""] = note.split(" ")
    runs.set(line, (runs.get(line) ?? 0) + 1)
  }
  const deployed: Deployed = {
    answered: answered.size,
    lost,
    refused,
    wrong,
    twice: Array.from(runs.values()).filter((n) => n > 1).length,
    invented: Array.from(answered).filter((line) => !runs.has(line)).length,
    denied: Array.from(unrun).filter((line) => runs.has(line)).length,
    stops
  }
  yield* Effect.logInfo("deployed", deployed)
  return deployed
})

const holds = ({ answered, denied, invented, lost, refused, stops, twice, wrong }: Deployed) => {
  assert.deepStrictEqual({ wrong, twice, invented, denied }, { wrong: [], twice: 0, invented: 0, denied: 0 })
  assert.isAbove(answered, 500)
  const typed = /^(?:ECONNRESET|UND_ERR_SOCKET|(?:200|503) .*(?:may have run|shutting down).*|502 .*may have run.*)$/i
  assert.deepStrictEqual(Object.keys(lost).filter((what) => !typed.test(what)), [])
  assert.deepStrictEqual(Object.keys(refused).filter((what) => !/^(?:404|503|initialize 503)$/.test(what)), [])
  // A drain takes up to 8 seconds, and Effect's server cuts off what it still has after 20 more
  assertWithin(Math.max(...stops), 15_000)
}

describe("McpHttp.routed, whose nodes are deployed one after the other under load", () => {
  it.live(
    "gives no wrong answer and runs nothing twice, on SQLite",
    () =>
      Effect.gen(function*() {
        holds(yield* deploy(`sqlite:${join(temporaryDirectory("deploy-"), "cluster.db")}`, 2))
      }),
    underLoad
  )

  it.live(
    "gives no wrong answer and runs nothing twice, on Postgres",
    () =>
      Effect.gen(function*() {
        const { url } = yield* startPostgres
        holds(yield* deploy(url, 1))
      }),
    underLoad
  )
})

describe("McpHttp.routed, whose Postgres goes away", () => {
  it.live(
    "goes on with known sessions, says 503 of others, and of a node that is lost meanwhile until it is known",
    () =>
      Effect.gen(function*() {
        const postgres = yield* startPostgres
        const { start } = yield* makeNodes(quick)
        const nodes = yield* Effect.all([start(postgres.url), start(postgres.url), start(postgres.url)], {
          concurrency: "unbounded"
        })
        yield* settled(nodes)
        const [a, b, c] = nodes as unknown as readonly [RoutedNode, RoutedNode, RoutedNode]
        const sessions = [yield* begin(a, "alice"), yield* begin(c, "alice")] as const
        const nobodys = { as: "alice", session: `${"A".repeat(32)}.${"B".repeat(12)}` }
        yield* postgres.stop
        // For longer than a lock lives
        for (let i = 0; i < 6; i++) {
          yield* Effect.sleep("1 second")
          for (const node of nodes) {
            for (const session of sessions) {
              assert.strictEqual((yield* post(node, call("say"), { as: "alice", session })).status, 200)
            }
            assert.strictEqual((yield* post(node, call("say"), nobodys)).status, 503)
            assert.strictEqual((yield* request(node, "DELETE", nobodys)).status, 503)
          }
        }
        const { args, notes, runs } = noting(temporaryDirectory("away-"), "killed")
        const running = send(b, "POST", { as: "alice", session: sessions[0] }, call("note", args(5_000), "seven"))
        yield* runs
        process.kill(a.pid, "SIGKILL")
        assert.include(yield* Effect.flatMap(Effect.promise(() => running), textOf), "It may have run")
        const lost = { as: "alice", session: sessions[0] }
        for (const node of [b, c]) assert.strictEqual((yield* post(node, call("say"), lost)).status, 503)
        yield* postgres.start
        const late = new Set<number>()
        yield* until("it is known to be gone", async () => {
          const { status } = await send(b, "POST", lost, call("note", args(0)))
          late.add(status)
          return status === 404
        })
        assert.deepStrictEqual(Array.from(late).filter((status) => status !== 503 && status !== 404), [])
        yield* settled([b, c])
        assert.strictEqual((yield* post(b, call("say"), { as: "alice", session: sessions[1] })).status, 200)
        assert.strictEqual((yield* post(c, call("say"), lost)).status, 404)
        assert.strictEqual((yield* post(b, call("say"), nobodys)).status, 404)
        assert.strictEqual(notes(), 1)
      }),
    underLoad
  )
})
