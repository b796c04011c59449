/**
 * Where secrets stand in a text, and parts of them from `leastPart` characters on. The text is read once, however many
 * there are: through windows of eight characters, and only where a window is known is there something to compare.
 */
export interface Index {
  readonly add: (secret: string) => void
  readonly find: (text: string, found: (from: number, to: number) => void) => void
  readonly longest: () => number
}

export const windowSize = 8

// From how many characters on a part of a secret is one
export const leastPart = 15

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

export const make = (): Index => {
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
