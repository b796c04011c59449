import * as Effect from "effect/Effect"
import * as RcMap from "effect/RcMap"
import * as ScopedCache from "effect/ScopedCache"
import { LRUCache } from "lru-cache"
import { Identity } from "../src/Identity.ts"
import { SessionPool } from "../src/SessionPool.ts"

export interface Session {
  readonly key: string
}

export class Pool extends SessionPool.Tag<Pool, Session>()("bench/Pool") {}

export const open = (key: string) => Effect.acquireRelease(Effect.succeed<Session>({ key }), () => Effect.void)

export const pool = (capacity: number) => Pool.layer({ capacity, connect: (identity) => open(identity.key) })

export const rcMap = RcMap.make({ lookup: open, idleTimeToLive: "5 minutes" })

export const scopedCache = (capacity: number) => ScopedCache.make({ lookup: open, capacity, timeToLive: "5 minutes" })

export const lruCache = (max: number) =>
  new LRUCache<string, Session>({ max, ttl: 300_000, fetchMethod: async (key) => ({ key }), dispose: () => undefined })

export const identities = (count: number): ReadonlyArray<Identity> =>
  Array.from({ length: count }, (_, i) => Identity.fromKey(`key-${i}`))
