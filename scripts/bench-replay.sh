#!/bin/sh
# What replaying the buffer costs the real daemon, how large the buffer is, and what replays do
# to a live consumer: three tables in markdown, a row as soon as it is measured. Arguments are
# passed on: --only REGEX, --events N, --live-seconds N, --repeat N, --smoke, --daemon-flag FLAG;
# see loadgen replay --help.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
go build -trimpath -o "$dir/" ./cmd/...
"$dir/loadgen" replay --bin "$dir" "$@"
