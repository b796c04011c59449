/**
 * The inbound registry: `Mcp-Session-Id` → an owned session, expiring, bounded, closed by finalizers.
 *
 * - Ids are minted here, from 192 random bits. None is accepted from a client, none is used twice.
 * - A session is its owner's alone. To everybody else it does not exist: unknown, expired, terminated and someone
 *   else's are one and the same {@link SessionNotFound}, and a refused request leaves no trace on the session.
 * - Full means that the newcomer is refused, unless there is a session that was never used: the oldest of these gives
 *   way. No session that was ever used is evicted.
 * - Whoever holds a session keeps it alive; its idle time counts from the end of the last hold. Only its owner, an
 *   operator, or the end of the registry itself closes it while it is held, and tells its holders.
 *
 * This module is the policy: who may come in, whose an id is, and what callers and observers are told. When a session
 * may be closed is `internal/lease/leased.ts`. It knows neither HTTP nor any SDK: those are `McpHttp`.
 */
import * as Cause from "effect/Cause"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { randomBytes } from "node:crypto"
import type { SessionKey } from "./Identity.ts"
import * as Finalizers from "./internal/finalizers.ts"
import * as Events from "./internal/lease/events.ts"
import * as Leased from "./internal/lease/leased.ts"
import * as Metrics from "./internal/lease/metrics.ts"
import * as Shares from "./internal/lease/shares.ts"
import * as Options from "./internal/options.ts"
import type * as Time from "./internal/time.ts"
import type { Configurable, InvalidOptions } from "./InvalidOptions.ts"
import { all } from "./Metrics.ts"
import { OpenTimeout, RegistryClosed, RegistryFull, SessionNotFound } from "./SessionRegistryError.ts"

export * from "./SessionRegistryError.ts"

/**
 * Whose a session is: an `Identity`, or anything else with its key. Nothing but the key is compared, or kept.
 *
 * @category models
 */
export interface SessionOwner {
  /** Names the owner: two with one key are the same. */
  readonly key: SessionKey
  /** Whether it is everybody who has no identity of their own: then `capacityPerOwner` does not limit it. */
  readonly shared?: boolean | undefined
}

/**
 * What the registry knows of a session, as it was when it was asked: a snapshot never changes. Times are milliseconds
 * since the epoch.
 *
 * @category models
 */
export interface SessionInfo {
  /** The `Mcp-Session-Id`. Not a credential, and all the same no text for a log: eight characters of it are enough. */
  readonly id: string
  /** The key of its owner. */
  readonly owner: SessionKey
  /** When it was asked for, before it was opened. */
  readonly createdAt: number
  /** When it was last taken hold of or let go, whichever is later. */
  readonly lastActivityAt: number
  /** What its client calls itself, if it was told. */
  readonly clientId?: string
  /** What its tenant is called, if it was told. */
  readonly tenantId?: string
}

/**
 * A session and what was opened for it.
 *
 * @category models
 */
export interface RegisteredSession<out Resource> extends SessionInfo {
  /**
   * What `open` opened. Closed by its finalizers when the session ends, once nobody holds it or at once if it has to.
   */
  readonly resource: Resource
  /**
   * Completes with the reason when the session takes no more requests; at once if that is so. Calls in flight may go
   * on; a stream that would stay open should not.
   */
  readonly retired: Effect.Effect<EndReason>
  /**
   * Completes with the reason when the resource is about to be closed, whoever holds it: it was terminated, or the
   * registry has shut down; at once if that is so. A call in flight has to end now.
   */
  readonly ended: Effect.Effect<EndReason>
}

/**
 * Why a session takes no more requests: it was idle for too long (`expired`), has never been used and gave way to a
 * newcomer (`evicted`), is past its `lifetime`, was `terminated` by its owner or an operator, or the registry shuts
 * down.
 *
 * @category models
 */
export type EndReason = "expired" | "evicted" | "lifetime" | "terminated" | "shutdown"

/**
 * What a new session is called by others. Kept and shown, never used to decide anything.
 *
 * @category models
 */
export interface CreateOptions {
  /** What the client calls itself: by default nothing. */
  readonly clientId?: string | undefined
  /** What the tenant is called: by default nothing. */
  readonly tenantId?: string | undefined
}

/**
 * What a registry opens for a session and how long it keeps it. Durations are `Duration.Input`; a number is
 * milliseconds.
 *
 * @category models
 */
export interface SessionRegistryOptions<Resource, E, R> {
  /**
   * Opens what belongs to a session. Its finalizers close it. Runs with the services, the span and a scope of the
   * registry, never those of the request that asked for the session. The session does not exist for anybody before.
   */
  readonly open: (info: SessionInfo) => Effect.Effect<Resource, E, R | Scope.Scope>
  /**
   * How many sessions may be opening, open or draining at once: an integer, by default 10,000. Beyond it the oldest
   * session that was never used gives way to a newcomer; if there is none, the newcomer is refused with `RegistryFull`.
   */
  readonly capacity?: number | undefined
  /**
   * The same for one owner, so that none can take all the room: an integer, by default a hundredth of `capacity`, and
   * at least 10. The shared identity has no such limit: it is everybody without an identity of their own.
   */
  readonly capacityPerOwner?: number | undefined
  /**
   * How long a session that nobody holds is kept, counted from the end of the last hold: by default 30 minutes, and
   * `Duration.infinity` for ever. Many clients do not recover from a session that expires under them.
   */
  readonly idleTimeToLive?: Duration.Input | undefined
  /**
   * The same for a session that was never used: that has had no `get`, or over HTTP no request since `initialize`. By
   * default 1 minute, and never longer than `idleTimeToLive`. When there is no room for a newcomer, the oldest of these
   * gives way to it: they cost a stranger nothing.
   */
  readonly unusedTimeToLive?: Duration.Input | undefined
  /**
   * How long after it was opened a session takes requests, less up to 2.5 %: by default for ever. Then it is closed as
   * soon as nobody holds it.
   */
  readonly maxLifetime?: Duration.Input | undefined
  /** How long an open may take, and over HTTP `initialize` after it, else `OpenTimeout`: by default 30 seconds. */
  readonly openTimeout?: Duration.Input | undefined
  /** How long a close may take before it is given up, logged and counted: by default 10 seconds. */
  readonly closeTimeout?: Duration.Input | undefined
  /** How long a registry that shuts down waits for holders before it closes under them: by default 0. */
  readonly drainTimeout?: Duration.Input | undefined
}

