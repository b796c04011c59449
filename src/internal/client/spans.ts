/**
 * The client spans of a session: one a call, by OpenTelemetry's conventions for MCP, and a `traceparent` in what the
 * call sends.
 *
 * https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/mcp.md
 *
 * Which message belongs to which call is known by a function that the SDKs hand through to the transport, whatever they
 * do with a request before it is sent: `onresumptiontoken`.
 *
 * A session's id opens the session to whoever has it, so it is in no span.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Tracer from "effect/Tracer"
import { McpSessionError, type McpSessionErrorReason } from "../../McpSessionError.ts"
import { all } from "../../Metrics.ts"
import * as Operations from "../operations.ts"
import type { Scrub } from "../scrub.ts"
import * as Spans from "../spans.ts"
import type { MessageLike } from "./sdk.ts"

/** What is called, as MCP calls it, by the parameters that name it. What only the wire knows has no method. */
export interface Target {
  readonly method?: string | undefined
  readonly tool?: { readonly name: string } | undefined
  readonly prompt?: { readonly name: string } | undefined
  readonly resource?: { readonly uri: string } | undefined
}

/** Runs a call in a span of its own. */
export type Traced = <A, E, R>(
  operation: string,
  target: Target,
  call: Effect.Effect<A, E, R>
) => Effect.Effect<A, E, Exclude<R, Tracer.ParentSpan>>

export interface Options {
  readonly server: string
  /** How the server is reached, in the words of the conventions. */
  readonly network: Spans.Attributes | undefined
  readonly protocolVersion: () => string | undefined
  readonly scrub: Scrub
}

export const make = ({ network, protocolVersion, scrub, server }: Options): Traced => {
  const attributesOf = ({ method, prompt, resource, tool }: Target): Spans.Attributes => {
    const version = protocolVersion()
    return {
      ...(method === undefined ? {} : { "mcp.method.name": method }),
      ...(tool === undefined
        ? {}
        : { "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": short(scrub(String(tool.name))) }),
      ...(prompt === undefined ? {} : { "gen_ai.prompt.name": short(scrub(String(prompt.name))) }),
      ...(resource === undefined
        ? {}
        : { "mcp.resource.uri": short(scrub(Spans.withoutSecrets(String(resource.uri)))) }),
      ...(version === undefined ? {} : { "mcp.protocol.version": version }),
      ...network,
      server
    }
  }

  return (operation, target, call) =>
    Effect.withFiber((fiber) => {
      const began = Operations.now(fiber)
      return Spans.within(
        `McpSession.${operation}`,
        { kind: "client", attributes: attributesOf(target) },
        () => call,
        (exit, span) => {
          const error = errorOf(exit)
          Operations.record(fiber, all.clientOperationDuration, began, {
            server,
            method: target.method ?? operation,
            error
          })
          if (error !== undefined) span.attribute("error.type", error)
          return ended(exit, span)
        }
      )
    })
}

/** Why a call has failed, in the words of the conventions: one of few. Nothing if it was interrupted. */
const errorOf = (exit: Exit.Exit<unknown, unknown>): string | undefined => {
  if (Exit.isSuccess(exit)) return Spans.isToolError(exit.value) ? "tool_error" : undefined
  const error = Exit.findErrorOption(exit)
  return error._tag === "Some" && error.value instanceof McpSessionError
    ? errorType(error.value.reason)
    : Spans.errorOf(exit)
}

const ended = (exit: Exit.Exit<unknown, unknown>, span: Tracer.Span): Exit.Exit<unknown, unknown> => {
  if (Exit.isSuccess(exit)) {
    return Spans.isToolError(exit.value) ? Spans.failed("The tool answered with an error") : exit
  }
  const error = Exit.findErrorOption(exit)
  if (error._tag === "None" || !(error.value instanceof McpSessionError)) return Spans.plain(exit)
  const { message, reason } = error.value
  if (reason._tag === "ProtocolFailure") span.attribute("rpc.response.status_code", String(reason.code))
  // It was written by this library, and what it quotes is scrubbed
  return Spans.failed(message)
}

/** What the conventions call a failure: one of few. */
export const errorType = (reason: McpSessionErrorReason): string => {
  switch (reason._tag) {
    case "RequestTimeout":
      return "timeout"
    case "ProtocolFailure":
      return String(reason.code)
    case "HttpFailure":
      return String(reason.status)
    case "Unreachable":
      return reason.code
    default:
      return reason._tag
  }
}

const short = (text: string): string => text.slice(0, 256)

// -----------------------------------------------------------------------------
// The trace of a message
// -----------------------------------------------------------------------------

/** What goes out with the messages of a call. */
export interface Trace {
  readonly traceparent: string | undefined
  readonly span: Tracer.Span | undefined
  /** Whoever sends it is in no trace, as far as is known here. */
  readonly isRoot: boolean
}

const TraceId = "~effect-mcp-sessions/Trace"

/** Given to the SDK with a request, it comes to the wire with the request's message. */
export interface Carrier {
  (token: string): void
  readonly [TraceId]: Trace
}

/** The trace of the span that the current fiber is in. */
export const currentTrace = (): Trace => {
  const fiber = Fiber.getCurrent()
  const span = fiber === undefined ? undefined : Spans.current(fiber)
  return {
    traceparent: fiber === undefined ? undefined : Spans.traceparentOf(fiber, span),
    span: span?._tag === "Span" ? span : undefined,
    isRoot: span?._tag === "Span" && span.parent._tag === "None"
  }
}

/** A carrier of the trace of the span that the current fiber is in. */
export const carrier = (): Carrier => Object.assign(() => {}, { [TraceId]: currentTrace() })

export const carried = (onresumptiontoken: ((token: string) => void) | undefined): Trace | undefined =>
  onresumptiontoken !== undefined && TraceId in onresumptiontoken ? onresumptiontoken[TraceId] as Trace : undefined

/**
 * The message as it goes out: with the trace in the place that MCP has for it,
 * https://modelcontextprotocol.io/community/seps/414-request-meta. What is there already wins only if there is no trace
 * here: a gateway hands on what it was sent, and is a part of the trace itself.
 */
export const traced = (message: MessageLike, trace: Trace | undefined): MessageLike => {
  if (trace === undefined || Array.isArray(message) || message.method === undefined) return message
  if (message.id !== undefined) {
    trace.span?.attribute("mcp.method.name", message.method)
    trace.span?.attribute("jsonrpc.request.id", String(message.id))
  }
  if (trace.traceparent === undefined) return message
  const { _meta: meta, ...params } = message.params ?? {}
  const { traceparent } = trace
  return {
    ...message,
    params: { ...params, _meta: trace.isRoot ? { traceparent, ...meta } : { ...meta, traceparent } }
  }
}

/** The trace in a message that goes out over HTTP. */
export const traceparentIn = (message: MessageLike | ReadonlyArray<MessageLike>): string | undefined => {
  if (Array.isArray(message)) return undefined
  const { _meta: meta } = (message as MessageLike).params ?? {}
  const traceparent = meta?.["traceparent"]
  return Spans.ofTraceparent(traceparent) === undefined ? undefined : traceparent as string
}

/** What is started on behalf of several is traced as that of the first. */
export const underCurrent = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const fiber = Fiber.getCurrent()
  const span = fiber === undefined ? undefined : Spans.current(fiber)
  return span === undefined ? effect : Effect.provideService(effect, Tracer.ParentSpan, span) as typeof effect
}
