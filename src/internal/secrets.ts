/**
 * What of all that a session is given is a secret: credentials always, other values by what they are called and by what
 * they look like. `NODE_ENV=production` makes no secret of a word, `DB_PASSWORD=production` does.
 */
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type { Credentials } from "../Identity.ts"

/**
 * The header, the token, and the password of `basic`, which an upstream may quote on its own.
 */
export const ofCredentials = (credentials: Option.Option<Credentials>): ReadonlyArray<string> => {
  if (Option.isNone(credentials)) return []
  const { header, scheme, token } = credentials.value
  const found = [Redacted.value(header), Redacted.value(token)]
  return scheme === "basic" ? [...found, ...ofBasic(Redacted.value(token))] : found
}

/**
 * Those of environment variables, or of headers.
 */
export const ofRecord = (record: Readonly<Record<string, string>>): ReadonlyArray<string> =>
  Object.entries(record).flatMap(([name, value]) => ofValue(name, value))

/**
 * Those of a command line: `--api-key abc`, `--api-key=abc`, `-e TOKEN=abc`, `https://user:abc@host`.
 */
export const ofArguments = (args: ReadonlyArray<string>): ReadonlyArray<string> =>
  args.flatMap((arg, index) => {
    const flag = index > 0 && /^--?[^=]+$/.test(args[index - 1]!) ? args[index - 1]! : ""
    return ofValue(flag, arg)
  })

/**
 * Those of a URL: its password, a user that stands alone, and the values and path segments that are secrets by their
 * name or look.
 */
export const ofUrl = (url: URL, depth = 0): ReadonlyArray<string> => {
  const user = decode(url.username)
  return [
    ...(url.password === "" ? [] : [decode(url.password)]),
    ...(looksSecret(user) || (url.password === "" && !/^[a-z]*$/i.test(user)) ? [user] : []),
    ...Array.from(url.searchParams).flatMap(([name, value]) => ofValue(name, value, depth)),
    ...url.pathname.split("/").map(decode).filter(looksSecret)
  ]
}

const ofValue = (name: string, value: string, depth = 0): ReadonlyArray<string> => {
  const parts = depth < maxDepth ? partsOf(name, value, depth + 1) : []
  if (isNamedSecret(name, value)) return [value, ...parts]
  // What has parts is known by them: the rest of a URL or a list is no secret
  return parts.length > 0 || isStructured(value) ? parts : value.split(/\s+/).filter(looksSecret)
}

// `a=a=a=…` has parts within parts: each of them is looked at once for each level
const maxDepth = 8

