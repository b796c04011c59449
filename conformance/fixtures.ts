/**
 * The server that the scenarios of `@modelcontextprotocol/conformance` expect: each of them names the tools, resources
 * and prompts that it calls, and what they do.
 */
import { Server } from "@modelcontextprotocol/sdk/server/index.js"
import type { RequestHandlerExtra } from "@modelcontextprotocol/sdk/shared/protocol.js"
import {
  CallToolRequestSchema,
  type CallToolResult,
  CompleteRequestSchema,
  type ContentBlock,
  CreateMessageResultSchema,
  type ElicitRequestFormParams,
  ElicitResultSchema,
  ErrorCode,
  GetPromptRequestSchema,
  isInitializeRequest,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListToolsRequestSchema,
  type LoggingLevel,
  McpError,
  type ProgressToken,
  type Prompt,
  type PromptMessage,
  ReadResourceRequestSchema,
  type ReadResourceResult,
  type ServerNotification,
  type ServerRequest,
  SetLevelRequestSchema,
  SubscribeRequestSchema,
  type Tool,
  UnsubscribeRequestSchema
} from "@modelcontextprotocol/sdk/types.js"
import type { ServerLike } from "effect-mcp-sessions/McpHttp"
import { setTimeout as sleep } from "node:timers/promises"

interface Call {
  readonly args: Readonly<Record<string, unknown>>
  readonly extra: RequestHandlerExtra<ServerRequest, ServerNotification>
  readonly progressToken: ProgressToken | undefined
  /** The least level of which the client wants to hear. */
  readonly least: LoggingLevel
}

interface ToolFixture {
  readonly description: string
  readonly inputSchema?: Tool["inputSchema"]
  readonly run: (call: Call) => ReadonlyArray<ContentBlock> | Promise<ReadonlyArray<ContentBlock>>
}

interface PromptFixture {
  readonly description: string
  readonly arguments?: NonNullable<Prompt["arguments"]>
  readonly get: (args: Readonly<Record<string, string>>) => ReadonlyArray<PromptMessage["content"]>
}

// A red pixel, and a sample of silence
const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
const wav = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="

const text = (value: string) => ({ type: "text" as const, text: value })
const image = { type: "image" as const, data: png, mimeType: "image/png" }
const embedded = (uri: string, mimeType: string, value: string) => ({
  type: "resource" as const,
  resource: { uri, mimeType, text: value }
})

const noArguments: Tool["inputSchema"] = { type: "object", properties: {} }

const oneArgument = (name: string, description: string): Tool["inputSchema"] => ({
  type: "object",
  properties: { [name]: { type: "string", description } },
  required: [name]
})

// -----------------------------------------------------------------------------
// Tools
// -----------------------------------------------------------------------------

// From the least severe on
const levels: ReadonlyArray<LoggingLevel> = [
  "debug",
  "info",
  "notice",
  "warning",
  "error",
  "critical",
  "alert",
  "emergency"
]

const log = async ({ extra, least }: Call, data: string) => {
  if (levels.indexOf("info") < levels.indexOf(least)) return
  await extra.sendNotification({ method: "notifications/message", params: { level: "info", data } })
}

const report = async ({ extra, progressToken }: Call, progress: number) => {
  if (progressToken === undefined) return
  await extra.sendNotification({ method: "notifications/progress", params: { progressToken, progress, total: 100 } })
}

const elicit = async ({ extra }: Call, params: ElicitRequestFormParams) => {
  const { action, content } = await extra.sendRequest({ method: "elicitation/create", params }, ElicitResultSchema)
  return [text(`Elicitation completed: action=${action}, content=${JSON.stringify(content ?? {})}`)]
}

