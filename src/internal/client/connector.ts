/**
 * What the connectors of both SDK generations do alike. A generation is a value ({@link Sdk}); {@link make} makes its
 * five connectors.
 *
 *   connector -> (identity, handle) -> plan: how to get a transport -> opener of the generation -> session.ts: open
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type {
  Connector,
  HttpOptions,
  Only,
  Options,
  ServerLike,
  Services,
  SessionHandle,
  Standby as StandbyOptions,
  StdioOptions
} from "../../Connector.ts"
import { Identity, type SessionKey } from "../../Identity.ts"
import type { McpSessionError } from "../../McpSessionError.ts"
import type { McpSession } from "../../Session.ts"
import * as Apart from "../apart.ts"
import { namesAndPlaces } from "../places.ts"
import * as Time from "../time.ts"
import { version } from "../version.ts"
import * as Handlers from "./handlers.ts"
import { KnownSecrets } from "./knownSecrets.ts"
import * as ConnectorOptions from "./options.ts"
import * as Plan from "./plan.ts"
import type { ClientLike, TransportLike } from "./sdk.ts"
import * as Standby from "./standby.ts"

/**
 * A generation of the SDK, with clients `C`, server transports `T` and options of its own `N`.
 */
export interface Sdk<C extends ClientLike, T, N> {
  /** Its module, as errors call it. */
  readonly module: string
  readonly options: { readonly [K in TransportKind]: ConnectorOptions.Declared }
  readonly stdio: Plan.StdioParts
  readonly http: Plan.MakeTransport
  readonly authorized: Plan.Authorized
  readonly sse: Plan.MakeTransport
  readonly pair: () => readonly [TransportLike, T]
  /** Whether a server may be one that has `initialize`. */
  readonly mayBeOlder: (own: N) => boolean
  /** How one connector opens its sessions. What it learns of the server stays with the opener. */
  readonly opener: (transport: TransportKind, options: Options<unknown>, own: N | undefined) => Opener<C>
}

export type TransportKind = "stdio" | "http" | "sse" | "inProcess" | "fromTransport"

/**
 * Opens one session as planned.
 */
export type Opener<C> = <R>(
  plan: Plan.Plan<R>,
  handlers: Handlers.Handlers
) => Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope | R>

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
    const plan = Plan.stdio(read, sdk.stdio)
    const open = sdk.opener("stdio", options, options)
    return read.standby === undefined ? connector(read, plan, open) : standby(read, read.standby, plan, open)
  },
  http: <O extends HttpOptions<unknown> & N>(
    options: Only<O, HttpOptions & N>
  ): Connector<Services<O>, C> => {
    ConnectorOptions.check(sdk.options.http, "http", options)
    ConnectorOptions.checkAuthorization(sdk.module, "http", options)
    const read = options as HttpOptions<Services<O>>
    const older = { plan: Plan.http(read, true, sdk.sse, sdk.authorized), open: sdk.opener("sse", options, undefined) }
    const fallback = sdk.mayBeOlder(options) ? older : undefined
    return connector(
      read,
      Plan.http(read, false, sdk.http, sdk.authorized),
      sdk.opener("http", options, options),
      fallback
    )
  },
  sse: <O extends HttpOptions<unknown>>(options: Only<O, HttpOptions>): Connector<Services<O>, C> => {
    ConnectorOptions.check(sdk.options.sse, "sse", options)
    ConnectorOptions.checkAuthorization(sdk.module, "sse", options)
    const read = options as HttpOptions<Services<O>>
    return connector(read, Plan.http(read, true, sdk.sse, sdk.authorized), sdk.opener("sse", options, undefined))
  },
  inProcess: <R = never, O extends Options<unknown> = Options>(
    server: (identity: Identity) => Effect.Effect<ServerLike<T>, unknown, R | Scope.Scope>,
    options?: Only<O, Options>
  ): Connector<R | Services<O>, C> => {
    ConnectorOptions.checkFunction(sdk.module, "inProcess", "server", server)
    if (options !== undefined) ConnectorOptions.check(sdk.options.inProcess, "inProcess", options)
    const read: Options<Services<O>> = options as Options<Services<O>> | undefined ?? {}
    return connector(read, Plan.inProcess(read, server, sdk.pair), sdk.opener("inProcess", read, undefined))
  },
  fromTransport: <R = never, O extends Options<unknown> & N = Options & N>(
    transport: (identity: Identity) => Effect.Effect<T, unknown, R | Scope.Scope>,
    options?: Only<O, Options & N>
  ): Connector<R | Services<O>, C> => {
    ConnectorOptions.checkFunction(sdk.module, "fromTransport", "transport", transport)
    const given = options === undefined ? {} : options
    ConnectorOptions.check(sdk.options.fromTransport, "fromTransport", given)
    const read = given as Options<Services<O>>
    return connector(read, Plan.fromTransport(read, transport), sdk.opener("fromTransport", read, given as N))
  }
})

const connector = <RT, R, C>(
  options: Options<R>,
  plan: (identity: Identity, handle: SessionHandle) => Plan.Plan<RT>,
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

const openAs = <RT, R, C>(options: Options<R>, plan: Plan.Plan<RT>, open: Opener<C>) =>
  Effect.flatMap(KnownSecrets, (secrets) => {
    for (const secret of secrets) plan.scrub.add(secret)
    return Effect.flatMap(Handlers.make(options, plan), (handlers) => open(plan, handlers))
  })

// Once, however often a generation has tried. The message has no secrets in it. That somebody has to be asked is no
// fault.
const logged =
  ({ identity, server }: Pick<Plan.Plan<never>, "identity" | "server">) =>
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
  plan: (identity: Identity, handle: SessionHandle) => Plan.Plan<RT>,
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
  readonly plan: (identity: Identity, handle: SessionHandle) => Plan.Plan<R>
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
