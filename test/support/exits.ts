/**
 * Opens a session with the stdio fixture, prints the child's pid and exits without closing anything.
 */
import { Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as Effect from "effect/Effect"
import { fileURLToPath } from "node:url"
import { makeHandle } from "./sessions.ts"

const script = fileURLToPath(new URL("./servers/stdio.mjs", import.meta.url))

await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const connect = McpConnector.stdio({ command: process.execPath, args: [script, "stubborn"] })
  const session = yield* connect(Identity.fromKey("exits"), makeHandle())
  process.stdout.write(`${session.pid}\n`, () => process.exit(0))
  yield* Effect.never
})))
