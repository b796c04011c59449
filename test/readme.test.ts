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

// `readonly reference = "pool-closed"`, `SessionClosed: "session-closed"` in a map of references.
const references = readdirSync(new URL("../src", import.meta.url))
  .filter((file) => file.endsWith(".ts"))
  .flatMap((file) => {
    const source = read(`src/${file}`)
    const maps = Array.from(source.matchAll(/const references = \{([^}]*)\}/g), ([, map]) => map!).join("\n")
    return [
      ...Array.from(source.matchAll(/readonly reference = "([a-z-]+)"/g), ([, slug]) => slug!),
      ...Array.from(maps.matchAll(/: "([a-z-]+)"/g), ([, slug]) => slug!)
    ]
  })

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

  it("links to files that are there", () => {
    for (const [, path] of readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) {
      assert.isAbove(read(path!).length, 0)
    }
  })
})
