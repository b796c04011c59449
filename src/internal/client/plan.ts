/**
 * How each connector gets a transport for one session: a child, a fetch, a server of this process, or what somebody
 * else has made; with what the session's texts must not show.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { Authorization } from "../../Authorization.ts"
import type {
  FetchLike,
  HttpOptions,
  Options,
  PerIdentity,
  ServerLike,
  SessionHandle,
  StdioOptions
} from "../../Connector.ts"
import { type CredentialScheme, Identity } from "../../Identity.ts"
import { McpSessionError, PreparationFailed } from "../../McpSessionError.ts"
import * as Scrub from "../scrub.ts"
import * as Secrets from "../secrets.ts"
import * as Fetch from "./fetch.ts"
import * as ConnectorOptions from "./options.ts"
import * as Refusals from "./refusals.ts"
import { mayBeDeaf, type MessageLike, type TransportLike } from "./sdk.ts"
import type { OpenOptions, OpenTransport } from "./session.ts"
import * as Stdio from "./stdio.ts"

/**
 * A session to be: what `session.ts` needs of all connectors.
 */
export interface Plan<R> extends
  Pick<
    OpenOptions<never, R>,
    "identity" | "handle" | "server" | "scrub" | "transport" | "connectTimeout" | "requestTimeout" | "listTimeToLive"
  >
{
  /** Who answers what the server asks. */
  readonly owner: Effect.Effect<Identity>
  /** The session is this identity's from now on: so are its logs, and its texts show none of the new secrets. */
  readonly adopt: (identity: Identity) => void
}

/** A `fetch` that brings tokens along. This room has no way to them: they come with the SDK. */
export type Authorized = <R>(options: {
  readonly authorization: Authorization<R>
  readonly url: URL
  readonly fetch: FetchLike
  readonly identity: Identity
  readonly handle: SessionHandle
  /** What errors call the server. */
  readonly server: string
  /** Of the session: knows each token for as long as it is used. */
  readonly scrub: Scrub.Scrub
  /** What a failure is to whoever has made the request. */
  readonly prepare: <A, E2, R2>(effect: Effect.Effect<A, E2, R2>) => Effect.Effect<A, McpSessionError, R2>
}) => Effect.Effect<FetchLike, McpSessionError, R | Scope.Scope>

export type MakeTransport = (
  url: URL,
  init: { readonly fetch: FetchLike }
) => TransportLike & { terminateSession?(): Promise<void> }

/**
 * What talking to a child needs of an SDK.
 */
export interface StdioParts {
  readonly readBuffer: () => Stdio.ReadBufferLike
  readonly serialize: (message: never) => string
  readonly environment: () => Readonly<Record<string, string>>
}

// -----------------------------------------------------------------------------
// Transports
// -----------------------------------------------------------------------------

const makePlan = <R>(
  options: Options<unknown>,
  { secrets = [], server }: { readonly server: string; readonly secrets?: ReadonlyArray<string> },
  identity: Identity,
  handle: SessionHandle,
  transport: (scrub: Scrub.Scrub, name: string) => Effect.Effect<OpenTransport, unknown, Scope.Scope | R>
): Plan<R> => {
  const scrub = Scrub.make()
  for (const secret of [...secrets, ...Secrets.ofCredentials(identity.credentials)]) scrub.add(secret)
  const name = options.name ?? scrub(server)
  return {
    identity,
    handle,
    server: name,
    scrub,
    transport: transport(scrub, name),
    connectTimeout: options.connectTimeout,
    requestTimeout: options.requestTimeout,
    listTimeToLive: options.listTimeToLive,
    owner: Effect.succeed(identity),
    adopt: () => {}
  }
}

/**
 * A child process, talked to over its pipes.
 */
