/**
 * What is said in a stream of events.
 */
import type { RequestId } from "@modelcontextprotocol/sdk/types.js"
import * as Option from "effect/Option"
import * as Requests from "./requests.ts"

/**
 * An event, in parts: in one text with what is about it a big message would be copied once more, and all requests wait
 * while V8 collects that.
 */
export type Event = ReadonlyArray<string>

export const bytesOf = (event: Event): number => event.reduce((sum, part) => sum + Buffer.byteLength(part), 0)

/** The event that says a message, which is given as JSON, as the SDK's transport writes it. */
export const ofMessage = (json: string, id?: string): Event => [
  id === undefined ? "event: message\ndata: " : `event: message\nid: ${id}\ndata: `,
  json,
  "\n\n"
]

/**
 * The event that a stream begins with, so that a client can come back for it: it says nothing but its id, and after how
 * many milliseconds that may be tried.
 * https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#sending-messages-to-the-server
 */
export const ofBeginning = (id: string, retry: number | undefined): Event => [
  retry === undefined ? `id: ${id}\ndata: \n\n` : `id: ${id}\nretry: ${retry}\ndata: \n\n`
]

export const encode = (message: unknown): Uint8Array => new TextEncoder().encode(`data: ${JSON.stringify(message)}\n\n`)

const parseJson = Option.liftThrowable((text: string): unknown => JSON.parse(text))

/**
 * How long a line may be that is looked into: it is kept until it has ended. As much as an answer that crosses between
 * nodes by `SessionCluster` may have by default.
 */
const longest = 16 * 1024 * 1024

/**
 * Passes on what a stream of events says, and tells of the responses in it. What is in a line that is too long to look
 * into is nobody's knowledge; that there was one is told when it has ended.
 */
export const watching = (
  onResponse: (response: { readonly id: RequestId }) => void,
  onUnread: () => void = () => {}
) => {
  const decoder = new TextDecoder()
  let line = ""
  let isTooLong = false
  const end = () => {
    if (isTooLong) return onUnread()
    if (!line.startsWith("data:")) return
    const message = Option.getOrUndefined(parseJson(line.slice(5)))
    for (const one of Array.isArray(message) ? message : [message]) {
      if (Requests.isResponse(one)) onResponse(one)
    }
  }
  return (bytes: Uint8Array): Uint8Array => {
    for (const [i, part] of decoder.decode(bytes, { stream: true }).split("\n").entries()) {
      if (i > 0) {
        end()
        line = ""
        isTooLong = false
      }
      isTooLong ||= line.length + part.length > longest
      line = isTooLong ? "" : line + part
    }
    return bytes
  }
}