/**
 * @internal
 */
export const declared = Options.declare<SessionRegistryOptions<never, never, never>>()(
  { module: "SessionRegistry", variables: "MCP_REGISTRY" },
  {
    open: Options.required(Options.fn),
    capacity: Options.withDefault(Options.count, 10_000, { aliases: ["MCP_SESSION_CAPACITY"] }),
    capacityPerOwner: Options.optional(Options.count, {
      aliases: ["MCP_SESSION_CAPACITY_PER_OWNER"],
      shown: "a hundredth of capacity, at least 10"
    }),
    idleTimeToLive: Options.withDefault(Options.timeToLive, "30 minutes", { aliases: ["MCP_SESSION_IDLE_MS"] }),
    unusedTimeToLive: Options.withDefault(Options.timeToLive, "1 minute"),
    maxLifetime: Options.withDefault(Options.timeToLive, "Infinity"),
    openTimeout: Options.withDefault(Options.timeout, "30 seconds"),
    closeTimeout: Options.withDefault(Options.timeout, "10 seconds"),
    drainTimeout: Options.withDefault(Options.patience, 0)
  }
)

/**
 * A snapshot of the registry's numbers. Counts of what happened only grow; the others are of this moment.
 *
 * @category models
 */
export interface SessionRegistryStats {
  /** Sessions that take requests: held and idle. The expired are none. */
  readonly size: number
  /** The option. */
  readonly capacity: number
  /** How many of them one owner may have: the option, or what it is by default. */
  readonly capacityPerOwner: number
  /** The option. */
  readonly idleTimeToLive: Duration.Duration
  /** Sessions that a request or a stream holds. */
  readonly held: number
  /** Sessions that nobody holds, kept until their time to live has passed. */
  readonly idle: number
  /** Sessions that `open` has been called for and not returned. */
  readonly opening: number
  /** Take no more requests, and are still held, opening, or waiting for a place among the closing. */
  readonly draining: number
  /** Sessions whose finalizers run, until they end or `closeTimeout` has passed. */
  readonly closing: number
  /** Owners of a session that is opening, open or draining. */
  readonly owners: number
  /** Sessions that were opened. */
  readonly created: number
  /** Newcomers that found the registry, or their owner's share of it, full. */
  readonly refusals: number
  /**
   * Ids that were asked for in vain, by whatever operation: unknown, expired, terminated, and those of others. Many of
   * them are somebody's guesses, or clients that do not initialize anew.
   */
  readonly notFound: number
  /** Sessions that were never used and gave way to a newcomer. */
  readonly evictions: number
  /** Sessions that were idle for too long. */
  readonly expirations: number
  /** Sessions ended by `terminate`, `terminateAll` or `clear`, or because nobody waited for them any more. */
  readonly terminations: number
  /** Sessions ended by their lifetime or by shutdown. */
  readonly retirements: number
  /** Opens that failed or took too long. */
  readonly failures: number
  /** Closes that failed or were given up. */
  readonly closeFailures: number
  /** Events that readers of `events` have lost because they were slow. */
  readonly eventsLost: number
}

/**
 * A session that takes requests.
 *
 * @category models
 */
export interface SessionRegistryEntry extends SessionInfo {
  /** Whether a request or a stream holds it. */
  readonly state: "held" | "idle"
  /** By how many requests and streams it is held. */
  readonly holders: number
}

/**
 * What happened in the registry. Each session is `Created` once, then `Ended` once, then `Closed` or `CloseFailed`
 * once.
 * `session` is the beginning of its id, enough to find it and not enough to use it.
 *
 * A session that is terminated while it opens is `Ended` first, and `Created` only if its open succeeds all the same. A
 * `CloseFailed` without a `Created` is of a failed open that could not free what it had acquired.
 *
 * @category models
 */
export type SessionRegistryEvent = Data.TaggedEnum<{
  readonly Created: { readonly owner: SessionKey; readonly session: string }
  readonly CreateFailed: { readonly owner: SessionKey; readonly session: string; readonly reason: "failed" | "timeout" }
  readonly Refused: { readonly owner: SessionKey; readonly scope: "registry" | "owner" }
  readonly Ended: { readonly owner: SessionKey; readonly session: string; readonly reason: EndReason }
  readonly Closed: {
    readonly owner: SessionKey
    readonly session: string
    readonly reason: EndReason
    readonly lived: Duration.Duration
  }
  readonly CloseFailed: { readonly owner: SessionKey; readonly session: string; readonly reason: "failed" | "timeout" }
}>

/**
 * @category models
 */
export const SessionRegistryEvent = Data.taggedEnum<SessionRegistryEvent>()

