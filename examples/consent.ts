/**
 * Consent: a gateway whose upstream server has the mail of its users, and asks each of them whether the gateway may
 * read it. The gateway asks its caller, who opens the address of an authorization server and agrees, and the call that
 * was made in the first place goes on.
 *
 * `npx tsx examples/consent.ts` starts all of it on this machine: the upstream with its authorization server, which is
 * the SDK's `mcpAuthRouter`, the gateway, and a caller with something like a browser.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { requireBearerAuth } from "@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js"
import type { AuthorizationParams, OAuthServerProvider } from "@modelcontextprotocol/sdk/server/auth/provider.js"
import { getOAuthProtectedResourceMetadataUrl, mcpAuthRouter } from "@modelcontextprotocol/sdk/server/auth/router.js"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js"
import type { OAuthClientInformationFull } from "@modelcontextprotocol/sdk/shared/auth.js"
import { CallToolRequestSchema, ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { Console, Effect, Layer, Redacted } from "effect"
import { Consent, IdentityResolver, McpConnector, McpHttp, type SessionInfo, SessionPool } from "effect-mcp-sessions"
import { HttpRouter } from "effect/http"
import express from "express"
import { randomUUID } from "node:crypto"
import { createServer, type Server as NodeServer } from "node:http"
import type { AddressInfo } from "node:net"

const listen = (server: NodeServer) =>
  Effect.acquireRelease(
    Effect.callback<URL>((resume) => {
      server.listen(0, "127.0.0.1", () => {
        resume(Effect.succeed(new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)))
      })
    }),
    () =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )

// --- The upstream, and who says who may use it ---

/** It asks nobody: whoever opens its address has agreed. */
const authority = (): OAuthServerProvider => {
  const clients = new Map<string, OAuthClientInformationFull>()
  const codes = new Map<string, AuthorizationParams>()
  const refreshTokens = new Set<string>()
  const accessTokens = new Map<string, string>()
  const grant = (clientId: string) => {
    const tokens = { access_token: randomUUID(), refresh_token: randomUUID(), token_type: "Bearer", expires_in: 3_600 }
    accessTokens.set(tokens.access_token, clientId)
    refreshTokens.add(tokens.refresh_token)
    return tokens
  }
  return {
    clientsStore: {
      getClient: (id) => clients.get(id),
      registerClient: (client) => {
        const registered = { ...client, client_id: randomUUID(), client_id_issued_at: 0 }
        clients.set(registered.client_id, registered)
        return registered
      }
    },
    authorize: async (_, params, response) => {
      const code = randomUUID()
      codes.set(code, params)
      const back = new URL(params.redirectUri)
      back.searchParams.set("code", code)
      if (params.state !== undefined) back.searchParams.set("state", params.state)
      response.redirect(back.href)
    },
    challengeForAuthorizationCode: async (_, code) => codes.get(code)?.codeChallenge ?? "",
    exchangeAuthorizationCode: async ({ client_id }, code) => {
      codes.delete(code)
      return grant(client_id)
    },
    exchangeRefreshToken: async ({ client_id }, token) => {
      refreshTokens.delete(token)
      return grant(client_id)
    },
    verifyAccessToken: async (token) => {
      const clientId = accessTokens.get(token)
      return { token, clientId: clientId ?? "", scopes: [], expiresAt: clientId === undefined ? 1 : 2 ** 40 }
    }
  }
}

/** A session with a mailbox. */
const begin = async (sessions: Map<string, StreamableHTTPServerTransport>) => {
  const server = new Server({ name: "mail", version: "1.0.0" }, { capabilities: { tools: {} } })
  server.setRequestHandler(CallToolRequestSchema, () => ({ content: [{ type: "text", text: "no mail today" }] }))
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (id) => void sessions.set(id, transport)
  })
  await server.connect(transport as Parameters<typeof server.connect>[0])
  return transport
}

