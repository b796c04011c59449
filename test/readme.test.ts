import { assert, describe, it } from "@effect/vitest"
import * as ClusterNode from "effect-mcp-sessions/ClusterNode"
import * as IdentityResolver from "effect-mcp-sessions/IdentityResolver"
import * as McpHttpOptions from "effect-mcp-sessions/McpHttpOptions"
import * as SessionCluster from "effect-mcp-sessions/SessionCluster"
import * as SessionPool from "effect-mcp-sessions/SessionPool"
import * as SessionRegistry from "effect-mcp-sessions/SessionRegistry"
import * as TokenOptions from "effect-mcp-sessions/TokenOptions"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { type Bar, bars } from "../bench/bars.ts"

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8")

const readme = read("README.md")

// As they are made of headings: lower case, without punctuation, a hyphen for each space.
const anchors = new Set(
  Array.from(
    readme.matchAll(/^#+ (.+)$/gm),
    ([, heading]) => heading!.toLowerCase().replaceAll(/[^a-z0-9 -]/g, "").replaceAll(" ", "-")
  )
)

const sources = readdirSync(new URL("../src", import.meta.url))
  .filter((file) => file.endsWith(".ts"))
  .map((file) => read(`src/${file}`))
  .join("\n")

// `readonly reference = "pool-closed"`, and `SessionClosed: "session-closed"` in a map of references.
const references = [
  ...sources.matchAll(/readonly reference = "([a-z-]+)"/g),
  ...Array.from(sources.matchAll(/const references = \{([^}]*)\}/g), ([, map]) => map!).join("\n")
    .matchAll(/: "([a-z-]+)"/g)
].map(([, slug]) => slug!)

/** The cells of the table whose first heading is `heading`, by the name of the option that each row is about. */
const table = (heading: string): ReadonlyMap<string, ReadonlyArray<string>> => {
  const lines = readme.split("\n")
  const from = lines.findIndex((line) => line.startsWith(`| ${heading} `))
  const to = lines.findIndex((line, i) => i > from && !line.startsWith("|"))
  return new Map(
    lines.slice(from + 2, to).map((line) => {
      const [, option = "", ...cells] = line.split("|").map((cell) => cell.trim().replaceAll(/["`]/g, ""))
      return [option.replace(/\(.*\)$/, ""), cells]
    })
  )
}

describe("README", () => {
  it("has an entry for the reference of each error", () => {
    assert.isAtLeast(references.length, 17)
    assert.deepStrictEqual(references.filter((slug) => !anchors.has(slug)), [])
  })

  const tables = [
    ["option", SessionPool.declared.rows],
    ["`SessionCluster`", SessionCluster.declared.rows],
    ["`IdentityResolver.layer`", IdentityResolver.declared.rows],
    ["`IdentityResolver.layerJwt`", TokenOptions.jwt.rows],
    ["`IdentityResolver.layerIntrospection`", TokenOptions.introspection.rows],
    ["`SessionRegistry.layer`", SessionRegistry.declared.rows],
    [
      "`McpHttp`",
      McpHttpOptions.layer.rows.filter(({ option }) =>
        !SessionRegistry.declared.rows.some((row) => row.option === option)
      )
    ],
    ["in `authorization`", McpHttpOptions.authorization.rows],
    ["`ClusterNode.layer`", ClusterNode.declared.rows],
    ["in `security`", ClusterNode.declaredSecurity.rows]
  ] as const

  it.each(tables)("has a row for each option of %s, with its default and its variable", (heading, rows) => {
    const cells = table(heading)
    assert.deepStrictEqual(
      Array.from(cells, ([option, [shown, variable]]) => [option, shown, variable]).toSorted(),
      rows.map((row) => [row.option, row.default, row.variable ?? ""]).toSorted()
    )
  })

  it("has a row for each option of McpHttp.routed, with its default", () => {
    assert.deepStrictEqual(
      Array.from(table("`McpHttp.routed`"), ([option, [shown]]) => [option, shown]),
      McpHttpOptions.routed.rows.map((row) => [row.option, row.default])
    )
  })

  it("names each older name of a variable", () => {
    const aliases = tables.flatMap(([, rows]) => rows.flatMap((row) => row.aliases))
    assert.isAtLeast(aliases.length, 15)
    assert.deepStrictEqual(aliases.filter((alias) => !readme.includes(`\`${alias}\``)), [])
  })

  it("shows each bar of the bench, as it is", () => {
    const rows = Array.from(
      readme.matchAll(/^\| [^|]+ \| [^|]+ \| (-?[\d.]+|–) +\| ([\d.]+) +\|$/gm),
      ([, today, goal]) => [today, goal]
    )
    const shown = Object.values<Bar>(bars).map(({ goal, today = "–" }) => [`${today}`, `${goal}`])
    assert.deepStrictEqual(rows, shown)
  })

  it("links to files that are there", () => {
    for (const [, path] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
      assert.isTrue(existsSync(new URL(`../${path}`, import.meta.url)), path)
    }
  })
})
