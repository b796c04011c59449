/**
 * Nodes of a cluster, each a process with an HTTP server of its own: all on one port, each at its own address, as pods
 * are.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { connect } from "node:net"
import { freePorts, type NodeProcess, quick, type StartOptions, startProcess } from "./clusterProcesses.ts"
import type { Endpoint } from "./requests.ts"

export interface RoutedNode extends NodeProcess, Endpoint {
  readonly host: string
  readonly httpPort: number
}

export interface Nodes {
  /** One more, at the address of an earlier one if that is given. */
  readonly start: (storage: string, again?: RoutedNode) => Effect.Effect<RoutedNode, string, Scope.Scope>
}

export const makeNodes = (env: StartOptions["env"] = quick): Effect.Effect<Nodes> =>
  Effect.map(freePorts(2), ([port, httpPort]) => {
    let started = 1
    return {
      start: (storage, again) =>
        Effect.suspend(() => {
          const host = again?.host ?? `127.0.0.${++started}`
          return Effect.map(
            startProcess({
              storage,
              host,
              port: port!,
              env: { ...env, MCP_CLUSTER_LISTEN_HOST: host, HTTP_PORT: String(httpPort) }
            }),
            (node): RoutedNode => ({
              ...node,
              host,
              httpPort: httpPort!,
              url: `http://${host}:${httpPort}/mcp`,
              fetch: (url, init) => fetch(url, init)
            })
          )
        })
    }
  })

/** Everything that a node says to a request, but for the date. */
export const raw = (
  { host, httpPort }: RoutedNode,
  method: string,
  headers: Readonly<Record<string, string>>,
  body: string
) =>
  Effect.promise(async () => {
    const peer = connect(httpPort, host)
    peer.on("error", () => undefined)
    const all = { host: "localhost", connection: "close", ...headers, "content-length": String(body.length) }
    const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`)
    peer.write([`${method} /mcp HTTP/1.1`, ...lines, "", body].join("\r\n"))
    let said = ""
    peer.on("data", (data) => said += data.toString("latin1"))
    await new Promise((resolve) => peer.once("close", resolve))
    return said.replace(/\r\ndate: [^\r]*/i, "")
  })
