/**
 * Whose a token is: an identity's, at one upstream, of one authorization. Nobody else is ever sent it: over loopback.
 */
import { assert, describe, it } from "@effect/vitest"
import { ClientCredentialsProvider } from "@modelcontextprotocol/sdk/client/auth-extensions.js"
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import type { Authorization } from "effect-mcp-sessions/Authorization"
import * as Consent from "effect-mcp-sessions/Consent"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import type { McpSession, McpSessionError } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import { TokenStore } from "effect-mcp-sessions/TokenStore"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import { eventually } from "./support/answers.ts"
import type { Answer } from "./support/authorizationServer.ts"
import { browse, consentOf } from "./support/consents.ts"
import { type AnySession, generations } from "./support/generations.ts"
import * as Protected from "./support/protected.ts"
import { makeHandle } from "./support/sessions.ts"

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const alice = Identity.fromKey("alice", { credentials: Credentials.bearer("alice-her-own-token") })
const clientSecret = Redacted.make("client-secret-of-the-gateway")
const redirectUrl = "http://127.0.0.1:9/oauth/callback"

const call = (session: Pick<McpSession, "callTool">) => session.callTool({ name: "echo", arguments: { message: "hi" } })

/** By the identity alone it can't be told for which upstream it is: each session has its own. */
const providerOf = (): OAuthClientProvider =>
  new ClientCredentialsProvider({ clientId: "gateway", clientSecret: "client-secret-of-the-gateway" })

/** Another process, with the same store. */
const elsewhere = () => Layer.build(Layer.fresh(TokenStore.layerKeyValueStore))

/** The tokens that a server was sent. */
const sent = ({ server }: Protected.Protected) =>
  Array.from(new Set(server.requests.flatMap(({ authorization }) => authorization ?? [])))

