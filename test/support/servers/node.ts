/**
 * A node of a cluster as a process of its own, whose options are in its environment. It does what its parent asks over
 * the channel between them; without a parent it ends.
 *
 * Its sessions are children: the server over stdio whose path is `STDIO_SERVER`.
 */
import { Identity } from "effect-mcp-sessions"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode } from "effect-mcp-sessions/ClusterNode"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import { SessionCluster } from "effect-mcp-sessions/SessionCluster"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as References from "effect/References"
import type { Answer, Question } from "../clusterProcesses.ts"

const connect = McpConnector.stdio({ command: process.execPath, args: [process.env.STDIO_SERVER!] })

const Node = process.env.CLIENT === undefined
  ? Layer.provideMerge(SessionCluster.layer({ connect, closeTimeout: "2 seconds" }), ClusterNode.layerConfig())
  : Layer.provideMerge(SessionCluster.layerClient(), ClusterNode.layerClientConfig())

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
}).pipe(
  Effect.provide(Node),
  Effect.catchCause((cause) => Effect.sync(() => say({ id: 0, error: Cause.pretty(cause) }))),
  Effect.provide(Logger.layer([Logger.formatLogFmt.pipe(Logger.withConsoleError)])),
  Effect.provideService(References.MinimumLogLevel, "Info")
)

await Effect.runPromise(main)
process.disconnect?.()
