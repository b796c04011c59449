import { assert, describe, it } from "@effect/vitest"
import { Credentials } from "effect-mcp-sessions/Identity"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as fc from "fast-check"
import { inspect } from "node:util"
import * as Scrub from "../src/internal/scrub.ts"
import * as Secrets from "../src/internal/secrets.ts"
import { many, seed, underLoad } from "./support/load.ts"

const scrubbing = (...secrets: ReadonlyArray<string>) => {
  const scrub = Scrub.make()
  for (const secret of secrets) scrub.add(secret)
  return scrub
}

// -----------------------------------------------------------------------------
// Hostile texts
// -----------------------------------------------------------------------------

const jsonEscaped = (text: string) => JSON.stringify(text).slice(1, -1)

const percentEncoded = (text: string) =>
  Array.from(Buffer.from(text), (byte) => `%${byte.toString(16).padStart(2, "0")}`).join("")

/** How others quote a text. */
const encodings: Readonly<Record<string, (text: string) => string>> = {
  raw: (text) => text,
  uri: encodeURI,
  component: encodeURIComponent,
  form: (text) => new URLSearchParams({ q: text }).toString(),
  query: (text) => new URL(`http://host/?q=${encodeURI(text)}`).href,
  // What a URL keeps as it is: backslashes and percent signs
  link: (text) => new URL(`http://host/?q=${text.replace(/[\t\n\r#]/g, encodeURIComponent)}&`).href,
  percent: percentEncoded,
  json: jsonEscaped,
  jsonInJson: (text) => jsonEscaped(jsonEscaped(text)),
  jsonInUri: (text) => encodeURIComponent(JSON.stringify({ text })),
  unicode: (text) => Array.from(text, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`).join(""),
  inspect: (text) => inspect(text),
  html: (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("\"", "&quot;").replaceAll("'", "&#39;"),
  base64: (text) => Buffer.from(text).toString("base64"),
  base64url: (text) => Buffer.from(text).toString("base64url")
}

/** All that somebody could read out of a text. */
const readings = (text: string): ReadonlyArray<string> => {
  const found = [text]
  for (let layer = 0; layer < 4; layer++) {
    const last = found.at(-1)!
    found.push(
      last.replace(
        /\\u\{([\da-f]+)\}|\\u([\da-f]{4})|\\x([\da-f]{2})/gi,
        (_, a: string, b: string, c: string) => String.fromCodePoint(Number.parseInt(a ?? b ?? c, 16))
      ).replace(/\\([^])/g, "$1").replace(
        /(%[\da-f]{2})+/gi,
        (run) => Buffer.from(run.replaceAll("%", ""), "hex").toString()
      )
    )
  }
  return found
}

const words = fc.array(
  fc.constantFrom(
    "the",
    "tool",
    "failed",
    "at",
    "line",
    "42",
    "{\"error\":",
    "}",
    "http://",
    "\\n",
    "%",
    "\"",
    "\n",
    " "
  ),
  { maxLength: 12 }
).map((parts) => parts.join(" "))

const tokenOf = (minLength: number) =>
  fc.string({
    unit: fc.constantFrom(..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="),
    minLength,
    maxLength: 400,
    size: "max"
  }).filter((text) => new Set(text).size > 4)

// To fast-check's own unit "binary" belongs a map of all the million characters, which takes longer than the tests
const character = fc.oneof(fc.nat(0x7f), fc.nat(0xffff), fc.nat(0x10ffff)).map((point) => String.fromCodePoint(point))

const password = fc.string({ unit: character, minLength: 8, maxLength: 60 }).filter((text) =>
  // What can't be written in UTF-8 reaches nobody as it is; what is one character over and over is in every text
  Buffer.from(text).toString() === text && new Set(text).size > 4
)

/** Secrets that look like what is undone. */
const escapeLike = fc.array(
  fc.constantFrom(..."\\\\%&\"'<>/;#x0n419aZ +", "\\n", "\\x41", "\\u0041", "%41", "%2", "&lt;", "&amp;", "&#65;"),
  { minLength: 8, maxLength: 40, size: "max" }
).map((pieces) => pieces.join("")).filter((text) => new Set(text).size > 4)

const secret = fc.oneof(tokenOf(8), password, escapeLike)

describe("Scrub", () => {
  it("lets no secret through, whatever encodes it and wherever it stands", underLoad, () => {
    fc.assert(
      fc.property(
        fc.array(secret, { minLength: 1, maxLength: 40 }),
        fc.array(fc.tuple(words, fc.nat(), fc.constantFrom(...Object.keys(encodings))), { minLength: 1, maxLength: 6 }),
        words,
        (secrets, parts, end) => {
          const scrub = scrubbing(...secrets)
          const said = parts.map(([before, which, encoding]) =>
            before + encodings[encoding]!(secrets[which % secrets.length]!)
          )
          const scrubbed = scrub(said.join(" ") + end)
          for (const reading of readings(scrubbed)) {
            assert.isUndefined(secrets.find((one) => reading.includes(one)), reading)
          }
          for (const [, which, encoding] of parts) {
            assert.notInclude(scrubbed, encodings[encoding]!(secrets[which % secrets.length]!))
          }
        }
      ),
      { numRuns: many(75, 2_000), seed }
    )
  })

  it("finds one that is quoted twice, also when it looks like what quotes it", underLoad, () => {
    const inner = Object.keys(encodings).filter((name) => !name.startsWith("jsonIn"))
    const outer = ["json", "html", "component", "uri", "percent", "unicode"]
    fc.assert(
      fc.property(
        fc.array(secret, { minLength: 1, maxLength: 10 }),
        fc.array(fc.tuple(fc.nat(), fc.constantFrom(...inner), fc.constantFrom(...outer)), {
          minLength: 1,
          maxLength: 4
        }),
        (secrets, parts) => {
          const said = parts.map(([which, first, second]) =>
            encodings[second]!(encodings[first]!(secrets[which % secrets.length]!))
          )
          const scrubbed = scrubbing(...secrets)(`failed: ${said.join(", ")}`)
          for (const one of said) assert.notInclude(scrubbed, one)
        }
      ),
      { numRuns: many(75, 2_000), seed }
    )
  })

  it("finds one that itself has what is undone in what quotes it", () => {
    for (const one of ["a\\0b\"c<d", "%41\"b&lt;", "\\\\\\%41\\\\\"\\", "\\\\\\\\\\&#65;\\\\"]) {
      for (const encode of ["html", "link", "json"]) {
        const said = encodings[encode]!(one)
        assert.notInclude(scrubbing(one)(`failed: ${said}`), said.slice(-6), `${one}, ${encode}`)
      }
    }
  })

  it("finds one in a URL when what stands before it looks like the beginning of an escape", () => {
    for (const one of ["AAAAj=uI", "ab c/d?e", "ffé=12345"]) {
      for (const encode of [encodeURIComponent, encodeURI]) {
        assert.strictEqual(scrubbing(one)(`100%${encode(one)}`), "100%<redacted>")
      }
    }
  })

  it("leaves less than 15 characters of one that somebody else has cut", () => {
    fc.assert(
      fc.property(
        tokenOf(31),
        fc.nat(),
        words,
        (one, at, before) => {
          const from = at % (one.length - 16)
          const heads = [one.slice(0, from + 16), one.slice(from)]
          for (const part of heads) {
            const scrubbed = scrubbing(one)(`${before} '${part}...`)
            const starts = Array.from({ length: part.length - 14 }, (_, start) => start)
            assert.isUndefined(starts.find((start) => scrubbed.includes(part.slice(start, start + 15))), scrubbed)
          }
        }
      ),
      { seed }
    )
  })

  it("leaves no beginning of one at the end of a text that was cut", () => {
    const one = "s3cret-t0ken"
    for (const said of [one, percentEncoded(one), jsonEscaped(`${one}"`)]) {
      for (let length = 1; length <= said.length; length++) {
        const scrubbed = scrubbing(one).beginning(`${"word ".repeat(8)}${said}`, 40 + length)
        for (const reading of readings(scrubbed)) assert.notInclude(reading, "s3")
        assert.include(scrubbed, "word word")
      }
    }
  })

  it("takes out secrets that overlap as a whole", () => {
    assert.strictEqual(scrubbing("abcdefghij", "ghijklmnop")("<abcdefghijklmnop>"), "<<redacted>>")
    assert.strictEqual(scrubbing("abcdefghij", "abcdefghijklmnop")("abcdefghijklmnop"), "<redacted>")
  })

  it("finds one with spaces at its ends in a form, and one with octal escapes", () => {
    assert.strictEqual(scrubbing(" ab cd ef gh ")("q=ab+cd+ef+gh"), "q=<redacted>")
    assert.strictEqual(scrubbing("ab\"cd\"ef")("x ab\\042cd\\042ef y"), "x <redacted> y")
  })

  it("takes out short ones too, as they are", () => {
    assert.strictEqual(scrubbing("k1")("no k1 here, only k2"), "no <redacted> here, only k2")
  })

  it("takes secrets out of data at any depth: names and numbers too", () => {
    const scrub = scrubbing("s3cret-token", "12345678")
    assert.deepStrictEqual(
      scrub.data({ a: [{ "for s3cret-token": 1 }, "s3cret-token", 12345678, 5, null, true], b: { c: undefined } }),
      { a: [{ "for <redacted>": 1 }, "<redacted>", "<redacted>", 5, null, true], b: {} }
    )
    assert.strictEqual(scrub.data(1n), undefined)
  })

  it("keeps nothing of data that would take long to look through, and of a text the beginning", () => {
    const scrub = scrubbing("s3cret-token")
    assert.strictEqual(scrub.data(["x".repeat(65_533)]), undefined)
    assert.deepStrictEqual(scrub.data(["x".repeat(65_532)]), ["x".repeat(65_532)])
    assert.strictEqual(scrub.beginning(`a s3cret-token ${"b ".repeat(10_000)}`, 30), "a <redacted>")
    assert.strictEqual(scrub.beginning("a s3cret-token", 30), "a <redacted>")
  })

  it("forgets nothing that it was given, however much that is", underLoad, () => {
    const secrets = Array.from({ length: many(500, 5_000) }, (_, index) => `given-${index}-${"x".repeat(index % 40)}`)
    const scrub = scrubbing(...secrets)
    for (let index = 0; index < 5_000; index++) scrub.hold(`rotated-${index}-token`)()
    for (const one of secrets) assert.strictEqual(scrub(`: ${one}`), ": <redacted>")
  })

  it("forgets what is rotated long after nobody holds it, and nothing that is held", () => {
    const scrub = scrubbing()
    const release = scrub.hold("first-token-of-all")
    scrub.hold("second-token-of-all")()
    for (let index = 0; index < 10_000; index++) {
      scrub.hold(`rotated-${index}-token`)()
      if (index >= 900) continue
      assert.strictEqual(scrub("second-token-of-all"), "<redacted>")
    }
    assert.strictEqual(scrub("first-token-of-all"), "<redacted>")
    assert.strictEqual(scrub("rotated-9500-token"), "<redacted>")
    release()
    assert.strictEqual(scrub("first-token-of-all"), "<redacted>")
  })
})

