/**
 * Long texts, which are made bytes piece by piece as a client takes them: the more bytes there are outside of V8's
 * heap, the sooner it collects its garbage, and all requests wait for that.
 */
import * as Stream from "effect/Stream"

/** How much is made bytes at once: characters. */
export const most = 64 * 1024

/** The first piece of what is said in parts, without half of a character at its end, and the rest of it. */
export const cut = (
  parts: ReadonlyArray<string>
): { readonly piece: string; readonly rest: ReadonlyArray<string> } => {
  let piece = ""
  for (const [i, part] of parts.entries()) {
    const room = most - piece.length
    if (part.length > room) {
      const end = /[\uD800-\uDBFF]/.test(part.charAt(room - 1)) ? room - 1 : room
      return { piece: piece + part.slice(0, end), rest: [part.slice(end), ...parts.slice(i + 1)] }
    }
    piece += part
  }
  return { piece, rest: [] }
}

export const encode = (piece: string): Uint8Array => encoder.encode(piece)

const encoder = new TextEncoder()

/** One at a time. */
const stream = (pieces: () => Iterator<Uint8Array>): Stream.Stream<Uint8Array> =>
  Stream.fromIterable({ [Symbol.iterator]: pieces }, { chunkSize: 1 })

export const ofText = (text: string): Stream.Stream<Uint8Array> =>
  stream(function*() {
    for (let left: ReadonlyArray<string> = [text]; left.length > 0;) {
      const { piece, rest } = cut(left)
      left = rest
      yield encode(piece)
    }
  })

export const ofBytes = (bytes: Uint8Array): Stream.Stream<Uint8Array> =>
  stream(function*() {
    for (let at = 0; at < bytes.length; at += most) yield bytes.subarray(at, at + most)
  })
