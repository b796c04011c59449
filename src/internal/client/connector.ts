/**
 * What the connectors of both SDK generations do alike. A generation is a value ({@link Sdk}); {@link make} makes its
 * four connectors.
 *
 *   connector -> (identity, handle) -> plan: how to get a transport -> opener of the generation -> session.ts: open
 */
import type {
  CreateMessageRequestParams,
  CreateMessageResult,
  CreateMessageResultWithTools,
  ElicitRequestFormParams,
  ElicitResult,
  Root
} from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type {
  Connector,
  FetchLike,
  HttpOptions,
  Only,
  Options,
  PerIdentity,
  ServerLike,
  Services,
  SessionHandle,
  StdioOptions
} from "../../Connector.ts"
import { type Credentials, Identity } from "../../Identity.ts"
import type { McpSession } from "../../McpSession.ts"
import type { McpSessionError } from "../../McpSessionError.ts"
import * as Scrub from "../scrub.ts"
import * as Fetch from "./fetch.ts"
import type { ClientLike, MessageLike, TransportLike } from "./sdk.ts"
import type { OpenOptions, OpenTransport } from "./session.ts"
import * as Stdio from "./stdio.ts"

/**
 * A generation of the SDK, with clients `C`, server transports `T` and options of its own `N`.
 */
export interface Sdk<C extends ClientLike, T, N> {
  readonly stdio: {
    readonly readBuffer: () => Stdio.ReadBufferLike
    readonly serialize: (message: never) => string
    readonly environment: () => Readonly<Record<string, string>>
  }
  readonly http: MakeTransport
  readonly sse: MakeTransport
  readonly pair: () => readonly [TransportLike, T]
  /** How one connector opens its sessions. What it learns of the server stays with the opener. */
  readonly opener: (transport: TransportKind, options: Options<unknown>, own: N | undefined) => Opener<C>
}

type MakeTransport = (
  url: URL,
  init: { readonly fetch: FetchLike }
) => TransportLike & { terminateSession?(): Promise<void> }

export type TransportKind = "stdio" | "http" | "sse" | "inProcess"

/**
 * Opens one session as planned.
 */
export type Opener<C> = <R>(
  plan: Plan<R>,
  handlers: Handlers
) => Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope | R>

/**
 * A session to be: what `session.ts` needs of all connectors.
 */
export type Plan<R> = Pick<
  OpenOptions<never, R>,
  "identity" | "handle" | "server" | "scrub" | "transport" | "connectTimeout" | "requestTimeout"
>

/**
 * The connectors of a generation.
 *
 * Their options are captured whole, so that the services of each function among them are found. They are read as if each
 * function needed all of those: what a function does not need is no harm to it.
 */
export const make = <C extends ClientLike, T, N = unknown>(sdk: Sdk<C, T, N>) => ({
  stdio: <O extends StdioOptions<unknown> & N>(
    options: Only<O, StdioOptions & N>
  ): Connector<Services<O>, C> => {
    const read = options as StdioOptions<Services<O>>
    return connector(read, stdio(read, sdk.stdio), sdk.opener("stdio", options, options))
  },
  http: <O extends HttpOptions<unknown> & N>(
    options: Only<O, HttpOptions & N>
  ): Connector<Services<O>, C> => {
    const read = options as HttpOptions<Services<O>>
    return connector(read, http(read, false, sdk.http), sdk.opener("http", options, options))
  },
  sse: <O extends HttpOptions<unknown>>(options: Only<O, HttpOptions>): Connector<Services<O>, C> => {
    const read = options as HttpOptions<Services<O>>
    return connector(read, http(read, true, sdk.sse), sdk.opener("sse", options, undefined))
  },
  inProcess: <R = never, O extends Options<unknown> = Options>(
    server: (identity: Identity) => Effect.Effect<ServerLike<T>, McpSessionError, R | Scope.Scope>,
    options?: Only<O, Options>
  ): Connector<R | Services<O>, C> => {
    const read: Options<Services<O>> = options as Options<Services<O>> | undefined ?? {}
    return connector(read, inProcess(read, server, sdk.pair), sdk.opener("inProcess", read, undefined))
  }
})

const connector = <RT, R, C>(
  options: Options<R>,
  plan: (identity: Identity, handle: SessionHandle) => Plan<RT>,
  open: Opener<C>
): Connector<RT | R, C> =>
(identity, handle) =>
  Effect.suspend(() => {
    const planned = plan(identity, handle)
    return Effect.flatMap(handlers(options, planned), (handlers) => open(planned, handlers))
  })

/**
 * What a server is told by default that it talks to.
 */
export const clientInfo = { name: "effect-mcp-sessions", version: "0.1.0" }

// -----------------------------------------------------------------------------
// Transports
// -----------------------------------------------------------------------------

const makePlan = <R>(
  options: Options<unknown>,
  server: string,
  identity: Identity,
  handle: SessionHandle,
  transport: (scrub: Scrub.Scrub) => Effect.Effect<OpenTransport, unknown, Scope.Scope | R>
): Plan<R> => {
  const scrub = Scrub.make()
  addCredentials(scrub, identity.credentials)
  return {
    identity,
    handle,
    server: options.name ?? server,
    scrub,
    transport: transport(scrub),
    connectTimeout: options.connectTimeout,
    requestTimeout: options.requestTimeout
  }
}

/**
 * A child process, talked to over its pipes.
 */
