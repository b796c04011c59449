/**
 * What a pool and a registry tell an operator in numbers.
 *
 * They are in the registry of `effect/Metric` as soon as there is a pool or a registry: put an exporter beside them,
 * `PrometheusMetrics.layerHttp` or `OtlpMetrics.layer`. Nothing is counted twice for it: a series reads what is counted
 * anyway when it is read itself.
 *
 * Durations are in seconds. The labels are bounded, and no identity is among them: `pool` is the id of the pool's tag,
 * `registry` that of the registry's, `upstream` the name that `identity.at` chose (`""` for none), of which the first
 * 100 are told apart and the rest are `other`, `server` what errors call it, `reason` one of few.
 */
import * as Layer from "effect/Layer"
import * as Meters from "./internal/meters.ts"

/**
 * A metric: its name is OpenTelemetry's, with dots. {@link prometheusName} says what Prometheus calls it.
 *
 * @category models
 */
export interface Metric {
  /** As it is in the registry of `effect/Metric`. */
  readonly name: string
  /** Whether it is of this moment, only grows, or tells how something is distributed. */
  readonly type: "gauge" | "counter" | "histogram"
  /** By UCUM: `s` for seconds, or what is counted, in braces. */
  readonly unit: string
  /** What its series are told apart by. */
  readonly labels: ReadonlyArray<string>
  /** What it counts or measures. */
  readonly description: string
  /** Where the buckets of a histogram end. */
  readonly boundaries?: ReadonlyArray<number> | undefined
}

// From a pipe that answers at once to an `npx` that installs first
const seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

// As the conventions have it
const operations = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]

// From one call to a conversation
const lives = [...operations, 900, 3_600, 14_400, 86_400]

const metric = <T extends Metric["type"]>(
  type: T,
  name: string,
  unit: string,
  labels: ReadonlyArray<string>,
  description: string,
  boundaries?: ReadonlyArray<number>
) => ({ type, name, unit, labels, description, ...(boundaries === undefined ? {} : { boundaries }) })

/**
 * All of them.
 *
 * @category constants
 */
