/**
 * Callers, by short names.
 */
import { Identity } from "effect-mcp-sessions/Identity"

export const a = Identity.fromKey("a")
export const b = Identity.fromKey("b")
export const c = Identity.fromKey("c")
export const d = Identity.fromKey("d")

/** `n` identities: `k0`, `k1`, … */
export const identities = (n: number, prefix = "k"): ReadonlyArray<Identity> =>
  Array.from({ length: n }, (_, i) => Identity.fromKey(`${prefix}${i}`))
