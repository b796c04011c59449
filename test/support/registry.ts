/**
 * A registry of sessions whose resource does nothing but say when it was opened and closed.
 */
import {
  Identity,
  type InvalidOptions,
  type RegisteredSession,
  type SessionInfo,
  type SessionOwner,
  SessionRegistry,
  SessionRegistryEvent,
  type SessionRegistryOptions
} from "effect-mcp-sessions"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { build, refused, settle } from "./fibers.ts"

/** What an open of these tests fails with. */
export class Refused extends Data.TaggedError("Refused")<{ readonly why: string }> {}

export interface Resource {
  /** Its owner and which of that owner's it is: `alice1`, `alice2`, `bob1`. */
  readonly name: string
  readonly info: SessionInfo
  isOpen: boolean
}

export class Registry extends SessionRegistry.Tag<Registry, Resource, Refused>()("test/Registry") {}

export type RegistryOptions = SessionRegistryOptions<Resource, Refused, Scope.Scope>

export type RegistryService = Context.Service.Shape<typeof Registry>

export const alice = Identity.fromKey("alice")
export const bob = Identity.fromKey("bob")

// -----------------------------------------------------------------------------
// What is opened
// -----------------------------------------------------------------------------

export interface Backend {
  /** The names of the acquired, and of the closed (when their finalizer began), in order. */
  readonly opened: Array<string>
  readonly closed: Array<string>
  readonly resources: Array<Resource>
  readonly open: RegistryOptions["open"]
}

export interface BackendOptions {
  /** Runs before anything is acquired. */
  readonly before?: (resource: Resource) => Effect.Effect<unknown, Refused, Scope.Scope>
  /** Runs when the resource is acquired, and before `open` returns it. */
  readonly after?: (resource: Resource) => Effect.Effect<unknown, Refused, Scope.Scope>
  /** Runs in its finalizer. */
  readonly close?: (resource: Resource) => Effect.Effect<unknown>
}

const nothing = () => Effect.void

export const makeBackend = ({ after = nothing, before = nothing, close = nothing }: BackendOptions = {}): Backend => {
  const counts = new Map<string, number>()
  const backend: Backend = {
    opened: [],
    closed: [],
    resources: [],
    open: (info) =>
      Effect.suspend(() => {
        const n = (counts.get(info.owner) ?? 0) + 1
        counts.set(info.owner, n)
        const resource: Resource = { name: `${info.owner}${n}`, info, isOpen: false }
        const acquire = Effect.sync(() => {
          resource.isOpen = true
          backend.opened.push(resource.name)
          backend.resources.push(resource)
        })
        const release = Effect.suspend(() => {
          resource.isOpen = false
          backend.closed.push(resource.name)
          return close(resource)
        })
        return before(resource).pipe(
          Effect.andThen(Effect.acquireRelease(acquire, () => release)),
          Effect.andThen(Effect.suspend(() => after(resource))),
          Effect.as(resource)
        )
      })
  }
  return backend
}

// -----------------------------------------------------------------------------
// Registries
// -----------------------------------------------------------------------------

export interface OpenRegistry extends RegistryService {
  /** Closes the scope of the registry's layer. */
  readonly close: Effect.Effect<void>
}

/** A registry with a scope of its own, closed at the end of the test if the test did not. */
export const openRegistry = Effect.fnUntraced(function*(options: RegistryOptions) {
  const { close, context } = yield* build(Registry.layer(options))
  return { ...Context.get(context, Registry), close } satisfies OpenRegistry as OpenRegistry
})

/** Both at once: the usual start of a test. */
export const start = Effect.fnUntraced(function*(
  options: Omit<RegistryOptions, "open"> & { readonly backend?: BackendOptions } = {}
) {
  const { backend: behaviour, ...rest } = options
  const backend = makeBackend(behaviour)
  return { backend, registry: yield* openRegistry({ ...rest, open: backend.open }) }
})

/** Builds the layer for nothing but its error. */
export const refusal = (options: unknown): Effect.Effect<InvalidOptions | "accepted"> =>
  refused(Registry.layer(options as RegistryOptions))

export interface Hold {
  readonly session: RegisteredSession<Resource>
  readonly release: Effect.Effect<void>
}

/** The session, held until it is released. */
export const hold = Effect.fnUntraced(function*(registry: RegistryService, id: string, owner: SessionOwner) {
  const scope = yield* Scope.make()
  const session = yield* Scope.provide(registry.get(id, owner), scope)
  return { session, release: Scope.close(scope, Exit.void) } satisfies Hold as Hold
})

/** A request that is over as soon as it has found its session. */
export const touch = (registry: RegistryService, id: string, owner: SessionOwner) =>
  Effect.scoped(registry.get(id, owner))

/** A session that has made its first request, and waits for the next. */
export const used = Effect.fnUntraced(function*(registry: RegistryService, owner: SessionOwner) {
  const { id } = yield* registry.create(owner)
  yield* touch(registry, id, owner)
  return id
})

/** What the registry says from now on, a line an event, and the events themselves. */
export const record = Effect.fnUntraced(function*(registry: RegistryService) {
  const lines: Array<string> = []
  const events: Array<SessionRegistryEvent> = []
  const reader = yield* Effect.forkScoped(
    Stream.runForEach(registry.events, (event) =>
      Effect.sync(() => {
        events.push(event)
        lines.push(line(event))
      })),
    { startImmediately: true }
  )
  yield* settle
  return { lines, events, reader }
})

const line = SessionRegistryEvent.$match({
  Created: ({ owner }) => `Created ${owner}`,
  CreateFailed: ({ owner, reason }) => `CreateFailed ${owner}: ${reason}`,
  Refused: ({ owner, scope }) => `Refused ${owner}: ${scope}`,
  Ended: ({ owner, reason }) => `Ended ${owner}: ${reason}`,
  Closed: ({ owner, reason }) => `Closed ${owner}: ${reason}`,
  CloseFailed: ({ owner, reason }) => `CloseFailed ${owner}: ${reason}`
})
