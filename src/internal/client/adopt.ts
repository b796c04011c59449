/**
 * A session of a client that was connected by somebody else. The wire is put between the client and its transport while
 * both are in use: the client goes on with a transport that is the same to it.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { McpSessionError, SessionClosed } from "../../McpSessionError.ts"
import type { McpSession } from "../../Session.ts"
import * as Scrub from "../scrub.ts"
import * as Secrets from "../secrets.ts"
import { type ClientLike, mayBeDeaf, type TransportLike } from "./sdk.ts"
import * as OpenSession from "./session.ts"
import * as Wire from "./wire.ts"

export type Options =
  & Pick<
    OpenSession.OpenOptions<never>,
    "identity" | "handle" | "server"
  >
  & Partial<Pick<OpenSession.OpenOptions<never>, "requestTimeout" | "listTimeToLive">>

type Adoptable = TransportLike & {
  terminateSession?(): Promise<void>
  readonly protocolVersion?: string | undefined
}

export const adopt = <C extends ClientLike>(
  client: C,
  { listTimeToLive, requestTimeout, ...options }: Options
): Effect.Effect<McpSession<C>, McpSessionError, Scope.Scope> =>
  Effect.gen(function*() {
    const transport = client.transport as Adoptable | undefined
    if (transport === undefined) {
      const reason = new SessionClosed({ requestSent: false, detail: "the client is not connected" })
      return yield* new McpSessionError({ reason, method: "connect", server: options.server })
    }
    const scope = yield* Scope.fork(yield* Effect.scope)
    const scrub = Scrub.make()
    for (const secret of Secrets.ofCredentials(options.identity.credentials)) scrub.add(secret)
    return yield* OpenSession.adopt(
      { ...options, scrub, listTimeToLive, requestTimeout },
      { transport, terminate: async () => transport.terminateSession?.() },
      client,
      between(client, transport)
    ).pipe(
      Scope.provide(scope),
      Effect.onExit((exit) => Exit.isFailure(exit) ? Scope.close(scope, exit) : Effect.void)
    )
  })

/** Their handlers become the wire's, and what they send goes through it. */
const between = (client: ClientLike, transport: Adoptable): Wire.Wire => {
  const { onclose, onerror, onmessage } = transport
  const send = transport.send.bind(transport)
  const close = transport.close.bind(transport)
  const inner: TransportLike = {
    start: async () => {},
    send,
    close,
    get sessionId() {
      return transport.sessionId
    },
    ...(transport.hasPerRequestStream === undefined ? {} : { hasPerRequestStream: transport.hasPerRequestStream })
  }
  const wire = Wire.make(inner)
  Object.assign(wire, { onclose, onerror, onmessage, isDeaf: mayBeDeaf(transport) })
  const version = client.getNegotiatedProtocolVersion?.() ?? transport.protocolVersion
  if (version !== undefined) wire.setProtocolVersion?.(version)
  Object.assign(transport, {
    onclose: inner.onclose,
    onerror: inner.onerror,
    onmessage: inner.onmessage,
    send: wire.send,
    close: wire.close
  })
  return wire
}
