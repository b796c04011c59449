/**
 * Authorization servers that lie, stores that hang, and callbacks that come twice or leave: over loopback.
 */
import { assert, describe, it } from "@effect/vitest"
import { ClientCredentialsProvider } from "@modelcontextprotocol/sdk/client/auth-extensions.js"
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import type { OAuthTokens } from "@modelcontextprotocol/sdk/shared/auth.js"
import { AuthorizationFailed } from "effect-mcp-sessions/Authorization"
import * as Consent from "effect-mcp-sessions/Consent"
import { Identity } from "effect-mcp-sessions/Identity"
import type { McpSession, McpSessionError } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import { TokenStore, type TokenStoreShape } from "effect-mcp-sessions/TokenStore"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import { inspect } from "node:util"
import { eventuallyStanding } from "./support/answers.ts"
import type { Answer } from "./support/authorizationServer.ts"
import { agree, browse, consentOf } from "./support/consents.ts"
import { type AnySession, generations } from "./support/generations.ts"
import * as Protected from "./support/protected.ts"
import { makeHandle } from "./support/sessions.ts"
import { makeWall } from "./support/wall.ts"

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const alice = Identity.fromKey("alice")
const clientSecret = Redacted.make("client-secret-of-the-gateway")
const redirectUrl = "http://127.0.0.1:9/oauth/callback"

const call = (session: Pick<McpSession, "callTool">) => session.callTool({ name: "echo", arguments: { message: "hi" } })

const echo = Sessions.withSession(alice, call)

const issueOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), (error) => {
    const { reason } = error as McpSessionError
    assert(reason._tag === "PreparationFailed")
    const cause = Redacted.value(reason.cause)
    assert(cause instanceof AuthorizationFailed)
    return cause.issue
  })

const empty: TokenStoreShape = { get: () => Effect.succeedNone, set: () => Effect.void, remove: () => Effect.void }

const accepted = { action: "accept" } as const

type Connector = (typeof generations)[number][1]

const clientOf = (connector: Connector, { authority, server }: Protected.Protected) =>
  connector.http({
    url: server.url,
    authorization: { clientCredentials: { clientId: "gateway", clientSecret, issuer: authority.issuer } }
  })

const callerOf = (connector: Connector, { server }: Protected.Protected) =>
  Sessions.layer({
    connect: connector.http({ url: server.url, authorization: { authorizationCode: { redirectUrl } } })
  })

/** Has the authorization server wait until it is told what to say. */
const held = (upstream: Protected.Protected) => {
  const asked: Array<(answer: Answer) => void> = []
  upstream.answer = () => new Promise((resolve) => asked.push(resolve))
  return (answer: Answer) => asked[0]!(answer)
}

