/**
 * Opens sessions with `@modelcontextprotocol/sdk`: over stdio, Streamable HTTP, SSE, and in process.
 *
 * A connector is what `SessionPool.layer({ connect })` takes: a function of an identity that opens one session for it
 * and closes it with the scope. What it runs (handlers, headers) runs with the services of the pool.
 */
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js"
import { getDefaultEnvironment } from "@modelcontextprotocol/sdk/client/stdio.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js"
import { ReadBuffer, serializeMessage } from "@modelcontextprotocol/sdk/shared/stdio.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import {
  type ClientCapabilities,
  type CreateMessageRequestParams,
  CreateMessageRequestSchema,
  type CreateMessageResult,
  type CreateMessageResultWithTools,
  type ElicitRequestFormParams,
  ElicitRequestSchema,
  type ElicitResult,
  type Implementation,
  type JSONRPCMessage,
  ListRootsRequestSchema,
  type Root
} from "@modelcontextprotocol/sdk/types.js"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type Credentials, Identity } from "./Identity.ts"
import * as Http from "./internal/http.ts"
import * as Scrub from "./internal/scrub.ts"
import * as Stdio from "./internal/stdio.ts"
import { McpSession, type McpSessionError, type OpenOptions } from "./McpSession.ts"
import type { SessionHandle } from "./SessionPool.ts"

/**
 * Opens a session for an identity; its scope closes it.
 *
 * @category models
 */
export type Connector<R = never> = (
  identity: Identity,
  handle: SessionHandle
) => Effect.Effect<McpSession, McpSessionError, Scope.Scope | R>

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
export interface Options<RS = never, RE = never, RR = never> {
  /** What errors and logs call the server. By default its host or its command. */
  readonly name?: string | undefined
  /** What the server is told that it talks to. Default: this library. */
  readonly clientInfo?: Implementation | undefined
  /** How long opening a session may take, 30 seconds by default. */
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
    ) => Effect.Effect<CreateMessageResult | CreateMessageResultWithTools, unknown, RS>)
    | undefined
  /** The same for `elicitation/create`, in form mode. */
  readonly elicitation?:
    | ((params: ElicitRequestFormParams, identity: Identity) => Effect.Effect<ElicitResult, unknown, RE>)
    | undefined
  /** The same for `roots/list`. */
  readonly roots?: ((identity: Identity) => Effect.Effect<ReadonlyArray<Root>, unknown, RR>) | undefined
}

/**
 * @category models
 */
export interface StdioOptions<RV = never, RS = never, RE = never, RR = never> extends Options<RS, RE, RR> {
  readonly command: string
  readonly args?: ReadonlyArray<string> | undefined
  /**
   * Added to the six variables that the SDK deems safe to pass on (HOME, LOGNAME, PATH, SHELL, TERM, USER). The rest of
   * this process' environment stays here.
   */
  readonly env?: PerIdentity<RV> | undefined
  readonly cwd?: string | undefined
}

/**
 * @category models
 */
export interface HttpOptions<RV = never, RS = never, RE = never, RR = never> extends Options<RS, RE, RR> {
  readonly url: string | URL
  /**
   * Asked for before each request, with the newest credentials in the identity: what it returns may change from one to
   * the next.
   */
  readonly headers?: PerIdentity<RV> | undefined
  /**
   * Sends the identity's credentials on, in the header they came in and as they came: the newest that were presented
   * for this identity, on each request. The session stays the same. Default: false.
   */
  readonly forwardCredentials?: boolean | undefined
  /** Default: the global `fetch`. */
  readonly fetch?: Http.FetchLike | undefined
}

/**
 * Starts a server as a child process and talks to it over its pipes.
 *
 * When the session's scope has closed the child is gone, with everything that it has started: its stdin is closed, after
 * 1.5 seconds its process group gets SIGTERM, after another 1.5 seconds SIGKILL. It is also killed when this process
 * exits. When it dies on its own its session ends at that moment, with the calls in flight. Its stderr goes to the log,
 * at debug level, without the identity's credentials and the values of `env`.
 *
 * @category constructors
 */
