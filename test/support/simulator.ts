/**
 * Random programs against a world of chance: what both simulations have in common. A program is drawn from a seed, run
 * step by step, and held against the invariants after each; one that breaks one is made as short as it can be.
 *
 * Nothing here waits for anything, so that a hang is no hang of the simulation: whoever does not come to an end within
 * the time and the turns that the world gives is reported.
 */
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Broken, type Dice, makeDice, makeWorld, type World } from "./world.ts"

/** What is done, and the seed of how the world goes on from there: leaving out a step changes little for the others. */
export interface Step<Action> {
  readonly action: Action
  readonly luck: number
}

export interface Program<Action> {
  readonly seed: number
  readonly steps: ReadonlyArray<Step<Action>>
}

/** A broken invariant, and how it came about. */
export interface Violation<Action> extends Program<Action> {
  readonly message: string
  readonly history: ReadonlyArray<string>
}

export interface Simulator<Action> {
  readonly name: string
  readonly generate: (seed: number) => Program<Action>
  /** Runs one program. The same program is the same run. */
  readonly run: (program: Program<Action>) => Violation<Action> | undefined
  /** Runs the programs of so many seeds, up to the first that breaks an invariant, and makes that one short. */
  readonly simulate: (from: number, count: number) => Violation<Action> | undefined
}

/** Longer than all timeouts of a program together. */
const ages = 5_000

export const make = <Action>(name: string, options: {
  readonly action: (dice: Dice) => Action
  readonly shutdown: Action
  readonly simulation: (seed: number) => Simulation<Action>
}): Simulator<Action> => {
  const generate = (seed: number): Program<Action> => {
    const dice = makeDice(seed)
    const length = 20 + dice.below(60)
    const actions = Array.from({ length }, () => options.action(dice))
    if (dice.chance(0.3)) actions.splice(dice.below(length), 0, options.shutdown)
    return { seed, steps: actions.map((action, index) => ({ action, luck: seed * 100 + index })) }
  }

  const run = ({ seed, steps }: Program<Action>): Violation<Action> | undefined => {
    const simulation = options.simulation(seed)
    // The history says how it came about. To know of each planned failure where it was thrown takes a quarter of the
    // time.
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    try {
      simulation.start()
      for (const next of steps) simulation.step(next)
      simulation.finish()
      return undefined
    } catch (error) {
      if (!(error instanceof Broken)) throw error
      return { seed, message: error.message, steps, history: simulation.history }
    } finally {
      Error.stackTraceLimit = stackTraceLimit
    }
  }

  return {
    name,
    generate,
    run,
    simulate: (from, count) => {
      for (let seed = from; seed < from + count; seed++) {
        const violation = run(generate(seed))
        if (violation !== undefined) return shrink(run, violation)
      }
      return undefined
    }
  }
}

/** The violation of a program with as few steps as can be found: whatever step may be left out, is. */
const shrink = <Action>(run: Simulator<Action>["run"], violation: Violation<Action>): Violation<Action> => {
  let shortest = violation
  for (let size = Math.ceil(violation.steps.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let from = 0; from < shortest.steps.length;) {
      const shorter = run({ seed: shortest.seed, steps: shortest.steps.toSpliced(from, size) })
      if (shorter === undefined) from += size
      else shortest = shorter
    }
  }
  return shortest
}

export const report = ({ history, message, seed }: Violation<unknown>): string =>
  [`seed ${seed}: ${message}`, ...history].join("\n  ")

/** A defect that a program has asked for. */
export class Planned extends Error {}

/** Whoever asks something of what is simulated. */
export interface Caller {
  readonly id: number
  readonly startedAt: number
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  exit: Exit.Exit<unknown, unknown> | undefined
  isInterrupted: boolean
  /** For how long it had what it asked for. */
  held: number
}

/** What is opened, and has to be closed once. */
export interface Opened {
  readonly id: number
  readonly startedAt: number
  phase: "opening" | "open" | "closing" | "closed" | "failed"
  /** Its open has ignored, or will ignore, that it is interrupted. */
  isStubborn: boolean
  acquired: boolean
  releases: number
  openedAt: number
  closingSince: number
}

/** What no event, log, error or number may ever tell. */
export const secret = "sk-live-SECRET"