const named = (name: string, value: string) => Secrets.ofRecord({ [name]: value })

const ofSome = (credentials: Credentials) => Secrets.ofCredentials(Option.some(credentials))

describe("Secrets", () => {
  it("are no plain words, settings, paths, hosts and versions", () => {
    for (
      const [name, value] of Object.entries({
        NODE_ENV: "production",
        LOG_LEVEL: "debug,information",
        AUTH_MODE: "required",
        AUTH: "basic",
        SORT_KEY: "name",
        MAX_TOKENS: "40960000",
        TOKEN_ENABLED: "true",
        SESSION_SECRET_FILE: "/run/secrets/session",
        GOOGLE_APPLICATION_CREDENTIALS: "/home/alice/key.json",
        ISSUER: "https://accounts.example.com/v1/",
        DATABASE: "postgres://localhost:5432/production",
        HOST: "localhost:3000",
        PATH: "/usr/local/bin:/usr/bin:/opt/node20.19.1/bin",
        TARGET: "x86_64-linux-gnu",
        MODEL: "claude-sonnet-4-5-20250929",
        LANG: "en_US.UTF-8",
        GREETING: "Hello world, how are you?",
        accept: "application/json, text/event-stream",
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
      })
    ) assert.deepStrictEqual(named(name, value), [], name)
  })

  it("are values under names that mean them, plain words too", () => {
    for (
      const name of [
        "DB_PASSWORD",
        "apiToken",
        "X-Api-Key",
        "clientSecret",
        "cookie",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY"
      ]
    ) assert.include(named(name, "production"), "production", name)
    assert.include(named("Authorization", "Bearer production"), "production")
    assert.include(named("Proxy-Authorization", `Basic ${btoa("alice:production")}`), "production")
    assert.include(named("cookie", "theme=dark; sid=8f3a9c"), "8f3a9c")
  })

  it("are values that look like them, whatever they are called", () => {
    for (
      const value of [
        "hunter2hunter2",
        "sk-proj-9fJ2kLq8ZxT4",
        "550e8400-e29b-41d4-a716-446655440000",
        "QmFzZTY0IGVuY29kZWQgdGV4dA==",
        "p@$$w0rd!",
        "8f14e45fceea167a5a36dedd4bea2543"
      ]
    ) assert.deepStrictEqual(named("THING", value), [value])
  })

  it("are found within URLs, JSON, lists and arguments", () => {
    assert.include(named("DATABASE_URL", "postgres://app:word@db/x"), "word")
    assert.include(named("HOOK", "https://example.com/hooks/T0B9xK2pQ7?token=abcd"), "T0B9xK2pQ7")
    assert.include(named("HOOK", "https://example.com/?token=abcd"), "abcd")
    assert.include(named("CONFIG", JSON.stringify({ db: [{ password: "word" }] })), "word")
    assert.include(named("DSN", "Server=db;Password=word"), "word")
    assert.include(Secrets.ofArguments(["--api-key", "my word"]), "my word")
    assert.include(Secrets.ofArguments(["--token=word"]), "word")
    assert.include(Secrets.ofArguments(["run", "-e", "GITHUB_TOKEN=word"]), "word")
    assert.include(Secrets.ofUrl(new URL("https://host/mcp?key=w%20o%20r%20d")), "w o r d")
    assert.deepStrictEqual(
      Secrets.ofArguments(["-y", "@modelcontextprotocol/server-filesystem", "/home/alice/docs"]),
      []
    )
  })

  it("are found in what is nested deeper than the stack is", () => {
    const pairs = `${"a=".repeat(50_000)}hunter2hunter2`
    assert.isTrue(named("THING", pairs).some((found) => found.endsWith("hunter2hunter2")))
    assert.isTrue(Secrets.ofArguments([pairs]).some((found) => found.endsWith("hunter2hunter2")))
    const json = `${"[".repeat(50_000)}"hunter2hunter2"${"]".repeat(50_000)}`
    assert.deepStrictEqual(named("THING", json), ["hunter2hunter2"])
  })

  it("are a credential's header, its token and the password in it", () => {
    assert.deepStrictEqual(ofSome(Credentials.bearer("abc")), ["Bearer abc", "abc"])
    const token = btoa("alice:word")
    const basic = new Credentials({
      scheme: "basic",
      token: Redacted.make(token),
      header: Redacted.make(`Basic ${token}`),
      name: "authorization"
    })
    assert.deepStrictEqual(ofSome(basic), [`Basic ${token}`, token, "alice:word", "word"])
    assert.deepStrictEqual(Secrets.ofCredentials(Option.none()), [])
  })
})

