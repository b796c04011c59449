import { isUtf8 } from "node:buffer"

/**
 * Takes secrets out of texts that others wrote: an upstream's error message may quote the token it was sent, a child's
 * stderr its environment, Node's own errors the value that it could not pass on.
 *
 * A text is searched once for all secrets, however many there are: it is read through windows of eight characters, and
 * only where a window is known is there something to compare. It is searched as it is, and then as what it stands for:
 * with its percent-encoding, its backslashes, its HTML entities and its rows of bytes undone, layer by layer and kind
 * by kind, so that a secret may look like any of them itself. Of one that was cut the rest is found too, from 15
 * characters on.
 *
 * What is not looked for, as each would cost every text and is written by hardly anybody who quotes a secret: base64 or
 * hexadecimal of UTF-16, of rows and of each other, quoted-printable, compression, encryption, and a secret in other
 * letters (upper case, reversed) or without some (tabs, slashes that a URL turns). Nor is the first character, where it
 * seems to be of an escape that began before it: of a secret of up to 15 characters the rest is then left as well.
 */
export interface Scrub {
  (text: string): string
  /**
   * The same for the first `length` characters of a text that may be longer: no beginning of a secret is left where it
   * is cut.
   */
  readonly beginning: (text: string, length: number) => string
  /**
   * Each string and number of `data` at any depth, names too. What can't be written as JSON, or takes more than
   * `maxData` characters there, is dropped.
   */
  readonly data: (data: unknown) => unknown
  /** From now on `secret` is taken out, for as long as this lives. */
  readonly add: (secret: string) => void
  /**
   * The same for one that comes and goes, such as a rotated token: until all that hold it have let go, and after that
   * until 1,000 others have been let go of.
   */
  readonly hold: (secret: string) => () => void
}

export const make = (): Scrub => {
  const known = new Map<string, Entry>()
  /** Those nobody holds any more, the first to go first. */
  const released = new Set<string>()
  let index = makeIndex()
  let hasLikeEscapes = false

  const entryOf = (secret: string): Entry => {
    let entry = known.get(secret)
    if (entry === undefined) {
      entry = { holders: 0, forms: formsOf(secret) }
      known.set(secret, entry)
      for (const form of entry.forms) index.add(form)
      hasLikeEscapes ||= isLikeEscapes(secret)
    }
    released.delete(secret)
    return entry
  }

  const release = (secret: string, entry: Entry) => {
    entry.holders--
    if (entry.holders > 0) return
    released.add(secret)
    // An index only grows, so it is made anew when half of what it has is no longer wanted
    if (released.size < 2 * maxReleased) return
    for (const forgotten of released) {
      if (released.size === maxReleased) break
      released.delete(forgotten)
      known.delete(forgotten)
    }
    index = makeIndex()
    for (const { forms } of known.values()) for (const form of forms) index.add(form)
  }

  const search = (text: string, isCut: boolean, isEach = hasLikeEscapes): string => {
    if (known.size === 0) return text
    const found: Array<Span> = []
    for (const { starts, text: read } of viewsOf(text, isEach)) {
      const push = (from: number, to: number) => {
        if (from < to) found.push(starts === undefined ? [from, to] : [starts[from]!, starts[to]!])
      }
      index.find(read, push)
      // A beginning of `leastPart` characters would be found; the last escape may be half of one, or a row too short
      const { length } = read
      if (isCut) push(Math.max(0, length - Math.min(index.longest(), leastPart) - 6), length)
      if (isCut) push(length - (shortRow.exec(read.slice(-maxShortRow))?.[0].length ?? 0), length)
    }
    return found.length === 0 ? text : without(text, found)
  }

  const scrub = (text: string): string => search(text, false)

  const scrubData = (data: unknown, isEach: boolean): unknown => {
    const scrubText = (text: string) => search(text, false, isEach)
    const scrubAny = (value: unknown): unknown => {
      if (typeof value === "string") return scrubText(value)
      if (typeof value === "number") return scrubText(String(value)) === String(value) ? value : redacted
      if (typeof value !== "object" || value === null) return value
      // A Buffer, or an Uint8Array
      const values = Object.values(value)
      if (values.length >= leastRow && values.every((one) => typeof one === "number")) {
        const row = values.join(", ")
        if (scrubText(row) !== row) return redacted
      }
      if (Array.isArray(value)) return values.map(scrubAny)
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [scrubText(name), scrubAny(one)]))
    }
    return scrubAny(data)
  }

  return Object.assign(scrub, {
    beginning: (text: string, length: number) =>
      text.length < length ? scrub(text) : search(text.slice(0, length), true),
    data: (data: unknown): unknown => {
      try {
        const json = JSON.stringify(data)
        if (json === undefined || json.length > maxData) return undefined
        return scrubData(JSON.parse(json), hasLikeEscapes && json.length <= maxEach)
      } catch {
        return undefined
      }
    },
    add: (secret: string) => {
      if (secret !== "") entryOf(secret).holders = Infinity
    },
    hold: (secret: string) => {
      if (secret === "") return () => {}
      const entry = entryOf(secret)
      entry.holders++
      let isHeld = true
      return () => {
        if (isHeld) release(secret, entry)
        isHeld = false
      }
    }
  })
}

