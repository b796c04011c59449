/**
 * What an operator is shown by exporters, and what none of it shows.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  Credentials,
  Identity,
  IdentityResolver,
  McpConnector,
  McpHttp,
  Metrics,
  SessionPool
} from "effect-mcp-sessions"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"
import { Buffer } from "node:buffer"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { fileURLToPath } from "node:url"
import { inspect } from "node:util"
import { makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import * as HttpServer from "./support/servers/http.ts"
import { makeRecorder } from "./support/spans.ts"

interface Family {
  readonly name: string
  readonly help: string
  readonly type: string
  readonly metrics: ReadonlyArray<{
    readonly labels?: Readonly<Record<string, string>>
    readonly value?: string
    readonly count?: string
    readonly sum?: string
    readonly buckets?: Readonly<Record<string, string>>
  }>
}

/** Reads what Prometheus would scrape. It has no types of its own. */
const parse = createRequire(import.meta.url)("parse-prometheus-text-format") as (text: string) => ReadonlyArray<Family>

const familyOf = (families: ReadonlyArray<Family>, metric: Metrics.Metric): Family => {
  const found = families.find(({ name }) => name === Metrics.prometheusName(metric.name))
  assert.isDefined(found, metric.name)
  assert.strictEqual(found!.type.toLowerCase(), metric.type)
  assert.strictEqual(found!.help, metric.description)
  return found!
}

/** Of the series that has these labels, what it says. */
const seriesOf = (families: ReadonlyArray<Family>, metric: Metrics.Metric, labels: Readonly<Record<string, string>>) =>
  familyOf(families, metric).metrics.find((series) =>
    Object.entries(labels).every(([name, value]) => series.labels?.[name] === value)
  )

const token = "sk-live-SECRET"

const assertClean = (text: string): void => {
  for (const secret of [token, `Bearer ${token}`]) {
    for (const encoding of ["utf8", "base64", "base64url", "hex"] as const) {
      assert.notInclude(text, Buffer.from(secret).toString(encoding).replace(/=+$/, ""))
    }
  }
  assert.notInclude(text, "SECRET")
}

/** Takes what is sent to it, as a collector of OpenTelemetry does. */
const collector = Effect.acquireRelease(
  Effect.promise(async () => {
    const received: Array<{ readonly path: string; readonly body: string }> = []
    const server = createServer((request, response) => {
      let body = ""
      request.setEncoding("utf8").on("data", (chunk: string) => body += chunk)
      request.on("end", () => {
        received.push({ path: request.url ?? "", body })
        response.setHeader("content-type", "application/json").end("{}")
      })
    }).listen(0, "127.0.0.1")
    await once(server, "listening")
    const address = server.address()
    return { received, server, url: `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}` }
  }),
  ({ server }) =>
    Effect.promise(async () => {
      server.closeAllConnections()
      server.close()
      await once(server, "close")
    })
)

const root = fileURLToPath(new URL("..", import.meta.url))

const example = (endpoint: string) =>
  Effect.promise(async () => {
    const child = spawn(process.execPath, ["--import", "tsx", "examples/metrics.ts"], {
      cwd: root,
      env: { ...process.env, OTEL_EXPORTER_OTLP_ENDPOINT: endpoint }
    })
    let output = ""
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => output += chunk)
    child.stderr.resume()
    await once(child, "close")
    assert.strictEqual(child.exitCode, 0, output)
    return output
  })

