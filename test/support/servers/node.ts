/**
 * A node of a cluster as a process of its own, whose options are in its environment. It does what its parent asks over
 * the channel between them; without a parent it ends.
 *
 * Its sessions are children: the server over stdio whose arguments `STDIO_SERVER` has. With `HTTP_PORT` it also has
 * sessions of its own clients, and drains before it stops.
 */
import { Identity } from "effect-mcp-sessions"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as References from "effect/References"
import type { Answer, Question } from "../clusterProcesses.ts"

const child = McpConnector.stdio({ command: process.execPath, args: JSON.parse(process.env.STDIO_SERVER!) })

/** `defect` does what `note` does, and dies of it. */
const connect: typeof child = (identity, handle) =>
  Effect.map(child(identity, handle), (session) => ({
    ...session,
    callTool: (params, options) =>
      params.name === "defect"
        ? Effect.andThen(session.callTool({ ...params, name: "note" }, options), Effect.die(new Error("a defect")))
        : session.callTool(params, options)
  }))

const Node = process.env.CLIENT === undefined
  ? Layer.provideMerge(SessionCluster.layer({ connect, closeTimeout: "2 seconds" }), ClusterNode.layerConfig())
  : Layer.provideMerge(SessionCluster.layerClient(), ClusterNode.layerClientConfig())

const { HTTP_PORT, MCP_CLUSTER_HOST } = process.env

// Who has no need of it does not load it
const Front = HTTP_PORT === undefined
  ? Layer.empty
  : Layer.unwrap(Effect.map(
    Effect.promise(() => import("./front.ts")),
    ({ front }) => front(MCP_CLUSTER_HOST!, Number(HTTP_PORT))
  ))

const say = (answer: Answer) => void process.send!(answer)

const answerTo = (
  question: Question
): Effect.Effect<unknown, unknown, SessionCluster | ClusterMembership | ClusterNode> => {
  switch (question.ask) {
    case "call":
      return SessionCluster.withSession(
        Identity.fromKey(question.key),
        (session) =>
          Effect.map(
            session.callTool({ name: question.tool, arguments: question.args ?? {} }, {
              onProgress: question.progress === true ? () => Effect.void : undefined
            }),
            ({ content }) => ({ text: (content as ReadonlyArray<{ text: string }>)[0]!.text, runner: session.runner })
          )
      )
    case "leave":
      return Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(answerTo({ ...question, ask: "call" }))
        yield* Effect.sleep(question.after)
        const since = performance.now()
        yield* Fiber.interrupt(fiber)
        return performance.now() - since
      })
    case "members":
      return ClusterMembership.members
    case "ready":
      return ClusterMembership.isReady
    case "drain":
      return ClusterMembership.drain
    case "stats":
      return SessionCluster.stats
    case "shards":
      return ClusterNode.useSync(({ "~node": { fence } }) => fence.size())
  }
}

const main = Effect.gen(function*() {
  const context = yield* Effect.context<SessionCluster | ClusterMembership | ClusterNode>()
  const run = Effect.runForkWith(context)
  process.on("message", (question: Question) => {
    run(Effect.matchCause(answerTo(question), {
      onSuccess: (value) => say({ id: question.id, value }),
      onFailure: (cause) => {
        const error = Option.getOrUndefined(Cause.findErrorOption(cause)) as
          | {
            readonly _tag: string
            readonly reason?: { readonly _tag?: string; readonly requestSent?: boolean } | string
          }
          | undefined
        const reason = error?.reason
        say({
          id: question.id,
          error: error === undefined ? `a defect: ${Cause.pretty(cause)}` : error._tag,
          reason: typeof reason === "object" ? reason._tag : reason,
          requestSent: typeof reason === "object" ? reason.requestSent : undefined
        })
      }
    }))
  })
  say({ id: 0, value: process.pid })
  yield* Effect.callback<void>((resume) => {
    process.once("SIGTERM", () => resume(Effect.void))
    process.once("disconnect", () => resume(Effect.void))
  })
  if (HTTP_PORT !== undefined) yield* ClusterMembership.drain
}).pipe(
  Effect.provide(Layer.provideMerge(Front, Node)),
  Effect.catchCause((cause) => Effect.sync(() => say({ id: 0, error: Cause.pretty(cause) }))),
  Effect.provide(Logger.layer([Logger.formatLogFmt.pipe(Logger.withConsoleError)])),
  Effect.provideService(References.MinimumLogLevel, "Info")
)

await Effect.runPromise(main)
process.disconnect?.()
