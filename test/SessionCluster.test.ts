import { assert, describe, it } from "@effect/vitest"
import {
  Credentials,
  Identity,
  McpConnector,
  McpSessionError,
  PoolExhausted,
  type SessionHandle
} from "effect-mcp-sessions"
import { ClusterNode, type MemoryCluster } from "effect-mcp-sessions/ClusterNode"
import type { Connector } from "effect-mcp-sessions/Connector"
import type { ProgressOptions } from "effect-mcp-sessions/McpSession"
import { type RemoteSession, SessionCluster } from "effect-mcp-sessions/SessionCluster"
import * as Cause from "effect/Cause"
import * as ClusterSchema from "effect/cluster/ClusterSchema"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import * as Wire from "../src/internal/cluster/wire.ts"
import {
  answer,
  clientLayer,
  identities,
  inside,
  keySecret,
  makeUpstream,
  nodeLayer,
  passing,
  rolesOf,
  startNode,
  startNodes,
  type Upstream
} from "./support/cluster.ts"
import { fork, refused } from "./support/fibers.ts"
import { makeWall } from "./support/wall.ts"

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const withToken = (token: string) => Identity.fromKey("alice", { credentials: Credentials.bearer(token) })

const who = (session: RemoteSession) => answer(session, "who")

/** Characters of two bytes each, for JSON of so many with what is around them. */
const text = (bytes: number, around: number) => "é".repeat((bytes - around) / 2)

const tick = Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve)))

/** A network on which nobody hears that a node has read what it was told of a lease. */
const unheard = (node: string): MemoryCluster => {
  const memory = ClusterNode.memory()
  const { transport } = inside(memory)
  const deaf: typeof transport = (self) => {
    const real = transport(self)
    if (self !== node) return real
    return {
      ...real,
      connect: (...to) =>
        Effect.map(real.connect(...to), (link) => ({
          ...link,
          send: (client, message) =>
            message._tag === "Request" && message.tag === "Envelope" ? Effect.void : link.send(client, message)
        }))
    }
  }
  Object.assign(inside(memory), { transport: deaf })
  return memory
}

/** A tool `held` whose calls wait until the last of them is finished. */
const hold = (upstream: Upstream) => {
  let finish: (() => void) | undefined
  upstream.tools.held = {
    run: () =>
      new Promise((resolve) => {
        finish = () => resolve({ content: [{ type: "text", text: "done" }] })
      })
  }
  return { isHeld: () => finish !== undefined, finish: () => finish!() }
}

/** A network on which a node answers with what it should not. */
const lying = (node: string, told: (json: string) => ReadonlyArray<string>): MemoryCluster => {
  const memory = ClusterNode.memory()
  const { transport } = inside(memory)
  const liar: typeof transport = (self) => {
    const real = transport(self)
    if (self !== node) return real
    return {
      ...real,
      listen: Effect.map(real.listen, (link) => ({
        ...link,
        send: (client, message, ...rest) =>
          Effect.forEach(
            told(JSON.stringify(message)),
            (sent) => link.send(client, JSON.parse(sent), ...rest),
            { discard: true }
          )
      }))
    }
  }
  Object.assign(inside(memory), { transport: liar })
  return memory
}

/** Runs until it is so, without time. */
const until = (isSo: () => boolean) =>
  Effect.gen(function*() {
    for (let turns = 0; !isSo(); turns++) {
      if (turns > 1_000) assert.fail("it never was so")
      yield* tick
    }
  })

