#!/bin/sh
# Runs every fuzz test of the project for the given time each, one after the other.
set -eu
cd "$(dirname "$0")/.."
time=${1:-60s}
for package in $(go list ./...); do
	for name in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "== $package $name"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$package"
	done
done