export const stdio = <R>(
  options: StdioOptions<R>,
  sdk: StdioParts
) => {
  const file = options.command.split(/[\\/]/).at(-1)!
  const secrets = [
    ...Secrets.ofArguments([file]),
    ...Secrets.ofArguments(options.args ?? []),
    ...(typeof options.env === "object" ? Secrets.ofRecord(options.env) : [])
  ]
  return (identity: Identity, handle: SessionHandle): Plan<R> => {
    let owner = identity
    let lastLines: Array<string> = []
    const plan = makePlan<R>(
      options,
      { server: file, secrets },
      identity,
      handle,
      (scrub, name) =>
        Effect.gen(function*() {
          const runFork = Effect.runForkWith(yield* Effect.context<never>())
          const env = yield* prepared("env", name, perIdentity("env", options.env, identity))
          for (const secret of Secrets.ofRecord(env)) scrub.add(secret)
          // Of this child: negotiation may start another
          const said: Array<string> = lastLines = []
          const transport = yield* Stdio.make({
            command: options.command,
            args: options.args ?? [],
            env: { ...sdk.environment(), ...env },
            cwd: options.cwd,
            readBuffer: sdk.readBuffer(),
            maxMessageBytes: options.maxMessageBytes ?? ConnectorOptions.defaultMaxMessageBytes,
            serialize: sdk.serialize as (message: MessageLike) => string,
            onStderr: (line) => {
              const scrubbed = scrub.beginning(line, Stdio.stderrLineLimit)
              said.push(scrubbed.slice(0, lastLineLimit))
              if (said.length > 10) said.shift()
              runFork(Effect.annotateLogs(Effect.logDebug(scrubbed), { server: name, session: owner.key }))
            }
          })
          return {
            transport,
            pid: transport.pid,
            network: { "network.transport": "pipe" },
            ending: () => {
              const ending = transport.ending()
              return ending === undefined || said.length === 0 ? ending : { ...ending, stderr: said.join("\n") }
            }
          }
        })
    )
    return {
      ...plan,
      adopt: (adopter) => {
        owner = adopter
        for (const secret of Secrets.ofCredentials(adopter.credentials)) plan.scrub.add(secret)
        for (const [i, line] of lastLines.entries()) lastLines[i] = plan.scrub.beginning(line, lastLineLimit)
      }
    }
  }
}

/** Of what a child said last, as an error shows it. */
const lastLineLimit = 500

/**
 * A transport over `fetch`. With `isStreamSession` its session is its GET stream, as in the SSE transport.
 */
export const http = <R>(
  options: HttpOptions<R>,
  isStreamSession: boolean,
  transportTo: MakeTransport,
  authorized: Authorized
) => {
  const url = new URL(options.url)
  const secrets = [
    ...Secrets.ofUrl(url),
    ...ConnectorOptions.secretsOf(options.authorization),
    ...(typeof options.headers === "object" ? Secrets.ofRecord(options.headers) : [])
  ]
  return (identity: Identity, handle: SessionHandle): Plan<R> =>
    makePlan(options, { server: url.host, secrets }, identity, handle, (scrub, name) => {
      let forwarded: CredentialScheme | undefined
      const onForwarded = (scheme: CredentialScheme | undefined) => void (forwarded = scheme)
      return Effect.gen(function*() {
        const context = yield* Effect.context<never>()
        const runPromise = Effect.runPromiseWith(context)
        const clock = yield* Clock.Clock
        const own = holding(options.fetch ?? globalFetch, scrub)
        const { authorization } = options
        const refusals = Refusals.make({
          fetch: authorization === undefined ? own : yield* authorized({
            authorization,
            url,
            fetch: own,
            identity,
            handle,
            server: name,
            scrub,
            prepare: (effect) => prepared("authorization", name, effect)
          }),
          now: () => clock.currentTimeMillisUnsafe(),
          whenLate: (f) => {
            const fiber = Effect.runForkWith(context)(Effect.andThen(Effect.sleep("2 seconds"), Effect.sync(f)))
            return () => fiber.interruptUnsafe()
          }
        })
        const { attach, fetch, streamFailure } = Fetch.make({
          fetch: refusals.fetch,
          headers: yield* headersOf(options, name, identity, handle, scrub, onForwarded),
          pause: () => runPromise(Effect.sleep("100 millis")),
          isStreamSession
        })
        const transport = transportTo(url, { fetch })
        return {
          transport,
          attach: (wire) => ({ ...attach(wire), onFailed: refusals.onFailed }),
          refusalOf: refusals.of,
          latestRefusal: refusals.latest,
          network: {
            "network.transport": "tcp",
            "network.protocol.name": "http",
            "server.address": url.hostname,
            "server.port": Number(url.port) || (url.protocol === "https:" ? 443 : 80)
          },
          ...(isStreamSession ? { failure: streamFailure } : {}),
          sessionful: isStreamSession,
          forwarded: () => forwarded,
          terminate: async () => transport.terminateSession?.()
        }
      })
    })
}

