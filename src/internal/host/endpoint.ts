/**
 * What an endpoint with sessions is made of, whoever serves it: its options, its registry, and an answer to every failure.
 */
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type * as HttpRouter from "effect/http/HttpRouter"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import {
  declared as registryDeclared,
  type Service,
  SessionRegistry,
  type SessionRegistryOptions
} from "../../SessionRegistry.ts"
import * as Answers from "./answers.ts"
import * as Closing from "./listener.ts"
import * as Options from "../options.ts"
import * as Requests from "./requests.ts"

/**
 * What both layers take. Durations are `Duration.Input`; a number is milliseconds.
 *
 * @category models
 */
export interface EndpointOptions extends Omit<SessionRegistryOptions<never, never, never>, "open"> {
  /** The path of the endpoint, by default `"/mcp"`. */
  readonly path?: HttpRouter.PathInput | undefined
  /**
   * The origins whose web pages may call the server, as browsers write them: `"https://app.example.com"`. By default
   * those of this machine (`localhost`, `127.0.0.1`, `[::1]`, any port), which a list replaces; `"*"` is any web page
   * there is. A request without `Origin` comes from no web page.
   */
  readonly allowedOrigins?: ReadonlyArray<string> | "*" | undefined
  /**
   * The names under which the server may be called, with a port or for any port: `"mcp.example.com"`. By default those
   * of this machine (`localhost`, `127.0.0.1`, `[::1]`), which a list replaces. `"*"` leaves the server open to DNS
   * rebinding, unless something in front of it checks the name.
   */
  readonly allowedHosts?: ReadonlyArray<string> | "*" | undefined
  /** The most that a request's body may have, in bytes: by default 4 MiB. */
  readonly maxBodyBytes?: number | undefined
  /** Whether an owner may end a session with DELETE, by default true. If not, that answers 405. */
  readonly allowTermination?: boolean | undefined
}

/**
 * The registry of an endpoint's sessions. It shuts down with the current scope, or when the HTTP server does that a
 * request was held for.
 */
export const openRegistry = Effect.fnUntraced(function*<Resource, R>(
  options: EndpointOptions,
  open: SessionRegistryOptions<Resource, unknown, R>["open"]
) {
  class Sessions extends SessionRegistry.Tag<Sessions, Resource, unknown>()("effect-mcp-sessions/McpHttp/Sessions") {}
  const { capacity, capacityPerOwner, closeTimeout, drainTimeout, idleTimeToLive, maxLifetime, openTimeout } = options
  const scope = yield* Scope.fork(yield* Effect.scope)
  const context = yield* Layer.buildWithScope(
    Sessions.layer({
      open,
      capacity,
      capacityPerOwner,
      closeTimeout,
      drainTimeout,
      idleTimeToLive,
      maxLifetime,
      openTimeout
    }),
    scope
  )
  const holding = yield* Closing.make(Scope.close(scope, Exit.void))
  return { registry: Context.get(context, Sessions), holding }
})

/**
 * The same for everybody else: whose sessions begin with a request, and not otherwise.
 */
export const provided = <Resource>(registry: Service<Resource, unknown>): SessionRegistry["Service"] => ({
  ...registry,
  create: () => Effect.die(new Error("McpHttp: a session begins with an initialize request, not with create"))
})

/**
 * Every failure has an answer. A defect's is 503, never the 500 that tells a client of MCP nothing.
 */
export const answering = <R>(
  answer: Effect.Effect<HttpServerResponse, unknown, R>
): Effect.Effect<HttpServerResponse, never, R> =>
  Effect.catchCause(answer, (cause) => {
    const error = Cause.findErrorOption(cause)
    if (Option.isSome(error)) return Answers.toFailure(error.value)
    if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
    return Effect.as(Effect.logError("An MCP request could not be answered", cause), Answers.unavailable)
  })

const allowList = Options.custom<ReadonlyArray<string> | "*", ReadonlyArray<string> | "*">({
  rule: "a list of strings, or \"*\"",
  read: Option.liftPredicate((value): value is ReadonlyArray<string> | "*" =>
    value === "*" || (Array.isArray(value) && value.every((entry) => typeof entry === "string"))
  ),
  // With commas between them
  config: (variable) =>
    Config.map(
      Config.String(variable),
      (list) => list.trim() === "*" ? "*" : list.split(",").map((entry) => entry.trim())
    )
})

const { open: _, ...registryOptions } = registryDeclared.declaration

export const declared = Options.declare<EndpointOptions>()({ module: "McpHttp", variables: "MCP_REGISTRY" }, {
  path: Options.withDefault(
    Options.custom<HttpRouter.PathInput, HttpRouter.PathInput>({
      rule: "a path that begins with a slash",
      read: Option.liftPredicate((value): value is HttpRouter.PathInput =>
        typeof value === "string" && value.startsWith("/")
      ),
      config: Config.String
    }),
    "/mcp"
  ),
  allowedOrigins: Options.optional(allowList, { shown: "this machine" }),
  allowedHosts: Options.optional(allowList, { shown: "this machine" }),
  maxBodyBytes: Options.withDefault(Options.count, 4 * 1024 * 1024, { shown: "4 MiB" }),
  allowTermination: Options.withDefault(Options.boolean, true),
  ...registryOptions
})

/** What serves an endpoint with these options. */
export const toSettings = (
  { allowTermination, allowedHosts, allowedOrigins, maxBodyBytes, path }: Options.Parsed<typeof declared.declaration>
) => ({
  path,
  allowTermination,
  gate: Requests.gate({ allowedHosts, allowedOrigins }),
  readText: Requests.textReader(maxBodyBytes)
})
