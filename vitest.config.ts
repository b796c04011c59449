import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

const src = (path: string) => fileURLToPath(new URL(`./src/${path}`, import.meta.url))

/** The package by its own name, as users write it. */
export const resolve = {
  alias: [
    { find: /^effect-mcp-sessions$/, replacement: src("index.ts") },
    { find: /^effect-mcp-sessions\/(.+)$/, replacement: src("$1.ts") }
  ]
}

export default defineConfig({
  resolve,
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/setup.ts"],
    setupFiles: ["test/support/leaks.ts"],
    testTimeout: 30_000,
    // To load Effect and the SDKs takes a second, and most files take less: a worker runs one after the other.
    isolate: false,
    // One more than there are cores: many tests wait, for a child, a socket or a clock.
    maxWorkers: availableParallelism() + 1,
    tags: [{ name: "load", description: "Runs with great numbers in `npm run load`, with smaller ones in `npm test`" }],
    provide: { load: false }
  }
})
