/**
 * A random program over the pool, held against what the world outside the pool can see: which sessions are being opened,
 * open, in use and being closed, and what each caller is told. After every step all of that must obey the invariants of
 * the design; at the end everything is closed once and nothing is left.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Credentials, Identity } from "../../src/Identity.ts"
import * as SessionPool from "../../src/SessionPool.ts"
import { type Dice, makeDice, makeWorld, type World } from "./world.ts"

// -----------------------------------------------------------------------------
// Programs
// -----------------------------------------------------------------------------

/** What is done, and the seed of how the world goes on from there: leaving out a step changes little for the others. */
export interface Step {
  readonly action: Action
  readonly luck: number
}

type Action =
  | { readonly do: "call"; readonly key: number; readonly how: "get" | "withSession"; readonly body: Body }
  | { readonly do: "interrupt"; readonly caller: number }
  | { readonly do: "advance"; readonly millis: number }
  | { readonly do: "invalidate"; readonly key: number }
  | { readonly do: "invalidateWhere"; readonly key: number }
  | { readonly do: "die"; readonly session: number; readonly reason: "died" | "unhealthy" }
  | { readonly do: "look" }
  | { readonly do: "shutdown" }

type Body =
  | { readonly is: "instant" | "fails" | "dies" | "endless" }
  | { readonly is: "takes"; readonly millis: number }
  | { readonly is: "nested"; readonly key: number }

export interface Program {
  readonly seed: number
  readonly steps: ReadonlyArray<Step>
}

const keys = 6

export const generate = (seed: number): Program => {
  const dice = makeDice(seed)
  const length = 20 + dice.below(60)
  const actions = Array.from({ length }, () => action(dice))
  if (dice.chance(0.3)) actions.splice(dice.below(length), 0, { do: "shutdown" })
  return { seed, steps: actions.map((next, index) => ({ action: next, luck: seed * 100 + index })) }
}

const action = (dice: Dice): Action => {
  const key = dice.below(keys)
  const roll = dice.next()
  if (roll < 0.45) return { do: "call", key, how: dice.pick(["get", "withSession"]), body: body(dice) }
  if (roll < 0.57) return { do: "interrupt", caller: dice.below(20) }
  if (roll < 0.82) return { do: "advance", millis: dice.pick([0, 1, 5, 20, 49, 50, 51, 100, 400, 1_000]) }
  if (roll < 0.87) return { do: "invalidate", key }
  if (roll < 0.89) return { do: "invalidateWhere", key }
  if (roll < 0.95) return { do: "die", session: dice.below(8), reason: dice.pick(["died", "unhealthy"]) }
  return { do: "look" }
}

const body = (dice: Dice): Body => {
  const roll = dice.next()
  if (roll < 0.3) return { is: "instant" }
  if (roll < 0.7) return { is: "takes", millis: dice.pick([1, 10, 60, 200, 600]) }
  if (roll < 0.8) return { is: "endless" }
  if (roll < 0.88) return { is: "fails" }
  if (roll < 0.94) return { is: "nested", key: dice.below(keys) }
  return { is: "dies" }
}

// -----------------------------------------------------------------------------
// What the world sees
// -----------------------------------------------------------------------------

class ConnectFailed extends Data.TaggedError("ConnectFailed")<{ readonly session: Session }> {}
class BodyFailed extends Data.TaggedError("BodyFailed")<{}> {}
class Planned extends Error {}

interface Session {
  readonly id: number
  readonly key: string
  readonly handle: SessionPool.SessionHandle
  readonly startedAt: number
  phase: "connecting" | "open" | "closing" | "closed" | "failed"
  acquired: boolean
  releases: number
  leases: number
  checks: number
  wasUsed: boolean
  openedAt: number
  idleSince: number
  closingSince: number
}

interface Caller {
  readonly id: number
  readonly key: string
  readonly startedAt: number
  held: number
  heldSince: number | undefined
  isInterrupted: boolean
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  exit: Exit.Exit<unknown, unknown> | undefined
}

class Pool extends SessionPool.Tag<Pool, Session, ConnectFailed>()("test/Pool") {}

class Owner extends Context.Service<Owner, { readonly is: "pool" | "caller" }>()("test/Owner") {}

const secret = "sk-live-SECRET"

