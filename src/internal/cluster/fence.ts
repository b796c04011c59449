/**
 * What stands between a node and its store, and knows until when each of the node's shards is certainly its own.
 *
 * A lock is held for `expiry` after the store was last asked to hold it, counted from before it was asked. Whoever was
 * frozen, or cut off from the store, for longer may have lost the shard to another node without a word: it asks the
 * fence before it serves anything, and the answer needs no turn of any loop.
 *
 * The engine gives up everything when the store fails once. As long as the locks hold without the store it is not told,
 * so that one that is away for a moment, say to be started again, ends no session.
 */
import type * as Clock from "effect/Clock"
import { PersistenceError } from "effect/cluster/ClusterError"
import type * as RunnerAddress from "effect/cluster/RunnerAddress"
import type * as RunnerStorage from "effect/cluster/RunnerStorage"
import type * as ShardId from "effect/cluster/ShardId"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Schedule from "effect/Schedule"
import type { ClusterMember } from "../../ClusterMembership.ts"
import * as Time from "../time.ts"

type Storage = RunnerStorage.RunnerStorage["Service"]

/** A moment, by the clock that never jumps and by that which also counts the sleep of a whole machine. */
interface Moment {
  readonly steady: number
  readonly wall: number
}

/** What was last read of the runners. */
export interface Seen {
  readonly at: number
  readonly members: ReadonlyArray<ClusterMember>
  /** The same, and those that drain. */
  readonly nodes: ReadonlyArray<ClusterMember>
  /** Shard groups that are not ours: of nodes with other options. */
  readonly strangers: ReadonlyArray<string>
}

export interface Fence {
  readonly storage: Storage
  /** Whether the shard is ours, beyond doubt. */
  readonly holds: (shard: string) => boolean
  /** In how many milliseconds the last third of its lock begins, if the store is not heard of again. */
  readonly remaining: (shard: string) => number
  /**
   * Whether a session may be opened for the shard, or granted. The last third of a lock is for closing what there is:
   * what is opened within it may outlast the lock.
   */
  readonly mayOpen: (shard: string) => boolean
  /** Called when the store says that a shard is not ours any more. */
  readonly onLost: Set<(shard: string) => void>
  /** How many shards this node has. */
  readonly size: () => number
  readonly seen: () => Seen | undefined
  /** Milliseconds of the steady clock. */
  readonly now: () => number
  /** From now on the runner is told to be unhealthy whenever it is registered. */
  drain: () => void
}

export const make = (options: {
  readonly storage: Storage
  readonly clock: Clock.Clock
  readonly expiry: number
  /** How often the store is asked to hold the locks. */
  readonly interval: number
  readonly group: string
  readonly address: RunnerAddress.RunnerAddress | undefined
}): Fence => {
  const { clock, expiry, group, interval, storage } = options
  const now = Time.monotonic(clock)
  const moment = (): Moment => ({ steady: now(), wall: clock.currentTimeMillisUnsafe() })
  const held = new Map<string, Moment>()
  const onLost = new Set<(shard: string) => void>()
  let seen: Seen | undefined
  let isDraining = false

  const left = (shard: string): number => {
    const since = held.get(shard)
    if (since === undefined) return 0
    return Math.max(0, expiry - Math.max(now() - since.steady, clock.currentTimeMillisUnsafe() - since.wall))
  }
  const remaining = (shard: string): number => Math.max(0, left(shard) - expiry * forClosing)

  const lose = (shard: string): void => {
    if (held.delete(shard)) { for (const listener of onLost) listener(shard) }
  }

  // What was asked for is held from before it was asked
  const asked = <E>(
    shards: Iterable<ShardId.ShardId>,
    ask: (shards: ReadonlyArray<ShardId.ShardId>) => Effect.Effect<Array<ShardId.ShardId>, E>,
    isRefresh: boolean
  ) =>
    Effect.suspend(() => {
      const since = moment()
      const wanted = Array.from(shards)
      return Effect.map(ask(wanted), (had) => {
        const names = new Set(had.map(String))
        for (const name of names) {
          const known = held.get(name)
          // What was released meanwhile stays so, whatever the store has said before
          if (known === undefined ? !isRefresh : known.steady < since.steady) held.set(name, since)
        }
        if (isRefresh) { for (const shard of wanted) if (!names.has(String(shard))) lose(String(shard)) }
        return had
      })
    })

  const refresh: Storage["refresh"] = (address, shards) =>
    Effect.suspend(() => {
      const wanted = Array.from(shards)
      const since = now()
      // Less than the engine has, which asks once in each interval
      const patience = interval * 0.8
      return asked(wanted, () => storage.refresh(address, wanted), true).pipe(
        Effect.retry({ schedule: Schedule.spaced(200), while: () => now() - since < patience - 200 }),
        Effect.timeoutOrElse({ duration: patience, orElse: () => Effect.fail(silent) }),
        Effect.catch((error) => {
          const ours = wanted.filter((shard) => held.has(String(shard)))
          return ours.length > 0 && ours.every((shard) => remaining(String(shard)) > 0)
            ? Effect.succeed(ours)
            : Effect.fail(error)
        })
      )
    })

  return {
    holds: (shard) => left(shard) > 0,
    remaining,
    mayOpen: (shard) => remaining(shard) > 0,
    onLost,
    size: () => held.size,
    seen: () => seen,
    now,
    drain: () => {
      isDraining = true
    },
    storage: {
      register: (runner, healthy) => storage.register(runner, healthy && !isDraining),
      unregister: storage.unregister,
      setRunnerHealth: (address, healthy) =>
        // Heartbeats alone tell who lives: one node with a fault must not be able to take the shards of the others. And
        // whoever drains stays unhealthy.
        options.address !== undefined && Equal.equals(address, options.address) && !(isDraining && healthy)
          ? storage.setRunnerHealth(address, healthy)
          : Effect.void,
      getRunners: Effect.suspend(() => {
        const at = now()
        return Effect.tap(storage.getRunners, (runners) =>
          Effect.sync(() => {
            if (seen !== undefined && seen.at > at) return
            const ours = runners
              .filter(([{ groups }]) => groups.includes(group))
              .map(([{ address: { host, port } }, healthy]) => ({ member: { host, port }, healthy }))
              .toSorted((a, b) => nameOf(a.member) < nameOf(b.member) ? -1 : 1)
            seen = {
              at,
              members: ours.flatMap(({ healthy, member }) => healthy ? [member] : []),
              nodes: ours.map(({ member }) => member),
              strangers: runners.flatMap(([runner]) => runner.groups.includes(group) ? [] : runner.groups)
            }
          }))
      }),
      acquire: (address, shards) => asked(shards, (wanted) => storage.acquire(address, wanted), false),
      refresh,
      release: (address, shard) =>
        Effect.suspend(() => {
          held.delete(String(shard))
          return storage.release(address, shard)
        }),
      releaseAll: (address) =>
        Effect.suspend(() => {
          held.clear()
          return storage.releaseAll(address)
        })
    }
  }
}

const silent = new PersistenceError({ cause: new Error("the store does not answer") })

/** How much of a lock is for closing the sessions that were opened before. */
const forClosing = 0.3

export const nameOf = ({ host, port }: ClusterMember): string => `${host}:${port}`
