/**
 * Whatever shape a request has: a credential that is in it in any readable way is never taken for none.
 */
import { assert, describe, it } from "@effect/vitest"
import { type IdentityRequest, IdentityResolver, type IdentityResolverOptions } from "effect-mcp-sessions"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import * as EffectHeaders from "effect/http/Headers"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { inspect } from "node:util"
import { runInNewContext } from "node:vm"
import { many, seed, underLoad } from "./support/load.ts"

type Field = readonly [name: string, value: unknown]
type Fields = ReadonlyArray<Field>

/**
 * `shared`, the token, or the tag of the error, in the mode "optional" if no other is given. The resolver knows the
 * credential already: what it answers at once for that reason must be what it would find by looking at all of the
 * request.
 */
const outcome = (request: unknown, options: IdentityResolverOptions = {}) =>
  IdentityResolver.resolve({ headers: { authorization: "Bearer abc" } }).pipe(
    Effect.andThen(IdentityResolver.resolve(request as IdentityRequest)),
    Effect.match({
      onSuccess: ({ credentials, shared }) => shared ? "shared" : Redacted.value(Option.getOrThrow(credentials).token),
      onFailure: (error) => error._tag
    }),
    Effect.provide(IdentityResolver.layer(options))
  )

// --- Shapes that are read ---

const record = (fields: Fields): object => Object.fromEntries(fields)
const readable: Readonly<Record<string, (fields: Fields) => unknown>> = {
  "a plain object": record,
  "an object without a prototype": (fields) => Object.assign(Object.create(null), record(fields)),
  "an object of another realm": (fields) => Object.assign(runInNewContext("({})"), record(fields)),
  "an object with getters": (fields) => {
    const headers = {}
    for (const [name, value] of fields) {
      Object.defineProperty(headers, name, { get: () => value, enumerable: true, configurable: true })
    }
    return headers
  },
  "an object whose properties are not enumerable": (fields) => {
    const headers = {}
    for (const [name, value] of fields) Object.defineProperty(headers, name, { value, configurable: true })
    return headers
  },
  "a frozen object": (fields) => Object.freeze(record(fields)),
  "a proxy of an object": (fields) => new Proxy(record(fields), {}),
  "a Map": (fields) => new Map(fields),
  "a subclass of Map": (fields) => new (class extends Map<string, unknown> {})(fields),
  "pairs": (fields) => fields.map(([name, value]) => [name, value]),
  "a Set of pairs": (fields) => new Set(fields),
  "a class that iterates": (fields) => new Iterates(fields),
  "an iterator": (fields) => fields[Symbol.iterator](),
  "a generator": (fields) => generate(fields)
}

class Iterates {
  readonly #fields: Fields
  constructor(fields: Fields) {
    this.#fields = fields
  }
  [Symbol.iterator]() {
    return this.#fields[Symbol.iterator]()
  }
}

function* generate(fields: Fields) {
  yield* fields
}

// --- Shapes that are not ---

class Holds {
  readonly fields: Fields
  constructor(fields: Fields) {
    this.fields = fields
  }
  get authorization() {
    return this.fields.find(([name]) => name.toLowerCase() === "authorization")?.[1]
  }
}

class Answers {
  readonly #fields: Fields
  constructor(fields: Fields) {
    this.#fields = fields
  }
  get(name: string) {
    return this.#fields.find((field) => field[0].toLowerCase() === name)?.[1] ?? null
  }
}

const lower = (fields: Fields): Fields => fields.map(([name, value]) => [name.toLowerCase(), value])

/** A trap for every way to look. */
const thrower = new Proxy({}, {
  get(_, trap) {
    return () => {
      throw new Error(`not now: ${String(trap)}`)
    }
  }
})

const unreadable: Readonly<Record<string, (fields: Fields) => unknown>> = {
  "half of each pair": (fields) => fields.map(([name]) => [name]),
  "pairs with a third part": (fields) => fields.map(([name, value]) => [name, value, value]),
  "pairs within pairs": (fields) => [fields],
  "names and values in turn": (fields) => fields.flat(),
  "pairs that are objects": (fields) => fields.map(([name, value]) => ({ name, value })),
  "pairs that are like arrays": (fields) => fields.map(([name, value]) => ({ 0: name, 1: value, length: 2 })),
  "pairs that are Sets": (fields) => fields.map((field) => new Set(field)),
  "pairs with a number for a name": (fields) => fields.map(([, value]) => [1, value]),
  "pairs with a symbol for a name": (fields) => fields.map(([name, value]) => [Symbol(name), value]),
  "lines": (fields) => fields.map(([name, value]) => `${name}: ${String(value)}`),
  "text": (fields) => fields.map(([name, value]) => `${name}: ${String(value)}`).join("\r\n"),
  "an instance of a class": (fields) => new Holds(fields),
  "an instance of a class that answers get": (fields) => new Answers(fields),
  "an object whose properties are inherited": (fields) => Object.create(record(fields)),
  "an object whose properties are inherited from one without a prototype": (fields) =>
    Object.create(Object.assign(Object.create(null), record(fields))),
  "a Map with properties in place of entries": (fields) => Object.assign(new Map(), record(fields)),
  "an array with properties in place of entries": (fields) => Object.assign([], record(fields)),
  "a Map whose entries are not told": (fields) =>
    Object.assign(new Map(lower(fields)), { [Symbol.iterator]: () => [][Symbol.iterator]() }),
  "a proxy that tells no names": (fields) => new Proxy(record(lower(fields)), { ownKeys: () => [] }),
  "a proxy that throws": (fields) => new Proxy(record(fields), thrower),
  "a revoked proxy": (fields) => {
    const { proxy, revoke } = Proxy.revocable(record(fields), {})
    revoke()
    return proxy
  },
  "an iterator that has been read": (fields) => {
    const iterator = generate(fields)
    assert.strictEqual([...iterator].length, fields.length)
    return iterator
  },
  "an iterator that throws": () => ({
    [Symbol.iterator]: () => ({
      next: () => {
        throw new Error("not now")
      }
    })
  }),
  "a promise": (fields) => Promise.resolve(record(fields)),
  "a Date": () => new Date(),
  "a function": (fields) => () => record(fields),
  "a number": () => 5,
  "a symbol": () => Symbol("headers"),
  "null": () => null,
  "undefined": () => undefined
}

