/**
 * A random program over the sessions of three nodes and of one that owns nothing, with everything of the library in it
 * but the engine and the links: those are the worst that the library may have to live with. Requests are sent again,
 * twice at once, to nodes that have them no more; calls are lost, doubled and overtake each other; answers are lost;
 * sessions move while they are used; nodes are cut off from the store and nobody tells them.
 *
 * Nothing may run twice, nobody may be told that what has run was not sent, and no key may have two sessions.
 */
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Entity from "effect/cluster/Entity"
import * as EntityAddress from "effect/cluster/EntityAddress"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as ShardId from "effect/cluster/ShardId"
import type * as Sharding from "effect/cluster/Sharding"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import { RpcClientError } from "effect/rpc/RpcClientError"
import * as Scope from "effect/Scope"
import { SocketCloseError, SocketOpenError } from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { ClusterNode } from "../../src/ClusterNode.ts"
import type { SessionHandle } from "../../src/Connector.ts"
import { Credentials, Identity } from "../../src/Identity.ts"
import * as Fence from "../../src/internal/cluster/fence.ts"
import * as Members from "../../src/internal/cluster/members.ts"
import * as Memory from "../../src/internal/cluster/memory.ts"
import type { Node, Peer } from "../../src/internal/cluster/node.ts"
import type { Settings } from "../../src/internal/cluster/settings.ts"
import * as Wire from "../../src/internal/cluster/wire.ts"
import { McpSessionError, RequestTimeout, SessionClosed, SessionExpired } from "../../src/McpSessionError.ts"
import type { McpSession } from "../../src/Session.ts"
import { SessionCluster } from "../../src/SessionCluster.ts"
import * as Simulator from "./simulator.ts"
import { type Dice, makeDice } from "./world.ts"

// -----------------------------------------------------------------------------
// Programs
// -----------------------------------------------------------------------------

type Action =
  | {
    readonly do: "call"
    readonly key: number
    readonly node: number
    readonly calls: number
    readonly nap: number
    /** How long its handler of progress takes; without one it hears of none. */
    readonly handling: number | undefined
  }
  | { readonly do: "interrupt"; readonly caller: number }
  | { readonly do: "advance"; readonly millis: number }
  | { readonly do: "move"; readonly key: number; readonly to: number }
  | { readonly do: "breakLinks"; readonly node: number }
  | { readonly do: "silence"; readonly node: number; readonly millis: number }
  | { readonly do: "invalidate"; readonly key: number; readonly node: number }
  | { readonly do: "die"; readonly session: number }
  /** As a deploy does: the first of a program alone, so that somebody is left. */
  | { readonly do: "stop"; readonly node: number }
  | { readonly do: "shutdown" }

const names = ["a", "b", "c"] as const
const client = "d"
const keys = 4

const action = (dice: Dice): Action => {
  const key = dice.below(keys)
  const roll = dice.next()
  if (roll < 0.42) {
    return {
      do: "call",
      key,
      node: dice.below(4),
      calls: dice.pick([1, 1, 1, 2, 3]),
      nap: dice.pick([0, 0, 5, 60]),
      handling: dice.pick([undefined, undefined, 0, 5])
    }
  }
  if (roll < 0.5) return { do: "interrupt", caller: dice.below(20) }
  if (roll < 0.74) return { do: "advance", millis: dice.pick([0, 1, 5, 20, 49, 100, 300, 700]) }
  if (roll < 0.84) return { do: "move", key, to: dice.below(3) }
  if (roll < 0.9) return { do: "breakLinks", node: dice.below(4) }
  if (roll < 0.94) return { do: "silence", node: dice.below(3), millis: dice.pick([100, 400, 900, 1_500]) }
  if (roll < 0.96) return { do: "invalidate", key, node: dice.below(4) }
  if (roll < 0.975) return { do: "stop", node: dice.below(3) }
  return { do: "die", session: dice.below(6) }
}

// -----------------------------------------------------------------------------
// What the world sees
// -----------------------------------------------------------------------------