interface Entry {
  holders: number
  readonly forms: ReadonlyArray<string>
}

const redacted = "<redacted>"

const maxReleased = 1_000

// Of what others wrote a tenth of a second's worth, and no more, is looked at in one turn
const maxData = 65_536

// -----------------------------------------------------------------------------
// The forms of a secret
// -----------------------------------------------------------------------------

// What a text may quote in its place. Encodings that can be undone wherever they stand are not here: see `decoded`.
const formsOf = (secret: string): ReadonlyArray<string> => {
  const forms = new Set([secret])
  const trimmed = secret.trim()
  if (trimmed.length >= leastPartial) forms.add(trimmed)
  if (secret.length < leastPartial) return Array.from(forms)
  for (const form of Array.from(forms)) forms.add(form.replaceAll(" ", "+"))
  // Where what quotes it is undone, what the secret itself has of such escapes may be undone with that
  if (isLikeEscapes(secret)) {
    for (const form of Array.from(forms)) {
      for (const { text } of viewsOf(form, true)) if (text.length >= leastPartial) forms.add(text)
    }
  }
  const bytes = Buffer.from(secret)
  const text = bytes.toString()
  // Undone elsewhere, unless a percent sign stands before it that seems to be of its first two digits
  for (const encode of [encodeURIComponent, encodeURI]) forms.add(encode(text))
  forms.add(bytes.toString("base64").replace(/=+$/, ""))
  forms.add(bytes.toString("base64url"))
  // RFC 6749, section 2.3.1: what clients send as `Basic` is encoded for forms before. Tokens are JSON
  for (const inner of new Set([text, encodeURIComponent(text), formEncoded(text), JSON.stringify(text).slice(1, -1)])) {
    for (const form of within(Buffer.from(inner))) if (form.length >= windowSize) forms.add(form)
  }
  // A key in PEM is read line by line where a log is
  for (const line of secret.split(/[\r\n]+/)) {
    if (line.trim().length >= windowSize) forms.add(line.trim())
  }
  return Array.from(forms)
}

const formEncoded = (text: string) => new URLSearchParams([["", text]]).toString().slice(1)

/**
 * What the digits of a longer text have of `bytes`, wherever it stands in there: git sends `Basic` and the base64 of a
 * name, a colon and the token.
 */
const within = (bytes: Buffer): ReadonlyArray<string> => {
  const forms = [bytes.toString("hex"), bytes.toString("hex").toUpperCase()]
  for (const before of [0, 1, 2]) {
    const longer = Buffer.concat([Buffer.alloc(before), bytes])
    // A digit at either end that has bits of what stands beside it is left out
    const first = Math.ceil(before * 4 / 3)
    const last = Math.floor(longer.length * 4 / 3)
    forms.push(longer.toString("base64").slice(first, last), longer.toString("base64url").slice(first, last))
  }
  return forms
}

