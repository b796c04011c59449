/**
 * What the connectors of both SDK generations do alike. A generation is a value ({@link Sdk}); {@link make} makes its
 * five connectors.
 *
 *   connector -> (identity, handle) -> plan: how to get a transport -> opener of the generation -> session.ts: open
 */
import type {
  CreateMessageRequestParams,
  CreateMessageResult,
  CreateMessageResultWithTools,
  ElicitRequestFormParams,
  ElicitRequestURLParams,
  ElicitResult,
  Root
} from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { Authorization } from "../../Authorization.ts"
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
  Standby as StandbyOptions,
  StdioOptions
} from "../../Connector.ts"
import { type CredentialScheme, Identity, type SessionKey } from "../../Identity.ts"
import { McpSessionError, PreparationFailed } from "../../McpSessionError.ts"
import type { McpSession } from "../../Session.ts"
import * as Apart from "../apart.ts"
import { namesAndPlaces } from "../places.ts"
import * as Scrub from "../scrub.ts"
import * as Secrets from "../secrets.ts"
import * as Time from "../time.ts"
import { version } from "../version.ts"
import * as Fetch from "./fetch.ts"
import { KnownSecrets } from "./knownSecrets.ts"
import * as ConnectorOptions from "./options.ts"
import * as Refusals from "./refusals.ts"
import { type ClientLike, mayBeDeaf, type MessageLike, type TransportLike } from "./sdk.ts"
import type { OpenOptions, OpenTransport } from "./session.ts"
import * as Standby from "./standby.ts"
import * as Stdio from "./stdio.ts"

/**
 * A generation of the SDK, with clients `C`, server transports `T` and options of its own `N`.
 */
export interface Sdk<C extends ClientLike, T, N> {
  /** Its module, as errors call it. */
  readonly module: string
  readonly options: { readonly [K in TransportKind]: ConnectorOptions.Declared }
  readonly stdio: {
    readonly readBuffer: () => Stdio.ReadBufferLike
    readonly serialize: (message: never) => string
    readonly environment: () => Readonly<Record<string, string>>
  }
  readonly http: MakeTransport
  readonly authorized: Authorized
  readonly sse: MakeTransport
  readonly pair: () => readonly [TransportLike, T]
  /** Whether a server may be one that has `initialize`. */
  readonly mayBeOlder: (own: N) => boolean
  /** How one connector opens its sessions. What it learns of the server stays with the opener. */
  readonly opener: (transport: TransportKind, options: Options<unknown>, own: N | undefined) => Opener<C>
}

/** A `fetch` that brings tokens along. This room has no way to them: they come with the SDK. */
type Authorized = <R>(options: {
  readonly authorization: Authorization<R>
  readonly url: URL
  readonly fetch: FetchLike
  readonly identity: Identity
  readonly handle: SessionHandle
  /** What errors call the server. */
  readonly server: string
  /** Of the session: knows each token for as long as it is used. */
  readonly scrub: Scrub.Scrub
  /** What a failure is to whoever has made the request. */
  readonly prepare: <A, E2, R2>(effect: Effect.Effect<A, E2, R2>) => Effect.Effect<A, McpSessionError, R2>
}) => Effect.Effect<FetchLike, McpSessionError, R | Scope.Scope>

type MakeTransport = (
  url: URL,
  init: { readonly fetch: FetchLike }
) => TransportLike & { terminateSession?(): Promise<void> }

export type TransportKind = "stdio" | "http" | "sse" | "inProcess" | "fromTransport"

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
export interface Plan<R> extends
  Pick<
    OpenOptions<never, R>,
    "identity" | "handle" | "server" | "scrub" | "transport" | "connectTimeout" | "requestTimeout" | "listTimeToLive"
  >
{
  /** Who answers what the server asks. */
  readonly owner: Effect.Effect<Identity>
  /** The session is this identity's from now on: so are its logs, and its texts show none of the new secrets. */
  readonly adopt: (identity: Identity) => void
}

/**
 * The connectors of a generation.
 *
 * Their options are captured whole, so that the services of each function among them are found. They are read as if
 * each function needed all of those: what a function does not need is no harm to it.
 */
