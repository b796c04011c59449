/**
 * The options of the connectors, each declared once for both generations of the SDK. They are read when a connector is
 * made: that an option is wrong is known before anybody asks for a session.
 */
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import type {
  Authorization,
  AuthorizationCode,
  ClientAuthentication,
  ClientCredentials,
  TokenExchange,
  TokenSource
} from "../../Authorization.ts"
import type { HttpOptions, Options, PerIdentity, Standby, StdioOptions } from "../../Connector.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import { isTrusted } from "../../TokenOptions.ts"
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
  startTimeout: Declare.withDefault(Declare.timeout, "5 minutes"),
  warmUp: Declare.optional(Declare.fn)
})

/** What is said of the children that wait, in milliseconds. */
export const parseStandby = (standby: Standby) => Result.getOrThrow(standbyOptions.parse(standby))

const standbyKind = Declare.custom<Standby, Standby>({
  rule:
    "an object with a size of at least 1, perhaps an idleTimeToLive and a startTimeout of more than 0, and a warmUp",
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
// Authorization
// -----------------------------------------------------------------------------

const redacted = Declare.custom<Redacted.Redacted, Redacted.Redacted>({
  rule: "a Redacted text that is not empty",
  read: Option.liftPredicate((value): value is Redacted.Redacted =>
    Redacted.isRedacted(value) && typeof Redacted.value(value) === "string" && Redacted.value(value) !== ""
  ),
  isSecret: true
})

const signingKey = Declare.custom<NonNullable<ClientAuthentication["privateKey"]>, unknown>({
  rule: "a key that is a Redacted text, and its algorithm",
  read: Option.liftPredicate((value) =>
    Predicate.isReadonlyObject(value) && typeof value["algorithm"] === "string" &&
    Option.isSome(redacted.read(value["key"]))
  ),
  isSecret: true
})

const trusted = Declare.custom<string | URL, string | URL>({
  rule: "an https URL, or http on loopback, without a user",
  read: Option.liftPredicate((value): value is string | URL =>
    (typeof value === "string" || value instanceof URL) && URL.canParse(String(value)) && isTrusted(new URL(value))
  )
})

const client = {
  clientId: Declare.required(text),
  clientSecret: Declare.optional(redacted),
  privateKey: Declare.optional(signingKey),
  issuer: Declare.required(trusted),
  scope: Declare.optional(text)
}

const metadata = Declare.custom<object, unknown>({
  rule: "an object",
  read: Option.liftPredicate(Predicate.isReadonlyObject)
})

/** By the property that says which it is. */
const authorizations: Readonly<Record<string, (given: unknown) => Result.Result<unknown, InvalidOptions>>> = {
  clientCredentials: Declare.declare<ClientCredentials>()({ module: "Authorization" }, client).parse,
  tokenExchange: Declare.declare<TokenExchange>()({ module: "Authorization" }, {
    ...client,
    audience: Declare.optional(text),
    subjectTokenType: Declare.optional(text)
  }).parse,
  authorizationCode: Declare.declare<AuthorizationCode>()({ module: "Authorization" }, {
    ...client,
    clientId: Declare.optional(text),
    issuer: Declare.optional(trusted),
    redirectUrl: Declare.required(url),
    clientMetadataUrl: Declare.optional(text),
    clientMetadata: Declare.optional(metadata),
    timeout: Declare.withDefault(Declare.timeout, "10 minutes")
  }).parse
}

const tokenSource = Declare.declare<TokenSource>()({ module: "Authorization" }, {
  token: Declare.required(Declare.fn),
  refresh: Declare.optional(Declare.fn)
})

/** What is wrong with it, worded to follow the option's name. */
const issueOfAuthorization = (given: unknown): string | undefined => {
  if (typeof given === "function") return undefined
  const ways = "a function of an identity, or one of clientCredentials, tokenExchange, authorizationCode and token"
  if (!Predicate.isReadonlyObject(given)) return `must be ${ways}`
  const [way, ...others] = Object.keys(given)
  const parse = authorizations[way ?? ""]
  if ("token" in given) return issueIn("", tokenSource.parse(given))
  if (way === undefined || parse === undefined || others.length > 0) return `must be ${ways}`
  const issue = issueIn(`${way}.`, parse(given[way]))
  if (issue !== undefined || way !== "authorizationCode") return issue
  const { clientId, clientSecret, issuer, privateKey: key } = given[way] as AuthorizationCode
  if (clientId !== undefined && issuer === undefined) return "must have authorizationCode.issuer, who knows the client"
  return clientId === undefined && (clientSecret !== undefined || key !== undefined)
    ? "must have authorizationCode.clientId, whose secret it is"
    : undefined
}

const issueIn = (path: string, parsed: Result.Result<unknown, InvalidOptions>): string | undefined =>
  Result.isFailure(parsed)
    // What it was is not said, as it may be a secret in the wrong place
    ? `is not right: ${path}${parsed.failure.option} ${parsed.failure.issue.replace(/, got .*$/s, "")}`
    : undefined

const authorizationKind = Declare.custom<Authorization<unknown>, Authorization<unknown>>({
  rule: "a way to tokens",
  // What is wrong with it is said by `checkAuthorization`
  read: (value) => Option.some(value as Authorization<unknown>),
  isSecret: true
})

/**
 * Throws what is wrong with the way to tokens.
 */
export const checkAuthorization = (
  module: string,
  method: string,
  { authorization, forwardCredentials }: Pick<HttpOptions<unknown>, "authorization" | "forwardCredentials">
): void => {
  if (authorization === undefined) return
  const issue = forwardCredentials === true
    ? "can't be had with forwardCredentials: a request has one token, of the caller's own or for this server"
    : issueOfAuthorization(authorization)
  if (issue !== undefined) throw new InvalidOptions({ module, method, option: "authorization", issue })
}

/** What is secret in it from the start. */
export const secretsOf = (authorization: Authorization<unknown> | undefined): ReadonlyArray<string> => {
  if (typeof authorization !== "object" || "token" in authorization) return []
  const [given] = Object.values<Partial<ClientAuthentication>>(authorization)
  return [given?.clientSecret, given?.privateKey?.key].flatMap((secret) =>
    secret === undefined ? [] : [Redacted.value(secret)]
  )
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
  urlElicitation: Declare.optional(Declare.fn),
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
  authorization: Declare.optional(authorizationKind),
  forwardCredentials: Declare.withDefault(Declare.boolean, false),
  fetch: Declare.optional(Declare.fn, { shown: "the global `fetch`" })
} satisfies Declare.DeclarationOf<HttpOptions>
