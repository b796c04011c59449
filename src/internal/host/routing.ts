/**
 * Which node answers a request: the one that its session's id names, or one that takes new sessions.
 *
 * An id ends with the tag of the node that has minted it, a digest of its address. Nothing else is known of a session
 * anywhere else: the node that is named resolves the caller, and answers. There is one hop at most. What was handed on
 * is never handed on again, and whoever claims that something was, gets the answer of this very node.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import { type ClusterMember, ClusterMembership } from "../../ClusterMembership.ts"
import { InvalidOptions } from "../../InvalidOptions.ts"
import * as Declared from "../../McpHttpOptions.ts"
import * as Finalizers from "../finalizers.ts"
import * as Spans from "../spans.ts"
import * as Time from "../time.ts"
import * as Answers from "./answers.ts"
import * as Link from "./link.ts"
import * as Relay from "./relay.ts"

type Response = HttpServerResponse.HttpServerResponse

/** What an endpoint has that hands a request on. */
export interface Endpoint {
  readonly maxBodyBytes: number
  readonly readText: (
    request: HttpServerRequest,
    until: Effect.Effect<never, Answers.Refused>
  ) => Effect.Effect<string, Answers.Refused>
  /** Fails when the endpoint shuts down. */
  readonly closing: Effect.Effect<never, Answers.Refused>
}

export interface Router {
  /** What the ids of this node's sessions end with. */
  readonly suffix: string
  /** Called by each endpoint that is routed. */
  readonly join: () => void
  /** Counts what a node finishes before it stops, until the current scope closes. */
  readonly working: Effect.Effect<void, never, Scope.Scope>
  /**
   * The answer of another node to a request with or without the id of a session, or none: then it is for this one to
   * answer. Undefined if that is known at once.
   */
  readonly elsewhere: (
    endpoint: Endpoint,
    request: HttpServerRequest,
    id: string | undefined
  ) => Effect.Effect<Response | undefined, Answers.Refused, Scope.Scope> | undefined
}

/** What the endpoints of a layer are routed by. */
export class Routing extends Context.Service<Routing, Router>()("effect-mcp-sessions/McpHttp/Routing") {}

/** A node that sessions are at. */
interface Peer {
  readonly tag: string
  readonly member: ClusterMember
  /** What ends the exchanges with it. */
  readonly exchanges: Set<() => void>
}

/** To whom a request was handed on, by its tag: whoever is another answers it neither, and says who it is. */
const header = "mcp-routed-to"

/** How often it is looked who is there. */
const interval = "1 second"

/** For how many milliseconds the store is not asked again for a node that is not known. */
const pause = 100

/** 72 bits: the chance that two nodes of a thousand have the same is one in 10 to the 16. */
const tagLength = 12

const isTagged = new RegExp(`\\.([\\w-]{${tagLength}})$`)

const nameOf = ({ host, port }: ClusterMember): string => `${host}:${port}`

const tagOf = (member: ClusterMember): string =>
  createHash("sha256").update(nameOf(member)).digest("base64url").slice(0, tagLength)