interface Session extends Simulator.Opened {
  readonly key: string
  readonly node: string
  readonly handle: SessionHandle
  /** Completed when it is closed, or has died. */
  readonly over: Deferred.Deferred<void>
}

interface Caller extends Simulator.Caller {
  /** The names of its calls, in order. */
  readonly calls: ReadonlyArray<string>
  /** Which of them it made last. */
  last: string | undefined
}

type LeaseHandlers = {
  readonly Lease: (
    request: { readonly payload: { readonly identity: Identity } }
  ) => Effect.Effect<Queue.Dequeue<Wire.LeaseEvent, Cause.Done>, never, Scope.Scope>
  readonly Invalidate: (request: { readonly payload: { readonly identity: Identity } }) => Effect.Effect<boolean>
}

/** An entity that is there. */
interface Activation {
  readonly key: string
  readonly node: string
  readonly scope: Scope.Closeable
  readonly handlers: LeaseHandlers
  readonly requests: Set<Scope.Closeable>
  isClosing: boolean
}

interface Machine {
  readonly name: string
  readonly node: Node
  /** What registers the entity gives. */
  build: Effect.Effect<LeaseHandlers, never, Entity.CurrentAddress | Scope.Scope> | undefined
  readonly activations: Map<string, Activation>
  readonly memory: Memory.Memory
  silentUntil: number
}

const gone = new RpcClientError({ reason: new SocketCloseError({ code: 1006 }) })
const closed = new RpcClientError({
  reason: new SocketOpenError({ kind: "Unknown", cause: new Error("nobody listens") })
})

/** What a node answers that owns nothing, or not any more. */
const unknown = new Wire.Refused({ seen: false })

class Simulation extends Simulator.Simulation<Action> {
  readonly sessions: Array<Session> = []
  readonly callers: Array<Caller> = []
  readonly runs = new Map<string, number>()
  /** What the server has reported of each call, and what its caller has heard. */
  readonly reports = new Map<string, { readonly told: Array<number>; readonly heard: Array<number> }>()
  readonly machines = new Map<string, Machine>()
  readonly clusters = new Map<string, Context.Service.Shape<typeof SessionCluster>>()
  /** Where the engine believes each key to be. */
  readonly assigned = new Map<string, string>()
  /** Told when the links of a node break. */
  readonly breaks = new Set<{ readonly nodes: ReadonlyArray<string>; readonly broken: Deferred.Deferred<void> }>()
  readonly locks: Settings
  readonly times: { readonly locateTimeout: number; readonly leaseTimeToLive: number; readonly idleTimeToLive: number }
  readonly options: { readonly closeTimeout: number; readonly drainTimeout: number }
  /** How often what is sent goes astray. */
  readonly weather: number
  /** Nothing breaks, and no call takes long: sessions move and nodes stop, and nobody may notice. */
  readonly isFair: boolean
  readonly scopes = new Map<string, Scope.Closeable>()
  stopped: string | undefined
  sends = 0

  constructor(seed: number) {
    super(seed)
    const { dice } = this
    this.locks = {
      address: undefined,
      shards: keys,
      group: "g",
      lockTimeToLive: 600,
      refreshInterval: 150,
      assignmentsInterval: 50,
      terminationTimeout: dice.pick([50, 200])
    }
    this.times = {
      locateTimeout: dice.pick([100, 400, 1_500]),
      leaseTimeToLive: dice.pick([1, 40, 200]),
      idleTimeToLive: dice.pick([30, 300])
    }
    // All nodes end one after the other, and an entity is waited for
    this.options = { closeTimeout: 40, drainTimeout: 2_500 }
    this.isFair = dice.chance(0.3)
    this.weather = this.isFair ? 0 : dice.pick([0, 0.1, 0.3])
  }

  start(): void {
    const store = Memory.make()
    const layers = [...names, client].map((name) => [name, this.machine(name, store)] as const)
    for (const [name, layer] of layers) {
      const scope = Scope.forkUnsafe(this.scope)
      this.scopes.set(name, scope)
      const context = this.build(layer, scope)
      if (context === undefined) return
      this.clusters.set(name, Context.get(context, SessionCluster))
    }
    for (let key = 0; key < keys; key++) this.assigned.set(`key-${key}`, names[key % names.length]!)
  }

