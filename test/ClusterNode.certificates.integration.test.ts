/**
 * Two nodes whose links are secured with certificates, and those who have none that is good for it.
 */
import { assert, layer } from "@effect/vitest"
import { Identity, InvalidOptions } from "effect-mcp-sessions"
import { ClusterNode, type NodeOptions } from "effect-mcp-sessions/ClusterNode"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"
import * as Runner from "effect/cluster/Runner"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net"
import { join } from "node:path"
import { connect as connectTls, createServer as createTlsServer } from "node:tls"
import { shardName } from "../src/internal/cluster/owner.ts"
import * as Sqlite from "../src/internal/cluster/sqlite.ts"
import * as Welcome from "../src/internal/cluster/welcome.ts"
import { authority, type Certificate } from "./support/certificates.ts"
import { answer, keySecret, makeUpstream, type Upstream } from "./support/cluster.ts"
import { freePorts, until } from "./support/clusterProcesses.ts"
import { refused } from "./support/fibers.ts"
import { assertWithin, many, underLoad } from "./support/load.ts"
import { logging } from "./support/logging.ts"
import { heard, ping, withAnotherSecret } from "./support/strangers.ts"
import { temporaryDirectory } from "./support/temporary.ts"

const ours = authority()
const another = authority()
const past = new Date("2021-01-01")

const shards = 10

const locateTimeout = 3_000

interface Node {
  readonly port: number
  readonly sessions: SessionCluster["Service"]
  readonly size: () => number
  readonly owns: (key: string) => boolean
  readonly group: string
  readonly stop: Effect.Effect<void>
}

/** Two of them, and what a third would be started with. */
class Pair extends Context.Service<Pair, {
  readonly file: string
  readonly upstream: Upstream
  readonly optionsAt: (port: number, certificate: Certificate, ca?: string) => NodeOptions
  readonly start: (port: number, certificate: Certificate) => Effect.Effect<Node, unknown>
  nodes: readonly [Node, Node]
}>()("test/Pair") {
  static readonly layer = Layer.effect(
    Pair,
    Effect.gen(function*() {
      const file = join(temporaryDirectory("certificates-"), "cluster.db")
      const upstream = makeUpstream()
      const optionsAt = (port: number, { cert, key }: Certificate, ca = ours.cert): NodeOptions => ({
        host: "127.0.0.1",
        port,
        storage: `sqlite:${file}`,
        security: { cert, key: Redacted.make(key), ca },
        keySecret,
        shards,
        lockTimeToLive: "3 seconds",
        refreshInterval: "1 second",
        assignmentsInterval: "100 millis"
      })
      const outer = yield* Effect.scope
      const start: Pair["Service"]["start"] = Effect.fnUntraced(function*(port, certificate) {
        const scope = yield* Scope.fork(outer)
        const context = yield* Layer.buildWithScope(
          SessionCluster.layer<never, never>({ connect: upstream.connectAt(String(port)), locateTimeout })
            .pipe(Layer.provideMerge(ClusterNode.layer(optionsAt(port, certificate)))),
          scope
        )
        const { "~node": node } = Context.get(context, ClusterNode)
        return {
          port,
          sessions: Context.get(context, SessionCluster),
          size: node.fence.size,
          owns: (key) => node.fence.holds(shardName(node, key)),
          group: node.settings.group,
          stop: Scope.close(scope, Exit.void)
        }
      })
      const [one, other] = yield* freePorts(2)
      const a = yield* start(one!, ours.issue())
      const b = yield* start(other!, ours.issue())
      yield* settled([a, b])
      return { file, upstream, optionsAt, start, nodes: [a, b] as const }
    })
  )
}

const settled = (nodes: ReadonlyArray<Node>) =>
  until("all nodes have their share", () =>
    Promise.resolve(
      nodes.every(({ size }) => size() > 0) && nodes.reduce((sum, { size }) => sum + size(), 0) === shards
    ))

const users = Array.from({ length: 6 }, (_, i) => Identity.fromKey(`user${i}`))

/** So many that each node owns some of them. */
const late = Array.from({ length: 500 }, (_, i) => Identity.fromKey(`late${i}`))