const tools: Readonly<Record<string, ToolFixture>> = {
  test_simple_text: {
    description: "Returns text",
    run: () => [text("This is a simple text response for testing.")]
  },
  test_image_content: {
    description: "Returns an image",
    run: () => [image]
  },
  test_audio_content: {
    description: "Returns audio",
    run: () => [{ type: "audio", data: wav, mimeType: "audio/wav" }]
  },
  test_embedded_resource: {
    description: "Returns a resource",
    run: () => [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]
  },
  test_multiple_content_types: {
    description: "Returns text, an image and a resource",
    run: () => [
      text("Multiple content types test:"),
      image,
      embedded("test://mixed-content-resource", "application/json", JSON.stringify({ test: "data", value: 123 }))
    ]
  },
  test_tool_with_logging: {
    description: "Logs while it runs",
    run: async (call) => {
      await log(call, "Tool execution started")
      await sleep(50)
      await log(call, "Tool processing data")
      await sleep(50)
      await log(call, "Tool execution completed")
      return [text("Logged three times")]
    }
  },
  test_tool_with_progress: {
    description: "Reports progress while it runs",
    run: async (call) => {
      await report(call, 0)
      await sleep(50)
      await report(call, 50)
      await sleep(50)
      await report(call, 100)
      return [text("Came to 100 of 100")]
    }
  },
  test_error_handling: {
    description: "Fails",
    run: () => {
      throw new Error("This tool intentionally returns an error for testing")
    }
  },
  test_reconnection: {
    description: "Closes the stream of its call, and returns when the client had time to resume it",
    run: async ({ extra }) => {
      extra.closeSSEStream?.()
      await sleep(100)
      return [text("Returned after the stream was closed")]
    }
  },
  test_sampling: {
    description: "Asks the client's model",
    inputSchema: oneArgument("prompt", "The prompt to send to the model"),
    run: async ({ args, extra }) => {
      const { content } = await extra.sendRequest({
        method: "sampling/createMessage",
        params: { messages: [{ role: "user", content: text(String(args["prompt"])) }], maxTokens: 100 }
      }, CreateMessageResultSchema)
      return [text(`LLM response: ${content.type === "text" ? content.text : content.type}`)]
    }
  },
  test_elicitation: {
    description: "Asks the client's user",
    inputSchema: oneArgument("message", "The message to show the user"),
    run: (call) =>
      elicit(call, {
        message: String(call.args["message"]),
        requestedSchema: {
          type: "object",
          properties: {
            username: { type: "string", description: "User's response" },
            email: { type: "string", description: "User's email address" }
          },
          required: ["username", "email"]
        }
      })
  },
  test_elicitation_sep1034_defaults: {
    description: "Asks the client's user, with a default for each type",
    run: (call) =>
      elicit(call, {
        message: "Check the defaults",
        requestedSchema: {
          type: "object",
          properties: {
            name: { type: "string", default: "John Doe" },
            age: { type: "integer", default: 30 },
            score: { type: "number", default: 95.5 },
            status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
            verified: { type: "boolean", default: true }
          }
        }
      })
  },
  test_elicitation_sep1330_enums: {
    description: "Asks the client's user, with an enum of each kind",
    run: (call) =>
      elicit(call, {
        message: "Choose",
        requestedSchema: {
          type: "object",
          properties: {
            untitledSingle: { type: "string", enum: ["option1", "option2", "option3"] },
            titledSingle: {
              type: "string",
              oneOf: [
                { const: "value1", title: "First Option" },
                { const: "value2", title: "Second Option" },
                { const: "value3", title: "Third Option" }
              ]
            },
            legacyEnum: {
              type: "string",
              enum: ["opt1", "opt2", "opt3"],
              enumNames: ["Option One", "Option Two", "Option Three"]
            },
            untitledMulti: { type: "array", items: { type: "string", enum: ["option1", "option2", "option3"] } },
            titledMulti: {
              type: "array",
              items: {
                anyOf: [
                  { const: "value1", title: "First Choice" },
                  { const: "value2", title: "Second Choice" },
                  { const: "value3", title: "Third Choice" }
                ]
              }
            }
          }
        }
      })
  },
  json_schema_2020_12_tool: {
    description: "Has an input schema with the vocabulary of JSON Schema 2020-12",
    inputSchema: {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      type: "object",
      $defs: {
        address: {
          $anchor: "addressDef",
          type: "object",
          properties: { street: { type: "string" }, city: { type: "string" } }
        }
      },
      properties: {
        name: { type: "string" },
        address: { $ref: "#/$defs/address" },
        contactMethod: { type: "string", enum: ["phone", "email"] },
        phone: { type: "string" },
        email: { type: "string" }
      },
      allOf: [{ anyOf: [{ required: ["phone"] }, { required: ["email"] }] }],
      if: { properties: { contactMethod: { const: "phone" } }, required: ["contactMethod"] },
      // oxlint-disable-next-line unicorn/no-thenable -- JSON Schema's
      then: { required: ["phone"] },
      else: { required: ["email"] },
      additionalProperties: false
    },
    run: ({ args }) => [text(JSON.stringify(args))]
  }
}

// -----------------------------------------------------------------------------
// Resources
// -----------------------------------------------------------------------------

const resources = [
  {
    uri: "test://static-text",
    name: "static-text",
    description: "Text",
    mimeType: "text/plain",
    read: { text: "This is the content of the static text resource." }
  },
  {
    uri: "test://static-binary",
    name: "static-binary",
    description: "An image",
    mimeType: "image/png",
    read: { blob: png }
  },
  {
    uri: "test://watched-resource",
    name: "watched-resource",
    description: "To subscribe to",
    mimeType: "text/plain",
    read: { text: "Watched resource content" }
  }
]

const template = {
  uriTemplate: "test://template/{id}/data",
  name: "template",
  description: "Data by id",
  mimeType: "application/json"
}

