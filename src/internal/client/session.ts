/**
 * What every connector ends in: a client connected to a transport becomes an `McpSession`, whatever SDK they are of.
 */
import type { Implementation, ServerCapabilities, ServerNotification } from "@modelcontextprotocol/sdk/types.js"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as LogLevel from "effect/LogLevel"
import * as PubSub from "effect/PubSub"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { SessionHandle } from "../../Connector.ts"
import type { CredentialScheme, Identity } from "../../Identity.ts"
import {
  McpSessionError,
  type McpSessionErrorReason,
  RequestTimeout,
  SessionClosed,
  TooManyPages
} from "../../McpSessionError.ts"
import type { ListOptions, McpSession, ProgressOptions } from "../../Session.ts"
import type { Scrub } from "../scrub.ts"
import { TypeId } from "../sent.ts"
import type { Attributes } from "../spans.ts"
import * as Time from "../time.ts"
import * as Calls from "./calls.ts"
import { classify, headerMismatch } from "./classify.ts"
import * as Lists from "./lists.ts"
import * as Liveness from "./liveness.ts"
import { reasonOf } from "./reasons.ts"
import type { Refusal } from "./refusals.ts"
import * as Sdk from "./sdk.ts"
import * as Spans from "./spans.ts"
import * as Wire from "./wire.ts"

/**
 * What a connector gives to {@link open}.
 */
export interface OpenOptions<C extends Sdk.ClientLike, R = never> {
  readonly identity: Identity
  readonly handle: SessionHandle
  /** What errors and logs call the server. */
  readonly server: string
  readonly scrub: Scrub
  /**
   * A fresh transport: the SDKs can't use one twice. Its finalizers free what its `close` does not.
   */
  readonly transport: Effect.Effect<OpenTransport, unknown, Scope.Scope | R>
  /** A fresh client: neither can be used twice. */
  readonly client: () => C
  readonly connect: (client: C, wire: Wire.Wire, options: { readonly timeout: number }) => Promise<void>
  readonly connectTimeout: Duration.Input | undefined
  readonly requestTimeout: Duration.Input | undefined
  readonly listTimeToLive: Duration.Input | undefined
}

export interface OpenTransport {
  readonly transport: Sdk.TransportLike
  readonly pid?: number | undefined
  /** Ends the session on the server; tried for two seconds when the session is closed. */
  readonly terminate?: (() => Promise<void>) | undefined
  /** What the server said when it refused a request, told by the error that it failed with. */
  readonly refusalOf?: ((error: unknown) => Refusal | undefined) | undefined
  /** What it said when it refused the last one: of a connect there is one at a time. */
  readonly latestRefusal?: (() => Refusal | undefined) | undefined
  /** Why it could not connect, where its own error does not say so. */
  readonly failure?: (() => unknown) | undefined
  /** The scheme of the caller's own credentials, if those went out with the latest request. */
  readonly forwarded?: (() => CredentialScheme | undefined) | undefined
  /** Why the connection has ended, where that is known. */
  readonly ending?: (() => Ending | undefined) | undefined
  /** Hears what happens on the wire. */
  readonly attach?: ((wire: Wire.Wire) => Wire.Listener) | undefined
  /** How the server is reached, in the words of OpenTelemetry's conventions. */
  readonly network?: Attributes | undefined
  /** The session is known by something other than the transport's `sessionId`. */
  readonly sessionful?: boolean | undefined
}

/** What a `SessionClosed` says of the end. */
export type Ending = Omit<SessionClosed, "_tag" | "requestSent">

/**
 * Opens a session: connects, within `connectTimeout` if that is given, and closes it with the scope. Whatever a
 * failed or interrupted connect had acquired is freed before this ends.
 */
export const open = <C extends Sdk.ClientLike, R = never>(
  options: OpenOptions<C, R>
): Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope | R> =>
  Effect.gen(function*() {
    const scope = yield* Scope.fork(yield* Effect.scope)
    return yield* connect(options).pipe(
      // A pool has a deadline for each open, and which of the two is longer is not this one's to say
      Effect.timeoutOrElse({
        duration: options.connectTimeout ?? Duration.infinity,
        orElse: () => Effect.fail(new RequestTimeout({ requestSent: true }))
      }),
      Effect.mapError((reason) => toError(reason, options.server)),
      Scope.provide(scope),
      Effect.onExit((exit) => Exit.isFailure(exit) ? Scope.close(scope, exit) : Effect.void)
    )
  })

