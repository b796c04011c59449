/**
 * One node of a cluster: what makes a process one of several that share the sessions of all.
 *
 * The engine is Effect Cluster: nodes write into a store that they live and which shards they have locked, and each key
 * belongs to one shard. Who is alive is told by heartbeats alone: no node judges another. A node that was killed is
 * replaced within `lockTimeToLive` and two intervals, by default 12 seconds; one that stops hands over at once.
 */
import * as Clock from "effect/Clock"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { createHmac } from "node:crypto"
import { ClusterMembership } from "./ClusterMembership.ts"
import * as Memory from "./internal/cluster/memory.ts"
import * as Node from "./internal/cluster/node.ts"
import type { Settings } from "./internal/cluster/settings.ts"
import * as Options from "./internal/options.ts"
import { InvalidOptions } from "./InvalidOptions.ts"

/**
 * What all nodes have in common, and what they are tuned with. Durations are `Duration.Input`; a number is
 * milliseconds.
 *
 * @category models
 */
export interface ClusterOptions {
  /**
   * The secret from which `IdentityResolver` makes keys of credentials, which must be given to it, too: 16 characters
   * at least, the same at all nodes. With a random one, as the resolver has by default, each node would know the same
   * caller by another key. A node whose secret is not that of the others refuses to start.
   */
  readonly keySecret: Redacted.Redacted
  /**
   * Into how many shards keys are divided: an integer, by default 100, the same at all nodes. A node with another
   * number refuses to start.
   */
  readonly shards?: number | undefined
  /**
   * How long a node may be silent before its shards go to others: by default 10 seconds. The shorter, the sooner the
   * sessions of a node that was killed are served again, and the sooner all sessions end when the store is silent.
   */
  readonly lockTimeToLive?: Duration.Input | undefined
  /** How often a node tells the store that it lives: by default 3 seconds, at most a third of `lockTimeToLive`. */
  readonly refreshInterval?: Duration.Input | undefined
  /** How often a node reads who else there is: by default 1 second. */
  readonly assignmentsInterval?: Duration.Input | undefined
  /**
   * How long calls may go on at a node whose session has to move, because it stops or another one has joined: by
   * default 15 seconds. Then they fail, as calls of a closed session.
   */
  readonly terminationTimeout?: Duration.Input | undefined
}

const common = {
  keySecret: Options.required(
    Options.custom<Redacted.Redacted, Redacted.Redacted>({
      rule: "a Redacted string of at least 16 characters",
      read: Option.liftPredicate((value): value is Redacted.Redacted => {
        const secret = Redacted.isRedacted(value) ? Redacted.value(value) : undefined
        return typeof secret === "string" && secret.length >= 16
      }),
      isSecret: true
    })
  ),
  shards: Options.withDefault(Options.count, 100),
  lockTimeToLive: Options.withDefault(Options.timeout, "10 seconds"),
  refreshInterval: Options.withDefault(Options.timeout, "3 seconds"),
  assignmentsInterval: Options.withDefault(Options.timeout, "1 second"),
  terminationTimeout: Options.withDefault(Options.timeout, "15 seconds")
}

/**
 * A node among others of the same process.
 *
 * @category models
 */
export interface MemoryOptions extends ClusterOptions {
  /** The process' own store and network: the same for all its nodes. */
  readonly memory: MemoryCluster
  /** The name of this node, another for each. */
  readonly name: string
}

/**
 * The store and the network of nodes that are all in one process.
 *
 * @category models
 */
export interface MemoryCluster {
  readonly "~effect-mcp-sessions/MemoryCluster": Memory.Memory
}

const declaredMemory = Options.declare<MemoryOptions>()({ module: "ClusterNode" }, {
  ...common,
  memory: Options.required(
    Options.custom<MemoryCluster, MemoryCluster>({
      rule: "what ClusterNode.memory makes",
      read: Option.liftPredicate((value): value is MemoryCluster =>
        typeof value === "object" && value !== null && "~effect-mcp-sessions/MemoryCluster" in value
      )
    })
  ),
  name: Options.required(
    Options.custom<string, string>({
      rule: "a name of letters, digits, dots and hyphens",
      read: Option.liftPredicate((value): value is string => typeof value === "string" && /^[\w.-]{1,128}$/.test(value))
    })
  )
})

