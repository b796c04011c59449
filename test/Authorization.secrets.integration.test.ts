/**
 * Where secrets go: to whom they are for, and into the `TokenStore`. Everybody else is quoted: authorization servers,
 * upstreams and stores that say back what they were told, and nothing of it may be in what is logged, traced, measured
 * or failed with, in no spelling.
 */
import { assert, describe, it } from "@effect/vitest"
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import type { OAuthTokens } from "@modelcontextprotocol/sdk/shared/auth.js"
import { type Authorization, AuthorizationFailed } from "effect-mcp-sessions/Authorization"
import * as Consent from "effect-mcp-sessions/Consent"
import { Credentials, Identity } from "effect-mcp-sessions/Identity"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import { type McpSession, McpSessionError } from "effect-mcp-sessions/McpSession"
import { SessionPool } from "effect-mcp-sessions/SessionPool"
import { TokenStore, TokenStoreError, type TokenStoreShape } from "effect-mcp-sessions/TokenStore"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Buffer } from "node:buffer"
import { generateKeyPairSync, randomBytes } from "node:crypto"
import { eventually } from "./support/answers.ts"
import * as AuthorizationServer from "./support/authorizationServer.ts"
import { agree, browse, consentOf } from "./support/consents.ts"
import { type AnySession, generations } from "./support/generations.ts"
import { byTurns, many, some, underLoad } from "./support/load.ts"
import { makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import * as Protected from "./support/protected.ts"
import { begin, call as callOf, post } from "./support/requests.ts"
import * as Witness from "./support/witness.ts"

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

// Each is written in another way by URLs, forms, JSON and headers
const odd = "/+%\"\\&=~"
const clientSecret = `client-secret-of-the-gateway${odd}`
const subject = "alice-her-own-token/+=="
const redirectUrl = "http://127.0.0.1:9/oauth/callback"

const alice = Identity.fromKey("alice", { credentials: Credentials.bearer(subject) })

const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" })
const pem = privateKey.export({ type: "pkcs8", format: "pem" }) as string

const call = (session: Pick<McpSession, "callTool">) => session.callTool({ name: "echo", arguments: { message: "hi" } })

// -----------------------------------------------------------------------------
// The ways to a token
// -----------------------------------------------------------------------------

/** A provider of the SDK, with a store of its own, that refreshes its tokens and has secrets in its errors. */
const makeProvider = (upstream: Protected.Protected): OAuthClientProvider & { isBroken: boolean } => {
  const { refreshable, secrets, spell, valid } = upstream
  let tokens: OAuthTokens = {
    access_token: spell("access-token-of-the-provider"),
    refresh_token: spell("refresh-token-of-the-provider"),
    token_type: "Bearer"
  }
  let verifier = ""
  valid.set(tokens.access_token, "")
  refreshable.add(tokens.refresh_token!)
  for (const secret of [tokens.access_token, tokens.refresh_token!]) secrets.add(secret)
  const provider = {
    isBroken: false,
    redirectUrl,
    clientMetadata: { redirect_uris: [redirectUrl] },
    clientInformation: () => ({ client_id: "gateway", client_secret: clientSecret }),
    tokens: () => {
      if (provider.isBroken) throw new Error(`the vault can't say ${JSON.stringify(tokens)} of ${clientSecret}`)
      return tokens
    },
    saveTokens: (saved: OAuthTokens) => {
      tokens = saved
    },
    state: () => {
      const state = randomBytes(16).toString("hex")
      secrets.add(state)
      return state
    },
    redirectToAuthorization: () => {},
    saveCodeVerifier: (saved: string) => {
      verifier = saved
      secrets.add(saved)
    },
    codeVerifier: () => verifier
  }
  return provider
}

interface Way {
  readonly authorization: Authorization
  /** Has its own code fail, which quotes what it knows. */
  readonly breaks?: (isBroken: boolean) => void
  /** Whether there are tokens of it in the `TokenStore`. */
  readonly isStored: boolean
}

/** A vault, which issues tokens itself. */
const makeVault = ({ secrets, spell, valid }: Protected.Protected): Way => {
  let issued = 0
  let isBroken = false
  const token = () =>
    Effect.suspend(() => {
      const issuedNow = spell(`token-of-the-vault-number-${++issued}`)
      secrets.add(issuedNow)
      if (isBroken) {
        return issued % 2 === 0 ? Effect.fail(new Error(`no use: ${issuedNow}`)) : Effect.die(`no use: ${issuedNow}`)
      }
      valid.set(issuedNow, "")
      return Effect.succeed(Redacted.make(issuedNow))
    })
  return {
    authorization: { token, refresh: token },
    breaks: (now) => {
      isBroken = now
    },
    isStored: false
  }
}

const ways: Readonly<Record<string, (upstream: Protected.Protected) => Way>> = {
  "a provider of the SDK": (upstream) => {
    const provider = makeProvider(upstream)
    return {
      authorization: () => provider,
      breaks: (isBroken) => {
        provider.isBroken = isBroken
      },
      isStored: false
    }
  },
  "client credentials": ({ authority: { issuer } }) => ({
    authorization: { clientCredentials: { clientId: "gateway", clientSecret: Redacted.make(clientSecret), issuer } },
    isStored: true
  }),
  "client credentials with a key": ({ authority: { issuer } }) => ({
    authorization: {
      clientCredentials: { clientId: "gateway", privateKey: { key: Redacted.make(pem), algorithm: "ES256" }, issuer }
    },
    isStored: true
  }),
  "token exchange": ({ authority: { issuer } }) => ({
    authorization: { tokenExchange: { clientId: "gateway", clientSecret: Redacted.make(clientSecret), issuer } },
    isStored: true
  }),
  "a token function": makeVault,
  "consent of a client that registers itself": () => ({
    authorization: { authorizationCode: { redirectUrl } },
    isStored: true
  }),
  "consent of a client that is known": ({ authority: { issuer } }) => ({
    authorization: {
      authorizationCode: { redirectUrl, clientId: "gateway", clientSecret: Redacted.make(clientSecret), issuer }
    },
    isStored: true
  })
}

// -----------------------------------------------------------------------------
// What the others say
// -----------------------------------------------------------------------------

/** What nobody but them says, so that it is known whether they were heard. */
const mark = "as-they-say"

/** All that a request has told the authorization server, and in which words it may say it again. */
const quotes = ({ clients }: Protected.Protected, form: URLSearchParams): string => {
  const client = clients.at(-1) ?? ""
  const decoded = Buffer.from(client.replace(/^Basic /, ""), "base64").toString()
  return [mark, form.toString(), ...form.values(), client, decoded, encodeURIComponent(decoded)].join(" | ")
}

type Disorder = (said: string) => AuthorizationServer.Answer | undefined

const disorders: Readonly<Record<string, Disorder>> = {
  "400": (said) => ({ status: 400, body: { error: "invalid_request", error_description: said, error_uri: said } }),
  "401": (said) => ({ status: 401, body: { error: "invalid_client", error_description: said } }),
  "invalid_grant": (said) => ({ status: 400, body: { error: "invalid_grant", error_description: said } }),
  "an error that is a quotation": (said) => ({ status: 400, body: { error: said } }),
  "an error that is called a success": (said) => ({ body: { error: "invalid_grant", error_description: said } }),
  "an error of that kind whose code is a secret": (said) => ({
    body: { error: /[\w-]*secret[\w-]*/.exec(said)?.[0] ?? "server_error", error_description: said }
  }),
  "JSON in JSON": (said) => ({
    status: 400,
    body: { error: "server_error", error_description: JSON.stringify({ said: JSON.stringify(said) }) }
  }),
  "500": (said) => ({ status: 500, body: said }),
  "a page": (said) => ({ headers: { "content-type": "text/html" }, body: `<h1>${said}</h1>` }),
  "no token": (said) => ({ body: { access_token: 5, token_type: [said], [said]: said } }),
  "another type of token": (said) => ({ body: { access_token: said, token_type: said } }),
  "a redirect": (said) => ({ status: 307, headers: { location: `http://127.0.0.1:1/?${encodeURIComponent(said)}` } }),
  "nothing": () => undefined
}

/** What the upstream says of a token, which it quotes. */
const refusals: ReadonlyArray<(quoted: string) => readonly [status: number, challenge: string, said: string]> = [
  (quoted) => [401, `Bearer error="invalid_token", error_description="${mark} ${quoted}", realm="${quoted}"`, quoted],
  (quoted) => [403, `Bearer error="insufficient_scope", error_description="${mark} ${quoted}"`, quoted],
  (quoted) => [403, `Bearer error="insufficient_scope", scope="${quoted}", resource_metadata="${quoted}"`, quoted],
  (quoted) => [401, `Bearer resource_metadata="https://${quoted}/", scope="a ${quoted}"`, quoted],
  (quoted) => [500, "Basic realm=x", `${mark} ${quoted}`],
  (quoted) => [400, `${quoted}`, JSON.stringify({ error: JSON.stringify(quoted) })]
]

/** A store that does what it should, or dies, or fails, with the value in what it says. */
const makeStore = (witness: Witness.Witness) => {
  const kept = new Map<string, string>()
  const broken = { by: undefined as "get" | "set" | "remove" | undefined, isDefect: false }
  const unless = <A>(method: "get" | "set" | "remove", text: string, done: () => A) =>
    Effect.suspend((): Effect.Effect<A, TokenStoreError> => {
      if (broken.by !== method) return Effect.sync(done)
      const cause = new Error(`${mark}: can't ${method} ${text} ${encodeURIComponent(text)}`)
      return broken.isDefect
        ? Effect.die(cause)
        : Effect.fail(new TokenStoreError({ method, cause: Redacted.make(cause) }))
    })
  const store: TokenStoreShape = {
    get: (key) => {
      witness.write(key)
      return unless(
        "get",
        kept.get(key) ?? "",
        () => Option.map(Option.fromUndefinedOr(kept.get(key)), (text) => Redacted.make(text))
      )
    },
    set: (key, value) => unless("set", Redacted.value(value), () => void kept.set(key, Redacted.value(value))),
    remove: (key) => unless("remove", kept.get(key) ?? "", () => void kept.delete(key))
  }
  return { kept, broken, store }
}

// -----------------------------------------------------------------------------
// Upstream
// -----------------------------------------------------------------------------

const live = (condition: () => boolean) => TestClock.withLive(eventually(condition))

for (const [generation, [sdk, connector]] of generations.entries()) {
  describe(`no secret is anywhere else, with ${sdk},`, () => {
    // `npm test` has each way once and what goes wrong by turns, `npm run load` has all of them with both
    const tested = byTurns(Object.entries(ways), generation)
    for (const [what, wayOf] of tested) {
      it.effect(`of ${what}`, () =>
        Effect.gen(function*() {
          const witness = Witness.make()
          yield* Witness.listen(witness)
          const upstream = yield* Protected.make
          upstream.spell = (secret) => secret + odd
          const { authority, clients, grants, secrets, server } = upstream
          for (const secret of [clientSecret, subject, pem, ...pem.split("\n").filter((line) => line.length > 30)]) {
            secrets.add(secret)
          }
          const way = wayOf(upstream)
          const { broken, kept, store } = makeStore(witness)
          const happened: Record<string, number> = {}

          const told = (error: unknown) => {
            witness.writeError(error)
            if (!(error instanceof McpSessionError)) return
            happened[error.reason._tag] = (happened[error.reason._tag] ?? 0) + 1
            witness.writeError(error.reason)
            if (error.reason._tag !== "PreparationFailed") return
            // What the library itself says of it. The rest is the user's own
            const cause = Redacted.value(error.reason.cause)
            if (cause instanceof AuthorizationFailed || cause instanceof TokenStoreError) witness.writeError(cause)
          }
          const visit = Consent.withConsent(agree)(Sessions.withSession(alice, call))
          /** Whatever becomes of it is written down. */
          const attempt = Effect.gen(function*() {
            const exit = yield* Effect.exit(visit)
            if (Exit.isSuccess(exit)) return
            told(Option.getOrUndefined(Exit.findErrorOption(exit)))
            witness.write(exit)
          })
          const anew = Sessions.invalidateWhere(() => true)

          const run = Effect.gen(function*() {
            yield* Effect.forkScoped(
              Stream.runForEach(Sessions.events, (event) =>
                Effect.sync(() => {
                  witness.write(event)
                  witness.write(JSON.stringify(event))
                })),
              { startImmediately: true }
            )
            yield* visit
            assert.strictEqual(kept.size > 0, way.isStored)
            upstream.revoke()
            yield* visit

            const turn = Object.keys(ways).indexOf(what)
            for (const [index, disorder] of byTurns(Object.values(disorders), turn >> 1).entries()) {
              upstream.revoke()
              upstream.answer = (form) => disorder(quotes(upstream, form))
              // Within a session, and while one is opened
              for (const isOpening of some(index % 2 === 1, index % 2 === 0)) {
                if (isOpening) yield* anew
                yield* attempt
              }
              upstream.answer = undefined
              yield* visit
            }
            if (way.breaks === undefined || what.includes("provider")) {
              upstream.revoke()
              const asked = grants.length
              upstream.answer = () => new Promise(() => {})
              const mute = yield* Effect.forkChild(attempt)
              yield* live(() => grants.length > asked)
              yield* TestClock.adjust("10 seconds")
              yield* Fiber.join(mute)
              upstream.answer = undefined
              yield* visit
            }

            // What says where the authorization server is, and what it is
            const said = [mark, ...secrets, ...clients].join(" ")
            const documents = server.behaviour.documents
            const metadata = "/.well-known/oauth-authorization-server"
            const right = authority.answers.get(metadata)!
            const discoveries = [
              () => ({ status: 500, body: said }),
              () => ({ body: said }),
              () => ({ body: { issuer: said } }),
              () => ({ body: { issuer: said, authorization_endpoint: 5, token_endpoint: [said] } })
            ]
            for (const answer of byTurns(discoveries, turn)) {
              authority.answers.set(metadata, answer)
              upstream.revoke()
              yield* attempt
            }
            authority.answers.set(metadata, right)
            const pathname = "/.well-known/oauth-protected-resource/mcp"
            const newest = Array.from(secrets).filter((one) => !one.includes("\n")).slice(-many(4, 8))
            const pages = [
              ...newest.map((one) => ({
                resource: `https://${encodeURIComponent(one)}.example.com/${encodeURIComponent(one)}`
              })),
              ...some(said, ...newest).flatMap((one) => [
                { resource: server.url, authorization_servers: [`http://127.0.0.1:1/${encodeURIComponent(one)}`] },
                { resource: [one], authorization_servers: one }
              ])
            ]
            for (const page of byTurns(pages, turn)) {
              server.behaviour.documents = { [pathname]: page }
              upstream.revoke()
              yield* attempt
            }
            server.behaviour.documents = documents
            yield* visit

            // The upstream, which quotes the token that it was sent
            const { refuse } = server.behaviour
            for (const refusal of refusals) {
              server.behaviour.refuse = ({ authorization, rpc }) => {
                if (rpc !== "tools/call" || authorization === undefined) return undefined
                const token = authorization.replace("Bearer ", "")
                const quoted = `${token} ${encodeURIComponent(authorization)} ${btoa(token)}`
                return refusal(quoted.replace(/[\\"]/g, "\\$&"))
              }
              yield* attempt
              upstream.revoke()
            }
            server.behaviour.refuse = refuse
            yield* visit

            if (way.isStored) {
              for (const [index, by] of (["get", "set", "remove"] as const).entries()) {
                for (const isDefect of byTurns([false, true], turn + index)) {
                  Object.assign(broken, { by, isDefect })
                  yield* anew
                  upstream.revoke()
                  upstream.refreshable.clear()
                  yield* attempt
                }
              }
              broken.by = undefined
              yield* visit
            }
            if (way.breaks !== undefined) {
              way.breaks(true)
              upstream.revoke()
              yield* attempt
              yield* anew
              yield* attempt
              way.breaks(false)
            }

            if ("authorizationCode" in way.authorization) {
              yield* anew
              upstream.revoke()
              upstream.refreshable.clear()
              const { url } = yield* consentOf(Sessions.withSession(alice, call))
              const back = new URL(yield* browse(url))
              const wrong = new URL(back)
              wrong.searchParams.set("iss", `https://${back.searchParams.get("code")}.example.com`)
              const denied = new URL(back)
              denied.searchParams.delete("code")
              denied.searchParams.set("error", back.searchParams.get("state")!)
              denied.searchParams.set("error_description", back.href)
              const unknown = new URL(back)
              unknown.searchParams.set("state", `${back.searchParams.get("state")}x`)
              for (const address of [wrong, unknown, denied, back]) {
                const error = yield* Consent.callback().pipe(
                  Effect.provideService(
                    HttpServerRequest.HttpServerRequest,
                    HttpServerRequest.fromWeb(new Request(address))
                  ),
                  Effect.flip
                )
                told(error)
                const { body, headers } = yield* HttpServerRespondable.toResponse(error)
                witness.write([headers, body])
              }
            }
            witness.write([yield* Sessions.stats, yield* Sessions.entries])
          }).pipe(
            Effect.scoped,
            Effect.provide(Sessions.layer({
              connect: connector.http({ url: server.url, name: "mail", authorization: way.authorization })
            }))
          )
          yield* run.pipe(Effect.provide(witness.layer), Effect.provideService(TokenStore, store))

          const everything = yield* witness.everything
          // Otherwise nothing was shown
          if (way.isStored || what.includes("provider")) {
            assert.include(everything, mark)
            assert.isAbove(grants.length, many(8, 20))
            assert.isAbove(happened["PreparationFailed"] ?? 0, many(5, 15), JSON.stringify(happened))
          }
          assert.include(everything, "callTool")
          assert.isAbove(happened["PreparationFailed"] ?? 0, 1)
          assert.isAbove((happened["Unauthorized"] ?? 0) + (happened["Forbidden"] ?? 0), 1, JSON.stringify(happened))
          assert.isAbove(secrets.size, 7)
          for (const client of clients) if (client !== undefined) secrets.add(client.replace(/^Basic /, ""))
          Witness.assertClean(everything, secrets)
        }), underLoad)
    }
  })
}

// -----------------------------------------------------------------------------
// Inbound
// -----------------------------------------------------------------------------

const resource = "https://mcp.example.com/mcp"

const resolvers = {
  layerJwt: ({ issuer }: AuthorizationServer.AuthorizationServer) =>
    IdentityResolver.layerJwt({ issuer, audience: resource, scopes: ["mcp:use"] }),
  layerIntrospection: ({ issuer }: AuthorizationServer.AuthorizationServer) =>
    IdentityResolver.layerIntrospection({
      endpoint: `${issuer}/introspect`,
      clientId: "mcp",
      clientSecret: Redacted.make(clientSecret),
      audience: resource,
      scopes: ["mcp:use"],
      timeToLive: 0
    })
}

describe("no secret is anywhere else, inbound,", () => {
  for (const [index, [name, resolver]] of Object.entries(resolvers).entries()) {
    it.effect(`of ${name}`, () =>
      Effect.gen(function*() {
        const witness = Witness.make()
        yield* Witness.listen(witness)
        const server = yield* AuthorizationServer.make()
        const secrets = new Set([clientSecret, Buffer.from(`mcp:${clientSecret}`).toString("base64")])
        const { answers, issuer, sign } = server
        const other = yield* AuthorizationServer.makeKey("another")
        const claims = { aud: resource, scope: "mcp:use", exp: 10_000_000 }
        const good = yield* sign(claims)
        const tokens = [
          good,
          yield* sign({ ...claims, exp: 1 }),
          yield* sign({ ...claims, nbf: 9_000_000 }),
          yield* sign({ ...claims, aud: "https://elsewhere.example.com" }),
          yield* sign({ ...claims, iss: "https://elsewhere.example.com" }),
          yield* sign({ ...claims, scope: "another" }),
          yield* sign(claims, { key: other }),
          yield* sign({ ...claims, sub: "" }),
          `${good}, Bearer ${good}`,
          `${good.replaceAll(".", " ")}`,
          "not-a-token-of-anybody/+=="
        ]
        for (const token of tokens) {
          for (const part of [token, ...token.split(/[. ]/)]) if (part.length >= 12) secrets.add(part)
        }
        // No secret: every token of this server begins so
        secrets.delete(good.split(".")[0]!)
        let asked = 0
        const introspect = (token: string) => {
          const found = tokens.indexOf(token)
          const payload = token.split(".")[1]
          return found === -1 || payload === undefined
            ? { active: false, said: token }
            : { active: true, ...JSON.parse(Buffer.from(payload, "base64url").toString()) }
        }
        answers.set("/introspect", ({ headers }, body) => {
          asked++
          secrets.add((headers.authorization ?? "").replace("Basic ", ""))
          return { body: introspect(new URLSearchParams(body).get("token")!) }
        })

        const run = Effect.gen(function*() {
          const app = McpHttp.layer({
            server: makeServer(makeLog()),
            response: "json",
            authorization: {
              servers: [issuer],
              resource,
              scopes: ["mcp:use"],
              required: ({ params }) => params["name"] === "wait" ? ["files:write"] : []
            }
          })
          const endpoint = yield* socket(app, Layer.orDie(resolver(server)))
          const session = yield* begin(endpoint, good)
          const statuses = new Set<number>()
          /** Whatever is answered is written down. */
          const ask = Effect.fnUntraced(function*(as: string, body: unknown) {
            const response = yield* post(endpoint, body, {
              as,
              session,
              headers: { "mcp-protocol-version": "2025-11-25" }
            })
            statuses.add(response.status)
            witness.write([response.status, [...response.headers]])
            witness.write(yield* Effect.promise(() => response.text()))
          })
          const all = Effect.fnUntraced(function*(these: ReadonlyArray<string>) {
            for (const token of these) {
              for (const tool of ["echo", "wait"]) yield* ask(token, callOf(tool, { message: "hi" }))
              const error = yield* Effect.exit(
                IdentityResolver.resolve({ headers: { authorization: `Bearer ${token}` } })
              )
              if (Exit.isSuccess(error)) {
                witness.writeError(error.value)
                continue
              }
              const found = Option.getOrUndefined(Exit.findErrorOption(error))
              witness.writeError(found)
              if (found?._tag === "IdentityUnavailable") witness.writeError(Redacted.value(found.cause!))
            }
          })
          yield* all(tokens)
          assert.includeMembers([...statuses], [200, 401, 403])

          const said = [mark, ...secrets].join(" | ")
          for (const [turn, disorder] of byTurns(Object.values(disorders), index).entries()) {
            for (const path of ["/introspect", "/keys", "/.well-known/oauth-authorization-server"]) {
              answers.set(path, () => disorder(said))
            }
            // The keys are too old to go on with
            yield* TestClock.adjust("2 days")
            yield* all(byTurns(tokens, turn))
          }
          assert.include([...statuses], 503)
        }).pipe(Effect.scoped, Effect.provide(Layer.orDie(resolver(server))))
        yield* run.pipe(Effect.provide(witness.layer))

        const everything = yield* witness.everything
        assert.include(everything, "IdentityUnavailable")
        assert.include(everything, "could not be")
        if (name === "layerIntrospection") assert.isAbove(asked, 10)
        Witness.assertClean(everything, secrets)
      }), underLoad)
  }
})
