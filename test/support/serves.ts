/**
 * Serves sessions, with a stream and a call open, then closes the server's scope and says how that went. What it leaves
 * open would keep it from exiting.
 */
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { eventually } from "./answers.ts"
import { makeLog, makeServer, socket } from "./mcpHttp.ts"
import { begin, call, request, send } from "./requests.ts"

const log = makeLog()

const closed = await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const endpoint = yield* socket(McpHttp.layer({ server: makeServer(log) }))
  const sessions = [yield* begin(endpoint), yield* begin(endpoint), yield* begin(endpoint)]
  const stream = yield* request(endpoint, "GET", { session: sessions[0] })
  void stream.text().catch(() => undefined)
  void send(endpoint, "POST", { session: sessions[1] }, call("wait")).then((answer) => answer.text()).catch(() =>
    undefined
  )
  yield* eventually(() => log.called.length === 1)
  return performance.now()
})))

process.stdout.write(JSON.stringify({
  opened: log.opened.length,
  closed: log.closed.length,
  aborted: log.aborted.length,
  elapsed: performance.now() - closed
}))
