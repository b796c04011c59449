/**
 * What a rejection of either SDK is to a caller: classified, and without secrets.
 */
import type { CredentialScheme } from "../../Identity.ts"
import {
  ConsentRequired,
  Forbidden,
  HttpFailure,
  McpSessionError,
  type McpSessionErrorReason,
  PreparationFailed,
  ProtocolFailure,
  RequestTimeout,
  SessionClosed,
  SessionExpired,
  TooManyPages,
  Unauthorized,
  Unreachable
} from "../../McpSessionError.ts"
import type { Scrub } from "../scrub.ts"
import { causesOf, classify, type Failure } from "./classify.ts"
import type { Refusal } from "./refusals.ts"

/**
 * The reason, or a connector's own error, raised inside of the SDK: that comes through as it is.
 */
export const reasonOf = (
  error: unknown,
  { forwarded, isUnsent = false, latest, refusal, scrub, sessionful }: {
    /** The session is known by something: a server that does not know it has forgotten it. */
    readonly sessionful: boolean
    readonly scrub: Scrub
    /** Nothing can have been sent, whatever the error says. */
    readonly isUnsent?: boolean
    /** The scheme of the caller's own credentials, if those were sent. */
    readonly forwarded?: CredentialScheme | undefined
    /** What the server said besides. */
    readonly refusal?: Refusal | undefined
    /** What it said last, for an error that may be of that. */
    readonly latest?: Refusal | undefined
  }
): McpSessionErrorReason | McpSessionError => {
  const own = ownError(error)
  // Redirected, it has been somewhere before
  const isSent = refusal?.isRedirected === true
  if (own !== undefined) {
    const { reason } = own
    if (reason._tag === "ConsentRequired") {
      return isSent
        ? new ConsentRequired({ ...reason, requestSent: true })
        : reason
    }
    if (reason._tag !== "PreparationFailed") return own
    return isSent ? new PreparationFailed({ ...reason, requestSent: true }) : reason
  }
  const classified = classify(error, sessionful, refusal?.status)
  const failure = isUnsent || isSent ? { ...classified, requestSent: isSent } : classified
  const said = saidOf(refusal ?? (latest?.status === statusOf(failure) ? latest : undefined), scrub)
  switch (failure._tag) {
    case "SessionClosed":
      return new SessionClosed(failure)
    case "SessionExpired":
      // Of a transport of somebody else's nothing is known: what its server has read, or had sent on before
      return new SessionExpired({ ...failure, refused: refusal?.isUnread === true })
    case "Unauthorized":
      return new Unauthorized({ ...failure, ...said, ...(forwarded === undefined ? {} : { forwarded }) })
    case "Forbidden":
      return new Forbidden({ ...failure, ...said, ...(forwarded === undefined ? {} : { forwarded }) })
    case "RequestTimeout":
      return new RequestTimeout(failure)
    case "HttpFailure":
      return new HttpFailure({ ...failure, ...said })
    case "Unreachable":
      return new Unreachable(failure)
    case "TooManyPages":
      return new TooManyPages(failure)
    case "ProtocolFailure":
      return new ProtocolFailure({
        ...failure,
        message: scrub.beginning(failure.message, 4_096).slice(0, 500),
        data: scrub.data(failure.data)
      })
  }
}

const statusOf = (failure: Failure): number | undefined =>
  failure._tag === "HttpFailure"
    ? failure.status
    : failure._tag === "Unauthorized"
    ? 401
    : failure._tag === "Forbidden"
    ? 403
    : undefined

// What an upstream says is quoted, and never believed: it may say of a secret that it is a realm
const saidOf = (refusal: Refusal | undefined, scrub: Scrub): Pick<Unauthorized, "challenges" | "retryAfter"> => {
  const { challenges = [], retryAfter } = refusal ?? {}
  return {
    ...(retryAfter === undefined ? {} : { retryAfter }),
    ...(challenges.length === 0 ? {} : { challenges: scrub.data(challenges) as typeof challenges })
  }
}

// v2 wraps what a probe fails with
const ownError = (error: unknown): McpSessionError | undefined => {
  for (const cause of causesOf(error)) if (cause instanceof McpSessionError) return cause
  return undefined
}