const toError = (reason: McpSessionErrorReason | McpSessionError, server: string): McpSessionError =>
  reason._tag === "McpSessionError" ? reason : new McpSessionError({ reason, method: "connect", server })

const connect = Effect.fnUntraced(function*<C extends Sdk.ClientLike, R>(options: OpenOptions<C, R>) {
  const { scrub } = options
  const opened = yield* Effect.mapError(
    options.transport,
    (error) => reasonOf(error, { sessionful: false, scrub, isUnsent: true })
  )
  const wire = Wire.make(opened.transport, opened.refusalOf !== undefined)
  const listener = opened.attach?.(wire) ?? {}
  wire.listener = listener
  const client = options.client()
  const traced = Spans.make({
    server: options.server,
    network: opened.network,
    protocolVersion: () => wire.protocolVersion,
    scrub
  })
  const session = yield* make(options, opened, client, wire, listener, traced)
  const connected = Effect.callback<void, McpSessionError | McpSessionErrorReason>((resume) => {
    wire.trace = Spans.currentTrace()
    // This may never settle, and nothing waits for it: closing the scope closes the transport. There is no signal to
    // abort, because that sends a cancel (2025-11-25, basic/utilities/cancellation: `initialize` MUST NOT be
    // cancelled).
    options.connect(client, wire, { timeout: Sdk.noTimeout }).then(
      () => resume(Effect.void),
      (error) => {
        const ending = opened.ending?.()
        resume(Effect.fail(
          ending === undefined
            ? reasonOf(opened.failure?.() ?? error, {
              sessionful: false,
              scrub,
              forwarded: opened.forwarded?.(),
              refusal: opened.refusalOf?.(error),
              latest: opened.latestRefusal?.()
            })
            // A server that has exited before it was connected has run nothing
            : new SessionClosed({ ...ending, requestSent: ending.detail !== undefined })
        ))
      }
    )
  })
  yield* traced(
    "initialize",
    { method: "initialize" },
    Effect.mapError(connected, (reason) => toError(reason, options.server))
  )
  wire.trace = undefined
  return session()
})

/**
 * A session of a client that is connected already, over this wire.
 */
export const adopt = <C extends Sdk.ClientLike>(
  options: MakeOptions,
  opened: OpenTransport,
  client: C,
  wire: Wire.Wire
): Effect.Effect<McpSession<C>, never, Scope.Scope> => {
  const { scrub, server } = options
  const traced = Spans.make({ server, network: undefined, protocolVersion: () => wire.protocolVersion, scrub })
  return Effect.map(make(options, opened, client, wire, {}, traced), (session) => session())
}

type MakeOptions = Pick<
  OpenOptions<never>,
  "handle" | "identity" | "listTimeToLive" | "requestTimeout" | "scrub" | "server"
>

/**
 * Everything of a session but its connection. The result is called once connected.
 */
