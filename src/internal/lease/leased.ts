/**
 * Sessions that are opened once, leased by many, and closed when nobody holds them.
 *
 * The one engine under pool and registry. It decides when a session may be closed and closes it, once and within a
 * bound. It holds no policy: what becomes of a newcomer when there is no room is its owner's business, who asks
 * `hasRoom`, may `retire` the `oldestIdle` session, and hears of new room by `onRoom`. Its state is its own: owners ask
 * it, and never set or count it.
 *
 *               failed, too late, left by its last caller
 *     admit ─▶ opening ───────────────────────────▶ freeing ─┐
 *                 │ opened                                   │ freed, or given up after closeTimeout
 *                 ▼        last lease ended                  ▼
 *              leased ◀──────────────────────▶ idle         gone
 *                 │ retire      lease           │ retire     ▲
 *                 ▼                             ▼            │ closed, or given up after closeTimeout
 *              draining ─── last lease ended ─▶ closing ─────┘
 *
 * `retire` takes a session out of `current`, so that the next caller of its key opens another. A retired session that
 * is opening or leased is draining; so is one that waits for a place among the closing, of which there are `capacity`
 * too. `end` is a `retire` that does not wait for the leases.
 *
 * What `ScopedCache` does: every session is an entry under a number of its own, so the cache runs `open` in the entry's
 * scope, with the services of the cache's owner, and closes that scope. What it does not do, and this does: it never
 * evicts or expires here, so leases, idle time, admission and the bounds on opening and closing are ours. So is the
 * end: the cache itself is never closed, as that would wait, without a bound, for whatever open or close was given up
 * and is still running. What such an open has acquired is freed under it.
 *
 * Every function below that is no effect is one step, which no other fiber can see the middle of. Two rules keep it so:
 * completing a `Deferred` runs its waiters on the spot, so it comes last; and what opens and closes runs in fibers of
 * its own, which the `Starter` starts after the step.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as MutableHashMap from "effect/MutableHashMap"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as ScopedCache from "effect/ScopedCache"
import * as Time from "../time.ts"
import * as CloseLog from "./closeLog.ts"
import * as Idle from "./idle.ts"
import * as Linked from "./linked.ts"
import type { Terms } from "./terms.ts"
import * as Upstreams from "./upstreams.ts"

/**
 * Why a session takes no new lease.
 */
export type Reason = "evicted" | "expired" | "lifetime" | "invalidated" | "died" | "unhealthy" | "shutdown"

/**
 * What happened to a session. The owner turns it into its own events and counts; it must not call back from there.
 */
export interface Hooks<I, A, E> {
  /** It takes a place, and its open begins after this step. */
  readonly onAdmitted?: ((slot: Slot<I, A, E>) => void) | undefined
  readonly onOpened: (slot: Slot<I, A, E>) => void
  /** Its open has failed. What it had acquired is freed from now on, which may take as long as a close. */
  readonly onFreeing?: ((slot: Slot<I, A, E>, cause: Cause.Cause<E>) => void) | undefined
  /** That is over, and its callers are told the failure. */
  readonly onOpenFailed: (slot: Slot<I, A, E>, cause: Cause.Cause<E>) => void
  readonly onRetired: (slot: Slot<I, A, E>, reason: Reason) => void
  /** It takes no place any more: it is closing, or it is gone without ever having been open. */
  readonly onLeft?: ((slot: Slot<I, A, E>) => void) | undefined
  readonly onClosed: (slot: Slot<I, A, E>, lived: Duration.Duration) => void
  /** The close failed, or was given up because it took longer than `closeTimeout`. It has been logged. */
  readonly onCloseFailed: (slot: Slot<I, A, E>, reason: "failed" | "timeout") => void
  /** The session is idle, and there to retire. */
  readonly onIdle?: ((slot: Slot<I, A, E>) => void) | undefined
  /** A place may be free, or an idle session may be there to retire. */
  readonly onRoom?: (() => void) | undefined
}

/**
 * All times are milliseconds.
 */
export interface Options<I, A, E, R> extends Hooks<I, A, E> {
  readonly open: (slot: Slot<I, A, E>) => Effect.Effect<A, E, R | Scope.Scope>
  readonly openTimedOut: (slot: Slot<I, A, E>) => E
  readonly shutDown: () => E
  /** What a log calls the session. */
  readonly labels: (slot: Slot<I, A, E>) => Readonly<Record<string, string>>
  readonly capacity: number
  /** None where each session has its own, which it is admitted with: then `maxLifetime` is, too. */
  readonly idleTimeToLive: number | undefined
  /** The same for a session that has had no lease but the one that it was admitted with, if it is shorter. */
  readonly unusedTimeToLive?: number | undefined
  readonly maxLifetime: number | undefined
  readonly openTimeout: number
  readonly closeTimeout: number
  readonly drainTimeout: number
}

