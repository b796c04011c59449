/**
 * The sessions of several machines as one: identity → one live session, on whichever node has it.
 *
 * Each node has a pool of its own, and each key belongs to one node at a time: the others call its session there. What
 * a program does with a session is the same: `SessionCluster.layerPool` is a pool of one process behind the same tag.
 *
 * - Whatever was sent is sent once: a node, a link or a store that fails makes calls fail, never run twice.
 * - Credentials travel between nodes that know each other, and are stored nowhere.
 * - Capacity, times to live and everything else of a pool are each node's own.
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { ClusterMember } from "./ClusterMembership.ts"
import { ClusterNode } from "./ClusterNode.ts"
import type { Identity } from "./Identity.ts"
import * as Caller from "./internal/cluster/caller.ts"
import * as Codec from "./internal/cluster/codec.ts"
import * as Errands from "./internal/cluster/errands.ts"
import { nameOf } from "./internal/cluster/fence.ts"
import type { Node } from "./internal/cluster/node.ts"
import * as Owner from "./internal/cluster/owner.ts"
import * as Options from "./internal/options.ts"
import { type Configurable, InvalidOptions } from "./InvalidOptions.ts"
import type { McpSession, RemoteSession } from "./Session.ts"
import { type ClusterConnectError, ClusterUnavailable } from "./SessionClusterError.ts"
import * as SessionPool from "./SessionPool.ts"

export type { RemoteSession } from "./Session.ts"
export * from "./SessionClusterError.ts"

/**
 * How a node opens sessions and keeps them: everything of a pool but `prewarm`, which would open sessions that belong
 * to other nodes; and how it finds those of the others. Durations are `Duration.Input`; a number is milliseconds.
 *
 * `connect` fails with what a connector or `McpServers.connect` does ({@link ClusterConnectError}): its errors cross to
 * whoever has asked. The pool's options are each node's own: three nodes with a `capacity` of 10 have room for 30
 * sessions. A session whose `idleTimeToLive` is a function's answer is kept for an hour at most.
 *
 * @category models
 */
export interface SessionClusterOptions<R, RC = R>
  extends
    Omit<ClientOptions, "leases">,
    Omit<SessionPool.SessionPoolOptions<McpSession, ClusterConnectError, R, RC>, "prewarm">
{}

/**
 * How a node finds the sessions of others.
 *
 * @category models
 */
export interface ClientOptions {
  /**
   * How long it is waited for the node that may have the session, else `ClusterUnavailable`: by default 20 seconds, so
   * that whoever asks while a node is lost is served by the next. What that node takes to open the session is beyond.
   */
  readonly locateTimeout?: Duration.Input | undefined
  /**
   * How long a node keeps hold of a session after the last of its callers, in case another one comes: by default 1
   * second. Meanwhile it counts as leased at its owner, unless somebody waits there for room.
   */
  readonly leaseTimeToLive?: Duration.Input | undefined
  /**
   * Whether callers of one identity share its session, as the owners have it: by default `"shared"`. Where they are
   * `"exclusive"`, a client has to say so, too; then nothing is kept for `leaseTimeToLive`.
   */
  readonly leases?: "shared" | "exclusive" | undefined
  /**
   * How long the arguments or the answer of a call may be that goes to another node, in bytes of JSON: from 1 up to 30
   * MiB. One that is longer fails with `ProtocolFailure`, arguments unsent; a notification that is longer is lost, and
   * so are the data of an error.
   * While one is written or read nothing else happens at that node: it takes some 30 ms for each MiB. Default: 16 MiB.
   */
  readonly maxMessageBytes?: number | undefined
}

const messageBytes = Options.custom<number, number>({
  rule: "an integer from 1 up to 31,457,280",
  read: Option.liftPredicate((value): value is number =>
    typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= Codec.mostBytes
  ),
  config: Config.Number
})

/**
 * @internal
 */
export const declared = Options.declare<ClientOptions>()({ module: "SessionCluster", variables: "MCP_CLUSTER" }, {
  locateTimeout: Options.withDefault(Options.patience, "20 seconds"),
  leaseTimeToLive: Options.withDefault(Options.timeout, "1 second"),
  leases: SessionPool.declared.declaration.leases,
  maxMessageBytes: Options.withDefault(messageBytes, 16 * 1024 * 1024, { shown: "16 MiB" })
})

