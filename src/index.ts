export { type Authorization, AuthorizationFailed } from "./Authorization.ts"
export * as Consent from "./Consent.ts"
export * from "./Identity.ts"
export * from "./IdentityResolver.ts"
export * from "./InvalidOptions.ts"
export * as McpConnector from "./McpConnector.ts"
export * as McpHttp from "./McpHttp.ts"
export * from "./McpServers.ts"
export * from "./McpSession.ts"
export * from "./McpSessionError.ts"
export * as Metrics from "./Metrics.ts"
export {
  ConnectTimeout,
  PoolClosed,
  PoolExhausted,
  type RetireReason,
  type SessionHandle,
  SessionPool,
  type SessionPoolEntry,
  SessionPoolError,
  SessionPoolEvent,
  type SessionPoolOptions,
  type SessionPoolStats
} from "./SessionPool.ts"
export {
  type CreateOptions,
  CreatesSessions,
  type EndReason,
  OpenTimeout,
  type RegisteredSession,
  RegistryClosed,
  RegistryFull,
  type SessionInfo,
  SessionNotFound,
  type SessionOwner,
  SessionRegistry,
  type SessionRegistryEntry,
  SessionRegistryError,
  SessionRegistryEvent,
  type SessionRegistryOptions,
  type SessionRegistryStats
} from "./SessionRegistry.ts"
export { type IntrospectionOptions, JwtAlgorithm, type JwtOptions, type TokenOptions } from "./TokenOptions.ts"
export * from "./TokenStore.ts"
