/**
 * What is logged, as lines that begin with their level.
 */
import * as Logger from "effect/Logger"

export const logging = () => {
  const logged: Array<string> = []
  const logger = Logger.layer([
    Logger.make(({ logLevel, message }) => void logged.push(`${logLevel} ${String(message)}`))
  ])
  return { logged, logger }
}
