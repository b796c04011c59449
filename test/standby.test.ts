import { assert, describe, it } from "@effect/vitest"
import type { Identity } from "effect-mcp-sessions/Identity"
import { PoolClosed, Tag } from "effect-mcp-sessions/SessionPool"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import * as Standby from "../src/internal/client/standby.ts"
import { build, fork, settle } from "./support/fibers.ts"
import { identities } from "./support/identities.ts"

class Pool extends Tag<Pool, string, "no">()("test/Pool") {}

interface Child {
  readonly name: string
  isHealthy: boolean
  readonly die: () => void
}

/** A pool whose connector keeps `size` children ready, which start as `start` says the nth time. */
const open = Effect.fnUntraced(function*(
  start: (n: number) => Effect.Effect<unknown, "no">,
  { idleTimeToLive = Infinity, size = 1, hangUp = Effect.void, silence = 0 }: {
    readonly idleTimeToLive?: number
    /** How long one that is not healthy is asked for a sign of life. */
    readonly silence?: number
    readonly size?: number
    readonly hangUp?: Effect.Effect<void>
  } = {}
) {
  const children: Array<Child> = []
  const log: Array<string> = []
  let starting = 0
  let most = 0
  const connect = Standby.make<string, "no", never>({
    size,
    idleTimeToLive,
    cold: ({ key }) => Effect.succeed(`cold ${key}`),
    start: (onLost) =>
      Effect.gen(function*() {
        let isLost = false
        const name = `child ${children.length + 1}`
        const child: Child = {
          name,
          isHealthy: true,
          die: () => {
            isLost = true
            onLost()
          }
        }
        children.push(child)
        most = Math.max(most, ++starting)
        yield* Effect.acquireRelease(
          Effect.sync(() => log.push(`${name} starts`)),
          () => Effect.andThen(hangUp, Effect.sync(() => log.push(`${name} ends`)))
        )
        yield* Effect.ensuring(start(children.length), Effect.sync(() => starting--))
        return {
          isLost: () => isLost,
          ping: Effect.suspend(() => child.isHealthy ? Effect.void : Effect.delay(Effect.fail("mute"), silence)),
          adopt: ({ key }) => `${name} of ${key}`
        }
      })
  })
  const { close, context } = yield* build(Pool.layer({ connect, capacity: 50 }))
  const pool = Context.get(context, Pool)
  yield* settle
  return {
    children,
    log,
    close,
    mostStarting: () => most,
    visit: (identity: Identity) => Effect.scoped(pool.get(identity)),
    ready: Effect.map(pool.stats, ({ standby }) => standby)
  }
})

const at = (millis: number, children: ReadonlyArray<Child>, count: number) =>
  Effect.gen(function*() {
    yield* TestClock.adjust(millis - 1)
    assert.strictEqual(children.length, count - 1, `before ${millis} ms are over`)
    yield* TestClock.adjust(1)
    assert.strictEqual(children.length, count)
  })

