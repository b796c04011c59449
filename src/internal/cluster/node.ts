/**
 * One node: Effect Cluster's engine, between a guarded store and a transport, and links of its own to each peer.
 */
import * as Clock from "effect/Clock"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as RunnerHealth from "effect/cluster/RunnerHealth"
import * as Runners from "effect/cluster/Runners"
import * as RunnerServer from "effect/cluster/RunnerServer"
import * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Sharding from "effect/cluster/Sharding"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as RcMap from "effect/RcMap"
import * as RpcClient from "effect/rpc/RpcClient"
import type { RpcClientError } from "effect/rpc/RpcClientError"
import * as RpcServer from "effect/rpc/RpcServer"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Membership from "../../ClusterMembership.ts"
import * as Fence from "./fence.ts"
import * as Members from "./members.ts"
import type { Settings } from "./settings.ts"
import type { Transport } from "./transport.ts"
import * as Wire from "./wire.ts"

export type Peer = RpcClient.FromGroup<typeof Wire.Rpcs, RpcClientError>

/** What this node answers of its own sessions. */
export interface Handlers {
  /** In the scope of its request, which closes when it has been answered. */
  readonly call: (call: Wire.Call) => Effect.Effect<string, Wire.Failure, Scope.Scope>
  readonly callReported: (call: Wire.Call) => Stream.Stream<Wire.Reported, Wire.Failure, Scope.Scope>
  readonly listen: (lease: string) => Stream.Stream<string, Wire.Refused>
  /** In parts. Nothing comes of a node that owns nothing. */
  readonly inspect: (what: "stats" | "entries") => Stream.Stream<string>
  readonly watch: Stream.Stream<string>
}

/** A node, as a cluster of sessions uses it. */
export interface Node {
  readonly settings: Settings
  readonly fence: Fence.Fence
  readonly sharding: Sharding.Sharding["Service"]
  readonly membership: Membership.Service
  /** A link to a peer, kept for a minute after its last use. */
  readonly peer: (member: Membership.ClusterMember) => Effect.Effect<Peer, never, Scope.Scope>
  readonly directory: {
    /** What this node answers to its peers: undefined while it owns nothing. */
    handlers: Handlers | undefined
  }
}

export const make = Effect.fnUntraced(function*<E>(
  settings: Settings,
  store: RunnerStorage.RunnerStorage["Service"],
  transport: Transport<E>
) {
  const clock = yield* Clock.Clock
  const { address, group, lockTimeToLive, refreshInterval } = settings
  const interval = Math.min(refreshInterval, lockTimeToLive / 3)
  const fence = Fence.make({ storage: store, clock, expiry: lockTimeToLive, interval, group, address })
  const membership = yield* Members.make(settings, fence)
  const directory: { handlers: Handlers | undefined } = { handlers: undefined }

  const connect = (member: Membership.ClusterMember) =>
    transport.connect(
      member,
      () => fence.seen()?.nodes.some((node) => Fence.nameOf(node) === Fence.nameOf(member)) ?? true
    )

  const engine = Sharding.layer.pipe(
    Layer.provideMerge(Runners.layerRpc),
    Layer.provideMerge(Layer.mergeAll(
      Layer.succeed(Runners.RpcClientProtocol, {
        codecFor: transport.codecFor,
        make: ({ host, port }) => connect({ host, port })
      }),
      Layer.succeed(RunnerStorage.RunnerStorage, fence.storage),
      RunnerHealth.layerNoop,
      MessageStorage.layerNoop,
      ShardingConfig.layer(configOf(settings))
    ))
  )
  const listening = address === undefined ? undefined : yield* transport.listen
  const server = listening === undefined ? Layer.empty : RpcServer.layer(Runners.Rpcs.merge(Wire.Rpcs), {
    spanPrefix: "SessionCluster",
    disableTracing: true,
    disableFatalDefects: true
  }).pipe(
    Layer.provide([RunnerServer.layerHandlers, layerHandlers(() => directory.handlers)]),
    Layer.provide(Layer.succeed(RpcServer.Protocol, listening))
  )
  const context = yield* Layer.build(Layer.provideMerge(server, engine))

  const peers = yield* RcMap.make({
    lookup: (name: string) =>
      Effect.flatMap(
        connect(memberOf(name)),
        (protocol) =>
          Effect.provideService(
            RpcClient.make(Wire.Rpcs, { spanPrefix: "SessionCluster", disableTracing: true }),
            RpcClient.Protocol,
            protocol
          )
      ),
    idleTimeToLive: "1 minute"
  })

  const node: Node = {
    settings,
    fence,
    sharding: Context.get(context, Sharding.Sharding),
    membership,
    peer: (member) => RcMap.get(peers, Fence.nameOf(member)),
    directory
  }
  return node
})

const memberOf = (name: string): Membership.ClusterMember => {
  const at = name.lastIndexOf(":")
  return { host: name.slice(0, at), port: Number(name.slice(at + 1)) }
}

const layerHandlers = (handlers: () => Handlers | undefined) => {
  const unknown = Effect.fail(new Wire.Refused({ seen: false }))
  return Wire.Rpcs.toLayer({
    "Session.Call": (call) => handlers()?.call(call) ?? unknown,
    "Session.CallReported": (call) => handlers()?.callReported(call) ?? Stream.fromEffect(unknown),
    "Session.Listen": ({ lease }) => handlers()?.listen(lease) ?? Stream.fromEffect(unknown),
    "Session.Inspect": ({ what }) => handlers()?.inspect(what) ?? Stream.empty,
    "Session.Watch": () => handlers()?.watch ?? Stream.empty
  })
}

export const configOf = (settings: Settings): Partial<ShardingConfig.ShardingConfig["Service"]> => ({
  runnerAddress: Option.fromUndefinedOr(settings.address),
  availableShardGroups: [settings.group],
  assignedShardGroups: [settings.group],
  shardsPerGroup: settings.shards,
  shardLockExpiration: settings.lockTimeToLive,
  shardLockRefreshInterval: settings.refreshInterval,
  refreshAssignmentsInterval: settings.assignmentsInterval,
  // How often it looks for shards that it should have and has not, say because they were lost and nobody else wants
  // them, or because the store failed once: without that it may wait for 10 seconds, its default. No message is stored.
  entityMessagePollInterval: settings.assignmentsInterval,
  entityTerminationTimeout: settings.terminationTimeout,
  // A pool says how many sessions there may be, and an entity is one that there was
  maxResidentEntities: "unbounded",
  entityMailboxCapacity: "unbounded",
  simulateRemoteSerialization: false
})
