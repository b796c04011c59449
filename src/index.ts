export * from "./Identity.ts"
export * from "./IdentityResolver.ts"
export * from "./InvalidOptions.ts"
export * from "./SessionPool.ts"
