import { defineConfig } from "vitest/config"
import { resolve } from "./vitest.config.ts"

// What needs a browser: Debian's chromium, or the one that CHROMIUM names. `npm test` leaves it out.
export default defineConfig({
  resolve,
  test: {
    include: ["test/**/*.browser.ts"],
    testTimeout: 60_000,
    hookTimeout: 60_000
  }
})
