/**
 * An endpoint as a protected resource of OAuth: what a client is told by whom it can get a token, and what becomes of
 * tokens that are not for it. With an authorization server, over loopback.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, describe, inject, it } from "@effect/vitest"
import {
  discoverOAuthProtectedResourceMetadata,
  extractWWWAuthenticateParams,
  type OAuthClientProvider,
  selectResourceURL
} from "@modelcontextprotocol/sdk/client/auth.js"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js"
import { AccessDenied, Identity } from "effect-mcp-sessions/Identity"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import * as SessionRegistry from "effect-mcp-sessions/SessionRegistry"
import type { JwtOptions } from "effect-mcp-sessions/TokenOptions"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import type { IncomingMessage } from "node:http"
import * as Https from "node:https"
import { inspect } from "node:util"
import * as Gateway from "../examples/gateway.ts"
import { eventually, messagesOf, textOf } from "./support/answers.ts"
import * as AuthorizationServer from "./support/authorizationServer.ts"
import { selfSigned } from "./support/certificates.ts"
import { openGuarded } from "./support/guarded.ts"
import { many, underLoad } from "./support/load.ts"
import { type Endpoint, makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { begin, beginAndUse, call, initialize, post, request } from "./support/requests.ts"

const herd = many(20, 1_000)
const calls = many(20, 1_000)

/** What clients call the endpoint, wherever it is. */
const resource = "https://mcp.example.com/mcp"

type Options = Omit<McpHttp.EndpointOptions, "authorization"> & {
  readonly authorization: Partial<McpHttp.AuthorizationOptions>
}

interface Opened extends Endpoint {
  /** How many calls have reached a tool. */
  readonly calls: () => number
}

type Kind = (
  options: McpHttp.EndpointOptions,
  resolver: Layer.Layer<IdentityResolver>
) => Effect.Effect<Opened, never, Effect.Services<ReturnType<typeof socket>>>

const kinds: ReadonlyArray<readonly [name: string, open: Kind]> = [
  ["layer", (options, resolver) =>
    Effect.suspend(() => {
      const log = makeLog()
      const app = McpHttp.layer({ server: makeServer(log), maxConcurrentRequests: 2_000, ...options })
      return Effect.map(socket(app, resolver), (endpoint) => ({ ...endpoint, calls: () => log.called.length }))
    })],
  ["guard", (options, resolver) =>
    Effect.map(
      openGuarded(socket, options, resolver),
      (endpoint) => ({ ...endpoint, calls: () => endpoint.log.called })
    )]
]

const jwt = (server: AuthorizationServer.AuthorizationServer, options: Partial<JwtOptions> = {}) =>
  Layer.orDie(IdentityResolver.layerJwt({ issuer: server.issuer, audience: resource, ...options }))

/** An authorization server, and an endpoint that its tokens are for. */
const start = Effect.fnUntraced(
  function*(open: Kind, { authorization, ...options }: Options, token: Partial<JwtOptions> = {}) {
    const server = yield* AuthorizationServer.make()
    const endpoint = yield* open(
      { ...options, authorization: { servers: [server.issuer], ...authorization } },
      jwt(server, token)
    )
    const sign: AuthorizationServer.AuthorizationServer["sign"] = (claims, how) =>
      server.sign({ aud: resource, ...claims }, how)
    return { server, endpoint, sign }
  }
)

/** What a call of one tool needs. */
const required: McpHttp.AuthorizationOptions["required"] = ({ method, params }) =>
  method === "tools/call" && params["name"] === "echo" ? ["files:read", "files:write"] : []

/** Alice, who agrees to whatever her client is asked for. */
class Consenting implements OAuthClientProvider {
  readonly #onAsked: (asked: URLSearchParams) => void
  #tokens: ReturnType<OAuthClientProvider["tokens"]>
  #verifier = ""
  readonly redirectUrl = "http://localhost:5173/callback"
  readonly clientMetadata = { redirect_uris: [this.redirectUrl] }
  constructor(onAsked: (asked: URLSearchParams) => void) {
    this.#onAsked = onAsked
  }
  clientInformation = () => ({ client_id: "test" })
  tokens = () => this.#tokens
  saveTokens: OAuthClientProvider["saveTokens"] = (tokens) => {
    this.#tokens = tokens
  }
  redirectToAuthorization: OAuthClientProvider["redirectToAuthorization"] = (url) => this.#onAsked(url.searchParams)
  saveCodeVerifier = (verifier: string) => {
    this.#verifier = verifier
  }
  codeVerifier = () => this.#verifier
}

const challengeOf = (response: Response) => response.headers.get("www-authenticate") ?? ""

const headers = { "mcp-protocol-version": "2025-11-25" }

const get = (endpoint: Endpoint, path: string, init?: RequestInit) =>
  Effect.promise(() => endpoint.fetch(new URL(path, endpoint.url), init))

