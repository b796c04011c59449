export * from "./Identity.ts"
export * from "./SessionPool.ts"
