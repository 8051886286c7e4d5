#!/bin/sh
# What an event costs: decode and transcode, encode, commit, the pipeline as a whole, on all
# cores and on one; what a delivery costs to 1, 100 and 1,000 consumers; how fast a replay
# is. Compare two commits with benchstat over several runs: this prints one.
set -eu
cd "$(dirname "$0")/.."
go test -run '^$' -bench . -benchmem ./pkg/dagcbor ./pkg/repo
go test -run '^$' -bench 'Decode|Encode|Commit' ./pkg/ingest
go test -run '^$' -bench 'Pipeline|CatchUp' -benchtime 1x ./pkg/ingest
# One core: C code runs beside GOMAXPROCS, so it takes the kernel to hold it to one.
if command -v taskset >/dev/null; then
	taskset -c 0 go test -run '^$' -bench 'CatchUp' -benchtime 1x -cpu 1 ./pkg/ingest
fi
go test -run '^$' -bench . -benchtime 1x ./pkg/subscribe
