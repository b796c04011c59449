/**
 * Whether the nodes that are there would let another one in: one that they don't trust takes its share of the keys by
 * way of the store, and nobody can reach it. Of secrets the store knows enough to tell that they differ; of
 * certificates it knows nothing.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { FromClientEncoded } from "effect/rpc/RpcMessage"
import * as Tls from "node:tls"
import type { ClusterMember } from "../../ClusterMembership.ts"
import { nameOf } from "./fence.ts"
import { serialization } from "./lines.ts"
import * as Security from "./security.ts"

/** How long a node may take to say so. */
const patience = "2 seconds"

/**
 * Whether none of the nodes lets this one in, and one does not: where some do, it says which don't. Asked twice,
 * because one that just stops hangs up, too: then it is there no more.
 */
export const isRefused = (
  security: Security.Security,
  members: Effect.Effect<ReadonlyArray<ClusterMember>>
): Effect.Effect<boolean> => {
  const ends = Security.endsOf(security)
  if (ends === undefined || security.type !== "certificates") return Effect.succeed(false)
  const isRefusedNow = Effect.gen(function*() {
    const all = yield* members
    const answers = yield* Effect.forEach(all, (member) => knock(ends, member), { concurrency: "unbounded" })
    const refusing = all.filter((_, i) => answers[i] === false)
    if (!answers.includes(true)) return refusing.length > 0
    // A node at fault must not keep the others from being started again
    if (refusing.length > 0) {
      yield* Effect.logWarning(
        `These nodes don't let this one in, or are not trusted by it: ${refusing.map(nameOf).join(", ")}. ` +
          "Their sessions can't be reached from here, and the other way round"
      )
    }
    return false
  })
  return Effect.flatMap(
    isRefusedNow,
    (refused) => refused ? Effect.delay(isRefusedNow, "1 second") : Effect.succeed(false)
  )
}

/** Undefined if it can't be told: the node may be gone, or frozen, or be at fault itself. */
const knock = (ends: Security.Ends, { host, port }: ClusterMember): Effect.Effect<boolean | undefined> =>
  Effect.callback<boolean | undefined>((resume) => {
    let isOpen = false
    const conn = Tls.connect({ ...ends.client, host, port }, () => {
      isOpen = true
      conn.write(serialization.makeUnsafe().encode({ _tag: "Ping" } satisfies FromClientEncoded)!)
    })
    const answer = (value: boolean | undefined) => {
      conn.destroy()
      resume(Effect.succeed(value))
    }
    conn.on("data", () => answer(true))
    // It looks at a certificate when the handshake is over, and hangs up
    conn.on(
      "error",
      (error: NodeJS.ErrnoException) => answer(isOpen || isOfAnother.has(error.code ?? "") ? false : undefined)
    )
    conn.on("close", () => answer(isOpen ? false : undefined))
    return Effect.sync(() => conn.destroy())
  }).pipe(
    Effect.timeoutOption(patience),
    Effect.map(Option.getOrUndefined)
  )

/** What OpenSSL says of a certificate whose authority is another one. */
const isOfAnother: ReadonlySet<string> = new Set([
  "CERT_SIGNATURE_FAILURE",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE"
])
