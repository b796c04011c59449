/**
 * One call: it has its own abort signal and its own timeout, takes progress, and fails the moment that its session
 * ends.
 */
import type { Progress } from "@modelcontextprotocol/sdk/types.js"
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import {
  McpSessionError,
  type McpSessionErrorReason,
  RequestTimeout,
  type SessionClosed
} from "../../McpSessionError.ts"
import type { ProgressOptions } from "../../Session.ts"
import * as Sent from "../sent.ts"
import * as Time from "../time.ts"
import * as Sdk from "./sdk.ts"
import * as Spans from "./spans.ts"
import type { Wire } from "./wire.ts"

/** Asks something of the SDK's client. */
export type Ask<A> = (options: Sdk.CallOptionsLike) => Promise<A>

export interface Calls {
  /** A call within its time, its progress handled. */
  readonly call: <A>(method: string, ask: Ask<A>, options?: ProgressOptions) => Effect.Effect<A, McpSessionError>
  /** A call that takes as long as it takes. */
  readonly attempt: <A>(method: string, ask: Ask<A>, options?: AttemptOptions) => Effect.Effect<A, McpSessionError>
  readonly within: <A>(
    method: string,
    effect: Effect.Effect<A, McpSessionError>,
    timeout?: Duration.Input
  ) => Effect.Effect<A, McpSessionError>
  /** An error of this session. */
  readonly fail: (method: string, reason: McpSessionErrorReason) => Effect.Effect<never, McpSessionError>
  /** Whether the error is one of this session, and not one that only came by. */
  readonly isOwn: (error: McpSessionError) => boolean
  /** Fails all that are in flight: the session has ended. */
  readonly abandon: () => void
}

export interface AttemptOptions {
  readonly onProgress?: (progress: Sdk.ProgressLike) => void
  /** On whose behalf: by default that of the lease within which it is made. */
  readonly sender?: Sent.Sender
}

export interface Options {
  readonly wire: Wire
  /** What errors call the server. */
  readonly server: string
  /** How long a call may take that says nothing else. */
  readonly timeout: Duration.Input
  readonly isOpen: () => boolean
  readonly reasonOf: (error: unknown) => McpSessionErrorReason | McpSessionError
  readonly closed: (requestSent: boolean) => SessionClosed
}

/** Runs a call within its time, which may begin anew whenever something is heard of it. */
type Limited = <A>(run: (heard: () => void) => Effect.Effect<A, McpSessionError>) => Effect.Effect<A, McpSessionError>

// Whoever handles progress more slowly than it comes loses the oldest
const maxProgress = 256