// --- Values that are there, and are not one string ---

const values: Readonly<Record<string, unknown>> = {
  "nothing of an array": [undefined],
  "null of an array": [null],
  "an array of an array": [[]],
  "a hole": Array.from({ length: 2 }),
  "nested arrays": [["Bearer abc"]],
  "two": ["Bearer abc", "Bearer abc"],
  "a number": 123,
  "zero": 0,
  "a bigint": 5n,
  "a boolean": false,
  "another boolean": true,
  "null": null,
  "a symbol": Symbol("Bearer abc"),
  "a function": () => "Bearer abc",
  "an object": { value: "Bearer abc" },
  "an object that turns into a string": { toString: () => "Bearer abc" },
  "a String": Object("Bearer abc"),
  "a Set": new Set(["Bearer abc"]),
  "bytes": Buffer.from("Bearer abc"),
  "a Redacted": Redacted.make("Bearer abc"),
  "an Option": Option.some("Bearer abc"),
  "a promise": Promise.resolve("Bearer abc"),
  "something like an array": { 0: "Bearer abc", length: 1 }
}

// --- Requests without headers, and headers without the one ---

const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

const headless: Readonly<Record<string, unknown>> = {
  "undefined": undefined,
  "null": null,
  "an empty object": {},
  "a number": 5,
  "a text": "authorization: Bearer abc",
  "a function": () => ({}),
  "an empty array": [],
  "an empty Set": new Set(),
  "the headers alone": { authorization: "Bearer abc" },
  "a revoked proxy": revoked(),
  "an object whose headers are behind a getter that throws": {
    get headers() {
      throw new Error("not now")
    }
  }
}

const without: Readonly<Record<string, unknown>> = {
  "an object": { headers: {} },
  "an object where it is undefined": { headers: { authorization: undefined } },
  "an object where it is an empty array": { headers: { authorization: [] } },
  "pairs": { headers: [] },
  "Headers": { headers: new Headers() },
  "Effect's headers": { headers: EffectHeaders.empty },
  "a Map": { headers: new Map([["x-authorization", "Bearer abc"]]) },
  "a Map in place of a request": new Map(),
  "Headers in place of a request": new Headers(),
  "a Request": new Request("http://localhost"),
  "Effect's request": HttpServerRequest.fromWeb(new Request("http://localhost"))
}

const others: Fields = [["host", "localhost"], ["x-authorization", "Bearer no"], ["accept", "*/*"]]

// --- Any of them, put together ---

const oneOf = <A>(items: ReadonlyArray<A>): Arbitrary.Arbitrary<A> =>
  Arbitrary.map(
    Arbitrary.schema(Schema.Literals(items.map((_, index) => index))),
    (index) => items[index]!
  )

const isGiven = (value: unknown) => value !== null

const name = oneOf(["authorization", "Authorization", "AUTHORIZATION", "aUTHORIZATIOn"])
const around = Arbitrary.all([
  Arbitrary.array(oneOf(others), { maxLength: 3 }),
  Arbitrary.array(oneOf(others), { maxLength: 3 })
])
// Not null, which `get` answers for a header that is absent
const anyValue = oneOf(["Bearer abc", "Bearer", " ", "", ["Bearer abc"], ...Object.values(values).filter(isGiven)])

/** How a request has its headers. */
const carriers: ReadonlyArray<(headers: unknown) => unknown> = [
  (headers) => ({ headers }),
  (headers) => Object.assign(Object.create(null), { headers }),
  (headers) => ({
    get headers() {
      return headers
    }
  }),
  (headers) => new Proxy({ headers }, {}),
  (headers) => Object.create({ headers }),
  (headers) => ({ method: "POST", headers, raw: { headers }, source: {} })
]

