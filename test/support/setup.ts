/**
 * Before all tests: where they put their files, and what is made once for all of them.
 */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import type { TestProject } from "vitest/node"
import { bundle, snapshot } from "./bundle.ts"

declare module "vitest" {
  interface ProvidedContext {
    /** A directory that is removed after the last test. */
    readonly temporary: string
    /** Another one, where packages are found. */
    readonly bundles: string
    /** What `node` gets to run `stdio.mjs`, as more than a hundred children do. */
    readonly stdioServer: ReadonlyArray<string>
    /** Those of the reference servers, bundled. */
    readonly referenceServers: { readonly everything: string; readonly filesystem: string; readonly memory: string }
    /** Those of what else runs in processes of its own, two examples among it, and of the simulations, bundled. */
    readonly programs: {
      readonly quickstart: string
      readonly metrics: string
      readonly exits: string
      readonly node: string
      readonly serves: string
      readonly servesGuarded: string
      readonly simulations: string
    }
  }
}

const pathTo = (relative: string) => fileURLToPath(new URL(relative, import.meta.url))

const reference = (name: string) => pathTo(`../../node_modules/@modelcontextprotocol/server-${name}/dist/index.js`)

export default async ({ provide }: TestProject) => {
  // No test needs the authorities that a machine trusts besides, and Node 20 parses them at each start: 0.15 s
  delete process.env["NODE_EXTRA_CA_CERTS"]
  // The compiler is a program in Go, whose collector takes a fifth of its time; it may have some room instead
  process.env["GOGC"] ??= "off"
  process.env["GOMEMLIMIT"] ??= "2GiB"

  const temporary = mkdtempSync(join(tmpdir(), "effect-mcp-sessions-"))
  const bundles = mkdtempSync(pathTo("../../node_modules/.bundles-"))
  provide("temporary", temporary)
  provide("bundles", bundles)
  const [loaded, [everything, filesystem, memory], programs] = await Promise.all([
    snapshot(bundles, pathTo("./servers/stdioSnapshot.mjs")),
    bundle(bundles, [reference("everything"), reference("filesystem"), reference("memory")]),
    bundle(
      bundles,
      [
        pathTo("../../examples/quickstart.ts"),
        pathTo("../../examples/metrics.ts"),
        pathTo("./exits.ts"),
        pathTo("./servers/node.ts"),
        pathTo("./serves.ts"),
        pathTo("./servesGuarded.ts"),
        pathTo("./simulations.ts")
      ],
      ["libsql"]
    )
  ])
  const [quickstart, metrics, exits, node, serves, servesGuarded, simulations] = programs
  provide("stdioServer", ["--snapshot-blob", loaded, pathTo("./servers/stdio.mjs")])
  provide("referenceServers", { everything, filesystem, memory })
  provide("programs", { quickstart, metrics, exits, node, serves, servesGuarded, simulations })
  return () => {
    for (const directory of [temporary, bundles]) rmSync(directory, { recursive: true, force: true })
  }
}