for (const [sdk, connector] of generations) {
  describe(`hostile authorization with ${sdk}`, () => {
    it.effect("an answer that is no JSON is quoted nowhere: it may be a token", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        for (const status of [200, 400]) {
          upstream.answer = () => ({ status, body: "gho_16C7e42F292c69" })
          const issue = yield* issueOf(clientOf(connector, upstream)(alice, makeHandle()))
          assert.notInclude(issue, "16C7", String(status))
        }
        upstream.answer = () => ({ status: 400, body: { access_token: "gho_16C7e42F292c69" } })
        assert.notInclude(yield* issueOf(clientOf(connector, upstream)(alice, makeHandle())), "16C7")
        upstream.authority.answers.set(
          "/.well-known/oauth-authorization-server",
          () => ({ body: "gho_16C7e42F292c69" })
        )
        assert.strictEqual(
          yield* issueOf(clientOf(connector, upstream)(alice, makeHandle())),
          "the authorization server's answer is not what OAuth says"
        )
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a token that can't be sent as a bearer's is none, and another is asked for", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const good = { access_token: "good-token", token_type: "bearer" }
        const bad = [
          { access_token: "a\r\nX-Evil: 1" },
          { access_token: "☃" },
          { access_token: "" },
          { access_token: "a b" },
          { token_type: "DPoP" },
          { token_type: "mac" }
        ]
        upstream.valid.set("good-token", "")
        for (const answer of bad) {
          upstream.answer = () => ({ body: { ...good, ...answer } })
          assert.match(yield* issueOf(clientOf(connector, upstream)(alice, makeHandle())), /bearer token/)
        }
        upstream.answer = () => ({ body: good })
        yield* Effect.flatMap(clientOf(connector, upstream)(alice, makeHandle()), call)
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a store that hangs when it is written costs two seconds", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const opened = yield* Effect.forkChild(Effect.flatMap(clientOf(connector, upstream)(alice, makeHandle()), call))
        yield* eventuallyStanding(() => upstream.grants.length === 1 && upstream.valid.size === 1)
        while (opened.pollUnsafe() === undefined) {
          yield* TestClock.adjust("2 seconds")
          yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
          assert.isBelow(yield* Clock.currentTimeMillis, 10_000)
        }
        yield* Fiber.join(opened)
      }).pipe(
        Effect.provide(Layer.succeed(TokenStore, { ...empty, set: () => Effect.uninterruptible(Effect.never) }))
      ))

    it.effect("a server that limits refreshes, or what stands before it, is nobody's reason to ask for consent", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        yield* Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo)
          upstream.revoke()
          for (const status of [429, 403, 404, 307]) {
            upstream.answer = () => ({ status, body: "gho_16C7e42F292c69" })
            assert.strictEqual(yield* issueOf(echo), `the authorization server answered ${status}`)
          }
          upstream.answer = undefined
          yield* echo
        }).pipe(Effect.provide(callerOf(connector, upstream)))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a refresh goes on when the open that needed it has gone, and is not asked for twice", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        yield* Effect.provide(Consent.withConsent(agree)(echo), callerOf(connector, upstream), { local: true })
        upstream.revoke()
        const answer = held(upstream)
        yield* Effect.gen(function*() {
          const leader = yield* Effect.forkChild(echo)
          yield* eventuallyStanding(() => upstream.grants.length === 2)
          yield* Fiber.interrupt(leader)
          const before = upstream.server.requests.length
          const next = yield* Effect.forkChild(echo, { startImmediately: true })
          let turns = 0
          yield* eventuallyStanding(() => upstream.server.requests.length > before && turns++ > 50)
          upstream.valid.set("good-token", "")
          answer({ body: { access_token: "good-token", token_type: "Bearer" } })
          yield* Fiber.join(next)
          assert.strictEqual(upstream.grants.length, 2)
        }).pipe(Effect.provide(callerOf(connector, upstream)))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a store with anything in it is a store with nothing in it", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const values = [
          null,
          [1],
          { tokens: { access_token: 5 } },
          { tokens: { access_token: "a", scope: [] } },
          { tokens: { access_token: "a", token_type: "Bearer" }, client: { client_id: "a", client_secret: 5 } },
          { tokens: { access_token: "a\r\nX-Evil: 1", token_type: "Bearer" } }
        ]
        const texts = [
          () => "{",
          () => "null",
          () => "[1]",
          (key: string) => JSON.stringify({ key }),
          ...values.map((value) => (key: string) => JSON.stringify({ key, value }))
        ]
        for (const text of texts) {
          const store: TokenStoreShape = {
            ...empty,
            get: (key) => Effect.succeedSome(Redacted.make(text(key)))
          }
          yield* Effect.flatMap(clientOf(connector, upstream)(alice, makeHandle()), call).pipe(
            Effect.provide(Layer.succeed(TokenStore, store))
          )
        }
        assert.strictEqual(upstream.grants.length, texts.length)
      }))

    it.effect("the same token again is asked for once by all who were refused with it", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const { authority, server, valid } = upstream
        const { refuse } = server.behaviour
        let asked = 0
        upstream.answer = () => {
          asked++
          return { body: { access_token: "the-only-one", token_type: "Bearer" } }
        }
        const provider = new ClientCredentialsProvider({ clientId: "gateway", clientSecret: "client-secret" })
        const token = Effect.sync(() => {
          asked++
          return Redacted.make("the-only-one")
        })
        const ways = [
          { clientCredentials: { clientId: "gateway", clientSecret, issuer: authority.issuer } },
          { token: () => token },
          () => provider
        ]
        for (const authorization of ways) {
          valid.set("the-only-one", "")
          server.behaviour.refuse = refuse
          const session = yield* connector.http({ url: server.url, authorization })(alice, makeHandle())
          asked = 0
          server.behaviour.refuse = ({ rpc }) =>
            rpc === "tools/call" ? [401, "Bearer error=\"invalid_token\""] : undefined
          const calls = Effect.all(Array.from({ length: 5 }, () => Effect.flip(call(session))), {
            concurrency: "unbounded"
          })
          for (const error of yield* calls) assert.strictEqual(error.reason._tag, "Unauthorized")
          assert.strictEqual(asked, 1)
          // Another is asked for by those who come later
          yield* calls
          assert.strictEqual(asked, 2)
          // More than it can do is asked for once, too
          server.behaviour.refuse = ({ rpc }) =>
            rpc === "tools/call" ? [403, "Bearer error=\"insufficient_scope\", scope=\"root\""] : undefined
          for (const error of yield* calls) assert.strictEqual(error.reason._tag, "Forbidden")
          assert.strictEqual(asked, 3)
        }
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("what interrupts itself on the way to a token is a failure like any other", () =>
      Effect.gen(function*() {
        const { authority, server } = yield* Protected.make
        const itself = { clientCredentials: { clientId: "gateway", clientSecret, issuer: authority.issuer } }
        for (const authorization of [itself, { token: () => Effect.interrupt }]) {
          const { reason } = yield* Effect.flip(
            connector.http({ url: server.url, authorization })(alice, makeHandle())
          )
          assert(reason._tag === "PreparationFailed")
          assert.strictEqual(reason.option, "authorization")
        }
        const session = yield* connector.http({
          url: server.url,
          authorization: { token: () => Effect.interrupt },
          headers: () => Effect.interrupt
        })(alice, makeHandle()).pipe(Effect.flip)
        assert(session.reason._tag === "PreparationFailed")
      }).pipe(Effect.provide(Layer.succeed(TokenStore, { ...empty, get: () => Effect.interrupt }))))

    it.effect("a store that answers for somebody else has nothing", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const written: Array<Redacted.Redacted> = []
        // As one does whose keys are cut off, or in one case
        const store = Layer.succeed(TokenStore, {
          ...empty,
          get: () => Effect.succeed(Option.fromUndefinedOr(written.at(-1))),
          set: (key, value) => Effect.sync(() => void (key.startsWith("grant-") && written.push(value)))
        })
        yield* Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo)
          yield* Effect.provide(echo, Layer.fresh(callerOf(connector, upstream)))
          const bob = Sessions.withSession(Identity.fromKey("bob"), call)
          assert.strictEqual((yield* Effect.flip(bob) as Effect.Effect<McpSessionError>).reason._tag, "ConsentRequired")
        }).pipe(Effect.provide(callerOf(connector, upstream)), Effect.provide(store))
      }))

    it.effect("a clock that is set back keeps no token, rest or consent for longer", () =>
      Effect.gen(function*() {
        const wall = yield* makeWall
        const upstream = yield* Protected.make
        const { grants, server, valid } = upstream
        const back = wall.jump(-Duration.toMillis("365 days"))

        // A token, by its own words
        let issued = 0
        const source = {
          token: () =>
            Effect.sync(() => {
              valid.set(`token-${++issued}`, "")
              return { token: Redacted.make(`token-${issued}`), expiresIn: "1 hour" as const }
            })
        }
        const ofSource = connector.http({ url: server.url, authorization: source })(alice, makeHandle())
        const session = yield* wall.on(ofSource)
        yield* back
        yield* wall.adjust("1 hour")
        yield* call(session)
        assert.strictEqual(issued, 2)

        // One that is refused as soon as it has come
        const refused = yield* wall.on(clientOf(connector, upstream)(alice, makeHandle()))
        const { refuse } = server.behaviour
        server.behaviour.refuse = (request) => {
          valid.clear()
          return refuse!(request)
        }
        yield* Effect.flip(call(refused))
        const asked = grants.length
        yield* Effect.flip(call(refused))
        assert.strictEqual(grants.length, asked)
        yield* back
        yield* wall.adjust("30 seconds")
        yield* Effect.flip(call(refused))
        assert.strictEqual(grants.length, asked + 1)

        // A consent
        server.behaviour.refuse = refuse!
        yield* Effect.gen(function*() {
          const { id, url } = yield* consentOf(echo)
          const answer = yield* browse(url)
          yield* back
          yield* wall.adjust("10 minutes")
          assert.strictEqual((yield* Effect.flip(Consent.finish(answer))).why, "unknown")
          assert.notStrictEqual((yield* consentOf(echo)).id, id)
        }).pipe(Effect.provide(callerOf(connector, upstream)), wall.on)
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("scopes that could not be had are not asked for again with others", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const asked: Array<string> = []
        upstream.answer = (form) => {
          const scope = form.get("scope") ?? ""
          asked.push(scope)
          if (scope.includes("root")) return { status: 400, body: { error: "invalid_scope" } }
          upstream.valid.set(`token-${asked.length}`, scope)
          return { body: { access_token: `token-${asked.length}`, token_type: "Bearer", scope } }
        }
        const provider = new ClientCredentialsProvider({ clientId: "gateway", clientSecret: "client-secret" })
        // As the second generation's does
        provider.prepareTokenRequest = (scope) =>
          new URLSearchParams({ grant_type: "client_credentials", ...(scope === undefined ? {} : { scope }) })
        const session = yield* connector.http({ url: upstream.server.url, authorization: () => provider })(
          alice,
          makeHandle()
        )
        upstream.needs = ({ rpc }) => rpc === "tools/call" ? "root" : ""
        yield* Effect.flip(call(session))
        upstream.needs = ({ rpc }) => rpc === "tools/call" ? "files" : ""
        yield* Effect.exit(call(session))
        assert.isAbove(asked.length, 2)
        assert.notInclude(asked.at(-1)!, "root")
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a provider has nobody redirected because its authorization server is down", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const redirected: Array<URL> = []
        const provider: OAuthClientProvider = {
          redirectUrl,
          clientMetadata: { redirect_uris: [redirectUrl] },
          clientInformation: () => ({ client_id: "gateway" }),
          tokens: () => ({ access_token: "access-token", refresh_token: "refresh-token", token_type: "Bearer" }),
          saveTokens: () => {},
          redirectToAuthorization: (url) => void redirected.push(url),
          saveCodeVerifier: () => {},
          codeVerifier: () => "",
          invalidateCredentials: () => {}
        }
        const open = connector.http({ url: upstream.server.url, authorization: () => provider })(alice, makeHandle())
        for (const status of [503, 429]) {
          upstream.answer = () => ({ status, body: "busy" })
          assert.strictEqual(yield* issueOf(open), `the authorization server answered ${status}`)
        }
        upstream.answer = () => undefined
        assert.match(yield* issueOf(open), /can't be reached/)
        assert.deepStrictEqual(redirected, [])
      }))

    it.effect("a provider may be frozen, and say null where it has nothing", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        let kept: OAuthTokens | null = null
        const provider = Object.freeze({
          redirectUrl: undefined,
          clientMetadata: { redirect_uris: [], grant_types: ["client_credentials"] },
          clientInformation: () => ({ client_id: "gateway", client_secret: "client-secret" }),
          prepareTokenRequest: () => new URLSearchParams({ grant_type: "client_credentials" }),
          tokens: () => kept as OAuthTokens | undefined,
          saveTokens: (tokens: OAuthTokens) => {
            kept = tokens
          },
          redirectToAuthorization: () => {},
          saveCodeVerifier: () => {},
          codeVerifier: () => ""
        })
        const session = yield* connector.http({ url: upstream.server.url, authorization: () => provider })(
          alice,
          makeHandle()
        )
        yield* call(session)
        assert.strictEqual(upstream.grants.length, 1)
      }))

    it.effect("a provider's token that is to be widened is not refreshed: a refresh widens nothing", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const { grants, refreshable, valid } = upstream
        valid.set("access-token", "")
        refreshable.add("refresh-token")
        const redirected: Array<string | null> = []
        const provider: OAuthClientProvider = {
          redirectUrl,
          clientMetadata: { redirect_uris: [redirectUrl] },
          clientInformation: () => ({ client_id: "gateway" }),
          tokens: () => ({ access_token: "access-token", refresh_token: "refresh-token", token_type: "Bearer" }),
          saveTokens: () => {},
          redirectToAuthorization: ({ searchParams }) => void redirected.push(searchParams.get("scope")),
          saveCodeVerifier: () => {},
          codeVerifier: () => ""
        }
        const session = yield* connector.http({ url: upstream.server.url, authorization: () => provider })(
          alice,
          makeHandle()
        )
        upstream.needs = ({ rpc }) => rpc === "tools/call" ? "mail.send" : ""
        assert.strictEqual((yield* Effect.flip(call(session))).reason._tag, "Forbidden")
        assert.deepStrictEqual(redirected, ["mail.send"])
        assert.deepStrictEqual(grants, [])
      }))

    it.effect("scopes that a server makes up for each call do not pile up, and too many at once are none", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const session = yield* clientOf(connector, upstream)(alice, makeHandle())
        const scopes = Array.from({ length: 8 }, (_, i) => `${i}.${"x".repeat(1_000)}`)
        for (const [i, scope] of scopes.entries()) {
          upstream.needs = ({ rpc }) => rpc === "tools/call" ? scope : ""
          yield* call(session)
          const asked = upstream.grants.at(-1)!.get("scope")!
          assert.isAtMost(asked.length, 4_096)
          assert.include(asked, scope)
          // What there is room for is kept
          if (i === 3) assert.deepStrictEqual(asked.split(" "), scopes.slice(0, 4))
        }
        assert.strictEqual(upstream.grants.length, 1 + scopes.length)
        upstream.needs = ({ rpc }) => rpc === "tools/call" ? "x".repeat(5_000) : ""
        assert.strictEqual((yield* Effect.flip(call(session))).reason._tag, "Forbidden")
        assert.strictEqual(upstream.grants.length, 1 + scopes.length)
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a token that can't be in a header is said to be so, not sent and not quoted", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const { server, valid } = upstream
        valid.set("good-token", "")
        const evil = [
          "a-token\r\nX-Evil: 1",
          "a-tok\nen",
          "a-token\u0000",
          "a-tok\u007fen",
          "a-tök-☃",
          "a tok en",
          " \n",
          ""
        ]
        for (const token of evil) {
          let isGood = false
          const source = () => Effect.sync(() => Redacted.make(isGood ? "good-token" : token))
          const provider = new ClientCredentialsProvider({ clientId: "gateway", clientSecret: "client-secret" })
          if (token !== "") provider.saveTokens({ access_token: token, token_type: "Bearer" })
          const refreshed = {
            token: () => Effect.succeed(Redacted.make("bad-token")),
            refresh: () => Effect.succeed({ token: Redacted.make(token), expiresIn: "1 hour" as const })
          }
          const ways = token === "" ? [{ token: source }, refreshed] : [{ token: source }, refreshed, () => provider]
          for (const way of ways) {
            const before = server.requests.length
            const open = connector.http({ url: server.url, authorization: way })(alice, makeHandle())
            const error = yield* Effect.flip(open)
            assert.match(yield* issueOf(Effect.fail(error)), /can't be sent in a header/)
            assert.notInclude(inspect(error, { depth: null }) + JSON.stringify(error) + error.message, "a-tok")
            const sent = server.requests.slice(before)
            assert.isTrue(sent.every(({ authorization }) => [undefined, "Bearer bad-token"].includes(authorization)))
            assert.isTrue(sent.every(({ headers }) => headers["x-evil"] === undefined))
          }
          // Nothing of it is kept
          isGood = true
          yield* Effect.flatMap(
            connector.http({ url: server.url, authorization: { token: source } })(alice, makeHandle()),
            call
          )
        }
        const ofFile = { token: () => Effect.succeed(Redacted.make("good-token\n")) }
        yield* Effect.flatMap(connector.http({ url: server.url, authorization: ofFile })(alice, makeHandle()), call)
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a callback that comes twice at once is redeemed once", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        yield* Effect.gen(function*() {
          const { url } = yield* consentOf(echo)
          const back = yield* browse(url)
          const come = Consent.callback({ isOwner: () => Effect.as(Effect.yieldNow, true) }).pipe(
            Effect.provideService(HttpServerRequest.HttpServerRequest, HttpServerRequest.fromWeb(new Request(back))),
            Effect.match({ onFailure: ({ why }) => why, onSuccess: () => "redeemed" })
          )
          const ends = yield* Effect.all([come, come], { concurrency: "unbounded" })
          assert.deepStrictEqual(ends.toSorted(), ["redeemed", "unknown"])
          assert.strictEqual(upstream.grants.length, 1)
          yield* echo
        }).pipe(Effect.provide(callerOf(connector, upstream)))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a callback whose browser leaves loses no tokens", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        yield* Effect.gen(function*() {
          const { url } = yield* consentOf(echo)
          const back = yield* browse(url)
          const answer = held(upstream)
          const waiting = yield* Effect.forkChild(
            Consent.withConsent(() => Effect.succeed({ action: "accept" }))(echo),
            { startImmediately: true }
          )
          const browser = yield* Effect.forkChild(Consent.finish(back))
          yield* eventuallyStanding(() => upstream.grants.length === 1)
          yield* Fiber.interrupt(browser)
          upstream.valid.set("good-token", "")
          answer({ body: { access_token: "good-token", token_type: "Bearer" } })
          yield* Fiber.join(waiting)
          assert.strictEqual(upstream.grants.length, 1)
        }).pipe(Effect.provide(callerOf(connector, upstream)))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a callback that says something twice is nobody's (RFC 6749 section 3.1)", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        yield* Effect.gen(function*() {
          const { id, url } = yield* consentOf(echo)
          const back = new URL(yield* browse(url))
          for (const name of ["state", "code", "iss", "error"]) {
            const twice = new URL(back)
            twice.searchParams.append(name, upstream.authority.issuer)
            twice.searchParams.append(name, "https://elsewhere.test")
            assert.strictEqual((yield* Effect.flip(Consent.finish(twice))).why, "unknown", name)
          }
          assert.deepStrictEqual(upstream.grants, [])
          assert.strictEqual((yield* consentOf(echo)).id, id)
          yield* Consent.finish(back)
          yield* echo
        }).pipe(Effect.provide(callerOf(connector, upstream)))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a caller who needs another consent with each call takes nobody's place", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        yield* Effect.gen(function*() {
          const bob = Identity.fromKey("bob")
          const ofBob = yield* consentOf(Sessions.withSession(bob, call))
          yield* Consent.withConsent(agree)(echo)
          const need = (scope: string) => {
            upstream.needs = ({ authorization, rpc }) =>
              authorization !== undefined && rpc === "tools/call" ? scope : ""
          }
          need("first")
          const asking = yield* Deferred.make<void>()
          const first = yield* Effect.forkChild(
            consentOf(Consent.withConsent(() => Effect.as(Deferred.succeed(asking, undefined), accepted))(echo))
          )
          yield* Deferred.await(asking)
          const asked: Array<string> = []
          for (let i = 0; i < 12; i++) {
            need(`${i}`)
            asked.push(yield* Effect.flatMap(consentOf(echo), ({ url }) => browse(url)))
          }
          // Whoever waits for one that nobody can bring any more hears that at once
          yield* Fiber.join(first)
          upstream.needs = () => ""
          const ends = yield* Effect.forEach(
            asked,
            (back) => Effect.match(Consent.finish(back), { onFailure: ({ why }) => why, onSuccess: () => "redeemed" })
          )
          assert.deepStrictEqual(ends, [
            ...Array.from({ length: 8 }, () => "unknown"),
            ...Array.from({ length: 4 }, () => "redeemed")
          ])
          assert.strictEqual((yield* Consent.finish(yield* browse(ofBob.url))).key, "bob")
        }).pipe(Effect.provide(callerOf(connector, upstream)))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("a callback that is no address is nobody's", () =>
      Effect.gen(function*() {
        assert.strictEqual((yield* Effect.flip(Consent.finish("http://["))).why, "unknown")
      }))

    it.effect("a refresh that another process was quicker with costs nobody a consent", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        const process = callerOf(connector, upstream).pipe(Layer.provide(Layer.fresh(TokenStore.layerKeyValueStore)))
        const [here, there] = [yield* Layer.build(process), yield* Layer.build(Layer.fresh(process))]
        yield* Effect.provide(Consent.withConsent(agree)(echo), here)
        yield* Effect.provide(echo, there)
        upstream.revoke()
        const refuse = held(upstream)
        const slower = yield* Effect.forkChild(Effect.provide(echo, here))
        yield* eventuallyStanding(() => upstream.grants.length === 2)
        upstream.answer = undefined
        yield* Effect.provide(echo, there)
        assert.strictEqual(upstream.grants.length, 3)
        refuse({ status: 400, body: { error: "invalid_grant" } })
        yield* Fiber.join(slower)
        yield* Effect.provide(echo, there)
        assert.strictEqual(upstream.grants.length, 3)
      }).pipe(Effect.scoped, Effect.provide(KeyValueStore.layerMemory)))
  })
}
