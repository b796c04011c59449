/**
 * Requests of any bytes, which no HTTP client would send.
 */
import { once } from "node:events"
import { connect } from "node:net"
import * as Effect from "effect/Effect"
import type { Endpoint } from "./mcpHttp.ts"

/** What a server says to a request of any bytes, before it hangs up or for as long as it takes to be clear. */
export const write = (endpoint: Endpoint, bytes: string | Buffer) =>
  Effect.promise(async () => {
    const { hostname, port } = new URL(endpoint.url)
    const peer = connect(Number(port), hostname)
    let said = ""
    peer.on("data", (data) => said += data.toString("latin1"))
    peer.on("error", () => undefined)
    peer.write(bytes)
    await Promise.race([once(peer, "close"), new Promise((resolve) => setTimeout(resolve, 1_000))])
    peer.destroy()
    return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(said)?.[1] ?? 0), body: said.split("\r\n\r\n")[1] ?? "" }
  })

export const head = (lines: ReadonlyArray<string>) =>
  Buffer.from(
    ["GET /mcp HTTP/1.1", "Host: localhost", "Connection: close", "Accept: text/event-stream", ...lines, "", ""].join(
      "\r\n"
    ),
    "latin1"
  )