export const make = Effect.fnUntraced(function*(options: Declared.RoutedOptions) {
  const { addressOf, agent, connectTimeout } = yield* parse(options)
  const membership = yield* ClusterMembership
  const now = Time.monotonic(yield* Clock.Clock)
  const scope = yield* Effect.scope
  const link = yield* Link.make(agent, connectTimeout)
  const own = membership.self === undefined ? undefined : tagOf(membership.self)
  let peers: ReadonlyMap<string, Peer> = new Map()
  let endpoints = 0
  let works = 0
  yield* membership.finishing(() => works > 0)

  // Who is not there any more has its exchanges ended: one that was frozen, or cut off, would keep them waiting
  const learn = (nodes: ReadonlyArray<ClusterMember>): void => {
    const known = peers
    const next = new Map<string, Peer>()
    for (const member of nodes) {
      const tag = tagOf(member)
      if (tag !== own) next.set(tag, known.get(tag) ?? { tag, member, exchanges: new Set() })
    }
    peers = next
    for (const { exchanges, tag } of known.values()) {
      if (!next.has(tag)) { for (const abort of exchanges) abort() }
    }
  }

  const look = Effect.ignore(Effect.map(membership.nodes, learn))
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(look, Effect.sleep(interval))))

  // One asks for all, in a fiber of its own: whoever came first may leave
  let asked = -Infinity
  let asking: Deferred.Deferred<boolean> | undefined
  const ask: Effect.Effect<boolean> = Effect.suspend(() => {
    if (asking !== undefined) return Deferred.await(asking)
    const answered = Deferred.makeUnsafe<boolean>()
    asking = answered
    const wait = Math.max(0, asked + pause - now())
    const asks = Effect.suspend(() => {
      asked = now()
      return Effect.map(membership.nodesNow, learn)
    })
    return Effect.flatMap(Effect.forkIn(Effect.delay(asks, wait), scope), (fiber) => {
      // Told by the fiber itself: none begins when all of this has ended
      fiber.addObserver((exit) => {
        asking = undefined
        Deferred.doneUnsafe(answered, Exit.succeed(Exit.isSuccess(exit)))
      })
      return Deferred.await(answered)
    })
  })

  // What was asked before this request came may have been answered before its session's node was there
  const search = Effect.fnUntraced(function*(tag: string) {
    if (asking !== undefined) yield* ask
    if (!peers.has(tag) && !(yield* ask)) return yield* Answers.unavailable
    return peers.get(tag)
  })

  // -----------------------------------------------------------------------------
  // Handing on
  // -----------------------------------------------------------------------------

  const warned = new Map<string, number>()
  /** Whoever can make requests could fill the log. */
  const warn = (peer: Peer, issue: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      const key = `${peer.tag} ${issue}`
      const last = warned.get(key)
      if (last !== undefined && now() - last < 60_000) return Effect.void
      warned.set(key, now())
      return Effect.logWarning(`McpHttp.routed: ${issue}`).pipe(Effect.annotateLogs("node", nameOf(peer.member)))
    })

  /** Fails with `Unanswered` if nothing was sent. */
  const handOn = Effect.fnUntraced(function*(
    peer: Peer,
    endpoint: Endpoint,
    request: HttpServerRequest,
    body: Relay.Body
  ) {
    const base = addressOf(peer.member)
    if (base === undefined) {
      yield* warn(peer, "option \"address\" answers with no URL of a node")
      return yield* new Link.Unanswered({ isSent: false, code: "EINVAL" })
    }
    // While its body was read, or another node was tried
    const isGone = () => peers.get(peer.tag) !== peer
    if (isGone()) return yield* new Link.Unanswered({ isSent: false, code: "ENOTFOUND" })
    let abort: (() => void) | undefined
    yield* Finalizers.add(Effect.sync(() => abort !== undefined && peer.exchanges.delete(abort)))
    const exchange = traced(request, base, (traceparent) =>
      link.send({
        base,
        path: Relay.pathOf(request),
        method: request.method,
        headers: Relay.headersOf(request, body.content, { [header]: peer.tag, traceparent }),
        body: body.content
      }, (end) => {
        if (isGone()) return end()
        abort = end
        peer.exchanges.add(end)
      }))
    const incoming = yield* Effect.catchTag(exchange, "Unanswered", (error) =>
      Effect.as(
        warn(peer, `a node could not be reached, or was lost (${error.code})`),
        error.isSent ? undefined : error
      ))
    if (incoming === undefined) return yield* Relay.unanswered(request.method, body)
    if (incoming instanceof Link.Unanswered) return yield* incoming
    if (incoming.headers[header] !== undefined) {
      yield* warn(peer, "the address of a node leads to another one, or to no endpoint that is routed")
      return yield* Answers.unavailable
    }
    return yield* Relay.answer(incoming, request, body, Effect.exit(endpoint.closing))
  })

  const handOnTo = Effect.fnUntraced(function*(peer: Peer, endpoint: Endpoint, request: HttpServerRequest) {
    const issue = Relay.connectionIssue(request)
    if (issue !== undefined) return yield* issue
    const body = yield* bodyOf(endpoint, request)
    return yield* Effect.catchTag(
      handOn(peer, endpoint, request, body),
      "Unanswered",
      // It may have stopped since it was looked who is there
      Effect.fnUntraced(function*() {
        const isKnown = yield* ask
        return isKnown && !peers.has(peer.tag) ? undefined : yield* Answers.unavailable
      })
    )
  })

  let turn = 0
  /**
   * Those that take new sessions, another one first each time. Who has joined a moment ago is learned first: else
   * nothing would end its exchanges.
   */
  const ready = Effect.map(Effect.tap(Effect.option(membership.members), look), (members) => {
    const others = Option.getOrElse(members, () => []).flatMap((member) => peers.get(tagOf(member)) ?? [])
    const first = others.length === 0 ? 0 : turn++ % others.length
    return [...others.slice(first), ...others.slice(0, first)]
  })

  const beginElsewhere = Effect.fnUntraced(function*(endpoint: Endpoint, request: HttpServerRequest) {
    if (own !== undefined && !(yield* membership.isDraining)) return undefined
    const others = yield* ready
    if (others.length === 0) return undefined
    const issue = Relay.connectionIssue(request)
    if (issue !== undefined) return yield* issue
    const body = yield* bodyOf(endpoint, request)
    for (const peer of others) {
      const answer = yield* Effect.catchTag(
        handOn(peer, endpoint, request, body),
        "Unanswered",
        () => Effect.undefined
      )
      if (answer !== undefined) return answer
    }
    return yield* Answers.unavailable
  })

  const misled = new Answers.Refused({
    response: HttpServerResponse.setHeader(Answers.unavailable.response, header, own ?? "")
  })

  const router: Router = {
    suffix: own === undefined ? "" : `.${own}`,
    join: () => void endpoints++,
    working: Finalizers.hold(() => void works++, () => void works--),
    elsewhere: (endpoint, request, id) => {
      const meant = request.headers[header]
      if (meant !== undefined) return meant === own ? undefined : Effect.fail(misled)
      if (id === undefined) return request.method === "POST" ? beginElsewhere(endpoint, request) : undefined
      const tag = isTagged.exec(id)?.[1]
      if (tag === undefined || tag === own) return undefined
      const known = peers.get(tag)
      if (known !== undefined) return handOnTo(known, endpoint, request)
      return Effect.flatMap(
        search(tag),
        (found) => found === undefined ? Effect.undefined : handOnTo(found, endpoint, request)
      )
    }
  }
  return { router, isJoined: () => endpoints > 0 }
})

