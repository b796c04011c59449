/**
 * What a pool does when a server has forgotten a session: `f` runs again if it is certain that nothing of it has run.
 * The server counts what reaches it.
 */
import { assert, describe, it } from "@effect/vitest"
import { CallToolResultSchema } from "@modelcontextprotocol/sdk/types.js"
import { Identity, McpSession, type McpSessionError, SessionPool } from "effect-mcp-sessions"
import { HttpFailure } from "effect-mcp-sessions/McpSession"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { eventually } from "./support/answers.ts"
import { type AnySession, type Generation, generations } from "./support/generations.ts"
import * as Scripted from "./support/servers/scripted.ts"

class Another extends Context.Service<Another, string>()("test/Another") {}

class Sessions extends SessionPool.Tag<Sessions, AnySession, McpSessionError>()("test/Sessions") {}

const alice = Identity.fromKey("alice")
const bob = Identity.fromKey("bob")

/** What both clients have in common, without the options that they take in different places. */
interface Client {
  callTool(params: { readonly name: string }): Promise<unknown>
  notification(notification: { readonly method: string; readonly params: object }): Promise<void>
}

const clientOf = (session: AnySession) => session.client as unknown as Client

const tool = (session: AnySession, name: string) => session.callTool({ name })

/** A pool whose session has been used before, of a server that refuses the first `confirm` with 404. */
const used = <A, E>(
  connector: Generation,
  f: (server: Scripted.Scripted) => Effect.Effect<A, E, Sessions | Scope.Scope>
) =>
  Effect.gen(function*() {
    const server = yield* Scripted.start()
    server.on("confirm", once(Scripted.forgotten))
    return yield* Effect.andThen(Sessions.withSession(alice, (session) => tool(session, "before")), f(server)).pipe(
      Effect.provide(Sessions.layer({ connect: connector.http({ url: server.url }) }))
    )
  })

const once = (first: Scripted.Answer): Scripted.Answer => {
  let count = 0
  return (response, message, request) =>
    ++count === 1 ? first(response, message, request) : Scripted.reply(response, message, Scripted.resultOf(message))
}

const counted = (server: Scripted.Scripted, name: string) =>
  server.received.filter((received) => received === name).length

type Pay = (session: AnySession, server: Scripted.Scripted) => Effect.Effect<unknown, unknown>

/** What may have run before the session turns out to be forgotten. */
const ways: ReadonlyArray<readonly [string, Pay]> = [
  ["a call", (session) => tool(session, "pay")],
  [
    "a call inside request",
    (session) => session.request((client) => (client as unknown as Client).callTool({ name: "pay" }))
  ],
  ["a call of the client itself", (session) => Effect.promise(() => clientOf(session).callTool({ name: "pay" }))],
  ["a call of the client that nobody waits for", (session, server) => {
    server.on("pay", () => {})
    void clientOf(session).callTool({ name: "pay" }).catch(() => {})
    return eventually(() => server.received.includes("pay"))
  }],
  [
    "a notification",
    (session) =>
      Effect.promise(() =>
        clientOf(session).notification({ method: "notifications/progress", params: { progressToken: 1, progress: 1 } })
      )
  ],
  ["a call that was answered with an error", (session, server) => {
    server.on("pay", (response, message) => Scripted.refuse(response, message, -32603))
    return Effect.flip(tool(session, "pay"))
  }],
  ["a call whose reply stream was cut", (session, server) => {
    server.on("pay", (response) => void Scripted.stream(response).end())
    return Effect.flip(tool(session, "pay"))
  }],
  ["a call whose reply stream was resumed", (session, server) => {
    server.on("pay", (response, { id }) => {
      server.onGet((resumed) =>
        void Scripted.stream(resumed).end(Scripted.event({ id: id!, result: { content: [] } }, "2"))
      )
      Scripted.stream(response).end("id: 1\nretry: 1\ndata: \n\n")
    })
    return tool(session, "pay")
  }],
  ["a call that was given up", (session, server) => {
    server.on("pay", () => {})
    return Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(tool(session, "pay"))
      yield* eventually(() => server.received.includes("pay"))
      yield* Fiber.interrupt(fiber)
    })
  }],
  ["a call that timed out", (session, server) => {
    server.on("pay", () => {})
    return Effect.flip(session.callTool({ name: "pay" }, { timeout: "100 millis" }))
  }]
]

