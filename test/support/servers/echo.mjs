/**
 * An MCP server over stdio without the SDK, for tests that start many: it knows `initialize`, `ping` and the tool
 * `echo`.
 */
import { createInterface } from "node:readline"

const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {} },
    serverInfo: { name: "echo", version: "1.0.0" }
  }),
  ping: () => ({}),
  "tools/call": ({ arguments: { message } }) => ({ content: [{ type: "text", text: message }] })
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, method, params } = JSON.parse(line)
  if (id === undefined) continue
  const answer = answers[method]
  const outcome = answer === undefined ?
    { error: { code: -32_601, message: "Method not found" } } :
    { result: answer(params) }
  process.stdout.write(`${JSON.stringify({ jsonrpc: "2.0", id, ...outcome })}\n`)
}
