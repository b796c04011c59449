/**
 * What a child needs of the SDK to be a server: `stdio.mjs` loads it when it gets that far.
 */
export { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js"
export { makeCalls, makeServer, text } from "./tools.mjs"
