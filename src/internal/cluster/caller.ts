/**
 * The sessions of a cluster, as a node uses them that may not have them.
 *
 * The leases of a node are a pool of their own: all callers of a key share one, which is kept for `leaseTimeToLive`
 * after the last of them. To open one is to find the owner, through the engine; a call then goes to that node alone,
 * and is never sent again. Whatever ends a lease, a link or a node fails what is in flight, and says whether it may
 * have run.
 */
import type { Progress, ServerNotification } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Sharding from "effect/cluster/Sharding"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import type { ClusterMember } from "../../ClusterMembership.ts"
import type { SessionHandle } from "../../Connector.ts"
import type { Identity } from "../../Identity.ts"
import { McpSessionError, type McpSessionErrorReason, RequestTimeout, SessionClosed } from "../../McpSessionError.ts"
import type { ListOptions, ProgressOptions, RemoteSession } from "../../Session.ts"
import { type ClusterConnectError, ClusterUnavailable } from "../../SessionClusterError.ts"
import type { SessionPoolError } from "../../SessionPoolError.ts"
import * as Sent from "../sent.ts"
import * as Codec from "./codec.ts"
import type { Errands } from "./errands.ts"
import { nameOf } from "./fence.ts"
import type { Node, Peer } from "./node.ts"
import type { Owner } from "./owner.ts"
import * as Wire from "./wire.ts"

export type LeaseError = ClusterConnectError | SessionPoolError | ClusterUnavailable

/** A lease, as the node knows it that has taken it. */
export interface Lease {
  readonly id: string
  readonly member: ClusterMember
  readonly facts: Codec.Facts
  readonly handle: SessionHandle
  /** Undefined where the owner is this node. */
  readonly peer: Peer | undefined
  /** What was sent on it, so that nothing is repeated that may have run. */
  readonly sent: Sent.Sent
  /** The errors that say of a call that it was not run. */
  readonly unrun: WeakMap<object, Unrun>
  /** The last of its calls. */
  seq: number
  /** The owner's word is that it knows these. */
  presented: Identity
  isOver: boolean
}

export interface Caller {
  readonly lease: (identity: Identity, handle: SessionHandle) => Effect.Effect<Lease, LeaseError, Scope.Scope>
  readonly session: (lease: Lease, identity: Identity) => RemoteSession
  readonly invalidate: (identity: Identity) => Effect.Effect<boolean, ClusterUnavailable>
}

/**
 * Why whoever failed with an error of a lease may be run again, from the start, on another one: a call was not run,
 * because the session has moved or because it has ended.
 */
export type Unrun = "moved" | "ended"

/** Runs `f` with the session, and tells of an error whether `f` may be run again. */
export const use = <A, E, R>(
  lease: Lease,
  f: Effect.Effect<A, E, R>
): Effect.Effect<A, { readonly error: E; readonly unrun: Unrun | undefined }, R> =>
  Effect.withFiber((fiber) => {
    const within = Sent.makeLease(lease.sent, Context.get(fiber.context, Sent.CurrentLease))
    return Effect.mapError(Effect.provideService(f, Sent.CurrentLease, within), (error) => ({
      error,
      unrun: typeof error === "object" && error !== null && !Sent.mayHaveRun(within)
        ? lease.unrun.get(error)
        : undefined
    }))
  })

