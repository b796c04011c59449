/**
 * Waiting for a session, and its end: by an answer, by the time that is over, by an interruption. Whoever came later
 * never keeps a place that another has left.
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fairness from "./fairness.ts"
import * as Heap from "./heap.ts"
import * as Leased from "./leased.ts"
import * as Lines from "./lines.ts"
import * as Seating from "./seating.ts"
import * as Waiters from "./waiters.ts"

/**
 * Waits for so many milliseconds, in all tries together. None if the caller has a lease then. If it has given up its
 * place: what it has waited for last.
 */
export const wait = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  comer: Waiters.Caller<I, A, E>,
  { owner, terms, upstream }: Waiters.Wanted<I, A, E>,
  millis: number
): Effect.Effect<Waiters.Full | "turn" | undefined, E> => {
  const waiter: Waiters.Waiter<I, A, E> = {
    caller: comer,
    owner,
    terms,
    upstream,
    order: Waiters.arrive(self, comer),
    seated: Deferred.makeUnsafe(),
    turn: Waiters.taken(self, owner.key),
    hasWaitedLong: false,
    index: -1
  }
  comer.waiter = waiter
  self.size++
  if (waiter.turn === undefined) Waiters.queue(self, waiter)
  else Heap.add(self.turns!.get(waiter.turn.id)!, waiter)
  const seated = Deferred.await(waiter.seated)
  const since = self.engine.time.now()
  const half = Effect.sleep((millis - comer.waited) / 2)
  const tooLong = half.pipe(
    Effect.andThen(Effect.sync(() => hasWaitedLong(self, waiter))),
    Effect.andThen(half)
  )
  return Effect.raceFirst(seated, tooLong).pipe(
    Effect.andThen(Effect.suspend(() => {
      comer.waited += self.engine.time.now() - since
      // It was answered in that very moment. Or what it waits its turn for has failed, which it hears when that is
      // free: another open is not its own any more
      return !Waiters.isWaiting(waiter) || waiter.turn?.phase === "freeing"
        ? Effect.as(seated, undefined)
        : Effect.succeed(giveUp(self, waiter))
    })),
    Effect.provideService(Clock.Clock, self.engine.clock)
  )
}

const hasWaitedLong = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  waiter: Waiters.Waiter<I, A, E>
): void => {
  if (!Waiters.isWaiting(waiter)) return
  waiter.hasWaitedLong = true
  if (waiter.turn !== undefined || !Lines.waitsLong(self.lines, waiter)) return
  Fairness.reconsider(self.fairness)
  Seating.seat(self)
}

const giveUp = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  waiter: Waiters.Waiter<I, A, E>
): Waiters.Full | "turn" => {
  const full = waiter.turn !== undefined ? "turn" : Waiters.fullFor(waiter.upstream)
  if (full !== "turn" && Lines.head(self.lines.byUpstream.get(waiter.upstream)!) === waiter) {
    Fairness.giveUp(self.fairness, waiter.upstream)
  }
  leave(self, waiter.caller)
  return full
}

/**
 * Gives up the caller's place, or its lease: then there may be an effect to run, as in `Leased.release`.
 */
export const end = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  leaver: Waiters.Caller<I, A, E>
): Effect.Effect<void> | undefined => {
  if (leaver.slot !== undefined) return Seating.giveBack(self, Waiters.letGo(self, leaver))
  leave(self, leaver)
  return undefined
}

const leave = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  leaver: Waiters.Caller<I, A, E>
): void => {
  const { waiter } = leaver
  if (waiter === undefined) return
  const waitedForRoom = waiter.turn === undefined
  Waiters.dismiss(self, waiter)
  if (waitedForRoom) Seating.seat(self)
  else Seating.makeWay(self)
}

// -----------------------------------------------------------------------------
// Turns
// -----------------------------------------------------------------------------

/** The session takes no new lease: whoever waits for a turn on it waits for room to open another. */
export const retired = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>
): void => {
  const waiters = Waiters.turnsOn(self, slot)
  if (waiters.length === 0) return
  for (const waiter of waiters) {
    Heap.remove(self.turns!.get(slot.id)!, waiter)
    waiter.turn = undefined
    Waiters.queue(self, waiter)
  }
  Fairness.reconsider(self.fairness)
  Leased.start(self.engine, Effect.sync(() => Seating.seat(self)))
}

/** The open has failed, and so it has for those who wait for a turn on what it would have opened. */
export const failed = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  slot: Leased.Slot<I, A, E>,
  cause: Cause.Cause<E>
): void => {
  const waiters = Waiters.turnsOn(self, slot)
  for (const waiter of waiters) Waiters.dismiss(self, waiter)
  for (const { seated } of waiters) Leased.start(self.engine, Effect.asVoid(Deferred.failCause(seated, cause)))
}

// -----------------------------------------------------------------------------
// The end
// -----------------------------------------------------------------------------

/**
 * Sends everybody away.
 */
export const close = <I extends { readonly key: string }, A, E>(
  self: Waiters.Waiting<I, A, E>,
  error: () => E
): void => {
  const inLine = Array.from(self.parties.values(), (party) => Array.from(party.waiters))
  const onTurns = Array.from(self.turns?.values() ?? [], ({ members }) => members)
  const waiters = [...inLine, ...onTurns].flat()
  for (const waiter of waiters) Waiters.dismiss(self, waiter)
  for (const { seated } of waiters) Deferred.doneUnsafe(seated, Exit.fail(error()))
}