/** A broken invariant, and how it came about. */
export interface Violation {
  readonly seed: number
  readonly message: string
  readonly steps: ReadonlyArray<Step>
  readonly history: ReadonlyArray<string>
}

class Broken extends Error {}

/**
 * The violation of a program with as few steps as can be found: whatever step may be left out, is.
 */
export const shrink = (violation: Violation): Violation => {
  let shortest = violation
  for (let size = Math.ceil(violation.steps.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let from = 0; from < shortest.steps.length;) {
      const steps = shortest.steps.toSpliced(from, size)
      const shorter = run({ seed: shortest.seed, steps })
      if (shorter === undefined) from += size
      else shortest = shorter
    }
  }
  return shortest
}

/** Runs the programs of so many seeds, up to the first that breaks an invariant. */
export const simulate = (from: number, count: number): Violation | undefined => {
  for (let seed = from; seed < from + count; seed++) {
    const violation = run(generate(seed))
    if (violation !== undefined) return shrink(violation)
  }
  return undefined
}

export const report = (violation: Violation): string =>
  [`seed ${violation.seed}: ${violation.message}`, ...violation.history].join("\n  ")

/**
 * Runs one program. The same program is the same run.
 */
export const run = (program: Program): Violation | undefined => {
  const dice = makeDice(program.seed ^ 0x5eed)
  const simulation = new Simulation(dice, program.seed)
  try {
    simulation.start()
    for (const next of program.steps) simulation.step(next)
    simulation.finish()
    return undefined
  } catch (error) {
    if (!(error instanceof Broken)) throw error
    return { seed: program.seed, message: error.message, steps: program.steps, history: simulation.history }
  }
}

class Simulation {
  readonly history: Array<string> = []
  readonly sessions: Array<Session> = []
  readonly callers: Array<Caller> = []
  readonly world: World
  readonly scope = Scope.makeUnsafe()
  readonly dice: Dice
  readonly seed: number
  readonly options: {
    readonly capacity: number
    readonly idleTimeToLive: number
    readonly maxLifetime: number
    readonly connectTimeout: number
    readonly acquireTimeout: number
    readonly closeTimeout: number
    readonly drainTimeout: number
    readonly checkAfter: number
    readonly checkTimeout: number
    readonly failureTimeToLive: number
  }
  readonly checks: boolean
  pool!: SessionPool.Service<Session, ConnectFailed>
  shutdownAt: number | undefined
  shutdown: Fiber.Fiber<void> | undefined
  counts: SessionPool.SessionPoolStats | undefined
  broken: string | undefined
  said = ""

  constructor(dice: Dice, seed: number) {
    this.dice = dice
    this.seed = seed
    this.world = makeWorld(dice, dice.pick([3, 4, 5, 11, 2048]))
    this.options = {
      capacity: dice.pick([1, 2, 3, 5]),
      idleTimeToLive: dice.pick([50, 50, 300, Infinity]),
      maxLifetime: dice.pick([Infinity, Infinity, 400]),
      connectTimeout: dice.pick([100, 500]),
      acquireTimeout: dice.pick([0, 60, 500]),
      closeTimeout: dice.pick([40, 200]),
      drainTimeout: dice.pick([0, 0, 150]),
      checkAfter: dice.pick([0, 20]),
      checkTimeout: 30,
      failureTimeToLive: dice.pick([0, 0, 80])
    }
    this.checks = dice.chance(0.4)
  }

  start(): void {
    const layer = Pool.layer({
      ...this.options,
      idleTimeToLive: Duration.millis(this.options.idleTimeToLive),
      maxLifetime: Duration.millis(this.options.maxLifetime),
      connect: (identity, handle) => this.connect(identity, handle),
      ...(this.checks ? { check: (session) => this.check(session) } : {})
    }).pipe(
      Layer.provide(Layer.succeed(Owner, { is: "pool" })),
      Layer.provideMerge(Logger.layer([Logger.make(({ message }) => void (this.said += JSON.stringify(message)))]))
    )
    const built = this.world.fork(Layer.buildWithScope(layer, this.scope))
    this.world.run(Infinity)
    const exit = built.pollUnsafe()
    if (exit === undefined || Exit.isFailure(exit)) return this.fail(`the layer did not build: ${String(exit)}`)
    this.pool = Context.get(exit.value, Pool)
    const hear = (event: SessionPool.SessionPoolEvent) => Effect.sync(() => void (this.said += JSON.stringify(event)))
    this.world.fork(Stream.runForEach(this.pool.events, hear))
  }

