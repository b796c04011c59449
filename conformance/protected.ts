/**
 * The fixtures over `McpHttp.layer` with `authorization`. `node --import tsx conformance/protected.ts 2025-06-18`
 * speaks that revision.
 *
 * The suite's clients have no token and ask for none, so a proxy, whose URL is printed, adds one to what they send.
 * What is protected is called by the name of that proxy.
 */
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Jose from "jose"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import { makeServer, speaking } from "./fixtures.ts"
import { serve } from "./serve.ts"

const [, , revision = "2025-11-25"] = process.argv

let port: string | undefined
let token: string | undefined

const proxy = Http.createServer((request, response) => {
  const { method, url } = request
  const headers = { authorization: `Bearer ${token}`, ...request.headers }
  const onward = Http.request({ host: "127.0.0.1", port, method, path: url, headers }, (answer) => {
    response.writeHead(answer.statusCode!, answer.headers).flushHeaders()
    answer.pipe(response)
  })
  onward.on("error", () => response.destroy())
  response.on("close", () => onward.destroy())
  request.pipe(onward)
})
await new Promise<void>((resolve) => void proxy.listen(0, "127.0.0.1", resolve))
proxy.unref()

const issuer = "https://login.example.com"
const resource = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}/mcp`
const { privateKey, publicKey } = await Jose.generateKeyPair("ES256")

token = await new Jose.SignJWT({ iss: issuer, aud: resource, sub: "suite", scope: "mcp:use" })
  .setProtectedHeader({ alg: "ES256" })
  .setExpirationTime("1 hour")
  .sign(privateKey)

serve(
  McpHttp.layer({
    server: () => Effect.sync(() => speaking(revision, makeServer())),
    eventStore: McpHttp.memoryEventStore(),
    retryInterval: 50,
    authorization: { servers: [issuer], scopes: ["mcp:use"], resource }
  }),
  IdentityResolver.layerJwt({
    issuer,
    audience: resource,
    scopes: ["mcp:use"],
    jwks: { keys: [await Jose.exportJWK(publicKey)] }
  }),
  (address) =>
    Effect.suspend(() => {
      port = new URL(address).port
      return Console.log(resource)
    })
)