/**
 * The numbers of all nodes.
 *
 * @category models
 */
export interface SessionClusterStats {
  /** Those that have answered, by their addresses. */
  readonly nodes: ReadonlyArray<{ readonly runner: string; readonly stats: SessionPool.SessionPoolStats }>
  /** Those that are members and were silent for 5 seconds, or had not told all within a minute. */
  readonly unreachable: ReadonlyArray<string>
}

/**
 * The sessions of all nodes.
 *
 * @category models
 */
export interface SessionClusterEntries {
  /** Of each node the least recently used first. */
  readonly entries: ReadonlyArray<SessionPool.SessionPoolEntry & { readonly runner: string }>
  /** Members that were silent for 5 seconds, or had not told all within a minute. */
  readonly unreachable: ReadonlyArray<string>
}

/**
 * What happened in the pool of a node.
 *
 * @category models
 */
export interface SessionClusterEvent {
  /** Where. */
  readonly runner: string
  /** What. */
  readonly event: SessionPool.SessionPoolEvent
}

/**
 * What a get can fail with: what a pool's can, and that no node can be asked.
 *
 * @category errors
 */
export type SessionClusterError = ClusterConnectError | SessionPool.SessionPoolError | ClusterUnavailable

/**
 * The operations of a cluster.
 *
 * @category models
 */
export interface Service {
  /**
   * The session of the identity, wherever it is, opened if there is none, leased until the current scope closes.
   *
   * Fails as the owner's pool does (what its `connect` does, `PoolExhausted`, `ConnectTimeout`, `PoolClosed`), and with
   * `ClusterUnavailable` when nobody who may own it has answered for `locateTimeout` (20 seconds by default).
   */
  readonly get: (identity: Identity) => Effect.Effect<RemoteSession, SessionClusterError, Scope.Scope>
  /**
   * Runs `f` with the session of the identity, leased for as long as `f` runs. Fails as `get` and `f` do.
   *
   * If `f` fails because its call was refused unrun, by a server that has forgotten the session or by a node that does
   * not have it any more, `f` is run once more, from its start, with a session that is there: provided that nothing may
   * have run of what it has asked before.
   */
  readonly withSession: <A, E2, R2>(
    identity: Identity,
    f: (session: RemoteSession) => Effect.Effect<A, E2, R2>
  ) => Effect.Effect<A, SessionClusterError | E2, R2>
  /**
   * Retires the session of the identity, wherever it is. False if it had none. Fails with `ClusterUnavailable` when its
   * owner has not answered for `locateTimeout`.
   */
  readonly invalidate: (identity: Identity) => Effect.Effect<boolean, ClusterUnavailable>
  /** The numbers of all nodes. Fails with `ClusterUnavailable` when it can't be told which there are. */
  readonly stats: Effect.Effect<SessionClusterStats, ClusterUnavailable>
  /** The sessions of all nodes. Fails with `ClusterUnavailable` when it can't be told which there are. */
  readonly entries: Effect.Effect<SessionClusterEntries, ClusterUnavailable>
  /**
   * What happens at all nodes from now on. A reader may be 1,024 events behind; then it loses the oldest. What happens
   * at a node before this one has found it, or while it can't be reached, is lost, too.
   */
  readonly events: Stream.Stream<SessionClusterEvent>
}

// What this node owns, and what it has of others
class Owned
  extends SessionPool.Tag<Owned, McpSession, ClusterConnectError>()("effect-mcp-sessions/SessionCluster/Owned")
{}
class Leases
  extends SessionPool.Tag<Leases, Caller.Lease, Caller.LeaseError>()("effect-mcp-sessions/SessionCluster/Leases")
{}

/**
 * The sessions of a cluster.
 *
 * **Example** (One session for each user, whichever replica is asked)
 *
 * ```ts
 * const program = SessionCluster.withSession(identity, (session) => session.callTool({ name: "echo" }))
 *
 * const Sessions = SessionCluster.layer({ connect, capacity: 100 })
 * ```
 *
 * @category services
 */
