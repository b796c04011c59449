/**
 * From a request to the {@link Identity} that it is made for.
 *
 * The resolver reads one header, takes exactly one credential out of it, and names its owner by a keyed digest, so that
 * keys can be logged. Whatever can't be read is an error: it never becomes the session that anonymous callers share.
 *
 * > **{@link IdentityResolver.layer} asks for a credential and verifies none**, in the mode `"required"` too. Whoever
 * > makes up a token is a caller, and each token is another caller. Let something verify them:
 * > {@link IdentityResolver.layerJwt}, {@link IdentityResolver.layerIntrospection}, a proxy in front, the upstream that
 * > they are sent on to, or a function given to {@link IdentityResolver.layerIdentify}.
 */
import * as Cause from "effect/Cause"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Headers from "effect/http/Headers"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import {
  type Credentials,
  CredentialScheme,
  IdentifyFailed,
  Identity,
  IdentityError,
  IdentityUnavailable,
  InvalidIdentity,
  MalformedCredentials,
  MissingCredentials,
  PrincipalKey
} from "./Identity.ts"
import { digestUnder, makeCredentials, makeMemo, parse, valueIn } from "./internal/authorization.ts"
import * as RequestHeaders from "./internal/headers.ts"
import * as Keys from "./internal/keys.ts"
import * as Options from "./internal/options.ts"
import { holds, nameOf, namesAndPlaces } from "./internal/places.ts"
import * as Introspection from "./internal/tokens/introspection.ts"
import * as Jose from "./internal/tokens/jose.ts"
import * as Jwt from "./internal/tokens/jwt.ts"
import type { Configurable, InvalidOptions } from "./InvalidOptions.ts"
import * as Tokens from "./TokenOptions.ts"
import type { IntrospectionOptions, JwtOptions } from "./TokenOptions.ts"

/**
 * What a request without credentials is taken for: `optional`, the shared identity; `required`, an error; `disabled`,
 * every request is the shared identity and no header is read.
 *
 * @category models
 */
export const AuthMode = Schema.Literals(["optional", "required", "disabled"])

/**
 * What a request without credentials is taken for: `"optional"`, `"required"` or `"disabled"`.
 *
 * @category models
 */
export type AuthMode = typeof AuthMode.Type

/**
 * A request, as far as a resolver looks at it: a WHATWG `Request`, the requests of Node, Express and Fastify, an Effect
 * `HttpServerRequest`, or anything else with `headers`. Header names may be in any case.
 *
 * @category models
 */
export interface IdentityRequest {
  /** All headers of the request, in whatever shape. */
  readonly headers: Headers.Input
}

/**
 * Headers given in place of the request that they came with: a WHATWG `Headers`, a `Map`, or Effect's `Headers`.
 *
 * @category models
 */
export type IdentityHeaders =
  | Headers.Headers
  | Iterable<readonly [string, string]> & { readonly get: (name: string) => string | null | undefined }

/**
 * How {@link IdentityResolver.layer} reads a header.
 *
 * @category models
 */
export interface IdentityResolverOptions {
  /**
   * What a request without credentials is taken for. The default is `"optional"`. `"required"` asks for a credential
   * and verifies none.
   */
  readonly mode?: AuthMode | undefined
  /** The name of the header that credentials come in, in any case. The default is `"authorization"`. */
  readonly header?: string | undefined
  /** How the header carries them. The default is `"bearer"`. */
  readonly scheme?: CredentialScheme | undefined
  /** The key of the identity that callers without credentials share, a `PrincipalKey`. The default is `"shared"`. */
  readonly sharedKey?: string | undefined
  /**
   * What keys are digested under, at best 32 random bytes. The default is random and the same for all resolvers of the
   * process; give one for keys that stay the same across restarts and machines.
   */
  readonly keySecret?: Redacted.Redacted | undefined
}

/**
 * How long {@link IdentityResolver.layerIdentify} waits.
 *
 * @category models
 */
export interface IdentifyOptions {
  /** For the function's answer, more than 0 and finite, else `IdentityUnavailable` (503). Default: 30 seconds. */
  readonly timeout?: Duration.Input | undefined
}

