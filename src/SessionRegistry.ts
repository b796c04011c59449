/**
 * The inbound registry: `Mcp-Session-Id` → an owned session, expiring, bounded, closed by finalizers.
 *
 * - Ids are minted here, from 192 random bits. None is accepted from a client, none is used twice.
 * - A session is its owner's alone. To everybody else it does not exist: unknown, expired, terminated and someone else's
 *   are one and the same {@link SessionNotFound}, and a refused request leaves no trace on the session.
 * - Full means that the newcomer is refused. No resident is ever evicted for it.
 * - Whoever holds a session keeps it alive; its idle time counts from the end of the last hold. Only its owner, an
 *   operator, or the end of the registry itself closes it while it is held, and tells its holders.
 *
 * This module is the policy: who may come in, whose an id is, and what callers and observers are told. When a session may
 * be closed is `internal/lease/leased.ts`. It knows neither HTTP nor any SDK: those are `McpHttp`.
 */
import * as Cause from "effect/Cause"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { randomBytes } from "node:crypto"
import type { SessionKey } from "./Identity.ts"
import * as Events from "./internal/lease/events.ts"
import * as Leased from "./internal/lease/leased.ts"
import type * as Time from "./internal/lease/time.ts"
import * as Options from "./internal/options.ts"
import type { Configurable, InvalidOptions } from "./InvalidOptions.ts"
import { OpenTimeout, RegistryClosed, RegistryFull, SessionNotFound } from "./SessionRegistryError.ts"

export * from "./SessionRegistryError.ts"

/**
 * Whose a session is: an `Identity`, or anything else with its key. Nothing but the key is compared, or kept.
 *
 * @category models
 */
export interface SessionOwner {
  /** Whose sessions they are: two owners with equal keys are one. */
  readonly key: SessionKey
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
  /** The key of the identity that created it, and alone may use it. */
  readonly owner: SessionKey
  /** When it was created, in milliseconds since the epoch. */
  readonly createdAt: number
  /** When it was last taken hold of or let go, whichever is later. */
  readonly lastActivityAt: number
  /** What `create` was told. It decides nothing. */
  readonly clientId?: string
  /** What `create` was told. It decides nothing. */
  readonly tenantId?: string
}

/**
 * A session and what was opened for it.
 *
 * @category models
 */
export interface RegisteredSession<out Resource> extends SessionInfo {
  /** What `open` opened for it. */
  readonly resource: Resource
  /**
   * Completes when the session takes no more requests, because it was terminated, is past its lifetime or the registry
   * shuts down. Calls in flight may go on; a stream that would stay open should not.
   */
  readonly retired: Effect.Effect<EndReason>
  /**
   * Completes when the resource is about to be closed, whoever holds it: it was terminated, or the registry has shut down.
   * A call in flight has to end now.
   */
  readonly ended: Effect.Effect<EndReason>
}

/**
 * Why a session takes no more requests: it was idle for too long (`expired`), is past its `lifetime`, was `terminated` by
 * its owner or an operator, or the registry shuts down.
 *
 * @category models
 */
export type EndReason = "expired" | "lifetime" | "terminated" | "shutdown"

/**
 * What a new session is called by others. Kept and shown, never used to decide anything.
 *
 * @category models
 */
export interface CreateOptions {
  /** Shown in {@link SessionInfo}, for operators. */
  readonly clientId?: string | undefined
  /** Shown in {@link SessionInfo}, for operators. */
  readonly tenantId?: string | undefined
}

/**
 * What a registry opens for a session and how long it keeps it. Durations are `Duration.Input`; a number is milliseconds.
 *
 * @category models
 */
