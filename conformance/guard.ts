/**
 * Effect's own server behind `McpHttp.guard`.
 */
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as McpProtocol from "effect/ai/McpProtocol"
import * as McpServer from "effect/ai/McpServer"
import * as Tool from "effect/ai/Tool"
import * as Toolkit from "effect/ai/Toolkit"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { serve } from "./serve.ts"

const Tools = Toolkit.make(Tool.make("test_simple_text", { description: "Returns text", success: Schema.String }))

const registrations = McpServer.toolkit(Tools).pipe(
  Layer.provide(Tools.toLayer({
    test_simple_text: () => Effect.succeed("This is a simple text response for testing.")
  }))
)

serve(Layer.merge(
  McpServer.layerHttp({
    name: "effect-mcp-sessions-conformance",
    version: "1.0.0",
    path: "/mcp",
    protocols: [McpProtocol.v2025_06_18, McpProtocol.v2025_11_25],
    allowSessionTermination: true,
    registrations
  }),
  McpHttp.guard()
))
