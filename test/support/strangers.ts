/**
 * Who is no node, and talks to one.
 */
import * as Effect from "effect/Effect"
import type { Socket } from "node:net"
import { connect, type TLSSocket } from "node:tls"

/** Asks as a node does that has a link. */
export const ping = (socket: Socket): void => void socket.write("{\"_tag\":\"Ping\"}\n")

/** All that a node says before it hangs up, and whatever is written to it until then. */
export const heard = (socket: Socket, words: (socket: Socket) => void): Effect.Effect<string> =>
  Effect.callback<string>((resume) => {
    let said = ""
    socket.on("data", (data) => said += String(data))
    socket.on("error", () => undefined)
    socket.on("close", () => resume(Effect.succeed(said)))
    words(socket)
    return Effect.sync(() => socket.destroy())
  })

/** With a shared secret as nodes have one, and it is not theirs. */
export const withAnotherSecret = (port: number): TLSSocket =>
  connect({
    port,
    host: "127.0.0.1",
    ciphers: "ECDHE-PSK-CHACHA20-POLY1305",
    maxVersion: "TLSv1.2",
    pskCallback: () => ({ psk: Buffer.alloc(32, 1), identity: "effect-mcp-sessions" }),
    checkServerIdentity: () => undefined
  })
