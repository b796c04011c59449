/**
 * After each test file: no process that descends from this one, and no server, socket, pipe or child of Node's that was
 * not there before the file.
 *
 * What counts is what would keep a program from exiting, so an idle keep-alive connection of the global fetch does not:
 * its client has unreferenced it, until the next request. One with a request or a stream under way counts, and so does
 * the end that a server in this process has of any connection.
 */
import { readFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { afterAll } from "vitest"
import { descendants } from "./processes.ts"

const within = 5_000

const resources = (): ReadonlyArray<string> =>
  process.getActiveResourcesInfo().filter((name) => /^(?:TCPSocket|TCPServer|Process|Pipe)Wrap$/.test(name))

// vitest's own: the channel to its main process, and stdio, of which Node makes each when it is first asked for
void [process.stdin, process.stdout, process.stderr]
const baseline = resources()

const resourcesLeft = (): ReadonlyArray<string> => {
  const left = [...resources()]
  for (const name of baseline) {
    const index = left.indexOf(name)
    if (index !== -1) left.splice(index, 1)
  }
  return left
}

// Elsewhere there is no /proc, and children are known by their ProcessWrap alone
const processesLeft = (): ReadonlyArray<number> => process.platform === "linux" ? descendants() : []

const commandOf = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim()
  } catch {
    return "(gone meanwhile)"
  }
}

interface Endpoint {
  readonly ip4?: string
  readonly ip6?: string
  readonly port: number
}

interface Handle {
  readonly type: string
  readonly is_active: boolean
  readonly is_referenced: boolean
  readonly localEndpoint?: Endpoint | null
  readonly remoteEndpoint?: Endpoint | null
}

const address = (endpoint: Endpoint) => `${endpoint.ip4 ?? endpoint.ip6}:${endpoint.port}`

/** The TCP handles by their addresses, as Node's diagnostic report has them. */
const addresses = (): ReadonlyArray<string> => {
  const { libuv } = process.report.getReport() as { readonly libuv: ReadonlyArray<Handle> }
  return libuv.flatMap(({ is_active, is_referenced, localEndpoint, remoteEndpoint, type }) =>
    type !== "tcp" || !is_active || !is_referenced || !localEndpoint ?
      [] :
      remoteEndpoint ?
      [`connection from ${address(localEndpoint)} to ${address(remoteEndpoint)}`] :
      [`server at ${address(localEndpoint)}`]
  )
}

interface Left {
  readonly processes: ReadonlyArray<number>
  readonly left: ReadonlyArray<string>
}

const whatIsLeft = async (deadline: number): Promise<Left> => {
  const processes = processesLeft()
  const left = resourcesLeft()
  if (processes.length + left.length === 0 || performance.now() >= deadline) return { processes, left }
  await sleep(10)
  return whatIsLeft(deadline)
}

afterAll(async () => {
  const { left, processes } = await whatIsLeft(performance.now() + within)
  if (processes.length + left.length === 0) return
  throw new Error([
    `left behind, ${within} ms after the last test of the file:`,
    ...processes.map((pid) => `process ${pid}: ${commandOf(pid)}`),
    ...left,
    ...(left.some((name) => name.startsWith("TCP")) ? addresses() : [])
  ].join("\n  "))
}, 2 * within)
