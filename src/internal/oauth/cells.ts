/**
 * What is known of the tokens of one identity at one upstream, for all of its sessions, and the one attempt at a time
 * to get others.
 */
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { AuthorizationFailed } from "../../Authorization.ts"
import type { FetchLike, SessionHandle } from "../../Connector.ts"
import type { Identity } from "../../Identity.ts"
import type { McpSessionError } from "../../McpSessionError.ts"
import * as Scrub from "../scrub.ts"
import type * as Drafts from "./drafts.ts"

/** The OAuth code of a generation of the SDK. */
export interface Sdk {
  readonly auth: (provider: OAuthClientProvider, options: AuthOptions) => Promise<"AUTHORIZED" | "REDIRECT">
  readonly privateKeyJwt: Drafts.PrivateKeyJwt
}

export interface AuthOptions {
  readonly serverUrl: URL
  readonly fetchFn: FetchLike
  readonly authorizationCode?: string
  /** The first generation does not know it. */
  readonly iss?: string
  readonly scope?: string
  readonly resourceMetadataUrl?: URL
  /** The first generation does not know it, and is given no refresh token instead. */
  readonly forceReauthorization?: boolean
}

/** Whose tokens, and what they are for. */
export interface Options {
  readonly sdk: Sdk
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
}

/** What is known of the tokens of one identity at one upstream. */
export interface Tokens {
  /** The one to send, if there is one. Sends nothing unless it has to be asked for first. */
  readonly current: Effect.Effect<string | undefined, unknown>
  /** The same, if it is known without asking anybody. */
  readonly known: () => string | undefined
  /** Gets another one than this, or `current` stays as it is. */
  readonly renew: (wanted: Wanted) => Effect.Effect<void, unknown>
  /** One attempt at a time, of all sessions. */
  readonly cell: Cell
}

export interface Wanted {
  readonly refused: string | undefined
  readonly scope: string | undefined
  /** The token is good, but not good enough. */
  readonly isStepUp: boolean
  readonly resourceMetadataUrl: URL | undefined
}

export interface Cell {
  users: number
  /** Takes out what authorization servers were told, for whomever: they may say it again much later. */
  readonly told: Scrub.Scrub
  /** Called when it may be that nobody needs it any more. */
  readonly release: () => void
  flight: Deferred.Deferred<void, unknown> | undefined
  /** How many attempts there have been. */
  flown: number
  /** What the last of them has failed with. It answers all who had sent their request by then. */
  failed: Exit.Exit<void, unknown> | undefined
  /** The scopes of the last of them that was to widen a token. */
  widenedBy: string | undefined
  /** What it has brought, and nobody has accepted yet; how long it is not replaced, and until when that is. */
  unproven: { readonly token: string; readonly rest: number; readonly until: number } | undefined
  grant: Drafts.Grant | undefined
  isRead: boolean
  /** The scopes that were asked for. */
  scope: string | undefined
  resourceMetadataUrl: URL | undefined
  source: { readonly token: string; readonly isGood: () => boolean } | undefined
}

/** What the SDKs are told besides. They take no `undefined`. */
export const moreOf = (
  cell: Cell,
  { isStepUp, resourceMetadataUrl = cell.resourceMetadataUrl }: Wanted,
  scope: string | undefined
): Partial<AuthOptions> => {
  cell.resourceMetadataUrl = resourceMetadataUrl
  return {
    ...(scope === undefined ? {} : { scope }),
    ...(resourceMetadataUrl === undefined ? {} : { resourceMetadataUrl }),
    ...(isStepUp ? { forceReauthorization: true } : {})
  }
}

/** RFC 6750 section 2.1 has fewer characters than these. Others end the header, or can't be in one. */
export const isSendable = (token: string): boolean => /^[!-~]+$/.test(token)

export const notSendable = () =>
  new AuthorizationFailed({ issue: "it can't be sent in a header: it is empty, or not all visible ASCII" })

/** How long an authorization server has for all that it is asked for one token. */
export const patience = Duration.seconds(10)