describe("IdentityResolver, whatever the shape of the headers", () => {
  it.effect.each(Object.keys(readable))("reads %s", (shape) =>
    Effect.gen(function*() {
      const make = readable[shape]!
      for (const credential of ["authorization", "Authorization"]) {
        assert.strictEqual(yield* outcome({ headers: make([[credential, "Bearer abc"]]) }), "abc")
        assert.strictEqual(yield* outcome({ headers: make([...others, [credential, "Bearer abc"], ...others]) }), "abc")
      }
      assert.strictEqual(yield* outcome({ headers: make(others) }), "shared")
    }))

  it.effect.each(Object.keys(unreadable))("refuses %s", (shape) =>
    Effect.gen(function*() {
      const headers = unreadable[shape]!([...others, ["authorization", "Bearer abc"]])
      assert.strictEqual(yield* outcome({ headers }), "MalformedCredentials")
    }))

  it.effect.each(Object.keys(unreadable))(
    "refuses %s, also where credentials are required",
    (shape) =>
      Effect.gen(function*() {
        const headers = unreadable[shape]!([...others, ["authorization", "Bearer abc"]])
        assert.strictEqual(yield* outcome({ headers }, { mode: "required" }), "MalformedCredentials")
      })
  )

  it.effect.each(Object.keys(headless))("refuses a request that is %s", (request) =>
    Effect.gen(function*() {
      assert.strictEqual(yield* outcome(headless[request]), "MalformedCredentials")
      assert.strictEqual(yield* outcome(headless[request], { mode: "required" }), "MalformedCredentials")
    }))

  it.effect.each(Object.keys(without))(
    "has no credentials of %s without the header",
    (request) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* outcome(without[request]), "shared")
        assert.strictEqual(yield* outcome(without[request], { mode: "required" }), "MissingCredentials")
      })
  )

  it.effect.each(Object.keys(values))("refuses a value that is %s", (value) =>
    Effect.gen(function*() {
      for (const [shape, make] of Object.entries(readable)) {
        const request = () => ({ headers: make([["authorization", values[value]]]) })
        assert.strictEqual(yield* outcome(request()), "MalformedCredentials", shape)
        assert.strictEqual(yield* outcome(request(), { mode: "required" }), "MalformedCredentials", shape)
      }
    }))

  it.effect("refuses half a pair, also where it says nothing of credentials", () =>
    Effect.gen(function*() {
      for (const headers of [[["authorization"]], [["host"]], [[]], [["authorization", undefined]]]) {
        assert.strictEqual(yield* outcome({ headers }), "MalformedCredentials", inspect(headers))
      }
    }))

  it.effect("refuses what is headers and has headers", () =>
    Effect.gen(function*() {
      const map = new Map([["authorization", "Bearer abc"]])
      assert.strictEqual(yield* outcome(map), "abc")
      assert.strictEqual(yield* outcome(Object.assign(map, { headers: {} })), "MalformedCredentials")
      // A client may send a header of that name
      const sent = EffectHeaders.fromInput({ headers: "x", authorization: "Bearer abc" })
      assert.strictEqual(yield* outcome(sent), "abc")
    }))

  it.effect.prop(
    "one credential in a shape that is read is that credential, in all others an error",
    [oneOf(Object.values(readable)), oneOf(Object.values(unreadable)), oneOf(carriers), around, name],
    ([read, refuse, carry, [before, after], credential]) =>
      Effect.gen(function*() {
        const fields: Fields = [...before, [credential, "Bearer abc"], ...after]
        assert.strictEqual(yield* outcome(carry(read(fields))), "abc")
        assert.strictEqual(yield* outcome(carry(refuse(fields))), "MalformedCredentials")
      }),
    { arbitrary: { runs: many(150, 500), seed }, ...underLoad }
  )

  it.effect.prop(
    "no value of the header, in no shape, is the shared identity",
    [oneOf([...Object.values(readable), ...Object.values(unreadable)]), oneOf(carriers), around, name, anyValue],
    ([make, carry, [before, after], credential, value]) =>
      Effect.gen(function*() {
        const fields: Fields = [...before, [credential, value], ...after]
        assert.notStrictEqual(yield* outcome(carry(make(fields))), "shared")
      }),
    { arbitrary: { runs: many(250, 1_000), seed }, ...underLoad }
  )

  it.effect.prop(
    "no number of the header's fields is the shared identity, and none of the header is",
    [oneOf(Object.values(readable)), oneOf(carriers), around, Arbitrary.array(name, { maxLength: 3 })],
    ([make, carry, [before, after], names]) =>
      Effect.gen(function*() {
        const fields: Fields = [...before, ...names.map((field): Field => [field, "Bearer abc"]), ...after]
        const result = yield* outcome(carry(make(fields)))
        // An iterator without anything in it may have been read before
        if (fields.length === 0) assert.include(["shared", "MalformedCredentials"], result)
        else if (names.length === 0) assert.strictEqual(result, "shared")
        else if (new Set(names).size > 1) assert.strictEqual(result, "MalformedCredentials")
        else assert.include(["abc", "MalformedCredentials"], result)
      }),
    { arbitrary: { runs: many(150, 500), seed }, ...underLoad }
  )
})