  machine(name: string, memory: Memory.Memory): Layer.Layer<SessionCluster, unknown> {
    const isOwner = name !== client
    const node = Layer.effect(
      ClusterNode,
      Effect.gen({ self: this }, function*() {
        const clock = yield* Clock.Clock
        const address = isOwner ? RunnerAddress.make(name, 1) : undefined
        const settings = { ...this.locks, address }
        const storage = memory.storage(clock, settings.lockTimeToLive, `${name}:1`)
        const heard = <A, E>(answer: Effect.Effect<A, E>): Effect.Effect<A, E> =>
          Effect.suspend(() => this.isSilent(name) ? Effect.never : answer)
        const fence = Fence.make({
          storage: { ...storage, refresh: (runner, shards) => heard(storage.refresh(runner, shards)) },
          clock,
          expiry: settings.lockTimeToLive,
          interval: settings.refreshInterval,
          group: settings.group,
          address
        })
        const membership = yield* Members.make(settings, fence)
        const made: Node = {
          settings,
          fence,
          membership,
          sharding: this.sharding(name),
          peer: ({ host }) => Effect.succeed(this.peer(name, host)),
          directory: { handlers: undefined }
        }
        const machine: Machine = {
          name,
          node: made,
          build: undefined,
          activations: new Map(),
          memory,
          silentUntil: 0
        }
        this.machines.set(name, machine)
        if (address !== undefined) yield* Effect.forkScoped(this.heartbeats(machine, address))
        return { "~node": made }
      })
    )
    const sessions = isOwner
      ? SessionCluster.layer<never, never>({
        ...this.times,
        capacity: 3,
        acquireTimeout: 100,
        connectTimeout: 100,
        closeTimeout: this.options.closeTimeout,
        connect: (identity, handle) => this.connect(name, identity, handle)
      })
      : SessionCluster.layerClient({
        locateTimeout: this.times.locateTimeout,
        leaseTimeToLive: this.times.leaseTimeToLive
      })
    return sessions.pipe(
      Layer.provide(node),
      Layer.provide(Logger.layer([Logger.make(({ message }) => void (this.said += JSON.stringify(message)))]))
    )
  }

  // --- Sessions ---

