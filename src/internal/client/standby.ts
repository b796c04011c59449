/**
 * Sessions that are opened before anybody asks for them, for a server to which every identity is the same. Whoever
 * comes first takes one, and another is opened behind it. One that was taken never comes back.
 *
 *   starting ─▶ ready ─▶ taken: its owner's from here on, closed with the owner's scope
 *      │          └────▶ discarded: it died, it did not answer when it was to be taken, its time was over
 *      └─ failed: another is tried after 100 ms, 200 ms, … 30 s
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { SessionHandle } from "../../Connector.ts"
import type { Identity } from "../../Identity.ts"
import * as Ahead from "../ahead.ts"
import * as Time from "../time.ts"

/** A session that nobody owns yet. */
export interface Unowned<S> {
  readonly isLost: () => boolean
  /** The cheapest request that shows that it works, within its time. It is logged why it does not. */
  readonly ping: Effect.Effect<unknown, unknown>
  /** It is this identity's now. */
  readonly adopt: (identity: Identity, handle: SessionHandle) => S
}

export interface Options<S, E, R> {
  /** How many are kept ready. Those that are starting, asked or closing take such a place, too. */
  readonly size: number
  /** How long one waits, in milliseconds, until another takes its place. */
  readonly idleTimeToLive: number
  /** Opens one. Says `onLost` when it is lost, once. */
  readonly start: (onLost: () => void) => Effect.Effect<Unowned<S>, unknown, R | Scope.Scope>
  /** Opens one for an identity that finds none. */
  readonly cold: Connect<S, E, R>
}

type Connect<S, E, R> = (identity: Identity, handle: SessionHandle) => Effect.Effect<S, E, R | Scope.Scope>

interface Waiting<S> {
  readonly session: Unowned<S>
  readonly scope: Scope.Closeable
  readonly since: number
}

interface Room<S> {
  /** The one that waits for longest comes first. */
  readonly ready: Set<Waiting<S>>
  /** Those that are asked for a sign of life: one that gives none is closed in the place where it waited. */
  readonly asked: Set<Waiting<S>>
  /** Those that nobody waits for: one may hang, and the others are started all the same. */
  readonly starting: Set<Fiber.Fiber<void>>
  readonly closing: Set<Fiber.Fiber<void>>
  /** Open while there may be something to start. */
  readonly work: Latch.Latch
  /** Whether one has ever started. */
  isProven: boolean
  /** How many in a row were no use to anybody. */
  failures: number
  isClosed: boolean
  /** Milliseconds. */
  readonly now: () => number
  /** Runs something with the services of the pool. */
  readonly fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
}

/** Whoever has just been served has the machine for himself for a moment. In milliseconds. */
const refillDelay = 100

const firstBackoff = 100

const lastBackoff = 30_000

/**
 * The connector, which gives a session that is ready where there is one. It keeps them in each pool that it is given
 * to; without a pool it keeps none.
 */
export const make = <S, E, R>(options: Options<S, E, R>): Connect<S, E, R> => {
  const rooms = new WeakMap<Ahead.Host, Room<S>>()

  const roomIn = (host: Ahead.Host): Effect.Effect<Room<S>, never, R> =>
    Effect.contextWith((context: Context.Context<R>) => {
      const known = rooms.get(host)
      if (known !== undefined) return Effect.succeed(known)
      const room: Room<S> = {
        ready: new Set(),
        asked: new Set(),
        starting: new Set(),
        closing: new Set(),
        work: Latch.makeUnsafe(true),
        isProven: false,
        failures: 0,
        isClosed: false,
        now: Time.monotonic(Context.get(context, Clock.Clock)),
        fork: Effect.runForkWith(context)
      }
      rooms.set(host, room)
      const count = () => room.ready.size
      host.counts.add(count)
      return Effect.flatMap(Effect.forkDetach(keep(room, options)), (keeper) =>
        Effect.as(
          Scope.addFinalizer(
            host.scope,
            Effect.suspend(() => {
              host.counts.delete(count)
              return close(room, keeper)
            })
          ),
          room
        ))
    })

  const connect: Connect<S, E, R> = (identity, handle) =>
    Effect.suspend(() => {
      const host = Ahead.hostOf(handle)
      if (host === undefined) return options.cold(identity, handle)
      return Effect.flatMap(roomIn(host), (room) =>
        Effect.flatMap(
          take(room, identity, handle),
          Option.match({ onSome: Effect.succeed, onNone: () => options.cold(identity, handle) })
        ))
    })
  const begin: Ahead.Begin<R> = (host) => Effect.asVoid(roomIn(host))
  return Object.assign(connect, { [Ahead.TypeId]: begin })
}

