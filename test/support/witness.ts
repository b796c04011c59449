/**
 * All that a run writes: its log at trace level, its spans, its metrics, and what else it is told to write down.
 */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { Buffer } from "node:buffer"
import { inspect } from "node:util"
import { makeRecorder } from "./spans.ts"

export interface Witness {
  readonly write: (value: unknown) => void
  /** An error, in each way in which it may be printed. */
  readonly writeError: (error: unknown) => void
  readonly layer: Layer.Layer<never>
  readonly everything: Effect.Effect<string>
}

const shown = (value: unknown): string =>
  typeof value === "string" ? value : inspect(value, { depth: 12, maxArrayLength: null, maxStringLength: null })

export const make = (): Witness => {
  // Each text once: it would be searched again and again
  const written = new Set<string>()
  const write = (value: unknown) => void written.add(shown(value))
  const logger = Logger.make<unknown, void>(({ cause, fiber, logLevel, message }) => {
    write(`${logLevel}: ${shown(message)} ${Cause.pretty(cause)}`)
    write(fiber.getRef(References.CurrentLogAnnotations))
  })
  const { spans, tracer } = makeRecorder()
  return {
    write,
    writeError: (error) => {
      write(inspect(error, { depth: 12, showHidden: true }))
      write(String(error))
      write(JSON.stringify(error))
      if (error instanceof Error) write(`${error.message} ${error.stack} ${shown(error.cause)}`)
    },
    layer: Layer.mergeAll(
      Logger.layer([logger]),
      Layer.succeed(References.MinimumLogLevel, "All"),
      Layer.succeed(References.UnhandledLogLevel, "Error"),
      Layer.succeed(Tracer.Tracer, tracer)
    ),
    everything: Effect.map(Metric.snapshot, (metrics) => {
      for (const span of spans) write([span.name, span.attributes, span.events, span.status])
      write(metrics)
      return Array.from(written).join("\n")
    })
  }
}

const methods = ["debug", "error", "info", "log", "trace", "warn"] as const

/** Has it write down what goes to the console and to stdout and stderr, from now on until the scope ends. */
export const listen = ({ write }: Witness): Effect.Effect<void, never, Scope.Scope> =>
  Effect.asVoid(Effect.acquireRelease(
    Effect.sync(() => {
      const { console: { ...before }, process: { stderr, stdout } } = globalThis
      for (const method of methods) console[method] = (...words: ReadonlyArray<unknown>) => words.forEach(write)
      const streams = [stdout, stderr].map((stream) => [stream, stream.write.bind(stream)] as const)
      for (const [stream, pass] of streams) {
        stream.write = ((...said: Parameters<typeof pass>) => {
          write(String(said[0]))
          return pass(...said)
        }) as typeof pass
      }
      return () => {
        Object.assign(console, before)
        for (const [stream, pass] of streams) stream.write = pass
      }
    }),
    (restore) => Effect.sync(restore)
  ))

/** What of it is enough: the beginning, or the signature of a JWT, whose beginning is everybody's. */
const coreOf = (secret: string): string =>
  /^eyJ[\w-]+\.[\w-]+\.([\w-]{12,})$/.exec(secret)?.[1] ?? /^(?!eyJ)[\w-]{12,}/.exec(secret)?.[0] ?? secret

/** A secret, its core, and what else has it for whoever can read. */
export const formsOf = (secret: string): ReadonlyArray<string> => {
  const bytes = Buffer.from(secret)
  return [
    secret,
    coreOf(secret),
    encodeURIComponent(secret),
    new URLSearchParams([["", secret]]).toString().slice(1),
    JSON.stringify(secret).slice(1, -1),
    JSON.stringify(JSON.stringify(secret)).slice(3, -3),
    bytes.toString("base64").replace(/=+$/, ""),
    bytes.toString("base64url"),
    bytes.toString("hex")
  ]
}

/** How much of a form is enough to look at it more closely. */
const windowSize = 10

/** Searches once for all, however many there are. */
export const assertClean = (everything: string, secrets: Iterable<string>): void => {
  const windows = new Map<string, Set<string>>()
  for (const secret of secrets) {
    for (const form of formsOf(secret)) {
      assert.isAtLeast(form.length, windowSize)
      const window = form.slice(0, windowSize)
      windows.set(window, (windows.get(window) ?? new Set()).add(form))
    }
  }
  for (let at = 0; at + windowSize <= everything.length; at++) {
    for (const form of windows.get(everything.slice(at, at + windowSize)) ?? []) {
      assert(
        !everything.startsWith(form, at),
        `${form} in …${everything.slice(Math.max(0, at - 300), at + form.length + 100)}…`
      )
    }
  }
}