/**
 * A server in this process, connected to one end of a pair of transports.
 */
export const inProcess = <R, T>(
  options: Options<unknown>,
  server: (identity: Identity) => Effect.Effect<ServerLike<T>, unknown, R | Scope.Scope>,
  pair: () => readonly [TransportLike, T]
) =>
(identity: Identity, handle: SessionHandle): Plan<R> =>
  makePlan(options, { server: "in-process" }, identity, handle, (_, name) =>
    Effect.gen(function*() {
      const instance = yield* prepared("server", name, made("server", () => server(identity), "connect"))
      const [transport, theirs] = pair()
      yield* Effect.tryPromise({ try: () => instance.connect(theirs), catch: (error) => error })
      return { transport }
    }))

/**
 * A transport that somebody else has made.
 */
export const fromTransport = <R, T>(
  options: Options<unknown>,
  transportFor: (identity: Identity) => Effect.Effect<T, unknown, R | Scope.Scope>
) =>
(identity: Identity, handle: SessionHandle): Plan<R> =>
  makePlan(options, { server: "transport" }, identity, handle, (_, name) =>
    Effect.gen(function*() {
      const found = yield* prepared("transport", name, made("transport", () => transportFor(identity), "start"))
      const transport = found as TransportLike & { terminateSession?(): Promise<void> }
      return {
        transport,
        attach: (wire) => {
          wire.isDeaf = mayBeDeaf(transport)
          return {}
        },
        terminate: async () => transport.terminateSession?.()
      }
    }))

/**
 * What a function of the user's own makes, which is known by a method. Dies when it makes something else: not every
 * user has a compiler.
 */
const made = <A, R>(
  option: "server" | "transport",
  of: () => Effect.Effect<A, unknown, R>,
  method: "connect" | "start"
): Effect.Effect<A, unknown, R> =>
  Effect.suspend(() => {
    const effect: unknown = of()
    return Effect.isEffect(effect)
      ? effect as Effect.Effect<A, unknown, R>
      : Effect.die(new TypeError(`\`${option}\` must return an Effect`))
  }).pipe(
    Effect.tap((value) =>
      Predicate.hasProperty(value, method) && typeof value[method] === "function"
        ? Effect.void
        : Effect.die(new TypeError(`\`${option}\` must make a ${option}: what it made has no \`${method}\``))
    )
  )

// -----------------------------------------------------------------------------
// What depends on the identity
// -----------------------------------------------------------------------------

/**
 * What `record` gives for `identity`. Dies with what it throws, and when that is no record of texts that can be sent.
 */
const perIdentity = <R>(
  option: "headers" | "env",
  record: PerIdentity<R> | undefined,
  identity: Identity
): Effect.Effect<Readonly<Record<string, string>>, unknown, R> =>
  Effect.suspend(() => {
    const found: unknown = typeof record === "function" ? record(identity) : record ?? {}
    return Effect.isEffect(found)
      ? Effect.flatMap(found as Effect.Effect<unknown, unknown, R>, (value) => checked(option, value))
      : checked(option, found)
  })

