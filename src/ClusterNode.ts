/**
 * One node of a cluster: what makes a process one of several that share the sessions of all.
 *
 * The engine is Effect Cluster: nodes write into a store that they live and which shards they have locked, and each key
 * belongs to one shard. Who is alive is told by heartbeats alone: no node judges another. A node that was killed is
 * replaced within `lockTimeToLive` and two intervals, by default 12 seconds; one that stops hands over at once.
 */
import * as Clock from "effect/Clock"
import type { Runner } from "effect/cluster/Runner"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { SocketServerError } from "effect/socket/SocketServer"
import { type ClusterMember, ClusterMembership } from "./ClusterMembership.ts"
import * as Memory from "./internal/cluster/memory.ts"
import * as Node from "./internal/cluster/node.ts"
import * as Postgres from "./internal/cluster/postgres.ts"
import * as Security from "./internal/cluster/security.ts"
import type { Settings } from "./internal/cluster/settings.ts"
import * as Sockets from "./internal/cluster/sockets.ts"
import * as Sqlite from "./internal/cluster/sqlite.ts"
import * as Watch from "./internal/cluster/watch.ts"
import * as Welcome from "./internal/cluster/welcome.ts"
import * as Options from "./internal/options.ts"
import { type Configurable, InvalidOptions } from "./InvalidOptions.ts"
import { ClusterUnavailable } from "./SessionClusterError.ts"

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
   * How long a node may be silent before its shards go to others: by default 10 seconds, the same at all nodes. The
   * shorter, the sooner the sessions of a node that was killed are served again, and the sooner all sessions end when
   * the store is silent. A node with another one refuses to start.
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

const secretOf = (length: number) =>
  Options.schema(
    Schema.Redacted(Schema.String.check(Schema.isMinLength(length))),
    `a Redacted string of at least ${length} characters`,
    { isSecret: true }
  )

const common = {
  keySecret: Options.required(secretOf(16), { aliases: ["MCP_AUTH_KEY_SECRET", "MCP_KEY_SECRET"] }),
  shards: Options.withDefault(Options.count, 100),
  lockTimeToLive: Options.withDefault(Options.timeout, "10 seconds"),
  refreshInterval: Options.withDefault(Options.timeout, "3 seconds"),
  assignmentsInterval: Options.withDefault(Options.timeout, "1 second"),
  terminationTimeout: Options.withDefault(Options.timeout, "15 seconds")
}

/**
 * Who may talk to a node. Either `secret`, or `cert`, `key` and `ca`, or `plain`.
 *
 * @category models
 */
export interface ClusterSecurity {
  /**
   * What all nodes know and nobody else: 32 characters at least. Links are TLS 1.2 with a pre-shared key made of it
   * (`ECDHE-PSK-CHACHA20-POLY1305`), so that no certificates are needed. A node whose secret is another one refuses to
   * start.
   */
  readonly secret?: Redacted.Redacted | undefined
  /**
   * The certificate of this node, as PEM or as the path of a file. Links are TLS 1.3, and both ends show one. It has to
   * be good for `host`. A node whose certificate has expired, or is refused by the nodes that are there already,
   * refuses to start. It is read once: to renew it, start the node again. In the last tenth of its time the node logs a
   * warning: when it has expired, links that are up go on, and no other is made.
   */
  readonly cert?: string | undefined
  /** Its private key, as PEM or as the path of a file. */
  readonly key?: Redacted.Redacted | undefined
  /**
   * Who signs the certificates of nodes, as PEM or as the path of a file. Whoever has one that is signed by it is a
   * node: it should sign nothing else. There may be several, one after the other: to change them, start the nodes one
   * by one with both, then with their new certificates, then with the new one alone.
   */
  readonly ca?: string | undefined
  /** Neither encryption nor a secret: for nodes that are all on loopback, where whoever is on the machine may talk. */
  readonly plain?: true | undefined
}

const text = Options.schema(Schema.NonEmptyString, "PEM, or the path of a file")

/**
 * @internal
 */
export const declaredSecurity = Options.declare<ClusterSecurity>()(
  { module: "ClusterNode", variables: "MCP_CLUSTER_SECURITY" },
  {
    secret: Options.optional(secretOf(32)),
    cert: Options.optional(text),
    key: Options.optional(secretOf(1)),
    ca: Options.optional(text),
    plain: Options.optional(Options.custom<true, true>({
      rule: "true, or left out",
      read: Option.liftPredicate((value): value is true => value === true),
      config: Options.boolean.config
    }))
  }
)

/**
 * What a node that is a process of its own is made with.
 *
 * @category models
 */
