/**
 * What a caller has been granted, and what it needs.
 */
import { AccessDenied, type Identity } from "../../Identity.ts"
import { isScope } from "../../TokenOptions.ts"
import * as Challenges from "../challenges.ts"

/**
 * What a caller is told whose token does not cover what is needed; nothing if it does.
 *
 * "Include both existing relevant scopes and newly required scopes to prevent clients from losing previously granted
 * permissions": https://modelcontextprotocol.io/specification/2025-11-25/basic/authorization#scope-challenge-handling
 *
 * No more of them than a client reads: Node's do not even see the status of an answer whose headers have 16 KiB.
 */
export const lacking = (identity: Identity | undefined, needed: ReadonlyArray<string>): AccessDenied | undefined => {
  // Nobody could ever be granted it
  if (!needed.every(isScope)) {
    throw new TypeError("McpHttp: what is required is no list of scopes (RFC 6749 section 3.3)")
  }
  const granted = new Set(identity?.scopes.filter(isScope))
  if (needed.every((scope) => granted.has(scope))) return undefined
  const scope = [[...granted, ...needed], needed]
    .map((scopes) => Array.from(new Set(scopes)).join(" "))
    .find(({ length }) => length < Challenges.maxScope)
  return new AccessDenied(scope === undefined ? {} : { scope })
}
