/**
 * Which nodes there are, which of them is this one, and whether it may be sent new work.
 *
 * `ClusterNode` provides it, from what all nodes write into their store; {@link ClusterMembership.layerAlone} is that
 * of a process without any. It loads nothing of a cluster.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Drains from "./internal/drains.ts"
import type { ClusterUnavailable } from "./SessionClusterError.ts"

/**
 * A node, by the address at which the others reach it.
 *
 * @category models
 */
export interface ClusterMember {
  /** A name or an address. */
  readonly host: string
  /** Where it takes the links of other nodes: no port of HTTP. */
  readonly port: number
}

/**
 * What is known of the cluster.
 *
 * @category models
 */
export interface Service {
  /** This node. Undefined in a process that owns no sessions. */
  readonly self: ClusterMember | undefined
  /**
   * The nodes that live and don't drain, in the order of their addresses: as they were last read, at most two intervals
   * of `assignmentsInterval` ago. Fails with `ClusterUnavailable` when the store has been silent for longer.
   */
  readonly members: Effect.Effect<ReadonlyArray<ClusterMember>, ClusterUnavailable>
  /**
   * The nodes that live, those that drain included: what they have is still there. Known and failing as `members` are.
   */
  readonly nodes: Effect.Effect<ReadonlyArray<ClusterMember>, ClusterUnavailable>
  /**
   * The same, read now: for whoever looks for a node that `nodes` does not have yet. However many ask at once, the
   * store is asked once.
   */
  readonly nodesNow: Effect.Effect<ReadonlyArray<ClusterMember>, ClusterUnavailable>
  /**
   * Whether this node may be sent new work: it is one of the members, as it reads them, and does not drain. What a
   * readiness probe answers.
   */
  readonly isReady: Effect.Effect<boolean>
  /** Whether `drain` was called. */
  readonly isDraining: Effect.Effect<boolean>
  /**
   * Takes no new work from now on, and gives what this node has to the others: it is not ready, new sessions begin
   * elsewhere, calls that run are finished. Ends when nothing is left here and nothing runs, or after
   * `terminationTimeout` and 5 seconds (20 seconds where there is no cluster). Saying it twice is saying it once; there
   * is no way back. Never fails: without others, or while the store is silent, nothing is given away.
   */
  readonly drain: Effect.Effect<void>
  /** Has `drain` wait while this is so, until the current scope closes: for what runs that a cluster does not know. */
  readonly finishing: (isBusy: () => boolean) => Effect.Effect<void, never, Scope.Scope>
}

/**
 * Which nodes there are, and whether this one may be sent new work.
 *
 * **Example** (A readiness probe, and a deploy that waits)
 *
 * ```ts
 * const ready = HttpRouter.add("GET", "/ready", Effect.gen(function*() {
 *   return HttpServerResponse.empty({ status: (yield* ClusterMembership.isReady) ? 204 : 503 })
 * }))
 * ```
 *
 * @category services
 */
export class ClusterMembership extends Context.Service<ClusterMembership, Service>()(
  "effect-mcp-sessions/ClusterMembership"
) {
  /** See {@link Service.members}. */
  static readonly members = ClusterMembership.use((cluster) => cluster.members)
  /** See {@link Service.isReady}. */
  static readonly isReady = ClusterMembership.use((cluster) => cluster.isReady)
  /** See {@link Service.drain}. */
  static readonly drain = ClusterMembership.use((cluster) => cluster.drain)
  /** A process without a cluster: no members, and ready until `drain`. */
  static readonly layerAlone: Layer.Layer<ClusterMembership> = Layer.sync(ClusterMembership, () => {
    let isDraining = false
    const drains = Drains.make()
    return {
      self: undefined,
      members: Effect.succeed([]),
      nodes: Effect.succeed([]),
      nodesNow: Effect.succeed([]),
      isReady: Effect.sync(() => !isDraining),
      isDraining: Effect.sync(() => isDraining),
      drain: Effect.suspend(() => {
        isDraining = true
        return drains.wait(20_000)
      }),
      finishing: drains.add
    }
  })
}
