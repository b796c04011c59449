/**
 * A random program over the registry, held against what the world outside can see: which resources are being opened,
 * open, in use and being closed, whose each session is, and what each caller is told. Between the steps, whenever the
 * world is quiet, what the registry says of every session must be what the world knows of it.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Credentials, Identity } from "../../src/Identity.ts"
import * as SessionRegistry from "../../src/SessionRegistry.ts"
import * as Simulator from "./simulator.ts"
import type { Dice } from "./world.ts"

// -----------------------------------------------------------------------------
// Programs
// -----------------------------------------------------------------------------

type Action =
  | { readonly do: "create"; readonly owner: number; readonly isHeld: boolean; readonly body: Body }
  | { readonly do: "get"; readonly session: number; readonly stranger: boolean; readonly body: Body }
  | { readonly do: "visit"; readonly session: number; readonly stranger: boolean; readonly visit: Visit }
  | { readonly do: "terminate"; readonly session: number; readonly stranger: boolean; readonly times: number }
  | { readonly do: "terminateAll"; readonly owner: number }
  | { readonly do: "clear" }
  | { readonly do: "interrupt"; readonly caller: number }
  | { readonly do: "advance"; readonly millis: number }
  | { readonly do: "jump"; readonly millis: number }
  | { readonly do: "shutdown" }

/** What a holder does with its session. `call` ends when the resource does, `stream` when the session does. */
type Body =
  | { readonly is: "none" | "instant" | "call" | "stream" | "fails" | "dies" }
  | { readonly is: "takes"; readonly millis: number }

/** A visitor waits for so long, and again before each time that it holds the session. */
interface Visit {
  readonly millis: number
  readonly holds: ReadonlyArray<Body>
}

const owners = 4

/** Everybody without an identity of their own. */
const everybody = "owner-0"

const action = (dice: Dice): Action => {
  const roll = dice.next()
  const stranger = dice.chance(0.2)
  if (roll < 0.28) {
    return { do: "create", owner: dice.below(owners), isHeld: dice.chance(0.3), body: body(dice, 0.5) }
  }
  if (roll < 0.43) return { do: "get", session: dice.below(12), stranger, body: body(dice, 0) }
  if (roll < 0.52) return { do: "visit", session: dice.below(12), stranger, visit: visit(dice) }
  if (roll < 0.62) return { do: "terminate", session: dice.below(12), stranger, times: dice.pick([1, 1, 3]) }
  if (roll < 0.65) return { do: "terminateAll", owner: dice.below(owners) }
  if (roll < 0.66) return { do: "clear" }
  if (roll < 0.75) return { do: "interrupt", caller: dice.below(20) }
  if (roll < 0.77) return { do: "jump", millis: dice.pick([-3_600_000, -60, 60, 3_600_000]) }
  return { do: "advance", millis: dice.pick([0, 1, 5, 20, 49, 50, 51, 100, 400, 1_000]) }
}

const body = (dice: Dice, none: number): Body => {
  if (dice.chance(none)) return { is: "none" }
  const roll = dice.next()
  if (roll < 0.25) return { is: "instant" }
  if (roll < 0.6) return { is: "takes", millis: dice.pick([1, 10, 60, 200, 600]) }
  if (roll < 0.75) return { is: "call" }
  if (roll < 0.88) return { is: "stream" }
  return { is: roll < 0.94 ? "fails" : "dies" }
}

const visit = (dice: Dice): Visit => ({
  millis: dice.pick([0, 1, 20, 49, 60, 200, 600]),
  holds: Array.from({ length: dice.pick([0, 1, 1, 2]) }, () => body(dice, 0))
})

// -----------------------------------------------------------------------------
// What the world sees
// -----------------------------------------------------------------------------

class OpenFailed extends Data.TaggedError("OpenFailed")<{ readonly session: Session }> {}
class BodyFailed extends Data.TaggedError("BodyFailed")<{}> {}

interface Session extends Simulator.Opened {
  readonly name: string
  readonly owner: string
  /** The turn in which its open began. */
  readonly began: number
  readonly createdAt: number
  holders: number
  visitors: number
  /** When the first of them came. */
  visitedSince: number
  /** When it was closed, or had failed with nothing to close. */
  goneAt: number | undefined
  lastActivityAt: number
  /** The turn in which its creator was told its id. */
  known: number | undefined
  /** Its owner has had it by a get. */
  isUsed: boolean
  /** An event has said so: its close may not have begun. */
  hasGivenWay: boolean
  /** How many of its owner's terminates have begun. */
  attempts: number
  /** The turn in which one had succeeded. */
  terminated: number | undefined
}