// -----------------------------------------------------------------------------
// Service
// -----------------------------------------------------------------------------

/**
 * What an operator can do with the sessions of a registry, whatever belongs to each: list, count and end them. A
 * registry that hosts sessions for others, as those of `McpHttp` do, provides this and no more: how its sessions begin,
 * and what belongs to them, is its own affair.
 *
 * @category models
 */
export interface Operator {
  /**
   * What is known of the owner's session of that id. Looking is no activity.
   *
   * Fails with `SessionNotFound` when the owner has no such session, and with `RegistryClosed` after shutdown.
   */
  readonly peek: (id: string, owner: SessionOwner) => Effect.Effect<SessionInfo, SessionNotFound | RegistryClosed>
  /**
   * Ends the owner's session of that id at once, also while it is held. Does not wait for it to be closed.
   *
   * Fails with `SessionNotFound` when the owner has no such session, and with `RegistryClosed` after shutdown.
   */
  readonly terminate: (id: string, owner: SessionOwner) => Effect.Effect<void, SessionNotFound | RegistryClosed>
  /**
   * Ends all sessions of the owner at once, those being opened too, and counts them: a user who was revoked.
   */
  readonly terminateAll: (owner: SessionOwner) => Effect.Effect<number>
  /**
   * Ends all sessions at once, those being opened too, and counts them.
   */
  readonly clear: Effect.Effect<number>
  /**
   * How many sessions take requests: held and idle. The expired are none.
   */
  readonly size: Effect.Effect<number>
  /**
   * The registry's numbers of this moment.
   */
  readonly stats: Effect.Effect<SessionRegistryStats>
  /**
   * The sessions that take requests, the least recently used first. Of one moment, so nothing else runs meanwhile: with
   * 50,000 sessions that is a tenth of a second. For a look every few seconds there are `stats`.
   */
  readonly entries: Effect.Effect<ReadonlyArray<SessionRegistryEntry>>
  /**
   * What happens from now on. A reader may be 1,024 events behind; then it loses the oldest, which `eventsLost` in the
   * stats counts, and slows nobody. Ends with the registry.
   */
  readonly events: Stream.Stream<SessionRegistryEvent>
}

/**
 * The operations of a registry, of sessions that `open` may fail to open with `E`.
 *
 * @category models
 */
export interface Service<out Resource, out E> extends Operator {
  /**
   * A new session of the owner, under a new id. Nobody holds it when this ends: its idle time begins.
   *
   * Fails with `RegistryFull` when there is no room for another session, or another of this owner; with `OpenTimeout`
   * when its `open` takes longer than `openTimeout`; with the error of its `open`; and with `RegistryClosed` after
   * shutdown.
   */
  readonly create: (
    owner: SessionOwner,
    options?: CreateOptions
  ) => Effect.Effect<RegisteredSession<Resource>, E | RegistryFull | OpenTimeout | RegistryClosed>
  /**
   * The owner's session of that id, held until the current scope closes. For as long it does not expire, and its last
   * activity is when the scope closes.
   *
   * Fails with `SessionNotFound` when the owner has no such session, and with `RegistryClosed` after shutdown. Then
   * nothing has happened to the session.
   */
  readonly get: (
    id: string,
    owner: SessionOwner
  ) => Effect.Effect<RegisteredSession<Resource>, SessionNotFound | RegistryClosed, Scope.Scope>
}

/**
 * The operations of a service as members of its tag, each on the service in context.
 *
 * @category models
 */
export type Accessors<Self, Operations> = {
  readonly [K in keyof Operations]: Operations[K] extends Effect.Effect<infer A, infer E, infer R>
    ? Effect.Effect<A, E, R | Self>
    : Operations[K] extends Stream.Stream<infer A, infer E, infer R> ? Stream.Stream<A, E, R | Self>
    : Operations[K] extends (...args: infer Args) => Effect.Effect<infer A, infer E, infer R>
      ? (...args: Args) => Effect.Effect<A, E, R | Self>
    : never
}

/**
 * The tag of an operator's view: its operations on the one in context.
 *
 * @category models
 */
export interface OperatorClass<in out Self, in out Id extends string>
  extends Context.ServiceClass<Self, Id, Operator>, Accessors<Self, Operator>
{}

/**
 * The layers of a registry that is provided as `Provided`.
 *
 * @category models
 */
export interface Layers<in out Provided, in out Resource, in out E> {
  /**
   * A registry that lives as long as the layer's scope. Fails with `InvalidOptions` when an option has no meaning.
   */
  readonly layer: <R = never>(
    options: SessionRegistryOptions<Resource, E, R>
  ) => Layer.Layer<Provided, InvalidOptions, Exclude<R, Scope.Scope>>
  /**
   * A registry whose options come from the configuration, and from `options` where that is silent. The variables are
   * named after the options: `MCP_REGISTRY_CAPACITY`, `MCP_REGISTRY_IDLE_TIME_TO_LIVE`, …; README has the table.
   * Durations are written as `"30 minutes"`, and a plain number is milliseconds.
   *
   * An option may be a `Config` of your own, which is read in place of its variable; and so may all of them at once,
   * and then no variable of the library is read.
   *
   * Fails with `ConfigError` when a variable can't be read, and with `InvalidOptions` when what it says has no meaning.
   */
  readonly layerConfig: <R = never>(
    options: Configurable<SessionRegistryOptions<Resource, E, R>>
  ) => Layer.Layer<Provided, InvalidOptions | Config.ConfigError, Exclude<R, Scope.Scope>>
}

/**
 * A registry's tag: the operations of {@link Service} on the registry in context, and the layers that make one.
 *
 * @category models
 */
