import { assert, describe, it } from "@effect/vitest"
import { InvalidOptions } from "effect-mcp-sessions"
import { ClusterMembership } from "effect-mcp-sessions/ClusterMembership"
import { ClusterNode, type MemoryCluster, type MemoryOptions } from "effect-mcp-sessions/ClusterNode"
import * as Clock from "effect/Clock"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import * as ShardId from "effect/cluster/ShardId"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as TestClock from "effect/testing/TestClock"
import * as Fence from "../src/internal/cluster/fence.ts"
import { build, fork, refused, settle } from "./support/fibers.ts"
import { logging } from "./support/logging.ts"

const keySecret = Redacted.make("sixteen characters and more")

const start = Effect.fnUntraced(function*(
  memory: MemoryCluster,
  name: string,
  options: Partial<MemoryOptions> = {}
) {
  const { close, context } = yield* build(ClusterNode.layerMemory({ memory, name, keySecret, ...options }))
  return { ...Context.get(context, ClusterMembership), close }
})

const inside = (memory: MemoryCluster) => memory["~effect-mcp-sessions/MemoryCluster"]

/** The same whose store takes ten milliseconds, as others do, when locks are to be kept or freed. */
const slowly = (memory: MemoryCluster): MemoryCluster => {
  const { storage, ...rest } = inside(memory)
  return {
    "~effect-mcp-sessions/MemoryCluster": {
      ...rest,
      storage: (...options) => {
        const store = storage(...options)
        return {
          ...store,
          refresh: (...asked) => Effect.tap(store.refresh(...asked), () => Effect.sleep(10)),
          release: (...asked) => Effect.tap(store.release(...asked), () => Effect.sleep(10))
        }
      }
    }
  }
}

/** How many shards each node has locked. */
const shares = (memory: MemoryCluster) => {
  const counts: Record<string, number> = {}
  for (const owner of inside(memory).locks().values()) counts[owner] = (counts[owner] ?? 0) + 1
  return counts
}

const names = (members: ReadonlyArray<{ readonly host: string }>) => members.map(({ host }) => host)