export interface NodeOptions extends ClientOptions {
  /**
   * The name or the address at which the other nodes reach this one, and no other: not that of a service or of a load
   * balancer that stands before all of them.
   */
  readonly host: string
  /** Where the other nodes reach it: an integer from 1 to 65,535. Not the port of an HTTP server. */
  readonly port: number
  /** The name or the address to listen on, by default `host`: `0.0.0.0` where that is not this machine's own. */
  readonly listenHost?: string | undefined
}

/**
 * What a node that owns nothing is made with.
 *
 * @category models
 */
export interface ClientOptions extends ClusterOptions {
  /**
   * Where nodes write that they live and what they have locked: `sqlite:` and the path of a file, for the processes of
   * one machine (with `libsql`, and on a disk of that machine), or `postgres://…` (with `@effect/sql-pg`), where tables
   * named `mcp_cluster_…` are made if they are missing. Redacted if it has a password. No session, key or credential is
   * ever in it.
   */
  readonly storage: string | Redacted.Redacted
  /** How links between nodes are secured. */
  readonly security: ClusterSecurity
}

const reachable = Options.schema(
  Schema.String.check(Schema.isPattern(/^[\w.:-]{1,253}$/)),
  "a name or an address without a port"
)

const clientDeclaration = {
  storage: Options.required(
    Options.custom<string | Redacted.Redacted, Storage>({
      rule: "sqlite: and a path, or a URL of Postgres",
      read: (value) => storageOf(Redacted.isRedacted(value) ? Redacted.value(value) : value),
      config: Options.schema(Schema.Redacted(Schema.String), "").config,
      isSecret: true
    })
  ),
  security: Options.group<ClusterSecurity, typeof declaredSecurity.declaration>(declaredSecurity, {
    shown: "required"
  }),
  ...common
}

/**
 * @internal
 */
export const declaredClient = Options.declare<ClientOptions>()(
  { module: "ClusterNode", variables: "MCP_CLUSTER" },
  clientDeclaration
)

/**
 * @internal
 */
export const declared = Options.declare<NodeOptions>()({ module: "ClusterNode", variables: "MCP_CLUSTER" }, {
  host: Options.required(reachable),
  port: Options.required(
    Options.schema(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65_535 })), "an integer from 1 to 65,535")
  ),
  listenHost: Options.optional(reachable, { shown: "host" }),
  ...clientDeclaration
})

type Storage =
  | { readonly type: "sqlite"; readonly file: string }
  | { readonly type: "postgres"; readonly url: Redacted.Redacted }