const read = (uri: string): ReadResourceResult["contents"][number] => {
  const resource = resources.find((candidate) => candidate.uri === uri)
  if (resource !== undefined) return { uri, mimeType: resource.mimeType, ...resource.read }
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1]
  if (id === undefined) throw new McpError(-32002, "Resource not found", { uri })
  const data = { id, templateTest: true, data: `Data for ID: ${id}` }
  return { uri, mimeType: template.mimeType, text: JSON.stringify(data) }
}

// -----------------------------------------------------------------------------
// Prompts
// -----------------------------------------------------------------------------

const prompts: Readonly<Record<string, PromptFixture>> = {
  test_simple_prompt: {
    description: "Text",
    get: () => [text("This is a simple prompt for testing.")]
  },
  test_prompt_with_arguments: {
    description: "Text with the arguments in it",
    arguments: [
      { name: "arg1", description: "First test argument", required: true },
      { name: "arg2", description: "Second test argument", required: true }
    ],
    get: ({ arg1, arg2 }) => [text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)]
  },
  test_prompt_with_embedded_resource: {
    description: "A resource, and text",
    arguments: [{ name: "resourceUri", description: "URI of the resource to embed", required: true }],
    get: ({ resourceUri }) => [
      embedded(String(resourceUri), "text/plain", "Embedded resource content for testing."),
      text("Please process the embedded resource above.")
    ]
  },
  test_prompt_with_image: {
    description: "An image, and text",
    get: () => [image, text("Please analyze the image above.")]
  }
}

const completions = ["paris", "park", "party", "test"]

// -----------------------------------------------------------------------------
// The server
// -----------------------------------------------------------------------------

const unknown = (kind: string, name: string) => new McpError(ErrorCode.InvalidParams, `Unknown ${kind}: ${name}`)

/**
 * A new one, for one session.
 */
export const makeServer = (): Server => {
  const server = new Server({ name: "effect-mcp-sessions-conformance", version: "1.0.0" }, {
    capabilities: { completions: {}, logging: {}, prompts: {}, resources: { subscribe: true }, tools: {} }
  })
  const subscriptions = new Set<string>()
  let least: LoggingLevel = "debug"

  server.setRequestHandler(SetLevelRequestSchema, ({ params }) => {
    least = params.level
    return {}
  })
  server.setRequestHandler(CompleteRequestSchema, ({ params }) => ({
    completion: { values: completions.filter((value) => value.startsWith(params.argument.value)), hasMore: false }
  }))

  server.setRequestHandler(ListToolsRequestSchema, () => ({
    tools: Object.entries(tools).map(([name, { description, inputSchema = noArguments }]) => ({
      name,
      description,
      inputSchema
    }))
  }))
  server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra): Promise<CallToolResult> => {
    const tool = tools[params.name]
    if (tool === undefined) throw unknown("tool", params.name)
    const { _meta: meta, arguments: args = {} } = params
    try {
      return { content: [...await tool.run({ args, extra, progressToken: meta?.progressToken, least })] }
    } catch (error) {
      return { content: [text(error instanceof Error ? error.message : String(error))], isError: true }
    }
  })

  server.setRequestHandler(ListResourcesRequestSchema, () => ({
    resources: resources.map(({ description, mimeType, name, uri }) => ({ uri, name, description, mimeType }))
  }))
  server.setRequestHandler(ListResourceTemplatesRequestSchema, () => ({ resourceTemplates: [template] }))
  server.setRequestHandler(ReadResourceRequestSchema, ({ params }) => ({ contents: [read(params.uri)] }))
  server.setRequestHandler(SubscribeRequestSchema, ({ params }) => {
    subscriptions.add(params.uri)
    return {}
  })
  server.setRequestHandler(UnsubscribeRequestSchema, ({ params }) => {
    subscriptions.delete(params.uri)
    return {}
  })

  server.setRequestHandler(ListPromptsRequestSchema, () => ({
    prompts: Object.entries(prompts).map(([name, { arguments: args = [], description }]) => ({
      name,
      description,
      arguments: [...args]
    }))
  }))
  server.setRequestHandler(GetPromptRequestSchema, ({ params }) => {
    const prompt = prompts[params.name]
    if (prompt === undefined) throw unknown("prompt", params.name)
    return { messages: prompt.get(params.arguments ?? {}).map((content) => ({ role: "user" as const, content })) }
  })

  return server
}

/**
 * The same server, of an earlier revision. The suite's clients ask for the newest one whatever revision they are to
 * test, and the SDK's server would grant it.
 */
export const speaking = (revision: string, server: Server): ServerLike => ({
  connect: async (transport) => {
    await server.connect(transport)
    const { onmessage } = transport
    // oxlint-disable-next-line unicorn/prefer-add-event-listener -- a transport is no EventTarget
    transport.onmessage = (message, extra) =>
      onmessage?.(
        isInitializeRequest(message)
          ? { ...message, params: { ...message.params, protocolVersion: revision } }
          : message,
        extra
      )
  },
  close: () => server.close()
})