export interface TagClass<in out Self, in out Id extends string, in out Resource, in out E>
  extends
    Context.ServiceClass<Self, Id, Service<Resource, E>>,
    Accessors<Self, Service<Resource, E>>,
    Layers<Self, Resource, E>
{}

/**
 * Makes the tag of an operator's view, for an application in which there are several: two `McpHttp` layers, say, of
 * which each is told by its option `sessions` which tag to provide.
 *
 * **Example** (Two endpoints in one application)
 *
 * ```ts
 * class Public extends SessionRegistry.Operator<Public>()("app/Public") {}
 * class Internal extends SessionRegistry.Operator<Internal>()("app/Internal") {}
 *
 * const total = Effect.zipWith(Public.size, Internal.size, (a, b) => a + b)
 * ```
 *
 * @category constructors
 */
export const Operator = <Self>() => <const Id extends string>(id: Id): OperatorClass<Self, Id> => {
  class View extends Context.Service<Self, Operator>()(id) {}
  return Object.assign(View, operations(View))
}

/**
 * What an operator may have of a registry.
 *
 * @internal
 */
export const operatorOf = (registry: Operator): Operator => {
  const { clear, entries, events, peek, size, stats, terminate, terminateAll } = registry
  return { clear, entries, events, peek, size, stats, terminate, terminateAll }
}

const operations = <Self>(
  tag: Pick<Context.Service<Self, Operator>, "use" | "useSync">
): Accessors<Self, Operator> => ({
  peek: (id, owner) => tag.use((registry) => registry.peek(id, owner)),
  terminate: (id, owner) => tag.use((registry) => registry.terminate(id, owner)),
  terminateAll: (owner) => tag.use((registry) => registry.terminateAll(owner)),
  clear: tag.use((registry) => registry.clear),
  size: tag.use((registry) => registry.size),
  stats: tag.use((registry) => registry.stats),
  entries: tag.use((registry) => registry.entries),
  events: Stream.unwrap(tag.useSync((registry) => registry.events))
})

/**
 * Makes the tag of a registry of any type of resource.
 *
 * **Example** (A shell for every session)
 *
 * ```ts
 * class Shells extends SessionRegistry.Tag<Shells, Shell, PlatformError>()("app/Shells") {}
 *
 * const layer = Shells.layer({ open: (info) => openShell(info.owner), capacityPerOwner: 5 })
 * ```
 *
 * @category constructors
 */
export const Tag =
  <Self, Resource, E = never>() => <const Id extends string>(id: Id): TagClass<Self, Id, Resource, E> => {
    class Registry extends Context.Service<Self, Service<Resource, E>>()(id) {}
    return Object.assign(Registry, operations<Self>(Registry), {
      create: (owner: SessionOwner, names?: CreateOptions) => Registry.use((registry) => registry.create(owner, names)),
      get: (sessionId: string, owner: SessionOwner) => Registry.use((registry) => registry.get(sessionId, owner)),
      ...layers<Self, Resource, E>((registry) => Context.make(Registry, registry), id)
    })
  }

const layers = <Provided, Resource, E>(
  provide: (registry: Service<Resource, E>) => Context.Context<Provided>,
  name?: string
): Layers<Provided, Resource, E> => ({
  layer: (options) => Layer.effectContext(Effect.map(make(options, "layer", name), provide)),
  layerConfig: (options) =>
    Layer.effectContext(
      Effect.flatMap(
        declared.configured(options),
        (configured) => Effect.map(make(configured, "layerConfig", name), provide)
      )
    )
})

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

/**
 * What those have who host sessions for others.
 *
 * @internal
 */
export interface Hosting<out Resource, out E> extends Service<Resource, E> {
  /**
   * As `create`, but the session is held until the current scope closes, for what is still to be done before its client
   * hears of it. That is no use of it: its `unusedTimeToLive` begins then.
   *
   * It can be interrupted while the session opens, and then nothing is left of it, also where its caller can't be: such
   * a caller loses no session between this and what comes next.
   *
   * `announce` is told the id before the session opens, for what `open` has to know of this very request.
   */
  readonly createHeld: (
    owner: SessionOwner,
    options?: CreateOptions,
    announce?: (id: string) => void
  ) => Effect.Effect<
    RegisteredSession<Resource>,
    E | RegistryFull | OpenTimeout | RegistryClosed,
    Scope.Scope
  >
  /**
   * The owner's session of that id, for a request that has not come in full: until the current scope closes it does not
   * expire under it. That is no activity, but to `hold` it is. Once the session's time is over, and it is only kept for
   * those who came before, there are no more visits.
   *
   * Fails as `get` does, and so does `hold` when the session has ended meanwhile.
   */
  readonly visit: (
    id: string,
    owner: SessionOwner
  ) => Effect.Effect<Visit<Resource>, SessionNotFound | RegistryClosed, Scope.Scope>
}

/**
 * @internal
 */
export interface Visit<out Resource> {
  readonly session: RegisteredSession<Resource>
  /** Holds it until the current scope closes. */
  readonly hold: Effect.Effect<RegisteredSession<Resource>, SessionNotFound | RegistryClosed, Scope.Scope>
}

