/**
 * A tool call over a kept connection, in turns: at the node that has the session, and at another one of the two.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { createServer } from "node:http"
import { ClusterMembership } from "../src/ClusterMembership.ts"
import { ClusterNode } from "../src/ClusterNode.ts"
import { IdentityResolver } from "../src/IdentityResolver.ts"
import * as McpHttp from "../src/McpHttp.ts"
import { bars } from "./bars.ts"
import { begin, requests, timed } from "./inbound.ts"
import { makeServer } from "./servers.ts"
import { median, table } from "./support.ts"

const keySecret = Redacted.make("sixteen characters and more")

export const main = Effect.gen(function*() {
  const memory = ClusterNode.memory()
  const ports = new Map<string, number>()
  const start = Effect.fnUntraced(function*(name: string) {
    const served = HttpRouter.serve(
      McpHttp.layer({ server: () => Effect.sync(makeServer), response: "json" }).pipe(
        McpHttp.routed({ address: ({ host }) => `http://127.0.0.1:${ports.get(host)}` }),
        Layer.provide(IdentityResolver.layer({ keySecret }))
      ),
      { disableLogger: true, disableListenLog: true }
    ).pipe(
      Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { port: 0, host: "127.0.0.1" })),
      Layer.provideMerge(ClusterNode.layerMemory({ memory, name, keySecret }))
    )
    const context = yield* Layer.build(served)
    const { address } = Context.get(context, HttpServer.HttpServer)
    ports.set(name, "port" in address ? address.port : 0)
    return { url: `http://127.0.0.1:${ports.get(name)}/mcp`, membership: Context.get(context, ClusterMembership) }
  })
  const owner = yield* start("owner")
  const other = yield* start("other")
  while ((yield* other.membership.nodesNow).length < 2) yield* Effect.sleep(10)
  const sides = [
    ["at the session's node", yield* begin(owner.url)],
    ["at another node", yield* begin(owner.url, "bench", other.url)]
  ] as const
  const rounds = new Map<string, Array<ReadonlyArray<number>>>(sides.map(([name]) => [name, []]))
  for (let round = 0; round < 12; round++) {
    for (const [name, call] of sides) {
      rounds.get(name)!.push(yield* Effect.forEach(Array.from({ length: requests }), () => timed(call)))
    }
  }
  table(
    "Inbound request of a cluster, JSON answers",
    new Map(Array.from(rounds, ([name, all]) => [name, median(all.slice(2).map(median))])),
    "at the session's node",
    { "at another node": bars.routed }
  )
}).pipe(Effect.scoped)
