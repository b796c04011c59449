/**
 * What a session is, and what can be done with it: the types of `McpSession`, which knows how one is made.
 */
import type { Client } from "@modelcontextprotocol/sdk/client/index.js"
import type {
  CallToolRequest,
  CallToolResult,
  CompleteRequest,
  CompleteResult,
  GetPromptRequest,
  GetPromptResult,
  Implementation,
  ListPromptsResult,
  ListResourcesResult,
  ListResourceTemplatesResult,
  ListToolsResult,
  LoggingLevel,
  Progress,
  ReadResourceRequest,
  ReadResourceResult,
  ServerCapabilities,
  ServerNotification,
  SubscribeRequest,
  UnsubscribeRequest
} from "@modelcontextprotocol/sdk/types.js"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Identity } from "./Identity.ts"
import type { TypeId } from "./internal/sent.ts"
import type { McpSessionError } from "./McpSessionError.ts"

/**
 * How one call is made.
 *
 * @category models
 */
export interface CallOptions {
  /**
   * How long the call may take, as a `Duration.Input`: a number is milliseconds. By default the connector's
   * `requestTimeout`, 60 seconds. Then the call fails with `RequestTimeout` and the server is told to cancel it.
   * Progress does not prolong it, unless `resetTimeoutOnProgress` says so.
   */
  readonly timeout?: Duration.Input | undefined
}

/**
 * How a list is asked for.
 *
 * @category models
 */
export interface ListOptions extends CallOptions {
  /**
   * Reads the list now, from its first page, whatever is kept and whoever is reading it already. Default: false.
   */
  readonly fresh?: boolean | undefined
}

/**
 * How a call is made that a server may report on while it runs.
 *
 * @category models
 */
export interface ProgressOptions extends CallOptions {
  /**
   * Called with each progress notification of this call, in order, one after the other; whoever takes longer than they
   * come loses the oldest (256 are kept). The call ends when the last one has been handled, but no later than its
   * `timeout`: then, or when the call fails or is interrupted, the handler is interrupted, and an answer that has come
   * is returned. A defect of the handler is the call's, once it is answered.
   */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<void>) | undefined
  /**
   * With each progress notification the `timeout` begins anew, within `maxTotalTimeout`. Asks the server for progress
   * also without `onProgress`. Default: false.
   */
  readonly resetTimeoutOnProgress?: boolean | undefined
  /**
   * How long the call may take in all, whatever progress it makes, as a `Duration.Input`: more than 0, and finite (one
   * that is not is as if it were left out). Only with `resetTimeoutOnProgress`. Default: ten times the `timeout`.
   */
  readonly maxTotalTimeout?: Duration.Input | undefined
}

/**
 * What `request` hands to the SDK: the signal of the call's interruption, and a `timeout` that never comes first,
 * because the time is kept by Effect's `Clock`.
 *
 * @category models
 */
export interface SdkRequestOptions {
  /** Aborted when nobody waits for the call any more. */
  readonly signal: AbortSignal
  /** In milliseconds: the longest that a timer can take, some 24 days. */
  readonly timeout: number
}

/**
 * The client of `@modelcontextprotocol/sdk`, under a name that does not spell out its type parameters.
 *
 * @category models
 */
export interface SdkClient extends Client {}

/**
 * A live session. `C` is the SDK's client class.
 *
 * Every operation fails with {@link McpSessionError} alone. `SessionClosed`, `SessionExpired` and `Unreachable` say
 * that the session is lost: they retire it from its pool. After two timeouts in a row the session is probed (5
 * seconds), and retired if it does not answer.
 *
 * @category models
 */
export interface McpSession<out C = SdkClient> {
  /** Made by a connector of this library, and what its pool knows of its requests. */
  readonly [TypeId]: unknown
  /** Whose session it is, with the credentials that it was opened with. */
  readonly identity: Identity
  /** The server's name and version, as it says itself. From 2026-07-28 on it may be anonymous: then the connector's. */
  readonly serverInfo: Implementation
  /** What the server says that it can do. */
  readonly capabilities: ServerCapabilities
  /** How the server wants to be used, in its own words, if it says so. */
  readonly instructions: string | undefined
  /** The protocol version that client and server agreed on, such as `"2025-11-25"`. */
  readonly protocolVersion: string
  /** How long a call may take that has no `timeout` of its own: the connector's. */
  readonly requestTimeout: Duration.Duration
  /** The SDK's own client. Closing it ends the session. */
  readonly client: C
  /** The server's process, if this session started it. */
  readonly pid?: number | undefined

