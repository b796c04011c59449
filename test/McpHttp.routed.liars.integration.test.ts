/**
 * A node whose cluster has members that freeze, lie, and say too much.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { once } from "node:events"
import { connect } from "node:net"
import { eventually, eventuallyStanding, messagesOf, textOf } from "./support/answers.ts"
import { fork } from "./support/fibers.ts"
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

const aWhile = Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 100)))

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

  const head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
  const long = 17 * 1024 * 1024

  it.live("has an error for a call whose answer it was saying, however long that is", () =>
    Effect.gen(function*() {
      const { member, node, session } = yield* make()
      saying(member, (socket) => {
        socket.write(`${head}2000000\r\ndata: ${"x".repeat(long)}`, () => socket.end())
      })
      const answer = yield* Effect.promise(() => send(node, "POST", { session }, call("echo", {}, "one")))
      const text = yield* textOf(answer)
      assert.isAbove(text.length, 1_000_000)
      assert.include(text.slice(-1_000), "It may have run")
    }))

  it.live("breaks off here, too, after a line that was too long to look for answers in", () =>
    Effect.gen(function*() {
      const { member, node, session } = yield* make()
      let cut: (() => void) | undefined
      saying(member, (socket) => {
        const answer = JSON.stringify({ jsonrpc: "2.0", result: "x".repeat(long), id: "one" })
        socket.write(`${head}2000000\r\ndata: ${answer}\n\n`)
        cut = () => socket.end()
      })
      const body = [call("echo", {}, "one"), call("echo", {}, "two")]
      const answer = yield* Effect.promise(() => send(node, "POST", { session }, body))
      const reader = answer.body!.getReader()
      let last = ""
      while (!last.endsWith("\n\n")) {
        const { value } = yield* Effect.promise(() => reader.read())
        last = (last + new TextDecoder().decode(value)).slice(-100)
      }
      assert.include(last, `"id":"one"}`)
      cut?.()
      yield* Effect.flip(Effect.tryPromise(() => reader.read()))
    }))
})

describe("what is no answer of a node", () => {
  const chunk = `10000\r\n${"x".repeat(65_536)}\r\n`
  const answers: ReadonlyArray<readonly [name: string, head: string]> = [
    ...["000", "099", "600", "999"].map((status) =>
      [
        `is of status ${status}`,
        `HTTP/1.1 ${status} Whatever\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`
      ] as const
    ),
    [
      "breaks off before its body has begun",
      "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n"
    ],
    ["has no type, and a long body", `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n${chunk}${chunk}`]
  ]
  for (const [name, said] of answers) {
    it.live(`${name}: its connection is closed, and each call has an error`, () =>
      Effect.gen(function*() {
        const { member, node, session } = yield* make()
        saying(member, (socket) => socket.write(said))
        const answer = yield* Effect.promise(() => send(node, "POST", { session }, call("echo", {}, "one")))
        const messages = yield* messagesOf(answer)
        assert.deepStrictEqual(messages.map(({ id }) => id), ["one"])
        assert.include(JSON.stringify(messages), "It may have run")
        const notification = { jsonrpc: "2.0", method: "notifications/initialized" }
        const others = [send(node, "POST", { session }, notification), send(node, "GET", { session })]
        assert.deepStrictEqual((yield* Effect.promise(() => Promise.all(others))).map(({ status }) => status), [
          502,
          503
        ])
        yield* eventually(() => member.sockets.size === 0)
      }))
  }

  it.effect("never ends though it is small: ten seconds are enough", () =>
    Effect.gen(function*() {
      const { member, node, session } = yield* make()
      let isSaid = false
      saying(member, (socket) => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{")
        isSaid = true
      })
      const asked = yield* fork(Effect.promise(() => send(node, "POST", { session }, call("echo", {}, "one"))))
      yield* eventuallyStanding(() => isSaid)
      // What was said may still be on its way, and so may the answer be
      yield* aWhile
      yield* TestClock.adjust("9 seconds")
      yield* aWhile
      assert.isUndefined(asked.pollUnsafe())
      const later = Effect.andThen(TestClock.adjust("1 second"), aWhile)
      yield* Effect.repeat(later, { until: () => asked.pollUnsafe() !== undefined })
      const answer = yield* Fiber.join(asked)
      assert.include(yield* textOf(answer), "It may have run")
      yield* eventuallyStanding(() => member.sockets.size === 0)
    }))
})
