/**
 * What a pool calls to open a session, what it gives along, and the options that all connectors have in common.
 */
import type { Client } from "@modelcontextprotocol/sdk/client/index.js"
import type {
  CreateMessageRequestParams,
  CreateMessageResult,
  CreateMessageResultWithTools,
  ElicitRequestFormParams,
  ElicitResult,
  Implementation,
  Root
} from "@modelcontextprotocol/sdk/types.js"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Credentials, Identity } from "./Identity.ts"
import type { McpSession } from "./McpSession.ts"
import type { McpSessionError } from "./McpSessionError.ts"

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
export type Connector<R = never, C = Client> = (
  identity: Identity,
  handle: SessionHandle
) => Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope | R>

/**
 * The SDK's `McpServer` or `Server`, of the generation whose transport is `T`.
 *
 * @category models
 */
export interface ServerLike<in T> {
  /** Called once, with the end of a pair of transports that the session has the other of. */
  connect(transport: T): Promise<void>
}

/**
 * A record, or one that depends on the identity, and may take an Effect to find out.
 *
 * @category models
 */
export type PerIdentity<R = never> =
  | Readonly<Record<string, string>>
  | ((
    identity: Identity
  ) => Readonly<Record<string, string>> | Effect.Effect<Readonly<Record<string, string>>, McpSessionError, R>)

/**
 * What every connector takes.
 *
 * @category models
 */
export interface Options<out R = never> {
  /** What errors and logs call the server. By default its host or its command. */
  readonly name?: string | undefined
  /** What the server is told that it talks to. Default: this library. */
  readonly clientInfo?: Implementation | undefined
  /**
   * How long opening a session may take, else the open fails with `RequestTimeout`. By default a connector has no such
   * bound of its own: the pool has one, `SessionPool.layer({ connectTimeout })`, 30 seconds unless it says otherwise.
   */
  readonly connectTimeout?: Duration.Input | undefined
  /** How long a call may take that says nothing else, 60 seconds by default. */
  readonly requestTimeout?: Duration.Input | undefined
  /**
   * Answers the server's `sampling/createMessage`, and declares that this client can. A failure is logged, and told to
   * the server as an internal error without its text. Interrupted when the server cancels the request or the session
   * ends.
   */
  readonly sampling?:
    | ((
      params: CreateMessageRequestParams,
      identity: Identity
    ) => Effect.Effect<CreateMessageResult | CreateMessageResultWithTools, unknown, R>)
    | undefined
  /** The same for `elicitation/create`, in form mode. */
  readonly elicitation?:
    | ((params: ElicitRequestFormParams, identity: Identity) => Effect.Effect<ElicitResult, unknown, R>)
    | undefined
  /** The same for `roots/list`. */
  readonly roots?: ((identity: Identity) => Effect.Effect<ReadonlyArray<Root>, unknown, R>) | undefined
}

/**
 * How a connector starts a server as a child process, and talks to it over its stdin and stdout.
 *
 * @category models
 */
export interface StdioOptions<out R = never> extends Options<R> {
  /** The program to start. Without a path it is looked for in PATH; no shell reads it. */
  readonly command: string
  /** What the program is started with. By default nothing. */
  readonly args?: ReadonlyArray<string> | undefined
  /**
   * Added to the six variables that the SDK deems safe to pass on (HOME, LOGNAME, PATH, SHELL, TERM, USER). The rest of
   * this process' environment stays here.
   */
  readonly env?: PerIdentity<R> | undefined
  /** The directory it is started in. By default that of this process. */
  readonly cwd?: string | undefined
}

/**
 * How a connector reaches a server over HTTP.
 *
 * @category models
 */
export interface HttpOptions<out R = never> extends Options<R> {
  /** Where the server is. A string that is no URL is `InvalidOptions`, or a failure of the open. */
  readonly url: string | URL
  /**
   * Asked for before each request, with the newest credentials in the identity: what it returns may change from one to
   * the next.
   */
  readonly headers?: PerIdentity<R> | undefined
  /**
   * Sends the identity's credentials on, in the header they came in and as they came: the newest that were presented
   * for this identity, on each request. The session stays the same. Default: false.
   */
  readonly forwardCredentials?: boolean | undefined
  /** Default: the global `fetch`. */
  readonly fetch?: FetchLike | undefined
}

/**
 * The services that the functions among a connector's options need: each asks for its own, and the pool's layer for all.
 *
 * @category models
 */
export type Services<O> = ServicesOf<O[keyof O]>

type ServicesOf<F> = F extends (...args: never) => infer A
  ? A extends Effect.Effect<infer _A, unknown, infer R> ? R : never
  : never

/**
 * Nothing but the options in `Known`: where options are captured as they are, the compiler would not name a misspelt one.
 *
 * @category models
 */
export type Only<O, Known> = O & { readonly [K in Exclude<keyof O, keyof Known>]: never }
