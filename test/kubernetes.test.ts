/**
 * The manifest in docs, as far as it can be checked without a Kubernetes: that it is YAML, agrees with itself, and with
 * what the library reads and waits for.
 */
import { assert, describe, it } from "@effect/vitest"
import * as ClusterNode from "effect-mcp-sessions/ClusterNode"
import * as SessionPool from "effect-mcp-sessions/SessionPool"
import * as Result from "effect/Result"
import { readFileSync } from "node:fs"
// Comes with typedoc, of the workspace `docs`
import { parseAllDocuments } from "yaml"

interface Labels {
  readonly [label: string]: string
}

interface Manifest {
  readonly kind: string
  readonly metadata: { readonly name: string }
  readonly stringData?: Readonly<Record<string, string>>
  readonly spec: {
    readonly clusterIP?: string
    readonly selector: Labels & { readonly matchLabels?: Labels }
    readonly serviceName?: string
    readonly podSelector?: { readonly matchLabels: Labels }
    readonly ports?: ReadonlyArray<{ readonly port: number; readonly targetPort?: string }>
    readonly template: {
      readonly metadata: { readonly labels: Labels }
      readonly spec: {
        readonly terminationGracePeriodSeconds: number
        readonly containers: ReadonlyArray<{
          readonly ports: ReadonlyArray<{ readonly name: string; readonly containerPort: number }>
          readonly env: ReadonlyArray<{
            readonly name: string
            readonly value?: string
            readonly valueFrom?: { readonly secretKeyRef?: { readonly name: string; readonly key: string } }
          }>
          readonly readinessProbe: { readonly httpGet: { readonly path: string; readonly port: string } }
          readonly lifecycle: { readonly preStop: { readonly sleep: { readonly seconds: number } } }
        }>
      }
    }
  }
}

const read = (path: string) => readFileSync(new URL(`../docs/${path}`, import.meta.url), "utf8")

const documents = parseAllDocuments(read("kubernetes.yaml"))
const manifests = documents.map((document) => document.toJS() as Manifest)
const find = (kind: string, name = "mcp") =>
  manifests.find((manifest) => manifest.kind === kind && manifest.metadata.name === name)!

const pod = find("StatefulSet").spec.template
const container = pod.spec.containers[0]!
const portOf = (name: string) => container.ports.find((port) => port.name === name)!.containerPort

describe("docs/kubernetes.yaml", () => {
  it("is YAML, and about one and the same pods", () => {
    assert.deepStrictEqual(documents.flatMap(({ errors }) => errors), [])
    const { labels } = pod.metadata
    assert.deepStrictEqual(find("StatefulSet").spec.selector.matchLabels, labels)
    assert.deepStrictEqual(find("PodDisruptionBudget").spec.selector.matchLabels, labels)
    assert.deepStrictEqual(find("NetworkPolicy").spec.podSelector!.matchLabels, labels)
    for (const name of ["mcp", "mcp-nodes"]) assert.deepStrictEqual({ ...find("Service", name).spec.selector }, labels)
    assert.strictEqual(find("StatefulSet").spec.serviceName, "mcp-nodes")
    assert.strictEqual(find("Service", "mcp-nodes").spec.clusterIP, "None")
  })

  it("sets everything that a node needs, and nothing that it does not read", () => {
    const rows = [...ClusterNode.declared.rows, ...ClusterNode.declaredSecurity.rows]
    const known = new Set(rows.flatMap(({ aliases, variable }) => [variable, aliases].flat()))
    const set = container.env.map(({ name }) => name)
    assert.deepStrictEqual(set.filter((name) => !known.has(name)), [])
    const needed = ClusterNode.declared.rows.filter((row) => row.default === "required" && row.variable !== undefined)
    for (const { aliases, variable } of needed) {
      assert.isTrue([variable!, ...aliases].some((name) => set.includes(name)), variable)
    }
    const cluster = container.env.find(({ name }) => name === "MCP_CLUSTER_PORT")!
    assert.strictEqual(Number(cluster.value), portOf("cluster"))
    assert.strictEqual(find("Service", "mcp-nodes").spec.ports![0]!.port, portOf("cluster"))
  })

  it("has the secrets that it names, of a length that is accepted", () => {
    const secret = find("Secret", "mcp-cluster")
    const wanted = container.env.flatMap(({ valueFrom }) => valueFrom?.secretKeyRef ?? [])
    assert.deepStrictEqual(wanted.map(({ key }) => key).toSorted(), Object.keys(secret.stringData!).toSorted())
    for (const { name } of wanted) assert.strictEqual(name, secret.metadata.name)
    assert.isAtLeast(secret.stringData!.security!.length, 32)
    assert.isAtLeast(secret.stringData!.key!.length, 16)
  })

  it("waits longer for a pod than the pod takes to end", () => {
    const { closeTimeout } = Result.getOrThrow(SessionPool.declared.parse({ connect: () => undefined }))
    const { terminationTimeout } = ClusterNode.declared.declaration
    const millis = Result.getOrThrow(terminationTimeout.read(undefined)) as number
    const preStop = container.lifecycle.preStop.sleep.seconds * 1_000
    // Shutting down takes a pool twice its closeTimeout at most
    assert.isAbove(pod.spec.terminationGracePeriodSeconds * 1_000, preStop + millis + 5_000 + 2 * closeTimeout)
  })

  it("asks where the program of the page answers", () => {
    const page = read("kubernetes.md")
    assert.include(page, `"${container.readinessProbe.httpGet.path}"`)
    assert.include(page, `{ port: ${portOf("http")} }`)
  })
})