/**
 * What the function given to {@link IdentityResolver.layerIdentify} answers: a session key, a key with what it takes to
 * forward its credentials, or an {@link Identity}.
 *
 * Keys are taken as they are, next to the `bearer:…`, `basic:…`, `raw:…` of the header resolvers and the shared key:
 * give each kind of owner a prefix of its own, as in `"tenant:acme"`. Only an `Identity` can say that it is `verified`.
 *
 * @category models
 */
export type Identified = string | Identity | {
  /** The principal's key: see `PrincipalKey`. */
  readonly key: string
  /** What is sent on in the caller's name. The default is nothing. */
  readonly auth?: IdentifiedAuth | null | undefined
  /** Whether all anonymous callers have this identity in common. The default is false. */
  readonly shared?: boolean | undefined
}

/**
 * The credentials of an {@link Identified}. No token, or an empty one, means no credentials.
 *
 * @category models
 */
export interface IdentifiedAuth {
  /** How a header carries them. The default is `"raw"`. */
  readonly scheme?: CredentialScheme | undefined
  /** The credential itself. */
  readonly token?: string | Redacted.Redacted | undefined
  /** The whole value to send in `authorization`. The default is `Bearer …`, `Basic …`, or the token alone. */
  readonly header?: string | Redacted.Redacted | undefined
  /** When they expire, in milliseconds since the epoch. The default is what the token says, if it is a JWT. */
  readonly expiresAt?: number | undefined
}

/**
 * Finds out who a request is made for.
 *
 * @category services
 */
