/**
 * The package as its users get it: what `npm pack` puts into the tarball, that a project with that tarball compiles and
 * runs the README's first snippet, and what the declarations in it say to those who read them and build on them.
 *
 * A project "installs" the tarball by unpacking it next to links to this checkout's dependencies: the same tree that
 * npm makes, without a network. It gets the dependencies that the README tells users to install, and no other.
 */
import { assert, describe, inject, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execFile } from "node:child_process"
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { basename, dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import packageJson from "../package.json" with { type: "json" }
import * as Compiler from "./support/compiler.ts"
import { some, underLoad } from "./support/load.ts"
import { temporaryDirectory } from "./support/temporary.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

const modules = readdirSync(join(root, "src")).flatMap((file) => file.endsWith(".ts") ? basename(file, ".ts") : [])

// npm tells what it starts, in its environment, which project it is at. That is not the one below.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)))

/** The output of a program that has to succeed within 90 seconds, and to exit by itself. */
const run = (directory: string, command: string, ...args: ReadonlyArray<string>) =>
  Effect.callback<string>((resume) => {
    const options = { cwd: directory, env: environment, timeout: 90_000, killSignal: "SIGKILL" } as const
    const child = execFile(command, args, options, (error, stdout, stderr) =>
      resume(
        error === null ?
          Effect.succeed(stdout) :
          Effect.die(new Error(`${command} ${args.join(" ")}: ${error.signal ?? error.code}\n${stdout}\n${stderr}`))
      ))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const filesOf = (directory: string): ReadonlyArray<string> =>
  readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(directory.length + 1))

class Unpacked extends Context.Service<Unpacked, { readonly directory: string }>()("test/Unpacked") {
  // In a copy, because packing builds, and others may be reading dist
  static readonly layer = Layer.effect(
    Unpacked,
    Effect.gen(function*() {
      const directory = temporaryDirectory("package-")
      const copy = join(directory, "copy")
      const absent = new Set(
        ["node_modules", "dist", "build", "docs/node_modules", "docs/api", ".git"].map((name) => join(root, name))
      )
      cpSync(root, copy, { recursive: true, filter: (source) => !absent.has(source) })
      symlinkSync(join(root, "node_modules"), join(copy, "node_modules"))
      // npm builds it first, which checks all types, as `npm run check` does: `npm run load` has it do so
      if (!inject("load")) yield* tsc(copy, "tsconfig.build.json", "--noCheck")
      yield* run(copy, "npm", "pack", ...inject("load") ? [] : ["--ignore-scripts"], "--pack-destination", directory)
      yield* run(directory, "tar", "-xzf", `${packageJson.name}-${packageJson.version}.tgz`)
      return { directory: join(directory, "package") }
    })
  )
}

const peers: { readonly [name: string]: string } = packageJson.peerDependencies
const optional: { readonly [name: string]: { readonly optional?: boolean } | undefined } =
  "peerDependenciesMeta" in packageJson ? packageJson.peerDependenciesMeta as object & typeof optional : {}
const allPeers = Object.keys(peers)
const requiredPeers = allPeers.filter((name) => optional[name]?.optional !== true)

// For the snippet's own sake: Node's types, and an MCP server to talk to
const snippetNeeds = ["@types/node", "@modelcontextprotocol/server-everything"]

/** What `npm install` leaves below `directory`: the tarball's content, and `dependencies`. */
const install = Effect.fnUntraced(function*(directory: string, dependencies: ReadonlyArray<string>) {
  cpSync((yield* Unpacked).directory, join(directory, "node_modules", packageJson.name), { recursive: true })
  for (const name of dependencies) {
    const link = join(directory, "node_modules", name)
    mkdirSync(dirname(link), { recursive: true })
    symlinkSync(join(root, "node_modules", name), link)
  }
})

const write = (directory: string, files: Readonly<Record<string, unknown>>) => {
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(directory, name), typeof content === "string" ? content : JSON.stringify(content))
  }
}

const tsc = (directory: string, project: string, ...options: ReadonlyArray<string>) =>
  run(directory, process.execPath, join(root, "node_modules/typescript/bin/tsc"), "--project", project, ...options)

const readme = readFileSync(join(root, "README.md"), "utf8")

