/**
 * What the compiler says of a mistake in a pool's options: which option it is, and no wall about types that the user
 * has never heard of.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Compiler from "./support/compiler.ts"

const file = (layer: string): string => `
import * as Effect from "effect/Effect"
import { McpConnector, SessionPool } from "effect-mcp-sessions"
interface Connection { readonly id: number }
class Connections extends SessionPool.Tag<Connections, Connection, Error>()("app/Connections") {}
const connect = () => Effect.acquireRelease(Effect.succeed({ id: 1 }), () => Effect.void)
export const layer = ${layer}
export { connect, Connections, McpConnector, SessionPool }
`

describe("the types of SessionPool.layer", () => {
  it.effect("name a wrong option in one line", () =>
    Effect.gen(function*() {
      const complaints = yield* Compiler.check({
        "unknown.ts": file("Connections.layer({ connect, max: 10 })"),
        "connector.ts": file("SessionPool.layer({ connect: McpConnector.http({ url: \"https://x\" }), max: 10 })"),
        "value.ts": file("Connections.layer({ connect, capacity: \"10\" })"),
        "connect.ts": file("Connections.layer({ connect: () => 5 })"),
        "missing.ts": file("Connections.layer({ capacity: 10 })")
      })
      const mentioned = {
        "unknown.ts": "'max' does not exist in type 'SessionPoolOptions<Connection,",
        "connector.ts": "'max' does not exist in type 'SessionPoolOptions<McpSession",
        "value.ts": "'string' is not assignable to type 'number'",
        "connect.ts": "'number' is not assignable to type 'Effect<Connection, Error, Scope>'",
        "missing.ts": "'connect' is missing"
      } as const
      for (const name of ["unknown.ts", "connector.ts", "value.ts", "connect.ts", "missing.ts"] as const) {
        assert.lengthOf(complaints[name], 1, name)
        assert.include(complaints[name][0]?.text, mentioned[name])
        assert.notInclude(complaints[name][0]?.text, "\n")
      }
    }), 60_000)

  it.effect(
    "take a connect and a check with finalizers, and ask for what else they need",
    () =>
      Effect.gen(function*() {
        const complaints = yield* Compiler.check({
          "scoped.ts": file("Connections.layer({ connect, check: () => Effect.scope })") +
            "import type * as Layer from \"effect/Layer\"\n" +
            "export const needsNothing: Layer.Layer<Connections, unknown> = layer"
        })
        assert.deepStrictEqual(complaints, { "scoped.ts": [] })
      }),
    60_000
  )
})
