import type { McpServer } from "@modelcontextprotocol/server"

export const calls: { started: number; cancelled: number }

export const makeServer: () => McpServer
