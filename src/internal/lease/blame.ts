/**
 * What a failed connect says, told by its tag: of the caller alone, or of the upstream that all its callers share.
 */
import * as Predicate from "effect/Predicate"
import { ConnectTimeout } from "../../SessionPoolError.ts"
import * as Elsewhere from "../elsewhere.ts"
import type { Blame } from "./failures.ts"

export const blameOf = (error: unknown): Blame => {
  if (error instanceof ConnectTimeout) return "upstream"
  if (Elsewhere.is(error)) return "nobody"
  const isOurs = Predicate.isTagged(error, "McpSessionError") && Predicate.hasProperty(error, "reason")
  const reason: unknown = isOurs ? error.reason : error
  if (Predicate.isTagged(reason, "ConsentRequired")) return "nobody"
  if (callers.some((tag) => Predicate.isTagged(reason, tag))) return "caller"
  if (!isOurs) return "unknown"
  const isUpstreams = upstreams.some((tag) => Predicate.isTagged(reason, tag)) ||
    (Predicate.isTagged(reason, "HttpFailure") && Predicate.hasProperty(reason, "status") &&
      typeof reason.status === "number" && reason.status >= 500)
  return isUpstreams ? "upstream" : "unknown"
}

const callers = ["Unauthorized", "Forbidden", "PreparationFailed"]

const upstreams = ["SessionClosed", "Unreachable", "RequestTimeout"]
