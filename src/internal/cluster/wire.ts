/**
 * What nodes say to each other about sessions.
 *
 * `Lease` goes to the owner of a key, wherever that is: through the engine, which sends it again for as long as it has
 * to. Everything else goes to one node, on a link of this library, and is never sent again: a link that breaks fails
 * what is in flight on it. Nothing here is `Persisted`, so that nothing of it is ever stored.
 */
import * as ClusterSchema from "effect/cluster/ClusterSchema"
import * as Entity from "effect/cluster/Entity"
import * as Rpc from "effect/rpc/Rpc"
import * as RpcGroup from "effect/rpc/RpcGroup"
import * as Schema from "effect/Schema"
import { Identity } from "../../Identity.ts"
import { McpSessionError } from "../../McpSessionError.ts"
import { ClusterConnectError } from "../../SessionClusterError.ts"
import { SessionPoolError } from "../../SessionPoolError.ts"

/** What a remote session can be asked. Lists and `ping` have no params. */
export const operations = [
  "callTool",
  "listTools",
  "listResources",
  "listResourceTemplates",
  "listPrompts",
  "readResource",
  "getPrompt",
  "complete",
  "setLoggingLevel",
  "subscribeResource",
  "unsubscribeResource",
  "ping"
] as const

export type Operation = typeof operations[number]

/** What a session says of itself, as JSON: types of the SDK. */
export const Granted = Schema.TaggedStruct("Granted", {
  /** A name that nobody else has, and nobody can guess. */
  lease: Schema.String,
  facts: Schema.String
})

/** What a lease can fail with. */
export const LeaseError = Schema.Union([...ClusterConnectError.members, ...SessionPoolError.members])

/** What becomes of a lease, in this order: who has it, then one of the others, then perhaps that it is retired. */
export const LeaseEvent = Schema.Union([
  Schema.TaggedStruct("Located", { host: Schema.String, port: Schema.Int }),
  Granted,
  Schema.TaggedStruct("Failed", { error: LeaseError }),
  /** Whatever opened it has a bug. */
  Schema.TaggedStruct("Died", { message: Schema.String }),
  /** It takes no new callers. */
  Schema.TaggedStruct("Retired", {})
])
export type LeaseEvent = typeof LeaseEvent.Type

/**
 * The sessions of a cluster, by key. The lease is interrupted when the session has to move, and what its handler does
 * then is waited for.
 */
export const makeEntity = (group: string) =>
  Entity.make("effect-mcp-sessions/Session", [
    Rpc.make("Lease", { payload: { identity: Identity }, success: LeaseEvent, stream: true })
      .annotate(ClusterSchema.InterruptOnTermination, true),
    Rpc.make("Invalidate", { payload: { identity: Identity }, success: Schema.Boolean })
  ])
    .annotate(ClusterSchema.ShardGroup, () => group)
    .annotate(ClusterSchema.ClientTracingEnabled, false)

/** The call was refused unrun: of its lease nothing is known here, or not any more; or its number was seen before. */
export class Refused extends Schema.TaggedError<Refused>("effect-mcp-sessions/cluster/Refused")("Refused", {
  /** It came twice, and the first time may have been run. */
  seen: Schema.Boolean
}) {}

const call = {
  lease: Schema.String,
  /** The number of the call on its lease: no number is run twice. */
  seq: Schema.Int,
  operation: Schema.Literals(operations),
  /** As JSON: the SDK's types would drop what they don't know. */
  params: Schema.optionalKey(Schema.String),
  /** In milliseconds, and so is `maxTotalTimeout`. */
  timeout: Schema.Number,
  resetTimeoutOnProgress: Schema.optionalKey(Schema.Boolean),
  maxTotalTimeout: Schema.optionalKey(Schema.Number),
  fresh: Schema.optionalKey(Schema.Boolean),
  /** The caller's newest, if they are not what the lease was taken with. */
  identity: Schema.optionalKey(Identity),
  trace: Schema.optionalKey(Schema.Struct({ traceId: Schema.String, spanId: Schema.String, sampled: Schema.Boolean }))
}

const Call = Schema.Struct(call)
export type Call = typeof Call.Type

const failures = Schema.Union([McpSessionError, Refused])
export type Failure = typeof failures.Type

export const Reported = Schema.Union([
  Schema.TaggedStruct("Progress", { json: Schema.String }),
  Schema.TaggedStruct("Answer", { json: Schema.String })
])
export type Reported = typeof Reported.Type

/** What is asked of one node. Answers are JSON. */
export class Rpcs extends RpcGroup.make(
  Rpc.make("Session.Call", { payload: Call, success: Schema.String, error: failures }),
  Rpc.make("Session.CallReported", { payload: Call, success: Reported, error: failures, stream: true }),
  Rpc.make("Session.Listen", {
    payload: { lease: Schema.String },
    success: Schema.String,
    error: Refused,
    stream: true
  }),
  Rpc.make("Session.Inspect", {
    payload: { what: Schema.Literals(["stats", "entries"]) },
    success: Schema.String,
    stream: true
  }),
  Rpc.make("Session.Watch", { success: Schema.String, stream: true })
) {}