/** The first TypeScript in the README that imports this package. */
const readmeSnippet = () => {
  const snippets = [...readme.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code!)
  const snippet = snippets.find((code) => code.includes(`from "${packageJson.name}"`))
  assert.isDefined(snippet, `README.md has no \`\`\`ts block that imports from "${packageJson.name}"`)
  return snippet
}

/** Every module by its subpath, and one that is nobody's. */
const subpaths = [
  `import * as root from "${packageJson.name}"`,
  ...modules.map((name) => `import * as ${name} from "${packageJson.name}/${name}"`),
  `console.log(Object.keys({ ${modules.join(", ")} }).join())`,
  `console.log(root.SessionPool === SessionPool.SessionPool)`,
  "// @ts-expect-error",
  `const internal = import("${packageJson.name}/internal/lease/leased")`,
  `console.log(await internal.catch((error) => error.code))`
].join("\n")

interface Module {
  readonly name: string
  readonly exported: ReadonlyArray<Compiler.Exported>
}

/** What each module of the package declares. */
const declarations = Effect.gen(function*() {
  const directory = temporaryDirectory("package-")
  yield* install(directory, [...allPeers, "@types/node"])
  const compilerOptions = { module: "NodeNext", strict: true, types: ["node"] }
  const dist = join(directory, "node_modules", packageJson.name, "dist")
  const files = modules.map((name) => join(dist, `${name}.d.ts`))
  write(directory, { "package.json": { type: "module" }, "tsconfig.json": { compilerOptions, files } })
  const project = yield* Compiler.open(join(directory, "tsconfig.json"))
  return modules.map((name, i): Module => ({
    name,
    exported: Compiler.exportsOf(project, files[i]!, `${dist}/`)
  }))
}).pipe(Effect.scoped)

class Declared extends Context.Service<Declared, { readonly modules: ReadonlyArray<Module> }>()("test/Declared") {
  static readonly layer = Layer.effect(Declared, Effect.map(declarations, (found) => ({ modules: found })))
}

/**
 * A library on this package: it returns each thing that the package exports, each member of it, and what programs make
 * of them. The compiler finds out what its declarations have to say.
 */
const libraryOn = (declared: ReadonlyArray<Module>) =>
  [
    ...declared.map(({ name }) => `import * as ${name} from "${packageJson.name}/${name}"`),
    ...declared.flatMap(({ exported, name: module }) =>
      exported.flatMap(({ members, name, statics, type, typeParameters, value }) => {
        const parameters = typeParameters === 0 ? "" : `<${Array.from({ length: typeParameters }, () => "any").join()}>`
        const parameter = `it: ${module}.${name}${parameters}`
        const id = `${module}_${name}`
        return [
          ...value ? [`export const value_${id} = () => ${module}.${name}`] : [],
          ...statics.map((member) =>
            `export const static_${id}_${member.name} = () => ${module}.${name}.${member.name}`
          ),
          ...type ? [`export const type_${id} = (${parameter}) => it`] : [],
          ...members.map((member) => `export const member_${id}_${member.name} = (${parameter}) => it.${member.name}`)
        ]
      })
    ),
    `export class Mine extends SessionPool.SessionPool.Tag<Mine, { readonly mine: true }, Error>()("library/Mine") {}`,
    `export const pool = () => SessionPool.SessionPool.layer({ connect: McpConnector.stdio({ command: "server" }) })`,
    `export const hosted = (options: McpHttp.LayerOptions<never, never>) => McpHttp.layer(options)`,
    `export const guarded = () => McpHttp.guard({ path: "/mcp" })`
  ].join("\n")

const compilers = some(
  { module: "NodeNext", moduleResolution: "NodeNext" },
  { module: "ESNext", moduleResolution: "Bundler" }
)

/**
 * A project for each way to resolve modules, compiled once: in `required` is what needs no more than the required
 * peers, in `all` what needs the optional ones too.
 */