const json = (response: Response) => Effect.map(textOf(response), (text): Record<string, unknown> => JSON.parse(text))

const discovered = (url: string, metadata?: URL) =>
  Effect.promise(() =>
    discoverOAuthProtectedResourceMetadata(url, metadata === undefined ? {} : { resourceMetadataUrl: metadata })
  )

/** Writes down what is said of spans. */
const recordingTracer = (said: Array<string>) =>
  Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      const end = span.end.bind(span)
      span.end = (time, exit) => {
        end(time, exit)
        said.push(`span ${span.name} ${inspect([[...span.attributes], span.events, exit], { depth: 9 })}`)
      }
      return span
    }
  })

const live = (condition: () => boolean) => TestClock.withLive(eventually(condition))

describe.each(kinds)("McpHttp.%s with authorization", (_, open) => {
  it.effect("tells a client of the SDK where to get a token, and for what", () =>
    Effect.gen(function*() {
      const { endpoint, server } = yield* start(open, { authorization: { scopes: ["mcp:use", "mcp:list"] } })
      const { origin } = new URL(endpoint.url)
      const refused = yield* post(endpoint, initialize)
      assert.strictEqual(refused.status, 401)
      const challenge = extractWWWAuthenticateParams(refused)
      assert.strictEqual(challenge.resourceMetadataUrl?.href, `${origin}/.well-known/oauth-protected-resource/mcp`)
      assert.strictEqual(challenge.scope, "mcp:use mcp:list")
      // RFC 6750 section 3.1: without any token there is no error code
      assert.isUndefined(challenge.error)
      const expected = {
        resource: endpoint.url,
        authorization_servers: [server.issuer],
        scopes_supported: ["mcp:use", "mcp:list"],
        bearer_methods_supported: ["header"]
      }
      assert.deepEqual(yield* discovered(endpoint.url, challenge.resourceMetadataUrl), expected)
      assert.deepEqual(yield* discovered(endpoint.url), expected)
      assert.deepEqual(yield* json(yield* get(endpoint, "/.well-known/oauth-protected-resource")), expected)
      const provider = {} as Parameters<typeof selectResourceURL>[1]
      const selected = yield* Effect.promise(() => selectResourceURL(endpoint.url, provider, expected))
      assert.strictEqual(selected?.href, endpoint.url)
    }))

  it.effect("a client of the SDK gets in by itself, and asks for more when a call needs more", () =>
    Effect.gen(function*() {
      const { endpoint, server } = yield* start(
        open,
        { authorization: { scopes: ["mcp:use"], required } },
        // By which port it will be called nobody knows yet
        { audience: "mcp" }
      )
      const { issuer } = server
      server.answers.set("/.well-known/oauth-authorization-server", () => ({
        body: {
          issuer,
          jwks_uri: server.jwksUri,
          authorization_endpoint: `${issuer}/authorize`,
          token_endpoint: `${issuer}/token`,
          response_types_supported: ["code"],
          code_challenge_methods_supported: ["S256"],
          token_endpoint_auth_methods_supported: ["none"]
        }
      }))
      const consented: Array<URLSearchParams> = []
      server.answers.set("/token", (_request, body) => {
        const asked = consented[Number(new URLSearchParams(body).get("code"))]!
        return Effect.runPromise(Effect.map(
          server.sign({ aud: ["mcp", asked.get("resource")!], scope: asked.get("scope")! }),
          (token) => ({ body: { access_token: token, token_type: "Bearer" } })
        ))
      })
      const authProvider = new Consenting((asked) => void consented.push(asked))
      const transport = () => new StreamableHTTPClientTransport(new URL(endpoint.url), { authProvider })
      const client = new Client({ name: "test", version: "0" })
      const connect = (over: StreamableHTTPClientTransport) =>
        Effect.tryPromise(() => client.connect(over as Parameters<typeof client.connect>[0]))
      const first = transport()
      yield* Effect.flip(connect(first))
      yield* Effect.promise(() => first.finishAuth("0"))
      const second = transport()
      yield* connect(second)
      const echo = Effect.tryPromise(() => client.callTool({ name: "echo", arguments: { message: "hi" } }))
      yield* Effect.flip(echo)
      assert.strictEqual(endpoint.calls(), 0)
      yield* Effect.promise(() => second.finishAuth("1"))
      assert.include(JSON.stringify((yield* echo).content), "hi")
      assert.deepStrictEqual(
        consented.map((asked) => [asked.get("resource"), asked.get("scope")]),
        [[endpoint.url, "mcp:use"], [endpoint.url, "mcp:use files:read files:write"]]
      )
      // It is the session of before
      assert.strictEqual(yield* endpoint.registry.size, 1)
      yield* Effect.promise(() => client.close())
    }))

  it.effect("lets everybody read the metadata: without credentials, from any origin, and under no other name", () =>
    Effect.gen(function*() {
      const { endpoint } = yield* start(open, { authorization: {} })
      const path = "/.well-known/oauth-protected-resource"
      for (const place of [path, `${path}/`, `${path}/mcp`, `${path}/mcp/`, `${path}/mcp?a=b`]) {
        const found = yield* get(endpoint, place, { headers: { origin: "https://evil.example" } })
        assert.strictEqual(found.status, 200, place)
        assert.strictEqual(found.headers.get("access-control-allow-origin"), "*")
        assert.match(found.headers.get("content-type") ?? "", /^application\/json/)
        assert.strictEqual((yield* json(found))["resource"], endpoint.url)
      }
      const preflight = yield* get(endpoint, path, {
        method: "OPTIONS",
        headers: {
          origin: "https://app.example",
          "access-control-request-method": "GET",
          "access-control-request-headers": "mcp-protocol-version"
        }
      })
      assert.strictEqual(preflight.status, 204)
      assert.strictEqual(preflight.headers.get("access-control-allow-origin"), "*")
      assert.include(preflight.headers.get("access-control-allow-headers")?.toLowerCase(), "mcp-protocol-version")
      assert.strictEqual((yield* get(endpoint, path, { method: "HEAD" })).status, 200)
      const posted = yield* get(endpoint, path, { method: "POST", body: "{}" })
      assert.deepStrictEqual([posted.status, posted.headers.get("allow")], [405, "GET, HEAD"])
      for (const other of [`${path}/other`, `${path}/mcp/other`, `${path}mcp`, "/.well-known/oauth"]) {
        assert.strictEqual((yield* get(endpoint, other)).status, 404, other)
      }
    }))

  it.effect("behind a proxy it is called what `resource` says, whatever a request says", () =>
    Effect.gen(function*() {
      const { endpoint, server } = yield* start(open, {
        allowedHosts: "*",
        authorization: { resource: "HTTPS://API.Example.com/weather/mcp/" }
      })
      const metadata = "https://api.example.com/.well-known/oauth-protected-resource/weather/mcp"
      const refused = yield* post(endpoint, initialize, { headers: { "x-forwarded-host": "evil.example" } })
      assert.strictEqual(challengeOf(refused), `Bearer realm="mcp", resource_metadata="${metadata}"`)
      for (const place of ["", "/mcp", "/weather/mcp"]) {
        const found = yield* json(yield* get(endpoint, `/.well-known/oauth-protected-resource${place}`))
        assert.deepEqual(found, {
          resource: "https://api.example.com/weather/mcp",
          authorization_servers: [server.issuer],
          bearer_methods_supported: ["header"]
        })
      }
    }))

  it.effect("bob gets a 401 by alice's expired token, and by one of another audience, issuer, algorithm or key", () =>
    Effect.gen(function*() {
      const { endpoint, server, sign } = yield* start(open, { authorization: { resource, scopes: ["mcp:use"] } })
      const alice = yield* sign({ exp: 20 })
      const session = yield* begin(endpoint, alice)
      const echo = (as: string) => post(endpoint, call("echo", { message: "hi" }), { as, session, headers })
      assert.strictEqual((yield* echo(alice)).status, 200)
      const rotated = yield* sign({})
      assert.strictEqual((yield* echo(rotated)).status, 200)
      server.keys = [yield* AuthorizationServer.makeKey("second")]
      yield* TestClock.adjust("20 seconds")
      assert.strictEqual((yield* echo(yield* sign({}))).status, 200)
      const before = endpoint.calls()
      const [header, payload] = (yield* sign({})).split(".") as [string, string]
      const none = Buffer.from(JSON.stringify({ alg: "none" })).toString("base64url")
      const stranger = yield* AuthorizationServer.make()
      const tokens: ReadonlyArray<readonly [description: string, token: string]> = [
        ["the token has expired", alice],
        ["the token is for another audience", yield* sign({ aud: "https://other.example.com/mcp" })],
        ["the token is of another issuer", yield* stranger.sign({ aud: resource })],
        ["the token is not signed in a way that is accepted", `${none}.${payload}.`],
        ["the token is signed with a key that its issuer does not have", rotated],
        ["the signature of the token is not valid", `${header}.${payload}.${"A".repeat(86)}`]
      ]
      const metadata = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
      for (const [description, token] of tokens) {
        for (const response of [yield* echo(token), yield* post(endpoint, initialize, { as: token, headers })]) {
          assert.strictEqual(response.status, 401, description)
          assert.strictEqual(
            challengeOf(response),
            `Bearer realm="mcp", error="invalid_token", error_description="${description}", scope="mcp:use", ` +
              `resource_metadata="${metadata}"`
          )
          const body = yield* textOf(response)
          for (const part of token.split(".").filter((one) => one !== "")) assert.notInclude(body, part)
        }
      }
      assert.strictEqual(endpoint.calls(), before)
      // None of it has touched alice's session
      const whole = yield* request(endpoint, "DELETE", { as: yield* sign({}), session, headers })
      assert.strictEqual(whole.status, 204)
    }))

  it.effect("a token for another resource of the same issuer is refused, unless the issuer calls this one so", () =>
    Effect.gen(function*() {
      const { endpoint, server, sign } = yield* start(open, { authorization: { resource } }, {
        audience: [resource, "https://mcp.example.com/other", "client-1"]
      })
      const status = (as: string) => Effect.map(post(endpoint, initialize, { as }), (response) => response.status)
      for (const aud of [resource, `${resource}/`, "HTTPS://MCP.EXAMPLE.COM:443/mcp", ["client-1", resource]]) {
        const token = yield* server.sign({ aud })
        // What the resolver does not take is nobody's
        const taken = [aud].flat().includes(resource)
        assert.strictEqual(yield* status(token), taken ? 200 : 401, String(aud))
      }
      for (const aud of ["https://mcp.example.com/other", "client-1"]) {
        const refused = yield* post(endpoint, initialize, { as: yield* sign({ aud }) })
        assert.strictEqual(refused.status, 401)
        assert.include(challengeOf(refused), "the token is for another audience")
      }
      const mapped = yield* start(open, { authorization: { resource, audience: ["client-1", resource] } }, {
        audience: ["client-1", "client-2"]
      })
      const by = (aud: string) =>
        Effect.flatMap(mapped.sign({ aud }), (as) => post(mapped.endpoint, initialize, { as }))
      assert.strictEqual((yield* by("client-1")).status, 200)
      assert.strictEqual((yield* by("client-2")).status, 401)
    }))

  it.effect("an opaque token that its issuer calls active, and for another, is refused", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const resolver = Layer.orDie(IdentityResolver.layerIntrospection({
        endpoint: `${server.issuer}/introspect`,
        clientId: "mcp",
        clientSecret: Redacted.make("pw")
      }))
      const endpoint = yield* open({ authorization: { servers: [server.issuer], resource } }, resolver)
      const cases: ReadonlyArray<readonly [status: number, aud: unknown]> = [
        [200, resource],
        [200, ["other", resource]],
        // It says of none: whether it looks at that is its own affair, as README has it
        [200, undefined],
        [401, "https://mcp.example.com/other"],
        [401, []],
        [401, 5],
        [401, { [resource]: true }]
      ]
      for (const [index, [status, aud]] of cases.entries()) {
        server.answers.set("/introspect", () => ({ body: { active: true, sub: "alice", aud } }))
        const answer = yield* post(endpoint, initialize, { as: `opaque-${index}` })
        assert.strictEqual(answer.status, status, inspect(aud))
        if (status === 401) assert.include(challengeOf(answer), "the token is for another audience")
      }
      server.answers.set("/introspect", () => ({ body: { active: false } }))
      const revoked = yield* post(endpoint, initialize, { as: "opaque-revoked" })
      assert.include(challengeOf(revoked), "error_description=\"the token is not active\", resource_metadata=")
    }))

  it.effect("takes a token from its header alone, and once", () =>
    Effect.gen(function*() {
      const { endpoint, sign } = yield* start(open, { authorization: { resource } })
      const token = yield* sign({})
      const url = `${endpoint.url}?access_token=${token}`
      assert.strictEqual((yield* post({ ...endpoint, url }, initialize)).status, 401)
      const twice = yield* post(endpoint, initialize, {
        headers: { authorization: `Bearer ${token}, Bearer ${token}` }
      })
      assert.strictEqual(twice.status, 401)
      assert.notInclude(JSON.stringify([...twice.headers]) + (yield* textOf(twice)), token.slice(-40))
    }))

  it.effect("a `required` that breaks lets nobody through", () =>
    Effect.gen(function*() {
      const broken: ReadonlyArray<() => unknown> = [
        () => {
          throw new Error("broken")
        },
        () => Promise.resolve([]),
        () => ["two words"],
        () => null
      ]
      for (const each of broken) {
        const { endpoint, sign } = yield* start(open, {
          authorization: { resource, required: each as McpHttp.AuthorizationOptions["required"] }
        }).pipe(Effect.provide(Logger.layer([])))
        const answer = yield* post(endpoint, initialize, { as: yield* sign({}) })
        assert.strictEqual(answer.status, 503, String(each))
        assert.strictEqual(yield* endpoint.registry.size, 0)
      }
    }))

  it.effect("403 says which scopes a token needs: those of the resolver", () =>
    Effect.gen(function*() {
      const { endpoint, sign } = yield* start(open, { authorization: { resource, scopes: ["mcp:use"] } }, {
        scopes: ["mcp:use", "mcp:more"]
      })
      const refused = yield* post(endpoint, initialize, { as: yield* sign({ scope: "mcp:use" }) })
      assert.strictEqual(refused.status, 403)
      assert.deepInclude(extractWWWAuthenticateParams(refused), {
        error: "insufficient_scope",
        scope: "mcp:use mcp:more",
        resourceMetadataUrl: new URL("https://mcp.example.com/.well-known/oauth-protected-resource/mcp")
      })
    }))

  it.effect("403 says which scopes a token needs: those of an AccessDenied of your own, and none if it has none", () =>
    Effect.gen(function*() {
      for (const scope of ["files:read files:write", undefined]) {
        const endpoint = yield* open(
          { authorization: { servers: ["https://login.example.com"], scopes: ["mcp:use"], resource } },
          IdentityResolver.layerIdentify(() => Effect.fail(new AccessDenied(scope === undefined ? {} : { scope })))
        )
        const refused = yield* post(endpoint, initialize)
        assert.strictEqual(refused.status, 403)
        assert.strictEqual(extractWWWAuthenticateParams(refused).scope, scope)
        assert.include(challengeOf(refused), ", resource_metadata=\"https://mcp.example.com/.well-known/")
      }
    }))

  it.effect("403 says which scopes a call needs, and those the caller has: a token that covers them gets through", () =>
    Effect.gen(function*() {
      const { endpoint, sign } = yield* start(open, { authorization: { resource, required } })
      const weak = yield* sign({ scope: "mcp:use files:read" })
      const session = yield* begin(endpoint, weak)
      const echo = call("echo", { message: "hi" })
      const denied = yield* post(endpoint, echo, { as: weak, session, headers })
      assert.strictEqual(denied.status, 403)
      assert.deepInclude(extractWWWAuthenticateParams(denied), {
        error: "insufficient_scope",
        scope: "mcp:use files:read files:write"
      })
      const ping = { jsonrpc: "2.0", id: 7, method: "ping" }
      assert.strictEqual((yield* post(endpoint, ping, { as: weak, session, headers })).status, 200)
      assert.strictEqual((yield* post(endpoint, [ping, echo], { as: weak, session, headers })).status, 403)
      assert.strictEqual(endpoint.calls(), 0)
      const strong = yield* sign({ scope: "mcp:use files:read files:write" })
      const allowed = yield* post(endpoint, echo, { as: strong, session, headers })
      assert.deepInclude((yield* messagesOf(allowed))[0], { id: 1 })
      assert.strictEqual(endpoint.calls(), 1)
    }))

  it.effect("403 says no more scopes than a client reads: where there are too many, those of the call, or none", () =>
    Effect.gen(function*() {
      const scopes = Array.from(Array(1_000).keys(), (i) => `project:${i}:read`)
      const resolver = IdentityResolver.layerIdentify(() =>
        Effect.succeed(Identity.fromKey("alice", { verified: true, scopes }))
      )
      const endpoint = yield* open({
        authorization: {
          servers: ["https://login.example.com"],
          resource,
          required: ({ method, params }) => method === "tools/call" ? [`files:${String(params["name"])}`] : []
        }
      }, resolver)
      const session = yield* begin(endpoint)
      for (const [name, scope] of [["echo", "files:echo"], ["x".repeat(5_000), undefined]] as const) {
        const denied = yield* post(endpoint, call(name), { session, headers })
        assert.strictEqual(denied.status, 403)
        assert.strictEqual(extractWWWAuthenticateParams(denied).scope, scope)
        assert.include(challengeOf(denied), "error=\"insufficient_scope\"")
      }
      assert.strictEqual(endpoint.calls(), 0)
    }))

  it.effect(
    `${herd} requests with a key that is new wait for one fetch of 2 seconds, and all get through`,
    () =>
      Effect.gen(function*() {
        const { endpoint, server, sign } = yield* start(open, { authorization: { resource } })
        const session = yield* beginAndUse(endpoint, yield* sign({}))
        server.keys = [yield* AuthorizationServer.makeKey("second")]
        const keys = server.answers.get("/keys")!
        const gate = Deferred.makeUnsafe<void>()
        server.answers.set(
          "/keys",
          (asked, body) => Effect.runPromise(Deferred.await(gate)).then(() => keys(asked, body)!)
        )
        yield* TestClock.adjust("1 minute")
        const as = yield* sign({})
        const before = server.fetches()
        let arrived = 0
        const waiting = yield* Effect.forkChild(Effect.forEach(
          Array.from({ length: herd }, (__, id) => id),
          (id) => {
            arrived++
            return Effect.flatMap(
              post(endpoint, { jsonrpc: "2.0", id, method: "ping" }, { as, session, headers }),
              (response) => Effect.as(textOf(response), response.status)
            )
          },
          { concurrency: "unbounded" }
        ))
        yield* live(() => arrived === herd && server.fetches() > before)
        yield* TestClock.adjust("2 seconds")
        Deferred.doneUnsafe(gate, Exit.void)
        assert.deepStrictEqual([...new Set(yield* Fiber.join(waiting))], [200])
        assert.strictEqual(server.fetches(), before + 1)
      }),
    underLoad
  )

  it.effect("the key server down: 503 for keys that are unknown, and known ones go on", () =>
    Effect.gen(function*() {
      const { endpoint, server, sign } = yield* start(open, { idleTimeToLive: "1 day", authorization: { resource } })
      const exp = 100_000
      const known = yield* sign({ exp })
      const session = yield* beginAndUse(endpoint, known)
      server.answers.set("/keys", () => undefined)
      const unknown = yield* sign({ exp }, { key: yield* AuthorizationServer.makeKey("second") })
      for (const hours of [1, 2, 12]) {
        yield* TestClock.adjust(`${hours} hours`)
        const refused = yield* post(endpoint, initialize, { as: unknown })
        assert.deepStrictEqual([refused.status, refused.headers.get("retry-after")], [503, "10"])
        assert.isNull(refused.headers.get("www-authenticate"))
        const ping = { jsonrpc: "2.0", id: hours, method: "ping" }
        const answered = yield* post(endpoint, ping, { as: known, session, headers })
        assert.deepInclude((yield* messagesOf(answered))[0], { id: hours, result: {} })
      }
    }))

  it.effect("no part of a token is in a log, a span, an event or an answer, whatever becomes of its request", () =>
    Effect.gen(function*() {
      const said: Array<string> = []
      const logger = Logger.make(({ cause, message }) => void said.push(inspect(message), Cause.pretty(cause)))
      const tracer = recordingTracer(said)
      const { server, endpoint, sign } = yield* start(open, { authorization: { resource, required } }).pipe(
        Effect.provide(Logger.layer([logger])),
        Effect.provideService(Tracer.Tracer, tracer)
      )
      const events = yield* Effect.forkChild(Stream.runForEach(
        endpoint.registry.events,
        (event) => Effect.sync(() => void said.push(inspect(event, { depth: 9 })))
      ))
      yield* live(() => true)
      const good = yield* sign({})
      const tokens = [good]
      const session = yield* beginAndUse(endpoint, yield* sign({ scope: "files:read files:write" }))
      const echo = (as: string) => post(endpoint, call("echo", { message: "hi" }), { as, session, headers })
      const ask = Effect.fnUntraced(function*(as: string) {
        tokens.push(as)
        for (const response of [yield* echo(as), yield* post(endpoint, initialize, { as })]) {
          said.push(JSON.stringify([...response.headers]), yield* textOf(response))
        }
      })
      for (
        const claims of [{}, { exp: -1 }, { aud: "other" }, { iss: "https://evil.example" }, { sub: "" }, { nbf: 9 }]
      ) {
        yield* ask(yield* sign(claims))
      }
      yield* ask(`${good.slice(0, -9)}AAAAAAAAA`)
      yield* ask("opaque-token-of-alice")
      server.answers.set("/keys", () => undefined)
      yield* TestClock.adjust("1 minute")
      yield* ask(yield* sign({}, { key: yield* AuthorizationServer.makeKey("other") }))
      server.answers.set("/keys", () => ({ body: "<html>" }))
      yield* TestClock.adjust("1 minute")
      yield* ask(yield* sign({}, { key: yield* AuthorizationServer.makeKey("other") }))
      yield* Fiber.interrupt(events)
      const text = said.join("\n")
      // They were listened to
      for (const each of ["keys of the issuer could not be fetched", "span McpHttp", "Created"]) {
        assert.include(text, each)
      }
      for (const token of tokens) {
        for (const part of token.split(".").filter((one) => one.length > 8)) {
          assert.isFalse(text.includes(part), part)
        }
      }
    }))
})