  /**
   * Calls a tool. A result with `isError` is a value: the tool has answered.
   *
   * Fails with `McpSessionError` after 60 seconds (`timeout`) or at once when the session ends. Progress goes to
   * `onProgress`.
   */
  readonly callTool: (
    params: CallToolRequest["params"],
    options?: ProgressOptions
  ) => Effect.Effect<CallToolResult, McpSessionError>
  /**
   * The server's tools, all pages of them. Like the other lists they are asked for once, by however many callers, and
   * then kept until the server says that they have changed (`list_changed`); where it can't say so, for the connector's
   * `listTimeToLive`, a minute. `{ fresh: true }` asks again at once. Nothing is kept of a failure. From 2026-07-28 on
   * the SDK keeps them for as long as the server's `ttlMs` says.
   *
   * Fails with `McpSessionError` after 60 seconds (`timeout`) for all pages, and with its reason `TooManyPages` when
   * there are more than 64.
   */
  readonly listTools: (options?: ListOptions) => Effect.Effect<ListToolsResult, McpSessionError>
  /**
   * The server's resources, all pages of them, asked for once and kept until they change: see `listTools`.
   */
  readonly listResources: (options?: ListOptions) => Effect.Effect<ListResourcesResult, McpSessionError>
  /**
   * The templates of the server's resources, all pages of them, asked for once and kept until the server says that its
   * resources have changed: see `listTools`.
   */
  readonly listResourceTemplates: (options?: ListOptions) => Effect.Effect<ListResourceTemplatesResult, McpSessionError>
  /**
   * The server's prompts, all pages of them, asked for once and kept until they change: see `listTools`.
   */
  readonly listPrompts: (options?: ListOptions) => Effect.Effect<ListPromptsResult, McpSessionError>
  /**
   * Reads a resource by its URI. Not kept. Fails with `McpSessionError`, also for a resource that does not exist.
   */
  readonly readResource: (
    params: ReadResourceRequest["params"],
    options?: ProgressOptions
  ) => Effect.Effect<ReadResourceResult, McpSessionError>
  /**
   * A prompt, filled with its arguments. Fails with `McpSessionError`, also for a prompt that does not exist.
   */
  readonly getPrompt: (
    params: GetPromptRequest["params"],
    options?: ProgressOptions
  ) => Effect.Effect<GetPromptResult, McpSessionError>
  /**
   * Suggests values for an argument of a prompt or of a resource's template.
   */
  readonly complete: (
    params: CompleteRequest["params"],
    options?: CallOptions
  ) => Effect.Effect<CompleteResult, McpSessionError>
  /**
   * From which level on the server sends its log: it comes with `notifications`. Not in 2026-07-28.
   */
  readonly setLoggingLevel: (level: LoggingLevel, options?: CallOptions) => Effect.Effect<void, McpSessionError>
  /**
   * Asks to be told, with `notifications`, when the resource changes. Not in 2026-07-28.
   */
  readonly subscribeResource: (
    params: SubscribeRequest["params"],
    options?: CallOptions
  ) => Effect.Effect<void, McpSessionError>
  /**
   * Takes back what `subscribeResource` asked for. Not in 2026-07-28.
   */
  readonly unsubscribeResource: (
    params: UnsubscribeRequest["params"],
    options?: CallOptions
  ) => Effect.Effect<void, McpSessionError>
  /**
   * Asks whether the server is there: `ping`, or `server/discover` where 2026-07-28 has no ping.
   */
  readonly ping: (options?: CallOptions) => Effect.Effect<void, McpSessionError>
  /**
   * Anything else that the SDK can do, with this session's timeout (60 seconds for all of it), cancellation and errors.
   * Pass the options on: without them the SDK neither cancels nor waits longer than its own 60 seconds.
   *
   * ```ts
   * session.request((client, options) => client.request({ method: "x/y" }, ResultSchema, options))
   * ```
   */
  readonly request: <A>(
    f: (client: C, options: SdkRequestOptions) => Promise<A>,
    options?: CallOptions
  ) => Effect.Effect<A, McpSessionError>
  /**
   * What the server tells unasked, methods of its own included; not progress and cancellations, which belong to a call.
   * A slow reader loses the oldest (256 are kept) and slows nobody. Ends with the session.
   */
  readonly notifications: Stream.Stream<ServerNotification>
}

/**
 * A session that may be another process': everything of an {@link McpSession} but what only its own process can have,
 * the SDK's client and what is done with it. `SessionCluster` has these.
 *
 * A call that was in flight when its node was lost, or when the session had to move, fails with `SessionClosed`, whose
 * `requestSent` says whether it may have run. It never runs twice. Its node keeps the time of a call; one that lives
 * and does not answer is given up ten seconds later, with `RequestTimeout`.
 *
 * Requests and answers cross as JSON, `maxMessageBytes` of it at most, 16 MiB by default: what can't fails with
 * `ProtocolFailure`, and only that call.
 *
 * @category models
 */
export interface RemoteSession
  extends Omit<McpSession, "client" | "request" | "pid" | "~effect-mcp-sessions/McpSession">
{
  /** The node that has it, as `host:port`. */
  readonly runner: string
}