describe("metrics", () => {
  it.live("of the example are read by Prometheus and by a collector of OpenTelemetry", () =>
    Effect.gen(function*() {
      const { received, url } = yield* collector
      const output = yield* example(url)
      const scraped = output.slice(output.indexOf("# HELP"))
      const families = parse(scraped)
      const pool = "effect-mcp-sessions/SessionPool"
      const sessions = Object.fromEntries(["leased", "idle", "opening"].map((state) => [
        state,
        seriesOf(families, Metrics.all.poolSessions, { pool, upstream: "weather", state })?.value
      ]))
      assert.deepStrictEqual(sessions, { leased: "0", idle: "1", opening: "0" })
      assert.strictEqual(seriesOf(families, Metrics.all.poolCapacity, { pool })?.value, "2")
      assert.strictEqual(seriesOf(families, Metrics.all.poolHits, { pool })?.value, "2")
      assert.strictEqual(seriesOf(families, Metrics.all.poolMisses, { pool })?.value, "3")
      assert.strictEqual(seriesOf(families, Metrics.all.poolLeases, { pool, upstream: "weather" })?.value, "4")
      assert.strictEqual(
        seriesOf(families, Metrics.all.poolRetirements, { upstream: "weather", reason: "evicted" })?.value,
        "1"
      )
      assert.strictEqual(
        seriesOf(families, Metrics.all.poolOpenFailures, { upstream: "broken", reason: "SessionClosed" })?.value,
        "1"
      )
      const opens = seriesOf(families, Metrics.all.poolOpenDuration, { upstream: "weather" })
      assert.strictEqual(opens?.count, "2")
      assert.isAbove(Number(opens?.sum), 0.01)
      assert.isBelow(Number(opens?.sum), 60)
      assert.strictEqual(opens?.buckets?.["+Inf"], "2")
      const calls = { server: "weather", mcp_method_name: "tools/call", error_type: "" }
      assert.strictEqual(seriesOf(families, Metrics.all.clientOperationDuration, calls)?.count, "4")

      const sent = (path: string) => received.filter((one) => one.path === path).map(({ body }) => body).join("\n")
      for (const { name } of [Metrics.all.poolHits, Metrics.all.poolSessions, Metrics.all.poolOpenDuration]) {
        assert.include(sent("/v1/metrics"), `"name":"${name}"`)
      }
      for (const name of ["SessionPool.connect", "McpSession.initialize", "McpSession.callTool", "request"]) {
        assert.include(sent("/v1/traces"), `"name":"${name}"`)
      }
      assertClean(output + received.map(({ body }) => body).join("\n"))
    }), 60_000)

  it.live("show no token, and neither do spans and logs, whatever fails", () =>
    Effect.gen(function*() {
      const recorder = makeRecorder()
      const written: Array<string> = []
      const logger = Logger.make<unknown, void>(({ cause, fiber, logLevel, message }) => {
        const annotations = fiber.getRef(References.CurrentLogAnnotations)
        written.push(`${logLevel} ${inspect(message, { depth: 8 })} ${Cause.pretty(cause)} ${inspect(annotations)}`)
      })
      const observed = Layer.mergeAll(
        Logger.layer([logger]),
        Layer.succeed(References.MinimumLogLevel, "All"),
        Layer.succeed(Tracer.Tracer, recorder.tracer)
      )
      const registry: Metric.MetricRegistry = new Map()
      const identity = Identity.fromKey("alice", { credentials: Credentials.bearer(token) })

      yield* Effect.gen(function*() {
        // Outbound: a server that refuses, one that breaks off, one that is gone, one that quotes what it was sent
        const server = yield* HttpServer.start()
        const inbound = yield* socket(
          Layer.merge(McpHttp.layer({ server: makeServer(makeLog()) }), observed),
          Layer.orDie(IdentityResolver.layer({ mode: "required" }))
        )
        const urls: Readonly<Record<string, string>> = { out: server.url, in: inbound.url }
        const pool = SessionPool.layer({
          connect: (who, handle) =>
            McpConnector.http({
              url: urls[who.upstream._tag === "Some" ? who.upstream.value : "out"]!,
              forwardCredentials: true
            })(
              who,
              handle
            )
        })
        yield* Effect.gen(function*() {
          const call = (upstream: string, name: string) =>
            Effect.exit(
              SessionPool.withSession(
                identity.at(upstream),
                (session) => session.callTool({ name, arguments: { message: token } }, { timeout: 300 })
              )
            )
          for (const upstream of ["out", "in"]) {
            yield* call(upstream, "echo")
            yield* call(upstream, `no ${token}`)
            yield* call(upstream, "whoami")
          }
          yield* Effect.exit(
            SessionPool.withSession(
              identity.at("out"),
              (session) => session.readResource({ uri: `x://${token}@host/${token}?${token}` })
            )
          )
          server.behaviour.call = "hang"
          yield* call("out", "echo")
          server.behaviour.call = "destroy-after-headers"
          yield* call("out", "echo")
          server.behaviour.call = "answer"
          server.behaviour.authorization = "Bearer other"
          yield* call("out", "echo")
          yield* server.forget
          yield* call("out", "echo")
          yield* server.close
          yield* call("out", "echo")
          yield* inbound.registry.clear
          yield* call("in", "echo")
          yield* inbound.close
          yield* call("in", "echo")
          written.push(yield* PrometheusMetrics.format({ metricNameMapper: Metrics.prometheusName }))
        }).pipe(Effect.provide(pool), Effect.withSpan("test"))
      }).pipe(
        Effect.scoped,
        Effect.provide(observed),
        Effect.provideService(Metric.MetricRegistry, registry)
      )
      const names = new Set(recorder.spans.map(({ name }) => name))
      for (const name of ["SessionPool.connect", "McpSession.initialize", "McpSession.callTool", "McpHttp"]) {
        assert.isTrue(names.has(name), name)
      }
      for (const { attributes, events, name, status } of recorder.spans) {
        // The HTTP server's own spans are Effect's
        written.push(inspect([name, attributes, events, status], { depth: 8 }))
      }
      written.push(inspect(Array.from(registry.keys())))
      assert.isAbove(written.length, 20)
      assertClean(written.join("\n"))
      for (
        const metric of [Metrics.all.poolOpenFailures, Metrics.all.registryEnds, Metrics.all.serverOperationDuration]
      ) {
        assert.include(written.join("\n"), Metrics.prometheusName(metric.name))
      }
    }), 30_000)
})