  // --- Sessions ---

  connect(
    identity: Identity,
    handle: SessionPool.SessionHandle
  ): Effect.Effect<Session, ConnectFailed, Owner | Scope.Scope> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen({ self: this }, function*() {
        const owner = yield* Owner
        this.expect(owner.is === "pool", "7: connect runs with a caller's services")
        const session: Session = {
          id: this.sessions.length,
          key: identity.key,
          handle,
          startedAt: this.world.now(),
          phase: "connecting",
          acquired: false,
          releases: 0,
          leases: 0,
          checks: 0,
          wasUsed: false,
          openedAt: 0,
          idleSince: 0,
          closingSince: 0
        }
        this.sessions.push(session)
        // Drawn for this session alone, so that a shorter program gives it the same fate.
        const fate = makeDice(this.seed * 1_000 + session.id)
        this.note(`session ${session.id} of ${session.key} connects`)
        return yield* Effect.onExit(restore(this.open(session, fate)), (exit) =>
          Effect.sync(() => {
            if (Exit.isFailure(exit) && session.phase === "connecting") session.phase = "failed"
            this.note(`session ${session.id} ${Exit.isSuccess(exit) ? "opened" : "failed to open"}`)
          }))
      })
    )
  }

  open(session: Session, fate: Dice): Effect.Effect<Session, ConnectFailed, Scope.Scope> {
    return Effect.gen({ self: this }, function*() {
      const pause = Effect.sleep(fate.pick([1, 10, 30]))
      if (fate.chance(0.5)) yield* pause
      const close = this.close(session, fate)
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          session.acquired = true
        }),
        () => close
      )
      const roll = fate.next()
      if (roll < 0.2) yield* pause
      if (roll > 0.92) yield* Effect.never
      if (roll > 0.88) yield* Effect.uninterruptible(Effect.sleep(this.options.closeTimeout / 2))
      if (roll > 0.86) yield* session.handle.retire("died")
      if (roll > 0.80) return yield* new ConnectFailed({ session })
      if (roll > 0.78) return yield* Effect.die(new Planned("connect"))
      if (roll > 0.76) return yield* Effect.interrupt
      session.phase = "open"
      session.openedAt = session.idleSince = this.world.now()
      return session
    })
  }

  close(session: Session, fate: Dice): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      session.releases++
      this.note(`session ${session.id} closes`)
      this.expect(session.releases === 1, `4: session ${session.id} is closed twice`)
      const mayForce = this.shutdownAt !== undefined &&
        this.world.now() >= this.shutdownAt + this.options.drainTimeout
      this.expect(session.leases === 0 || mayForce, `1: session ${session.id} is closed in use`)
      session.phase = "closing"
      session.closingSince = this.world.now()
      const roll = fate.next()
      if (roll < 0.3) yield* Effect.sleep(fate.pick([1, 15, 35]))
      else if (roll < 0.4) yield* Effect.sleep(this.options.closeTimeout * 3)
      session.phase = "closed"
      this.note(`session ${session.id} is closed`)
      if (roll > 0.9) yield* Effect.die(new Error(`the finalizer of Bearer ${secret} throws`))
    })
  }

  check(session: Session): Effect.Effect<void, BodyFailed> {
    const answer = Effect.suspend((): Effect.Effect<void, BodyFailed> => {
      const roll = this.dice.next()
      if (roll < 0.6) return this.hold(session, Effect.void)
      if (roll < 0.75) return this.hold(session, Effect.sleep(10))
      if (roll < 0.85) return this.hold(session, Effect.fail(new BodyFailed()))
      // Given up after its time, the check is interrupted and not awaited: it has no hold on the session any more.
      return roll < 0.92 ? this.hold(session, Effect.die(new Planned("check"))) : Effect.never
    })
    const begin = Effect.sync(() => void session.checks++)
    return Effect.acquireUseRelease(begin, () => answer, () => Effect.sync(() => void session.checks--))
  }

  // --- Steps ---

  step(next: Step): void {
    this.dice.reseed(next.luck)
    this.note(JSON.stringify(next.action))
    this.act(next.action)
    // Now and then only a part of what is due runs before the next step comes.
    this.world.run(this.dice.chance(0.6) ? Infinity : this.dice.below(6))
    this.examine()
  }

  act(next: Action): void {
    switch (next.do) {
      case "call":
        this.call(next.key, next.how, next.body)
        break
      case "interrupt": {
        const running = this.callers.filter((caller) => caller.exit === undefined)
        const caller = running[next.caller % Math.max(1, running.length)]
        if (caller !== undefined) this.interrupt(caller)
        break
      }
      case "advance":
        this.world.advance(next.millis)
        break
      case "invalidate":
        this.world.fork(this.pool.invalidate(this.identity(next.key)))
        break
      case "invalidateWhere":
        this.world.fork(this.pool.invalidateWhere((identity) => identity.key <= `key-${next.key}`))
        break
      case "die": {
        const open = this.sessions.filter((session) => session.phase === "open" || session.phase === "connecting")
        const session = open[next.session % Math.max(1, open.length)]
        if (session !== undefined) this.world.fork(session.handle.retire(next.reason))
        break
      }
      case "look":
        this.world.fork(this.pool.entries)
        break
      case "shutdown":
        this.shutDown()
    }
  }

  identity(key: number): Identity {
    return Identity.fromKey(`key-${key}`, { credentials: Credentials.bearer(secret) })
  }

  call(key: number, how: "get" | "withSession", what: Body): void {
    const identity = this.identity(key)
    const caller: Caller = {
      id: this.callers.length,
      key: identity.key,
      startedAt: this.world.now(),
      held: 0,
      heldSince: undefined,
      isInterrupted: false,
      fiber: undefined,
      exit: undefined
    }
    this.callers.push(caller)
    const use = (session: Session) => this.use(caller, session, what)
    const effect: Effect.Effect<unknown, unknown, Scope.Scope> = how === "get"
      ? Effect.scoped(Effect.flatMap(this.pool.get(identity), use))
      : this.pool.withSession(identity, use)
    caller.fiber = this.world.fork(
      effect.pipe(Effect.scoped, Effect.provideService(Owner, { is: "caller" }))
    )
    caller.fiber.addObserver((exit) => {
      caller.exit = exit
      this.ended(caller, exit)
    })
  }

  use(caller: Caller, session: Session, what: Body): Effect.Effect<unknown, unknown> {
    const begin = Effect.sync(() => {
      this.expect(session.key === caller.key, `caller ${caller.id} has the session of another`)
      caller.heldSince = this.world.now()
      this.note(`caller ${caller.id} has session ${session.id}`)
    })
    const end = Effect.sync(() => void (caller.held += this.world.now() - caller.heldSince!))
    return Effect.acquireUseRelease(begin, () => this.hold(session, this.bodyOf(what)), () => end)
  }

  hold<A, E>(session: Session, whileHeld: Effect.Effect<A, E>): Effect.Effect<A, E> {
    const take = Effect.sync(() => {
      this.expect(
        session.phase === "open" || this.shutdownAt !== undefined,
        `1: session ${session.id} is given to a caller when it is ${session.phase}`
      )
      session.leases++
      session.wasUsed = true
    })
    const giveBack = Effect.sync(() => {
      session.leases--
      session.idleSince = this.world.now()
    })
    return Effect.acquireUseRelease(take, () => whileHeld, () => giveBack)
  }

  bodyOf(what: Body): Effect.Effect<unknown, unknown> {
    switch (what.is) {
      case "instant":
        return Effect.void
      case "takes":
        return Effect.sleep(what.millis)
      case "endless":
        return Effect.never
      case "fails":
        return Effect.fail(new BodyFailed())
      case "dies":
        return Effect.die(new Planned("body"))
      case "nested": {
        const identity = this.identity(what.key)
        return Effect.ignore(this.pool.withSession(identity, (session) => this.hold(session, Effect.sleep(5))))
      }
    }
  }

  interrupt(caller: Caller): void {
    caller.isInterrupted = true
    this.note(`caller ${caller.id} is interrupted`)
    caller.fiber?.interruptUnsafe()
  }

  shutDown(): void {
    if (this.shutdown !== undefined) return
    this.shutdownAt = this.world.now()
    this.shutdown = this.world.fork(Scope.close(this.scope, Exit.void))
  }

  // --- What must hold ---

  /** What a caller is told, and when. */
  ended(caller: Caller, exit: Exit.Exit<unknown, unknown>): void {
    this.note(`caller ${caller.id} ${Exit.isSuccess(exit) ? "succeeds" : `ends: ${Cause.pretty(exit.cause)}`}`)
    this.said += Exit.isFailure(exit) ? JSON.stringify(Cause.squash(exit.cause)) ?? "" : ""
    const { acquireTimeout, checkTimeout, closeTimeout, connectTimeout } = this.options
    const waited = this.world.now() - caller.startedAt - caller.held
    // At the worst: a check that fails, then room, an open, and the freeing of it.
    const longest = acquireTimeout + connectTimeout + closeTimeout + checkTimeout * 2
    this.expect(waited <= longest, `6: caller ${caller.id} waited ${waited} ms, at most ${longest} are allowed`)
    if (Exit.isSuccess(exit)) return
    for (const reason of exit.cause.reasons) {
      if (Cause.isInterruptReason(reason)) {
        this.expect(caller.isInterrupted, `9: caller ${caller.id} is interrupted by nobody`)
      } else if (Cause.isDieReason(reason)) {
        const planned = reason.defect instanceof Planned ||
          (reason.defect instanceof Error && /interrupted itself/.test(reason.defect.message))
        this.expect(planned, `9: caller ${caller.id} dies of ${String(reason.defect)}`)
      } else {
        this.told(caller, reason.error)
      }
    }
  }

  told(caller: Caller, error: unknown): void {
    if (error instanceof BodyFailed) return
    if (error instanceof ConnectFailed) {
      const { session } = error
      this.expect(session.key === caller.key, `10: caller ${caller.id} is told of the failure of another`)
      const isFree = session.phase === "closed" ||
        this.world.now() - session.closingSince >= this.options.closeTimeout
      this.expect(isFree, `4: caller ${caller.id} hears of failed session ${session.id} before it is free`)
    } else if (error instanceof SessionPool.ConnectTimeout) {
      this.expect(error.key === caller.key, `10: caller ${caller.id} is told of the timeout of another`)
    } else if (error instanceof SessionPool.PoolClosed) {
      this.expect(this.shutdownAt !== undefined, `10: caller ${caller.id} is told the pool is closed`)
    } else if (error instanceof SessionPool.PoolExhausted) {
      const waited = this.world.now() - caller.startedAt
      this.expect(waited >= this.options.acquireTimeout, `10: caller ${caller.id} gave up too early`)
    } else {
      this.fail(`9: caller ${caller.id} fails with ${String(error)}`)
    }
  }

  /** What there is, at any moment. */
  examine(): void {
    if (this.broken !== undefined) throw new Broken(this.broken)
    const { capacity, closeTimeout } = this.options
    const live = this.sessions.filter((session) => session.phase === "connecting" || session.phase === "open")
    // A session is closing from when the pool says so; its finalizers begin when their fiber has its turn.
    if (this.world.isQuiet()) {
      this.expect(live.length <= capacity, `3: ${live.length} sessions are opening or open, of ${capacity}`)
    }
    // One that was opened too late for its callers is freed in the place where it was opened, and its time for that began
    // when they left: what is counted here has been used.
    const closing = this.sessions.filter((session) =>
      session.phase === "closing" && session.wasUsed && this.world.now() - session.closingSince < closeTimeout
    )
    this.expect(closing.length <= capacity, `3: ${closing.length} sessions are closing, of ${capacity}`)
    const there = live.length + closing.length
    this.expect(there <= 2 * capacity, `3: there are ${there} sessions, of ${capacity} and as many closing`)
    if (this.dice.chance(0.7)) this.examineStats(live)
    if (this.broken !== undefined) throw new Broken(this.broken)
  }

  examineStats(live: ReadonlyArray<Session>): void {
    // At once: nothing else has its turn meanwhile.
    const stats = Effect.runSync(this.pool.stats)
    const { capacity } = this.options
    this.said += JSON.stringify(stats)
    for (const name of ["hits", "misses", "evictions", "expirations", "retirements", "failures"] as const) {
      this.expect(stats[name] >= (this.counts?.[name] ?? 0), `stats: ${name} has gone down`)
    }
    this.counts = stats
    const taken = stats.opening + stats.leased + stats.idle + stats.draining
    this.expect(taken <= capacity, `3: ${taken} places of ${capacity} are taken`)
    this.expect(stats.closing <= capacity, `3: ${stats.closing} of ${capacity} are closing`)
    this.expect(stats.size === stats.leased + stats.idle, "stats: size is leased and idle")
    this.expect(stats.size === stats.keys.length, "stats: size counts the keys")
    this.expect(new Set(stats.keys).size === stats.keys.length, "2: a key has two sessions")
    for (const [name, count] of Object.entries(stats)) {
      this.expect(typeof count !== "number" || count >= 0, `stats: ${name} is ${String(count)}`)
    }
    if (this.shutdownAt !== undefined) return
    // Of one key, all but one are on their way out.
    const byKey = new Map<string, number>()
    for (const session of live) byKey.set(session.key, (byKey.get(session.key) ?? 0) + 1)
    let extra = 0
    for (const count of byKey.values()) extra += count - 1
    const leaving = stats.draining + (this.world.isQuiet() ? 0 : stats.closing)
    this.expect(extra <= leaving, `2: ${extra} second sessions, and ${leaving} that are leaving`)
    this.expect(stats.waiting === 0 || taken === capacity, `10: callers wait while ${taken} of ${capacity} are taken`)
  }

  /** What is left, at the end. */
  finish(): void {
    this.world.run(Infinity)
    this.examine()
    if (this.shutdownAt === undefined) this.examineIdle()
    this.shutDown()
    this.world.run(Infinity)
    const { closeTimeout, drainTimeout } = this.options
    this.world.advance(Math.max(0, this.shutdownAt! + drainTimeout + 2 * closeTimeout - this.world.now()))
    this.examine()
    this.expect(this.shutdown?.pollUnsafe() !== undefined, "6: shutdown does not end within its bounds")
    for (const caller of this.callers) {
      if (caller.exit === undefined) this.interrupt(caller)
    }
    this.world.run(Infinity)
    this.world.advance(10_000)
    this.examine()
    for (const caller of this.callers) {
      this.expect(caller.exit !== undefined, `6: caller ${caller.id} never ends`)
    }
    for (const session of this.sessions) {
      const expected = session.acquired ? 1 : 0
      this.expect(
        session.releases === expected,
        `4: session ${session.id} is closed ${session.releases} times, not ${expected}`
      )
    }
    this.expect(this.world.timers() === 0, `8: ${this.world.timers()} timers are left`)
    this.expect(this.world.alive().length === 0, `${this.world.alive().length} fibers are left`)
    const said = [secret, Buffer.from(secret).toString("base64"), Buffer.from(`Bearer ${secret}`).toString("base64")]
    for (const word of said) this.expect(!this.said.includes(word), "5: a secret is told")
    if (this.broken !== undefined) throw new Broken(this.broken)
  }

  /** Nothing is idle beyond its time once everything due has run. */
  examineIdle(): void {
    const { capacity, idleTimeToLive, maxLifetime } = this.options
    this.world.advance(0)
    const closing = this.sessions.filter((session) => session.phase === "closing").length
    if (closing >= capacity) return
    for (const session of this.sessions) {
      if (session.phase !== "open" || session.leases > 0 || session.checks > 0) continue
      const idle = this.world.now() - session.idleSince
      const age = this.world.now() - session.openedAt
      this.expect(idle <= idleTimeToLive, `session ${session.id} is idle for ${idle} ms`)
      this.expect(age <= maxLifetime, `session ${session.id} is idle at the age of ${age} ms`)
    }
  }

  expect(holds: boolean, message: string): void {
    if (!holds) this.fail(message)
  }

  // Said when a step is over: an exception within a fiber would only be one more defect.
  fail(message: string): void {
    if (this.broken === undefined) this.note(`BROKEN ${message}`)
    this.broken ??= message
  }

  note(line: string): void {
    this.history.push(`${this.world.now()} ${line}`)
  }
}
