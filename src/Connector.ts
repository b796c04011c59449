/**
 * What a pool calls to open a session, what it gives along, and the options that all connectors have in common.
 */
import type {
  CreateMessageRequestParams,
  CreateMessageResult,
  CreateMessageResultWithTools,
  ElicitRequestFormParams,
  ElicitRequestURLParams,
  ElicitResult,
  Implementation,
  Root
} from "@modelcontextprotocol/sdk/types.js"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Authorization } from "./Authorization.ts"
import type { Credentials, Identity } from "./Identity.ts"
import type { McpSessionError } from "./McpSessionError.ts"
import type { McpSession, SdkClient } from "./Session.ts"

/**
 * The part of `fetch` that connectors use.
 *
 * @category models
 */
export type FetchLike = (url: string | URL, init?: RequestInit) => Promise<Response>

/**
 * What a connector needs from the pool: a way to say that this very session has died, and the newest credentials.
 *
 * @category models
 */
export interface SessionHandle {
  /**
   * Says that this session can't be used any more: it takes no new lease, the next get opens another, and it is closed
   * when its last lease ends. It can never retire its successor, and saying it twice is saying it once.
   */
  readonly retire: (reason: "died" | "unhealthy") => Effect.Effect<void>
  /**
   * The newest credentials that were presented for this session's key, so that a rotated token reaches a live session.
   */
  readonly credentials: Effect.Effect<Option.Option<Credentials>>
}

/**
 * Opens a session for an identity; its scope closes it. `R` is what its options need of the pool's layer, `C` the SDK's
 * client class.
 *
 * @category models
 */
export type Connector<R = never, C = SdkClient> = (
  identity: Identity,
  handle: SessionHandle
) => Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope | R>

/**
 * The SDK's `McpServer` or `Server`, of the generation whose transport is `T`.
 *
 * @category models
 */
export interface ServerLike<in T> {
  /** Called once, with one end of a pair of transports; the session has the other. */
  connect(transport: T): Promise<void>
}

/**
 * A record, or one that depends on the identity, and may take an Effect to find out. That may fail with any error: then
 * nothing is sent, and the open or the call fails with the reason `PreparationFailed`, which has the error as its
 * `cause`. A `McpSessionError` comes through as it is.
 *
 * @category models
 */
export type PerIdentity<R = never> =
  | Readonly<Record<string, string>>
  | ((
    identity: Identity
  ) => Readonly<Record<string, string>> | Effect.Effect<Readonly<Record<string, string>>, unknown, R>)

/**
 * What every connector takes. A connector is made with its options checked: it throws `InvalidOptions`, which names the
 * first that is wrong or unknown. Durations are any `Duration.Input`; a number is milliseconds.
 *
 * What a session is given is taken out of its errors and logs where it is a secret, in any encoding: credentials
 * always, environment variables, headers, arguments and parts of the URL if their name says so (`token`, `key`,
 * `password`, `cookie`, …) or if they look like one. Plain words under other names stay.
 *
 * @category models
 */
export interface Options<out R = never> {
  /** What errors and logs call the server. Default: its host, the last part of its command, or `"in-process"`. */
  readonly name?: string | undefined
  /** What the server is told that it talks to: a name, a version and what else MCP has there. Default: this library. */
  readonly clientInfo?: Implementation | undefined
  /**
   * How long opening a session may take, more than 0 and finite, else the open fails with `RequestTimeout`. By default
   * a connector has no such bound of its own: the pool has one, `SessionPool.layer({ connectTimeout })`, 30 seconds
   * unless it says otherwise.
   */
  readonly connectTimeout?: Duration.Input | undefined
  /**
   * How long a call may take that says nothing else, more than 0 and finite, else it fails with `RequestTimeout`.
   * Default: 60 seconds.
   */
  readonly requestTimeout?: Duration.Input | undefined
  /**
   * How long a list is kept whose changes the server can't announce: it has no capability `listChanged` for it, or no
   * stream of its own over HTTP, or that stream is lost, since when it counts. At least 0, which keeps none of those.
   * Default: 1 minute.
   */
  readonly listTimeToLive?: Duration.Input | undefined
  /**
   * Answers the server's `sampling/createMessage`, and declares that this client can. A failure is logged, and told to
   * the server as an internal error without its text. Interrupted when the server cancels the request or the session
   * ends. Default: none, and the server is told so.
   */
  readonly sampling?:
    | ((
      params: CreateMessageRequestParams,
      identity: Identity
    ) => Effect.Effect<CreateMessageResult | CreateMessageResultWithTools, unknown, R>)
    | undefined
  /** The same for `elicitation/create` in form mode: the server asks the caller for data. */
  readonly elicitation?:
    | ((params: ElicitRequestFormParams, identity: Identity) => Effect.Effect<ElicitResult, unknown, R>)
    | undefined
  /**
   * The same for `elicitation/create` in URL mode (MCP 2025-11-25, client/elicitation): the server asks the caller to
   * open an address, for what is not to pass through a client. Answer `accept` when the caller has agreed to open it.
   * Show the whole address first, open it in the caller's own browser, and never fetch it: what the caller does there
   * stays there. An address that is not http or https, or has a user in it, is refused unseen. That it is done comes as
   * `notifications/elicitation/complete` on the session's `notifications`; a server may also refuse a call with the
   * code -32042, whose `data` has what to open.
   */
  readonly urlElicitation?:
    | ((params: ElicitRequestURLParams, identity: Identity) => Effect.Effect<ElicitResult, unknown, R>)
    | undefined
  /** The same for `roots/list`. */
  readonly roots?: ((identity: Identity) => Effect.Effect<ReadonlyArray<Root>, unknown, R>) | undefined
}