export const make = <C extends ClientLike, T, N = unknown>(sdk: Sdk<C, T, N>) => ({
  stdio: <O extends StdioOptions<unknown> & N>(
    options: Only<O, StdioOptions & N>
  ): Connector<Services<O>, C> => {
    ConnectorOptions.check(sdk.options.stdio, "stdio", options)
    ConnectorOptions.checkStandby(sdk.module, options)
    const read = options as StdioOptions<Services<O>>
    const plan = stdio(read, sdk.stdio)
    const open = sdk.opener("stdio", options, options)
    return read.standby === undefined ? connector(read, plan, open) : standby(read, read.standby, plan, open)
  },
  http: <O extends HttpOptions<unknown> & N>(
    options: Only<O, HttpOptions & N>
  ): Connector<Services<O>, C> => {
    ConnectorOptions.check(sdk.options.http, "http", options)
    ConnectorOptions.checkAuthorization(sdk.module, "http", options)
    const read = options as HttpOptions<Services<O>>
    const older = { plan: http(read, true, sdk.sse, sdk.authorized), open: sdk.opener("sse", options, undefined) }
    const fallback = sdk.mayBeOlder(options) ? older : undefined
    return connector(read, http(read, false, sdk.http, sdk.authorized), sdk.opener("http", options, options), fallback)
  },
  sse: <O extends HttpOptions<unknown>>(options: Only<O, HttpOptions>): Connector<Services<O>, C> => {
    ConnectorOptions.check(sdk.options.sse, "sse", options)
    ConnectorOptions.checkAuthorization(sdk.module, "sse", options)
    const read = options as HttpOptions<Services<O>>
    return connector(read, http(read, true, sdk.sse, sdk.authorized), sdk.opener("sse", options, undefined))
  },
  inProcess: <R = never, O extends Options<unknown> = Options>(
    server: (identity: Identity) => Effect.Effect<ServerLike<T>, unknown, R | Scope.Scope>,
    options?: Only<O, Options>
  ): Connector<R | Services<O>, C> => {
    ConnectorOptions.checkFunction(sdk.module, "inProcess", "server", server)
    if (options !== undefined) ConnectorOptions.check(sdk.options.inProcess, "inProcess", options)
    const read: Options<Services<O>> = options as Options<Services<O>> | undefined ?? {}
    return connector(read, inProcess(read, server, sdk.pair), sdk.opener("inProcess", read, undefined))
  },
  fromTransport: <R = never, O extends Options<unknown> & N = Options & N>(
    transport: (identity: Identity) => Effect.Effect<T, unknown, R | Scope.Scope>,
    options?: Only<O, Options & N>
  ): Connector<R | Services<O>, C> => {
    ConnectorOptions.checkFunction(sdk.module, "fromTransport", "transport", transport)
    const given = options === undefined ? {} : options
    ConnectorOptions.check(sdk.options.fromTransport, "fromTransport", given)
    const read = given as Options<Services<O>>
    return connector(read, fromTransport(read, transport), sdk.opener("fromTransport", read, given as N))
  }
})

const connector = <RT, R, C>(
  options: Options<R>,
  plan: (identity: Identity, handle: SessionHandle) => Plan<RT>,
  open: Opener<C>,
  older?: Older<RT, C>
): Connector<RT | R, C> => {
  const withFallback = older === undefined ? undefined : makeFallback()
  return (identity, handle) =>
    Effect.suspend(() => {
      const planned = plan(identity, handle)
      const opened = openAs(options, planned, open)
      if (withFallback === undefined) return logged(planned)(opened)
      const olderOne = Effect.suspend(() => openAs(options, older!.plan(identity, handle), older!.open))
      return logged(planned)(withFallback(opened, olderOne))
    })
}

const openAs = <RT, R, C>(options: Options<R>, plan: Plan<RT>, open: Opener<C>) =>
  Effect.flatMap(KnownSecrets, (secrets) => {
    for (const secret of secrets) plan.scrub.add(secret)
    return Effect.flatMap(handlers(options, plan), (handlers) => open(plan, handlers))
  })

// Once, however often a generation has tried. The message has no secrets in it. That somebody has to be asked is no
// fault.
const logged =
  ({ identity, server }: Pick<Plan<never>, "identity" | "server">) =>
  <A, R>(open: Effect.Effect<A, McpSessionError, R>): Effect.Effect<A, McpSessionError, R> =>
    Effect.tapError(
      open,
      (error) =>
        Effect.annotateLogs(
          error.reason._tag === "ConsentRequired" ? Effect.logDebug(error.message) : Effect.logWarning(error.message),
          { server, session: identity.key }
        )
    )