for (const [sdk, connector] of generations) {
  describe(`a session that its server has forgotten, with ${sdk}`, { concurrent: true }, () => {
    for (const [what, pay] of ways) {
      it.live(`is not replaced under its caller after ${what}`, () =>
        used(connector, (server) =>
          Effect.gen(function*() {
            let runs = 0
            const error = yield* Effect.flip(Sessions.withSession(alice, (session) => {
              runs++
              return Effect.andThen(pay(session, server), tool(session, "confirm"))
            }))
            assert.isTrue(McpSession.isSessionExpired(error))
            assert.strictEqual(runs, 1)
            assert.strictEqual(counted(server, "pay") + counted(server, "notifications/progress"), 1)
            assert.strictEqual(counted(server, "confirm"), 1)
          })))
    }

    it.live("is not replaced inside one request that had paid already", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(Sessions.withSession(alice, (session) =>
            session.request(async (client) => {
              await (client as unknown as Client).callTool({ name: "pay" })
              return (client as unknown as Client).callTool({ name: "confirm" })
            })))
          assert.isTrue(McpSession.isSessionExpired(error))
          assert.deepStrictEqual(server.received, ["before", "pay", "confirm"])
        })))

    it.live("is not replaced when the second of three concurrent calls is refused and the others may run", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          for (const name of ["pay", "ship"]) server.on(name, () => {})
          server.on("confirm", (...refused) =>
            void Effect.runFork(Effect.andThen(
              eventually(() => server.received.includes("pay") && server.received.includes("ship")),
              Effect.sync(() => Scripted.forgotten(...refused))
            )))
          const error = yield* Effect.flip(Sessions.withSession(alice, (session) =>
            Effect.forEach(["pay", "confirm", "ship"], (name) =>
              tool(session, name), { concurrency: 3 })))
          assert.isTrue(McpSession.isSessionExpired(error))
          assert.sameMembers(
            server.received.filter((name) =>
              !name.startsWith("notifications/")
            ),
            [
              "before",
              "pay",
              "confirm",
              "ship"
            ]
          )
        })))

    const refusals: ReadonlyArray<readonly [string, (session: AnySession) => Effect.Effect<unknown, McpSessionError>]> =
      [
        ["a call", (session) => tool(session, "confirm")],
        [
          "a request",
          (session) => session.request((client) => (client as unknown as Client).callTool({ name: "confirm" }))
        ]
      ]
    for (const [what, f] of refusals) {
      it.live(`is replaced under its caller when ${what} was refused and nothing has run`, () =>
        used(connector, (server) =>
          Effect.gen(function*() {
            yield* Sessions.withSession(alice, f)
            assert.deepStrictEqual(server.received, ["before", "confirm", "confirm"])
            assert.strictEqual((yield* Sessions.stats).retirements, 1)
          })))
    }

    /** What says 404, or 400, and leaves it open whether the request had been started. */
    const doubtful: ReadonlyArray<readonly [string, Scripted.Answer]> = [
      [
        "404 that answers this very request",
        (response, { id }) =>
          Scripted.json(response, 404, { jsonrpc: "2.0", id, error: { code: -32001, message: "Session not found" } })
      ],
      [
        "404 that answers this very request, its id a text, and is cut off",
        (response, { id }) =>
          void response.writeHead(404, { "content-type": "application/json" }).end(`{"error":{},"id" : "${id}"`)
      ],
      [
        "404 that answers this very request in another spelling",
        (response, { id }) =>
          void response.writeHead(404, { "content-type": "application/json" }).end(`{"error":{},"\\u0069d":${id}.0}`)
      ],
      [
        "400 that answers this very request",
        (response, { id }) =>
          Scripted.json(response, 400, { jsonrpc: "2.0", id, error: { code: -32000, message: "No valid session ID" } })
      ],
      ["404 after a redirect", (response, message, request) =>
        request.url === "/mcp"
          ? void response.writeHead(307, { location: "/elsewhere" }).end()
          : Scripted.forgotten(response, message, request)]
    ]
    for (const [what, answer] of doubtful) {
      it.live(`is replaced for the next caller only after a ${what}`, () =>
        used(connector, (server) =>
          Effect.gen(function*() {
            server.on("confirm", answer)
            let runs = 0
            const error = yield* Effect.flip(Sessions.withSession(alice, (session) => {
              runs++
              return tool(session, "confirm")
            }))
            assert.strictEqual((error as McpSessionError).reason._tag, "SessionExpired")
            assert.isFalse(McpSession.isSessionExpired(error))
            assert.include(error.message, "may have run")
            assert.strictEqual(runs, 1)
            assert.strictEqual((yield* Sessions.stats).retirements, 1)
            const asked = server.received.length
            yield* Sessions.withSession(alice, (session) => tool(session, "after"))
            assert.strictEqual(server.received.length, asked + 1)
          })))
    }

    it.live("tells of a request that was redirected to where it had been, and is sent there once", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          server.on("pay", (response, _, request) =>
            void response.writeHead(307, { location: request.url === "/mcp" ? "/elsewhere" : "/mcp#again" }).end())
          const error = yield* Effect.flip(Sessions.withSession(alice, (session) =>
            tool(session, "pay")))
          assert.deepStrictEqual(
            (error as McpSessionError).reason,
            new HttpFailure({ status: 307, requestSent: true })
          )
          assert.strictEqual(counted(server, "pay"), 2)
        })))

    it.live("is not replaced after a notification was redirected to where nobody knows it", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          const method = "notifications/progress"
          server.on(method, (response, message, request) =>
            request.url === "/mcp"
              ? void response.writeHead(307, { location: "/elsewhere" }).end()
              : Scripted.forgotten(response, message, request))
          let runs = 0
          yield* Effect.exit(Sessions.withSession(alice, (session) => {
            runs++
            return session.request(async (client) => {
              await (client as unknown as Client).notification({ method, params: { progressToken: 1, progress: 1 } })
            })
          }))
          assert.strictEqual(runs, 1)
        })))

    it.live("tells of a request that could not be sent on that it was sent before", () =>
      Effect.gen(function*() {
        const server = yield* Scripted.start()
        server.on("pay", (response) => void response.writeHead(307, { location: "/elsewhere" }).end())
        let made = 0
        let last = Infinity
        const session = yield* connector.http({
          url: server.url,
          headers: () => ++made > last ? Effect.fail("no more") : Effect.succeed({})
        })(alice, { retire: () => Effect.void, credentials: Effect.succeedNone })
        yield* tool(session, "before")
        last = made + 1
        const { reason } = yield* Effect.flip(tool(session, "pay"))
        assert.deepInclude(reason, { _tag: "PreparationFailed", requestSent: true })
      }))

    it.live("is replaced when all of three concurrent calls were refused", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          for (const name of ["pay", "ship"]) server.on(name, once(Scripted.forgotten))
          yield* Sessions.withSession(alice, (session) =>
            Effect.gen(function*() {
              const results = yield* Effect.forEach(
                ["pay", "confirm", "ship"],
                (name) => Effect.result(tool(session, name)),
                { concurrency: 3 }
              )
              return yield* Effect.forEach(results, Effect.fromResult)
            }))
          assert.strictEqual(server.received.length, 7)
          assert.sameMembers(server.received.slice(1, 4), ["pay", "confirm", "ship"])
          assert.sameMembers(server.received.slice(4), ["pay", "confirm", "ship"])
        })))

    /** What another caller of the same session does meanwhile, and that is no reason to leave `f` unrepeated. */
    const others: ReadonlyArray<readonly [string, (session: AnySession) => Effect.Effect<unknown, unknown>]> = [
      ["a call", (session) => tool(session, "pay")],
      [
        "a call of a fiber that it forks",
        (session) => Effect.flatMap(Effect.forkChild(tool(session, "pay")), Fiber.join)
      ],
      ["a call with progress", (session) => session.callTool({ name: "pay" }, { onProgress: () => Effect.void })],
      [
        "two calls inside request",
        (session) =>
          session.request(async (client, options) => {
            const { request } = client as unknown as {
              readonly request: (...args: ReadonlyArray<unknown>) => Promise<unknown>
            }
            const pay = { method: "tools/call", params: { name: "pay" } }
            const rest = sdk === "@modelcontextprotocol/sdk" ? [CallToolResultSchema, options] : [options]
            await request.call(client, pay, ...rest)
            return request.call(client, pay, ...rest)
          })
      ],
      ["a list", (session) => session.listTools()]
    ]
    for (const [what, other] of others) {
      it.live(`is replaced under its caller when another has made ${what} meanwhile`, () =>
        used(connector, (server) =>
          Effect.gen(function*() {
            const started = yield* Latch.make()
            const paid = yield* Latch.make()
            let runs = 0
            const caller = yield* Effect.forkChild(Sessions.withSession(alice, (session) =>
              Effect.gen(function*() {
                runs++
                yield* started.open
                yield* paid.await
                yield* tool(session, "confirm")
              })))
            yield* started.await
            yield* Sessions.withSession(alice, other)
            const asked = server.received.length
            yield* paid.open
            yield* Fiber.join(caller)
            assert.strictEqual(runs, 2)
            assert.isAbove(asked, 1)
            assert.deepStrictEqual(server.received.slice(asked), ["confirm", "confirm"])
          })))
    }

    /** Who else may work for the lease, and must be counted for it. */
    const helpers: ReadonlyArray<
      readonly [string, (session: AnySession) => Effect.Effect<unknown, unknown, Sessions>]
    > = [
      ["a fiber that it has forked", (session) => Effect.flatMap(Effect.forkChild(tool(session, "pay")), Fiber.join)],
      ["a fiber that it has forked with services of its own", (session) =>
        tool(session, "pay").pipe(
          Effect.provideService(Another, "service"),
          Effect.forkDetach,
          Effect.flatMap(Fiber.join)
        )],
      ["a lease within it", () => Sessions.withSession(alice, (inner) => tool(inner, "pay"))],
      [
        "a lease within it, of a fiber that it has forked",
        () => Effect.flatMap(Effect.forkChild(Sessions.withSession(alice, (inner) => tool(inner, "pay"))), Fiber.join)
      ],
      ["a runtime of its own", (session) => Effect.promise(() => Effect.runPromise(tool(session, "pay")))],
      [
        "a list and a runtime of its own",
        (session) => Effect.promise(() => Effect.runPromise(Effect.andThen(session.listTools(), tool(session, "pay"))))
      ]
    ]
    for (const [who, pay] of helpers) {
      it.live(`is not replaced when it was paid by ${who}`, () =>
        used(connector, (server) =>
          Effect.gen(function*() {
            let runs = 0
            const error = yield* Effect.flip(Sessions.withSession(alice, (session) => {
              runs++
              return Effect.andThen(pay(session), tool(session, "confirm"))
            }))
            assert.isTrue(McpSession.isSessionExpired(error))
            assert.strictEqual(runs, 1)
            assert.strictEqual(counted(server, "pay"), 1)
            assert.strictEqual(counted(server, "confirm"), 1)
          })))
    }

    it.live("is not replaced after a list for which it has waited together with others", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          const asked = yield* Latch.make()
          const answers: Array<() => void> = []
          server.on("tools/list", (response, message) => {
            answers.push(() => Scripted.reply(response, message, { tools: [] }))
            asked.openUnsafe()
          })
          const other = yield* Effect.forkChild(Sessions.withSession(alice, (session) => session.listTools()))
          yield* asked.await
          let runs = 0
          const error = yield* Effect.flip(Sessions.withSession(alice, (session) => {
            runs++
            const joined = Effect.tap(Effect.sleep("20 millis"), () => Effect.sync(() => answers[0]!()))
            return Effect.andThen(
              Effect.all([session.listTools(), joined], { concurrency: 2 }),
              tool(session, "confirm")
            )
          }))
          yield* Fiber.join(other)
          assert.isTrue(McpSession.isSessionExpired(error as McpSessionError))
          assert.strictEqual(runs, 1)
          assert.strictEqual(counted(server, "tools/list"), 1)
        })))

    const inner: ReadonlyArray<
      readonly [string, (pay: Pay, server: Scripted.Scripted) => Effect.Effect<unknown, unknown, Sessions>]
    > = [
      ["withSession", (pay, server) => Sessions.withSession(bob, (session) => pay(session, server))],
      ["get", (pay, server) => Effect.scoped(Effect.flatMap(Sessions.get(bob), (session) => pay(session, server)))]
    ]
    for (const [how, on] of inner) {
      for (const [what, pay] of ways) {
        it.live(`is not replaced after ${what} on a session that was leased within, by ${how}`, () =>
          used(connector, (server) =>
            Effect.gen(function*() {
              yield* Sessions.withSession(bob, (session) => tool(session, "before"))
              let runs = 0
              const error = yield* Effect.flip(Sessions.withSession(alice, (session) => {
                runs++
                return Effect.andThen(on(pay, server), tool(session, "confirm"))
              }))
              assert.isTrue(McpSession.isSessionExpired(error))
              assert.strictEqual(runs, 1)
            })))
      }
    }

    it.live("is not replaced because of what another session's server has forgotten", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          const other = yield* Scripted.start()
          other.on("pay", once(Scripted.forgotten))
          const session = yield* connector.http({ url: other.url })(alice, {
            retire: () => Effect.void,
            credentials: Effect.succeedNone
          })
          let runs = 0
          const error = yield* Effect.flip(Sessions.withSession(alice, () => {
            runs++
            return tool(session, "pay")
          }))
          assert.isTrue(McpSession.isSessionExpired(error))
          assert.strictEqual(runs, 1)
          assert.deepStrictEqual([server.received, other.received], [["before"], ["pay"]])
        })))

    it.live("is retired, whoever sent the request that was refused", () =>
      used(connector, (server) =>
        Effect.gen(function*() {
          yield* Sessions.withSession(alice, (session) =>
            Effect.ignore(Effect.tryPromise(() => clientOf(session).callTool({ name: "confirm" }))))
          assert.strictEqual((yield* Sessions.stats).retirements, 1)
          assert.deepStrictEqual(server.received, ["before", "confirm"])
        })))
  })
}

describe("a pool of sessions of another type", () => {
  it.effect("does not look into them, and repeats nothing", () =>
    Effect.gen(function*() {
      class Theirs extends SessionPool.Tag<Theirs, object, { readonly _tag: string }>()("test/Theirs") {}
      const looked: Array<PropertyKey> = []
      const session = new Proxy({ accepted: 0 }, {
        get: (target, key) => {
          looked.push(key)
          return Reflect.get(target, key)
        }
      })
      let runs = 0
      yield* Effect.gen(function*() {
        yield* Theirs.withSession(alice, () => Effect.void)
        yield* Effect.flip(Theirs.withSession(alice, () => {
          runs++
          return Effect.fail({ _tag: "McpSessionError", reason: { _tag: "SessionExpired" } })
        }))
      }).pipe(Effect.provide(Theirs.layer({ connect: () => Effect.succeed(session) })))
      assert.strictEqual(runs, 1)
      assert.deepStrictEqual(looked, [])
    }))
})
