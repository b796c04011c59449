/**
 * An endpoint of Effect's own `McpServer` behind `McpHttp.guard`, and a log of what reaches it.
 */
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as McpProtocol from "effect/ai/McpProtocol"
import { McpRequestContext } from "effect/ai/McpSchema"
import * as McpServer from "effect/ai/McpServer"
import * as Tool from "effect/ai/Tool"
import * as Toolkit from "effect/ai/Toolkit"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { type web } from "./mcpHttp.ts"
import { call } from "./requests.ts"

const Echo = Tool.make("echo", { parameters: Schema.Struct({ message: Schema.String }), success: Schema.String })
const Wait = Tool.make("wait", { success: Schema.String })
const Slow = Tool.make("slow", { success: Schema.String })
const Tools = Toolkit.make(Echo, Wait, Slow)

export interface InsideLog {
  /** How many calls have reached a tool. */
  called: number
  interrupted: number
  /** What has reached the server inside, and what it has answered. */
  readonly inside: Array<string>
  /** What `wait` waits for. */
  release: Effect.Effect<unknown>
}

export const makeInsideLog = (): InsideLog => ({ called: 0, interrupted: 0, inside: [], release: Effect.never })

type Protocols = Parameters<typeof McpServer.layerHttp>[0]["protocols"]

/**
 * Effect's own server. Its tools: `echo`; `wait`, which waits for the log's `release`; `slow`, which does so after it
 * has told how far it is.
 */
export const inside = (log: InsideLog, options: {
  readonly path?: HttpRouter.PathInput | undefined
  readonly protocols?: Protocols | undefined
  readonly allowedOrigins?: ReadonlyArray<string> | undefined
} = {}) => {
  const wait = Effect.sync(() => log.called++).pipe(
    Effect.andThen(Effect.suspend(() => log.release)),
    Effect.as("waited"),
    Effect.onInterrupt(() => Effect.sync(() => log.interrupted++))
  )
  const registrations = McpServer.toolkit(Tools).pipe(Layer.provide(Tools.toLayer(
    Effect.map(McpServer.McpServer, ({ notifications }) => ({
      echo: ({ message }: { readonly message: string }) => Effect.sync(() => (log.called++, message)),
      wait: () => wait,
      slow: () =>
        Effect.serviceOption(McpRequestContext).pipe(
          Effect.map((request) => Option.getOrUndefined(request)?.requestMetadata?.["progressToken"]),
          Effect.flatMap((progressToken) =>
            typeof progressToken === "string" || typeof progressToken === "number"
              ? notifications["notifications/progress"]({ progressToken, progress: 1 })
              : Effect.void
          ),
          Effect.andThen(wait)
        )
    }))
  )))
  return Layer.orDie(McpServer.layerHttp({
    name: "inside",
    version: "1.0.0",
    path: options.path ?? "/mcp",
    protocols: options.protocols ?? [McpProtocol.v2025_11_25, McpProtocol.v2026_07_28],
    allowSessionTermination: true,
    allowedOrigins: options.allowedOrigins ?? ["http://localhost:5173"],
    registrations
  }))
}

/** The same behind a guard, and a log of what comes by that. */
export const openGuarded = (
  start: typeof web,
  options: McpHttp.EndpointOptions = {},
  resolver?: Parameters<typeof web>[1],
  server: Parameters<typeof inside>[1] = {}
) =>
  Effect.gen(function*() {
    const log = makeInsideLog()
    const spy = HttpRouter.middleware(
      (handler) =>
        Effect.flatMap(HttpServerRequest, ({ method }) =>
          Effect.tap(handler, ({ status }) => Effect.sync(() => log.inside.push(`${method} ${status}`)))),
      { global: true }
    )
    const endpoint = yield* start(
      Layer.mergeAll(McpHttp.guard({ path: server.path, ...options }), spy, inside(log, server)),
      resolver
    )
    return { ...endpoint, log }
  })

/** A call of the protocol version that has no sessions. */
export const modern = (name: string, args: Record<string, unknown> = {}) => ({
  ...call(name, args),
  params: {
    name,
    arguments: args,
    _meta: {
      "io.modelcontextprotocol/protocolVersion": "2026-07-28",
      "io.modelcontextprotocol/clientCapabilities": {},
      "io.modelcontextprotocol/clientInfo": { name: "test", version: "0" }
    }
  }
})