/**
 * A connector with sessions that wait for their owners: they belong to nobody, until they are adopted.
 */
const standby = <RT, R, C>(
  options: Options<R>,
  given: StandbyOptions,
  plan: (identity: Identity, handle: SessionHandle) => Plan<RT>,
  open: Opener<C>
): Connector<RT | R, C> => {
  const { idleTimeToLive, size, startTimeout } = ConnectorOptions.parseStandby(given)
  return Standby.make({
    size,
    idleTimeToLive,
    cold: connector(options, plan, open),
    start: (onLost) =>
      Effect.suspend(() => {
        const owner = Deferred.makeUnsafe<Identity>()
        let owned: SessionHandle | undefined
        let isLost = false
        const planned = {
          ...plan(nobody, {
            retire: (reason) =>
              Effect.suspend(() => {
                isLost = true
                onLost()
                return owned === undefined ? Effect.void : owned.retire(reason)
              }),
            credentials: Effect.suspend(() => owned === undefined ? Effect.succeedNone : owned.credentials)
          }),
          connectTimeout: startTimeout,
          owner: Deferred.await(owner)
        }
        return Effect.map(
          openAs(options, planned, open).pipe(
            logged(planned),
            Effect.tap(warmedUp(given.warmUp, startTimeout, planned.server))
          ),
          (session): Standby.Unowned<McpSession<C>> => ({
            isLost: () => isLost,
            ping: signOfLife(session, planned.server),
            adopt: (identity, handle) => {
              owned = handle
              planned.adopt(identity)
              Deferred.doneUnsafe(owner, Exit.succeed(identity))
              return Object.assign(session, { identity })
            }
          })
        )
      })
  })
}

// Its failure may quote what a call was given, or has answered. The child is closed whether or not it has ended.
const warmedUp =
  (warmUp: StandbyOptions["warmUp"], startTimeout: number, server: string) => (session: McpSession<unknown>) =>
    warmUp === undefined ? Effect.void : Apart.run(Effect.suspend(() => warmUp(session))).pipe(
      Effect.timeout(startTimeout),
      Effect.tapCause((cause) =>
        Effect.annotateLogs(Effect.logWarning("A child on standby could not be warmed up", namesAndPlaces(cause)), {
          server
        })
      )
    )

// A refusal is one, too
const signOfLife = (session: Pick<McpSession<unknown>, "ping">, server: string) =>
  session.ping({ timeout: "1 second" }).pipe(
    Effect.catchIf(({ reason }) => reason._tag === "ProtocolFailure", () => Effect.void),
    Effect.tapError(({ message }) =>
      Effect.annotateLogs(Effect.logWarning(`A child on standby is of no use: ${message}`), { server })
    )
  )

// Its key is none that an identity can have: no identity's memory is shared with those who wait
const nobody = new Identity({
  key: "on standby" as SessionKey,
  credentials: Option.none(),
  shared: false,
  verified: false
}, { disableChecks: true })

/** How a server is talked to that does not know the newer transport. */
interface Older<R, C> {
  readonly plan: (identity: Identity, handle: SessionHandle) => Plan<R>
  readonly open: Opener<C>
}

// 2025-11-25, basic/transports#backwards-compatibility: a client that gets 400, 404 or 405 for its `initialize` issues
// a GET to the same URL, and takes its stream for one of the older transport if `endpoint` is its first event.
// 2026-07-28 excepts a JSON-RPC error that the client makes sense of: that is a `ProtocolFailure` here.
const isNoEndpoint = ({ reason }: McpSessionError): boolean =>
  reason._tag === "HttpFailure" && [400, 404, 405].includes(reason.status)

// Of a server that speaks the older transport, and not now, or not to this caller
const isOlder = (error: McpSessionError | undefined): error is McpSessionError => {
  if (error === undefined) return false
  const { reason } = error
  return reason._tag === "Unauthorized" || reason._tag === "Forbidden" ||
    (reason._tag === "HttpFailure" && (reason.status === 429 || reason.status >= 500))
}

/**
 * Falls back to the older transport, and begins with it for an hour where it is what the server speaks. When that fails
 * the newer one is tried again: the server may be another by now.
 */
