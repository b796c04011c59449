/**
 * What runs in a web page: the clients of both SDKs, and `fetch`, for a test to call. Bundled, it is all of the page.
 */
import * as V2 from "@modelcontextprotocol/client"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"

/** What a page can tell of an answer: everything, or that there was none for it. */
export interface Read {
  readonly status: number | string
  readonly headers: Readonly<Record<string, string>>
  readonly text: string
}

export interface Page {
  /** Begins a session with the client of either SDK. Fails as that does. */
  readonly begin: (url: string, token: string, generation: "v1" | "v2") => Promise<string>
  /** Calls a tool in the session that was begun last, and counts the steps that it tells of. */
  readonly call: (
    name: string,
    args: Record<string, unknown>
  ) => Promise<{ readonly text: string; readonly steps: number }>
  /** Ends that session. */
  readonly end: () => Promise<void>
  readonly read: (url: string, init: RequestInit) => Promise<Read>
}

interface Session {
  readonly callTool: (
    params: { readonly name: string; readonly arguments: Record<string, unknown> },
    onprogress: () => void
  ) => Promise<unknown>
  readonly terminate: () => Promise<void>
}

let current: Session | undefined

const first = async (url: URL, init: RequestInit) => {
  const client = new Client({ name: "page", version: "1" })
  const transport = new StreamableHTTPClientTransport(url, { requestInit: init })
  await client.connect(transport as Parameters<typeof client.connect>[0])
  current = {
    callTool: (params, onprogress) => client.callTool(params, undefined, { onprogress }),
    terminate: () => transport.terminateSession()
  }
  return transport.sessionId ?? ""
}

const second = async (url: URL, init: RequestInit) => {
  const client = new V2.Client({ name: "page", version: "1" }, { versionNegotiation: { mode: "legacy" } })
  const transport = new V2.StreamableHTTPClientTransport(url, { requestInit: init })
  await client.connect(transport)
  current = {
    callTool: (params, onprogress) => client.callTool(params, { onprogress }),
    terminate: () => transport.terminateSession()
  }
  return transport.sessionId ?? ""
}

const page: Page = {
  begin: (url, token, generation) =>
    (generation === "v1" ? first : second)(new URL(url), { headers: { authorization: `Bearer ${token}` } }),
  call: async (name, args) => {
    let steps = 0
    const result = await current!.callTool({ name, arguments: args }, () => void steps++)
    return { text: JSON.stringify(result), steps }
  },
  end: () => current!.terminate(),
  read: async (url, init) => {
    try {
      const response = await fetch(url, init)
      return { status: response.status, headers: Object.fromEntries(response.headers), text: await response.text() }
    } catch (error) {
      return { status: String(error), headers: {}, text: "" }
    }
  }
}

Object.assign(globalThis, { page })
