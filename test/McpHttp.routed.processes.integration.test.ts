/**
 * Sessions of three nodes, each a process of its own, asked for at each of them.
 */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { mkdirSync, renameSync } from "node:fs"
import { join } from "node:path"
import { messagesOf, readUntil, textOf } from "./support/answers.ts"
import { noting, settled, until } from "./support/clusterProcesses.ts"
import { assertWithin, underLoad } from "./support/load.ts"
import { begin, call, initialize, post, request, send } from "./support/requests.ts"
import { makeNodes, raw, type RoutedNode } from "./support/routedProcesses.ts"
import { temporaryDirectory } from "./support/temporary.ts"

class Cluster extends Context.Service<Cluster, {
  readonly directory: string
  /** Until all tests have ended. */
  readonly restart: (node: RoutedNode) => Effect.Effect<RoutedNode, string>
  /** Those that are there. */
  nodes: ReadonlyArray<RoutedNode>
}>()("test/RoutedCluster") {
  static readonly layer = Layer.effect(
    Cluster,
    Effect.gen(function*() {
      const directory = temporaryDirectory("routed-")
      mkdirSync(join(directory, "store"))
      const storage = `sqlite:${join(directory, "store", "cluster.db")}`
      const { start } = yield* makeNodes()
      const nodes = yield* Effect.all([start(storage), start(storage), start(storage)], { concurrency: "unbounded" })
      yield* settled(nodes)
      const scope = yield* Effect.scope
      return { directory, nodes, restart: (node) => Scope.provide(start(storage, node), scope) }
    })
  )
}

const stream = { accept: "text/event-stream" }

const others = (nodes: ReadonlyArray<RoutedNode>, node: RoutedNode) => nodes.filter((other) => other !== node)

const first = (nodes: ReadonlyArray<RoutedNode>): readonly [RoutedNode, RoutedNode, RoutedNode] =>
  nodes as unknown as readonly [RoutedNode, RoutedNode, RoutedNode]

/** Until the others know that it is gone, or back. */
const known = (nodes: ReadonlyArray<RoutedNode>, count: number) =>
  until(`${count} nodes are known`, async () => {
    const members = await Promise.all(nodes.map(({ ask }) => ask({ ask: "members" })))
    return members.every(({ value }) => Array.isArray(value) && value.length === count)
  })

const ended = (response: Response) => Effect.ignore(Effect.tryPromise(() => response.text()))

