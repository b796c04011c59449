import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Identity, SessionRegistry } from "effect-mcp-sessions"

describe("SessionRegistry", () => {
  it.effect("creates, gets, peeks and terminates", () =>
    Effect.gen(function*() {
      const alice = Identity.fromKey("alice")
      const { id } = yield* SessionRegistry.create(alice)
      const session = yield* Effect.scoped(SessionRegistry.get(id, alice))
      assert.strictEqual(session.resource, "resource")
      assert.strictEqual((yield* SessionRegistry.peek(id, alice)).owner, "alice")
      yield* SessionRegistry.terminate(id, alice)
      const error = yield* Effect.flip(SessionRegistry.peek(id, alice))
      assert.strictEqual(error._tag, "SessionNotFound")
    }).pipe(Effect.provide(SessionRegistry.layer({ open: () => Effect.succeed("resource") }))))
})
