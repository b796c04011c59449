/**
 * Takes secrets out of texts that others wrote: an upstream's error message may quote the token it was sent, a child's
 * stderr its environment.
 */
export interface Scrub {
  (text: string): string
  /** Every value of `data` that is a string, at any depth. What can't be read as JSON is dropped. */
  readonly data: (data: unknown) => unknown
  /** From now on `secret` is taken out too. Anything shorter than `minimum` characters (default 1) stays. */
  readonly add: (secret: string, minimum?: number) => void
  /** The length of the longest secret. */
  readonly longest: () => number
}

// Rotated tokens come one after the other: what was not heard of for longest is forgotten
const capacity = 32

export const make = (): Scrub => {
  const secrets = new Set<string>()
  const scrub = (text: string): string => {
    let scrubbed = text
    for (const secret of secrets) scrubbed = scrubbed.replaceAll(secret, "<redacted>")
    return scrubbed
  }
  return Object.assign(scrub, {
    data: (data: unknown): unknown => {
      try {
        const json = JSON.stringify(data, (_, value: unknown) => typeof value === "string" ? scrub(value) : value)
        return json === undefined ? undefined : JSON.parse(json)
      } catch {
        return undefined
      }
    },
    add: (secret: string, minimum = 1) => {
      if (secret.length < minimum) return
      secrets.delete(secret)
      if (secrets.size === capacity) secrets.delete(secrets.values().next().value!)
      secrets.add(secret)
    },
    longest: () => Math.max(0, ...Array.from(secrets, (secret) => secret.length))
  })
}
