/**
 * Opens a session with the stdio fixture, whose arguments it is given, prints the pids of the child and of its
 * grandchild in a session of its own, and exits without closing anything.
 */
import { Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as Effect from "effect/Effect"
import { makeHandle } from "./sessions.ts"
import { call } from "./tools.ts"

await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const args = [...process.argv.slice(2), "stubborn", "detached-grandchild"]
  const connect = McpConnector.stdio({ command: process.execPath, args })
  const session = yield* connect(Identity.fromKey("exits"), makeHandle())
  process.stdout.write(`${session.pid} ${yield* call(session, "grandchild")}\n`, () => process.exit(0))
  yield* Effect.never
})))
