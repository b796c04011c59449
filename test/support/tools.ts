/**
 * Calls of tools whose answer is a text.
 */
import type { CallToolResult } from "@modelcontextprotocol/sdk/types.js"
import type { McpSessionError } from "effect-mcp-sessions"
import * as Effect from "effect/Effect"

export const textOf = ({ content: [block] }: CallToolResult): string => block?.type === "text" ? block.text : ""

interface Callable {
  readonly callTool: (
    params: { readonly name: string; readonly arguments: Record<string, unknown> }
  ) => Effect.Effect<CallToolResult, McpSessionError>
}

export const call = (session: Callable, name: string, args: Record<string, unknown> = {}) =>
  Effect.map(session.callTool({ name, arguments: args }), textOf)
