/**
 * What a layer or a constructor of this library fails with when an option has no meaning.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import { respond } from "./internal/problem.ts"

/**
 * An option that can't be worked with. It is found when a layer builds, or when a connector is made: a server with it
 * never starts. Should it reach a client all the same, it answers 500 and names no option.
 *
 * @category errors
 */
export class InvalidOptions extends Schema.TaggedError<InvalidOptions>()("InvalidOptions", {
  /** The module whose layer refused it: `SessionPool`, `IdentityResolver`, … */
  module: Schema.String,
  /** The name of the option. */
  option: Schema.String,
  /** What it must be and what it was, worded to follow the option's name. Never the value of a secret. */
  issue: Schema.String,
  /** The function that refused it: `layer` (the default), `guard`, `http`, … */
  method: Schema.String.pipe(Schema.withConstructorDefault(Effect.succeed("layer")))
}) {
  readonly reference = "invalid-options"

  override get message(): string {
    return `${this.module}.${this.method}: option "${this.option}" ${this.issue}`
  }

  [HttpServerRespondable.symbol]() {
    return respond(this, { status: 500, title: "The server is misconfigured" })
  }
}