export const make = ({ closed, isOpen, reasonOf, server, timeout: defaultTimeout, wire }: Options): Calls => {
  const inFlight = new Set<() => void>()
  const own = new WeakSet<McpSessionError>()

  const fail = (method: string, reason: McpSessionErrorReason) => {
    const error = new McpSessionError({ reason, method, server })
    own.add(error)
    if (reason._tag === "SessionExpired" && reason.refused) wire.sent.expirations?.add(error)
    return Effect.fail(error)
  }

  const attempt: Calls["attempt"] = (method, ask, { onProgress, sender } = {}) =>
    Effect.callback((resume) => {
      if (wire.closed || !isOpen()) return resume(fail(method, closed(false)))
      // One a call: v1 never removes its listener from the signal, and would cancel what has long been answered
      const controller = new AbortController()
      const end = (result: Parameters<typeof resume>[0]) => {
        inFlight.delete(onEnd)
        resume(result)
      }
      const onEnd = () => end(fail(method, closed(true)))
      inFlight.add(onEnd)
      const options = {
        signal: controller.signal,
        timeout: Sdk.noTimeout,
        onresumptiontoken: Sent.carry(
          Spans.carrier(),
          sender ?? Sent.senderWithin(Context.get(Fiber.getCurrent()!.context, Sent.CurrentLease))
        )
      }
      const asked = async () => ask(onProgress === undefined ? options : { ...options, onprogress: onProgress })
      asked().then(
        (value) => end(Effect.succeed(value)),
        (error) => {
          const found = reasonOf(error)
          const reason = found._tag === "SessionClosed" ? closed(found.requestSent) : found
          end(reason._tag === "McpSessionError" ? Effect.fail(reason) : fail(method, reason))
        }
      )
      return Effect.sync(() => {
        inFlight.delete(onEnd)
        controller.abort("The caller no longer waits for this")
      })
    })

  const expired = (method: string) => fail(method, new RequestTimeout({ requestSent: true }))

  const within: Calls["within"] = (method, effect, timeout = defaultTimeout) =>
    Effect.timeoutOrElse(effect, { duration: timeout, orElse: () => expired(method) })

  // 2025-11-25, basic/lifecycle#timeouts: progress MAY reset the clock, and a maximum SHOULD be enforced all the same
  const whileProgressing = <A>(
    method: string,
    run: (heard: () => void) => Effect.Effect<A, McpSessionError>,
    { maxTotalTimeout, timeout = defaultTimeout }: ProgressOptions
  ): Effect.Effect<A, McpSessionError> =>
    Clock.clockWith((clock) => {
      const now = Time.monotonic(clock)
      const patience = Duration.toMillis(timeout)
      const most = maxTotalTimeout === undefined ? Infinity : Duration.toMillis(maxTotalTimeout)
      const end = now() + (Number.isFinite(most) ? most : 10 * patience)
      let heardAt = now()
      const watch: Effect.Effect<never, McpSessionError> = Effect.suspend(() => {
        const left = Math.min(heardAt + patience, end) - now()
        return left > 0 ? Effect.andThen(Effect.sleep(left), watch) : expired(method)
      })
      const heard = () => {
        heardAt = now()
      }
      return Effect.raceFirst(run(heard), watch)
    })

  // An answer that has come is not held back by who handles progress for longer than the call has time: it may have
  // cost something. The handler is interrupted then, and nobody waits for it: it may not listen.
  const withProgress = <A>(
    method: string,
    ask: Ask<A>,
    onProgress: NonNullable<ProgressOptions["onProgress"]>,
    limited: Limited
  ): Effect.Effect<A, McpSessionError> =>
    Effect.flatMap(Queue.sliding<Progress, Cause.Done>(maxProgress), (queue) => {
      let answer: Exit.Exit<A> | undefined
      return Effect.acquireUseRelease(
        Effect.forkDetach(Stream.runForEach(Stream.fromQueue(queue), onProgress)),
        (handling) =>
          limited((heard) =>
            attempt(method, ask, {
              onProgress: (progress) => {
                heard()
                Queue.offerUnsafe(queue, progress as Progress)
              }
            }).pipe(
              Effect.flatMap((value) => {
                answer = Exit.succeed(value)
                Queue.endUnsafe(queue)
                return Effect.as(Fiber.join(handling), value)
              })
            )
          ).pipe(
            Effect.catchIf(() => answer !== undefined, () =>
              Effect.andThen(
                Effect.logWarning(
                  `${method} on "${server}": onProgress took longer than the call may and was interrupted`
                ),
                answer!
              ))
          ),
        (handling) => Effect.sync(() => handling.interruptUnsafe())
      )
    })

  const call: Calls["call"] = (method, ask, options = {}) => {
    const { onProgress, resetTimeoutOnProgress = false } = options
    if (onProgress === undefined && !resetTimeoutOnProgress) {
      return within(method, attempt(method, ask), options.timeout)
    }
    const limited: Limited = (run) =>
      resetTimeoutOnProgress
        ? whileProgressing(method, run, options)
        : within(method, run(() => {}), options.timeout)
    return onProgress === undefined
      ? limited((heard) => attempt(method, ask, { onProgress: heard }))
      : withProgress(method, ask, onProgress, limited)
  }

  return {
    call,
    attempt,
    fail,
    within,
    isOwn: (error) => own.has(error),
    abandon: () => {
      for (const onEnd of inFlight) onEnd()
      inFlight.clear()
    }
  }
}
