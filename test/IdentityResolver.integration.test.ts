import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { assert, describe, it } from "@effect/vitest"
import { type Identity, type IdentityRequest, IdentityResolver } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import express from "express"
import fastify from "fastify"
import * as Http from "node:http"
import * as Net from "node:net"

const options = { mode: "optional" } as const

const answer = (identity: Identity) =>
  Option.match(identity.credentials, {
    onNone: () => identity.key,
    onSome: ({ token }) => Redacted.value(token)
  })

/** What a handler without Effect answers: the token, the shared key, or the error's tag. */
const handle = (request: IdentityRequest): Promise<string> =>
  IdentityResolver.resolve(request).pipe(
    Effect.match({ onSuccess: answer, onFailure: (error) => error._tag }),
    Effect.provide(IdentityResolver.layer(options)),
    Effect.runPromise
  )

const portOf = (server: Net.Server) => (server.address() as Net.AddressInfo).port

const listening = (server: Net.Server) =>
  Effect.acquireRelease(
    Effect.callback<number>((resume) =>
      void server.listen(0, "127.0.0.1", () => resume(Effect.sync(() => portOf(server))))
    ),
    () => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  )

/** Each runs for as long as its scope is open, and gives its port. */
const servers = {
  "node:http": Effect.suspend(() =>
    listening(Http.createServer((request, response) => void handle(request).then((text) => response.end(text))))
  ),

  Express: Effect.suspend(() => {
    const app = express().use((request, response) => void handle(request).then((text) => response.end(text)))
    return listening(Http.createServer(app))
  }),

  Fastify: Effect.suspend(() => {
    const app = fastify().get("/", (request) => handle(request))
    return Effect.acquireRelease(
      Effect.map(Effect.promise(() => app.listen({ port: 0, host: "127.0.0.1" })), () => portOf(app.server)),
      () => Effect.promise(() => app.close())
    )
  }),

  Effect: Effect.suspend(() => {
    const server = Http.createServer()
    const route = HttpRouter.add(
      "GET",
      "/",
      Effect.map(IdentityResolver.fromHttpRequest, (identity) => HttpServerResponse.text(answer(identity)))
    )
    return HttpRouter.serve(route, { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provide(IdentityResolver.layer(options)),
      Layer.provide(NodeHttpServer.layer(() => server, { port: 0, host: "127.0.0.1" })),
      Layer.build,
      Effect.map(() => portOf(server))
    )
  })
}

/** A request byte by byte: no client would send a header twice. */
const send = (port: number, headers: ReadonlyArray<string>) =>
  Effect.callback<string>((resume) => {
    let text = ""
    const socket = Net.connect(port, "127.0.0.1", () => {
      socket.write(["GET / HTTP/1.1", "Host: localhost", ...headers, "Connection: close", "", ""].join("\r\n"))
    })
    socket.setEncoding("latin1")
    socket.on("data", (chunk) => text += chunk)
    socket.on("close", () => resume(Effect.succeed(text)))
    return Effect.sync(() => socket.destroy())
  })

describe("IdentityResolver behind real servers", () => {
  for (const [name, server] of Object.entries(servers)) {
    it.effect(`${name}: reads the header, and refuses it when it is there twice`, () =>
      Effect.gen(function*() {
        const port = yield* server
        assert.match(yield* send(port, ["AUTHORIZATION:   Bearer abc  "]), /\babc\b/)
        assert.match(yield* send(port, []), /\bshared\b/)
        for (
          const headers of [
            ["Authorization: Bearer abc", "authorization: Bearer def"],
            ["Authorization: Bearer abc", "Authorization: Bearer abc"],
            ["Authorization: Bearer abc", "Authorization:"],
            ["Authorization:"],
            ["Authorization: Bearer"],
            ["Authorization: Bearer abc def"]
          ]
        ) {
          const response = yield* send(port, headers)
          assert.include(response, "MalformedCredentials")
          assert.notInclude(response, "abc")
        }
      }))
  }
})
