/**
 * What an operator is shown by exporters, and what none of it shows.
 */
import { assert, describe, inject, it } from "@effect/vitest"
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
import type * as Duration from "effect/Duration"
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
import { inspect } from "node:util"
import { makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import * as HttpServer from "./support/servers/http.ts"
import { makeRecorder } from "./support/spans.ts"

interface Family {
  readonly name: string
  readonly help: string
  readonly type: string
  readonly metrics: ReadonlyArray<{ readonly labels?: Readonly<Record<string, string>>; readonly value?: string }>
}

/** Reads what Prometheus would scrape. It has no types of its own. */
const parse = createRequire(import.meta.url)("parse-prometheus-text-format") as (text: string) => ReadonlyArray<Family>

interface Scraped {
  readonly families: ReadonlyArray<Family>
  readonly samples: ReadonlyArray<Family>
}

// It forgets the labels of a histogram: its samples are read as those of families without a type.
const scrape = (text: string): Scraped => ({
  families: parse(text),
  samples: parse(text.replace(/^# .*\n/gm, ""))
})

/** Of the series that has these labels, its value, or that of one of a histogram's samples. */
const valueOf = (
  { families, samples }: Scraped,
  metric: Metrics.Metric,
  labels: Readonly<Record<string, string>>,
  sample: "" | "_count" | "_sum" | "_bucket" = ""
): string | undefined => {
  const name = Metrics.prometheusName(metric.name)
  const family = families.find((one) => one.name === name)
  assert.deepStrictEqual([family?.type.toLowerCase(), family?.help], [metric.type, metric.description])
  const series = samples.filter((one) => one.name === name + sample).flatMap(({ metrics }) => metrics)
  return series.find((one) => Object.entries(labels).every(([label, value]) => one.labels?.[label] === value))?.value
}

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

const example = (endpoint: string) =>
  Effect.promise(async () => {
    const child = spawn(process.execPath, [inject("programs").metrics], {
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
      const scraped = scrape(output.slice(output.indexOf("# HELP")))
      const pool = "effect-mcp-sessions/SessionPool"
      const sessions = Object.fromEntries(["leased", "idle", "opening"].map((state) => [
        state,
        valueOf(scraped, Metrics.all.poolSessions, { pool, upstream: "weather", state })
      ]))
      assert.deepStrictEqual(sessions, { leased: "0", idle: "1", opening: "0" })
      assert.strictEqual(valueOf(scraped, Metrics.all.poolCapacity, { pool }), "2")
      assert.strictEqual(valueOf(scraped, Metrics.all.poolHits, { pool }), "2")
      assert.strictEqual(valueOf(scraped, Metrics.all.poolMisses, { pool }), "3")
      assert.strictEqual(valueOf(scraped, Metrics.all.poolLeases, { pool, upstream: "weather" }), "4")
      assert.strictEqual(
        valueOf(scraped, Metrics.all.poolRetirements, { upstream: "weather", reason: "evicted" }),
        "1"
      )
      assert.strictEqual(
        valueOf(scraped, Metrics.all.poolOpenFailures, { upstream: "broken", reason: "SessionClosed" }),
        "1"
      )
      const opens = Metrics.all.poolOpenDuration
      assert.strictEqual(valueOf(scraped, opens, { upstream: "weather" }, "_count"), "2")
      assert.strictEqual(valueOf(scraped, opens, { upstream: "weather", le: "+Inf" }, "_bucket"), "2")
      const sum = Number(valueOf(scraped, opens, { upstream: "weather" }, "_sum"))
      assert.isTrue(sum > 0.01 && sum < 60, String(sum))
      const calls = { server: "weather", mcp_method_name: "tools/call", error_type: "" }
      assert.strictEqual(valueOf(scraped, Metrics.all.clientOperationDuration, calls, "_count"), "4")

      const sent = (path: string) => received.filter((one) => one.path === path).map(({ body }) => body).join("\n")
      for (const { name } of [Metrics.all.poolHits, Metrics.all.poolRetirements, Metrics.all.poolOpenDuration]) {
        assert.include(sent("/v1/metrics"), `"name":"${name}"`)
      }
      for (const name of ["SessionPool.connect", "McpSession.initialize", "McpSession.callTool", "request"]) {
        assert.include(sent("/v1/traces"), `"name":"${name}"`)
      }
      assertClean(output + received.map(({ body }) => body).join("\n"))
    }), 60_000)

  it.live.each(["sse", "json"] as const)(
    "show no token, and neither do spans and logs, whatever fails (%s)",
    (response) =>
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
            Layer.merge(McpHttp.layer({ server: makeServer(makeLog()), response }), observed),
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
            const call = (upstream: string, name: string, timeout: Duration.Input = "10 seconds") =>
              Effect.exit(
                SessionPool.withSession(
                  identity.at(upstream),
                  (session) => session.callTool({ name, arguments: { message: token } }, { timeout })
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
            yield* call("out", "echo", "300 millis")
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
      }),
    30_000
  )
})