/** A server whose tools ask for a scope, one at once and one when it has begun. */
const asking = Effect.sync(() => {
  const server = new McpServer({ name: "test", version: "1.0.0" })
  const done = { content: [{ type: "text" as const, text: "done" }] }
  const ask = (extra: Parameters<typeof McpHttp.requireScopes>[0]) =>
    Effect.as(McpHttp.requireScopes(extra, ["files:write"]), done)
  server.registerTool("now", {}, (extra) => Effect.runPromise(ask(extra)))
  server.registerTool("later", {}, (extra) => Effect.runPromise(Effect.delay(ask(extra), 50)))
  return server
})

describe("McpHttp.requireScopes", () => {
  it.effect("has a request answered 403 when a handler asks at once, and lets it fail when it asks later", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      for (const response of ["sse", "json"] as const) {
        for (const eventStore of [undefined, McpHttp.memoryEventStore()]) {
          const app = McpHttp.layer({
            server: () => asking,
            response,
            eventStore,
            authorization: { servers: [server.issuer], resource }
          })
          const endpoint = yield* socket(app, jwt(server))
          const weak = yield* server.sign({ aud: resource, scope: "mcp:use" })
          const strong = yield* server.sign({ aud: resource, scope: "mcp:use files:write" })
          const session = yield* begin(endpoint, weak)
          const tool = (name: string, as: string, id: number) =>
            post(endpoint, call(name, {}, id), { as, session, headers })
          for (let id = 1; id <= 3; id++) {
            const denied = yield* tool("now", weak, id)
            assert.strictEqual(denied.status, 403)
            assert.deepInclude(extractWWWAuthenticateParams(denied), {
              error: "insufficient_scope",
              scope: "mcp:use files:write",
              resourceMetadataUrl: new URL("https://mcp.example.com/.well-known/oauth-protected-resource/mcp")
            })
            assert.notInclude(yield* textOf(denied), "jsonrpc")
          }
          // Its id is free again
          const allowed = yield* tool("now", strong, 1)
          assert.deepInclude((yield* messagesOf(allowed)).at(-1), { id: 1 })
          assert.strictEqual((yield* tool("later", strong, 1)).status, 200)
          const late = yield* tool("later", weak, 2)
          if (response === "json") {
            assert.strictEqual(late.status, 403)
          } else {
            assert.strictEqual(late.status, 200)
            assert.deepInclude((yield* messagesOf(late)).at(-1)?.result, { isError: true })
          }
          const both = [call("now", {}, 8), { jsonrpc: "2.0", id: 9, method: "ping" }]
          const batch = yield* post(endpoint, both, {
            as: weak,
            session,
            headers: { "mcp-protocol-version": "2025-03-26" }
          })
          assert.strictEqual(batch.status, 200)
          yield* textOf(batch)
        }
      }
    }))

  it.effect("refuses a handler whose request came by nobody", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(McpHttp.requireScopes({}, ["files:write"]))
      assert.strictEqual(error.scope, "files:write")
      yield* McpHttp.requireScopes({}, [])
    }))
})