/** A `terminateAll`, or a `clear`: of all owners. */
interface Sweep {
  readonly owner: string | undefined
  readonly began: number
  ended: number | undefined
  endedAt: number
}

interface Caller extends Simulator.Caller {
  readonly does: "create" | "get" | "visit"
  readonly owner: string
  /** What it does with what it holds. */
  body: Body
  /** The turn in which it began. */
  readonly began: number
  session: Session | undefined
  isHolding: boolean
  endedAt: number | undefined
}

class Registry extends Context.Service<Registry, SessionRegistry.Hosting<Session, OpenFailed>>()("test/Registry") {}

class Whose extends Context.Service<Whose, { readonly is: "registry" | "caller" }>()("test/Whose") {}

/** Has every id, and owns nothing. */
const mallory = Identity.fromKey("mallory", { credentials: Credentials.bearer(Simulator.secret) })

class Simulation extends Simulator.Simulation<Action> {
  readonly sessions: Array<Session> = []
  readonly callers: Array<Caller> = []
  readonly sweeps: Array<Sweep> = []
  readonly options: {
    readonly capacity: number
    readonly capacityPerOwner: number | undefined
    readonly idleTimeToLive: number
    readonly unusedTimeToLive: number
    readonly maxLifetime: number
    readonly openTimeout: number
    readonly closeTimeout: number
    readonly drainTimeout: number
  }
  registry!: SessionRegistry.Hosting<Session, OpenFailed>
  turns = 0

  constructor(seed: number) {
    super(seed)
    const { dice } = this
    this.options = {
      capacity: dice.pick([1, 2, 4, 8]),
      capacityPerOwner: dice.pick([undefined, 1, 2]),
      idleTimeToLive: dice.pick([50, 50, 300, Infinity]),
      unusedTimeToLive: dice.pick([20, 50, 1_000, Infinity]),
      maxLifetime: dice.pick([Infinity, Infinity, 400]),
      openTimeout: dice.pick([100, 500]),
      closeTimeout: dice.pick([40, 200]),
      drainTimeout: dice.pick([0, 0, 150])
    }
  }

  start(): void {
    const logger = Logger.make<unknown, void>(({ cause, fiber, message }) => {
      this.said += JSON.stringify([message, Cause.pretty(cause), fiber.getRef(References.CurrentLogAnnotations)])
    })
    const make = SessionRegistry.make({
      ...this.options,
      idleTimeToLive: Duration.millis(this.options.idleTimeToLive),
      unusedTimeToLive: Duration.millis(this.options.unusedTimeToLive),
      maxLifetime: Duration.millis(this.options.maxLifetime),
      open: (info) => this.open(info)
    }, "layer")
    const layer = Layer.effect(Registry, make).pipe(
      Layer.provide(Layer.succeed(Whose, { is: "registry" })),
      Layer.provideMerge(Logger.layer([logger]))
    )
    const context = this.build(layer)
    if (context === undefined) return
    this.registry = Context.get(context, Registry)
    this.world.fork(
      Stream.runForEach(this.registry.events, (event) =>
        Effect.sync(() => {
          this.said += JSON.stringify(event)
          if (event._tag !== "Ended") return
          if (event.reason === "evicted") this.evicted(event.session)
          if (event.reason === "expired") this.expired(event.session)
        }))
    )
  }

  /** It was visited by nobody who had come before this moment. */
  expired(name: string): void {
    const { id, visitedSince, visitors } = this.sessions.find((other) => other.name.startsWith(name))!
    const isVisited = visitors > 0 && visitedSince < this.world.now()
    this.expect(!isVisited, `1: session ${id} has expired under ${visitors} visitors`)
  }

  /** Whoever gives way was never used, and has waited for that the longest. */
  evicted(name: string): void {
    const session = this.sessions.find((other) => other.name.startsWith(name))!
    session.hasGivenWay = true
    this.note(`session ${session.id} has given way`)
    this.expect(!session.isUsed, `session ${session.id} was used, and is evicted`)
    const older = this.sessions.find((other) =>
      other.owner === session.owner && this.isWaiting(other) && other.lastActivityAt < session.lastActivityAt
    )
    this.expect(older === undefined, `session ${session.id} is evicted before the older ${older?.id}`)
  }

