/**
 * What every connector ends in: a client connected to a transport becomes an `McpSession`, whatever SDK they are of.
 */
import type {
  CallToolResult,
  CompleteResult,
  GetPromptResult,
  Implementation,
  Progress,
  ReadResourceResult,
  ServerCapabilities,
  ServerNotification
} from "@modelcontextprotocol/sdk/types.js"
import type * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as PubSub from "effect/PubSub"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Identity } from "../../Identity.ts"
import type { CallOptions, McpSession, ProgressOptions } from "../../McpSession.ts"
import {
  Forbidden,
  HttpFailure,
  McpSessionError,
  type McpSessionErrorReason,
  ProtocolFailure,
  RequestTimeout,
  SessionClosed,
  SessionExpired,
  Unauthorized,
  Unreachable
} from "../../McpSessionError.ts"
import type { SessionHandle } from "../../Connector.ts"
import { classify } from "./classify.ts"
import * as Clients from "./sdk.ts"
import * as Lists from "./lists.ts"
import type { Scrub } from "../scrub.ts"
import { TypeId } from "../sent.ts"
import * as Wire from "./wire.ts"

/**
 * What a connector gives to {@link open}.
 */
export interface OpenOptions<C extends Clients.ClientLike, R = never> {
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
}

export interface OpenTransport {
  readonly transport: Clients.TransportLike
  readonly pid?: number | undefined
  /** Ends the session on the server; tried for two seconds when the session is closed. */
  readonly terminate?: (() => Promise<void>) | undefined
  /** Hears what happens on the wire. */
  readonly attach?: ((wire: Wire.Wire) => Wire.Listener) | undefined
  /** The session is known by something other than the transport's `sessionId`. */
  readonly sessionful?: boolean | undefined
}

/**
 * Opens a session: connects, within `connectTimeout` if that is given, and closes it with the scope. Whatever a
 * failed or interrupted connect had acquired is freed before this ends.
 */
export const open = <C extends Clients.ClientLike, R = never>(
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
      Effect.mapError((reason) =>
        reason._tag === "McpSessionError"
          ? reason
          : new McpSessionError({ reason, method: "connect", server: options.server })
      ),
      Scope.provide(scope),
      Effect.onExit((exit) => Exit.isFailure(exit) ? Scope.close(scope, exit) : Effect.void)
    )
  })

const connect = Effect.fnUntraced(function*<C extends Clients.ClientLike, R>(options: OpenOptions<C, R>) {
  const toReason = (error: unknown) => reasonOf(error, false, options.scrub)
  const opened = yield* Effect.mapError(options.transport, toReason)
  const wire = Wire.make(opened.transport)
  const listener = opened.attach?.(wire) ?? {}
  wire.listener = listener
  const client = options.client()
  const session = yield* make(options, opened, client, wire, listener)
  yield* Effect.callback<void, McpSessionError | McpSessionErrorReason>((resume) => {
    // This may never settle, and nothing waits for it: closing the scope closes the transport. There is no signal to
    // abort, because that sends a cancel (2025-11-25, basic/utilities/cancellation: `initialize` MUST NOT be cancelled).
    options.connect(client, wire, { timeout: Clients.noTimeout }).then(
      () => resume(Effect.void),
      (error) => resume(Effect.fail(toReason(error)))
    )
  })
  return session()
})

/**
 * Everything of a session but its connection. The result is called once connected.
 */