for (const [sdk, connector] of generations) {
  const open = (url: string, authorization: Authorization, identity = alice) =>
    connector.http({ url, authorization })(identity, makeHandle())

  describe(`one authorization for several upstreams with ${sdk}`, () => {
    const setup = Effect.provide(TokenStore.layerMemory)

    it.effect("has a function asked for a token for each of them", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* Protected.make, yield* Protected.make]
        let issued = 0
        const authorization = { token: () => Effect.sync(() => Redacted.make(`token-number-${++issued}`)) }
        here.valid.set("token-number-1", "")
        there.valid.set("token-number-2", "")
        const sessions = [yield* open(here.server.url, authorization), yield* open(there.server.url, authorization)]
        for (const session of sessions) yield* call(session)
        assert.deepStrictEqual(sent(here), ["Bearer token-number-1"])
        assert.deepStrictEqual(sent(there), ["Bearer token-number-2"])
      }).pipe(setup))

    it.effect("has two paths of one origin told apart", () =>
      Effect.gen(function*() {
        const { server, valid } = yield* Protected.make
        let issued = 0
        const authorization = { token: () => Effect.sync(() => Redacted.make(`token-number-${++issued}`)) }
        for (const token of [1, 2, 3]) valid.set(`token-number-${token}`, "")
        for (const query of ["", "?tenant=a", "?tenant=b"]) yield* open(server.url + query, authorization)
        assert.strictEqual(sent({ server } as Protected.Protected).length, 3)
      }).pipe(setup))

    it.effect("lets none of them wait for another's authorization server, or fail by it", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* Protected.make, yield* Protected.make]
        const authorization = providerOf
        const session = yield* open(here.server.url, authorization)
        const other = yield* open(there.server.url, authorization)
        const waiting: Array<(answer: Answer) => void> = []
        there.answer = () => new Promise((resolve) => waiting.push(resolve))
        there.revoke()
        const failing = yield* Effect.forkChild(Effect.flip(call(other)))
        yield* TestClock.withLive(eventually(() => there.grants.length === 2))
        here.revoke()
        yield* call(session)
        there.answer = undefined
        for (const answer of waiting) answer({ status: 503 })
        assert.strictEqual((yield* Fiber.join(failing)).reason._tag, "PreparationFailed")
        here.revoke()
        yield* call(session)
      }).pipe(setup), 10_000)

    it.effect("asks the caller for a consent to each of them, and of each store", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* Protected.make, yield* Protected.make]
        const authorizationCode = { redirectUrl }
        const visit = Sessions.withSession(alice, call)
        const pool = ({ server }: Protected.Protected) =>
          Layer.build(
            Sessions.layer({ connect: connector.http({ url: server.url, authorization: { authorizationCode } }) }).pipe(
              Layer.provide(Layer.fresh(TokenStore.layerMemory)),
              Layer.fresh
            )
          )
        const pools = [yield* pool(here), yield* pool(there), yield* pool(here)]
        const asked = yield* Effect.forEach(pools, (context) => consentOf(Effect.provide(visit, context)))
        assert.strictEqual(new Set(asked.map(({ id }) => id)).size, 3)
        for (const { url } of asked) yield* Consent.finish(yield* browse(url))
        for (const context of pools) yield* Effect.provide(visit, context)
        assert.strictEqual(here.grants.length, 2)
        assert.strictEqual(there.grants.length, 1)
      }))
  })

  /** Opened by another process, with the same store, and closed. */
  const opened = (...options: Parameters<typeof open>) =>
    Effect.flatMap(elsewhere(), (context) => Effect.provide(Effect.scoped(open(...options)), context))

  describe(`what a TokenStore has with ${sdk}`, () => {
    it.effect("is for the very upstream, issuer, client, scope and identity that it was got for", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const { authority, grants, server } = upstream
        const other = yield* Protected.make
        const given = { clientId: "gateway", clientSecret, issuer: authority.issuer }
        const first: Authorization = { tokenExchange: given }
        const others: ReadonlyArray<readonly [url: string, authorization: Authorization, identity?: Identity]> = [
          [`${server.url}?tenant=b`, first],
          [server.url, { clientCredentials: given }],
          [server.url, { tokenExchange: { ...given, clientId: "another" } }],
          [server.url, { tokenExchange: { ...given, scope: "mail.read" } }],
          [server.url, { tokenExchange: { ...given, audience: "https://api.example.com" } }],
          [server.url, { tokenExchange: { ...given, subjectTokenType: "urn:ietf:params:oauth:token-type:jwt" } }],
          [server.url, first, Identity.fromKey("bob", { credentials: Credentials.bearer("bob-his-own-token") })]
        ]
        yield* opened(server.url, first)
        yield* opened(server.url, first)
        assert.strictEqual(grants.length, 1)
        for (const [index, options] of others.entries()) {
          yield* opened(...options)
          assert.strictEqual(grants.length, index + 2, `case ${index}`)
        }
        // Whoever issues for the upstream has moved: the old one's tokens are none of the new one's
        const moved = { tokenExchange: { ...given, issuer: other.authority.issuer } }
        yield* Effect.exit(opened(server.url, moved))
        assert.isAtLeast(other.grants.length, 1)
        yield* opened(server.url, first)
        assert.strictEqual(grants.length, others.length + 1)
      }).pipe(Effect.scoped, Effect.provide(KeyValueStore.layerMemory)))

    it.effect("a refresh token and a client go to nobody but the issuer that they are of", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const thief = yield* Protected.make
        const { authority, server } = upstream
        const visit = Sessions.withSession(alice, call)
        const process = () =>
          Layer.build(
            Sessions.layer({
              connect: connector.http({ url: server.url, authorization: { authorizationCode: { redirectUrl } } })
            }).pipe(Layer.provide(Layer.fresh(TokenStore.layerKeyValueStore)), Layer.fresh)
          )
        const asked = yield* consentOf(Effect.flatMap(process(), (context) => Effect.provide(visit, context)))
        yield* Consent.finish(yield* browse(asked.url))
        assert.strictEqual(upstream.refreshable.size, 1)
        // The upstream, or whoever has it now, names another
        server.behaviour.documents = {
          "/.well-known/oauth-protected-resource/mcp": {
            resource: server.url,
            authorization_servers: [thief.authority.issuer]
          }
        }
        upstream.revoke()
        const bodies: Array<string> = []
        for (const path of ["/token", "/register", "/authorize"]) {
          const answer = thief.authority.answers.get(path)!
          thief.authority.answers.set(path, (request, body) => {
            bodies.push(`${request.url} ${request.headers.authorization} ${decodeURIComponent(body)}`)
            return answer(request, body)
          })
        }
        const anew = yield* consentOf(Effect.flatMap(process(), (context) => Effect.provide(visit, context)))
        assert.strictEqual(new URL(Redacted.value(anew.url)).origin, thief.authority.issuer)
        yield* browse(anew.url)
        assert.isAtLeast(bodies.length, 2)
        for (const secret of upstream.secrets) for (const body of bodies) assert.notInclude(body, secret)
        assert.isFalse(thief.grants.some((form) => form.has("refresh_token")))
        assert.isAbove(authority.requests.length, 0)
      }).pipe(Effect.scoped, Effect.provide(KeyValueStore.layerMemory)))
  })
}
