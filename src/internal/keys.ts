/**
 * The keys that owners of sessions have, as text. A principal at an upstream is `~<upstream>/<principal>`, the name
 * percent-encoded where it has anything but visible ASCII in it, a `/` or a `%`.
 *
 * So no encoded name has a `/` in it, no two names are encoded alike, and no principal's own key begins like that of
 * one at an upstream: the key of each principal at each upstream is another, and nobody ever has to take one apart.
 */
export const sessionKey = /^[\x21-\x7e]{1,256}$/

export const principalKey = /^(?!~[^/]+\/)[\x21-\x7e]{1,256}$/

/**
 * Whatever people call their servers, "My Server" and "github.com/acme/weather" too. Names are shown and logged, so
 * nothing in one may move the cursor, turn the text around or end the line, and each of its halves of a character has
 * the other.
 */
export const upstreamName = /^[^\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]{1,128}$/u

// What nearly all are called. Its own key has it as it is.
const plainName = /^[\x21-\x24\x26-\x2e\x30-\x7e]{1,128}$/

export const isUpstreamName = (name: unknown): name is string =>
  typeof name === "string" && (plainName.test(name) || upstreamName.test(name))

/** What the keys of all principals at this upstream begin with. */
export const prefix = (upstream: string): string =>
  plainName.test(upstream)
    ? `~${upstream}/`
    : `~${upstream.replace(/[^\x21-\x24\x26-\x2e\x30-\x7e]+/g, encodeURIComponent)}/`

/** Whether it is the key of a principal without an upstream, or of one at this upstream. */
export const isOf = (key: string, upstream: string | undefined): boolean => {
  if (upstream === undefined) return principalKey.test(key)
  // Checks run side by side: this may be no name at all
  if (!isUpstreamName(upstream)) return false
  const start = prefix(upstream)
  return key.startsWith(start) && principalKey.test(key.slice(start.length))
}

/** Why a principal may not have this key. */
export const issueOf = (key: unknown): string =>
  typeof key === "string" && sessionKey.test(key)
    ? "a key that begins with \"~\", a name and \"/\" is for a principal at an upstream: call at(name) instead"
    : "a session key must be 1 to 256 characters of visible ASCII"
