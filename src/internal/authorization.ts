/**
 * The one credential in a header of a request, and the keyed digest that its owner is known by.
 */
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { createHmac, randomBytes } from "node:crypto"
import { Credentials, type CredentialScheme } from "../Identity.ts"
import * as RequestHeaders from "./headers.ts"

/**
 * The only value of the header, `undefined` if there is none, or what is wrong with it. `name` is in lower case.
 */
export const valueIn = (request: unknown, name: string): Result.Result<string | undefined, string> => {
  const values = RequestHeaders.valuesIn(request, name)
  if (values === undefined) return Result.fail("the request has no headers that can be read")
  if (values.length > 1) return Result.fail("it is there more than once")
  const value = values[0]
  return value === undefined && values.length === 0 || typeof value === "string"
    ? Result.succeed(value as string | undefined)
    : Result.fail("its value is not a string")
}

let processSecret: Buffer | undefined

export const digestUnder = (keySecret: Redacted.Redacted | undefined): (token: string) => string => {
  const secret = keySecret === undefined ? (processSecret ??= randomBytes(32)) : Redacted.value(keySecret)
  return (token) => createHmac("sha256", secret).update(token).digest("base64url")
}

export const makeCredentials = (
  scheme: CredentialScheme,
  token: string,
  header: string,
  name: string,
  expiresAt?: number
): Credentials =>
  new Credentials({
    scheme,
    token: Redacted.make(token, { label: "token" }),
    header: Redacted.make(header, { label: "header" }),
    name,
    expiresAt
  })

/**
 * What is known of the newest header values, first in, first out, so that a caller who comes back costs neither
 * parsing nor digest.
 */
export const makeMemo = <A>() => {
  const capacity = 1024
  const maxLength = 4096
  const known = new Map<string, A>()
  return {
    get: (value: string): A | undefined => value.length > maxLength ? undefined : known.get(value),
    set(value: string, what: A): void {
      if (value.length > maxLength) {
        return
      }
      known.set(value, what)
      if (known.size > capacity) {
        known.delete(known.keys().next().value!)
      }
    }
  }
}

// -----------------------------------------------------------------------------
// Parsing its value, each step linear in its length
// -----------------------------------------------------------------------------

const maxValueLength = 16_384

/**
 * The one token in the value, or what is wrong with it, in words that have none of it.
 */
export const parse = (scheme: CredentialScheme, value: string): Result.Result<string, string> => {
  if (value.length > maxValueLength) {
    return Result.fail(`it is longer than ${maxValueLength} characters`)
  }
  if (value === "") {
    return Result.fail("it is empty")
  }
  const trimmed = trimOws(value)
  if (trimmed === "") {
    return Result.fail("it is nothing but whitespace")
  }
  // Control characters are forbidden (RFC 9110 section 5.5), the octets of a field value end at 255, and lone
  // surrogates would all have the digest of U+FFFD.
  if (!/^[ -~\x80-\xff]+$/.test(trimmed)) {
    return Result.fail("it has control characters, or characters beyond Latin-1")
  }
  return parsers[scheme](trimmed)
}

const parsers: Record<CredentialScheme, (value: string) => Result.Result<string, string>> = {
  bearer(value) {
    // b64token of RFC 6750 section 2.1
    const token = /^bearer +([A-Za-z0-9._~+/-]+=*)$/i.exec(value)?.[1]
    return token === undefined ? Result.fail("it is not `Bearer` and exactly one token") : Result.succeed(token)
  },
  basic(value) {
    const token = /^basic +([A-Za-z0-9+/]+=*)$/i.exec(value)?.[1]
    if (token === undefined) {
      return Result.fail("it is not `Basic` and exactly one base64 value")
    }
    const userPass = Buffer.from(token, "base64")
    if (userPass.toString("base64") !== token) {
      return Result.fail("its base64 is not valid")
    }
    return userPass.includes(":") && !userPass.some((byte) => byte < 0x20 || byte === 0x7f)
      ? Result.succeed(token)
      : Result.fail("its base64 does not hold user:password")
  },
  raw: Result.succeed
}

// A regular expression that looks for the end of whitespace tries again from each of its characters
const trimOws = (value: string): string => {
  const isOws = (i: number) => value[i] === " " || value[i] === "\t"
  let start = 0
  let end = value.length
  while (start < end && isOws(start)) start++
  while (end > start && isOws(end - 1)) end--
  return value.slice(start, end)
}