/**
 * The options of `stdio`.
 *
 * @category models
 */
export interface StdioOptions<out R = never> extends Options<R> {
  /**
   * The program to start, looked for in `PATH` unless it is a path. No shell reads it. One that can't be started fails
   * the open with `Unreachable` and the system's code, such as `ENOENT`.
   */
  readonly command: string
  /** Its arguments, each as it is. Default: none. */
  readonly args?: ReadonlyArray<string> | undefined
  /**
   * Its environment variables, which may depend on the identity; asked for once a session. They are added to the six
   * that the SDK deems safe to pass on (HOME, LOGNAME, PATH, SHELL, TERM, USER). The rest of this process' environment
   * stays here.
   */
  readonly env?: PerIdentity<R> | undefined
  /** Its working directory. Default: this process' own. */
  readonly cwd?: string | undefined
  /**
   * How long a message of the server may be, in bytes, at least 1. A longer one ends the session: `SessionClosed`,
   * whose `detail` says so. Default: 10 MiB.
   */
  readonly maxMessageBytes?: number | undefined
  /**
   * Keeps so many children started and initialized ahead: a new identity's first call waits for no start then. For
   * servers that are the same for everybody: `env` as a function and `roots` are `InvalidOptions` then, as what a child
   * is told before it has an owner can't depend on one. Default: none.
   */
  readonly standby?: Standby | undefined
}

/**
 * Children that wait for an identity, each of them for its first and only one: what was handed out never comes back.
 *
 * They start when the pool's layer builds if `connect` is the connector itself, with the first session if it is a
 * function that calls it, and end with the pool. They are beyond its `capacity`, and `standby` in its stats counts
 * those that are ready. Another is started 100 ms after one was taken. One that dies, or can't be started, is logged,
 * and tried again after 100 ms, then twice as long each time, up to 30 seconds; one that has waited for longer than
 * that before it died, after 100 ms. Each is asked for a sign of life when it is taken. Whoever finds none ready waits
 * for a child of his own.
 *
 * @category models
 */
export interface Standby {
  /** How many: an integer of at least 1. */
  readonly size: number
  /** How long one waits before another takes its place. Default: for ever. */
  readonly idleTimeToLive?: Duration.Input | undefined
  /**
   * How long one may take to start, in place of `connectTimeout`. No caller waits for it, so it may be long: `npx`
   * installs first. Default: 5 minutes.
   */
  readonly startTimeout?: Duration.Input | undefined
  /**
   * Run once on each when it has started, within another `startTimeout`, before it is ready. What a server does for the
   * first time takes it several times as long: a call that changes nothing, here, is not its owner's first. The session
   * is nobody's yet, and what the server asks its owner waits for one. A child for which it fails is logged, closed,
   * and counts as one that can't be started. Default: nothing is run.
   */
  readonly warmUp?: ((session: McpSession<unknown>) => Effect.Effect<unknown, unknown>) | undefined
}

/**
 * The options of `http` and `sse`.
 *
 * @category models
 */
export interface HttpOptions<out R = never> extends Options<R> {
  /** Where the server is: http or https, with a path. What is secret in it stays out of errors and logs. */
  readonly url: string | URL
  /**
   * Asked for before each request, with the newest credentials in the identity: what it returns may change from one to
   * the next.
   */
  readonly headers?: PerIdentity<R> | undefined
  /**
   * Gets tokens for a server that asks for OAuth, and others when they are refused: the SDK's `OAuthClientProvider` of
   * an identity, `{ clientCredentials }`, `{ tokenExchange }`, `{ authorizationCode }`, or `{ token, refresh }`. See
   * `Authorization`. A token goes to the origin of `url` alone, as `Authorization: Bearer`, in place of a header of
   * that name. With `forwardCredentials` it is `InvalidOptions`. Default: none.
   */
  readonly authorization?: Authorization<R> | undefined
  /**
   * Sends the identity's credentials on, in the header they came in and as they came: the newest that were presented
   * for this identity, on each request. The session stays the same. Default: false.
   *
   * Only to a server that is meant to get them. MCP 2025-11-25, basic/security_best_practices, token passthrough: "MCP
   * servers MUST NOT accept any tokens that were not explicitly issued for the MCP server"; basic/authorization, access
   * token privilege restriction: a server that makes requests to upstream APIs "MUST NOT pass through the token it
   * received from the MCP client". Where the upstream is another resource than the one that the token was issued for,
   * exchange it: `authorization: { tokenExchange }`.
   */
  readonly forwardCredentials?: boolean | undefined
  /** Sends the requests. Default: the global `fetch`, as it is at the time of each. */
  readonly fetch?: FetchLike | undefined
}

/**
 * The services that the functions among a connector's options need: each asks for its own, and the pool's layer for
 * all.
 *
 * @category models
 */
export type Services<O> =
  | ServicesOf<O[keyof O]>
  | (O extends { readonly authorization: infer A } ? ServicesOf<A[keyof A]> : never)

type ServicesOf<F> = F extends (...args: never) => infer A
  ? A extends Effect.Effect<infer _A, unknown, infer R> ? R : never
  : never

/**
 * Nothing but the options in `Known`: where options are captured as they are, the compiler would not name a misspelt
 * one.
 *
 * @category models
 */
export type Only<O, Known> = O & { readonly [K in Exclude<keyof O, keyof Known>]: never }
