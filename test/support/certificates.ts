/**
 * Certificates that sign themselves or that an authority has signed, made when a test runs: Node signs, but writes no
 * X.509. For tests only.
 */
import { generateKeyPairSync, type KeyObject, randomBytes, randomUUID, sign } from "node:crypto"

export interface Certificate {
  readonly key: string
  readonly cert: string
}

export interface CertificateOptions {
  /** The address that it is good for. */
  readonly ip?: readonly [number, number, number, number]
  readonly until?: Date
}

// X.690: a tag, a length, and the bytes
const der = (tag: number, ...contents: ReadonlyArray<Uint8Array>): Buffer => {
  const content = Buffer.concat(contents)
  const { length } = content
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff]
  return Buffer.concat([Buffer.from([tag, ...size]), content])
}

const sequence = (...contents: ReadonlyArray<Uint8Array>) => der(0x30, ...contents)
const oid = (...bytes: ReadonlyArray<number>) => der(0x06, Buffer.from(bytes))
const time = (date: Date) => der(0x18, Buffer.from(`${date.toISOString().replace(/[-:T]|\.\d+/g, "")}`))

// RFC 5758: ecdsa-with-SHA256. RFC 5280: id-at-commonName, id-ce-subjectAltName, id-ce-basicConstraints
const ecdsa = sequence(oid(0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02))
// Issuers are found by their names: no two may have the same
const newName = () =>
  sequence(der(0x31, sequence(oid(0x55, 0x04, 0x03), der(0x0c, Buffer.from(`for tests only ${randomUUID()}`)))))

interface Signer {
  readonly name: Buffer
  readonly privateKey: KeyObject
}

const newKeys = () => generateKeyPairSync("ec", { namedCurve: "P-256" })

const make = (
  { ip = [127, 0, 0, 1], until = new Date("2100-01-01") }: CertificateOptions,
  signer?: Signer
): Certificate & Signer => {
  const { privateKey, publicKey } = newKeys()
  const name = newName()
  const altName = sequence(der(0x87, Buffer.from(ip)))
  const isAuthority = signer === undefined ? [der(0x01, Buffer.from([0xff]))] : []
  const extensions = sequence(
    sequence(oid(0x55, 0x1d, 0x11), der(0x04, altName)),
    sequence(oid(0x55, 0x1d, 0x13), der(0x04, sequence(...isAuthority)))
  )
  const body = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, randomBytes(8).fill(1, 0, 1)),
    ecdsa,
    signer?.name ?? name,
    sequence(time(new Date("2020-01-01")), time(until)),
    name,
    publicKey.export({ type: "spki", format: "der" }),
    der(0xa3, extensions)
  )
  const signature = der(0x03, Buffer.from([0]), sign("sha256", body, signer?.privateKey ?? privateKey))
  const lines = sequence(body, ecdsa, signature).toString("base64").match(/.{1,64}/g)!.join("\n")
  return {
    name,
    privateKey,
    key: privateKey.export({ type: "pkcs8", format: "pem" }) as string,
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`
  }
}

export const selfSigned = (options: CertificateOptions = {}): Certificate => {
  const { cert, key } = make(options)
  return { cert, key }
}

export interface Authority {
  readonly cert: string
  readonly issue: (options?: CertificateOptions) => Certificate
}

/** Who signs the certificates of others. */
export const authority = (): Authority => {
  const own = make({})
  return {
    cert: own.cert,
    issue: (options = {}) => {
      const { cert, key } = make(options, own)
      return { cert, key }
    }
  }
}