export class IdentityResolver extends Context.Service<IdentityResolver, {
  /**
   * The identity of a request, as the static function of this name says. One of your own bounds its waits itself:
   * `McpHttp` waits for as long as the client does, and answers 503 when its server stops listening.
   */
  readonly resolve: (request: IdentityRequest | IdentityHeaders) => Effect.Effect<Identity, IdentityError>
  /**
   * Whether somebody verifies each caller: what `verified` of its identities is, where that is known before there are
   * any.
   */
  readonly verifies?: boolean | undefined
}>()("effect-mcp-sessions/IdentityResolver") {
  /**
   * The identity of a request.
   *
   * Fails with `MissingCredentials` when they are required and absent, with `MalformedCredentials` when there is
   * something that is not exactly one credential, and when `request` has no headers that can be read. That includes a
   * header that was sent twice, also where Node hides it by keeping the first: `rawHeaders` of the request, of its
   * `raw` (Fastify) or its `source` (Effect) is asked.
   */
  static readonly resolve = (
    request: IdentityRequest | IdentityHeaders
  ): Effect.Effect<Identity, IdentityError, IdentityResolver> =>
    // A credential that is known is answered in this very turn of the run loop
    Effect.withFiber(({ context }) => {
      const { resolve } = Context.getUnsafe(context, IdentityResolver)
      return recallerOf(resolve)?.(request) ?? resolve(request)
    })

  /**
   * The identity of the HTTP request that is being served.
   */
  static readonly fromHttpRequest: Effect.Effect<
    Identity,
    IdentityError,
    HttpServerRequest.HttpServerRequest | IdentityResolver
  > = Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => IdentityResolver.resolve(request))

  /**
   * Reads credentials from a header.
   *
   * - `bearer`: `Bearer` in any case, spaces, and one token of RFC 6750 section 2.1.
   * - `basic`: `Basic` in any case, spaces, and the base64 of `user:password` (RFC 7617), padded, without control
   *   characters in it.
   * - `raw`: the whole value. Two of them that something upstream has joined with a comma can't be told from one.
   *
   * Whitespace around the value does not belong to it (RFC 9110 section 5.5). Whitespace alone, control characters,
   * characters beyond Latin-1, and more than 16 KiB are malformed. An empty header is missing credentials when they are
   * required, and malformed when they are optional: its sender meant to say who it is.
   *
   * The key is `<scheme>:<digest>`, the digest an HMAC-SHA-256 of the token under `keySecret`, in base64url. Equal
   * tokens have equal keys.
   *
   * Fails with `InvalidOptions` when an option is not what its type says, `header` can't be the name of a header, the
   * shared key is not a `PrincipalKey`, or the secret is empty.
   */
  static readonly layer = (options: IdentityResolverOptions = {}): Layer.Layer<IdentityResolver, InvalidOptions> =>
    Layer.effect(IdentityResolver, Effect.map(Effect.suspend(() => Effect.fromResult(declared.parse(options))), make))

  /**
   * {@link IdentityResolver.layer} with options from the configuration: `MCP_AUTH_MODE`, `MCP_AUTH_HEADER`,
   * `MCP_AUTH_SCHEME`, `MCP_AUTH_SHARED_KEY` and `MCP_AUTH_KEY_SECRET`. The defaults are those of `layer`; an empty
   * environment variable counts as none. What `layer` would refuse is a `ConfigError`.
   */
  static readonly layerConfig: Layer.Layer<IdentityResolver, Config.ConfigError> = Layer.effect(
    IdentityResolver,
    // Suspended, because what it refers to is declared after this class
    Effect.suspend(() =>
      Effect.flatMap(declared.config, (options) => Effect.map(Effect.fromResult(declared.parse(options)), make))
    ).pipe(Effect.catchTag("InvalidOptions", Effect.die))
  )

  /**
   * Verifies tokens that are JWTs (RFC 7519), as access tokens are by RFC 9068: the signature, with a key of the
   * issuer; that `iss` is the issuer, and one of `aud` the audience; `exp`, which must be there, and `nbf`. It does so
   * with the package `jose`, which you install.
   *
   * The {@link Identity} is `verified`, and has the token's `claims`, its `scopes` and when it expires. Its key is
   * `oauth:<digest>`, the digest an HMAC-SHA-256 of issuer and principal under `keySecret`: so a token that was
   * refreshed reaches the session that is there. Each request is looked at anew: an expired token never gets through.
   *
   * The keys are fetched when the first token comes, again every 5 to 10 minutes, and when a token names one that is
   * not among them, at most every 10 seconds. One fetch serves all who wait for it, for at most 5 seconds; an answer
   * has at most 256 KiB and 64 keys, and redirects are not followed. While the keys can't be had, those that are known
   * go on, for a day, and a token with another fails with `IdentityUnavailable`. Whoever has to give `fetch` a proxy
   * provides Effect's `FetchHttpClient.Fetch` to this layer.
   *
   * Fails with `MissingCredentials` or `MalformedCredentials` (401) as a resolver whose mode is `"required"`, with
   * `InvalidToken` (401, RFC 6750 section 3.1), `AccessDenied` (403) when a scope is missing, `IdentityUnavailable`
   * (503), `IdentifyFailed` (500) when `principal` throws. What a token's header says of keys (`jwk`, `jku`, `x5u`) is
   * never followed. A token that is bound to a key of its holder (`cnf`, RFC 9449) is refused, because nobody here asks
   * for the proof.
   *
   * ```ts
   * IdentityResolver.layerJwt({ issuer: "https://login.example.com", audience: "https://mcp.example.com/mcp" })
   * ```
   */
  static readonly layerJwt = (options: JwtOptions): Layer.Layer<IdentityResolver, InvalidOptions> =>
    Layer.effect(IdentityResolver, verifyJwt(options, "layerJwt"))

  /**
   * {@link IdentityResolver.layerJwt} with options from the configuration: `MCP_JWT_ISSUER`, `MCP_JWT_AUDIENCE` and so
   * on, lists with spaces or commas between two. Each wins over the option that is given.
   */
  static readonly layerJwtConfig = (
    options: Configurable<Partial<JwtOptions>> = {}
  ): Layer.Layer<IdentityResolver, InvalidOptions | Config.ConfigError> =>
    Layer.effect(
      IdentityResolver,
      Effect.flatMap(
        Effect.suspend(() => Tokens.jwt.configured(options)),
        (configured) => verifyJwt(configured, "layerJwtConfig")
      )
    )

  /**
   * Has tokens verified by their issuer's introspection endpoint (RFC 7662): opaque ones, or JWTs whose revocation
   * counts at once.
   *
   * What it answers is good for `timeToLive`, and never for longer than the token: the newest 1,024 answers are kept,
   * and nothing is of a token that is refused. One request serves all who wait for it, for at most 5 seconds. When more
   * than 64 are under way, or the endpoint can't be asked, it fails with `IdentityUnavailable` (503); tokens that were
   * active before have as many places of their own. What the endpoint says is no access token of a bearer, by
   * `token_type`, `token_use` or `typ`, is refused.
   *
   * The identity, its key and the other errors are those of {@link IdentityResolver.layerJwt}: with the same `issuer`
   * and `keySecret`, a subject has the same key here and there.
   *
   * ```ts
   * IdentityResolver.layerIntrospection({
   *   endpoint: "https://login.example.com/introspect",
   *   clientId: "mcp",
   *   clientSecret: Redacted.make("correct horse battery staple"),
   *   audience: "https://mcp.example.com/mcp"
   * })
   * ```
   */
  static readonly layerIntrospection = (
    options: IntrospectionOptions
  ): Layer.Layer<IdentityResolver, InvalidOptions> =>
    Layer.effect(IdentityResolver, introspect(options, "layerIntrospection"))

  /**
   * {@link IdentityResolver.layerIntrospection} with options from the configuration: `MCP_INTROSPECTION_ENDPOINT`,
   * `MCP_INTROSPECTION_CLIENT_ID`, `MCP_INTROSPECTION_CLIENT_SECRET` and so on, lists with spaces or commas between
   * two. Each wins over the option that is given.
   */
  static readonly layerIntrospectionConfig = (
    options: Configurable<Partial<IntrospectionOptions>> = {}
  ): Layer.Layer<IdentityResolver, InvalidOptions | Config.ConfigError> =>
    Layer.effect(
      IdentityResolver,
      Effect.flatMap(
        Effect.suspend(() => Tokens.introspection.configured(options)),
        (configured) => introspect(configured, "layerIntrospectionConfig")
      )
    )

  /**
   * Identifies requests with a function of your own, in place of header parsing: look up a JWT, a session, a database.
   * Its services are those that the layer is built with. To go on from what the header says, call
   * {@link IdentityResolver.resolve} in it and provide {@link IdentityResolver.layer} to this layer.
   *
   * It fails as it likes: with `MissingCredentials` or `MalformedCredentials` (401), `AccessDenied` (403),
   * `IdentityUnavailable` (503), or an error of its own, which becomes `IdentifyFailed`: that answers what the error
   * does if it is an `HttpServerRespondable`, else 500. So does a function that throws, dies or interrupts itself. Of
   * what has no answer the names and places are logged, and no message: it may quote a token.
   *
   * Fails with `InvalidIdentity` when it answers anything but {@link Identified}, and when the key has the token in it:
   * keys are logged. A token of fewer than 8 characters is not looked for. Fails with `IdentityUnavailable` when there
   * is no answer for `timeout`, 30 seconds: then the function is interrupted, and nobody waits for it.
   *
   * A wrong option throws `InvalidOptions`.
   *
   * ```ts
   * IdentityResolver.layerIdentify((request) =>
   *   Effect.map(verify(Headers.fromInput(request.headers)), (claims) => `user:${claims.sub}`)
   * )
   * ```
   */
  static readonly layerIdentify = <R = never, E = never>(
    identify: (request: IdentityRequest) => Effect.Effect<Identified, E, R>,
    options: IdentifyOptions = {}
  ): Layer.Layer<IdentityResolver, never, R> => {
    const { timeout } = Result.getOrThrow(declaredIdentify.parse(options, "layerIdentify"))
    return Layer.effect(
      IdentityResolver,
      // The span of the layer has ended when a request comes: the function runs in the request's
      Effect.contextWith((services: Context.Context<R>) => {
        const context = Context.omit(Tracer.ParentSpan)(services) as Context.Context<R>
        const run = (request: IdentityRequest | IdentityHeaders) =>
          Effect.suspend((): Effect.Effect<Identity, E | InvalidIdentity | IdentityUnavailable> => {
            const identified = identify(isIdentityHeaders(request) ? { headers: request } : request)
            return Effect.isEffect(identified)
              ? Effect.flatMap(inTime(Effect.provideContext(identified, context), timeout), toIdentity)
              : refuse("it returned no Effect (wrap a value in Effect.succeed, a promise in Effect.promise)")
          })
        return Effect.succeed(IdentityResolver.of({
          // A caller who is interrupted from without does not come to `toError`
          resolve: (request) => Effect.catchCause(run(request), toError)
        }))
      })
    )
  }
}

