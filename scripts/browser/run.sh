#!/usr/bin/env bash
# The page in a real browser, Debian's Chromium, on the real daemon and a simulated relay; and
# that what is committed of the page is what its sources give. Installs what it needs: Chromium
# if root may, the rest from npm. Screenshots are left in bin/browser.
set -euo pipefail
cd "$(dirname "$0")/../.."
skip() { echo "test-browser is skipped: $1"; exit 0; }
command -v npm >/dev/null || skip "npm is missing (Node.js 20 or newer)"
if ! command -v chromium >/dev/null; then
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "chromium is missing (apt-get install chromium)"
	apt-get update >/dev/null
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium fonts-noto-core >/dev/null
fi
scripts/page.sh check
npm ci --silent --prefix scripts/browser
node --test --test-reporter=spec scripts/browser/page.test.mjs
