/**
 * What a server may ask of the identity whose session it has: the functions among the options, as an SDK's handlers.
 */
import type {
  CreateMessageRequestParams,
  CreateMessageResult,
  CreateMessageResultWithTools,
  ElicitRequestFormParams,
  ElicitRequestURLParams,
  ElicitResult,
  Root
} from "@modelcontextprotocol/sdk/types.js"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { Options } from "../../Connector.ts"
import type { Plan } from "./plan.ts"

/**
 * The handlers of the options as promises, with the context of the connector.
 */
export interface Handlers {
  readonly capabilities: {
    readonly sampling?: Record<string, never>
    readonly elicitation?: { readonly form?: Record<string, never>; readonly url?: Record<string, never> }
    readonly roots?: Record<string, never>
  }
  readonly sampling: Handler<CreateMessageRequestParams, CreateMessageResult | CreateMessageResultWithTools> | undefined
  readonly elicitation: Handler<ElicitRequestFormParams | ElicitRequestURLParams, ElicitResult> | undefined
  readonly roots: Handler<unknown, { roots: Array<Root> }> | undefined
}

type Handler<P, A> = (params: P, signal: AbortSignal) => Promise<A>

export const make = <R>(
  { elicitation, roots, sampling, urlElicitation }: Options<R>,
  { owner, scrub, server }: Pick<Plan<never>, "owner" | "scrub" | "server">
): Effect.Effect<Handlers, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    const runPromise = Effect.runPromiseWith(context)
    const handler =
      <P, A>(method: string, f: (params: P) => Effect.Effect<A, unknown, R>): Handler<P, A> => (params, signal) =>
        runPromise(
          Effect.tapCause(
            Effect.suspend(() => f(params)),
            (cause) =>
              Effect.logWarning(`${method} of "${server}" could not be answered: ${scrub(Cause.pretty(cause))}`)
          ),
          { signal }
        ).catch(() => Promise.reject(unanswered))
    return {
      capabilities: {
        ...(sampling === undefined ? {} : { sampling: {} }),
        ...(elicitation === undefined && urlElicitation === undefined
          ? {}
          : { elicitation: modes(elicitation, urlElicitation) }),
        ...(roots === undefined ? {} : { roots: {} })
      },
      sampling: sampling &&
        handler("sampling/createMessage", (params) => Effect.flatMap(owner, (identity) => sampling(params, identity))),
      elicitation: (elicitation ?? urlElicitation) &&
        handler("elicitation/create", (params) =>
          Effect.flatMap(owner, (identity) =>
            // The SDK refuses a mode that this client does not declare before it comes here
            params.mode === "url" ?
              Effect.andThen(checkAddress(params.url), urlElicitation!(params, identity)) :
              elicitation!(params, identity))),
      roots: roots &&
        handler("roots/list", () => Effect.map(Effect.flatMap(owner, roots), (found) => ({ roots: [...found] })))
    }
  })

// 2025-11-25, client/elicitation#capabilities: an empty object is form mode alone, as servers of older revisions know
// it
const modes = (form: unknown, url: unknown) =>
  url === undefined ? {} : { ...(form === undefined ? {} : { form: {} }), url: {} }

/** 2025-11-25, client/elicitation#safe-url-handling: nobody is asked to run a script, or to open a file. */
const checkAddress = (text: string): Effect.Effect<void, Error> =>
  Effect.suspend(() => {
    const url = URL.canParse(text) ? new URL(text) : undefined
    return url !== undefined && /^https?:$/.test(url.protocol) && url.username === "" && url.password === ""
      ? Effect.void
      : Effect.fail(new Error("the address is not that of a web page"))
  })

// What the server is told: the reason stays here
const unanswered = new Error("The client could not answer this request")
