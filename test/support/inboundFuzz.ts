/**
 * Hostile programs against an endpoint of `McpHttp`, drawn from a seed and written to real sockets byte by byte. They
 * know the table of answers in `McpHttp`'s documentation, and nothing of how it is kept; what they find is a list of
 * sentences, each of an answer that is not in it.
 */
import { connect, type Socket } from "node:net"
import type { Dice } from "./world.ts"

export interface Target {
  readonly port: number
  readonly kind: "layer" | "guard"
  /** The most that a body may have. */
  readonly maxBodyBytes: number
  /** Whether streams can be resumed: then their events have ids. */
  readonly isResumable?: boolean
}

interface Said {
  readonly status: number
  readonly head: string
  readonly headers: ReadonlyMap<string, string>
  readonly body: string
}

const allowedOrigin = "http://localhost:5173"
const tokens = ["secret-alice", "secret-bob"] as const
const patience = 10_000

// -----------------------------------------------------------------------------
// Bytes
// -----------------------------------------------------------------------------

/** The first answer in what was heard, once it is complete, and the rest. */
const take = (heard: string, isStream: boolean | "head"): readonly [Said, string] | undefined => {
  const end = heard.indexOf("\r\n\r\n")
  if (end === -1) return undefined
  const head = heard.slice(0, end)
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0)
  const headers = new Map(
    head.split("\r\n").slice(1).map((line) => {
      const colon = line.indexOf(":")
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()]
    })
  )
  const rest = heard.slice(end + 4)
  const said = (body: string) => ({ status, head, headers, body })
  if (isStream === "head" || (isStream && status === 200)) return [said(rest), ""]
  if (headers.get("transfer-encoding") !== "chunked") {
    const length = status === 204 ? 0 : Number(headers.get("content-length") ?? 0)
    return rest.length < length ? undefined : [said(rest.slice(0, length)), rest.slice(length)]
  }
  let body = ""
  let at = 0
  while (at < rest.length) {
    const line = rest.indexOf("\r\n", at)
    if (line === -1) return undefined
    const size = Number.parseInt(rest.slice(at, line), 16)
    if (rest.length < line + 2 + size + 2) return undefined
    if (size === 0) return [said(body), rest.slice(line + 4)]
    body += rest.slice(line + 2, line + 2 + size)
    at = line + 2 + size + 2
  }
  return undefined
}

/**
 * What is answered to these bytes: as many answers as are awaited, or fewer if the connection ends. To a stream it
 * listens until it has heard this, for 200 ms at most.
 */
const exchange = (
  { port }: Target,
  pieces: ReadonlyArray<string>,
  awaited: number,
  isStream: boolean | "head" = false,
  words = ""
): Promise<ReadonlyArray<Said> | "nothing"> =>
  new Promise((resolve) => {
    const answers: Array<Said> = []
    let heard = ""
    const peer: Socket = connect(port, "127.0.0.1")
    let listening: NodeJS.Timeout | undefined
    const finish = (result: ReadonlyArray<Said> | "nothing") => {
      clearTimeout(late)
      clearTimeout(listening)
      peer.destroy()
      resolve(result)
    }
    const late = setTimeout(() => finish("nothing"), patience)
    peer.setNoDelay(true)
    peer.on("error", () => undefined)
    peer.on("close", () => finish(answers))
    peer.on("data", (data) => {
      heard += data.toString("latin1")
      if (isStream && words !== "" && heard.startsWith("HTTP/1.1 200") && !heard.includes(words)) {
        const listened = () => finish(Array.from(take(heard, true) ?? []).slice(0, 1) as Array<Said>)
        return void (listening ??= setTimeout(listened, 200))
      }
      for (let next = take(heard, isStream); next !== undefined; next = take(heard, isStream)) {
        answers.push(next[0])
        heard = next[1]
        if (answers.length === awaited) return finish(answers)
      }
    })
    const write = (index: number): void => {
      if (index === pieces.length || peer.destroyed) return
      peer.write(pieces[index]!, "latin1")
      setImmediate(write, index + 1)
    }
    peer.once("connect", () => write(0))
  })

