/**
 * Tells what the suite found. `node --import tsx conformance/report.ts DIRECTORY` reads, in each directory in there,
 * the names of the scenarios that should have run from `expected`, and the checks of each from
 * `server-SCENARIO-TIME/checks.json`, or of a client's from `auth/SCENARIO-TIME/checks.json`.
 *
 * A scenario has passed if at least one of its checks succeeded, and none failed, warned or was skipped: stricter than
 * the suite, for which a recommendation that nobody follows is no failure.
 */
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

interface Check {
  readonly id: string
  readonly status: "SUCCESS" | "FAILURE" | "WARNING" | "SKIPPED" | "INFO"
  readonly errorMessage?: string
  readonly details?: unknown
}

/**
 * Those that can't pass without a warning, by suite. They are run all the same, and must not fail.
 */
const excused: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  "0.1.16": {
    "server-sse-polling": "pending there: it says 2025-03-26 in a session of 2025-11-25, which has no priming event"
  }
}

const [, , root = "."] = process.argv
let passed = 0
let failed = 0

const issueOf = (checks: ReadonlyArray<Check> | undefined): string | undefined => {
  if (checks === undefined) return "no result"
  const issues = checks.filter(({ status }) => status !== "SUCCESS" && status !== "INFO")
  if (issues.length > 0) {
    return issues.map(({ details, errorMessage, id, status }) =>
      `${status} ${id}: ${errorMessage ?? JSON.stringify(details)}`
    ).join("\n        ")
  }
  return checks.some(({ status }) => status === "SUCCESS") ? undefined : "nothing was checked"
}

for (const run of readdirSync(root).toSorted()) {
  const directory = join(root, run)
  const results = new Map(
    readdirSync(directory, { encoding: "utf8", recursive: true }).flatMap((name) => {
      const scenario = /^(?:server-)?([^/]+|auth\/[^/]+)-\d{4}-\d{2}-\d{2}T[^/]*$/.exec(name)?.[1]
      if (scenario === undefined) return []
      const checks: ReadonlyArray<Check> = JSON.parse(readFileSync(join(directory, name, "checks.json"), "utf8"))
      return [[scenario, checks]]
    })
  )
  const expected = readFileSync(join(directory, "expected"), "utf8").split("\n").filter((name) => name !== "")
  if (expected.length === 0) {
    failed++
    console.log(`FAILED  ${run}: no scenarios`)
  }
  for (const scenario of expected) {
    const checks = results.get(scenario)
    const issue = issueOf(checks)
    const excuse = excused[run.replace(/^.* /, "")]?.[scenario]
    const label = `${run}: ${scenario}`
    if (issue === undefined) {
      passed++
      console.log(`ok      ${label}`)
    } else if (excuse !== undefined && checks?.every(({ status }) => status !== "FAILURE") === true) {
      console.log(`skipped ${label}: ${excuse}`)
    } else {
      failed++
      console.log(`FAILED  ${label}\n        ${issue}`)
    }
  }
}

console.log(`${passed} scenarios passed, ${failed} failed`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