/**
 * `suffix` is what all ids end with.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*<Resource, E, R>(
  input: SessionRegistryOptions<Resource, E, R>,
  method: "layer" | "layerConfig",
  name = "effect-mcp-sessions/SessionRegistry",
  suffix = ""
) {
  const options = yield* read(input, method)
  const observed = yield* makeObserved
  const { counts } = observed
  const metrics = yield* Metrics.make<Registration, Resource, E | OpenTimeout | RegistryClosed>({
    labels: { registry: name },
    instruments,
    capacity: options.capacity,
    engine: () => engine,
    counts: [
      [all.registryCreated, () => counts.created],
      [all.registryRefusals, () => counts.refusals],
      [all.registryNotFound, () => counts.notFound]
    ],
    reasonOf: endReason
  })
  const engine: Registry<Resource, E>["engine"] = yield* Leased.make<
    Registration,
    Resource,
    E | OpenTimeout | RegistryClosed,
    R
  >({
    ...options,
    ...metrics.watch(hooks(() => self)),
    open: (slot): ReturnType<typeof input.open> => input.open(toInfo(self.engine.time, slot))
  })
  const self: Registry<Resource, E> = { options, engine, shares: Shares.make(), observed, suffix }
  // Runs before the engine's own shutdown.
  yield* Effect.addFinalizer(() => Effect.sync(() => Leased.beginShutdown(engine)))
  return {
    create: (owner, names) => create(self, owner, names),
    createHeld: (owner, names, announce) => createHeld(self, owner, names, announce),
    get: (id, owner) => get(self, id, owner),
    visit: (id, owner) => visit(self, id, owner),
    peek: (id, owner) => look(self, "peek", id, owner, (slot) => toInfo(engine.time, slot)),
    terminate: (id, owner) => Effect.asVoid(look(self, "terminate", id, owner, (slot) => terminate(self, slot))),
    terminateAll: (owner) => Effect.sync(() => terminateWhere(self, (slot) => slot.info.owner === owner.key)),
    clear: Effect.sync(() => terminateWhere(self, () => true)),
    size: Effect.sync(() => size(self)),
    entries: Effect.sync(() => entries(self)),
    stats: Effect.sync(() => stats(self)),
    events: observed.events.stream
  } satisfies Hosting<Resource, E> as Hosting<Resource, E>
})

const read = (input: unknown, method: "layer" | "layerConfig") =>
  Effect.map(Effect.fromResult(declared.parse(input, method)), (options) => ({
    ...options,
    capacityPerOwner: options.capacityPerOwner ?? Math.max(10, Math.ceil(options.capacity / 100))
  }))

// A registry's parts. The engine's state is its own.
interface Registry<in out Resource, in out E> {
  readonly options: Effect.Success<ReturnType<typeof read>>
  readonly engine: Leased.Leased<Registration, Resource, E | OpenTimeout | RegistryClosed>
  readonly shares: Shares.Shares<SessionKey, Slot<Resource, E>>
  readonly observed: Observed
  readonly suffix: string
}

type Slot<Resource, E> = Leased.Slot<Registration, Resource, E | OpenTimeout | RegistryClosed>

// What the registry keeps of a session beside its slot, whose key is the id.
interface Registration {
  readonly owner: SessionKey
  readonly createdAt: number
  readonly clientId: string | undefined
  readonly tenantId: string | undefined
  /** A moment of the engine's `time`. */
  activeAt: number
  hasEnded: boolean
  // Made when somebody waits for them.
  retired: Deferred.Deferred<EndReason> | undefined
  ended: Deferred.Deferred<EndReason> | undefined
}

// -----------------------------------------------------------------------------
// Observing
// -----------------------------------------------------------------------------

// What has happened, counted and told.
interface Observed {
  readonly events: Events.Events<SessionRegistryEvent>
  readonly counts: {
    -readonly [
      K in
        | "created"
        | "refusals"
        | "notFound"
        | "evictions"
        | "expirations"
        | "terminations"
        | "retirements"
        | "failures"
        | "closeFailures"
    ]: number
  }
}

const instruments: Metrics.Instruments = {
  sessions: all.registrySessions,
  capacity: all.registryCapacity,
  retirements: all.registryEnds,
  openFailures: all.registryOpenFailures,
  closeFailures: all.registryCloseFailures,
  opens: all.registryOpenDuration,
  uses: all.registryLeaseDuration,
  closes: all.registryCloseDuration,
  lives: all.serverSessionDuration
}

const makeObserved = Effect.map(Events.make<SessionRegistryEvent>(), (events): Observed => ({
  events,
  counts: {
    created: 0,
    refusals: 0,
    notFound: 0,
    evictions: 0,
    expirations: 0,
    terminations: 0,
    retirements: 0,
    failures: 0,
    closeFailures: 0
  }
}))

// The engine calls them once there is a registry.
const hooks = <Resource, E>(
  registry: () => Registry<Resource, E>
): Omit<Leased.Options<Registration, Resource, E | OpenTimeout | RegistryClosed, never>, "open" | keyof Limits> => ({
  openTimedOut: () => new OpenTimeout({ after: Duration.millis(registry().options.openTimeout) }),
  shutDown: () => new RegistryClosed(),
  labels,
  onOpened: (slot) => {
    const { counts, events } = registry().observed
    counts.created++
    events.emit(SessionRegistryEvent.Created(labels(slot)))
  },
  onOpenFailed: (slot, cause) => {
    const { engine, observed: { counts, events } } = registry()
    if (Leased.isShutDown(engine)) return
    counts.failures++
    const timeout = Option.exists(Cause.findErrorOption(cause), (error) => error instanceof OpenTimeout)
    events.emit(SessionRegistryEvent.CreateFailed({ ...labels(slot), reason: timeout ? "timeout" : "failed" }))
  },
  onRetired: (slot) => {
    const { engine, observed: { counts, events }, shares } = registry()
    const reason = endReason(slot)
    counts[countOf[reason]]++
    Shares.removeUnused(shares, slot.info.owner, slot)
    events.emit(SessionRegistryEvent.Ended({ ...labels(slot), reason }))
    tell(engine, slot.info.retired, reason)
  },
  onLeft: (slot) => {
    const { engine, shares } = registry()
    Shares.giveBack(shares, slot.info.owner)
    if (slot.phase === "closing") tellEnded(engine, slot)
  },
  onClosed: (slot, lived) =>
    registry().observed.events.emit(
      SessionRegistryEvent.Closed({ ...labels(slot), reason: endReason(slot), lived })
    ),
  onCloseFailed: (slot, reason) => {
    const { counts, events } = registry().observed
    counts.closeFailures++
    events.emit(SessionRegistryEvent.CloseFailed({ ...labels(slot), reason }))
  }
})

