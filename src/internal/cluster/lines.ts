/**
 * Messages as lines of JSON. As Effect's own, which reads a message of 11 MB, that comes in pieces of 16 kB as TLS has
 * them, in 12 seconds: it looks through the whole of it for each piece. This takes time in proportion.
 */
import * as RpcSerialization from "effect/rpc/RpcSerialization"

/** A result of a tool may have files in it; and a peer that never ends its line must not have all memory. */
const maxLineBytes = 64 * 1024 * 1024

const newline = 10

/**
 * The end of a link: after a line that is too long, or no JSON, nothing can be read any more. The engine hangs up for
 * this error alone, and answers each other one with a word, as long as a peer goes on.
 */
const unreadable = () => new RpcSerialization.MaxBufferSizeExceeded({ maxBufferSize: maxLineBytes })

const parse = (line: string): unknown => {
  try {
    return JSON.parse(line)
  } catch {
    throw unreadable()
  }
}

/** A decoder throws what is no JSON, and a line that is too long. */
export const serialization = RpcSerialization.RpcSerialization.of({
  ...RpcSerialization.ndjson,
  makeUnsafe: () => {
    const { encode } = RpcSerialization.ndjson.makeUnsafe()
    /** The beginning of a line whose end has not come yet. */
    let pieces: Array<Buffer> = []
    let bytes = 0
    return {
      encode,
      decode: (data) => {
        const chunk = bufferOf(data)
        // One message and all of it, as nearly all of them come
        const isOne = bytes === 0 && chunk.length > 1 && chunk.indexOf(newline) === chunk.length - 1
        if (isOne) return [parse(chunk.toString())]
        const end = chunk.lastIndexOf(newline)
        bytes = end === -1 ? bytes + chunk.length : chunk.length - end - 1
        if (bytes > maxLineBytes) {
          pieces = []
          throw unreadable()
        }
        if (end === -1) {
          pieces.push(chunk)
          return []
        }
        const whole = chunk.subarray(0, end)
        const lines = pieces.length === 0 ? whole : Buffer.concat([...pieces, whole])
        pieces = bytes === 0 ? [] : [chunk.subarray(end + 1)]
        return lines.toString().split("\n").flatMap((line) => line === "" ? [] : [parse(line)])
      }
    }
  }
})

const bufferOf = (data: string | Uint8Array): Buffer =>
  typeof data === "string"
    ? Buffer.from(data)
    : Buffer.isBuffer(data)
    ? data
    : Buffer.from(data.buffer, data.byteOffset, data.byteLength)
