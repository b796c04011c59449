/**
 * The MCP server that every fixture serves: well-behaved tools, and a count of what became of the calls.
 *
 * It uses the SDK's low-level `Server`: `McpServer` wants zod schemas, and zod is no dependency of this package.
 */
import { setInterval as ticks, setTimeout as sleep } from "node:timers/promises"
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import {
  CallToolRequestSchema,
  ErrorCode,
  ListToolsRequestSchema,
  McpError
} from "@modelcontextprotocol/sdk/types.js"
import { AjvJsonSchemaValidator } from "@modelcontextprotocol/sdk/validation/ajv"

export const text = (value) => ({ content: [{ type: "text", text: String(value) }] })

const schema = (properties, required = []) => ({ type: "object", properties, required })

const tools = (calls) => ({
  echo: {
    inputSchema: schema({ message: { type: "string" } }, ["message"]),
    run: ({ message }) => text(message)
  },
  fail: {
    inputSchema: schema({}),
    run: () => ({ ...text("this tool always fails"), isError: true })
  },
  env: {
    inputSchema: schema({ name: { type: "string" } }, ["name"]),
    run: ({ name }) => text(process.env[name] ?? "")
  },
  // Waits `ms`, with a progress notification at each tenth of it if they are asked for: nine of them, because the SDK's
  // client loses one that arrives in the same chunk as the answer.
  slow: {
    inputSchema: schema({ ms: { type: "number" } }, ["ms"]),
    run: async ({ ms }, extra) => {
      if (extra.progressToken === undefined) {
        await sleep(ms, undefined, { signal: extra.signal })
      } else {
        let progress = 0
        for await (const _ of ticks(ms / 10, undefined, { signal: extra.signal })) {
          if (++progress === 10) break
          void extra.sendNotification({
            method: "notifications/progress",
            params: { progressToken: extra.progressToken, progress, total: 10 }
          })
        }
      }
      calls.answered++
      return text("done")
    }
  },
  // The trace that its request belongs to, as the message says and as the HTTP request does
  trace: {
    inputSchema: schema({}),
    run: (_, { _meta, requestInfo }) =>
      text(JSON.stringify({ meta: _meta?.traceparent, header: requestInfo?.headers.traceparent }))
  },
  cancelled: {
    inputSchema: schema({}),
    run: () => text(calls.cancelled)
  },
  calls: {
    inputSchema: schema({}),
    run: () => text(JSON.stringify(calls))
  },
  roots: {
    inputSchema: schema({}),
    run: async (_, { server }) => text((await server.listRoots()).roots.map((root) => root.uri).join(" "))
  },
  sample: {
    inputSchema: schema({ prompt: { type: "string" } }, ["prompt"]),
    run: async ({ prompt }, { server }) => {
      const message = await server.createMessage({
        messages: [{ role: "user", content: { type: "text", text: prompt } }],
        maxTokens: 10
      })
      return text(message.content.text)
    }
  },
  elicit: {
    inputSchema: schema({ message: { type: "string" } }, ["message"]),
    run: async ({ message }, { server }) => {
      const answer = await server.elicitInput({
        message,
        requestedSchema: { type: "object", properties: { name: { type: "string" } }, required: ["name"] }
      })
      return text(JSON.stringify(answer))
    }
  },
  consent: {
    inputSchema: schema({ url: { type: "string" } }, ["url"]),
    run: async ({ url }, { server }) => {
      const answer = await server.elicitInput({ mode: "url", elicitationId: "1", message: "Open this", url })
      await server.createElicitationCompletionNotifier("1")()
      return text(JSON.stringify(answer))
    }
  }
})

/**
 * Of the calls to `slow`: how many came, were answered, and were cancelled before that, so that the first is the sum of
 * the others once none runs. And how many cancels there were of anything else.
 */
export const makeCalls = () => ({ started: 0, answered: 0, cancelled: 0, strayCancels: 0 })

/**
 * A server with the tools above and `extraTools`. `grow` adds a tool and says so with `tools/list_changed`.
 *
 * Connect it to `watch(transport)`, which counts the calls and the cancels that arrive.
 */
export const makeServer = (calls, extraTools = {}) => {
  const server = new Server(
    { name: "misbehaving", version: "1.0.0" },
    {
      capabilities: { tools: { listChanged: true } },
      instructions: "Do not trust this server.",
      // One that is made when it is needed: that takes a fifth of the time to start
      jsonSchemaValidator: { getValidator: (asked) => new AjvJsonSchemaValidator().getValidator(asked) }
    }
  )
  const running = new Set()
  const all = {
    ...tools(calls),
    grow: {
      inputSchema: schema({ name: { type: "string" } }, ["name"]),
      run: async ({ name }) => {
        all[name] = { inputSchema: schema({}), run: () => text(name) }
        await server.sendToolListChanged()
        return text(name)
      }
    },
    ...extraTools
  }
  server.setRequestHandler(ListToolsRequestSchema, () => ({
    tools: Object.entries(all).map(([name, tool]) => ({ name, inputSchema: tool.inputSchema ?? schema({}) }))
  }))
  server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => {
    const { _meta: meta, arguments: args = {}, name } = params
    const tool = all[name]
    if (tool === undefined) throw new McpError(ErrorCode.InvalidParams, `Tool ${name} not found`)
    try {
      return await tool.run(args, { ...extra, server, progressToken: meta?.progressToken })
    } finally {
      running.delete(extra.requestId)
    }
  })
  // The SDK starts a handler some microtasks after its request, even one that was cancelled in between: it is on
  // arrival that a call counts.
  const watch = (transport) =>
    Object.assign(transport, {
      onmessage({ id, method, params }) {
        if (method === "tools/call" && params?.name === "slow") {
          running.add(id)
          calls.started++
        } else if (method === "notifications/cancelled") {
          if (running.delete(params?.requestId)) calls.cancelled++
          else calls.strayCancels++
        }
      }
    })
  return { server, watch }
}