const untellable = [secret, Buffer.from(secret).toString("base64"), Buffer.from(`Bearer ${secret}`).toString("base64")]

/**
 * One run of a program: the world that it meets, and what came of it.
 */
export abstract class Simulation<Action> {
  readonly seed: number
  readonly dice: Dice
  readonly world: World
  /** The scope of the layer. */
  readonly scope = Scope.makeUnsafe()
  readonly history: Array<string> = []
  /** Everything that was told to anybody: events, logs, errors, numbers. */
  said = ""
  shutdownAt: number | undefined
  abstract readonly callers: ReadonlyArray<Caller>
  abstract readonly sessions: ReadonlyArray<Opened>
  abstract readonly options: { readonly closeTimeout: number; readonly drainTimeout: number }
  private shutdown: Fiber.Fiber<void> | undefined
  private broken: string | undefined
  private readonly mercy = Latch.makeUnsafe(false)

  constructor(seed: number) {
    this.seed = seed
    this.dice = makeDice(seed ^ 0x5eed)
    this.world = makeWorld(this.dice, this.dice.pick([3, 4, 5, 11, 2048]))
  }

  abstract start(): void
  abstract act(action: Action): void
  /** What must hold of an error that a caller is told. */
  abstract told(caller: Caller, error: unknown): void
  /** What must hold at any moment. */
  abstract examine(): void
  /** What must hold before the end, when everything that is due has run. */
  abstract examineRest(): void
  /** What must hold in the moment in which the shutdown is over. */
  hasShutDown(): void {}
  /** What must hold when the shutdown is over, and some callers still hold what they have. */
  abstract examineShutdown(): void
  /** What must hold when everything has come to its end. */
  examineEmpty(): void {}

  step(next: Step<Action>): void {
    this.dice.reseed(next.luck)
    this.note(JSON.stringify(next.action))
    this.act(next.action)
    // Now and then only a part of what is due runs before the next step comes.
    this.world.run(this.dice.chance(0.6) ? Infinity : this.dice.below(6))
    this.review()
  }

  /** Shuts down within its bound, ends everybody who is still there, and looks for what is left. */
  finish(): void {
    this.world.run(Infinity)
    this.review()
    if (this.shutdownAt === undefined) {
      this.world.advance(0)
      this.examineRest()
    }
    this.shutDown()
    this.world.run(Infinity)
    const { closeTimeout, drainTimeout } = this.options
    this.world.advance(Math.max(0, this.shutdownAt! + drainTimeout + 2 * closeTimeout - this.world.now()))
    this.review()
    const exit = this.shutdown?.pollUnsafe()
    this.expect(exit !== undefined, "6: shutdown does not end within its bound")
    if (exit !== undefined && Exit.isFailure(exit)) this.fail(`9: shutdown ends with ${Cause.pretty(exit.cause)}`)
    this.examineShutdown()
    for (const caller of this.callers) {
      if (caller.exit === undefined) this.interrupt(caller)
    }
    this.world.run(Infinity)
    this.world.advance(ages)
    this.review()
    for (const caller of this.callers) this.expect(caller.exit !== undefined, `6: caller ${caller.id} never ends`)
    // What took for ever ends as well, so that everything can be found to be closed.
    this.mercy.openUnsafe()
    this.world.run(Infinity)
    this.world.advance(10 * ages)
    this.review()
    for (const { acquired, id, releases } of this.sessions) {
      this.expect(releases === (acquired ? 1 : 0), `4: session ${id} is closed ${releases} times`)
    }
    this.examineEmpty()
    this.expect(this.world.timers() === 0, `8: ${this.world.timers()} timers are left`)
    this.expect(this.world.alive().length === 0, `${this.world.alive().length} fibers are left`)
    for (const word of untellable) this.expect(!this.said.includes(word), "5: a secret is told")
    this.throwIfBroken()
  }

  /** Does not end while anybody waits for it. */
  get forever(): Effect.Effect<void> {
    return this.mercy.await
  }

  /** Takes longer than every timeout. */
  endless(dice: Dice): Effect.Effect<void> {
    return dice.chance(0.5) ? Effect.sleep(ages) : this.forever
  }

  /** Does not end when it is interrupted: it can't be, or what follows an interruption takes its time. */
  stubborn(dice: Dice): Effect.Effect<void> {
    const long = this.endless(dice)
    return dice.chance(0.6) ? Effect.uninterruptible(long) : Effect.onInterrupt(Effect.sleep(10), () => long)
  }

