/**
 * One live MCP client session as Effects.
 *
 * Connectors open sessions (`McpConnector.stdio`, `.http`, …), a `SessionPool` keeps them, and their scope closes them.
 * Each call has its own timeout and its own cancellation, and fails the moment that its session ends.
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
import * as Predicate from "effect/Predicate"
import type * as Stream from "effect/Stream"
import type { Identity } from "./Identity.ts"
import type { TypeId } from "./internal/sent.ts"
import type { McpSessionError } from "./McpSessionError.ts"

export * from "./McpSessionError.ts"

/**
 * How one call is made.
 *
 * @category models
 */
export interface CallOptions {
  /**
   * How long to wait for the answer, 60 seconds by default (or the connector's `requestTimeout`). Then the call fails
   * with `RequestTimeout` and the server is told to cancel it. Progress does not prolong it.
   */
  readonly timeout?: Duration.Input | undefined
}

/**
 * @category models
 */
export interface ProgressOptions extends CallOptions {
  /**
   * Called with each progress notification of this call, in order, one after the other; whoever takes longer than they
   * come loses the oldest (256 are kept). The call ends when the last one has been handled, but no later than its
   * `timeout`: then, or when the call fails or is interrupted, the handler is interrupted, and an answer that has come is
   * returned. A defect of the handler is the call's, once it is answered.
   */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<void>) | undefined
}

/**
 * What `request` hands to the SDK: the signal of the call's interruption, and a `timeout` that never comes first, because
 * the time is kept by Effect's `Clock`.
 *
 * @category models
 */
export interface SdkRequestOptions {
  readonly signal: AbortSignal
  readonly timeout: number
}

/**
 * A live session. `C` is the SDK's client class.
 *
 * Every operation fails with {@link McpSessionError} alone. `SessionClosed`, `SessionExpired` and `Unreachable` say that
 * the session is lost: they retire it from its pool. After two timeouts in a row the session is probed (5 seconds), and
 * retired if it does not answer.
 *
 * @category models
 */
export interface McpSession<out C = Client> {
  /** Made by a connector of this library, and what its pool knows of its requests. */
  readonly [TypeId]: unknown
  readonly identity: Identity
  readonly serverInfo: Implementation
  readonly capabilities: ServerCapabilities
  readonly instructions: string | undefined
  /** The protocol version that client and server agreed on, such as `"2025-11-25"`. */
  readonly protocolVersion: string
  /** The SDK's own client. Closing it ends the session. */
  readonly client: C
  /** The server's process, if this session started it. */
  readonly pid?: number | undefined

  /**
   * Calls a tool. A result with `isError` is a value: the tool has answered.
   */
  readonly callTool: (
    params: CallToolRequest["params"],
    options?: ProgressOptions
  ) => Effect.Effect<CallToolResult, McpSessionError>
  /**
   * All pages (64 at most). Like the other lists it is asked for once, by however many callers, and then kept until the
   * server says that it has changed. Nothing is kept of a failure, nor while the stream on which an HTTP server would say
   * so is broken.
   */
  readonly listTools: (options?: CallOptions) => Effect.Effect<ListToolsResult, McpSessionError>
  readonly listResources: (options?: CallOptions) => Effect.Effect<ListResourcesResult, McpSessionError>
  readonly listResourceTemplates: (options?: CallOptions) => Effect.Effect<ListResourceTemplatesResult, McpSessionError>
  readonly listPrompts: (options?: CallOptions) => Effect.Effect<ListPromptsResult, McpSessionError>
  readonly readResource: (
    params: ReadResourceRequest["params"],
    options?: ProgressOptions
  ) => Effect.Effect<ReadResourceResult, McpSessionError>
  readonly getPrompt: (
    params: GetPromptRequest["params"],
    options?: ProgressOptions
  ) => Effect.Effect<GetPromptResult, McpSessionError>
  readonly complete: (
    params: CompleteRequest["params"],
    options?: CallOptions
  ) => Effect.Effect<CompleteResult, McpSessionError>
  readonly setLoggingLevel: (level: LoggingLevel, options?: CallOptions) => Effect.Effect<void, McpSessionError>
  readonly subscribeResource: (
    params: SubscribeRequest["params"],
    options?: CallOptions
  ) => Effect.Effect<void, McpSessionError>
  readonly unsubscribeResource: (
    params: UnsubscribeRequest["params"],
    options?: CallOptions
  ) => Effect.Effect<void, McpSessionError>
  /**
   * Asks whether the server is there: `ping`, or `server/discover` where 2026-07-28 has no ping.
   */
  readonly ping: (options?: CallOptions) => Effect.Effect<void, McpSessionError>
  /**
   * Anything else that the SDK can do, with this session's timeout, cancellation and errors. Pass the options on.
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
 * @category models
 */
export const McpSession: {
  /**
   * Whether `error` says that the server has forgotten the session: its request was refused and may be repeated on a new
   * one. Takes anything, tells by its tags.
   */
  readonly isSessionExpired: (error: unknown) => boolean
} = {
  isSessionExpired: (error) =>
    Predicate.isTagged(error, "McpSessionError") && Predicate.hasProperty(error, "reason") &&
    Predicate.isTagged(error.reason, "SessionExpired")
}