/**
 * One session, from the moment it is admitted until it is gone.
 */
export interface Slot<I, A, E> extends Linked.Node<Slot<I, A, E>> {
  readonly id: number
  readonly key: string
  /** Whose it is, as its owner last saw them. */
  info: I
  readonly terms: Terms
  /** Of an upstream that has a limit. */
  member: Upstreams.Member<Slot<I, A, E>> | undefined
  phase: "opening" | "freeing" | "open" | "closing" | "gone"
  retired: Reason | undefined
  leases: number
  /** How many leases it has had. */
  uses: number
  /** How many visitors may still take a lease: until they have left, its idle time does not end. */
  visits: number
  /** Orders slots by their newest lease. */
  turn: number
  /** The turn since when it has never been without a lease, while it has one. */
  heldSince: number
  /** A moment of the engine's `time`. */
  openedAt: number
  /** When its last lease ended: a moment, too. */
  usedAt: number
  /** Since when it opens, is in use, or closes, if it does. */
  since: number
  /** Is told for how many seconds it was in use. */
  used: { readonly record: (seconds: number) => void } | undefined
  /** The session, once it is open. */
  session: Exit.Success<A, E> | undefined
  opening: Opening<A, E> | undefined
}

interface Opening<A, E> {
  /** How the open ends, whoever ends it: itself, its timeout, its last caller leaving, shutdown. */
  readonly outcome: Deferred.Deferred<A, E>
  /** The same for the callers: once what a failed open had acquired is free again. */
  readonly settled: Deferred.Deferred<A, E>
  /** Runs the open, once that has begun. */
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** Of the cache's entry: closing it frees what the open has acquired so far, and whatever it goes on to acquire. */
  scope: Scope.Closeable | undefined
}

/**
 * Starts fibers with the services of the engine's owner. One started from within another, or within `atomically`, waits
 * its turn: so the stack stays flat however many start one another, and no foreign code runs in the middle of a step.
 */
export interface Starter {
  readonly start: (effect: Effect.Effect<void>) => void
  /** The same for what is no effect itself, and may `fork`. */
  readonly run: (f: () => void) => void
  /** Starts a fiber here and now: only within `run`. */
  readonly fork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly atomically: <T>(step: () => T) => T
}

export interface Leased<I, A, E> {
  readonly options: Omit<Options<I, A, E, never>, "open">
  /** Of the clock that was there when the engine was made, whoever calls. */
  readonly clock: Clock.Clock
  readonly time: Time.Time
  readonly cache: ScopedCache.ScopedCache<number, A, E>
  /** Every session that is not gone. */
  readonly slots: Map<number, Slot<I, A, E>>
  /** Those that take new leases, by key. */
  readonly current: Map<string, Slot<I, A, E>>
  /** Current, open and without a lease. */
  readonly idle: Idle.Idle<Slot<I, A, E>>
  /** The same, of those that were never used: `idle` itself where there is no `unusedTimeToLive`. */
  readonly unused: Idle.Idle<Slot<I, A, E>>
  /** Idle for too long, but visited: on neither list. */
  readonly overdue: Set<Slot<I, A, E>>
  /** Draining without a lease: waiting for a place among the closing. */
  readonly drained: Set<Slot<I, A, E>>
  /** How many of `current` are not open yet. */
  opening: number
  closing: number
  isShutDown: boolean
  nextId: number
  turns: number
  /** Completed when the last slot is gone after shutdown. */
  readonly empty: Deferred.Deferred<void>
  readonly starter: Starter
  /** The same as `fork` with as small a context as the cache's own. */
  readonly forkInCache: Starter["fork"]
  /** Of the sessions that are admitted without any. */
  readonly terms: Terms
}

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

/**
 * The engine's sessions live no longer than the current scope: when it closes, the engine shuts down.
 */
