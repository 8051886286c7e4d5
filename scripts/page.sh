#!/usr/bin/env bash
# Builds pkg/page/dist from pkg/page/src; with "check", builds elsewhere and fails if what is
# committed is something else.
set -euo pipefail
cd "$(dirname "$0")/../pkg/page/src"
npm ci --silent
npm run --silent check
if [ "${1:-}" != check ]; then
	node build.mjs
	exit
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
node build.mjs "$fresh/dist"
diff -r "$fresh/dist" ../dist || { echo "pkg/page/dist is not what pkg/page/src gives: run make page, and commit what it makes" >&2; exit 1; }