describe("ClusterNode", () => {
  it.effect("shares the shards with the others, and knows them", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const a = yield* start(memory, "a")
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(shares(memory), { "a:1": 100 })
      assert.isTrue(yield* a.isReady)
      const b = yield* start(memory, "b")
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(names(yield* a.members), ["a", "b"])
      assert.deepStrictEqual(yield* b.members, yield* a.members)
      assert.deepStrictEqual(b.self, { host: "b", port: 1 })
      const counts = shares(memory)
      assert.strictEqual(counts["a:1"]! + counts["b:1"]!, 100)
      assert.isAbove(counts["b:1"]!, 20)
    }))

  it.effect("takes over within 12 seconds what a node had that was cut off", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const a = yield* start(memory, "a")
      yield* start(memory, "b")
      yield* TestClock.adjust("10 seconds")
      assert.isAbove(shares(memory)["b:1"]!, 20)
      yield* inside(memory).cutOff("b:1")
      yield* TestClock.adjust("12 seconds")
      assert.deepStrictEqual(shares(memory), { "a:1": 100 })
      assert.deepStrictEqual(names(yield* a.members), ["a"])
    }))

  it.effect("gives what it has to the others when it drains, and stays unready", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const a = yield* start(memory, "a")
      const b = yield* start(memory, "b")
      yield* TestClock.adjust("10 seconds")
      const draining = yield* fork(a.drain)
      yield* TestClock.adjust("3 seconds")
      assert.isDefined(draining.pollUnsafe())
      assert.deepStrictEqual(shares(memory), { "b:1": 100 })
      assert.isFalse(yield* a.isReady)
      assert.isTrue(yield* a.isDraining)
      assert.isTrue(yield* b.isReady)
      assert.deepStrictEqual(names(yield* b.members), ["b"])
      assert.deepStrictEqual(names(yield* b.nodes), ["a", "b"])
      assert.deepStrictEqual(yield* b.nodesNow, yield* b.nodes)
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(shares(memory), { "b:1": 100 })
      yield* a.drain
    }))

  it.effect("only becomes unready when it drains and is the last one", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const a = yield* start(memory, "a")
      yield* TestClock.adjust("2 seconds")
      yield* a.drain
      assert.isFalse(yield* a.isReady)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(shares(memory), { "a:1": 100 })
    }))

  it.effect("hands over at once when it stops", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      yield* start(memory, "a")
      const b = yield* start(memory, "b")
      yield* TestClock.adjust("10 seconds")
      const closing = yield* fork(b.close)
      yield* TestClock.adjust("4 seconds")
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(shares(memory), { "a:1": 100 })
    }))

  it.effect("has a share again, and soon, that it had lost and that nobody else wants", () =>
    Effect.gen(function*() {
      const memory = slowly(ClusterNode.memory())
      yield* start(memory, "a")
      yield* TestClock.adjust("4 seconds")
      const store = inside(memory).storage(yield* Clock.Clock, 10_000, "b:1")
      yield* store.releaseAll(RunnerAddress.make("a", 1))
      assert.deepStrictEqual(shares(memory), {})
      // It hears of it within three seconds, and asks for them within one
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(shares(memory), { "a:1": 100 })
    }))

  it.effect("knows nothing of a shard that it has released while the store was being asked for it", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      const address = RunnerAddress.make("a", 1)
      const store = inside(slowly(ClusterNode.memory())).storage(clock, 10_000, "a:1")
      const fence = Fence.make({ storage: store, clock, expiry: 10_000, interval: 3_000, group: "mcp", address })
      const [kept, left] = [ShardId.make("mcp", 1), ShardId.make("mcp", 2)]
      yield* fence.storage.acquire(address, [kept, left])
      const refreshing = yield* fork(fence.storage.refresh(address, [kept, left]))
      yield* fork(fence.storage.release(address, left))
      yield* TestClock.adjust(20)
      assert.isDefined(refreshing.pollUnsafe())
      assert.isTrue(fence.holds(String(kept)))
      assert.isFalse(fence.holds(String(left)))
      assert.strictEqual(fence.size(), 1)
    }))

  it.effect("keeps what it has while the store does not answer, for as long as that can be nobody else's", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      const address = RunnerAddress.make("a", 1)
      const store = inside(ClusterNode.memory()).storage(clock, 10_000, "a:1")
      let isHung = false
      const storage: typeof store = {
        ...store,
        refresh: (...asked) => Effect.suspend(() => isHung ? Effect.never : store.refresh(...asked))
      }
      const fence = Fence.make({ storage, clock, expiry: 10_000, interval: 3_000, group: "mcp", address })
      const shards = [ShardId.make("mcp", 1), ShardId.make("mcp", 2)]
      yield* fence.storage.acquire(address, shards)
      isHung = true
      const refresh = Effect.gen(function*() {
        const refreshing = yield* fork(Effect.result(fence.storage.refresh(address, shards)))
        // The engine gives up after these
        yield* TestClock.adjust("3 seconds")
        return Result.getOrUndefined(refreshing.pollUnsafe()!.pipe(Exit.getSuccess, Option.getOrThrow))
      })
      assert.deepStrictEqual(yield* refresh, shards)
      assert.deepStrictEqual(yield* refresh, shards)
      assert.isTrue(fence.mayOpen(String(shards[0])))
      // Seven of ten seconds are over before it is heard of a third time
      assert.isUndefined(yield* refresh)
      assert.isFalse(fence.mayOpen(String(shards[0])))
    }))

  it.effect("says that it is closed, and waits for nothing, once it is", () =>
    Effect.gen(function*() {
      const node = yield* start(ClusterNode.memory(), "a")
      yield* TestClock.adjust("2 seconds")
      yield* fork(node.close)
      yield* TestClock.adjust("1 minute")
      for (const ask of [node.members, node.nodes, node.nodesNow]) {
        const asking = yield* fork(Effect.flip(ask))
        yield* settle
        const error = Option.getOrThrow(Exit.getSuccess(asking.pollUnsafe()!))
        assert.deepInclude({ ...error }, { _tag: "ClusterUnavailable", method: "members", reason: "closed" })
      }
      const draining = yield* fork(node.drain)
      yield* settle
      assert.isTrue(Exit.isSuccess(draining.pollUnsafe()!))
    }))

  it.effect("answers with ClusterUnavailable of type store, and is unready, while the store is silent", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const a = yield* start(memory, "a")
      yield* TestClock.adjust("2 seconds")
      inside(memory).isStoreDown = true
      yield* TestClock.adjust("3 seconds")
      assert.isFalse(yield* a.isReady)
      const error = yield* Effect.flip(a.members)
      assert.deepInclude({ ...error }, { _tag: "ClusterUnavailable", method: "members", reason: "store" })
      inside(memory).isStoreDown = false
      yield* TestClock.adjust("20 seconds")
      assert.isTrue(yield* a.isReady)
      assert.deepStrictEqual(shares(memory), { "a:1": 100 })
    }))

  it.effect("refuses to start with another number of shards or another secret than its peers", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      yield* start(memory, "a")
      yield* TestClock.adjust("2 seconds")
      const other = { memory, name: "b", keySecret }
      assert.include(
        String(yield* refused(ClusterNode.layerMemory({ ...other, shards: 50 }))),
        "option \"shards\" must be 100, as at the nodes that are there already, got 50"
      )
      const secret = "another secret of the same length"
      const error = yield* refused(ClusterNode.layerMemory({ ...other, keySecret: Redacted.make(secret) }))
      assert.include(String(error), "option \"keySecret\" must be that of the nodes that are there already")
      assert.notInclude(String(error), secret)
    }))

  it.effect("says so when those of two clusters have begun at the same moment in one store, and parts them", () =>
    Effect.gen(function*() {
      const memory = ClusterNode.memory()
      const { logged, logger } = logging()
      const [, b] = yield* Effect.forEach(
        [keySecret, Redacted.make("another secret of the same length")],
        (secret, i) =>
          build(ClusterNode.layerMemory({ memory, name: "ab"[i]!, keySecret: secret }).pipe(Layer.provideMerge(logger)))
      )
      yield* TestClock.adjust("5 seconds")
      const { members } = Context.get(b!.context, ClusterMembership)
      assert.deepStrictEqual(names(yield* members), ["b"])
      assert.lengthOf(logged.filter((line) => /^Error .*give those of another cluster another one/.test(line)), 2)
    }))

  it.effect.each(
    [
      ["no secret", { keySecret: undefined }, "keySecret"],
      ["a short one", { keySecret: Redacted.make("short") }, "keySecret"],
      ["one that is no secret", { keySecret: "sixteen characters and more" }, "keySecret"],
      ["half a shard", { shards: 0.5 }, "shards"],
      ["locks for ever", { lockTimeToLive: Infinity }, "lockTimeToLive"],
      ["a name with spaces", { name: "a b" }, "name"]
    ] as const
  )("refuses to start with $0", ([, options, option]) =>
    Effect.gen(function*() {
      const given = { memory: ClusterNode.memory(), name: "a", keySecret, ...options }
      const error = yield* refused(ClusterNode.layerMemory(given as MemoryOptions))
      assert.instanceOf(error, InvalidOptions)
      assert.strictEqual((error as InvalidOptions).option, option)
      assert.notInclude(String(error), "sixteen")
    }))
})

describe("ClusterMembership.layerAlone", () => {
  it.effect("is ready until it drains", () =>
    Effect.gen(function*() {
      assert.isTrue(yield* ClusterMembership.isReady)
      yield* ClusterMembership.drain
      assert.isFalse(yield* ClusterMembership.isReady)
      assert.deepStrictEqual(yield* ClusterMembership.members, [])
    }).pipe(Effect.provide(ClusterMembership.layerAlone)))
})