const storageOf = (value: unknown): Option.Option<Storage> => {
  if (typeof value !== "string") return Option.none()
  const [, file] = /^sqlite:(.+)$/s.exec(value) ?? []
  if (file !== undefined) return Option.some({ type: "sqlite", file })
  return /^postgres(?:ql)?:\/\/./.test(value) && URL.canParse(value)
    ? Option.some({ type: "postgres", url: Redacted.make(value) })
    : Option.none()
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

type Parsed = {
  readonly [K in keyof typeof common]: (typeof common)[K] extends Options.Declared<never, infer Out> ? Out : never
}

/** What all nodes have to have in common, in the order in which a group of shards is named after it. */
const agreed = ["shards", "keySecret", "lockTimeToLive", "security"] as const

// Nodes that differ in these would give one key to two owners, so they have no shards in common; and whoever reads the
// store sees it. Of a secret it has 16 bits, too few to test a guess with.
const groupOf = ({ keySecret, lockTimeToLive, shards }: Parsed, security: string): string =>
  [
    "mcp",
    shards,
    Security.digest(Redacted.value(keySecret), "effect-mcp-sessions/ClusterNode"),
    lockTimeToLive,
    security
  ].join("-")

const settingsOf = (
  parsed: Parsed,
  address: RunnerAddress.RunnerAddress | undefined,
  security: string
): Settings => ({
  address,
  shards: parsed.shards,
  group: groupOf(parsed, security),
  lockTimeToLive: parsed.lockTimeToLive,
  refreshInterval: parsed.refreshInterval,
  assignmentsInterval: parsed.assignmentsInterval,
  terminationTimeout: parsed.terminationTimeout
})

const invalid = (method: string, option: string, issue: string) =>
  Effect.fail(new InvalidOptions({ module: "ClusterNode", method, option, issue }))

const refuseStrangers = (
  method: string,
  { group }: Settings,
  strangers: ReadonlyArray<string>
): Effect.Effect<void, InvalidOptions> => {
  if (strangers[0] === undefined) return Effect.void
  const [, ...theirs] = strangers[0].split("-")
  const [, ...ours] = group.split("-")
  const i = agreed.findIndex((_, at) => ours[at] !== theirs[at])
  const option = agreed[i]
  switch (option) {
    case "shards":
      return invalid(method, option, `must be ${theirs[i]}, as at the nodes that are there already, got ${ours[i]}`)
    case "lockTimeToLive":
      return invalid(
        method,
        option,
        `must be ${theirs[i]} milliseconds, as at the nodes that are there already, got ${ours[i]}`
      )
    default:
      return invalid(
        method,
        option ?? "storage",
        "must be that of the nodes that are there already, or \"storage\" another one if they are of another cluster"
      )
  }
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
  /**
   * A node that is a process of its own.
   *
   * Fails with `InvalidOptions`, also when the nodes that are there already differ from it in what all have to have in
   * common (`shards`, `keySecret`, `lockTimeToLive`, the secret of `security`) or don't trust its certificate, and when
   * it is not on loopback and not secured; with `ClusterUnavailable` when its store can't be reached; with
   * `SocketServerError` when it can't listen. Dies when a package that it needs is not installed.
   *
   * **Example** (One of several replicas)
   *
   * ```ts
   * const Node = ClusterNode.layer({
   *   host: "10.0.0.7",
   *   port: 7001,
   *   storage: Redacted.make("postgres://mcp:secret@db/mcp"),
   *   security: { secret: Redacted.make("what only these replicas know, 32+") },
   *   keySecret
   * })
   * ```
   */
  static readonly layer = (
    options: NodeOptions
  ): Layer.Layer<ClusterNode | ClusterMembership, InvalidOptions | ClusterUnavailable | SocketServerError> =>
    Layer.effectContext(makeNode(options, "layer"))

  /**
   * The same with options from the configuration: `MCP_CLUSTER_HOST`, `MCP_CLUSTER_PORT`, `MCP_CLUSTER_STORAGE`,
   * `MCP_CLUSTER_KEY_SECRET`, `MCP_CLUSTER_SECURITY_SECRET`, … They win over what is given.
   *
   * Fails with `ConfigError` when a variable can't be read, and else as `layer` does.
   */
  static readonly layerConfig = (
    options: Configurable<Partial<NodeOptions>> = {}
  ): Layer.Layer<
    ClusterNode | ClusterMembership,
    InvalidOptions | Config.ConfigError | ClusterUnavailable | SocketServerError
  > =>
    Layer.effectContext(
      Effect.flatMap(declared.configured(options), (configured) => makeNode(configured, "layerConfig"))
    )

  /** A process without sessions of its own: it asks those of the others, and listens nowhere. Fails as `layer`. */
  static readonly layerClient = (
    options: ClientOptions
  ): Layer.Layer<ClusterNode | ClusterMembership, InvalidOptions | ClusterUnavailable> =>
    Layer.effectContext(makeClient(options, "layerClient"))

  /** The same with options from the configuration. Fails as `layerConfig`. */
  static readonly layerClientConfig = (
    options: Configurable<Partial<ClientOptions>> = {}
  ): Layer.Layer<
    ClusterNode | ClusterMembership,
    InvalidOptions | Config.ConfigError | ClusterUnavailable
  > =>
    Layer.effectContext(
      Effect.flatMap(declaredClient.configured(options), (configured) => makeClient(configured, "layerClientConfig"))
    )

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
    const settings = settingsOf(parsed, isOwner ? RunnerAddress.make(parsed.name, 1) : undefined, "memory")
    const memory = parsed.memory["~effect-mcp-sessions/MemoryCluster"]
    const store = memory.storage(yield* Clock.Clock, settings.lockTimeToLive, `${parsed.name}:1`)
    return yield* started(method, settings, store, memory.transport(`${parsed.name}:1`))
  }))

const makeNode = Effect.fnUntraced(function*(options: unknown, method: string) {
  const parsed = yield* Effect.fromResult(declared.parse(options, method))
  const { host, listenHost = host, port } = parsed
  const security = yield* securityOf(parsed.security, method, host)
  if (security.type === "plain" && !(Security.isLoopback(host) && Security.isLoopback(listenHost))) {
    return yield* invalid(method, "security", "must be a secret or certificates, unless host is on loopback")
  }
  return yield* make(parsed, security, RunnerAddress.make(host, port), { host: listenHost, port }, method)
})

const makeClient = (options: unknown, method: string) =>
  Effect.gen(function*() {
    const parsed = yield* Effect.fromResult(declaredClient.parse(options, method))
    const security = yield* securityOf(parsed.security, method, undefined)
    return yield* make(parsed, security, undefined, undefined, method)
  }).pipe(
    // It listens nowhere
    Effect.catchTag("SocketServerError", Effect.die)
  )

