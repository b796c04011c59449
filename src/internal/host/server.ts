/**
 * One SDK server behind one Streamable HTTP transport, for one session.
 *
 * The SDK's transport does the protocol. Between it and the server stands a wire that knows which requests are in flight,
 * because of what the transport gets wrong (observed with 1.29 to 1.32):
 *
 * - A POST whose session ends is never answered when responses are JSON, nor one whose request the client has cancelled.
 * - Of two requests in flight with one id, the first is never answered.
 * - An error of an event store is told to the client as "Parse error", its text included, and leaves the transport in two
 *   minds about whether it was initialized.
 * - All sessions that share an event store can replay each other's events.
 */
import {
  type EventStore,
  WebStandardStreamableHTTPServerTransport
} from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import type { RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type { ServerLike } from "../../McpHttpOptions.ts"
import * as Answers from "./answers.ts"

export interface Options {
  readonly id: string
  readonly enableJsonResponse: boolean
  readonly eventStore: EventStore | undefined
  /** Milliseconds. */
  readonly retryInterval: number | undefined
  /** The server has closed its connection by itself. */
  readonly onClosed: () => void
}

export interface Hosted {
  /** Lives as long as the session. */
  readonly scope: Scope.Scope
  /**
   * Answers a request of the session, `body` being what its body says. The answer's body ends with the current scope, or
   * with the session.
   */
  readonly handle: (
    request: HttpServerRequest.HttpServerRequest,
    body: unknown
  ) => Effect.Effect<HttpServerResponse.HttpServerResponse, Answers.Refused, Scope.Scope>
  /** Ends the streams that clients have opened to listen, and that would stay open. */
  readonly endStreams: () => void
  /** Answers everything that is in flight, and ends every stream. */
  readonly end: () => void
}

/**
 * Connects the server to a transport of its own. Both are closed with the current scope, the server's own resources
 * after it.
 */
export const open = Effect.fnUntraced(function*<E, R>(server: Effect.Effect<ServerLike, E, R>, options: Options) {
  const scope = yield* Effect.scope
  const self = make(scope, options)
  const sdk = yield* server
  yield* Effect.acquireRelease(
    Effect.promise(() => sdk.connect(self.wire)),
    () => Effect.andThen(Effect.sync(self.end), Effect.ignore(Effect.tryPromise(() => sdk.close())))
  )
  return self satisfies Hosted as Hosted
})

// A POST, or a GET, that waits for its response.
interface Waiting {
  readonly ids: ReadonlyArray<RequestId>
  readonly answer: (answer: Effect.Effect<Response | HttpServerResponse.HttpServerResponse, Answers.Refused>) => void
}

const make = (scope: Scope.Scope, options: Options) => {
  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: () => options.id,
    enableJsonResponse: options.enableJsonResponse,
    ...(options.eventStore === undefined ? {} : { eventStore: options.eventStore }),
    ...(options.retryInterval === undefined ? {} : { retryInterval: options.retryInterval })
  })
  /** Those whose response has not come yet: its headers, where that is a stream. */
  const waiting = new Set<Waiting>()
  /** What reads the bodies of answers to GET. */
  const listening = new Set<Reader>()
  /** By request id, what is to be answered. */
  const inFlight = new Map<RequestId, Waiting>()
  let hasEnded = false

  const wire: Transport = {
    start: () => transport.start(),
    close: () => transport.close(),
    async send(message, { relatedRequestId } = {}) {
      try {
        await transport.send(message, relatedRequestId === undefined ? {} : { relatedRequestId })
      } finally {
        if (!("method" in message) && message.id !== undefined) inFlight.delete(message.id)
      }
    },
    get sessionId() {
      return options.id
    }
  }
  Object.assign(
    transport,
    {
      onclose: () => {
        wire.onclose?.()
        if (!hasEnded) options.onClosed()
      },
      onerror: (error) => wire.onerror?.(error),
      onmessage: (message, extra) => {
        wire.onmessage?.(message, extra)
        if ("method" in message && message.method === "notifications/cancelled") {
          cancelled(message.params?.["requestId"])
        }
      }
    } satisfies Pick<Transport, "onclose" | "onerror" | "onmessage">
  )

  // A server sends no response to a request that was cancelled, so the POST that brought it would stay open. This ends
  // that POST without a message in it: "Not send a response for the cancelled request".
  // https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation#behavior-requirements
  const cancelled = (id: unknown): void => {
    if (typeof id !== "string" && typeof id !== "number") return
    const post = inFlight.get(id)
    if (post === undefined) return
    if (post.ids.length === 1) {
      transport.closeSSEStream(id)
      if (waiting.delete(post)) post.answer(Effect.succeed(emptyStream))
    }
    // The transport answers a batch when it has a response to each request, so this one needs a response. The stream of a
    // single request has just been closed: the transport forgets the request, and then complains that there is no stream.
    wire.send({ jsonrpc: "2.0", id, error: { code: -32800, message: "Request cancelled" } }).catch(() => undefined)
  }

  const handle: Hosted["handle"] = (request, body) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        restore(respond(request, body)),
        (response) =>
          response instanceof Response
            ? toAnswer(response, request.method === "GET" ? listening : undefined)
            : Effect.succeed(response)
      )
    )

  const respond = (request: HttpServerRequest.HttpServerRequest, body: unknown) =>
    Effect.callback<Response | HttpServerResponse.HttpServerResponse, Answers.Refused>((answer) => {
      const ids = requestIds(body)
      if (hasEnded) return answer(Answers.notFound)
      if (ids.some((id, i) => inFlight.has(id) || ids.indexOf(id) !== i)) return answer(Answers.requestIdInUse)
      const webRequest = toRequest(request)
      const post: Waiting = { ids, answer }
      const forget = () => {
        for (const id of ids) if (inFlight.get(id) === post) inFlight.delete(id)
      }
      waiting.add(post)
      for (const id of ids) inFlight.set(id, post)
      transport.handleRequest(webRequest, body === undefined ? {} : { parsedBody: body }).then(
        (response) => {
          if (response.status >= 400) forget()
          if (waiting.delete(post)) answer(Effect.succeed(response))
          else void response.body?.cancel()
        },
        (defect) => {
          forget()
          if (waiting.delete(post)) answer(Effect.die(defect))
        }
      )
      return Effect.sync(() => waiting.delete(post))
    })

  const end = () => {
    hasEnded = true
    const posts = Array.from(waiting)
    waiting.clear()
    inFlight.clear()
    for (const post of posts) post.answer(Answers.notFound)
    void transport.close()
  }

  const endStreams = () => {
    for (const reader of listening) void reader.cancel()
  }

  return { scope, wire, handle, endStreams, end }
}

