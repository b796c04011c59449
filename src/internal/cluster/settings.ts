/**
 * What a node is made with, as it was read. Durations are milliseconds.
 */
import type { RunnerAddress } from "effect/cluster/RunnerAddress"

export interface Settings {
  /** Undefined for a node that owns nothing. */
  readonly address: RunnerAddress | undefined
  readonly shards: number
  readonly group: string
  readonly lockTimeToLive: number
  readonly refreshInterval: number
  readonly assignmentsInterval: number
  readonly terminationTimeout: number
}
