/**
 * An MCP server over stdio of the older kind, written by hand, that knows `initialize` and `ping` and does one of two
 * things when it is asked anything else before that: it exits (`node touchy.mjs exit`), or says nothing
 * (`node touchy.mjs mute`). Appends its pid to PID_FILE.
 */
import { appendFileSync } from "node:fs"
import { createInterface } from "node:readline"

const [, , manner] = process.argv
appendFileSync(process.env.PID_FILE, `${process.pid}\n`)

let initialized = false
const answer = (id, result) => console.log(JSON.stringify({ jsonrpc: "2.0", id, result }))

for await (const line of createInterface({ input: process.stdin })) {
  const { id, method, params } = JSON.parse(line)
  if (method === "initialize") {
    initialized = true
    answer(id, {
      protocolVersion: params.protocolVersion,
      capabilities: {},
      serverInfo: { name: "touchy", version: "1.0.0" }
    })
  } else if (method === "ping") answer(id, {})
  else if (!initialized && manner === "exit") process.exit(1)
}
