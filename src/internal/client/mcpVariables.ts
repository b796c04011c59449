/**
 * What stands for something else in a value of `mcp.json`, each client writing it in a way of its own:
 *
 * | written                                     | by                             | stands for                     |
 * |---------------------------------------------|--------------------------------|--------------------------------|
 * | `${VAR}`, `${VAR:-default}`                 | Claude Code, Gemini            | a variable                     |
 * | `${env:VAR}`                                | Cursor, VS Code, Windsurf, Roo | a variable                     |
 * | `$VAR`                                      | Gemini, Copilot CLI            | a variable that is set         |
 * | `${input:id}`                               | VS Code                        | what its user would be asked   |
 * | `${workspaceFolder}`, `${userHome}`, `${/}` | Cursor, VS Code                | a folder, a separator          |
 * | `${file:path}`                              | Windsurf                       | what is in the file            |
 * | `{env:VAR}`, `{file:path}`                  | opencode, and nobody else      | a variable, a file             |
 *
 * Values are expanded once: what stands for something is taken as it is. Nothing of it is ever quoted in an issue.
 */
import type * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import { homedir } from "node:os"
import { basename, join, resolve, sep } from "node:path"
import * as Secrets from "../secrets.ts"

export interface Variables {
  readonly provider: ConfigProvider.ConfigProvider
  /** None where there is no file system: then files can't be read. */
  readonly fileSystem: Option.Option<FileSystem.FileSystem>
  /** What paths in `{file:path}` are relative to: the folder of the file that they are written in. */
  readonly folder: string
  readonly workspaceFolder: string
  readonly inputs: ReadonlyMap<string, Input>
  /** Whether `{env:VAR}` and `{file:path}` are expanded. */
  readonly hasBraces: boolean
}

/** What VS Code would ask its user for. */
export interface Input {
  readonly isPassword: boolean
  readonly fallback: string | undefined
  /** The answers that there are, if it is for choosing one. */
  readonly options: ReadonlyArray<string> | undefined
}

/** The inputs of a file by their ids. What is none is left out: whoever refers to it hears of it. */
export const inputsOf = (inputs: unknown): ReadonlyMap<string, Input> => {
  const found = new Map<string, Input>()
  if (!Array.isArray(inputs)) return found
  for (const input of inputs) {
    if (!Predicate.isObject(input) || typeof input["id"] !== "string") continue
    const { default: fallback, options } = input
    found.set(input["id"], {
      isPassword: input["password"] === true,
      fallback: typeof fallback === "string" ? fallback : undefined,
      options: Array.isArray(options)
        ? options.map((option): unknown => Predicate.isObject(option) ? option["value"] : option).filter(
          Predicate.isString
        )
        : undefined
    })
  }
  return found
}

/** A value with everything expanded, and what of it is a secret by its origin; or what is wrong with it. */
export interface Expanded {
  readonly text: string
  readonly secrets: ReadonlyArray<string>
}

/**
 * `own` are the variables that the server will have itself: what refers to one that is set nowhere else is left for
 * it, as `mcp-remote` and shells expect.
 */
export const expand = Effect.fnUntraced(function*(
  self: Variables,
  value: string,
  own?: Readonly<Record<string, unknown>>
): Effect.fn.Return<Result.Result<Expanded, ReadonlySet<string>>> {
  // A variable may be in it a thousand times
  const issues = new Set<string>()
  const secrets = new Set<string>()
  let text = ""
  let end = 0
  // Where no brace closes, none does any further on
  let isClosing = true
  const pattern = self.hasBraces ? marksWithBraces : marks
  for (const { 0: mark, 1: name, index } of value.matchAll(pattern)) {
    if (index < end) continue
    let close: number
    let found: Found
    if (name !== undefined) {
      close = index + mark.length
      found = yield* bare(self, name)
    } else {
      const open = index + mark.length
      const brace = isClosing ? value.indexOf("}", open) : -1
      if (brace === -1) {
        isClosing = false
        continue
      }
      close = brace + 1
      const reference = value.slice(mark === "${" ? open : index + 1, brace)
      found = mark === "${" ? yield* braced(self, reference, own) : yield* single(self, reference)
    }
    if (found === undefined) continue
    if (Result.isFailure(found)) issues.add(found.failure)
    else {
      text += value.slice(end, index) + found.success.text
      for (const secret of found.success.secrets) secrets.add(secret)
    }
    end = close
  }
  if (issues.size > 0) return Result.fail(issues)
  return Result.succeed({ text: text + value.slice(end), secrets: Array.from(secrets) })
})

