import { isUtf8 } from "node:buffer"

/** How many bytes are a row. */
export const leastRow = 8

// JSON in JSON in a URL, and one more
const maxLayers = 4

// Enough for all that is read of a text that is quoted twice
const maxReadings = 30

/** What a text says, as it is or with something in it undone. */
export interface Reading {
  readonly text: string
  /** Where each character, and the end, begins in the text that was given. Undefined for that text itself. */
  readonly starts: Int32Array | undefined
  readonly layer: number
}

// In what is longer there are parts that are found anyway
const maxLikeEscapes = 256

/** Whether a secret has what could be undone in it. */
export const isLikeEscapes = (secret: string): boolean =>
  secret.length <= maxLikeEscapes && /[\\%&]|[\da-f][\s,:]/i.test(secret)

// A longer text is not looked at kind by kind: that takes ten times as long
export const maxEach = 4_096

/**
 * A text as it is, and with its escapes undone layer by layer: all kinds at once and, `isEach`, each alone too. A
 * backslash in what is percent-encoded is none of an escape, and an entity behind one is an entity.
 */
export const of = (text: string, isEach: boolean): ReadonlyArray<Reading> => {
  const readings: Array<Reading> = [{ text, starts: undefined, layer: 0 }]
  const seen = new Set([text])
  const most = text.length > maxEach ? 2 * (maxLayers + 1) : maxReadings
  const see = (reading: Reading, escapes: RegExp) => {
    const next = readings.length < most && reading.layer < maxLayers ? decoded(reading, escapes) : undefined
    if (next === undefined || seen.has(next.text)) return
    readings.push(next)
    seen.add(next.text)
  }
  // `readings` grows by what is seen in them
  for (const reading of readings) {
    see(reading, everyKind)
    see(reading, numbers)
  }
  if (!isEach || text.length > maxEach) return readings
  for (const reading of readings) {
    const alone = kinds.filter(({ sign }) => reading.text.includes(sign))
    if (alone.length < 2) continue
    for (const escapes of [everyKind, ...alone.map((kind) => kind.escapes)]) see(reading, escapes)
  }
  return readings
}

/** What any of the parts is, where `BYTE` stands for a number up to 255. */
const regExpOf = (...parts: ReadonlyArray<RegExp>) =>
  new RegExp(
    parts.map(({ source }) => source).join("|").replaceAll("BYTE", "(?:25[0-5]|2[0-4]\\d|[01]?\\d?\\d)"),
    "gi"
  )

const backslashes = [
  /(?<bytes>(?:\\x[\da-f]{2}){2,4096})|(?<octals>(?:\\[0-3][0-7]{2}){1,4096})/,
  /\\(?:u\{(?<braced>[\da-f]{1,6})\}|u(?<unicode>[\da-f]{4})|x(?<hex>[\da-f]{2})|(?<character>[^]))/
]

const percents = /(?<percents>(?:%[\da-f]{2})+)/

