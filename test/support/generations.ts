/**
 * The connectors of both SDK generations, behind the type that they have in common.
 */
import type { Client as ClientV2 } from "@modelcontextprotocol/client"
import type { Client as ClientV1 } from "@modelcontextprotocol/sdk/client/index.js"
import type { HttpOptions, Only, Services, StdioOptions } from "effect-mcp-sessions/Connector"
import type { Identity } from "effect-mcp-sessions/Identity"
import * as McpConnector from "effect-mcp-sessions/McpConnector"
import * as McpConnectorV2 from "effect-mcp-sessions/McpConnectorV2"
import type { McpSession, McpSessionError } from "effect-mcp-sessions/McpSession"
import type { SessionHandle } from "effect-mcp-sessions/SessionPool"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

export type AnySession = McpSession<ClientV1 | ClientV2>

export type AnyConnector<R = never> = (
  identity: Identity,
  handle: SessionHandle
) => Effect.Effect<AnySession, McpSessionError, Scope.Scope | R>

export interface Generation {
  readonly stdio: <O extends StdioOptions<unknown>>(options: Only<O, StdioOptions>) => AnyConnector<Services<O>>
  readonly http: <O extends HttpOptions<unknown>>(options: Only<O, HttpOptions>) => AnyConnector<Services<O>>
  readonly sse: <O extends HttpOptions<unknown>>(options: Only<O, HttpOptions>) => AnyConnector<Services<O>>
}

export const generations: ReadonlyArray<readonly [sdk: string, connector: Generation]> = [
  ["@modelcontextprotocol/sdk", McpConnector],
  ["@modelcontextprotocol/client", McpConnectorV2]
]
