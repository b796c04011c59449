import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import * as Link from "../src/internal/host/link.ts"
import { liar, saying } from "./support/liars.ts"

const post = (port: number, protocol: string, body: Link.Outgoing["body"]): Link.Outgoing => ({
  base: new URL(`${protocol}://127.0.0.1:${port}`),
  path: "/mcp",
  method: "POST",
  headers: ["transfer-encoding", "chunked", "expect", "100-continue"],
  body
})

describe("a request of another node", () => {
  it.live("hears of its failure, whoever else has a turn before it is waited for", () =>
    Effect.gen(function*() {
      const link = yield* Link.make(undefined, 1_000)
      const outgoing = post(1, "http", Stream.make(new Uint8Array(1)))
      for (const ops of [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]) {
        const sending = Effect.flip(Effect.scoped(link.send(outgoing, () => undefined)))
        const { code } = yield* Effect.provideService(sending, References.MaxOpsBeforeYield, ops)
        assert.strictEqual(code, "ECONNREFUSED")
      }
    }).pipe(Effect.timeout("5 seconds")))

  it.live("takes nothing of a body that it can't send", () =>
    Effect.gen(function*() {
      const member = yield* liar
      const link = yield* Link.make(undefined, 1_200)
      let taken = 0
      const body = Stream.map(Stream.make(new Uint8Array(1)), (chunk) => (taken++, chunk))
      const { isSent } = yield* Effect.flip(link.send(post(member.port, "https", body), () => undefined))
      assert.deepStrictEqual([isSent, taken], [false, 0])
      // Whoever does not know of 100 is not waited for
      saying(member, (socket) => socket.once("data", () => socket.end("HTTP/1.1 204 No Content\r\n\r\n")))
      const { statusCode } = yield* link.send(post(member.port, "http", body), () => undefined)
      assert.deepStrictEqual([statusCode, taken], [204, 1])
    }).pipe(Effect.timeout("10 seconds")))
})
