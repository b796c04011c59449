/**
 * `McpConnector.http({ authorization })`: tokens for an upstream that asks for OAuth.
 */
import { assert, describe, it } from "@effect/vitest"
import { ClientCredentialsProvider } from "@modelcontextprotocol/sdk/client/auth-extensions.js"
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js"
import { AuthorizationFailed } from "effect-mcp-sessions/Authorization"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import type { McpSessionError } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import { TokenStore, TokenStoreError, type TokenStoreShape } from "effect-mcp-sessions/TokenStore"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import { eventuallyStanding } from "./support/answers.ts"
import { type AnySession, generations } from "./support/generations.ts"
import { many, underLoad } from "./support/load.ts"
import * as Protected from "./support/protected.ts"
import { makeHandle } from "./support/sessions.ts"

const alice = Identity.fromKey("alice", { credentials: Credentials.bearer("alice-her-own-token") })

const call = (session: AnySession, name = "echo", args: Record<string, unknown> = { message: "hi" }) =>
  Effect.map(session.callTool({ name, arguments: args }), (result: CallToolResult) => {
    const [block] = result.content
    return block?.type === "text" ? block.text : ""
  })

/** A call that the server counts. */
const slow = (session: AnySession) => call(session, "slow", { ms: 1 })

const times = <A, E, R>(n: number, effect: Effect.Effect<A, E, R>) =>
  Effect.all(Array.from({ length: n }, () => effect), { concurrency: "unbounded" })

const total = many(20, 1_000)

const clientSecret = Redacted.make("client-secret-of-the-gateway")

/** The authorization of a client that asks for itself, and for nobody else. */
const itself = ({ issuer }: { readonly issuer: string }) => ({
  clientCredentials: { clientId: "gateway", clientSecret, issuer }
})

/** What the open or the call has failed with. */
const failureOf = <A, R>(effect: Effect.Effect<A, McpSessionError, R>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => {
    assert(reason._tag === "PreparationFailed")
    assert.strictEqual(reason.option, "authorization")
    const cause = Redacted.value(reason.cause)
    assert(cause instanceof AuthorizationFailed)
    return cause
  })

const working: TokenStoreShape = {
  get: () => Effect.succeedNone,
  set: () => Effect.void,
  remove: () => Effect.void
}

/** A store that does everything but this. */
const broken = (method: "get" | "set") =>
  Layer.succeed(TokenStore, {
    ...working,
    [method]: () => Effect.fail(new TokenStoreError({ method, cause: Redacted.make("it is on fire") }))
  })