const marks = /\$\{|\$([A-Za-z_]\w*)/g

const marksWithBraces = /\$\{|\$([A-Za-z_]\w*)|\{env:|\{file:/g

/** Nothing, if it is to be left as it is written. */
type Found = Result.Result<Expanded, string> | undefined

const plain = (text: string): Found => Result.succeed({ text, secrets: [] })

// -----------------------------------------------------------------------------
// What they stand for
// -----------------------------------------------------------------------------

/** `$VAR`. Passwords and shells have a `$` too, so a variable that is not set is none. */
const bare = (self: Variables, name: string): Effect.Effect<Found> =>
  Effect.map(lookUp(self, name), (found) =>
    found._tag === "Success" && found.success !== undefined
      ? Result.succeed({ text: found.success, secrets: Secrets.ofRecord({ [name]: found.success }) })
      : undefined)

/** `${…}`, `reference` being what is between the braces. */
const braced = (
  self: Variables,
  reference: string,
  own: Readonly<Record<string, unknown>> | undefined
): Effect.Effect<Found> => {
  const predefined = placeOf(self, reference)
  if (predefined !== undefined) return Effect.succeed(plain(predefined))
  if (reference.startsWith("input:")) return input(self, reference.slice("input:".length))
  if (reference.startsWith("file:")) return file(self, reference.slice("file:".length))
  const isEnv = reference.startsWith("env:")
  const [, name, fallback] = /^([^]*?)(?::-([^]*))?$/.exec(isEnv ? reference.slice("env:".length) : reference)!
  if (!(isEnv ? isVariable : isPlainVariable).test(name!) || fallback?.includes("${")) {
    return Effect.succeed(Result.fail(unknown))
  }
  return variable(self, name!, fallback, own)
}

/** `{env:VAR}` and `{file:path}`. */
const single = (self: Variables, reference: string): Effect.Effect<Found> => {
  const [, kind, rest] = /^(env|file):([^]*)$/.exec(reference)!
  if (kind === "file") return file(self, rest!)
  return isVariable.test(rest!) ? variable(self, rest!) : Effect.succeed(Result.fail(unknown))
}

const isPlainVariable = /^[A-Za-z_]\w*$/

// `${env:ProgramFiles(x86)}`, `${env:MY-TOKEN}`
const isVariable = /^[^\s${}=:\0]+$/

const unknown = "has a ${…} in it that is none of ${VAR}, ${VAR:-default}, ${env:VAR}, ${input:id}, ${file:path}, " +
  "${workspaceFolder}, ${workspaceFolderBasename}, ${userHome} and ${pathSeparator}"

const placeOf = (self: Variables, reference: string): string | undefined => {
  switch (reference) {
    case "workspaceFolder":
    case "workspaceRoot":
      return self.workspaceFolder
    case "workspaceFolderBasename":
      return basename(self.workspaceFolder)
    case "userHome":
      return homedir()
    case "pathSeparator":
    case "/":
      return sep
    default:
      return undefined
  }
}

const variable = Effect.fnUntraced(function*(
  self: Variables,
  name: string,
  fallback?: string,
  own?: Readonly<Record<string, unknown>>
): Effect.fn.Return<Found> {
  const shown = isPlainVariable.test(name) ? shortened(name) : undefined
  const found = yield* lookUp(self, name)
  if (Result.isFailure(found)) {
    return Result.fail(`needs ${whatIs("variable", shown)}, which the ConfigProvider could not read`)
  }
  const replacement = found.success || (fallback ?? found.success)
  if (replacement !== undefined) {
    return Result.succeed({ text: replacement, secrets: Secrets.ofRecord({ [name]: replacement }) })
  }
  if (own !== undefined && Object.hasOwn(own, name)) return undefined
  const orDefault = shown === undefined ? "or give it a default" : `or write \${${shown}:-default}`
  return Result.fail(`needs ${whatIs("variable", shown)}, which is not set: set it, ${orDefault}`)
})

const input = Effect.fnUntraced(function*(self: Variables, id: string): Effect.fn.Return<Found> {
  const declared = self.inputs.get(id)
  const shown = declared === undefined ? undefined : shortened(id)
  let answer: string | undefined
  for (const name of new Set([id, constantOf(id)])) {
    const found = yield* lookUp(self, name)
    if (Result.isFailure(found)) {
      return Result.fail(`needs ${whatIs("input", shown)}, which the ConfigProvider could not read`)
    }
    answer ||= found.success
  }
  answer = answer || (declared?.fallback ?? answer)
  if (answer === undefined) {
    return Result.fail(
      shown === undefined
        ? "needs an input that `inputs` does not have"
        : `needs the input ${shown}, which is not set: set a variable ${shown} or ${
          constantOf(shown)
        }, since nobody is asked`
    )
  }
  if (declared?.options !== undefined && !declared.options.includes(answer)) {
    return Result.fail(`needs ${whatIs("input", shown)}, which is none of its \`options\``)
  }
  return Result.succeed({
    text: answer,
    secrets: declared?.isPassword === true ? [answer] : Secrets.ofRecord({ [id]: answer })
  })
})

// A variable of the environment has no hyphen in it
const constantOf = (id: string): string =>
  id.replace(/([a-z\d])([A-Z])/g, "$1_$2").replace(/[^A-Za-z\d]+/g, "_").toUpperCase()

/** What is in a file is a secret: why else would it not be in here. */
const file = (self: Variables, path: string): Effect.Effect<Found> =>
  Effect.map(
    read(self, resolve(self.folder, atHome(path))),
    Result.match({
      onFailure: (issue) => Result.fail(`refers to a file that ${issue}`),
      onSuccess: (contents) => {
        const text = contents.trim()
        return Result.succeed({ text, secrets: [text] })
      }
    })
  )

/** The text of a file, or why there is none, worded to follow it. */
export const read = (self: Variables, path: string): Effect.Effect<Result.Result<string, string>> =>
  Option.match(self.fileSystem, {
    onNone: () => Effect.succeed(Result.fail("can't be read, because there is no FileSystem")),
    onSome: (fileSystem) =>
      path.includes("\0")
        ? Effect.succeed(Result.fail("has a NUL character in its path"))
        : Effect.map(
          Effect.result(fileSystem.readFileString(path)),
          Result.mapBoth({
            onSuccess: (contents) => contents.replace(/^\uFEFF/, ""),
            onFailure: ({ reason }) => reason._tag === "NotFound" ? "does not exist" : `can't be read (${reason._tag})`
          })
        )
  })

/** A path that may begin with `~`. */
export const atHome = (path: string): string => /^~(?=$|[\\/])/.test(path) ? join(homedir(), path.slice(1)) : path

const lookUp = (self: Variables, name: string): Effect.Effect<Result.Result<string | undefined, unknown>> =>
  Effect.map(Effect.result(self.provider.load([name])), Result.map((node) => node?.value))

const whatIs = (kind: "variable" | "input", name: string | undefined): string =>
  name !== undefined ? `the ${kind} ${name}` : kind === "input" ? "an input" : "a variable"

/** A name is told as often as there are issues. */
export const shortened = (name: string): string => name.length > 128 ? `${name.slice(0, 128)}…` : name
