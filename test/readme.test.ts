import { assert, describe, it } from "@effect/vitest"
import { readdirSync, readFileSync } from "node:fs"

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

// The strings in a list of them.
const named = (source: string, list: RegExp) =>
  Array.from(list.exec(source)![1]!.matchAll(/"(\w+)"/g), ([, name]) => name!)

describe("README", () => {
  it("has an entry for the reference of each error", () => {
    assert.isAtLeast(references.length, 17)
    assert.deepStrictEqual(references.filter((slug) => !anchors.has(slug)), [])
  })

  it("names every option of the pool and every variable of its configuration", () => {
    const source = read("src/SessionPool.ts")
    const options = /const knownOptions = \[([^\]]*)\]/.exec(source)![1]!
    const names = [
      ...Array.from(options.matchAll(/"(\w+)"/g), ([, name]) => name!),
      ...Array.from(source.matchAll(/Config\.\w+\("(MCP_\w+)"\)/g), ([, name]) => name!)
    ]
    assert.isAtLeast(names.length, 22)
    assert.deepStrictEqual(names.filter((name) => !readme.includes(`\`${name}`)), [])
  })

  it("names every option of the registry and of McpHttp, and every variable of their configuration", () => {
    const registry = read("src/SessionRegistry.ts")
    const names = [
      ...named(registry, /const knownOptions = \[([^\]]*)\]/),
      ...Array.from(registry.matchAll(/Config\.\w+\("(MCP_\w+)"\)/g), ([, name]) => name!),
      ...named(read("src/internal/host/layer.ts"), /const layerOptions = \[([^\]]*)\]/),
      ...named(read("src/internal/host/endpoint.ts"), /export const endpointOptions = \[([^\]]*)\]/)
    ]
    assert.isAtLeast(names.length, 27)
    // In this section: the pool has options of the same names
    const section = /^## Inbound: [^]*?(?=^## )/m.exec(readme)![0]
    assert.deepStrictEqual(names.filter((name) => !section.includes(`\`${name}`)), [])
  })

  it("links to files that are there", () => {
    for (const [, path] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
      assert.isAbove(read(path!).length, 0)
    }
  })
})
