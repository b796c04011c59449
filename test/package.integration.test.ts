/**
 * The package as its users get it: what `npm pack` puts into the tarball, and that a project with that tarball compiles
 * and runs the README's first snippet.
 *
 * A project "installs" the tarball by unpacking it next to links to this checkout's dependencies: the same tree that npm
 * makes, without a network. It gets the dependencies that the README tells users to install, and no other.
 */
import { execFile } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import packageJson from "../package.json" with { type: "json" }

const root = fileURLToPath(new URL("..", import.meta.url))

const modules = readdirSync(join(root, "src")).flatMap((file) => file.endsWith(".ts") ? basename(file, ".ts") : [])

// npm tells what it starts, in its environment, which project it is at. That is not the one below.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)))

/** The output of a program that has to succeed within 45 seconds, and to exit by itself. */
const run = (directory: string, command: string, ...args: ReadonlyArray<string>) =>
  Effect.callback<string>((resume) => {
    const options = { cwd: directory, env: environment, timeout: 45_000, killSignal: "SIGKILL" } as const
    const child = execFile(command, args, options, (error, stdout, stderr) =>
      resume(
        error === null ?
          Effect.succeed(stdout) :
          Effect.die(new Error(`${command} ${args.join(" ")}: ${error.signal ?? error.code}\n${stdout}\n${stderr}`))
      ))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "package-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true }))
)

const filesOf = (directory: string): ReadonlyArray<string> =>
  readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(directory.length + 1))

class Unpacked extends Context.Service<Unpacked, { readonly directory: string }>()("test/Unpacked") {
  // In a copy, because packing builds, and others may be reading dist
  static readonly layer = Layer.effect(
    Unpacked,
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const copy = join(directory, "copy")
      const absent = new Set(["node_modules", "dist", "build", "docs", ".git"].map((name) => join(root, name)))
      cpSync(root, copy, { recursive: true, filter: (source) => !absent.has(source) })
      symlinkSync(join(root, "node_modules"), join(copy, "node_modules"))
      yield* run(copy, "npm", "pack", "--pack-destination", directory)
      yield* run(directory, "tar", "-xzf", `${packageJson.name}-${packageJson.version}.tgz`)
      return { directory: join(directory, "package") }
    })
  )
}

const compilers = [
  { module: "NodeNext", moduleResolution: "NodeNext" },
  { module: "ESNext", moduleResolution: "Bundler" }
]

/** Compiles `files` in a project that has the tarball and `dependencies`, and gives the project's directory. */
const compile = Effect.fnUntraced(function*(
  compiler: typeof compilers[number],
  dependencies: ReadonlyArray<string>,
  files: Record<string, string>
) {
  const directory = yield* temporaryDirectory
  cpSync((yield* Unpacked).directory, join(directory, "node_modules", packageJson.name), { recursive: true })
  for (const name of dependencies) {
    const link = join(directory, "node_modules", name)
    mkdirSync(dirname(link), { recursive: true })
    symlinkSync(join(root, "node_modules", name), link)
  }
  const compilerOptions = { ...compiler, target: "ES2022", types: ["node"], strict: true, outDir: "out" }
  for (
    const [name, text] of Object.entries({
      ...files,
      "package.json": JSON.stringify({ private: true, type: "module" }),
      "tsconfig.json": JSON.stringify({ compilerOptions, include: ["*.ts"] })
    })
  ) {
    writeFileSync(join(directory, name), text)
  }
  yield* run(directory, process.execPath, join(root, "node_modules/typescript/bin/tsc"))
  return directory
})

/** The first TypeScript in the README that imports this package. */
const readmeSnippet = () => {
  const readme = readFileSync(join(root, "README.md"), "utf8")
  const snippets = [...readme.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code!)
  const snippet = snippets.find((code) => code.includes(`from "${packageJson.name}"`))
  assert.isDefined(snippet, `README.md has no \`\`\`ts block that imports from "${packageJson.name}"`)
  return snippet
}

const peers: { readonly [name: string]: string } = packageJson.peerDependencies
const optional: { readonly [name: string]: { readonly optional?: boolean } | undefined } =
  "peerDependenciesMeta" in packageJson ? packageJson.peerDependenciesMeta as object & typeof optional : {}
const allPeers = Object.keys(peers)
const requiredPeers = allPeers.filter((name) => optional[name]?.optional !== true)

// For the snippet's own sake: Node's types, and an MCP server to talk to
const snippetNeeds = ["@types/node", "@modelcontextprotocol/server-everything"]

layer(Unpacked.layer, { excludeTestServices: true, timeout: "2 minutes" })("the package", (it) => {
  it.effect("is built code with types and source maps, and the documents", () =>
    Effect.gen(function*() {
      const { directory } = yield* Unpacked
      const sources = filesOf(join(root, "src")).map((file) => file.replace(/\.ts$/, ""))
      const built = sources.flatMap((source) => [`${source}.d.ts`, `${source}.js`, `${source}.js.map`])
      assert.deepStrictEqual(
        filesOf(directory).toSorted(),
        ["CHANGELOG.md", "LICENSE", "README.md", "package.json", ...built.map((file) => `dist/${file}`)].toSorted()
      )
    }))

  it.effect("has source maps that hold the sources, which are not in the package", () =>
    Effect.gen(function*() {
      const { directory } = yield* Unpacked
      for (const name of modules) {
        const map = JSON.parse(readFileSync(join(directory, `dist/${name}.js.map`), "utf8"))
        assert.deepStrictEqual(map.sourcesContent, [readFileSync(join(root, `src/${name}.ts`), "utf8")])
      }
    }))

  describe.each(compilers)("with moduleResolution $moduleResolution", (compiler) => {
    it.effect("runs the README's first snippet, with no more than the required peers", () =>
      Effect.gen(function*() {
        const files = { "snippet.ts": readmeSnippet() }
        const project = yield* compile(compiler, [...requiredPeers, ...snippetNeeds], files)
        yield* run(project, process.execPath, "out/snippet.js")
      }), 60_000)

    it.effect("has each module as a subpath, and nothing internal", () =>
      Effect.gen(function*() {
        const project = yield* compile(compiler, [...allPeers, "@types/node"], {
          "subpaths.ts": [
            `import * as root from "${packageJson.name}"`,
            ...modules.map((name) => `import * as ${name} from "${packageJson.name}/${name}"`),
            `console.log(Object.keys({ ${modules.join(", ")} }).join())`,
            `console.log(root.SessionPool === SessionPool.SessionPool)`,
            "// @ts-expect-error",
            `const internal = import("${packageJson.name}/internal/lease/leased")`,
            `console.log(await internal.catch((error) => error.code))`
          ].join("\n")
        })
        const output = yield* run(project, process.execPath, "out/subpaths.js")
        assert.deepStrictEqual(output.trim().split("\n"), [modules.join(), "true", "ERR_PACKAGE_PATH_NOT_EXPORTED"])
      }), 60_000)
  })
})
