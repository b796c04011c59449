/**
 * A child process and everything that it has started, gone together.
 *
 * A child leads a process group of its own, so that one signal reaches what it has started: `npx` and `sh -c` stay
 * between us and the server, and a signal to them alone orphans it. What has left the group (a browser that a server
 * starts, say) is found in Linux's /proc before the child is asked to go.
 *
 *   running --stdin closed--> asked --1.5 s--> SIGTERM to the group --1.5 s--> SIGKILL to the group --0.5 s--> given up
 *      \________________________\____________________\__ as soon as nothing is left: gone
 *
 * Once the child itself is gone, what it has left behind has no reason to live on and is told to go at once.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn, type SpawnOptions } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"

const isWindows = process.platform === "win32"

/**
 * Starts `command` and gives its process once it runs. Fails with Node's own error when it can't be started. When the
 * scope closes the child and its descendants are gone, after at most 3.5 seconds.
 */
export const make = (
  command: string,
  args: ReadonlyArray<string>,
  options: SpawnOptions
): Effect.Effect<ChildProcess, unknown, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<ChildProcess, unknown>((resume) => {
      let child: ChildProcess
      try {
        // In a group of its own, the child also does not get the terminal's Ctrl-C: it ends when its session does
        child = spawn(command, args, { ...options, shell: false, detached: !isWindows, windowsHide: true })
      } catch (error) {
        return resume(Effect.fail(error))
      }
      child.once("error", (error) => resume(Effect.fail(error)))
      child.once("spawn", () => {
        if (live.size === 0) process.once("exit", killAll)
        live.add(child)
        resume(Effect.succeed(child))
      })
      // The moment to notice that the group is empty: from then on its number may become somebody else's
      child.once("exit", () => groupLives(child))
    }),
    (child) => Effect.ensuring(terminate(child), Effect.sync(() => forget(child)))
  )

const terminate = Effect.fnUntraced(function*(child: ChildProcess) {
  // The pid of a child that has exited may be another process by now
  const escaped = isWindows || hasExited(child) ? [] : descendants(child.pid!)
  child.stdin?.end()
  const isGone = () => hasExited(child) && !groupLives(child) && !escaped.some(isRunning)
  if ((yield* waitFor(child, () => hasExited(child), 1500)) && isGone()) return
  signal(child, escaped, "SIGTERM")
  if (yield* waitFor(child, isGone, 1500)) return
  signal(child, escaped, "SIGKILL")
  if (yield* waitFor(child, isGone, 500)) return
  yield* Effect.logWarning(`Process ${child.pid} or one of its descendants survives SIGKILL`)
})

/**
 * Waits until `condition` holds: for the child's own exit as an event, for its descendants by looking every 10 ms.
 */
const waitFor = (child: ChildProcess, condition: () => boolean, millis: number): Effect.Effect<boolean> =>
  Effect.suspend(() => condition() ? Effect.void : wait(child, condition)).pipe(
    Effect.timeoutOption(millis),
    Effect.map((done) => done._tag === "Some")
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

const signal = (child: ChildProcess, escaped: ReadonlyArray<Descendant>, name: "SIGTERM" | "SIGKILL"): void => {
  if (isWindows) {
    // Windows has no groups and no SIGTERM: the tree is killed by the system's own tool
    spawn("taskkill", ["/pid", String(child.pid), "/t", "/f"], { stdio: "ignore" }).once(
      "error",
      () => child.kill(name)
    )
    return
  }
  if (groupLives(child)) kill(-child.pid!, name)
  for (const one of escaped) if (isRunning(one)) kill(one.pid, name)
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

interface Descendant {
  readonly pid: number
  /** When it was started, in the kernel's ticks: a pid alone may be another process by now. */
  readonly startTime: string
}

const descendants = (root: number): ReadonlyArray<Descendant> => {
  const found: Array<Descendant> = []
  const pending = [root]
  for (const parent of pending) {
    for (const pid of childrenOf(parent)) {
      const stat = statOf(pid)
      if (stat === undefined) continue
      found.push({ pid, startTime: stat.startTime })
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

const isRunning = ({ pid, startTime }: Descendant): boolean => statOf(pid)?.startTime === startTime

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
  if (process.platform !== "linux") return true
  // They may all be zombies
  return readdirSync("/proc").some((name) => /^\d+$/.test(name) && statOf(Number(name))?.group === group)
}

// -----------------------------------------------------------------------------
// The end of this process
// -----------------------------------------------------------------------------

const live = new Set<ChildProcess>()

const killAll = () => {
  for (const child of live) signal(child, [], "SIGKILL")
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
