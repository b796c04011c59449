/**
 * Serves sessions of Effect's own server, with a call open, then closes the server's scope and says how that went. What
 * it leaves open would keep it from exiting.
 */
import * as Effect from "effect/Effect"
import { eventually } from "./answers.ts"
import { openGuarded } from "./guarded.ts"
import { socket } from "./mcpHttp.ts"
import { begin, call, send } from "./requests.ts"

const log = await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
  const endpoint = yield* openGuarded(socket)
  const sessions = [yield* begin(endpoint), yield* begin(endpoint), yield* begin(endpoint)]
  const headers = { "mcp-protocol-version": "2025-11-25" }
  void send(endpoint, "POST", { session: sessions[1], headers }, call("wait")).then((answer) => answer.text()).catch(
    () => undefined
  )
  yield* eventually(() => endpoint.log.called === 1)
  return endpoint.log
})))

const freed = log.inside.filter((line) => line === "DELETE 204").length
process.stdout.write(JSON.stringify({ called: log.called, interrupted: log.interrupted, freed }))
