/**
 * `npm run load`: what is tagged so, one after the other, each file in its own process, with the great numbers; and the
 * siege, which has no small ones.
 */
import { mergeConfig } from "vitest/config"
import config from "./vitest.config.ts"

export default mergeConfig(config, {
  test: {
    include: ["test/**/*.siege.ts"],
    tagsFilter: ["load"],
    provide: { load: true },
    maxWorkers: 1,
    isolate: true
  }
})
