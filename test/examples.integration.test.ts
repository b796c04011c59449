/**
 * Each example runs, says what it is there to say, and leaves no process behind.
 */
import { assert, describe, inject, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { delimiter, join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import packageJson from "../package.json" with { type: "json" }
import { bundle } from "./support/bundle.ts"
import { underLoad } from "./support/load.ts"
import { isAlive, survivors } from "./support/processes.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

// What the output of each must have, in this order
const examples: { readonly [file: string]: ReadonlyArray<RegExp> } = {
  "quickstart.ts": [
    /^alice +Opened$/m,
    /^alice +was answered by child \d+ \(reused\)$/m,
    /^\w+ +closed: evicted, /m,
    /^\w+ +closed: expired, /m,
    /^\w+ +closed: shutdown, /m,
    /^4 children were started, 0 are left$/m
  ],
  "fastify.ts": [/^200 .*Echo: hello/m, /^401 .*MalformedCredentials/m],
  "express.ts": [/^200 .*Echo: hello/m, /^401 .*MalformedCredentials/m],
  "gateway.ts": [
    /^alice .*Echo: one/m,
    /^alice .*Echo: two/m,
    /^bob .*Echo: three/m,
    /^3 conversations, 2 upstream servers$/m,
    /^0 conversations when their clients have left$/m,
    /^401 for nobody$/m
  ],
  "resilience.ts": [
    /^alice: .*Echo: hello/m,
    /^bob, of a server that is down: Unreachable$/m,
    /^bob, at an open circuit: CircuitOpen$/m,
    /^bob, beyond the limit: RateLimitExceeded$/m
  ],
  "consent.ts": [
    /^asked: "mail" wants your consent/m,
    /^in the browser: Thank you/m,
    /^alice .*no mail today/m,
    /^alice .*no mail today/m,
    /^asked: "mail" wants your consent/m,
    /^bob .*no mail today/m
  ],
  "cluster/main.ts": [
    /^ {2}alice asked replica 1: 200, from the session at replica \d$/m,
    /^ {2}(?:alice|bob) has a session at replica \d$/m,
    /^replica \d is stopped, as in a deploy$/m,
    // Whatever was in flight is finished, and whoever comes then waits for the next owner
    /^ {2}alice saw \d+ × 200, and has a session at replica \d after/m,
    /^replica \d is killed$/m,
    /^ {2}bob saw .*, and has a session at replica \d after/m,
    /^All replicas have ended$/m
  ],
  "metrics.ts": [
    /^# TYPE mcp_pool_sessions gauge$/m,
    /^mcp_pool_retirements_total\{.*upstream="weather",reason="evicted"\} 1$/m
  ]
}

const proc = (pid: number, file: string): string => {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8")
  } catch {
    return ""
  }
}

/**
 * The living processes that `marker` was in the PATH of when they started. A child gets the PATH of its parent, and
 * keeps it when its parent is gone: this finds them also when they are nobody's descendants any more.
 */
const marked = (marker: string): ReadonlyArray<number> =>
  readdirSync("/proc").map(Number).filter((pid) => proc(pid, "environ").includes(marker) && isAlive(pid))

const isFirst = (file: string): boolean => packageJson.scripts.start === `tsx examples/${file}`

// As README says
const commandOf = (file: string): readonly [command: string, ...args: ReadonlyArray<string>] =>
  isFirst(file) ? ["npm", "start", "--silent"] : [process.execPath, "--import", "tsx", join("examples", file)]

const externals = ["@modelcontextprotocol/*", "libsql", "express", "fastify", "undici", "ws"]

/** The path of what `edit` makes of one that is bundled. */
const edited = (file: string, edit: (code: string) => string) =>
  Effect.promise(async () => {
    const [path] = await bundle(inject("bundles"), [join(root, "examples", file)], externals)
    writeFileSync(path, edit(readFileSync(path, "utf8")))
    return path
  })

/** Runs a program to its end, within a minute. */
const run = Effect.fnUntraced(function*(command: string, ...args: ReadonlyArray<string>) {
  const marker = `/nowhere/${crypto.randomUUID()}`
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(command, args, {
        cwd: root,
        env: { ...process.env, PATH: `${process.env["PATH"]}${delimiter}${marker}` }
      })
    ),
    (started) => Effect.sync(() => started.kill("SIGKILL"))
  )
  let stdout = ""
  let stderr = ""
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => stdout += chunk)
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => stderr += chunk)
  const closed = once(child, "close")
  const servers = new Set<number>()
  while (true) {
    const ended = yield* Effect.promise(() => Promise.race([closed, sleep(200)]))
    if (ended !== undefined) {
      return { code: child.exitCode, stdout, stderr, servers, left: yield* survivors(marked(marker), 1_000) }
    }
    for (const pid of marked(marker)) {
      if (proc(pid, "cmdline").includes("server-everything")) servers.add(pid)
    }
  }
}, Effect.timeout("1 minute"))

// Each has a marker of its own, and most of its time is that of starting processes
describe("examples", { concurrent: true }, () => {
  it("are all tested, and `npm start` runs one of them", () => {
    const files = readdirSync(join(root, "examples"), { recursive: true, encoding: "utf8" }).filter((name) =>
      name.endsWith(".ts")
    )
    assert.sameMembers(files, Object.keys(examples))
    assert.include(files.map((file) => `tsx examples/${file}`), packageJson.scripts.start)
  })

  // `npm run load` runs all of them, as README says; `npm test` the first, bundled, which takes half of the time
  const now = Object.entries(examples).filter(([file]) => isFirst(file) || inject("load"))
  const { quickstart } = inject("programs")
  describe.each(now)("%s", (file, lines) => {
    it.live("runs, and ends by itself with nothing left", () =>
      Effect.gen(function*() {
        const { code, left, servers, stderr, stdout } = yield* run(
          ...inject("load") ? commandOf(file) : [process.execPath, quickstart] as const
        )
        assert.strictEqual(code, 0, stderr)
        assert.strictEqual(stderr, "")
        let rest = stdout
        for (const line of lines) {
          const found = line.exec(rest)
          assert.isNotNull(found, `${line} is not in the rest of the output:\n${rest}`)
          rest = rest.slice(found.index + found[0].length)
        }
        // The upstream of consent.ts is in its own process
        if (file !== "consent.ts") {
          assert.isAtLeast(servers.size, 1, "no MCP server was seen: one that stays would not be either")
        }
        assert.deepStrictEqual(left, [])
      }), underLoad)
  })

  describe.each(inject("load") ? ["fastify.ts", "express.ts"] : [])("%s", (file) => {
    it.live("does not start with an option that means nothing", () =>
      Effect.gen(function*() {
        const { code, stderr, stdout } = yield* run(
          process.execPath,
          yield* edited(file, (source) => source.replace(/capacity: ?100/, "capacity: 0"))
        )
        assert.strictEqual(code, 1)
        assert.include(stderr, "InvalidOptions: SessionPool.layer: option \"capacity\"")
        assert.strictEqual(stdout, "")
      }), underLoad)
  })
})
