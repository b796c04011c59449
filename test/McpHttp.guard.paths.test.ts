/**
 * Whatever the router, the paths and the request: nobody unknown is answered by the server behind a guard.
 */
import { assert, describe, it } from "@effect/vitest"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import type * as FindMyWay from "effect/http/FindMyWay"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { inside, type InsideLog, makeInsideLog, modern, openGuarded } from "./support/guarded.ts"
import { many, underLoad } from "./support/load.ts"
import { makeLog, makeServer, socket } from "./support/mcpHttp.ts"
import { write } from "./support/rawHttp.ts"
import { call, initialize } from "./support/requests.ts"
import { type Dice, makeDice } from "./support/world.ts"

interface Setup {
  readonly server: HttpRouter.PathInput
  readonly guard: HttpRouter.PathInput
  readonly prefix?: string | undefined
  readonly config?: Partial<FindMyWay.RouterConfig> | undefined
  /** What else is in the app. */
  readonly others?: Layer.Layer<never, never, HttpRouter.HttpRouter> | undefined
}

interface App {
  readonly log: InsideLog
  /** How many requests the routes of the server inside have got. */
  readonly reached: () => number
  readonly logged: Array<string>
  /** Makes a request of any target, which a WHATWG URL would tidy up. */
  readonly request: (
    target: string,
    init?: RequestInit
  ) => Promise<{ status: number; session: string | null; text: string }>
}

const prefixed = (prefix: string) =>
  Layer.effect(HttpRouter.HttpRouter, Effect.map(HttpRouter.HttpRouter, (router) => router.prefixed(prefix)))

/** Dies as the app does, if that does not build. */
const build = (setup: Setup) =>
  Effect.gen(function*() {
    const log = makeInsideLog()
    const logged: Array<string> = []
    let reached = 0
    const counting = HttpRouter.middleware((handler) =>
      Effect.andThen(Effect.sync(() => void reached++), handler)
    ).layer
    const server = Layer.provide(inside(log, { path: setup.server }), counting)
    const { dispose, handler } = HttpRouter.toWebHandler(
      Layer.mergeAll(
        McpHttp.guard({ path: setup.guard }),
        setup.prefix === undefined ? server : Layer.provide(server, prefixed(setup.prefix)),
        setup.others ?? Layer.empty
      ).pipe(
        Layer.provide(IdentityResolver.layer({ mode: "required" })),
        Layer.provideMerge(Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))]))
      ),
      {
        disableLogger: true,
        ...(setup.config === undefined ? {} : { routerConfig: setup.config }),
        middleware: (app) =>
          Effect.updateService(
            app,
            HttpServerRequest.HttpServerRequest,
            (request) => request.modify({ url: decodeURIComponent(request.headers["x-target"] ?? "/") })
          )
      }
    )
    yield* Effect.addFinalizer(() => Effect.promise(() => dispose().catch(() => undefined)))
    const app: App = {
      log,
      logged,
      reached: () => reached,
      request: async (target, init) => {
        const response = await handler(
          new Request("http://localhost/", {
            ...init,
            headers: { ...mcp, "x-target": encodeURIComponent(target), ...init?.headers }
          })
        )
        return { status: response.status, session: response.headers.get("mcp-session-id"), text: await response.text() }
      }
    }
    yield* Effect.tryPromise({ try: () => app.request("/"), catch: (error) => error })
    return app
  })

const mcp = { accept: "application/json, text/event-stream", "content-type": "application/json" }

