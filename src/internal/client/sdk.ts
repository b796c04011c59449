/**
 * What the two generations of the MCP SDK have in common, told apart by shape alone: nothing here imports either.
 *
 * v1 is `@modelcontextprotocol/sdk`, v2 `@modelcontextprotocol/client`. Their clients differ where this module has a
 * function ({@link callTool}, {@link probe}).
 */

/**
 * The options of one request. `timeout` is in milliseconds.
 */
export interface CallOptionsLike {
  readonly signal: AbortSignal
  readonly timeout: number
  /** v2 keeps what it has read, unless it is told not to look there. */
  readonly cacheMode?: "refresh"
  readonly onprogress?: (progress: ProgressLike) => void
  /** Also what a request is known by on its way to the transport: see `spans.ts` and `sent.ts`. */
  readonly onresumptiontoken?: (token: string) => void
}

export interface ProgressLike {
  progress: number
  total?: number | undefined
  message?: string | undefined
}

/**
 * A client of either generation.
 */
export interface ClientLike {
  close(): Promise<void>
  ping(options?: CallOptionsLike): Promise<unknown>
  // v1 has its options third, v2 second: see `callTool`
  callTool(params: { name: string }, ...rest: ReadonlyArray<never>): Promise<unknown>
  listTools(params: { cursor?: string }, options?: CallOptionsLike): Promise<unknown>
  listResources(params: { cursor?: string }, options?: CallOptionsLike): Promise<unknown>
  listResourceTemplates(params: { cursor?: string }, options?: CallOptionsLike): Promise<unknown>
  listPrompts(params: { cursor?: string }, options?: CallOptionsLike): Promise<unknown>
  readResource(params: { uri: string }, options?: CallOptionsLike): Promise<unknown>
  getPrompt(params: { name: string }, options?: CallOptionsLike): Promise<unknown>
  complete(params: never, options?: CallOptionsLike): Promise<unknown>
  setLoggingLevel(level: never, options?: CallOptionsLike): Promise<unknown>
  subscribeResource(params: { uri: string }, options?: CallOptionsLike): Promise<unknown>
  unsubscribeResource(params: { uri: string }, options?: CallOptionsLike): Promise<unknown>
  getServerCapabilities(): object | undefined
  getServerVersion(): { name: string; version: string } | undefined
  getInstructions(): string | undefined
  getProtocolEra?(): string | undefined
  getNegotiatedProtocolVersion?(): string | undefined
  /** What it is connected to. */
  readonly transport?: object | undefined
  discover?(options?: CallOptionsLike): Promise<unknown>
}

/**
 * A JSON-RPC message, as far as this library looks into it.
 */
export interface MessageLike {
  readonly id?: string | number | undefined
  readonly method?: string | undefined
  readonly params?: { readonly requestId?: unknown; readonly _meta?: Readonly<Record<string, unknown>> } | undefined
}

/**
 * A transport of either generation: the two `Transport` interfaces are mutually assignable.
 */
export interface TransportLike {
  start(): Promise<void>
  // `never`: each SDK's own message types stay assignable
  send(message: never, options?: SendOptionsLike): Promise<void>
  close(): Promise<void>
  onclose?: (() => void) | undefined
  onerror?: ((error: Error) => void) | undefined
  onmessage?: ((message: never, extra?: never) => void) | undefined
  sessionId?: string | undefined
  setProtocolVersion?: ((version: string) => void) | undefined
  /** v2 cancels a request by closing its stream, where there is one a request. */
  readonly hasPerRequestStream?: boolean
  /** The server is a child process. */
  readonly pid?: number
}

export interface SendOptionsLike {
  readonly onresumptiontoken?: ((token: string) => void) | undefined
}

/**
 * Whether nobody can tell if the server's own stream is there: over Streamable HTTP it is one of many.
 */
export const mayBeDeaf = (transport: object): boolean => "terminateSession" in transport

/**
 * The longest time that Node's timers take. The time of a call is kept by Effect's `Clock`, so that the SDK's own timer
 * must never be the first.
 */
export const noTimeout = 2 ** 31 - 1

/**
 * Calls a tool with the options where this generation looks for them. In the wrong place v1 throws after the tool has
 * run, and v2 ignores them.
 */
export const callTool = (client: ClientLike, params: { name: string }, options: CallOptionsLike): Promise<unknown> => {
  const rest = client.getProtocolEra === undefined ? [undefined, options] : [options]
  return client.callTool(params, ...rest as unknown as ReadonlyArray<never>)
}

/**
 * Whether the connection is one of 2026-07-28 or later: no session, no ping, no list_changed without a subscription,
 * and lists that the client itself keeps for as long as the server's `ttlMs` says.
 */
export const isModern = (client: ClientLike): boolean => client.getProtocolEra?.() === "modern"

/**
 * Whether the server says that it tells when a list of this kind changes.
 */
export const announces = (
  client: ClientLike,
  kind: "tools" | "resources" | "resourceTemplates" | "prompts"
): boolean => {
  const capabilities = client.getServerCapabilities() as
    | Record<string, { listChanged?: unknown } | undefined>
    | undefined
  return capabilities?.[kind === "resourceTemplates" ? "resources" : kind]?.listChanged === true
}

/**
 * The cheapest request that shows that a server is there. `ping` is gone in 2026-07-28.
 */
export const probe = (client: ClientLike, options: CallOptionsLike): Promise<unknown> =>
  isModern(client) && client.discover !== undefined ? client.discover(options) : client.ping(options)