export const make = Effect.fnUntraced(function*<I, A, E, R>(options: Options<I, A, E, R>) {
  const context = yield* Effect.context<R | Scope.Scope>()
  const clock = yield* Clock.Clock
  const { idleTimeToLive, maxLifetime, unusedTimeToLive } = options
  const terms = {
    idleTimeToLive: idleTimeToLive ?? Infinity,
    maxLifetime: maxLifetime ?? Infinity,
    checkAfter: Infinity
  }
  const idle = Idle.make<Slot<I, A, E>>(idleTimeToLive)
  const slots = new Map<number, Slot<I, A, E>>()
  const services = Context.omit(Scope.Scope)(context) as Context.Context<R>
  const turns = turnsOf(context)
  const cache = yield* Effect.setContext(
    ScopedCache.make({
      lookup: (id: number) => open(self, slots.get(id)!, options.open, services),
      capacity: Infinity
    }),
    Context.add(turns, Scope.Scope, Scope.makeUnsafe())
  )
  const self: Leased<I, A, E> = {
    options,
    clock,
    time: Time.make(clock),
    cache,
    slots,
    current: new Map(),
    idle,
    unused: unusedTimeToLive === undefined ? idle : Idle.make(Math.min(unusedTimeToLive, terms.idleTimeToLive)),
    overdue: new Set(),
    drained: new Set(),
    opening: 0,
    closing: 0,
    isShutDown: false,
    nextId: 0,
    turns: 0,
    empty: Deferred.makeUnsafe(),
    starter: makeStarter(Effect.runForkWith(services as Context.Context<never>)),
    forkInCache: Effect.runForkWith(turns),
    terms
  }
  yield* Effect.addFinalizer(() => shutdown(self))
  for (const list of idleLists(self)) {
    if (list.timeToLive !== Infinity) yield* Effect.forkScoped(expireForever(self, list))
  }
  return self
})

// The cache copies what context it has, and that of whoever asks it, for each entry: some 35 bytes for each service of
// the application. So it has none but what says how fibers take turns, and `open` the owner's, which is not copied.
const turnsOf = (context: Context.Context<never>): Context.Context<never> =>
  Context.pick(Scheduler.Scheduler, Scheduler.MaxOpsBeforeYield, Scheduler.PreventSchedulerYield)(
    context as Context.Context<unknown>
  ) as Context.Context<never>

const makeStarter = (runFork: Starter["fork"]): Starter => {
  let queue: Array<() => void> = []
  let busy = false
  const atomically = <T>(step: () => T): T => {
    if (busy) return step()
    busy = true
    try {
      return step()
    } finally {
      for (let i = 0; i < queue.length; i++) queue[i]!()
      if (queue.length > 0) queue = []
      busy = false
    }
  }
  const run = (f: () => void): void => void atomically(() => queue.push(f))
  return { atomically, run, fork: runFork, start: (effect) => run(() => runFork(effect)) }
}

/**
 * Runs an effect in a fiber of its own, with the services of the engine's owner.
 */
export const start = <I, A, E>(self: Leased<I, A, E>, effect: Effect.Effect<void>): void => self.starter.start(effect)

/**
 * One step of several calls: whatever they start begins after the last of them.
 */
export const atomically = <I, A, E, T>(self: Leased<I, A, E>, step: () => T): T => self.starter.atomically(step)

// -----------------------------------------------------------------------------
// What there is
// -----------------------------------------------------------------------------

/**
 * How many sessions are in which state. Those that are retired and not closing yet are `draining`, and so are those
 * that are there for their visitors alone.
 */
export interface Census {
  readonly leased: number
  readonly idle: number
  readonly opening: number
  readonly draining: number
  readonly closing: number
}

export const census = <I, A, E>(self: Leased<I, A, E>): Census => ({
  leased: size(self) - idleSize(self),
  idle: idleSize(self),
  opening: self.opening,
  draining: live(self) - self.current.size + self.overdue.size,
  closing: self.closing
})

const idleLists = <I, A, E>({ idle, unused }: Leased<I, A, E>): ReadonlyArray<Idle.Idle<Slot<I, A, E>>> =>
  unused === idle ? [idle] : [idle, unused]

const idleSize = <I, A, E>(self: Leased<I, A, E>): number => idleLists(self).reduce((sum, list) => sum + list.size, 0)

/** How many sessions can be had at once: the idle and the leased. */
export const size = <I, A, E>(self: Leased<I, A, E>): number => self.current.size - self.opening - self.overdue.size

/** Whether it is there for those alone who have it, or visit it. */
export const isDraining = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): boolean =>
  self.current.get(slot.key) !== slot || self.overdue.has(slot)

/** The session of `key` that takes new leases, open or opening. */
export const find = <I, A, E>(self: Leased<I, A, E>, key: string): Slot<I, A, E> | undefined => self.current.get(key)