const checked = (option: "headers" | "env", value: unknown): Effect.Effect<Readonly<Record<string, string>>> => {
  const issue = option === "env" ? ConnectorOptions.issueOfEnv(value) : ConnectorOptions.issueOfHeaders(value)
  return issue === undefined
    ? Effect.succeed(value as Readonly<Record<string, string>>)
    : Effect.die(new TypeError(`${option} ${issue}`))
}

/**
 * Whatever goes wrong before a request is sent is one reason, and says that it was not. An error of the library's own
 * comes through as it is.
 */
const prepared = <A, R>(
  option: PreparationFailed["option"],
  server: string,
  effect: Effect.Effect<A, unknown, R>
): Effect.Effect<A, McpSessionError, R> =>
  Effect.catchCause(effect, (cause) => {
    // Also where it has interrupted itself. A caller who is interrupted from without does not come here
    const error = Cause.squash(cause)
    if (error instanceof McpSessionError) return Effect.fail(error)
    const reason = new PreparationFailed({ option, cause: Redacted.make(error), requestSent: false })
    // Whoever asked knows for what: see `reasonOf`
    return Effect.fail(new McpSessionError({ reason, method: "connect", server }))
  })

/**
 * The headers of the coming request, with the newest credentials in the identity.
 */
const headersOf = <R>(
  options: HttpOptions<R>,
  server: string,
  identity: Identity,
  handle: SessionHandle,
  scrub: Scrub.Scrub,
  onForwarded: (scheme: CredentialScheme | undefined) => void
): Effect.Effect<() => Promise<Readonly<Record<string, string>>>, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    let current = identity
    let held: ReadonlyArray<() => void> = []
    const headers = Effect.gen(function*() {
      const newest = Option.getOrUndefined(yield* handle.credentials)
      if (newest !== undefined && newest !== Option.getOrUndefined(current.credentials)) {
        const credentials = Option.some(newest)
        current = new Identity({ ...identity, credentials }, { disableChecks: true })
        const before = held
        held = Secrets.ofCredentials(credentials).map(scrub.hold)
        for (const release of before) release()
      }
      const { credentials } = current
      const own = yield* perIdentity("headers", options.headers, current)
      const isForwarded = options.forwardCredentials === true && Option.isSome(credentials)
      onForwarded(isForwarded ? credentials.value.scheme : undefined)
      if (!isForwarded) return own
      return { ...own, [credentials.value.name]: Redacted.value(credentials.value.header) }
    })
    return () => runPromise(prepared("headers", server, headers))
  })

/**
 * Secrets that go out in headers are taken out of texts for as long as the answer can be read, which may quote them:
 * the stream of a session is open for hours, and a token is rotated many times meanwhile.
 */
const holding = (fetch: FetchLike, scrub: Scrub.Scrub): FetchLike => {
  // Most headers are what they were the last time
  const latest = new Map<string, { readonly value: string; readonly secrets: ReadonlyArray<string> }>()
  const secretsOf = (name: string, value: string) => {
    const known = latest.get(name)
    if (known?.value === value) return known.secrets
    const secrets = Secrets.ofRecord({ [name]: value })
    latest.set(name, { value, secrets })
    return secrets
  }
  return async (url, init) => {
    const releases: Array<() => void> = []
    new Headers(init?.headers).forEach((value, name) => {
      for (const secret of secretsOf(name, value)) releases.push(scrub.hold(secret))
    })
    const release = () => {
      for (const one of releases) one()
    }
    try {
      const response = await fetch(url, init)
      if (releases.length > 0 && response.body !== null) answers.register(response.body, release)
      else release()
      return response
    } catch (error) {
      release()
      throw error
    }
  }
}

// What nothing refers to any more has been read
const answers = new FinalizationRegistry<() => void>((release) => release())

// Late-bound, so that tests and instrumentation that replace the global one are heard
const globalFetch: FetchLike = (url, init) => fetch(url, init)
