#!/bin/sh
# What consumers of all kinds cost the real daemon: one table in markdown, a row for each
# scenario as soon as it is measured. Arguments are passed on: --only REGEX, --seconds N,
# --smoke, --daemon-flag FLAG; see loadgen fanout --help.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
go build -trimpath -o "$dir/" ./cmd/...
"$dir/loadgen" fanout --bin "$dir" "$@"
