#!/bin/sh
# Trains a dictionary from simulated events and writes dictionaries/events-YYYY-MM-DD.zdict.
# It takes cgo. To use the file, name it in dictionaries/dictionaries.go. A dictionary that was
# shipped is never replaced: its id names it for ever.
set -eu
cd "$(dirname "$0")/.."
out=dictionaries/events-$(date -u +%Y-%m-%d).zdict
if git cat-file -e "HEAD:$out" 2>/dev/null && [ "${1:-}" != "--force" ]; then
	echo "train-dictionary: $out is committed already; shipped dictionaries do not change" >&2
	exit 1
fi
go run ./scripts/traindict -out "$out" -id "$(date -u +%Y%m%d)"
echo "$out"
