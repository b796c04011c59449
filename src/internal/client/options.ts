/**
 * The options of the connectors, each declared once for both generations of the SDK. They are read when a connector is
 * made: that an option is wrong is known before anybody asks for a session.
 */
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import type { HttpOptions, Options, PerIdentity, Standby, StdioOptions } from "../../Connector.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import * as Declare from "../options.ts"

/**
 * What reads the options of one constructor.
 */
export interface Declared {
  readonly parse: (given: unknown, method: string) => Result.Result<unknown, InvalidOptions>
}

/**
 * Throws what is wrong with the options of `method`: it is the program that is.
 */
export const check = (declared: Declared, method: string, given: unknown): void => {
  Result.getOrThrow(declared.parse(given, method))
}

/**
 * The same for the function that a constructor takes.
 */
export const checkFunction = (module: string, method: string, option: "server" | "transport", given: unknown): void => {
  if (typeof given === "function") return
  const issue = `must be a function of an identity that makes a ${option}`
  throw new InvalidOptions({ module, method, option, issue })
}

/** What is wrong with environment variables, worded to follow their name. Their values are not quoted. */
export const issueOfEnv = (value: unknown): string | undefined => {
  const issue = issueOfRecord(value)
  if (issue !== undefined) return issue
  const wrong = Object.entries(value as Readonly<Record<string, string>>).find(([name, variable]) =>
    name === "" || /[=\0]/.test(name) || variable.includes("\0")
  )
  return wrong === undefined
    ? undefined
    : `can't have ${JSON.stringify(wrong[0])}: its name or its value is not allowed`
}

/** The same for headers. */
export const issueOfHeaders = (value: unknown): string | undefined => {
  const issue = issueOfRecord(value)
  if (issue !== undefined) return issue
  const wrong = Object.entries(value as Readonly<Record<string, string>>).find((header) => !isHeader(header))
  return wrong === undefined
    ? undefined
    : `can't have ${JSON.stringify(wrong[0])}: its name or its value is not allowed`
}

const issueOfRecord = (value: unknown): string | undefined => {
  if (!Predicate.isReadonlyObject(value)) return "must be a record of texts"
  const wrong = Object.entries(value).find(([, one]) => typeof one !== "string")
  return wrong === undefined ? undefined : `must have a text for ${JSON.stringify(wrong[0])}`
}

const isHeader = (header: readonly [name: string, value: string]): boolean => {
  try {
    return new Headers([[...header]]).has(header[0])
  } catch {
    return false
  }
}

// -----------------------------------------------------------------------------
// Kinds
// -----------------------------------------------------------------------------

const text = Declare.custom<string, string>({
  rule: "a text that is not empty",
  read: Option.liftPredicate((value): value is string =>
    typeof value === "string" && value !== "" && !value.includes("\0")
  )
})

const texts = Declare.custom<ReadonlyArray<string>, ReadonlyArray<string>>({
  rule: "an array of texts",
  read: Option.liftPredicate((value): value is ReadonlyArray<string> =>
    Array.isArray(value) && value.every((one) => typeof one === "string" && !one.includes("\0"))
  ),
  isSecret: true
})

const perIdentity = (
  rule: string,
  issueOf: (value: unknown) => string | undefined
): Declare.Kind<PerIdentity<unknown>, PerIdentity<unknown>> => ({
  rule,
  read: Option.liftPredicate((value): value is PerIdentity<unknown> =>
    typeof value === "function" || issueOf(value) === undefined
  ),
  isSecret: true
})

const url = Declare.custom<string | URL, URL>({
  rule: "a URL of http or https",
  read: (value) => {
    if (typeof value !== "string" && !(value instanceof URL)) return Option.none()
    return Option.filter(
      URL.canParse(String(value)) ? Option.some(new URL(value)) : Option.none(),
      ({ protocol }) => protocol === "http:" || protocol === "https:"
    )
  },
  isSecret: true
})

const implementation = Declare.custom<{ readonly name: string; readonly version: string }, unknown>({
  rule: "an object with a name and a version",
  read: Option.liftPredicate((value) =>
    Predicate.isReadonlyObject(value) && typeof value["name"] === "string" && typeof value["version"] === "string"
  )
})

const standbyOptions = Declare.declare<Standby>()({ module: "Standby" }, {
  size: Declare.required(Declare.count),
  idleTimeToLive: Declare.withDefault(Declare.timeToLive, "Infinity"),
  startTimeout: Declare.withDefault(Declare.timeout, "5 minutes")
})

/** What is said of the children that wait, in milliseconds. */
export const parseStandby = (standby: Standby) => Result.getOrThrow(standbyOptions.parse(standby))

const standbyKind = Declare.custom<Standby, Standby>({
  rule: "an object with a size of at least 1, and perhaps an idleTimeToLive and a startTimeout of more than 0",
  read: Option.liftPredicate((value): value is Standby => Result.isSuccess(standbyOptions.parse(value)))
})

/**
 * Throws what makes the children of a connector depend on who owns them, where they start before they have an owner.
 */
export const checkStandby = (module: string, { env, roots, standby }: StdioOptions<unknown>): void => {
  if (standby === undefined) return
  const dependent = typeof env === "function" ? "env" : roots === undefined ? undefined : "roots"
  if (dependent === undefined) return
  const issue = `can't be had where ${dependent} is a function of the identity: its children start before they have one`
  throw new InvalidOptions({ module, method: "stdio", option: "standby", issue })
}

// -----------------------------------------------------------------------------
// Declarations
// -----------------------------------------------------------------------------

const common = {
  name: Declare.optional(text, { shown: "the server's host or command" }),
  clientInfo: Declare.optional(implementation, { shown: "this library" }),
  connectTimeout: Declare.optional(Declare.timeout),
  requestTimeout: Declare.withDefault(Declare.timeout, "60 seconds"),
  listTimeToLive: Declare.withDefault(Declare.span, "1 minute"),
  sampling: Declare.optional(Declare.fn),
  elicitation: Declare.optional(Declare.fn),
  roots: Declare.optional(Declare.fn)
} satisfies Declare.DeclarationOf<Options>

export const inProcess = common

/** Of a client that is connected already. */
export const fromClient = {
  name: Declare.optional(text, { shown: "client" }),
  requestTimeout: common.requestTimeout,
  listTimeToLive: common.listTimeToLive
}

export const defaultMaxMessageBytes = 10 * 1024 * 1024

export const stdio = {
  ...common,
  command: Declare.required(text),
  args: Declare.optional(texts),
  env: Declare.optional(perIdentity("a record of environment variables, or a function of an identity", issueOfEnv)),
  cwd: Declare.optional(text, { shown: "this process' own" }),
  maxMessageBytes: Declare.withDefault(Declare.count, defaultMaxMessageBytes, { shown: "10 MiB" }),
  standby: Declare.optional(standbyKind)
} satisfies Declare.DeclarationOf<StdioOptions>

export const http = {
  ...common,
  url: Declare.required(url),
  headers: Declare.optional(perIdentity("a record of headers, or a function of an identity", issueOfHeaders)),
  forwardCredentials: Declare.withDefault(Declare.boolean, false),
  fetch: Declare.optional(Declare.fn, { shown: "the global `fetch`" })
} satisfies Declare.DeclarationOf<HttpOptions>