// What is shorter than this is a secret as a whole and not in any other form: too much would look like it
const leastPartial = 4

// -----------------------------------------------------------------------------
// The search
// -----------------------------------------------------------------------------

type Span = readonly [from: number, to: number]

const windowSize = 8

/** How many bytes are a row. */
const leastRow = 8

// From how many characters on a part of a secret is one
const leastPart = 15

// So that a token of 8 KB costs no more than a few windows. Its beginning and its end always have one.
const maxWindows = 32

// The tokens of one issuer all begin alike: a few of them stand for the rest, each of which is known by its rarest
// window
const maxSharers = 8

interface Window {
  readonly secret: string
  readonly offset: number
}

/** All that are alike, and how much of a secret may stand before and after where they begin. */
interface Windows {
  readonly all: Array<Window>
  before: number
  after: number
}

interface Index {
  readonly add: (secret: string) => void
  readonly find: (text: string, found: (from: number, to: number) => void) => void
  readonly longest: () => number
}

const makeIndex = (): Index => {
  // By size, of which there are eight at most: secrets that are shorter than a window are windows of their own size
  const tables = new Map<number, Map<number, Windows>>()
  let longest = 0

  const windowsAt = (secret: string, offset: number, size: number): Windows => {
    let table = tables.get(size)
    if (table === undefined) tables.set(size, table = new Map())
    const key = keyOf(hashOf(secret, offset, size))
    let windows = table.get(key)
    if (windows === undefined) table.set(key, windows = { all: [], before: 0, after: 0 })
    return windows
  }
  const push = (windows: Windows, secret: string, offset: number) => {
    windows.all.push({ secret, offset })
    windows.before = Math.max(windows.before, offset)
    windows.after = Math.max(windows.after, secret.length - offset)
  }

  return {
    longest: () => longest,
    add: (secret) => {
      const { length } = secret
      longest = Math.max(longest, length)
      const size = Math.min(length, windowSize)
      const last = length - size
      const stride = Math.max(windowSize, Math.ceil(length / maxWindows))
      let rarest = windowsAt(secret, last, size)
      let rarestAt = last
      let isKnown = false
      for (let offset = 0; offset <= last; offset = offset < last ? Math.min(offset + stride, last) : last + 1) {
        const windows = windowsAt(secret, offset, size)
        if (windows.all.length < rarest.all.length) {
          rarest = windows
          rarestAt = offset
        }
        if (windows.all.length >= maxSharers) continue
        push(windows, secret, offset)
        isKnown = true
      }
      if (!isKnown) push(rarest, secret, rarestAt)
    },
    find: (text, found) => {
      for (const [size, table] of tables) findWindows(text, size, table, found)
    }
  }
}

const findWindows = (
  text: string,
  size: number,
  table: ReadonlyMap<number, Windows>,
  found: (from: number, to: number) => void
) => {
  if (text.length < size) return
  const highest = highestOf(size)
  let hash = hashOf(text, 0, size)
  // What was found last, as far as it is of one piece: a secret that lies within it is not looked at again
  let from = 0
  let to = 0
  const push = (first: number, end: number) => {
    if (first > to) {
      found(from, to)
      from = first
    } else from = Math.min(from, first)
    to = Math.max(to, Math.min(text.length, end))
  }
  // A text that is made to be slow, nearly a secret everywhere, is not read with care: each window of a secret is one
  let patience = 50_000 + 50 * text.length
  const look = (at: number, { after, all, before }: Windows) => {
    for (const { offset, secret } of all) {
      if (patience <= 0) return push(Math.max(0, at - before), at + after)
      patience--
      if (Math.max(0, at - offset) >= from && Math.min(text.length, at - offset + secret.length) <= to) continue
      const left = commonBefore(text, at, secret, offset)
      const right = commonAfter(text, at, secret, offset)
      patience -= left + right
      if (right >= size && left + right >= Math.min(secret.length, leastPart)) push(at - left, at + right)
    }
  }
  for (let at = 0;; at++) {
    const windows = table.get(keyOf(hash))
    if (windows !== undefined) look(at, windows)
    if (at + size >= text.length) break
    hash = (Math.imul(hash - Math.imul(text.charCodeAt(at), highest), base) + text.charCodeAt(at + size)) | 0
  }
  found(from, to)
}

