#!/bin/sh
# Runs every fuzz test of the project for the given time each, one after the other; with a
# name as the second argument, that one alone. Minimising is kept short: with Go's minute
# for each new input, FuzzFrame's messages of several kilobytes leave time for little else.
set -eu
cd "$(dirname "$0")/.."
time=${1:-60s} only=${2:-Fuzz}
for package in $(go list ./...); do
	for name in $(go test -list "^$only" "$package" | grep '^Fuzz' || true); do
		echo "== $package $name"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s "$package"
	done
done
