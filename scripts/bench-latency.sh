#!/bin/sh
# How late events are, from the relay's sending to a consumer's receiving, synced commit
# included, at RATE frames per second for SECONDS, with 12 consumers; and what the daemon
# spends meanwhile. The simulated relay, the daemon and the consumers are processes of
# their own.
set -eu
cd "$(dirname "$0")/.."
rate=${RATE:-500} seconds=${SECS:-60} records=${RECORDS:-100}
dir=$(mktemp -d)
relay= daemon= swarm=
trap 'kill $swarm $daemon $relay 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
go build -trimpath -o "$dir/" ./cmd/...
answers() { for i in $(seq 100); do curl -fs "$1" >/dev/null && return; sleep 0.1; done; echo "no answer from $1" >&2; exit 1; }
"$dir/simrelay" --listen-addr 127.0.0.1:16110 --loop 4000 --records "$records" --rate "$rate" >/dev/null 2>&1 & relay=$!
answers http://127.0.0.1:16110/xrpc/_health
"$dir/slipstream" serve --upstream-url ws://127.0.0.1:16110 --data-dir "$dir/data" \
	--listen-addr 127.0.0.1:16108 --metrics-listen-addr 127.0.0.1:16109 --legacy-dictionary off --log-level error & daemon=$!
answers http://127.0.0.1:16109/readyz
"$dir/loadgen" consume --url ws://127.0.0.1:16108/subscribe --consumers 12 --relay ws://127.0.0.1:16110 --duration "${seconds}s" >"$dir/latency" & swarm=$!
"$dir/loadgen" watch --pid $daemon --metrics http://127.0.0.1:16109/metrics --heading --duration "$((seconds - 1))s" --label "$rate frames/s, 12 consumers"
wait $swarm
echo
tail -n +2 "$dir/latency"
