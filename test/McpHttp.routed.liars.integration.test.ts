/**
 * A node whose cluster has members that freeze, lie, and say too much.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { once } from "node:events"
import { connect } from "node:net"
import { eventually, messagesOf } from "./support/answers.ts"
import { liar, nodeAmong, saying, sessionOf } from "./support/liars.ts"
import { call, initialize, send } from "./support/requests.ts"

const here = { host: "here", port: 1 }
const there = { host: "there", port: 1 }

/** A node that knows a member, and what that is said to be. */
const make = Effect.fnUntraced(function*(maxBodyBytes?: number) {
  const member = yield* liar
  const node = yield* nodeAmong({
    address: () => `http://127.0.0.1:${member.port}`,
    ...(maxBodyBytes === undefined ? {} : { maxBodyBytes })
  })
  node.nodes = [there]
  return { member, node, session: sessionOf(there) }
})

describe("a member that freezes", () => {
  for (const [name, self] of [["a node that drains", here], ["a process that is no member", undefined]] as const) {
    it.live(`as it has joined keeps no client of ${name} waiting`, () =>
      Effect.gen(function*() {
        const member = yield* liar
        const node = yield* nodeAmong({
          address: () => `http://127.0.0.1:${member.port}`,
          ...(self === undefined ? {} : { self })
        })
        const looked = node.looked()
        yield* eventually(() => node.looked() > looked)
        node.nodes = [there]
        const beginning = send(node, "POST", {}, initialize)
        yield* eventually(() => member.sockets.size === 1)
        node.nodes = []
        const messages = yield* Effect.promise(() => beginning).pipe(
          Effect.flatMap(messagesOf),
          Effect.timeout("5 seconds")
        )
        assert.deepStrictEqual(messages.map(({ id }) => id), [initialize.id])
        assert.include(JSON.stringify(messages), "It may have run")
      }))
  }

  it.live("is asked for nothing when it is a member no more by the time that the body has come", () =>
    Effect.gen(function*() {
      const { member, node, session } = yield* make()
      const text = JSON.stringify(call("echo"))
      const client = connect(Number(new URL(node.url).port), "127.0.0.1")
      let said = ""
      client.on("data", (data) => said += data.toString())
      const head = [
        "POST /mcp HTTP/1.1",
        "host: localhost",
        "connection: close",
        `content-length: ${text.length}`,
        `mcp-session-id: ${session}`
      ]
      client.write([...head, "", text.slice(0, 5)].join("\r\n"))
      yield* Effect.sleep(100)
      node.nodes = []
      const looked = node.looked()
      yield* eventually(() => node.looked() > looked + 1)
      client.write(text.slice(5))
      yield* Effect.timeout(Effect.promise(() => once(client, "close")), "5 seconds")
      assert.match(said, /^HTTP\/1\.1 404 /)
      assert.strictEqual(member.sockets.size, 0)
    }))
})

describe("a stream that breaks off", () => {
  it.live("has an error for each call that has no answer, however long they were", () =>
    Effect.gen(function*() {
      const { member, node, session } = yield* make()
      saying(member, (socket) => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        const event = `data: {"jsonrpc":"2.0","id":"one","result":{}}\n\n`
        setTimeout(() => socket.end(`${event.length.toString(16)}\r\n${event}\r\n`), 200)
      })
      for (const padding of [0, 1_000_000]) {
        const body = JSON.stringify([call("echo", {}, "one"), call("echo", {}, "two")]) + " ".repeat(padding)
        const answer = yield* Effect.promise(() => send(node, "POST", { session }, body))
        const messages = yield* messagesOf(answer)
        assert.deepStrictEqual(messages.map(({ error, id }) => [id, error?.code]), [["one", undefined], [
          "two",
          -32000
        ]])
      }
    }))
})
