#!/bin/sh
# Trains a dictionary and writes dictionaries/events-YYYY-MM-DD.zdict, on made-up events and, where
# they are there, on records of real repos in made-up envelopes. To use it, name it in
# dictionaries/dictionaries.go. What is given goes to slipstream dictionary train:
#
#	scripts/train-dictionary.sh --compare
#
# DATE=2026-11-26 makes the dictionary of that day again, byte for byte. It takes cgo.
set -eu
cd "$(dirname "$0")/.."
date=${DATE:-$(date -u +%Y-%m-%d)}
out=dictionaries/events-$date.zdict
shared=${SHARED:-../shared/data}
material=$(mktemp -d)
trap 'rm -rf "$material"' EXIT
go run ./scripts/trainevents >"$material/simulated.jsonl"
set -- --from "$material/simulated.jsonl" --out "$out" --id "$(echo "$date" | tr -d -)" "$@"
for car in "$shared"/records/*.car; do
	[ ! -e "$car" ] || set -- --from "$car" "$@"
done
for frames in "$shared"/frames/*.bin.zst; do
	[ ! -e "$frames" ] || set -- --test "$frames" "$@"
done
for dictionary in "$shared"/dictionaries/*.zdict; do
	[ ! -e "$dictionary" ] || set -- --dictionary "$dictionary" "$@"
done
go run ./cmd/slipstream dictionary train "$@"
