/**
 * Requests of any bytes, which no HTTP client would send.
 */
import * as Effect from "effect/Effect"
import { connect } from "node:net"
import type { Endpoint } from "./mcpHttp.ts"

/**
 * What a server says to a request of any bytes, until it hangs up or has been silent after its first words; nothing if
 * it says none within `patience` milliseconds.
 */
export const write = (endpoint: Endpoint, bytes: string | Buffer, patience = 15_000) =>
  Effect.promise(async () => {
    const { hostname, port } = new URL(endpoint.url)
    const peer = connect(Number(port), hostname)
    let said = ""
    peer.on("data", (data) => {
      said += data.toString("latin1")
      peer.setTimeout(1_000)
    })
    peer.on("error", () => undefined)
    peer.setTimeout(patience, () => void peer.destroy())
    peer.write(bytes)
    await new Promise((resolve) => peer.once("close", resolve))
    return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(said)?.[1] ?? 0), body: said.split("\r\n\r\n")[1] ?? "" }
  })

export const head = (lines: ReadonlyArray<string>) =>
  Buffer.from(
    ["GET /mcp HTTP/1.1", "Host: localhost", "Connection: close", "Accept: text/event-stream", ...lines, "", ""].join(
      "\r\n"
    ),
    "latin1"
  )