describe("a child on standby", () => {
  it.effect("is replaced 100 ms after it was taken, so that whoever has it is served first", () =>
    Effect.gen(function*() {
      const { children, ready, visit } = yield* open(() => Effect.void)
      const [a, b] = identities(2)
      assert.strictEqual(yield* ready, 1)
      assert.strictEqual(yield* visit(a!), "child 1 of k0")
      assert.strictEqual(yield* visit(b!), "cold k1")
      yield* at(100, children, 2)
      assert.strictEqual(yield* ready, 1)
    }))

  it.effect("that does not start is tried again after 100 ms, twice as long each time, and 30 seconds at last", () =>
    Effect.gen(function*() {
      const { children } = yield* open(() => Effect.fail("no"), { size: 5 })
      assert.strictEqual(children.length, 1, "one is tried, not five")
      let count = 1
      for (const delay of [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]) {
        yield* at(delay, children, ++count)
      }
    }))

  it.effect("that dies again and again as soon as it has started is no spawn loop either", () =>
    Effect.gen(function*() {
      const { children } = yield* open(() => Effect.void)
      let count = 1
      for (const delay of [100, 200, 400, 800]) {
        children.at(-1)!.die()
        yield* at(delay, children, ++count)
      }
    }))

  it.effect("is started beside the others once the first has shown that it works", () =>
    Effect.gen(function*() {
      const { children, mostStarting, ready } = yield* open(() => Effect.sleep(1_000), { size: 4 })
      assert.strictEqual(children.length, 1)
      yield* TestClock.adjust(1_000)
      assert.strictEqual(children.length, 4)
      yield* TestClock.adjust(1_000)
      assert.strictEqual(yield* ready, 4)
      assert.strictEqual(mostStarting(), 3)
    }))

  it.effect("that hangs at start keeps no other from being started", () =>
    Effect.gen(function*() {
      const { children, close, log, ready, visit } = yield* open((n) => n === 3 ? Effect.never : Effect.void, {
        size: 2
      })
      const [a, b, c] = identities(3)
      assert.strictEqual(yield* visit(a!), "child 1 of k0")
      yield* TestClock.adjust(100)
      assert.strictEqual(children.length, 3, "the third hangs")
      assert.strictEqual(yield* visit(b!), "child 2 of k1")
      yield* TestClock.adjust(100)
      assert.strictEqual(yield* ready, 1)
      assert.strictEqual(yield* visit(c!), "child 4 of k2")
      yield* TestClock.adjust(100)
      assert.strictEqual(children.length, 5, "two at a time, the one that hangs included")
      yield* close
      assert.deepStrictEqual(log.filter((line) => line.endsWith("ends")).length, 5)
    }))

  it.effect("that hangs at start in the place of one that has died keeps no other from being started, either", () =>
    Effect.gen(function*() {
      const { children, ready, visit } = yield* open((n) => n === 3 ? Effect.never : Effect.void, { size: 2 })
      children[0]!.die()
      yield* at(100, children, 3)
      assert.strictEqual(yield* visit(identities(1)[0]!), "child 2 of k0", "so they work")
      yield* at(100, children, 4)
      assert.strictEqual(yield* ready, 1)
    }))

  it.effect("that dies after it has waited for longer than that is replaced as fast as the first time", () =>
    Effect.gen(function*() {
      const { children } = yield* open(() => Effect.void)
      for (let count = 2; count < 6; count++) {
        yield* TestClock.adjust("31 seconds")
        children.at(-1)!.die()
        yield* at(100, children, count)
      }
    }))

  it.effect("is as late as one if several fail together", () =>
    Effect.gen(function*() {
      let isDown = false
      const { children, visit } = yield* open(() => Effect.suspend(() => isDown ? Effect.fail("no") : Effect.void), {
        size: 4
      })
      isDown = true
      yield* Effect.forEach(identities(4), visit)
      yield* TestClock.adjust(100)
      assert.strictEqual(children.length, 8, "all four at once")
      yield* TestClock.adjust(99)
      assert.strictEqual(children.length, 8)
      yield* TestClock.adjust(1)
      assert.strictEqual(children.length, 9, "100 ms later one is tried")
    }))

  it.effect("that interrupts itself at start is one that does not start", () =>
    Effect.gen(function*() {
      const { children, ready } = yield* open((n) => n === 1 ? Effect.interrupt : Effect.void)
      yield* at(100, children, 2)
      assert.strictEqual(yield* ready, 1)
    }))

  it.effect("is taken by one identity, whoever comes at once", () =>
    Effect.gen(function*() {
      const { visit } = yield* open(() => Effect.void, { size: 3 })
      const got = yield* Effect.forEach(identities(5), visit, { concurrency: "unbounded" })
      assert.deepStrictEqual(got, [
        "child 1 of k0",
        "child 2 of k1",
        "child 3 of k2",
        "cold k3",
        "cold k4"
      ])
    }))

  it.effect("that gives no sign of life is given to nobody", () =>
    Effect.gen(function*() {
      const { children, log, visit } = yield* open(() => Effect.void)
      children[0]!.isHealthy = false
      assert.strictEqual(yield* visit(identities(1)[0]!), "cold k0")
      yield* settle
      assert.deepStrictEqual(log, ["child 1 starts", "child 1 ends"])
      yield* at(100, children, 2)
    }))

  it.effect("makes room for another after idleTimeToLive", () =>
    Effect.gen(function*() {
      const { children, log, ready } = yield* open(() => Effect.void, { idleTimeToLive: 1_000 })
      yield* TestClock.adjust(1_000)
      assert.deepStrictEqual(log, ["child 1 starts", "child 1 ends"])
      yield* at(100, children, 2)
      assert.strictEqual(yield* ready, 1)
    }))

  it.effect("has its place until it is closed", () =>
    Effect.gen(function*() {
      const { children } = yield* open(() => Effect.void, { hangUp: Effect.sleep(5_000) })
      children[0]!.die()
      yield* TestClock.adjust(4_999)
      assert.strictEqual(children.length, 1)
      yield* TestClock.adjust(101)
      assert.strictEqual(children.length, 2)
    }))

  it.effect("has its place, too, while it is asked for a sign of life", () =>
    Effect.gen(function*() {
      const { children, visit } = yield* open(() => Effect.void, { size: 2, silence: 1_000 })
      children[0]!.isHealthy = false
      const visiting = yield* fork(visit(identities(1)[0]!))
      children[1]!.die()
      yield* TestClock.adjust(999)
      assert.strictEqual(children.length, 3, "one in the place of the second")
      yield* TestClock.adjust(2_000)
      assert.strictEqual(children.length, 4)
      assert.strictEqual(yield* Fiber.join(visiting), "cold k0")
    }))

  it.effect("ends with the pool, also while it starts, and no other is started then", () =>
    Effect.gen(function*() {
      const { close, log } = yield* open((n) => n === 1 ? Effect.void : Effect.never, { size: 2 })
      assert.deepStrictEqual(log, ["child 1 starts", "child 2 starts"])
      yield* close
      assert.sameMembers(log, ["child 1 starts", "child 2 starts", "child 1 ends", "child 2 ends"])
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(log.length, 4)
    }))

  it.effect("that is asked for a sign of life when the pool ends has ended before the pool", () =>
    Effect.gen(function*() {
      const { children, close, log, visit } = yield* open(() => Effect.void, {
        hangUp: Effect.sleep("3 seconds"),
        silence: 10_000
      })
      children[0]!.isHealthy = false
      const caller = yield* fork(visit(identities(1)[0]!))
      yield* settle
      const closing = yield* fork(close)
      yield* TestClock.adjust("2999 millis")
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(log, ["child 1 starts", "child 1 ends"])
      assert.instanceOf(yield* Effect.flip(Fiber.join(caller)), PoolClosed)
    }))

  it.effect("that takes for ever to end is given up by the pool after closeTimeout", () =>
    Effect.gen(function*() {
      const { close } = yield* open(() => Effect.void, { hangUp: Effect.never })
      const closing = yield* fork(close)
      yield* TestClock.adjust(9_999)
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust(1)
      yield* Fiber.join(closing)
    }))
})