export interface SessionRegistryOptions<Resource, E, R> {
  /**
   * Opens what belongs to a session. Its finalizers close it. Runs with the services, the span and a scope of the
   * registry, never those of the request that asked for the session. The session does not exist for anybody before.
   */
  readonly open: (info: SessionInfo) => Effect.Effect<Resource, E, R>
  /**
   * How many sessions may be opening, open or draining at once: an integer, by default 10,000. Beyond it a newcomer is
   * refused with `RegistryFull`.
   */
  readonly capacity?: number | undefined
  /** The same for one owner: by default there is no such limit, and one owner can take all the room. */
  readonly capacityPerOwner?: number | undefined
  /**
   * How long a session that nobody holds is kept, counted from the end of the last hold: by default 30 minutes, and
   * `Duration.infinity` for ever. Many clients do not recover from a session that expires under them.
   */
  readonly idleTimeToLive?: Duration.Input | undefined
  /**
   * How long after it was opened a session takes requests, less up to 2.5 %: by default for ever. Then it is closed as
   * soon as nobody holds it.
   */
  readonly maxLifetime?: Duration.Input | undefined
  /** How long an open may take, else `OpenTimeout`: by default 30 seconds. */
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
    capacityPerOwner: Options.optional(Options.count, { aliases: ["MCP_SESSION_CAPACITY_PER_OWNER"] }),
    idleTimeToLive: Options.withDefault(Options.timeToLive, "30 minutes", { aliases: ["MCP_SESSION_IDLE_MS"] }),
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
  /** As it was configured. */
  readonly capacity: number
  /** `Infinity` when there is no such limit. */
  readonly capacityPerOwner: number
  /** As it was configured. */
  readonly idleTimeToLive: Duration.Duration
  /** Sessions with a request or a stream. */
  readonly held: number
  /** Sessions without one. */
  readonly idle: number
  /** Sessions whose `open` runs. */
  readonly opening: number
  /** Take no more requests, and are still held, opening, or waiting for a place among the closing. */
  readonly draining: number
  /** Sessions whose finalizers run. */
  readonly closing: number
  /** Owners of a session that is opening, open or draining. */
  readonly owners: number
  /** Sessions that were opened. */
  readonly created: number
  /** Newcomers that found the registry, or their owner's share of it, full. */
  readonly refusals: number
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
  /** `held` by a request or stream, or `idle`. */
  readonly state: "held" | "idle"
  /** By how many requests and streams it is held. */
  readonly holders: number
}

/**
 * What happened in the registry. Each session is `Created` once, then `Ended` once, then `Closed` or `CloseFailed` once.
 * `session` is the beginning of its id, enough to find it and not enough to use it.
 *
 * A `CloseFailed` without a `Created` is of a failed open that could not free what it had acquired.
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
 * What an operator can do with the sessions of a registry, whatever belongs to each: list, count and end them. A registry
 * that hosts sessions for others, as those of `McpHttp` do, provides this and no more: how its sessions begin, and what
 * belongs to them, is its own affair.
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
   * The sessions that take requests, the least recently used first.
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
   * Fails with `RegistryFull` when there is no room for another session, or another of this owner; with `OpenTimeout` when
   * its `open` takes longer than `openTimeout`; with the error of its `open`; and with `RegistryClosed` after shutdown.
   */
  readonly create: (
    owner: SessionOwner,
    options?: CreateOptions
  ) => Effect.Effect<RegisteredSession<Resource>, E | RegistryFull | OpenTimeout | RegistryClosed>
  /**
   * The owner's session of that id, held until the current scope closes. For as long it does not expire, and its last
   * activity is when the scope closes.
   *
   * Fails with `SessionNotFound` when the owner has no such session, and with `RegistryClosed` after shutdown. Then nothing
   * has happened to the session.
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
   * An option may be a `Config` of your own, which is read in place of its variable; and so may all of them at once, and
   * then no variable of the library is read.
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
 * Makes the tag of an operator's view, for an application in which there are several: two `McpHttp` layers, say, of which
 * each is told by its option `sessions` which tag to provide.
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
      ...layers<Self, Resource, E>((registry) => Context.make(Registry, registry))
    })
  }

const layers = <Provided, Resource, E>(
  provide: (registry: Service<Resource, E>) => Context.Context<Provided>
): Layers<Provided, Resource, E> => ({
  layer: (options) => Layer.effectContext(Effect.map(make(options, "layer"), provide)),
  layerConfig: (options) =>
    Layer.effectContext(
      Effect.flatMap(
        declared.configured(options),
        (configured) => Effect.map(make(configured, "layerConfig"), provide)
      )
    )
})

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

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

/**
 * @internal
 */
