import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import type { InvalidOptions } from "effect-mcp-sessions/InvalidOptions"
import * as Console from "effect/Console"
import type * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { createServer } from "node:http"

/**
 * Serves `app` on a free port of this machine, until SIGTERM. As soon as it listens, `listening` is told the address,
 * and by default prints the URL.
 */
export const serve = <A, E>(
  app: Layer.Layer<A, E, HttpRouter.HttpRouter | IdentityResolver>,
  // The suite's clients have no credentials: all of them are one owner
  resolver: Layer.Layer<IdentityResolver, InvalidOptions> = IdentityResolver.layer(),
  listening: (address: string) => Effect.Effect<void, never, Scope.Scope> = (address) => Console.log(`${address}/mcp`)
): void =>
  HttpRouter.serve(app, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(resolver),
    (served) => Layer.provide(Layer.effectDiscard(HttpServer.addressFormattedWith(listening)), served),
    Layer.provide(NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })),
    Layer.launch,
    NodeRuntime.runMain
  )