const compiled = Effect.fnUntraced(function*(compiler: typeof compilers[number]) {
  const directory = temporaryDirectory("package-")
  const [required, all] = [join(directory, "required"), join(directory, "all")]
  yield* install(required, [...requiredPeers, ...snippetNeeds])
  yield* install(all, [...allPeers, "@types/node"])
  write(required, { "package.json": { type: "module" }, "snippet.ts": readmeSnippet() })
  const library = libraryOn((yield* Declared).modules)
  write(all, { "package.json": { type: "module" }, "subpaths.ts": subpaths, "library.ts": library })
  // Of the projects alone: above them are no packages
  const typeRoots = ["./all/node_modules/@types"]
  const options = { ...compiler, target: "ES2022", types: ["node"], typeRoots, strict: true, checkers: 1 }
  // The libraries are checked once, below, with what uses them
  const compilerOptions = { ...options, declaration: true, skipLibCheck: true }
  write(directory, { "tsconfig.json": { compilerOptions, include: ["*/*.ts"] } })
  yield* tsc(directory, "tsconfig.json", ...inject("load") ? [] : ["--noCheck"])
  return directory
})

class Projects extends Context.Service<Projects, { readonly directories: ReadonlyArray<string> }>()("test/Projects") {
  static readonly layer = Layer.effect(
    Projects,
    Effect.map(Effect.forEach(compilers, compiled, { concurrency: 2 }), (directories) => ({ directories }))
  )
}

// What all errors have, as README says: a comment at each would say it again
const usual = new Set(["message", "module", "method", "reference"])

/** The names that hover has nothing to say about, each once. */
const undocumented = (declared: ReadonlyArray<Module>) => {
  const seen = new Set<string>()
  const look = (path: string, { declared: at, documentation }: Compiler.Named) => {
    if (seen.has(at)) return []
    seen.add(at)
    return documentation === "" ? [path] : []
  }
  // The barrel names things again, and modules, which say for themselves what they are
  const named = declared.filter(({ name }) => name !== "index")
  const silent = named.map(({ name }) => name)
    .filter((name) => !readFileSync(join(root, `src/${name}.ts`), "utf8").startsWith("/**"))
  const names = named.flatMap(({ exported, name: module }) =>
    exported.flatMap((one) => {
      const path = `${module}.${one.name}`
      const members = one.members.filter(({ name }) => !usual.has(name))
      return look(path, one).concat(
        members.flatMap((member) => look(`${path}#${member.name}`, member)),
        one.statics.flatMap((member) => look(`${path}.${member.name}`, member))
      )
    })
  )
  return [...silent, ...names]
}

