/**
 * The fixtures over `McpHttp.layer`. `node --import tsx conformance/server.ts 2025-06-18` speaks that revision with its
 * clients.
 */
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { makeServer, speaking } from "./fixtures.ts"
import { serve } from "./serve.ts"

const [, , revision = "2025-11-25"] = process.argv

serve(McpHttp.layer({
  server: () => Effect.sync(() => speaking(revision, makeServer())),
  eventStore: McpHttp.memoryEventStore(),
  retryInterval: 50
}))
