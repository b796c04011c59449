/**
 * What a server lists, asked for once and kept until the server says that it has changed, or where it can't say so for
 * a while.
 *
 * Whoever asks first starts it, everybody else joins, the last one to leave interrupts it. A failure is told to those
 * who wait and is not kept.
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { McpSessionError } from "../../McpSessionError.ts"
import * as Sent from "../sent.ts"

export type Kind = "tools" | "resources" | "resourceTemplates" | "prompts"

export const methods = {
  tools: "listTools",
  resources: "listResources",
  resourceTemplates: "listResourceTemplates",
  prompts: "listPrompts"
} as const

export const requests = {
  tools: "tools/list",
  resources: "resources/list",
  resourceTemplates: "resources/templates/list",
  prompts: "prompts/list"
} as const

// As many as the v2 SDK takes: a server whose cursor never ends must not fill the memory
export const maxPages = 64

export interface Lists {
  /**
   * All pages as one: the first page's other fields, and every page's items. With `isFresh` none that somebody has
   * asked for before.
   */
  readonly get: (kind: Kind, isFresh: boolean) => Effect.Effect<unknown, McpSessionError>
  /** From now on nobody says what changes: what is kept was right until now. */
  readonly onDeaf: () => void
  readonly onNotification: (method: string | undefined) => void
}

interface Listing {
  waiting: number
  readonly result: Deferred.Deferred<unknown, McpSessionError>
  fiber: Fiber.Fiber<unknown, McpSessionError> | undefined
  readonly account: Sent.Account
  /** The server says when it changes, and has been heard ever since it was asked for. */
  isAnnounced: boolean
  /** When it was last known to be right, in milliseconds: while it is announced, it is so now. */
  rightAt: number
}

type Page = { readonly nextCursor?: string | undefined } & { readonly [K in Kind]?: unknown }

export const make = (options: {
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Asks for one page, on behalf of those who wait for it. */
  readonly page: (
    kind: Kind,
    params: { cursor?: string },
    reading: { readonly isFresh: boolean; readonly sender: Sent.Sender }
  ) => Effect.Effect<unknown, McpSessionError>
  readonly sent: Sent.Sent
  /** There are more pages than there may be. */
  readonly tooLong: (kind: Kind) => Effect.Effect<never, McpSessionError>
  /** Whether lists are kept here at all. */
  readonly isKept: () => boolean
  /** Whether the server could now say that a list has changed. */
  readonly isAnnounced: (kind: Kind) => boolean
  /** How long one is kept that nobody says anything of, in milliseconds. */
  readonly timeToLive: number
  /** In milliseconds, by a clock that can't be set. */
  readonly now: () => number
}): Lists => {
  const listings = new Map<Kind, Listing>()

  const forget = (kind: Kind, listing: Listing) => {
    if (listings.get(kind) === listing) listings.delete(kind)
  }

  const pages = Effect.fnUntraced(
    function*(kind: Kind, reading: { readonly isFresh: boolean; readonly sender: Sent.Sender }) {
      const items: Array<unknown> = []
      let first: Page | undefined
      let cursor: string | undefined
      let previous: unknown
      for (let count = 0; count < maxPages; count++) {
        const page = (yield* options.page(kind, cursor === undefined ? {} : { cursor }, reading)) as Page
        const { [kind]: found, nextCursor, ...rest } = page
        first ??= rest
        // As the v2 SDK has it: a page that is followed by itself is the last one
        if (cursor !== undefined && nextCursor === cursor && JSON.stringify(found) === JSON.stringify(previous)) {
          return { ...first, [kind]: items }
        }
        previous = found
        // One by one: there may be more than a function takes arguments
        if (Array.isArray(found)) { for (const item of found) items.push(item) }
        if (nextCursor === undefined) return { ...first, [kind]: items }
        cursor = nextCursor
      }
      return yield* options.tooLong(kind)
    }
  )

  const start = (kind: Kind, isFresh: boolean): Listing => {
    const account: Sent.Account = { inFlight: 0, hasRun: false }
    const listing: Listing = {
      waiting: 0,
      result: Deferred.makeUnsafe(),
      fiber: undefined,
      account,
      isAnnounced: options.isAnnounced(kind),
      rightAt: options.now()
    }
    listings.set(kind, listing)
    const reading = { isFresh, sender: Sent.senderOf(account, options.sent) }
    listing.fiber = options.runFork(Effect.onExit(pages(kind, reading), (exit) => {
      if (Exit.isFailure(exit) || !options.isKept()) forget(kind, listing)
      return Deferred.done(listing.result, exit)
    }))
    return listing
  }

  const isRight = (listing: Listing): boolean =>
    listing.isAnnounced || !Deferred.isDoneUnsafe(listing.result) ||
    options.now() - listing.rightAt < options.timeToLive

  const kept = (kind: Kind): Listing | undefined => {
    const listing = listings.get(kind)
    return listing !== undefined && isRight(listing) ? listing : undefined
  }

  return {
    get: (kind, isFresh) =>
      Effect.withFiber(({ context }) => {
        const listing = (isFresh ? undefined : kept(kind)) ?? start(kind, isFresh)
        if (Deferred.isDoneUnsafe(listing.result)) return Deferred.await(listing.result)
        listing.waiting++
        const leave = Sent.share(options.sent, Context.get(context, Sent.CurrentLease), listing.account)
        return Effect.onExit(Deferred.await(listing.result), () =>
          Effect.sync(() => {
            leave()
            listing.waiting--
            if (listing.waiting > 0 || Deferred.isDoneUnsafe(listing.result)) return
            // Nobody waits for it any more: the server is told so
            forget(kind, listing)
            listing.fiber?.interruptUnsafe()
          }))
      }),
    onDeaf: () => {
      for (const listing of listings.values()) {
        if (!listing.isAnnounced) continue
        listing.isAnnounced = false
        listing.rightAt = options.now()
      }
    },
    onNotification: (method) => {
      for (const kind of changedBy(method)) listings.delete(kind)
    }
  }
}

const changedBy = (method: string | undefined): ReadonlyArray<Kind> => {
  switch (method) {
    case "notifications/tools/list_changed":
      return ["tools"]
    case "notifications/resources/list_changed":
      return ["resources", "resourceTemplates"]
    case "notifications/prompts/list_changed":
      return ["prompts"]
    default:
      return []
  }
}
