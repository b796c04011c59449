/**
 * The node's own sessions, as its peers use them.
 *
 *   Lease ──▶ located ──▶ opening ──▶ granted ──▶ leaving ──▶ over
 *                │           │ failed     │ retired: goes on, for those who have it
 *                └───────────┴────────────┴──▶ the caller leaves, or the session has to move
 *
 * A lease holds the session in its pool for as long as the handler of the engine runs that granted it. When that ends,
 * for whatever reason, the lease takes no more calls and waits for those that run: for `terminationTimeout`, but no
 * longer than the shard is certainly this node's. Then the session is let go, and the entity's finalizer closes it
 * before the shard's lock is released.
 *
 * A call names its lease, and has a number there: it runs if both are known here and the number is new.
 */
import type { Progress } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Entity from "effect/cluster/Entity"
import * as Sharding from "effect/cluster/Sharding"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import * as Crypto from "node:crypto"
import type { SessionHandle } from "../../Connector.ts"
import type { Identity } from "../../Identity.ts"
import type { McpSessionError } from "../../McpSessionError.ts"
import type { McpSession } from "../../Session.ts"
import type { ClusterConnectError } from "../../SessionClusterError.ts"
import type * as SessionPool from "../../SessionPool.ts"
import * as Elsewhere from "../elsewhere.ts"
import { namesAndPlaces } from "../places.ts"
import * as Codec from "./codec.ts"
import type { Handlers, Node } from "./node.ts"
import * as Seen from "./seen.ts"
import * as Wire from "./wire.ts"

type Pool = SessionPool.Service<McpSession, ClusterConnectError>

/** A lease, as the node knows it that granted it. */
interface Lease {
  readonly id: string
  readonly shard: string
  readonly identity: Identity
  readonly session: McpSession
  readonly seen: Seen.Seen
  readonly events: Queue.Queue<Wire.LeaseEvent, Cause.Done>
  /** Completed when nothing runs any more, once it is leaving, or what runs is not waited for any longer. */
  readonly idle: Deferred.Deferred<void>
  inFlight: number
  isLeaving: boolean
}

/** Whoever has a session of the node, or waits for one: a lease, and what comes before it. */
interface Holder {
  readonly shard: string
  readonly events: Queue.Queue<Wire.LeaseEvent, Cause.Done>
  /** Closed when it is over, by whichever side: at once, also when what is told on its link arrives nowhere. */
  readonly scope: Scope.Closeable
}

export interface Owner {
  readonly handlers: Handlers
  /** The same call without leaving the process: nothing becomes JSON. */
  readonly callHere: (
    call: Wire.Call,
    params: unknown,
    onProgress: ((progress: Progress) => Effect.Effect<void>) | undefined
  ) => Effect.Effect<unknown, Wire.Failure>
  readonly notificationsHere: (lease: string) => Stream.Stream<unknown, Wire.Refused>
}

/** A connect whose sessions are known until they are closed. */
export interface Live {
  readonly connect: <R>(
    connect: (identity: Identity, handle: SessionHandle) => Effect.Effect<McpSession, ClusterConnectError, R>
  ) => (identity: Identity, handle: SessionHandle) => Effect.Effect<McpSession, ClusterConnectError, R | Scope.Scope>
  /** The keys that have a session here, opening, open or closing. */
  readonly keys: () => ReadonlyArray<string>
  /** Waits until all of the key are closed. */
  readonly awaitClosed: (key: string) => Effect.Effect<void>
}

