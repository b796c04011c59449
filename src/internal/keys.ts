/**
 * The keys that owners of sessions have, as text. A principal at an upstream is `~<upstream>/<principal>`.
 *
 * No name of an upstream has a `/` in it, and no principal's own key begins like that of one at an upstream: so the
 * key of each principal at each upstream is another, and nobody ever has to take one apart.
 */
export const sessionKey = /^[\x21-\x7e]{1,256}$/

export const principalKey = /^(?!~[^/]+\/)[\x21-\x7e]{1,256}$/

export const upstreamName = /^[\x21-\x2e\x30-\x7e]{1,128}$/

/** What the keys of all principals at this upstream begin with. */
export const prefix = (upstream: string): string => `~${upstream}/`

/** Whether it is the key of a principal without an upstream, or of one at this upstream. */
export const isOf = (key: string, upstream: string | undefined): boolean => {
  if (upstream === undefined) return principalKey.test(key)
  const start = prefix(upstream)
  return key.startsWith(start) && principalKey.test(key.slice(start.length))
}

/** Why a principal may not have this key. */
export const issueOf = (key: unknown): string =>
  typeof key === "string" && sessionKey.test(key)
    ? "a key that begins with \"~\", a name and \"/\" is for a principal at an upstream: call at(name) instead"
    : "a session key must be 1 to 256 characters of visible ASCII"