export class SessionCluster extends Context.Service<SessionCluster, Service>()("effect-mcp-sessions/SessionCluster") {
  /** See {@link Service.get}. */
  static readonly get = (
    identity: Identity
  ): Effect.Effect<RemoteSession, SessionClusterError, Scope.Scope | SessionCluster> =>
    SessionCluster.use((cluster) => cluster.get(identity))
  /** See {@link Service.withSession}. */
  static readonly withSession = <A, E2, R2>(
    identity: Identity,
    f: (session: RemoteSession) => Effect.Effect<A, E2, R2>
  ): Effect.Effect<A, SessionClusterError | E2, R2 | SessionCluster> =>
    SessionCluster.use((cluster) => cluster.withSession(identity, f))
  /** See {@link Service.invalidate}. */
  static readonly invalidate = (identity: Identity): Effect.Effect<boolean, ClusterUnavailable, SessionCluster> =>
    SessionCluster.use((cluster) => cluster.invalidate(identity))
  /** See {@link Service.stats}. */
  static readonly stats = SessionCluster.use((cluster) => cluster.stats)
  /** See {@link Service.entries}. */
  static readonly entries = SessionCluster.use((cluster) => cluster.entries)
  /** See {@link Service.events}. */
  static readonly events = Stream.unwrap(SessionCluster.useSync((cluster) => cluster.events))

  /**
   * A node that owns sessions: its share of those of all. Fails with `InvalidOptions`.
   *
   * When its scope ends, new sessions begin elsewhere at once; calls that run are finished, those of other nodes and
   * those that this one has made, for at most `terminationTimeout` of the node; and everything is closed. Whoever has a
   * session may begin calls for `drainTimeout`.
   */
  static readonly layer = <R = never, RC = never>(
    options: SessionClusterOptions<R, RC>
  ): Layer.Layer<SessionCluster, InvalidOptions, ClusterNode | Exclude<R | RC, Scope.Scope>> =>
    Layer.effect(SessionCluster, makeOwner(options, "layer"))

  /**
   * The same with options from the configuration: those of the pool from its variables (`MCP_POOL_CAPACITY`, …), the
   * others from `MCP_CLUSTER_LOCATE_TIMEOUT`, `MCP_CLUSTER_LEASE_TIME_TO_LIVE` and `MCP_CLUSTER_MAX_MESSAGE_BYTES`.
   * They win over what is given.
   *
   * Fails with `ConfigError` when a variable can't be read, and with `InvalidOptions` when what it says has no meaning.
   */
  static readonly layerConfig = <R = never, RC = never>(
    options: Configurable<SessionClusterOptions<R, RC>>
  ): Layer.Layer<SessionCluster, InvalidOptions | Config.ConfigError, ClusterNode | Exclude<R | RC, Scope.Scope>> =>
    Layer.effect(
      SessionCluster,
      Effect.flatMap(
        Effect.flatMap(declared.configured(options), (own) => SessionPool.declared.configured(own)),
        (configured) => makeOwner(configured, "layerConfig")
      )
    )

  /** A node that owns no sessions, and uses those of the others. Fails with `InvalidOptions`. */
  static readonly layerClient = (
    options: ClientOptions = {}
  ): Layer.Layer<SessionCluster, InvalidOptions, ClusterNode> =>
    Layer.effect(
      SessionCluster,
      Effect.gen(function*() {
        const own = yield* Effect.fromResult(declared.parse(options, "layerClient"))
        const { "~node": node } = yield* ClusterNode
        return yield* make(node, undefined, yield* makeErrands(node), own, 0)
      })
    )

  /**
   * A pool of this process alone behind the same tag: for one machine, and for tests. Its `runner` is `local`. Fails
   * with `InvalidOptions`.
   */
  static readonly layerPool = <R = never, RC = never>(
    options: Omit<SessionClusterOptions<R, RC>, "leaseTimeToLive" | "locateTimeout" | "maxMessageBytes">
  ): Layer.Layer<SessionCluster, InvalidOptions, Exclude<R | RC, Scope.Scope>> =>
    Layer.effect(SessionCluster, Effect.map(Owned, fromPool)).pipe(Layer.provide(Owned.layer<R, RC>(options)))
}

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

type Own = Effect.Success<ReturnType<typeof parseOwn>>

const parseOwn = (options: ClientOptions, method: string) => Effect.fromResult(declared.parse(options, method))

// Made first, so that it ends last: what this node has goes to others while it waits for what it has asked
const makeErrands = ({ fence, settings }: Node) => Errands.make(settings.terminationTimeout, fence.now)

