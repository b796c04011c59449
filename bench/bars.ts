/**
 * What good looks like: for each ratio how far it shall come down, and what it was when it was last written down.
 * README shows this table.
 *
 * `npm run bench -- --check` fails when a ratio is more than 25 % past its bar: the goal where that is reached, else
 * today's figure, so that nothing gets worse on the way.
 */
export interface Bar {
  readonly goal: number
  /** Left out until it was measured on a machine that had nothing else to do: then the goal is the bar. */
  readonly today?: number
}

/** What noise may add. */
const slack = 1.25

/** What a ratio must not pass. */
export const limit = ({ goal, today }: Bar): number => Math.max(goal, today ?? goal) * slack

export const isReached = ({ goal, today }: Bar): boolean => (today ?? goal) <= goal

export const bars = {
  /** ÷ `Effect.scoped(RcMap.get)`, 1,000 keys, f an exit */
  withSession: { goal: 0.36, today: 0.44 },
  /** ÷ the same, f suspending on a real `McpSession`, whose requests are counted */
  withSessionSuspending: { goal: 0.42, today: 0.59 },
  /** ÷ the same */
  scopedGet: { goal: 0.6, today: 0.77 },
  /** header → identity → hit ÷ a map of promises behind the same header, 1,000 identities, plain object */
  header: { goal: 1.4, today: 2.03 },
  /** the same, Node `IncomingMessage` */
  headerOfNode: { goal: 1.6, today: 2.14 },
  /** 100 hot identities among 100,000 ÷ alone */
  crowded: { goal: 1.5, today: 0.99 },
  /** expiring 100 of 100,000 ÷ 100 of 1,000 */
  expiry: { goal: 1.5, today: 1.11 },
  /** ÷ `ScopedCache.get` */
  miss: { goal: 1.2, today: 1.39 },
  /** bytes of an idle session beyond a bare `Scope` */
  idleBytes: { goal: 640, today: 545 },
  /** the same, with 100 services in the layer's context */
  idleBytesOfMany: { goal: 640, today: 540 },
  /** bytes of a pooled session in process beyond the SDK's own server */
  pooledBytes: { goal: 24 * 1024, today: 19_989 },
  /** bytes of an idle `McpHttp` session beyond the SDK's own server and transport */
  hostedBytes: { goal: 7 * 1024, today: -17_494 },
  /** opening in process ÷ a call on a session that is there */
  openInProcess: { goal: 8, today: 5.3 },
  /** the first call of a new identity on a stdio server with standby and `warmUp` ÷ a reused call */
  standby: { goal: 3, today: 4.32 },
  /** the same ÷ without standby */
  standbyOfCold: { goal: 0.15, today: 0.03 },
  /** p99 of the callers of one upstream beside a hung and a crashing one ÷ alone */
  besideBroken: { goal: 1.5, today: 1.14 },
  /** ÷ the same SDK server bare */
  inbound: { goal: 1.1, today: 1.09 },
  /** a call of a session at another node ÷ one of this process, in turns */
  remoteCall: { goal: 4, today: 2.76 },
  /** the same with three notifications of progress ÷ the same */
  remoteStreamed: { goal: 10, today: 5.25 },
  /** a POST of a session at another node ÷ at its own */
  routed: { goal: 3, today: 1.62 }
} satisfies Readonly<Record<string, Bar>>
