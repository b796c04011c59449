/**
 * A child process and everything that it has started, gone together.
 *
 * A child leads a process group of its own, so that one signal reaches what it has started: `npx` and `sh -c` stay
 * between us and the server, and a signal to them alone orphans it. What has left the group (a browser that a server
 * starts, say) is found in Linux's /proc: among the child's descendants before it is asked to go, and, since those of
 * one that has exited are somebody else's, by a variable that they have all inherited (as Jenkins has it with builds).
 *
 *   running --stdin closed--> asked --1.5 s--> SIGTERM to the group --1.5 s--> SIGKILL to the group --0.5 s--> given up
 *      \________________________\____________________\__ as soon as nothing is left: gone
 *
 * Once the child itself is gone, what it has left behind has no reason to live on and is told to go at once.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn, type SpawnOptions } from "node:child_process"
import { randomUUID } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"

const isWindows = process.platform === "win32"
const isLinux = process.platform === "linux"

// Its value says whose tree a process belongs to: a mark for each child, behind those that this process has itself
const variable = "EFFECT_MCP_PROCESS_TREE"

/**
 * Starts `command` and gives its process once it runs. Fails with Node's own error when it can't be started. When the
 * scope closes the child and its descendants are gone, after 3.5 seconds and a few looks at /proc at most.
 */
export const make = (
  command: string,
  args: ReadonlyArray<string>,
  options: SpawnOptions
): Effect.Effect<ChildProcess, unknown, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<ChildProcess, unknown>((resume) => {
      const mark = randomUUID()
      const marks = [process.env[variable], mark].filter((text) => text !== undefined).join(" ")
      const env = isLinux ? { ...(options.env ?? process.env), [variable]: marks } : options.env
      let child: ChildProcess
      try {
        // In a group of its own, the child also does not get the terminal's Ctrl-C: it ends when its session does
        child = spawn(command, args, { ...options, env, shell: false, detached: !isWindows, windowsHide: true })
      } catch (error) {
        return resume(Effect.fail(error))
      }
      child.once("error", (error) => resume(Effect.fail(error)))
      child.once("spawn", () => {
        if (live.size === 0) process.once("exit", killAll)
        live.set(child, mark)
        resume(Effect.succeed(child))
      })
      // The moment to notice that the group is empty: from then on its number may become somebody else's
      child.once("exit", () => groupLives(child))
    }),
    (child) => Effect.ensuring(terminate(child), Effect.sync(() => forget(child)))
  )

const terminate = Effect.fnUntraced(function*(child: ChildProcess) {
  // The pid of a child that has exited may be another process by now
  const known = new Map(isWindows || hasExited(child) ? [] : descendants(child.pid!))
  const isGone = () => hasExited(child) && !groupLives(child) && ![...known].some(isRunning)
  // Whoever is told to go may start something else, and who clears their environment is known as a descendant only
  const nothingIsLeft = Effect.map(marked(child), (found) => {
    for (const [pid, startTime] of found) known.set(pid, startTime)
    return isGone()
  })
  child.stdin?.end()
  yield* waitFor(child, () => hasExited(child), 1500)
  for (const [name, millis] of [["SIGTERM", 1500], ["SIGKILL", 250], ["SIGKILL", 250]] as const) {
    if (yield* nothingIsLeft) return
    signal(child, known, name)
    yield* waitFor(child, isGone, millis)
  }
  if (yield* nothingIsLeft) return
  yield* Effect.logWarning(`Process ${child.pid} or one of its descendants survives SIGKILL`)
})

/**
 * Waits until `condition` holds: for the child's own exit as an event, for its descendants by looking every 10 ms.
 */
const waitFor = (child: ChildProcess, condition: () => boolean, millis: number): Effect.Effect<void> =>
  Effect.suspend(() => condition() ? Effect.void : wait(child, condition)).pipe(
    Effect.timeoutOption(millis),
    Effect.asVoid
  )

const wait = Effect.fnUntraced(function*(child: ChildProcess, condition: () => boolean) {
  if (!hasExited(child)) {
    yield* Effect.callback<void>((resume) => {
      const onExit = () => resume(Effect.void)
      child.once("exit", onExit)
      return Effect.sync(() => child.off("exit", onExit))
    })
  }
  while (!condition()) yield* Effect.sleep(10)
})

const hasExited = (child: ChildProcess): boolean => child.exitCode !== null || child.signalCode !== null