const make = Effect.fnUntraced(function*<C extends Sdk.ClientLike>(
  {
    handle,
    identity,
    listTimeToLive = "1 minute",
    requestTimeout = "60 seconds",
    scrub,
    server
  }: MakeOptions,
  opened: OpenTransport,
  client: C,
  wire: Wire.Wire,
  listener: Wire.Listener,
  traced: Spans.Traced
) {
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const notifications = makeNotifications()
  let isOpen = false
  let isExpired = false
  let isRetired = false

  // However many find out, it is said once
  const retire = (reason: "died" | "unhealthy") =>
    Effect.suspend(() => {
      if (isRetired) return Effect.void
      isRetired = true
      return handle.retire(reason)
    })
  const toReason = (error: unknown) =>
    reasonOf(error, {
      sessionful: opened.sessionful === true || wire.sessionId !== undefined,
      scrub,
      forwarded: opened.forwarded?.(),
      refusal: opened.refusalOf?.(error)
    })
  const calls = Calls.make({
    wire,
    server,
    timeout: requestTimeout,
    isOpen: () => isOpen,
    reasonOf: toReason,
    closed: (requestSent) => new SessionClosed({ ...opened.ending?.(), requestSent })
  })
  const watch = Liveness.make({
    probe: calls.within("ping", calls.attempt("ping", (o) => Sdk.probe(client, o)), "5 seconds"),
    retire,
    isOwn: calls.isOwn,
    scope
  })
  const lists = Lists.make({
    runFork: (effect) => runFork(Spans.underCurrent(effect)),
    page: (kind, params, { isFresh, sender }) =>
      calls.attempt(
        Lists.methods[kind],
        (o) => client[Lists.methods[kind]](params, isFresh ? { ...o, cacheMode: "refresh" } : o),
        { sender }
      ),
    sent: wire.sent,
    tooLong: (kind) => calls.fail(Lists.methods[kind], new TooManyPages({ limit: Lists.maxPages, requestSent: true })),
    // The v2 SDK keeps them itself, for as long as the server says
    isKept: () => !Sdk.isModern(client),
    isAnnounced: (kind) => !wire.isDeaf && Sdk.announces(client, kind),
    timeToLive: Duration.toMillis(listTimeToLive),
    now: Time.monotonic(clock)
  })

  wire.listener = {
    ...listener,
    onEnd: () => {
      listener.onEnd?.()
      // The calls first: the SDK's own rejections come later, if at all
      calls.abandon()
      if (isOpen) runFork(retire("died"))
    },
    onUnsent: (error) => {
      const failed = toReason(error)
      const reason = failed._tag === "McpSessionError" ? failed.reason : failed
      // Whoever sent it, and whatever becomes of its error
      if (isOpen && reason._tag === "SessionExpired") {
        isExpired = true
        runFork(retire("died"))
      }
      return reason._tag === "SessionExpired" ? reason.refused : !reason.requestSent
    },
    onError: (error) =>
      runFork(
        whenDebugging(() => Effect.logDebug(`"${server}": ${scrub.beginning(error.message, 4_096).slice(0, 500)}`))
      ),
    onDeaf: lists.onDeaf,
    onNotification: (notification) => {
      const { method } = notification
      if (method === "notifications/progress" || method === "notifications/cancelled") return
      lists.onNotification(method)
      runFork(notifications.publish(notification as ServerNotification))
    }
  }

  yield* Scope.addFinalizer(
    scope,
    Effect.gen(function*() {
      isOpen = false
      calls.abandon()
      yield* notifications.shutdown
      // 2025-11-25, basic/transports#session-management: a client that no longer needs a session SHOULD send DELETE. A
      // mute server must not hold it up.
      if (!isExpired && opened.terminate !== undefined) yield* bounded(opened.terminate)
      yield* bounded(() => client.close())
      yield* bounded(() => wire.close())
    })
  )

  return () => {
    isOpen = true
    if (wire.closed) runFork(retire("died"))
    const facts = {
      identity,
      // From 2026-07-28 on a server may be anonymous
      serverInfo: client.getServerVersion() as Implementation | undefined ?? { name: server, version: "" },
      capabilities: (client.getServerCapabilities() ?? {}) as ServerCapabilities,
      instructions: client.getInstructions(),
      protocolVersion: wire.protocolVersion ?? "",
      requestTimeout: Duration.fromInputUnsafe(requestTimeout),
      pid: opened.pid
    }
    return {
      [TypeId]: wire.sent,
      ...facts,
      client,
      ...operations(client, calls, watch, lists, traced),
      notifications: notifications.stream
    } satisfies McpSession<C> as McpSession<C>
  }
})

