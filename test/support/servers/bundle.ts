/**
 * Before all tests, the stdio fixture is made one file: a hundred children run it, and most of what they do is to load
 * the SDK.
 */
import { build, stop } from "esbuild"
import { mkdtempSync, rmSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import type { TestProject } from "vitest/node"

declare module "vitest" {
  interface ProvidedContext {
    /** The path of `stdio.mjs`, as one file. */
    readonly stdioServer: string
  }
}

export default async ({ provide }: TestProject) => {
  const directory = mkdtempSync(fileURLToPath(new URL("../../../node_modules/.servers-", import.meta.url)))
  const outfile = join(directory, "stdio.mjs")
  await build({
    entryPoints: [fileURLToPath(new URL("./stdio.mjs", import.meta.url))],
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    // For what is CommonJS in it
    banner: { js: "import { createRequire } from \"node:module\"; const require = createRequire(import.meta.url);" }
  })
  await stop()
  provide("stdioServer", outfile)
  return () => rmSync(directory, { recursive: true })
}