const signal = (child: ChildProcess, known: Processes, name: "SIGTERM" | "SIGKILL"): void => {
  if (isWindows) {
    // Windows has no groups and no SIGTERM: the tree is killed by the system's own tool
    spawn("taskkill", ["/pid", String(child.pid), "/t", "/f"], { stdio: "ignore" }).once(
      "error",
      () => child.kill(name)
    )
    return
  }
  if (groupLives(child)) kill(-child.pid!, name)
  for (const [pid, startTime] of known) {
    const stat = statOf(pid)
    if (stat?.startTime === startTime && stat.group !== child.pid) kill(pid, name)
  }
}

const kill = (pid: number, name: "SIGTERM" | "SIGKILL" | 0): boolean => {
  try {
    return process.kill(pid, name)
  } catch {
    return false
  }
}

// -----------------------------------------------------------------------------
// What is there
// -----------------------------------------------------------------------------

/**
 * By its pid, when each was started, in the kernel's ticks: a pid alone may be another process by now.
 */
type Processes = ReadonlyMap<number, string>

const descendants = (root: number): Processes => {
  const found = new Map<number, string>()
  const pending = [root]
  for (const parent of pending) {
    for (const pid of childrenOf(parent)) {
      const stat = statOf(pid)
      if (stat === undefined) continue
      found.set(pid, stat.startTime)
      pending.push(pid)
    }
  }
  return found
}

// proc(5): each thread lists the children that it has started
const childrenOf = (pid: number): ReadonlyArray<number> => {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
      readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").split(" ").filter((text) => text !== "").map(Number)
    )
  } catch {
    return []
  }
}

/**
 * The child and all that has its mark. One look serves everybody who asks before it begins, as all do whose pool ends:
 * with a thousand processes on the machine it takes 20 ms. The next one begins as long after it is asked for.
 */
const marked = (child: ChildProcess): Effect.Effect<Processes> =>
  Effect.map(Effect.promise(() => next ??= nextLook()), (found) => found.get(live.get(child)!) ?? new Map())

let next: Promise<ReadonlyMap<string, Processes>> | undefined
let lastTook = Duration.zero

const nextLook = async (): Promise<ReadonlyMap<string, Processes>> => {
  const taken = Effect.timed(Effect.sync(() => {
    next = undefined
    return look()
  }))
  const [took, found] = await Effect.runPromise(Effect.delay(taken, lastTook))
  lastTook = took
  return found
}

const look = (): ReadonlyMap<string, Processes> => {
  const found = new Map<string, Map<number, string>>()
  for (const pid of pids()) {
    for (const mark of marksOf(pid)) {
      const stat = statOf(pid)
      if (stat !== undefined) found.set(mark, (found.get(mark) ?? new Map()).set(pid, stat.startTime))
    }
  }
  return found
}

const assignment = new RegExp(`(?:^|\\0)${variable}=([^\\0]*)`)

// Those of other users can't be read, and are none of ours
const marksOf = (pid: number): ReadonlyArray<string> => {
  try {
    return assignment.exec(readFileSync(`/proc/${pid}/environ`, "latin1"))?.[1]!.split(" ") ?? []
  } catch {
    return []
  }
}

const pids = (): ReadonlyArray<number> => {
  try {
    return isLinux ? readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number) : []
  } catch {
    return []
  }
}

const isRunning = ([pid, startTime]: readonly [number, string]): boolean => statOf(pid)?.startTime === startTime

// A zombie has exited: in a container whose first process collects nobody, it stays for good
const statOf = (pid: number): { readonly group: number; readonly startTime: string } | undefined => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
    // The second field is the command's name in parentheses, which may have any character in it
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    return fields[0] === "Z" || fields[0] === "X" ? undefined : { group: Number(fields[2]), startTime: fields[19]! }
  } catch {
    return undefined
  }
}

const emptied = new WeakSet<ChildProcess>()

const groupLives = (child: ChildProcess): boolean => {
  if (isWindows || emptied.has(child)) return false
  const lives = hasMembers(child.pid!)
  if (!lives && hasExited(child)) emptied.add(child)
  return lives
}

const hasMembers = (group: number): boolean => {
  if (!kill(-group, 0)) return false
  const all = pids()
  // They may all be zombies
  return all.length === 0 || all.some((pid) => statOf(pid)?.group === group)
}

// -----------------------------------------------------------------------------
// The end of this process
// -----------------------------------------------------------------------------

/** Each child that is not gone yet, and its mark. */
const live = new Map<ChildProcess, string>()

const killAll = () => {
  const found = look()
  for (const [child, mark] of live) signal(child, found.get(mark) ?? new Map(), "SIGKILL")
}

const forget = (child: ChildProcess) => {
  live.delete(child)
  if (live.size === 0) process.off("exit", killAll)
  // Whoever still holds the other ends must not keep this process alive
  child.stdin?.destroy()
  child.stdout?.destroy()
  child.stderr?.destroy()
  child.unref()
}
