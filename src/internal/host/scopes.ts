/**
 * What a caller has been granted, and what it needs.
 */
import { AccessDenied, type Identity } from "../../Identity.ts"
import { isScope } from "../../TokenOptions.ts"

/**
 * What a caller is told whose token does not cover what is needed; nothing if it does.
 *
 * "Include both existing relevant scopes and newly required scopes to prevent clients from losing previously granted
 * permissions": https://modelcontextprotocol.io/specification/2025-11-25/basic/authorization#scope-challenge-handling
 */
export const lacking = (identity: Identity | undefined, needed: ReadonlyArray<string>): AccessDenied | undefined => {
  // Nobody could ever be granted it
  if (!needed.every(isScope)) {
    throw new TypeError("McpHttp: what is required is no list of scopes (RFC 6749 section 3.3)")
  }
  const granted = new Set(identity?.scopes.filter(isScope))
  return needed.every((scope) => granted.has(scope))
    ? undefined
    : new AccessDenied({ scope: Array.from(new Set([...granted, ...needed])).join(" ") })
}
