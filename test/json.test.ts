/**
 * What is read of a response is what JSON says of it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import { runInNewContext } from "node:vm"
import { jsonOf } from "../src/internal/host/json.ts"
import { many, seed, underLoad } from "./support/load.ts"

/** What there is to a value, with the order of its members. */
const throughText = (value: unknown): unknown => {
  const text: string | undefined = JSON.stringify(value)
  return text === undefined ? undefined : JSON.parse(text)
}

const assertAsThroughText = (value: () => unknown) => {
  const [read, expected] = [jsonOf(value()), throughText(value())]
  assert.deepStrictEqual(read, expected)
  assert.strictEqual(JSON.stringify(read), JSON.stringify(expected))
}

class Member {
  readonly #hidden = 1
  readonly own = "own"
  get inherited() {
    return this.#hidden
  }
}

const hostile = () => {
  throw new Error("hostile")
}

const exotic = fc.constantFrom<() => unknown>(
  () => undefined,
  () => () => 1,
  () => Symbol("a"),
  () => Object(Symbol("a")),
  () => -0,
  () => Number.NaN,
  () => -Infinity,
  () => new Date(0),
  () => new Date(Number.NaN),
  () => new Map([["a", 1]]),
  () => new Uint8Array([1, 2]),
  () => Buffer.from("bytes"),
  () => new Error("message"),
  () => new Member(),
  () => Object.create({ inherited: 1 }, { own: { value: 2, enumerable: true }, hidden: { value: 3 } }),
  () => new Proxy([1, { a: 2 }], {}),
  () => new Proxy({ a: 1, b: [] }, { ownKeys: () => ["b", "a"] }),
  () => Object.assign(Array.from({ length: 1 }), { length: 3 }),
  () => Object.assign([1], { named: 2 }),
  () => Object.assign(Object(5), { named: 2 }),
  () => Object("boxed"),
  () => Object(true),
  () => Object.assign(Object(5), { valueOf: () => 6 }),
  () => Object.assign(Object("5"), { toString: () => "6" }),
  () => runInNewContext("({ n: new Number(1), a: [new String('x')], d: new Date(5), f() {} })"),
  () => ({ toJSON: (key: string) => `replaced at ${key}` }),
  () => ({ toJSON: () => ({ toJSON: () => "not asked again" }) }),
  () => ({ toJSON: () => undefined }),
  () => ({ toJSON: () => Object(7) }),
  () => ({ toJSON: "no function", a: 1 }),
  () => Object.assign(() => 1, { toJSON: () => "of a function" }),
  () => JSON.parse("{\"__proto__\":{\"a\":1},\"constructor\":2,\"10\":3,\"9\":4,\"b\":5}"),
  () => ({ [Symbol("a")]: 1, b: 2 }),
  () => "\u{d800} lone \u2028",
  () => ({
    get a() {
      return { b: 1 }
    }
  })
)

describe("A value as JSON", () => {
  const values = fc.letrec<{ readonly tree: () => unknown }>((tie) => ({
    tree: fc.oneof(
      { maxDepth: 4, withCrossShrink: true },
      exotic,
      fc.jsonValue().map((value) => () => value),
      fc.array(tie("tree"), { maxLength: 4 }).map((all) => () => all.map((each) => each())),
      fc.dictionary(fc.oneof(fc.string(), fc.constantFrom("__proto__", "toString", "length", "0")), tie("tree"), {
        maxKeys: 4
      }).map((all) => () => Object.fromEntries(Object.entries(all).map(([name, each]) => [name, each()])))
    )
  }))

  it("is what its text says when it is read", underLoad, () => {
    fc.assert(fc.property(values.tree, assertAsThroughText), { numRuns: many(500, 50_000), seed })
  })

  it("has the digits of a raw text of JSON, where Node knows these", () => {
    const { rawJSON = (text: string): unknown => Number(text) } = JSON as {
      readonly rawJSON?: (text: string) => unknown
    }
    const value = { n: [rawJSON("12345678901234567890")] }
    assert.strictEqual(JSON.stringify(jsonOf(value)), JSON.stringify(value))
  })

  it("is nothing where its text throws: of a BigInt, of a circle, of what throws itself", () => {
    const circle: Record<string, unknown> = {}
    circle["again"] = [circle]
    for (
      const value of [
        1n,
        Object(1n),
        { a: [1n] },
        circle,
        { toJSON: hostile },
        Object.defineProperty({}, "a", { enumerable: true, get: hostile })
      ]
    ) {
      assert.throws(() => JSON.stringify(value))
      assert.throws(() => jsonOf(value))
    }
  })

  it("asks each of its parts once", () => {
    const asked: Array<string> = []
    const value = {
      get a() {
        asked.push("a")
        return { toJSON: (key: string) => (asked.push(`toJSON ${key}`), [1]) }
      }
    }
    assert.deepStrictEqual(jsonOf(value), { a: [1] })
    assert.deepStrictEqual(asked, ["a", "toJSON a"])
  })
})
