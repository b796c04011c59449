/**
 * What a cluster fails with besides the errors of a pool and of its sessions.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Schema from "effect/Schema"
import { respond } from "./internal/problem.ts"
import { McpServersError, UnknownServer } from "./McpServersError.ts"
import { McpSessionError } from "./McpSessionError.ts"

/**
 * What the `connect` of a cluster fails with: `McpSessionError`, which is all that a connector does, and what
 * `McpServers.connect` fails with besides.
 *
 * Whoever asks may be at another node than the session, so these are errors that every node can read. A `connect` with
 * errors of its own says them as one of these: with `Effect.mapError`.
 *
 * @category errors
 */
export type ClusterConnectError = McpSessionError | UnknownServer | McpServersError

/**
 * @category errors
 */
export const ClusterConnectError = Schema.Union([McpSessionError, UnknownServer, McpServersError])

const causes = {
  store: "The store that says which nodes there are did not answer",
  owner: "No node that may have the session answered",
  lost: "The node that was to open the session was lost, or gave it to another one",
  closed: "This node is leaving the cluster"
} as const

/**
 * The cluster can't tell where the session is, or have it opened: nothing was asked of the session, so repeating it is
 * safe. Answers 503 with `Retry-After`.
 *
 * @category errors
 */
export class ClusterUnavailable
  extends Schema.TaggedError<ClusterUnavailable>("effect-mcp-sessions/ClusterUnavailable")("ClusterUnavailable", {
    /** The operation that failed. */
    method: Schema.Literals(["get", "withSession", "invalidate", "stats", "entries", "members", "layer"]).pipe(
      Schema.withConstructorDefault(Effect.succeed("get"))
    ),
    /** Why: the `store` is silent, no `owner` answered, it was `lost` meanwhile, or this node is `closed`. */
    reason: Schema.Literals(["store", "owner", "lost", "closed"]),
    /** How long it was waited for. */
    waited: Schema.Duration
  })
{
  readonly module = "SessionCluster"
  readonly reference = "cluster-unavailable"

  override get message(): string {
    const { reason, waited } = this
    return `${causes[reason]} (waited ${Duration.format(waited)}). Repeating this is safe; see that the nodes and ` +
      "their store can reach each other."
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 503, title: "The server can't reach its peers", headers: { "retry-after": "1" } })
  }
}
