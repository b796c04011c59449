/**
 * What a rejection of either SDK is to a caller: classified, and without secrets.
 */
import * as Predicate from "effect/Predicate"
import type { CredentialScheme } from "../../Identity.ts"
import {
  Forbidden,
  HttpFailure,
  McpSessionError,
  type McpSessionErrorReason,
  ProtocolFailure,
  RequestTimeout,
  SessionClosed,
  SessionExpired,
  Unauthorized,
  Unreachable
} from "../../McpSessionError.ts"
import type { Scrub } from "../scrub.ts"
import { classify } from "./classify.ts"

/**
 * The reason, or a connector's own error, raised inside of the SDK: that comes through as it is.
 */
export const reasonOf = (
  error: unknown,
  { forwarded, isUnsent = false, scrub, sessionful }: {
    /** The session is known by something: a server that does not know it has forgotten it. */
    readonly sessionful: boolean
    readonly scrub: Scrub
    /** Nothing can have been sent, whatever the error says. */
    readonly isUnsent?: boolean
    /** The scheme of the caller's own credentials, if those were sent. */
    readonly forwarded?: CredentialScheme | undefined
  }
): McpSessionErrorReason | McpSessionError => {
  const own = ownError(error)
  if (own !== undefined) return own.reason._tag === "PreparationFailed" ? own.reason : own
  const classified = classify(error, sessionful)
  const failure = isUnsent ? { ...classified, requestSent: false } : classified
  switch (failure._tag) {
    case "SessionClosed":
      return new SessionClosed(failure)
    case "SessionExpired":
      return new SessionExpired(failure)
    case "Unauthorized":
      return new Unauthorized({ ...failure, ...(forwarded === undefined ? {} : { forwarded }) })
    case "Forbidden":
      return new Forbidden({ ...failure, ...(forwarded === undefined ? {} : { forwarded }) })
    case "RequestTimeout":
      return new RequestTimeout(failure)
    case "HttpFailure":
      return new HttpFailure(failure)
    case "Unreachable":
      return new Unreachable(failure)
    case "ProtocolFailure":
      return new ProtocolFailure({
        ...failure,
        message: scrub(failure.message).slice(0, 500),
        data: scrub.data(failure.data)
      })
  }
}

// v2 wraps what a probe fails with
const ownError = (error: unknown): McpSessionError | undefined => {
  let found = error
  for (let depth = 0; depth < 4; depth++) {
    if (found instanceof McpSessionError) return found
    if (!Predicate.hasProperty(found, "cause") && !Predicate.hasProperty(found, "data")) return undefined
    found = Predicate.hasProperty(found, "cause") && found.cause !== undefined
      ? found.cause
      : Predicate.hasProperty(found, "data") && Predicate.hasProperty(found.data, "cause")
      ? found.data.cause
      : undefined
  }
  return undefined
}
