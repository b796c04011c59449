/**
 * What crosses from one node to another, and how. Results are JSON as the SDK has parsed them: their schemas would drop
 * what they don't know.
 */
import type { Progress } from "@modelcontextprotocol/sdk/types.js"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { SessionKey } from "../../Identity.ts"
import { McpSessionError, PreparationFailed, ProtocolFailure } from "../../McpSessionError.ts"
import type { McpSession } from "../../Session.ts"
import type { SessionPoolEntry, SessionPoolEvent, SessionPoolStats } from "../../SessionPool.ts"
import type { Call } from "./wire.ts"

export const stringify = (value: unknown): string => JSON.stringify(value) ?? "null"

export const parse = (json: string | undefined): unknown => json === undefined ? undefined : JSON.parse(json)

/**
 * More bytes of JSON than this never cross at once. Within a message each may become two, and a link ends at a line of
 * 64 MiB: with it everybody's calls.
 */
export const mostBytes = 30 * 1024 * 1024

/** Whether a text may cross: to write and to read one stops everybody else at both nodes for as long. */
export const isShort = (text: string, maxMessageBytes: number): boolean =>
  text.length * 3 <= maxMessageBytes || Buffer.byteLength(text) <= maxMessageBytes

export interface Crossing {
  readonly method: string
  readonly requestSent: boolean
  readonly server: string
  readonly maxMessageBytes: number
}

/** What a caller asks with or a server has answered, as text. Fails when it can't cross: that is its call's affair. */
export const carried = (
  value: unknown,
  { maxMessageBytes, method, requestSent, server }: Crossing
): Effect.Effect<string, McpSessionError> =>
  Effect.suspend(() => {
    const text = Result.try(() => stringify(value))
    if (Result.isSuccess(text) && isShort(text.success, maxMessageBytes)) return Effect.succeed(text.success)
    const what = requestSent ? "The answer" : "The request"
    const message = Result.isSuccess(text)
      ? `${what} is longer than maxMessageBytes (${maxMessageBytes.toLocaleString("en-US")}), too long for another node`
      : `${what} can't be written as JSON`
    const reason = new ProtocolFailure({ code: requestSent ? -32603 : -32602, message, data: undefined, requestSent })
    return Effect.fail(new McpSessionError({ reason, method, server }))
  })

// -----------------------------------------------------------------------------
// Sessions
// -----------------------------------------------------------------------------

export type Facts = Pick<
  McpSession,
  "serverInfo" | "capabilities" | "instructions" | "protocolVersion" | "requestTimeout"
>

/** As they are written. */
interface PlainFacts extends Omit<Facts, "requestTimeout"> {
  /** In milliseconds; none for ever, for which JSON has no number. */
  readonly requestTimeout: number | null
}

export const factsOf = (
  { capabilities, instructions, protocolVersion, requestTimeout, serverInfo }: Facts
): PlainFacts => ({
  serverInfo,
  capabilities,
  instructions,
  protocolVersion,
  requestTimeout: Duration.isFinite(requestTimeout) ? Duration.toMillis(requestTimeout) : null
})

export const parseFacts = (json: string): Facts => {
  const facts = parse(json) as PlainFacts
  const { instructions, requestTimeout } = facts
  return {
    ...facts,
    instructions,
    requestTimeout: requestTimeout === null ? Duration.infinity : Duration.millis(requestTimeout)
  }
}

/** Asks a session what a call says. */
export const ask = (
  session: McpSession,
  call: Call,
  params: unknown,
  onProgress: ((progress: Progress) => Effect.Effect<void>) | undefined
): Effect.Effect<unknown, McpSessionError> => {
  const { fresh, maxTotalTimeout, operation, resetTimeoutOnProgress, timeout } = call
  switch (operation) {
    case "listTools":
    case "listResources":
    case "listResourceTemplates":
    case "listPrompts":
      return session[operation]({ timeout, fresh })
    case "ping":
      return session.ping({ timeout })
    default: {
      // Whatever the caller's compiler has let through, the SDK of the owner looks at
      const asked: (params: never, options: object) => Effect.Effect<unknown, McpSessionError> = session[operation]
      return asked(params as never, { timeout, onProgress, resetTimeoutOnProgress, maxTotalTimeout })
    }
  }
}

// -----------------------------------------------------------------------------
// Errors
// -----------------------------------------------------------------------------

const canCross = (data: unknown, maxMessageBytes: number): boolean => {
  const text = Result.try(() => stringify(data))
  return Result.isSuccess(text) && isShort(text.success, maxMessageBytes)
}

/** The error as it can travel: without what only its own process can hold, and without data that is too long. */
export const crossing = <E>(error: E | McpSessionError, maxMessageBytes: number): E | McpSessionError => {
  if (!(error instanceof McpSessionError)) return error
  const { method, reason, server } = error
  if (reason instanceof ProtocolFailure && (reason.data === undefined || !canCross(reason.data, maxMessageBytes))) {
    return new McpSessionError({ reason: new ProtocolFailure({ ...reason, data: null }), method, server })
  }
  if (reason instanceof PreparationFailed) {
    const cause = Redacted.make("it stays at the node where it failed")
    return new McpSessionError({ reason: new PreparationFailed({ ...reason, cause }), method, server })
  }
  return error
}