describe("a secret within digits", () => {
  const token = "ghp_9fJ2kLq8ZxT4vB2mQ8é"
  const scrub = scrubbing(token)

  const within: Readonly<Record<string, (text: string) => string>> = {
    "the credentials that git sends": (text) => Buffer.from(`oauth2:${text}`).toString("base64"),
    "base64 after one byte": (text) => Buffer.from(`a${text}`).toString("base64"),
    "base64 after two bytes, and before more": (text) => Buffer.from(`ab${text}cd`).toString("base64url"),
    "base64 behind other letters of its alphabet": (text) =>
      `/path/${Buffer.from(`{"t":"${text}"}`).toString("base64")}`,
    "what OAuth's clients send": (text) => Buffer.from(`id:${encodeURIComponent(text)}`).toString("base64"),
    "the same of a form": (text) => Buffer.from(new URLSearchParams({ id: text }).toString()).toString("base64"),
    "base64 of JSON": (text) => Buffer.from(JSON.stringify({ text })).toString("base64url"),
    "hexadecimal": (text) => Buffer.from(text).toString("hex"),
    "hexadecimal, in capitals behind a digit": (text) => `0${Buffer.from(text).toString("hex").toUpperCase()}`,
    "base64 in a URL": (text) => encodeURIComponent(Buffer.from(`??${text}`).toString("base64")),
    "hexadecimal, in JSON": (text) => JSON.stringify({ text: Buffer.from(`a${text}`).toString("hex") })
  }

  for (const [name, encode] of Object.entries(within)) {
    it(`is found: ${name}`, () => {
      const text = scrub(`refused: ${encode(token)} is wrong`)
      assert.include(text, "<redacted>")
      assert.match(text, /^refused: .* is wrong$/)
      for (const digits of text.matchAll(/[\w+/-]{8,}/g)) {
        assert.notInclude(Buffer.from(digits[0], "base64").toString(), "9fJ2")
        assert.notInclude(Buffer.from(digits[0], "hex").toString(), "9fJ2")
      }
    })
  }

  it("leaves none of its beginning where a text was cut", () => {
    for (const encoding of ["hex", "base64"] as const) {
      const whole = Buffer.from(`user:${token}`).toString(encoding)
      for (let length = 8; length <= whole.length; length++) {
        const rest = scrub.beginning(`refused: ${whole}`, 9 + length).replace(/^refused: /, "").replace(
          "<redacted>",
          ""
        )
        assert.notInclude(Buffer.from(rest, encoding).toString("latin1"), "ghp")
      }
    }
  })

  it("takes no other digits for it", () => {
    for (
      const text of ["0123456789abcdef0123456789abcdef", "/usr/lib/node_modules/effect-mcp-sessions/dist/index.js"]
    ) {
      assert.strictEqual(scrub(text), text)
    }
  })
})