export const makeLive = (mayOpen: (key: string) => boolean): Live => {
  const live = new Map<string, Set<Deferred.Deferred<void>>>()
  return {
    connect: (connect) =>
      // What a connector keeps ahead it says as a property of its own
      Object.assign((identity: Identity, handle: SessionHandle) =>
        Effect.suspend(() => {
          if (!mayOpen(identity.key)) return Effect.fail(Elsewhere.make())
          const closed = Deferred.makeUnsafe<void>()
          const incarnations = live.get(identity.key) ?? new Set()
          live.set(identity.key, incarnations.add(closed))
          // Runs after those of the session
          const gone = Effect.suspend(() => {
            incarnations.delete(closed)
            if (incarnations.size === 0 && live.get(identity.key) === incarnations) live.delete(identity.key)
            return Deferred.succeed(closed, undefined)
          })
          return Effect.andThen(Effect.addFinalizer(() => gone), connect(identity, handle))
        }), connect),
    keys: () => Array.from(live.keys()),
    awaitClosed: (key) =>
      Effect.suspend(() =>
        Effect.forEach(Array.from(live.get(key) ?? []), (closed) => Deferred.await(closed), { discard: true })
      )
  }
}

export const make = Effect.fnUntraced(function*(options: {
  readonly node: Node
  readonly pool: Pool
  readonly live: Live
  readonly closeTimeout: number
  readonly isExclusive: boolean
  readonly maxMessageBytes: number
  /** How long an entity is kept that nobody asks anything of: longer than its session may be idle. */
  readonly maxIdleTime: number
}) {
  const { closeTimeout, isExclusive, live, maxMessageBytes, node, pool } = options
  const { fence, settings } = node
  const leases = new Map<string, Lease>()
  const holders = new Map<string, Set<Holder>>()
  // Of those that are over, by name, which calls they had: one that comes twice has run, whenever it comes again
  const over = new Map<string, Seen.Seen>()
  const shardOf = (key: string) => shardName(node, key)

  // ---------------------------------------------------------------------------
  // Leases
  // ---------------------------------------------------------------------------

  const forget = (lease: Lease): void => {
    leases.delete(lease.id)
    Deferred.doneUnsafe(lease.idle, Exit.void)
    over.set(lease.id, lease.seen)
    if (over.size > remembered) over.delete(over.keys().next().value!)
  }

  const beginToLeave = (lease: Lease): void => {
    if (lease.isLeaving) return
    lease.isLeaving = true
    if (lease.inFlight === 0) Deferred.doneUnsafe(lease.idle, Exit.void)
  }

  // Until the last third of the lock, which is for closing: while it is refreshed that never comes.
  const nearlyLost = (shard: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      const left = fence.remaining(shard)
      return left <= 0 ? Effect.void : Effect.flatMap(Effect.sleep(Math.max(50, left)), () => nearlyLost(shard))
    })

  const leave = (lease: Lease): Effect.Effect<void> =>
    Effect.suspend(() => {
      beginToLeave(lease)
      const calls = Deferred.await(lease.idle).pipe(
        Effect.raceFirst(nearlyLost(lease.shard)),
        Effect.timeoutOption(settings.terminationTimeout)
      )
      return Effect.ensuring(inOwnFiber(calls), Effect.sync(() => forget(lease)))
    })

  // When somebody waits for room, those make it who only keep what they may need again.
  const makeRoom = Effect.gen(function*() {
    yield* Effect.sleep(20)
    const { waiting } = yield* pool.stats
    if (waiting === 0) return
    for (const lease of leases.values()) if (lease.inFlight === 0) Queue.offerUnsafe(lease.events, retired)
  })

  const grant = Effect.fnUntraced(function*(
    shard: string,
    identity: Identity,
    events: Queue.Queue<Wire.LeaseEvent, Cause.Done>
  ) {
    const hurry = yield* Effect.forkScoped(Effect.forever(makeRoom))
    const session = yield* pool.get(identity)
    hurry.interruptUnsafe()
    const facts = yield* Codec.carried(Codec.factsOf(session), {
      method: "connect",
      server: session.serverInfo.name,
      requestSent: true,
      maxMessageBytes
    })
    const lease: Lease = {
      id: Crypto.randomUUID(),
      shard,
      identity,
      session,
      seen: Seen.make(),
      events,
      idle: Deferred.makeUnsafe<void>(),
      inFlight: 0,
      isLeaving: false
    }
    // The session ends after its lease: finalizers run in reverse
    yield* Effect.addFinalizer(() => leave(lease))
    leases.set(lease.id, lease)
    Queue.offerUnsafe(events, Wire.Granted.make({ lease: lease.id, facts }))
  })

  const hold = (key: string, holder: Holder): Effect.Effect<void> =>
    Effect.suspend(() => {
      const all = holders.get(key) ?? new Set()
      holders.set(key, all.add(holder))
      const letGo = Effect.sync(() => {
        if (all.delete(holder) && all.size === 0 && holders.get(key) === all) holders.delete(key)
      })
      return Scope.addFinalizer(holder.scope, letGo)
    })

  const lease = Effect.fnUntraced(function*(shard: string, identity: Identity) {
    const events = yield* Queue.make<Wire.LeaseEvent, Cause.Done>()
    // Not ours any more, or perhaps so soon, whatever the engine thinks: the caller looks for the owner again
    if (!fence.mayOpen(shard)) {
      Queue.endUnsafe(events)
      return events
    }
    Queue.offerUnsafe(events, { _tag: "Located", host: node.membership.self!.host, port: node.membership.self!.port })
    const scope = yield* Scope.fork(yield* Effect.scope)
    yield* hold(identity.key, { shard, events, scope })
    const granted = Effect.catchCause(grant(shard, identity, events), (cause) =>
      Effect.sync(() => {
        const failed = failedOf(cause, maxMessageBytes)
        if (failed !== undefined && fence.holds(shard)) Queue.offerUnsafe(events, failed)
        Queue.endUnsafe(events)
      }))
    yield* Effect.forkIn(Scope.provide(granted, scope), scope, { startImmediately: true })
    return events
  })

  // ---------------------------------------------------------------------------
  // Calls
  // ---------------------------------------------------------------------------

  const enter = (call: Wire.Call): Lease | Wire.Refused => {
    const found = leases.get(call.lease)
    const seen = found?.seen ?? over.get(call.lease)
    if (seen !== undefined && !Seen.accept(seen, call.seq)) return new Wire.Refused({ seen: true })
    if (found === undefined || found.isLeaving || !fence.holds(found.shard)) return new Wire.Refused({ seen: false })
    found.inFlight++
    return found
  }

  const exit = (found: Lease) => (): void => {
    found.inFlight--
    if (found.isLeaving && found.inFlight === 0) Deferred.doneUnsafe(found.idle, Exit.void)
  }

  const asked = (
    call: Wire.Call,
    { session }: Lease,
    params: unknown,
    onProgress: ((progress: Progress) => Effect.Effect<void>) | undefined
  ): Effect.Effect<unknown, McpSessionError> => {
    const answer = Codec.ask(session, call, params, onProgress)
    // Only to present the newest credentials: the session is there. An exclusive one could not be had twice, and is
    // leased anew for the next caller.
    return call.identity === undefined || isExclusive
      ? answer
      : Effect.andThen(Effect.ignore(Effect.scoped(pool.get(call.identity))), answer)
  }

  const callHere: Owner["callHere"] = (call, params, onProgress) =>
    Effect.suspend((): Effect.Effect<unknown, Wire.Failure> => {
      const found = enter(call)
      return found instanceof Wire.Refused
        ? Effect.fail(found)
        : Effect.ensuring(asked(call, found, params, onProgress), Effect.sync(exit(found)))
    })

  // What comes from another node is in flight until its answer was sent, which is when the scope of its request closes
  const entered = (call: Wire.Call): Effect.Effect<Lease, Wire.Refused, Scope.Scope> =>
    Effect.uninterruptible(Effect.flatMap(Effect.scope, (scope) => {
      const found = enter(call)
      return found instanceof Wire.Refused
        ? Effect.fail(found)
        : Effect.as(Scope.addFinalizer(scope, Effect.sync(exit(found))), found)
    }))

  const callFrom = (
    call: Wire.Call,
    found: Lease,
    onProgress?: (progress: Progress) => Effect.Effect<void>
  ): Effect.Effect<string, McpSessionError> => {
    const server = found.session.serverInfo.name
    return underTrace(call, asked(call, found, Codec.parse(call.params), onProgress)).pipe(
      Effect.flatMap((answer) =>
        Codec.carried(answer, { method: call.operation, server, requestSent: true, maxMessageBytes })
      ),
      Effect.mapError((error) => Codec.crossing(error, maxMessageBytes))
    )
  }

  const reportedFrom = (call: Wire.Call, found: Lease): Stream.Stream<Wire.Reported, McpSessionError> =>
    together(Stream.callback<Wire.Reported, McpSessionError>((queue) =>
      callFrom(call, found, (progress) =>
        // The caller loses the oldest, as it would here
        Effect.sync(() => {
          const json = Codec.stringify(progress)
          if (Codec.isShort(json, maxMessageBytes)) Queue.offerUnsafe(queue, { _tag: "Progress", json })
        })).pipe(
          Effect.flatMap((json) => Queue.offer(queue, { _tag: "Answer", json })),
          Effect.andThen(Queue.end(queue)),
          Effect.catch((error) => Queue.fail(queue, error))
        ), { bufferSize: 257, strategy: "sliding" }))

  const handlers: Handlers = {
    call: (call) => Effect.flatMap(entered(call), (found) => callFrom(call, found)),
    callReported: (call) => Stream.flatMap(Stream.fromEffect(entered(call)), (found) => reportedFrom(call, found)),
    listen: (id) =>
      Stream.filter(
        Stream.map(notificationsHere(id), Codec.stringify),
        (json) => Codec.isShort(json, maxMessageBytes)
      ),
    inspect: (what) => what === "stats" ? inParts(pool.stats, Codec.stats) : inParts(pool.entries, Codec.entries),
    watch: Stream.map(pool.events, Codec.events.encode)
  }

  const notificationsHere = (id: string): Stream.Stream<unknown, Wire.Refused> =>
    Stream.suspend(() => {
      const found = leases.get(id)
      return found === undefined
        ? Stream.fail(new Wire.Refused({ seen: false }))
        : found.session.notifications
    })

  // ---------------------------------------------------------------------------
  // The end of sessions
  // ---------------------------------------------------------------------------

  const closeAll = (key: string, identity: Identity | undefined) =>
    Effect.gen(function*() {
      if (identity !== undefined) yield* pool.invalidate(identity)
      yield* Effect.timeoutOption(live.awaitClosed(key), closeTimeout + 1_000)
    })

  // The shard is somebody else's, or may be so soon: whatever it had ends now. What runs fails, as its session closes.
  const evict = (shard: string) =>
    Effect.suspend(() => {
      for (const found of leases.values()) {
        if (found.shard !== shard) continue
        beginToLeave(found)
        Deferred.doneUnsafe(found.idle, Exit.void)
      }
      const all = Array.from(holders.values()).flatMap((some) => Array.from(some).filter((one) => one.shard === shard))
      for (const { events } of all) Queue.endUnsafe(events)
      return Effect.andThen(
        pool.invalidateWhere((identity) => shardOf(identity.key) === shard),
        Effect.forEach(all, ({ scope }) => Scope.close(scope, Exit.void), { concurrency: "unbounded", discard: true })
      )
    })

  const context = yield* Effect.context<never>()
  const runFork = Effect.runForkWith(context)
  const onLost = (shard: string) => void runFork(evict(shard))
  yield* Effect.acquireRelease(
    Effect.sync(() => fence.onLost.add(onLost)),
    () => Effect.sync(() => fence.onLost.delete(onLost))
  )
  const evictLost = Effect.suspend(() => {
    const shards = Array.from(new Set(live.keys().map(shardOf))).filter((shard) => !fence.mayOpen(shard))
    return shards.length === 0 ? Effect.void : Effect.forEach(shards, evict, { discard: true })
  })
  yield* Effect.forkScoped(Effect.forever(Effect.delay(evictLost, settings.lockTimeToLive / 20)))

  yield* Effect.forkScoped(
    Stream.runForEach(pool.events, (event) =>
      Effect.sync(() => {
        if (event._tag !== "Retired") return
        for (const { events } of holders.get(event.key) ?? []) Queue.offerUnsafe(events, retired)
      })),
    { startImmediately: true }
  )

  // ---------------------------------------------------------------------------
  // The entity
  // ---------------------------------------------------------------------------

  // The engine that ends does not wait for entities whose shards were moving already; and the pool closes after it
  const allLeft = Effect.suspend(() =>
    Effect.forEach(Array.from(leases.values()), ({ idle }) => Deferred.await(idle), { discard: true })
  )
  yield* Effect.addFinalizer(() => inOwnFiber(Effect.timeoutOption(allLeft, settings.terminationTimeout)))
  const entity = Wire.makeEntity(settings.group)
  const activated = Effect.gen(function*() {
    const { entityId: key, shardId } = yield* Entity.CurrentAddress
    let latest: Identity | undefined
    yield* Effect.addFinalizer(() => closeAll(key, latest))
    return entity.of({
      Lease: ({ payload: { identity } }) => {
        latest = identity
        return lease(String(shardId), identity)
      },
      Invalidate: ({ payload: { identity } }) => pool.invalidate(identity)
    })
  })
  yield* Layer.build(
    entity.toLayer(activated, {
      concurrency: "unbounded",
      disableFatalDefects: true,
      mailboxCapacity: "unbounded",
      maxIdleTime: options.maxIdleTime
    }).pipe(Layer.provide(Layer.succeed(Sharding.Sharding, node.sharding)))
  )
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      node.directory.handlers = handlers
    }),
    () =>
      Effect.sync(() => {
        node.directory.handlers = undefined
      })
  )
  const owner: Owner = { handlers, callHere, notificationsHere }
  return owner
})