export const all = {
  poolSessions: metric(
    "gauge",
    "mcp.pool.sessions",
    "{session}",
    ["pool", "upstream", "state"],
    "Sessions of a pool that are opening, leased, idle, draining or closing"
  ),
  poolWaiting: metric(
    "gauge",
    "mcp.pool.waiting",
    "{caller}",
    ["pool", "upstream"],
    "Callers that wait, for room or for an exclusive session"
  ),
  poolCapacity: metric(
    "gauge",
    "mcp.pool.capacity",
    "{session}",
    ["pool"],
    "Sessions that may be opening, open or draining in a pool"
  ),
  poolStandby: metric(
    "gauge",
    "mcp.pool.standby",
    "{session}",
    ["pool"],
    "Sessions that stand by for new identities, see standby of McpConnector.stdio"
  ),
  poolHits: metric(
    "counter",
    "mcp.pool.hits",
    "{get}",
    ["pool"],
    "Gets that found a session, one being opened, or a failure that is remembered"
  ),
  poolMisses: metric("counter", "mcp.pool.misses", "{get}", ["pool"], "Gets that found none"),
  poolLeases: metric("counter", "mcp.pool.leases", "{lease}", ["pool", "upstream"], "Leases that were taken"),
  poolWaits: metric(
    "counter",
    "mcp.pool.waits",
    "{get}",
    ["pool", "upstream"],
    "Gets that had to wait, for room or for an exclusive session"
  ),
  poolRetirements: metric(
    "counter",
    "mcp.pool.retirements",
    "{session}",
    ["pool", "upstream", "reason"],
    "Sessions that were retired: evicted, expired, lifetime, invalidated, died, unhealthy or shutdown"
  ),
  poolOpenFailures: metric(
    "counter",
    "mcp.pool.open.failures",
    "{session}",
    ["pool", "upstream", "reason"],
    "Opens that failed, by the name of the error, or took too long (timeout)"
  ),
  poolCloseFailures: metric(
    "counter",
    "mcp.pool.close.failures",
    "{session}",
    ["pool", "upstream", "reason"],
    "Closes that failed or were given up (timeout)"
  ),
  poolOpenDuration: metric(
    "histogram",
    "mcp.pool.open.duration",
    "s",
    ["pool", "upstream"],
    "How long opens took that did not fail",
    seconds
  ),
  poolWaitDuration: metric(
    "histogram",
    "mcp.pool.wait.duration",
    "s",
    ["pool", "upstream"],
    "How long gets waited, with and without success",
    seconds
  ),
  poolLeaseDuration: metric(
    "histogram",
    "mcp.pool.lease.duration",
    "s",
    ["pool", "upstream"],
    "How long sessions were in use, from the first of overlapping leases to the end of the last",
    seconds
  ),
  poolCloseDuration: metric(
    "histogram",
    "mcp.pool.close.duration",
    "s",
    ["pool", "upstream"],
    "How long closes took that did not fail",
    seconds
  ),
  registrySessions: metric(
    "gauge",
    "mcp.registry.sessions",
    "{session}",
    ["registry", "state"],
    "Sessions of a registry that are opening, leased (in use), idle, draining or closing"
  ),
  registryCapacity: metric(
    "gauge",
    "mcp.registry.capacity",
    "{session}",
    ["registry"],
    "Sessions that a registry may have at once"
  ),
  registryCreated: metric("counter", "mcp.registry.created", "{session}", ["registry"], "Sessions that were created"),
  registryRefusals: metric(
    "counter",
    "mcp.registry.refusals",
    "{request}",
    ["registry"],
    "Sessions that were refused because there was no room"
  ),
  registryNotFound: metric(
    "counter",
    "mcp.registry.not_found",
    "{request}",
    ["registry"],
    "Requests of sessions that their owner does not have"
  ),
  registryEnds: metric(
    "counter",
    "mcp.registry.ends",
    "{session}",
    ["registry", "reason"],
    "Sessions that ended, by why"
  ),
  registryOpenFailures: metric(
    "counter",
    "mcp.registry.open.failures",
    "{session}",
    ["registry", "reason"],
    "Opens that failed, by the name of the error, or took too long (timeout)"
  ),
  registryCloseFailures: metric(
    "counter",
    "mcp.registry.close.failures",
    "{session}",
    ["registry", "reason"],
    "Closes that failed or were given up (timeout)"
  ),
  registryOpenDuration: metric(
    "histogram",
    "mcp.registry.open.duration",
    "s",
    ["registry"],
    "How long opens took that did not fail",
    seconds
  ),
  registryLeaseDuration: metric(
    "histogram",
    "mcp.registry.lease.duration",
    "s",
    ["registry"],
    "How long sessions were in use, from the first of overlapping requests to the end of the last",
    seconds
  ),
  registryCloseDuration: metric(
    "histogram",
    "mcp.registry.close.duration",
    "s",
    ["registry"],
    "How long closes took that did not fail",
    seconds
  ),
  serverSessionDuration: metric(
    "histogram",
    "mcp.server.session.duration",
    "s",
    ["registry", "reason"],
    "How long sessions of a registry were open, by why they ended",
    lives
  ),
  clientOperationDuration: metric(
    "histogram",
    "mcp.client.operation.duration",
    "s",
    ["server", "mcp.method.name", "error.type"],
    "How long the calls of sessions took, by server, method and error",
    operations
  ),
  serverOperationDuration: metric(
    "histogram",
    "mcp.server.operation.duration",
    "s",
    ["mcp.method.name", "error.type"],
    "How long requests took that came to McpHttp, by method and error",
    operations
  ),
  clientSessionDuration: metric(
    "histogram",
    "mcp.client.session.duration",
    "s",
    ["pool", "upstream", "reason"],
    "How long sessions of a pool were open, by why they were retired",
    lives
  )
} satisfies Readonly<Record<string, Metric>>

/**
 * How metrics are kept.
 *
 * @category models
 */
export interface Options {
  /** Whether there are any: by default true. */
  readonly enabled?: boolean | undefined
  /**
   * How many upstreams of a pool have series of their own, and how many servers, methods and errors, the first that
   * come: by default 100. The rest are `other`, so that made-up names do not fill the memory of whoever reads them. A
   * method that a client calls, which the protocol does not have and no server has answered, is `other` at once.
   */
  readonly maxNames?: number | undefined
}

/**
 * Says how the pools and registries below it keep their metrics. Without it they keep them by default.
 *
 * **Example** (Prometheus)
 *
 * ```ts
 * const metrics = PrometheusMetrics.layerHttp({ metricNameMapper: Metrics.prometheusName })
 * const pool = SessionPool.layer({ connect }).pipe(Layer.provide(Metrics.layer({ maxNames: 20 })))
 * ```
 *
 * @category layers
 */
export const layer = ({ enabled = true, maxNames = 100 }: Options = {}): Layer.Layer<never> =>
  Layer.succeed(Meters.Settings, { isEnabled: enabled, maxNames })

const suffixes = new Map<string, string>(
  Object.values(all).map(({ name, type, unit }) => [
    name,
    `${unit === "s" ? "_seconds" : ""}${type === "counter" ? "_total" : ""}`
  ])
)

/**
 * What Prometheus calls a metric: `mcp.pool.open.duration` is `mcp_pool_open_duration_seconds`, `mcp.pool.hits` is
 * `mcp_pool_hits_total`. Leaves alone what is not of this library. For the `metricNameMapper` of `PrometheusMetrics`.
 *
 * @category accessors
 */
export const prometheusName = (name: string): string => {
  const suffix = suffixes.get(name)
  return suffix === undefined ? name : name.replaceAll(".", "_") + suffix
}