const make = Effect.fnUntraced(function*<C extends Clients.ClientLike, R>(
  { handle, identity, requestTimeout = "60 seconds", scrub, server }: OpenOptions<C, R>,
  opened: OpenTransport,
  client: C,
  wire: Wire.Wire,
  listener: Wire.Listener
) {
  const scope = yield* Effect.scope
  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const notifications = yield* PubSub.sliding<ServerNotification>(256)
  const inFlight = new Set<() => void>()
  let isOpen = false
  let isExpired = false
  let isRetired = false

  const fail = (method: string, reason: McpSessionErrorReason) => {
    const error = new McpSessionError({ reason, method, server })
    if (reason._tag === "SessionExpired") wire.sent.expirations.add(error)
    return Effect.fail(error)
  }
  const retire = (reason: "died" | "unhealthy") =>
    Effect.suspend(() => {
      if (isRetired) return Effect.void
      isRetired = true
      return handle.retire(reason)
    })
  const sessionful = () => opened.sessionful === true || wire.sessionId !== undefined

  // The calls first: the SDK's own rejections come later, if at all
  const abandonCalls = () => {
    for (const abandon of inFlight) abandon()
    inFlight.clear()
  }

  wire.listener = {
    ...listener,
    onEnd: () => {
      listener.onEnd?.()
      abandonCalls()
      if (isOpen) runFork(retire("died"))
    },
    onUnsent: (error) => {
      const failed = reasonOf(error, sessionful(), scrub)
      const reason = failed._tag === "McpSessionError" ? failed.reason : failed
      // Whoever sent it, and whatever becomes of its error
      if (isOpen && reason._tag === "SessionExpired") {
        isExpired = true
        runFork(retire("died"))
      }
      return reason._tag === "SessionExpired" || !reason.requestSent
    },
    onError: (error) => runFork(Effect.logDebug(`"${server}": ${scrub(error.message).slice(0, 500)}`)),
    // What has changed meanwhile would not be told
    onDeaf: () => lists.clear(),
    onNotification: (notification) => {
      const { method } = notification
      if (method === "notifications/progress" || method === "notifications/cancelled") return
      lists.onNotification(method)
      runFork(PubSub.publish(notifications, notification as ServerNotification))
    }
  }

  yield* Scope.addFinalizer(
    scope,
    Effect.gen(function*() {
      isOpen = false
      abandonCalls()
      yield* PubSub.shutdown(notifications)
      // 2025-11-25, basic/transports#session-management: a client that no longer needs a session SHOULD send DELETE. A
      // mute server must not hold it up.
      if (!isExpired && opened.terminate !== undefined) yield* bounded(opened.terminate)
      yield* bounded(() => client.close())
      yield* bounded(() => wire.close())
    })
  )

  // -- Calls ------------------------------------------------------------------

  const attempt = <A>(
    method: string,
    f: (options: Clients.CallOptionsLike) => Promise<A>,
    onprogress?: (progress: Clients.ProgressLike) => void
  ): Effect.Effect<A, McpSessionError> =>
    Effect.callback<A, McpSessionError>((resume) => {
      if (wire.closed || !isOpen) return resume(fail(method, new SessionClosed({ requestSent: false })))
      // One a call: v1 never removes its listener from the signal, and would cancel what has long been answered
      const controller = new AbortController()
      const end = (result: Effect.Effect<A, McpSessionError>) => {
        inFlight.delete(onEnd)
        resume(result)
      }
      const onEnd = () => end(fail(method, new SessionClosed({ requestSent: true })))
      inFlight.add(onEnd)
      const options = { signal: controller.signal, timeout: Clients.noTimeout }
      const asked = async () => f(onprogress === undefined ? options : { ...options, onprogress })
      asked().then(
        (value) => end(Effect.succeed(value)),
        (error) => {
          const reason = reasonOf(error, sessionful(), scrub)
          end(reason._tag === "McpSessionError" ? Effect.fail(reason) : fail(method, reason))
        }
      )
      return Effect.sync(() => {
        inFlight.delete(onEnd)
        controller.abort("The caller no longer waits for this")
      })
    })

  const within = <A>(
    method: string,
    effect: Effect.Effect<A, McpSessionError>,
    duration: Duration.Input
  ): Effect.Effect<A, McpSessionError> =>
    Effect.timeoutOrElse(effect, {
      duration,
      orElse: () => fail(method, new RequestTimeout({ requestSent: true }))
    })

  const call = <A>(
    method: string,
    f: (options: Clients.CallOptionsLike) => Promise<A>,
    options: CallOptions | undefined
  ): Effect.Effect<A, McpSessionError> => judged(within(method, attempt(method, f), options?.timeout ?? requestTimeout))

  const callWithProgress = <A>(
    method: string,
    f: (options: Clients.CallOptionsLike) => Promise<A>,
    options: ProgressOptions | undefined
  ): Effect.Effect<A, McpSessionError> => {
    const onProgress = options?.onProgress
    if (onProgress === undefined) return call(method, f, options)
    return Effect.scoped(Effect.gen(function*() {
      const queue = yield* Queue.unbounded<Progress, Cause.Done>()
      const handled = yield* Effect.forkScoped(Stream.runForEach(Stream.fromQueue(queue), onProgress))
      const attempted = attempt(method, f, (progress) => Queue.offerUnsafe(queue, progress as Progress))
      const value = yield* judged(within(method, attempted, options?.timeout ?? requestTimeout))
      yield* Queue.end(queue)
      yield* Fiber.join(handled)
      return value
    }))
  }

  // -- Liveness ---------------------------------------------------------------

  let timeouts = 0
  let isProbing = false

  const judged = <A>(effect: Effect.Effect<A, McpSessionError>): Effect.Effect<A, McpSessionError> =>
    Effect.onExit(effect, (exit) => {
      const error = Exit.isFailure(exit) ? Exit.findErrorOption(exit) : undefined
      if (error === undefined) {
        timeouts = 0
        return Effect.void
      }
      if (error._tag === "None") return Effect.void
      const reason = error.value.reason._tag
      if (isLost(reason)) return retire("died")
      timeouts = reason === "RequestTimeout" ? timeouts + 1 : 0
      if (timeouts < 2 || isProbing) return Effect.void
      isProbing = true
      return Effect.asVoid(Effect.forkIn(probe, scope))
    })

  const probe: Effect.Effect<void> = within("ping", attempt("ping", (o) => Clients.probe(client, o)), "5 seconds").pipe(
    Effect.matchEffect({
      onSuccess: () => Effect.void,
      onFailure: ({ reason }) =>
        reason._tag === "RequestTimeout"
          ? retire("unhealthy")
          : isLost(reason._tag)
          ? retire("died")
          : Effect.void
    }),
    Effect.ensuring(Effect.sync(() => {
      timeouts = 0
      isProbing = false
    }))
  )

  // -- Lists ------------------------------------------------------------------

  const lists = Lists.make({
    runFork,
    page: (kind, params) => attempt(Lists.methods[kind], (o) => client[Lists.methods[kind]](params, o)),
    isKept: () => !wire.isDeaf && !Clients.isModern(client),
    server
  })

  const list = <A>(kind: Lists.Kind, options: CallOptions | undefined) =>
    judged(
      within(Lists.methods[kind], lists.get(kind), options?.timeout ?? requestTimeout)
    ) as Effect.Effect<A, McpSessionError>

  const session = (): McpSession<C> => ({
    [TypeId]: wire.sent,
    identity,
    // From 2026-07-28 on a server may be anonymous
    serverInfo: (client.getServerVersion() ?? { name: server, version: "" }) as Implementation,
    capabilities: (client.getServerCapabilities() ?? {}) as ServerCapabilities,
    instructions: client.getInstructions(),
    protocolVersion: wire.protocolVersion ?? "",
    client,
    pid: opened.pid,
    callTool: (params, options) =>
      callWithProgress("callTool", (o) => Clients.callTool(client, params, o) as Promise<CallToolResult>, options),
    listTools: (options) => list("tools", options),
    listResources: (options) => list("resources", options),
    listResourceTemplates: (options) => list("resourceTemplates", options),
    listPrompts: (options) => list("prompts", options),
    readResource: (params, options) =>
      callWithProgress("readResource", (o) => client.readResource(params, o) as Promise<ReadResourceResult>, options),
    getPrompt: (params, options) =>
      callWithProgress("getPrompt", (o) => client.getPrompt(params, o) as Promise<GetPromptResult>, options),
    complete: (params, options) =>
      call("complete", (o) => client.complete(params as never, o) as Promise<CompleteResult>, options),
    setLoggingLevel: (level, options) =>
      Effect.asVoid(call("setLoggingLevel", (o) => client.setLoggingLevel(level as never, o), options)),
    subscribeResource: (params, options) =>
      Effect.asVoid(call("subscribeResource", (o) => client.subscribeResource(params, o), options)),
    unsubscribeResource: (params, options) =>
      Effect.asVoid(call("unsubscribeResource", (o) => client.unsubscribeResource(params, o), options)),
    ping: (options) => Effect.asVoid(call("ping", (o) => Clients.probe(client, o), options)),
    request: (f, options) => call("request", (o) => f(client, o), options),
    notifications: Stream.fromPubSub(notifications)
  })

  return () => {
    isOpen = true
    if (wire.closed) runFork(retire("died"))
    return session()
  }
})

