/**
 * The server spans of an endpoint: one for each request that a POST brings, from when it has been read until it has
 * its response, by OpenTelemetry's conventions for MCP.
 *
 * https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/mcp.md
 *
 * A request says itself which trace it belongs to, in `_meta`; the HTTP request that brought it may belong to another,
 * or to none. A session's id opens the session to whoever has it, so it is in no span.
 */
import type { RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import type { HttpServerResponse } from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Tracer from "effect/Tracer"
import type { Identity } from "../../Identity.ts"
import { all } from "../../Metrics.ts"
import * as Meters from "../meters.ts"
import * as Operations from "../operations.ts"
import * as Spans from "../spans.ts"
import * as Answers from "./answers.ts"

/** The spans of what one POST has brought. */
export interface Served {
  /** If it is the only one. Where there is no tracer, what it would be a part of. */
  readonly span: Tracer.AnySpan | undefined
  /** The request has this response. */
  readonly answered: (response: { readonly id?: RequestId | undefined }) => void
  /** Nothing more will be said to the request. */
  readonly left: (id: RequestId) => void
  /** The same for all of them: the answer has this status. */
  readonly end: (status: number) => void
}

const name = "McpHttp"

export const none: Served = { span: undefined, answered: () => {}, left: () => {}, end: () => {} }

/**
 * Runs what answers a POST whose body says this, in the span of its request. A refusal ends the spans; otherwise those
 * of requests end when these are answered, and the others with the effect.
 */
export const serving = <E, R>(
  request: HttpServerRequest,
  identity: Identity,
  body: unknown,
  run: (served: Served) => Effect.Effect<HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse, E, R> =>
  Effect.withFiber((fiber) => {
    const messages = (Array.isArray(body) ? body : [body]).filter(isCall)
    if (messages.length === 0) return run(none)
    // Where nobody would be told of a span there is none, and the trace goes on by what the request says of it
    if (!Spans.hasTracer(fiber)) {
      const span = messages.length === 1 ? lineage(fiber, request, messages[0]!).parent : undefined
      return during(serve(fiber, messages, [], span), run)
    }
    const secrets = Option.match(identity.credentials, {
      onNone: () => [],
      onSome: ({ header, token }) => [Redacted.value(header), Redacted.value(token)]
    })
    return Effect.flatMap(
      Effect.forEach(messages, (message) => begin(request, identity, message, secrets)),
      (spans) => during(serve(fiber, messages, spans, spans.length === 1 ? spans[0] : undefined), run)
    )
  })

const during = <E, R>(
  served: ReturnType<typeof serve>,
  run: (served: Served) => Effect.Effect<HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse, E, R> => {
  const answer = Effect.onExitPrimitive(run(served), (exit) => {
    if (Exit.isFailure(exit)) served.fail(exit)
    else if (exit.value.status >= 400) served.end(exit.value.status)
    else served.notified()
    return undefined
  })
  return served.span === undefined ? answer : Effect.provideService(answer, Tracer.ParentSpan, served.span)
}

interface Call {
  readonly method: string
  readonly id?: RequestId
  readonly params?: unknown
}

const isCall = (message: unknown): message is Call =>
  Predicate.hasProperty(message, "method") && typeof message.method === "string"

/** What a message is part of: what it says itself, else the HTTP request that brought it. */
const lineage = (fiber: AnyFiber, { headers }: HttpServerRequest, { params }: Call) => {
  const ambient = Spans.current(fiber)
  const meta = Predicate.hasProperty(params, "_meta") ? params["_meta"] : undefined
  const remote = Predicate.hasProperty(meta, "traceparent") ? Spans.ofTraceparent(meta.traceparent) : undefined
  return { ambient, remote, parent: remote ?? ambient ?? Spans.ofTraceparent(headers["traceparent"]) }
}

const begin = (
  request: HttpServerRequest,
  { key }: Identity,
  message: Call,
  secrets: ReadonlyArray<string>
): Effect.Effect<Tracer.Span> =>
  Effect.withFiber((fiber) => {
    const { id, method, params } = message
    const { ambient, parent, remote } = lineage(fiber, request, message)
    const text = redacted(secrets)
    const version = request.headers["mcp-protocol-version"]
    return Effect.makeSpan(name, {
      kind: "server",
      ...(parent === undefined || parent === ambient ? {} : { parent }),
      ...(remote === undefined || ambient === undefined ? {} : { links: [{ span: ambient, attributes: {} }] }),
      attributes: {
        "mcp.method.name": text(method),
        ...(id === undefined ? {} : { "jsonrpc.request.id": text(String(id)) }),
        ...targetOf(method, params, text),
        ...(version === undefined ? {} : { "mcp.protocol.version": text(version) }),
        "network.transport": "tcp",
        "network.protocol.name": "http",
        owner: key
      }
    })
  })

const redacted = (secrets: ReadonlyArray<string>) => (value: string): string =>
  secrets.some((secret) => value.includes(secret)) ? "<redacted>" : value.slice(0, 256)

const targetOf = (method: string, params: unknown, text: (value: string) => string): Spans.Attributes => {
  if (Predicate.hasProperty(params, "name") && typeof params.name === "string") {
    if (method === "tools/call") {
      return { "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": text(params.name) }
    }
    if (method === "prompts/get") return { "gen_ai.prompt.name": text(params.name) }
  }
  return method.startsWith("resources/") && Predicate.hasProperty(params, "uri") && typeof params.uri === "string"
    ? { "mcp.resource.uri": text(Spans.withoutSecrets(params.uri)) }
    : {}
}

// A client may call a method whatever it likes: it is known by the protocol, or by the server having answered it
const named = ({ id, method }: Call, error: string | undefined): string =>
  Operations.isMethod(method) || (id !== undefined && error === undefined) ? method : Meters.other

type AnyFiber = Fiber.Fiber<unknown, unknown>

const serve = (
  fiber: AnyFiber,
  messages: ReadonlyArray<Call>,
  spans: ReadonlyArray<Tracer.Span>,
  span: Tracer.AnySpan | undefined
) => {
  const began = Operations.now(fiber)
  const isOpen = messages.map(() => true)

  const end = (i: number, error: string | undefined, exit: Exit.Exit<unknown, unknown>): void => {
    if (isOpen[i] !== true) return
    isOpen[i] = false
    const ended = spans[i]
    if (ended !== undefined) {
      if (error !== undefined) ended.attribute("error.type", error)
      Spans.finish(fiber, ended, exit)
    }
    Operations.record(fiber, all.serverOperationDuration, began, { method: named(messages[i]!, error), error })
  }
  const endAll = (error: string | undefined, exit: Exit.Exit<unknown, unknown>): void => {
    for (const i of messages.keys()) end(i, error, exit)
  }
  const indexOf = (id: RequestId | undefined): number =>
    id === undefined ? -1 : messages.findIndex((message) => message.id === id)

  return {
    span,
    answered: (response) => {
      const i = indexOf(response.id)
      const error = errorOf(response)
      if (error?.code !== undefined) spans[i]?.attribute("rpc.response.status_code", error.code)
      end(i, error?.type, error === undefined ? Exit.void : Spans.failed(`error ${error.type}`))
    },
    left: (id) => {
      const i = indexOf(id)
      if (isOpen[i] === true) end(i, "unanswered", Spans.failed("The request was not answered"))
    },
    end: (status) =>
      status < 400 ? endAll(undefined, Exit.void) : endAll(String(status), Spans.failed(`HTTP status ${status}`)),
    /** What wants no response has ended with its POST. */
    notified: () => {
      for (const [i, { id }] of messages.entries()) if (id === undefined) end(i, undefined, Exit.void)
    },
    fail: (exit: Exit.Failure<unknown, unknown>) => {
      const error = Option.getOrUndefined(Exit.findErrorOption(exit))
      if (!(error instanceof Answers.Refused)) return endAll(Spans.errorOf(exit), Spans.plain(exit))
      const { status } = error.response
      endAll(String(status), Spans.failed(`HTTP status ${status}`))
    }
  } satisfies Served & Record<string, unknown>
}

// What a server says of its errors is for its client: here is the code alone
const errorOf = (response: object): { readonly type: string; readonly code?: string } | undefined => {
  if (Predicate.hasProperty(response, "error")) {
    const code = Predicate.hasProperty(response.error, "code") ? String(response.error.code) : "Error"
    return { type: code, code }
  }
  return Predicate.hasProperty(response, "result") && Spans.isToolError(response.result)
    ? { type: "tool_error" }
    : undefined
}
