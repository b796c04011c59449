/**
 * The client that the official suite runs: `node --import tsx conformance/client.ts v1|v2 URL`, with the scenario's
 * name in `MCP_CONFORMANCE_SCENARIO` and what it knows of a client in `MCP_CONFORMANCE_CONTEXT`. It opens a session
 * with the connector of that generation, as a program would that has users: its only one agrees to whatever the
 * authorization server asks.
 */
import { discoverOAuthServerInfo } from "@modelcontextprotocol/sdk/client/auth.js"
import { Effect, Redacted } from "effect"
import { Consent, Identity, McpConnector, type McpSession, type McpSessionError } from "effect-mcp-sessions"
import type { Authorization } from "effect-mcp-sessions/Authorization"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import { SessionPool } from "effect-mcp-sessions/SessionPool"

const [, , generation, url = ""] = process.argv
const scenario = process.env["MCP_CONFORMANCE_SCENARIO"] ?? ""
const revision = process.env["MCP_CONFORMANCE_PROTOCOL_VERSION"] ?? ""
const context = JSON.parse(process.env["MCP_CONFORMANCE_CONTEXT"] ?? "{}") as Readonly<Record<string, string>>

class Sessions extends SessionPool.Tag<Sessions, Pick<McpSession, "callTool" | "listTools">, McpSessionError>()(
  "conformance/Sessions"
) {}

const redirectUrl = "http://127.0.0.1:9/callback"

/** Who knows the client: a program would have it in its configuration. */
const issuer = async () => (await discoverOAuthServerInfo(url)).authorizationServerUrl

const authorization = async (): Promise<Authorization> => {
  const { client_id: clientId = "", client_secret: secret, private_key_pem: key } = context
  const clientSecret = secret === undefined ? undefined : Redacted.make(secret)
  switch (scenario) {
    case "auth/client-credentials-basic":
      return { clientCredentials: { clientId, clientSecret, issuer: await issuer() } }
    case "auth/client-credentials-jwt":
      return {
        clientCredentials: {
          clientId,
          issuer: await issuer(),
          privateKey: { key: Redacted.make(key ?? ""), algorithm: context["signing_algorithm"] ?? "" }
        }
      }
    case "auth/pre-registration":
      return { authorizationCode: { redirectUrl, clientId, clientSecret, issuer: await issuer() } }
    default:
      return {
        authorizationCode: {
          redirectUrl,
          clientMetadataUrl: "https://conformance-test.local/client-metadata.json"
        }
      }
  }
}

/** A browser, and somebody in front of it who agrees. */
const agree = ({ url: address }: Consent.ConsentRequest) =>
  Effect.promise(async () => {
    const { body, headers } = await fetch(Redacted.value(address), { redirect: "manual" })
    await body?.cancel()
    return headers.get("location") ?? ""
  }).pipe(
    Effect.flatMap(Consent.finish),
    Effect.as({ action: "accept" } as const)
  )

const main = Effect.gen(function*() {
  const options = { url, authorization: yield* Effect.promise(authorization) }
  const versionNegotiation = revision >= "2026" ? "auto" : "legacy"
  const Pool = generation === "v2"
    ? Sessions.layer({ connect: McpConnectorV2.http({ ...options, versionNegotiation }) })
    : Sessions.layer({ connect: McpConnector.http(options) })
  const visit = Sessions.withSession(
    Identity.fromKey("alice"),
    (session) => Effect.andThen(session.listTools(), session.callTool({ name: "test-tool", arguments: {} }))
  )
  yield* visit.pipe(Consent.withConsent(agree), Effect.provide(Pool))
})

await Effect.runPromise(main)
