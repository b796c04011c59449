/**
 * An authorization server on loopback: metadata, keys, introspection. It answers at once, when it is told to, or not.
 */
import * as Effect from "effect/Effect"
import * as Jose from "jose"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"

export interface Key {
  readonly kid: string | undefined
  readonly alg: string
  readonly privateKey: Jose.CryptoKey
  readonly publicJwk: Jose.JWK
}

export interface Answer {
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: unknown
  /** Says the body itself, and how it ends. */
  readonly write?: (response: Http.ServerResponse) => void
}

export const makeKey = (kid: string | undefined, alg = "ES256"): Effect.Effect<Key> =>
  Effect.promise(async () => {
    const { privateKey, publicKey } = await Jose.generateKeyPair(alg, { extractable: true })
    const publicJwk = await Jose.exportJWK(publicKey)
    return { kid, alg, privateKey, publicJwk: { ...publicJwk, alg, use: "sig", ...(kid === undefined ? {} : { kid }) } }
  })

export interface AuthorizationServer {
  readonly issuer: string
  /** What was asked for, path by path. */
  readonly requests: Array<string>
  /** What it publishes. */
  keys: Array<Key>
  /** By path, in place of what it would answer. A promise is waited for, `undefined` hangs up. */
  readonly answers: Map<string, (request: Http.IncomingMessage, body: string) => Promise<Answer> | Answer | undefined>
  readonly jwksUri: string
  /** A token of its own, by the first of its keys. */
  readonly sign: (
    claims: Jose.JWTPayload,
    options?: { readonly key?: Key; readonly header?: Partial<Jose.JWTHeaderParameters> }
  ) => Effect.Effect<string>
  /** How often its keys were fetched. */
  readonly fetches: () => number
}

export const make = Effect.fnUntraced(function*({ path = "" }: { readonly path?: string } = {}) {
  const requests: AuthorizationServer["requests"] = []
  const answers: AuthorizationServer["answers"] = new Map()
  const http = Http.createServer((request, response) => {
    const { pathname } = new URL(request.url!, "http://localhost")
    requests.push(pathname)
    let body = ""
    request.setEncoding("utf8")
    request.on("data", (chunk: string) => body += chunk)
    request.on("end", () => {
      const answer = answers.get(pathname)
      void Promise.resolve(answer === undefined ? { status: 404 } : answer(request, body)).then((found) => {
        if (found === undefined) {
          request.socket.destroy()
          return
        }
        response.writeHead(found.status ?? 200, { "content-type": "application/json", ...found.headers })
        if (found.write !== undefined) return found.write(response)
        response.end(typeof found.body === "string" ? found.body : JSON.stringify(found.body ?? {}))
      })
    })
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => void http.listen(0, "127.0.0.1", () => resume(Effect.void))),
    () =>
      Effect.callback<void>((resume) => {
        http.close(() => resume(Effect.void))
        http.closeAllConnections()
      })
  )
  const origin = `http://127.0.0.1:${(http.address() as AddressInfo).port}`
  const issuer = origin + path
  const self: AuthorizationServer = {
    issuer,
    requests,
    answers,
    keys: [yield* makeKey("first")],
    jwksUri: `${origin}/keys`,
    fetches: () => requests.filter((asked) => asked === "/keys").length,
    sign: (claims, { header, key = self.keys[0]! } = {}) =>
      Effect.promise(() =>
        new Jose.SignJWT({ iss: issuer, aud: "mcp", sub: "alice", exp: 3_600, ...claims })
          .setProtectedHeader({ alg: key.alg, ...(key.kid === undefined ? {} : { kid: key.kid }), ...header })
          .sign(key.privateKey)
      )
  }
  answers.set(`/.well-known/oauth-authorization-server${path}`, () => ({
    body: { issuer, jwks_uri: self.jwksUri }
  }))
  answers.set("/keys", () => ({ body: { keys: self.keys.map(({ publicJwk }) => publicJwk) } }))
  return self
})
