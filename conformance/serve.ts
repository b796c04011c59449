import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as Console from "effect/Console"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import { createServer } from "node:http"

const announce = Layer.effectDiscard(HttpServer.addressFormattedWith((address) => Console.log(`${address}/mcp`)))

/**
 * Serves `app` on a free port of this machine, until SIGTERM. Prints its URL as soon as it listens.
 */
export const serve = <A, E>(app: Layer.Layer<A, E, HttpRouter.HttpRouter | IdentityResolver>): void =>
  HttpRouter.serve(app, { disableLogger: true, disableListenLog: true }).pipe(
    // The suite's clients have no credentials: all of them are one owner
    Layer.provide(IdentityResolver.layer()),
    (served) => Layer.provide(announce, served),
    Layer.provide(NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })),
    Layer.launch,
    NodeRuntime.runMain
  )