const stdio = <R>(
  options: StdioOptions<R>,
  sdk: Sdk<never, never, never>["stdio"]
) =>
(identity: Identity, handle: SessionHandle): Plan<R> => {
  const server = options.command.split(/[\\/]/).at(-1)!
  return makePlan(options, server, identity, handle, (scrub) =>
    Effect.gen(function*() {
      const runFork = Effect.runForkWith(yield* Effect.context<never>())
      const logged = Effect.annotateLogs({ server: options.name ?? server, session: identity.key })
      const env = yield* perIdentity(options.env, identity)
      for (const value of Object.values(env)) scrub.add(value, minimumSecret)
      const transport = yield* Stdio.make({
        command: options.command,
        args: options.args ?? [],
        env: { ...sdk.environment(), ...env },
        cwd: options.cwd,
        readBuffer: sdk.readBuffer(),
        serialize: sdk.serialize as (message: MessageLike) => string,
        onStderr: (line) => runFork(logged(Effect.logDebug(scrubLine(scrub, line))))
      })
      return { transport, pid: transport.pid }
    }))
}

/**
 * A transport over `fetch`. With `isStreamSession` its session is its GET stream, as in the SSE transport.
 */
const http = <R>(
  options: HttpOptions<R>,
  isStreamSession: boolean,
  transportTo: MakeTransport
) => {
  const url = new URL(options.url)
  return (identity: Identity, handle: SessionHandle): Plan<R> =>
    makePlan(options, url.host, identity, handle, (scrub) => {
      scrub.add(url.password)
      for (const value of url.searchParams.values()) scrub.add(value, minimumSecret)
      return Effect.gen(function*() {
        const runPromise = Effect.runPromiseWith(yield* Effect.context<never>())
        const { attach, fetch, streamFailure } = Fetch.make({
          fetch: options.fetch ?? globalFetch,
          headers: yield* headersOf(options, identity, handle, scrub),
          pause: () => runPromise(Effect.sleep("100 millis")),
          isStreamSession
        })
        const transport = transportTo(url, { fetch })
        return {
          transport,
          attach,
          ...(isStreamSession ? { failure: streamFailure } : {}),
          sessionful: isStreamSession,
          terminate: async () => transport.terminateSession?.()
        }
      })
    })
}

/**
 * A server in this process, connected to one end of a pair of transports.
 */
const inProcess = <R, T>(
  options: Options<unknown>,
  server: (identity: Identity) => Effect.Effect<ServerLike<T>, McpSessionError, R | Scope.Scope>,
  pair: () => readonly [TransportLike, T]
) =>
(identity: Identity, handle: SessionHandle): Plan<R> =>
  makePlan(options, "in-process", identity, handle, () =>
    Effect.gen(function*() {
      const instance = yield* server(identity)
      const [transport, theirs] = pair()
      yield* Effect.tryPromise({ try: () => instance.connect(theirs), catch: (error) => error })
      return { transport }
    }))

// -----------------------------------------------------------------------------
// Requests of the server
// -----------------------------------------------------------------------------

/**
 * The handlers of the options as promises, with the context of the connector.
 */
export interface Handlers {
  readonly capabilities: {
    readonly sampling?: Record<string, never>
    readonly elicitation?: Record<string, never>
    readonly roots?: Record<string, never>
  }
  readonly sampling: Handler<CreateMessageRequestParams, CreateMessageResult | CreateMessageResultWithTools> | undefined
  readonly elicitation: Handler<ElicitRequestFormParams, ElicitResult> | undefined
  readonly roots: Handler<unknown, { roots: Array<Root> }> | undefined
}

type Handler<P, A> = (params: P, signal: AbortSignal) => Promise<A>

const handlers = <R>(
  { elicitation, roots, sampling }: Options<R>,
  { identity, server }: Pick<Plan<never>, "identity" | "server">
): Effect.Effect<Handlers, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    const handler =
      <P, A>(method: string, f: (params: P) => Effect.Effect<A, unknown, R>): Handler<P, A> => (params, signal) =>
        runPromise(
          Effect.tapCause(
            Effect.suspend(() => f(params)),
            (cause) => Effect.logWarning(`${method} of "${server}" could not be answered`, cause)
          ),
          { signal }
        ).catch(() => Promise.reject(unanswered))
    return {
      capabilities: {
        ...(sampling === undefined ? {} : { sampling: {} }),
        ...(elicitation === undefined ? {} : { elicitation: {} }),
        ...(roots === undefined ? {} : { roots: {} })
      },
      sampling: sampling && handler("sampling/createMessage", (params) => sampling(params, identity)),
      elicitation: elicitation && handler("elicitation/create", (params) => elicitation(params, identity)),
      roots: roots && handler("roots/list", () => Effect.map(roots(identity), (found) => ({ roots: [...found] })))
    }
  })

// What the server is told: the reason stays here
const unanswered = new Error("The client could not answer this request")

// -----------------------------------------------------------------------------
// Identities
// -----------------------------------------------------------------------------

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
  options: HttpOptions<R>,
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
const globalFetch: FetchLike = (url, init) => fetch(url, init)

// What is shorter than this in a header or an environment is rather a flag than a secret
const minimumSecret = 8

const addCredentials = (scrub: Scrub.Scrub, credentials: Option.Option<Credentials>): void => {
  if (Option.isNone(credentials)) return
  scrub.add(Redacted.value(credentials.value.header))
  const token = Redacted.value(credentials.value.token)
  scrub.add(token)
  if (credentials.value.scheme !== "basic") return
  // RFC 7617: a user and a password, which an upstream may quote on their own
  scrub.add(Buffer.from(token, "base64").toString().replace(/^[^:]*:/, ""), 4)
}

// A secret that the limit has cut in two would not be found
const scrubLine = (scrub: Scrub.Scrub, line: string): string =>
  scrub(line.length < Stdio.stderrLineLimit ? line : line.slice(0, line.length - scrub.longest()))
