/**
 * What is said in a stream of events.
 */
import type { RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Option from "effect/Option"
import * as Requests from "./requests.ts"

/** The event that says a message, which is given as JSON, as the SDK's transport writes it. */
export const ofMessage = (json: string, id?: string): string =>
  id === undefined ? `event: message\ndata: ${json}\n\n` : `event: message\nid: ${id}\ndata: ${json}\n\n`

/**
 * The event that a stream begins with, so that a client can come back for it: it says nothing but its id, and after how
 * many milliseconds that may be tried.
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#sending-messages-to-the-server
 */
export const ofBeginning = (id: string, retry: number | undefined): string =>
  retry === undefined ? `id: ${id}\ndata: \n\n` : `id: ${id}\nretry: ${retry}\ndata: \n\n`

export const encode = (message: unknown): Uint8Array => new TextEncoder().encode(`data: ${JSON.stringify(message)}\n\n`)

const parseJson = Option.liftThrowable((text: string): unknown => JSON.parse(text))

/** Passes on what a stream of events says, and tells of the responses in it. */
export const watching = (onResponse: (response: { readonly id: RequestId }) => void) => {
  const decoder = new TextDecoder()
  let line = ""
  return (bytes: Uint8Array): Uint8Array => {
    const lines = decoder.decode(bytes, { stream: true }).split("\n")
    lines[0] = line + lines[0]!
    line = lines.pop()!
    for (const whole of lines) {
      if (!whole.startsWith("data:")) continue
      const message = Option.getOrUndefined(parseJson(whole.slice(5)))
      for (const one of Array.isArray(message) ? message : [message]) {
        if (Requests.isResponse(one)) onResponse(one)
      }
    }
    return bytes
  }
}
