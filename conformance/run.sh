#!/usr/bin/env bash
# Runs the official conformance suite: every server scenario of the revisions with sessions against McpHttp.layer, also
# where that is a protected resource, and those of the session's life against McpHttp.guard; and the client scenarios of
# authorization against the connectors of both generations. Prints a line for each, and at last "N scenarios passed, M
# failed".
#
# The suite asks no server for what its authorization section demands: see README.md here.
#
# Needs npm, which installs the suite into a temporary directory, and Node 22 or newer, on which the suite runs. What it
# starts listens on this machine, talks to nobody else, and is stopped at the end.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# The suite's latest release, and the newest one, which alone has server-session-lifecycle and holds every message
# against the schema of its revision.
release=0.1.16
newest=0.2.0-alpha.12
revisions="2025-06-18 2025-11-25"

if [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 22 ]; then
  echo "The conformance suite needs Node 22 or newer, and this is $(node --version)." >&2
  exit 1
fi

temporary=$(mktemp -d) || exit 1
server=
clean() {
  if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null; fi
  rm -rf "$temporary"
}
trap clean EXIT
trap 'exit 1' INT TERM

# start FILE [ARGUMENT]: starts the server in that file, and sets url
start() {
  local i
  url=
  rm -f "$temporary/said"
  node --import tsx "conformance/$1" "${@:2}" >"$temporary/said" 2>&1 </dev/null &
  server=$!
  for i in {1..300}; do
    read -r url 2>/dev/null <"$temporary/said" && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  case "$url" in
    http://*) ;;
    *)
      echo "$1 does not listen:" >&2
      cat "$temporary/said" >&2
      exit 1
      ;;
  esac
}

# Stops the server. It has to end in 10 seconds, with all the sessions that the suite has left open, and to have said
# nothing but its URL.
faults=0
stop() {
  local i status
  kill -TERM "$server" 2>/dev/null
  for i in {1..100}; do
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$server" 2>/dev/null
  wait "$server" 2>/dev/null
  status=$?
  server=
  # 130 is what NodeRuntime ends with when its scope was closed by a signal
  if [ "$status" -ne 130 ] || [ "$(wc -l <"$temporary/said")" -ne 1 ]; then
    faults=$((faults + 1))
    echo "FAILED  the server ended with code $status, and said:"
    sed 's/^/        /' "$temporary/said"
  fi
}

suite() {
  timeout --foreground 300 node "$temporary/$1/node_modules/@modelcontextprotocol/conformance/dist/index.js" "${@:2}"
}

# check NAME VERSION REVISION [SCENARIO]: runs all scenarios of the revision, or that one. What they found, and which
# they were, is what report.ts reads.
check() {
  local results="$temporary/results/$1 $3, suite $2" scope=(--suite all)
  mkdir -p "$results"
  if [ $# -gt 3 ]; then
    scope=(--scenario "$4")
    echo "$4" >>"$results/expected"
  else
    suite "$2" list --server --spec-version "$3" | sed -n 's/^  - \([^ ]*\).*/\1/p' >"$results/expected"
  fi
  suite "$2" server --url "$url" --spec-version "$3" --output-dir "$results" "${scope[@]}" \
    >>"$results/log" 2>&1 </dev/null
}

# connect GENERATION NAME REVISION [SCENARIO…]: runs client scenarios of authorization, all of the revision or those,
# against a connector.
connect() {
  local generation=$1 results="$temporary/results/$2 $3, suite $newest" revision=$3 scenario
  shift 3
  mkdir -p "$results"
  if [ $# -eq 0 ]; then
    # Most of them at once. The suite leaves out those of a revision that it takes for a draft
    ours "$generation" "$revision" "$results" --suite auth
    set -- $(suite "$newest" list --client --spec-version "$revision" | sed -n 's/^  - \(auth\/[^ ]*\).*/\1/p')
  fi
  for scenario in "$@"; do
    echo "$scenario" >>"$results/expected"
    compgen -G "$results/$scenario-*" >/dev/null ||
      ours "$generation" "$revision" "$results" --scenario "$scenario" --force
  done
}

# ours GENERATION REVISION DIRECTORY SCOPE…: runs our client
ours() {
  suite "$newest" client --command "node $bundle $1" --spec-version "$2" --output-dir "$3" --timeout 60000 "${@:4}" \
    >>"$3/log" 2>&1 </dev/null
}

for version in "$release" "$newest"; do
  npm i --prefix "$temporary/$version" --no-save --no-audit --no-fund --ignore-scripts \
    "@modelcontextprotocol/conformance@$version" >"$temporary/npm" 2>&1 || {
    echo "The suite could not be installed:" >&2
    cat "$temporary/npm" >&2
    exit 1
  }
done

for revision in $revisions; do
  start server.ts "$revision"
  check McpHttp.layer "$release" "$revision"
  check McpHttp.layer "$newest" "$revision"
  stop
  start protected.ts "$revision"
  check "McpHttp.layer with authorization" "$newest" "$revision"
  stop
done

# Many of them are started at once, and each is to begin within a second
bundle=$temporary/client.mjs
node_modules/.bin/esbuild conformance/client.ts --bundle --platform=node --format=esm --log-level=error \
  --banner:js="import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" \
  --outfile="$bundle" || exit 1
connect v1 McpConnector 2025-03-26
connect v1 McpConnector 2025-11-25
connect v2 McpConnectorV2 2025-11-25
connect v2 McpConnectorV2 2026-07-28
connect v1 McpConnector 2025-11-25 auth/client-credentials-basic auth/client-credentials-jwt
connect v2 McpConnectorV2 2025-11-25 auth/client-credentials-basic auth/client-credentials-jwt

start guard.ts
for revision in $revisions; do
  check McpHttp.guard "$newest" "$revision" server-session-lifecycle
  check McpHttp.guard "$newest" "$revision" tools-call-simple-text
done
stop

node --import tsx conformance/report.ts "$temporary/results" && [ "$faults" -eq 0 ]