export const make = Effect.fnUntraced(function*(options: {
  readonly node: Node
  readonly owner: Owner | undefined
  readonly errands: Errands
  /** In milliseconds. */
  readonly locateTimeout: number
  readonly maxMessageBytes: number
}) {
  const { errands, locateTimeout, maxMessageBytes, node, owner } = options
  const scope = yield* Effect.scope
  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const client = yield* Wire.makeEntity(node.settings.group).client.pipe(
    Effect.provideService(Sharding.Sharding, node.sharding)
  )
  const { self } = node.membership

  // ---------------------------------------------------------------------------
  // Leases
  // ---------------------------------------------------------------------------

  const unavailable = (method: ClusterUnavailable["method"], reason: ClusterUnavailable["reason"], since: number) =>
    new ClusterUnavailable({ method, reason, waited: Duration.millis(Math.round(node.fence.now() - since)) })

  const attempt = Effect.fnUntraced(function*(identity: Identity, handle: SessionHandle, patience: number) {
    const located = Deferred.makeUnsafe<ClusterMember | undefined>()
    const granted = Deferred.makeUnsafe<typeof Wire.Granted.Type, LeaseError | "lost">()
    let lease: Lease | undefined
    const over = Effect.suspend(() => {
      Deferred.doneUnsafe(located, Exit.succeed(undefined))
      Deferred.doneUnsafe(granted, Exit.fail("lost"))
      if (lease === undefined || lease.isOver) return Effect.void
      lease.isOver = true
      return handle.retire("died")
    })
    const onEvent = (event: Wire.LeaseEvent): Effect.Effect<void, "again"> =>
      Effect.suspend(() => {
        switch (event._tag) {
          case "Located":
            // The engine has sent it again: whoever had granted it may have nothing of it any more
            return Deferred.doneUnsafe(located, Exit.succeed({ host: event.host, port: event.port }))
              ? Effect.void
              : Effect.fail("again" as const)
          case "Granted":
            return Deferred.doneUnsafe(granted, Exit.succeed(event)) ? Effect.void : Effect.fail("again" as const)
          case "Failed":
            return Effect.sync(() => void Deferred.doneUnsafe(granted, Exit.fail(Codec.crossed(event.error))))
          case "Died":
            return Effect.sync(() => void Deferred.doneUnsafe(granted, Exit.die(new Error(event.message))))
          case "Retired":
            return handle.retire("died")
        }
      })
    const listening = Fiber.runIn(
      runFork(Effect.onExit(
        Stream.runForEach(client(identity.key).Lease({ identity }), onEvent),
        () => over
      )),
      scope
    )
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        if (lease !== undefined) lease.isOver = true
        listening.interruptUnsafe()
      })
    )
    const member = yield* Effect.timeoutOption(Deferred.await(located), patience)
    if (Option.isNone(member)) return yield* Effect.fail("silent" as const)
    if (member.value === undefined) return yield* Effect.fail("lost" as const)
    const peer = nameOf(member.value) === (self && nameOf(self)) ? undefined : yield* node.peer(member.value)
    const { facts, lease: id } = yield* Deferred.await(granted)
    lease = {
      id,
      member: member.value,
      facts: yield* Effect.try({ try: () => Codec.parseFacts(facts), catch: () => "lost" as const }),
      handle,
      peer,
      sent: Sent.make(true),
      unrun: new WeakMap(),
      seq: 0,
      presented: identity,
      isOver: listening.pollUnsafe() !== undefined
    }
    return lease
  })

  const lease: Caller["lease"] = (identity, handle) =>
    Effect.suspend(() => {
      const since = node.fence.now()
      const left = () => locateTimeout - (node.fence.now() - since)
      const loop: Effect.Effect<Lease, LeaseError, Scope.Scope> = Effect.suspend(() =>
        Effect.catch(attempt(identity, handle, Math.max(0, left())), (error): typeof loop => {
          if (error === "silent") return Effect.fail(unavailable("get", "owner", since))
          if (error !== "lost") return Effect.fail(error)
          return left() <= 0
            ? Effect.fail(unavailable("get", "lost", since))
            : Effect.andThen(Effect.sleep(100), loop)
        })
      )
      return loop
    })

  // ---------------------------------------------------------------------------
  // Calls
  // ---------------------------------------------------------------------------

  const session: Caller["session"] = (on, identity) => {
    const server = on.facts.serverInfo.name
    const closed = (method: string, requestSent: boolean) =>
      new McpSessionError({ reason: new SessionClosed({ requestSent }), method, server })

    // What the failure of a link or of the owner means to whoever has called
    const failureOf = (method: string, cause: Cause.Cause<unknown>): Effect.Effect<never, McpSessionError> => {
      const found = Cause.findErrorOption(cause)
      const error = Option.isSome(found) ? Codec.crossed(found.value) : undefined
      if (error instanceof McpSessionError) {
        if (!isLost(error.reason)) return Effect.fail(error)
        if (isUnrunAtOwner(error.reason)) on.unrun.set(error, "ended")
        return Effect.andThen(on.handle.retire("died"), Effect.fail(error))
      }
      // A handler of the caller's own
      if (error === undefined && Cause.hasDies(cause)) return Effect.failCause(cause as Cause.Cause<never>)
      const isUnrun = error instanceof Wire.Refused ? !error.seen : isUnsent(error)
      const failed = closed(method, !isUnrun)
      if (isUnrun) on.unrun.set(failed, "moved")
      return Effect.andThen(on.handle.retire("died"), Effect.fail(failed))
    }

    const written = (method: string, params: unknown) =>
      params === undefined
        ? Effect.succeed({})
        : Effect.map(
          Codec.carried(params, { method, server, requestSent: false, maxMessageBytes }),
          (json) => ({ params: json })
        )

    // Counted for the lease of whatever pool or cluster it is made within, as any call of any session is
    const counted = <A>(
      method: string,
      run: Effect.Effect<A, McpSessionError>
    ): Effect.Effect<A, McpSessionError> =>
      Effect.withFiber((fiber) => {
        if (on.isOver) {
          const failed = closed(method, false)
          on.unrun.set(failed, "moved")
          return Effect.fail(failed)
        }
        const message = Sent.leave(on.sent, Sent.senderWithin(Context.get(fiber.context, Sent.CurrentLease)))
        return Effect.onExitPrimitive(run, (exit) => {
          const error = Exit.findErrorOption(exit)
          if (Option.isSome(error) && on.unrun.has(error.value)) Sent.refused(on.sent, message)
          else Sent.settled(on.sent, message)
          return undefined
        })
      })

    const request = (operation: Wire.Operation, given: ProgressOptions & ListOptions): Wire.Call => {
      const isNew = !isSame(on.presented, identity)
      if (isNew) on.presented = identity
      // One that never ends is none, as at the session itself
      const maxTotalTimeout = Duration.toMillis(given.maxTotalTimeout ?? Duration.infinity)
      return {
        lease: on.id,
        seq: ++on.seq,
        operation,
        timeout: Duration.toMillis(given.timeout ?? on.facts.requestTimeout),
        ...(maxTotalTimeout === Infinity ? {} : { maxTotalTimeout }),
        ...(given.resetTimeoutOnProgress === undefined
          ? {}
          : { resetTimeoutOnProgress: given.resetTimeoutOnProgress }),
        ...(given.fresh === undefined ? {} : { fresh: given.fresh }),
        ...(isNew ? { identity } : {})
      }
    }

    const call = (operation: Wire.Operation, params: unknown, given: ProgressOptions & ListOptions = {}) =>
      counted(
        operation,
        Effect.suspend(() => {
          const made = request(operation, given)
          const ran = on.peer === undefined
            ? owner === undefined ? Effect.fail(new Wire.Refused({ seen: false })) : owner.callHere(
              made,
              params,
              given.onProgress
            )
            : Effect.withFiber((fiber) =>
              Effect.flatMap(written(operation, params), (json) => {
                const sent = { ...made, ...json, ...traceOf(fiber) }
                const { onProgress } = given
                const answered = onProgress === undefined
                  ? Effect.flatMap(errands.run(on.peer!["Session.Call"](sent)), read)
                  : reported(on.peer!, sent, onProgress)
                return answered.pipe(within(made, () => {
                  const reason = new RequestTimeout({ requestSent: true })
                  return new McpSessionError({ reason, method: operation, server })
                }))
              })
            )
          return Effect.catchCause(ran, (cause) =>
            // The caller's own interruption, or that of the other side
            Cause.hasInterruptsOnly(cause)
              ? Effect.andThen(Effect.yieldNow, failureOf(operation, cause))
              : failureOf(operation, cause))
        })
      ) as Effect.Effect<never, McpSessionError>

    const list = (operation: "listTools" | "listResources" | "listResourceTemplates" | "listPrompts") =>
    (
      given?: ListOptions
    ) => call(operation, undefined, given)

    return {
      identity,
      ...on.facts,
      runner: nameOf(on.member),
      callTool: (params, given) => call("callTool", params, given),
      listTools: list("listTools"),
      listResources: list("listResources"),
      listResourceTemplates: list("listResourceTemplates"),
      listPrompts: list("listPrompts"),
      readResource: (params, given) => call("readResource", params, given),
      getPrompt: (params, given) => call("getPrompt", params, given),
      complete: (params, given) => call("complete", params, given),
      setLoggingLevel: (level, given) => Effect.asVoid(call("setLoggingLevel", level, given)),
      subscribeResource: (params, given) => Effect.asVoid(call("subscribeResource", params, given)),
      unsubscribeResource: (params, given) => Effect.asVoid(call("unsubscribeResource", params, given)),
      ping: (given) => Effect.asVoid(call("ping", undefined, given)),
      notifications: notificationsOf(on, owner)
    }
  }

  // The answer waits for the progress that came before it, but no longer than the call may take.
  const reported = (
    peer: Peer,
    call: Wire.Call,
    onProgress: (progress: Progress) => Effect.Effect<void>
  ) =>
    Effect.gen(function*() {
      const since = node.fence.now()
      const reports = yield* Queue.sliding<string, Cause.Done>(256)
      const handled = Effect.flatMap(Queue.take(reports), (json) =>
        Effect.flatMap(read(json), (progress) => onProgress(progress as Progress)))
      const handling = yield* Effect.forkChild(untilDone(handled), { startImmediately: true })
      let answer: string | undefined
      const listening = Effect.flatMap(peer["Session.CallReported"](call, { asQueue: true }), (arrived) =>
        untilDone(Effect.map(Queue.takeAll(arrived), (all) => {
          for (const report of all) {
            if (report._tag === "Answer") {
              answer = report.json
            } else Queue.offerUnsafe(reports, report.json)
          }
        })))
      yield* errands.run(Effect.scoped(listening))
      Queue.endUnsafe(reports)
      const left = Math.max(0, (call.maxTotalTimeout ?? call.timeout) - (node.fence.now() - since))
      const ended = yield* Effect.timeoutOption(Fiber.await(handling), left)
      if (Option.isSome(ended) && Exit.isFailure(ended.value)) {
        return yield* ended.value
      }
      yield* Fiber.interrupt(handling)
      return yield* read(answer)
    })

  const caller: Caller = {
    lease,
    session,
    invalidate: (identity) =>
      Effect.suspend(() => {
        const since = node.fence.now()
        return errands.run(client(identity.key).Invalidate({ identity })).pipe(
          Effect.timeoutOrElse({
            duration: locateTimeout,
            orElse: () => Effect.fail(unavailable("invalidate", "owner", since))
          }),
          Effect.catchCause((cause) => {
            const error = Option.getOrUndefined(Cause.findErrorOption(cause))
            if (error instanceof ClusterUnavailable) return Effect.fail(error)
            const reason = scope.state._tag === "Closed" ? "closed" : "lost"
            // The caller's own interruption, or that of a node which ends
            return Effect.andThen(Effect.yieldNow, Effect.fail(unavailable("invalidate", reason, since)))
          })
        )
      })
  }
  return caller
})