/** What an authorization server may do in place of an answer. */
const disorders: Readonly<Record<string, readonly [issue: RegExp, answer: Protected.Protected["answer"]]>> = {
  "hangs up": [/can't be reached/, () => undefined],
  "answers 503": [/answered 503/, () => ({ status: 503, body: "busy with client-secret-of-the-gateway" })],
  "answers with a web page": [/./, () => ({ headers: { "content-type": "text/html" }, body: "<h1>It works!</h1>" })],
  "answers with no token": [/not what OAuth says/, () => ({ body: { ok: true } })],
  "leads elsewhere": [/./, () => ({ status: 307, headers: { location: "http://127.0.0.1:1/token" } })],
  "says no, and quotes what it was sent": [
    /invalid_client: what about/,
    () => ({
      status: 401,
      body: { error: "invalid_client", error_description: "what about client-secret-of-the-gateway?" }
    })
  ],
  "answers without an end": [/longer than/, () => ({ body: "x".repeat(300_000) })]
}

for (const [sdk, connector] of generations) {
  describe(`authorization with ${sdk}`, () => {
    const setup = Effect.provide(TokenStore.layerMemory)

    it.effect("gets a token for the client itself, where the server says that it wants one", () =>
      Effect.gen(function*() {
        const { authority, clients, grants, server } = yield* Protected.make
        const connect = connector.http({ url: server.url, authorization: itself(authority) })
        const session = yield* connect(alice, makeHandle())
        assert.strictEqual(yield* call(session), "hi")
        assert.deepStrictEqual(grants.map((form) => Object.fromEntries(form)), [
          { grant_type: "client_credentials", resource: server.url }
        ])
        assert.deepStrictEqual(clients, [`Basic ${btoa("gateway:client-secret-of-the-gateway")}`])
        assert.strictEqual(yield* call(session, "whoami"), "Bearer access-token-number-1")
        // All of them are the same client's
        const other = yield* connect(Identity.fromKey("bob"), makeHandle())
        assert.strictEqual(yield* call(other, "whoami"), "Bearer access-token-number-1")
        assert.strictEqual(grants.length, 1)
      }).pipe(setup))

    it.effect("asks once for all calls whose token is refused, and each call runs once", () =>
      Effect.gen(function*() {
        const { authority, grants, revoke, server } = yield* Protected.make
        const connect = connector.http({ url: server.url, authorization: itself(authority) })
        const handle = makeHandle()
        const session = yield* connect(alice, handle)
        revoke()
        yield* times(10, slow(session))
        assert.strictEqual(grants.length, 2)
        assert.strictEqual(server.calls.answered, 10)
        assert.strictEqual(server.requestsOf("tools/call").length, 20)
        assert.strictEqual(server.sessions.length, 1)
        assert.deepStrictEqual(handle.retired, [])
      }).pipe(setup))

    it.effect(
      `has its token refreshed 20 times in ${total} calls: one session, and no call fails`,
      () =>
        Effect.gen(function*() {
          const { authority, grants, revoke, server } = yield* Protected.make
          class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}
          const pool = Sessions.layer({
            connect: connector.http({
              url: server.url,
              authorization: { tokenExchange: { clientId: "gateway", clientSecret, issuer: authority.issuer } }
            })
          })
          yield* Effect.gen(function*() {
            for (let refresh = 1; refresh <= 20; refresh++) {
              const identity = Identity.fromKey("alice", { credentials: Credentials.bearer(`alice-token-${refresh}`) })
              revoke()
              yield* times(total / 20, Sessions.withSession(identity, slow))
            }
            const { misses, retirements, size } = yield* Sessions.stats
            assert.deepStrictEqual({ misses, retirements, size }, { misses: 1, retirements: 0, size: 1 })
          }).pipe(Effect.provide(pool))
          assert.strictEqual(server.calls.answered, total)
          assert.strictEqual(server.requestsOf("initialize").filter(({ authorization }) => authorization).length, 1)
          assert.deepStrictEqual(
            grants.map((form) => form.get("subject_token")),
            Array.from({ length: 20 }, (_, i) => `alice-token-${i + 1}`)
          )
        }).pipe(setup),
      underLoad
    )

    it.effect("exchanges the caller's newest token for one that is meant for the server", () =>
      Effect.gen(function*() {
        const { authority, grants, revoke, server } = yield* Protected.make
        const connect = connector.http({
          url: server.url,
          authorization: {
            tokenExchange: { clientId: "gateway", clientSecret, issuer: authority.issuer, scope: "mail.read" }
          }
        })
        const handle = makeHandle()
        const session = yield* connect(alice, handle)
        assert.strictEqual(yield* call(session, "whoami"), "Bearer access-token-number-1")
        handle.rotate(Credentials.bearer("alice-her-newer-token"))
        revoke()
        assert.strictEqual(yield* call(session, "whoami"), "Bearer access-token-number-2")
        assert.deepStrictEqual(
          grants.map((form) => Object.fromEntries(form)),
          ["alice-her-own-token", "alice-her-newer-token"].map((subject) => ({
            grant_type: "urn:ietf:params:oauth:grant-type:token-exchange",
            subject_token: subject,
            subject_token_type: "urn:ietf:params:oauth:token-type:access_token",
            requested_token_type: "urn:ietf:params:oauth:token-type:access_token",
            scope: "mail.read",
            resource: server.url
          }))
        )
        assert.isFalse(server.requests.some(({ authorization }) => authorization?.includes("alice-her") === true))
      }).pipe(setup))

    it.effect("has nothing to exchange for a caller without a token", () =>
      Effect.gen(function*() {
        const { authority, grants, server } = yield* Protected.make
        const connect = connector.http({
          url: server.url,
          authorization: { tokenExchange: { clientId: "gateway", clientSecret, issuer: authority.issuer } }
        })
        const failure = yield* failureOf(connect(Identity.fromKey("bob"), makeHandle()))
        assert.include(failure.message, "no bearer token")
        assert.strictEqual(grants.length, 0)
      }).pipe(setup))

    it.effect("asks a function for a token, and for another one when that is refused or has expired", () =>
      Effect.gen(function*() {
        const { server, valid } = yield* Protected.make
        valid.set("of-the-vault-1", "")
        const asked: Array<string> = []
        const connect = connector.http({
          url: server.url,
          authorization: {
            token: ({ credentials, key }) =>
              Effect.sync(() => {
                asked.push(`token for ${key} of ${Redacted.value(Option.getOrThrow(credentials).token)}`)
                return Redacted.make("of-the-vault-1")
              }),
            refresh: ({ key }, refused) =>
              Effect.sync(() => {
                asked.push(`another for ${key} than ${Redacted.value(refused.token)}`)
                valid.set("of-the-vault-2", "")
                return { token: Redacted.make("of-the-vault-2"), expiresIn: "1 hour" }
              })
          }
        })
        const handle = makeHandle()
        handle.rotate(Credentials.bearer("alice-her-newer-token"))
        const session = yield* connect(alice, handle)
        assert.strictEqual(yield* call(session, "whoami"), "Bearer of-the-vault-1")
        valid.clear()
        assert.deepStrictEqual(
          yield* Effect.all([call(session, "whoami"), call(session, "whoami")], { concurrency: 2 }),
          ["Bearer of-the-vault-2", "Bearer of-the-vault-2"]
        )
        assert.deepStrictEqual(asked, [
          "token for alice of alice-her-newer-token",
          "another for alice than of-the-vault-1"
        ])
        yield* TestClock.adjust("1 hour")
        yield* call(session)
        assert.strictEqual(asked[2], "another for alice than of-the-vault-2")
        assert.strictEqual(asked.length, 3)
      }).pipe(setup))

    it.effect("gives the refusal to its caller when there is no other token", () =>
      Effect.gen(function*() {
        const { server, valid } = yield* Protected.make
        valid.set("the-only-one", "")
        const connect = connector.http({
          url: server.url,
          authorization: { token: () => Effect.succeed(Redacted.make("the-only-one")) }
        })
        const session = yield* connect(alice, makeHandle())
        valid.clear()
        const { reason } = yield* Effect.flip(call(session))
        assert(reason._tag === "Unauthorized")
        assert.deepInclude(reason.challenges?.[0]?.parameters, { error: "invalid_token" })
        assert.strictEqual(server.requestsOf("tools/call").length, 1)
      }).pipe(setup))

    it.effect("takes a provider of the SDK as it is", () =>
      Effect.gen(function*() {
        const { authority, grants, revoke, server } = yield* Protected.make
        const made: Array<string> = []
        const connect = connector.http({
          url: server.url,
          authorization: ({ key }) => {
            made.push(key)
            return new ClientCredentialsProvider({
              clientId: `client-of-${key}`,
              clientSecret: "client-secret-of-the-gateway",
              expectedIssuer: authority.issuer
            })
          }
        })
        const session = yield* connect(alice, makeHandle())
        yield* call(session)
        revoke()
        yield* times(10, slow(session))
        assert.strictEqual(grants.length, 2)
        assert.strictEqual(server.calls.answered, 10)
        assert.deepStrictEqual(made, ["alice"])
      }).pipe(setup))

    it.effect("asks for more scopes when those of the token are not enough, and not for ever", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const { authority, grants, server } = upstream
        const connect = connector.http({ url: server.url, authorization: itself(authority) })
        upstream.needs = ({ rpc }) => rpc === "tools/call" ? "mail.send" : "mail.read"
        const session = yield* connect(alice, makeHandle())
        yield* slow(session)
        assert.deepStrictEqual(grants.map((form) => form.get("scope")), ["mail.read", "mail.read mail.send"])
        assert.strictEqual(server.calls.answered, 1)

        // It gives what it is asked for, and that is never enough
        let wanted = 0
        upstream.needs = ({ rpc }) => rpc === "tools/call" ? `more.${++wanted}` : ""
        const { reason } = yield* Effect.flip(slow(session))
        assert.strictEqual(reason._tag, "Forbidden")
        assert.strictEqual(grants.length, 4)
        assert.strictEqual(server.calls.answered, 1)
      }).pipe(setup))

    for (const [what, [issue, answer]] of Object.entries(disorders)) {
      it.effect(`fails each call once when the authorization server ${what}, and keeps the session`, () =>
        Effect.gen(function*() {
          const upstream = yield* Protected.make
          const { authority, grants, revoke, server } = upstream
          const connect = connector.http({ url: server.url, authorization: itself(authority) })
          const handle = makeHandle()
          const session = yield* connect(alice, handle)
          revoke()
          upstream.answer = answer
          const failures = yield* times(20, failureOf(slow(session)))
          assert.match(failures[0]!.message, issue)
          assert.isFalse(failures.some(({ message }) => message.includes("client-secret")))
          // The SDKs try twice when the client is not known
          assert.strictEqual(grants.length, what.startsWith("says no") ? 3 : 2)
          upstream.answer = undefined
          yield* slow(session)
          assert.strictEqual(server.calls.answered, 1)
          assert.strictEqual(server.sessions.length, 1)
          assert.deepStrictEqual(handle.retired, [])
        }).pipe(setup))
    }

    it.effect(
      "fails many calls after ten seconds when the authorization server is mute, and keeps the session",
      () =>
        Effect.gen(function*() {
          const count = many(20, 100)
          const upstream = yield* Protected.make
          const { authority, grants, revoke, server } = upstream
          const connect = connector.http({ url: server.url, authorization: itself(authority) })
          const handle = makeHandle()
          const session = yield* connect(alice, handle)
          revoke()
          upstream.answer = () => new Promise(() => {})
          const calls = yield* Effect.forkChild(times(count, failureOf(slow(session))))
          yield* eventuallyStanding(() => server.requestsOf("tools/call").length === count && grants.length === 2)
          yield* TestClock.adjust("10 seconds")
          const failures = yield* Fiber.join(calls)
          assert.match(failures[0]!.message, /took longer than 10s/)
          assert.strictEqual(grants.length, 2)
          assert.strictEqual(server.requestsOf("tools/call").length, count)
          upstream.answer = undefined
          yield* slow(session)
          assert.strictEqual(server.calls.answered, 1)
          assert.deepStrictEqual(handle.retired, [])
        }).pipe(setup),
      underLoad
    )

    it.effect("does not ask again and again for a token that is refused as soon as it has come", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const { authority, grants, server, valid } = upstream
        const connect = connector.http({ url: server.url, authorization: itself(authority) })
        const session = yield* connect(alice, makeHandle())
        const { refuse } = server.behaviour
        server.behaviour.refuse = (request) => {
          valid.clear()
          return refuse!(request)
        }
        for (let i = 0; i < 10; i++) {
          const { reason } = yield* Effect.flip(call(session))
          assert.strictEqual(reason._tag, "Unauthorized")
        }
        assert.strictEqual(grants.length, 2)
        // At first it may be a matter of a moment
        for (const [index, seconds] of [1, 2, 4, 8, 16, 30, 30].entries()) {
          yield* TestClock.adjust(seconds * 1_000 - 1)
          yield* Effect.flip(call(session))
          assert.strictEqual(grants.length, 2 + index)
          yield* TestClock.adjust(1)
          yield* Effect.flip(call(session))
          assert.strictEqual(grants.length, 3 + index)
        }
        server.behaviour.refuse = refuse!
        yield* TestClock.adjust("30 seconds")
        yield* call(session)
        yield* call(session)
        assert.strictEqual(grants.length, 10)
        // One that was good for a while has all of it before it
        valid.clear()
        server.behaviour.refuse = (request) => {
          valid.clear()
          return refuse!(request)
        }
        yield* Effect.flip(call(session))
        yield* TestClock.adjust("1 second")
        yield* Effect.flip(call(session))
        assert.strictEqual(grants.length, 12)
      }).pipe(setup))

    it.effect("does not repeat what was redirected before it was refused: it has been somewhere else", () =>
      Effect.gen(function*() {
        const { authority, grants, revoke, server } = yield* Protected.make
        let isRedirecting = false
        const connect = connector.http({
          url: server.url,
          authorization: itself(authority),
          fetch: (url, init) =>
            isRedirecting && init?.method === "POST" && url.toString() === server.url
              ? Promise.resolve(new Response(null, { status: 307, headers: { location: `${server.url}?again` } }))
              : fetch(url, init)
        })
        const session = yield* connect(alice, makeHandle())
        isRedirecting = true
        yield* slow(session)
        revoke()
        assert.strictEqual((yield* Effect.flip(slow(session))).reason._tag, "Unauthorized")
        assert.strictEqual(server.calls.answered, 1)
        assert.strictEqual(grants.length, 1)
      }).pipe(setup))

    it.effect("works over SSE", () =>
      Effect.gen(function*() {
        const { authority, grants, revoke, server } = yield* Protected.make
        server.behaviour.documents = {
          "/.well-known/oauth-protected-resource/mcp": { resource: new URL(server.url).origin }
        }
        const connect = connector.sse({ url: server.sseUrl, authorization: itself(authority) })
        const session = yield* connect(alice, makeHandle())
        assert.strictEqual(yield* call(session), "hi")
        revoke()
        yield* times(3, slow(session))
        assert.strictEqual(server.calls.answered, 3)
        assert.strictEqual(grants.length, 2)
      }).pipe(setup))

    describe("with a store that fails", () => {
      it.effect("when it is read, fails the open", () =>
        Effect.gen(function*() {
          const { authority, grants, server } = yield* Protected.make
          const connect = connector.http({ url: server.url, authorization: itself(authority) })
          const { reason } = yield* Effect.flip(connect(alice, makeHandle()))
          assert(reason._tag === "PreparationFailed")
          assert.instanceOf(Redacted.value(reason.cause), TokenStoreError)
          assert.deepStrictEqual(grants, [])
        }).pipe(Effect.provide(broken("get"))))

      it.effect("when it is written, goes on with what it has, and says so", () =>
        Effect.gen(function*() {
          const { authority, grants, revoke, server } = yield* Protected.make
          const logged: Array<string> = []
          const logger = Logger.make<unknown, void>(({ message }) => void logged.push(String(message)))
          const connect = connector.http({ url: server.url, authorization: itself(authority) })
          const session = yield* Effect.provide(connect(alice, makeHandle()), Logger.layer([logger]))
          yield* slow(session)
          revoke()
          yield* slow(session)
          assert.strictEqual(grants.length, 2)
          assert.strictEqual(server.calls.answered, 2)
          assert.strictEqual(logged.length, 2)
          assert.include(logged[0], "could not be written to the TokenStore")
          assert.notInclude(logged.join(), "access-token")
        }).pipe(Effect.provide(broken("set"))))
    })

    it.effect("asks nobody but the issuer that knows the client, whatever the server names", () =>
      Effect.gen(function*() {
        const { authority, grants, server } = yield* Protected.make
        const thief = yield* Protected.make
        server.behaviour.documents = {
          "/.well-known/oauth-protected-resource/mcp": {
            resource: server.url,
            authorization_servers: [thief.authority.issuer]
          }
        }
        const connect = connector.http({ url: server.url, authorization: itself(authority) })
        yield* connect(alice, makeHandle())
        assert.strictEqual(grants.length, 1)
        assert.deepStrictEqual(thief.authority.requests, [])
      }).pipe(setup))
  })
}
