import type { Server } from "@modelcontextprotocol/sdk/server/index.js"
import type { Transport } from "@modelcontextprotocol/sdk/shared/transport.js"
import type { CallToolResult, IsomorphicHeaders } from "@modelcontextprotocol/sdk/types.js"

/**
 * Of the calls to `slow`: how many came, were answered, and were cancelled before that, so that the first is the sum of
 * the others once none runs. And how many cancels there were of anything else.
 */
export interface Calls {
  started: number
  answered: number
  cancelled: number
  strayCancels: number
}

export interface Tool {
  readonly inputSchema?: { readonly type: "object"; readonly properties: Record<string, unknown> }
  readonly run: (
    args: Record<string, unknown>,
    extra: {
      readonly server: Server
      readonly signal: AbortSignal
      readonly requestInfo?: { readonly headers: IsomorphicHeaders }
    }
  ) => CallToolResult | Promise<CallToolResult>
}

export declare const text: (value: unknown) => CallToolResult

export declare const makeCalls: () => Calls

export declare const makeServer: (
  calls: Calls,
  extraTools?: Record<string, Tool>
) => { readonly server: Server; readonly watch: <T extends Transport>(transport: T) => T }