interface Request {
  readonly method: string
  readonly headers: ReadonlyArray<readonly [string, string]>
  readonly body: string | undefined
}

const encode = (dice: Dice, { body, headers, method }: Request, path = "/mcp"): string => {
  const lines = headers.map(([name, value]) => `${name}: ${value}`)
  if (body === undefined) return [`${method} ${path} HTTP/1.1`, ...lines, "", ""].join("\r\n")
  if (body.length === 0 || dice.chance(0.8)) {
    return [`${method} ${path} HTTP/1.1`, ...lines, `Content-Length: ${body.length}`, "", body].join("\r\n")
  }
  const middle = dice.below(body.length)
  const chunks = [body.slice(0, middle), body.slice(middle)].filter((chunk) => chunk.length > 0).map((chunk) =>
    `${chunk.length.toString(16)}\r\n${chunk}\r\n`
  )
  return [`${method} ${path} HTTP/1.1`, ...lines, "Transfer-Encoding: chunked", "", `${chunks.join("")}0\r\n\r\n`]
    .join("\r\n")
}

const split = (dice: Dice, bytes: string): ReadonlyArray<string> => {
  if (dice.chance(0.6) || bytes.length > 20_000) return [bytes]
  const pieces: Array<string> = []
  for (let at = 0; at < bytes.length;) {
    const size = 1 + dice.below(dice.pick([3, 50, 400]))
    pieces.push(bytes.slice(at, at + size))
    at += size
  }
  return pieces
}

// -----------------------------------------------------------------------------
// Programs
// -----------------------------------------------------------------------------

const initialize = (params: unknown = {
  protocolVersion: "2025-11-25",
  capabilities: {},
  clientInfo: { name: "fuzz", version: "0" }
}) => ({ jsonrpc: "2.0", id: 1, method: "initialize", params })

const echo = (id: unknown, message: string) => ({
  jsonrpc: "2.0",
  id,
  method: "tools/call",
  params: { name: "echo", arguments: { message } }
})

const notification = { jsonrpc: "2.0", method: "notifications/initialized" }

const deep = (depth: number) => "[".repeat(depth) + "]".repeat(depth)

/** A body, and what is to be said of it within a session: nothing if that is for the server inside to say. */
interface Body {
  readonly text: string
  readonly is: "call" | "notification" | "initialize" | "initialize-not" | "refused" | "large" | "message"
}

const bodyOf = (dice: Dice, target: Target): Body => {
  const json = (value: unknown, is: Body["is"]): Body => ({ text: JSON.stringify(value), is })
  return dice.pick<() => Body>([
    () => json(echo(dice.pick<unknown>([0, 7, -1, "x", "i".repeat(3_000), Number.MAX_SAFE_INTEGER]), "hi"), "call"),
    () => json(echo(dice.below(100), "hi"), "call"),
    () => json(notification, "notification"),
    () => json(notification, "notification"),
    () => json(notification, "notification"),
    () => json(initialize(), "initialize"),
    () => json(initialize(), "initialize"),
    () => json(initialize(dice.pick<unknown>([null, {}, 5, { protocolVersion: 7 }])), "initialize-not"),
    () => json([initialize()], "initialize-not"),
    () => json([echo(1, "hi"), initialize()], "initialize-not"),
    () => json({ jsonrpc: "2.0", id: 3, result: {} }, "message"),
    () => json({ jsonrpc: "2.0", id: dice.pick<unknown>([null, {}, [1], 1.5]), method: "ping" }, "message"),
    () => json({ jsonrpc: "2.0", id: 4, method: dice.pick<unknown>([5, null, "", "__proto__"]) }, "message"),
    () => json({ jsonrpc: "1.0", id: 4, method: "ping" }, "message"),
    () => json(dice.pick<unknown>([5, "text", null, true, {}, [[]], [5]]), "message"),
    () => json([], "refused"),
    () => json(Array.from({ length: 101 }, (_, id) => echo(id, "hi")), "refused"),
    () => ({
      text: dice.pick(["", "{", "[", "\u0000", "{\"jsonrpc\":\"2.0\",}", "nul", "\"\\", "{".repeat(9)]),
      is: "refused"
    }),
    () => ({ text: deep(dice.pick([257, 5_000])), is: "refused" }),
    () => ({ text: `{"jsonrpc":"2.0","id":1,"method":"ping","params":${deep(300)}}`, is: "refused" }),
    () => ({ text: `"${"x".repeat(target.maxBodyBytes)}"`, is: "large" })
  ])()
}