// -----------------------------------------------------------------------------
// Options
// -----------------------------------------------------------------------------

// A token of RFC 9110 section 5.6.2
const HeaderName = Schema.String.check(Schema.isPattern(/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/))

const KeySecret = Schema.Redacted(Schema.NonEmptyString)

const isCredentialScheme = Schema.is(CredentialScheme)
const isIdentity = Schema.is(Identity)
const isIdentityError = Schema.is(IdentityError)
const isPrincipalKey = Schema.is(PrincipalKey)

/**
 * @internal
 */
export const declared = Options.declare<IdentityResolverOptions>()(
  { module: "IdentityResolver", variables: "MCP_AUTH" },
  {
    mode: Options.withDefault(
      Options.schema(AuthMode, "\"optional\", \"required\" or \"disabled\""),
      "optional"
    ),
    header: Options.withDefault(Options.schema(HeaderName, "the name of an HTTP header"), "authorization"),
    scheme: Options.withDefault(
      Options.schema(CredentialScheme, "\"bearer\", \"basic\" or \"raw\""),
      "bearer"
    ),
    sharedKey: Options.withDefault(
      Options.schema(PrincipalKey, "a key that a principal may have, 1 to 256 characters of visible ASCII"),
      "shared",
      { aliases: ["MCP_SHARED_KEY"] }
    ),
    keySecret: Options.optional(
      Options.schema(KeySecret, "a Redacted string that is not empty", { isSecret: true }),
      { aliases: ["MCP_KEY_SECRET"], shown: "random for the process" }
    )
  }
)