const issuedBy = (name: string) => ({ servers: [`https://${name}.example.com`] })

describe("two McpHttp.layers with authorization in one router", () => {
  it.effect("are two resources: each has its own metadata, and the first that of the root", () =>
    Effect.gen(function*() {
      class Second extends SessionRegistry.Operator<Second>()("test/Second") {}
      const options = { server: makeServer(makeLog()) }
      const app = Layer.merge(
        McpHttp.layer({ ...options, path: "/one", authorization: issuedBy("one") }),
        McpHttp.layer({ ...options, path: "/two", authorization: issuedBy("two"), sessions: Second })
      )
      const endpoint = yield* socket(app, IdentityResolver.layer({ mode: "required" }))
      const { origin } = new URL(endpoint.url)
      for (const [place, name] of [["/one", "one"], ["/two", "two"], ["", "one"]] as const) {
        const found = yield* json(yield* get(endpoint, `/.well-known/oauth-protected-resource${place}`))
        assert.deepInclude(found, {
          resource: `${origin}/${name}`,
          authorization_servers: [`https://${name}.example.com`]
        })
      }
      const refused = yield* get(endpoint, "/two", { method: "POST" })
      assert.include(challengeOf(refused), `resource_metadata="${origin}/.well-known/oauth-protected-resource/two"`)
    }))
})