const bytesOf = (text: string) => Array.from(Buffer.from(text))

const hex = (text: string, joint: string) => bytesOf(text).map((byte) => byte.toString(16).padStart(2, "0")).join(joint)

describe("a secret as a row of bytes", () => {
  const rows: Readonly<Record<string, (text: string) => string>> = {
    "a Buffer, as Node shows it": (text) => inspect(Buffer.from(text)),
    "a Buffer in JSON": (text) => JSON.stringify(Buffer.from(text)),
    "a Buffer in JSON in JSON": (text) => JSON.stringify(JSON.stringify({ body: Buffer.from(text) }, undefined, 2)),
    "an Uint8Array, as Node shows it": (text) => inspect(new Uint8Array(Buffer.from(text))),
    "hexadecimal with colons": (text) => hex(text, ":"),
    "hexadecimal with spaces, in capitals": (text) => hex(text, " ").toUpperCase(),
    "bytes as Go shows them": (text) => `[${bytesOf(text).join(" ")}]`,
    "bytes as Go and C write them": (text) =>
      `{${bytesOf(text).map((byte, at) => `0x${byte.toString(16)}${at % 12 === 11 ? ",\n\t" : ", "}`).join("")}}`,
    "escapes of bytes": (text) => `\\x${hex(text, "\\x")}`,
    "octal escapes": (text) => bytesOf(text).map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("")
  }
  for (const [name, shown] of Object.entries(rows)) {
    it(`is found: ${name}`, () => {
      for (const hidden of ["sk-live-SECRET", "pä$$ wörd € 天气 \u{1f600}", "hunter2!"]) {
        const scrub = scrubbing(hidden)
        for (const [before, after] of [["", ""], ["the body was ", " at line 12"], ["1, 2, ", ", 3"], ["a ", " b"]]) {
          const scrubbed = scrub(`${before}${shown(hidden)}${after}`)
          assert.include(scrubbed, "<redacted>", hidden)
          assert.notInclude(scrubbed, shown(hidden).slice(-40, -20), hidden)
        }
      }
    })
  }

  const token = "sk-live-9fQ2mZ7LxT4b"
  const numbers = bytesOf(token)
  const among: Readonly<Record<string, string>> = {
    "behind a status": `status 500, ${numbers.join(", ")}`,
    "behind another number, with spaces": `HTTP 500 ${numbers.join(" ")}`,
    "between other numbers": `[443,${numbers.join(",")},443]`,
    "as Node shows it, in a form": new URLSearchParams({ q: inspect(Buffer.from(token)) }).toString(),
    "in JSON, in a URL": encodeURI(JSON.stringify(Buffer.from(token)))
  }
  for (const [name, text] of Object.entries(among)) {
    it(`is found ${name}`, () => {
      const scrubbed = scrubbing(token)(text)
      assert.include(scrubbed, "<redacted>")
      for (const shown of [numbers.slice(0, 4).join(","), numbers.slice(-4).join(","), numbers.slice(-4).join(" ")]) {
        assert.notInclude(scrubbed, shown)
      }
    })
  }

  it("is found in data", () => {
    const scrub = scrubbing(token)
    const bytes = Buffer.from(token)
    assert.deepStrictEqual(scrub.data({ bytes, array: [...bytes], typed: new Uint8Array(bytes), other: [1, 2, 3] }), {
      bytes: { type: "Buffer", data: "<redacted>" },
      array: "<redacted>",
      typed: "<redacted>",
      other: [1, 2, 3]
    })
  })

  it("has no beginning left where a text was cut", () => {
    const text = JSON.stringify(Buffer.from(token), undefined, 2)
    const scrub = scrubbing(token)
    for (let length = text.indexOf("115"); length < text.length; length++) {
      assert.notInclude(scrub.beginning(text, length), "107")
    }
  })

  it("is no other row, and rows cost what other texts do", underLoad, () => {
    const scrub = scrubbing("sk-live-SECRET")
    for (
      const text of [
        "1, 2, 3, 4, 5, 6, 7, 8, 9",
        "00:1b:44:11:3a:b7:00:00",
        "256, 300, 999, 1, 2, 3, 4, 5, 6",
        "\\012\\777"
      ]
    ) {
      assert.strictEqual(scrub(text), text)
    }
    for (
      const row of [
        "1,",
        "1 ,  ",
        "ab ",
        "ab:",
        "\\x61",
        "\\141",
        "1,1,1,x",
        "ab ab ",
        "0xa, ",
        "0xab,\n",
        "104 ",
        "64 ",
        "64 6 6a "
      ]
    ) {
      const text = row.repeat(many(10_000, 200_000))
      assert.strictEqual(scrub(text), text)
    }
  })
})