/** The sessions that take new leases, open or opening. */
export const taking = <I, A, E>(self: Leased<I, A, E>): Array<Slot<I, A, E>> => Array.from(self.current.values())

/** Every session that is not gone. */
export const all = <I, A, E>(self: Leased<I, A, E>): Array<Slot<I, A, E>> => Array.from(self.slots.values())

// -----------------------------------------------------------------------------
// Room
// -----------------------------------------------------------------------------

// Sessions that take a place: opening, open and draining.
const live = <I, A, E>(self: Leased<I, A, E>): number => self.slots.size - self.closing

export const hasRoom = <I, A, E>(self: Leased<I, A, E>): boolean => live(self) < self.options.capacity

/** Whether a retired session could be closed at once. */
export const canClose = <I, A, E>(self: Leased<I, A, E>): boolean => self.closing < self.options.capacity

export const oldestIdle = <I, A, E>(self: Leased<I, A, E>): Slot<I, A, E> | undefined => self.idle.head

/** Of those that were never used, where there is an `unusedTimeToLive`. */
export const oldestUnused = <I, A, E>(self: Leased<I, A, E>): Slot<I, A, E> | undefined => self.unused.head

/** Of the leased sessions that take new leases and are fit for it: the one that has been held for longest. */
export const longestHeld = <I, A, E>(
  self: Leased<I, A, E>,
  isFit: (slot: Slot<I, A, E>) => boolean
): Slot<I, A, E> | undefined => {
  let longest: Slot<I, A, E> | undefined
  for (const slot of self.current.values()) {
    if (slot.phase !== "open" || slot.leases === 0 || (longest !== undefined && longest.heldSince < slot.heldSince)) {
      continue
    }
    if (isFit(slot)) longest = slot
  }
  return longest
}

/** Where an idle session is listed: whether it was used does not change while it is idle. */
const idleListOf = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): Idle.Idle<Slot<I, A, E>> =>
  isUnused(slot) ? self.unused : self.idle

/** Whether it has had no lease but the one that it was admitted with. */
export const isUnused = <I, A, E>(slot: Slot<I, A, E>): boolean => slot.uses === 1

/** The idle and the leased sessions, the least recently used first. */
export const inOrder = <I, A, E>(self: Leased<I, A, E>): Array<Slot<I, A, E>> => {
  const leased = Array.from(self.current.values()).filter((slot) => slot.phase === "open" && slot.leases > 0)
  const idle = idleLists(self).flatMap(Linked.toArray)
  if (self.unused !== self.idle) idle.sort((a, b) => a.usedAt - b.usedAt)
  return [...idle, ...leased.toSorted((a, b) => a.turn - b.turn)]
}

// -----------------------------------------------------------------------------
// Leases
// -----------------------------------------------------------------------------

/**
 * Takes a lease on the current session of `key`, if there is one that is open or opening. Whoever takes a lease gives
 * it back with `release`; before the session is open, it is awaited with `join`.
 */
export const lease = <I, A, E>(self: Leased<I, A, E>, key: string): Slot<I, A, E> | undefined => {
  const slot = self.current.get(key)
  if (slot === undefined) return undefined
  if (hasExpired(self, slot)) return undefined
  take(self, slot)
  return slot
}

const take = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  if (isIdle(slot) && (self.overdue.size === 0 || !self.overdue.delete(slot))) Idle.remove(idleListOf(self, slot), slot)
  slot.turn = ++self.turns
  if (slot.leases++ === 0) slot.heldSince = slot.turn
  slot.uses++
}

// Of those that take new leases.
const isIdle = <I, A, E>(slot: Slot<I, A, E>): boolean => slot.leases === 0 && slot.phase === "open"

/**
 * Whether the idle time of a session is over that takes new leases. Then it is retired, unless it is visited.
 */
export const hasExpired = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): boolean => {
  if (!isIdle(slot)) return false
  slot.since = self.time.now()
  if (!Idle.hasExpired(idleListOf(self, slot), slot, slot.since)) return false
  if (slot.visits === 0) retire(self, slot, "expired")
  return true
}

/**
 * Visits a session, if it is open and nobody has noticed that its idle time is over: whoever comes may have come in
 * time, and waited at the door. A visitor may take a lease with `leaseVisited`, and leaves with `leave`. A visit is no
 * use of the session, and lets it be retired for any reason but its idle time.
 */
