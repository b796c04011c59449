import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

const src = (path: string) => fileURLToPath(new URL(`./src/${path}`, import.meta.url))

// What needs a browser: Debian's chromium, or the one that CHROMIUM names. `npm test` leaves it out.
export default defineConfig({
  resolve: {
    alias: [
      { find: /^effect-mcp-sessions$/, replacement: src("index.ts") },
      { find: /^effect-mcp-sessions\/(.+)$/, replacement: src("$1.ts") }
    ]
  },
  test: {
    include: ["test/**/*.browser.ts"],
    testTimeout: 60_000,
    hookTimeout: 60_000
  }
})
