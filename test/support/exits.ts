/**
 * Opens a session with the stdio fixture, whose arguments it is given, prints the child's pid and exits without closing
 * anything.
 */
import { Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as Effect from "effect/Effect"
import { makeHandle } from "./sessions.ts"

await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const connect = McpConnector.stdio({ command: process.execPath, args: [...process.argv.slice(2), "stubborn"] })
  const session = yield* connect(Identity.fromKey("exits"), makeHandle())
  process.stdout.write(`${session.pid}\n`, () => process.exit(0))
  yield* Effect.never
})))
