/**
 * Which processes are alive, as Linux's /proc tells it. A zombie counts as gone: it has exited, and what remains of it
 * is its parent's to collect.
 */
import * as Effect from "effect/Effect"
import { readdirSync, readFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"

interface ProcessInfo {
  readonly pid: number
  readonly parent: number
  readonly group: number
}

const read = (pid: number): ProcessInfo | undefined => {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8")
  } catch {
    return undefined
  }
  // proc(5): the second field is the command in parentheses, and may itself have spaces and parentheses in it.
  const [state, parent, group] = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  return state === "Z" || state === "X" ? undefined : { pid, parent: Number(parent), group: Number(group) }
}

const all = (): ReadonlyArray<ProcessInfo> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((name) => read(Number(name)) ?? [])

export const isAlive = (pid: number): boolean => read(pid) !== undefined

/** The pids of the process group `group` that are alive. */
export const inGroup = (group: number): ReadonlyArray<number> =>
  all().filter((info) => info.group === group).map((info) => info.pid)

/**
 * The living children of `pid`, their children, and so on; of this very process by default. Once a process is gone its
 * children belong to somebody else: take the list while `pid` lives.
 */
export const descendants = (pid: number = process.pid): ReadonlyArray<number> => {
  const processes = all()
  const found = [pid]
  for (const parent of found) {
    for (const info of processes) {
      if (info.parent === parent) found.push(info.pid)
    }
  }
  return found.slice(1)
}

/**
 * Waits until none of `pids` is alive, and gives those that still are after `within` milliseconds of real time (5
 * seconds by default), whatever clock the test runs on.
 */
export const survivors = Effect.fnUntraced(function*(pids: ReadonlyArray<number>, within: number = 5_000) {
  const deadline = performance.now() + within
  let alive = pids.filter(isAlive)
  while (alive.length > 0 && performance.now() < deadline) {
    yield* Effect.promise(() => sleep(10))
    alive = alive.filter(isAlive)
  }
  return alive
})
