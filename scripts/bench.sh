#!/bin/sh
# What an event costs: decode and transcode, encode, commit, the pipeline as a whole; what
# a delivery costs to 1, 100 and 1,000 consumers; how fast a replay is. Compare two
# commits with benchstat over several runs: this prints one.
set -eu
cd "$(dirname "$0")/.."
go test -run '^$' -bench . -benchmem ./pkg/dagcbor ./pkg/repo
go test -run '^$' -bench 'Decode|Encode|Commit' ./pkg/ingest
go test -run '^$' -bench 'Pipeline' -benchtime 1x ./pkg/ingest
go test -run '^$' -bench . -benchtime 1x ./pkg/subscribe
