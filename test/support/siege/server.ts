/**
 * What is besieged: `McpHttp.layer` at `/layer` and `McpHttp.guard` at `/guard`, in a process of their own, which says
 * what it holds when it is asked to.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { AjvJsonSchemaValidator } from "@modelcontextprotocol/sdk/validation/ajv"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as SessionRegistry from "effect-mcp-sessions/SessionRegistry"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { createServer } from "node:http"
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { inside, makeInsideLog } from "../guarded.ts"

export interface Besieged {
  /** In bytes; after a collection if it was asked for. */
  readonly heap: number
  /** Connections that are open. */
  readonly sockets: number
  /** Sessions of both endpoints: open, opening, draining and closing. */
  readonly sessions: number
  readonly closeFailures: number
  /** Exceptions and rejections that nobody caught, and what was logged as an error. */
  readonly unhandled: ReadonlyArray<string>
  /** How many lines of the log have a token, or the part of one. */
  readonly told: number
  /** How long it has worked since it began: milliseconds of a core. */
  readonly worked: number
}

export interface BesiegedOptions {
  readonly capacity: number
  /** How long a stream lasts, a body may take and a slow call takes: milliseconds. */
  readonly timeToLive: number
  /** How long a session may be idle: milliseconds. */
  readonly idleTimeToLive: number
}

const options: BesiegedOptions = JSON.parse(process.argv[2]!)

setFlagsFromString("--expose-gc")
const collect: () => void = runInNewContext("gc")

const unhandled: Array<string> = []
process.on("uncaughtException", (error) => unhandled.push(`uncaught ${error.stack}`))
process.on("unhandledRejection", (error) => unhandled.push(`rejected ${String(error)}`))

let told = 0
const logger = Logger.make(({ cause, logLevel, message }) => {
  const line = `${String(message)} ${Cause.pretty(cause)}`
  if (line.includes("secret")) told++
  if (logLevel === "Error" || logLevel === "Fatal") unhandled.push(line)
})

const content = (text: string) => ({ content: [{ type: "text", text }] })

class OfLayer extends SessionRegistry.SessionRegistry.Operator<OfLayer>()("test/OfLayer") {}
class OfGuard extends SessionRegistry.SessionRegistry.Operator<OfGuard>()("test/OfGuard") {}

const endpoint = {
  capacity: options.capacity,
  bodyTimeout: options.timeToLive,
  idleTimeToLive: options.idleTimeToLive,
  unusedTimeToLive: options.idleTimeToLive,
  streamTimeToLive: options.timeToLive
}

const app = Layer.mergeAll(
  McpHttp.layer({
    ...endpoint,
    path: "/layer",
    sessions: OfLayer,
    server: (info) =>
      Effect.sync(() => {
        const server = new Server({ name: "besieged", version: "1" }, {
          capabilities: { tools: {} },
          // Made when it is needed, as README says
          jsonSchemaValidator: { getValidator: (schema) => new AjvJsonSchemaValidator().getValidator(schema) }
        })
        server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => {
          switch (params.name) {
            case "wait":
              await sleep(options.timeToLive)
              return content("waited")
            case "big":
              return content("x".repeat(1024 * 1024))
            default: {
              const caller = Option.match(McpHttp.identityOf(extra), { onNone: () => "", onSome: ({ key }) => key })
              return content(caller === info.owner ? String(params.arguments?.["message"]) : "somebody else's")
            }
          }
        })
        return server
      })
  }),
  McpHttp.guard({ ...endpoint, path: "/guard", sessions: OfGuard }),
  inside({ ...makeInsideLog(), release: Effect.sleep(options.timeToLive) }, { path: "/guard" })
).pipe(Layer.provide(IdentityResolver.layer({ mode: "required" })))

// By default Node hangs up on a user who has not called for 5 seconds, and a new connection waits to be accepted
const node = createServer({ keepAliveTimeout: 15_000 })

const main = Effect.gen(function*() {
  const context = yield* Layer.build(
    HttpRouter.serve(app, { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(NodeHttpServer.layer(() => node, { port: 0, host: "127.0.0.1" }))
    )
  )
  const operators = [Context.get(context, OfLayer), Context.get(context, OfGuard)]
  const measure = async (isThorough: boolean): Promise<Besieged> => {
    if (isThorough) {
      collect()
      await turn()
      collect()
    }
    const { system, user } = process.cpuUsage()
    const stats = await Promise.all(operators.map((operator) => Effect.runPromise(operator.stats)))
    return {
      heap: process.memoryUsage().heapUsed,
      sockets: await new Promise((resolve) => node.getConnections((_, count) => resolve(count))),
      sessions: stats.reduce((sum, all) => sum + all.size + all.opening + all.draining + all.closing, 0),
      closeFailures: stats.reduce((sum, all) => sum + all.closeFailures, 0),
      unhandled,
      told,
      worked: (system + user) / 1000
    }
  }
  process.on("message", (isThorough: boolean) => void measure(isThorough).then((measured) => process.send!(measured)))
  const { address } = Context.get(context, HttpServer.HttpServer)
  process.send!("port" in address ? address.port : 0)
  yield* Effect.never
})

// It ends with the process that has started it
process.once("disconnect", () => process.exit(0))
Effect.runFork(Effect.scoped(main).pipe(Effect.provide(Logger.layer([logger]))))