export const visit = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): boolean => {
  if (slot.phase !== "open" || slot.retired !== undefined || self.overdue.has(slot)) return false
  slot.visits++
  return true
}

/** False if the session takes no more leases. */
export const leaseVisited = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): boolean => {
  if (slot.phase !== "open" || slot.retired !== undefined) return false
  take(self, slot)
  return true
}

export const leave = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  if (--slot.visits === 0 && self.overdue.has(slot)) retire(self, slot, "expired")
}

/**
 * A lease goes from one caller to the next, and has not ended.
 */
export const passOn = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  slot.turn = ++self.turns
  slot.uses++
  slot.usedAt = self.time.now()
  slot.used?.record((slot.usedAt - slot.since) / 1_000)
  slot.since = slot.usedAt
}

/** Under which conditions a session is admitted, where they are not the same for all. */
export interface Admission<I, A, E> {
  readonly terms?: Terms | undefined
  /** That has a limit of its own. */
  readonly upstream?: Upstreams.Upstream<Slot<I, A, E>> | undefined
}

/**
 * Opens a session for `key` with `leases` leases taken. Only when there `hasRoom`, `key` has no current session and the
 * engine is not shut down.
 */
export const admit = <I, A, E>(
  self: Leased<I, A, E>,
  key: string,
  info: I,
  leases: number,
  { terms = self.terms, upstream }: Admission<I, A, E> = {}
): Slot<I, A, E> => {
  const turn = ++self.turns
  const slot: Slot<I, A, E> = {
    id: self.nextId++,
    key,
    info,
    terms,
    member: undefined,
    phase: "opening",
    retired: undefined,
    leases,
    uses: leases,
    visits: 0,
    turn,
    heldSince: turn,
    openedAt: 0,
    usedAt: 0,
    since: self.time.now(),
    used: undefined,
    session: undefined,
    opening: { outcome: Deferred.makeUnsafe(), settled: Deferred.makeUnsafe(), fiber: undefined, scope: undefined },
    previous: undefined,
    next: undefined
  }
  if (upstream !== undefined) {
    slot.member = Upstreams.member(upstream, slot)
    upstream.places++
  }
  self.slots.set(slot.id, slot)
  self.current.set(key, slot)
  self.opening++
  self.options.onAdmitted?.(slot)
  self.starter.run(() => drive(self, slot))
  return slot
}

/**
 * The session, when it is open. Fails as its open fails, once what that had acquired is free again.
 */
export const join = <I, A, E>(slot: Slot<I, A, E>): Effect.Effect<A, E> =>
  slot.session ?? Deferred.await(slot.opening!.settled)

/**
 * Takes another lease on a session that has one, whether it takes new ones or not.
 */
export const retain = <I, A, E>(slot: Slot<I, A, E>): void => {
  slot.leases++
}

/**
 * Gives a lease back. The last one of an opening session ends its open: then there is an effect to run, which ends when
 * what the open had acquired is free again.
 */
export const release = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): Effect.Effect<void> | undefined => {
  if (--slot.leases > 0) return undefined
  switch (slot.phase) {
    case "opening":
    case "freeing":
      giveUp(self, slot, Exit.interrupt())
      return Effect.ignoreCause(Deferred.await(slot.opening!.settled))
    case "open":
      slot.usedAt = self.time.now()
      slot.used?.record((slot.usedAt - slot.since) / 1_000)
      becomeFree(self, slot)
  }
  return undefined
}

// No lease is left: an idle session can be evicted now, a draining one gives up its place to close.
const becomeFree = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  if (slot.retired === undefined) {
    Idle.append(idleListOf(self, slot), slot)
    self.options.onIdle?.(slot)
  } else {
    close(self, slot)
  }
  self.options.onRoom?.()
}

// -----------------------------------------------------------------------------
// Opening
// -----------------------------------------------------------------------------

// The lookup of the cache: runs in the entry's scope.
const open = <I, A, E, R>(
  self: Leased<I, A, E>,
  slot: Slot<I, A, E>,
  acquire: Options<I, A, E, R>["open"],
  services: Context.Context<R>
): Effect.Effect<A, E, Scope.Scope> =>
  Effect.withFiber((fiber) => {
    const scope = Context.getUnsafe(fiber.context, Scope.Scope) as Scope.Closeable
    slot.opening!.fiber = fiber
    slot.opening!.scope = scope
    if (slot.phase !== "opening") return Effect.interrupt
    const acquired = Effect.suspend(() => acquire(slot))
    return Effect.setContext(
      slot.terms.maxLifetime === Infinity ? acquired : Effect.tap(acquired, retireAfterLifetime(self, slot)),
      Context.add(services, Scope.Scope, scope)
    )
  })

