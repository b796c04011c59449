import * as Readings from "./readings.ts"
import * as Windows from "./windows.ts"

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
  let index = Windows.make()
  let hasLikeEscapes = false

  const entryOf = (secret: string): Entry => {
    let entry = known.get(secret)
    if (entry === undefined) {
      entry = { holders: 0, forms: formsOf(secret) }
      known.set(secret, entry)
      for (const form of entry.forms) index.add(form)
      hasLikeEscapes ||= Readings.isLikeEscapes(secret)
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
    index = Windows.make()
    for (const { forms } of known.values()) for (const form of forms) index.add(form)
  }

  const search = (text: string, isCut: boolean, isEach = hasLikeEscapes): string => {
    if (known.size === 0) return text
    const found: Array<Span> = []
    for (const { starts, text: read } of Readings.of(text, isEach)) {
      const push = (from: number, to: number) => {
        if (from < to) found.push(starts === undefined ? [from, to] : [starts[from]!, starts[to]!])
      }
      index.find(read, push)
      // A beginning of `leastPart` characters would be found; the last escape may be half of one, or a row too short
      const { length } = read
      if (isCut) push(Math.max(0, length - Math.min(index.longest(), Windows.leastPart) - 6), length)
      if (isCut) push(length - Readings.rowBegun(read), length)
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
      if (values.length >= Readings.leastRow && values.every((one) => typeof one === "number")) {
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
        return scrubData(JSON.parse(json), hasLikeEscapes && json.length <= Readings.maxEach)
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

type Span = readonly [from: number, to: number]

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
// The forms of a secret
// -----------------------------------------------------------------------------

// What a text may quote in its place. Encodings that can be undone wherever they stand are not here: see `readings.ts`.
const formsOf = (secret: string): ReadonlyArray<string> => {
  const forms = new Set([secret])
  const trimmed = secret.trim()
  if (trimmed.length >= leastPartial) forms.add(trimmed)
  if (secret.length < leastPartial) return Array.from(forms)
  for (const form of Array.from(forms)) forms.add(form.replaceAll(" ", "+"))
  // Where what quotes it is undone, what the secret itself has of such escapes may be undone with that
  if (Readings.isLikeEscapes(secret)) {
    for (const form of Array.from(forms)) {
      for (const { text } of Readings.of(form, true)) if (text.length >= leastPartial) forms.add(text)
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
    for (const form of within(Buffer.from(inner))) if (form.length >= Windows.windowSize) forms.add(form)
  }
  // A key in PEM is read line by line where a log is
  for (const line of secret.split(/[\r\n]+/)) {
    if (line.trim().length >= Windows.windowSize) forms.add(line.trim())
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
