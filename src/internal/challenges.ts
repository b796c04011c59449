/**
 * What a server asks for with `WWW-Authenticate` (RFC 9110 section 11.6.1), read in time that is linear in its length.
 */
import type { Challenge } from "../McpSessionError.ts"

const maxChallenges = 8
const maxParameters = 16
const maxValue = 1_000

/** A list of scopes is longer than other values. One of this length was cut: nobody knows its last word. */
export const maxScope = 4_096

const token = "[\\w!#$%&'*+.^`|~-]+"

// What stands between two of anything; then a name, and whether it is followed by a value
const name = new RegExp(`[\\s,]*(${token})`, "y")
const parameter = new RegExp(`[\\s,]*(${token})[ \\t]*=[ \\t]*(?:"((?:[^"\\\\]|\\\\.)*)"|(${token}))`, "sy")
// Such as `Negotiate YII=`: nothing that says what to do, and it may be worth something
const blob = /[ \t]+[\w.~+/-]+=*[ \t]*(?=,|$)/y

/**
 * The challenges in the value of a header, as far as it can be read: whatever is no challenge ends it.
 */
export const parse = (header: string): ReadonlyArray<Challenge> => {
  const challenges: Array<Challenge> = []
  let at = 0
  const next = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at
    const match = pattern.exec(header)
    if (match !== null) at = pattern.lastIndex
    return match
  }
  while (challenges.length < maxChallenges) {
    const scheme = next(name)
    if (scheme === null) break
    const parameters = new Map<string, string>()
    if (next(blob) === null) {
      for (let found = next(parameter); found !== null; found = next(parameter)) {
        const [, key, quoted, plain = ""] = found
        const called = key!.toLowerCase()
        const value = quoted?.replace(/\\(.)/gs, "$1") ?? plain
        if (parameters.size < maxParameters && !parameters.has(called)) {
          parameters.set(called, value.slice(0, called === "scope" ? maxScope : maxValue))
        }
      }
    }
    challenges.push({ scheme: scheme[1]!, parameters: Object.fromEntries(parameters) })
  }
  return challenges
}