layer(Declared.layer.pipe(Layer.provideMerge(Unpacked.layer)), { excludeTestServices: true, timeout: "2 minutes" })(
  "the package",
  (packed) => {
    packed.effect("is built code with types and source maps, and the documents", () =>
      Effect.gen(function*() {
        const { directory } = yield* Unpacked
        const sources = filesOf(join(root, "src")).map((file) => file.replace(/\.ts$/, ""))
        const built = sources.flatMap((source) => [`${source}.d.ts`, `${source}.js`, `${source}.js.map`])
        assert.deepStrictEqual(
          filesOf(directory).toSorted(),
          [
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "LICENSE",
            "README.md",
            "docs/kubernetes.md",
            "docs/kubernetes.yaml",
            "package.json",
            ...filesOf(join(root, "examples")).map((file) => `examples/${file}`),
            ...built.map((file) => `dist/${file}`)
          ].toSorted()
        )
      }))

    packed.effect("has what its README links to", () =>
      Effect.gen(function*() {
        const { directory } = yield* Unpacked
        const links = readFileSync(join(directory, "README.md"), "utf8").matchAll(/\]\((?!https?:)([^)#]+)\)/g)
        const absent = Array.from(links, ([, path]) => path!).filter((path) => !existsSync(join(directory, path)))
        assert.deepStrictEqual(absent, [])
      }))

    // Otherwise it runs below as it is compiled, with the same dependencies
    if (inject("load")) {
      packed.effect(
        "runs the README's first snippet in an empty folder, with the commands beside it",
        () =>
          Effect.gen(function*() {
            const [, file] = /^Save it as `([\w.]+)` in an empty folder/m.exec(readme)!
            const [, commands] = /^npm init -y\n(.*?)^```$/ms.exec(readme)!
            const [installs, runs] = commands!.trim().split("\n").map((command) => command.split(" "))
            const directory = temporaryDirectory("package-")
            assert.deepStrictEqual(installs!.slice(0, 3), ["npm", "i", packageJson.name])
            yield* install(directory, installs!.slice(3))
            // What npm links the commands of packages as
            mkdirSync(join(directory, "node_modules/.bin"))
            symlinkSync("../tsx/dist/cli.mjs", join(directory, "node_modules/.bin/tsx"))
            write(directory, { "package.json": { name: "empty", version: "1.0.0" }, [file!]: readmeSnippet() })
            const [command, ...args] = runs!
            assert.include(yield* run(directory, command!, ...args), "Echo: hello")
          }),
        { ...underLoad, timeout: 120_000 }
      )
    }

    packed.effect("has source maps that hold the sources, which are not in the package", () =>
      Effect.gen(function*() {
        const { directory } = yield* Unpacked
        for (const name of modules) {
          const map = JSON.parse(readFileSync(join(directory, `dist/${name}.js.map`), "utf8"))
          assert.deepStrictEqual(map.sourcesContent, [readFileSync(join(root, `src/${name}.ts`), "utf8")])
        }
      }))

    packed.effect("says at each name and member what it is", () =>
      Effect.gen(function*() {
        const declared = (yield* Declared).modules
        assert.isAbove(declared.flatMap(({ exported }) => exported).length, 100)
        assert.deepStrictEqual(undocumented(declared), [])
      }))

    packed.layer(Projects.layer, { timeout: "2 minutes" })("as a dependency", (built) => {
      built.effect(
        "runs the README's first snippet, with no more than the required peers, however modules are resolved",
        () =>
          Effect.gen(function*() {
            const [first, ...others] = (yield* Projects).directories.map((directory) => join(directory, "required"))
            yield* run(first!, process.execPath, "snippet.js")
            const code = readFileSync(join(first!, "snippet.js"), "utf8")
            for (const other of others) assert.strictEqual(readFileSync(join(other, "snippet.js"), "utf8"), code)
          }),
        underLoad
      )

      describe.each(compilers.map(({ moduleResolution }, project) => ({ moduleResolution, project })))(
        "with moduleResolution $moduleResolution",
        ({ project }) => {
          const directoryOf = Effect.map(Projects, ({ directories }) => directories[project]!)

          built.effect("has each module as a subpath, and nothing internal", () =>
            Effect.gen(function*() {
              const output = yield* run(join(yield* directoryOf, "all"), process.execPath, "subpaths.js")
              const answers = [modules.join(), "true", "ERR_PACKAGE_PATH_NOT_EXPORTED"]
              assert.deepStrictEqual(output.trim().split("\n"), answers)
            }), underLoad)

          built.effect("lets a library name each of its types without what is internal", () =>
            Effect.gen(function*() {
              const library = readFileSync(join(yield* directoryOf, "all/library.d.ts"), "utf8").split("\n")
              assert.isAbove(library.length, 200)
              assert.deepStrictEqual(library.filter((line) => line.includes("/internal/")), [])
            }), underLoad)

          built.effect(
            "compiles without skipLibCheck, used so, or through such a library",
            () =>
              Effect.gen(function*() {
                const directory = yield* directoryOf
                write(join(directory, "all"), {
                  "program.ts": `import * as library from "./library.js"\nexport const used = Object.keys(library)`
                })
                rmSync(join(directory, "all/library.ts")) // what is left of it is library.d.ts
                const compilerOptions = { noEmit: true, declaration: false, skipLibCheck: false }
                const files = ["all/program.ts", "all/subpaths.ts", "required/snippet.ts"]
                write(directory, { "users.json": { extends: "./tsconfig.json", compilerOptions, include: [], files } })
                // Here what is ours, under load what it is built on, too
                const ours = (file: string) => file.startsWith(directory)
                const checked = yield* Compiler.checkOurs(join(directory, "users.json"), ours)
                assert.deepStrictEqual(checked.complaints, [])
                const checkedOf = (name: string) => checked.files.filter((file) => file.endsWith(`/dist/${name}.d.ts`))
                assert.deepStrictEqual(modules.filter((name) => checkedOf(name).length === 0), [])
                if (inject("load")) yield* tsc(directory, "users.json")
              }),
            underLoad
          )
        }
      )
    })
  }
)