const makeOwner = Effect.fnUntraced(function*<R, RC>(options: SessionClusterOptions<R, RC>, method: string) {
  const { leaseTimeToLive, locateTimeout, maxMessageBytes, ...rest } = options
  const own = yield* parseOwn({ leaseTimeToLive, locateTimeout, leases: rest.leases, maxMessageBytes }, method)
  const { "~node": node } = yield* ClusterNode
  const invalid = (option: string, issue: string) =>
    Effect.fail(new InvalidOptions({ module: "SessionCluster", method, option, issue }))
  if ("prewarm" in rest) return yield* invalid("prewarm", "would open sessions that belong to other nodes")
  if (node.settings.address === undefined) {
    return yield* invalid("connect", "is of no use to a node that owns no sessions: use layerClient")
  }
  const parsed = yield* Effect.fromResult(SessionPool.declared.parse(rest, method))
  const errands = yield* makeErrands(node)
  const live = Owner.makeLive((key) => node.fence.mayOpen(Owner.shardName(node, key)))
  const pools = yield* Layer.build(Owned.layer<R, RC>({ ...rest, connect: live.connect(rest.connect) }))
  const owner = yield* Owner.make({
    node,
    pool: Context.get(pools, Owned),
    live,
    closeTimeout: parsed.closeTimeout,
    isExclusive: parsed.leases === "exclusive",
    maxMessageBytes: own.maxMessageBytes,
    maxIdleTime: typeof parsed.idleTimeToLive === "number" ? parsed.idleTimeToLive + 30_000 : 3_600_000
  })
  return yield* make(node, owner, errands, own, parsed.drainTimeout)
})

