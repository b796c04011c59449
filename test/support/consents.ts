/**
 * A caller with a browser, who agrees or does not.
 */
import { assert } from "@effect/vitest"
import * as Consent from "effect-mcp-sessions/Consent"
import type { ConsentRequired, McpSessionError } from "effect-mcp-sessions/McpSession"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"

/** Opens the address in a browser, and says where that ends. */
export const browse = (url: Redacted.Redacted): Effect.Effect<string> =>
  Effect.promise(async () => {
    const { body, headers } = await fetch(Redacted.value(url), { redirect: "manual" })
    await body?.cancel()
    return headers.get("location")!
  })

/** A caller who opens what they are asked to open, and comes back. */
export const agree = ({ url }: Pick<Consent.ConsentRequest, "url">) =>
  Effect.gen(function*() {
    yield* Consent.finish(yield* browse(url))
    return { action: "accept" } as const
  })

/** The consent that it fails for. */
export const consentOf = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<ConsentRequired, A, R> =>
  Effect.map(Effect.flip(effect), (error) => {
    const { reason } = error as McpSessionError
    assert(reason._tag === "ConsentRequired")
    return reason
  })