/** The secrets within a value that has a structure of its own. */
const partsOf = (name: string, value: string, depth: number): ReadonlyArray<string> => {
  const text = value.trim()
  if (text.startsWith("{") || text.startsWith("[")) {
    const json = parseJson(text)
    if (json !== undefined) return ofJson(name, json, depth)
  }
  if (/^[a-z][\w+.-]*:\/\//i.test(text) && URL.canParse(text)) return ofUrl(new URL(text), depth)
  const [, scheme, credential] = /^([a-z][\w-]*)[ \t]+(\S+)$/i.exec(text) ?? []
  if (scheme !== undefined && credential !== undefined && isNamedSecret(name, credential)) {
    return /^basic$/i.test(scheme) ? [credential, ...ofBasic(credential)] : [credential]
  }
  // Cookies, connection strings, `KEY=value`
  return text.split(/[;,&\s]+/).flatMap((pair) => {
    const at = pair.indexOf("=")
    return at > 0 && at < pair.length - 1 ? ofValue(pair.slice(0, at), unquoted(pair.slice(at + 1)), depth) : []
  })
}

const isStructured = (value: string): boolean => /^\s*[[{]|^\s*[a-z][\w+.-]*:\/\//i.test(value)

// Without recursion: JSON may be nested deeper than the stack is
const ofJson = (name: string, json: unknown, depth: number): ReadonlyArray<string> => {
  const found: Array<string> = []
  const left: Array<readonly [name: string, value: unknown]> = [[name, json]]
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const [called, value] = next
    if (typeof value === "string") { for (const secret of ofValue(called, value, depth)) found.push(secret) }
    else if (typeof value === "object" && value !== null) {
      for (const [key, item] of Object.entries(value)) left.push([Array.isArray(value) ? called : key, item])
    }
  }
  return found
}

const parseJson = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

// RFC 7617: `user:password`
const ofBasic = (token: string): ReadonlyArray<string> => {
  const pair = Buffer.from(token, "base64").toString()
  const password = pair.slice(pair.indexOf(":") + 1)
  return password.length < leastNamed ? [] : [pair, password]
}

const unquoted = (text: string): string => text.replace(/^(["'])(.*)\1$/s, "$2")

const decode = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

// -----------------------------------------------------------------------------
// By name
// -----------------------------------------------------------------------------

// Anything shorter is found everywhere
const leastNamed = 4

const isNamedSecret = (name: string, value: string): boolean => {
  if (value.trim().length < leastNamed || /^\s*(true|false|null|none|undefined)\s*$/i.test(value)) return false
  // `GOOGLE_APPLICATION_CREDENTIALS=/run/key.json`
  if (/^\s*(~|\.{1,2})?\//.test(value) && !looksSecret(value)) return false
  const words = name.replace(/([a-z\d])([A-Z])/g, "$1 $2").toLowerCase().split(/[^a-z\d]+/).filter((word) =>
    word !== ""
  )
  if (words.some((word) => amounts.has(word)) || settings.has(words.at(-1) ?? "")) return false
  if (strongNames.test(words.join(""))) return true
  // `SORT_KEY=name`, `AUTH=basic`
  return words.some((word) => weakNames.has(word)) && !/^\s*[a-z]+\s*$/i.test(value)
}

const strongNames = new RegExp(
  [
    "token|secret|passw|passphrase|passcode|credential|apikey|privatekey|accesskey",
    "cookie|authorization|bearer|jwt|signature"
  ].join("|")
)

const weakNames: ReadonlySet<string> = new Set([
  "auth",
  "cert",
  "dsn",
  "key",
  "keys",
  "otp",
  "pass",
  "pat",
  "pgpass",
  "pin",
  "pw",
  "pwd",
  "session",
  "sid",
  "sig",
  "webhook"
])

// `MAX_TOKENS`
const amounts: ReadonlySet<string> = new Set(["count", "length", "limit", "max", "min", "num", "size"])

// What a name ends in that is about a secret and has none in it
const settings: ReadonlySet<string> = new Set([
  "alg",
  "algorithm",
  "audience",
  "dir",
  "directory",
  "enabled",
  "endpoint",
  "file",
  "header",
  "host",
  "issuer",
  "kind",
  "mode",
  "name",
  "path",
  "port",
  "realm",
  "region",
  "scheme",
  "scope",
  "scopes",
  "timeout",
  "ttl",
  "type",
  "uri",
  "url",
  "version"
])

// -----------------------------------------------------------------------------
// By look
// -----------------------------------------------------------------------------

// What is shorter than this is rather a flag than a secret
const leastUnnamed = 8

/** Whether a value is anything but words, numbers and what stands between them: paths, hosts, versions, sentences. */
const looksSecret = (value: string): boolean => {
  if (value.length < leastUnnamed) return false
  const pieces = value.split(/[^\p{L}\p{N}]+/u).filter((piece) => piece !== "")
  const odd = pieces.filter((piece) => !isWord(piece) && !/^\p{N}{1,8}$/u.test(piece))
  if (/[^\p{L}\p{N}\s/\\._:,;=@()+*"'~-]/u.test(value)) {
    return odd.length > 0 || pieces.join("").length < 3 * pieces.length
  }
  // "x86_64-linux-gnu", "gpt-4o-mini": a few short ones among words
  return odd.length * 2 > pieces.length ||
    odd.some((piece) => piece.length > 4 && !/^\p{L}{1,8}\p{N}{1,3}$/u.test(piece))
}

const isWord = (piece: string): boolean => {
  if (/^\p{L}{1,2}$/u.test(piece)) return true
  if (piece.length > 20 || !/^(?:\p{Lu}+|\p{Lu}?\p{Ll}{2,}|\p{Lo}+)(?:\p{Lu}\p{Ll}{2,})*$/u.test(piece)) return false
  // Words can be spoken
  return piece.length < leastUnnamed || !/^[a-z]+$/i.test(piece) ||
    (/[aeiouy]/i.test(piece) && !/[^aeiouy]{6}/i.test(piece) && vowels(piece) >= piece.length / 6)
}

const vowels = (word: string): number => word.replace(/[^aeiouy]/gi, "").length
