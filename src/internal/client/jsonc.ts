/**
 * JSON that may have comments, trailing commas and a byte order mark, as VS Code writes it. Each character is looked at
 * once, whatever the text.
 */
import * as Result from "effect/Result"

/** Where the text is not JSON: its line and column, from 1, if that is known. */
export interface Position {
  readonly line: number
  readonly column: number
}

/**
 * The value, or where the text can't be read. `JSON.parse` quotes what it could not read, so of its message only the
 * position is used.
 */
export const parse = (text: string): Result.Result<unknown, Position | undefined> =>
  Result.try({
    try: (): unknown => JSON.parse(strict(text)),
    catch: (cause) => {
      // At the end, where nothing is quoted
      const offset = /at position (\d+)(?: \(line \d+ column \d+\))?$/.exec(String(cause))?.[1]
      if (offset === undefined) return undefined
      const before = text.slice(0, Number(offset)).split("\n")
      return { line: before.length, column: before.at(-1)!.length + 1 }
    }
  })

/** What is taken out leaves blanks, so that positions stay true. */
const strict = (text: string): string => {
  const blanks: Array<readonly [start: number, end: number]> = []
  // The latest comma, for as long as nothing but blanks and comments follow
  let comma = -1
  let index = 0
  if (text.startsWith("\uFEFF")) blanks.push([0, ++index])
  while (index < text.length) {
    const start = index
    switch (text[index]) {
      case " ":
      case "\t":
      case "\r":
      case "\n":
        index++
        continue
      case "/":
        index = endOfComment(text, start)
        if (index > start) {
          blanks.push([start, index])
          continue
        }
        // Nothing behind it makes this JSON
        return blanked(text, blanks)
      case ",":
        comma = index++
        continue
      case "}":
      case "]":
        if (comma !== -1) blanks.push([comma, comma + 1])
        index++
        break
      case "\"":
        index = endOfString(text, start)
        break
      default:
        index++
    }
    comma = -1
  }
  return blanked(text, blanks)
}

const endOfComment = (text: string, start: number): number => {
  if (text.startsWith("//", start)) {
    const end = text.indexOf("\n", start)
    return end === -1 ? text.length : end
  }
  const end = text.startsWith("/*", start) ? text.indexOf("*/", start + 2) : -1
  return end === -1 ? start : end + 2
}

// A string that does not end in its line is an error there
const endOfString = (text: string, start: number): number => {
  for (let index = start + 1; index < text.length; index++) {
    if (text[index] === "\\") index++
    else if (text[index] === "\"") return index + 1
    else if (text[index] === "\n") return index
  }
  return text.length
}

const blanked = (text: string, blanks: ReadonlyArray<readonly [start: number, end: number]>): string => {
  let result = ""
  let kept = 0
  // A comma is known to be the last one behind its comments
  for (const [start, end] of blanks.toSorted(([one], [other]) => one - other)) {
    result += text.slice(kept, start) + text.slice(start, end).replace(/[^\n]+/g, ({ length }) => " ".repeat(length))
    kept = end
  }
  return result + text.slice(kept)
}
