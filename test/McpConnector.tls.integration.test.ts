/**
 * What goes wrong with TLS, with real servers, on both transports of both generations of the SDK: a server that can't
 * be trusted, or does not speak TLS, was not sent anything.
 */
import { assert, describe, it } from "@effect/vitest"
import { Identity } from "effect-mcp-sessions/Identity"
import { Unreachable } from "effect-mcp-sessions/McpSession"
import * as Effect from "effect/Effect"
import { createServer } from "node:https"
import tls from "node:tls"
import { afterAll, beforeAll } from "vitest"
import { type Certificate, selfSigned } from "./support/certificates.ts"
import { type AnyConnector, generations } from "./support/generations.ts"
import * as Scripted from "./support/servers/scripted.ts"
import { makeHandle } from "./support/sessions.ts"

const good = selfSigned()
const expired = selfSigned({ until: new Date("2021-01-01") })
const elsewhere = selfSigned({ ip: [10, 0, 0, 1] })
const untrusted = selfSigned()

// A process may be told at its start alone whom to trust besides the public authorities (NODE_EXTRA_CA_CERTS): this is
// where the global `fetch` asks. Each test file has a process, or a thread with its own modules, to itself.
const createSecureContext = tls.createSecureContext
beforeAll(() => {
  tls.createSecureContext = (options) =>
    createSecureContext({ ...options, ca: [good.cert, expired.cert, elsewhere.cert] })
})
afterAll(() => {
  tls.createSecureContext = createSecureContext
})

const start = (certificate: Certificate | undefined) =>
  Scripted.start(
    certificate === undefined ? {} : { create: (listener) => createServer(certificate, listener) }
  )

const urlOf = (server: Scripted.Scripted, scheme: "http" | "https") => server.url.replace(/^https?/, scheme)

const connecting = (connect: AnyConnector) => connect(Identity.fromKey("alice"), makeHandle())

const failures: ReadonlyArray<
  readonly [string, certificate: Certificate | undefined, scheme: "http" | "https", code: string, requestSent: boolean]
> = [
  ["a certificate nobody trusts", untrusted, "https", "DEPTH_ZERO_SELF_SIGNED_CERT", false],
  ["a certificate that has expired", expired, "https", "CERT_HAS_EXPIRED", false],
  ["a certificate of another host", elsewhere, "https", "ERR_TLS_CERT_ALTNAME_INVALID", false],
  ["no TLS, when asked for it", undefined, "https", "ERR_SSL_WRONG_VERSION_NUMBER", false],
  ["TLS, when not asked for it", good, "http", "UND_ERR_SOCKET", true]
]

for (const [sdk, connector] of generations) {
  for (const transport of ["http", "sse"] as const) {
    describe(`${transport} with ${sdk}`, { concurrent: true }, () => {
      for (const [what, certificate, scheme, code, requestSent] of failures) {
        it.live(`to a server with ${what} fails with Unreachable, ${code}`, () =>
          Effect.gen(function*() {
            const server = yield* start(certificate)
            const error = yield* Effect.flip(connecting(connector[transport]({ url: urlOf(server, scheme) })))
            assert.deepStrictEqual(error.reason, new Unreachable({ code, requestSent }))
            assert.deepStrictEqual(server.received, [])
          }))
      }
    })
  }

  it.live(`http with ${sdk} talks to a server whose certificate is good`, () =>
    Effect.gen(function*() {
      const server = yield* start(good)
      const session = yield* connecting(connector.http({ url: urlOf(server, "https") }))
      yield* session.callTool({ name: "tool" })
      assert.deepStrictEqual(server.received, ["tool"])
    }))
}