const bodyOf = (endpoint: Endpoint, request: HttpServerRequest) =>
  Relay.readBody(request, endpoint.maxBodyBytes, endpoint.readText(request, endpoint.closing))

/** In the span of a client, if anybody hears of spans. Its trace goes on at the other node. */
const traced = <A, E extends Link.Unanswered, R>(
  request: HttpServerRequest,
  base: URL,
  send: (traceparent: string | undefined) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.withFiber((fiber) => {
    if (!Spans.hasTracer(fiber)) return send(undefined)
    const parent = Spans.current(fiber) ?? Spans.ofTraceparent(request.headers["traceparent"])
    return Spans.within("McpHttp.handOn", {
      kind: "client",
      ...(parent === undefined ? {} : { parent }),
      attributes: {
        "http.request.method": request.method,
        "server.address": base.hostname,
        ...(base.port === "" ? {} : { "server.port": Number(base.port) })
      }
    }, (span) =>
      send(Spans.traceparentOf(fiber, span)), Spans.plain)
  })

// -----------------------------------------------------------------------------
// Options
// -----------------------------------------------------------------------------

const parse = Effect.fnUntraced(function*(options: Declared.RoutedOptions) {
  const { address, agent, connectTimeout, port } = yield* Effect.fromResult(Declared.routed.parse(options, "routed"))
  if ((address === undefined) === (port === undefined)) {
    return yield* new InvalidOptions({
      module: "McpHttp",
      method: "routed",
      option: "address",
      issue: "must be given if \"port\" is not, and only then"
    })
  }
  const told = address ?? ((member: ClusterMember) => `http://${bracketed(member.host)}:${port}`)
  return { agent, connectTimeout, addressOf: (member: ClusterMember) => read(told, member) }
})

const bracketed = (host: string): string => host.includes(":") && !host.startsWith("[") ? `[${host}]` : host

/** What a function of the user's answers. None if that is no URL of a server, or if it throws. */
const read = (told: (member: ClusterMember) => unknown, member: ClusterMember): URL | undefined =>
  Option.getOrUndefined(Option.filter(
    Option.liftThrowable(() => new URL(String(told(member))))(),
    ({ password, protocol, username }) =>
      (protocol === "http:" || protocol === "https:") && username === "" && password === ""
  ))
