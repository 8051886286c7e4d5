#!/bin/sh
# A simulated relay, the daemon on it, and what a consumer sees. Ctrl-C ends all three.
# DEMO_COUNT=n ends it after n events.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
relay=127.0.0.1:${DEMO_RELAY_PORT:-6010} consumers=127.0.0.1:${DEMO_PORT:-6008} admin=127.0.0.1:${DEMO_ADMIN_PORT:-6009}
trap 'kill $simulate $serve 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"' EXIT
trap 'exit 0' INT TERM
simulate= serve=
bin/simrelay --listen-addr "$relay" --rate 20 2>"$dir/simulate.log" >&2 & simulate=$!
bin/slipstream serve --upstream-url "ws://$relay" --upstream-cursor 0 --listen-addr "$consumers" \
	--metrics-listen-addr "$admin" --data-dir "$dir/data" --legacy-dictionary off --log-level error & serve=$!
cat >&2 <<END
A simulated relay is at ws://$relay, Slipstream at ws://$consumers, its metrics at http://$admin/metrics.
Open http://$consumers/ in a browser. In another terminal, for posts only:

  websocat "ws://$consumers/subscribe?wantedCollections=app.bsky.feed.post"

END
for i in 1 2 3 4 5 6 7 8 9 10; do
	kill -0 $serve 2>/dev/null || { cat "$dir/simulate.log" >&2; exit 1; }
	bin/slipstream health --metrics-addr "$admin" >/dev/null 2>&1 && break
	sleep 0.3
done
bin/slipstream tail ${DEMO_COUNT:+--count "$DEMO_COUNT"} "ws://$consumers/subscribe?cursor=0"
echo "The page is at http://$consumers/ as long as the demo runs: make demo" >&2
