/**
 * Texts of others (a finalizer's defect, a child's stderr) may hold what the library never writes itself.
 */
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type { Credentials } from "../Identity.ts"

/**
 * The text without the credential, as it is, in base64, or percent-encoded.
 */
export const scrub = (text: string, credentials: Option.Option<Credentials>): string => {
  if (Option.isNone(credentials)) return text
  const { header, token } = credentials.value
  let scrubbed = text
  for (const secret of [Redacted.value(header), Redacted.value(token)]) {
    if (secret === "") continue
    const base64 = Buffer.from(secret).toString("base64").replace(/=+$/, "")
    const base64url = Buffer.from(secret).toString("base64url")
    for (const form of [secret, base64, base64url, encodeURIComponent(secret)]) {
      scrubbed = scrubbed.replaceAll(form, "<redacted>")
    }
  }
  return scrubbed
}