const makeFallback = () => {
  let olderUntil = -Infinity

  return <A, R>(
    newer: Effect.Effect<A, McpSessionError, R>,
    older: Effect.Effect<A, McpSessionError, R>
  ): Effect.Effect<A, McpSessionError, R> =>
    Clock.clockWith((clock) => {
      const now = Time.monotonic(clock)()
      // A server of neither kind may stream something else, and for ever
      const tried = Effect.timeoutOrElse(older, { duration: "10 seconds", orElse: () => Effect.fail(undefined) })
      const opened = Effect.catchIf(newer, isNoEndpoint, (refused) =>
        tried.pipe(
          // What it has refused tells more than how that ended
          Effect.mapError((error) => isOlder(error) ? error : refused),
          Effect.tap(() => Effect.sync(() => olderUntil = now + hour))
        ))
      if (now >= olderUntil) return opened
      const forget = Effect.sync(() => olderUntil = -Infinity)
      return tried.pipe(
        Effect.onInterrupt(() => forget),
        Effect.catch((error) => isOlder(error) ? Effect.fail(error) : Effect.andThen(forget, opened))
      )
    })
}

const hour = 60 * 60_000

/**
 * What a server is told by default that it talks to.
 */
export const clientInfo = { name: "effect-mcp-sessions", version }

// -----------------------------------------------------------------------------
// Transports
// -----------------------------------------------------------------------------

const makePlan = <R>(
  options: Options<unknown>,
  { secrets = [], server }: { readonly server: string; readonly secrets?: ReadonlyArray<string> },
  identity: Identity,
  handle: SessionHandle,
  transport: (scrub: Scrub.Scrub, name: string) => Effect.Effect<OpenTransport, unknown, Scope.Scope | R>
): Plan<R> => {
  const scrub = Scrub.make()
  for (const secret of [...secrets, ...Secrets.ofCredentials(identity.credentials)]) scrub.add(secret)
  const name = options.name ?? scrub(server)
  return {
    identity,
    handle,
    server: name,
    scrub,
    transport: transport(scrub, name),
    connectTimeout: options.connectTimeout,
    requestTimeout: options.requestTimeout,
    listTimeToLive: options.listTimeToLive,
    owner: Effect.succeed(identity),
    adopt: () => {}
  }
}

/**
 * A child process, talked to over its pipes.
 */
const stdio = <R>(
  options: StdioOptions<R>,
  sdk: Sdk<never, never, never>["stdio"]
) => {
  const file = options.command.split(/[\\/]/).at(-1)!
  const secrets = [
    ...Secrets.ofArguments([file]),
    ...Secrets.ofArguments(options.args ?? []),
    ...(typeof options.env === "object" ? Secrets.ofRecord(options.env) : [])
  ]
  return (identity: Identity, handle: SessionHandle): Plan<R> => {
    let owner = identity
    let lastLines: Array<string> = []
    const plan = makePlan<R>(
      options,
      { server: file, secrets },
      identity,
      handle,
      (scrub, name) =>
        Effect.gen(function*() {
          const runFork = Effect.runForkWith(yield* Effect.context<never>())
          const env = yield* prepared("env", name, perIdentity("env", options.env, identity))
          for (const secret of Secrets.ofRecord(env)) scrub.add(secret)
          // Of this child: negotiation may start another
          const said: Array<string> = lastLines = []
          const transport = yield* Stdio.make({
            command: options.command,
            args: options.args ?? [],
            env: { ...sdk.environment(), ...env },
            cwd: options.cwd,
            readBuffer: sdk.readBuffer(),
            maxMessageBytes: options.maxMessageBytes ?? ConnectorOptions.defaultMaxMessageBytes,
            serialize: sdk.serialize as (message: MessageLike) => string,
            onStderr: (line) => {
              const scrubbed = scrubLine(scrub, line)
              said.push(scrubbed.slice(0, lastLineLimit))
              if (said.length > 10) said.shift()
              runFork(Effect.annotateLogs(Effect.logDebug(scrubbed), { server: name, session: owner.key }))
            }
          })
          return {
            transport,
            pid: transport.pid,
            network: { "network.transport": "pipe" },
            ending: () => {
              const ending = transport.ending()
              return ending === undefined || said.length === 0 ? ending : { ...ending, stderr: said.join("\n") }
            }
          }
        })
    )
    return {
      ...plan,
      adopt: (adopter) => {
        owner = adopter
        for (const secret of Secrets.ofCredentials(adopter.credentials)) plan.scrub.add(secret)
        for (const [i, line] of lastLines.entries()) lastLines[i] = scrubLine(plan.scrub, line, lastLineLimit)
      }
    }
  }
}