type Settings = Options.Parsed<typeof declared.declaration>

const declaredIdentify = Options.declare<IdentifyOptions>()({ module: "IdentityResolver" }, {
  timeout: Options.withDefault(Options.timeout, "30 seconds")
})

// -----------------------------------------------------------------------------
// The resolver of headers
// -----------------------------------------------------------------------------

const make = (settings: Settings): IdentityResolver["Service"] => {
  const { mode, scheme } = settings
  const shared = Effect.succeed(Identity.shared(settings.sharedKey))
  if (mode === "disabled") {
    return IdentityResolver.of({ resolve: () => shared, verifies: false })
  }

  const name = settings.header.toLowerCase()
  const digest = digestUnder(settings.keySecret)
  const memo = makeMemo<Exit.Exit<Identity>>()

  const missing = Effect.failSync(() => new MissingCredentials({ header: name, scheme }))
  const malformed = (issue: string) => Effect.fail(new MalformedCredentials({ header: name, scheme, issue }))

  const fromValue = (value: string) =>
    Result.match(parse(scheme, value), {
      onFailure: malformed,
      onSuccess: (token) => {
        const identity = Identity.fromKey(`${scheme}:${digest(token)}`, {
          credentials: makeCredentials(scheme, token, value, name)
        })
        const identified = Exit.succeed(identity)
        memo.set(value, identified)
        return identified
      }
    })

  const recall: Recaller = (request) => {
    const value = RequestHeaders.onlyValueIn(request, name)
    return value === undefined ? undefined : memo.get(value)
  }

  return IdentityResolver.of({
    verifies: false,
    resolve: withRecaller(
      recall,
      (request) =>
        Effect.suspend((): Effect.Effect<Identity, MissingCredentials | MalformedCredentials> => {
          const found = valueIn(request, name)
          if (Result.isFailure(found)) {
            return malformed(found.failure)
          }
          const value = found.success
          if (value === undefined) {
            return mode === "required" ? missing : shared
          }
          if (value === "" && mode === "required") {
            return missing
          }
          return memo.get(value) ?? fromValue(value)
        })
    )
  })
}

