/**
 * Warns of a server whose callers nobody verifies, if others can reach it or it tells them to get tokens: whoever makes
 * up a token is a caller.
 *
 * Where the server is is known when the layer is built beside it, and else by the first request. Whether somebody
 * verifies callers is known of some resolvers, and else by the first identity.
 */
import * as Effect from "effect/Effect"
import * as HttpServer from "effect/http/HttpServer"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as NetAddress from "effect/net/NetAddress"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import type { Identity } from "../../Identity.ts"
import type { IdentityResolver } from "../../IdentityResolver.ts"

/**
 * Makes a function that looks at each request, and warns once; none if there is nothing left to look for. Whoever tells
 * clients to get tokens is warned wherever the server is.
 */
export const make = Effect.fnUntraced(function*(
  resolver: IdentityResolver["Service"],
  { isProtected, method }: { readonly isProtected: boolean; readonly method: string }
) {
  const server = yield* Effect.serviceOption(HttpServer.HttpServer)
  const known = Option.map(server, ({ address }) => NetAddress.isUnixPathAddress(address) ? undefined : address)

  /** Why it matters, if it does, as far as it is known where the server is. */
  const matter = (address: NetAddress.InetAddress | undefined): string | undefined => {
    if (isProtected) return "with \"authorization\" clients are told to get tokens, which nobody verifies"
    return isExposed(address)
      ? `this server listens on ${
        NetAddress.formatInet(address)
      }, where others can reach it, and nobody verifies who ` +
        "they are"
      : undefined
  }

  const warn = (matters: string): Effect.Effect<void> =>
    Effect.logWarning(
      `McpHttp.${method}: ${matters}. Verify tokens with IdentityResolver.layerJwt or layerIntrospection; or if ` +
        "something in front of the server does, say so with IdentityResolver.layerIdentify and " +
        `Identity.fromKey(key, { verified: true })${isProtected ? "" : "; or listen on 127.0.0.1"}`
    )

  if (resolver.verifies === true) return undefined
  const matters = matter(Option.getOrUndefined(known))
  if (matters === undefined && Option.isSome(known)) return undefined
  if (matters !== undefined && resolver.verifies === false) {
    yield* warn(matters)
    return undefined
  }

  let isDone = false
  return (request: HttpServerRequest, identity: Identity): Effect.Effect<void> | undefined => {
    if (isDone || identity.verified) return undefined
    // Of a server that can't be asked now, the next request can't ask either
    isDone = true
    const found = matter(Option.getOrElse(known, () => addressOf(request)))
    return found === undefined ? undefined : warn(found)
  }
})

const isExposed = (address: NetAddress.InetAddress | undefined): address is NetAddress.InetAddress =>
  address !== undefined && !NetAddress.isLoopback(address.address)

/** What a server of Node's says that it is bound to. */
const addressOf = ({ source }: HttpServerRequest): NetAddress.InetAddress | undefined => {
  const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
  const server = Predicate.hasProperty(socket, "server") ? socket.server : undefined
  if (!Predicate.hasProperty(server, "address") || typeof server.address !== "function") return undefined
  const bound: unknown = server.address()
  return Predicate.hasProperty(bound, "address") && Predicate.hasProperty(bound, "port") &&
      typeof bound.address === "string" && typeof bound.port === "number"
    ? Option.getOrUndefined(Result.getSuccess(NetAddress.inetAddressFromIpString(bound.address, bound.port)))
    : undefined
}
