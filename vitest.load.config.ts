/** `npm run load`: what is tagged so, one after the other, with the great numbers, and what has no small ones. */
import { mergeConfig } from "vitest/config"
import config from "./vitest.config.ts"

export default mergeConfig(config, {
  test: { include: ["test/McpHttp.siege.ts"], tagsFilter: ["load"], provide: { load: true }, maxWorkers: 1 }
})