layer(Cluster.layer, { excludeTestServices: true })("McpHttp.routed, several processes", (it) => {
  it.effect("serves POST, GET and DELETE of a session at every node, and DELETE ends its streams within a second", () =>
    Effect.gen(function*() {
      const { directory, nodes } = yield* Cluster
      for (const owner of nodes) {
        const session = yield* begin(owner, "alice")
        const alice = { as: "alice", session }
        const { args, notes } = noting(directory, `${owner.host}`)
        for (const node of nodes) {
          const answer = yield* post(node, call("note", args(0)), alice)
          assert.include(JSON.stringify(yield* messagesOf(answer)), `${owner.host} ${owner.pid}`)
        }
        assert.strictEqual(notes(), nodes.length)
        for (const node of nodes) {
          const listener = yield* request(node, "GET", { ...alice, headers: stream })
          const heard = yield* Effect.forkChild(readUntil(listener, "heard"))
          for (const other of nodes) yield* Effect.flatMap(post(other, call("say", { word: "heard" }), alice), textOf)
          yield* Fiber.join(heard)
        }
        const deleting = others(nodes, owner)[0]!
        const listener = yield* request(others(nodes, deleting)[1]!, "GET", { ...alice, headers: stream })
        assert.strictEqual((yield* request(deleting, "DELETE", alice)).status, 204)
        yield* Effect.timeout(ended(listener), "1 second")
        for (const node of nodes) {
          for (const method of ["GET", "DELETE"]) {
            assert.strictEqual((yield* request(node, method, { ...alice, headers: stream })).status, 404)
          }
          assert.strictEqual((yield* post(node, call("say"), alice)).status, 404)
        }
      }
    }))

  it.effect("answers B with A's id as an id that never was, byte for byte, at every node", () =>
    Effect.gen(function*() {
      const { nodes } = yield* Cluster
      const session = yield* begin(nodes[0]!, "alice")
      const ids = [session, `${"A".repeat(32)}${session.slice(32)}`, `${"A".repeat(32)}.${"B".repeat(12)}`, "0123"]
      const headers = { accept: "application/json, text/event-stream", "content-type": "application/json" }
      for (const method of ["GET", "POST", "DELETE"]) {
        const said = new Set<string>()
        for (const node of nodes) {
          for (const id of ids) {
            const bob = { ...headers, authorization: "Bearer bob", "mcp-session-id": id }
            said.add(yield* raw(node, method, bob, method === "POST" ? JSON.stringify(call("say")) : ""))
          }
        }
        assert.strictEqual(said.size, 1, [...said].join("\n\n"))
        assert.match([...said][0]!, /^HTTP\/1\.1 404 /)
      }
    }))

  it.effect("goes on with the sessions of nodes that it knows while the store is away, and says 503 of others", () =>
    Effect.gen(function*() {
      const { directory, nodes } = yield* Cluster
      const [a, b] = first(nodes)
      const session = yield* begin(a, "alice")
      const store = join(directory, "store")
      renameSync(store, `${store}.away`)
      const nobodys = { as: "alice", session: `${"A".repeat(32)}.${"B".repeat(12)}` }
      yield* until("the store is missed", async () => (await send(b, "DELETE", nobodys)).status === 503)
      for (const node of nodes) {
        const answer = yield* post(node, call("say", { line: "on" }), { as: "alice", session })
        assert.include(JSON.stringify(yield* messagesOf(answer)), `on ${a.pid}`)
        for (const method of ["GET", "DELETE"]) {
          const refused = yield* request(node, method, { ...nobodys, headers: stream })
          assert.deepStrictEqual([refused.status, refused.headers.get("retry-after")], [503, "10"])
        }
      }
      renameSync(`${store}.away`, store)
      yield* settled(nodes)
      assert.strictEqual((yield* request(b, "DELETE", nobodys)).status, 404)
      assert.strictEqual((yield* request(b, "DELETE", { as: "alice", session })).status, 204)
    }))

  it.effect(
    "ends what is asked of a session whose node is frozen, and says 404 only when that is given up",
    () =>
      Effect.gen(function*() {
        const { directory, nodes } = yield* Cluster
        const [a, b, c] = first(nodes)
        const session = yield* begin(a, "alice")
        const alice = { as: "alice", session }
        const { args, notes } = noting(directory, "frozen")
        process.kill(a.pid, "SIGSTOP")
        const since = performance.now()
        const asked = [
          send(b, "POST", alice, call("note", args(0), "seven")),
          send(c, "GET", { ...alice, headers: stream }),
          send(c, "DELETE", alice)
        ]
        const answers = yield* Effect.promise(() => Promise.all(asked))
        assertWithin(performance.now() - since, 8_000)
        assert.deepStrictEqual(answers.map(({ status }) => status), [200, 503, 503])
        assert.include(JSON.stringify(yield* messagesOf(answers[0]!)), "It may have run")
        yield* known([b, c], 2)
        for (const node of [b, c]) assert.strictEqual((yield* post(node, call("say"), alice)).status, 404)
        process.kill(a.pid, "SIGCONT")
        yield* settled(nodes)
        assert.isAtMost(notes(), 1)
        // Nobody has ended it, or it was ended when it thawed
        assert.include([200, 404], (yield* post(b, call("say"), alice)).status)
      }),
    underLoad
  )

  it.effect("drains when it is stopped: what runs is finished, and new sessions begin elsewhere", () =>
    Effect.gen(function*() {
      const cluster = yield* Cluster
      const { directory, nodes, restart } = cluster
      const [a, b, c] = first(nodes)
      const session = yield* begin(a, "alice")
      const alice = { as: "alice", session }
      const { args, notes, runs } = noting(directory, "drained")
      const running = send(b, "POST", alice, call("note", args(1_000)))
      yield* runs
      process.kill(a.pid, "SIGTERM")
      yield* until("it is not ready", async () => (await a.ask({ ask: "ready" })).value === false)
      const begun = yield* begin(a, "alice")
      assert.notStrictEqual(begun.slice(32), session.slice(32))
      assert.strictEqual((yield* post(c, call("say"), { as: "alice", session: begun })).status, 200)
      const answer = yield* Effect.promise(() => running)
      assert.include(JSON.stringify(yield* messagesOf(answer)), `drained ${a.pid}`)
      assert.strictEqual(yield* Effect.promise(() => a.exited), 0)
      yield* known([b, c], 2)
      for (const node of [b, c]) assert.strictEqual((yield* post(node, call("say"), alice)).status, 404)
      assert.strictEqual((yield* post(c, call("say"), { as: "alice", session: begun })).status, 200)
      assert.strictEqual(notes(), 1)
      const again = yield* restart(a)
      cluster.nodes = [again, b, c]
      yield* known(cluster.nodes, 3)
      // Another process at the same address, and with the same tag, has none of its sessions
      for (const node of cluster.nodes) assert.strictEqual((yield* post(node, call("say"), alice)).status, 404)
    }))

  it.effect(
    "answers at once what a node had in flight that was killed, 503 while it may live, and then 404",
    () =>
      Effect.gen(function*() {
        const { directory, nodes } = yield* Cluster
        const [a, b, c] = first(nodes)
        const session = yield* begin(a, "alice")
        const alice = { as: "alice", session }
        const { args, notes, runs } = noting(directory, "killed")
        const listener = yield* request(c, "GET", { ...alice, headers: stream })
        const running = send(b, "POST", alice, call("note", args(5_000), "seven"))
        yield* runs
        const since = performance.now()
        process.kill(a.pid, "SIGKILL")
        const messages = yield* Effect.flatMap(Effect.promise(() => running), messagesOf)
        assert.deepStrictEqual(messages.map(({ id }) => id), ["seven"])
        assert.include(JSON.stringify(messages), "It may have run")
        yield* ended(listener)
        assertWithin(performance.now() - since, 2_000)
        for (const node of [b, c]) {
          for (const method of ["GET", "POST", "DELETE"]) {
            const body = method === "POST" ? call("note", args(0)) : undefined
            const { headers, status } = yield* request(node, method, {
              ...alice,
              headers: method === "GET" ? stream : {}
            }, body)
            assert.deepStrictEqual([status, headers.get("retry-after")], [503, "10"])
          }
        }
        assert.strictEqual((yield* post(b, initialize, { as: "alice" })).status, 200)
        yield* known([b, c], 2)
        for (const node of [b, c]) assert.strictEqual((yield* post(node, call("note", args(0)), alice)).status, 404)
        assert.strictEqual(notes(), 1)
      }),
    underLoad
  )
})