type Limits = Pick<
  Leased.Options<never, never, never, never>,
  | "capacity"
  | "idleTimeToLive"
  | "unusedTimeToLive"
  | "maxLifetime"
  | "openTimeout"
  | "closeTimeout"
  | "drainTimeout"
>

const countOf = {
  expired: "expirations",
  evicted: "evictions",
  terminated: "terminations",
  lifetime: "retirements",
  shutdown: "retirements"
} as const satisfies Record<EndReason, keyof Observed["counts"]>

const tell = <Resource, E>(
  engine: Registry<Resource, E>["engine"],
  waiting: Deferred.Deferred<EndReason> | undefined,
  reason: EndReason
): void => {
  if (waiting !== undefined) Leased.start(engine, Effect.asVoid(Deferred.succeed(waiting, reason)))
}

const tellEnded = <Resource, E>(engine: Registry<Resource, E>["engine"], slot: Slot<Resource, E>): void => {
  if (slot.info.hasEnded) return
  slot.info.hasEnded = true
  tell(engine, slot.info.ended, endReason(slot))
}

const size = <Resource, E>({ engine }: Registry<Resource, E>): number => {
  Leased.expire(engine)
  return Leased.size(engine)
}

const entries = <Resource, E>({ engine }: Registry<Resource, E>): ReadonlyArray<SessionRegistryEntry> => {
  Leased.expire(engine)
  return Leased.inOrder(engine).map((slot) => toEntry(engine.time, slot))
}

const stats = <Resource, E>({ engine, observed, options, shares }: Registry<Resource, E>): SessionRegistryStats => {
  Leased.expire(engine)
  const { leased, ...census } = Leased.census(engine)
  return {
    ...observed.counts,
    ...census,
    size: Leased.size(engine),
    capacity: options.capacity,
    capacityPerOwner: options.capacityPerOwner,
    idleTimeToLive: Duration.millis(options.idleTimeToLive),
    held: leased,
    owners: Shares.size(shares),
    eventsLost: observed.events.lost()
  }
}

// -----------------------------------------------------------------------------
// Coming in
// -----------------------------------------------------------------------------

type Creating<Resource, E, R = never> = Effect.Effect<
  RegisteredSession<Resource>,
  E | RegistryFull | OpenTimeout | RegistryClosed,
  R
>

const create = <Resource, E>(
  self: Registry<Resource, E>,
  owner: SessionOwner,
  names: CreateOptions | undefined
): Creating<Resource, E> =>
  Effect.uninterruptibleMask((restore) =>
    begin(self, owner, names, restore, (slot) => letGo(self, slot) ?? Effect.void)
  )

const createHeld = <Resource, E>(
  self: Registry<Resource, E>,
  owner: SessionOwner,
  names: CreateOptions | undefined,
  announce: ((id: string) => void) | undefined
): Creating<Resource, E, Scope.Scope> =>
  Effect.uninterruptible(
    begin(
      self,
      owner,
      names,
      Effect.interruptible,
      (slot) => Finalizers.add(Effect.suspend(() => letGo(self, slot) ?? Effect.void)),
      announce
    )
  )

// Uninterruptible, but for the wait. What becomes of the creator's hold is for `keep` to say.
const begin = <Resource, E, R>(
  self: Registry<Resource, E>,
  owner: SessionOwner,
  names: CreateOptions = {},
  waiting: <A, E2>(effect: Effect.Effect<A, E2>) => Effect.Effect<A, E2>,
  keep: (slot: Slot<Resource, E>) => Effect.Effect<void, never, R>,
  announce?: ((id: string) => void) | undefined
): Creating<Resource, E, R> =>
  Effect.suspend((): Creating<Resource, E, R> => {
    const slot = admit(self, owner, names, announce)
    if (slot instanceof RegistryFull || slot instanceof RegistryClosed) return Effect.fail(slot)
    const opened = Effect.onError(
      waiting(Leased.join(slot)),
      () => Effect.map(letGo(self, slot) ?? Effect.void, () => abandon(self, slot))
    )
    return Effect.flatMap(opened, (resource) => {
      slot.info.activeAt = self.engine.time.now()
      return Effect.as(keep(slot), toSession(self, slot, resource))
    })
  })

// Opened in the very moment in which its creator left: nobody will ever know of it.
const abandon = <Resource, E>({ engine }: Registry<Resource, E>, slot: Slot<Resource, E>): void => {
  if (slot.phase === "open") Leased.retire(engine, slot, "invalidated")
}