const commonBefore = (text: string, at: number, secret: string, offset: number): number => {
  const most = Math.min(at, offset)
  let length = 0
  while (length < most && text.charCodeAt(at - length - 1) === secret.charCodeAt(offset - length - 1)) length++
  return length
}

const commonAfter = (text: string, at: number, secret: string, offset: number): number => {
  const most = Math.min(text.length - at, secret.length - offset)
  let length = 0
  while (length < most && text.charCodeAt(at + length) === secret.charCodeAt(offset + length)) length++
  return length
}

const base = 0x01000193

const hashOf = (text: string, from: number, size: number): number => {
  let hash = 0
  for (let at = from; at < from + size; at++) hash = (Math.imul(hash, base) + text.charCodeAt(at)) | 0
  return hash
}

// V8 keeps integers of up to 31 bits without an object of their own
const keyOf = (hash: number): number => hash & 0x3FFFFFFF

const highestOf = (size: number): number => {
  let highest = 1
  for (let power = 1; power < size; power++) highest = Math.imul(highest, base)
  return highest
}

const without = (text: string, found: ReadonlyArray<Span>): string => {
  let rest = 0
  let scrubbed = ""
  for (const [from, to] of found.toSorted((a, b) => a[0] - b[0])) {
    if (to <= rest) continue
    if (from >= rest) scrubbed += text.slice(rest, from) + redacted
    rest = to
  }
  return scrubbed + text.slice(rest)
}

// -----------------------------------------------------------------------------
// What a text stands for
// -----------------------------------------------------------------------------

// JSON in JSON in a URL, and one more
const maxLayers = 4

// Enough for all that is read of a text that is quoted twice
const maxViews = 30

interface View {
  readonly text: string
  /** Where each character, and the end, begins in the text that was given. Undefined for that text itself. */
  readonly starts: Int32Array | undefined
  readonly layer: number
}

// Of what is longer there are parts that are found anyway
const maxLikeEscapes = 256

/** Whether a secret has what could be undone in it. */
const isLikeEscapes = (secret: string): boolean =>
  secret.length <= maxLikeEscapes && /[\\%&]|[\da-f][\s,:]/i.test(secret)

// A longer text is not looked at kind by kind: that takes ten times as long
const maxEach = 4_096

/**
 * A text as it is, and with its escapes undone layer by layer: all kinds at once and, `isEach`, each alone too. A
 * backslash in what is percent-encoded is none of an escape, and an entity behind one is an entity.
 */
const viewsOf = (text: string, isEach: boolean): ReadonlyArray<View> => {
  const views: Array<View> = [{ text, starts: undefined, layer: 0 }]
  const seen = new Set([text])
  const most = text.length > maxEach ? 2 * (maxLayers + 1) : maxViews
  const see = (view: View, escapes: RegExp) => {
    const next = views.length < most && view.layer < maxLayers ? decoded(view, escapes) : undefined
    if (next === undefined || seen.has(next.text)) return
    views.push(next)
    seen.add(next.text)
  }
  // `views` grows by what is seen in them
  for (const view of views) {
    see(view, everyKind)
    see(view, numbers)
  }
  if (!isEach || text.length > maxEach) return views
  for (const view of views) {
    const alone = kinds.filter(({ sign }) => view.text.includes(sign))
    if (alone.length < 2) continue
    for (const escapes of [everyKind, ...alone.map((kind) => kind.escapes)]) see(view, escapes)
  }
  return views
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

/** The end of a text that may be the beginning of a row. */
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
const decoded = ({ layer, starts, text }: View, escapes: RegExp): View | undefined => {
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
