#!/usr/bin/env bash
# Known vulnerabilities in what the binaries call, by govulncheck. Where its database (GOVULNDB, or
# Go's own) cannot be reached it says so, and that is no failure; a finding is one.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
said=$(go tool govulncheck ${GOVULNDB:+-db "$GOVULNDB"} ./... 2>&1) || status=$?
printf '%s\n' "$said"
# Its words for a database that does not answer, whole or in part; it has no exit status of its own.
if [ "$status" = 1 ] && grep -qE '^govulncheck: (creating client|fetching vulnerabilities)|^(creating client|fetching vulnerabilities):' <<<"$said"; then
	echo "vuln: SKIPPED, nothing was checked: the database ${GOVULNDB:-https://vuln.go.dev} cannot be reached from here"
	exit 0
fi
[ "$status" = 0 ] && echo "vuln: nothing known in what is called"
exit "$status"