const make = Effect.fnUntraced(function*(
  node: Node,
  owner: Owner.Owner | undefined,
  errands: Errands.Errands,
  { leaseTimeToLive, leases: sharing, locateTimeout, maxMessageBytes }: Own,
  drainTimeout: number
) {
  const caller = yield* Caller.make({ node, owner, errands, locateTimeout, maxMessageBytes })
  const pools = yield* Layer.build(Leases.layer({
    connect: caller.lease,
    capacity: Number.MAX_SAFE_INTEGER,
    leases: sharing,
    // Whoever keeps an exclusive session that nobody uses keeps it from the other nodes
    idleTimeToLive: sharing === "exclusive" ? 1 : leaseTimeToLive,
    // Whoever opens the session has a deadline for it, and whoever is lost meanwhile is noticed
    connectTimeout: "10 minutes",
    drainTimeout
  }))
  const leases = Context.get(pools, Leases)
  // The first that happens at its end
  yield* Effect.addFinalizer(() => Effect.sync(errands.hurry))
  const { assignmentsInterval } = node.settings
  const { members, self } = node.membership

  const withSession: Service["withSession"] = <A, E2, R2>(
    identity: Identity,
    f: (session: RemoteSession) => Effect.Effect<A, E2, R2>
  ) => {
    const run = (since: number, isFirst: boolean): Effect.Effect<A, SessionClusterError | E2, R2> =>
      Effect.catch(
        leases.withSession(identity, (lease) => Caller.use(lease, f(caller.session(lease, identity)))),
        (failed) => {
          if (!("unrun" in failed)) return Effect.fail(failed)
          const { error, unrun } = failed
          // What has ended at once would end again; a node that has left is replaced, in time
          const isRepeatable = unrun === "moved"
            ? node.fence.now() - since < locateTimeout
            : unrun === "ended" && isFirst
          return isRepeatable
            ? Effect.andThen(isFirst ? Effect.void : Effect.sleep(50), run(since, false))
            : Effect.fail(error)
        }
      )
    return Effect.mapError(Effect.suspend(() => run(node.fence.now(), true)), asMethod("withSession"))
  }

  const inspect = <A>(what: "stats" | "entries", { decode, join }: Codec.Parts<A>) =>
    Effect.gen(function*() {
      const all = yield* Effect.mapError(members, asMethod(what))
      const answers = yield* Effect.forEach(all, (member) => {
        const runner = nameOf(member)
        const told = self !== undefined && runner === nameOf(self)
          ? node.directory.handlers?.inspect(what) ?? Stream.empty
          : Stream.unwrap(Effect.map(node.peer(member), (peer) => peer["Session.Inspect"]({ what })))
        return told.pipe(
          Stream.mapEffect((text) => Effect.map(Effect.yieldNow, () => decode(text))),
          Stream.timeoutOrElse({ duration: "5 seconds", orElse: () => Stream.fail("silent") }),
          Stream.runCollect,
          Effect.scoped,
          // However many parts there are
          Effect.timeout("1 minute"),
          Effect.map((parts) => Arr.isReadonlyArrayNonEmpty(parts) ? [{ runner, answer: join(parts) }] : []),
          Effect.catchCause((cause) =>
            Cause.hasInterruptsOnly(cause)
              ? Effect.andThen(Effect.yieldNow, Effect.succeed(runner))
              : Effect.succeed(runner)
          )
        )
      }, { concurrency: "unbounded" })
      return {
        answers: answers.flatMap((answer) => typeof answer === "string" ? [] : answer),
        unreachable: answers.filter((answer) => typeof answer === "string")
      }
    })

  const watch = (runner: string, member: ClusterMember) =>
    runner === (self && nameOf(self))
      ? node.directory.handlers?.watch ?? Stream.empty
      : Stream.unwrap(Effect.map(node.peer(member), (peer) => peer["Session.Watch"]()))

  const service: Service = {
    get: (identity) => Effect.map(leases.get(identity), (lease) => caller.session(lease, identity)),
    withSession,
    invalidate: (identity) => Effect.tap(caller.invalidate(identity), () => leases.invalidate(identity)),
    stats: Effect.map(inspect("stats", Codec.stats), ({ answers, unreachable }) => ({
      nodes: answers.map(({ answer, runner }) => ({ runner, stats: answer })),
      unreachable
    })),
    entries: Effect.map(inspect("entries", Codec.entries), ({ answers, unreachable }) => ({
      entries: answers.flatMap(({ answer, runner }) => answer.map((entry) => ({ ...entry, runner }))),
      unreachable
    })),
    events: Stream.callback<SessionClusterEvent>((queue) =>
      Effect.gen(function*() {
        const watched = new Set<string>()
        while (true) {
          for (const member of yield* Effect.orElseSucceed(members, () => [])) {
            const runner = nameOf(member)
            if (watched.has(runner)) continue
            watched.add(runner)
            yield* Effect.forkChild(
              Stream.runForEach(watch(runner, member), (text) =>
                Effect.sync(() => void Queue.offerUnsafe(queue, { runner, event: Codec.events.decode(text) }))).pipe(
                  Effect.scoped,
                  Effect.ignoreCause,
                  Effect.ensuring(Effect.sync(() =>
                    watched.delete(runner)
                  ))
                ),
              { startImmediately: true }
            )
          }
          yield* Effect.sleep(assignmentsInterval)
        }
      }), { bufferSize: 1_024, strategy: "sliding" })
  }
  return service
})

const fromPool = (pool: SessionPool.Service<McpSession, ClusterConnectError>): Service => {
  const runner = "local"
  return {
    get: (identity) => Effect.map(pool.get(identity), seenFrom(runner)),
    withSession: (identity, f) => pool.withSession(identity, (session) => f(seenFrom(runner)(session))),
    invalidate: pool.invalidate,
    stats: Effect.map(pool.stats, (stats) => ({ nodes: [{ runner, stats }], unreachable: [] })),
    entries: Effect.map(pool.entries, (entries) => ({
      entries: entries.map((entry) => ({ ...entry, runner })),
      unreachable: []
    })),
    events: Stream.map(pool.events, (event) => ({ runner, event }))
  }
}

const views = new WeakMap<McpSession, RemoteSession>()

// Without what a session of another node does not have: a program that works here works there.
const seenFrom = (runner: string) => (session: McpSession): RemoteSession => {
  const known = views.get(session)
  if (known !== undefined) return known
  const { client: _client, pid: _pid, request: _request, ...rest } = session
  const view = { ...rest, runner }
  views.set(session, view)
  return view
}

const asMethod = (method: ClusterUnavailable["method"]) => <E>(error: E): E | ClusterUnavailable =>
  error instanceof ClusterUnavailable && error.method !== method
    ? new ClusterUnavailable({ method, reason: error.reason, waited: error.waited })
    : error
