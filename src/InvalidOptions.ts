/**
 * What a layer of this library fails with when an option has no meaning.
 */
import * as Schema from "effect/Schema"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import { respond } from "./internal/problem.ts"

/**
 * An option that a layer can't work with: found when the layer builds, so a server with it never starts. Should it reach
 * a client all the same, it answers 500 and names no option.
 *
 * @category errors
 */
export class InvalidOptions extends Schema.TaggedError<InvalidOptions>()("InvalidOptions", {
  /** The module whose layer refused it: `SessionPool`, `IdentityResolver`, … */
  module: Schema.String,
  /** The name of the option. */
  option: Schema.String,
  /** What it must be and what it was, worded to follow the option's name. Never the value of a secret. */
  issue: Schema.String
}) {
  readonly method = "layer"
  readonly reference = "invalid-options"

  override get message(): string {
    return `${this.module}.layer: option "${this.option}" ${this.issue}`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The server is misconfigured" })
  }
}
