/**
 * Writes llms.txt, for readers that are programs: README, and below it the reference of each module, all in one file
 * and from the sources that people read. See https://llmstxt.org.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

const here = import.meta.dirname
const read = (...path) => readFileSync(join(here, ...path), "utf8").trim()

// Beside them are an index and what the pages show
const modules = readdirSync(join(here, "markdown"))
  .filter((file) => file.endsWith(".md") && existsSync(join(here, "../src", file.replace(/md$/, "ts"))))
  .toSorted()

// A heading deeper, below "Reference", and without the links between pages: here is only one
const page = (file) =>
  read("markdown", file)
    .replaceAll(/^(#{1,5}) /gm, "#$1 ")
    .replaceAll(/\[([^\]]+)\]\((?:[\w.-]+\.md)?(?:#[\w-]+)?\)/g, "$1")

const [title, ...readme] = read("..", "README.md").split("\n\n")
const [summary, ...rest] = readme

writeFileSync(
  join(here, "llms.txt"),
  [title, summary.replaceAll(/^/gm, "> "), ...rest, "## Reference", ...modules.map(page)].join("\n\n") + "\n"
)
