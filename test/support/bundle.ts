/**
 * Scripts with what they need of Effect, the SDK and this package in a file or two, or loaded already: to load these
 * is most of what a child does, and so it takes half the time, or a fifth of it.
 */
import { execFile } from "node:child_process"
import { mkdtempSync } from "node:fs"
import { basename, extname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"

// A process for each: the one behind esbuild's functions stays until it is stopped, whoever else needs it
const esbuild = fileURLToPath(new URL("../../node_modules/.bin/esbuild", import.meta.url))

const shared = [
  "--bundle",
  // To read them is a tenth to a fifth of what is left. Names stay, for stacks
  "--minify-syntax",
  "--minify-whitespace",
  "--platform=node",
  "--log-level=warning"
]

// For what is CommonJS in it
const banner = "import { createRequire as from } from 'node:module'; const require = from(import.meta.url);"

const modules = [
  "--entry-names=[name]",
  "--splitting",
  "--format=esm",
  "--out-extension:.js=.mjs",
  `--banner:js=${banner}`
]

const start = promisify(execFile)

// Many are called index
const nameOf = (file: string, i: number) => `${basename(file, extname(file))}-${i}`

/** Makes the scripts anew, below `directory`, with all that they import but `external`, and gives the path of each. */
export const bundle = async <const Files extends ReadonlyArray<string>>(
  directory: string,
  files: Files,
  external: ReadonlyArray<string> = []
): Promise<{ readonly [I in keyof Files]: string }> => {
  const outdir = mkdtempSync(join(directory, "bundle-"))
  const externals = external.map((name) => `--external:${name}`)
  const entries = files.map((file, i) => `${nameOf(file, i)}=${file}`)
  await start(esbuild, [...entries, ...shared, ...modules, ...externals, `--outdir=${outdir}`])
  return files.map((file, i) => join(outdir, `${nameOf(file, i)}.mjs`)) as { [I in keyof Files]: string }
}

/**
 * Makes Node's startup snapshot of a script, below `directory`, and gives its path: `--snapshot-blob` starts a process
 * that has run it already.
 */
export const snapshot = async (directory: string, file: string): Promise<string> => {
  const outdir = mkdtempSync(join(directory, "snapshot-"))
  const script = join(outdir, "script.cjs")
  const blob = join(outdir, "script.blob")
  await start(esbuild, [file, ...shared, "--format=cjs", `--outfile=${script}`])
  await start(process.execPath, ["--snapshot-blob", blob, "--build-snapshot", script])
  return blob
}