const operations = <C extends Sdk.ClientLike>(
  client: C,
  calls: Calls.Calls,
  watch: Liveness.Watch,
  lists: Lists.Lists,
  traced: Spans.Traced
) => {
  const call = <A>(
    operation: string,
    target: Spans.Target,
    ask: Calls.Ask<unknown>,
    options: ProgressOptions | undefined
  ) => traced(operation, target, watch(calls.call(operation, ask, options))) as Effect.Effect<A, McpSessionError>

  const list = <A>(kind: Lists.Kind, options: ListOptions | undefined) =>
    traced(
      Lists.methods[kind],
      { method: Lists.requests[kind] },
      watch(calls.within(Lists.methods[kind], lists.get(kind, options?.fresh === true), options?.timeout))
    ) as Effect.Effect<A, McpSessionError>

  const subscription =
    (operation: "subscribeResource" | "unsubscribeResource", method: string): McpSession["subscribeResource"] =>
    (params, options) =>
      Effect.asVoid(call(operation, { method, resource: params }, (o) => client[operation](params, o), options))

  return {
    callTool: (params, options) =>
      call(
        "callTool",
        { method: "tools/call", tool: params },
        (o) => Sdk.callTool(client, params, o).catch((error) => rereadTools(client, error, o)),
        options
      ),
    listTools: (options) => list("tools", options),
    listResources: (options) => list("resources", options),
    listResourceTemplates: (options) => list("resourceTemplates", options),
    listPrompts: (options) => list("prompts", options),
    readResource: (params, options) =>
      call(
        "readResource",
        { method: "resources/read", resource: params },
        (o) => client.readResource(params, o),
        options
      ),
    getPrompt: (params, options) =>
      call("getPrompt", { method: "prompts/get", prompt: params }, (o) => client.getPrompt(params, o), options),
    complete: (params, options) =>
      call("complete", { method: "completion/complete" }, (o) => client.complete(params as never, o), options),
    setLoggingLevel: (level, options) =>
      Effect.asVoid(
        call(
          "setLoggingLevel",
          { method: "logging/setLevel" },
          (o) => client.setLoggingLevel(level as never, o),
          options
        )
      ),
    subscribeResource: subscription("subscribeResource", "resources/subscribe"),
    unsubscribeResource: subscription("unsubscribeResource", "resources/unsubscribe"),
    ping: (options) => Effect.asVoid(call("ping", { method: "ping" }, (o) => Sdk.probe(client, o), options)),
    request: (f, options) => call("request", {}, (o) => f(client, o), options)
  } satisfies Partial<McpSession<C>>
}

// Room for 256 of them takes 4 KB, so it is made for the first who listens. Whatever comes before is heard by nobody.
const makeNotifications = () => {
  let hub: PubSub.PubSub<ServerNotification> | undefined
  let isShutDown = false
  return {
    publish: (notification: ServerNotification): Effect.Effect<unknown> =>
      hub === undefined ? Effect.void : PubSub.publish(hub, notification),
    shutdown: Effect.suspend(() => {
      isShutDown = true
      return hub === undefined ? Effect.void : PubSub.shutdown(hub)
    }),
    stream: Stream.unwrap(Effect.gen(function*() {
      const made = hub ?? (yield* PubSub.sliding<ServerNotification>(256))
      hub ??= made
      if (isShutDown) yield* PubSub.shutdown(hub)
      return Stream.fromPubSub(hub)
    }))
  }
}

/**
 * What costs more than it is worth where nobody sees it: a server can cause as much of it as it likes.
 */
const whenDebugging = (log: () => Effect.Effect<void>): Effect.Effect<void> =>
  Effect.flatMap(LogLevel.isEnabled("Debug"), (isEnabled) => isEnabled ? log() : Effect.void)

/**
 * The headers of a call follow from what the client knows of the tool: what it was wrong about it reads again, so that
 * the next call has the right ones. This one is not repeated: the server has read it.
 */
const rereadTools = (
  client: Sdk.ClientLike,
  error: unknown,
  { onresumptiontoken, signal, timeout }: Sdk.CallOptionsLike
): Promise<never> => {
  const failed = () => Promise.reject(error)
  const failure = classify(error, false)
  return Sdk.isModern(client) && failure._tag === "ProtocolFailure" && failure.code === headerMismatch
    ? client.listTools({}, { onresumptiontoken: onresumptiontoken!, signal, timeout, cacheMode: "refresh" })
      .then(failed, failed)
    : failed()
}

/**
 * Two seconds for something that may never settle, and whose failure changes nothing.
 */
const bounded = (f: () => Promise<unknown>): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    const done = () => resume(Effect.void)
    f().then(done, done)
  }).pipe(Effect.timeoutOption("2 seconds"), Effect.asVoid)