const admit = <Resource, E>(
  self: Registry<Resource, E>,
  owner: SessionOwner,
  { clientId, tenantId }: CreateOptions,
  announce: ((id: string) => void) | undefined
): Slot<Resource, E> | RegistryFull | RegistryClosed =>
  Leased.atomically(self.engine, () => {
    const { engine, shares, suffix } = self
    if (Leased.isShutDown(engine)) return new RegistryClosed()
    const full = makeRoom(self, owner)
    if (full !== undefined) return refuse(self, owner, full)
    Shares.take(shares, owner.key)
    const now = engine.time.now()
    const id = mint() + suffix
    announce?.(id)
    return Leased.admit(engine, id, {
      owner: owner.key,
      createdAt: engine.time.onWall(now),
      clientId,
      tenantId,
      activeAt: now,
      hasEnded: false,
      retired: undefined,
      ended: undefined
    }, 1)
  })

// What is full even so, if anything is. Their own share first: when both are full, no other's leaving will help.
// Whoever begins sessions and never uses them pushes out their own, and is not shut out by them.
const makeRoom = <Resource, E>(self: Registry<Resource, E>, owner: SessionOwner): RegistryFull["scope"] | undefined => {
  const { engine, options, shares } = self
  const isShareFull = () => owner.shared !== true && Shares.places(shares, owner.key) >= options.capacityPerOwner
  if (Leased.hasRoom(engine) && !isShareFull()) return undefined
  Leased.expire(engine)
  if (isShareFull() && !giveWay(self, Shares.oldestUnused(shares, owner.key))) return "owner"
  if (!Leased.hasRoom(engine) && !giveWay(self, Leased.oldestUnused(engine))) return "registry"
  return undefined
}

// Unless as many are closing as there may be: it would keep its place.
const giveWay = <Resource, E>({ engine }: Registry<Resource, E>, slot: Slot<Resource, E> | undefined): boolean =>
  slot !== undefined && Leased.canClose(engine) && Leased.retire(engine, slot, "evicted")

const refuse = <Resource, E>(
  { observed, options }: Registry<Resource, E>,
  owner: SessionOwner,
  scope: RegistryFull["scope"]
): RegistryFull => {
  observed.counts.refusals++
  observed.events.emit(SessionRegistryEvent.Refused({ owner: owner.key, scope }))
  return new RegistryFull({ scope, capacity: scope === "owner" ? options.capacityPerOwner : options.capacity })
}

// -----------------------------------------------------------------------------
// Being there
// -----------------------------------------------------------------------------

// Nothing of the session is touched before its owner is known, and nothing at all if it is another.
const find = <Resource, E>(
  { engine, suffix }: Registry<Resource, E>,
  id: string,
  owner: SessionOwner
): Slot<Resource, E> | undefined => {
  if (Leased.isShutDown(engine) || typeof id !== "string" || id.length !== idLength + suffix.length) return undefined
  const slot = Leased.find(engine, id)
  return slot !== undefined && slot.phase === "open" && slot.info.owner === owner.key ? slot : undefined
}

const notFound = <Resource, E>(
  { engine, observed }: Registry<Resource, E>,
  method: SessionNotFound["method"]
): Effect.Effect<never, SessionNotFound | RegistryClosed> => {
  if (Leased.isShutDown(engine)) return Effect.fail(new RegistryClosed({ method }))
  observed.counts.notFound++
  return Effect.fail(new SessionNotFound({ method }))
}

const get = <Resource, E>(
  self: Registry<Resource, E>,
  id: string,
  owner: SessionOwner
): ReturnType<Service<Resource, E>["get"]> =>
  Effect.uninterruptibleMask(() => {
    const slot = find(self, id, owner)
    if (slot === undefined || Leased.lease(self.engine, id) === undefined) return notFound(self, "get")
    return held(self, slot)
  })

const visit = <Resource, E>(
  self: Registry<Resource, E>,
  id: string,
  owner: SessionOwner
): ReturnType<Hosting<Resource, E>["visit"]> =>
  Effect.uninterruptibleMask(() => {
    const { engine } = self
    const slot = find(self, id, owner)
    if (slot === undefined || !Leased.visit(engine, slot)) return notFound(self, "get")
    const session = toSession(self, slot, slot.session!.value)
    const hold = Effect.uninterruptible(
      Effect.suspend(() => Leased.leaseVisited(engine, slot) ? held(self, slot) : notFound(self, "get"))
    )
    return Effect.as(Finalizers.add(Effect.sync(() => Leased.leave(engine, slot))), { session, hold })
  })

// Leased a moment ago, until the current scope closes.
const held = <Resource, E>(
  self: Registry<Resource, E>,
  slot: Slot<Resource, E>
): Effect.Effect<RegisteredSession<Resource>, never, Scope.Scope> => {
  Shares.removeUnused(self.shares, slot.info.owner, slot)
  slot.info.activeAt = self.engine.time.now()
  const session = toSession(self, slot, slot.session!.value)
  const scope = Context.getUnsafe(Fiber.getCurrent()!.context, Scope.Scope)
  return Effect.as(Scope.addFinalizerExit(scope, () => letGo(self, slot) ?? Effect.void), session)
}

const letGo = <Resource, E>(
  { engine, shares }: Registry<Resource, E>,
  slot: Slot<Resource, E>
): Effect.Effect<void> | undefined => {
  slot.info.activeAt = engine.time.now()
  const freed = Leased.release(engine, slot)
  const isWaiting = slot.phase === "open" && slot.retired === undefined && Leased.isUnused(slot)
  if (isWaiting) Shares.addUnused(shares, slot.info.owner, slot)
  return freed
}

