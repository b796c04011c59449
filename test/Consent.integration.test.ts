/**
 * A caller's consent to what is done in their name upstream: with an authorization server, over loopback.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, describe, it, vi } from "@effect/vitest"
import * as Consent from "effect-mcp-sessions/Consent"
import { Identity } from "effect-mcp-sessions/Identity"
import type { McpSession, McpSessionError } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import { TokenStore, TokenStoreError, type TokenStoreShape } from "effect-mcp-sessions/TokenStore"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { createServer } from "node:http"
import { inspect } from "node:util"
import { textOf } from "./support/answers.ts"
import type { AuthorizationServer } from "./support/authorizationServer.ts"
import { browse, consentOf } from "./support/consents.ts"
import { type AnySession, generations } from "./support/generations.ts"
import * as Protected from "./support/protected.ts"
import { makeHandle } from "./support/sessions.ts"
import { makeRecorder } from "./support/spans.ts"

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

const redirectUrl = "http://127.0.0.1:9/oauth/callback"

const echo = (identity: Identity) =>
  Sessions.withSession(
    identity,
    (session: Pick<McpSession, "callTool">) => session.callTool({ name: "echo", arguments: { message: "hi" } })
  )

const asked: Array<Consent.ConsentRequest> = []

/** A caller who opens what they are asked to open, and comes back. */
const agree = (request: Consent.ConsentRequest) =>
  Effect.gen(function*() {
    asked.push(request)
    yield* Consent.finish(yield* browse(request.url))
    return { action: "accept" } as const
  })

/** A caller who says no to the authorization server, and comes back with that. */
const deny = ({ url }: Consent.ConsentRequest) =>
  Effect.gen(function*() {
    const state = new URL(Redacted.value(url)).searchParams.get("state")!
    const answer = new URLSearchParams({ error: "access_denied", state })
    assert.strictEqual((yield* Effect.flip(Consent.finish(answer))).why, "denied")
    return { action: "accept" } as const
  })

/** RFC 9207 section 3: from now on it says of each answer that it is its own. */
const announceIssuer = ({ answers }: AuthorizationServer): void => {
  const path = "/.well-known/oauth-authorization-server"
  const metadata = answers.get(path)!
  answers.set(path, async (request, body) => ({
    body: { ...(await metadata(request, body))!.body as object, authorization_response_iss_parameter_supported: true }
  }))
}

