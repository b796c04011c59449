/**
 * What options have in common: how the configuration sets them, and what a layer fails with when one has no meaning.
 */
import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as Schema from "effect/Schema"
import { respond } from "./internal/problem.ts"

/**
 * What a `layerConfig` takes: options of which each may be a `Config` of the caller's own, in place of the library's
 * variable for it; or one `Config` of all of them, and then no variable of the library is read.
 *
 * @category models
 */
export type Configurable<Options> =
  | Config.Config<Options>
  | { readonly [K in keyof Options]: Options[K] | Config.Config<Options[K]> }

/**
 * An option that a layer or a connector can't work with: found when the layer builds or the connector is made, so a
 * server with it never starts. Should it reach a client all the same, it answers 500 and names no option.
 *
 * @category errors
 */
export class InvalidOptions
  extends Schema.TaggedError<InvalidOptions>("effect-mcp-sessions/InvalidOptions")("InvalidOptions", {
    /** The module that refused it: `SessionPool`, `IdentityResolver`, … */
    module: Schema.String,
    /** What it was given to: by default `layer`. */
    method: Schema.String.pipe(Schema.withConstructorDefault(Effect.succeed("layer"))),
    /** The name of the option. */
    option: Schema.String,
    /** What it must be and what it was, worded to follow the option's name. Never the value of a secret. */
    issue: Schema.String
  })
{
  readonly reference = "invalid-options"

  override get message(): string {
    return `${this.module}.${this.method}: option "${this.option}" ${this.issue}`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The server is misconfigured" })
  }
}