// -----------------------------------------------------------------------------
// Internals
// -----------------------------------------------------------------------------

// These end a session
const isLost = ({ _tag }: McpSessionErrorReason): boolean =>
  _tag === "SessionClosed" || _tag === "SessionExpired" || _tag === "Unreachable"

const isUnrunAtOwner = (reason: McpSessionErrorReason): boolean =>
  reason._tag === "SessionExpired" ? reason.refused : !reason.requestSent

// A connection that was never made has carried nothing
const isUnsent = (error: unknown): boolean =>
  typeof error === "object" && error !== null && "_tag" in error && error._tag === "RpcClientError" &&
  "reason" in error && typeof error.reason === "object" && error.reason !== null && "_tag" in error.reason &&
  error.reason._tag === "SocketOpenError"

const isSame = (one: Identity, other: Identity): boolean => {
  if (one === other || Option.isNone(other.credentials)) return true
  return Option.isSome(one.credentials) &&
    Redacted.value(one.credentials.value.header) === Redacted.value(other.credentials.value.header)
}

/** How much longer than its timeout a call may take, in milliseconds, before its caller does not wait for the owner. */
const overdue = 10_000

// It is the owner who keeps the time of a call; but it may never answer, though it lives
const within =
  ({ maxTotalTimeout, resetTimeoutOnProgress, timeout }: Wire.Call, late: () => McpSessionError) =>
  <A, E>(answered: Effect.Effect<A, E>): Effect.Effect<A, E | McpSessionError> => {
    const most = resetTimeoutOnProgress === true ? maxTotalTimeout ?? 10 * timeout : timeout
    return Effect.timeoutOrElse(answered, {
      duration: most + overdue,
      orElse: () => Effect.suspend(() => Effect.fail(late()))
    })
  }

