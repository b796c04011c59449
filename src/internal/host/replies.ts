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

/** Of JSON alone, and what that is written as. */
export interface Said {
  readonly message: Reply
  readonly text: string
}

/** Throws if it is none. */
export const jsonOf = (message: JSONRPCMessage): string => {
  const text: string | undefined = JSON.stringify(message)
  if (text === undefined) throw new TypeError("A message is no JSON")
  return text
}

/**
 * Throws if it is no JSON, or no response to the request by the SDK's schemas: its transport would say nothing then.
 */
export const read = (given: JSONRPCMessage, id: RequestId): Said => {
  const text = jsonOf(given)
  const message: unknown = JSON.parse(text)
  if ((isJSONRPCResultResponse(message) || isJSONRPCErrorResponse(message)) && message.id === id) {
    return { message: message as Reply, text }
  }
  throw new TypeError(`The response to the request with the id ${String(id)} is neither a result nor an error of it`)
}
