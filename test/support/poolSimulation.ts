/**
 * A random program over the pool, held against what the world outside the pool can see: which sessions are being
 * opened, open, in use and being closed, and what each caller is told. After every step all of that must obey the
 * invariants of the design; at the end everything is closed once and nothing is left.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Credentials, Identity } from "../../src/Identity.ts"
import * as Ahead from "../../src/internal/ahead.ts"
import * as Standby from "../../src/internal/client/standby.ts"
import * as SessionPool from "../../src/SessionPool.ts"
import * as Simulator from "./simulator.ts"
import { type Dice, makeDice } from "./world.ts"

// -----------------------------------------------------------------------------
// Programs
// -----------------------------------------------------------------------------

type Action =
  | { readonly do: "call"; readonly key: number; readonly how: "get" | "withSession"; readonly body: Body }
  | { readonly do: "interrupt"; readonly caller: number }
  | { readonly do: "advance"; readonly millis: number }
  | { readonly do: "jump"; readonly millis: number }
  | { readonly do: "invalidate"; readonly key: number }
  | { readonly do: "invalidateWhere"; readonly key: number }
  | { readonly do: "die"; readonly session: number; readonly reason: "died" | "unhealthy" }
  | { readonly do: "prewarm"; readonly keys: ReadonlyArray<number>; readonly timeout: number }
  | { readonly do: "leave"; readonly prewarm: number }
  | { readonly do: "lose"; readonly child: number }
  | { readonly do: "look" }
  | { readonly do: "shutdown" }

type Body =
  | { readonly is: "instant" | "fails" | "dies" | "endless" }
  | { readonly is: "takes"; readonly millis: number }
  | { readonly is: "nested"; readonly key: number }

const keys = 6

const action = (dice: Dice): Action => {
  const key = dice.below(keys)
  const roll = dice.next()
  if (roll < 0.45) return { do: "call", key, how: dice.pick(["get", "withSession"]), body: body(dice) }
  if (roll < 0.57) return { do: "interrupt", caller: dice.below(20) }
  if (roll < 0.80) return { do: "advance", millis: dice.pick([0, 1, 5, 20, 49, 50, 51, 100, 400, 1_000]) }
  if (roll < 0.82) return { do: "jump", millis: dice.pick([-3_600_000, -60, 60, 3_600_000]) }
  if (roll < 0.87) return { do: "invalidate", key }
  if (roll < 0.89) return { do: "invalidateWhere", key }
  if (roll < 0.93) return { do: "die", session: dice.below(8), reason: dice.pick(["died", "unhealthy"]) }
  if (roll < 0.96) return { do: "prewarm", keys: [key, dice.below(keys), key], timeout: dice.pick([50, 1_000]) }
  if (roll < 0.97) return { do: "leave", prewarm: dice.below(3) }
  if (roll < 0.985) return { do: "lose", child: dice.below(3) }
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

interface Session extends Simulator.Opened {
  readonly key: string
  readonly upstream: string | undefined
  /** When it began to close, or its open had failed. */
  leftAt: number | undefined
  /** How many callers have it, without its check. */
  callers: number
  readonly handle: SessionPool.SessionHandle
  /** When the first of those came who waited for it as it began: unknown when a call within a call may have. */
  readonly askedAt: number | undefined
  leases: number
  checks: number
  wasUsed: boolean
  idleSince: number
}

/** A session on standby, until somebody adopts it: then it is what closes that one. */
interface Child extends Simulator.Opened {
  readonly lose: () => void
  isLost: boolean
  owner: Session | undefined
}

interface Prewarm {
  readonly fiber: Fiber.Fiber<number>
  isInterrupted: boolean
}

interface Caller extends Simulator.Caller {
  readonly key: string
  readonly upstream: string | undefined
  heldSince: number | undefined
  endedAt: number | undefined
}

class Pool extends SessionPool.Tag<Pool, Session, ConnectFailed>()("test/Pool") {}

class Owner extends Context.Service<Owner, { readonly is: "pool" | "caller" }>()("test/Owner") {}

type Connect = (
  identity: Identity,
  handle: SessionPool.SessionHandle
) => Effect.Effect<Session, ConnectFailed, Owner | Scope.Scope>