// Nodes that differ in these would give one key to two owners, so they have no shards in common; and whoever reads the
// store sees it. 16 bits of the secret are too few to test a guess with.
const groupOf = (shards: number, keySecret: Redacted.Redacted): string =>
  `mcp-${shards}-${
    createHmac("sha256", Redacted.value(keySecret)).update("effect-mcp-sessions/ClusterNode").digest("hex").slice(0, 4)
  }`

type Parsed = {
  readonly [K in keyof typeof common]: (typeof common)[K] extends Options.Declared<never, infer Out> ? Out : never
}

const settingsOf = (parsed: Parsed, address: RunnerAddress.RunnerAddress | undefined): Settings => ({
  address,
  shards: parsed.shards,
  group: groupOf(parsed.shards, parsed.keySecret),
  lockTimeToLive: parsed.lockTimeToLive,
  refreshInterval: parsed.refreshInterval,
  assignmentsInterval: parsed.assignmentsInterval,
  terminationTimeout: parsed.terminationTimeout
})

const refuseStrangers = (
  method: string,
  { group, shards }: Settings,
  strangers: ReadonlyArray<string>
): Effect.Effect<void, InvalidOptions> => {
  const stranger = strangers[0]
  if (stranger === undefined) return Effect.void
  const [, theirs] = stranger.split("-")
  const invalid = (option: string, issue: string) =>
    Effect.fail(new InvalidOptions({ module: "ClusterNode", method, option, issue }))
  return Number(theirs) === shards
    ? invalid("keySecret", "must be that of the nodes that are there already")
    : invalid("shards", `must be ${theirs}, as at the nodes that are there already, got ${group.split("-")[1]}`)
}

/**
 * A node, and what it knows of the others: `ClusterMembership` for those who route, the rest for `SessionCluster`.
 *
 * @category services
 */
export class ClusterNode extends Context.Service<ClusterNode, {
  /** @internal */
  readonly "~node": Node.Node
}>()("effect-mcp-sessions/ClusterNode") {
  /** A store and a network for nodes of one process. */
  static readonly memory = (): MemoryCluster => ({ "~effect-mcp-sessions/MemoryCluster": Memory.make() })

  /**
   * A node among others of the same process, with no socket and on the `Clock`: for tests. Locks exclude and expire as
   * those of a real store do.
   *
   * Fails with `InvalidOptions`.
   */
  static readonly layerMemory = (
    options: MemoryOptions
  ): Layer.Layer<ClusterNode | ClusterMembership, InvalidOptions> => layerMemoryOf(options, "layerMemory", true)

  /** The same without sessions of its own: it only asks those of the others. */
  static readonly layerMemoryClient = (
    options: MemoryOptions
  ): Layer.Layer<ClusterNode | ClusterMembership, InvalidOptions> => layerMemoryOf(options, "layerMemoryClient", false)
}

const layerMemoryOf = (options: MemoryOptions, method: string, isOwner: boolean) =>
  Layer.effectContext(Effect.gen(function*() {
    const parsed = yield* Effect.fromResult(declaredMemory.parse(options, method))
    const settings = settingsOf(parsed, isOwner ? RunnerAddress.make(parsed.name, 1) : undefined)
    const memory = parsed.memory["~effect-mcp-sessions/MemoryCluster"]
    const store = memory.storage(yield* Clock.Clock, settings.lockTimeToLive, `${parsed.name}:1`)
    return yield* started(method, settings, store, memory.transport(`${parsed.name}:1`))
  }))

const started = <E>(
  method: string,
  settings: Settings,
  store: Parameters<typeof Node.make>[1],
  transport: Parameters<typeof Node.make<E>>[2]
): Effect.Effect<Context.Context<ClusterNode | ClusterMembership>, E | InvalidOptions, Scope.Scope> =>
  Effect.gen(function*() {
    const strangers = yield* Effect.match(Effect.timeout(store.getRunners, "5 seconds"), {
      onFailure: () => [],
      onSuccess: (runners) => runners.flatMap(([{ groups }]) => groups.includes(settings.group) ? [] : groups)
    })
    yield* refuseStrangers(method, settings, strangers)
    const node = yield* Node.make(settings, store, transport)
    return Context.make(ClusterNode, { "~node": node }).pipe(Context.add(ClusterMembership, node.membership))
  })
