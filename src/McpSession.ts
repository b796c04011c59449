export interface McpSession {
  readonly client: unknown
}
export class McpSessionError extends Error {
  readonly _tag = "McpSessionError"
}
