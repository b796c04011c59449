/**
 * Why a server of an `mcp.json` can't be had.
 */
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Schema from "effect/Schema"
import { respond } from "./internal/problem.ts"

/**
 * One thing that is wrong with a configuration, or that can't be honoured.
 *
 * @category errors
 */
export const McpServersIssue = Schema.Struct({
  /** The server that it is about. None for the file as a whole. */
  server: Schema.optionalKey(Schema.String),
  /** Where, such as `mcpServers.weather.args[1]`; empty for the file as a whole. */
  path: Schema.String,
  /** What, worded to follow `path`. It may name a variable, and never quotes a value. */
  issue: Schema.String
})

/**
 * One thing that is wrong with a configuration, or that can't be honoured: where, and what.
 *
 * @category errors
 */
export type McpServersIssue = typeof McpServersIssue.Type

/**
 * What is wrong with a configuration: with the file as a whole, which fails the layer, or with one server, which fails
 * whoever asks for that one. Should it reach a client it answers 500 and names nothing.
 *
 * @category errors
 */
export class McpServersError extends Schema.TaggedError<McpServersError>("effect-mcp-sessions/McpServersError")(
  "McpServersError",
  {
    /** The file as it was given. */
    file: Schema.String,
    /** Everything that is wrong with it, in the order of the file: at least one. */
    issues: Schema.NonEmptyArray(McpServersIssue),
    /**
     * The function that found the file wrong, `layer` (the default) or `make`; or that was asked for a server,
     * `connect` or the service's `connector`.
     */
    method: Schema.Literals(["layer", "make", "connect", "connector"]).pipe(
      Schema.withConstructorDefault(Effect.succeed("layer" as const))
    )
  }
) {
  readonly module = "McpServers"
  readonly reference = "invalid-servers"

  /** Where the first issue is. */
  get path(): string {
    return this.issues[0].path
  }

  /** What the first issue is. */
  get issue(): string {
    return this.issues[0].issue
  }

  override get message(): string {
    const lines = this.issues.map(({ issue, path }) => path === "" ? `the file ${issue}` : `${path} ${issue}`)
    return lines.length === 1
      ? `${this.file}: ${lines[0]}.`
      : `${this.file} has ${lines.length} problems:${lines.map((line) => `\n- ${line}.`).join("")}`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The server is misconfigured" })
  }
}

/**
 * The identity chose a server that the configuration does not have or has disabled, or chose none. Answers 404.
 *
 * @category errors
 */
export class UnknownServer
  extends Schema.TaggedError<UnknownServer>("effect-mcp-sessions/UnknownServer")("UnknownServer", {
    /** The name that was given to `identity.at(name)`; empty if it was not called. */
    name: Schema.String,
    /** The names that there are, in the order of the file. */
    known: Schema.Array(Schema.String),
    /** Whether the configuration has it, but disabled. */
    disabled: Schema.Boolean.pipe(Schema.withConstructorDefault(Effect.succeed(false))),
    /** The function that was asked for it: `connect` (the default), or the service's `connector`. */
    method: Schema.Literals(["connect", "connector"]).pipe(
      Schema.withConstructorDefault(Effect.succeed("connect" as const))
    )
  })
{
  readonly module = "McpServers"
  readonly reference = "unknown-server"

  override get message(): string {
    const what = this.name === ""
      ? "The identity names no server; choose one with identity.at(name)"
      : this.disabled
      ? `The server "${this.name}" is disabled`
      : `There is no server "${this.name}"`
    const known = this.known.length === 0 ? "none" : this.known.map((name) => `"${name}"`).join(", ")
    return `${what}. Known servers: ${known}.`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 404, title: "There is no such MCP server" })
  }
}
