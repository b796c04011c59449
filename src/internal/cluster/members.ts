/**
 * Which nodes there are, as the engine's own reading of the store tells it.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { ClusterMember, Service } from "../../ClusterMembership.ts"
import { ClusterUnavailable } from "../../SessionClusterError.ts"
import * as Drains from "../drains.ts"
import type { Fence, Seen } from "./fence.ts"
import type { Settings } from "./settings.ts"

/** How long the store may take to answer who asks it himself. */
const patience = 3_000

const isFresh = ({ now, seen }: Fence, interval: number): boolean => {
  const last = seen()
  return last !== undefined && now() - last.at <= 2 * interval
}

const unavailable = (reason: "store" | "closed", waited: number) =>
  new ClusterUnavailable({ method: "members", reason, waited: Duration.millis(waited) })

export const make = (
  { address, assignmentsInterval, terminationTimeout }: Settings,
  fence: Fence
): Effect.Effect<Service, never, Scope.Scope> =>
  Effect.map(Effect.scope, (scope) => {
    let isDraining = false
    const drains = Drains.make()
    let drained: Deferred.Deferred<void> | undefined
    let reading: Deferred.Deferred<Seen, ClusterUnavailable> | undefined

    const read = Effect.suspend(() => {
      const since = fence.now()
      const silent = () => unavailable("store", fence.now() - since)
      return fence.storage.getRunners.pipe(
        Effect.mapError(silent),
        Effect.timeoutOrElse({ duration: patience, orElse: () => Effect.fail(silent()) }),
        Effect.map(() => fence.seen()!)
      )
    })

    // In a fiber of its own: whoever asked first may leave
    const seenNow = Effect.suspend(() => {
      if (reading !== undefined) return Deferred.await(reading)
      const answer = Deferred.makeUnsafe<Seen, ClusterUnavailable>()
      const since = fence.now()
      reading = answer
      return Effect.flatMap(Effect.forkIn(read, scope), (fiber) => {
        // Told by the fiber itself: none begins in a node that has ended, and one that it ends tells nobody else
        fiber.addObserver((exit) => {
          reading = undefined
          const isOver = Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
          Deferred.doneUnsafe(answer, isOver ? Exit.fail(unavailable("closed", fence.now() - since)) : exit)
        })
        return Deferred.await(answer)
      })
    })

    const seen = Effect.suspend(() => isFresh(fence, assignmentsInterval) ? Effect.succeed(fence.seen()!) : seenNow)
    const members = Effect.map(seen, (last) => last.members)

    const isSelf = ({ host, port }: ClusterMember) => host === address?.host && port === address.port

    const handOff = Effect.gen(function*() {
      const others = yield* Effect.map(members, (all) => all.filter((member) => !isSelf(member)))
      if (address === undefined || others.length === 0) return
      yield* Effect.retry(Effect.timeout(fence.storage.setRunnerHealth(address, false), patience), { times: 2 })
      yield* Effect.suspend(() => fence.size() > 0 ? Effect.fail("not yet") : Effect.void).pipe(
        Effect.retry({ schedule: Schedule.spaced(100) }),
        Effect.timeoutOption(terminationTimeout + 5_000)
      )
    })

    return {
      self: address && { host: address.host, port: address.port },
      members,
      nodes: Effect.map(seen, ({ nodes }) => nodes),
      nodesNow: Effect.map(seenNow, ({ nodes }) => nodes),
      isReady: Effect.sync(() =>
        !isDraining && isFresh(fence, assignmentsInterval) && fence.seen()!.members.some(isSelf)
      ),
      isDraining: Effect.sync(() => isDraining),
      drain: Effect.suspend(() => {
        if (drained !== undefined) return Deferred.await(drained)
        const done = Deferred.makeUnsafe<void>()
        drained = done
        isDraining = true
        fence.drain()
        const ended = Effect.all([Effect.ignore(handOff), drains.wait(terminationTimeout + 5_000)], {
          concurrency: "unbounded"
        })
        return Effect.flatMap(Effect.forkIn(ended, scope), (fiber) => {
          fiber.addObserver(() => Deferred.doneUnsafe(done, Exit.void))
          return Deferred.await(done)
        })
      }),
      finishing: drains.add
    }
  })
