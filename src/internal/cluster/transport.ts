/**
 * How nodes reach each other.
 */
import type * as Effect from "effect/Effect"
import type * as RpcClient from "effect/rpc/RpcClient"
import type * as RpcSerialization from "effect/rpc/RpcSerialization"
import type * as RpcServer from "effect/rpc/RpcServer"
import type * as Scope from "effect/Scope"
import type { ClusterMember } from "../../ClusterMembership.ts"

export interface Transport<E = never> {
  readonly codecFor: RpcSerialization.CodecFor
  /**
   * A link to a node, made anew when it breaks. What is in flight then fails, and is never sent again. Who is not there
   * any more is not waited for: a machine that has vanished does not even refuse.
   */
  readonly connect: (
    member: ClusterMember,
    isThere: () => boolean
  ) => Effect.Effect<RpcClient.Protocol["Service"], never, Scope.Scope>
  /** Takes the links of others, until the scope ends. */
  readonly listen: Effect.Effect<RpcServer.Protocol["Service"], E, Scope.Scope>
}