  /** Builds the layer, which takes no time. */
  build<A, E>(layer: Layer.Layer<A, E>, scope: Scope.Scope = this.scope): Context.Context<A> | undefined {
    const built = this.world.fork(Layer.buildWithScope(layer, scope))
    this.world.run(Infinity)
    const exit = built.pollUnsafe()
    if (exit !== undefined && Exit.isSuccess(exit)) return exit.value
    this.fail(`the layer did not build: ${String(exit)}`)
    return undefined
  }

  /** A session whose open begins now. */
  opening(): Opened {
    return {
      id: this.sessions.length,
      startedAt: this.world.now(),
      phase: "opening",
      isStubborn: false,
      acquired: false,
      releases: 0,
      openedAt: 0,
      closingSince: 0
    }
  }

  /** A caller that begins now. */
  calling(): Caller {
    return {
      id: this.callers.length,
      startedAt: this.world.now(),
      fiber: undefined,
      exit: undefined,
      isInterrupted: false,
      held: 0
    }
  }

  /** What is drawn for this session alone, so that a shorter program gives it the same fate. */
  fateOf(session: Opened): Dice {
    return makeDice(this.seed * 1_000 + session.id)
  }

  /** An open ignores its interruption. */
  ignore(session: Pick<Opened, "isStubborn">, fate: Dice): Effect.Effect<void> {
    return Effect.suspend(() => {
      session.isStubborn = true
      return this.stubborn(fate)
    })
  }

  /** A session closes, which may take its time. Only `byForce`, or at the end, may it have `users` then. */
  *closing(session: Opened, fate: Dice, users: number, byForce: boolean): Effect.fn.Return<number> {
    session.releases++
    this.note(`session ${session.id} closes`)
    this.expect(session.releases === 1, `4: session ${session.id} is closed twice`)
    const isOver = this.shutdownAt !== undefined && this.world.now() >= this.shutdownAt + this.options.drainTimeout
    this.expect(users === 0 || byForce || isOver, `1: session ${session.id} is closed in use`)
    session.phase = "closing"
    session.closingSince = this.world.now()
    const roll = fate.next()
    if (roll < 0.3) yield* Effect.sleep(fate.pick([1, 15, 35]))
    else if (roll < 0.38) yield* Effect.sleep(this.options.closeTimeout * 3)
    else if (roll < 0.44) yield* this.endless(fate)
    session.phase = "closed"
    return roll
  }

  /** Whether what a failed session has acquired is closed, or was given up. */
  isFree(session: Opened): boolean {
    return session.phase === "closed" || this.world.now() - session.closingSince >= this.options.closeTimeout
  }

  /** What must hold of how a caller ends, which may wait for so long. */
  examineEnd(caller: Caller, exit: Exit.Exit<unknown, unknown>, longest: number): void {
    const waited = this.world.now() - caller.startedAt - caller.held
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

  /** Runs what the world has to run anyway, until this has its answer. */
  ask<A, E>(effect: Effect.Effect<A, E>): Exit.Exit<A, E> {
    const asked = this.world.fork(effect)
    while (asked.pollUnsafe() === undefined && !this.world.isQuiet()) this.world.run(1)
    const exit = asked.pollUnsafe()
    if (exit === undefined) throw new Broken("6: a question is never answered")
    return exit
  }

  interrupt(caller: Caller): void {
    caller.isInterrupted = true
    this.note(`caller ${caller.id} is interrupted`)
    caller.fiber?.interruptUnsafe()
  }

  interruptOne(index: number): void {
    const running = this.callers.filter((caller) => caller.exit === undefined)
    const caller = running[index % Math.max(1, running.length)]
    if (caller !== undefined) this.interrupt(caller)
  }

  shutDown(): void {
    if (this.shutdown !== undefined) return
    this.shutdownAt = this.world.now()
    this.shutdown = this.world.fork(Scope.close(this.scope, Exit.void))
    this.shutdown.addObserver(() => this.hasShutDown())
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

  private review(): void {
    this.throwIfBroken()
    this.examine()
    this.throwIfBroken()
  }

  private throwIfBroken(): void {
    if (this.broken !== undefined) throw new Broken(this.broken)
  }
}