const polite = (id?: string): Request["headers"] => [
  ["Host", "localhost"],
  ["Authorization", `Bearer ${tokens[0]}`],
  ["Accept", "application/json, text/event-stream"],
  ["Content-Type", "application/json"],
  ["MCP-Protocol-Version", "2025-11-25"],
  ...(id === undefined ? [] : [["Mcp-Session-Id", id] as const])
]

const as = (who: number, id?: string): Request["headers"] =>
  polite(id).map(([name, value]) => [name, name === "Authorization" ? `Bearer ${tokens[who]!}` : value] as const)

const eventsOf = (said: Said | undefined) => Array.from(said?.body.matchAll(/^id: (.+)$/gm) ?? [], ([, id]) => id!)

const postAs = (who: number, message: unknown, id?: string): Request => ({
  method: "POST",
  headers: as(who, id),
  body: JSON.stringify(message)
})

const resume = (who: number, id: string, last: string): Request => ({
  method: "GET",
  headers: [...as(who, id), ["Last-Event-ID", last]],
  body: undefined
})

const withoutDate = (said: Said) => `${said.head.replace(/\r\nDate: [^\r]*/i, "")}\r\n\r\n${said.body}`

export const fuzz = async (target: Target, dice: Dice, steps: number): Promise<{
  readonly found: ReadonlyArray<string>
  readonly requests: number
  /** How often each status was answered. */
  readonly statuses: Readonly<Record<string, number>>
}> => {
  const found: Array<string> = []
  const statuses: Record<string, number> = {}
  let requests = 0
  /** Every id that was ever given, and whose it is until it is deleted. */
  const live = new Map<string, number>()
  const dead: Array<string> = []
  let unknown: string | undefined

  const report = (request: Request, said: Said | undefined, why: string) =>
    found.push(
      `${why}: ${request.method} ${request.headers.map((header) => header.join(": ")).join("; ").slice(0, 400)} ` +
        `${request.body?.slice(0, 120)} -> ${said?.head.slice(0, 300)} ${said?.body.slice(0, 200)}`
    )

  /** A request, whose it is, and what may be answered: by order of what is looked at first. */
  const draw = (isHarmless: boolean) => {
    // Most faults are found one at a time
    const isPolite = dice.chance(0.5)
    const oneOf = <A>(values: ReadonlyArray<A>): A => isPolite ? values[0]! : dice.pick(values)
    const who = dice.below(2)
    const credentials = oneOf<"good" | "none" | "bad">([
      "good",
      "good",
      "good",
      "good",
      "good",
      "good",
      "none",
      "bad"
    ])
    const method = dice.chance(0.75)
      ? "POST"
      : dice.pick(
        isHarmless ? ["PUT", "PATCH", "HEAD"] : ["GET", "GET", "DELETE", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"]
      )
    const mine = Array.from(live).filter(([, owner]) => owner === who).map(([id]) => id)
    const others = Array.from(live).filter(([, owner]) => owner !== who).map(([id]) => id)
    const own = dice.pick(mine.length > 0 ? mine : ["x"])
    const named = dice.pick<() => ReadonlyArray<string>>([
      () => [own],
      () => [own],
      () => [own],
      () => [own],
      () => [],
      () => [],
      () => [""],
      () => [dice.pick(others.length > 0 ? others : ["y"])],
      () => [dice.pick(dead.length > 0 ? dead : ["z"])],
      () => [dice.pick(["__proto__", "0", "x".repeat(32), "x".repeat(9_000), "\u00e9\u00ff", `${own} x`, `${own}=`])],
      () => [own, own],
      () => [own, "x"],
      () => [`${own}, ${own}`]
    ])()
    const id = named.join(", ")
    const isMine = named.length === 1 && live.get(id) === who
    const origin = oneOf([undefined, undefined, undefined, allowedOrigin, "https://evil.example", "null"])
    const host = oneOf(["localhost", "localhost", "localhost", "localhost", "127.0.0.1:80", "evil.example"])
    const accept = oneOf<string | undefined>([
      ...Array.from({ length: 6 }, () => "application/json, text/event-stream"),
      "*/*",
      undefined,
      "application/json"
    ])
    const type = oneOf<string | undefined>([
      ...Array.from({ length: 6 }, () => "application/json"),
      "application/json; charset=utf-8",
      "text/plain",
      "application/jsonp",
      undefined
    ])
    const version = oneOf<string | undefined>([
      "2025-11-25",
      "2025-11-25",
      undefined,
      "2025-06-18",
      "1999-01-01",
      "x"
    ])
    const body = method === "POST" ? bodyOf(dice, target) : undefined
    const request: Request = {
      method,
      headers: [
        ["Host", host],
        ...(credentials === "none" ? [] : [
          [
            "Authorization",
            credentials === "bad"
              ? dice.pick(["Bearer", "Basic !", `Bearer ${tokens[who]!} ${tokens[who]!}`, "Bearer \u00e9"])
              : `Bearer ${tokens[who]!}`
          ] as const
        ]),
        ...named.map((value) => ["Mcp-Session-Id", value] as const),
        ...(origin === undefined ? [] : [["Origin", origin] as const]),
        ...(accept === undefined ? [] : [["Accept", accept] as const]),
        ...(type === undefined || body === undefined ? [] : [["Content-Type", type] as const]),
        ...(version === undefined ? [] : [["MCP-Protocol-Version", version] as const])
      ],
      body: body?.text
    }
    const expected = (): ReadonlyArray<number> => {
      if (host === "evil.example" || (origin !== undefined && origin !== allowedOrigin)) return [403]
      const isGuard = target.kind === "guard"
      if (!["POST", "GET", "DELETE"].includes(method)) return [405]
      if (credentials !== "good") return [401]
      // The server inside knows one version with sessions
      const isUnknown = version === "1999-01-01" || version === "x"
      const isOld = isUnknown || (isGuard && version === "2025-06-18")
      if (method !== "POST") {
        if (id === "") return isGuard && method === "GET" ? [405] : [400]
        if (!isMine) return [404]
        if (isGuard && method === "GET") return [405]
        if (isOld) return [400]
        return method === "DELETE" ? [204] : [accept?.includes("text/event-stream") === true ? 200 : 406]
      }
      if (id !== "" && !isMine) return [404]
      // What is refused first, the version or the rest, is the server's inside to say
      const refusals = isOld ? [400] : []
      if (isOld && !isGuard) return [400]
      if (accept !== "application/json, text/event-stream") return [406, ...refusals]
      if (type?.startsWith("application/json") !== true || type === "application/jsonp") return [415, ...refusals]
      if (body!.is === "large") return [413, ...refusals]
      // Effect's server answers what it can't initialize with an error and 200
      if (isGuard && id === "" && body!.is === "initialize-not") return [200, 400]
      // Which version a session has is agreed on in the body: of a header, one that nobody knows is refused
      if (isGuard && id === "" && body!.is === "initialize" && !isUnknown) return [200]
      if (isOld || body!.is === "refused" || body!.is === "initialize-not") return [400]
      // What has no session may be answered inside
      if (id === "" && isGuard && body!.is === "message") return [200, 202, 400]
      if (id === "") return [body!.is === "initialize" ? 200 : 400]
      if (body!.is === "initialize") return [400]
      if (body!.is === "call") return [200]
      return body!.is === "notification" ? [202] : [200, 202, 400]
    }
    return { request, who, id, isMine, origin, isLocal: host !== "evil.example", body, allowed: expected() }
  }

  type Drawn = ReturnType<typeof draw>

  const check = ({ allowed, body, id, isLocal, isMine, origin, request, who }: Drawn, said: Said | undefined) => {
    requests++
    if (said === undefined) return void report(request, said, "not answered")
    statuses[said.status] = (statuses[said.status] ?? 0) + 1
    if (!allowed.includes(said.status)) report(request, said, `${said.status}, not ${allowed.join(" or ")}`)
    if (tokens.some((token) => said.head.includes(token) || said.body.includes(token))) report(request, said, "told")
    const minted = said.headers.get("mcp-session-id")
    if (minted !== undefined && minted !== id) {
      if (body?.is !== "initialize" || id !== "" || said.status !== 200) report(request, said, "minted")
      if (live.has(minted) || dead.includes(minted) || !/^[\w-]{32}$/.test(minted)) report(request, said, "no new id")
      live.set(minted, who)
    } else if (body?.is === "initialize" && id === "" && said.status === 200) {
      report(request, said, "no id was minted")
    }
    if (request.method === "DELETE" && said.status === 204 && isMine) {
      live.delete(id)
      dead.push(id)
    }
    const names = said.headers.get("access-control-allow-origin")
    if (names !== (origin === allowedOrigin && isLocal ? origin : undefined)) report(request, said, "CORS")
    if (origin === undefined && said.status === 404) {
      unknown ??= withoutDate(said)
      if (unknown !== withoutDate(said)) report(request, said, "another 404")
    }
    if (said.status === 405 && said.headers.get("allow") === undefined) report(request, said, "no Allow")
    if (said.status === 401 && said.headers.get("www-authenticate") === undefined) report(request, said, "no challenge")
    if (said.status >= 400 && said.status !== 401 && request.method !== "HEAD" && !isError(said.body)) {
      report(request, said, "no JSON-RPC error")
    }
    if (body?.is === "call" && said.status === 200 && !said.body.includes("hi")) report(request, said, "no answer")
  }

  const isError = (text: string): boolean => {
    try {
      const { error, id, jsonrpc } = JSON.parse(text)
      return jsonrpc === "2.0" && (id === null || target.kind === "guard") && typeof error.code === "number" &&
        typeof error.message === "string"
    } catch {
      return false
    }
  }

  const single = async () => {
    const drawn = draw(false)
    const answers = await exchange(
      target,
      split(dice, encode(dice, drawn.request)),
      1,
      drawn.request.method === "HEAD" ? "head" : drawn.request.method === "GET"
    )
    check(drawn, answers === "nothing" ? undefined : answers[0])
  }

  /** Several on one connection, none waiting for the answer to another, and none changing what there is. */
  const ahead = async () => {
    const drawn = Array.from({ length: 2 + dice.below(4) }, () => draw(true)).filter(({ allowed, body, request }) =>
      request.method !== "HEAD" && body?.is !== "initialize" && body?.is !== "large" && !allowed.includes(413)
    )
    if (drawn.length === 0) return
    const bytes = drawn.map(({ request }) => encode(dice, request)).join("")
    const answers = await exchange(target, split(dice, bytes), drawn.length)
    if (answers === "nothing") return void drawn.forEach((each) => check(each, undefined))
    drawn.forEach((each, index) => check(each, answers[index]))
  }

  /** What no HTTP client would send: Node's parser answers it, or hangs up. */
  const broken = async () => {
    const bytes = dice.pick([
      "POST /mcp\r\n\r\n",
      "POST /mcp HTTP/1.1\r\n\r\n",
      "POST /mcp HTTP/1.1\r\nHost localhost\r\n\r\n",
      "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
      "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "POST /mcp HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
      `GET /mcp HTTP/1.1\r\nHost: localhost\r\nX: ${"x".repeat(20_000)}\r\n\r\n`,
      "GET /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: a\u0000b\r\n\r\n",
      "\u0016\u0003\u0001\u0002\u0000\u0001\u0000",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    ])
    const request = { method: "raw", headers: [], body: bytes }
    const answers = await exchange(target, split(dice, bytes), 1)
    requests++
    if (answers === "nothing") return void report(request, undefined, "hangs")
    for (const said of answers) {
      if (said.status < 400 || said.status >= 500) report(request, said, "broken")
      if (said.headers.has("mcp-session-id")) report(request, said, "minted")
    }
  }

  /** A session that is deleted while it waits for an answer. */
  const deleted = async () => {
    const post = (message: unknown, id?: string): Request => ({
      method: "POST",
      headers: polite(id),
      body: JSON.stringify(message)
    })
    const ask = async (request: Request) => {
      requests++
      const answers = await exchange(target, [encode(dice, request)], 1)
      return answers === "nothing" ? undefined : answers[0]
    }
    const begun = await ask(post(initialize()))
    const id = begun?.headers.get("mcp-session-id")
    if (id === undefined) return void report(post(initialize()), begun, "no session")
    const waiting = { jsonrpc: "2.0", id: "w", method: "tools/call", params: { name: "wait", arguments: {} } }
    const request = post(target.kind === "guard" || dice.chance(0.5) ? waiting : [waiting, { ...waiting, id: "v" }], id)
    const asked = ask(request)
    await new Promise((resolve) => setTimeout(resolve, dice.pick([0, 5, 30])))
    const gone = await ask({ method: "DELETE", headers: polite(id), body: undefined })
    dead.push(id)
    if (gone?.status !== 204) report(request, gone, "DELETE")
    const said = await asked
    // 404 is for what was not started
    if (said?.status !== 404 && !(said?.status === 200 && said.body.includes("\"error\""))) {
      report(request, said, "deleted under a call")
    }
  }

  /** A stream that is resumed, by whom it may, and by whom it may not: what is said again is of that stream alone. */
  const resumed = async () => {
    const send = async (request: Request, words?: string) => {
      requests++
      const bytes = split(dice, encode(dice, request))
      const answers = await exchange(target, bytes, 1, words !== undefined, words)
      return answers === "nothing" ? undefined : answers[0]
    }
    /** A session, and the first event of a call on it. */
    const open = async (who: number) => {
      const begun = await send(postAs(who, initialize()))
      const id = begun?.headers.get("mcp-session-id")
      if (id === undefined) return void report(postAs(who, initialize()), begun, "no session")
      live.set(id, who)
      const request = postAs(who, echo(`of ${who}`, `words of ${who}`), id)
      const called = await send(request)
      const [event] = eventsOf(called)
      return event === undefined ? void report(request, called, "no event has an id") : { id, event }
    }
    const own = dice.below(2)
    const mine = await open(own)
    const theirs = await open(1 - own)
    if (mine === undefined || theirs === undefined) return
    const { event: first } = mine
    const forged = dice.pick([
      theirs.event,
      "0",
      `${first}x`,
      `999999.${first.slice(first.indexOf(".") + 1)}`,
      "x".repeat(4_000),
      "__proto__",
      "\u00e9"
    ])
    const right = resume(own, mine.id, first)
    const again = await send(right, `words of ${own}`)
    if (again?.status !== 200 || !again.body.includes(`words of ${own}`)) report(right, again, "not replayed")
    const wrong = resume(own, mine.id, forged)
    const refused = await send(wrong, `words of ${1 - own}`)
    if (refused === undefined || (refused.status !== 200 && refused.status !== 400)) report(wrong, refused, "forged")
    if (refused?.body.includes(`words of ${1 - own}`) === true) report(wrong, refused, "told of another's stream")
    const stolen = resume(own, theirs.id, theirs.event)
    const denied = await send(stolen, `words of ${1 - own}`)
    if (denied?.status !== 404) report(stolen, denied, "another's session")
  }

  // One after the other: what is answered depends on what was before
  const run = async (left: number): Promise<void> => {
    if (left === 0) return
    const roll = dice.next()
    await (roll < 0.75
      ? single()
      : roll < 0.9
      ? ahead()
      : roll < 0.95
      ? broken()
      : target.isResumable === true && dice.chance(0.5)
      ? resumed()
      : deleted())
    return run(left - 1)
  }
  await run(steps)
  return { found, requests, statuses }
}
