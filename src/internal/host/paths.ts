/**
 * Paths of a router.
 */
import * as FindMyWay from "effect/http/FindMyWay"
import type * as HttpRouter from "effect/http/HttpRouter"

/**
 * Whether a router may take a URL for the path, however it is configured: what is guarded too much is refused, what is
 * guarded too little is open to everybody.
 */
export const matcher = (path: HttpRouter.PathInput): (url: string) => boolean => {
  const paths = FindMyWay.make<true>({
    ignoreTrailingSlash: true,
    ignoreDuplicateSlashes: true,
    caseSensitive: false,
    maxParamLength: Number.MAX_SAFE_INTEGER
  })
  paths.all(path, true)
  // A route for everything below a path takes the path, too
  if (path.endsWith("/*")) paths.all(path === "/*" ? "/" : path.slice(0, -2) as HttpRouter.PathInput, true)
  return (url) => paths.find("POST", url) !== undefined
}