const modernHeaders = { "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "echo" }

const messages: ReadonlyArray<RequestInit> = [
  { method: "POST", body: JSON.stringify(initialize) },
  { method: "POST", body: JSON.stringify(modern("echo", { message: "hi" })), headers: modernHeaders },
  { method: "POST", body: JSON.stringify(call("echo", { message: "hi" })), headers: { "mcp-session-id": "x" } }
]

/** Sends a session's beginning and a call without one. */
const expectRefused = (app: App, target: string) =>
  Effect.forEach(
    messages,
    (message) =>
      Effect.map(Effect.promise(() => app.request(target, message)), ({ session, status, text }) => {
        assert.include([400, 401, 403, 404, 405, 503], status, target)
        assert.isNull(session, target)
        assert.notInclude(text, "\"result\"", target)
        assert.strictEqual(app.log.called, 0, target)
      }),
    { discard: true }
  )

/** An endpoint of McpHttp's own, for everybody. */
const forEverybody = (path: `/${string}`) =>
  McpHttp.layer({ path, server: makeServer(makeLog()) }).pipe(
    Layer.provide(IdentityResolver.layer({ mode: "disabled" })),
    Layer.orDie
  )

const alice = { authorization: "Bearer alice" }

describe("McpHttp.guard, by whatever path", () => {
  for (
    const setup of [
      { server: "/mcp", guard: "/mpc" },
      { server: "/mcp", guard: "/mcp", prefix: "/api" },
      { server: "/mcp", guard: "/mcp/*" },
      { server: "/mcp", guard: "/api/mcp" }
    ] satisfies ReadonlyArray<Setup>
  ) {
    it.live(`a guard of ${setup.guard} does not build where there is ${setup.prefix ?? ""}${setup.server}`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(build(setup))
        assert.include(String(error), "InvalidOptions: McpHttp.guard: option \"path\"")
        assert.include(String(error), setup.guard)
      }))
  }

  for (
    const [target, setup] of [
      ["/mcp", { server: "/mcp/*", guard: "/mcp/*" }],
      ["/mcp/x/y", { server: "/mcp/*", guard: "/mcp/*" }],
      ["/api/mcp", { server: "/mcp", guard: "/api/mcp", prefix: "/api" }],
      [`/${"x".repeat(400)}/mcp`, { server: "/:tenant/mcp", guard: "/:tenant/mcp", config: { maxParamLength: 1_000 } }],
      ["/MCP", { server: "/mcp", guard: "/mcp" }],
      ["/MCP", { server: "/MCP", guard: "/MCP", config: { caseSensitive: true } }],
      ["/mcp/", { server: "/mcp", guard: "/mcp" }],
      ["//mcp", { server: "/mcp", guard: "/mcp" }],
      ["/%6dcp", { server: "/mcp", guard: "/mcp" }],
      ["/mcp;a=b", { server: "/mcp", guard: "/mcp" }],
      ["/mcp?a=b", { server: "/mcp", guard: "/mcp" }],
      ["/mcp#a", { server: "/mcp", guard: "/mcp" }],
      ["http://localhost/mcp", { server: "/mcp", guard: "/mcp" }],
      ["/7", { server: "/:id(\\d+)", guard: "/:id(\\d+)" }]
    ] satisfies ReadonlyArray<readonly [string, Setup]>
  ) {
    it.live(`${target.slice(0, 40)} is guarded where there is ${setup.server}`, () =>
      Effect.gen(function*() {
        const app = yield* build(setup)
        const before = app.reached()
        yield* expectRefused(app, target)
        for (const method of ["GET", "DELETE", "PUT", "PATCH", "OPTIONS"]) {
          const { status } = yield* Effect.promise(() => app.request(target, { method }))
          assert.include([401, 405], status, method)
        }
        assert.strictEqual(app.reached(), before)
        const response = yield* Effect.promise(() => app.request(target, { ...messages[0], headers: alice }))
        assert.strictEqual(response.status, 200)
        assert.match(response.session ?? "", /^[A-Za-z0-9_-]{32}$/)
      }))
  }

  for (
    const [target, setup] of [
      ["/globex/mcp", { server: "/:tenant/mcp", guard: "/acme/mcp" }],
      ["/b/c", { server: "/*", guard: "/mcp" }],
      ["/mcp/y", { server: "/mcp/*", guard: "/mcp" }]
    ] satisfies ReadonlyArray<readonly [string, Setup]>
  ) {
    it.live(`${target} is refused where there is ${setup.server}, and ${setup.guard} is guarded`, () =>
      Effect.gen(function*() {
        const app = yield* build(setup)
        for (const headers of [{}, alice]) {
          for (const message of messages) {
            const request = { ...message, headers: { ...message.headers, ...headers } }
            const { session, status } = yield* Effect.promise(() => app.request(target, request))
            assert.strictEqual(status, 503)
            assert.isNull(session)
          }
        }
        assert.strictEqual(app.log.called, 0)
        assert.strictEqual(app.logged.length, 1)
        assert.include(app.logged[0], setup.guard)
        assert.include(app.logged[0], "was refused")
        const response = yield* Effect.promise(() => app.request(setup.guard, { ...messages[0], headers: alice }))
        assert.strictEqual(response.status, 200)
      }))
  }

  it.live("what can't be found out at the build is refused at each request", () =>
    Effect.gen(function*() {
      // It waits, and so would the build
      const others = HttpRouter.middleware((handler) => Effect.andThen(Effect.sleep(1), handler), { global: true })
      const app = yield* build({ server: "/mcp", guard: "/mpc", others })
      yield* expectRefused(app, "/mcp")
      assert.strictEqual((yield* Effect.promise(() => app.request("/mcp", messages[0]))).status, 503)
    }))

  it.live("the rest of the app is left alone: its routes, their bodies, and other endpoints of McpHttp", () =>
    Effect.gen(function*() {
      const others = Layer.mergeAll(
        HttpRouter.add("GET", "/health", HttpServerResponse.text("well")),
        HttpRouter.add(
          "POST",
          "/upper",
          (request) => Effect.orDie(Effect.map(request.text, (text) => HttpServerResponse.text(text.toUpperCase())))
        ),
        forEverybody("/public"),
        Layer.provide(forEverybody("/public"), prefixed("/api"))
      )
      const app = yield* build({ server: "/mcp", guard: "/mcp", others })
      assert.strictEqual((yield* Effect.promise(() => app.request("/health"))).text, "well")
      const upper = { method: "POST", body: "abc", headers: { accept: "*/*", "content-type": "application/json" } }
      assert.strictEqual((yield* Effect.promise(() => app.request("/upper", upper))).text, "ABC")
      for (const path of ["/public", "/api/public"]) {
        const { session, status } = yield* Effect.promise(() => app.request(path, messages[0]))
        assert.strictEqual(status, 200)
        assert.match(session ?? "", /^[A-Za-z0-9_-]{32}$/)
      }
      assert.deepStrictEqual(app.logged, [])
    }))

  it.live("never is anybody unknown answered by the server inside, whatever is asked", () =>
    Effect.gen(function*() {
      const seeds = many(14, 600)
      const counts = { built: 0, refused: 0, served: 0 }
      for (let seed = 0; seed < seeds; seed++) {
        const dice = makeDice(seed)
        const setup = randomSetup(dice)
        const built = yield* Effect.exit(build(setup))
        if (built._tag === "Failure") {
          assert.include(String(built.cause), "InvalidOptions", JSON.stringify(setup))
          counts.refused++
          continue
        }
        counts.built++
        const app = built.value
        const root = `${setup.prefix ?? ""}${setup.server}`
        for (let i = 0; i < 20; i++) {
          const target = randomTarget(dice, root)
          const message = dice.pick(messages)
          const text = `seed ${seed}: ${JSON.stringify({ setup, target })}`
          const stranger = yield* Effect.promise(() => app.request(target, message))
          assert.isNull(stranger.session, text)
          assert.notInclude(stranger.text, "\"result\"", text)
          assert.include([400, 401, 403, 404, 405, 503], stranger.status, text)
          assert.strictEqual(app.log.called, 0, text)
          const before = app.reached()
          const method = dice.pick(["GET", "DELETE", "PUT", "OPTIONS"])
          const { status } = yield* Effect.promise(() => app.request(target, { method }))
          // Of what it does not guard, it can't know whose it is. That has no effect there.
          assert.isTrue(status !== 200 && (app.reached() === before || status === 405 || status === 400), text)
        }
        const known = { ...messages[0], headers: alice }
        const { session } = yield* Effect.promise(() => app.request(pathOf(dice, root), known))
        if (session !== null) {
          assert.match(session, /^[A-Za-z0-9_-]{32}$/)
          counts.served++
        }
      }
      assert.isAbove(counts.built, seeds / 3)
      assert.isAbove(counts.refused, seeds / 12)
      assert.isAbove(counts.served, seeds / 6)
    }).pipe(Effect.scoped), underLoad)

  it.live("over a socket, with any target", () =>
    Effect.gen(function*() {
      const endpoint = yield* openGuarded(socket, {}, IdentityResolver.layer({ mode: "required" }))
      const body = JSON.stringify(initialize)
      for (
        const target of [
          "/mcp",
          "//mcp",
          "/mcp/",
          "/./mcp",
          "/x/../mcp",
          "/%6Dcp",
          "/mcp%2f",
          "/mcp;x",
          "/mcp?",
          "http://localhost/mcp",
          "http://evil.example/mcp",
          "HTTP://localhost/mcp",
          "http://user:password@localhost/mcp",
          "http:///mcp",
          "mcp",
          "*",
          `/mcp?${"x".repeat(12_000)}`
        ]
      ) {
        const said = yield* write(
          endpoint,
          `POST ${target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: ${mcp.accept}\r\n` +
            `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
        )
        assert.include([400, 401, 403, 404], said.status, target)
        assert.notInclude(said.body, "\"result\"", target)
      }
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))
})

// -----------------------------------------------------------------------------
// Random apps and targets
// -----------------------------------------------------------------------------

const paths: ReadonlyArray<HttpRouter.PathInput> = [
  "/mcp",
  "/MCP",
  "/mcp/",
  "/mcp/*",
  "/*",
  "/:tenant/mcp",
  "/mcp/:tenant",
  "/mcp/:tenant?",
  "/:name",
  "/a-:b",
  "/a/:b.mcp",
  "/:id(\\d+)/mcp",
  "/a//mcp"
]

const randomSetup = (dice: Dice): Setup => {
  const server = dice.pick(paths)
  const prefix = dice.chance(0.3) ? dice.pick(["/api", "/api/v1", "/:version"]) : undefined
  const whole = `${prefix ?? ""}${server}` as HttpRouter.PathInput
  return {
    server,
    prefix,
    guard: dice.chance(0.6) ? whole : dice.chance(0.5) ? server : dice.pick(paths),
    config: {
      caseSensitive: dice.chance(0.3),
      ignoreTrailingSlash: dice.chance(0.7),
      ignoreDuplicateSlashes: dice.chance(0.7),
      maxParamLength: dice.pick([3, 100, 5_000])
    }
  }
}

/** A path that a route for `pattern` may take. */
const pathOf = (dice: Dice, pattern: string): string =>
  pattern
    .replace(/:[a-z]+\(\\d\+\)/g, "42")
    .replace(/:[a-z]+\??/g, () => dice.pick(["x", "acme", "%61cme", "A", "42", "y".repeat(150)]))
    .replace("*", () => dice.pick(["", "x", "x/y", "mcp"]))

const randomTarget = (dice: Dice, pattern: string): string => {
  let path = pathOf(dice, pattern)
  for (let i = dice.below(3); i > 0; i--) path = dice.pick(mutations)(path, dice)
  return path
}

const mutations: ReadonlyArray<(path: string, dice: Dice) => string> = [
  (path) => path.toUpperCase(),
  (path, dice) => path.replace(/[a-z]/gi, (char) => dice.chance(0.3) ? `%${char.charCodeAt(0).toString(16)}` : char),
  (path, dice) => path.replace(/[a-z]/gi, (char) => dice.chance(0.3) ? `%25${char.charCodeAt(0).toString(16)}` : char),
  (path) => path.replaceAll("/", "//"),
  (path) => path.replace(/(?!^)\//, "%2f"),
  (path) => `${path}/`,
  (path) => `${path}//`,
  (path) => `/.${path}`,
  (path) => `/x/..${path}`,
  (path) => `${path}/..`,
  (path) => `${path};x=y`,
  (path) => `${path}?x=/mcp`,
  (path) => `${path}#x`,
  (path) => `${path}%00`,
  (path) => `${path}%zz`,
  (path) => `http://localhost${path}`,
  (path) => `https://evil.example${path}`,
  (path) => `//evil.example${path}`,
  (path) => path.slice(1),
  (path) => path.replace(/[a-z]+/, (name) => name.repeat(300)),
  (path) => `\\${path}`,
  (path) => ` ${path}`,
  (path) => `${path}\u{130}`
]
