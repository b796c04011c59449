/**
 * Fails when a line of code or comment is longer than 120 columns: the formatter breaks code alone, and not all of it.
 */
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

const limit = 120
const root = join(import.meta.dirname, "..")

const files = [".ci", "bench", "conformance", "docs", "examples", "src", "test"]
  .flatMap((directory) =>
    readdirSync(join(root, directory), { recursive: true }).map((file) => join(directory, file))
  )
  .concat(readdirSync(root))
  .filter((file) => /\.(?:[cm]?[jt]s|sh)$/.test(file) && !/(?:^docs\/(?:api|markdown)|node_modules)\//.test(file))

const long = files.flatMap((file) =>
  readFileSync(join(root, file), "utf8").split("\n").flatMap((line, i) => {
    const columns = [...line].length
    return columns > limit ? [`${file}:${i + 1}: ${columns} columns`] : []
  })
)

if (long.length > 0) {
  process.stderr.write(`${long.join("\n")}\n${long.length} lines are longer than ${limit} columns\n`)
  process.exitCode = 1
}
