/**
 * Who may talk to a node: whoever knows the secret, whoever has a certificate, or whoever is on this machine.
 */
import { createHmac, createPrivateKey, hkdfSync, X509Certificate } from "node:crypto"
import { readFileSync } from "node:fs"
import { isIP } from "node:net"
import { checkServerIdentity, type ConnectionOptions, type TlsOptions } from "node:tls"

/** How links are secured, as it was read. */
export type Security =
  | { readonly type: "secret"; readonly secret: string }
  | { readonly type: "certificates"; readonly cert: string; readonly key: string; readonly ca: string }
  | { readonly type: "plain" }

/** Both ends of a link over TLS. */
export interface Ends {
  readonly server: TlsOptions
  readonly client: ConnectionOptions
}

const identity = "effect-mcp-sessions"

// RFC 8442: forward secrecy, and no certificate. Node has a callback for pre-shared keys up to TLS 1.2.
const preShared = {
  ciphers: "ECDHE-PSK-CHACHA20-POLY1305",
  minVersion: "TLSv1.2",
  maxVersion: "TLSv1.2"
} as const

/** Undefined for links without TLS. */
export const endsOf = (security: Security): Ends | undefined => {
  switch (security.type) {
    case "secret": {
      const psk = Buffer.from(hkdfSync("sha256", security.secret, "", "effect-mcp-sessions/ClusterNode TLS", 32))
      return {
        server: { ...preShared, pskCallback: (_socket, name) => name === identity ? psk : null },
        // There is no certificate whose name could be checked: the key is known to both, or there is no link
        client: { ...preShared, pskCallback: () => ({ psk, identity }), checkServerIdentity: () => undefined }
      }
    }
    case "certificates": {
      const { ca, cert, key } = security
      const both = { ca, cert, key, minVersion: "TLSv1.3", rejectUnauthorized: true } as const
      return { server: { ...both, requestCert: true }, client: both }
    }
    case "plain":
      return undefined
  }
}

/** What nodes that can talk to each other have in common, and nobody can guess the secret from. */
export const nameOf = (security: Security): string => {
  switch (security.type) {
    case "secret":
      return digest(security.secret, "effect-mcp-sessions/ClusterNode security")
    case "certificates":
      return "tls"
    case "plain":
      return "plain"
  }
}

/** 16 bits of the secret, too few to test a guess with, and enough to tell a wrong one. */
export const digest = (secret: string, purpose: string): string =>
  createHmac("sha256", secret).update(purpose).digest("hex").slice(0, 4)

/** PEM, given as it is or as the path of a file. */
export const read = (pem: string): string => /^-----BEGIN /m.test(pem) ? pem : readFileSync(pem, "utf8")

/**
 * What is wrong with a certificate and its key, worded to follow the option's name: also what every other node would
 * refuse it for, by the time in milliseconds and for the `host` at which they reach it, if they do.
 */
export const issueOf = (
  { ca, cert, key }: { readonly ca: string; readonly cert: string; readonly key: string },
  now: number,
  host: string | undefined
): string | undefined => {
  try {
    void new X509Certificate(ca)
  } catch {
    return "has no certificate in its \"ca\""
  }
  try {
    const own = new X509Certificate(cert)
    if (!own.checkPrivateKey(createPrivateKey(key))) return "has a \"key\" that is not that of its \"cert\""
    if (now < Date.parse(own.validFrom)) return `has a "cert" that is not valid before ${own.validFrom}`
    if (now > Date.parse(own.validTo)) return `has a "cert" that has expired: ${own.validTo}`
    return host === undefined || checkServerIdentity(host, own.toLegacyObject()) === undefined
      ? undefined
      : "has a \"cert\" that is not for the name or the address that is \"host\""
  } catch {
    return "has no certificate in its \"cert\", or no private key in its \"key\""
  }
}

/** Whether only this machine can reach it. */
export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."))