for (const [sdk, connector] of generations) {
  const pool = (upstream: Protected.Protected, authorizationCode = { redirectUrl }) =>
    Sessions.layer({
      connect: connector.http({ url: upstream.server.url, name: "mail", authorization: { authorizationCode } })
    })

  /** An upstream, and a pool of sessions with it. */
  const withUpstream = <A, E, R>(
    f: (upstream: Protected.Protected) => Effect.Effect<A, E, R>,
    options?: { readonly redirectUrl: string; readonly timeout?: string }
  ) =>
    Effect.gen(function*() {
      const upstream = yield* Protected.make
      asked.length = 0
      return yield* Effect.provide(f(upstream), pool(upstream, options as { redirectUrl: string } | undefined))
    }).pipe(Effect.provide(TokenStore.layerMemory))

  describe(`consent with ${sdk}`, () => {
    it.effect("is asked for once, and the call goes on", () =>
      withUpstream(({ grants, refreshable, revoke, server }) =>
        Effect.gen(function*() {
          const answered = yield* Consent.withConsent(agree)(echo(alice))
          assert.deepInclude(answered.content, { type: "text", text: "hi" })
          assert.strictEqual(asked.length, 1)
          assert.match(asked[0]!.message, /^"mail" wants your consent/)
          assert.deepStrictEqual(grants.map((form) => form.get("grant_type")), ["authorization_code"])
          assert.strictEqual(grants[0]!.get("resource"), server.url)

          revoke()
          yield* Effect.all(Array.from({ length: 10 }, () => echo(alice)), { concurrency: "unbounded" })
          assert.deepStrictEqual(grants.map((form) => form.get("grant_type")), ["authorization_code", "refresh_token"])
          assert.strictEqual(refreshable.size, 1)
          assert.strictEqual(server.sessions.length, 1)
          assert.strictEqual(asked.length, 1)
        })
      ))

    it.effect("is each caller's own", () =>
      withUpstream(({ server }) =>
        Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo(alice))
          yield* consentOf(echo(bob))
          yield* Consent.withConsent(agree)(echo(bob))
          const tokens = new Set(server.requestsOf("tools/call").map(({ authorization }) => authorization))
          assert.strictEqual(tokens.size, 2)
        })
      ))

    it.effect("is one for all calls that wait for it", () =>
      withUpstream(({ authority, grants }) =>
        Effect.gen(function*() {
          const urls = new Set<string>()
          const wait = ({ url }: Consent.ConsentRequest) =>
            Effect.sync(() => {
              urls.add(Redacted.value(url))
              return { action: "accept" } as const
            })
          const calls = yield* Effect.forkChild(
            Effect.all(Array.from({ length: 10 }, () => Consent.withConsent(wait)(echo(alice))), {
              concurrency: "unbounded"
            })
          )
          const { url } = yield* consentOf(echo(alice))
          yield* Consent.finish(yield* browse(url))
          assert.strictEqual((yield* Fiber.join(calls)).length, 10)
          assert.deepStrictEqual(Array.from(urls), [Redacted.value(url)])
          assert.strictEqual(grants.length, 1)
          assert.strictEqual(authority.requests.filter((path) => path === "/register").length, 1)
        })
      ))

    it.effect("that the caller does not give leaves the call's own error", () =>
      withUpstream(({ grants }) =>
        Effect.gen(function*() {
          yield* consentOf(Consent.withConsent(() => Effect.succeed({ action: "decline" }))(echo(alice)))
          yield* consentOf(Consent.withConsent(() => Effect.fail("it has no such mode"))(echo(alice)))
          yield* consentOf(Consent.withConsent(deny)(echo(alice)))
          assert.deepStrictEqual(grants, [])
        })
      ))

    it.effect("that does not come in time is not waited for any longer", () =>
      withUpstream(() =>
        Effect.gen(function*() {
          const opened = yield* Deferred.make<Redacted.Redacted>()
          const waiting = yield* Effect.forkChild(consentOf(
            Consent.withConsent((request) =>
              Effect.as(Deferred.succeed(opened, request.url), { action: "accept" } as const)
            )(echo(alice))
          ))
          const url = yield* Deferred.await(opened)
          yield* TestClock.adjust("5 minutes")
          const reason = yield* Fiber.join(waiting)
          assert.strictEqual(Redacted.value(reason.url), Redacted.value(url))
          const late = yield* Effect.flip(Consent.finish(yield* browse(url)))
          assert.strictEqual(late.why, "unknown")
          // Another one is asked for
          assert.notStrictEqual((yield* consentOf(echo(alice))).id, reason.id)
        }), { redirectUrl, timeout: "5 minutes" }))

    it.effect("that does not come in time is not waited for, nor is who asks and ignores that, or whoever called", () =>
      withUpstream(() =>
        Effect.gen(function*() {
          for (const gives of ["time", "up"] as const) {
            const asking = yield* Deferred.make<void>()
            const hangs = Effect.andThen(Deferred.succeed(asking, undefined), Effect.uninterruptible(Effect.never))
            const waiting = yield* Effect.forkChild(Effect.exit(Consent.withConsent(() => hangs)(echo(alice))))
            yield* Deferred.await(asking)
            if (gives === "time") yield* TestClock.adjust("5 minutes")
            else yield* TestClock.withLive(Effect.timeout(Fiber.interrupt(waiting), "5 seconds"))
            const exit = yield* TestClock.withLive(Effect.timeout(Fiber.await(waiting), "5 seconds"))
            assert.isTrue(Exit.isSuccess(exit) === (gives === "time"))
          }
        }), { redirectUrl, timeout: "5 minutes" }))

    it.effect("is brought once, and by nobody who does not know what was asked", () =>
      withUpstream(({ grants }) =>
        Effect.gen(function*() {
          const { url } = yield* consentOf(echo(alice))
          const back = yield* browse(url)
          const wrong = new URL(back)
          wrong.searchParams.set("state", "x".repeat(43))
          for (const answer of [wrong, "/oauth/callback", "/oauth/callback?code=1", new URLSearchParams()]) {
            assert.strictEqual((yield* Effect.flip(Consent.finish(answer))).why, "unknown")
          }
          assert.deepStrictEqual(grants, [])
          assert.strictEqual((yield* Consent.finish(back)).key, "alice")
          assert.strictEqual((yield* Effect.flip(Consent.finish(back))).why, "unknown")
          assert.strictEqual(grants.length, 1)
          yield* echo(alice)
        })
      ))

    for (const isAnnounced of [false, true]) {
      const announced = isAnnounced ? ", where the right one always says who it is" : ""

      it.effect(`of another authorization server is refused, and goes on being waited for (RFC 9207)${announced}`, () =>
        withUpstream(({ authority, grants }) =>
          Effect.gen(function*() {
            if (isAnnounced) announceIssuer(authority)
            const { id, url } = yield* consentOf(echo(alice))
            const { searchParams } = new URL(yield* browse(url))
            const answer = (changes: Readonly<Record<string, string>>) => {
              const query = new URLSearchParams({ ...Object.fromEntries(searchParams), ...changes })
              if (changes["error"] !== undefined) query.delete("code")
              return Consent.finish(query)
            }
            const error = "access_denied"
            const refused = [
              { iss: "https://elsewhere.test" },
              { iss: "https://elsewhere.test", error },
              { iss: "", error },
              { iss: `${authority.issuer}/`, error },
              ...(isAnnounced ? [{}, { error }] : [])
            ]
            for (const changes of refused) {
              assert.strictEqual((yield* Effect.flip(answer(changes))).why, "failed")
              assert.strictEqual((yield* consentOf(echo(alice))).id, id)
            }
            assert.deepStrictEqual(grants, [])
            yield* answer({ iss: authority.issuer })
            yield* echo(alice)
            assert.strictEqual(grants.length, 1)
          })
        ))

      it.effect(`that its own authorization server has refused is not waited for${announced}`, () =>
        withUpstream(({ authority }) =>
          Effect.gen(function*() {
            if (isAnnounced) announceIssuer(authority)
            const { id, url } = yield* consentOf(echo(alice))
            const state = new URL(Redacted.value(url)).searchParams.get("state")!
            const answer = new URLSearchParams({ error: "access_denied", state, iss: authority.issuer })
            assert.strictEqual((yield* Effect.flip(Consent.finish(answer))).why, "denied")
            assert.strictEqual((yield* Effect.flip(Consent.finish(answer))).why, "unknown")
            assert.notStrictEqual((yield* consentOf(echo(alice))).id, id)
          })
        ))
    }

    it.effect("that has been given before it is waited for is not waited for", () =>
      withUpstream(() =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(echo(alice))
          assert(error._tag === "McpSessionError" && error.reason._tag === "ConsentRequired")
          yield* Consent.finish(yield* browse(error.reason.url))
          let isFirst = true
          const late = Effect.suspend(() => {
            if (!isFirst) return echo(alice)
            isFirst = false
            return Effect.fail(error)
          })
          yield* Consent.withConsent(() => Effect.never)(late)
        })
      ))

    it.effect("to more, which nobody has given yet, does not keep the token from being refreshed", () =>
      withUpstream((upstream) =>
        Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo(alice))
          upstream.needs = ({ rpc }) => rpc === "tools/call" ? "mail.send" : ""
          yield* consentOf(echo(alice))
          upstream.needs = () => ""
          upstream.revoke()
          yield* echo(alice)
          assert.strictEqual(upstream.grants.at(-1)!.get("grant_type"), "refresh_token")
        })
      ))

    it.effect("is asked for at no address but one of https", () =>
      withUpstream(({ authority }) =>
        Effect.gen(function*() {
          for (
            const address of ["http://login.example.com/", "javascript:alert(1)", "https://a:b@login.example.com/"]
          ) {
            authority.answers.set("/.well-known/oauth-authorization-server", () => ({
              body: {
                issuer: authority.issuer,
                authorization_endpoint: address,
                token_endpoint: `${authority.issuer}/token`,
                registration_endpoint: `${authority.issuer}/register`,
                response_types_supported: ["code"]
              }
            }))
            const error = yield* Effect.flip(echo(alice))
            assert(error._tag === "McpSessionError")
            assert.strictEqual(error.reason._tag, "PreparationFailed", address)
          }
        })
      ))

    it.effect("is asked for at no address of the caller's own machine, for a server that is elsewhere", () =>
      Effect.gen(function*() {
        const server = "https://mcp.example.com/mcp"
        const issuer = "https://login.example.com"
        let authorize = "http://127.0.0.1:8080/authorize"
        const documents = (): Readonly<Record<string, unknown>> => ({
          "/.well-known/oauth-protected-resource/mcp": { resource: server, authorization_servers: [issuer] },
          "/.well-known/oauth-authorization-server": {
            issuer,
            authorization_endpoint: authorize,
            token_endpoint: `${issuer}/token`,
            response_types_supported: ["code"]
          }
        })
        const connect = connector.http({
          url: server,
          fetch: (target) => {
            const document = documents()[new URL(target).pathname]
            return Promise.resolve(
              document === undefined ? new Response(null, { status: 401 }) : Response.json(document)
            )
          },
          authorization: { authorizationCode: { redirectUrl, clientId: "test", issuer } }
        })
        const refused = yield* Effect.flip(Effect.scoped(connect(alice, makeHandle())))
        assert.strictEqual(refused.reason._tag, "PreparationFailed")
        authorize = `${issuer}/authorize`
        yield* consentOf(Effect.scoped(connect(alice, makeHandle())))
      }).pipe(Effect.provide(TokenStore.layerMemory)))

    it.effect("comes by a route, which says who it is for", () =>
      withUpstream(() =>
        Effect.gen(function*() {
          const { url } = yield* consentOf(echo(alice))
          const back = yield* browse(url)
          const come = (isOwner: (identity: Identity) => Effect.Effect<boolean>) =>
            Consent.callback({ isOwner }).pipe(
              Effect.provideService(
                HttpServerRequest.HttpServerRequest,
                HttpServerRequest.fromWeb(new Request(back))
              )
            )
          const stranger = yield* Effect.flip(come(({ key }) => Effect.succeed(key !== "alice")))
          assert.strictEqual(stranger.why, "unknown")
          const response = HttpServerResponse.toWeb(
            yield* come(({ key }) => Effect.succeed(key === "alice"))
          )
          assert.strictEqual(response.status, 200)
          assert.strictEqual(response.headers.get("referrer-policy"), "no-referrer")
          assert.strictEqual(response.headers.get("cache-control"), "no-store")
          yield* echo(alice)
        })
      ))

    it.effect("comes for nobody where it can't be said whose it is", () =>
      withUpstream(() =>
        Effect.gen(function*() {
          const { url } = yield* consentOf(echo(alice))
          const request = HttpServerRequest.fromWeb(new Request(yield* browse(url)))
          const come = (isOwner: () => Effect.Effect<boolean>) =>
            Effect.forkChild(
              Effect.exit(Effect.provideService(
                Consent.callback({ isOwner }),
                HttpServerRequest.HttpServerRequest,
                request
              )),
              { startImmediately: true }
            )
          for (const isOwner of [() => Effect.never, () => Effect.uninterruptible(Effect.never)]) {
            const coming = yield* come(isOwner)
            yield* TestClock.adjust("29 seconds")
            assert.isUndefined(coming.pollUnsafe())
            yield* TestClock.adjust("1 second")
            assert.deepStrictEqual(yield* Fiber.join(coming), Exit.fail(new Consent.ConsentFailed({ why: "unknown" })))
          }
          const broken = [
            () => {
              throw new Error("it broke")
            },
            // As a program without types may have it
            () => true as unknown as Effect.Effect<boolean>,
            () => Promise.resolve(true) as unknown as Effect.Effect<boolean>
          ]
          for (const isOwner of broken) assert.isTrue(Exit.hasDies(yield* Fiber.join(yield* come(isOwner))))
          assert.isTrue(Exit.isSuccess(yield* Fiber.join(yield* come(() => Effect.succeed(true)))))
          yield* echo(alice)
        })
      ))

    it.live("is in no span of the HTTP server that it comes to, with layerRedacted", () =>
      withUpstream(({ secrets }) =>
        Effect.gen(function*() {
          const { record, spans } = makeRecorder()
          const { url } = yield* consentOf(echo(alice))
          const back = new URL(yield* browse(url))
          const served = HttpRouter.serve(HttpRouter.add("GET", "/oauth/callback", Consent.callback()), {
            disableLogger: true,
            disableListenLog: true
          }).pipe(
            Layer.provide(Consent.layerRedacted),
            Layer.provideMerge(NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" }))
          )
          const come = Effect.gen(function*() {
            const { address } = Context.get(yield* Layer.build(served), HttpServer.HttpServer)
            back.port = String("port" in address ? address.port : 0)
            const answer = yield* Effect.promise(() => fetch(back, { headers: { connection: "close" } }))
            assert.strictEqual(answer.status, 200)
            yield* textOf(answer)
          })
          yield* record(Effect.scoped(come))
          const seen = inspect(spans, { depth: 12, maxStringLength: null })
          assert.include(seen, "/oauth/callback")
          for (const secret of secrets) assert.notInclude(seen, secret)
        })
      ))

    it.effect("is not asked for because a server is down", () =>
      withUpstream((upstream) =>
        Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo(alice))
          upstream.revoke()
          for (const answer of [() => undefined, () => ({ status: 503 }), () => ({ body: "not JSON" })]) {
            upstream.answer = answer
            const error = yield* Effect.flip(echo(alice))
            assert(error._tag === "McpSessionError")
            assert.strictEqual(error.reason._tag, "PreparationFailed")
          }
          upstream.answer = undefined
          yield* echo(alice)
          assert.strictEqual(asked.length, 1)
        })
      ))

    it.effect("is asked for again when the refresh token is worth nothing any more", () =>
      withUpstream(({ refreshable, revoke, server }) =>
        Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo(alice))
          revoke()
          refreshable.clear()
          const { id } = yield* consentOf(echo(alice))
          assert.strictEqual((yield* consentOf(echo(alice))).id, id)
          yield* Consent.withConsent(agree)(echo(alice))
          assert.strictEqual(asked.length, 2)
          assert.strictEqual(server.sessions.length, 1)
        })
      ))

    it.effect("is asked for again when that is said with status 200", () =>
      withUpstream((upstream) =>
        Effect.gen(function*() {
          yield* Consent.withConsent(agree)(echo(alice))
          upstream.revoke()
          upstream.answer = (form) =>
            form.get("grant_type") === "refresh_token" ? { body: { error: "invalid_grant" } } : undefined
          yield* consentOf(echo(alice))
          upstream.answer = undefined
          yield* Consent.withConsent(agree)(echo(alice))
          assert.strictEqual(asked.length, 2)
        })
      ))

    it.effect("to more than was agreed to is asked for when the server says so", () =>
      withUpstream((upstream) =>
        Effect.gen(function*() {
          upstream.needs = ({ rpc }) => rpc === "tools/call" ? "mail.send" : "mail.read"
          yield* Consent.withConsent(agree)(echo(alice))
          assert.deepStrictEqual(
            asked.map(({ url }) => new URL(Redacted.value(url)).searchParams.get("scope")),
            ["mail.read", "mail.read mail.send"]
          )
          assert.strictEqual(upstream.server.sessions.length, 1)
        })
      ))

    it.effect("lasts as long as the store", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        asked.length = 0
        const store = yield* KeyValueStore.KeyValueStore
        for (let i = 0; i < 3; i++) {
          yield* Effect.provide(Consent.withConsent(agree)(echo(alice)), pool(upstream), { local: true })
        }
        assert.strictEqual(asked.length, 1)
        upstream.revoke()
        yield* Effect.provide(Consent.withConsent(agree)(echo(alice)), pool(upstream), { local: true })
        assert.strictEqual(asked.length, 1)
        const keys = yield* store.keys
        assert.strictEqual(keys.length, 2)
        for (const key of keys) assert.match(key, /^effect-mcp-sessions\/(grant|client)-[\w-]{43}$/)
      }).pipe(Effect.provide(Layer.provideMerge(TokenStore.layerKeyValueStore, KeyValueStore.layerMemory))))

    it.effect("outlasts a store that can't be written, for as long as the process", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        asked.length = 0
        const kept = new Map<string, Redacted.Redacted>()
        let fails = true
        const store: TokenStoreShape = {
          get: (key) => Effect.sync(() => Option.fromUndefinedOr(kept.get(key))),
          set: (key, value) =>
            fails
              ? Effect.fail(new TokenStoreError({ method: "set", cause: Redacted.make("it is full") }))
              : Effect.sync(() => void kept.set(key, value)),
          remove: (key) => Effect.sync(() => void kept.delete(key))
        }
        // Each time in another pool, which knows nothing
        const call = Effect.suspend(() => Effect.provide(Consent.withConsent(agree)(echo(alice)), pool(upstream))).pipe(
          Effect.provideService(TokenStore, store)
        )
        yield* call
        yield* call
        assert.deepStrictEqual([asked.length, kept.size], [1, 0])
        upstream.revoke()
        fails = false
        yield* call
        assert.deepStrictEqual([asked.length, kept.size], [1, 1])
        // From now on what is there has been used up: a refresh token is good for once
        fails = true
        for (let i = 0; i < 3; i++) {
          upstream.revoke()
          yield* call
        }
        assert.strictEqual(asked.length, 1)
        const registrations = upstream.authority.requests.filter((path) => path === "/register")
        assert.strictEqual(registrations.length, 1)
      }))

    it.effect("is in no log, span, event or error", () =>
      Effect.gen(function*() {
        const upstream = yield* Protected.make
        asked.length = 0
        const { record, spans } = makeRecorder()
        const written: Array<unknown> = []
        const logger = Logger.make<unknown, void>(({ cause, fiber, message }) => {
          written.push(message, Cause.pretty(cause), fiber.getRef(References.CurrentLogAnnotations))
        })
        // The SDKs have a word of their own
        yield* Effect.acquireRelease(
          Effect.sync(() => vi.spyOn(console, "warn").mockImplementation((...words) => void written.push(words))),
          (spy) => Effect.sync(() => spy.mockRestore())
        )
        const run = Effect.gen(function*() {
          yield* Effect.forkScoped(
            Stream.runForEach(Sessions.events, (event) => Effect.sync(() => written.push(event)))
          )
          const required = yield* Effect.flip(echo(alice))
          written.push(required, JSON.stringify(required), required.message)
          yield* Consent.withConsent(agree)(echo(alice))
          upstream.revoke()
          upstream.answer = (form) => ({
            status: 400,
            body: { error: "invalid_request", error_description: `what is ${form.get("refresh_token")}` }
          })
          const failed = yield* Effect.flip(echo(alice))
          written.push(failed, JSON.stringify(failed), failed.message)
          assert(failed._tag === "McpSessionError" && failed.reason._tag === "PreparationFailed")
          const cause = Redacted.value(failed.reason.cause) as Error
          written.push(cause.message)
          assert.include(cause.message, "what is <redacted>")
          upstream.answer = undefined
          upstream.refreshable.clear()
          const { url } = yield* consentOf(echo(alice))
          const back = new URL(yield* browse(url))
          back.searchParams.set("iss", "https://elsewhere.test")
          written.push(yield* Effect.flip(Consent.finish(back)))
        }).pipe(Effect.scoped, Effect.provide(pool(upstream)))
        yield* record(run).pipe(
          Effect.provide(Layer.mergeAll(
            Logger.layer([logger]),
            Layer.succeed(References.MinimumLogLevel, "All"),
            TokenStore.layerMemory
          ))
        )
        for (const { attributes, events, name, status } of spans) written.push(name, attributes, events, status)
        const everything = inspect(written, { depth: 12, maxArrayLength: null, maxStringLength: null })
        assert.isAbove(upstream.secrets.size, 7)
        assert.include(everything, "PreparationFailed")
        for (const secret of upstream.secrets) assert.notInclude(everything, secret)
      }))
  })
}