/** The upstream as far as it is another's: whoever listens behind another path or query is somebody else. */
export const resourceOf = ({ origin, pathname, search }: URL): string => `${origin}${pathname}${search}`

/** Whose tokens they are, and for what: a token goes nowhere else. */
export const keyOf = ({ identity, url }: Pick<Options, "identity" | "url">): string =>
  JSON.stringify([resourceOf(url), identity.key])

/** By what the tokens are in, and by a key that tells as much as {@link keyOf}: all sessions of its share one. */
const cells = new WeakMap<object, { readonly told: Scrub.Scrub; readonly byKey: Map<string, Cell> }>()

export const cellOf = (owner: object, key: string): Effect.Effect<Cell, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const { byKey, told } = cells.get(owner) ?? { told: Scrub.make(), byKey: new Map<string, Cell>() }
      cells.set(owner, { told, byKey })
      const cell = byKey.get(key) ?? make(told, () => {
        // What is on its way would be asked for twice by whoever comes next
        if (cell.users === 0 && cell.flight === undefined && byKey.get(key) === cell) byKey.delete(key)
      })
      byKey.set(key, cell)
      cell.users++
      return cell
    }),
    (cell) =>
      Effect.sync(() => {
        cell.users--
        cell.release()
      })
  )

const make = (told: Scrub.Scrub, release: () => void): Cell => ({
  users: 0,
  told,
  release,
  flight: undefined,
  flown: 0,
  failed: undefined,
  widenedBy: undefined,
  unproven: undefined,
  grant: undefined,
  isRead: false,
  scope: undefined,
  resourceMetadataUrl: undefined,
  source: undefined
})

/**
 * What comes of it in this time. It goes on when whoever waits has gone, and nobody waits for what can't be
 * interrupted.
 */
export const inTime = <A, E, R, E2>(
  work: Effect.Effect<A, E, R>,
  duration: Duration.Duration,
  late: () => E2
): Effect.Effect<A, E | E2, R> =>
  Effect.flatMap(
    Effect.forkDetach(work, { startImmediately: true }),
    (fiber) =>
      Effect.timeoutOrElse(Fiber.join(fiber), {
        duration,
        orElse: () =>
          Effect.suspend(() => {
            fiber.interruptUnsafe()
            return Effect.fail(late())
          })
      })
  )

/**
 * One attempt for all who wait. It goes on when they have gone: a refresh token that was used must not be lost with its
 * answer. False if somebody else's was under way.
 */
export const fly = (cell: Cell, work: Effect.Effect<void, unknown>): Effect.Effect<boolean, unknown> =>
  Effect.suspend(() => {
    if (cell.flight !== undefined) return Effect.as(Deferred.await(cell.flight), false)
    const flight = cell.flight = Deferred.makeUnsafe<void, unknown>()
    const attempt = inTime(
      work,
      patience,
      () => new AuthorizationFailed({ issue: `it took longer than ${Duration.format(patience)}` })
    )
    return Effect.andThen(
      Effect.forkDetach(
        Effect.onExit(attempt, (exit) =>
          Effect.sync(() => {
            cell.flight = undefined
            cell.flown++
            cell.failed = Exit.isFailure(exit) ? exit : undefined
            cell.release()
            Deferred.doneUnsafe(flight, exit)
          })),
        { startImmediately: true }
      ),
      Effect.as(Deferred.await(flight), true)
    )
  })

/** Takes secrets out of the session's texts until others take their place, or the session has ended. */
export const holder = (
  scrub: Scrub.Scrub
): Effect.Effect<(secrets: ReadonlyArray<string>) => void, never, Scope.Scope> => {
  let held: ReadonlyArray<string> = []
  let releases: ReadonlyArray<() => void> = []
  const hold = (secrets: ReadonlyArray<string>) => {
    if (secrets.length === held.length && secrets.every((secret, i) => secret === held[i])) return
    const before = releases
    held = secrets
    releases = secrets.map(scrub.hold)
    for (const release of before) release()
  }
  return Effect.acquireRelease(Effect.succeed(hold), () => Effect.sync(() => hold([])))
}