export const make = Effect.fnUntraced(function*<Resource, E, R>(
  input: SessionRegistryOptions<Resource, E, R>,
  method: "layer" | "layerConfig"
) {
  const { capacityPerOwner = Infinity, ...rest } = yield* Effect.fromResult(declared.parse(input, method))
  const options = { ...rest, capacityPerOwner }
  const events = yield* Events.make<SessionRegistryEvent>()
  const counts = {
    created: 0,
    refusals: 0,
    expirations: 0,
    terminations: 0,
    retirements: 0,
    failures: 0,
    closeFailures: 0
  }
  /** How many sessions of an owner take a place. */
  const shares = new Map<SessionKey, number>()

  const engine = yield* Leased.make<Registration, Resource, E | OpenTimeout | RegistryClosed, R>({
    ...options,
    open: (slot): ReturnType<typeof input.open> => input.open(toInfo(engine.time, slot)),
    openTimedOut: () => new OpenTimeout({ after: Duration.millis(options.openTimeout) }),
    shutDown: () => new RegistryClosed(),
    labels,
    onOpened: (slot) => {
      counts.created++
      events.emit(SessionRegistryEvent.Created(labels(slot)))
    },
    onOpenFailed: (slot, cause) => {
      if (Leased.isShutDown(engine)) return
      counts.failures++
      const timeout = Option.exists(Cause.findErrorOption(cause), (error) => error instanceof OpenTimeout)
      events.emit(SessionRegistryEvent.CreateFailed({ ...labels(slot), reason: timeout ? "timeout" : "failed" }))
    },
    onRetired: (slot) => {
      const reason = endReason(slot)
      if (reason === "expired") counts.expirations++
      else if (reason === "terminated") counts.terminations++
      else counts.retirements++
      events.emit(SessionRegistryEvent.Ended({ ...labels(slot), reason }))
      tell(slot.info.retired, reason)
    },
    onLeft: (slot) => {
      const { owner } = slot.info
      const left = shares.get(owner)! - 1
      if (left > 0) shares.set(owner, left)
      else shares.delete(owner)
      if (slot.phase === "closing") tellEnded(slot)
    },
    onClosed: (slot, lived) =>
      events.emit(SessionRegistryEvent.Closed({ ...labels(slot), reason: endReason(slot), lived })),
    onCloseFailed: (slot, reason) => {
      counts.closeFailures++
      events.emit(SessionRegistryEvent.CloseFailed({ ...labels(slot), reason }))
    }
  })

  // Runs before the engine's own shutdown.
  yield* Effect.addFinalizer(() => Effect.sync(() => Leased.beginShutdown(engine)))

  // --- Telling the holders ---

  const tell = (waiting: Deferred.Deferred<EndReason> | undefined, reason: EndReason): void => {
    if (waiting !== undefined) Leased.start(engine, Effect.asVoid(Deferred.succeed(waiting, reason)))
  }

  const tellEnded = (slot: Slot<Resource, E>): void => {
    if (slot.info.hasEnded) return
    slot.info.hasEnded = true
    tell(slot.info.ended, endReason(slot))
  }

  const toSession = (slot: Slot<Resource, E>, resource: Resource): RegisteredSession<Resource> =>
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

  // --- Coming in ---

  const admit = (
    owner: SessionOwner,
    { clientId, tenantId }: CreateOptions
  ): Slot<Resource, E> | RegistryFull | RegistryClosed =>
    Leased.atomically(engine, () => {
      if (Leased.isShutDown(engine)) return new RegistryClosed()
      Leased.expire(engine)
      const share = shares.get(owner.key) ?? 0
      // Their own share first: when both are full, no other's leaving will help.
      if (share >= options.capacityPerOwner) return refuse(owner, "owner", options.capacityPerOwner)
      if (!Leased.hasRoom(engine)) return refuse(owner, "registry", options.capacity)
      shares.set(owner.key, share + 1)
      const now = engine.time.now()
      return Leased.admit(engine, mint(), {
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

  const refuse = (owner: SessionOwner, scope: RegistryFull["scope"], capacity: number): RegistryFull => {
    counts.refusals++
    events.emit(SessionRegistryEvent.Refused({ owner: owner.key, scope }))
    return new RegistryFull({ scope, capacity })
  }

  const create: Service<Resource, E>["create"] = (owner, names = {}) =>
    Effect.uninterruptibleMask((restore): ReturnType<Service<Resource, E>["create"]> => {
      const slot = admit(owner, names)
      if (slot instanceof RegistryFull || slot instanceof RegistryClosed) return Effect.fail(slot)
      return Effect.map(
        Effect.onExit(restore(Leased.join(slot)), (exit) => {
          const freed = letGo(slot)
          return Exit.isSuccess(exit) ? Effect.void : Effect.map(freed ?? Effect.void, () => abandon(slot))
        }),
        (resource) => toSession(slot, resource)
      )
    })

  // Opened in the very moment in which its creator left: nobody will ever know of it.
  const abandon = (slot: Slot<Resource, E>): void => {
    if (slot.phase === "open") Leased.retire(engine, slot, "invalidated")
  }

  // --- Being there ---

  // Nothing of the session is touched before its owner is known, and nothing at all if it is another.
  const find = (id: string, owner: SessionOwner): Slot<Resource, E> | undefined => {
    if (typeof id !== "string" || id.length !== idLength) return undefined
    const slot = Leased.find(engine, id)
    return slot !== undefined && slot.phase === "open" && slot.info.owner === owner.key ? slot : undefined
  }

  const notFound = (): SessionNotFound | RegistryClosed =>
    Leased.isShutDown(engine) ? new RegistryClosed() : new SessionNotFound()

  const letGo = (slot: Slot<Resource, E>): Effect.Effect<void> | undefined => {
    slot.info.activeAt = engine.time.now()
    return Leased.release(engine, slot)
  }

  const get: Service<Resource, E>["get"] = (id, owner) =>
    Effect.uninterruptibleMask(() => {
      const slot = find(id, owner)
      if (Leased.isShutDown(engine) || slot === undefined || Leased.lease(engine, id) === undefined) {
        return Effect.fail(notFound())
      }
      slot.info.activeAt = engine.time.now()
      const session = toSession(slot, slot.session!.value)
      const scope = Context.getUnsafe(Fiber.getCurrent()!.context, Scope.Scope)
      return Effect.as(Scope.addFinalizerExit(scope, () => letGo(slot) ?? Effect.void), session)
    })

  // The expired are none, also before their expiry is noticed.
  const look = <A>(
    id: string,
    owner: SessionOwner,
    f: (slot: Slot<Resource, E>) => A
  ): Effect.Effect<A, SessionNotFound | RegistryClosed> =>
    Effect.suspend(() => {
      Leased.expire(engine)
      const slot = find(id, owner)
      return Leased.isShutDown(engine) || slot === undefined ? Effect.fail(notFound()) : Effect.succeed(f(slot))
    })

  // --- Going ---

  const terminate = (slot: Slot<Resource, E>): boolean =>
    Leased.atomically(engine, () => {
      const isFirst = Leased.end(engine, slot, "invalidated")
      // Its close may have to wait for a place. Its holders need not.
      if (slot.session !== undefined) tellEnded(slot)
      return isFirst
    })

  // Those that are draining too: they are held by somebody.
  const terminateWhere = (f: (slot: Slot<Resource, E>) => boolean): Effect.Effect<number> =>
    Effect.sync(() => {
      Leased.expire(engine)
      return Leased.all(engine).filter((slot) => f(slot) && terminate(slot)).length
    })

  return {
    create,
    get,
    peek: (id, owner) => look(id, owner, (slot) => toInfo(engine.time, slot)),
    terminate: (id, owner) => Effect.asVoid(look(id, owner, terminate)),
    terminateAll: (owner) => terminateWhere((slot) => slot.info.owner === owner.key),
    clear: terminateWhere(() => true),
    size: Effect.sync(() => {
      Leased.expire(engine)
      return Leased.size(engine)
    }),
    entries: Effect.sync(() => {
      Leased.expire(engine)
      return Leased.inOrder(engine).map((slot) => toEntry(engine.time, slot))
    }),
    stats: Effect.sync((): SessionRegistryStats => {
      Leased.expire(engine)
      const { leased, ...census } = Leased.census(engine)
      return {
        ...counts,
        ...census,
        size: Leased.size(engine),
        capacity: options.capacity,
        capacityPerOwner: options.capacityPerOwner,
        idleTimeToLive: Duration.millis(options.idleTimeToLive),
        held: leased,
        owners: shares.size,
        eventsLost: events.lost()
      }
    }),
    events: events.stream
  } satisfies Service<Resource, E> as Service<Resource, E>
})

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
    case "lifetime":
    case "shutdown":
      return retired
    default:
      return "terminated"
  }
}

/**
 * What the default {@link SessionRegistry} tag needs to create sessions and to get what belongs to them: a registry of the
 * application's own. Its `layer` provides it, `McpHttp`'s layers do not: their sessions begin with a request.
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
 * The registry of a server's sessions, as its operator sees it: {@link Operator}. `McpHttp`'s layers provide it over the
 * sessions that they host.
 *
 * Its own {@link SessionRegistry.layer} provides a registry of the application's sessions, which {@link
 * SessionRegistry.create} and {@link SessionRegistry.get} need; without it they do not compile. For a resource with a type
 * make a tag with {@link Tag}, for several views in one application with {@link Operator}.
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
  /** Makes the tag of a registry of any type of resource: {@link Tag}. */
  /** Makes the tag of a registry of any other type of resource: see {@link Tag}. */
  static readonly Tag = Tag
  /** Makes the tag of an operator's view: {@link Operator}. */
  static readonly Operator = Operator
  /**
   * A new session of the owner, as {@link Service.create} makes it. Needs a registry of the application's own.
   */
  static readonly create = CreatesSessions.create
  /**
   * The owner's session of that id, held until the current scope closes, as {@link Service.get} does. Needs a registry of
   * the application's own.
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