// Up to 2.5 % early, so that sessions opened together do not end together.
const retireAfterLifetime = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>) =>
  Effect.flatMap(Random.next, (random) =>
    Effect.sleep(slot.terms.maxLifetime * (1 - 0.025 * random)).pipe(
      Effect.andThen(Effect.sync(() => retire(self, slot, "lifetime"))),
      Effect.forkScoped
    ))

// From admission until the session is open, or what its open had acquired is free again. An open that has nothing to
// wait for needs no fiber but the cache's own.
const drive = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  const { outcome, settled } = slot.opening!
  let acquired: Exit.Success<A, E> | undefined
  const get = self.forkInCache(ScopedCache.get(self.cache, slot.id))
  get.addObserver((exit) => {
    if (Deferred.doneUnsafe(outcome, exit) && Exit.isSuccess(exit)) acquired = exit
  })
  if (acquired === undefined) {
    self.starter.fork(settle(self, slot, get))
  } else {
    opened(self, slot, acquired)
    Deferred.doneUnsafe(settled, acquired)
  }
}

const settle = Effect.fnUntraced(function*<I, A, E>(
  self: Leased<I, A, E>,
  slot: Slot<I, A, E>,
  get: Fiber.Fiber<A, E>
) {
  const { outcome, settled } = slot.opening!
  if (!Deferred.isDoneUnsafe(outcome)) {
    const openTimeout = slot.terms.openTimeout ?? self.options.openTimeout
    yield* Effect.timeoutOption(Effect.exit(Deferred.await(outcome)), openTimeout)
    giveUp(self, slot, Exit.fail(self.options.openTimedOut(slot)))
  }
  const exit: Exit.Exit<A, E> = yield* Effect.exit(Deferred.await(outcome))
  if (Exit.isSuccess(exit)) {
    opened(self, slot, exit)
    Deferred.doneUnsafe(settled, exit)
    return
  }
  const cause = slot.phase === "opening" ? ownCause(exit.cause) : exit.cause
  slot.phase = "freeing"
  leaveCurrent(self, slot)
  const hasFailed = !Cause.hasInterrupts(cause)
  if (hasFailed) self.options.onFreeing?.(slot, cause)
  yield* dispose(self, slot, free(self, slot, get))
  if (hasFailed) self.options.onOpenFailed(slot, cause)
  leavePlace(self, slot)
  gone(self, slot)
  Deferred.doneUnsafe(settled, Exit.failCause(cause))
})

// Ends an open that has not ended by itself: late, left by its last caller, or shut down. False if it has.
const giveUp = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>, exit: Exit.Exit<never, E>): boolean => {
  const { outcome } = slot.opening!
  if (Deferred.isDoneUnsafe(outcome)) return false
  slot.phase = "freeing"
  leaveCurrent(self, slot)
  return Deferred.doneUnsafe(outcome, exit)
}

// An open that nobody interrupted has interrupted itself: a defect, or its callers would take it for their own end.
const ownCause = <E>(cause: Cause.Cause<E>): Cause.Cause<E> => {
  const reasons = cause.reasons.filter((reason) => !Cause.isInterruptReason(reason))
  return reasons.length > 0
    ? Cause.fromReasons(reasons)
    : Cause.die(new Error("The session's connect interrupted itself"))
}

// Ends the lookup, and whatever it leaves in the cache: an interrupted one has closed its scope, a failed one has not.
// It is the lookup that is interrupted, not the `get`: the cache would forget the entry first, and if the lookup
// succeeded before the interruption came, its scope would never be closed.
const free = Effect.fnUntraced(function*<I, A, E>(
  self: Leased<I, A, E>,
  slot: Slot<I, A, E>,
  get: Fiber.Fiber<A, E>
) {
  const opening = slot.opening!
  opening.fiber?.interruptUnsafe()
  if (get.pollUnsafe() === undefined) {
    const ended = yield* Effect.timeoutOption(Fiber.await(get), self.options.closeTimeout / 2)
    if (Option.isNone(ended)) yield* freeUnder(opening)
    yield* Fiber.await(get)
  }
  const { fiber } = opening
  if (fiber === undefined) return
  const exit = yield* Fiber.await(fiber)
  yield* ScopedCache.invalidate(self.cache, slot.id)
  // A finalizer that throws makes its defect part of the interrupted exit.
  if (Exit.isFailure(exit) && Cause.hasInterrupts(exit.cause) && Cause.hasDies(exit.cause)) {
    return yield* Effect.die(Cause.squash(exit.cause))
  }
})