export const stdio = <RV = never, RS = never, RE = never, RR = never>(
  options: StdioOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> => {
  const server = options.name ?? options.command.split(/[\\/]/).at(-1)!
  return Effect.fnUntraced(function*(identity, handle) {
    const scrub = makeScrub(identity)
    const runFork = Effect.runForkWith(yield* Effect.context<never>())
    const logged = Effect.annotateLogs({ server, session: identity.key })
    const transport = Effect.gen(function*() {
      const env = yield* perIdentity(options.env, identity)
      for (const value of Object.values(env)) scrub.add(value, minimumSecret)
      const piped = yield* Stdio.make({
        command: options.command,
        args: options.args ?? [],
        env: { ...getDefaultEnvironment(), ...env },
        cwd: options.cwd,
        readBuffer: new ReadBuffer(),
        serialize: (message) => serializeMessage(message as JSONRPCMessage),
        onStderr: (line) => runFork(logged(Effect.logDebug(scrubLine(scrub, line))))
      })
      return { transport: piped, pid: piped.pid }
    })
    return yield* open(options, { identity, handle, server, scrub, transport })
  })
}

/**
 * Talks to a server over Streamable HTTP.
 *
 * When the session's scope closes the server is told so (DELETE, for two seconds at most).
 *
 * @category constructors
 */
export const http = <RV = never, RS = never, RE = never, RR = never>(
  options: HttpOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> => {
  const url = new URL(options.url)
  const server = options.name ?? url.host
  return Effect.fnUntraced(function*(identity, handle) {
    const scrub = makeScrub(identity, url)
    const headers = yield* headersOf(options, identity, handle, scrub)
    const transport = Effect.sync(() => {
      const { attach, fetch } = Http.make({ fetch: options.fetch ?? globalFetch, headers, isStreamSession: false })
      const streamable = new StreamableHTTPClientTransport(url, { fetch })
      return { transport: streamable, attach, terminate: () => streamable.terminateSession() }
    })
    return yield* open(options, { identity, handle, server, scrub, transport })
  })
}

/**
 * Talks to a server over HTTP with server-sent events, the transport that Streamable HTTP has replaced.
 *
 * Its session is its stream: when that breaks the session ends, where the SDK would go on with a new and uninitialized
 * one.
 *
 * @category constructors
 */
export const sse = <RV = never, RS = never, RE = never, RR = never>(
  options: HttpOptions<RV, RS, RE, RR>
): Connector<RV | RS | RE | RR> => {
  const url = new URL(options.url)
  const server = options.name ?? url.host
  return Effect.fnUntraced(function*(identity, handle) {
    const scrub = makeScrub(identity, url)
    const headers = yield* headersOf(options, identity, handle, scrub)
    const transport = Effect.sync(() => {
      const { attach, fetch } = Http.make({ fetch: options.fetch ?? globalFetch, headers, isStreamSession: true })
      return { transport: new SSEClientTransport(url, { fetch }), attach, sessionful: true }
    })
    return yield* open(options, { identity, handle, server, scrub, transport })
  })
}

/**
 * An SDK server in this process, one for each session. It is closed with the session.
 *
 * @category constructors
 */
export const inProcess = <RV = never, RS = never, RE = never, RR = never>(
  server: (identity: Identity) => Effect.Effect<ServerLike, McpSessionError, RV | Scope.Scope>,
  options: Options<RS, RE, RR> = {}
): Connector<RV | RS | RE | RR> =>
(identity, handle) => {
  const transport = Effect.gen(function*() {
    const instance = yield* server(identity)
    const [ours, theirs] = InMemoryTransport.createLinkedPair()
    yield* Effect.tryPromise({ try: () => instance.connect(theirs), catch: (error) => error })
    return { transport: ours as Transport }
  })
  const scrub = makeScrub(identity)
  return open(options, { identity, handle, server: options.name ?? "in-process", scrub, transport })
}

/**
 * The SDK's `McpServer` or `Server`.
 *
 * @category models
 */
export interface ServerLike {
  connect(transport: Transport): Promise<void>
}

// -----------------------------------------------------------------------------
// Internals
// -----------------------------------------------------------------------------

const open = <RT, RS, RE, RR>(
  options: Options<RS, RE, RR>,
  session: Pick<OpenOptions<Client, RT>, "identity" | "handle" | "server" | "scrub" | "transport">
): Effect.Effect<McpSession, McpSessionError, Scope.Scope | RT | RS | RE | RR> =>
  Effect.flatMap(Effect.context<RS | RE | RR>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    const answer = <A>(method: string, effect: Effect.Effect<A, unknown, RS | RE | RR>, signal: AbortSignal) =>
      runPromise(
        effect.pipe(
          Effect.tapCause((cause) =>
            Effect.logWarning(`${method} of "${session.server}" could not be answered`, cause)
          ),
          Effect.mapError(() => unanswered)
        ),
        { signal }
      ).catch(() => Promise.reject(unanswered))
    const makeClient = () => {
      const { elicitation, roots, sampling } = options
      const capabilities: ClientCapabilities = {
        ...(sampling === undefined ? {} : { sampling: {} }),
        ...(elicitation === undefined ? {} : { elicitation: {} }),
        ...(roots === undefined ? {} : { roots: {} })
      }
      const client = new Client(options.clientInfo ?? { name: "effect-mcp-sessions", version: "0.1.0" }, {
        capabilities
      })
      if (sampling !== undefined) {
        client.setRequestHandler(
          CreateMessageRequestSchema,
          ({ params }, { signal }) => answer("sampling/createMessage", sampling(params, session.identity), signal)
        )
      }
      if (elicitation !== undefined) {
        client.setRequestHandler(
          ElicitRequestSchema,
          ({ params }, { signal }) =>
            // The SDK refuses any other mode before it comes here: this client declares none
            answer("elicitation/create", elicitation(params as ElicitRequestFormParams, session.identity), signal)
        )
      }
      if (roots !== undefined) {
        client.setRequestHandler(
          ListRootsRequestSchema,
          async (_, { signal }) => ({ roots: [...await answer("roots/list", roots(session.identity), signal)] })
        )
      }
      return client
    }
    return McpSession.open({
      ...session,
      client: makeClient,
      connect: (client, wire, callOptions) => client.connect(wire as Transport, callOptions),
      connectTimeout: options.connectTimeout,
      requestTimeout: options.requestTimeout
    })
  })

// What the server is told: the reason stays here
const unanswered = new Error("The client could not answer this request")

const perIdentity = <R>(
  record: PerIdentity<R> | undefined,
  identity: Identity
): Effect.Effect<Readonly<Record<string, string>>, McpSessionError, R> => {
  const found = typeof record === "function" ? record(identity) : record ?? {}
  return Effect.isEffect(found) ? found : Effect.succeed(found)
}

/**
 * The headers of the coming request. What goes out in one is from then on taken out of errors.
 */
const headersOf = <R>(
  options: HttpOptions<R, never, never, never> | HttpOptions<R, unknown, unknown, unknown>,
  identity: Identity,
  handle: SessionHandle,
  scrub: Scrub.Scrub
): Effect.Effect<() => Promise<Readonly<Record<string, string>>>, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    const headers = Effect.gen(function*() {
      const credentials = Option.orElse(yield* handle.credentials, () => identity.credentials)
      const current = new Identity({ ...identity, credentials }, { disableChecks: true })
      addCredentials(scrub, credentials)
      const own = yield* perIdentity(options.headers, current)
      for (const value of Object.values(own)) scrub.add(value, minimumSecret)
      if (options.forwardCredentials !== true || Option.isNone(credentials)) return own
      return { ...own, [credentials.value.name]: Redacted.value(credentials.value.header) }
    })
    return () => runPromise(headers)
  })

// Late-bound, so that tests and instrumentation that replace the global one are heard
const globalFetch: Http.FetchLike = (url, init) => fetch(url, init)

// What is shorter than this in a header or an environment is rather a flag than a secret
const minimumSecret = 8

const makeScrub = (identity: Identity, url?: URL): Scrub.Scrub => {
  const scrub = Scrub.make()
  addCredentials(scrub, identity.credentials)
  if (url !== undefined) {
    scrub.add(url.password)
    for (const value of url.searchParams.values()) scrub.add(value, minimumSecret)
  }
  return scrub
}

const addCredentials = (scrub: Scrub.Scrub, credentials: Option.Option<Credentials>): void => {
  if (Option.isNone(credentials)) return
  scrub.add(Redacted.value(credentials.value.header))
  scrub.add(Redacted.value(credentials.value.token))
}

// A secret that the limit has cut in two would not be found
const scrubLine = (scrub: Scrub.Scrub, line: string): string =>
  scrub(line.length < Stdio.stderrLineLimit ? line : line.slice(0, -scrub.longest()))
