#!/bin/sh
# What taking in an event costs the whole daemon when it catches up from a stored cursor,
# with the simulated relay beside it in a process of its own: one table, a row for 0 and
# one for 12 live consumers. FRAMES=n: how many frames; RECORDS=n: records in each
# repository, which make the frames as large as they are.
set -eu
cd "$(dirname "$0")/.."
frames=${FRAMES:-3000000} records=${RECORDS:-100} first=30000000000
dir=$(mktemp -d)
relay= daemon= swarm=
stop() { for p in "$@"; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done; }
trap 'stop $swarm $daemon $relay; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
go build -trimpath -o "$dir/" ./cmd/...
answers() { for i in $(seq 100); do curl -fs "$1" >/dev/null && return; sleep 0.1; done; echo "no answer from $1" >&2; exit 1; }
relay() { # $1: how many frames
	"$dir/simrelay" --listen-addr 127.0.0.1:16110 --loop 4000 --records "$records" --rate 0 --total "$1" >/dev/null 2>&1 & relay=$!
	answers http://127.0.0.1:16110/xrpc/_health
}
daemon() {
	"$dir/slipstream" serve --upstream-url ws://127.0.0.1:16110 --upstream-cursor 0 --data-dir "$dir/data" \
		--listen-addr 127.0.0.1:16108 --metrics-listen-addr 127.0.0.1:16109 --legacy-dictionary off --log-level error & daemon=$!
}
watch() { "$dir/loadgen" watch --pid $daemon --metrics http://127.0.0.1:16109/metrics "$@"; }
heading=--heading
for consumers in 0 12; do
	rm -rf "$dir/data"
	# A first run over a few frames leaves a cursor in the data dir.
	relay 1000; daemon
	watch --seq $((first + 999)) >/dev/null
	stop $daemon $relay
	relay "$frames"; daemon
	if [ "$consumers" -gt 0 ]; then
		answers http://127.0.0.1:16109/healthz
		"$dir/loadgen" consume --url ws://127.0.0.1:16108/subscribe --consumers "$consumers" >&2 & swarm=$!
	fi
	watch $heading --seq $((first + frames - 1)) --label "$consumers consumers"
	heading=
	stop $swarm $daemon $relay
	swarm= daemon= relay=
done