/** The identity of a request whose credentials are known, if that is all there is to it. */
type Recaller = (request: IdentityRequest | IdentityHeaders) => Exit.Exit<Identity> | undefined

const Recall = Symbol("effect-mcp-sessions/IdentityResolver/recall")

// Of this very function: whoever puts another in its place is asked instead.
const withRecaller = <F extends object>(recall: Recaller, resolve: F): F => Object.assign(resolve, { [Recall]: recall })

const recallerOf = (resolve: object): Recaller | undefined => (resolve as { readonly [Recall]?: Recaller })[Recall]

// -----------------------------------------------------------------------------
// The resolvers of verified tokens
// -----------------------------------------------------------------------------

const verifyJwt = Effect.fnUntraced(function*(options: Partial<JwtOptions>, method: string) {
  const settings = yield* Effect.fromResult(Tokens.jwt.parse(options, method))
  const jose = yield* Jose.load(() => import("jose"))
  return IdentityResolver.of({ resolve: yield* Jwt.make(jose, settings, method), verifies: true })
})

const introspect = Effect.fnUntraced(function*(options: Partial<IntrospectionOptions>, method: string) {
  const settings = yield* Effect.fromResult(Tokens.introspection.parse(options, method))
  return IdentityResolver.of({ resolve: yield* Introspection.make(settings), verifies: true })
})

// -----------------------------------------------------------------------------
// Checking what a custom function answers
// -----------------------------------------------------------------------------

const isIdentityHeaders = (request: IdentityRequest | IdentityHeaders): request is IdentityHeaders =>
  RequestHeaders.isHeaders(request)

const refuse = (issue: string): Effect.Effect<never, InvalidIdentity> => Effect.fail(new InvalidIdentity({ issue }))

// In a fiber of its own, unless it has its answer at once: one that ignores its interruption holds up nobody
const inTime = <A, E>(identified: Effect.Effect<A, E>, timeout: number): Effect.Effect<A, E | IdentityUnavailable> =>
  Effect.flatMap(Effect.forkDetach(identified, { startImmediately: true }), (asking) =>
    asking.pollUnsafe() ??
      Effect.ensuring(
        Effect.timeoutOrElse(Fiber.join(asking), { duration: timeout, orElse: () => tooLate(timeout) }),
        Effect.sync(() => asking.interruptUnsafe())
      ))

const tooLate = (timeout: number): Effect.Effect<never, IdentityUnavailable> =>
  Effect.andThen(
    Effect.logWarning(
      `IdentityResolver: identify took longer than ${Duration.format(Duration.millis(timeout))} and was interrupted`
    ),
    Effect.fail(new IdentityUnavailable({}))
  )

const toError = (cause: Cause.Cause<unknown>): Effect.Effect<never, IdentityError> => {
  const failure = Cause.findErrorOption(cause)
  if (Option.isNone(failure)) return broken(cause)
  const error = failure.value
  if (holds(isIdentityError, error)) return Effect.fail(error)
  const failed = Effect.fail(failedWith("failed", error))
  return holds(HttpServerRespondable.isRespondable, error)
    ? failed
    : Effect.andThen(logFailure("failed", cause), failed)
}

const broken = (cause: Cause.Cause<unknown>): Effect.Effect<never, IdentifyFailed> => {
  const defect = cause.reasons.find(Cause.isDieReason)
  return Effect.andThen(
    logFailure(defect === undefined ? "interrupted itself" : "died", cause),
    Effect.fail(defect === undefined ? failedWith("interrupted", undefined) : failedWith("died", defect.defect))
  )
}

