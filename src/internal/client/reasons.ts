/**
 * What a rejection of either SDK is to a caller: classified, and without secrets.
 */
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
  sessionful: boolean,
  scrub: Scrub
): McpSessionErrorReason | McpSessionError => {
  if (error instanceof McpSessionError) return error
  const failure = classify(error, sessionful)
  switch (failure._tag) {
    case "SessionClosed":
      return new SessionClosed(failure)
    case "SessionExpired":
      return new SessionExpired(failure)
    case "Unauthorized":
      return new Unauthorized(failure)
    case "Forbidden":
      return new Forbidden(failure)
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
