export * from "./Identity.ts"
export * from "./McpServers.ts"
export * from "./SessionPool.ts"
