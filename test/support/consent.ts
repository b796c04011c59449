/**
 * What a caller does who is asked for consent.
 */
import { assert } from "@effect/vitest"
import type { McpSessionError } from "effect-mcp-sessions/McpSession"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"

/** Opens the address in a browser, and says where that ends. */
export const browse = (url: Redacted.Redacted): Effect.Effect<string> =>
  Effect.promise(async () => {
    const { body, headers } = await fetch(Redacted.value(url), { redirect: "manual" })
    await body?.cancel()
    return headers.get("location")!
  })

/** The consent that is missing: what the call has failed with. */
export const consentOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), (error) => {
    const { reason } = error as McpSessionError
    assert(reason._tag === "ConsentRequired")
    return reason
  })
