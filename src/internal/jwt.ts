/**
 * What a token says of itself. Nobody has verified it: it may be used for nothing that a caller could gain by.
 */
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"

// No header that this library reads is longer
const maxLength = 16_384

/**
 * The `exp` of a JWT (RFC 7519 section 4.1.4), in milliseconds since the epoch. Linear in the token's length.
 */
export const expiryOf = (token: string): Option.Option<number> => {
  if (token.length > maxLength) return Option.none()
  const start = token.indexOf(".") + 1
  const end = token.indexOf(".", start)
  // A JWE has five parts, and its second is not the payload
  if (start === 0 || end === -1 || token.includes(".", end + 1)) return Option.none()
  return Option.flatMap(payloadOf(token.slice(start, end)), (payload) => {
    const millis = Predicate.hasProperty(payload, "exp") && typeof payload.exp === "number" ? payload.exp * 1000 : NaN
    return Number.isFinite(millis) ? Option.some(millis) : Option.none()
  })
}

const payloadOf = Option.liftThrowable((base64: string): unknown =>
  JSON.parse(Buffer.from(base64, "base64url").toString())
)