  connect(
    node: string,
    identity: Identity,
    handle: SessionHandle
  ): Effect.Effect<McpSession, McpSessionError, Scope.Scope> {
    return Effect.gen({ self: this }, function*() {
      const session: Session = {
        ...this.opening(),
        key: identity.key,
        node,
        handle,
        over: Deferred.makeUnsafe<void>()
      }
      this.sessions.push(session)
      const fate = this.fateOf(session)
      if (fate.chance(0.5)) yield* Effect.sleep(fate.pick([1, 10, 30]))
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          session.acquired = true
          session.phase = "open"
          this.note(`session ${session.id} of ${session.key} is open at ${node}`)
          this.examineSessions()
        }),
        () =>
          Effect.gen({ self: this }, function*() {
            session.releases++
            this.note(`session ${session.id} closes`)
            session.phase = "closing"
            Deferred.doneUnsafe(session.over, Exit.void)
            if (fate.chance(0.5)) yield* Effect.sleep(fate.pick([1, 15, 35]))
            session.phase = "closed"
          })
      )
      if (!this.isFair && fate.chance(0.1)) {
        return yield* new McpSessionError({
          reason: new SessionClosed({ requestSent: false }),
          method: "connect",
          server: "s"
        })
      }
      return this.sessionOf(session, identity)
    })
  }

  sessionOf(session: Session, identity: Identity): McpSession {
    const callTool: McpSession["callTool"] = ({ name }, given) =>
      Effect.suspend((): Effect.Effect<CallToolResult, McpSessionError> => {
        if (session.phase !== "open") return Effect.fail(fail(new SessionClosed({ requestSent: false })))
        const roll = this.isFair ? 1 : this.dice.next()
        if (roll < 0.05) {
          return Effect.andThen(
            session.handle.retire("died"),
            Effect.fail(fail(new SessionExpired({ requestSent: true })))
          )
        }
        this.note(`session ${session.id} runs ${name}`)
        this.runs.set(name, (this.runs.get(name) ?? 0) + 1)
        this.expect(this.runs.get(name) === 1, `11: ${name} runs twice`)
        const { fence } = this.machines.get(session.node)!.node
        this.expect(
          this.shutdownAt !== undefined || fence.holds(shardOf(session.key)),
          `2: ${name} runs at ${session.node}, whose lock has run out`
        )
        if (roll < 0.1) return Effect.fail(fail(new RequestTimeout({ requestSent: true })))
        const takes = this.dice.pick(this.isFair ? [0, 1, 20] : [0, 1, 20, 150, 500])
        const reported = Effect.forEach(
          Array.from({ length: this.dice.below(4) }, (_, i) => i),
          (progress) =>
            Effect.suspend(() => {
              if (given?.onProgress === undefined) return Effect.void
              this.reportsOf(name).told.push(progress)
              return given.onProgress({ progress })
            })
        )
        const answered = Effect.as(Effect.andThen(reported, Effect.sleep(takes)), { content: [] })
        return Effect.raceFirst(
          answered,
          Effect.andThen(Deferred.await(session.over), Effect.fail(fail(new SessionClosed({ requestSent: true }))))
        )
      })
    // What the simulation does with a session is nothing else
    const partial: Partial<McpSession> = {
      identity,
      serverInfo: { name: "s", version: "1" },
      capabilities: {},
      instructions: undefined,
      protocolVersion: "2025-11-25",
      requestTimeout: Duration.minutes(1),
      notifications: Stream.never,
      callTool
    }
    return partial as McpSession
  }

  reportsOf(name: string) {
    const known = this.reports.get(name) ?? { told: [], heard: [] }
    this.reports.set(name, known)
    return known
  }

  // --- The engine ---

  isSilent(name: string): boolean {
    return this.world.now() < this.machines.get(name)!.silentUntil
  }

  heartbeats(machine: Machine, address: RunnerAddress.RunnerAddress): Effect.Effect<never> {
    const { fence } = machine.node
    return Effect.forever(Effect.gen({ self: this }, function*() {
      yield* Effect.sleep(this.locks.refreshInterval)
      const shards = Array.from(machine.activations.values(), ({ key }) => shardIdOf(key))
      const asked = Effect.orDie(fence.storage.refresh(address, shards))
      const had = this.isSilent(machine.name)
        ? yield* Effect.timeoutOption(asked, this.locks.refreshInterval)
        : Option.some(yield* asked)
      if (Option.isNone(had)) return
      const kept = new Set(had.value.map(String))
      for (const activation of machine.activations.values()) {
        if (!kept.has(shardOf(activation.key))) yield* Effect.forkDetach(this.deactivate(machine, activation))
      }
    }))
  }

  sharding(name: string): Sharding.Sharding["Service"] {
    const made: Partial<Sharding.Sharding["Service"]> = {
      getShardId: (key) => shardIdOf(key),
      registerEntity: (_entity, build) =>
        Effect.gen({ self: this }, function*() {
          const machine = this.machines.get(name)!
          machine.build = build as unknown as NonNullable<Machine["build"]>
          yield* Effect.addFinalizer(() =>
            Effect.suspend(() => {
              machine.build = undefined
              return Effect.forEach(
                Array.from(machine.activations.values()),
                (activation) => this.deactivate(machine, activation),
                { concurrency: "unbounded", discard: true }
              )
            })
          )
        }) as Effect.Effect<void, never, never>,
      makeClient: () =>
        Effect.succeed((key: string) => ({
          Lease: (payload: { readonly identity: Identity }) => this.lease(name, key, payload.identity),
          Invalidate: (payload: { readonly identity: Identity }) => this.invalidate(key, payload.identity)
        })) as never
    }
    return made as Sharding.Sharding["Service"]
  }

  /** The entity of the key at a node that has its lock, or can have it. */
  activate(machine: Machine, key: string): Effect.Effect<Activation | undefined> {
    return Effect.gen({ self: this }, function*() {
      const there = machine.activations.get(key)
      if (there !== undefined) return there.isClosing ? undefined : there
      const address = machine.node.settings.address!
      if (machine.build === undefined || this.isSilent(machine.name)) return undefined
      const had = yield* Effect.orDie(machine.node.fence.storage.acquire(address, [shardIdOf(key)]))
      const since = machine.activations.get(key)
      if (since !== undefined) return since.isClosing ? undefined : since
      if (had.length === 0 || machine.build === undefined) return undefined
      const scope = Scope.makeUnsafe()
      const entity = EntityAddress.make({
        shardId: shardIdOf(key),
        entityType: "effect-mcp-sessions/Session" as never,
        entityId: key as never
      })
      // Its place is taken before anything can come between
      const placed: { activation: Activation | undefined } = { activation: undefined }
      const handlers = yield* machine.build.pipe(
        Effect.provideService(Entity.CurrentAddress, entity),
        Effect.provideService(Scope.Scope, scope)
      )
      const other = machine.activations.get(key)
      if (other !== undefined) {
        yield* Scope.close(scope, Exit.void)
        return other.isClosing ? undefined : other
      }
      placed.activation = { key, node: machine.name, scope, handlers, requests: new Set(), isClosing: false }
      machine.activations.set(key, placed.activation)
      return placed.activation
    })
  }

  /** As the engine does: requests are interrupted, what their handlers do then is waited for, then the lock goes. */
  deactivate(machine: Machine, activation: Activation): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (activation.isClosing) return Effect.void
      activation.isClosing = true
      this.note(`${activation.key} leaves ${machine.name}`)
      return Effect.forEach(Array.from(activation.requests), (request) => Scope.close(request, Exit.interrupt()), {
        concurrency: "unbounded",
        discard: true
      }).pipe(
        Effect.timeoutOption(this.locks.terminationTimeout),
        Effect.andThen(Scope.close(activation.scope, Exit.void)),
        Effect.andThen(Effect.suspend(() => {
          machine.activations.delete(activation.key)
          return Effect.orDie(
            machine.node.fence.storage.release(machine.node.settings.address!, shardIdOf(activation.key))
          )
        }))
      )
    })
  }

  /** One who waits for the links between two nodes to break. */
  link(...nodes: ReadonlyArray<string>) {
    const watch = { nodes, broken: Deferred.makeUnsafe<void>() }
    this.breaks.add(watch)
    return watch
  }

  luckOf(what: string): Dice {
    return makeDice(this.seed * 31 + this.sends++ * 7 + what.length)
  }

  /** The request for a lease, which is sent again for as long as it takes. */
  lease(from: string, key: string, identity: Identity): Stream.Stream<Wire.LeaseEvent> {
    return Stream.callback<Wire.LeaseEvent>((out) =>
      Effect.gen({ self: this }, function*() {
        while (true) {
          const luck = this.luckOf("lease")
          if (luck.chance(0.5)) yield* Effect.sleep(luck.pick([1, 5, 20]))
          const right = this.assigned.get(key)!
          const to = luck.chance(this.weather / 2) ? luck.pick(names) : right
          const twice = luck.chance(this.weather)
          const once = this.leaseAt(from, to, key, identity, out)
          const ended = twice
            ? yield* Effect.raceFirst(once, Effect.delay(this.leaseAt(from, luck.pick(names), key, identity, out), 3))
            : yield* once
          if (ended === "over") break
          yield* Effect.sleep(10)
        }
        yield* Queue.end(out as Queue.Queue<Wire.LeaseEvent, Cause.Done>)
      })
    )
  }

  leaseAt(
    from: string,
    to: string,
    key: string,
    identity: Identity,
    out: Queue.Enqueue<Wire.LeaseEvent>
  ): Effect.Effect<"over" | "again"> {
    return Effect.gen({ self: this }, function*() {
      const activation = yield* this.activate(this.machines.get(to)!, key)
      if (activation === undefined || activation.isClosing) return "again"
      const request = Scope.makeUnsafe()
      activation.requests.add(request)
      const link = this.link(from, to)
      const pump = Effect.gen({ self: this }, function*() {
        const events = yield* Scope.provide(activation.handlers.Lease({ payload: { identity } }), request)
        yield* Scope.addFinalizer(request, Effect.sync(() => Queue.shutdownUnsafe(events as Queue.Queue<never, never>)))
        return yield* Effect.forever(
          Effect.flatMap(
            Queue.take(events),
            (event) => Effect.andThen(Effect.sleep(this.luckOf("event").pick([0, 0, 1, 10])), Queue.offer(out, event))
          )
        )
      }).pipe(
        Effect.catchCause(() => Effect.succeed("over" as const))
      )
      return yield* Effect.raceFirst(
        pump,
        from === to ? Effect.never : Effect.as(Deferred.await(link.broken), "again" as const)
      ).pipe(
        Effect.ensuring(Effect.suspend(() => {
          this.breaks.delete(link)
          activation.requests.delete(request)
          // Whoever leaves does not wait until the other side has heard of it
          return Effect.forkDetach(
            Effect.delay(Scope.close(request, Exit.interrupt()), this.luckOf("end").pick([0, 5]))
          )
        }))
      )
    })
  }

  invalidate(key: string, identity: Identity): Effect.Effect<boolean> {
    return Effect.gen({ self: this }, function*() {
      while (true) {
        yield* Effect.sleep(5)
        const activation = yield* this.activate(this.machines.get(this.assigned.get(key)!)!, key)
        if (activation !== undefined) return yield* activation.handlers.Invalidate({ payload: { identity } })
        yield* Effect.sleep(20)
      }
    })
  }

  // --- The links ---

  peer(from: string, to: string): Peer {
    const call = (sent: Wire.Call): Effect.Effect<string, Wire.Failure | RpcClientError> =>
      Effect.suspend(() => {
        const luck = this.luckOf(sent.seq.toString())
        const delay = Effect.sleep(luck.pick([0, 0, 1, 5, 30]))
        if (luck.chance(this.weather / 4)) return Effect.andThen(delay, Effect.fail(closed))
        if (luck.chance(this.weather / 4)) return Effect.andThen(delay, Effect.fail(gone))
        const link = this.link(from, to)
        const { handlers } = this.machines.get(to)!.node.directory
        const run: Effect.Effect<string, Wire.Failure | RpcClientError> = handlers === undefined
          ? Effect.fail(unknown)
          : Effect.scoped(handlers.call(sent))
        const again = luck.chance(this.weather)
          ? Effect.forkDetach(Effect.ignoreCause(Effect.delay(run, luck.pick([0, 1, 20]))))
          : Effect.void
        // Which of the two is answered nobody knows
        const answers = luck.chance(0.5) ? Effect.delay(run, 2) : run
        const answered = Effect.andThen(delay, Effect.andThen(again, answers)).pipe(
          Effect.flatMap((answer) =>
            luck.chance(this.weather / 2) ? Effect.fail(gone) : Effect.as(Effect.sleep(luck.pick([0, 1, 20])), answer)
          )
        )
        return Effect.raceFirst(answered, Effect.andThen(Deferred.await(link.broken), Effect.fail(gone))).pipe(
          Effect.ensuring(Effect.sync(() => this.breaks.delete(link)))
        )
      })
    // In order, and each once: what a link does to one of them it does to all that come after
    const callReported = (sent: Wire.Call) =>
      Effect.gen({ self: this }, function*() {
        const luck = this.luckOf(sent.seq.toString())
        const queue = yield* Queue.unbounded<Wire.Reported, Wire.Failure | RpcClientError | Cause.Done>()
        const link = this.link(from, to)
        const carry = (reported: Wire.Reported) =>
          Effect.andThen(
            Effect.sleep(luck.pick([0, 0, 1, 20])),
            Effect.suspend(() =>
              reported._tag === "Answer" && luck.chance(this.weather / 2)
                ? Effect.fail(gone)
                : Queue.offer(queue, reported)
            )
          )
        const run: Effect.Effect<void, Wire.Failure | RpcClientError> = Effect.suspend(() => {
          const { handlers } = this.machines.get(to)!.node.directory
          return handlers === undefined
            ? Effect.fail(unknown)
            : Effect.scoped(Stream.runForEach(handlers.callReported(sent), carry))
        })
        const fails = luck.chance(this.weather / 4) ? closed : luck.chance(this.weather / 4) ? gone : undefined
        const carried = Effect.andThen(
          Effect.sleep(luck.pick([0, 0, 1, 5, 30])),
          fails === undefined ? run : Effect.fail(fails)
        )
        yield* Effect.raceFirst(carried, Effect.andThen(Deferred.await(link.broken), Effect.fail(gone))).pipe(
          Effect.ensuring(Effect.sync(() => this.breaks.delete(link))),
          Effect.matchCauseEffect({
            onFailure: (cause) => Queue.failCause(queue, cause),
            onSuccess: () => Queue.end(queue)
          }),
          Effect.forkScoped
        )
        return queue
      })
    return { "Session.Call": call, "Session.CallReported": callReported } as unknown as Peer
  }

  // --- Steps ---

  act(next: Action): void {
    const nodes = [...names, client]
    switch (next.do) {
      case "call":
        this.call(next)
        break
      case "interrupt":
        this.interruptOne(next.caller)
        break
      case "advance":
        this.world.advance(next.millis)
        break
      case "move": {
        const key = `key-${next.key}`
        const from = this.machines.get(this.assigned.get(key)!)!
        const to = names[next.to]!
        if (to === this.stopped) break
        this.assigned.set(key, to)
        const activation = from.activations.get(key)
        if (activation !== undefined && from.name !== to) this.world.fork(this.deactivate(from, activation))
        break
      }
      case "breakLinks":
        if (this.isFair) break
        for (const link of Array.from(this.breaks)) {
          if (link.nodes.includes(nodes[next.node]!)) Deferred.doneUnsafe(link.broken, Exit.void)
        }
        break
      case "silence":
        if (this.isFair) break
        this.machines.get(names[next.node]!)!.silentUntil = this.world.now() + next.millis
        break
      case "invalidate":
        this.world.fork(
          Effect.ignore(this.clusters.get(nodes[next.node]!)!.invalidate(this.identity(next.key)))
        )
        break
      case "stop":
        this.stop(names[next.node]!)
        break
      case "die": {
        if (this.isFair) break
        const open = this.sessions.filter(({ phase }) => phase === "open")
        const session = open[next.session % Math.max(1, open.length)]
        if (session === undefined) break
        Deferred.doneUnsafe(session.over, Exit.void)
        this.world.fork(session.handle.retire("died"))
        break
      }
      case "shutdown":
        this.shutDown()
    }
  }

  /** The others take its keys, and its layer closes. */
  stop(name: string): void {
    if (this.stopped !== undefined || this.shutdownAt !== undefined) return
    this.stopped = name
    const others = names.filter((other) => other !== name)
    for (const [key, at] of this.assigned) {
      if (at === name) this.assigned.set(key, others[shardIdOf(key).id % others.length]!)
    }
    this.note(`${name} stops`)
    this.world.fork(Scope.close(this.scopes.get(name)!, Exit.void))
  }

  identity(key: number): Identity {
    return Identity.fromKey(`key-${key}`, { credentials: Credentials.bearer(Simulator.secret) })
  }

  call({ calls, handling, key, nap, node }: Action & { readonly do: "call" }): void {
    const id = this.callers.length
    const caller: Caller = {
      ...this.calling(),
      calls: Array.from({ length: calls }, (_, i) => `call-${id}.${i}`),
      last: undefined
    }
    this.callers.push(caller)
    const cluster = this.clusters.get([...names, client][node]!)!
    caller.fiber = this.world.fork(
      cluster.withSession(this.identity(key), (session) =>
        Effect.forEach(caller.calls, (name) =>
          Effect.suspend(() => {
            caller.last = name
            const onProgress = ({ progress }: { readonly progress: number }) =>
              Effect.andThen(
                Effect.sleep(handling ?? 0),
                Effect.sync(() => void this.reportsOf(name).heard.push(progress))
              )
            return Effect.andThen(
              session.callTool({ name }, handling === undefined ? {} : { onProgress }),
              Effect.suspend(() => {
                const { heard, told } = this.reportsOf(name)
                this.expect(
                  heard.join() === told.join(),
                  `${name} reported ${told.join()}, and ${heard.join()} was heard`
                )
                return Effect.sleep(nap)
              })
            )
          }), { discard: true }))
    )
    caller.fiber.addObserver((exit) => {
      caller.exit = exit
      this.note(`caller ${caller.id} ${Exit.isSuccess(exit) ? "succeeds" : `ends: ${Cause.pretty(exit.cause)}`}`)
      this.said += Exit.isFailure(exit) ? JSON.stringify(Cause.squash(exit.cause)) ?? "" : ""
      if (Exit.isSuccess(exit)) {
        for (const name of caller.calls) {
          this.expect(this.runs.get(name) === 1, `11: ${name} is answered and has not run`)
        }
      }
      const { locateTimeout } = this.times
      // To find the owner, to have the session opened, three calls; and for all of it once more per node that has left
      this.examineEnd(caller, exit, 3 * (locateTimeout + 100 + 100 + 40) + 3 * (500 + 60 + 60) + 1_000)
    })
  }

  // --- What must hold ---

  told(caller: Caller, error: unknown): void {
    if (error instanceof McpSessionError) {
      const { reason } = error
      const name = caller.last
      this.expect(
        // Between two calls its session may move: the second is refused, and it is known that it has not run
        !this.isFair || this.shutdownAt !== undefined ||
          (caller.last !== caller.calls[0] && reason._tag === "SessionClosed" && !reason.requestSent),
        `9: caller ${caller.id} fails though nothing has broken: ${reason._tag}`
      )
      if (error.method === "callTool" && name !== undefined && reason._tag === "SessionClosed" && !reason.requestSent) {
        this.expect(!this.runs.has(name), `11: ${name} has run, and its caller is told that it was not sent`)
      }
      return
    }
    const tag = (error as { readonly _tag?: string })._tag
    this.expect(
      tag === "ClusterUnavailable" || tag === "PoolExhausted" || tag === "ConnectTimeout" ||
        (tag === "PoolClosed" && (this.shutdownAt !== undefined || this.stopped !== undefined)),
      `9: caller ${caller.id} fails with ${String(error)}`
    )
  }

  examineSessions(): void {
    if (this.shutdownAt !== undefined) return
    const open = new Map<string, Session>()
    for (const session of this.sessions) {
      if (session.phase !== "open") continue
      const other = open.get(session.key)
      // A node whose pool has let go of one may drain it beside its successor
      this.expect(
        other === undefined || other.node === session.node,
        `2: ${session.key} has sessions at ${other?.node} and ${session.node}`
      )
      open.set(session.key, session)
    }
  }

  examine(): void {
    this.examineSessions()
  }

  examineRest(): void {
    // Idle sessions are the pool's, and its simulation's
  }

  examineShutdown(): void {
    // Callers may hold what has been closed under them
  }
}

const fail = (reason: McpSessionError["reason"]) => new McpSessionError({ reason, method: "callTool", server: "s" })

const shardIdOf = (key: string): ShardId.ShardId => ShardId.make("g", Number(key.slice(-1)) + 1)

const shardOf = (key: string): string => String(shardIdOf(key))

export const cluster: Simulator.Simulator<Action> = Simulator.make("cluster", {
  action,
  shutdown: { do: "shutdown" },
  simulation: (seed) => new Simulation(seed)
})