/** Of what a child said last, as an error shows it. */
const lastLineLimit = 500

/**
 * A transport over `fetch`. With `isStreamSession` its session is its GET stream, as in the SSE transport.
 */
const http = <R>(
  options: HttpOptions<R>,
  isStreamSession: boolean,
  transportTo: MakeTransport,
  authorized: Authorized
) => {
  const url = new URL(options.url)
  const secrets = [
    ...Secrets.ofUrl(url),
    ...ConnectorOptions.secretsOf(options.authorization),
    ...(typeof options.headers === "object" ? Secrets.ofRecord(options.headers) : [])
  ]
  return (identity: Identity, handle: SessionHandle): Plan<R> =>
    makePlan(options, { server: url.host, secrets }, identity, handle, (scrub, name) => {
      let forwarded: CredentialScheme | undefined
      const onForwarded = (scheme: CredentialScheme | undefined) => void (forwarded = scheme)
      return Effect.gen(function*() {
        const context = yield* Effect.context<never>()
        const runPromise = Effect.runPromiseWith(context)
        const clock = yield* Clock.Clock
        const own = holding(options.fetch ?? globalFetch, scrub)
        const { authorization } = options
        const refusals = Refusals.make({
          fetch: authorization === undefined ? own : yield* authorized({
            authorization,
            url,
            fetch: own,
            identity,
            handle,
            server: name,
            scrub,
            prepare: (effect) => prepared("authorization", name, effect)
          }),
          now: () => clock.currentTimeMillisUnsafe(),
          whenLate: (f) => {
            const fiber = Effect.runForkWith(context)(Effect.andThen(Effect.sleep("2 seconds"), Effect.sync(f)))
            return () => fiber.interruptUnsafe()
          }
        })
        const { attach, fetch, streamFailure } = Fetch.make({
          fetch: refusals.fetch,
          headers: yield* headersOf(options, name, identity, handle, scrub, onForwarded),
          pause: () => runPromise(Effect.sleep("100 millis")),
          isStreamSession
        })
        const transport = transportTo(url, { fetch })
        return {
          transport,
          attach: (wire) => ({ ...attach(wire), onFailed: refusals.onFailed }),
          refusalOf: refusals.of,
          latestRefusal: refusals.latest,
          network: {
            "network.transport": "tcp",
            "network.protocol.name": "http",
            "server.address": url.hostname,
            "server.port": Number(url.port) || (url.protocol === "https:" ? 443 : 80)
          },
          ...(isStreamSession ? { failure: streamFailure } : {}),
          sessionful: isStreamSession,
          forwarded: () => forwarded,
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
  server: (identity: Identity) => Effect.Effect<ServerLike<T>, unknown, R | Scope.Scope>,
  pair: () => readonly [TransportLike, T]
) =>
(identity: Identity, handle: SessionHandle): Plan<R> =>
  makePlan(options, { server: "in-process" }, identity, handle, (_, name) =>
    Effect.gen(function*() {
      const instance = yield* prepared("server", name, made("server", () => server(identity), "connect"))
      const [transport, theirs] = pair()
      yield* Effect.tryPromise({ try: () => instance.connect(theirs), catch: (error) => error })
      return { transport }
    }))

/**
 * A transport that somebody else has made.
 */
const fromTransport = <R, T>(
  options: Options<unknown>,
  transportFor: (identity: Identity) => Effect.Effect<T, unknown, R | Scope.Scope>
) =>
(identity: Identity, handle: SessionHandle): Plan<R> =>
  makePlan(options, { server: "transport" }, identity, handle, (_, name) =>
    Effect.gen(function*() {
      const found = yield* prepared("transport", name, made("transport", () => transportFor(identity), "start"))
      const transport = found as TransportLike & { terminateSession?(): Promise<void> }
      return {
        transport,
        attach: (wire) => {
          wire.isDeaf = mayBeDeaf(transport)
          return {}
        },
        terminate: async () => transport.terminateSession?.()
      }
    }))

/**
 * What a function of the user's own makes, which is known by a method. Dies when it makes something else: not every
 * user has a compiler.
 */
const made = <A, R>(
  option: "server" | "transport",
  of: () => Effect.Effect<A, unknown, R>,
  method: "connect" | "start"
): Effect.Effect<A, unknown, R> =>
  Effect.suspend(() => {
    const effect: unknown = of()
    return Effect.isEffect(effect)
      ? effect as Effect.Effect<A, unknown, R>
      : Effect.die(new TypeError(`\`${option}\` must return an Effect`))
  }).pipe(
    Effect.tap((value) =>
      Predicate.hasProperty(value, method) && typeof value[method] === "function"
        ? Effect.void
        : Effect.die(new TypeError(`\`${option}\` must make a ${option}: what it made has no \`${method}\``))
    )
  )

// -----------------------------------------------------------------------------
// Requests of the server
// -----------------------------------------------------------------------------

/**
 * The handlers of the options as promises, with the context of the connector.
 */
export interface Handlers {
  readonly capabilities: {
    readonly sampling?: Record<string, never>
    readonly elicitation?: { readonly form?: Record<string, never>; readonly url?: Record<string, never> }
    readonly roots?: Record<string, never>
  }
  readonly sampling: Handler<CreateMessageRequestParams, CreateMessageResult | CreateMessageResultWithTools> | undefined
  readonly elicitation: Handler<ElicitRequestFormParams | ElicitRequestURLParams, ElicitResult> | undefined
  readonly roots: Handler<unknown, { roots: Array<Root> }> | undefined
}

type Handler<P, A> = (params: P, signal: AbortSignal) => Promise<A>

const handlers = <R>(
  { elicitation, roots, sampling, urlElicitation }: Options<R>,
  { owner, scrub, server }: Pick<Plan<never>, "owner" | "scrub" | "server">
): Effect.Effect<Handlers, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    const handler =
      <P, A>(method: string, f: (params: P) => Effect.Effect<A, unknown, R>): Handler<P, A> => (params, signal) =>
        runPromise(
          Effect.tapCause(
            Effect.suspend(() => f(params)),
            (cause) =>
              Effect.logWarning(`${method} of "${server}" could not be answered: ${scrub(Cause.pretty(cause))}`)
          ),
          { signal }
        ).catch(() => Promise.reject(unanswered))
    return {
      capabilities: {
        ...(sampling === undefined ? {} : { sampling: {} }),
        ...(elicitation === undefined && urlElicitation === undefined
          ? {}
          : { elicitation: modes(elicitation, urlElicitation) }),
        ...(roots === undefined ? {} : { roots: {} })
      },
      sampling: sampling &&
        handler("sampling/createMessage", (params) => Effect.flatMap(owner, (identity) => sampling(params, identity))),
      elicitation: (elicitation ?? urlElicitation) &&
        handler("elicitation/create", (params) =>
          Effect.flatMap(owner, (identity) =>
            // The SDK refuses a mode that this client does not declare before it comes here
            params.mode === "url" ?
              Effect.andThen(checkAddress(params.url), urlElicitation!(params, identity)) :
              elicitation!(params, identity))),
      roots: roots &&
        handler("roots/list", () => Effect.map(Effect.flatMap(owner, roots), (found) => ({ roots: [...found] })))
    }
  })

// 2025-11-25, client/elicitation#capabilities: an empty object is form mode alone, as servers of older revisions know
// it
const modes = (form: unknown, url: unknown) =>
  url === undefined ? {} : { ...(form === undefined ? {} : { form: {} }), url: {} }

/** 2025-11-25, client/elicitation#safe-url-handling: nobody is asked to run a script, or to open a file. */
const checkAddress = (text: string): Effect.Effect<void, Error> =>
  Effect.suspend(() => {
    const url = URL.canParse(text) ? new URL(text) : undefined
    return url !== undefined && /^https?:$/.test(url.protocol) && url.username === "" && url.password === ""
      ? Effect.void
      : Effect.fail(new Error("the address is not that of a web page"))
  })

// What the server is told: the reason stays here
const unanswered = new Error("The client could not answer this request")

// -----------------------------------------------------------------------------
// Identities
// -----------------------------------------------------------------------------

/**
 * What `record` gives for `identity`. Dies with what it throws, and when that is no record of texts that can be sent.
 */
const perIdentity = <R>(
  option: "headers" | "env",
  record: PerIdentity<R> | undefined,
  identity: Identity
): Effect.Effect<Readonly<Record<string, string>>, unknown, R> =>
  Effect.suspend(() => {
    const found: unknown = typeof record === "function" ? record(identity) : record ?? {}
    return Effect.isEffect(found)
      ? Effect.flatMap(found as Effect.Effect<unknown, unknown, R>, (value) => checked(option, value))
      : checked(option, found)
  })

const checked = (option: "headers" | "env", value: unknown): Effect.Effect<Readonly<Record<string, string>>> => {
  const issue = option === "env" ? ConnectorOptions.issueOfEnv(value) : ConnectorOptions.issueOfHeaders(value)
  return issue === undefined
    ? Effect.succeed(value as Readonly<Record<string, string>>)
    : Effect.die(new TypeError(`${option} ${issue}`))
}

/**
 * Whatever goes wrong before a request is sent is one reason, and says that it was not. An error of the library's own
 * comes through as it is.
 */
const prepared = <A, R>(
  option: PreparationFailed["option"],
  server: string,
  effect: Effect.Effect<A, unknown, R>
): Effect.Effect<A, McpSessionError, R> =>
  Effect.catchCause(effect, (cause) => {
    // Also where it has interrupted itself. A caller who is interrupted from without does not come here
    const error = Cause.squash(cause)
    if (error instanceof McpSessionError) return Effect.fail(error)
    const reason = new PreparationFailed({ option, cause: Redacted.make(error), requestSent: false })
    // Whoever asked knows for what: see `reasonOf`
    return Effect.fail(new McpSessionError({ reason, method: "connect", server }))
  })

/**
 * The headers of the coming request, with the newest credentials in the identity.
 */
const headersOf = <R>(
  options: HttpOptions<R>,
  server: string,
  identity: Identity,
  handle: SessionHandle,
  scrub: Scrub.Scrub,
  onForwarded: (scheme: CredentialScheme | undefined) => void
): Effect.Effect<() => Promise<Readonly<Record<string, string>>>, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    let current = identity
    let held: ReadonlyArray<() => void> = []
    const headers = Effect.gen(function*() {
      const newest = Option.getOrUndefined(yield* handle.credentials)
      if (newest !== undefined && newest !== Option.getOrUndefined(current.credentials)) {
        const credentials = Option.some(newest)
        current = new Identity({ ...identity, credentials }, { disableChecks: true })
        const before = held
        held = Secrets.ofCredentials(credentials).map(scrub.hold)
        for (const release of before) release()
      }
      const { credentials } = current
      const own = yield* perIdentity("headers", options.headers, current)
      const isForwarded = options.forwardCredentials === true && Option.isSome(credentials)
      onForwarded(isForwarded ? credentials.value.scheme : undefined)
      if (!isForwarded) return own
      return { ...own, [credentials.value.name]: Redacted.value(credentials.value.header) }
    })
    return () => runPromise(prepared("headers", server, headers))
  })

/**
 * Secrets that go out in headers are taken out of texts for as long as the answer can be read, which may quote them:
 * the stream of a session is open for hours, and a token is rotated many times meanwhile.
 */
const holding = (fetch: FetchLike, scrub: Scrub.Scrub): FetchLike => {
  // Most headers are what they were the last time
  const latest = new Map<string, { readonly value: string; readonly secrets: ReadonlyArray<string> }>()
  const secretsOf = (name: string, value: string) => {
    const known = latest.get(name)
    if (known?.value === value) return known.secrets
    const secrets = Secrets.ofRecord({ [name]: value })
    latest.set(name, { value, secrets })
    return secrets
  }
  return async (url, init) => {
    const releases: Array<() => void> = []
    new Headers(init?.headers).forEach((value, name) => {
      for (const secret of secretsOf(name, value)) releases.push(scrub.hold(secret))
    })
    const release = () => {
      for (const one of releases) one()
    }
    try {
      const response = await fetch(url, init)
      if (releases.length > 0 && response.body !== null) answers.register(response.body, release)
      else release()
      return response
    } catch (error) {
      release()
      throw error
    }
  }
}

// What nothing refers to any more has been read
const answers = new FinalizationRegistry<() => void>((release) => release())

// Late-bound, so that tests and instrumentation that replace the global one are heard
const globalFetch: FetchLike = (url, init) => fetch(url, init)

// A secret that the limit has cut in two is found only where it is known that there is a cut
const scrubLine = (scrub: Scrub.Scrub, line: string, limit = Stdio.stderrLineLimit): string =>
  line.length < limit ? scrub(line) : scrub.cut(line)
