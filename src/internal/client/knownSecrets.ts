/**
 * Secrets that whoever opens a session knows to be some, whatever they are called and look like: a password that
 * somebody was asked for. They are taken out of all texts of the session.
 */
import * as Context from "effect/Context"

export const KnownSecrets = Context.Reference<ReadonlyArray<string>>("effect-mcp-sessions/KnownSecrets", {
  defaultValue: () => []
})
