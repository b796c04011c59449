/**
 * The walls of the house: which file of `src` may import which. ARCHITECTURE.md shows the same table to a reader.
 *
 * A new file gets its place here before it gets anything else.
 */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { dirname, join, normalize } from "node:path"
import { fileURLToPath } from "node:url"
import * as Compiler from "./support/compiler.ts"

/** From the top down: a module imports modules of its own row and of rows below it. */
const rows: ReadonlyArray<ReadonlyArray<string>> = [
  ["index"],
  ["McpHttp", "McpServers", "McpServersV2", "SessionCluster"],
  ["ClusterNode", "McpHttpOptions"],
  ["McpConnector", "McpConnectorV2", "McpSession", "SessionPool", "SessionRegistry"],
  ["ClusterMembership", "Connector", "IdentityResolver", "Session", "SessionClusterError"],
  [
    "Authorization",
    "Consent",
    "Identity",
    "InvalidOptions",
    "McpServersError",
    "McpSessionError",
    "Metrics",
    "SessionPoolError",
    "SessionRegistryError",
    "TokenOptions",
    "TokenStore"
  ]
]

/** The rooms of `src/internal`, and the modules that may enter. `internal/*.ts` itself is everybody's. */
const rooms: Readonly<Record<string, ReadonlyArray<string>>> = {
  lease: ["SessionPool", "SessionRegistry"],
  client: ["McpConnector", "McpConnectorV2", "McpServers", "McpServersV2", "McpSession"],
  oauth: ["McpConnector", "McpConnectorV2"],
  host: ["McpHttp"],
  tokens: ["IdentityResolver"],
  cluster: ["ClusterNode", "SessionCluster"]
}

/** What some may not know, whatever their row. */
const sdk = /^@modelcontextprotocol\//
const http = /^effect\/http(?:\/|$)/
const ignorant: Readonly<Record<string, ReadonlyArray<RegExp>>> = {
  "internal/lease/": [sdk, http],
  "SessionPool.ts": [sdk, http],
  "SessionRegistry.ts": [sdk, http],
  "SessionPoolError.ts": [sdk],
  "SessionRegistryError.ts": [sdk]
}

const root = fileURLToPath(new URL("..", import.meta.url))
const src = join(root, "src")

interface Arrow {
  readonly from: string
  /** A file of `src`, or what a package is imported by. */
  readonly to: string
  readonly erased: boolean
}

class House extends Context.Service<House, {
  readonly files: ReadonlyArray<string>
  readonly arrows: ReadonlyArray<Arrow>
}>()("test/House") {
  static readonly layer = Layer.effect(
    House,
    Effect.gen(function*() {
      const files = readdirSync(src, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"))
      const project = yield* Compiler.parse(files.map((file) => join(src, file)))
      const arrows = files.flatMap((file) =>
        Compiler.importsOf(project, join(src, file)).map(({ erased, from }): Arrow => ({
          from: file,
          to: from.startsWith(".") ? normalize(join(dirname(file), from)) : from,
          erased
        }))
      )
      return { files, arrows }
    }).pipe(Effect.scoped)
  )
}

const show = ({ from, to }: Arrow) => `${from} → ${to}`

const isPublic = (file: string) => !file.startsWith("internal/")
const moduleOf = (file: string) => file.replace(/\.ts$/, "")
const roomOf = (file: string) => /^internal\/(\w+)\//.exec(file)?.[1]
const rowOf = (module: string) => rows.findIndex((row) => row.includes(module))

/** The row whose modules, and those below it, a file may import. Its own row too, if it is a public module itself. */
const reach = (file: string): number => {
  if (isPublic(file)) return rowOf(moduleOf(file))
  const room = roomOf(file)
  // A room is below each of its owners. What is everybody's is below everybody who has one: it knows the last row
  // alone.
  return room === undefined ? rows.length - 1 : Math.max(...rooms[room]!.map(rowOf)) + 1
}

/** The files of a circle, or none. */
const circle = (arrows: ReadonlyArray<Arrow>): ReadonlyArray<string> => {
  const done = new Set<string>()
  const visit = (file: string, path: ReadonlyArray<string>): ReadonlyArray<string> => {
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file]
    if (done.has(file)) return []
    for (const arrow of arrows) {
      if (arrow.from !== file) continue
      const found = visit(arrow.to, [...path, file])
      if (found.length > 0) return found
    }
    done.add(file)
    return []
  }
  for (const { from } of arrows) {
    const found = visit(from, [])
    if (found.length > 0) return found
  }
  return []
}