describe("McpHttp.layer with authorization in a router with a prefix", () => {
  it.effect("is found before anybody has called it, by its resource", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      const options = { server: makeServer(makeLog()), authorization: { servers: [server.issuer], resource } }
      const app = Layer.unwrap(Effect.map(HttpRouter.HttpRouter, (router) =>
        Layer.provide(McpHttp.layer(options), Layer.succeed(HttpRouter.HttpRouter, router.prefixed("/api")))))
      const endpoint = yield* socket(app, jwt(server))
      for (const place of ["", "/mcp"]) {
        const found = yield* get(endpoint, `/.well-known/oauth-protected-resource${place}`)
        assert.strictEqual((yield* json(found))["resource"], resource)
      }
      assert.include(challengeOf(yield* get(endpoint, "/api/mcp", { method: "POST" })), `${new URL(resource).origin}/`)
    }))

  it.effect("is called by its whole path, with parameters as they are in the request", () =>
    Effect.gen(function*() {
      const server = yield* AuthorizationServer.make()
      for (
        const [path, sent] of [
          ["/mcp", "/api/mcp"],
          ["/:tenant/mcp", "/api/acme%22x/mcp"]
        ] as const
      ) {
        const app = Layer.unwrap(Effect.map(HttpRouter.HttpRouter, (router) =>
          Layer.provide(
            McpHttp.layer({ path, server: makeServer(makeLog()), authorization: { servers: [server.issuer] } }),
            Layer.succeed(HttpRouter.HttpRouter, router.prefixed("/api"))
          )))
        const endpoint = yield* socket(app, jwt(server))
        const { origin } = new URL(endpoint.url)
        const refused = yield* get(endpoint, sent, { method: "POST" })
        assert.strictEqual(refused.status, 401)
        const { resourceMetadataUrl } = extractWWWAuthenticateParams(refused)
        assert.strictEqual(resourceMetadataUrl?.href, `${origin}/.well-known/oauth-protected-resource${sent}`)
        const found = yield* get(endpoint, resourceMetadataUrl!.pathname)
        assert.strictEqual((yield* json(found))["resource"], origin + sent)
        assert.strictEqual(
          (yield* get(endpoint, "/.well-known/oauth-protected-resource")).status,
          path === "/mcp" ? 200 : 404
        )
      }
    }))
})

