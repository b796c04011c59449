/**
 * The other side of a pool: sessions that do nothing but say when they were opened and closed.
 */
import type { Identity, SessionHandle } from "effect-mcp-sessions"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/** What a connect of these tests fails with. */
export class Refused extends Data.TaggedError("Refused")<{ readonly why: string }> {}

export interface TestSession {
  /** Its key and which of that key's sessions it is: `a1`, `a2`, `b1`. */
  readonly name: string
  readonly identity: Identity
  readonly handle: SessionHandle
  isOpen: boolean
}

export interface UpstreamOptions {
  /** Runs before anything is acquired. */
  readonly dial?: ((session: TestSession) => Effect.Effect<unknown, Refused, Scope.Scope>) | undefined
  /** Runs when the session is acquired, and before `connect` returns it. */
  readonly handshake?: ((session: TestSession) => Effect.Effect<unknown, Refused, Scope.Scope>) | undefined
  /** Runs in the session's finalizer. */
  readonly hangUp?: ((session: TestSession) => Effect.Effect<unknown>) | undefined
}

export interface Upstream {
  /** How often `connect` was called. */
  connects: number
  /** The names of the acquired, and of the closed (when their finalizer began), in order. */
  readonly opened: Array<string>
  readonly closed: Array<string>
  /** Those whose finalizer ran to its end. */
  readonly gone: Array<string>
  readonly sessions: Array<TestSession>
  /** Calls of `connect` that have not ended, and sessions that are acquired and not in their finalizer. */
  readonly live: () => number
  /** The largest `live` there was. */
  peak: number
  /** The largest number of finalizers that were running at once. */
  peakClosing: number
  readonly connect: (
    identity: Identity,
    handle: SessionHandle
  ) => Effect.Effect<TestSession, Refused, Scope.Scope>
}

const nothing = () => Effect.void

export const makeUpstream = (options: UpstreamOptions = {}): Upstream => {
  const incarnations = new Map<string, number>()
  let connecting = 0
  let acquired = 0
  let closing = 0
  const { dial = nothing, handshake = nothing, hangUp = nothing } = options
  const upstream: Upstream = {
    connects: 0,
    opened: [],
    closed: [],
    gone: [],
    sessions: [],
    live: () => connecting + acquired,
    peak: 0,
    peakClosing: 0,
    connect: (identity, handle) =>
      Effect.suspend(() => {
        upstream.connects++
        connecting++
        upstream.peak = Math.max(upstream.peak, upstream.live())
        let isConnecting = true
        const connected = () => {
          if (isConnecting) connecting--
          isConnecting = false
        }
        const n = (incarnations.get(identity.key) ?? 0) + 1
        incarnations.set(identity.key, n)
        const session: TestSession = { name: `${identity.key}${n}`, identity, handle, isOpen: false }
        const open = Effect.sync(() => {
          connected()
          acquired++
          session.isOpen = true
          upstream.sessions.push(session)
          upstream.opened.push(session.name)
        })
        const close = Effect.suspend(() => {
          acquired--
          closing++
          upstream.peakClosing = Math.max(upstream.peakClosing, closing)
          session.isOpen = false
          upstream.closed.push(session.name)
          return Effect.ensuring(
            Effect.andThen(
              Effect.suspend(() => hangUp(session)),
              Effect.sync(() => upstream.gone.push(session.name))
            ),
            Effect.sync(() => {
              closing--
            })
          )
        })
        return Effect.suspend(() => dial(session)).pipe(
          Effect.andThen(Effect.acquireRelease(open, () => close)),
          Effect.andThen(Effect.suspend(() => handshake(session))),
          Effect.as(session),
          Effect.ensuring(Effect.sync(connected))
        )
      })
  }
  return upstream
}

/** An upstream whose first `n` connects of an identity are refused. */
export const refuseFirst = (n: number): NonNullable<UpstreamOptions["dial"]> => (session) =>
  Number(session.name.slice(session.identity.key.length)) <= n
    ? Effect.fail(new Refused({ why: session.name }))
    : Effect.void