const ampersands = /&(?:#(?<decimal>\d{1,7})|#x(?<hexadecimal>[\da-f]{1,6})|(?<name>amp|lt|gt|quot|apos));/

const kinds = [
  { sign: "\\", escapes: regExpOf(...backslashes) },
  { sign: "%", escapes: regExpOf(percents) },
  { sign: "&", escapes: regExpOf(ampersands) }
]

const everyKind = regExpOf(...backslashes, percents, ampersands)

// Rows of bytes: `115 107`, `0x73, 0x6b`, `73 6b` and `73:6b`, `115, 107`; with a plus where a form has spaces. A
// shorter row is rather a time or a sum, and one of two digits each rather hexadecimal.
const numbers = regExpOf(
  /(?<spaced>(?=(?:\d\d[ +]){0,4096}(?:\d|\d{3})\b)(?:\bBYTE[ +]){7,4096}BYTE\b)/,
  /(?<prefixed>(?:\b0x[\da-f]{1,2}[\s,+]{1,32}){7,4096}0x[\da-f]{1,2}\b)/,
  /(?<pairs>(?:\b[\da-f]{2}[ :+]){7,4096}[\da-f]{2}\b)/,
  /(?<listed>(?:\bBYTE[\s+]{0,32},[\s+]{0,32}){7,4096}BYTE\b)/
)

const maxShortRow = 300

/** How many characters at the end of a text may be the beginning of a row. */
export const rowBegun = (text: string): number => shortRow.exec(text.slice(-maxShortRow))?.[0].length ?? 0

const shortRow = /(?:\b(?:0x)?[\da-f]{1,3}[\s,:+]{1,33}){1,7}(?:0?x?[\da-f]{0,3})$/i

/** How each kind of row writes a byte. */
const rows: ReadonlyArray<{ readonly name: string; readonly one: RegExp; readonly radix: number }> = [
  { name: "bytes", one: /\\x([\da-f]{2})/gi, radix: 16 },
  { name: "octals", one: /\\([0-7]{3})/g, radix: 8 },
  { name: "spaced", one: /(\d{1,3})/g, radix: 10 },
  { name: "prefixed", one: /0x([\da-f]{1,2})/gi, radix: 16 },
  { name: "pairs", one: /([\da-f]{2})/gi, radix: 16 },
  { name: "listed", one: /(\d{1,3})/g, radix: 10 },
  { name: "percents", one: /%([\da-f]{2})/gi, radix: 16 }
]

const controls: Readonly<Record<string, string>> = {
  "0": "\0",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v"
}

const entities: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: "\"", apos: "'" }

/**
 * One layer of escapes undone, or nothing when there is none.
 */
const decoded = ({ layer, starts, text }: Reading, escapes: RegExp): Reading | undefined => {
  let result = ""
  let rest = 0
  // No escape stands for more characters than it has itself
  const mapped = new Int32Array(text.length + 1)
  const sourceOf = (at: number) => starts === undefined ? at : starts[at]!
  const push = (characters: string, at: number, step: number) => {
    for (let index = 0; index < characters.length; index++) mapped[result.length + index] = sourceOf(at + index * step)
    result += characters
  }
  for (const found of text.matchAll(escapes)) {
    push(text.slice(rest, found.index), rest, 1)
    rest = found.index + found[0].length
    const groups = found.groups!
    const row = rows.find(({ name }) => groups[name] !== undefined)
    if (row === undefined) push(characterOf(found[0], groups), found.index, 0)
    else pushBytes(found[0], row, (characters, offset) => push(characters, found.index + offset, 0))
  }
  if (rest === 0) return undefined
  push(text.slice(rest), rest, 1)
  mapped[result.length] = sourceOf(text.length)
  return { text: result, starts: mapped, layer: layer + 1 }
}

const characterOf = (
  whole: string,
  { braced, character, decimal, hex, hexadecimal, name, unicode }: Readonly<Record<string, string | undefined>>
): string => {
  const code = braced ?? unicode ?? hex ?? hexadecimal
  if (code !== undefined) return fromCode(Number.parseInt(code, 16), whole)
  if (decimal !== undefined) return fromCode(Number(decimal), whole)
  if (name !== undefined) return entities[name.toLowerCase()]!
  return controls[character!] ?? character!
}

const fromCode = (code: number, otherwise: string): string => code <= 0x10FFFF ? String.fromCodePoint(code) : otherwise

/** The characters of a row of bytes, and where in it each begins. */
const pushBytes = (
  row: string,
  { one, radix }: (typeof rows)[number],
  push: (characters: string, offset: number) => void
) => {
  const found = Array.from(row.matchAll(one))
  const bytes = Buffer.from(found.map(([, digits]) => Number.parseInt(digits!, radix)))
  for (let at = 0; at < bytes.length;) {
    const lead = bytes[at]!
    const size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4
    const character = bytes.subarray(at, at + size)
    // `\xe9` is a character of Latin-1 where it is none of UTF-8
    const isText = isUtf8(character)
    push(character.toString(isText ? "utf8" : "latin1", 0, isText ? size : 1), found[at]!.index)
    at += isText ? size : 1
  }
}