/** An MCP server for which everybody has to have a token. */
const Upstream = Effect.gen(function*() {
  const app = express()
  const url = new URL("/mcp", yield* listen(createServer(app)))
  const provider = authority()
  app.use(mcpAuthRouter({ provider, issuerUrl: new URL(url.origin), resourceServerUrl: url }))
  const sessions = new Map<string, StreamableHTTPServerTransport>()
  app.all(
    "/mcp",
    requireBearerAuth({ verifier: provider, resourceMetadataUrl: getOAuthProtectedResourceMetadataUrl(url) }),
    express.json(),
    (request, response, next) => {
      const known = sessions.get(request.get("mcp-session-id") ?? "")
      const transport = known === undefined ? begin(sessions) : Promise.resolve(known)
      transport.then((found) => found.handleRequest(request, response, request.body)).catch(next)
    }
  )
  return url
})

// --- The gateway ---

/** A server whose one tool reads the caller's mail, and asks the caller for consent when it has to. */
const forward = Effect.fnUntraced(function*(_: SessionInfo, { identity }: McpHttp.SessionCaller) {
  const pool = yield* SessionPool
  const runPromise = Effect.runPromiseWith(yield* Effect.context<never>())
  const server = new Server({ name: "gateway", version: "1.0.0" }, { capabilities: { tools: {} } })
  server.setRequestHandler(CallToolRequestSchema, ({ params }, { signal, ...request }) => {
    const answer = Effect.flatMap(identity, (caller) => pool.withSession(caller, (session) => session.callTool(params)))
    const answerWithConsent = answer.pipe(
      Consent.withConsent(({ id, message, url }) =>
        Effect.tryPromise(() =>
          server.elicitInput(
            { mode: "url", elicitationId: id, message, url: Redacted.value(url) },
            { relatedRequestId: request.requestId, timeout: 600_000 }
          )
        )
      )
    )
    return runPromise(answerWithConsent, { signal })
  })
  return server
})

/** Its port is known when it listens, and where callers come back to is there. */
const gateway = Effect.fnUntraced(function*(upstream: URL) {
  const http = createServer()
  const origin = yield* Effect.scoped(listen(createServer()))
  const Upstreams = SessionPool.layer({
    connect: McpConnector.http({
      url: upstream,
      name: "mail",
      authorization: { authorizationCode: { redirectUrl: new URL("/oauth/callback", origin) } }
    }),
    capacity: 10
  })
  const routes = Layer.mergeAll(
    McpHttp.layer({ server: forward }),
    HttpRouter.add("GET", "/oauth/callback", Consent.callback())
  )
  yield* Layer.build(
    HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provide(IdentityResolver.layer({ mode: "required" })),
      Layer.provide(Upstreams),
      Layer.provide(Consent.layerRedacted),
      Layer.provide(NodeHttpServer.layer(() => http, { port: Number(origin.port), host: "127.0.0.1" }))
    )
  )
  return new URL("/mcp", origin)
})

// --- Try it ---

const converse = (url: URL, token: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Client({ name: "example", version: "1.0.0" }, { capabilities: { elicitation: { url: {} } } })
      client.setRequestHandler(ElicitRequestSchema, async ({ params }) => {
        if (params.mode !== "url") return { action: "decline" }
        console.log(`asked: ${params.message}`)
        // The browser: somebody agrees, and comes back to the gateway
        const page = await fetch(params.url)
        console.log(`in the browser: ${await page.text()}`)
        return { action: "accept" }
      })
      const transport = new StreamableHTTPClientTransport(url, {
        requestInit: { headers: { authorization: `Bearer ${token}` } }
      })
      await client.connect(transport as Parameters<typeof client.connect>[0])
      return { client, transport }
    }),
    ({ client, transport }) => Effect.promise(() => transport.terminateSession().then(() => client.close()))
  )

const main = Effect.gen(function*() {
  const url = yield* gateway(yield* Upstream)
  for (const name of ["alice", "alice", "bob"]) {
    const { client } = yield* converse(url, `${name}-token`)
    const { content } = yield* Effect.promise(() => client.callTool({ name: "inbox" }))
    yield* Console.log(`${name.padEnd(5)} ${JSON.stringify(content)}`)
  }
})

await Effect.runPromise(Effect.scoped(main))
