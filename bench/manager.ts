/**
 * What most people write, and the least that a pool can be measured against: a map of promises behind one header, as
 * in `@mcp-layer/manager`. It reads the header, touches the entry, and hands out the promise. Nothing is leased: what
 * it evicts or expires, it closes under whoever uses it.
 */
export interface ManagerOptions<Session> {
  readonly max: number
  /** Milliseconds. */
  readonly ttl: number
  readonly open: (key: string) => Promise<Session>
}

interface Entry<Session> {
  readonly session: Session
  usedAt: number
}

type Headers = Readonly<Record<string, string | ReadonlyArray<string> | undefined>>

export const make = <Session>({ max, open, ttl }: ManagerOptions<Session>) => {
  const entries = new Map<string, Entry<Session>>()
  const opening = new Map<string, Promise<Session>>()
  let hits = 0
  let misses = 0

  const touch = (key: string, entry: Entry<Session>): void => {
    entries.delete(key)
    entries.set(key, entry)
  }

  const add = async (key: string): Promise<Session> => {
    const session = await open(key)
    entries.set(key, { session, usedAt: Date.now() })
    if (entries.size > max) entries.delete(entries.keys().next().value!)
    opening.delete(key)
    return session
  }

  return {
    get: async (request: { readonly headers: Headers }): Promise<Session> => {
      const { key } = identify(request.headers)
      const entry = entries.get(key)
      if (entry !== undefined) {
        const now = Date.now()
        if (now - entry.usedAt <= ttl) {
          hits++
          entry.usedAt = now
          touch(key, entry)
          return entry.session
        }
        entries.delete(key)
      }
      const joined = opening.get(key)
      if (joined !== undefined) {
        hits++
        return joined
      }
      misses++
      const added = add(key)
      opening.set(key, added)
      return added
    },
    stats: () => ({ size: entries.size, hits, misses })
  }
}

const identify = (headers: Headers) => {
  const found = headers["authorization"]
  const value = Array.isArray(found) ? found.join(",") : found
  if (typeof value !== "string" || value === "") return { key: "shared", auth: null, shared: true }
  const token = /^Bearer\s+(.+)$/i.exec(value)?.[1]
  if (token === undefined) throw new Error("Authorization header must use Bearer scheme.")
  return { key: `bearer:${token}`, auth: { scheme: "bearer", token, header: value }, shared: false }
}
