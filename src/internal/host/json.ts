/**
 * What a value is as JSON: that of `JSON.parse(JSON.stringify(value))`, without the text between the two. What that
 * costs grows with the characters, and this with the values: a string is not looked into.
 */
import { types } from "node:util"

/**
 * `undefined` if it is nothing in JSON. Throws as `JSON.stringify` does, and what the value's own `toJSON` and getters
 * throw; each of these is asked once. SerializeJSONProperty of ECMA-262 section 25.5.2.
 */
export const jsonOf = (value: unknown, key = ""): unknown => {
  const said = primitiveOf(replaced(value, key))
  switch (typeof said) {
    case "string":
    case "boolean":
      return said
    case "number":
      // There is no -0
      return Number.isFinite(said) ? said + 0 : null
    case "bigint":
      throw new TypeError("A BigInt is no JSON")
    case "object":
      if (said === null || isRaw(said)) return said
      return Array.isArray(said) ? elementsOf(said) : membersOf(said)
    default:
      return undefined
  }
}

const replaced = (value: unknown, key: string): unknown => {
  if (value === null || (typeof value !== "object" && typeof value !== "function" && typeof value !== "bigint")) {
    return value
  }
  const { toJSON } = value as { readonly toJSON?: unknown }
  return typeof toJSON === "function" ? toJSON.call(value, key) : value
}

const primitiveOf = (value: unknown): unknown => {
  if (typeof value !== "object" || !types.isBoxedPrimitive(value)) return value
  if (types.isNumberObject(value)) return Number(value)
  if (types.isStringObject(value)) return String(value)
  if (types.isBooleanObject(value)) return Boolean.prototype.valueOf.call(value)
  return types.isBigIntObject(value) ? BigInt.prototype.valueOf.call(value) : value
}

// Since Node 22: a text that is JSON, and never changes
const { isRawJSON } = JSON as { readonly isRawJSON?: (value: unknown) => boolean }

const isRaw = (value: object): boolean => isRawJSON?.(value) === true

const elementsOf = (values: ReadonlyArray<unknown>): Array<unknown> => {
  const elements: Array<unknown> = []
  for (let i = 0; i < values.length; i++) elements.push(jsonOf(values[i], String(i)) ?? null)
  return elements
}

const membersOf = (value: object): object => {
  const members: Record<string, unknown> = {}
  for (const name of Object.keys(value)) {
    const member = jsonOf((value as Readonly<Record<string, unknown>>)[name], name)
    if (member === undefined) continue
    // By assignment it would not be a member
    if (name === "__proto__") Object.defineProperty(members, name, { ...own, value: member })
    else members[name] = member
  }
  return members
}

const own = { configurable: true, enumerable: true, writable: true }