/** And back. A server that has sent no `data` is more likely than one that has sent null: JSON can't tell. */
export const crossed = <E>(error: E | McpSessionError): E | McpSessionError => {
  if (!(error instanceof McpSessionError)) return error
  const { method, reason, server } = error
  return reason instanceof ProtocolFailure && reason.data === null
    ? new McpSessionError({ reason: new ProtocolFailure({ ...reason, data: undefined }), method, server })
    : error
}

// -----------------------------------------------------------------------------
// The pool
// -----------------------------------------------------------------------------

const textOf = <S extends Schema.Codec<unknown, unknown>>(schema: S) => {
  const json = Schema.fromJsonString(Schema.toCodecJson(schema))
  return {
    encode: Schema.encodeSync(json) as (value: S["Type"]) => string,
    decode: Schema.decodeSync(json) as (text: string) => S["Type"]
  }
}

const upstream = Schema.Struct({
  upstream: Schema.String,
  capacity: Schema.Number,
  sessions: Schema.Number,
  idle: Schema.Number,
  waiting: Schema.Number
})

const Stats = Schema.Struct({
  size: Schema.Number,
  capacity: Schema.Number,
  idleTimeToLive: Schema.Duration,
  leased: Schema.Number,
  idle: Schema.Number,
  opening: Schema.Number,
  draining: Schema.Number,
  closing: Schema.Number,
  waiting: Schema.Number,
  standby: Schema.Number,
  hits: Schema.Number,
  misses: Schema.Number,
  evictions: Schema.Number,
  expirations: Schema.Number,
  retirements: Schema.Number,
  failures: Schema.Number,
  closeFailures: Schema.Number,
  eventsLost: Schema.Number,
  keys: Schema.Array(SessionKey),
  upstreams: Schema.Array(upstream)
})

const Entry = Schema.Struct({
  key: SessionKey,
  shared: Schema.Boolean,
  state: Schema.Literals(["leased", "idle"]),
  leases: Schema.Number,
  uses: Schema.Number,
  openedAt: Schema.Number,
  lastUsedAt: Schema.Number,
  idleTimeToLive: Schema.Duration
})

const reason = Schema.Literals([
  "evicted",
  "expired",
  "lifetime",
  "invalidated",
  "died",
  "unhealthy",
  "shutdown"
])
const failure = Schema.Literals(["failed", "timeout"])

const Event = Schema.Union([
  Schema.TaggedStruct("Opened", { key: SessionKey, took: Schema.Duration }),
  Schema.TaggedStruct("OpenFailed", { key: SessionKey, reason: failure }),
  Schema.TaggedStruct("Retired", { key: SessionKey, reason }),
  Schema.TaggedStruct("Closed", { key: SessionKey, reason, lived: Schema.Duration, uses: Schema.Number }),
  Schema.TaggedStruct("CloseFailed", { key: SessionKey, reason: failure }),
  Schema.TaggedStruct("Exhausted", { key: SessionKey, waited: Schema.Duration })
])

interface Text<A> {
  readonly encode: (value: A) => string
  readonly decode: (text: string) => A
}

/** What may be longer than one message, and takes long to write and to read: it crosses part by part. */
export interface Parts<A> extends Text<A> {
  /** One part at least. */
  readonly split: (whole: A) => ReadonlyArray<A>
  readonly join: (parts: Arr.NonEmptyReadonlyArray<A>) => A
}

/** To write or to read one takes a millisecond or two. */
const perPart = 64

const partsOf = <A>(all: ReadonlyArray<A>, count = Math.max(1, Math.ceil(all.length / perPart))) =>
  Array.from({ length: count }, (_, i) => all.slice(i * perPart, (i + 1) * perPart))

export const stats: Parts<SessionPoolStats> = {
  ...textOf(Stats),
  split: ({ keys, upstreams, ...numbers }) => {
    const parts = Math.ceil(Math.max(1, keys.length, upstreams.length) / perPart)
    const lines = partsOf(upstreams, parts)
    return partsOf(keys, parts).map((part, i) => Object.assign({}, numbers, { keys: part, upstreams: lines[i]! }))
  },
  join: (parts) => ({
    ...parts[0],
    keys: parts.flatMap(({ keys }) => keys),
    upstreams: parts.flatMap(({ upstreams }) => upstreams)
  })
}

export const entries: Parts<ReadonlyArray<SessionPoolEntry>> = {
  ...textOf(Schema.Array(Entry)),
  split: (all) => partsOf(all),
  join: (parts) => parts.flat()
}

export const events: Text<SessionPoolEvent> = textOf(Event)