describe("McpHttp.layer with authorization, before a pool of children,", () => {
  it.effect(
    `alice's token is refreshed 20 times in ${calls} calls: one session here, one above, one child`,
    () =>
      Effect.gen(function*() {
        const server = yield* AuthorizationServer.make()
        const command = { command: process.execPath, args: inject("stdioServer") }
        const pool = yield* Layer.build(SessionPool.layer({ connect: McpConnector.stdio(command) }))
        const app = McpHttp.layer({
          server: Gateway.byIdentity,
          response: "json",
          authorization: { servers: [server.issuer], resource }
        })
        const endpoint = yield* socket(Layer.provide(app, Layer.succeedContext(pool)), jwt(server))
        let exp = 240
        let as = yield* server.sign({ aud: resource, exp })
        const session = yield* begin(endpoint, as)
        const pids = new Set<string>()
        for (let refresh = 0; refresh < 20; refresh++) {
          for (let i = 0; i < calls / 20; i++) {
            const answer = yield* post(endpoint, call("pid"), { as, session, headers })
            assert.strictEqual(answer.status, 200)
            pids.add(yield* textOf(answer))
          }
          yield* TestClock.adjust("4 minutes")
          assert.strictEqual((yield* post(endpoint, call("pid"), { as, session, headers })).status, 401)
          exp += 240
          as = yield* server.sign({ aud: resource, exp, jti: `${refresh}` })
        }
        assert.lengthOf(pids, 1)
        assert.strictEqual(yield* endpoint.registry.size, 1)
        const { misses, size } = yield* Context.get(pool, SessionPool).stats
        assert.deepStrictEqual({ misses, size }, { misses: 1, size: 1 })
      }),
    underLoad
  )
})

