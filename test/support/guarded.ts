/**
 * An endpoint of Effect's own `McpServer` behind `McpHttp.guard`, and a log of what reaches it.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as McpProtocol from "effect/ai/McpProtocol"
import * as McpServer from "effect/ai/McpServer"
import * as Tool from "effect/ai/Tool"
import * as Toolkit from "effect/ai/Toolkit"
import * as HttpRouter from "effect/http/HttpRouter"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import type { web } from "./mcpHttp.ts"

const Echo = Tool.make("echo", { parameters: Schema.Struct({ message: Schema.String }), success: Schema.String })
const Wait = Tool.make("wait", { success: Schema.String })
const Tools = Toolkit.make(Echo, Wait)

/** Its tools: `echo`, and `wait`, which waits for the log's `release`. */
export const openGuarded = (
  start: typeof web,
  options: McpHttp.EndpointOptions = {},
  resolver?: Parameters<typeof web>[1],
  path: `/${string}` = "/mcp"
) =>
  Effect.gen(function*() {
    const log = {
      called: 0,
      interrupted: 0,
      inside: [] as Array<string>,
      release: Effect.never as Effect.Effect<unknown>
    }
    const registrations = McpServer.toolkit(Tools).pipe(Layer.provide(Tools.toLayer({
      echo: ({ message }) => Effect.sync(() => (log.called++, message)),
      wait: () =>
        Effect.sync(() => log.called++).pipe(
          Effect.andThen(Effect.suspend(() => log.release)),
          Effect.as("waited"),
          Effect.onInterrupt(() => Effect.sync(() => log.interrupted++))
        )
    })))
    const server = McpServer.layerHttp({
      name: "inside",
      version: "1.0.0",
      path,
      protocols: [McpProtocol.v2025_11_25, McpProtocol.v2026_07_28],
      allowSessionTermination: true,
      allowedOrigins: ["http://localhost:5173"],
      registrations
    })
    // What reaches the server inside, and what it answers
    const spy = HttpRouter.middleware(
      (handler) =>
        Effect.flatMap(HttpServerRequest, ({ method }) =>
          Effect.tap(handler, ({ status }) => Effect.sync(() => log.inside.push(`${method} ${status}`)))),
      { global: true }
    )
    const endpoint = yield* start(
      Layer.mergeAll(McpHttp.guard({ path, ...options }), spy, Layer.orDie(server)),
      resolver
    )
    return { ...endpoint, log }
  })
