/**
 * Clients in web pages, in a browser: `npm run test:browser`.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import { CallToolRequestSchema, ListToolsRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import { IdentityResolver } from "effect-mcp-sessions/IdentityResolver"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { build } from "esbuild"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { type BrowserContext, chromium, type Page as Tab } from "playwright-core"
import { afterAll, beforeAll } from "vitest"
import { openGuarded } from "./support/guarded.ts"
import { type Endpoint, socket } from "./support/mcpHttp.ts"
import type { Page } from "./support/page.ts"
import { call, initialize } from "./support/requests.ts"

const executablePath = process.env["CHROMIUM"] ?? "/usr/bin/chromium"

// Chromium has a sandbox of its own, which root and most containers can't have
const flags = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // Two sites of this machine's
  "--host-resolver-rules=MAP app.example 127.0.0.1,MAP evil.example 127.0.0.1"
]

const profile = mkdtempSync(join(tmpdir(), "mcp-browser-"))
let browser: BrowserContext
let port = 0
const pages = createServer((request, response) => {
  const isScript = request.url === "/page.js"
  response.setHeader("content-type", isScript ? "text/javascript" : "text/html")
  response.end(isScript ? script : "<!doctype html><script type=\"module\" src=\"/page.js\"></script>")
})
let script = ""

beforeAll(async () => {
  const entry = fileURLToPath(new URL("support/page.ts", import.meta.url))
  const bundle = await build({ entryPoints: [entry], bundle: true, write: false, format: "esm", platform: "browser" })
  script = bundle.outputFiles[0]!.text
  await new Promise<void>((resolve) => pages.listen(0, "127.0.0.1", resolve))
  const address = pages.address()
  port = typeof address === "object" && address !== null ? address.port : 0
  browser = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: flags })
})

afterAll(async () => {
  await browser.close()
  pages.closeAllConnections()
  await new Promise((resolve) => pages.close(resolve))
  rmSync(profile, { recursive: true, force: true })
})

const originOf = (site: string) => `http://${site}.example:${port}`

/** A page of a site, as the functions that it has. */
const visit = (site: "app" | "evil") =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(async () => {
        const tab = await browser.newPage()
        await tab.goto(originOf(site))
        await tab.waitForFunction("globalThis.page !== undefined")
        return tab
      }),
      (tab) => Effect.promise(() => tab.close())
    ),
    (tab) =>
    <Name extends keyof Page>(
      name: Name,
      ...args: Parameters<Page[Name]>
    ): Effect.Effect<Awaited<ReturnType<Page[Name]>>, unknown> =>
      Effect.tryPromise({ try: () => run<Awaited<ReturnType<Page[Name]>>>(tab, name, args), catch: (error) => error })
  )

const run = <A>(tab: Tab, name: string, args: ReadonlyArray<unknown>): Promise<A> =>
  tab.evaluate<A>(`globalThis.page[${JSON.stringify(name)}](...${JSON.stringify(args)})`)

// Its tools: `echo`, and `slow`, which tells how far it is before it answers
const makeServer = () =>
  Effect.sync(() => {
    const server = new Server({ name: "test", version: "1.0.0" }, { capabilities: { tools: {} } })
    server.setRequestHandler(ListToolsRequestSchema, () => ({
      tools: ["echo", "slow"].map((name) => ({ name, inputSchema: { type: "object" as const } }))
    }))
    server.setRequestHandler(CallToolRequestSchema, async ({ params }, { _meta, sendNotification }) => {
      const progressToken = _meta?.progressToken
      if (params.name === "slow" && progressToken !== undefined) {
        await sendNotification({ method: "notifications/progress", params: { progressToken, progress: 1 } })
      }
      return { content: [{ type: "text", text: String(params.arguments?.["message"]) }] }
    })
    return server
  })

const required = () => IdentityResolver.layer({ mode: "required" })

const options = () => ({ allowedOrigins: [originOf("app")], maxBodyBytes: 10_000 })

const json = { accept: "application/json, text/event-stream", "content-type": "application/json" }

const suite = (open: () => ReturnType<typeof socket>) => {
  it.live.each(["v1", "v2"] as const)(
    "a client of %s has its session, its progress, and an end",
    (generation) =>
      Effect.gen(function*() {
        const endpoint = yield* open()
        const page = yield* visit("app")
        const id = yield* page("begin", endpoint.url, "alice", generation)
        assert.deepStrictEqual((yield* endpoint.registry.entries).map((entry) => entry.id), [id])
        assert.include((yield* page("call", "echo", { message: "from a page" })).text, "from a page")
        assert.strictEqual((yield* page("call", "slow", {})).steps, 1)
        yield* page("end")
        assert.strictEqual(yield* endpoint.registry.size, 0)
      })
  )

  it.live("a page can read why it is refused: 401, 404 and the others", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const page = yield* visit("app")
      const id = yield* page("begin", endpoint.url, "alice", "v1")
      yield* endpoint.registry.clear
      const failure = yield* Effect.flip(page("call", "echo", { message: "hi" }))
      assert.include(String(failure), "Session not found")
      const alice = { ...json, authorization: "Bearer alice" }
      const read = (init: RequestInit) => page("read", endpoint.url, init)
      const body = JSON.stringify(call("echo"))
      const known = { ...alice, "mcp-session-id": id, "mcp-protocol-version": "2025-11-25" }
      const gone = yield* read({ method: "POST", headers: known, body })
      assert.strictEqual(gone.status, 404)
      assert.include(gone.text, "Session not found")
      const stranger = yield* read({ method: "POST", headers: json, body: JSON.stringify(initialize) })
      assert.strictEqual(stranger.status, 401)
      assert.include(stranger.headers["www-authenticate"], "Bearer")
      const large = yield* read({ method: "POST", headers: alice, body: JSON.stringify("x".repeat(20_000)) })
      assert.strictEqual(large.status, 413)
      assert.strictEqual((yield* read({ method: "PUT", headers: alice })).status, "TypeError: Failed to fetch")
      const begun = yield* read({ method: "POST", headers: alice, body: JSON.stringify(initialize) })
      assert.strictEqual(begun.status, 200)
      assert.isString(begun.headers["mcp-session-id"])
    }))

  it.live("a page of any other origin gets nothing, and begins nothing", () =>
    Effect.gen(function*() {
      const endpoint = yield* open()
      const page = yield* visit("evil")
      assert.include(String(yield* Effect.flip(page("begin", endpoint.url, "alice", "v1"))), "Failed to fetch")
      for (
        const init of [
          { method: "POST", headers: json, body: JSON.stringify(initialize) },
          // What needs no preflight
          { method: "POST", headers: { accept: json.accept, "content-type": "text/plain" }, body: "{}" },
          { method: "GET" },
          { method: "DELETE" }
        ]
      ) {
        assert.strictEqual((yield* page("read", endpoint.url, init)).status, "TypeError: Failed to fetch")
      }
      assert.strictEqual(yield* endpoint.registry.size, 0)
    }))
}

describe("a web page", () => {
  describe("and McpHttp.layer", () =>
    suite(() => socket(McpHttp.layer({ server: makeServer, ...options() }), required())))

  describe("and McpHttp.guard", () =>
    suite(
      (): Effect.Effect<Endpoint, never, Effect.Services<ReturnType<typeof socket>>> =>
        Effect.map(
          openGuarded(socket, options(), required(), { allowedOrigins: [originOf("app")] }),
          (endpoint) => {
            endpoint.log.release = Effect.void
            return endpoint
          }
        )
    ))
})