describe("SessionCluster", () => {
  it.effect("has one session for each identity, whichever node is asked, and its shares at all of them", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b", "c"])
      const client = yield* startNode("client", clientLayer(memory, "client"))
      yield* TestClock.adjust("2 seconds")
      const users = identities(12)
      const answers = yield* passing(
        Effect.forEach(
          [...nodes, client],
          ({ cluster }) =>
            Effect.forEach(users, (user) => cluster.withSession(user, (session) => who(session)), {
              concurrency: "unbounded"
            }),
          { concurrency: "unbounded" }
        )
      )
      for (const other of answers) assert.deepStrictEqual(other, answers[0])
      assert.strictEqual(upstream.opened.length, 12)
      assert.strictEqual(new Set(upstream.opened.map((name) => name.split(/[@#]/)[1])).size, 3)
    }))

  it.effect("runs the same program on a pool, on a cluster, and at a node that owns nothing", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const said = yield* SessionCluster.withSession(alice, (session) => answer(session, "echo", { message: "hi" }))
        const session = yield* SessionCluster.get(alice)
        const { tools } = yield* session.listTools()
        assert.notProperty(session, "client")
        assert.notProperty(session, "pid")
        return {
          said,
          tools: tools.length,
          server: session.serverInfo,
          instructions: session.instructions,
          requestTimeout: Duration.toMillis(session.requestTimeout),
          capabilities: session.capabilities,
          invalidated: yield* SessionCluster.invalidate(alice),
          again: yield* SessionCluster.invalidate(bob)
        }
      }).pipe(Effect.scoped)

      const { memory, nodes } = yield* startNodes(["a", "b"])
      const client = yield* startNode("client", clientLayer(memory, "client"))
      yield* TestClock.adjust("2 seconds")
      const expected = yield* passing(
        Effect.provide(program, SessionCluster.layerPool({ connect: makeUpstream().connectAt("pool") }))
      )
      assert.strictEqual(expected.said, "hi")
      assert.isTrue(expected.invalidated)
      assert.isFalse(expected.again)
      for (const { cluster } of [...nodes, client]) {
        assert.deepStrictEqual(yield* passing(Effect.provideService(program, SessionCluster, cluster)), expected)
      }
    }))

  it.effect("lets two calls of one identity overlap, from one node and from two", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      let meeting = 0
      let all: (() => void) | undefined
      const everyone = new Promise<void>((resolve) => {
        all = resolve
      })
      upstream.tools.meet = {
        run: async () => {
          if (++meeting === 4) all?.()
          await everyone
          return { content: [] }
        }
      }
      yield* passing(Effect.forEach([...nodes, ...nodes], ({ cluster }) =>
        cluster.withSession(alice, (session) =>
          session.callTool({ name: "meet" })), { concurrency: "unbounded" }))
      assert.strictEqual(meeting, 4)
    }))

  it.effect("lets a defect of one caller's handler be that of its call alone", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      for (const { cluster } of nodes) {
        const exits = yield* passing(Effect.forEach([true, false, false], (isBad) =>
          Effect.exit(cluster.withSession(alice, (session) =>
            session.callTool({ name: "slow", arguments: { ms: 50 } }, {
              onProgress: () =>
                isBad ? Effect.die(new Error("a bug of the caller's")) : Effect.void
            }))), { concurrency: "unbounded" }))
        assert.deepStrictEqual(
          exits.map(({ _tag }) =>
            _tag
          ),
          ["Failure", "Success", "Success"]
        )
      }
      assert.strictEqual(upstream.calls.started, 6)
      assert.strictEqual(upstream.opened.length, 1)
    }))

  it.effect("fails a call whose request or answer can't cross, typed, and no other call", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"], { sessions: { maxMessageBytes: 1024 * 1024 } })
      const large = "x".repeat(2 * 1024 * 1024)
      upstream.tools.big = { run: () => ({ content: [], _meta: { value: 1n } }) }
      upstream.tools.large = { run: () => ({ content: [], _meta: { large } }) }
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const failureOf = (name: string, args: Record<string, unknown> = {}, onProgress?: () => Effect.Effect<void>) =>
        passing(
          other.cluster.withSession(alice, (session) =>
            Effect.map(Effect.flip(session.callTool({ name, arguments: args }, { onProgress })), ({ reason }) =>
              [reason._tag, reason.requestSent] as const))
        )
      for (
        const onProgress of [undefined, () =>
          Effect.void]
      ) {
        assert.deepStrictEqual(yield* failureOf("big", {}, onProgress), ["ProtocolFailure", true])
        assert.deepStrictEqual(yield* failureOf("large", {}, onProgress), ["ProtocolFailure", true])
        assert.deepStrictEqual(yield* failureOf("once", { id: 1n }, onProgress), ["ProtocolFailure", false])
        assert.deepStrictEqual(yield* failureOf("once", { id: large }, onProgress), ["ProtocolFailure", false])
      }
      assert.strictEqual(upstream.runs.size, 0)
      const after = yield* passing(other.cluster.withSession(alice, who))
      assert.strictEqual(after, yield* passing(owner.cluster.withSession(alice, who)))
      assert.lengthOf(upstream.opened, 1)
    }))

  it.effect("carries an error whose data is longer than maxMessageBytes without them", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"], { sessions: { maxMessageBytes: 1_000 } })
      upstream.tools.fail = {
        run: ({ bytes }) => {
          throw Object.assign(new Error("no"), { code: -32_001, data: "x".repeat(Number(bytes) - 2) })
        }
      }
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other } = rolesOf(upstream, nodes, "alice")
      const failing = (bytes: number) =>
        passing(Effect.flip(other.cluster.withSession(alice, (session) => answer(session, "fail", { bytes }))))
      for (const [bytes, data] of [[1_000, "x".repeat(998)], [1_001, undefined]] as const) {
        const error = yield* failing(bytes)
        assert.deepInclude({ ...(error as McpSessionError).reason }, { _tag: "ProtocolFailure", code: -32_001, data })
      }
      assert.lengthOf(upstream.opened, 1)
    }))

  it.effect("fails a call whose arguments or answer are longer than maxMessageBytes, and carries the longest", () =>
    Effect.gen(function*() {
      const maxMessageBytes = 1_000
      let runs = 0
      const { nodes, upstream } = yield* startNodes(["a", "b"], { sessions: { maxMessageBytes } })
      const asked = JSON.stringify({ name: "take", arguments: { id: "" } }).length
      const answered = JSON.stringify({ content: [], _meta: { text: "" } }).length
      upstream.tools.take = { run: () => ({ content: [], _meta: { runs: ++runs } }) }
      upstream.tools.answer = { run: ({ bytes }) => ({ content: [], _meta: { text: text(Number(bytes), answered) } }) }
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const run = (node: typeof other, name: string, args: Record<string, unknown>) =>
        passing(Effect.exit(node.cluster.withSession(alice, (session) => session.callTool({ name, arguments: args }))))
      const longest = maxMessageBytes - asked % 2
      const longestAnswer = maxMessageBytes - answered % 2
      assert.isTrue(Exit.isSuccess(yield* run(other, "take", { id: text(longest, asked) })))
      assert.isTrue(Exit.isSuccess(yield* run(other, "answer", { bytes: longestAnswer })))
      assert.strictEqual(runs, 1)
      for (
        const [name, args, requestSent] of [
          ["take", { id: text(longest + 2, asked) }, false],
          ["answer", { bytes: longestAnswer + 2 }, true]
        ] as const
      ) {
        const error = Option.getOrThrow(Exit.findErrorOption(yield* run(other, name, args)))
        if (!(error instanceof McpSessionError)) return assert.fail(String(error))
        assert.strictEqual(error.reason._tag, "ProtocolFailure")
        assert.strictEqual(error.reason.requestSent, requestSent)
        assert.include(error.message, "maxMessageBytes (1,000)")
        // Nothing crosses to who has the session
        assert.isTrue(Exit.isSuccess(yield* run(owner, name, args)))
      }
      assert.strictEqual(runs, 2)
      assert.lengthOf(upstream.opened, 1)
    }))

  it.effect("interrupts a handler of progress when all the time of a call is over, and returns the answer", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other } = rolesOf(upstream, nodes, "alice")
      const slow = other.cluster.withSession(
        alice,
        (session) =>
          session.callTool({ name: "slow", arguments: { ms: 50 } }, {
            onProgress: () => Effect.never,
            resetTimeoutOnProgress: true,
            timeout: "20 seconds",
            maxTotalTimeout: "40 seconds"
          })
      )
      const [took, { isError }] = yield* passing(Effect.timed(slow))
      assert.isUndefined(isError)
      assert.approximately(Duration.toMillis(took), 40_000, 100)
    }))

  it.effect("carries progress in order, notifications, and what the server asks the client", () =>
    Effect.gen(function*() {
      const upstream = makeUpstream()
      const memory = ClusterNode.memory()
      const nodes = yield* Effect.forEach(["a", "b"], (name) =>
        startNode(
          name,
          SessionCluster.layer<never, never>({
            connect: McpConnector.inProcess(upstream.serverAt(name), {
              roots: ({ key }) => Effect.succeed([{ uri: `file:///${key}@${name}` }])
            })
          }).pipe(Layer.provideMerge(ClusterNode.layerMemory({ memory, name, keySecret })))
        ))
      yield* TestClock.adjust("12 seconds")
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const seen: Array<number> = []
      const told = yield* passing(other.cluster.withSession(alice, (session) =>
        Effect.gen(function*() {
          assert.strictEqual(session.runner, `${owner.name}:1`)
          const notified = yield* Effect.forkChild(
            Stream.runHead(session.notifications),
            { startImmediately: true }
          )
          yield* session.ping()
          yield* session.callTool({ name: "slow", arguments: { ms: 50 } }, {
            onProgress: ({ progress }) => Effect.sync(() => seen.push(progress))
          })
          const roots = yield* answer(session, "roots")
          yield* answer(session, "grow", { name: "more" })
          const { tools } = yield* session.listTools()
          return { roots, notified: yield* Fiber.join(notified), grown: tools.some(({ name }) => name === "more") }
        })))
      assert.deepStrictEqual(seen, [1, 2, 3, 4, 5, 6, 7, 8, 9])
      assert.strictEqual(told.roots, `file:///alice@${owner.name}`)
      assert.isTrue(told.grown)
      assert.deepInclude(told.notified, { _tag: "Some" })
    }))

  it.effect("fails a call whose node is lost at once, for it may have run, and serves the identity elsewhere", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b", "c"])
      upstream.tools.hang = { run: () => new Promise(() => {}) }
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const calling = yield* fork(
        other.cluster.withSession(alice, (session) => session.callTool({ name: "hang" }))
      )
      yield* passing(Effect.sleep(200))
      assert.isUndefined(calling.pollUnsafe())
      yield* inside(memory).cutOff(`${owner.name}:1`)
      yield* until(() => calling.pollUnsafe() !== undefined)
      const error = yield* Effect.flip(Fiber.join(calling))
      assert.instanceOf(error, McpSessionError)
      assert.deepInclude((error as McpSessionError).reason, { _tag: "SessionClosed", requestSent: true })
      const next = yield* passing(Effect.timeout(other.cluster.withSession(alice, who), "12 seconds"))
      assert.notInclude(next, `@${owner.name}#`)
      // Whoever was cut off has closed its own before the next was opened
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect("keeps the session when only the link to its node breaks, and repeats nothing", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b"])
      const first = yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other } = rolesOf(upstream, nodes, "alice")
      const calling = yield* fork(
        other.cluster.withSession(alice, (session) => session.callTool({ name: "slow", arguments: { ms: 30 } }))
      )
      yield* until(() => upstream.calls.started === 1)
      yield* inside(memory).breakLinks("a:1", "b:1")
      const error = yield* Effect.flip(passing(Fiber.join(calling)))
      assert.deepInclude((error as McpSessionError).reason, { _tag: "SessionClosed", requestSent: true })
      assert.strictEqual(yield* passing(other.cluster.withSession(alice, who)), first)
      yield* passing(Effect.sleep("20 seconds"), 200)
      assert.strictEqual(upstream.calls.started, 1)
      assert.strictEqual(upstream.opened.length, 1)
    }))

  it.effect("finishes what runs when a node stops, and begins elsewhere", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const calling = yield* fork(other.cluster.withSession(alice, (session) =>
        Effect.as(session.callTool({ name: "slow", arguments: { ms: 100 } }), "done")))
      yield* until(() =>
        upstream.calls.started === 1
      )
      const closing = yield* fork(owner.close)
      const next = yield* fork(other.cluster.withSession(alice, who))
      assert.strictEqual(yield* passing(Fiber.join(calling), 1), "done")
      yield* passing(Fiber.join(closing))
      assert.include(yield* passing(Fiber.join(next)), `@${other.name}#`)
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect("finishes what runs in a session that was moving already when its node stops", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      const held = hold(upstream)
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const calling = yield* fork(
        other.cluster.withSession(alice, (session) => Effect.as(session.callTool({ name: "held" }), "done"))
      )
      yield* until(held.isHeld)
      yield* fork(owner.membership.drain)
      yield* passing(Effect.sleep("4 seconds"))
      const closing = yield* fork(owner.close)
      yield* passing(Effect.sleep("4 seconds"))
      assert.isUndefined(calling.pollUnsafe())
      held.finish()
      assert.strictEqual(yield* passing(Fiber.join(calling)), "done")
      yield* passing(Fiber.join(closing))
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect.each<readonly [string, ProgressOptions]>([
    ["of a call", {}],
    ["of a call with progress", { onProgress: () => Effect.void }]
  ])(
    "sends the answer $0 for which a node waits that stops, though nothing keeps it then",
    ([, options]) =>
      Effect.gen(function*() {
        const memory = ClusterNode.memory()
        const upstream = makeUpstream()
        const held = yield* Deferred.make<void>()
        const kept = yield* Scope.make()
        yield* Effect.addFinalizer(() => passing(Scope.close(kept, Exit.void)))
        let calls = 0
        // Closed in no time: what they are made of stays
        const connect: Connector = (identity, handle) =>
          Effect.map(Scope.provide(upstream.connectAt("a")(identity, handle), kept), (session) => ({
            ...session,
            callTool: () =>
              Effect.suspend(() => {
                calls++
                return Effect.as(Deferred.await(held), { content: [] })
              })
          }))
        const owner = yield* startNode("a", nodeLayer(memory, upstream, "a", { sessions: { connect } }))
        const client = yield* startNode("b", clientLayer(memory, "b"))
        yield* TestClock.adjust("12 seconds")
        const calling = yield* fork(
          client.cluster.withSession(alice, (session) => Effect.as(session.callTool({ name: "held" }, options), "done"))
        )
        yield* passing(Effect.promise(() => Promise.resolve()), 1)
        yield* until(() => calls === 1)
        const closing = yield* fork(owner.close)
        yield* passing(Effect.sleep("1 second"))
        yield* Deferred.succeed(held, undefined)
        assert.strictEqual(yield* passing(Fiber.join(calling)), "done")
        yield* passing(Fiber.join(closing))
      })
  )

  it.effect("finishes what a node has asked of another before it stops, and gives away what it has at once", () =>
    Effect.gen(function*() {
      // There is room for all of them at one node: who is evicted may be opened again before it is closed
      const { nodes, upstream } = yield* startNodes(["a", "b"], { sessions: { capacity: 20 } })
      const held = hold(upstream)
      const users = identities(20)
      yield* Effect.forEach(users, (user) => passing(nodes[0]!.cluster.withSession(user, who)))
      const { other, owner } = rolesOf(upstream, nodes, "user0")
      const calling = yield* fork(
        other.cluster.withSession(users[0]!, (session) => Effect.as(session.callTool({ name: "held" }), "done"))
      )
      yield* until(held.isHeld)
      const closing = yield* fork(other.close)
      const all = Effect.forEach(users, (user) => owner.cluster.withSession(user, who), { concurrency: "unbounded" })
      for (const name of yield* passing(all)) assert.include(name, `@${owner.name}#`)
      assert.isUndefined(calling.pollUnsafe())
      held.finish()
      assert.strictEqual(yield* passing(Fiber.join(calling)), "done")
      yield* passing(Fiber.join(closing))
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect.each<readonly ["to" | "from"]>([["to"], ["from"]])(
    "lets a call go on for terminationTimeout that goes $0 a node that stops, and fails it then, typed",
    ([way]) =>
      Effect.gen(function*() {
        const { nodes, upstream } = yield* startNodes(["a", "b"])
        upstream.tools.hang = { run: () => new Promise(() => {}) }
        yield* passing(nodes[0]!.cluster.withSession(alice, who))
        const { other, owner } = rolesOf(upstream, nodes, "alice")
        const calling = yield* fork(
          other.cluster.withSession(alice, (session) => Effect.exit(session.callTool({ name: "hang" })))
        )
        yield* passing(Effect.sleep(100))
        const closing = yield* fork(way === "to" ? owner.close : other.close)
        yield* passing(Effect.sleep("14 seconds"), 100)
        assert.isUndefined(calling.pollUnsafe())
        yield* passing(Fiber.join(closing), 100)
        const exit = yield* passing(Fiber.join(calling))
        const error = Option.getOrThrow(Exit.findErrorOption(exit))
        assert.deepInclude(error.reason, { _tag: "SessionClosed", requestSent: true })
      })
  )

  it.effect("lets an interrupted caller go at once, and tells the server", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b"])
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      for (const node of [other, owner]) {
        const before = upstream.calls.started
        const calling = yield* fork(
          node.cluster.withSession(alice, (session) => session.callTool({ name: "slow", arguments: { ms: 60_000 } }))
        )
        yield* until(() => upstream.calls.started === before + 1)
        yield* Fiber.interrupt(calling)
        yield* until(() => upstream.calls.cancelled === before + 1)
      }
      // Also when nobody is there to be told
      const calling = yield* fork(other.cluster.withSession(bob, (session) => who(session)))
      yield* inside(memory).cutOff(`${owner.name}:1`)
      const waiting = yield* fork(other.cluster.withSession(alice, who))
      yield* tick
      yield* Fiber.interruptAll([calling, waiting])
    }))

  it.effect("carries the errors of pool and session unchanged", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"], {
        sessions: { capacity: 1, acquireTimeout: "2 seconds" }
      })
      const [a] = nodes
      yield* passing(a!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const failed = yield* passing(
        Effect.flip(other.cluster.withSession(alice, (session) => session.callTool({ name: "nobody" })))
      )
      const here = yield* passing(
        Effect.flip(owner.cluster.withSession(alice, (session) => session.callTool({ name: "nobody" })))
      )
      assert.instanceOf(failed, McpSessionError)
      assert.deepStrictEqual(failed, here)
      assert.strictEqual((failed as McpSessionError).reason._tag, "ProtocolFailure")
      const result = yield* passing(other.cluster.withSession(alice, (session) => session.callTool({ name: "fail" })))
      assert.isTrue(result.isError)

      // A full pool at the owner
      const scope = yield* Scope.make()
      yield* passing(Scope.provide(other.cluster.get(alice), scope))
      const users = identities(6)
      const exits = yield* passing(
        Effect.forEach(users, (user) => Effect.exit(other.cluster.withSession(user, who))),
        50
      )
      const errors = exits.flatMap((exit) => Exit.isFailure(exit) ? [Exit.findErrorOption(exit)] : [])
      assert.isAbove(errors.length, 0)
      for (const error of errors) {
        assert.strictEqual(error._tag, "Some")
        if (error._tag === "Some") {
          assert.instanceOf(error.value, PoolExhausted)
          assert.include((error.value as PoolExhausted).message, "All 1 sessions of the pool were in use for 2s")
        }
      }
      yield* Scope.close(scope, Exit.void)
    }))

  it.effect("dies of an error of connect that no node can read, after one try, and shows nothing of it", () =>
    Effect.gen(function*() {
      let tries = 0
      const connect = () => {
        tries++
        return Effect.fail(new TypeError("Bearer sk-live-SECRET") as never)
      }
      const { nodes } = yield* startNodes(["a", "b"], { sessions: { connect } })
      for (const { cluster } of nodes) {
        const before = tries
        const exit = yield* passing(Effect.exit(cluster.withSession(alice, who)))
        const defect = Exit.isFailure(exit) ? exit.cause.reasons.find(Cause.isDieReason)?.defect : undefined
        assert.match(String(defect), /no ClusterConnectError: TypeError/)
        assert.notInclude(String(defect), "SECRET")
        assert.strictEqual(tries - before, 1)
      }
    }))

  it.effect("invalidates wherever the session is, and tells numbers, entries and events of all nodes", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      const events: Array<string> = []
      yield* Effect.forkScoped(
        Stream.runForEach(
          nodes[0]!.cluster.events,
          ({ event, runner }) => Effect.sync(() => events.push(`${runner} ${event._tag} ${event.key}`))
        ),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      const first = yield* passing(nodes[0]!.cluster.withSession(alice, who))
      yield* passing(nodes[0]!.cluster.withSession(bob, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const stats = yield* passing(other.cluster.stats)
      assert.deepStrictEqual(stats.nodes.map(({ runner }) => runner), ["a:1", "b:1"])
      assert.strictEqual(stats.nodes.reduce((sum, { stats: { size } }) => sum + size, 0), 2)
      const { entries, unreachable } = yield* passing(other.cluster.entries)
      assert.deepStrictEqual(entries.map(({ key }) => String(key)).toSorted(), ["alice", "bob"])
      assert.strictEqual(entries.find(({ key }) => key === "alice")?.runner, `${owner.name}:1`)
      assert.deepStrictEqual(unreachable, [])
      assert.isTrue(yield* passing(other.cluster.invalidate(alice)))
      const next = yield* passing(other.cluster.withSession(alice, who))
      assert.notStrictEqual(next, first)
      yield* passing(Effect.sleep("2 seconds"))
      assert.includeMembers(events, [
        `${owner.name}:1 Opened alice`,
        `${owner.name}:1 Retired alice`,
        `${owner.name}:1 Closed alice`
      ])
    }))

  it.effect.each<readonly [string, ProgressOptions, number]>([
    ["the call's timeout", { timeout: "5 seconds" }, 15],
    ["the call's timeout, which it has from its connector,", {}, 70],
    [
      "ten times the timeout, where progress resets that,",
      { resetTimeoutOnProgress: true, maxTotalTimeout: Duration.infinity },
      610
    ]
  ])(
    "waits for a node that lives and never answers no longer than $0 and 10 seconds",
    ([, options, seconds]) =>
      Effect.gen(function*() {
        let isLying = false
        const memory = lying("a:1", (json) => isLying && json.includes("\"Exit\"") ? [] : [json])
        const upstream = makeUpstream()
        yield* startNode("a", nodeLayer(memory, upstream, "a"))
        const client = yield* startNode("b", clientLayer(memory, "b"))
        yield* TestClock.adjust("12 seconds")
        yield* passing(client.cluster.withSession(alice, who))
        isLying = true
        const calling = yield* fork(
          client.cluster.withSession(
            alice,
            (session) => Effect.flip(session.callTool({ name: "who" }, options))
          )
        )
        yield* passing(Effect.sleep(`${seconds - 1} seconds`), 100)
        assert.isUndefined(calling.pollUnsafe())
        yield* passing(Effect.sleep("2 seconds"), 100)
        assert.isDefined(calling.pollUnsafe())
        const error = yield* Fiber.join(calling)
        assert.instanceOf(error, McpSessionError)
        assert.deepInclude(error.reason, { _tag: "RequestTimeout", requestSent: true })
      })
  )

  it.effect.each(["owner", "other"] as const)(
    "ends no call whose timeout is infinite, asked at the %s",
    (role) =>
      Effect.gen(function*() {
        const { nodes, upstream } = yield* startNodes(["a", "b"])
        const answered = yield* Deferred.make<void>()
        upstream.tools.wait = {
          run: () => Effect.runPromise(Effect.as(Deferred.await(answered), { content: [] }))
        }
        yield* passing(nodes[0]!.cluster.withSession(alice, who))
        const { cluster } = rolesOf(upstream, nodes, "alice")[role]
        const calling = yield* fork(
          cluster.withSession(alice, (session) => session.callTool({ name: "wait" }, { timeout: Duration.infinity }))
        )
        yield* passing(Effect.sleep("3 minutes"), 100)
        assert.isUndefined(calling.pollUnsafe())
        yield* Deferred.succeed(answered, undefined)
        assert.deepStrictEqual((yield* passing(Fiber.join(calling))).content, [])
      })
  )

  it.effect.each<readonly [string, ProgressOptions, (json: string) => ReadonlyArray<string>]>([
    ["that it leaves out", { onProgress: () => Effect.void }, (json) => json.includes("\"Answer\"") ? [] : [json]],
    ["that is no JSON", {}, (json) => [json.replace("\"value\":\"{", "\"value\":\"")]]
  ])("fails a call, typed, for a node's answer $0", ([, options, told]) =>
    Effect.gen(function*() {
      let isLying = false
      const memory = lying("a:1", (json) => isLying ? told(json) : [json])
      const upstream = makeUpstream()
      yield* startNode("a", nodeLayer(memory, upstream, "a"))
      const client = yield* startNode("b", clientLayer(memory, "b"))
      yield* TestClock.adjust("12 seconds")
      yield* passing(client.cluster.withSession(alice, who))
      isLying = true
      const exit = yield* passing(
        Effect.exit(
          client.cluster.withSession(alice, (session) => session.callTool({ name: "who" }, options))
        )
      )
      const error = Option.getOrThrow(Exit.findErrorOption(exit))
      assert.instanceOf(error, McpSessionError)
      assert.deepInclude(error.reason, { _tag: "SessionClosed", requestSent: true })
      isLying = false
      assert.include(yield* passing(client.cluster.withSession(alice, who)), "alice@a#")
    }))

  it.effect("closes an idle session once, on time, also when its shard has moved meanwhile", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a"], { sessions: { idleTimeToLive: "1 minute" } })
      const users = identities(12)
      const [a] = nodes
      // More than ten would evict one another
      yield* passing(Effect.forEach(users.slice(0, 10), (user) => a!.cluster.withSession(user, who)))
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(upstream.closed.length, 0)
      const joined = yield* startNode(
        "b",
        nodeLayer(memory, upstream, "b", { sessions: { idleTimeToLive: "1 minute" } })
      )
      yield* passing(Effect.sleep("5 seconds"), 100)
      const moved = upstream.closed.length
      assert.isAbove(moved, 0)
      assert.isBelow(moved, 10)
      yield* passing(joined.cluster.withSession(users[0]!, who))
      yield* passing(Effect.sleep("2 minutes"), 500)
      assert.strictEqual(upstream.closed.length, upstream.opened.length)
      assert.strictEqual(new Set(upstream.closed).size, upstream.closed.length)
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect("sends the newest credentials to the session, and shows them to nobody", () =>
    Effect.gen(function*() {
      const secret = "sk-live-SECRET"
      const spans: Array<Tracer.NativeSpan> = []
      const logs: Array<string> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const watched = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        effect.pipe(
          Effect.provideService(Tracer.Tracer, tracer),
          Effect.provide(Logger.layer([
            Logger.make((options) => void logs.push(JSON.stringify([options.message, String(options.cause)])))
          ])),
          Effect.provideService(References.MinimumLogLevel, "All")
        )
      yield* watched(Effect.gen(function*() {
        const memory = ClusterNode.memory()
        const upstream = makeUpstream()
        const handles = new Map<string, SessionHandle>()
        const nodes = yield* Effect.forEach(["a", "b"], (name) =>
          startNode(
            name,
            SessionCluster.layer<Scope.Scope, never>({
              connect: (identity, handle) => {
                handles.set(identity.key, handle)
                return upstream.connectAt(name)(identity, handle)
              }
            }).pipe(Layer.provideMerge(ClusterNode.layerMemory({ memory, name, keySecret })))
          ))
        yield* TestClock.adjust("12 seconds")
        const newest = Effect.suspend(() => handles.get("alice")!.credentials).pipe(
          Effect.map((found) => Redacted.value(Option.getOrThrow(found).token))
        )
        yield* passing(nodes[0]!.cluster.withSession(withToken(`${secret}-1`), who))
        const { other, owner } = rolesOf(upstream, nodes, "alice")
        assert.strictEqual(yield* newest, `${secret}-1`)
        for (const [i, { cluster }] of [other, owner, other].entries()) {
          yield* passing(cluster.withSession(withToken(`${secret}-${i + 2}`), who))
          assert.strictEqual(yield* newest, `${secret}-${i + 2}`)
        }
        yield* inside(memory).cutOff(`${owner.name}:1`)
        const failed = yield* passing(Effect.exit(other.cluster.withSession(withToken(`${secret}-9`), (session) =>
          session.callTool({ name: "nobody" }))))
        assert.strictEqual(failed._tag, "Failure")
        assert.notInclude(String(failed), secret)
        assert.notInclude(JSON.stringify(yield* passing(other.cluster.entries)), secret)
        assert.notInclude(JSON.stringify(yield* passing(other.cluster.stats)), secret)
      }))
      assert.isAbove(spans.length, 5)
      assert.isAbove(logs.length, 5)
      const told = spans.map((span) =>
        JSON.stringify([span.name, ...span.attributes, ...span.events])
      )
      for (const line of [...logs, ...told]) assert.notInclude(line, secret)
    }))

  it.effect("makes the trace of a call go on at its owner", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other } = rolesOf(upstream, nodes, "alice")
      const traced = yield* passing(Effect.useSpan("caller", (span) =>
        Effect.map(
          Effect.withParentSpan(other.cluster.withSession(alice, (session) => answer(session, "trace")), span),
          (said) => [said, span.traceId] as const
        )))
      assert.include(traced[0], traced[1])
    }))

  it.effect("opens another session when the owner's has lived for maxLifetime, for those of other nodes, too", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"], { sessions: { maxLifetime: "10 seconds" } })
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other } = rolesOf(upstream, nodes, "alice")
      // Always in use, so that no lease ends by itself
      for (let i = 0; i < 40; i++) {
        yield* passing(other.cluster.withSession(alice, who))
        yield* passing(Effect.sleep(500), 100)
      }
      assert.isAtLeast(upstream.opened.length, 2)
      assert.isAtMost(upstream.opened.length, 3)
    }))

  it.effect("gives nobody a session again that was invalidated while it opened, at whichever node they ask", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const upstream = makeUpstream()
      const connect = upstream.connectAt("a")
      const node = yield* startNode(
        "a",
        nodeLayer(memory, upstream, "a", {
          sessions: { connect: (identity, handle) => Effect.delay(connect(identity, handle), 1_000) }
        })
      )
      const client = yield* startNode("c", clientLayer(memory, "c"))
      yield* TestClock.adjust("12 seconds")
      const first = yield* fork(client.cluster.withSession(alice, who))
      yield* passing(Effect.sleep(500))
      assert.isTrue(yield* passing(node.cluster.invalidate(alice)))
      // Who waited for it already has it
      assert.strictEqual(yield* passing(Fiber.join(first)), "alice@a#1")
      assert.strictEqual(yield* passing(client.cluster.withSession(alice, who)), "alice@a#2")
    }))

  it.effect("fails typed at a node that has ended, and interrupts nobody who asks there", () =>
    Effect.gen(function*() {
      const { nodes: [a, b] } = yield* startNodes(["a", "b"])
      yield* passing(a!.close)
      yield* passing(Effect.sleep("10 seconds"), 100)
      const { cluster } = a!
      const closed = { _tag: "ClusterUnavailable", reason: "closed" } as const
      assert.deepInclude({ ...yield* passing(Effect.flip(cluster.invalidate(alice))) }, closed)
      assert.deepInclude({ ...yield* passing(Effect.flip(cluster.stats)) }, closed)
      assert.deepInclude({ ...yield* passing(Effect.flip(cluster.entries)) }, closed)
      assert.strictEqual((yield* passing(Effect.flip(cluster.withSession(alice, who))))._tag, "PoolClosed")
      assert.strictEqual(yield* passing(b!.cluster.withSession(alice, who)), "alice@b#1")
    }))

  it.effect("ends nothing while the store is away for less time than its locks hold without it", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b"])
      const held = hold(upstream)
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other } = rolesOf(upstream, nodes, "alice")
      const call = yield* fork(other.cluster.withSession(alice, (session) => answer(session, "held")))
      inside(memory).isStoreDown = true
      // Each node asks it once at least, and hears nothing
      yield* passing(Effect.sleep("3900 millis"), 100)
      inside(memory).isStoreDown = false
      yield* passing(Effect.sleep("10 seconds"), 100)
      held.finish()
      assert.strictEqual(yield* passing(Fiber.join(call)), "done")
      assert.strictEqual(upstream.opened.length, 1)
    }))

  it.effect("ends what it may lose also for who has vanished while it was given a lease, without a word", () =>
    Effect.gen(function*() {
      const memory = unheard("c:1")
      const upstream = makeUpstream()
      const node = yield* startNode("a", nodeLayer(memory, upstream, "a"))
      const client = yield* startNode("c", clientLayer(memory, "c"))
      yield* TestClock.adjust("12 seconds")
      yield* fork(client.cluster.withSession(alice, who))
      yield* passing(Effect.sleep(200))
      assert.strictEqual(upstream.opened.length, 1)
      // Heard of in time by the engine, which gives up nothing, and too late for what is only sure for so long
      inside(memory).isStoreDown = true
      yield* passing(Effect.sleep("7500 millis"), 100)
      inside(memory).isStoreDown = false
      yield* passing(Effect.sleep("2 seconds"), 100)
      assert.deepStrictEqual(upstream.closed, upstream.opened)
      yield* passing(node.cluster.withSession(alice, who))
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect("ends what it has before its locks can have run out, while the store is silent, and begins again", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b"])
      upstream.tools.hang = { run: () => new Promise(() => {}) }
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const calls = yield* Effect.forEach(
        [other, owner],
        ({ cluster }) => fork(cluster.withSession(alice, (session) => session.callTool({ name: "hang" })))
      )
      inside(memory).isStoreDown = true
      yield* passing(Effect.sleep("10 seconds"), 100)
      for (const calling of calls) {
        const error = yield* Effect.flip(passing(Fiber.join(calling)))
        assert.deepInclude((error as McpSessionError).reason, { _tag: "SessionClosed", requestSent: true })
      }
      assert.deepStrictEqual(upstream.closed, upstream.opened)
      const refusal = yield* passing(Effect.flip(other.cluster.withSession(alice, who)), 500)
      assert.strictEqual(refusal._tag, "ClusterUnavailable")
      inside(memory).isStoreDown = false
      yield* passing(other.cluster.withSession(alice, who), 100)
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect("serves nothing from a lock that may have run out, as after a freeze, and runs the call elsewhere", () =>
    Effect.gen(function*() {
      const wall = yield* makeWall
      const { nodes, upstream } = yield* startNodes(["a", "b"], { on: wall.on })
      yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      const session = yield* passing(other.cluster.get(alice))
      yield* passing(session.ping())
      yield* wall.jump(60_000)
      const failed = yield* passing(Effect.flip(answer(session, "once", { id: 1 })), 1)
      assert.deepInclude(failed.reason, { _tag: "SessionClosed", requestSent: false })
      assert.strictEqual(upstream.runs.size, 0)
      for (const { cluster } of [other, owner]) yield* passing(cluster.withSession(alice, who), 100)
      assert.strictEqual(upstream.overlaps(), 1)
    }))

  it.effect("opens nothing in the last third of a lock, which is for closing, until the store is heard of", () =>
    Effect.gen(function*() {
      const wall = yield* makeWall
      const { nodes: [node], upstream } = yield* startNodes(["a"], {
        on: wall.on,
        node: { lockTimeToLive: "10 seconds", refreshInterval: "500 millis" }
      })
      yield* passing(node!.cluster.withSession(alice, who))
      yield* passing(node!.cluster.invalidate(alice))
      yield* wall.jump(8_000)
      const asked = yield* fork(node!.cluster.withSession(alice, who))
      for (let turns = 0; turns < 100; turns++) yield* tick
      assert.strictEqual(upstream.opened.length, 1)
      yield* passing(Fiber.join(asked))
      assert.strictEqual(upstream.opened.length, 2)
    }))

  it.effect.each<readonly [string, number]>([
    ["has nearly run out", 8_000],
    ["may have run out", 10_500]
  ])(
    "has whoever waited for room ask again when the lock %s meanwhile, and blames no server",
    ([, jump]) =>
      Effect.gen(function*() {
        const wall = yield* makeWall
        const { nodes: [node], upstream } = yield* startNodes(["a"], {
          on: wall.on,
          node: { lockTimeToLive: "10 seconds", refreshInterval: "500 millis" },
          sessions: { capacity: 1, failureTimeToLive: "1 minute" }
        })
        const hung: Array<() => void> = []
        upstream.tools.hang = { run: () => new Promise((resolve) => hung.push(() => resolve({ content: [] }))) }
        const calling = yield* fork(
          node!.cluster.withSession(bob, (session) => session.callTool({ name: "hang" }))
        )
        yield* passing(Effect.sleep(100))
        const asked = yield* fork(node!.cluster.withSession(alice, who))
        yield* passing(Effect.sleep(100))
        assert.strictEqual(upstream.opened.length, 1)
        yield* wall.jump(jump)
        for (const answers of hung) answers()
        assert.match(yield* passing(Fiber.join(asked)), /^alice@a/)
        yield* Fiber.await(calling)
        assert.strictEqual(upstream.opened.length, 2)
      })
  )

  it.effect("gives an exclusive session to one caller at a time, of whichever node", () =>
    Effect.gen(function*() {
      const { memory, nodes, upstream } = yield* startNodes(["a", "b"], { sessions: { leases: "exclusive" } })
      const client = yield* startNode("client", clientLayer(memory, "client", { leases: "exclusive" }))
      yield* TestClock.adjust("2 seconds")
      let using = 0
      let most = 0
      const use = (session: RemoteSession) =>
        Effect.gen(function*() {
          most = Math.max(most, ++using)
          yield* session.ping()
          yield* Effect.sleep(10)
          using--
        })
      const all = [...nodes, client]
      yield* passing(Effect.forEach([...all, ...all], ({ cluster }) => cluster.withSession(alice, use), {
        concurrency: "unbounded"
      }))
      assert.strictEqual(most, 1)
      assert.strictEqual(upstream.opened.length, 1)
    }))

  it.effect("runs f again on a session that is there when its own has ended unasked", () =>
    Effect.gen(function*() {
      const { nodes, upstream } = yield* startNodes(["a", "b"])
      const first = yield* passing(nodes[0]!.cluster.withSession(alice, who))
      const { other, owner } = rolesOf(upstream, nodes, "alice")
      yield* passing(other.cluster.withSession(alice, who))
      // The lease that is kept does not know of it yet
      const gone = yield* fork(owner.close)
      let runs = 0
      const again = yield* passing(other.cluster.withSession(alice, (session) => {
        runs++
        return who(session)
      }))
      assert.notStrictEqual(again, first)
      assert.isAtMost(runs, 2)
      yield* passing(Fiber.join(gone))
    }))

  it.effect("fails with ClusterUnavailable when nobody answers for locateTimeout", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const client = yield* startNode("client", clientLayer(memory, "client"))
      const asked = yield* fork(client.cluster.withSession(alice, who))
      yield* TestClock.adjust("19 seconds")
      assert.isUndefined(asked.pollUnsafe())
      yield* TestClock.adjust("2 seconds")
      const error = yield* Effect.flip(Fiber.join(asked))
      assert.deepInclude({ ...error }, { _tag: "ClusterUnavailable", method: "withSession", reason: "owner" })
    }))

  it.effect.each(
    [
      ["an option of another kind", { locateTimeout: -1 }, "locateTimeout"],
      ["an option of the pool of another kind", { capacity: 0 }, "capacity"],
      ["an unknown option", { ttl: 1 }, "ttl"],
      ["prewarm, which knows no nodes", { prewarm: Effect.void }, "prewarm"]
    ] as const
  )("refuses $0", ([, options, option]) =>
    Effect.gen(function*() {
      const given = { connect: makeUpstream().connectAt("a"), ...options }
      const error = yield* refused(
        SessionCluster.layer<never, never>(given).pipe(
          Layer.provide(ClusterNode.layerMemory({ memory: ClusterNode.memory(), name: "a", keySecret }))
        )
      )
      assert.deepInclude({ ...(error as object) }, { _tag: "InvalidOptions", option })
    }))

  it("has no RPC that is ever stored", () => {
    const rpcs = [
      ...Wire.makeEntity("group").protocol.requests.values(),
      ...Wire.Rpcs.requests.values()
    ]
    assert.isAbove(rpcs.length, 6)
    for (const rpc of rpcs) assert.isFalse(Context.get(rpc.annotations, ClusterSchema.Persisted), rpc._tag)
  })
})
