/**
 * Whoever makes a call, loses its stream now and then and comes back for it, with an event store that takes its time
 * for anything: between all the streams it hears what the call says, each message once and in order, the answer last.
 */
import { assert, describe, it } from "@effect/vitest"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import type { EventStore } from "@modelcontextprotocol/sdk/server/webStandardStreamableHttp.js"
import { CallToolRequestSchema } from "@modelcontextprotocol/sdk/types.js"
import * as McpHttp from "effect-mcp-sessions/McpHttp"
import * as Effect from "effect/Effect"
import { setTimeout as sleep } from "node:timers/promises"
import { becomes } from "./support/answers.ts"
import { many, seed as first, underLoad } from "./support/load.ts"
import { type Endpoint, web } from "./support/mcpHttp.ts"
import { begin, call, post, protocolVersion, request } from "./support/requests.ts"
import { type Dice, makeDice } from "./support/world.ts"

/** What nobody waits for takes so long, of at most so many milliseconds: often nothing at all. */
const pause = async (dice: Dice, most: number): Promise<void> => {
  if (dice.chance(0.3)) return
  if (dice.chance(0.3)) return await Promise.resolve()
  await sleep(dice.next() * most)
}

/** Keeps everything, and is honest: what it has said to keep is in every replay that begins after that. */
const moody = (dice: Dice): EventStore => {
  const memory = McpHttp.memoryEventStore()()
  const isQuickToShow = dice.chance(0.5)
  const isPatient = dice.chance(0.5)
  const [toKeep, toLook, toReplay, toEnd] = [20, 20, 20, 40].map((most) => dice.below(most))
  const store: EventStore = {
    storeEvent: async (streamId, message) => {
      if (isQuickToShow) {
        const id = await memory.storeEvent(streamId, message)
        await pause(dice, toKeep!)
        return id
      }
      await pause(dice, toKeep!)
      return memory.storeEvent(streamId, message)
    },
    replayEventsAfter: async (id, { send }) => {
      await pause(dice, toReplay!)
      const streamId = await memory.replayEventsAfter(id, {
        // Nobody has to wait for it, nor to mind if it fails
        send: async (...event) => isPatient ? await send(...event) : void send(...event)
      })
      await pause(dice, toEnd!)
      return streamId
    }
  }
  if (dice.chance(0.3)) return store
  return {
    ...store,
    getStreamIdForEventId: async (id) => {
      await pause(dice, toLook!)
      return memory.getStreamIdForEventId!(id)
    }
  }
}

/** Says so many numbers, one after the other, and then answers. Closes its client's stream at times. */
const counting = (dice: Dice, count: number) => () =>
  Effect.sync(() => {
    const server = new Server({ name: "counting", version: "1.0.0" }, { capabilities: { logging: {}, tools: {} } })
    server.setRequestHandler(CallToolRequestSchema, async (_, { closeSSEStream, sendNotification }) => {
      const tell = async (data: number): Promise<void> => {
        if (data === count) return
        // A store that is asked for several at once may keep them in another order than they were said in
        await sendNotification({ method: "notifications/message", params: { level: "info", data } })
        if (dice.chance(0.1)) closeSSEStream?.()
        await pause(dice, 20)
        return tell(data + 1)
      }
      await tell(0)
      return { content: [] }
    })
    return server
  })

interface Heard {
  last: string | undefined
  readonly said: Array<unknown>
}

/** Reads on, to the end of the stream or until it is lost. Whether it has heard the answer. */
const listen = async (response: Response, heard: Heard, isLost: () => boolean): Promise<boolean> => {
  const reader = response.body!.getReader()
  const decoder = new TextDecoder()
  const next = async (rest: string): Promise<boolean> => {
    const read = isLost() ? undefined : await reader.read()
    if (read?.value === undefined) return false
    const events = (rest + decoder.decode(read.value, { stream: true })).split("\n\n")
    for (const event of events.slice(0, -1)) {
      heard.last = /^id: (.+)$/m.exec(event)?.[1] ?? heard.last
      const data = /^data: (\{.+)$/m.exec(event)?.[1]
      if (data === undefined) continue
      const message = JSON.parse(data)
      heard.said.push(message.params?.data ?? "answer")
      if (message.id === 1) return true
    }
    return next(events.at(-1)!)
  }
  return next("").finally(() => reader.cancel())
}

const version = { "mcp-protocol-version": protocolVersion }

/** Comes back until it has the answer, sometimes twice at once: then the one that came last has the stream. */
const comeBack = (endpoint: Endpoint, session: string, dice: Dice, heard: Heard): Effect.Effect<void> =>
  Effect.gen(function*() {
    const get = request(endpoint, "GET", { session, headers: { ...version, "last-event-id": heard.last! } })
    if (dice.chance(0.3)) {
      yield* Effect.forkDetach(Effect.flatMap(get, ({ body }) => Effect.promise(async () => body?.cancel())), {
        startImmediately: true
      })
      yield* Effect.promise(() => pause(dice, 10))
    }
    const response = yield* get
    assert.strictEqual(response.status, 200)
    const reads = dice.chance(0.5) ? dice.below(4) : Infinity
    let read = 0
    const isOver = yield* Effect.promise(() => listen(response, heard, () => read++ >= reads))
    yield* Effect.promise(() => pause(dice, 10))
    if (!isOver) yield* comeBack(endpoint, session, dice, heard)
  })

const program = (seed: number) =>
  Effect.gen(function*() {
    const dice = makeDice(seed)
    const count = 1 + dice.below(12)
    const options = { eventStore: () => moody(dice), server: counting(dice, count) }
    const endpoint = yield* web(McpHttp.layer(options))
    const session = yield* begin(endpoint)
    const heard: Heard = { last: undefined, said: [] }
    const answer = yield* post(endpoint, call("count"), { session, headers: version })
    const reads = 1 + dice.below(4)
    let read = 0
    const isOver = yield* Effect.promise(() => listen(answer, heard, () => heard.last !== undefined && read++ >= reads))
    if (!isOver) yield* comeBack(endpoint, session, dice, heard).pipe(Effect.timeout("10 seconds"))
    assert.deepStrictEqual(heard.said, [...Array.from({ length: count }, (_, data) => data), "answer"], `seed ${seed}`)
    yield* becomes(endpoint.registry.stats, ({ held }) => held === 0)
  }).pipe(Effect.scoped)

describe("McpHttp.layer: a client that loses its stream and comes back", () => {
  it.live(
    "hears each message once and in order, whatever its event store takes its time for",
    () =>
      Effect.gen(function*() {
        const seeds = Array.from({ length: many(40, 2_000) }, (_, index) => first * 10_000 + index)
        yield* Effect.forEach(seeds, program, { concurrency: 20, discard: true })
      }),
    underLoad
  )
})