// The expired are none, also before their expiry is noticed.
const look = <Resource, E, A>(
  self: Registry<Resource, E>,
  method: "peek" | "terminate",
  id: string,
  owner: SessionOwner,
  f: (slot: Slot<Resource, E>) => A
): Effect.Effect<A, SessionNotFound | RegistryClosed> =>
  Effect.suspend(() => {
    const slot = find(self, id, owner)
    return slot === undefined || Leased.hasExpired(self.engine, slot)
      ? notFound(self, method)
      : Effect.succeed(f(slot))
  })

const toSession = <Resource, E>(
  { engine }: Registry<Resource, E>,
  slot: Slot<Resource, E>,
  resource: Resource
): RegisteredSession<Resource> =>
  Object.freeze({
    ...toInfo(engine.time, slot),
    resource,
    retired: Effect.suspend(() =>
      slot.retired === undefined
        ? Deferred.await(slot.info.retired ??= Deferred.makeUnsafe())
        : Effect.succeed(endReason(slot))
    ),
    ended: Effect.suspend(() =>
      slot.info.hasEnded
        ? Effect.succeed(endReason(slot))
        : Deferred.await(slot.info.ended ??= Deferred.makeUnsafe())
    )
  })

// -----------------------------------------------------------------------------
// Going
// -----------------------------------------------------------------------------

const terminate = <Resource, E>({ engine }: Registry<Resource, E>, slot: Slot<Resource, E>): boolean =>
  Leased.atomically(engine, () => {
    const isFirst = Leased.end(engine, slot, "invalidated")
    // Its close may have to wait for a place. Its holders need not.
    if (slot.session !== undefined) tellEnded(engine, slot)
    return isFirst
  })

// Those that are draining too: they are held by somebody.
const terminateWhere = <Resource, E>(
  self: Registry<Resource, E>,
  f: (slot: Slot<Resource, E>) => boolean
): number => {
  Leased.expire(self.engine)
  return Leased.all(self.engine).filter((slot) => f(slot) && terminate(self, slot)).length
}

// -----------------------------------------------------------------------------
// Internals
// -----------------------------------------------------------------------------

// 192 random bits in 32 characters of base64url. The specification asks for visible ASCII; and with the 8 characters
// that an event may tell, 144 bits are still anybody's guess.
const idLength = 32

const mint = (): string => randomBytes(24).toString("base64url")

type AnySlot = Pick<Leased.Slot<Registration, unknown, unknown>, "key" | "info" | "leases" | "retired">

const toInfo = (time: Time.Time, { info, key }: AnySlot): SessionInfo =>
  Object.freeze({
    id: key,
    owner: info.owner,
    createdAt: info.createdAt,
    lastActivityAt: time.onWall(info.activeAt),
    ...(info.clientId === undefined ? {} : { clientId: info.clientId }),
    ...(info.tenantId === undefined ? {} : { tenantId: info.tenantId })
  })

const toEntry = (time: Time.Time, slot: AnySlot): SessionRegistryEntry =>
  Object.freeze({
    ...toInfo(time, slot),
    state: slot.leases > 0 ? "held" : "idle",
    holders: slot.leases
  })

const labels = (slot: AnySlot) => ({ owner: slot.info.owner, session: slot.key.slice(0, 8) })

// Of the engine's reasons, those that this policy uses.
const endReason = ({ retired }: AnySlot): EndReason => {
  switch (retired) {
    case "expired":
    case "evicted":
    case "lifetime":
    case "shutdown":
      return retired
    default:
      return "terminated"
  }
}

/**
 * What the default {@link SessionRegistry} tag needs to create sessions and to get what belongs to them: a registry of
 * the application's own. Its `layer` provides it, `McpHttp`'s layers do not: their sessions begin with a request.
 *
 * @category services
 */
export class CreatesSessions
  extends Tag<CreatesSessions, unknown>()("effect-mcp-sessions/SessionRegistry/CreatesSessions")
{}

const defaultLayers = layers<SessionRegistry | CreatesSessions, unknown, never>((registry) =>
  Context.make(SessionRegistry, registry).pipe(Context.add(CreatesSessions, registry))
)

/**
 * The registry of a server's sessions, as its operator sees it: {@link Operator}. `McpHttp`'s layers provide it over
 * the sessions that they host.
 *
 * Its own {@link SessionRegistry.layer} provides a registry of the application's sessions, which {@link
 * SessionRegistry.create} and {@link SessionRegistry.get} need; without it they do not compile. For a resource with a
 * type make a tag with {@link Tag}, for several views in one application with {@link Operator}.
 *
 * **Example** (Log a user out)
 *
 * ```ts
 * const logOut = (user: Identity) => SessionRegistry.terminateAll(user)
 * ```
 *
 * @category services
 */
export class SessionRegistry extends Operator<SessionRegistry>()("effect-mcp-sessions/SessionRegistry") {
  /** Makes the tag of a registry of any other type of resource: see {@link Tag}. */
  static readonly Tag = Tag
  /** Makes the tag of an operator's view: {@link Operator}. */
  static readonly Operator = Operator
  /**
   * A new session of the owner, as {@link Service.create} makes it. Needs a registry of the application's own.
   */
  static readonly create = CreatesSessions.create
  /**
   * The owner's session of that id, held until the current scope closes, as {@link Service.get} does. Needs a registry
   * of the application's own.
   */
  static readonly get = CreatesSessions.get
  /**
   * A registry that lives as long as the layer's scope. Fails with `InvalidOptions` when an option has no meaning.
   */
  static readonly layer = defaultLayers.layer
  /**
   * A registry whose options come from the configuration, and from `options` where that is silent: see
   * {@link Layers.layerConfig}.
   */
  static readonly layerConfig = defaultLayers.layerConfig
}