const isLost = (reason: McpSessionErrorReason["_tag"]): boolean =>
  reason === "SessionClosed" || reason === "SessionExpired" || reason === "Unreachable"

/**
 * Two seconds for something that may never settle, and whose failure changes nothing.
 */
const bounded = (f: () => Promise<unknown>): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    const done = () => resume(Effect.void)
    f().then(done, done)
  }).pipe(Effect.timeoutOption("2 seconds"), Effect.asVoid)

/**
 * A connector's own error, raised inside of the SDK, comes through as it is.
 */
const reasonOf = (
  error: unknown,
  sessionful: boolean,
  scrub: Scrub
): McpSessionErrorReason | McpSessionError => {
  if (error instanceof McpSessionError) return error
  const failure = classify(error, sessionful)
  switch (failure._tag) {
    case "SessionClosed":
      return new SessionClosed(failure)
    case "SessionExpired":
      return new SessionExpired(failure)
    case "Unauthorized":
      return new Unauthorized(failure)
    case "Forbidden":
      return new Forbidden(failure)
    case "RequestTimeout":
      return new RequestTimeout(failure)
    case "HttpFailure":
      return new HttpFailure(failure)
    case "Unreachable":
      return new Unreachable(failure)
    case "ProtocolFailure":
      return new ProtocolFailure({
        ...failure,
        message: scrub(failure.message).slice(0, 500),
        data: scrub.data(failure.data)
      })
  }
}