class Simulation extends Simulator.Simulation<Action> {
  readonly sessions: Array<Session> = []
  readonly callers: Array<Caller> = []
  readonly children: Array<Child> = []
  readonly prewarms: Array<Prewarm> = []
  /** What each open has begun, by its handle. */
  readonly begun = new Map<SessionPool.SessionHandle, Session>()
  /** The keys of the calls that run within calls. */
  readonly nested: Array<string> = []
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
    readonly leases: "shared" | "exclusive"
  }
  readonly checks: boolean
  /** Whether two thirds of the identities are at one of two upstreams. */
  readonly hasUpstreams: boolean
  /** How many sessions each of them may have. */
  readonly limits: Readonly<Record<string, number>> | undefined
  /** Whether each identity has durations of its own. */
  readonly isVaried: boolean
  /** Whether failures answer by a schedule. */
  readonly backsOff: boolean
  /** How many children wait for an identity, if the connector keeps some. */
  readonly standby: number
  /** Whether the pool opens some sessions ahead when it is built. */
  readonly isPrewarmed: boolean
  /** Whether a call was ever made within a call. */
  wasNested = false
  pool!: SessionPool.Service<Session, ConnectFailed>
  /** Whoever logs with them is heard. */
  services = Context.empty()
  counts: SessionPool.SessionPoolStats | undefined
  connects = 0

  constructor(seed: number) {
    super(seed)
    const { dice } = this
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
      failureTimeToLive: dice.pick([0, 0, 80]),
      leases: dice.pick(["shared", "shared", "exclusive"])
    }
    this.checks = dice.chance(0.4)
    this.hasUpstreams = dice.chance(0.6)
    this.limits = dice.chance(0.7) ? { x: dice.pick([1, 2]), y: dice.pick([1, 2, 3]) } : undefined
    this.isVaried = dice.chance(0.4)
    this.backsOff = dice.chance(0.3)
    this.standby = dice.pick([0, 0, 1, 2])
    this.isPrewarmed = dice.chance(0.2)
  }

  start(): void {
    const cold: Connect = (_, handle) => this.openCold(this.begun.get(handle)!)
    const open = this.standby === 0 ? cold : this.keepingAhead(cold)
    const layer = Pool.layer({
      ...this.options,
      ...(this.isVaried
        ? {
          idleTimeToLive: ({ key }: Identity) => this.idleTimeToLive(key),
          maxLifetime: ({ key }: Identity) => this.maxLifetime(key),
          checkAfter: ({ key }: Identity) => this.numberOf(key) % 2 * this.options.checkAfter
        }
        : {}),
      ...(this.limits === undefined ? {} : { capacityPerUpstream: (name: string) => this.limits![name]! }),
      ...(this.backsOff ? { failureBackoff: Schedule.exponential(20) } : {}),
      connect: Object.assign(
        (identity: Identity, handle: SessionPool.SessionHandle) => this.connect(identity, handle, open),
        // As a pool knows a connector that begins when it is built
        Predicate.hasProperty(open, Ahead.TypeId) ? { [Ahead.TypeId]: open[Ahead.TypeId] } : {}
      ),
      ...(this.isPrewarmed ? { prewarm: Pool.prewarm([0, 3].map((key) => this.identity(key))) } : {}),
      ...(this.checks ? { check: (session) => this.check(session) } : {})
    }).pipe(
      Layer.provide(Layer.succeed(Owner, { is: "pool" })),
      Layer.provideMerge(Logger.layer([Logger.make(({ message }) => void (this.said += JSON.stringify(message)))]))
    )
    const context = this.build(layer)
    if (context === undefined) return
    this.pool = Context.get(context, Pool)
    this.services = context
    const hear = (event: SessionPool.SessionPoolEvent) => Effect.sync(() => void (this.said += JSON.stringify(event)))
    this.world.fork(Stream.runForEach(this.pool.events, hear))
  }

  numberOf(key: string): number {
    return Number(key.slice(-1))
  }

  idleTimeToLive(key: string): number {
    return this.isVaried ? [50, 300, 7, Infinity, 120, 51][this.numberOf(key)]! : this.options.idleTimeToLive
  }

  maxLifetime(key: string): number {
    return this.isVaried ? [Infinity, 400, 90][this.numberOf(key) % 3]! : this.options.maxLifetime
  }

  // --- Sessions ---

  connect(
    identity: Identity,
    handle: SessionPool.SessionHandle,
    open: Connect
  ): Effect.Effect<Session, ConnectFailed, Owner | Scope.Scope> {
    if (makeDice(this.seed * 77 + this.connects++).chance(0.01)) throw new Simulator.Planned("connect throws")
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen({ self: this }, function*() {
        const owner = yield* Owner
        this.expect(owner.is === "pool", "7: connect runs with a caller's services")
        const session: Session = {
          ...this.opening(),
          key: identity.key,
          upstream: Option.getOrUndefined(identity.upstream),
          leftAt: undefined,
          callers: 0,
          handle,
          askedAt: this.askedAt(identity.key),
          leases: 0,
          checks: 0,
          wasUsed: false,
          idleSince: 0
        }
        this.sessions.push(session)
        this.begun.set(handle, session)
        this.note(`session ${session.id} of ${session.key} connects`)
        return yield* Effect.onExit(restore(open(identity, handle)), (exit) =>
          Effect.sync(() => {
            if (Exit.isFailure(exit)) session.leftAt ??= this.world.now()
            if (Exit.isFailure(exit) && session.phase === "opening") session.phase = "failed"
            this.note(`session ${session.id} ${Exit.isSuccess(exit) ? "opened" : "failed to open"}`)
          }))
      })
    )
  }

  openCold(session: Session): Effect.Effect<Session, ConnectFailed, Scope.Scope> {
    const fate = this.fateOf(session)
    const open = this.open(session, fate)
    // An open may be one piece, which ends well although nobody wants it any more.
    if (fate.chance(0.1)) session.isStubborn = true
    return session.isStubborn ? Effect.uninterruptible(open) : open
  }

  /** The connector's own way to keep sessions ahead, over children of this world. */
  keepingAhead(cold: Connect): Connect {
    return Standby.make<Session, ConnectFailed, Owner>({
      size: this.standby,
      idleTimeToLive: this.dice.pick([Infinity, 120]),
      cold,
      start: (onLost) =>
        Effect.gen({ self: this }, function*() {
          const child: Child = {
            ...this.opening(),
            id: this.children.length,
            isLost: false,
            owner: undefined,
            lose: () => {
              if (child.isLost) return
              child.isLost = true
              onLost()
            }
          }
          this.children.push(child)
          this.note(`child ${child.id} starts`)
          this.expect((yield* Owner).is === "pool", "7: a child starts with a caller's services")
          return yield* Effect.onExit(this.startChild(child, makeDice(this.seed * 991 + child.id)), (exit) =>
            Effect.sync(() => {
              if (Exit.isFailure(exit) && child.phase === "opening") {
                child.phase = "failed"
              }
            }))
        })
    })
  }

  startChild(
    child: Child,
    fate: Dice
  ): Effect.Effect<Standby.Unowned<Session>, ConnectFailed, Scope.Scope> {
    return Effect.gen({ self: this }, function*() {
      if (fate.chance(0.5)) yield* Effect.sleep(fate.pick([1, 20]))
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          child.acquired = true
        }),
        () => Effect.suspend(() => child.owner === undefined ? this.end(child, fate) : this.endOwned(child, fate))
      )
      if (fate.chance(0.05)) yield* this.ignore(child, fate)
      const roll = fate.next()
      if (roll > 0.95) yield* this.forever
      if (roll > 0.85) return yield* Effect.die(new Simulator.Planned("start"))
      if (roll > 0.80) return yield* Effect.interrupt
      if (child.phase === "opening") child.phase = "open"
      return {
        isLost: () => child.isLost,
        // Within a time of its own, as a session's
        ping: Effect.suspend(() => {
          const answer = this.dice.next()
          return answer < 0.7 ? Effect.void : answer < 0.85 ? Effect.sleep(10) : Effect.fail("mute")
        }),
        adopt: (identity: Identity, handle: SessionPool.SessionHandle) => this.adopt(child, identity, handle)
      }
    })
  }

  adopt(child: Child, identity: Identity, handle: SessionPool.SessionHandle): Session {
    const session = this.begun.get(handle)!
    this.expect(child.owner === undefined, `child ${child.id} is given to ${identity.key} and to another`)
    this.expect(session.key === identity.key, `child ${child.id} is adopted for another`)
    this.note(`child ${child.id} is session ${session.id}`)
    child.owner = session
    session.acquired = true
    session.releases = child.releases
    // Given up while it was asked for a sign of life: then it was closed at once
    if (child.phase === "open" && session.phase === "opening") session.phase = "open"
    session.openedAt = session.idleSince = this.world.now()
    return session
  }

  *endChild(child: Child, fate: Dice): Effect.fn.Return<void> {
    child.releases++
    this.note(`child ${child.id} ends`)
    this.expect(child.releases === 1, `4: child ${child.id} is closed twice`)
    child.phase = "closing"
    const roll = fate.next()
    if (roll < 0.3) yield* Effect.sleep(fate.pick([1, 15]))
    else if (roll < 0.36) yield* this.endless(fate)
    child.phase = "closed"
  }

  end(child: Child, fate: Dice): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      yield* this.endChild(child, fate)
    })
  }

  endOwned(child: Child, fate: Dice): Effect.Effect<void> {
    child.releases++
    child.phase = "closed"
    return this.close(child.owner!, fate)
  }

  /** Whether a failed open answers those who come after it. */
  get remembers(): boolean {
    return this.options.failureTimeToLive > 0 || this.backsOff
  }

  askedAt(key: string): number | undefined {
    if (this.nested.includes(key)) return undefined
    // Whoever has left in this very moment may have been there when it took its place
    const first = this.callers.find((caller) =>
      caller.key === key && caller.heldSince === undefined &&
      (caller.endedAt === undefined || caller.endedAt === this.world.now())
    )
    return first?.startedAt
  }

  open(session: Session, fate: Dice): Effect.Effect<Session, ConnectFailed, Scope.Scope> {
    return Effect.gen({ self: this }, function*() {
      const pause = Effect.sleep(fate.pick([1, 10, 30]))
      if (fate.chance(0.5)) yield* pause
      if (fate.chance(0.06)) yield* this.ignore(session, fate)
      const close = this.close(session, fate)
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          session.acquired = true
        }),
        () => close
      )
      const roll = fate.next()
      if (roll < 0.2) yield* pause
      if (fate.chance(0.06)) yield* this.ignore(session, fate)
      if (roll > 0.92) yield* this.forever
      if (roll > 0.88) yield* Effect.uninterruptible(Effect.sleep(this.options.closeTimeout / 2))
      if (roll > 0.86) yield* session.handle.retire("died")
      if (roll > 0.80) return yield* new ConnectFailed({ session })
      if (roll > 0.78) return yield* Effect.die(new Simulator.Planned("connect"))
      if (roll > 0.76) return yield* Effect.interrupt
      // Given up long ago, it was freed under this open, which has not noticed.
      if (session.phase === "opening") session.phase = "open"
      session.openedAt = session.idleSince = this.world.now()
      return session
    })
  }

  close(session: Session, fate: Dice): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      session.leftAt ??= this.world.now()
      const roll = yield* this.closing(session, fate, session.leases, false)
      this.note(`session ${session.id} is closed`)
      if (roll > 0.9) yield* Effect.die(new Error(`the finalizer of Bearer ${Simulator.secret} throws`))
    })
  }

  check(session: Session): Effect.Effect<void, BodyFailed> {
    const answer = Effect.suspend((): Effect.Effect<void, BodyFailed> => {
      const roll = this.dice.next()
      if (roll < 0.6) return this.hold(session, Effect.void)
      if (roll < 0.75) return this.hold(session, Effect.sleep(10))
      if (roll < 0.83) return this.hold(session, Effect.fail(new BodyFailed()))
      // Given up after its time, the check is interrupted and not awaited: it has no hold on the session any more.
      if (roll < 0.88) return this.stubborn(this.dice)
      return roll < 0.94 ? this.hold(session, Effect.die(new Simulator.Planned("check"))) : Effect.never
    })
    const begin = Effect.sync(() => void session.checks++)
    return Effect.acquireUseRelease(begin, () => answer, () => Effect.sync(() => void session.checks--))
  }

  // --- Steps ---

  act(next: Action): void {
    switch (next.do) {
      case "call":
        this.call(next.key, next.how, next.body)
        break
      case "interrupt":
        this.interruptOne(next.caller)
        break
      case "advance":
        this.world.advance(next.millis)
        break
      case "jump":
        this.world.jump(next.millis)
        break
      case "invalidate":
        this.world.fork(this.pool.invalidate(this.identity(next.key)))
        break
      case "invalidateWhere":
        this.world.fork(this.pool.invalidateWhere((identity) => this.numberOf(identity.key) <= next.key))
        break
      case "die": {
        const open = this.sessions.filter((session) => session.phase === "open" || session.phase === "opening")
        const session = open[next.session % Math.max(1, open.length)]
        if (session !== undefined) this.world.fork(session.handle.retire(next.reason))
        break
      }
      case "prewarm": {
        const identities = next.keys.map((key) => this.identity(key))
        const warm = this.pool.prewarm(identities, { timeout: next.timeout })
        const fiber = this.world.fork(Effect.provideContext(warm, this.services))
        const prewarm: Prewarm = { fiber, isInterrupted: false }
        this.prewarms.push(prewarm)
        fiber.addObserver((exit) => {
          this.note(`a prewarm ends with ${Exit.isSuccess(exit) ? exit.value : Cause.pretty(exit.cause)}`)
          const isFine = Exit.isSuccess(exit) ? exit.value <= next.keys.length : prewarm.isInterrupted
          this.expect(isFine, `9: a prewarm of ${next.keys.length} ends with ${String(exit)}`)
        })
        break
      }
      case "leave": {
        const prewarm = this.prewarms.filter(({ fiber }) => fiber.pollUnsafe() === undefined)[next.prewarm]
        if (prewarm === undefined) break
        prewarm.isInterrupted = true
        prewarm.fiber.interruptUnsafe()
        break
      }
      case "lose":
        this.children.filter(({ owner, phase }) => owner === undefined && phase === "open")[next.child]?.lose()
        break
      case "look":
        this.world.fork(this.pool.entries)
        break
      case "shutdown":
        this.shutDown()
    }
  }

  identity(key: number): Identity {
    const identity = Identity.fromKey(`key-${key}`, { credentials: Credentials.bearer(Simulator.secret) })
    return this.hasUpstreams && key % 3 > 0 ? identity.at(key % 3 === 1 ? "x" : "y") : identity
  }

  call(key: number, how: "get" | "withSession", what: Body): void {
    const identity = this.identity(key)
    const caller: Caller = {
      ...this.calling(),
      key: identity.key,
      upstream: Option.getOrUndefined(identity.upstream),
      heldSince: undefined,
      endedAt: undefined
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
      caller.endedAt = this.world.now()
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
    return Effect.acquireUseRelease(begin, () => this.have(session, this.bodyOf(what)), () => end)
  }

  /** A caller has the session. */
  have<A, E>(session: Session, whileHeld: Effect.Effect<A, E>): Effect.Effect<A, E> {
    const take = Effect.sync(() => {
      session.callers++
      const isOne = this.options.leases === "shared" || session.callers === 1
      this.expect(isOne, `session ${session.id} is exclusive and has ${session.callers} callers`)
    })
    return Effect.acquireUseRelease(
      take,
      () => this.hold(session, whileHeld),
      () => Effect.sync(() => void session.callers--)
    )
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
        return Effect.die(new Simulator.Planned("body"))
      case "nested": {
        const identity = this.identity(what.key)
        return Effect.acquireUseRelease(
          Effect.sync(() => {
            this.wasNested = true
            this.nested.push(identity.key)
          }),
          () => Effect.ignore(this.pool.withSession(identity, (session) => this.have(session, Effect.sleep(5)))),
          () => Effect.sync(() => void this.nested.splice(this.nested.indexOf(identity.key), 1))
        )
      }
    }
  }

  // --- What must hold ---

  /** What a caller is told, and when. */
  ended(caller: Caller, exit: Exit.Exit<unknown, unknown>): void {
    this.note(`caller ${caller.id} ${Exit.isSuccess(exit) ? "succeeds" : `ends: ${Cause.pretty(exit.cause)}`}`)
    this.said += Exit.isFailure(exit) ? JSON.stringify(Cause.squash(exit.cause)) ?? "" : ""
    const { acquireTimeout, checkTimeout, closeTimeout, connectTimeout } = this.options
    // At the worst: a check that fails, then room, an open, and the freeing of it. Who waits for a turn may find more
    // than one that fails.
    const checks = this.options.leases === "shared" ? 2 : 6
    const longest = acquireTimeout + connectTimeout + closeTimeout + checkTimeout * checks
    this.examineEnd(caller, exit, longest)
  }

  told(caller: Caller, error: unknown): void {
    if (error instanceof BodyFailed) return
    if (error instanceof ConnectFailed) {
      const { session } = error
      this.expect(session.key === caller.key, `10: caller ${caller.id} is told of the failure of another`)
      // Remembered, it answers at once whoever comes after it: it is not their open that is being freed.
      const cameAfter = this.remembers && caller.startedAt >= (session.leftAt ?? Infinity)
      this.expect(
        cameAfter || this.isFree(session),
        `4: caller ${caller.id} hears of failed session ${session.id} before it is free`
      )
    } else if (error instanceof SessionPool.ConnectTimeout) {
      // Where failures are remembered, a timeout is its upstream's.
      const isItsOwn = error.key === caller.key || (this.remembers &&
        caller.upstream !== undefined && error.key.startsWith(`~${caller.upstream}/`))
      this.expect(isItsOwn, `10: caller ${caller.id} is told of the timeout of another`)
    } else if (error instanceof SessionPool.PoolClosed) {
      this.expect(this.shutdownAt !== undefined, `10: caller ${caller.id} is told the pool is closed`)
    } else if (error instanceof SessionPool.PoolExhausted) {
      const waited = this.world.now() - caller.startedAt
      this.expect(waited >= this.options.acquireTimeout, `10: caller ${caller.id} gave up too early`)
      this.examineExhausted(caller, error, waited)
    } else {
      this.fail(`9: caller ${caller.id} fails with ${String(error)}`)
    }
  }

  examineExhausted(caller: Caller, { capacity, limit }: SessionPool.PoolExhausted, waited: number): void {
    const own = caller.upstream === undefined ? undefined : this.limits?.[caller.upstream]
    const isLimit = limit === "capacity" ? capacity === this.options.capacity : limit === "capacityPerUpstream"
      ? capacity === own
      : this.options.leases === "exclusive" && capacity === 1
    this.expect(isLimit, `caller ${caller.id} is told of ${limit} ${capacity}`)
    // One that has waited for longer was checking a session before, and came to the line later.
    if (waited !== this.options.acquireTimeout) return
    const hadTurn = this.options.leases === "exclusive" &&
      this.sessions.some(({ key, leftAt = Infinity }) => key === caller.key && leftAt >= caller.startedAt)
    const passed = !hadTurn &&
      this.sessions.some((session) =>
        session.askedAt !== undefined && session.askedAt > caller.startedAt && session.startedAt < this.world.now() &&
        this.isOfUse(session, caller)
      )
    this.expect(!passed, `12: caller ${caller.id} gave up, and a session was opened for who came later`)
    const overtaken = this.options.leases === "exclusive" &&
      this.callers.some(({ heldSince, key, startedAt }) =>
        key === caller.key && startedAt > caller.startedAt && heldSince !== undefined && heldSince < this.world.now()
      )
    this.expect(!overtaken, `12: caller ${caller.id} gave up, and who came later had the session`)
  }

  /** Whether the room that a session was given could have been the caller's, as far as can be seen from outside. */
  isOfUse(session: Session, { upstream }: Caller): boolean {
    const limit = upstream === undefined ? undefined : this.limits?.[upstream]
    if (limit === undefined || session.upstream === upstream) return true
    const at = session.startedAt
    let taken = 0
    for (const other of this.sessions) {
      if (other.upstream !== upstream || other.startedAt > at) continue
      const { closeTimeout } = this.options
      // When exactly it came or went, or was given up, cannot be seen
      const isClear = other.startedAt < at && !other.isStubborn &&
        (other.leftAt === undefined || other.leftAt > at || other.leftAt + closeTimeout < at)
      if (!isClear) return false
      if (other.leftAt === undefined || other.leftAt > at) taken++
    }
    return taken < limit
  }

  /** What there is, at any moment. */
  examine(): void {
    const ahead = this.children.filter(({ owner, phase }) =>
      owner === undefined && (phase === "opening" || phase === "open" || phase === "closing")
    )
    const room = this.standby
    this.expect(ahead.length <= room || !this.world.isQuiet(), `${ahead.length} children are ahead, of ${room}`)
    const { capacity, closeTimeout } = this.options
    const live = this.sessions.filter((session) =>
      (session.phase === "opening" || session.phase === "open") && !this.mayBeAbandoned(session)
    )
    // A session is closing from when the pool says so; its finalizers begin when their fiber has its turn.
    if (this.world.isQuiet()) {
      this.expect(live.length <= capacity, `3: ${live.length} sessions are opening or open, of ${capacity}`)
    }
    // One that was opened too late for its callers is freed in the place where it was opened, and its time for that
    // began when they left: what is counted here has been used.
    const closing = this.sessions.filter((session) =>
      session.phase === "closing" && session.wasUsed && this.world.now() - session.closingSince < closeTimeout
    )
    this.expect(closing.length <= capacity, `3: ${closing.length} sessions are closing, of ${capacity}`)
    const there = live.length + closing.length
    this.expect(there <= 2 * capacity, `3: there are ${there} sessions, of ${capacity} and as many closing`)
    if (this.dice.chance(0.7)) this.examineStats(live)
  }

  /** It has ignored its interruption for so long that the pool may have left it to itself. */
  mayBeAbandoned(session: Session): boolean {
    return session.isStubborn && !session.wasUsed &&
      (session.phase === "opening" || !this.world.isQuiet()) &&
      this.world.now() - session.startedAt >= this.options.closeTimeout
  }

  /** Whether it counts as one of its upstream's, as far as can be seen from outside. */
  takesPlace({ isStubborn, phase }: Session): boolean {
    return !isStubborn && (phase === "opening" || phase === "open")
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
    this.expect(stats.standby <= this.standby, `stats: ${stats.standby} stand by, of ${this.standby}`)
    if (this.shutdownAt !== undefined) return
    // Of one key, all but one are on their way out.
    const byKey = new Map<string, number>()
    for (const session of live) byKey.set(session.key, (byKey.get(session.key) ?? 0) + 1)
    let extra = 0
    for (const count of byKey.values()) extra += count - 1
    const leaving = stats.draining + (this.world.isQuiet() ? 0 : stats.closing)
    this.expect(extra <= leaving, `2: ${extra} second sessions, and ${leaving} that are leaving`)
    if (this.limits === undefined && this.options.leases === "shared") {
      this.expect(stats.waiting === 0 || taken === capacity, `10: callers wait while ${taken} of ${capacity} are taken`)
    }
    for (const { capacity: limit, sessions, upstream } of stats.upstreams) {
      this.expect(limit === this.limits?.[upstream], `stats: ${upstream} has a limit of ${limit}`)
      this.expect(sessions <= limit, `3: ${sessions} sessions of ${upstream} take a place, of ${limit}`)
    }
    if (!this.world.isQuiet()) return
    this.examineEarly(stats)
    for (const [upstream, limit] of Object.entries(this.limits ?? {})) {
      const seen = live.filter((session) => session.upstream === upstream && this.takesPlace(session)).length
      this.expect(seen <= limit, `3: ${seen} sessions of ${upstream} are there, of ${limit}`)
    }
    const canClose = stats.closing < capacity
    for (const { capacity: limit, idle, sessions, upstream, waiting } of stats.upstreams) {
      this.expect(sessions + waiting > 0, `stats: ${upstream} is kept, and nothing of it is there`)
      if (waiting === 0) continue
      this.expect(
        sessions === limit || taken === capacity,
        `10: callers of ${upstream} wait while ${sessions} of ${limit} and ${taken} of ${capacity} are taken`
      )
      const evictable = sessions === limit ? idle : stats.idle
      this.expect(evictable === 0 || !canClose, `10: callers of ${upstream} wait while ${evictable} could be evicted`)
    }
    this.examineFairness(stats)
  }

  /** Nobody waits for room while a session is opened that nobody has asked for, unless as much is on its way. */
  examineEarly({ draining, opening, upstreams, waiting }: SessionPool.SessionPoolStats): void {
    if (waiting === 0) return
    const there = this.sessions.filter(({ phase }) => phase === "opening" || phase === "open")
    const hasCaller = (key: string) =>
      this.nested.includes(key) || this.callers.some((caller) => caller.key === key && caller.exit === undefined)
    const early = there.filter(({ isStubborn, key, phase }) => phase === "opening" && !isStubborn && !hasCaller(key))
    // Whoever has joined an open that has failed waits until that is freed
    const joined = this.sessions.filter(({ phase, wasUsed }) => phase === "closing" && !wasUsed).concat(there)
    const waitingKeys = new Map(
      this.callers.filter(({ exit, heldSince, key }) =>
        exit === undefined && heldSince === undefined && !joined.some((session) => session.key === key)
      ).map(({ key, upstream }) => [key, upstream])
    )
    const isWasted = Array.from(waitingKeys.values()).some((name) => {
      const own = upstreams.find(({ upstream }) => upstream === name)
      return early.some(({ upstream }) => own === undefined || own.sessions < own.capacity || upstream === name)
    })
    this.expect(!isWasted || draining > 0, `12: callers wait while session ${early[0]?.id} opens for nobody`)
    if (this.hasUpstreams && this.limits !== undefined) return
    // What has been given up is still seen to open, and is draining
    const asked = there.filter(({ key, phase }) => phase === "opening" && hasCaller(key)).length
    this.expect(
      early.length === 0 || waitingKeys.size <= draining || opening <= asked,
      `12: ${waitingKeys.size} wait for room, and ${draining} places come, while session ${
        early[0]?.id
      } opens for nobody`
    )
  }

  /**
   * No session gives way but for one that is opened or a caller who has waited long. Who is first in line and has
   * waited long has a session that drains for it, if there is one that could.
   */
  examineFairness(stats: SessionPool.SessionPoolStats): void {
    if (this.wasNested || this.checks || this.limits !== undefined || this.options.leases === "exclusive") return
    const half = this.options.acquireTimeout / 2
    const long = this.callers.filter(({ startedAt }) => this.world.now() - startedAt >= half).length
    this.expect(
      stats.evictions <= this.sessions.length + long,
      `${stats.evictions} sessions gave way to ${this.sessions.length} others and ${long} who have waited long`
    )
    const isDue = this.callers.some((caller) =>
      caller.exit === undefined && caller.heldSince === undefined && this.world.now() - caller.startedAt > half &&
      // One that may have been abandoned may be the caller's all the same
      !this.sessions.some(({ key, phase }) => key === caller.key && (phase === "opening" || phase === "open"))
    )
    if (!isDue || stats.waiting === 0) return
    this.expect(
      stats.draining > 0 || stats.leased === 0,
      `12: a caller has waited long, and none of ${stats.leased} leased sessions makes room`
    )
  }

  /** Nothing is idle beyond its time once everything due has run. */
  examineRest(): void {
    const { capacity } = this.options
    const closing = this.sessions.filter((session) => session.phase === "closing").length
    if (closing >= capacity) return
    for (const session of this.sessions) {
      if (session.phase !== "open" || session.leases > 0 || session.checks > 0) continue
      const idle = this.world.now() - session.idleSince
      const age = this.world.now() - session.openedAt
      this.expect(idle <= this.idleTimeToLive(session.key), `session ${session.id} is idle for ${idle} ms`)
      this.expect(age <= this.maxLifetime(session.key), `session ${session.id} is idle at the age of ${age} ms`)
    }
  }

  /** What stands by ends with the pool, unless that takes longer than closeTimeout. */
  override hasShutDown(): void {
    if (this.world.now() - this.shutdownAt! >= this.options.closeTimeout) return
    for (const { acquired, id, owner, phase } of this.children) {
      const isEnded = owner !== undefined || !acquired || phase === "closed"
      this.expect(isEnded, `child ${id} is ${phase} when the pool has ended`)
    }
  }

  examineShutdown(): void {
    // Callers may hold what has been closed under them: there is nothing to tell.
    for (const { fiber } of this.prewarms) this.expect(fiber.pollUnsafe() !== undefined, "6: a prewarm does not end")
    for (const { id, isStubborn, owner, phase } of this.children) {
      const isKept = owner === undefined && (phase === "open" || phase === "opening") && !isStubborn
      this.expect(!isKept, `child ${id} outlives its pool`)
    }
  }

  override examineEmpty(): void {
    for (const { acquired, id, releases } of this.children) {
      this.expect(releases === (acquired ? 1 : 0), `4: child ${id} is closed ${releases} times`)
    }
  }
}

export const pool = Simulator.make<Action>("pool", {
  action,
  shutdown: { do: "shutdown" },
  simulation: (seed) => new Simulation(seed)
})