// Frees an open that may never end under it: what it has acquired, a child process say, must not outlive it, and has
// the other half of `closeTimeout` for its end. What the open goes on to acquire is freed at once: its scope is closed.
const freeUnder = <A, E>({ scope }: Opening<A, E>): Effect.Effect<void> =>
  scope === undefined ? Effect.void : Effect.ignoreCause(Scope.close(scope, Exit.interrupt()))

const opened = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>, exit: Exit.Success<A, E>): void => {
  if (self.current.get(slot.key) === slot) self.opening--
  slot.phase = "open"
  slot.session = exit
  slot.opening = undefined
  forgetLookup(self, slot)
  slot.openedAt = slot.usedAt = self.time.now()
  self.options.onOpened(slot)
  slot.since = slot.openedAt
  if (slot.leases === 0) becomeFree(self, slot)
}

// The cache keeps the fiber of a lookup for whoever would interrupt it, and with it all that the fiber has held. Nobody
// would any more: some 200 bytes for each session.
const forgetLookup = <I, A, E>({ cache: { state } }: Leased<I, A, E>, { id }: Slot<I, A, E>): void => {
  if (state._tag === "Closed") return
  const entry = MutableHashMap.get(state.map, id)
  if (Option.isSome(entry)) Object.assign(entry.value, { fiber: undefined })
}

// -----------------------------------------------------------------------------
// Retiring and closing
// -----------------------------------------------------------------------------

/**
 * Ends the session's time: it takes no new lease, and is closed in the background when its last lease ends. False if it
 * was retired before.
 */
export const retire = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>, reason: Reason): boolean => {
  if (slot.retired !== undefined || slot.phase === "freeing" || slot.phase === "gone") return false
  slot.retired = reason
  leaveCurrent(self, slot)
  self.options.onRetired(slot, reason)
  if (slot.phase === "open" && slot.leases === 0) close(self, slot)
  return true
}

/**
 * Retires the session, and closes it under its leases: one that is still opening, when its last lease ends. False if it
 * was retired before; if it is draining, that is over now.
 */
export const end = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>, reason: Reason): boolean => {
  const isFirst = retire(self, slot, reason)
  if (slot.phase === "open" && slot.leases > 0) {
    close(self, slot)
    self.options.onRoom?.()
  }
  return isFirst
}

/**
 * Retires what has been idle for too long. Looks at nothing else.
 */
export const expire = <I, A, E>(self: Leased<I, A, E>): void => {
  const now = self.time.now()
  expireOf(self, self.idle, now)
  if (self.unused !== self.idle) expireOf(self, self.unused, now)
}

const expireOf = <I, A, E>(self: Leased<I, A, E>, list: Idle.Idle<Slot<I, A, E>>, now: number): void => {
  let slot: Slot<I, A, E> | undefined
  while ((slot = Idle.expired(list, now)) !== undefined) {
    if (slot.visits === 0) {
      retire(self, slot, "expired")
    } else {
      Idle.forget(list, slot)
      self.overdue.add(slot)
    }
  }
}

const expireForever = <I, A, E>(self: Leased<I, A, E>, list: Idle.Idle<Slot<I, A, E>>): Effect.Effect<never> =>
  Effect.forever(Effect.suspend(() => {
    const due = Idle.dueAt(list)
    return Idle.due(list, self.time).pipe(
      Effect.andThen(Effect.suspend(() => self.time.now() - due > lateness ? catchUp : Effect.void)),
      Effect.andThen(Effect.sync(() => expireOf(self, list, self.time.now())))
    )
  }))

// Of a timer, in milliseconds: the process was busy then, and has not heard yet who came meanwhile.
const lateness = 10

// Turns of the event loop: in one a connection is accepted, in the next what has come over it is read.
const catchUp = Effect.yieldNow.pipe(Effect.andThen(Effect.yieldNow), Effect.andThen(Effect.yieldNow))

const leaveCurrent = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  if (self.current.get(slot.key) !== slot) return
  self.current.delete(slot.key)
  if (slot.phase !== "open") self.opening--
  else if (!self.overdue.delete(slot)) Idle.forget(idleListOf(self, slot), slot)
}

