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
    setupFiles: ["test/support/leaks.ts"],
    testTimeout: 30_000,
    // To load Effect and the SDKs takes a second, and most files take less: one after the other they run in one process.
    isolate: false,
    // By default one less than there are cores, and so one alone where there are two. Many tests wait for a child.
    maxWorkers: Math.max(2, availableParallelism()),
    tags: [{ name: "load", description: "Runs with great numbers in `npm run load`, with smaller ones in `npm test`" }],
    provide: { load: false }
  }
})
