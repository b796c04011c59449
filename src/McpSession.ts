/**
 * One live MCP client session as Effects.
 *
 * Connectors open sessions (`McpConnector.stdio`, `.http`, …), a `SessionPool` keeps them, and their scope closes them.
 * Each call has its own timeout and its own cancellation, and fails the moment that its session ends.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type { Options, SessionHandle } from "./Connector.ts"
import { Identity } from "./Identity.ts"
import * as Adopt from "./internal/client/adopt.ts"
import * as ConnectorOptions from "./internal/client/options.ts"
import type { ClientLike } from "./internal/client/sdk.ts"
import * as Declare from "./internal/options.ts"
import type { McpSessionError } from "./McpSessionError.ts"
import type * as Session from "./Session.ts"

export * from "./McpSessionError.ts"
export * from "./Session.ts"

/**
 * A live session. `C` is the SDK's client class.
 *
 * Every operation fails with `McpSessionError` alone. `SessionClosed`, `SessionExpired` and `Unreachable` say that the
 * session is lost: they retire it from its pool. After two timeouts in a row the session is probed (5 seconds), and
 * retired if it does not answer.
 *
 * @category models
 */
export type McpSession<C = Session.SdkClient> = Session.McpSession<C>

/**
 * The client of either generation of the SDK, as far as a caller has to know it.
 *
 * @category models
 */
export interface AnyClient {
  /** What it is connected to. */
  readonly transport?: object | undefined
  /** Ends its connection. */
  readonly close: () => Promise<void>
  /** What the server has said that it can do. */
  readonly getServerCapabilities: () => object | undefined
  /** What the server has said that it is. */
  readonly getServerVersion: () => { name: string; version: string } | undefined
}

/**
 * How a session is made of a client.
 *
 * @category models
 */
export interface FromClientOptions extends Pick<Options, "name" | "requestTimeout" | "listTimeToLive"> {
  /** Whose session it is. Its credentials are taken out of errors and logs. Default: `Identity.shared()`. */
  readonly identity?: Identity | undefined
  /** The pool's, which hears that the session has died. Default: nobody hears of it but those who call. */
  readonly handle?: SessionHandle | undefined
}

const isHandle = (value: unknown): value is SessionHandle =>
  Predicate.hasProperty(value, "retire") && typeof value.retire === "function"

const declared = Declare.declare<FromClientOptions>()({ module: "McpSession" }, {
  ...ConnectorOptions.fromClient,
  identity: Declare.optional(
    Declare.custom<Identity, Identity>({
      rule: "an Identity",
      read: Option.liftPredicate((value): value is Identity => value instanceof Identity),
      isSecret: true
    }),
    { shown: "the shared one" }
  ),
  handle: Declare.optional(
    Declare.custom<SessionHandle, SessionHandle>({ rule: "a SessionHandle", read: Option.liftPredicate(isHandle) })
  )
})

const unheard: SessionHandle = { retire: () => Effect.void, credentials: Effect.succeedNone }

/**
 * Sessions from outside: how one is made of a client, and what can be told of their errors.
 *
 * @category models
 */
export const McpSession: {
  /**
   * Whether `error` says that the server has forgotten the session, and refused the request: it may be repeated on a
   * new one. Takes anything, tells by its tags. A `SessionExpired` whose request may have run (`refused` is false) is
   * none.
   */
  readonly isSessionExpired: (error: unknown) => boolean
  /**
   * A session over a client of the SDK, of either generation, that somebody else has made and connected: with timeouts,
   * cancellation, lists, liveness and errors as any other. It takes the client over: closed with the scope, and the
   * session on the server ended, if its transport can (`terminateSession`, two seconds at most).
   *
   * In a pool: `connect: (identity, handle) => Effect.flatMap(myClient, (client) => McpSession.fromClient(client, {
   * identity, handle }))`. Each client once: what was sent through it before is not this session's.
   *
   * Fails with `SessionClosed` when the client is not connected. As with `McpConnector.fromTransport`, a reply stream
   * that has ended without the reply is waited for until the call's timeout, and `withSession` repeats nothing when the
   * server has forgotten the session.
   */
  readonly fromClient: <C extends AnyClient>(
    client: C,
    options?: FromClientOptions
  ) => Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope>
} = {
  fromClient: (client, options = {}) =>
    Effect.suspend(() => {
      Result.getOrThrow(declared.parse(options, "fromClient"))
      const { handle = unheard, identity = Identity.shared(), name = "client", ...times } = options
      return Adopt.adopt(client as typeof client & ClientLike, { ...times, handle, identity, server: name })
    }),
  isSessionExpired: (error) =>
    Predicate.isTagged(error, "McpSessionError") && Predicate.hasProperty(error, "reason") &&
    Predicate.isTagged(error.reason, "SessionExpired") &&
    !(Predicate.hasProperty(error.reason, "refused") && error.reason.refused === false)
}
