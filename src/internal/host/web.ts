/**
 * The answers of an MCP server over HTTP that are no refusals.
 */
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Stream from "effect/Stream"

type Answer = HttpServerResponse.HttpServerResponse

const events = "text/event-stream"

const notCached = { "cache-control": "no-cache, no-transform" }

// Effect's server hands its answer to the tracer, which may show it to anybody: this one does not show what is in it
const untold = { toJSON: () => ({ _id: "effect/HttpBody", _tag: "Uint8Array" }) }

const whole = (
  text: string,
  status: number,
  headers: Readonly<Record<string, string>>,
  contentType: string
): Answer => {
  const answer = HttpServerResponse.text(text, { status, headers, contentType })
  Object.assign(answer.body, untold)
  return answer
}

/** All that a stream says. */
export const wholeStream = (text: string, status: number, headers: Readonly<Record<string, string>>): Answer =>
  whole(text, status, headers, events)

export const emptyStream = wholeStream("", 200, notCached)

/** Nobody between is to keep a stream, or to wait for more of it (nginx). */
export const streamHeaders = { ...notCached, "x-accel-buffering": "no" }

export const stream = (
  body: Stream.Stream<Uint8Array>,
  status: number,
  headers: Readonly<Record<string, string>>
): Answer => HttpServerResponse.stream(body, { status, headers, contentType: events })

export const accepted = HttpServerResponse.empty({ status: 202 })

export const json = (text: string, status: number, headers: Readonly<Record<string, string>>): Answer =>
  whole(text, status, headers, "application/json")
