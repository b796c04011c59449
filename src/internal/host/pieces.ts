/**
 * Long texts, which are made bytes piece by piece as a client takes them: the more bytes there are outside of V8's
 * heap, the sooner it collects its garbage, and all requests wait for that.
 */
import * as Stream from "effect/Stream"

/** How much is made bytes at once: characters. */
export const most = 64 * 1024

/** What is said in parts, in pieces of so many characters, without half of one at the end. */
export const of = function*(
  parts: Iterable<string>,
  mostNow: () => number = () => most
): Generator<string, undefined> {
  let piece = ""
  let room = mostNow()
  for (const part of parts) {
    let from = 0
    while (part.length - from > room) {
      const full = from + room
      const end = room > 0 && /[\uD800-\uDBFF]/.test(part.charAt(full - 1)) ? full - 1 : full
      yield piece + part.slice(from, end)
      piece = ""
      room = mostNow()
      from = end
    }
    piece += part.slice(from)
    room -= part.length - from
  }
  if (piece !== "") yield piece
}

export const encode = (piece: string): Uint8Array => encoder.encode(piece)

const encoder = new TextEncoder()

/** One at a time. */
const stream = (pieces: () => Iterator<Uint8Array>): Stream.Stream<Uint8Array> =>
  Stream.fromIterable({ [Symbol.iterator]: pieces }, { chunkSize: 1 })

export const ofText = (text: string): Stream.Stream<Uint8Array> =>
  stream(function*() {
    for (const piece of of([text])) yield encode(piece)
  })

export const ofBytes = (bytes: Uint8Array): Stream.Stream<Uint8Array> =>
  stream(function*() {
    for (let at = 0; at < bytes.length; at += most) yield bytes.subarray(at, at + most)
  })
