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
stop() {
	for p in $swarm $daemon $relay; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done
	swarm= daemon= relay=
}
trap 'stop; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
go build -trimpath -o "$dir/slipstream" ./cmd/slipstream
go build -o "$dir/loadgen" ./cmd/loadgen
daemon() {
	"$dir/slipstream" serve --upstream-url ws://127.0.0.1:16110 --upstream-cursor 0 --data-dir "$dir/data" \
		--listen-addr 127.0.0.1:16108 --metrics-listen-addr 127.0.0.1:16109 --log-level warn & daemon=$!
}
watch() { "$dir/loadgen" watch --pid $daemon --metrics http://127.0.0.1:16109/metrics "$@"; }
heading=--heading
for consumers in 0 12; do
	rm -rf "$dir/data"
	"$dir/slipstream" simulate --listen-addr 127.0.0.1:16110 --loop 4000 --records "$records" --rate 0 --total "$frames" >/dev/null 2>&1 & relay=$!
	for i in 1 2 3 4 5 6 7 8 9 10; do curl -fs http://127.0.0.1:16110/xrpc/_health >/dev/null && break; sleep 1; done
	# A first run leaves a cursor in the data dir.
	daemon
	watch --seq $((first + frames / 100)) >/dev/null
	kill $daemon; wait $daemon
	daemon
	if [ "$consumers" -gt 0 ]; then
		for i in 1 2 3 4 5 6 7 8 9 10; do curl -fs http://127.0.0.1:16109/healthz >/dev/null && break; sleep 0.1; done
		"$dir/loadgen" consume --url ws://127.0.0.1:16108/subscribe --consumers "$consumers" >&2 & swarm=$!
	fi
	watch $heading --seq $((first + frames - 1)) --label "$consumers consumers"
	heading=
	stop
done