/** For finalizers: their own fiber may be interrupted already, and lets nothing be interrupted. */
const inOwnFiber = (effect: Effect.Effect<unknown>) => Effect.flatMap(Effect.forkDetach(effect), Fiber.await)

/** What comes in one turn of the event loop goes in one message. */
const together = <A, E>(stream: Stream.Stream<A, E>): Stream.Stream<A, E> =>
  Stream.transformPull(stream, (pull) => Effect.succeed(Effect.andThen(Effect.yieldNow, pull)))

/** Of very many sessions, too: everybody else has a turn after each part. */
const inParts = <A>(all: Effect.Effect<A>, { encode, split }: Codec.Parts<A>): Stream.Stream<string> =>
  Stream.unwrap(
    Effect.map(all, (whole) =>
      Stream.mapEffect(Stream.fromIterable(split(whole)), (part) =>
        Effect.map(Effect.yieldNow, () => encode(part))))
  )

const underTrace = <A, E>({ trace }: Wire.Call, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  trace === undefined ? effect : Effect.withParentSpan(effect, Tracer.externalSpan(trace))

/** How many leases that are over a node knows the calls of. */
const remembered = 4_096

const retired: Wire.LeaseEvent = { _tag: "Retired" }

/** What the caller is told of a lease that could not be had. Nothing if it was interrupted, or is to be elsewhere. */
const failedOf = (
  cause: Cause.Cause<Effect.Error<ReturnType<Pool["get"]>>>,
  maxMessageBytes: number
): Wire.LeaseEvent | undefined => {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  if (error === undefined) {
    return Cause.hasDies(cause) ? { _tag: "Died", message: namesAndPlaces(cause) } : undefined
  }
  if (Elsewhere.is(error)) return undefined
  // Whatever the compiler has let through: what can't be written would be asked for again and again
  return canCross(error)
    ? { _tag: "Failed", error: Codec.crossing(error, maxMessageBytes) }
    : { _tag: "Died", message: `connect has failed with what is no ClusterConnectError: ${namesAndPlaces(cause)}` }
}

const canCross = Schema.is(Wire.LeaseError)

/** The shard of a key, as the engine names it. */
export const shardName = ({ settings: { group }, sharding }: Node, key: string): string =>
  String(sharding.getShardId(key as never, group))