const make = Effect.fnUntraced(function*(
  parsed: Parsed & { readonly storage: Storage },
  security: Security.Security,
  address: RunnerAddress.RunnerAddress | undefined,
  listen: { readonly host: string; readonly port: number } | undefined,
  method: string
) {
  const settings = settingsOf(parsed, address, Security.nameOf(security))
  const transport = yield* Sockets.make({
    security,
    listen,
    // Who was frozen is given up before it has lost its locks, so that whoever waits for it is served with the rest
    pingInterval: settings.lockTimeToLive / 5
  })
  const { storage } = parsed
  const clock = yield* Clock.Clock
  const since = clock.currentTimeMillisUnsafe()
  const opened = storage.type === "sqlite"
    ? Sqlite.make(storage.file, settings.lockTimeToLive)
    : Postgres.make(storage.url, { ...ShardingConfig.defaults, ...Node.configOf(settings) })
  const store = yield* Effect.catchTag(opened, "PersistenceError", (error) =>
    Effect.andThen(
      Effect.logError("The store of the cluster can't be opened", error.cause),
      Effect.fail(
        new ClusterUnavailable({
          method: "layer",
          reason: "store",
          waited: Duration.millis(clock.currentTimeMillisUnsafe() - since)
        })
      )
    ))
  const context = yield* started(method, settings, store, transport, (members) => Welcome.isRefused(security, members))
  if (security.type === "certificates") yield* Effect.forkScoped(Watch.certificate(security.cert))
  // Before the rest ends: what nobody answers any more nobody is to send
  yield* Effect.addFinalizer(() => transport.leave)
  return context
})

const securityOf = Effect.fnUntraced(function*(
  given: Options.Parsed<typeof declaredSecurity.declaration> | undefined,
  method: string,
  host: string | undefined
) {
  const kinds = "either a secret, or cert, key and ca, or plain"
  if (given === undefined) return yield* invalid(method, "security", `must be given: ${kinds}`)
  const { ca, cert, key, plain, secret } = given
  const count = [secret, cert ?? key ?? ca, plain].filter((value) => value !== undefined).length
  if (count !== 1) return yield* invalid(method, "security", `must be ${kinds}`)
  if (secret !== undefined) return { type: "secret", secret: Redacted.value(secret) } as const
  if (plain) return { type: "plain" } as const
  if (cert === undefined || key === undefined || ca === undefined) {
    return yield* invalid(method, "security", `must be ${kinds}`)
  }
  const pem = yield* Effect.try({
    try: () => ({ ca: Security.read(ca), cert: Security.read(cert), key: Security.read(Redacted.value(key)) }),
    catch: () =>
      new InvalidOptions({
        module: "ClusterNode",
        method,
        option: "security",
        issue: "names a file that can't be read"
      })
  })
  const issue = Security.issueOf(pem, (yield* Clock.Clock).currentTimeMillisUnsafe(), host)
  if (issue !== undefined) return yield* invalid(method, "security", issue)
  return { type: "certificates", ...pem } as const
})

const started = <E>(
  method: string,
  settings: Settings,
  store: Parameters<typeof Node.make>[1],
  transport: Parameters<typeof Node.make<E>>[2],
  isRefused: (members: Effect.Effect<ReadonlyArray<ClusterMember>>) => Effect.Effect<boolean> = () =>
    Effect.succeed(false)
): Effect.Effect<Context.Context<ClusterNode | ClusterMembership>, E | InvalidOptions, Scope.Scope> =>
  Effect.gen(function*() {
    const runners = Effect.orElseSucceed(Effect.timeout(store.getRunners, "5 seconds"), () => [])
    const isOurs = ({ groups }: Runner) => groups.includes(settings.group)
    const strangers = (yield* runners).flatMap(([runner]) => isOurs(runner) ? [] : runner.groups)
    yield* refuseStrangers(method, settings, strangers)
    const others = Effect.map(
      runners,
      (all) =>
        all.flatMap(([runner]) =>
          isOurs(runner) && !Equal.equals(runner.address, settings.address) ? [runner.address] : []
        )
    )
    if (yield* isRefused(others)) {
      return yield* invalid(method, "security", "must be that of the nodes that are there already: none lets it in")
    }
    const node = yield* Node.make(settings, store, transport)
    yield* Effect.forkScoped(Watch.strangers(node))
    return Context.make(ClusterNode, { "~node": node }).pipe(Context.add(ClusterMembership, node.membership))
  })
