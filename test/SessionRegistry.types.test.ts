/**
 * What the compiler says of a mistake in a registry's options, and of whoever wants more of a registry than it
 * provides.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Compiler from "./support/compiler.ts"

const file = (expression: string): string => `
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Config from "effect/Config"
import { Identity, IdentityResolver, McpHttp, SessionRegistry } from "effect-mcp-sessions"
interface Shell { readonly id: string }
class Shells extends SessionRegistry.Tag<Shells, Shell, Error>()("app/Shells") {}
const open = ({ id }: { readonly id: string }) => Effect.acquireRelease(Effect.succeed({ id }), () => Effect.void)
const alice = Identity.fromKey("alice")
const hosted = McpHttp.guard()
declare const withHosted: (
  program: Effect.Effect<unknown, unknown, Layer.Success<typeof hosted> | import("effect/Scope").Scope>
) => void
export const result = ${expression}
export { alice, Config, Effect, hosted, HttpRouter, IdentityResolver, open, SessionRegistry, Shells, withHosted }
`

describe("the types of the registry", () => {
  it.effect("name a wrong option in one line", () =>
    Effect.gen(function*() {
      const mentioned = {
        "unknown.ts": [
          `Shells.layer({ open, max: 10 })`,
          "'max' does not exist in type 'SessionRegistryOptions<Shell,"
        ],
        "value.ts": [`Shells.layer({ open, capacity: "10" })`, "'string' is not assignable to type 'number'"],
        "open.ts": [
          `Shells.layer({ open: () => 5 })`,
          "'number' is not assignable to type 'Effect<Shell, Error, Scope>'"
        ],
        "missing.ts": [`Shells.layer({ capacity: 10 })`, "'open' is missing"],
        "config.ts": [`Shells.layerConfig({ open, max: 10 })`, "'max' does not exist in type"]
      } as const
      const complaints = yield* Compiler.check(
        Object.fromEntries(Object.entries(mentioned).map(([name, [expression]]) => [name, file(expression)]))
      )
      for (const [name, [, mention]] of Object.entries(mentioned)) {
        assert.lengthOf(complaints[name]!, 1, name)
        assert.include(complaints[name]![0]!.text, mention)
        assert.notInclude(complaints[name]![0]!.text, "\n")
      }
    }), 60_000)

  it.effect(
    "let an operator of McpHttp's sessions look and end, and neither create nor get",
    () =>
      Effect.gen(function*() {
        const complaints = yield* Compiler.check({
          "look.ts": file("[withHosted(SessionRegistry.size), withHosted(SessionRegistry.terminateAll(alice))]"),
          "create.ts": file("withHosted(SessionRegistry.create(alice))"),
          "get.ts": file("withHosted(SessionRegistry.get(\"id\", alice))"),
          "member.ts": file("Effect.map(SessionRegistry, (registry) => registry.create(alice))"),
          "own.ts": file(
            "Effect.provide(SessionRegistry.create(alice), SessionRegistry.layer({ open }))"
          )
        })
        assert.deepStrictEqual(complaints["look.ts"], [])
        assert.deepStrictEqual(complaints["own.ts"], [])
        for (const name of ["create.ts", "get.ts"] as const) {
          assert.lengthOf(complaints[name], 1, name)
          assert.include(complaints[name][0]!.text, "CreatesSessions")
        }
        assert.lengthOf(complaints["member.ts"], 1)
        assert.include(complaints["member.ts"][0]!.text, "'create' does not exist on type 'Operator'")
      }),
    60_000
  )

  it.effect("take a Config for any option, and for all of them", () =>
    Effect.gen(function*() {
      const complaints = yield* Compiler.check({
        "one.ts": file("Shells.layerConfig({ open, capacity: Config.Int(\"SESSIONS\"), idleTimeToLive: \"1 hour\" })"),
        "all.ts": file("Shells.layerConfig(Config.all({ open: Config.succeed(open), capacity: Config.Int(\"N\") }))"),
        "wrong.ts": file("Shells.layerConfig({ open, capacity: Config.String(\"SESSIONS\") })")
      })
      assert.deepStrictEqual([complaints["one.ts"], complaints["all.ts"]], [[], []])
      assert.lengthOf(complaints["wrong.ts"], 1)
    }), 60_000)
})