// A peer that has lied, or left its answer out: the call may have run
const read = (json: string | undefined): Effect.Effect<unknown, "unreadable"> =>
  Effect.try({ try: () => Codec.parse(json ?? ""), catch: () => "unreadable" as const })

const untilDone = <E>(step: Effect.Effect<void, E | Cause.Done>): Effect.Effect<void, E> =>
  Pull.catchDone(Effect.forever(step), () => Effect.void) as Effect.Effect<void, E>

// Ends when the session does, and when the way to it breaks.
const notificationsOf = (
  { id, peer }: Lease,
  owner: Owner | undefined
): RemoteSession["notifications"] =>
  Stream.suspend(() => {
    const told: Stream.Stream<unknown, unknown> = peer === undefined
      ? owner?.notificationsHere(id) ?? Stream.empty
      // The link is not to wait for who reads slowly: it is everybody's
      : Stream.buffer(Stream.map(peer["Session.Listen"]({ lease: id }), Codec.parse), {
        capacity: 256,
        strategy: "sliding"
      })
    return Stream.catchCause(told, () => Stream.empty) as Stream.Stream<ServerNotification>
  })

const traceOf = (fiber: Fiber.Fiber<unknown, unknown>) => {
  const span = Option.getOrUndefined(Context.getOption(fiber.context, Tracer.ParentSpan))
  return span === undefined
    ? {}
    : { trace: { traceId: span.traceId, spanId: span.spanId, sampled: span.sampled } }
}