layer(House.layer, { excludeTestServices: true })("the house", (it) => {
  it.effect("has a place for each file, and a file for each place", () =>
    Effect.gen(function*() {
      const { files } = yield* House
      assert.sameMembers(files.filter(isPublic).map(moduleOf), rows.flat())
      const entered = new Set(files.flatMap((file) => roomOf(file) ?? []))
      assert.sameMembers([...entered], Object.keys(rooms))
      assert.deepStrictEqual(Object.values(rooms).flat().filter((owner) => rowOf(owner) === -1), [])
    }))

  it.effect("is drawn in ARCHITECTURE.md as it is", () =>
    Effect.sync(() => {
      const lines = readFileSync(join(root, "ARCHITECTURE.md"), "utf8").split("\n")
      const first = lines.indexOf(rows[0]!.join("  "))
      assert.deepStrictEqual(lines.slice(first, lines.indexOf("```", first)), rows.map((row) => row.join("  ")))
      // | `room` | `Owner`, `Owner` | … |
      const cells = lines.flatMap((line) => Array.from(line.matchAll(/^\| `(\w+)` +\| ([^|]+?) +\|/g)))
      assert.deepStrictEqual(
        Object.fromEntries(cells.map(([, room, owners]) => [room, owners!.replaceAll("`", "").split(", ")])),
        rooms
      )
    }))

  it.effect("imports only files that are there", () =>
    Effect.gen(function*() {
      const { arrows } = yield* House
      const relative = arrows.filter(({ to }) => to.endsWith(".ts"))
      assert.isAbove(relative.length, 100)
      assert.deepStrictEqual(relative.filter(({ to }) => !existsSync(join(src, to))).map(show), [])
    }))

  it.effect("has no arrow upwards", () =>
    Effect.gen(function*() {
      const { arrows } = yield* House
      const up = arrows.filter(({ from, to }) =>
        to.endsWith(".ts") && isPublic(to) && rowOf(moduleOf(to)) < reach(from)
      )
      assert.deepStrictEqual(up.map(show), [])
    }))

  it.effect("has rooms that only their own files and their owners enter", () =>
    Effect.gen(function*() {
      const { arrows } = yield* House
      const through = arrows.filter(({ from, to }) => {
        const room = roomOf(to)
        return room !== undefined && roomOf(from) !== room && !rooms[room]!.includes(moduleOf(from))
      })
      assert.deepStrictEqual(through.map(show), [])
    }))

  it.effect("has no circle", () =>
    Effect.gen(function*() {
      const { arrows } = yield* House
      assert.deepStrictEqual(circle(arrows), [])
    }))

  it.effect("has sessions, and leases of them, that know nothing of an SDK, nor of HTTP but how errors answer", () =>
    Effect.gen(function*() {
      const { arrows } = yield* House
      const known = arrows.filter(({ from, to }) =>
        Object.entries(ignorant).some(([file, packages]) =>
          from.startsWith(file) && packages.some((name) => name.test(to))
        )
      )
      assert.deepStrictEqual(known.map(show), [])
    }))

  it.effect("loads no SDK with the pool or the registry", () =>
    Effect.gen(function*() {
      const { arrows } = yield* House
      const running = arrows.filter(({ erased }) => !erased)
      for (const entry of ["SessionPool.ts", "SessionRegistry.ts"]) {
        const loaded = new Set([entry])
        // A set may grow while it is walked
        for (const file of loaded) {
          for (const { from, to } of running) if (from === file) loaded.add(to)
        }
        assert.include([...loaded], "InvalidOptions.ts")
        assert.deepStrictEqual([...loaded].filter((name) => sdk.test(name)), [], entry)
      }
    }))
})
