/**
 * The responses that a server gives, as they are said: read once, as JSON. A server may change afterwards what it has
 * given, or give what says something else each time that it is read.
 */
import {
  isJSONRPCErrorResponse,
  isJSONRPCResultResponse,
  type JSONRPCMessage,
  type RequestId
} from "@modelcontextprotocol/sdk/types.js"

export type Reply = JSONRPCMessage & { readonly id: RequestId }

export const isReply = (message: JSONRPCMessage): message is Reply =>
  !("method" in message && message.method !== undefined) && "id" in message && message.id !== undefined

/** A response that can be said. */
export interface Said {
  readonly id: RequestId
  /** What is said, as JSON. */
  readonly text: string
  /** The response without what nobody has to look into: most of a result. */
  readonly gist: { readonly id: RequestId }
}

/** Throws if it is none. */
export const jsonOf = (message: unknown): string => {
  const text: string | undefined = JSON.stringify(message)
  if (text === undefined) throw new TypeError("A message is no JSON")
  return text
}

/** All of it, read back. */
export const messageOf = ({ text }: Said): JSONRPCMessage => JSON.parse(text) as JSONRPCMessage

/**
 * Throws if it is no JSON, or no response to the request by the SDK's schemas: its transport would say nothing then.
 */
export const read = (given: JSONRPCMessage, id: RequestId): Said => {
  // To write a big result takes long enough: it is read back only if anything in it can be wrong, or has to be known
  const isPlain = hasPlainEnvelope(given)
  const head = isPlain ? `{"jsonrpc":"2.0","id":${jsonOf(id)},"result":` : ""
  // The whole is looked through, not the result alone: then V8 makes it one text once
  const text = isPlain ? `${head}${jsonOf(given.result)}}` : jsonOf(given)
  if (isPlain && !/"(?:_meta|isError)":/.test(text) && text[head.length] === "{") return { id, text, gist: { id } }
  const message: unknown = JSON.parse(text)
  if ((isJSONRPCResultResponse(message) || isJSONRPCErrorResponse(message)) && message.id === id) {
    return { id, text, gist: message as Reply }
  }
  throw new TypeError(`The response to the request with the id ${String(id)} is neither a result nor an error of it`)
}

/** Whether a response is a result, and says nothing besides: no schema knows more of it than that it is an object. */
const hasPlainEnvelope = (given: JSONRPCMessage): given is JSONRPCMessage & { readonly result: unknown } =>
  !("toJSON" in given) && "jsonrpc" in given && given.jsonrpc === "2.0" &&
  Object.keys(given).every((name) => name === "jsonrpc" || name === "id" || name === "result") && "result" in given