const close = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  if (!canClose(self)) {
    self.drained.add(slot)
    return
  }
  self.drained.delete(slot)
  slot.phase = "closing"
  slot.since = self.time.now()
  self.closing++
  leavePlace(self, slot)
  self.starter.run(() => {
    const fiber = self.starter.fork(ScopedCache.invalidate(self.cache, slot.id))
    const exit = fiber.pollUnsafe()
    if (exit !== undefined && Exit.isSuccess(exit)) hasClosed(self, slot, true)
    else start(self, Effect.map(disposed(self, slot, fiber), (closed) => hasClosed(self, slot, closed)))
  })
}

const hasClosed = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>, closed: boolean): void => {
  self.closing--
  // Whole milliseconds: the clock's nanoseconds would be in every text that shows it
  if (closed) self.options.onClosed(slot, Duration.millis(Math.floor(self.time.now() - slot.openedAt)))
  gone(self, slot)
}

const leavePlace = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  if (slot.member !== undefined) slot.member.upstream.places--
  self.options.onLeft?.(slot)
}

// Runs a close in a fiber of its own and waits for it no longer than `closeTimeout`. Given up, it runs on by itself.
const dispose = <I, A, E>(
  self: Leased<I, A, E>,
  slot: Slot<I, A, E>,
  closed: Effect.Effect<void>
): Effect.Effect<boolean> =>
  Effect.flatMap(
    Effect.forkDetach(closed, { startImmediately: true }),
    (fiber) => disposed(self, slot, fiber)
  )

const disposed = <I, A, E>(
  self: Leased<I, A, E>,
  slot: Slot<I, A, E>,
  fiber: Fiber.Fiber<void>
): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    const exit = fiber.pollUnsafe()
    return exit !== undefined
      ? Effect.succeedSome(exit)
      : Effect.timeoutOption(Fiber.await(fiber), self.options.closeTimeout)
  }).pipe(
    Effect.map((exit) => {
      if (Option.isSome(exit) && Exit.isSuccess(exit.value)) return true
      const cause = Option.flatMap(exit, Exit.getCause)
      self.options.onCloseFailed(slot, Option.isSome(cause) ? "failed" : "timeout")
      start(self, CloseLog.write(self.options.labels(slot), cause, self.options.closeTimeout))
      return false
    })
  )

const gone = <I, A, E>(self: Leased<I, A, E>, slot: Slot<I, A, E>): void => {
  slot.phase = "gone"
  self.slots.delete(slot.id)
  for (const next of self.drained) {
    if (!canClose(self)) break
    close(self, next)
  }
  if (!self.isShutDown) self.options.onRoom?.()
  else if (self.slots.size === 0) Deferred.doneUnsafe(self.empty, Exit.void)
}

// -----------------------------------------------------------------------------
// Shutdown
// -----------------------------------------------------------------------------

/**
 * From now on nothing is admitted.
 */
export const beginShutdown = <I, A, E>(self: Leased<I, A, E>): void => {
  self.isShutDown = true
}

export const isShutDown = <I, A, E>(self: Leased<I, A, E>): boolean => self.isShutDown

// In a fiber of its own: a finalizer can't be interrupted, and neither could the timeouts within it.
const shutdown = <I, A, E>(self: Leased<I, A, E>): Effect.Effect<void> =>
  Effect.suspend(() => {
    const done = Deferred.makeUnsafe<void>()
    start(self, Effect.onExit(shutdownWithin(self), () => Deferred.done(done, Exit.void)))
    return Deferred.await(done)
  })

const shutdownWithin = Effect.fnUntraced(function*<I, A, E>(self: Leased<I, A, E>) {
  beginShutdown(self)
  for (const slot of all(self)) {
    if (slot.phase === "opening" && giveUp(self, slot, Exit.fail(self.options.shutDown()))) continue
    retire(self, slot, "shutdown")
  }
  if (self.slots.size === 0) return
  if (self.options.drainTimeout > 0) {
    yield* Effect.timeoutOption(Deferred.await(self.empty), self.options.drainTimeout)
  }
  for (const slot of all(self)) {
    // Opened in the very moment of the shutdown, and not told yet.
    if (slot.phase === "opening") yield* Effect.ignoreCause(Deferred.await(slot.opening!.settled))
    if (slot.phase === "open" && slot.leases > 0) close(self, slot)
  }
  // Bounded by closeTimeout: each of these is closing, or waits for the place of one that is.
  if (self.slots.size > 0) yield* Deferred.await(self.empty)
})