// -----------------------------------------------------------------------------
// Messages
// -----------------------------------------------------------------------------

const requestIds = (body: unknown): ReadonlyArray<RequestId> =>
  (Array.isArray(body) ? body : [body]).flatMap((message: unknown) =>
    Predicate.hasProperty(message, "method") && Predicate.hasProperty(message, "id") &&
      (typeof message.id === "string" || typeof message.id === "number")
      ? [message.id]
      : []
  )

// -----------------------------------------------------------------------------
// Requests and responses
// -----------------------------------------------------------------------------

const toRequest = (request: HttpServerRequest.HttpServerRequest): Request =>
  new Request(Option.getOrElse(HttpServerRequest.toURL(request), () => new URL("http://localhost")), {
    method: request.method,
    headers: request.headers
  })

const emptyStream = HttpServerResponse.text("", {
  contentType: "text/event-stream",
  headers: { "cache-control": "no-cache, no-transform" }
})

type Reader = ReadableStreamDefaultReader<Uint8Array>

const toAnswer = (
  response: Response,
  readers: Set<Reader> | undefined
): Effect.Effect<HttpServerResponse.HttpServerResponse, Answers.Refused, Scope.Scope> => {
  const { body, status } = response
  if (body === null) return Effect.succeed(HttpServerResponse.empty({ status, headers: headersOf(response) }))
  if (response.headers.get("content-type") === "text/event-stream") {
    const reader = body.getReader()
    readers?.add(reader)
    return Effect.as(
      // Not the stream's own: it may never begin, if the client is gone by now.
      Effect.addFinalizer(() => {
        readers?.delete(reader)
        return Effect.ignore(Effect.tryPromise(() => reader.cancel()))
      }),
      HttpServerResponse.stream(events(reader), {
        status,
        headers: headersOf(response),
        contentType: "text/event-stream"
      })
    )
  }
  return Effect.flatMap(Effect.promise(() => response.text()), (text) => {
    if (status === 404) return Answers.notFound
    if (status >= 500 || (status === 400 && hasData(text))) {
      return Effect.andThen(
        Effect.logWarning("The transport of an MCP session could not answer", { status, text }),
        Answers.unavailable
      )
    }
    return Effect.succeed(
      HttpServerResponse.text(text, { status, headers: headersOf(response), contentType: "application/json" })
    )
  })
}

const headersOf = (response: Response): Record<string, string> => {
  const headers: Record<string, string> = {}
  for (const [name, value] of response.headers) {
    // A connection's own header is not the transport's to set, and HTTP/2 has none.
    if (name !== "connection" && name !== "content-type") headers[name] = value
  }
  return headers
}

// What the transport adds to a "Parse error" that is none: the JSON was parsed before.
const hasData = (text: string): boolean => text.includes("\"code\":-32700") && text.includes("\"data\":")

/**
 * Begins with a comment if there is no event at once: a Node server sends the headers with the first bytes of the body, and
 * a client that has no headers does not know that its stream is open.
 */
const events = (reader: Reader): Stream.Stream<Uint8Array> => {
  let next: ReturnType<typeof reader.read> | undefined
  let isFirst = true
  return Stream.fromPull(Effect.succeed(
    Effect.callback<readonly [Uint8Array], Cause.Done>((resume) => {
      let isWaiting = true
      const tick = isFirst
        ? setImmediate(() => {
          isWaiting = false
          resume(Effect.succeed([comment]))
        })
        : undefined
      isFirst = false
      next ??= reader.read()
      const settle = (pulled: Effect.Effect<readonly [Uint8Array], Cause.Done>) => {
        if (!isWaiting) return
        clearImmediate(tick)
        next = undefined
        resume(pulled)
      }
      next.then(
        ({ value }) => settle(value === undefined ? Cause.done() : Effect.succeed([value])),
        () => settle(Cause.done())
      )
    })
  ))
}

const comment = new TextEncoder().encode(":\n\n")