const failedWith = (reason: IdentifyFailed["reason"], error: unknown): IdentifyFailed => {
  const name = nameOf(error)
  return new IdentifyFailed({ reason, error: Redacted.make(error), ...(name === undefined ? {} : { name }) })
}

const logFailure = (how: string, cause: Cause.Cause<unknown>): Effect.Effect<void> =>
  Effect.logError(`IdentityResolver: identify ${how}`, namesAndPlaces(cause))

const toIdentity = (identified: unknown): Effect.Effect<Identity, InvalidIdentity> => {
  if (isIdentity(identified)) {
    // Whoever has made it without its checks may have given it the key of another
    return Option.isSome(Identity.makeOption({ ...identified }))
      ? checkToken(identified)
      : refuse("the Identity is not one that its constructor would make")
  }
  if (typeof identified === "string") {
    return fromKey(identified, Option.none(), false)
  }
  if (!Predicate.isObject(identified)) {
    return refuse("its result is neither a session key nor an object with one")
  }
  const { auth, key, shared = false } = identified
  if (typeof shared !== "boolean") {
    return refuse("`shared` is not a boolean")
  }
  if (auth === undefined || auth === null) {
    return fromKey(key, Option.none(), shared)
  }
  if (!Predicate.isObject(auth)) {
    return refuse("`auth` is not an object")
  }
  const scheme = auth.scheme ?? "raw"
  if (!isCredentialScheme(scheme)) {
    return refuse("`auth.scheme` is not \"bearer\", \"basic\" or \"raw\"")
  }
  const token = reveal(auth.token ?? "")
  if (typeof token !== "string") {
    return refuse("`auth.token` is not a string")
  }
  const header = reveal(auth.header ?? "")
  if (typeof header !== "string") {
    return refuse("`auth.header` is not a string")
  }
  const { expiresAt } = auth
  if (expiresAt !== undefined && (typeof expiresAt !== "number" || !Number.isFinite(expiresAt))) {
    return refuse("`auth.expiresAt` is not a number of milliseconds since the epoch")
  }
  if (token === "") {
    return header === "" ? fromKey(key, Option.none(), shared) : refuse("`auth.header` has no `auth.token` beside it")
  }
  return fromKey(
    key,
    Option.some(makeCredentials(scheme, token, header || defaultHeader(scheme, token), "authorization", expiresAt)),
    shared
  )
}

const fromKey = (
  key: unknown,
  credentials: Option.Option<Credentials>,
  shared: boolean
): Effect.Effect<Identity, InvalidIdentity> =>
  isPrincipalKey(key) ? checkToken(new Identity({ key, credentials, shared })) : refuse(Keys.issueOf(key))

const checkToken = (identity: Identity): Effect.Effect<Identity, InvalidIdentity> => {
  if (Option.isSome(identity.credentials)) {
    const { header, token } = identity.credentials.value
    const secrets = new Set([Redacted.value(token), ...Redacted.value(header).split(" ")])
    for (const secret of secrets) {
      if (secret.length >= 8 && formsOf(secret).some((form) => identity.key.includes(form))) {
        return refuse("the session key has the token in it, and keys are logged")
      }
    }
  }
  return Effect.succeed(identity)
}

/** What a key may have of a token: all of it, in an encoding that leaves visible ASCII. */
const formsOf = (secret: string): ReadonlyArray<string> => {
  const bytes = Buffer.from(secret)
  const base64 = bytes.toString("base64").replace(/=+$/, "")
  const hex = bytes.toString("hex")
  return [
    secret,
    base64,
    base64.replaceAll("+", "-").replaceAll("/", "_"),
    hex,
    hex.toUpperCase(),
    // Of the bytes, because half a character has no such form
    encodeURIComponent(bytes.toString())
  ]
}

const reveal = (u: unknown): unknown => Redacted.isRedacted(u) ? Redacted.value(u) : u

const defaultHeader = (scheme: CredentialScheme, token: string): string => {
  switch (scheme) {
    case "bearer":
      return `Bearer ${token}`
    case "basic":
      return `Basic ${token}`
    case "raw":
      return token
  }
}