const take = <S>(
  room: Room<S>,
  identity: Identity,
  handle: SessionHandle
): Effect.Effect<Option.Option<S>, never, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const [waiting] = room.ready
      if (waiting === undefined) return Option.none()
      room.ready.delete(waiting)
      room.asked.add(waiting)
      const pinged = yield* Effect.exit(restore(waiting.session.ping))
      room.asked.delete(waiting)
      if (Exit.isFailure(pinged) || waiting.session.isLost()) {
        // Interrupted by whoever wanted it: that says nothing of it
        const isInterrupted = Exit.isFailure(pinged) && Cause.hasInterrupts(pinged.cause)
        if (!isInterrupted) countFailure(room, waiting)
        const closing = discard(room, waiting)
        // Whoever closes the room has not seen it
        if (room.isClosed) yield* Fiber.await(closing)
        return isInterrupted ? yield* Effect.interrupt : Option.none()
      }
      room.failures = 0
      room.work.openUnsafe()
      yield* Effect.addFinalizer((exit) => Scope.close(waiting.scope, exit))
      return Option.some(waiting.session.adopt(identity, handle))
    })
  )

// Keeps the room full until it is interrupted. While it is in doubt that the server starts, one is tried at a time.
const keep = <S, E, R>(room: Room<S>, options: Options<S, E, R>): Effect.Effect<never, never, R> =>
  Effect.gen(function*() {
    let isFirst = true
    while (true) {
      yield* room.work.await
      if (mayStart(room, options.size)) {
        if (room.failures > 0) yield* Effect.sleep(Math.min(firstBackoff * 2 ** (room.failures - 1), lastBackoff))
        else if (!isFirst) yield* Effect.sleep(refillDelay)
        while (mayStart(room, options.size)) yield* startBeside(room, options)
      } else {
        room.work.closeUnsafe()
      }
      // The others at once when the first has shown that it works
      if (room.isProven) isFirst = false
    }
  })

const mayStart = <S>(room: Room<S>, size: number): boolean => {
  const { asked, closing, failures, isClosed, isProven, ready, starting } = room
  if (isClosed || (starting.size > 0 && (failures > 0 || !isProven))) return false
  return ready.size + asked.size + starting.size + closing.size < size
}

const startBeside = <S, E, R>(room: Room<S>, options: Options<S, E, R>): Effect.Effect<void, never, R> =>
  Effect.uninterruptible(
    Effect.map(Effect.forkDetach(startOne(room, options, room.failures)), (starting) => {
      room.starting.add(starting)
      starting.addObserver(() => {
        room.starting.delete(starting)
        room.work.openUnsafe()
      })
    })
  )

const startOne = <S, E, R>(
  room: Room<S>,
  options: Options<S, E, R>,
  failuresBefore: number
): Effect.Effect<void, never, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = Scope.makeUnsafe()
      let waiting: Waiting<S> | undefined
      const onLost = () => {
        if (waiting !== undefined && room.ready.has(waiting)) lose(room, waiting)
      }
      const exit = yield* Effect.exit(restore(Scope.provide(options.start(onLost), scope)))
      if (Exit.isFailure(exit) || exit.value.isLost() || room.isClosed) {
        yield* Effect.ignoreCause(Scope.close(scope, exit))
        // Those that fail together are one failure
        room.failures = Math.max(room.failures, failuresBefore + 1)
        return
      }
      room.isProven = true
      waiting = { session: exit.value, scope, since: room.now() }
      room.ready.add(waiting)
      if (options.idleTimeToLive !== Infinity) {
        yield* Effect.forkIn(expire(room, waiting, options.idleTimeToLive), scope)
      }
    })
  )

const expire = <S>(room: Room<S>, waiting: Waiting<S>, after: number): Effect.Effect<void> =>
  Effect.andThen(
    Effect.sleep(after),
    Effect.sync(() => {
      if (!room.ready.delete(waiting)) return
      discard(room, waiting)
    })
  )

const lose = <S>(room: Room<S>, waiting: Waiting<S>): void => {
  room.ready.delete(waiting)
  countFailure(room, waiting)
  // It says why it has died
  discard(room, waiting, Effect.ignore(waiting.session.ping))
}

// One that dies soon after it was started, again and again, is no better than one that does not start. Many servers end
// by themselves when nobody has asked them anything for long.
const countFailure = <S>(room: Room<S>, { since }: Waiting<S>): void => {
  room.failures = room.now() - since > lastBackoff ? 1 : room.failures + 1
}

// In a fiber of its own: nobody waits for it.
const discard = <S>(
  room: Room<S>,
  waiting: Waiting<S>,
  before: Effect.Effect<void> = Effect.void
): Fiber.Fiber<void> => {
  const closing = room.fork(Effect.andThen(before, Effect.ignoreCause(Scope.close(waiting.scope, Exit.void))))
  room.closing.add(closing)
  closing.addObserver(() => {
    room.closing.delete(closing)
    room.work.openUnsafe()
  })
  return closing
}

const close = <S>(room: Room<S>, keeper: Fiber.Fiber<unknown>): Effect.Effect<void> =>
  Effect.suspend(() => {
    room.isClosed = true
    for (const waiting of room.ready) discard(room, waiting)
    room.ready.clear()
    return Effect.all([
      Fiber.interrupt(keeper),
      Fiber.interruptAll(Array.from(room.starting)),
      Fiber.awaitAll(Array.from(room.closing))
    ], { concurrency: "unbounded", discard: true })
  })
