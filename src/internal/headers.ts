/**
 * One header of a request, whatever the request is. Whoever can't read it must not take it for absent: then its sender
 * would be taken for nobody.
 */
import * as Headers from "effect/http/Headers"
import * as Predicate from "effect/Predicate"

/** Whether these are headers in place of a request. */
export const isHeaders = (u: unknown): boolean =>
  Headers.isHeaders(u) || (Predicate.isIterable(u) && Predicate.hasProperty(u, "get"))

/**
 * The value of the header, if the request is of a usual shape and has that header once, as a string: the same that
 * {@link valuesIn} finds, for a third of the time. Else `undefined`, and `valuesIn` has to tell.
 */
export const onlyValueIn = (request: object, name: string): string | undefined => {
  try {
    // Properties are read and not asked for with `in`, which takes longer than all the rest
    const { headers, raw, source, [Symbol.iterator]: iterator } = request as Record<string | symbol, unknown>
    if (iterator !== undefined || typeof headers !== "object" || headers === null) return undefined
    const value = Object.getPrototypeOf(headers) === globalThis.Headers.prototype
      ? onlyValueOfNative(headers as globalThis.Headers, name)
      : onlyValueOfRecord(headers as Record<string, unknown>, name)
    // As in `rawValuesOf`: what is asked first is the request itself
    return value === undefined || isRepeated(request, name) || isRepeated(raw, name) || isRepeated(source, name)
      ? undefined
      : value
  } catch {
    return undefined
  }
}

const onlyValueOfNative = (headers: globalThis.Headers, name: string): string | undefined =>
  Object.hasOwn(headers, "get") ? undefined : headers.get(name) ?? undefined

const onlyValueOfRecord = (headers: Record<string, unknown>, name: string): string | undefined => {
  const value = headers[name]
  if (typeof value !== "string" || isIterable(headers) || !isRecord(headers)) return undefined
  let isOwn = false
  for (const key of Object.getOwnPropertyNames(headers)) {
    if (key === name) isOwn = true
    else if (isName(key, name)) return undefined
  }
  return isOwn ? value : undefined
}

const isIterable = (headers: { readonly [Symbol.iterator]?: unknown }): boolean =>
  headers[Symbol.iterator] !== undefined

const isRepeated = (message: unknown, name: string): boolean => {
  if (typeof message !== "object" || message === null) return false
  const { rawHeaders } = message as { readonly rawHeaders?: unknown }
  if (!Array.isArray(rawHeaders)) return false
  let count = 0
  for (let i = 0; i < rawHeaders.length; i += 2) if (isName(rawHeaders[i], name)) count++
  return count > 1
}

/**
 * All values of the header in the request, of whatever type they are, or `undefined` when there is no reading it.
 * `name` is in lower case.
 */
export const valuesIn = (request: unknown, name: string): ReadonlyArray<unknown> | undefined => {
  // A getter, proxy or iterator that throws can't be read either
  try {
    const values = valuesOf(headersOf(request), name)
    const raw = rawValuesOf(request, name)
    // The value is never taken from here, but two of them are refused
    return values !== undefined && raw.length > 1 ? raw : values
  } catch {
    return undefined
  }
}

const headersOf = (request: unknown): unknown => {
  // These may have a header of any name, also "headers"
  if (Headers.isHeaders(request)) return request
  if (!isHeaders(request)) return property(request, "headers")
  return Predicate.hasProperty(request, "headers") ? undefined : request
}

const valuesOf = (headers: unknown, name: string): ReadonlyArray<unknown> | undefined => {
  if (!Predicate.isObjectOrArray(headers)) return undefined
  const values = Predicate.isIterable(headers) ? valuesOfPairs(headers, name) : valuesOfRecord(headers, name)
  return values?.length === 0 && isHiding(headers, name) ? undefined : values
}

const valuesOfPairs = (headers: Iterable<unknown>, name: string): ReadonlyArray<unknown> | undefined => {
  const values: Array<unknown> = []
  let isEmpty = true
  for (const pair of headers) {
    isEmpty = false
    if (!Array.isArray(pair) || pair.length !== 2 || typeof pair[0] !== "string") return undefined
    if (isName(pair[0], name)) add(values, pair[1])
  }
  // An iterator that ends at once has been read before
  return isEmpty && Predicate.hasProperty(headers, "next") ? undefined : values
}

const valuesOfRecord = (headers: object, name: string): ReadonlyArray<unknown> | undefined => {
  if (!isRecord(headers)) return undefined
  const values: Array<unknown> = []
  // Own properties only: there is a header named "constructor" when somebody sends it
  for (const key of Object.getOwnPropertyNames(headers)) {
    if (!isName(key, name)) continue
    const value = property(headers, key)
    if (value !== undefined) add(values, value)
  }
  return values
}

const add = (values: Array<unknown>, value: unknown): void => {
  if (!Array.isArray(value)) values.push(value)
  else for (const item of value) values.push(item)
}

// An instance of some class may well have headers, and in a way that is not known here
const isRecord = (headers: object): boolean => {
  const prototype: unknown = Object.getPrototypeOf(headers)
  if (prototype === Object.prototype || prototype === null || Headers.isHeaders(headers)) return true
  // That of another realm
  return Predicate.isObject(prototype) && Object.getPrototypeOf(prototype) === null &&
    Object.hasOwn(prototype, "isPrototypeOf") && Object.keys(prototype).length === 0
}

// Whoever asks for the header has it, though it is not among those that are told: a proxy, a property of a Map
const isHiding = (headers: object, name: string): boolean => {
  const value = property(headers, name)
  // Every Map has a "size", and every object a "constructor"
  const isOfAll = typeof value !== "string" && Predicate.hasProperty(Object.getPrototypeOf(headers), name)
  if (value !== undefined && !isEmptyArray(value) && !isOfAll) return true
  if (Predicate.isIterable(headers) && Object.getOwnPropertyNames(headers).some((key) => isName(key, name))) return true
  return Predicate.hasProperty(headers, "get") && typeof headers.get === "function" &&
    !Predicate.isNullish(headers.get(name))
}

const isEmptyArray = (u: unknown): boolean => Array.isArray(u) && u.length === 0

/**
 * The header's values as Node received them. Of a repeated `authorization`, its `headers` keep the first and drop the
 * rest.
 */
const rawValuesOf = (request: unknown, name: string): ReadonlyArray<unknown> => {
  for (const message of [request, property(request, "raw"), property(request, "source")]) {
    const rawHeaders = property(message, "rawHeaders")
    if (!Array.isArray(rawHeaders)) continue
    const values: Array<unknown> = []
    for (let i = 0; i < rawHeaders.length; i += 2) {
      if (isName(rawHeaders[i], name)) values.push(rawHeaders[i + 1])
    }
    return values
  }
  return []
}

const property = (u: unknown, name: string): unknown => Predicate.hasProperty(u, name) ? u[name] : undefined

const isName = (u: unknown, name: string): boolean =>
  u === name || (typeof u === "string" && u.length === name.length && u.toLowerCase() === name)
