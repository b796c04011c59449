/**
 * What a server lists, asked for once and kept until the server says that it has changed.
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

export interface Lists {
  /** All pages as one: the first page's other fields, and every page's items. */
  readonly get: (kind: Kind) => Effect.Effect<unknown, McpSessionError>
  readonly clear: () => void
  readonly onNotification: (method: string | undefined) => void
}

interface Listing {
  waiting: number
  readonly result: Deferred.Deferred<unknown, McpSessionError>
  fiber: Fiber.Fiber<unknown, McpSessionError> | undefined
  readonly account: Sent.Account
}

type Page = { readonly nextCursor?: string | undefined } & { readonly [K in Kind]?: unknown }

// As many as the v2 SDK takes: a server whose cursor never ends must not fill the memory
const maxPages = 64

export const make = (options: {
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  /** Asks for one page, on behalf of those who wait for it. */
  readonly page: (
    kind: Kind,
    params: { cursor?: string },
    sender: Sent.Sender
  ) => Effect.Effect<unknown, McpSessionError>
  readonly sent: Sent.Sent
  /** Whether the server could now say that a list has changed. */
  readonly isKept: () => boolean
  readonly server: string
}): Lists => {
  const listings = new Map<Kind, Listing>()

  const forget = (kind: Kind, listing: Listing) => {
    if (listings.get(kind) === listing) listings.delete(kind)
  }

  const pages = Effect.fnUntraced(function*(kind: Kind, sender: Sent.Sender) {
    const items: Array<unknown> = []
    let first: Page | undefined
    let cursor: string | undefined
    for (let count = 0; count < maxPages; count++) {
      const page = (yield* options.page(kind, cursor === undefined ? {} : { cursor }, sender)) as Page
      const { [kind]: found, nextCursor, ...rest } = page
      first ??= rest
      if (Array.isArray(found)) items.push(...found)
      if (nextCursor === undefined) return { ...first, [kind]: items }
      cursor = nextCursor
    }
    yield* Effect.logWarning(
      `${methods[kind]} on "${options.server}": more than ${maxPages} pages, the rest is left out`
    )
    return { ...first, [kind]: items }
  })

  const start = (kind: Kind): Listing => {
    const account: Sent.Account = { inFlight: 0, hasRun: false }
    const listing: Listing = { waiting: 0, result: Deferred.makeUnsafe(), fiber: undefined, account }
    listings.set(kind, listing)
    listing.fiber = options.runFork(Effect.onExit(pages(kind, Sent.senderOf(account, options.sent)), (exit) => {
      if (Exit.isFailure(exit) || !options.isKept()) forget(kind, listing)
      return Deferred.done(listing.result, exit)
    }))
    return listing
  }

  return {
    get: (kind) =>
      Effect.withFiber(({ context }) => {
        const listing = listings.get(kind) ?? start(kind)
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
    clear: () => listings.clear(),
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
