/**
 * What an operator sees: the numbers of a pool at `/metrics`, for Prometheus to scrape, and numbers and spans sent to
 * an OpenTelemetry collector if `OTEL_EXPORTER_OTLP_ENDPOINT` says where it is.
 *
 * `npx tsx examples/metrics.ts` makes a few calls on two upstreams, one of them broken, scrapes itself, and stops.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Config, Console, Effect, Layer, Option } from "effect"
import { Credentials, Identity, McpConnector, Metrics, SessionPool } from "effect-mcp-sessions"
import { FetchHttpClient, HttpClient, HttpRouter, HttpServer } from "effect/http"
import { Otlp, PrometheusMetrics } from "effect/observability"
import { createServer } from "node:http"
import { createRequire } from "node:module"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

const upstreams: Readonly<Record<string, ReadonlyArray<string>>> = {
  weather: [everything, "stdio"],
  broken: ["--eval", "process.exit(1)"]
}

const Pool = SessionPool.layer({
  connect: (identity, handle) =>
    McpConnector.stdio({
      name: Option.getOrElse(identity.upstream, () => "none"),
      command: process.execPath,
      args: upstreams[Option.getOrElse(identity.upstream, () => "broken")] ?? []
    })(identity, handle),
  capacity: 2
  // Upstreams are told apart by their names, made-up ones too: so many of them, the rest are "other"
}).pipe(Layer.provide(Metrics.layer({ maxNames: 20 })))

const Prometheus = HttpRouter.serve(PrometheusMetrics.layerHttp({ metricNameMapper: Metrics.prometheusName }), {
  disableLogger: true,
  disableListenLog: true
}).pipe(Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { port: 0, host: "127.0.0.1" })))

const OpenTelemetry = Layer.unwrap(Effect.gen(function*() {
  const endpoint = yield* Config.option(Config.String("OTEL_EXPORTER_OTLP_ENDPOINT"))
  return Option.match(endpoint, {
    onNone: () => Layer.empty,
    onSome: (baseUrl) => Otlp.layerJson({ baseUrl, resource: { serviceName: "metrics-example" } })
  })
})).pipe(Layer.provide(FetchHttpClient.layer))

const alice = Identity.fromKey("alice", { credentials: Credentials.bearer("sk-live-SECRET") })
const bob = Identity.fromKey("bob")

const call = (identity: Identity) =>
  SessionPool.withSession(identity, (session) => session.callTool({ name: "echo", arguments: { message: "hi" } })).pipe(
    Effect.withSpan("request"),
    Effect.ignore
  )

const main = Effect.gen(function*() {
  yield* Effect.all([call(alice.at("weather")), call(bob.at("weather")), call(alice.at("weather"))], {
    concurrency: "unbounded"
  })
  yield* call(alice.at("weather"))
  yield* call(alice.at("broken"))
  const address = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const scraped = yield* HttpClient.get(`${address}/metrics`)
  yield* Console.log(yield* scraped.text)
})

await Effect.runPromise(
  Effect.provide(main, Layer.mergeAll(Pool, Prometheus, FetchHttpClient.layer).pipe(Layer.provideMerge(OpenTelemetry)))
)