describe("McpHttp.layer with authorization over TLS", () => {
  it.effect("is called https, and by no name that its callers make up", () =>
    Effect.gen(function*() {
      const certificate = selfSigned()
      const app = McpHttp.layer({
        server: makeServer(makeLog()),
        allowedHosts: "*",
        authorization: { servers: ["https://login.example.com"] }
      })
      const served = HttpRouter.serve(Layer.provide(app, IdentityResolver.layer({ mode: "required" })), {
        disableLogger: true,
        disableListenLog: true
      })
      const context = yield* Layer.build(Layer.provideMerge(
        served,
        NodeHttpServer.layer(() => Https.createServer(certificate), { port: 0, host: "127.0.0.1" })
      ))
      const { address } = Context.get(context, HttpServer.HttpServer)
      const port = "port" in address ? address.port : 0
      const ask = (host: string) =>
        Effect.callback<IncomingMessage>((resume) => {
          const sent = Https.request({
            host: "127.0.0.1",
            port,
            path: "/mcp",
            method: "POST",
            headers: { host },
            ca: certificate.cert,
            // Of 127.0.0.1, whatever it is called
            checkServerIdentity: () => undefined
          }, (answer) => resume(Effect.succeed(answer.resume())))
          sent.on("error", (error) => resume(Effect.die(error)))
          sent.end()
        })
      for (
        const [host, called] of [
          [`127.0.0.1:${port}`, `https://127.0.0.1:${port}`],
          ["MCP.example.com", "https://mcp.example.com"],
          ["mcp.example.com:99999", "https://localhost"]
        ] as const
      ) {
        const answer = yield* ask(host)
        assert.strictEqual(answer.statusCode, 401, host)
        assert.strictEqual(
          answer.headers["www-authenticate"],
          `Bearer realm="mcp", resource_metadata="${called}/.well-known/oauth-protected-resource/mcp"`
        )
      }
      for (const host of ["mcp.example.com/evil", "a\"b", "a b"]) assert.strictEqual((yield* ask(host)).statusCode, 400)
    }))
})