  // --- Resources ---

  open(info: SessionRegistry.SessionInfo): Effect.Effect<Session, OpenFailed, Whose | Scope.Scope> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen({ self: this }, function*() {
        const whose = yield* Whose
        this.expect(whose.is === "registry", "7: open runs with a caller's services")
        this.expect(!this.sessions.some(({ name }) => name === info.id), "an id is used twice")
        const session: Session = {
          ...this.opening(),
          name: info.id,
          owner: info.owner,
          began: this.turns++,
          createdAt: info.createdAt,
          holders: 0,
          visitors: 0,
          visitedSince: 0,
          goneAt: undefined,
          lastActivityAt: 0,
          known: undefined,
          isUsed: false,
          hasGivenWay: false,
          attempts: 0,
          terminated: undefined
        }
        this.sessions.push(session)
        const fate = this.fateOf(session)
        this.note(`session ${session.id} of ${session.owner} opens`)
        const open = this.acquire(session, fate)
        // An open may be one piece, which ends well although nobody wants it any more.
        if (fate.chance(0.1)) session.isStubborn = true
        return yield* Effect.onExit(session.isStubborn ? open : restore(open), (exit) =>
          Effect.sync(() => {
            if (Exit.isFailure(exit) && session.phase === "opening") {
              session.phase = "failed"
              session.goneAt = this.world.now()
            }
            this.note(`session ${session.id} ${Exit.isSuccess(exit) ? "opened" : "failed to open"}`)
          }))
      })
    )
  }

  acquire(session: Session, fate: Dice): Effect.Effect<Session, OpenFailed, Scope.Scope> {
    return Effect.gen({ self: this }, function*() {
      const pause = Effect.sleep(fate.pick([1, 10, 30]))
      if (fate.chance(0.4)) yield* pause
      if (fate.chance(0.06)) yield* this.ignore(session, fate)
      const close = this.close(session, fate)
      yield* Effect.acquireRelease(Effect.sync(() => void (session.acquired = true)), () => close)
      const roll = fate.next()
      if (roll < 0.2) yield* pause
      if (fate.chance(0.06)) yield* this.ignore(session, fate)
      if (roll > 0.94) yield* this.forever
      if (roll > 0.91) {
        session.isStubborn = true
        yield* Effect.uninterruptible(Effect.sleep(this.options.closeTimeout / 2))
      }
      if (roll > 0.84) return yield* new OpenFailed({ session })
      if (roll > 0.82) return yield* Effect.die(new Simulator.Planned("open"))
      if (roll > 0.81) return yield* Effect.interrupt
      // Given up long ago, it was freed under this open, which has not noticed.
      if (session.phase === "opening") session.phase = "open"
      session.openedAt = session.lastActivityAt = this.world.now()
      return session
    })
  }

  close(session: Session, fate: Dice): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      const roll = yield* this.closing(session, fate, session.holders, this.mayBeTerminated(session))
      session.goneAt = this.world.now()
      this.note(`session ${session.id} is closed`)
      if (roll > 0.9) yield* Effect.die(new Error(`the finalizer of session ${session.name} throws`))
    })
  }

  // --- Steps ---

  act(next: Action): void {
    switch (next.do) {
      case "create":
        return this.create(`owner-${next.owner}`, next.isHeld, next.body)
      case "get":
        return this.get(next.session, next.stranger, next.body)
      case "visit":
        return this.visit(next.session, next.stranger, next.visit)
      case "terminate":
        for (let i = 0; i < next.times; i++) this.terminate(next.session, next.stranger)
        return
      case "terminateAll": {
        const owner = `owner-${next.owner}`
        return this.sweep(owner, this.registry.terminateAll(this.identity(owner)))
      }
      case "clear":
        return this.sweep(undefined, this.registry.clear)
      case "interrupt":
        return this.interruptOne(next.caller)
      case "advance":
        return this.world.advance(next.millis)
      case "jump":
        return this.world.jump(next.millis)
      case "shutdown":
        return this.shutDown()
    }
  }

  identity(owner: string): Identity {
    if (owner === everybody) return Identity.shared(owner)
    return Identity.fromKey(owner, { credentials: Credentials.bearer(Simulator.secret) })
  }

  caller(does: Caller["does"], owner: string, what: Body): Caller {
    const caller: Caller = {
      ...this.calling(),
      does,
      owner,
      body: what,
      began: this.turns++,
      session: undefined,
      isHolding: false,
      endedAt: undefined
    }
    this.callers.push(caller)
    return caller
  }

  run(caller: Caller, effect: Effect.Effect<unknown, unknown>): void {
    caller.fiber = this.world.fork(Effect.provideService(effect, Whose, { is: "caller" }))
    caller.fiber.addObserver((exit) => {
      caller.exit = exit
      caller.endedAt = this.world.now()
      this.ended(caller, exit)
    })
  }

  create(owner: string, isHeld: boolean, what: Body): void {
    const caller = this.caller("create", owner, what)
    const by = this.identity(owner)
    const told = ({ id, resource }: SessionRegistry.RegisteredSession<Session>) =>
      Effect.sync(() => {
        this.expect(resource.owner === owner && resource.name === id, `caller ${caller.id} got another's session`)
        resource.known = this.turns++
        this.note(`caller ${caller.id} knows session ${resource.id}`)
      })
    if (isHeld) {
      const begin = (found: SessionRegistry.RegisteredSession<Session>) =>
        Effect.map(told(found), () => this.begin(caller, found.resource))
      const created = this.registry.createHeld(by)
      return this.run(caller, this.holding(caller, created, begin))
    }
    const created = Effect.tap(this.registry.create(by), told)
    const used = what.is === "none"
      ? created
      : Effect.flatMap(created, ({ resource }) => this.use(caller, resource, by))
    this.run(caller, used)
  }

  /** A session whose id somebody knows, its owner and whoever comes with that id. */
  choose(index: number, stranger: boolean): { readonly session: Session; readonly by: Identity } | undefined {
    const known = this.sessions.filter((session) => session.known !== undefined)
    const session = known[known.length - 1 - index % Math.max(1, known.length)]
    return session && { session, by: stranger ? mallory : this.identity(session.owner) }
  }

  get(index: number, stranger: boolean, what: Body): void {
    const chosen = this.choose(index, stranger)
    if (chosen === undefined) return
    const caller = this.caller("get", chosen.by.key, what)
    this.run(caller, this.use(caller, chosen.session, chosen.by))
  }

  visit(index: number, stranger: boolean, { holds, millis }: Visit): void {
    const chosen = this.choose(index, stranger)
    if (chosen === undefined) return
    const { by, session } = chosen
    const caller = this.caller("visit", by.key, { is: "none" })
    caller.session = session
    const since = this.world.now()
    const come = Effect.map(this.registry.visit(session.name, by), (visited) => {
      this.note(`caller ${caller.id} visits session ${session.id}`)
      this.expect(visited.session.resource === session, `caller ${caller.id} visits the session of another`)
      this.expect(by.key === session.owner, `caller ${caller.id} visits what is not its own`)
      this.expect(
        !this.isOver(session, caller.began),
        `caller ${caller.id} visits session ${session.id}, which is over`
      )
      if (session.visitors++ === 0) session.visitedSince = this.world.now()
      return visited
    })
    const leave = Effect.sync(() => {
      session.visitors--
      caller.held = this.world.now() - since
    })
    const stay = ({ hold }: SessionRegistry.Visit<Session>) =>
      Effect.forEach(
        holds,
        (what) => Effect.andThen(Effect.sleep(millis), this.holdVisited(caller, session, what, hold)),
        { discard: true }
      ).pipe(Effect.andThen(Effect.sleep(millis)))
    this.run(caller, Effect.scoped(Effect.acquireUseRelease(come, stay, () => leave)))
  }

  holdVisited(
    caller: Caller,
    session: Session,
    what: Body,
    hold: SessionRegistry.Visit<Session>["hold"]
  ): Effect.Effect<unknown, unknown> {
    return Effect.suspend(() => {
      const began = this.turns++
      caller.body = what
      const begin = () =>
        Effect.sync(() => {
          const isOver = this.isOver(session, began)
          this.expect(!isOver, `caller ${caller.id} has session ${session.id}, which is over`)
          session.isUsed = true
          return this.begin(caller, session)
        })
      return this.holding(caller, Effect.tapError(hold, () => this.heldInVain(caller, session)), begin)
    })
  }

  /** A visitor is refused only what is over, however long it was idle. */
  heldInVain(caller: Caller, session: Session): Effect.Effect<void> {
    return Effect.sync(() => {
      const isThere = session.visitors > 0 && this.isUndisturbed(session) && this.isOpenToRequests(session)
      this.expect(!isThere, `session ${session.id} is refused to caller ${caller.id}, who visits it`)
    })
  }

  use(caller: Caller, session: Session, by: Identity): Effect.Effect<unknown, unknown> {
    const began = this.turns++
    caller.session = session
    const begin = (found: SessionRegistry.RegisteredSession<Session>) =>
      Effect.sync(() => {
        this.expect(found.resource === session, `caller ${caller.id} has the session of another`)
        this.expect(by.key === session.owner, `caller ${caller.id} has what is not its own`)
        this.expect(
          !this.isDead(session, began),
          `caller ${caller.id} has session ${session.id}, which is dead`
        )
        session.isUsed = true
        return this.begin(caller, session)
      })
    return this.holding(caller, this.registry.get(session.name, by), begin)
  }

  begin(caller: Caller, session: Session): number {
    this.note(`caller ${caller.id} holds session ${session.id}`)
    const isOpen = session.phase === "open" || this.mayBeTerminated(session) || this.shutdownAt !== undefined
    this.expect(isOpen, `1: session ${session.id} is given to a caller when it is ${session.phase}`)
    session.holders++
    session.lastActivityAt = this.world.now()
    caller.isHolding = true
    return this.world.now()
  }

  holding<E>(
    caller: Caller,
    session: Effect.Effect<SessionRegistry.RegisteredSession<Session>, E, Scope.Scope>,
    begin: (found: SessionRegistry.RegisteredSession<Session>) => Effect.Effect<number>
  ): Effect.Effect<unknown, unknown> {
    const end = ({ resource }: SessionRegistry.RegisteredSession<Session>, since: number) =>
      Effect.sync(() => {
        caller.held = this.world.now() - since
        caller.isHolding = false
        resource.holders--
        resource.lastActivityAt = this.world.now()
      })
    return Effect.scoped(
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(
          session,
          (found) =>
            Effect.acquireUseRelease(
              begin(found),
              () => restore(this.bodyOf(caller.body, found)),
              (since) => end(found, since)
            )
        )
      )
    )
  }

  bodyOf(
    what: Body,
    found: SessionRegistry.RegisteredSession<Session>
  ): Effect.Effect<unknown, BodyFailed> {
    switch (what.is) {
      case "none":
      case "instant":
        return Effect.void
      case "takes":
        return Effect.sleep(what.millis)
      case "call":
        return found.ended
      case "stream":
        return found.retired
      case "fails":
        return Effect.fail(new BodyFailed())
      case "dies":
        return Effect.die(new Simulator.Planned("body"))
    }
  }

  terminate(index: number, stranger: boolean): void {
    const chosen = this.choose(index, stranger)
    if (chosen === undefined) return
    const { by, session } = chosen
    const isOwner = by.key === session.owner
    const began = this.turns++
    if (isOwner) session.attempts++
    const terminating = this.world.fork(this.registry.terminate(session.name, by))
    terminating.addObserver((exit) => {
      if (Exit.isSuccess(exit)) {
        this.note(`session ${session.id} is terminated`)
        this.expect(isOwner, `session ${session.id} is terminated by a stranger`)
        this.expect(session.terminated === undefined, `session ${session.id} is terminated twice`)
        this.expect(!this.isDead(session, began), `session ${session.id} is terminated when it is dead`)
        session.terminated = this.turns++
      } else {
        this.refused(session, by.key, exit.cause)
      }
    })
  }

  sweep(owner: string | undefined, effect: Effect.Effect<number>): void {
    const sweep: Sweep = { owner, began: this.turns++, ended: undefined, endedAt: Infinity }
    this.sweeps.push(sweep)
    this.world.fork(effect).addObserver(() => {
      sweep.ended = this.turns++
      sweep.endedAt = this.world.now()
    })
  }

  // --- What is known of a session ---

  /** What the wall clock would have said then, had it always been as it is now. */
  onWall(at: number): number {
    return this.world.wall() - (this.world.now() - at)
  }

  /**
   * Its owner has begun to terminate it, or there was a sweep when it had been admitted, maybe before its open began.
   */
  mayBeTerminated(session: Session): boolean {
    return session.attempts > 0 ||
      this.sweeps.some((sweep) =>
        (sweep.owner ?? session.owner) === session.owner && sweep.endedAt >= session.startedAt
      )
  }

  isOverdue(session: Session): boolean {
    const { idleTimeToLive, unusedTimeToLive } = this.options
    const timeToLive = session.isUsed ? idleTimeToLive : Math.min(idleTimeToLive, unusedTimeToLive)
    return session.holders === 0 && this.world.now() - session.lastActivityAt > timeToLive
  }

  /** Nobody has come since who it might have given way to. */
  isUndisturbed(session: Session): boolean {
    return session.isUsed ||
      !this.callers.some((caller) => caller.does === "create" && caller.began > session.began)
  }

  /** It waits for its first use, for sure, if it has not given way: a get has it before its caller hears of that. */
  isWaiting(session: Session): boolean {
    const isAskedFor = this.callers.some(({ does, owner, session: asked }) =>
      does !== "create" && asked === session && owner === session.owner
    )
    return !isAskedFor && !session.isUsed && !session.hasGivenWay && session.holders === 0 &&
      this.takesRequests(session)
  }

  /** Whether its id was nobody's any more in turn `by`, for sure. */
  isDead(session: Session, by: number): boolean {
    return this.isOver(session, by) || this.isOverdue(session)
  }

  /** The same, by whatever but its idleness: visitors keep it, and whoever comes before that is noticed. */
  isOver(session: Session, by: number): boolean {
    const isSwept = this.sweeps.some((sweep) =>
      (sweep.owner ?? session.owner) === session.owner &&
      sweep.began > session.began && sweep.ended !== undefined && sweep.ended < by
    )
    return isSwept || (session.terminated !== undefined && session.terminated < by) ||
      this.world.now() - session.openedAt > this.options.maxLifetime
  }

  /** Whether it takes its owner's requests, for sure. */
  isAlive(session: Session): boolean {
    return this.isUndisturbed(session) && this.takesRequests(session)
  }

  takesRequests(session: Session): boolean {
    return this.isOpenToRequests(session) && !this.isOverdue(session)
  }

  /** The same, but for its idleness. */
  isOpenToRequests(session: Session): boolean {
    return session.known !== undefined && session.phase === "open" && this.shutdownAt === undefined &&
      !this.mayBeTerminated(session) &&
      this.world.now() - session.openedAt < this.options.maxLifetime * 0.975
  }

  // --- What must hold ---

  /** What a caller is told, and when. */
  ended(caller: Caller, exit: Exit.Exit<unknown, unknown>): void {
    this.note(`caller ${caller.id} ${Exit.isSuccess(exit) ? "succeeds" : `ends: ${Cause.pretty(exit.cause)}`}`)
    const longest = caller.does !== "create" ? 0 : this.options.openTimeout + this.options.closeTimeout
    this.examineEnd(caller, exit, longest)
  }

  told(caller: Caller, error: unknown): void {
    // What a resource's own open says is its own.
    if (!(error instanceof OpenFailed)) this.said += JSON.stringify(error)
    if (error instanceof BodyFailed) return
    if (caller.session !== undefined) return this.refusedWith(caller.session, caller.owner, error)
    if (error instanceof OpenFailed) {
      const { session } = error
      this.expect(session.owner === caller.owner, `10: caller ${caller.id} is told of the failure of another`)
      this.expect(this.isFree(session), `4: caller ${caller.id} hears of session ${session.id} before it is free`)
    } else if (error instanceof SessionRegistry.OpenTimeout) {
      const waited = this.world.now() - caller.startedAt
      this.expect(waited >= this.options.openTimeout, `10: caller ${caller.id} gave up too early`)
    } else if (error instanceof SessionRegistry.RegistryClosed) {
      this.expect(this.shutdownAt !== undefined, `10: caller ${caller.id} is told the registry is closed`)
    } else if (error instanceof SessionRegistry.RegistryFull) {
      // There now or a moment ago, as a refusal takes no time. Those that are closing take no place of the open, but
      // here they can't be told from a failed open that is being freed.
      const there = this.sessions.filter((session) =>
        (session.goneAt === undefined || session.goneAt === this.world.now()) &&
        (error.scope === "registry" || session.owner === caller.owner)
      )
      const room = error.scope === "registry" ? this.options.capacity : this.options.capacityPerOwner!
      // An open that was just admitted may not have begun, and may never have: its place is free when it has been
      // freed.
      const opening = this.callers.filter((other) =>
        other !== caller && other.does === "create" &&
        (other.exit === undefined || (other.isInterrupted && other.endedAt === this.world.now())) &&
        (error.scope === "registry" || other.owner === caller.owner)
      )
      this.expect(
        there.length + opening.length >= room,
        `10: caller ${caller.id} is refused when ${there.length} of ${room} are there`
      )
      // Whoever comes in the same moment may have made it give way or got it, and that does not show yet.
      const isAlone = !this.callers.some((other) => other !== caller && other.startedAt === caller.startedAt)
      const waiting = there.find((session) =>
        isAlone && this.isWaiting(session) && session.lastActivityAt < caller.startedAt
      )
      const closing = this.sessions.filter(({ goneAt, phase }) => phase === "closing" || goneAt === this.world.now())
      this.expect(
        waiting === undefined || closing.length >= this.options.capacity,
        `10: caller ${caller.id} is refused, although session ${waiting?.id} could have given way`
      )
    } else {
      this.fail(`9: caller ${caller.id} fails with ${String(error)}`)
    }
  }

  refused(session: Session, owner: string, cause: Cause.Cause<unknown>): void {
    for (const reason of cause.reasons) {
      if (Cause.isFailReason(reason)) this.refusedWith(session, owner, reason.error)
      else this.fail(`9: a request ends with ${Cause.pretty(cause)}`)
    }
  }

  refusedWith(session: Session, owner: string, error: unknown): void {
    if (error instanceof SessionRegistry.RegistryClosed) {
      this.expect(this.shutdownAt !== undefined, "a request is told the registry is closed")
    } else if (error instanceof SessionRegistry.SessionNotFound) {
      this.expect(
        owner !== session.owner || !this.isAlive(session),
        `session ${session.id} is not found by its owner, and alive`
      )
    } else {
      this.fail(`9: a request of session ${session.id} fails with ${String(error)}`)
    }
  }

  /** What there is, at any moment. */
  examine(): void {
    const { capacity, capacityPerOwner = Infinity, closeTimeout } = this.options
    const live = this.sessions.filter((session) =>
      (session.phase === "opening" || session.phase === "open") && !this.mayBeAbandoned(session)
    )
    if (this.world.isQuiet()) {
      const hasPlaceToClose = this.sessions.filter(({ phase }) => phase === "closing").length < capacity
      for (const { id, known, phase, terminated } of live) {
        if (phase !== "open" || !hasPlaceToClose) continue
        this.expect(known !== undefined, `session ${id} is open, and nobody knows its id`)
        this.expect(terminated === undefined, `session ${id} is terminated, and open`)
      }
      this.expect(live.length <= capacity, `3: ${live.length} sessions are opening or open, of ${capacity}`)
      for (const { owner } of live) {
        if (owner === everybody) continue
        const share = live.filter((session) => session.owner === owner).length
        this.expect(share <= capacityPerOwner, `3: ${owner} has ${share} sessions, of ${capacityPerOwner}`)
      }
    }
    const closing = this.sessions.filter((session) =>
      session.phase === "closing" && this.world.now() - session.closingSince < closeTimeout &&
      !this.mayBeAbandoned(session)
    )
    const there = live.length + closing.length
    this.expect(there <= 2 * capacity, `3: there are ${there} sessions, of ${capacity} and as many closing`)
    if (this.dice.chance(0.7)) this.examineStats()
    if (this.world.isQuiet() && this.dice.chance(0.2)) this.examineSessions()
  }

  /** It has ignored its interruption for so long that the registry may have left it to itself. */
  mayBeAbandoned(session: Session): boolean {
    return session.isStubborn && session.known === undefined &&
      (session.phase !== "open" || !this.world.isQuiet()) &&
      this.world.now() - session.startedAt >= this.options.closeTimeout
  }

  examineStats(): void {
    const exit = this.ask(this.registry.stats)
    if (Exit.isFailure(exit)) return this.fail("stats fail")
    const stats = exit.value
    const { capacity } = this.options
    this.said += JSON.stringify(stats)
    const taken = stats.opening + stats.held + stats.idle + stats.draining
    this.expect(taken <= capacity, `3: ${taken} places of ${capacity} are taken`)
    this.expect(stats.closing <= capacity, `3: ${stats.closing} of ${capacity} are closing`)
    this.expect(stats.size === stats.held + stats.idle, "stats: size is held and idle")
    this.expect(stats.owners <= taken && (stats.owners > 0 || taken === 0), "stats: owners are those of the sessions")
    for (const [name, count] of Object.entries(stats)) {
      this.expect(typeof count !== "number" || count >= 0, `stats: ${name} is ${String(count)}`)
    }
  }

  /** What the registry says of each session, to its owner and to a stranger. */
  examineSessions(): void {
    const { registry } = this
    const asked = this.ask(Effect.gen({ self: this }, function*() {
      const entries = yield* registry.entries
      const size = yield* registry.size
      const shown: Array<readonly [own: Exit.Exit<SessionRegistry.SessionInfo, unknown>, others: boolean]> = []
      for (const { name, owner } of this.sessions) {
        const others = yield* Effect.exit(registry.peek(name, mallory))
        shown.push([yield* Effect.exit(registry.peek(name, this.identity(owner))), Exit.isSuccess(others)])
      }
      return { entries, size, shown }
    }))
    if (Exit.isFailure(asked)) return this.fail("entries or size fail")
    const { entries, shown, size } = asked.value
    this.expect(size === entries.length, "size counts the entries")
    for (const session of this.sessions) {
      const { id } = session
      const [own, others] = shown[id]!
      const entry = entries.find((other) => other.id === session.name)
      this.expect(!others, `session ${id} is shown to a stranger`)
      this.expect(Exit.isSuccess(own) === (entry !== undefined), `session ${id} is listed or shown, not both`)
      if (this.isAlive(session)) this.expect(entry !== undefined, `session ${id} is alive and not listed`)
      if (entry === undefined || !Exit.isSuccess(own)) continue
      this.expect(!this.isDead(session, this.turns), `session ${id} is dead and listed`)
      this.expect(entry.holders === session.holders, `session ${id} has ${entry.holders} holders`)
      this.expect(
        Math.abs(own.value.lastActivityAt - this.onWall(session.lastActivityAt)) < 2 &&
          own.value.createdAt === session.createdAt,
        `session ${id} was active at ${this.onWall(session.lastActivityAt)}, not ${own.value.lastActivityAt}`
      )
    }
    // Whom a session's end concerns has heard of it.
    for (const { body: what, id, isHolding, session } of this.callers) {
      if (!isHolding || session === undefined || session.terminated === undefined) continue
      this.expect(what.is === "takes", `caller ${id} does not hear of the end of session ${session.id}`)
    }
  }

  /** Nothing is idle beyond its time once everything due has run. */
  examineRest(): void {
    this.examineSessions()
    const closing = this.sessions.filter((session) => session.phase === "closing").length
    if (closing >= this.options.capacity) return
    for (const session of this.sessions) {
      if (session.phase !== "open" || session.holders > 0) continue
      this.expect(
        session.visitors > 0 || !this.isOverdue(session),
        `session ${session.id} is idle for too long`
      )
      const age = this.world.now() - session.openedAt
      this.expect(age <= this.options.maxLifetime, `session ${session.id} is idle at the age of ${age} ms`)
    }
  }

  examineShutdown(): void {
    for (const { body: what, exit, id, isHolding } of this.callers) {
      const isDeaf = what.is === "takes" || exit !== undefined
      this.expect(isDeaf || !isHolding, `caller ${id} does not hear of the shutdown`)
    }
    for (const { id, name } of this.sessions) {
      this.expect(!this.said.includes(name.slice(0, 9)), `5: the id of session ${id} is told`)
    }
  }
}

export const registry = Simulator.make<Action>("registry", {
  action,
  shutdown: { do: "shutdown" },
  simulation: (seed) => new Simulation(seed)
})