/** Whose session each of them has, at each node. */
const places = (nodes: ReadonlyArray<Node>) =>
  Effect.forEach(
    nodes,
    ({ sessions }) => Effect.forEach(users, (user) => sessions.withSession(user, (session) => answer(session, "who")))
  )

const line = (word: string) => (socket: Socket) => void socket.write(`${word}\n`.repeat(1_000))

const mebibyte = Buffer.alloc(1024 * 1024, "x")

/** For as long as it is taken. */
const flood = (socket: Socket) => {
  const more = () => {
    while (!socket.destroyed && socket.write(mebibyte)) continue
  }
  socket.on("drain", more)
  more()
}

layer(Pair.layer, { excludeTestServices: true })("ClusterNode.layer with certificates", (it) => {
  it.effect(
    "answers nobody who has none of its authority that is good, and moves no shard for them",
    () =>
      Effect.gen(function*() {
        const { nodes } = yield* Pair
        const shares = () => nodes.map(({ size }) => size())
        const [before, known] = [shares(), yield* places(nodes)]
        const tls = (port: number, shown?: Certificate) =>
          connectTls({ port, host: "127.0.0.1", ca: ours.cert, ...shown, minVersion: "TLSv1.3" })
        const expired = ours.issue({ until: past })
        const strange = Effect.fnUntraced(function*({ port }: Node) {
          const strangers: ReadonlyArray<readonly [Socket, (socket: Socket) => void]> = [
            [connect(port, "127.0.0.1"), ping],
            [connect(port, "127.0.0.1"), flood],
            // For as long as a handshake may take
            ...Array.from({ length: many(0, 1) }, () => [connect(port, "127.0.0.1"), () => undefined] as const),
            [tls(port), ping],
            [tls(port), flood],
            [tls(port, another.issue()), ping],
            [tls(port, expired), ping],
            [withAnotherSecret(port), ping]
          ]
          const said = yield* Effect.forEach(strangers, ([socket, words]) => heard(socket, words), {
            concurrency: "unbounded"
          }).pipe(Effect.timeout("8 seconds"))
          for (const words of said) assert.notInclude(words, "Pong")
        })
        yield* Effect.forEach(nodes, strange, { concurrency: "unbounded" })
        assert.deepStrictEqual(shares(), before)
        assert.deepStrictEqual(yield* places(nodes), known)
        // And one that is good for it is answered, or none of this says anything
        const good = yield* heard(tls(nodes[0].port, ours.issue()), (socket) => {
          ping(socket)
          socket.on("data", () => socket.destroy())
        })
        assert.include(good, "Pong")
      }),
    underLoad
  )

  it.effect(
    "hangs up on a node that floods it with what nobody can read, and goes on with the others",
    () =>
      Effect.gen(function*() {
        const { nodes } = yield* Pair
        const known = yield* places(nodes)
        // A line without an end is read for as long as one may be that has files in it
        const words = [line("nonsense"), line("null"), ...Array.from({ length: many(0, 1) }, () => flood)]
        for (const write of words) {
          const { cert, key } = ours.issue()
          const peer = connectTls({ port: nodes[0].port, host: "127.0.0.1", ca: ours.cert, cert, key })
          yield* Effect.timeout(heard(peer, write), "10 seconds")
          assert.deepStrictEqual(yield* places(nodes), known)
        }
      }),
    underLoad
  )

  it.effect("is refused where the others would never let it in, before it has a share", () =>
    Effect.gen(function*() {
      const { nodes, optionsAt } = yield* Pair
      const shares = () => nodes.map(({ size }) => size())
      const [before, known] = [shares(), yield* places(nodes)]
      const [port] = yield* freePorts(1)
      const others: ReadonlyArray<readonly [NodeOptions, RegExp]> = [
        [optionsAt(port!, ours.issue({ until: past })), /has a "cert" that has expired: Jan/],
        [optionsAt(port!, ours.issue({ ip: [10, 0, 0, 7] })), /that is not for the name or the address/],
        [optionsAt(port!, another.issue(), another.cert), /must be that of the nodes that are there/],
        // It knows them, but they don't know it
        [optionsAt(port!, another.issue()), /must be that of the nodes that are there/]
      ]
      for (const [options, issue] of others) {
        const error = yield* refused(ClusterNode.layer(options))
        assert.instanceOf(error, InvalidOptions)
        assert.strictEqual((error as InvalidOptions).option, "security")
        assert.match((error as InvalidOptions).issue, issue)
      }
      yield* Effect.sleep("500 millis")
      assert.deepStrictEqual(shares(), before)
      assert.deepStrictEqual(yield* places(nodes), known)
    }))

  it.effect("says which of the others don't let it in, where some do", () =>
    Effect.gen(function*() {
      const { nodes: [a] } = yield* Pair
      const { cert, key } = another.issue()
      const server = createTlsServer({ cert, key }).on("tlsClientError", () => undefined)
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
        () => Effect.sync(() => server.close())
      )
      const { port } = server.address() as AddressInfo
      const { logged, logger } = logging()
      const security = { type: "certificates", ...ours.issue(), ca: ours.cert } as const
      const members = [{ host: "127.0.0.1", port: a.port }, { host: "127.0.0.1", port }]
      const isRefused = Welcome.isRefused(security, Effect.succeed(members))
      assert.isFalse(yield* Effect.provide(isRefused, logger))
      assert.lengthOf(logged, 1)
      assert.include(logged[0], `not trusted by it: 127.0.0.1:${port}. `)
    }))

  it.effect("has another certificate when it is started again, and those who went on talk to it", () =>
    Effect.gen(function*() {
      const pair = yield* Pair
      const [a, b] = pair.nodes
      yield* b.stop
      // Everything is served meanwhile
      yield* places([a])
      const again = yield* pair.start(b.port, ours.issue())
      pair.nodes = [a, again]
      yield* settled(pair.nodes)
      const [one, other] = yield* places(pair.nodes)
      assert.deepStrictEqual(one, other)
      const ofAgain = late.find(({ key }) => again.owns(key))!
      for (const { sessions } of pair.nodes) {
        const who = yield* sessions.withSession(ofAgain, (session) => answer(session, "who"))
        assert.include(who, `@${again.port}#`)
      }
      assert.strictEqual(pair.upstream.overlaps(), 1)
    }))

  it.effect("waits no longer than it may for a peer that accepts and says nothing", () =>
    Effect.gen(function*() {
      const { file, nodes } = yield* Pair
      const [a] = nodes
      const [port] = yield* freePorts(1)
      const peers = new Set<Socket>()
      yield* Effect.acquireRelease(
        Effect.callback<Server>((resume) => {
          const server = createServer((peer) => void peers.add(peer.on("error", () => undefined)))
          server.listen(port, "127.0.0.1", () => resume(Effect.succeed(server)))
        }),
        (server) =>
          Effect.sync(() => {
            server.close()
            for (const peer of peers) peer.destroy()
          })
      )
      const store = yield* Sqlite.make(file, 3_000)
      const address = RunnerAddress.make("127.0.0.1", port!)
      const before = a.size()
      yield* store.register(Runner.make({ address, groups: [a.group], weight: 1 }), true)
      const isNobodys = (user: Identity) => nodes.every(({ owns }) => !owns(user.key))
      yield* until("it has its share", () => Promise.resolve(a.size() < before && late.some(isNobodys)))
      const asking = late.filter(isNobodys).slice(0, 3)
      const since = performance.now()
      const exits = yield* Effect.forEach(
        asking,
        (user) => Effect.exit(a.sessions.withSession(user, (session) => answer(session, "who"))),
        { concurrency: "unbounded" }
      )
      assertWithin(performance.now() - since, locateTimeout + 5_000)
      for (const [index, exit] of exits.entries()) {
        // The others may have given it up in time, and have its share until it is taken for alive again
        if (Exit.isSuccess(exit)) assert.isTrue(exit.value.startsWith(`${asking[index]!.key}@`))
        else assert.strictEqual(Option.getOrUndefined(Exit.findErrorOption(exit))?._tag, "ClusterUnavailable")
      }
      yield* store.unregister(address)
      yield* settled(nodes)
      yield* places(nodes)
    }), underLoad)
})
